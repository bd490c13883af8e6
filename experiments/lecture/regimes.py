"""Three regimes: no KL, only KL, both (S3-12 to S3-16).

    python -m experiments.lecture.regimes

One program trains three models with weights (1, 0), (0, 1) and (1, 1) of the
log-likelihood and the KL, with two latents for plotting. Without the KL the codes
spread and the posteriors shrink, as in an autoencoder. With the KL alone every
posterior equals the prior and nothing is encoded. Also: interpolation, and Gaussian
decoders with learned variances. Two minutes on two cores.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.collections import EllipseCollection
from matplotlib.figure import Figure

import vae_jax
from experiments.evaluation import diagonal, evaluation_keys
from experiments.lecture.images import Images, binary_test, draw_rows, load
from experiments.lecture.report import Check, Report, topic
from experiments.lecture.training import epochs_for, fit
from experiments.runner import flags
from experiments.style import BY_LABEL, add_title
from vae_jax import MLP, Gaussian, ModelSpec, Params, PerPixelGaussian
from vae_jax.types import Array, Key

REGIMES = ("no KL", "only KL", "both")
FIDELITY, KL_WEIGHT = np.array([1.0, 0.0, 1.0]), np.array([0.0, 1.0, 1.0])
DRAWN = 1000


@dataclass(frozen=True)
class Config(flags.DataFlags):
    """Train without the KL, with the KL alone, and with both terms."""

    num_steps: flags.Several = 3000
    """Training steps of every model, in whole epochs."""
    hidden_dim: flags.Count = 200
    """Hidden width of encoder and decoder."""
    seed: flags.Natural = 0
    """Seed of the weights, the noise and the order of the data."""
    run_dir: str = "runs/lecture/regimes"
    """Folder for results.json and figures/."""


class Found(NamedTuple):
    """Diagnostics of the three models, `[3]` each.

    Attributes:
      elbo: ELBO of the test images, nats.
      kl: KL(q(z|x) || p(z)), nats.
      deviation: mean standard deviation of q(z|x).
      spread: standard deviation of z under the aggregate posterior.
      active: number of active units.
      information: mutual information of x and z, nats.
      to_prior: KL(q(z) || p(z)) of the aggregate posterior, nats.
    """

    elbo: Array
    kl: Array
    deviation: Array
    spread: Array
    active: Array
    information: Array
    to_prior: Array


def make_spec(images: Images, config: Config, **choices) -> ModelSpec:
    """Spec with two latents and one hidden layer."""
    return ModelSpec(
        encoder=MLP((config.hidden_dim,)),
        decoder=MLP((config.hidden_dim,)),
        latent_dim=2,
        data_shape=images.data_shape,
        **choices,
    )


def weighted(fidelity: Array, kl_weight: Array) -> Callable:
    """Objective fidelity * E log p(x|z) - kl_weight * KL."""

    def objective(params: Params, x: Array, key: Key, step: Array):
        terms = vae_jax.elbo_terms(params, x, key)
        value = fidelity * terms.log_likelihood - kl_weight * terms.kl_divergence
        return value.mean(), {"elbo": terms.elbo.mean()}

    return objective


def train(images: Images, key: Key, config: Config) -> tuple[Params, Params]:
    """Train the three models in one program; return the start and stacked models."""
    init_key, fit_key = jax.random.split(key)
    start = vae_jax.init(make_spec(images, config), init_key, x=images.train)
    num_epochs = epochs_for(config.num_steps, len(images.train))

    def one(fidelity: Array, kl_weight: Array) -> Params:
        objective = weighted(fidelity, kl_weight)
        params, _ = fit(
            start, images.train, fit_key, num_epochs=num_epochs, objective=objective
        )
        return params

    weights = jnp.asarray(FIDELITY, jnp.float32), jnp.asarray(KL_WEIGHT, jnp.float32)
    return start, jax.jit(jax.vmap(one))(*weights)


def fit_decoder(params: Params, images: Images, key: Key, config: Config) -> Params:
    """Train the decoder with the encoder fixed."""

    def objective(moving: Params, x: Array, key: Key, step, *, axis_name=None):
        held = moving.replace(encoder=params.encoder)
        value = vae_jax.elbo_terms(held, x, key).log_likelihood.mean()
        return value, {"log_likelihood": value}

    num_epochs = epochs_for(config.num_steps // 2, len(images.train))
    run = jax.jit(
        lambda params: fit(
            params, images.train, key, num_epochs=num_epochs, objective=objective
        )[0]
    )
    return run(params).replace(encoder=params.encoder)


def diagnose(models: Params, x: Array) -> Found:
    """Compute the library's diagnostics for the three models."""

    def of(params: Params) -> Found:
        keys = evaluation_keys()
        q = diagonal(vae_jax.encode(params, x))
        variance = jnp.exp(q.log_var)
        aggregate = vae_jax.aggregate_posterior(params, x, keys.aggregate)
        total = variance.mean(axis=0) + q.mean.var(axis=0)
        return Found(
            vae_jax.evaluate(params, x, keys.noise).elbo.mean(),
            vae_jax.kl_per_unit(params, x).sum(),
            jnp.sqrt(variance).mean(),
            jnp.sqrt(total.mean()),
            vae_jax.active_units(params, x).count,
            aggregate.mutual_information,
            aggregate.kl_to_prior,
        )

    return jax.device_get(jax.jit(jax.vmap(of))(models))


