"""Resolve flags left at their defaults, and say where a flag has an effect.

`config` is `experiments.mnist.Config`, which is imported by the type checker alone:
the experiment stands above its choices.
"""

import dataclasses
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from experiments import choices, datasets, optimizers
from experiments.choices import ConfigT
from experiments.runner import flags, run_folder
from vae_jax import data

if TYPE_CHECKING:
    from experiments.mnist import Config


# Where the epochs are not given: small data sets are seen more often, but grey levels
# that are the same in every epoch are soon fitted too closely (docs/results/recipes).
STEPS_WANTED, OF_FIXED_LEVELS = 8000, 1200
MINIMUM_EPOCHS = 20


def resolve(config: "Config", dataset: data.Dataset) -> "Config":
    """Fill in the defaults that depend on the data set.

    Args:
      config: as given.
      dataset: as loaded.

    Returns:
      A configuration that names data set, epochs, those of schedules, learning rate,
      both warm-ups, likelihood, binarization and how often to save.

    Raises:
      ValueError: schedules, of the optimizer or of beta, that do not fit the length of
        the run.
    """
    steps_per_epoch = math.ceil(len(dataset.train) / config.batch_size)
    config = choices.with_likelihood(choices.with_prior(config), dataset)
    family = choices.likelihood(config, dataset.num_levels, dataset.columns)
    binarization = config.binarization
    if binarization == "auto":
        binarization = choices.default_binarization(family, dataset)
    are_fixed = dataset.values == "levels" and binarization != "dynamic"
    wanted = OF_FIXED_LEVELS if are_fixed else STEPS_WANTED
    epochs = config.epochs or max(MINIMUM_EPOCHS, wanted // steps_per_epoch)
    warmup = config.beta_warmup_epochs
    if warmup is None:
        warmup = choices.default_warmup_epochs(
            config,
            epochs=config.schedule_epochs or epochs,
            steps_per_epoch=steps_per_epoch,
        )
    scheduled = flags.holds(USED_BY["schedule_epochs"], config)
    config = dataclasses.replace(
        config,
        dataset=config.dataset if datasets.is_file(config.dataset) else dataset.name,
        columns=datasets.resolved_columns(config.columns, dataset),
        epochs=epochs,
        # A number, so that a run of another length is seen to be another run.
        schedule_epochs=(config.schedule_epochs or epochs) if scheduled else None,
        beta_warmup_epochs=warmup,
        binarization=binarization,
        checkpoint_every=config.checkpoint_every or min(5, math.ceil(epochs / 10)),
    )
    if config.warmup_steps is None:
        rise = optimizers.default_warmup_steps(config, steps_per_epoch=steps_per_epoch)
        config = dataclasses.replace(config, warmup_steps=rise)
    optimizers.check_length(config, steps_per_epoch=steps_per_epoch)
    _check_beta(config, steps_per_epoch)
    rate = config.learning_rate or optimizers.default_learning_rate(config)
    return dataclasses.replace(config, learning_rate=rate)


def _check_beta(config: "Config", steps_per_epoch: int) -> None:
    """Raise ValueError if beta cannot reach its value during the run."""
    epochs = optimizers.scheduled_epochs(config)
    warmup = config.beta_warmup_epochs or 0.0
    if warmup > epochs:
        raise ValueError(
            f"--beta_warmup_epochs must be at most the {epochs} epochs of the run, got "
            f"{warmup:g}: beta would end at {epochs / warmup:.2g} of --beta"
        )
    most = epochs * steps_per_epoch // 2
    if config.beta_cycles > most:
        raise ValueError(
            f"--beta_cycles must be at most {most}, half of the steps of the run, got "
            f"{config.beta_cycles}"
        )


# What `--likelihood` was by default before it was auto.
FORMER_LIKELIHOOD = "bernoulli"


def with_former_likelihood(
    config: ConfigT,
    dataset: data.Dataset,
    command: str,
    resolve: Callable[[ConfigT, data.Dataset], ConfigT],
) -> tuple[ConfigT, list[str]]:
    """The configuration of a run that was begun when the default was another.

    Args:
      config: as given.
      dataset: as loaded.
      command: a part of the default folder.
      resolve: fills in the defaults.

    Returns:
      The configuration, with a Bernoulli likelihood if `--run_dir` holds a run with
      that former default, so that the same command resumes it; and notes for the user.
    """
    former = dataclasses.replace(config, likelihood=FORMER_LIKELIHOOD)
    if config.likelihood != "auto" or config.overwrite or dataset.columns:
        return config, []
    chosen = choices.with_likelihood(config, dataset).likelihood
    if chosen == FORMER_LIKELIHOOD:
        return config, []
    folder = Path(
        config.run_dir or run_folder.default_folder(command, resolve(former, dataset))
    )
    path = folder / "config.json"
    if not os.path.exists(path):
        return config, []
    begun = f"{folder} holds a run with --likelihood={FORMER_LIKELIHOOD}, the default "
    begun += f"of earlier versions, where auto is {chosen} now"
    if config.run_dir is None:
        return config, [f"{begun}: give that flag to go on with it"]
    if run_folder.read_signed(path).content.get("likelihood") != FORMER_LIKELIHOOD:
        return config, []
    return former, [f"{begun}: going on with it (--overwrite starts anew)"]


# Where a flag has an effect.
_OF_A_BOUND = {"objective": tuple(choices.OBJECTIVES)}
USED_BY: dict[str, flags.Conditions] = {
    "activation": [{"network": ("mlp", "conv", "residual")}],
    "hidden_dims": [{"network": ("mlp", "gated", "conv", "residual")}],
    "upper_latent_dims": [{"posterior": ("diagonal",)}],
    "rank": [{"posterior": ("low_rank",)}],
    "num_flow_steps": [
        {"posterior": ("householder", "sylvester", "planar", "iaf")},
        {"prior": ("flow",)},
    ],
    "num_components": [{"prior": ("mixture", "vamp")}],
    "variance": [{"likelihood": ("gaussian",)}],
    "beta": choices.HAS_BETA,
    "beta_warmup_epochs": [*choices.HAS_BETA, {"beta_warmup_epochs": (0.0,)}],
    "beta_cycles": choices.HAS_BETA,
    "free_bits": [{"objective": ("elbo",), "posterior": flags.Other(["point"])}],
    "free_bits_per": [{"free_bits": flags.Other([0.0])}],
    "capacity": [{"objective": ("elbo",), "posterior": flags.Other(["point"])}],
    "num_samples": [_OF_A_BOUND | {"posterior": flags.Other(["point"])}],
    "estimator": [_OF_A_BOUND],
    # Free bits and the other objectives do not use the estimate of the KL.
    "kl": [{"objective": ("elbo",), "free_bits": (0.0,)}],
    "schedule_epochs": [
        {"schedule": flags.Other(["constant"])},
        {"beta_cycles": flags.Other([0])},
        {"capacity": flags.Other([None])},
    ],
    "weight_decay": [{"optimizer": ("adamw",)}],
    "num_groups": [{"objective": ("miwae", "piwae")}],
    "elbo_share": [{"objective": ("ciwae",)}],
    "renyi_alpha": [{"objective": ("renyi",)}],
    "tc_weight": [{"objective": ("beta_tc",)}],
    "mmd_weight": [{"objective": ("mmd",)}],
}
