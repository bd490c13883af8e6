"""log p(x) = ELBO + KL(q || p(z|x)) with all three exact (S0-4 to 9, S1-1 to 7).

    python -m experiments.lecture.evidence

A linear decoder with Gaussian noise has a closed-form evidence and posterior. Its
integrands are quadratic in z, so sigma points give their expectations exactly, and the
identity holds to double precision along a whole training run (S4-6, S4-7). Integration
on a grid is as accurate in two dimensions and useless in six. Seconds on one core, no
data needed.
"""

import math
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.stats
from matplotlib.figure import Figure

import vae_jax
from experiments.evaluation import diagonal
from experiments.lecture.report import Check, Report, topic
from experiments.runner import flags
from vae_jax import Gaussian, Linear, ModelSpec, Params, exact
from vae_jax.distributions import (
    DiagonalGaussianDistribution,
    gaussian,
    multivariate_gaussian,
)
from vae_jax.estimators import sigma_points
from vae_jax.types import Array, Key

DATA_DIM, LATENT_DIM, NUM_EXAMPLES, NOISE_VAR = 6, 2, 200, 0.3


@dataclass(frozen=True)
class Config:
    """Evidence, ELBO and their difference on exact models."""

    num_steps: flags.Count = 1000
    """Training steps of the encoder alone; then five times as many of both networks."""
    num_draws: flags.Several = 100_000
    """Draws of the posterior predictive distribution."""
    grid_points: Annotated[int, flags.at_least(64)] = 40_000
    """Points of each grid and number of importance samples."""
    seed: flags.Natural = 0
    """Seed of the data, the weights and the noise."""
    run_dir: str = "runs/lecture/evidence"
    """Folder for results.json and figures/."""


class Figures(NamedTuple):
    """Means over the data, in nats; `gap` is KL(q || p(z|x))."""

    log_evidence: Array
    elbo: Array
    gap: Array


def measure(params: Params, x: Array) -> Figures:
    """Compute evidence, ELBO and KL(q || p(z|x)), each by its own formula."""
    model = exact.linear_gaussian(params)
    q = diagonal(vae_jax.encode(params, x))
    return Figures(
        exact.log_evidence(model, x).mean(),
        vae_jax.elbo(params, x, jax.random.key(0), estimator=sigma_points),
        gap_to_posterior(model, x, q).mean(),
    )


def gap_to_posterior(
    model: exact.LinearGaussian, x: Array, q: DiagonalGaussianDistribution
) -> Array:
    """KL(q(z|x) || p(z|x)) in nats, `[B]`."""
    mean, covariance = exact.posterior(model, x)
    factor = jnp.linalg.cholesky(covariance)
    q_factor = jax.vmap(jnp.diag)(jnp.exp(0.5 * q.log_var))
    return multivariate_gaussian.full_kl_divergence(
        q.mean, q_factor, mean, jnp.broadcast_to(factor, q_factor.shape)
    )


def make_data(key: Key) -> Array:
    """Draw examples from a linear-Gaussian model, `[n, D]`."""
    weights_key, z_key, noise_key = jax.random.split(key, 3)
    weights = jax.random.normal(weights_key, (DATA_DIM, LATENT_DIM))
    z = jax.random.normal(z_key, (NUM_EXAMPLES, LATENT_DIM))
    noise = jax.random.normal(noise_key, (NUM_EXAMPLES, DATA_DIM))
    return z @ weights.T + math.sqrt(NOISE_VAR) * noise


def make_model(x: Array, key: Key) -> Params:
    """Untrained VAE with linear networks and known noise variance."""
    spec = ModelSpec(
        encoder=Linear(),
        decoder=Linear(),
        likelihood=Gaussian(),
        latent_dim=LATENT_DIM,
        data_shape=(DATA_DIM,),
    )
    params = vae_jax.init(spec, key, x=x, dtype=x.dtype)
    return params.replace(likelihood={"log_var": jnp.log(jnp.asarray(NOISE_VAR))})


