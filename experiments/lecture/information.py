"""Information, entropy and the Kullback-Leibler divergence (S2-10 to 14, S3-1 to 7).

    python -m experiments.lecture.information

The die and the three letters of the notes with the correct values, both directions of
the divergence, and the steps of the proof for Gaussians with full covariance. Seconds
on one core, no data needed.
"""

import math
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.spatial.distance
import scipy.stats
from matplotlib.figure import Figure

from experiments.lecture.report import Check, Report, topic
from experiments.runner import flags
from vae_jax.distributions import discrete, gaussian, multivariate_gaussian
from vae_jax.types import Array, Key

LETTERS = np.array([0.7, 0.2, 0.1])
PRINTED = 0.09673  # KL(Q || P) of the letters as printed in the notes, in nats.
# Two well-separated Gaussian components: weights, means, shared standard deviation.
MIXTURE = (np.array([0.6, 0.4]), np.array([-2.0, 2.5]), 0.6)
GRID = np.linspace(-12, 12, 4801)


@dataclass(frozen=True)
class Config:
    """Information, entropy and divergence."""

    num_draws: flags.Several = 1_000_000
    """Draws of every Monte Carlo estimate."""
    fit_steps: flags.Count = 2000
    """Adam steps for each fitted Gaussian."""
    seed: flags.Natural = 0
    """Seed of all noise."""
    run_dir: str = "runs/lecture/information"
    """Folder for results.json and figures/."""


def die_checks(key: Key, num_draws: int) -> list[Check]:
    """Checks of expectation, Bayes' rule and total probability for a fair die."""
    faces, fair = jnp.arange(1, 7), jnp.ones(6) / 6
    is_odd = (faces % 2).astype(float)
    given_odd, log_evidence = discrete.posterior(jnp.log(fair), jnp.log(is_odd))
    rolls = jax.random.choice(key, faces, (num_draws,), p=fair)
    error = math.sqrt(35 / 12 / num_draws)
    face = discrete.information(fair[0])
    return [
        Check("S3-3", "mean of the faces", fair @ faces, 3.5, 1e-12),
        Check("S3-3", "mean of the rolls", rolls.mean(), 3.5, 5 * error),
        Check("S3-2", "P(odd), a sum over faces", jnp.exp(log_evidence), 0.5, 1e-12),
        Check("S3-1", "P(3 | odd), Bayes' rule", given_odd[2], 1 / 3, 1e-12),
        Check("S2-10", "information of a face, nats", face, math.log(6), 1e-12),
    ]


def letter_checks() -> list[Check]:
    """Checks of entropy and both divergences of the letters P and a uniform Q, nats."""
    p, q = jnp.asarray(LETTERS), jnp.ones(3) / 3
    entropy = -sum(value * math.log(value) for value in LETTERS)
    forward = math.log(3) - entropy
    backward = -math.log(3) - sum(map(math.log, LETTERS)) / 3
    measured = discrete.kl_divergence(q, p)
    error = abs(measured - PRINTED)
    return [
        Check("S2-10", "entropy of P", discrete.entropy(p), entropy, 1e-12),
        Check("S2-10", "entropy of Q", discrete.entropy(q), math.log(3), 1e-12),
        Check("S3-4", "KL(P || Q)", discrete.kl_divergence(p, q), forward, 1e-12),
        Check("S3-4", "KL(Q || P)", measured, backward, 1e-12),
        Check("S3-4", "KL(Q || P) minus the printed value", error, 0.2, relation=">"),
        Check(
            "S3-4",
            "Jensen-Shannon divergence",
            discrete.jensen_shannon_divergence(p, q),
            scipy.spatial.distance.jensenshannon(LETTERS, np.ones(3) / 3) ** 2,
            1e-12,
        ),
    ]


def lemma_checks(key: Key, num_pairs: int = 10_000) -> list[Check]:
    """Checks that KL > 0 for random pairs and 0 for identical distributions."""
    p, q = jax.random.dirichlet(key, jnp.ones(5), (2, num_pairs))
    smallest = discrete.kl_divergence(p, q).min()
    largest = jnp.abs(discrete.kl_divergence(p, p)).max()
    text = f"smallest KL of {num_pairs} random pairs"
    return [
        Check("S2-12", text, smallest, 0.0, relation=">"),
        Check("S2-12", "largest |KL(p || p)| of them", largest, 0.0, 1e-12),
    ]


def scalar_gaussian_checks() -> list[Check]:
    """Checks of differential entropy and KL to N(0, 1) by integration over the grid."""
    mean, deviation = 1.0, 0.5
    p = scipy.stats.norm.pdf(GRID, mean, deviation)
    log_p = scipy.stats.norm.logpdf(GRID, mean, deviation)
    log_q = scipy.stats.norm.logpdf(GRID)
    log_var = jnp.log(jnp.array([deviation**2]))
    return [
        Check(
            "S2-10",
            "entropy of N(1, 0.5²), nats",
            gaussian.diagonal_entropy(log_var),
            -np.trapezoid(p * log_p, GRID),
            1e-9,
        ),
        Check(
            "S2-14",
            "KL(N(1, 0.5²) || N(0, 1)), nats",
            gaussian.diagonal_kl_to_standard_normal(jnp.array([mean]), log_var),
            np.trapezoid(p * (log_p - log_q), GRID),
            1e-9,
        ),
    ]


