"""MCMC and variational inference on one posterior (S4-1 to S4-5).

    python -m experiments.lecture.inference

The posterior of a linear-Gaussian model is known and its units are correlated. The
error of Metropolis-Hastings and Gibbs chains keeps decreasing with their length. A
diagonal q, fitted to one x or given by an encoder, converges quickly but to a biased
approximation. Two minutes on two cores, no data needed.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import vae_jax
from experiments.evaluation import diagonal
from experiments.lecture.evidence import gap_to_posterior
from experiments.lecture.report import Check, Report, topic
from experiments.lecture.training import fit
from experiments.runner import flags
from experiments.style import add_title
from vae_jax import MLP, Gaussian, Linear, ModelSpec, Params, exact, mcmc
from vae_jax.estimators import sigma_points
from vae_jax.types import Array, Key
from vae_jax.variational_fit import QUASI_NEWTON_COST

DATA_DIM, LATENT_DIM, NOISE_VAR = 8, 3, 0.3
STEPS_OF_FIT = (10, 30, 100, 300, 1000, 4000)
SAMPLES_OF_FIT = 4
COLORS = {
    "Metropolis-Hastings": "C1",
    "Gibbs": "C4",
    "variational, this x": "C0",
    "encoder": "C2",
}


@dataclass(frozen=True)
class Config:
    """MCMC and variational inference on one posterior."""

    num_samples: Annotated[int, flags.at_least(50)] = 4000
    """States of every chain."""
    num_chains: flags.Several = 100
    """Number of chains whose errors are averaged."""
    scale: flags.Positive = 0.35
    """Step size of Metropolis-Hastings."""
    encoder_steps: flags.Count = 2000
    """Training steps of the encoder."""
    seed: flags.Natural = 0
    """Seed of the model, the data and all noise."""
    run_dir: str = "runs/lecture/inference"
    """Folder for results.json and figures/."""


class Curve(NamedTuple):
    """Errors against log-joint evaluations.

    Attributes:
      evaluations: number of evaluations, `[n]`.
      mean: error of E[z|x] in posterior standard deviations, `[n]`.
      deviation: relative error of the posterior standard deviation, `[n]`.
    """

    evaluations: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray


class Truth(NamedTuple):
    """The exact posterior of one x."""

    mean: Array
    covariance: Array


def make_model(key: Key) -> tuple[exact.LinearGaussian, Params, Array]:
    """Model with correlated units, its VAE with an untrained encoder, and data."""
    weights_key, init_key, data_key = jax.random.split(key, 3)
    own, shared = jax.random.normal(weights_key, (2, DATA_DIM, LATENT_DIM))
    weights = 0.5 * own + shared[:, :1]  # All units share a direction.
    model = exact.LinearGaussian(weights, jnp.zeros(DATA_DIM), jnp.asarray(NOISE_VAR))
    spec = ModelSpec(
        encoder=MLP((32,)),
        decoder=Linear(),
        likelihood=Gaussian(),
        latent_dim=LATENT_DIM,
        data_shape=(DATA_DIM,),
    )
    right = exact.linear_vae(model)
    params = vae_jax.init(spec, init_key).replace(
        decoder=right.decoder, likelihood=right.likelihood
    )
    x = vae_jax.generate(right, data_key, num_samples=4000, sample=True)
    return model, params, x


def train_encoder(params: Params, x: Array, key: Key, num_steps: int) -> Params:
    """Train the encoder by amortized inference with the decoder fixed."""

    def objective(moving: Params, x: Array, key: Key, step, *, axis_name=None):
        value = vae_jax.elbo(moving.replace(decoder=params.decoder), x, key)
        return value, {"elbo": value}

    num_epochs = max(1, num_steps * 128 // len(x))
    run = jax.jit(
        lambda params: fit(
            params,
            x,
            key,
            num_epochs=num_epochs,
            objective=objective,
            preprocess=None,
            learning_rate=3e-3,
        )[0]
    )
    return run(params).replace(decoder=params.decoder)


def errors(mean: Array, deviation: Array, truth: Truth) -> tuple[Array, Array]:
    """Root mean squared errors over the units of estimates `[..., L]`."""
    scale = jnp.sqrt(jnp.diag(truth.covariance))
    of_mean = jnp.sqrt(jnp.mean(jnp.square((mean - truth.mean) / scale), axis=-1))
    ratio = deviation / scale - 1
    return of_mean, jnp.sqrt(jnp.mean(jnp.square(ratio), axis=-1))


def chain_curve(samples: Array, truth: Truth, cost: int) -> Curve:
    """Errors of the first n states of chains `[C, T, L]`, averaged over the chains."""
    counts = np.unique(np.geomspace(5, samples.shape[1], 25).astype(int))
    number = jnp.arange(1, samples.shape[1] + 1)[:, None]
    mean = jnp.cumsum(samples, axis=1) / number
    square = jnp.cumsum(jnp.square(samples), axis=1) / number
    deviation = jnp.sqrt(jnp.maximum(square - jnp.square(mean), 0))
    both = errors(mean[:, counts - 1], deviation[:, counts - 1], truth)
    return Curve(counts * cost, *(np.asarray(error.mean(axis=0)) for error in both))


def run_chains(params: Params, x: Array, truth: Truth, key: Key, config: Config):
    """Run both samplers from draws of the prior; samples are `[C, T, L]`."""
    start_key, walk_key, gibbs_key = jax.random.split(key, 3)
    starts = jax.random.normal(start_key, (config.num_chains, LATENT_DIM))
    walk = partial(
        mcmc.metropolis_hastings,
        mcmc.posterior_log_density(params, x),
        num_samples=config.num_samples,
        proposal=mcmc.random_walk(config.scale),
    )
    sweep = partial(
        mcmc.gibbs,
        mcmc.gaussian_conditional(truth.mean, truth.covariance),
        num_samples=config.num_samples,
    )
    found = {}
    for name, sampler, sampler_key in (
        ("Metropolis-Hastings", walk, walk_key),
        ("Gibbs", sweep, gibbs_key),
    ):
        keys = jax.random.split(sampler_key, config.num_chains)
        found[name] = jax.jit(jax.vmap(sampler))(starts, keys)
    return found


def fitted(params: Params, x: Array, truth: Truth, key: Key):
    """Fit q to x alone with several step counts; return the curve and the last q."""
    points, fits = [], []
    for num_steps in STEPS_OF_FIT:
        run = jax.jit(
            partial(
                vae_jax.fit_posterior, num_steps=num_steps, num_samples=SAMPLES_OF_FIT
            )
        )
        q = run(params, x[None], key).posterior
        both = errors(q.mean[0], jnp.exp(q.log_var[0] / 2), truth)
        cost = QUASI_NEWTON_COST + num_steps * SAMPLES_OF_FIT
        points.append((cost, *map(float, both)))
        fits.append(q)
    return Curve(*np.array(points).T), fits[-1]


def chain_checks(name: str, row: str, chain: mcmc.Chain, truth: Truth) -> list[Check]:
    """Checks of the moments of the later states, within five estimated errors."""
    kept = chain.samples[:, chain.samples.shape[1] // 5 :]
    by_step = jnp.moveaxis(kept, 0, 1)
    size = mcmc.effective_sample_size(by_step).min()
    states = kept.reshape(-1, LATENT_DIM)
    of_mean, of_deviation = errors(states.mean(axis=0), states.std(axis=0), truth)
    bound = 5 / jnp.sqrt(size)
    worst = mcmc.r_hat(by_step).max()
    return [
        Check(row, f"{name}: error of E[z|x], in σ", of_mean, 0, bound),
        Check(row, f"{name}: relative error of σ", of_deviation, 0, bound),
        Check(row, f"{name}: r-hat of the chains", worst, 1, 0.02),
    ]


def variational_checks(
    model: exact.LinearGaussian, params: Params, q, x: Array, truth: Truth
) -> list[Check]:
    """Checks of the best diagonal q: its mean, variances 1 / precision, known gap."""
    precision = jnp.linalg.inv(truth.covariance)
    terms = vae_jax.elbo_terms(
        params, x[None], jax.random.key(0), posterior=q, estimator=sigma_points
    )
    short = exact.log_evidence(model, x[None])[0] - terms.elbo[0]
    best = 1 / jnp.sqrt(jnp.diag(precision))
    off, _ = errors(q.mean[0], best, truth)
    ratio = jnp.exp(q.log_var[0] / 2) / best
    return [
        Check("S4-4", "this x: error of E[z|x], in σ", off, 0, 0.05),
        Check("S4-4", "this x: σ over 1 / √precision", ratio.mean(), 1, 0.03),
        Check(
            "S4-4",
            "this x: log p(x) - ELBO, nats",
            short,
            exact.diagonal_gap(model),
            0.01,
        ),
    ]


def amortization_checks(
    model: exact.LinearGaussian, params: Params, x: Array
) -> tuple[list[Check], str]:
    """Checks of the encoder's approximation and amortization gaps, and a note."""
    few = x[:500]
    elbo = vae_jax.elbo_terms(params, few, jax.random.key(0), estimator=sigma_points)
    log_evidence = exact.log_evidence(model, few)
    whole = (log_evidence - elbo.elbo).mean()
    approximation = exact.diagonal_gap(model)
    divergence = gap_to_posterior(
        model, few, diagonal(vae_jax.encode(params, few))
    ).mean()
    amortization = float(whole - approximation)
    checks = [
        Check("S4-6", "encoder: log p(x) - ELBO, nats", whole, divergence, 1e-3),
        Check("S4-5", "encoder: amortization gap, nats", amortization, 0, 0, ">"),
    ]
    note = (
        f"encoder: approximation gap {float(approximation):.3f} nats, amortization "
        f"gap {amortization:.3f} nats"
    )
    return checks, note


