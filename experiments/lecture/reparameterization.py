"""z = g(eps): three examples, and the variance of the estimates (S1-8 to S1-15).

    python -m experiments.lecture.reparameterization

The notes ask for the distribution of z when g(eps) is singular (A), diagonal (B) and
full (C). The variance of the ELBO is known here with the KL from samples (SGVB A of
Kingma & Welling 2014) and with the KL in closed form (SGVB B), and so is the variance
of the score-function and reparameterization gradients;
`python -m experiments.gradient_variance` compares more estimators. Seconds on one core,
no data needed.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from matplotlib.figure import Figure

import vae_jax
from experiments.lecture.report import Check, Report, topic
from experiments.runner import flags
from vae_jax import estimators, exact
from vae_jax.distributions import (
    DiagonalGaussianDistribution,
    gaussian,
    multivariate_gaussian,
)
from vae_jax.estimators import exact_variance
from vae_jax.types import Array, Key

MEAN = np.array([1.0, -0.5])
SINGULAR = np.diag([0.0, 1.0])
SCALES = np.array([0.5, 1.5])
FULL = np.array([[1.0, 0.3], [0.9, 0.5]])
# x | z ~ N(2 z, 0.5), x = 3, and q(z) = N(m, s^2) with m the exact posterior mean.
SLOPE, NOISE_VAR, OBSERVED = 2.0, 0.5, 3.0
Q_MEAN = SLOPE * OBSERVED / (SLOPE**2 + NOISE_VAR)
BEST_DEVIATION = math.sqrt(NOISE_VAR / (SLOPE**2 + NOISE_VAR))
DEVIATIONS = np.geomspace(0.1, 1.5, 29)


@dataclass(frozen=True)
class Config:
    """Three reparameterizations, and the variances of estimates."""

    num_draws: flags.Several = 200_000
    """Draws of every Monte Carlo estimate."""
    seed: flags.Natural = 0
    """Seed of all noise."""
    run_dir: str = "runs/lecture/reparameterization"
    """Folder for results.json and figures/."""


class Example(NamedTuple):
    """Example z = mean + A eps.

    Attributes:
      name: letter of the example in the notes.
      title: title of its panel.
      mean: `[2]`.
      matrix: A, `[2, 2]`.
    """

    name: str
    title: str
    mean: np.ndarray
    matrix: np.ndarray


EXAMPLES = (
    Example("A", "A: singular, z1 = 0", np.zeros(2), SINGULAR),
    Example("B", "B: μ + σ ε, diagonal", MEAN, np.diag(SCALES)),
    Example("C", "C: μ + A ε, full", MEAN, FULL),
)
ROWS = {"A": "S1-12", "B": "S1-14", "C": "S1-15"}


def samples_of(example: Example, key: Key, num_draws: int) -> Array:
    """Draw z, `[num_draws, 2]`."""
    noise = jax.random.normal(key, (num_draws, 2))
    return jnp.asarray(example.mean) + noise @ jnp.asarray(example.matrix).T


def moment_checks(key: Key, num_draws: int) -> list[Check]:
    """Checks that each example has mean μ and covariance A Aᵀ."""
    checks = []
    for example in EXAMPLES:
        z = samples_of(example, key, num_draws)
        covariance = example.matrix @ example.matrix.T
        variances = np.diag(covariance)
        bound = 5 * math.sqrt(2 / num_draws) * max(variances)
        off = jnp.abs(z.mean(axis=0) - example.mean).max()
        error = jnp.abs(jnp.cov(z, rowvar=False) - covariance).max()
        row, name = ROWS[example.name], example.name
        checks += [
            Check(row, f"{name}: mean of draws minus μ", off, 0, bound),
            Check(row, f"{name}: covariance minus AAᵀ", error, 0, bound),
        ]
    return checks


def singular_checks() -> list[Check]:
    """Checks that A is rejected as a density and that its KL diverges."""
    try:
        multivariate_gaussian.cholesky_factor(jnp.asarray(SINGULAR @ SINGULAR.T))
        refused = 0
    except ValueError:
        refused = 1
    widths = (1e-4, 1e-8)
    zero = jnp.zeros(2)
    near, nearer = (
        gaussian.diagonal_kl_to_standard_normal(
            zero, 2 * jnp.log(jnp.array([width, 1.0]))
        )
        for width in widths
    )
    limit = gaussian.diagonal_kl_to_standard_normal(zero, jnp.array([-jnp.inf, 0.0]))
    step = math.log(widths[0] / widths[1])
    return [
        Check("S1-12", "A: rejected as a density, 1 = yes", refused, 1),
        Check("S1-12", "A: KL to N(0, I), nats", limit, math.inf),
        Check("S1-12", "KL increase, width 1e-4 to 1e-8", nearer - near, step, 1e-6),
    ]


def density_checks() -> list[Check]:
    """Checks of log q(z) = log N(eps; 0, I) - log|det A| for B and C.

    The matrices A and A Q give the same distribution for an orthogonal Q.
    """
    eps = np.array([0.3, -1.1])
    checks = []
    for example in EXAMPLES[1:]:
        z = example.mean + example.matrix @ eps
        covariance = example.matrix @ example.matrix.T
        factor = multivariate_gaussian.cholesky_factor(jnp.asarray(covariance))
        ours = multivariate_gaussian.full_log_prob(
            jnp.asarray(z), jnp.asarray(example.mean), factor
        )
        change = scipy.stats.norm.logpdf(eps).sum()
        change -= np.linalg.slogdet(example.matrix)[1]
        text = f"{example.name}: log q(z), nats"
        checks.append(Check(ROWS[example.name], text, ours, change, 1e-9))
        text = f"{example.name}: the same by SciPy"
        # SciPy annotates the argument with the type of its default, a number.
        oracle = scipy.stats.multivariate_normal(
            example.mean,
            covariance,  # pyright: ignore[reportArgumentType]
        ).logpdf(z)
        checks.append(Check(ROWS[example.name], text, ours, oracle, 1e-9))
    turn = scipy.stats.ortho_group.rvs(2, random_state=0)
    rotated = FULL @ turn
    off = np.abs(rotated @ rotated.T - FULL @ FULL.T).max()
    factor = multivariate_gaussian.cholesky_factor(jnp.asarray(FULL @ FULL.T))
    same = np.abs(np.asarray(factor @ factor.T) - FULL @ FULL.T).max()
    return [
        *checks,
        Check("S1-15", "C: covariance of A Q minus of A", off, 0, 1e-12),
        Check("S1-15", "C: covariance by Cholesky minus by A", same, 0, 1e-12),
    ]


def quadratic(deviation: float) -> dict[str, np.ndarray]:
    """Coefficients of eps² and eps in both integrands.

    With z = m + s eps, log p(x|z) is -(x - w z)² / (2 v) plus a constant; A adds
    log p(z) - log q(z), which is -z² / 2 + eps² / 2 plus a constant.
    """
    distance = OBSERVED - SLOPE * Q_MEAN
    slope = SLOPE * deviation
    reconstruction = np.array([-(slope**2), 2 * distance * slope]) / (2 * NOISE_VAR)
    prior = np.array([-(deviation**2) / 2, -Q_MEAN * deviation])
    entropy = np.array([0.5, 0.0])
    return {"A": reconstruction + prior + entropy, "B": reconstruction}


def exact_elbo_variance(kind: str, deviation: float) -> float:
    """Variance of a eps² + b eps, which is 2 a² + b²."""
    a, b = quadratic(deviation)[kind]
    return 2 * a**2 + b**2


def measured_elbos(deviation: Array, key: Key, num_draws: int) -> dict[str, Array]:
    """One-sample ELBOs of both kinds from the same noise, `[num_draws]` each."""
    model = exact.LinearGaussian(
        jnp.array([[SLOPE]]), jnp.zeros(1), jnp.asarray(NOISE_VAR)
    )
    params = exact.linear_vae(model)
    many = jnp.full((num_draws, 1), OBSERVED)
    q = DiagonalGaussianDistribution(
        jnp.full((num_draws, 1), Q_MEAN),
        jnp.full((num_draws, 1), 2 * jnp.log(deviation)),
    )
    return {
        kind: vae_jax.elbo_terms(params, many, key, posterior=q, kl=kl).elbo
        for kind, kl in (("A", "monte_carlo"), ("B", "analytic"))
    }


def elbo_checks(key: Key, num_draws: int):
    """Checks of the means and variances of SGVB A and B for several widths of q."""
    measure = jax.jit(measured_elbos, static_argnames="num_draws")
    checks, points = [], []
    for deviation in (0.15, BEST_DEVIATION, 0.8, 1.4):
        values = measure(jnp.asarray(deviation), key, num_draws)
        for kind, elbos in values.items():
            wanted = exact_elbo_variance(kind, deviation)
            # The kurtosis is at most 15, that of eps².
            bound = 5 * wanted * math.sqrt(14 / num_draws) + 1e-12
            text = f"SGVB {kind}: variance, s = {deviation:.3g}, nats²"
            checks.append(Check("S1-13", text, elbos.var(), wanted, bound))
            points.append((kind, deviation, float(elbos.var())))
        gap = values["A"] - values["B"]
        bound = 5 * gap.std() / math.sqrt(num_draws)
        text = f"mean of A minus mean of B, s = {deviation:.3g}"
        checks.append(Check("S1-10", text, gap.mean(), 0, bound))
    return checks, points


def gradient_checks(key: Key, num_draws: int) -> list[Check]:
    """Checks of both estimators of d/dμ E (z + 3)² against exact mean and variance."""
    k, mu, sigma = -3.0, 1.0, 1.5
    moments = exact_variance.gaussian_moments("quadratic", mu=mu, sigma=sigma, k=k)
    known = {
        "score_function": exact_variance.score_function_variance(moments["mu"]),
        "reparameterization": exact_variance.reparameterization_variance(moments["mu"]),
    }
    log_var = jnp.full((1, 1), 2 * math.log(sigma))
    checks = []
    for name, variance in known.items():
        estimator = getattr(estimators, name)

        def value(mean: Array, key: Key, estimator=estimator) -> Array:
            q = DiagonalGaussianDistribution(mean[None, None], log_var)
            square = lambda z, _: jnp.square(z - k)[..., 0]  # noqa: E731
            return estimator(square, q, key, num_samples=1)[0]

        found = estimators.gradient_moments(
            lambda key, value=value: jax.grad(value)(jnp.asarray(mu), key),
            key,
            num_draws=num_draws,
        ).parameters
        row = "S1-9" if name == "score_function" else "S1-11"
        label = name.replace("_", " ")
        checks += [
            Check(
                row,
                f"{label}: mean of d/dμ",
                found.mean,
                2 * (mu - k),
                5 * found.mean_standard_error,
            ),
            Check(
                row,
                f"{label}: variance of d/dμ",
                found.variance,
                variance,
                5 * found.variance_standard_error,
            ),
        ]
    return checks


def draw_examples(key: Key) -> Figure:
    """Draw samples of A, B and C."""
    figure = Figure((9, 3.4))
    panels = figure.subplots(1, 3, sharex=True, sharey=True)
    for axes, example in zip(panels, EXAMPLES, strict=True):
        axes.scatter(*np.asarray(samples_of(example, key, 600)).T, 4, alpha=0.6)
        axes.set(title=example.title, xlabel="z1", aspect="equal")
    panels[0].set_ylabel("z2")
    return figure


def draw_variances(points) -> Figure:
    """Draw the variance of both estimates of the ELBO against the width of q."""
    figure = Figure((6.4, 4))
    axes = figure.subplots()
    names = {"A": "A: KL from samples", "B": "B: KL in closed form"}
    for kind, color in (("A", "C1"), ("B", "C0")):
        values = [exact_elbo_variance(kind, s) for s in DEVIATIONS]
        axes.loglog(DEVIATIONS, values, color=color, label=names[kind])
        # At the exact posterior A has zero variance, which has no logarithm.
        found = [(s, v) for of, s, v in points if of == kind and v > 1e-9]
        axes.plot(*zip(*found, strict=True), "o", color=color)
    axes.axvline(
        BEST_DEVIATION, color="0.5", ls="--", label="width of the true posterior"
    )
    axes.set_xlabel("standard deviation of q")
    axes.set_ylabel("variance of a one-sample ELBO, nats²")
    axes.set_title("A closed-form KL helps, but not near the posterior")
    axes.set_ylim(1e-3, None)
    axes.legend(title="lines exact, points measured")
    return figure


def compute(config: Config) -> Report:
    """Compute every check and figure of the topic, in double precision."""
    with jax.enable_x64(True):
        moment_key, elbo_key, gradient_key, draw_key = jax.random.split(
            jax.random.key(config.seed), 4
        )
        of_elbo, points = elbo_checks(elbo_key, config.num_draws)
        checks = [
            *moment_checks(moment_key, config.num_draws),
            *singular_checks(),
            *density_checks(),
            *of_elbo,
            *gradient_checks(gradient_key, config.num_draws),
        ]
        figures = {
            "examples": draw_examples(draw_key),
            "closed_form_kl": draw_variances(points),
        }
    return Report("Reparameterization", checks, figures)


run, main = topic("reparameterization", Config, compute)

if __name__ == "__main__":
    main()