def proof_checks(key: Key, num_draws: int) -> list[Check]:
    """Checks of the KL of two full-covariance Gaussians and each step of its proof."""
    size = 3
    covariance_key, mean_key, sample_key = jax.random.split(key, 3)
    roots = jax.random.normal(covariance_key, (2, size, size))
    covariances = roots @ roots.mT + 0.5 * jnp.eye(size)
    factor_1, factor_2 = map(multivariate_gaussian.cholesky_factor, covariances)
    mean_1, mean_2 = jax.random.normal(mean_key, (2, size))
    inverse_1, inverse_2 = jnp.linalg.inv(covariances)
    x = multivariate_gaussian.full_sample(
        mean_1, factor_1, sample_key, num_samples=num_draws
    )
    shift, centered = mean_1 - mean_2, x - mean_1
    log_p = multivariate_gaussian.full_log_prob(x, mean_1, factor_1)
    log_q = multivariate_gaussian.full_log_prob(x, mean_2, factor_2)
    # SciPy annotates the argument with the type of its default, a number.
    of_scipy = scipy.stats.multivariate_normal(
        mean_2,
        covariances[1],  # pyright: ignore[reportArgumentType]
    ).logpdf(x[0])
    trace = jnp.trace(inverse_2 @ covariances[0])
    constant = 0.5 * shift @ inverse_2 @ shift
    squares = partial(jnp.einsum, "ni,ij,nj->n", optimize=True)
    estimates = [
        (
            "½ E (x-μ1)ᵀ Σ1⁻¹ (x-μ1)",
            squares(centered, inverse_1, centered) / 2,
            size / 2,
        ),
        (
            "½ E (x-μ1)ᵀ Σ2⁻¹ (x-μ1)",
            squares(centered, inverse_2, centered) / 2,
            trace / 2,
        ),
        ("E (x-μ1)ᵀ Σ2⁻¹ (μ1-μ2)", centered @ inverse_2 @ shift, 0.0),
        (
            "½ E (x-μ2)ᵀ Σ2⁻¹ (x-μ2)",
            squares(x - mean_2, inverse_2, x - mean_2) / 2,
            trace / 2 + constant,
        ),
        (
            "KL, mean of log p - log q",
            log_p - log_q,
            multivariate_gaussian.full_kl_divergence(
                mean_1, factor_1, mean_2, factor_2
            ),
        ),
    ]
    formula = trace / 2 + constant - size / 2
    formula += (jnp.linalg.slogdet(covariances[1])[1]) / 2
    formula -= (jnp.linalg.slogdet(covariances[0])[1]) / 2
    checks = [
        Check("S3-5", "log N(x; μ2, Σ2), nats", log_q[0], of_scipy, 1e-9),
        Check("S3-6", "KL, by the formula", estimates[-1][2], formula, 1e-9),
    ]
    for text, values, exact in estimates:
        error = values.std() / math.sqrt(num_draws)
        checks.append(Check("S3-6", text, values.mean(), exact, 5 * error))
    return checks


def trace_checks(key: Key) -> list[Check]:
    """Checks that tr(AB) = tr(BA) and tr(ABC) = tr(BCA), but not tr(ACB)."""
    a, b, c = jax.random.normal(key, (3, 3, 3))
    triple = jnp.trace(a @ b @ c)
    swapped = abs(jnp.trace(a @ c @ b) - triple)
    return [
        Check("S3-7", "tr(AB)", jnp.trace(a @ b), jnp.trace(b @ a), 1e-12),
        Check("S3-7", "tr(ABC)", triple, jnp.trace(b @ c @ a), 1e-12),
        Check("S3-7", "|tr(ACB) - tr(ABC)|", swapped, 0.1, relation=">"),
    ]


def fit_gaussian(direction: str, start: Array, num_steps: int) -> tuple[Array, Array]:
    """Fit a Gaussian to the mixture by Adam; return (mean, log-variance) and the KL.

    Densities are discretized: the cells of a fine grid are the outcomes.
    """
    p = mixture_cells()

    def loss(parameters: Array) -> Array:
        q = gaussian_cells(*parameters)
        pair = (p, q) if direction == "forward" else (q, p)
        return discrete.kl_divergence(*pair)

    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, num_steps))

    def step(_, carry):
        parameters, opt_state = carry
        updates, opt_state = optimizer.update(jax.grad(loss)(parameters), opt_state)
        return optax.apply_updates(parameters, updates), opt_state

    carry = (start, optimizer.init(start))
    run = jax.jit(lambda carry: jax.lax.fori_loop(0, num_steps, step, carry)[0])
    parameters = run(carry)
    return parameters, loss(parameters)


def mixture_cells() -> Array:
    """Probabilities of the grid cells under the mixture."""
    weights, means, deviation = MIXTURE
    density = scipy.stats.norm.pdf(GRID[:, None], means, deviation) @ weights
    return jnp.asarray(density / density.sum())