def best_model(x: Array) -> exact.LinearGaussian:
    """Maximum-likelihood model at the known noise variance (Tipping & Bishop 1999)."""
    values, vectors = jnp.linalg.eigh(jnp.cov(x, rowvar=False, bias=True))
    leading = jnp.maximum(values[::-1][:LATENT_DIM] - NOISE_VAR, 0)
    weights = vectors[:, ::-1][:, :LATENT_DIM] * jnp.sqrt(leading)
    return exact.LinearGaussian(weights, x.mean(axis=0), jnp.asarray(NOISE_VAR))


def train(
    params: Params, x: Array, num_steps: int, *, decoder: bool
) -> tuple[Params, Figures]:
    """Train with Adam on the exact ELBO; `Figures` before each step, `[num_steps]`."""
    optimizer = optax.adam(optax.cosine_decay_schedule(0.02, num_steps))
    moving = vae_jax.trainable(params)
    if not decoder:
        moving = moving.replace(decoder=jax.tree.map(lambda _: False, params.decoder))

    def loss(params: Params) -> Array:
        return -vae_jax.elbo(params, x, jax.random.key(0), estimator=sigma_points)

    def step(carry, _):
        params, opt_state = carry
        updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state)
        updates = jax.tree.map(
            lambda update, moves: update if moves else jnp.zeros_like(update),
            updates,
            moving,
        )
        return (optax.apply_updates(params, updates), opt_state), measure(params, x)

    # Optax accepts any pytree, but annotates only some containers.
    opt_state = optimizer.init(params)  # pyright: ignore[reportArgumentType]
    carry = (params, opt_state)
    run = jax.jit(lambda carry: jax.lax.scan(step, carry, length=num_steps))
    (params, _), figures = run(carry)
    return params, figures


def training_checks(first: Figures, second: Figures, x: Array) -> list[Check]:
    """Checks of the identity at every step and of both effects of raising the ELBO."""
    both = [jnp.concatenate(pair) for pair in zip(first, second, strict=True)]
    log_evidence, elbo, gap = both
    best = exact.log_evidence(best_model(x), x).mean()
    moved = jnp.ptp(first.log_evidence)
    fallen = first.gap[0] - first.gap[-1]
    return [
        Check(
            "S0-7",
            "log p(x) - ELBO - KL, largest of a run, nats",
            jnp.abs(log_evidence - elbo - gap).max(),
            0,
            1e-10,
        ),
        Check("S0-8", "encoder alone: log p(x) moves by", moved, 0),
        Check("S0-8", "encoder alone: the gap shrinks by", fallen, 1, 0, ">"),
        Check("S0-8", "both: log p(x) at the end", log_evidence[-1], best, 1e-3),
        Check("S4-7", "both: gap at the end", gap[-1], 0, 1e-3),
    ]


def falling(x: Array, key: Key) -> tuple[Figures, list[Check]]:
    """Train from the best decoder and an untrained encoder: log p(x) falls."""
    best = exact.linear_vae(best_model(x))
    params = make_model(x, key).replace(decoder=best.decoder)
    _, found = train(params, x, 300, decoder=True)
    lowest = found.log_evidence.min() - found.log_evidence[0]
    rise = found.elbo[jnp.argmin(found.log_evidence)] - found.elbo[0]
    return found, [
        Check(
            "S0-8", "best decoder, untrained encoder: log p(x) falls", lowest, 0, 0, "<"
        ),
        Check("S0-8", "meanwhile the ELBO rises by", rise, 0.5, relation=">"),
    ]


