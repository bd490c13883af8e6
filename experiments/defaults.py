"""Flags that were left at their defaults, or given where nothing uses them.

`config` is `experiments.mnist.Config`, or anything with the same fields.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from experiments import choices, datasets
from experiments.runner.flags import RunFlags
from vae_jax import data

ConfigT = TypeVar("ConfigT", bound=RunFlags)
# Where the epochs are not given: small data sets are seen more often.
STEPS_WANTED = 8000
MINIMUM_EPOCHS = 20


def resolve(config: ConfigT, dataset: data.Dataset) -> ConfigT:
    """Fill in the defaults that depend on the data set.

    Args:
      config: as given.
      dataset: as loaded.

    Returns:
      A configuration that names data set, epochs, warm-up, binarization and how often
      to save.
    """
    steps_per_epoch = math.ceil(len(dataset.train) / config.batch_size)
    epochs = config.epochs or max(MINIMUM_EPOCHS, STEPS_WANTED // steps_per_epoch)
    warmup = config.beta_warmup_epochs
    if warmup is None:
        warmup = choices.default_warmup_epochs(
            config, epochs=epochs, steps_per_epoch=steps_per_epoch
        )
    config = choices.with_prior(config)
    default = "dynamic" if config.likelihood == "bernoulli" else "none"
    return dataclasses.replace(
        config,
        dataset=config.dataset if datasets.is_file(config.dataset) else dataset.name,
        epochs=epochs,
        beta_warmup_epochs=warmup,
        binarization=default if config.binarization == "auto" else config.binarization,
        checkpoint_every=config.checkpoint_every or min(5, math.ceil(epochs / 10)),
    )


class Use(NamedTuple):
    """The choice that gives a flag an effect.

    Attributes:
      user: the choice that uses it, for messages.
      flags: the flags that decide.
      holds: `f(config)`, whether the choice was made.
    """

    user: str
    flags: tuple[str, ...]
    holds: Callable[[Any], bool]


def _chosen(flag: str, *values: Any) -> Use:
    return Use(
        f"--{flag}={' or '.join(map(str, values))}",
        (flag,),
        lambda config: getattr(config, flag) in values,
    )


def _not_chosen(flag: str, *values: str) -> Use:
    return Use(
        f"a --{flag} other than {' or '.join(values)}",
        (flag,),
        lambda config: getattr(config, flag) not in values,
    )


def _both(one: Use, other: Use) -> Use:
    return Use(
        f"{one.user} with {other.user}",
        one.flags + other.flags,
        lambda config: one.holds(config) and other.holds(config),
    )


def _either(one: Use, other: Use) -> Use:
    return Use(
        f"{one.user}, or {other.user},",
        one.flags + other.flags,
        lambda config: one.holds(config) or other.holds(config),
    )


_WITH_KL = _both(_chosen("objective", "elbo"), _not_chosen("posterior", "point"))
_WITH_BETA = Use(
    "an objective with a KL (--objective=elbo, beta_tc or mmd, and but for mmd no "
    "--posterior=point)",
    ("objective", "posterior"),
    choices.has_beta,
)
USED_BY = {
    "activation": _chosen("network", "mlp", "conv", "residual"),
    "hidden_dims": _chosen("network", "mlp", "gated", "conv", "residual"),
    "upper_latent_dims": _chosen("posterior", "diagonal"),
    "rank": _chosen("posterior", "low_rank"),
    "num_flow_steps": _either(
        _chosen("posterior", "householder", "sylvester", "planar", "iaf"),
        _chosen("prior", "flow"),
    ),
    "num_components": _chosen("prior", "mixture", "vamp"),
    "variance": _chosen("likelihood", "gaussian"),
    "beta": _WITH_BETA,
    "beta_warmup_epochs": _either(_WITH_BETA, _chosen("beta_warmup_epochs", 0.0)),
    "beta_cycles": _WITH_BETA,
    "free_bits": _WITH_KL,
    "free_bits_per": Use(
        "--free_bits above 0", ("free_bits",), lambda config: config.free_bits > 0
    ),
    "capacity": _WITH_KL,
    "num_samples": _both(
        _chosen("objective", *choices.OBJECTIVES), _not_chosen("posterior", "point")
    ),
    "estimator": _chosen("objective", *choices.OBJECTIVES),
    "kl": _chosen("objective", *choices.WITH_BETA),
    "num_groups": _chosen("objective", "miwae", "piwae"),
    "elbo_share": _chosen("objective", "ciwae"),
    "renyi_alpha": _chosen("objective", "renyi"),
    "tc_weight": _chosen("objective", "beta_tc"),
    "mmd_weight": _chosen("objective", "mmd"),
}


def refuse_ignored(configs: Sequence[Any]) -> None:
    """Refuse a flag that differs from its default where nothing uses it.

    Args:
      configs: of the models that are trained together; one of them may use a flag for
        all.

    Raises:
      ValueError: names the flag, its value and what would use it.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(configs[0])}
    for name, use in USED_BY.items():
        values = [getattr(config, name) for config in configs]
        given = [value for value in values if value != defaults[name]]
        if given and not any(map(use.holds, configs)):
            found = " and ".join(str(getattr(configs[0], flag)) for flag in use.flags)
            raise ValueError(
                f"--{name} {given[0]} has no effect: only {use.user} uses it, got "
                f"{found}"
            )