def pick(models: Params, index: int) -> Params:
    """Select one of several stacked models."""
    return jax.tree.map(lambda leaf: leaf[index], models)


def regime_checks(start: Params, models: Params, found: Found) -> list[Check]:
    """Checks of the expected behaviour of each regime."""
    free, collapsed, both = range(3)
    untouched = max(
        float(jnp.abs(new[collapsed] - old).max())
        for new, old in zip(
            jax.tree.leaves(models.decoder), jax.tree.leaves(start.decoder), strict=True
        )
    )
    deviation, spread = found.deviation, found.spread
    return [
        Check(
            "S3-14", "no KL: KL above both's", found.kl[free], found.kl[both], 0, ">"
        ),
        Check(
            "S3-14",
            "no KL: σ of q(z|x) below both's",
            deviation[free],
            deviation[both],
            0,
            "<",
        ),
        Check(
            "S3-14",
            "no KL: spread of z above both's",
            spread[free],
            spread[both],
            0,
            ">",
        ),
        Check("S3-15", "only KL: KL, nats", found.kl[collapsed], 0, 1e-3),
        Check(
            "S3-15", "only KL: σ of q(z|x), not narrow", deviation[collapsed], 1, 0.01
        ),
        Check(
            "S3-15",
            "only KL: mutual information",
            found.information[collapsed],
            0,
            0.01,
        ),
        Check("S3-15", "only KL: active units", found.active[collapsed], 0),
        Check("S3-15", "only KL: change of the decoder", untouched, 0),
        Check(
            "S3-16",
            "both: spread of z less 1, below no KL's",
            abs(spread[both] - 1),
            abs(spread[free] - 1),
            0,
            "<",
        ),
        Check("S3-16", "both: σ of q(z|x), below 1", deviation[both], 0.8, 0, "<"),
        Check(
            "S3-16",
            "both: KL(q(z) || p(z)) below no KL's",
            found.to_prior[both],
            found.to_prior[free],
            0,
            "<",
        ),
        Check(
            "S3-16",
            "both: ELBO above no KL's",
            found.elbo[both],
            found.elbo[free],
            0,
            ">",
        ),
    ]


def interpolation_checks(params: Params, x: Array) -> list[Check]:
    """Check that the middle of an interpolation is decoded from (z1 + z2) / 2."""
    z1, z2 = (vae_jax.encode(params, part).mean for part in (x[:8], x[8:16]))
    middle = vae_jax.decode(params, (z1 + z2) / 2).mean
    line = vae_jax.interpolate(params, x[:8], x[8:16], num_steps=3)
    off = jnp.abs(line[1] - middle).max()
    return [Check("S3-13", "decoded (z1 + z2) / 2 minus middle", off, 0, 1e-5)]


