"""Models and objectives, by their names in flags.

`config` is `experiments.mnist.Config`, imported for type checking only, because the
experiment imports this module.
"""

import dataclasses
import functools
import inspect
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

import jax

import vae_jax
from experiments import open_choices, optimizers, tables
from experiments.runner import flags
from experiments.runner.metrics import NAMES as FIGURES
from vae_jax import data, estimators
from vae_jax.distributions.support import COUNTS
from vae_jax.penalties import Penalty, mean_kl
from vae_jax.schedules import Scheduled
from vae_jax.types import Array, Estimator, Family, Objective

if TYPE_CHECKING:
    from experiments.mnist import Config, ModelFlags

ConfigT = TypeVar("ConfigT", bound="ModelFlags")

# Default warm-up of beta: shorter than the first epoch of MNIST, and four times as long
# as networks of three layers need before they use their latents.
WARMUP_STEPS = 400


def check_combinations(config: "Config") -> None:
    """Raise ValueError for incompatible flags.

    Args:
      config: the configuration.

    Raises:
      ValueError: names the flags.
    """
    for flag, names in NAMES.items():
        open_choices.find(flag, getattr(config, flag), names)
    for one, other, off in (
        ("beta_warmup_epochs", "beta_cycles", 0),
        ("free_bits", "capacity", None),
    ):
        if getattr(config, one) and getattr(config, other) != off:
            raise ValueError(
                f"--{one} {getattr(config, one)} and --{other} "
                f"{getattr(config, other)} exclude one another"
            )
    if config.exposure == "row_total" and config.missing != "error":
        raise ValueError(
            f"--exposure=row_total and --missing={config.missing} exclude one another: "
            "the total of a row with missing values is unknown"
        )
    if config.objective in ("beta_tc", "mmd") and config.num_devices > 1:
        raise ValueError(
            f"--objective={config.objective} compares the examples of a batch with one "
            f"another and requires --num_devices=1, got {config.num_devices}"
        )
    if config.network in ("conv", "residual") and len(config.hidden_dims) > 1:
        raise ValueError(
            f"--network={config.network} has one dense layer: --hidden_dims must be "
            f"one width, got {config.hidden_dims}"
        )


# Configurations with a beta, the weight of the KL or of its replacement.
HAS_BETA = [
    {"objective": ("elbo", "beta_tc"), "posterior": flags.Other(["point"])},
    {"objective": ("mmd",)},
]


def trained_on(config: "Config") -> dict[str, Any]:
    """Return the data and the objective of training, for results.json.

    Args:
      config: the configuration.

    Returns:
      The flags by name; `beta` is None if the objective does not use it.
    """
    beta = config.beta if flags.holds(HAS_BETA, config) else None
    names = ("dataset", "likelihood", "binarization", "objective")
    return {name: getattr(config, name) for name in names} | {"beta": beta}


# Flags of the objective besides its name and beta.
_OF_OBJECTIVE = (
    "beta_cycles",
    "free_bits",
    "free_bits_per",
    "capacity",
    "num_samples",
    "num_groups",
    "elbo_share",
    "renyi_alpha",
    "tc_weight",
    "mmd_weight",
)