def bayes_checks(model: exact.LinearGaussian, x: Array, truth: Truth) -> list[Check]:
    """Checks of the exact posterior by Bayes' rule on a grid of z1, the rest given."""
    params = exact.linear_vae(model)
    axis = jnp.linspace(-8, 8, 4001)
    rest = truth.mean[1:]
    z = jnp.concatenate([axis[:, None], jnp.tile(rest, (len(axis), 1))], axis=1)
    weights = jax.nn.softmax(vae_jax.log_joint(params, x[None], z[:, None])[:, 0])
    mean = weights @ axis
    variance = weights @ jnp.square(axis - mean)
    precision = jnp.linalg.inv(truth.covariance)
    return [
        Check("S4-1", "E[z1 | x, z2, z3] by Bayes' rule", mean, truth.mean[0], 1e-4),
        Check("S4-1", "its variance", variance, 1 / precision[0, 0], 1e-4),
    ]


def draw_curves(curves: dict[str, Curve]) -> Figure:
    """Draw both errors against evaluations."""
    figure = Figure((9.5, 4))
    panels = figure.subplots(1, 2, sharex=True)
    labels = ("error of E[z|x], standard deviations", "relative error of the deviation")
    for axes, quantity, label in zip(
        panels, ("mean", "deviation"), labels, strict=True
    ):
        for name, curve in curves.items():
            values = getattr(curve, quantity)
            color = COLORS[name]
            if len(values) == 1:
                axes.axhline(
                    values[0], color=color, ls="--", label=f"{name}: no evaluations"
                )
            else:
                axes.loglog(
                    curve.evaluations, values, "o-", color=color, ms=3, label=name
                )
        axes.set(xlabel="evaluations of log p(x, z) or a conditional", ylabel=label)
    panels[0].legend()
    add_title(
        figure,
        "MCMC error keeps decreasing; a diagonal q keeps an error in the deviation",
    )
    return figure


