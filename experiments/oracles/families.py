"""Approximation gap of the best q of each image from several families."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

import vae_jax
from experiments.oracles.plane import trained_model
from experiments.runner.report import Check, mean_check, row
from vae_jax import data
from vae_jax.distributions import FullGaussianDistribution, LowRankGaussianDistribution
from vae_jax.estimators import value_only
from vae_jax.families import HouseholderDistribution
from vae_jax.types import Posterior

if TYPE_CHECKING:
    from experiments.oracles.__main__ import Config

RANK = 2
ELBO_SAMPLES = 1000


def starts(posterior: Any, key) -> dict[str, Posterior]:
    """Initial q of each family, equal or close to a diagonal Gaussian."""
    mean, log_var = posterior.mean, posterior.log_var
    batch, latent_dim = mean.shape
    noise = partial(jax.random.normal, dtype=mean.dtype)
    keys = jax.random.split(key)
    return {
        "diagonal": posterior,
        "low rank, 2": LowRankGaussianDistribution(
            mean, log_var, 0.01 * noise(keys[0], (batch, latent_dim, RANK))
        ),
        "Householder, 4": HouseholderDistribution(
            # Pairs of equal reflections cancel.
            mean,
            log_var,
            jnp.repeat(noise(keys[1], (batch, 2, latent_dim)), 2, axis=1),
        ),
        "full": FullGaussianDistribution(
            mean,
            log_var,
            jnp.zeros((batch, latent_dim * (latent_dim - 1) // 2), mean.dtype),
        ),
    }


def run(config: "Config", dataset: data.Dataset, folder: Path) -> list[Check]:
    """Measure the approximation gap of each family on the same images.

    Args:
      config: configuration of the experiment.
      dataset: the data set.
      folder: folder that contains the model's run folder.

    Returns:
      Rows of the table.
    """
    params, x = trained_model(config, dataset, folder / "families")
    x = x[: config.num_images]
    root = vae_jax.run_keys(jax.random.key(config.seed)).evaluation
    keys = jax.random.split(root, 4)
    encoded = jax.jit(vae_jax.encode)(params, x)
    fit = jax.jit(partial(vae_jax.fit_posterior, num_steps=config.gap_steps))
    elbo = jax.jit(
        partial(vae_jax.elbo_terms, num_samples=ELBO_SAMPLES, estimator=value_only)
    )
    fitted = {
        name: fit(params, x, keys[0], start=start)
        for name, start in starts(encoded, keys[1]).items()
    }
    best = {name: found.posterior for name, found in fitted.items()}

    importance = jax.jit(partial(vae_jax.log_evidence, num_samples=config.num_samples))
    sampled = importance(params, x, keys[2], posterior=best["full"])
    evidence = np.asarray(sampled.estimate, np.float64)
    gaps = {
        name: evidence - np.asarray(elbo(params, x, keys[3], posterior=q).elbo)
        for name, q in ({"the encoder's, diagonal": encoded} | best).items()
    }
    rows = [mean_check("log p(x), importance samples of the best full q", evidence)]
    rows += [mean_check(f"log p(x) - ELBO: {name}", gap) for name, gap in gaps.items()]
    difference = gaps["diagonal"] - gaps["full"]
    rows.append(mean_check("  diagonal - full, image by image", difference))
    return rows + [
        row(
            f"images whose best q was not found: {name}",
            float((~q.converged).sum()),
        )
        for name, q in fitted.items()
    ]
