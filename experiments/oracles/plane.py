"""Two latents: importance sampling, annealing and NUTS compared with quadrature."""

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

# The posteriors of real digits are narrow: 300 points give errors of up to 0.2.
GRID_POINTS = 1200


def run(config: "Config", dataset: data.Dataset, folder: Path) -> list[Check]:
    """Estimate log p(x) of test images by every method, and the mean of p(z|x).

    Args:
      config: configuration of the experiment.
      dataset: the data set.
      folder: folder that contains the model's run folder.

    Returns:
      Rows of the table.
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
    """Fit a full-covariance q to each image and double its standard deviations.

    The fitted q itself is too narrow to be a good importance-sampling proposal.
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
    """Smallest effective sample size over the images."""
    return float(found.effective_sample_size.min())


def off(name: str, values, allowed: float) -> Check:
    """Row of a mean whose exact value is 0."""
    return mean_check(name, values, exact=0.0, within=allowed)


def posterior_rows(params: vae_jax.Params, x, key) -> list[Check]:
    """Compare the mean of p(z|x) from the No-U-Turn sampler with the grid."""
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
    """Run `experiments.mnist`; return its parameters and binarized test set."""
    run = mnist.Config(
        dataset=config.dataset,
        likelihood="bernoulli",
        data_dir=config.data_dir,
        epochs=config.epochs,
        seed=config.seed,
        run_dir=str(folder),
        schedule="constant",
        evaluation_samples=0,
        **changes,
    )
    mnist.run(run)
    method = resolve(run, dataset).binarization
    seen = datasets.binarized(dataset, method, seed=run.seed)
    return vae_jax.load_run(folder), datasets.test_images(seen)