def draw_posterior(samples: Array, q, truth: Truth) -> Figure:
    """Draw chain states and ellipses of the exact posterior and q for two units."""
    figure = Figure((5.2, 4.6))
    axes = figure.subplots()
    states = np.asarray(samples[:, -30:, :2]).reshape(-1, 2)
    axes.scatter(*states.T, s=3, color="C1", alpha=0.3, label="Metropolis-Hastings")
    angle = np.linspace(0, 2 * math.pi, 200)
    circle = 2 * np.stack([np.cos(angle), np.sin(angle)])
    of_truth = np.linalg.cholesky(truth.covariance[:2, :2]) @ circle
    center = np.asarray(truth.mean[:2, None])
    axes.plot(*(center + of_truth), "k", label="exact p(z|x), two σ")
    scale = np.exp(np.asarray(q.log_var[0, :2, None]) / 2)
    own = np.asarray(q.mean[0, :2, None]) + scale * circle
    axes.plot(*own, color="C0", label="best diagonal q, two σ")
    axes.set(xlabel="z1", ylabel="z2", title="A diagonal q is too narrow")
    axes.legend()
    return figure


def compute(config: Config) -> Report:
    """Compute every check and figure of the topic."""
    model_key, encoder_key, chain_key, fit_key = jax.random.split(
        jax.random.key(config.seed), 4
    )
    model, params, data = make_model(model_key)
    x = data[0]
    mean, covariance = exact.posterior(model, x[None])
    truth = Truth(mean[0], covariance)
    chains = run_chains(params, x, truth, chain_key, config)
    curve, q = fitted(params, x, truth, fit_key)
    trained = train_encoder(params, data[500:], encoder_key, config.encoder_steps)
    encoded = diagonal(vae_jax.encode(trained, x[None]))
    of_encoder = errors(encoded.mean[0], jnp.exp(encoded.log_var[0] / 2), truth)
    curves = {
        name: chain_curve(chain.samples, truth, cost)
        for (name, chain), cost in zip(chains.items(), (1, LATENT_DIM), strict=True)
    }
    curves["variational, this x"] = curve
    curves["encoder"] = Curve(np.zeros(1), *(np.array([e]) for e in of_encoder))
    amortized, note = amortization_checks(model, trained, data)
    walk, sweeps = chains.values()
    checks = [
        *bayes_checks(model, x, truth),
        *chain_checks("Metropolis-Hastings", "S4-2", walk, truth),
        *chain_checks("Gibbs", "S4-3", sweeps, truth),
        *variational_checks(model, params, q, x, truth),
        *amortized,
        Check(
            "S4-5",
            "σ: final error of the chains, below q's",
            curves["Metropolis-Hastings"].deviation[-1],
            curve.deviation[-1],
            0,
            "<",
        ),
    ]
    figures = {
        "errors": draw_curves(curves),
        "posterior": draw_posterior(walk.samples, q, truth),
    }
    rate = float(walk.acceptance_rate.mean())
    notes = [note, f"Metropolis-Hastings accepts {rate:.0%} of its proposals"]
    return Report("Inference on one posterior", checks, figures, notes)


run, main = topic("inference", Config, compute)

if __name__ == "__main__":
    main()