def set_of_objective(config: "Config") -> dict[str, Any]:
    """Return the flags that tell an objective from others of its name, for a title.

    Args:
      config: the configuration.

    Returns:
      Values by name: `beta` if the objective uses it, and every other flag of the
      objective that differs from its default.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    beta = {"beta": config.beta} if flags.holds(HAS_BETA, config) else {}
    others = {name: getattr(config, name) for name in _OF_OBJECTIVE}
    return beta | {n: value for n, value in others.items() if value != defaults[n]}


def default_warmup_epochs(
    config: "Config", *, epochs: int, steps_per_epoch: int
) -> float:
    """Default of `--beta_warmup_epochs`.

    Early in training z carries little information about x, and a decoder that learns to
    ignore z rarely recovers. A few hundred steps with a reduced weight of the KL
    prevent that.

    Args:
      config: the configuration.
      epochs: number of epochs of the run.
      steps_per_epoch: number of steps per epoch.

    Returns:
      `WARMUP_STEPS`, or half of the run if that is less, in epochs; 0 if the objective
      has no KL to weight, or the flags choose another schedule.
    """
    scheduled = config.beta_cycles or config.capacity is not None
    if scheduled or not flags.holds(HAS_BETA, config) or config.objective == "mmd":
        return 0.0
    return min(WARMUP_STEPS, epochs * steps_per_epoch / 2) / steps_per_epoch


def collapse_remedies(config: "Config") -> str:
    """List remedies for posterior collapse that fit the other flags.

    Args:
      config: the resolved configuration.

    Returns:
      Part of a sentence.
    """
    other = config.objective not in ("elbo", "beta_tc", "mmd")
    plain = config.objective == "elbo" and config.posterior != "point"
    by_layers = config.network in ("mlp", "gated")
    remedies = {
        "--objective=elbo, whose beta rises from 0": other,
        f"--beta_warmup_epochs above {config.beta_warmup_epochs:.3g}": plain,
        "--free_bits=0.1": plain and config.capacity is None and not config.free_bits,
        "a smaller --beta": flags.holds(HAS_BETA, config) and config.beta > 1,
        "a smaller --variance": config.likelihood == "gaussian",
        "--activation=tanh": config.network == "mlp" and config.activation == "relu",
        "fewer --hidden_dims": by_layers and len(config.hidden_dims) > 1,
        "a smaller --latent_dim": config.latent_dim > 2,
    }
    suitable = [text for text, suits in remedies.items() if suits]
    return ", or ".join(suitable or ["another --seed"])


def model_spec(
    config: "Config", dataset: data.Dataset, *, num_classes: int = 0
) -> vae_jax.ModelSpec:
    """Build the specification of the model that the flags name.

    Args:
      config: the configuration.
      dataset: the data to be modelled.
      num_classes: number of classes of a conditional model.

    Returns:
      A `ModelSpec`.

    Raises:
      ValueError: if a network or a likelihood does not suit the data.
    """
    encoder, decoder = _networks(config)
    posterior = _posterior(config)
    config = with_likelihood(with_prior(config), dataset)
    covariates = dataset.train_covariates
    return vae_jax.ModelSpec(
        encoder=encoder,
        decoder=decoder,
        posterior=posterior,
        prior=_chosen(config, "prior", config, posterior, num_classes),
        likelihood=likelihood(config, dataset.num_levels, dataset.columns),
        latent_dim=config.latent_dim,
        data_shape=dataset.data_shape,
        num_classes=num_classes,
        num_covariates=0 if covariates is None else covariates.shape[1],
        compute_dtype=config.compute_dtype,
    )


def likelihood(
    config: "ModelFlags",
    num_levels: int | None,
    columns: Sequence[data.Column] = (),
) -> Family:
    """Build the likelihood that the flags name.

    Args:
      config: the configuration.
      num_levels: number of levels of the data; None for real numbers.
      columns: columns of a table, of which real ones are standardized.

    Returns:
      A family.

    Raises:
      ValueError: if the likelihood does not suit the data.
    """
    if config.likelihood == "columns":
        found = vae_jax.Columns.of_table(columns)
    else:
        found = _chosen(config, "likelihood", config, num_levels)
        if columns and config.likelihood in LIKELIHOODS:
            found = tables.standardized(found)
    if config.exposure == "row_total":
        if not found.has_rates:
            raise ValueError(
                f"--exposure={config.exposure} is of counts with means, but "
                f"--likelihood is {config.likelihood}: choose poisson, "
                "negative_binomial or zero_inflated_negative_binomial"
            )
        found = vae_jax.Exposed(found)
    if config.missing == "error" or not columns:
        return found
    return vae_jax.Masked(found, shows_mask=config.missing == "mask_seen")


def is_of_counts(config: "ModelFlags") -> bool:
    """Return whether `--likelihood` names a family of counts; False for `auto`."""
    if config.likelihood in ("auto", "columns"):
        return False
    return likelihood(config, num_levels=256).support == COUNTS


# Data sets whose grey levels are binarized by convention, as in the literature.
BINARIZED = ("mnist", "fashion_mnist", "kmnist")


def default_binarization(family: Family, dataset: data.Dataset) -> str:
    """Resolve `--binarization=auto` by the likelihood and the data.

    Bits drawn from data that are bits already would be the data themselves.

    Args:
      family: the likelihood.
      dataset: the data as loaded.

    Returns:
      `dynamic` for a Bernoulli likelihood of grey data, `none` for others.
    """
    draws = isinstance(family, vae_jax.Bernoulli) and dataset.values != "bits"
    return "dynamic" if draws else "none"


def _is_binarized(config: "ModelFlags", dataset: data.Dataset) -> bool:
    """Return whether pixels are binarized, by `--binarization` or by convention."""
    if dataset.columns:
        return False
    by_convention = config.binarization == "auto" and dataset.name in BINARIZED
    return by_convention or config.binarization in ("dynamic", "fixed", "threshold")


def with_likelihood(config: ConfigT, dataset: data.Dataset) -> ConfigT:
    """Resolve `--likelihood=auto`, and check the likelihood against the data.

    Args:
      config: the configuration.
      dataset: the data as loaded.

    Returns:
      The configuration with a likelihood that suits the data.

    Raises:
      ValueError: if the data are a table and the likelihood or prior is one of pixels,
        or the reverse.
    """
    if dataset.columns and config.prior == "vamp":
        raise ValueError(
            "--prior=vamp has pseudo-inputs in (0, 1), like pixels, but the data are "
            f"{dataset.values}: choose --prior=mixture"
        )
    if config.likelihood == "columns" and not dataset.columns:
        raise ValueError(
            "--likelihood=columns needs a table, and the data are pixels: choose auto"
        )
    if config.likelihood == "auto":
        values = "bits" if _is_binarized(config, dataset) else dataset.values
        chosen = tables.LIKELIHOOD_OF[bool(dataset.columns), values]
        return dataclasses.replace(config, likelihood=chosen)
    suitable = tables.SUITABLE.get(dataset.values, ("columns",))
    is_own = config.likelihood not in LIKELIHOODS
    if dataset.columns and not is_own and config.likelihood not in suitable:
        are = (
            "columns of several kinds" if dataset.values == "mixed" else dataset.values
        )
        raise ValueError(
            f"--likelihood={config.likelihood} does not suit the data, which are "
            f"{are}: choose auto, or {', '.join(suitable)}"
        )
    return config


def with_prior(config: "Config") -> "Config":
    """Resolve `--prior=auto` to a prior that suits q(z|x).

    Args:
      config: the configuration.

    Returns:
      The configuration with a named prior.
    """
    if config.prior != "auto":
        return config
    posterior = _posterior(config)
    is_binary = posterior.latent_space == "binary"
    return dataclasses.replace(config, prior="bernoulli" if is_binary else "standard")


def _chosen(config: "ModelFlags", flag: str, *arguments: Any) -> Any:
    """Build an instance of the choice that a flag names."""
    found = open_choices.find(flag, getattr(config, flag), NAMES[flag])
    return found.made() if isinstance(found, open_choices.Own) else found(*arguments)


def _posterior(config: "Config") -> Family:
    """Build the posterior; raise ValueError if it is not a `Family`."""
    found = _chosen(config, "posterior", config)
    if not isinstance(found, Family):
        raise ValueError(
            "posterior must subclass vae_jax.types.Family, got "
            f"{type(found).__name__} (--posterior={config.posterior})"
        )
    return found


def _networks(config: "Config") -> tuple[Any, Any]:
    """Build encoder and decoder; a user-defined class may serve as both."""
    made = _chosen(config, "network", config)
    if not isinstance(made, tuple | list):
        return made, made
    if len(made) != 2:
        raise ValueError(
            f"--network={config.network} must make one network or a pair, got "
            f"{len(made)}"
        )
    return made[0], made[1]


def _mlp(kind: type, config: "Config", **options: Any) -> tuple[Any, Any]:
    widths = config.hidden_dims
    return kind(widths, **options), kind(widths[::-1], **options)


def _convolutional(config: "Config", *, num_blocks: int) -> tuple[Any, Any]:
    options = {"activation": getattr(jax.nn, config.activation)}
    options["num_blocks"] = num_blocks
    width = config.hidden_dims[-1]
    return (
        vae_jax.ConvolutionalEncoder(hidden_dim=width, **options),
        vae_jax.ConvolutionalDecoder(**options),
    )


def _gaussian(config: "Config") -> Any:
    """Build a diagonal Gaussian, or several stochastic layers of them."""
    above = tuple(map(vae_jax.StochasticLayer, config.upper_latent_dims))
    return vae_jax.HierarchicalGaussian(above) if above else vae_jax.DiagonalGaussian()


def _standard(config: "Config", posterior: Family, num_classes: int) -> Any:
    """Build a standard normal, or its counterpart for stochastic layers or labels."""
    if posterior.layers is not None:
        return vae_jax.HierarchicalGaussianPrior(posterior.layers)
    if num_classes:
        return vae_jax.ClassConditionalPrior(num_classes)
    return vae_jax.StandardNormal()


def _of_levels(family: type, config: "Config", num_levels: int | None) -> Any:
    if num_levels is None:
        raise ValueError(
            f"--likelihood={config.likelihood} is about levels, but the data are real "
            "numbers"
        )
    return family(num_levels)


def _ordinal(config: "Config", num_levels: int | None) -> Any:
    raise ValueError(
        "--likelihood=ordinal is of a table's columns: choose --likelihood=columns and "
        "declare the columns as ordinal with --columns"
    )


def _of_dispersion(name: str, family: type) -> dict[str, Any]:
    """Entries of a count family: dispersion per dimension, shared or by the decoder."""
    return {
        name: lambda *_: family(),
        f"{name}_shared": lambda *_: family("shared"),
        f"{name}_decoder": lambda *_: family("decoder"),
    }


NETWORKS = {
    "linear": lambda config: (vae_jax.Linear(), vae_jax.Linear()),
    "mlp": lambda config: _mlp(
        vae_jax.MLP, config, activation=getattr(jax.nn, config.activation)
    ),
    "gated": functools.partial(_mlp, vae_jax.GatedMLP),
    "conv": functools.partial(_convolutional, num_blocks=0),
    "residual": functools.partial(_convolutional, num_blocks=1),
}
POSTERIORS = {
    "point": lambda config: vae_jax.PointMass(),
    "diagonal": _gaussian,
    "full": lambda config: vae_jax.FullGaussian(),
    "low_rank": lambda config: vae_jax.LowRankGaussian(config.rank),
    "householder": lambda config: vae_jax.Householder(config.num_flow_steps),
    "sylvester": lambda config: vae_jax.Sylvester(config.num_flow_steps),
    "planar": lambda config: vae_jax.Planar(config.num_flow_steps),
    "iaf": lambda config: vae_jax.InverseAutoregressive(config.num_flow_steps),
    "bernoulli": lambda config: vae_jax.FactorizedBernoulli(),
}
PRIORS = {
    "auto": None,
    "standard": _standard,
    "mixture": lambda config, *_: vae_jax.MixtureOfGaussians(config.num_components),
    "vamp": lambda config, *_: vae_jax.VampPrior(config.num_components),
    "flow": lambda config, *_: vae_jax.AutoregressiveFlow(config.num_flow_steps),
    "bernoulli": lambda *_: vae_jax.FactorizedBernoulliPrior(),
}
LIKELIHOODS = {
    "auto": None,
    "columns": None,
    "bernoulli": lambda *_: vae_jax.Bernoulli(),
    "gaussian": lambda *_: vae_jax.Gaussian(),
    "gaussian_learned": lambda *_: vae_jax.Gaussian(learned_variance=True),
    "gaussian_per_dimension": lambda *_: vae_jax.Gaussian(True, per_dimension=True),
    "gaussian_per_pixel": lambda *_: vae_jax.PerPixelGaussian(),
    "gaussian_full": lambda *_: vae_jax.FullCovarianceGaussian(),
    "discretized_logistic": functools.partial(_of_levels, vae_jax.DiscretizedLogistic),
    "categorical": functools.partial(_of_levels, vae_jax.Categorical),
    "continuous_bernoulli": lambda *_: vae_jax.ContinuousBernoulli(),
    "student_t": lambda *_: vae_jax.StudentT(),
    "laplace": lambda *_: vae_jax.Laplace(),
    "log_normal": lambda *_: vae_jax.LogNormal(),
    "gamma": lambda *_: vae_jax.Gamma(),
    "beta": lambda *_: vae_jax.Beta(),
    "ordinal": _ordinal,
    "multinomial": lambda *_: vae_jax.Multinomial(),
    "poisson": lambda *_: vae_jax.Poisson(),
    **_of_dispersion("negative_binomial", vae_jax.NegativeBinomial),
    **_of_dispersion(
        "zero_inflated_negative_binomial", vae_jax.ZeroInflatedNegativeBinomial
    ),
}


# Flags whose values may differ between the models of one compiled program.
SETTINGS = (
    "beta",
    "beta_warmup_epochs",
    "learning_rate",
    "free_bits",
    "capacity",
    "elbo_share",
    "tc_weight",
    "mmd_weight",
)
Settings = dict[str, Any]


def settings(config: "Config") -> Settings:
    """Return the real-valued flags of training, which may be traced instead.

    Args:
      config: the configuration.

    Returns:
      Values by name. Free bits of 0 become -inf, so that no KL, even if negative by
      rounding, is below the threshold.
    """
    values = {name: getattr(config, name) for name in SETTINGS}
    return values | {"free_bits": config.free_bits or -math.inf}


def objective(
    config: "Config", settings: Settings, *, steps_per_epoch: int
) -> Objective:
    """Build the objective of training.

    Args:
      config: the configuration, which determines the terms; epochs are resolved.
      settings: the weights of the terms (`settings`), possibly traced.
      steps_per_epoch: number of steps per epoch, for schedules.

    Returns:
      An `Objective`.
    """
    found = open_choices.find("objective", config.objective, OBJECTIVES)
    if isinstance(found, open_choices.Own):
        return _logging(found)
    return found(config, settings, steps_per_epoch)


def _logging(own: open_choices.Own) -> Objective:
    """Wrap a user-defined objective to check its contract when it is traced."""
    called = own.held_to("objective(params, batch, key, step, axis_name=None)")

    @functools.wraps(called)
    def objective(*arguments: Any, **named: Any) -> tuple[Array, dict[str, Array]]:
        found = called(*arguments, **named)
        metrics = found[1] if isinstance(found, tuple) and len(found) == 2 else None
        if not (isinstance(metrics, dict) and metrics.keys() >= {*FIGURES}):
            came = metrics if isinstance(metrics, dict) else [type(found).__name__]
            raise ValueError(
                f"{own.text} must return the value and a dict of figures with "
                f"{', '.join(FIGURES)}, got {', '.join(came) or 'none'}"
            )
        return found

    return objective


def _estimator(config: "Config") -> Estimator:
    found = open_choices.find("estimator", config.estimator, ESTIMATORS)
    if not isinstance(found, open_choices.Own):
        return found
    return found.held_to(
        "estimator(integrand, posterior, key, num_samples=, reduction=, has_aux=)"
    )


def _elbo(config: "Config", settings: Settings, steps_per_epoch: int) -> Objective:
    return vae_jax.ELBO(
        beta=_beta(config, settings, steps_per_epoch),
        penalty=_penalty(config, settings, steps_per_epoch),
        num_samples=config.num_samples,
        kl=config.kl,
        estimator=_estimator(config),
    )


def _iwae(config: "Config", settings: Settings, steps_per_epoch: int) -> Objective:
    reduction = {
        "iwae": lambda: estimators.log_mean_exp,
        "miwae": lambda: estimators.Grouped(config.num_groups),
        "ciwae": lambda: estimators.Combined(settings["elbo_share"]),
        "renyi": lambda: estimators.Renyi(config.renyi_alpha),
    }[config.objective]()
    return vae_jax.IWAE(
        num_samples=config.num_samples,
        reduction=reduction,
        estimator=_estimator(config),
    )


def _piwae(config: "Config", settings: Settings, steps_per_epoch: int) -> Objective:
    return vae_jax.PIWAE(
        num_samples=config.num_samples,
        num_groups=config.num_groups,
        estimator=_estimator(config),
    )


OBJECTIVES = {
    "elbo": _elbo,
    "iwae": _iwae,
    "miwae": _iwae,
    "ciwae": _iwae,
    "piwae": _piwae,
    "renyi": _iwae,
    "beta_tc": _elbo,
    "mmd": _elbo,
}
# Estimators of the gradient of an integrand's expectation.
ESTIMATORS = {
    name: getattr(estimators, name)
    for name in estimators.__all__
    if "integrand" in inspect.signature(getattr(estimators, name)).parameters
    and name != "value_only"
}
NAMES = {
    "network": NETWORKS,
    "posterior": POSTERIORS,
    "prior": PRIORS,
    "likelihood": LIKELIHOODS,
    "objective": OBJECTIVES,
    "estimator": ESTIMATORS,
    "optimizer": optimizers.OPTIMIZERS,
}


def _beta(config: "Config", settings: Settings, steps_per_epoch: int) -> Scheduled:
    """Build beta: a constant, a linear warm-up, or a cyclic schedule."""
    beta = settings["beta"]
    if config.beta_warmup_epochs:
        num_steps = settings["beta_warmup_epochs"] * steps_per_epoch
        return vae_jax.LinearWarmup(beta, num_steps=num_steps)
    if config.beta_cycles:
        num_steps = optimizers.scheduled_epochs(config) * steps_per_epoch
        return vae_jax.Cyclic(beta, period=math.ceil(num_steps / config.beta_cycles))
    return beta


def _penalty(config: "Config", settings: Settings, steps_per_epoch: int) -> Penalty:
    """Build the replacement for the KL term; the mean KL if there is none."""
    if config.objective == "beta_tc":
        return vae_jax.TotalCorrelation(settings["tc_weight"])
    if config.objective == "mmd":
        return vae_jax.MaximumMeanDiscrepancy(settings["mmd_weight"])
    if config.free_bits:
        return vae_jax.FreeBits(settings["free_bits"], per=config.free_bits_per)
    if config.capacity is not None:
        rise = math.ceil(optimizers.scheduled_epochs(config) * steps_per_epoch / 2)
        return vae_jax.Capacity(
            vae_jax.LinearWarmup(settings["capacity"], num_steps=rise)
        )
    return mean_kl


class Given(TypedDict, total=False):
    """Keyword arguments with the inputs of a conditional model besides x."""

    labels: jax.Array | vae_jax.Conditions


def labels_of(params: vae_jax.Params, labels: Any, x: Any = None) -> Given:
    """Return the keyword `labels` for a conditional model; empty for others.

    Args:
      params: model parameters.
      labels: labels of the data, or `Conditions`; parts that the model does not use are
        dropped.
      x: observations, whose row totals are the exposures of a model that takes them;
        None if nothing is decoded.

    Returns:
      Keyword arguments for functions of the model.
    """
    spec, given = params.spec, _conditions(labels)
    classes = jax.numpy.asarray(given.labels) if spec.num_classes else None
    covariates = jax.numpy.asarray(given.covariates) if spec.num_covariates else None
    given = vae_jax.Conditions(classes, covariates)
    if spec.likelihood.takes_exposure and x is not None:
        return {"labels": with_row_totals(x, given)}
    if covariates is not None:
        return {"labels": given}
    return {} if classes is None else {"labels": classes}


def _conditions(labels: Any) -> vae_jax.Conditions:
    if isinstance(labels, vae_jax.Conditions):
        return labels
    return vae_jax.Conditions(labels)


def with_row_totals(x: Any, labels: Any = None) -> vae_jax.Conditions:
    """Return labels and covariates, with row totals as exposure (`--exposure`)."""
    return _conditions(labels)._replace(exposure=jax.numpy.sum(x, axis=-1))