def gaussian_cells(mean: Array, log_var: Array) -> Array:
    """Probabilities of the grid cells under N(mean, exp(log_var))."""
    log_prob = gaussian.diagonal_log_prob(
        jnp.asarray(GRID)[:, None], mean[None], log_var[None]
    )
    return jax.nn.softmax(log_prob)


def fits(num_steps: int) -> dict[str, tuple[Array, Array]]:
    """Best Gaussian by KL(p || q), and by KL(q || p) from two starting points."""
    starts = {"forward": (0.0, 0.0), "reverse, left": (-1.0, 0.0)}
    starts["reverse, right"] = (1.0, 0.0)
    return {
        name: fit_gaussian(name.split(",")[0], jnp.array(start), num_steps)
        for name, start in starts.items()
    }


def fit_checks(found: dict[str, tuple[Array, Array]]) -> list[Check]:
    """Checks that the forward fit has the mixture's moments, the reverse one mode's."""
    weights, means, deviation = MIXTURE
    mean = weights @ means
    variance = weights @ (means - mean) ** 2 + deviation**2
    (forward_mean, forward_log_var), _ = found["forward"]
    checks = [
        Check("S2-11", "forward fit: mean", forward_mean, mean, 1e-4),
        Check(
            "S2-11",
            "forward fit: variance",
            jnp.exp(forward_log_var),
            variance,
            1e-3,
        ),
    ]
    for side, (name, where) in enumerate(zip(("left", "right"), means, strict=True)):
        (center, log_var), divergence = found[f"reverse, {name}"]
        scale = jnp.exp(log_var / 2)
        # Near this component the other is negligible: log p = log q + log weight.
        missed = -math.log(weights[side])
        checks += [
            Check("S2-11", f"reverse fit, {name}: mean", center, where, 0.02),
            Check("S2-11", f"reverse fit, {name}: deviation", scale, deviation, 0.02),
            Check(
                "S2-11",
                f"reverse fit, {name}: KL, nats",
                divergence,
                missed,
                5e-3,
            ),
        ]
    return checks


def draw_fits(found: dict[str, tuple[Array, Array]]) -> Figure:
    """Draw the mixture and the Gaussians fitted in both directions."""
    figure = Figure((7, 4))
    axes = figure.subplots()
    step = GRID[1] - GRID[0]
    axes.fill_between(
        GRID, np.asarray(mixture_cells()) / step, color="0.85", label="p, two modes"
    )
    labels = {
        "forward": "q of least KL(p || q): covers both modes",
        "reverse, left": "q of least KL(q || p), started left: one mode",
        "reverse, right": "q of least KL(q || p), started right: the other",
    }
    styles = ("C0", "C1", "C3")
    for (name, (parameters, divergence)), color in zip(
        found.items(), styles, strict=True
    ):
        label = f"{labels[name]} ({float(divergence):.2f} nats)"
        axes.plot(
            GRID,
            np.asarray(gaussian_cells(*parameters)) / step,
            color=color,
            label=label,
        )
    axes.set(xlim=(-7, 7), ylim=(0, 1.05), xlabel="x", ylabel="density, 1 / unit of x")
    axes.set_title("The ELBO's direction, KL(q || p), picks a mode")
    axes.legend(loc="upper left")
    return figure


def draw_letters() -> Figure:
    """Draw P, Q and the two divergences between them."""
    figure = Figure((7, 3.4))
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    places = np.arange(3)
    left.bar(places - 0.2, LETTERS, 0.4, label="P", color="C0")
    left.bar(places + 0.2, np.ones(3) / 3, 0.4, label="Q, uniform", color="C5")
    left.set_xticks(places, ["0", "1", "2"])
    left.set(xlabel="x", ylabel="probability", title="Three letters")
    left.legend()
    p, q = jnp.asarray(LETTERS), jnp.ones(3) / 3
    values = {
        "KL(P‖Q)": float(discrete.kl_divergence(p, q)),
        "KL(Q‖P)": float(discrete.kl_divergence(q, p)),
        "KL(Q‖P)\nas printed": PRINTED,
    }
    bars = right.bar(list(values), list(values.values()), color=("C0", "C2", "C1"))
    right.bar_label(bars, fmt="%.4f")
    right.set(ylabel="nats", ylim=(0, 0.38), title="KL is not symmetric")
    return figure


def compute(config: Config) -> Report:
    """Compute every check and figure of the topic, in double precision."""
    with jax.enable_x64(True):
        die_key, lemma_key, proof_key, trace_key = jax.random.split(
            jax.random.key(config.seed), 4
        )
        found = fits(config.fit_steps)
        checks = [
            *die_checks(die_key, config.num_draws),
            *letter_checks(),
            *lemma_checks(lemma_key),
            *scalar_gaussian_checks(),
            *proof_checks(proof_key, config.num_draws),
            *trace_checks(trace_key),
            *fit_checks(found),
        ]
        figures = {
            "forward_and_reverse": draw_fits(found),
            "three_letters": draw_letters(),
        }
    return Report("Information and divergence", checks, figures)


run, main = topic("information", Config, compute)

if __name__ == "__main__":
    main()