def gaussian_decoders(images: Images, key: Key, config: Config) -> list[Check]:
    """Checks of Gaussian decoders with one shared and with per-pixel variances."""

    def spread_levels(x: Array, key: Key) -> Array:
        # Dequantize: the density of pixels that never change would be unbounded.
        return x + (jax.random.uniform(key, x.shape) - 0.5) / 16

    num_epochs = epochs_for(config.num_steps // 2, len(images.train))
    init_key, fit_key, test_key, z_key = jax.random.split(key, 4)
    test = spread_levels(images.test[:2000], test_key)
    measured = {}
    for name, family in (
        ("shared", Gaussian(learned_variance=True)),
        ("own", PerPixelGaussian()),
    ):
        spec = make_spec(images, config, likelihood=family)
        params = vae_jax.init(spec, init_key, x=images.train)
        if name == "shared":
            # Start at the variance of all pixels; from 1 it would fall slowly.
            start = jnp.log(images.train.var())
            params = params.replace(likelihood={"log_var": start})
        run = jax.jit(
            lambda params: fit(
                params,
                images.train,
                fit_key,
                num_epochs=num_epochs,
                preprocess=spread_levels,
            )[0]
        )
        params = run(params)
        z = vae_jax.reparameterize(vae_jax.encode(params, test), z_key)
        likelihood = diagonal(vae_jax.decode(params, z))
        error = jnp.square(test - likelihood.mean).mean()
        log_prob = likelihood.log_prob(test).mean()
        measured[name] = log_prob, error, jnp.exp(likelihood.log_var).mean()
    log_prob, error, variance = measured["shared"]
    size = test.shape[1]
    formula = -0.5 * size * (error / variance + jnp.log(2 * jnp.pi * variance))
    return [
        Check(
            "S3-12",
            "one s²: its learned value, mean error²",
            variance,
            error,
            0.1 * error,
        ),
        Check("S3-12", "one s²: log p(x|z) by its formula", log_prob, formula, 0.05),
        Check(
            "S3-12",
            "s² of each pixel: log p(x|z) above",
            measured["own"][0],
            log_prob,
            0,
            ">",
        ),
    ]


def draw_codes(models: Params, images: Images, found: Found) -> Figure:
    """Draw the means of q(z|x), with one-standard-deviation ellipses for 60 images."""
    figure = Figure((9.5, 3.7))
    panels = figure.subplots(1, 3)
    x, labels = images.test[:DRAWN], images.test_labels[:DRAWN]
    for index, (axes, name) in enumerate(zip(panels, REGIMES, strict=True)):
        q = jax.device_get(vae_jax.encode(pick(models, index), x))
        axes.scatter(*q.mean.T, s=5, c=labels, cmap=BY_LABEL, vmin=-0.5, vmax=9.5)
        widths = 2 * np.exp(q.log_var[:60] / 2)
        ellipses = EllipseCollection(
            widths[:, 0],
            widths[:, 1],
            np.zeros(len(widths)),
            units="xy",
            offsets=q.mean[:60],
            offset_transform=axes.transData,
            facecolors="none",
            edgecolors="0.3",
            linewidths=0.5,
        )
        axes.add_collection(ellipses)
        limit = max(3.0, 1.1 * float(np.abs(q.mean).max()))
        axes.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
        axes.set_title(f"{name}: σ = {found.deviation[index]:.2g}")
        axes.set_xlabel("z1")
    panels[0].set_ylabel("z2")
    figure.colorbar(
        panels[-1].collections[0], ax=panels, ticks=range(10), label="label"
    )
    add_title(figure, f"{images.name}: means of q(z|x); ellipses: its σ, for 60 images")
    return figure


def draw_pictures(models: Params, images: Images, x: Array, key: Key) -> Figure:
    """Draw reconstructions and samples of each regime."""
    again_key, made_key = jax.random.split(key)
    rows = [("test images", x[:9])]
    for index, name in enumerate(REGIMES):
        params = pick(models, index)
        again = vae_jax.reconstruct(params, x[:9], again_key)
        made = vae_jax.generate(params, made_key, num_samples=9)
        rows += [(f"{name}: rebuilt", again), (f"{name}: made up", made)]
    title = f"{images.name}: test images rebuilt, and images made up from N(0, I)"
    return draw_rows(rows, images.data_shape, title)


def draw_line(params: Params, images: Images, x: Array) -> Figure:
    """Draw interpolations between pairs of test images; the middle is (z1 + z2) / 2."""
    line = vae_jax.interpolate(params, x[:4], x[4:8], num_steps=9)
    rows = [(f"pair {pair + 1}", line[:, pair]) for pair in range(4)]
    title = f"{images.name}: from z1 to z2, (z1 + z2) / 2 in the middle"
    return draw_rows(rows, images.data_shape, title)


def compute(config: Config) -> Report:
    """Compute every check and figure of the topic."""
    images = load(config)
    train_key, decoder_key, gaussian_key, mean_key, draw_key = jax.random.split(
        jax.random.key(config.seed), 5
    )
    start, models = train(images, train_key, config)
    test = binary_test(images, count=DRAWN)
    found = diagnose(models, test)
    checks = regime_checks(start, models, found)
    after = fit_decoder(pick(models, 1), images, decoder_key, config)
    off = jnp.abs(
        vae_jax.generate(after, mean_key, num_samples=200).mean(axis=0)
        - images.train.mean(axis=0)
    )
    checks += [
        Check("S3-15", "decoder fitted afterwards minus data mean", off.max(), 0, 0.1),
        *interpolation_checks(pick(models, 2), images.test),
        *gaussian_decoders(images, gaussian_key, config),
    ]
    notes = [
        f"{name}: ELBO {elbo:.1f} nats, KL {kl:.2f}, σ {deviation:.3f}, spread of z "
        f"{spread:.2f}, active units {active}, mutual information {information:.2f}"
        for name, elbo, kl, deviation, spread, active, information, _ in zip(
            REGIMES, *found, strict=True
        )
    ]
    figures = {
        "codes": draw_codes(models, images, found),
        "pictures": draw_pictures(models, images, test, draw_key),
        "interpolation": draw_line(pick(models, 2), images, images.test),
    }
    title = f"Three regimes, {images.name}"
    return Report(title, checks, figures, [*images.notes, *notes])


run, main = topic("regimes", Config, compute)

if __name__ == "__main__":
    main()
