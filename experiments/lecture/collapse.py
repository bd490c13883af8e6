"""Posterior collapse: conditions, diagnostics, remedies (S2-16).

    python -m experiments.lecture.collapse

P(z|x) = P(z) means that x and z are independent: nothing is encoded. In a linear VAE a
latent unit collapses exactly when the eigenvalue of its direction is below beta times
the noise variance; all betas train in one program. In a deep VAE the KL of each unit
shows the collapse; warm-up and free bits are compared. Two minutes on two cores.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

import vae_jax
from experiments.evaluation import evaluation_keys
from experiments.lecture.images import Images, binary_test, load
from experiments.lecture.report import Check, Report, topic
from experiments.lecture.training import epochs_for, fit
from experiments.runner import flags
from vae_jax import MLP, Gaussian, Linear, ModelSpec, Params, data, exact
from vae_jax.distributions import bernoulli
from vae_jax.estimators import sigma_points
from vae_jax.types import Array, Key

NOISE_VAR, LINEAR_LATENTS = 0.05, 12
# Expected active units k: beta * NOISE_VAR lies between eigenvalues k and k + 1.
LIVE = (0, 1, 3, 4, 5)


class Setting(NamedTuple):
    """Training setting of a deep model.

    Attributes:
      name: name of the setting.
      beta: weight of the KL.
      warm_up: fraction of the steps over which beta rises from 0.
      free_bits: KL in nats below which a unit is not penalised.
    """

    name: str
    beta: float
    warm_up: float
    free_bits: float


@dataclass(frozen=True)
class Config(flags.DataFlags):
    """Posterior collapse in linear and deep models."""

    linear_steps: flags.Count = 8000
    """Training steps of the linear models."""
    num_steps: flags.Count = 2500
    """Training steps of the deep models, in whole epochs."""
    beta: flags.Positive | None = None
    """Weight of the KL in the settings with partial collapse; by default 2 for images \
of fewer than 100 pixels, 8 otherwise."""
    hidden_dim: flags.Count = 200
    """Hidden width of the deep models' encoder and decoder."""
    latent_dim: flags.Count = 20
    """Latent dimension of the deep models."""
    seed: flags.Natural = 0
    """Seed of the weights, the noise and the order of the data."""
    run_dir: str = "runs/lecture/collapse"
    """Folder for results.json and figures/."""


class Found(NamedTuple):
    """Diagnostics of M deep models.

    Attributes:
      elbo: ELBO of the test images at beta 1, nats, `[M]`.
      kl: KL of each unit, nats, `[M, L]`.
      active: number of active units, `[M]`.
      information: mutual information of x and z, nats, `[M]`.
    """

    elbo: Array
    kl: Array
    active: Array
    information: Array


def settings_of(config: Config, data_dim: int) -> tuple[Setting, ...]:
    """Training settings of the deep models."""
    # The log-likelihood sums over pixels: more pixels need a larger beta to collapse.
    beta = config.beta or (2.0 if data_dim < 100 else 8.0)
    name = f"β = {beta:g}"
    return (
        Setting("β = 1", 1.0, 0.0, 0.0),
        Setting(name, beta, 0.0, 0.0),
        Setting(f"{name}, warm-up", beta, 0.8, 0.0),
        Setting(f"{name}, free bits 0.3", beta, 0.0, 0.3),
        Setting("β = 100", 100.0, 0.0, 0.0),
    )


def moments_of(x: Array) -> Array:
    """2 D examples with the mean and covariance of x, sufficient for a linear VAE."""
    values, vectors = jnp.linalg.eigh(jnp.cov(x, rowvar=False, bias=True))
    scales = jnp.sqrt(len(values) * jnp.maximum(values, 0))
    spread = (vectors * scales).T
    return x.mean(axis=0) + jnp.concatenate([spread, -spread])


