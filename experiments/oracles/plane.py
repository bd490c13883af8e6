"""Two latents: quadrature against importance sampling, annealing and NUTS."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

import vae_jax
from experiments import datasets, mnist
from experiments.defaults import resolve
from experiments.evaluation import diagonal
from experiments.runner.report import Check, mean_check, row
from vae_jax import data, exact, mcmc
from vae_jax.distributions import FullGaussianDistribution
from vae_jax.types import Posterior

if TYPE_CHECKING:
    from experiments.oracles.__main__ import Config

# The posteriors of real digits are narrow: with 300 points some figures are 0.2 off.
GRID_POINTS = 1200


def run(config: "Config", dataset: data.Dataset, folder: Path) -> list[Check]:
    """Log p(x) of test images by every means, and the mean of p(z|x).

    Args:
      config: of the experiment.
      dataset: what it is about.
      folder: where the model's run goes.

    Returns:
      The rows.
    """
    params, x = trained_model(config, dataset, folder / "plane", latent_dim=2)
    x = x[: config.num_images]
    root = vae_jax.run_keys(jax.random.key(config.seed)).evaluation
    keys = jax.random.split(root, 6)
    quadrature = jax.jit(partial(exact.quadrature_log_evidence, num_points=GRID_POINTS))
    grid = quadrature(params, x)
    truth = np.asarray(grid.estimate, np.float64)
    importance = jax.jit(partial(vae_jax.log_evidence, num_samples=config.num_samples))
    sampled = importance(params, x, keys[0])
    fitted = wide_posterior(config, params, x, keys[4])
    wide = importance(params, x, keys[5], posterior=fitted)
    annealed = jax.jit(
        partial(
            vae_jax.annealed_log_evidence,
            num_temperatures=config.num_temperatures,
            num_chains=config.num_chains,
        )
    )(params, x, keys[1])
    both = jax.jit(
        partial(
            vae_jax.bidirectional_log_evidence,
            num_examples=config.num_images,
            num_temperatures=config.num_temperatures,
            num_chains=config.num_chains,
        )
    )(params, keys[2])
    simulated = quadrature(params, both.x)
    lower, upper = both.lower - simulated.estimate, both.upper - simulated.estimate
    rows = [
        mean_check("log p(x), quadrature", truth),
        row("  error of its grid, largest", float(grid.error.max())),
        mean_check(
            "  samples of the encoder's q - quadrature", sampled.estimate - truth
        ),
        row("    least effective sample size", least(sampled)),
        off(
            "  samples of the best q, widened - quadrature", wide.estimate - truth, 0.05
        ),
        row("    least effective sample size", least(wide)),
        off("  annealing - quadrature", annealed.estimate - truth, 0.05),
        off("simulated data: annealing - quadrature", lower, 0.05),
        off("  annealing back - quadrature", upper, 0.05),
        off("  gap of the two", both.gap, 0.1),
    ]
    return rows + posterior_rows(params, x[:10], keys[3])


def wide_posterior(config: "Config", params: vae_jax.Params, x, key) -> Posterior:
    """The best full-covariance q of each image with deviations twice as large.

    A q that has found a mode is too narrow to draw importance samples from.
    """
    encoded = diagonal(vae_jax.encode(params, x))
    start = FullGaussianDistribution(
        encoded.mean, encoded.log_var, jnp.zeros((len(x), 1), encoded.mean.dtype)
    )
    fit = jax.jit(partial(vae_jax.fit_posterior, num_steps=config.gap_steps))
    best = fit(params, x, key, start=start).posterior
    return FullGaussianDistribution(
        best.mean, best.log_var + jnp.log(4.0), 2 * best.below
    )


def least(found: vae_jax.LogEvidence) -> float:
    """The least effective sample size of the images."""
    return float(found.effective_sample_size.min())


def off(name: str, values, allowed: float) -> Check:
    """A mean that should be 0."""
    return mean_check(name, values, exact=0.0, within=allowed)


def posterior_rows(params: vae_jax.Params, x, key) -> list[Check]:
    """The mean of p(z|x) by the No-U-Turn sampler against the grid."""
    on_grid = partial(exact.quadrature_posterior, num_points=GRID_POINTS)
    mean, variance = jax.jit(on_grid)(params, x)
    drawn = jax.jit(mcmc.posterior_samples)(params, x, key)
    found = drawn.samples.mean(axis=(0, 1))
    error = jnp.sqrt(variance / drawn.effective_sample_size)
    scores = np.abs(np.asarray((found - mean) / error))
    return [
        row("NUTS: largest r-hat", float(drawn.r_hat.max())),
        row(
            "  least effective sample size",
            float(drawn.effective_sample_size.min()),
        ),
        row("  diverging steps", float(drawn.num_divergences.sum())),
        row(
            f"  means of p(z|x) off the grid's, of {scores.size} the largest, in "
            "standard errors",
            float(scores.max()),
            exact=0.0,
            within=4.0,
        ),
    ]


def trained_model(
    config: "Config", dataset: data.Dataset, folder: Path, **changes: Any
):
    """Parameters of a run of `experiments.mnist`, and its binarized test set."""
    run = mnist.Config(
        dataset=config.dataset,
        data_dir=config.data_dir,
        epochs=config.epochs,
        seed=config.seed,
        run_dir=str(folder),
        evaluation_samples=0,
        **changes,
    )
    mnist.run(run)
    method = resolve(run, dataset).binarization
    seen = datasets.binarized(dataset, method, seed=run.seed)
    return vae_jax.load_run(folder), datasets.test_images(seen)
