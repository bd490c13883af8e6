"""What the flags of an experiment name: a model, an objective, and what goes together.

`config` is `experiments.mnist.Config`, or anything with the same fields.
"""

import math
from typing import Any

import jax
import optax

import vae_jax
from vae_jax import data, estimators
from vae_jax.penalties import Penalty, mean_kl
from vae_jax.types import Array, Objective

OBJECTIVES_OF_SEVERAL_SAMPLES = ("iwae", "miwae", "ciwae", "piwae", "renyi")
# Over which beta rises by default: within the first epoch of MNIST, and four times as
# long as networks of three layers take to find a use for their latents.
WARMUP_STEPS = 400


def check_combinations(config: Any) -> None:
    """Refuses flags that do not go together.

    Args:
      config: the configuration.

    Raises:
      ValueError: names the flags.
    """
    for one, other, off in (
        ("beta_warmup_epochs", "beta_cycles", 0),
        ("free_bits", "capacity", None),
    ):
        if getattr(config, one) and getattr(config, other) != off:
            raise ValueError(
                f"--{one} {getattr(config, one)} and --{other} "
                f"{getattr(config, other)} exclude one another"
            )
    _check_penalty(config)
    _check_latents(config)
    if config.network in ("conv", "residual") and len(config.hidden_dims) > 1:
        raise ValueError(
            f"--network={config.network} has one dense layer: --hidden_dims must be "
            f"one width, got {config.hidden_dims}"
        )
    grouped = config.objective in ("miwae", "piwae")
    if grouped and config.num_samples % config.num_groups:
        raise ValueError(
            f"--num_groups {config.num_groups} must divide --num_samples "
            f"{config.num_samples}"
        )


def has_beta(config: Any) -> bool:
    """Whether beta weighs anything: a KL, or what stands in its place."""
    is_bound = config.objective in OBJECTIVES_OF_SEVERAL_SAMPLES
    has_penalty = config.posterior != "point" or config.objective == "mmd"
    return has_penalty and not is_bound


def default_warmup_epochs(config: Any, *, epochs: int, steps_per_epoch: int) -> float:
    """Epochs over which beta rises where the flags do not say it.

    At first z says little of x, and a network that learns to ignore it does so for
    good. A few hundred steps without the full weight of the KL prevent that.

    Args:
      config: the configuration.
      epochs: of the run.
      steps_per_epoch: of the data set.

    Returns:
      `WARMUP_STEPS`, or half of a shorter run; 0 where there is no KL to weigh, or a
      schedule of another kind.
    """
    scheduled = config.beta_cycles or config.capacity is not None
    if scheduled or not has_beta(config) or config.objective == "mmd":
        return 0.0
    return min(WARMUP_STEPS, epochs * steps_per_epoch / 2) / steps_per_epoch


def collapse_remedies(config: Any) -> str:
    """What to change where a posterior collapsed: flags that suit the others.

    Args:
      config: the configuration, resolved.

    Returns:
      A part of a sentence.
    """
    bound = config.objective in OBJECTIVES_OF_SEVERAL_SAMPLES
    plain = config.objective == "elbo" and config.posterior != "point"
    by_layers = config.network in ("mlp", "gated")
    remedies = {
        "--objective=elbo, whose beta rises from 0": bound,
        f"--beta_warmup_epochs above {config.beta_warmup_epochs:.3g}": plain,
        "--free_bits=0.1": plain and config.capacity is None and not config.free_bits,
        "a smaller --beta": has_beta(config) and config.beta > 1,
        "a smaller --variance": config.likelihood == "gaussian",
        "--activation=tanh": config.network == "mlp" and config.activation == "relu",
        "fewer --hidden_dims": by_layers and len(config.hidden_dims) > 1,
        "a smaller --latent_dim": config.latent_dim > 2,
    }
    suitable = [text for text, suits in remedies.items() if suits]
    return ", or ".join(suitable or ["another --seed"])


def _check_penalty(config: Any) -> None:
    """Refuses a way to charge for the KL that the model or the objective lacks."""
    charged = config.free_bits or config.capacity is not None
    if charged and config.objective != "elbo":
        raise ValueError(
            f"--free_bits and --capacity go with --objective=elbo, got "
            f"{config.objective}"
        )
    weighted = config.beta != 1 or config.beta_warmup_epochs or config.beta_cycles
    if weighted and config.objective in OBJECTIVES_OF_SEVERAL_SAMPLES:
        raise ValueError(
            f"--objective={config.objective} is a bound on log p(x) and has no --beta"
        )
    if weighted and not has_beta(config):
        raise ValueError("--posterior=point has no KL, and --beta would weigh nothing")
    if config.posterior == "point":
        if charged:
            raise ValueError(
                "--free_bits and --capacity are about a KL, and --posterior=point has "
                "no KL"
            )
        if config.objective not in ("elbo", "mmd"):
            raise ValueError(
                f"--objective={config.objective} needs a density q(z|x), and "
                "--posterior=point has none"
            )
    if config.objective == "beta_tc" and config.posterior != "diagonal":
        raise ValueError(
            "--objective=beta_tc is about units, and needs --posterior=diagonal, got "
            f"{config.posterior}"
        )
    _check_free_bits(config)
    if config.objective in ("beta_tc", "mmd") and config.num_devices > 1:
        raise ValueError(
            f"--objective={config.objective} compares the examples of a batch with one "
            f"another, and needs --num_devices=1, got {config.num_devices}"
        )