def linear_sweep(x: Array, betas: Array, key: Key, num_steps: int) -> Array:
    """Train a linear VAE for every beta in one program; count its active units."""
    spec = ModelSpec(
        encoder=Linear(),
        decoder=Linear(),
        likelihood=Gaussian(),
        latent_dim=LINEAR_LATENTS,
        data_shape=(x.shape[1],),
    )
    start = vae_jax.init(spec, key, x=x, dtype=x.dtype)
    start = start.replace(likelihood={"log_var": jnp.log(jnp.asarray(NOISE_VAR))})
    optimizer = optax.adam(optax.cosine_decay_schedule(0.02, num_steps))

    def train(beta: Array) -> Array:
        params, _ = vae_jax.fit(
            start,
            x,
            key,
            num_epochs=num_steps,
            batch_size=len(x),
            objective=vae_jax.ELBO(beta=beta, estimator=sigma_points),
            optimizer=optimizer,
        )
        return vae_jax.active_units(params, x).count

    return jax.jit(jax.vmap(train))(betas)


def betas_between(x: Array) -> Array:
    """For each k in LIVE, a beta such that k eigenvalues exceed beta * NOISE_VAR."""
    values = jnp.linalg.eigvalsh(jnp.cov(x, rowvar=False, bias=True))[::-1]
    above = jnp.concatenate([1.5 * values[:1], values])
    thresholds = jnp.sqrt(above * jnp.concatenate([values, values[-1:]]))
    return thresholds[jnp.array(LIVE)] / NOISE_VAR


def deep_models(
    images: Images, key: Key, config: Config, settings: Sequence[Setting]
) -> Params:
    """Train one model per setting in one program; the leaves have a leading axis M."""
    spec = ModelSpec(
        encoder=MLP((config.hidden_dim,)),
        decoder=MLP((config.hidden_dim,)),
        latent_dim=config.latent_dim,
        data_shape=images.data_shape,
    )
    init_key, fit_key = jax.random.split(key)
    start = vae_jax.init(spec, init_key, x=images.train)
    num_epochs = epochs_for(config.num_steps, len(images.train))

    def train(beta: Array, warm_up: Array, nats: Array) -> Params:
        rising = jnp.maximum(warm_up * config.num_steps, 1)
        objective = vae_jax.elbo_objective(
            beta=lambda step: beta * jnp.minimum(1, (step + 1) / rising),
            penalty=vae_jax.free_bits(nats),
        )
        params, _ = fit(
            start, images.train, fit_key, num_epochs=num_epochs, objective=objective
        )
        return params

    knobs = (jnp.array(column) for column in list(zip(*settings, strict=True))[1:])
    return jax.jit(jax.vmap(train))(*knobs)


def diagnose(models: Params, x: Array) -> Found:
    """Compute the library's diagnostics for every model."""

    def of(params: Params) -> Found:
        keys = evaluation_keys()
        return Found(
            vae_jax.evaluate(params, x, keys.noise).elbo.mean(),
            vae_jax.kl_per_unit(params, x),
            vae_jax.active_units(params, x).count,
            vae_jax.aggregate_posterior(params, x, keys.aggregate).mutual_information,
        )

    return jax.device_get(jax.jit(jax.vmap(of))(models))


def independent_pixels(images: Images, x: Array) -> Array:
    """Mean log-probability of x under independent pixels with the training means."""
    mean = jnp.clip(images.train.mean(axis=0), 1e-3, 1 - 1e-3)
    return bernoulli.log_prob(x, jnp.log(mean) - jnp.log1p(-mean)).mean()


def deep_checks(found: Found, without_z: Array) -> list[Check]:
    """Checks: full collapse equals a model without z; free bits keep units active."""
    plain, partly, _, free, dead = range(5)
    size = len(found.kl[free])
    return [
        Check("S2-16", "β = 100: active units", found.active[dead], 0),
        Check("S2-16", "β = 100: KL, nats", found.kl[dead].sum(), 0, 0.05),
        Check("S2-16", "β = 100: mutual information", found.information[dead], 0, 0.05),
        Check(
            "S2-16",
            "β = 100: ELBO; pixels independent",
            found.elbo[dead],
            without_z,
            0.5,
        ),
        Check("S2-16", "β = 1: ELBO above that", found.elbo[plain], without_z, 0, ">"),
        Check(
            "S2-16",
            "active units with free bits, above those without",
            found.active[free],
            found.active[partly],
            0.5,
            ">",
        ),
        Check(
            "S2-16",
            f"free bits: KL; {size} units of 0.3 nats and more",
            found.kl[free].sum(),
            0.3 * size,
            0.1 * size,
            ">",
        ),
    ]