def form_checks(params: Params, x: Array) -> list[Check]:
    """Checks of the three forms of the ELBO and of the KL to another prior."""
    q = diagonal(vae_jax.encode(params, x))

    def mean(function) -> Array:
        return sigma_points(lambda z, _: function(z), q, jax.random.key(0)).mean()

    joint = mean(lambda z: vae_jax.log_joint(params, x, z))
    likelihood = mean(lambda z: vae_jax.decode(params, z).log_prob(x))
    prior = mean(lambda z: vae_jax.log_prior(params, z))
    entropy = gaussian.diagonal_entropy(q.log_var).mean()
    kl = gaussian.diagonal_kl_to_standard_normal(q.mean, q.log_var).mean()
    elbo = vae_jax.elbo(params, x, jax.random.key(0), estimator=sigma_points)
    shifted = q.mean + 0.3
    other = gaussian.diagonal_kl_divergence(q.mean, q.log_var, shifted, q.log_var)
    by_factors = multivariate_gaussian.full_kl_divergence(
        q.mean,
        jax.vmap(jnp.diag)(jnp.exp(q.log_var / 2)),
        shifted,
        jax.vmap(jnp.diag)(jnp.exp(q.log_var / 2)),
    )
    return [
        Check("S0-9", "E log p(x, z) + entropy of q", joint + entropy, elbo, 1e-10),
        Check(
            "S0-9",
            "E log p(z) + E log p(x|z) + entropy",
            prior + likelihood + entropy,
            elbo,
            1e-10,
        ),
        Check("S1-6", "E log p(x|z) - KL(q || p(z))", likelihood - kl, elbo, 1e-10),
        Check("S1-7", "KL to another prior", other.mean(), by_factors.mean(), 1e-10),
    ]


def arbitrary_checks(params: Params, x: Array, key: Key) -> list[Check]:
    """Checks for arbitrary q: the bound holds, and ELBO + KL does not depend on q."""
    model = exact.linear_gaussian(params)
    log_evidence = exact.log_evidence(model, x)

    def of(key: Key) -> tuple[Array, Array]:
        mean_key, var_key = jax.random.split(key)
        shape = (len(x), LATENT_DIM)
        q = DiagonalGaussianDistribution(
            jax.random.normal(mean_key, shape), jax.random.normal(var_key, shape) - 1
        )
        terms = vae_jax.elbo_terms(
            params, x, jax.random.key(0), posterior=q, estimator=sigma_points
        )
        return terms.elbo, gap_to_posterior(model, x, q)

    elbo, gap = jax.jit(jax.vmap(of))(jax.random.split(key, 50))
    off = jnp.abs(elbo + gap - log_evidence).max()
    most = (elbo - log_evidence).max()
    order = jnp.abs(jnp.argmax(elbo, axis=0) - jnp.argmin(gap, axis=0)).max()
    return [
        Check("S1-4", "ELBO - log p(x) of 50 random q, largest", most, 0, 0, "<"),
        Check("S4-6", "ELBO + KL - log p(x) of them, largest", off, 0, 1e-9),
        Check("S4-7", "argmax of ELBO minus argmin of KL", order, 0),
    ]


def jensen_checks(params: Params, x: Array) -> list[Check]:
    """Checks of Jensen's inequality for means, and its failure for plain integrals."""
    a, b = 1.0, 9.0
    gap = math.log((a + b) / 2) - (math.log(a) + math.log(b)) / 2
    # The integrand e^10 on a set of volume 2.
    left, printed = math.log(2 * math.exp(10)), 2 * 10
    prior = DiagonalGaussianDistribution(
        jnp.zeros((len(x), LATENT_DIM)), jnp.zeros((len(x), LATENT_DIM))
    )
    of_prior = sigma_points(
        lambda z, _: vae_jax.decode(params, z).log_prob(x), prior, jax.random.key(0)
    )
    log_evidence = exact.log_evidence(exact.linear_gaussian(params), x)
    least = (log_evidence - of_prior).min()
    return [
        Check(
            "S1-3",
            "log of the mean of 1, 9 - mean of logs",
            gap,
            math.log(5 / 3),
            1e-12,
        ),
        Check("S1-3", "printed bound: left side, claimed >= 20", left, printed, 0, "<"),
        Check("S1-3", "log p(x) - E_p(z) log p(x|z), least", least, 0, 0, ">"),
    ]