def _check_free_bits(config: Any) -> None:
    """Refuses free bits of a KL that has no closed form."""
    if not config.free_bits:
        return
    per_unit = config.free_bits_per == "unit"
    known = ["diagonal"] if per_unit else ["diagonal", "full"]
    if not (per_unit or config.conditional):
        known += ["low_rank", "householder"]
    plain = config.prior == "standard" and not config.upper_latent_dims
    if not (plain and config.posterior in known):
        raise ValueError(
            f"--free_bits of each {config.free_bits_per} need a KL in closed form: "
            f"--prior=standard, no --upper_latent_dims and --posterior="
            f"{' or '.join(known)}, got {config.prior}, {config.upper_latent_dims} and "
            f"{config.posterior}; --capacity does not"
        )


def _check_latents(config: Any) -> None:
    """Refuses a posterior and a prior that do not go together."""
    if config.prior == "vamp":
        if config.posterior not in ("diagonal", "full", "low_rank", "householder"):
            raise ValueError(
                "--prior=vamp is a mixture of densities q(z|u), and --posterior="
                f"{config.posterior} has none at a given z"
            )
        if config.conditional:
            raise ValueError(
                "--prior=vamp encodes pseudo-inputs without labels, and --conditional "
                "needs them"
            )
    above = config.upper_latent_dims
    if above and (config.posterior, config.prior) != ("diagonal", "standard"):
        raise ValueError(
            "--upper_latent_dims go with --posterior=diagonal and --prior=standard, "
            f"got {config.posterior} and {config.prior}"
        )


def model_spec(
    config: Any, dataset: data.Dataset, *, num_classes: int = 0
) -> vae_jax.ModelSpec:
    """The model that the flags name.

    Args:
      config: the configuration.
      dataset: what it is to model.
      num_classes: of a conditional model.

    Returns:
      A `ModelSpec`.

    Raises:
      ValueError: a network or a likelihood that does not suit the data.
    """
    encoder, decoder = _networks(config, dataset.data_shape)
    posterior, prior = _latents(config, num_classes)
    return vae_jax.ModelSpec(
        encoder=encoder,
        decoder=decoder,
        posterior=posterior,
        prior=prior,
        likelihood=_likelihood(config, dataset.num_levels),
        latent_dim=config.latent_dim,
        data_shape=dataset.data_shape,
        num_classes=num_classes,
        compute_dtype=config.compute_dtype,
    )


def _networks(config: Any, data_shape: tuple[int, ...]):
    if config.network in ("conv", "residual") and len(data_shape) not in (2, 3):
        raise ValueError(
            f"--network={config.network} needs images, got examples of {data_shape}"
        )
    widths = config.hidden_dims
    options = {"activation": getattr(jax.nn, config.activation)}
    blocks = options | {"num_blocks": 1 if config.network == "residual" else 0}
    convolutional = (
        vae_jax.ConvolutionalEncoder(hidden_dim=widths[-1], **blocks),
        vae_jax.ConvolutionalDecoder(**blocks),
    )
    return {
        "linear": (vae_jax.Linear(), vae_jax.Linear()),
        "mlp": (vae_jax.MLP(widths, **options), vae_jax.MLP(widths[::-1], **options)),
        "gated": (vae_jax.GatedMLP(widths), vae_jax.GatedMLP(widths[::-1])),
        "conv": convolutional,
        "residual": convolutional,
    }[config.network]