def draw_sweep(betas, counts, values) -> Figure:
    """Draw active units against beta, exact and after training."""
    figure = Figure((6.4, 3.8))
    axes = figure.subplots()
    line = np.geomspace(0.5 * min(betas), 1.2 * max(betas), 500)
    alive = (values[:, None] > line * NOISE_VAR).sum(axis=0)
    exact_counts = np.minimum(alive, LINEAR_LATENTS)
    axes.semilogx(line, exact_counts, color="0.5", label="eigenvalues above β s²")
    axes.xaxis.set_major_formatter(LogFormatter())
    axes.xaxis.set_minor_formatter(LogFormatter())
    axes.plot(betas, counts, "o", color="C0", label="active units after training")
    axes.set(xlabel="β", ylabel=f"units of {LINEAR_LATENTS}")
    axes.set_title("A linear VAE collapses unit by unit, where it should")
    axes.legend()
    return figure


def draw_units(found: Found, settings: Sequence[Setting], name: str) -> Figure:
    """Draw the sorted KL of each unit for every setting."""
    figure = Figure((6.8, 4))
    axes = figure.subplots()
    for setting, kl, active, elbo in zip(
        settings, found.kl, found.active, found.elbo, strict=True
    ):
        label = f"{setting.name}: {active} active, ELBO {elbo:.1f}"
        axes.plot(np.arange(1, len(kl) + 1), np.sort(kl)[::-1], "o-", ms=4, label=label)
    axes.set(xlabel="latent unit, sorted", ylabel="KL(q(z_j|x) || p(z_j)), nats")
    axes.set_xticks(range(1, found.kl.shape[1] + 1, 2))
    axes.set_title(f"{name}: a collapsed unit is one whose KL is 0")
    axes.legend()
    return figure


def compute(config: Config) -> Report:
    """Compute every check and figure of the topic."""
    images = load(config)
    linear_key, deep_key = jax.random.split(jax.random.key(config.seed))
    with jax.enable_x64(True):
        x = moments_of(jnp.asarray(data.load("digits").train / 16))
        betas = betas_between(x)
        counts = linear_sweep(x, betas, linear_key, config.linear_steps)
        values = np.linalg.eigvalsh(np.cov(x.T, bias=True))
        checks = [
            Check(
                "S2-16",
                f"linear VAE, β = {beta:.3g}: live units",
                count,
                exact.live_units(x, noise_var=NOISE_VAR, beta=beta),
            )
            for beta, count in zip(betas, counts, strict=True)
        ]
        betas, counts = np.asarray(betas), np.asarray(counts)
    settings = settings_of(config, images.train.shape[1])
    models = deep_models(images, deep_key, config, settings)
    test = binary_test(images, count=1000)
    found = diagnose(models, test)
    checks += deep_checks(found, independent_pixels(images, test))
    notes = [
        f"{setting.name}: test ELBO {elbo:.2f} nats, KL {kl.sum():.2f}, active units "
        f"{active}, mutual information {information:.2f}"
        for setting, elbo, kl, active, information in zip(settings, *found, strict=True)
    ]
    limit = math.log(len(test))
    notes.append(
        f"upper limit of the mutual information: log {len(test)} = {limit:.2f}"
    )
    figures = {
        "linear": draw_sweep(betas, counts, values),
        "units": draw_units(found, settings, images.name),
    }
    title = f"Posterior collapse, {images.name}"
    return Report(title, checks, figures, [*images.notes, *notes])


run, main = topic("collapse", Config, compute)

if __name__ == "__main__":
    main()