def likelihood_checks(params: Params, x: Array) -> list[Check]:
    """Checks of the log-likelihood, by SciPy's N(b, W W' + s² I) and by quadrature."""
    model = exact.linear_gaussian(params)
    covariance = model.weights @ model.weights.T + NOISE_VAR * jnp.eye(DATA_DIM)
    # SciPy annotates the argument with the type of its default, a number.
    oracle = scipy.stats.multivariate_normal(
        model.bias,
        covariance,  # pyright: ignore[reportArgumentType]
    )
    ours = exact.log_evidence(model, x)
    product = np.log(np.prod(oracle.pdf(x[:20])))
    grid = exact.quadrature_log_evidence(params, x[:20], num_points=200)
    off = jnp.abs(grid.estimate - ours[:20]).max()
    return [
        Check("S1-1", "sum of log p(x_i), 20 examples", ours[:20].sum(), product, 1e-8),
        Check(
            "S1-2",
            "log p(x) by SciPy, all examples",
            ours.sum(),
            oracle.logpdf(x).sum(),
            1e-8,
        ),
        Check("S1-2", "integral over 2 latents minus exact", off, 0, 1e-9),
    ]


def predictive_checks(params: Params, x: Array, key: Key, num_draws: int):
    """Checks of the moments of the posterior predictive p(x'|x) = E_q p(x'|z)."""
    model = exact.linear_gaussian(params)
    q = diagonal(vae_jax.encode(params, x[:1]))
    mean = model.weights @ q.mean[0] + model.bias
    spread = model.weights * jnp.exp(0.5 * q.log_var[0])
    covariance = spread @ spread.T + NOISE_VAR * jnp.eye(DATA_DIM)
    many = jnp.broadcast_to(x[:1], (num_draws, DATA_DIM))
    draws = vae_jax.reconstruct(params, many, key, sample=True)
    bound = 5 * math.sqrt(2 / num_draws) * float(jnp.diag(covariance).max())
    off = jnp.abs(draws.mean(axis=0) - mean).max()
    spread_off = jnp.abs(jnp.cov(draws, rowvar=False) - covariance).max()
    return [
        Check("S0-4", "draws of p(x'|x): mean minus exact", off, 0, bound),
        Check("S0-4", "draws of p(x'|x): covariance minus exact", spread_off, 0, bound),
    ]


def grids(key: Key, num_points: int, most: int = 6) -> dict[str, list[float]]:
    """Errors of log p(x) on a grid and by importance sampling, per latent dimension."""
    found = {"grid": [], "importance samples": []}
    for latent_dim in range(1, most + 1):
        weights_key, x_key, sample_key = jax.random.split(
            jax.random.fold_in(key, latent_dim), 3
        )
        weights = jax.random.normal(weights_key, (8, latent_dim))
        model = exact.LinearGaussian(weights, jnp.zeros(8), jnp.asarray(0.1))
        params = exact.linear_vae(model)
        x = vae_jax.generate(params, x_key, num_samples=1, sample=True)
        truth = exact.log_evidence(model, x)[0]
        side = round(num_points ** (1 / latent_dim))
        axis = jnp.linspace(-5, 5, side)
        z = jnp.stack(jnp.meshgrid(*[axis] * latent_dim), axis=-1)
        log_joint = vae_jax.log_joint(params, x, z.reshape(-1, 1, latent_dim))
        volume = latent_dim * jnp.log(axis[1] - axis[0])
        on_grid = jax.nn.logsumexp(log_joint) + volume
        sampled = vae_jax.log_evidence(params, x, sample_key, num_samples=num_points)
        found["grid"].append(abs(float(on_grid - truth)))
        found["importance samples"].append(abs(float(sampled.estimate[0] - truth)))
    return found


def grid_checks(found: dict[str, list[float]]) -> list[Check]:
    """Checks that the grid is accurate with one and two latents but not with six."""
    grid, sampled = found.values()
    return [
        Check("S0-5", "grid: error with 1 latent, nats", grid[0], 0, 1e-9),
        Check("S0-5", "grid: error with 2 latents, nats", grid[1], 0, 1e-6),
        Check("S0-5", "grid: error with 6 latents, nats", grid[5], 1, relation=">"),
        Check("S0-5", "importance samples: with 6, nats", sampled[5], 0, 0.2),
    ]