def _latents(config: Any, num_classes: int):
    """Posterior and prior."""
    if config.upper_latent_dims:
        above = tuple(map(vae_jax.StochasticLayer, config.upper_latent_dims))
        return (
            vae_jax.HierarchicalGaussian(above),
            vae_jax.HierarchicalGaussianPrior(above),
        )
    steps = config.num_flow_steps
    posterior = {
        "point": vae_jax.PointMass(),
        "diagonal": vae_jax.DiagonalGaussian(),
        "full": vae_jax.FullGaussian(),
        "low_rank": vae_jax.LowRankGaussian(config.rank),
        "householder": vae_jax.Householder(steps),
        "sylvester": vae_jax.Sylvester(steps),
        "planar": vae_jax.Planar(steps),
        "iaf": vae_jax.InverseAutoregressive(steps),
    }[config.posterior]
    standard = vae_jax.StandardNormal()
    prior = {
        "standard": vae_jax.ClassConditionalPrior(num_classes)
        if num_classes
        else standard,
        "mixture": vae_jax.MixtureOfGaussians(config.num_components),
        "vamp": vae_jax.VampPrior(config.num_components),
        "flow": vae_jax.AutoregressiveFlow(steps),
    }[config.prior]
    return posterior, prior


def _likelihood(config: Any, num_levels: int | None):
    if config.likelihood in ("discretized_logistic", "categorical"):
        if num_levels is None:
            raise ValueError(
                f"--likelihood={config.likelihood} is about levels, and the data are "
                "real numbers"
            )
        return {
            "discretized_logistic": vae_jax.DiscretizedLogistic(num_levels),
            "categorical": vae_jax.Categorical(num_levels),
        }[config.likelihood]
    return {
        "bernoulli": vae_jax.Bernoulli(),
        "gaussian": vae_jax.Gaussian(),
        "gaussian_learned": vae_jax.Gaussian(learned_variance=True),
        "gaussian_per_pixel": vae_jax.PerPixelGaussian(),
        "gaussian_full": vae_jax.FullCovarianceGaussian(),
        "continuous_bernoulli": vae_jax.ContinuousBernoulli(),
    }[config.likelihood]


# Flags whose value may differ between the models of one compiled program.
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


def settings(config: Any) -> Settings:
    """The real-valued flags of training, which may as well be traced arrays.

    Args:
      config: the configuration.

    Returns:
      Their values by name; no free bits are an allowance of -inf, below which not even
      rounding takes a KL.
    """
    values = {name: getattr(config, name) for name in SETTINGS}
    return values | {"free_bits": config.free_bits or -math.inf}


def objective(config: Any, settings: Settings, *, steps_per_epoch: int) -> Objective:
    """What training maximises.

    Args:
      config: says which terms there are; its epochs are resolved.
      settings: says how large they are (`settings`).
      steps_per_epoch: for schedules.

    Returns:
      An `Objective`.
    """
    samples, groups = config.num_samples, config.num_groups
    if config.objective == "piwae":
        return vae_jax.importance_weighted_objective(
            num_samples=samples,
            terms=vae_jax.partially_importance_weighted_terms,
            num_groups=groups,
        )
    if config.objective in OBJECTIVES_OF_SEVERAL_SAMPLES:
        reduction = {
            "iwae": estimators.log_mean_exp,
            "miwae": estimators.Grouped(groups),
            "ciwae": estimators.Combined(settings["elbo_share"]),
            "renyi": estimators.Renyi(config.renyi_alpha),
        }[config.objective]
        return vae_jax.importance_weighted_objective(
            num_samples=samples, reduction=reduction
        )
    return vae_jax.elbo_objective(
        beta=_beta(config, settings, steps_per_epoch),
        num_samples=samples,
        penalty=_penalty(config, settings, steps_per_epoch),
    )


def _beta(
    config: Any, settings: Settings, steps_per_epoch: int
) -> float | Array | optax.Schedule:
    """Beta, or how it rises: once, or again in every cycle."""
    beta = settings["beta"]
    if config.beta_warmup_epochs:
        num_steps = settings["beta_warmup_epochs"] * steps_per_epoch
        return vae_jax.warmup_schedule(beta, num_steps=num_steps)
    if config.beta_cycles:
        period = math.ceil(config.epochs * steps_per_epoch / config.beta_cycles)
        return vae_jax.cyclic_schedule(beta, period=period)
    return beta


def _penalty(config: Any, settings: Settings, steps_per_epoch: int) -> Penalty:
    """What training charges for the KL."""
    if config.objective == "beta_tc":
        return vae_jax.total_correlation(settings["tc_weight"])
    if config.objective == "mmd":
        return vae_jax.maximum_mean_discrepancy(settings["mmd_weight"])
    if config.free_bits:
        return vae_jax.free_bits(settings["free_bits"], per=config.free_bits_per)
    if config.capacity is not None:
        rise = math.ceil(config.epochs * steps_per_epoch / 2)
        target = vae_jax.warmup_schedule(settings["capacity"], num_steps=rise)
        return vae_jax.capacity(target)
    return mean_kl


def labels_of(
    params: vae_jax.Params, labels: jax.typing.ArrayLike | None
) -> dict[str, jax.Array]:
    """The keyword `labels` for a conditional model, none for another."""
    return {"labels": jax.numpy.asarray(labels)} if params.spec.num_classes else {}