def draw_training(first: Figures, second: Figures) -> Figure:
    """Draw evidence, ELBO and the gap between them along the training run."""
    figure = Figure((7, 4))
    axes = figure.subplots()
    shown = min(len(first.elbo), 300)  # Steps of each phase; later ones are flat.
    log_evidence, elbo, _ = (
        np.concatenate([a[:shown], b[:shown]])
        for a, b in zip(first, second, strict=True)
    )
    steps = np.arange(len(elbo))
    axes.plot(steps, log_evidence, color="C0", label="log p(x), exact")
    axes.plot(steps, elbo, color="C3", label="ELBO, exact")
    axes.fill_between(
        steps, elbo, log_evidence, color="0.9", label="gap: KL(q || p(z|x))"
    )
    axes.axvline(shown, color="0.5", ls="--")
    axes.text(shown * 0.97, elbo[0], "encoder alone", ha="right")
    axes.text(shown * 1.03, elbo[0], "encoder and decoder")
    axes.set_ylim(elbo[0] - 1, log_evidence[-1] + 1)
    axes.set(xlabel="training steps", ylabel="nats, mean over the data")
    axes.set_title("Raising the ELBO closes the gap, then raises log p(x)")
    axes.legend(loc="center right")
    return figure


def draw_falling(found: Figures) -> Figure:
    """Draw a run in which the ELBO rises and log p(x) falls."""
    figure = Figure((6.4, 3.8))
    axes = figure.subplots()
    axes.plot(np.asarray(found.log_evidence), color="C0", label="log p(x), exact")
    axes.plot(np.asarray(found.elbo), color="C3", label="ELBO, exact")
    top = float(found.log_evidence[0])
    axes.set_ylim(top - 12, top + 1)
    axes.set(xlabel="training steps", ylabel="nats, mean over the data")
    axes.set_title("A rising ELBO need not raise log p(x) at every step")
    axes.legend(loc="lower right")
    return figure


def draw_grids(found: dict[str, list[float]], num_points: int) -> Figure:
    """Draw errors against the number of latents."""
    figure = Figure((6.4, 3.8))
    axes = figure.subplots()
    for (name, errors), color in zip(found.items(), ("C1", "C0"), strict=True):
        sizes = np.arange(1, len(errors) + 1)
        axes.semilogy(sizes, np.maximum(errors, 1e-16), "o-", color=color, label=name)
    axes.set(xlabel="latent dimensions", ylabel="error of log p(x), nats")
    axes.set_title(f"Integration with {num_points:,} points")
    axes.legend()
    return figure


def compute(config: Config) -> Report:
    """Compute every check and figure of the topic, in double precision."""
    with jax.enable_x64(True):
        data_key, init_key, q_key, draw_key, grid_key = jax.random.split(
            jax.random.key(config.seed), 5
        )
        x = make_data(data_key)
        params = make_model(x, init_key)
        encoded, first = train(params, x, config.num_steps, decoder=False)
        trained, second = train(encoded, x, 5 * config.num_steps, decoder=True)
        fallen, falling_checks = falling(x, init_key)
        errors = grids(grid_key, config.grid_points)
        checks = [
            *jensen_checks(encoded, x),
            *likelihood_checks(trained, x),
            *form_checks(encoded, x),
            *arbitrary_checks(trained, x, q_key),
            *training_checks(first, second, x),
            *falling_checks,
            *predictive_checks(trained, x, draw_key, config.num_draws),
            *grid_checks(errors),
        ]
        figures = {
            "training": draw_training(first, second),
            "falling": draw_falling(fallen),
            "grids": draw_grids(errors, config.grid_points),
        }
    return Report("Evidence and its lower bound", checks, figures)


run, main = topic("evidence", Config, compute)

if __name__ == "__main__":
    main()
