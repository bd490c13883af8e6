"""Convergence diagnostics of Markov chains: r-hat and effective sample size."""

import jax
import jax.numpy as jnp

from vae_jax.extras import import_extra
from vae_jax.types import Array


def r_hat(samples: Array) -> Array:
    """Potential scale reduction factor; above 1.01, the chains have not converged.

        r_hat = sqrt((T - 1) / T + B / W)

    with T the steps of half a chain, W the mean variance within the halves and B the
    variance of their means. Rank-normalised split version (Gelman & Rubin 1992; Vehtari
    et al. 2021): chains are split in half to detect drift, values are replaced by the
    normal scores of their ranks (average ranks for ties), and the result is the maximum
    of the statistics of the values and of their distances from the median.

    Args:
      samples: T >= 4 steps of C chains, `[T, C, ...]`.

    Returns:
      Values for the remaining axes, `[...]`. Infinite if no chain ever moved, or if
      every chain is constant at a different value.

    Raises:
      ValueError: there are fewer than four steps.

    Example:
      >>> import jax
      >>> from vae_jax.mcmc import r_hat
      >>> samples = jax.random.normal(jax.random.key(0), (500, 4, 2))
      >>> print(jax.jit(r_hat)(samples) < 1.01)
      [ True  True]
    """
    if samples.shape[0] < 4:
        raise ValueError(
            f"r_hat needs at least 4 steps of each chain, got {samples.shape[0]}"
        )
    half = samples.shape[0] // 2
    halves = jnp.concatenate([samples[:half], samples[-half:]], axis=1)
    distances = jnp.abs(halves - jnp.median(halves, axis=(0, 1)))
    found = jnp.maximum(_scale_reduction(halves), _scale_reduction(distances))
    moved = jnp.any(samples != samples[0], axis=(0, 1))
    found = jnp.where(moved, found, jnp.inf)
    return jnp.where(jnp.any(jnp.isnan(samples), axis=(0, 1)), jnp.nan, found)


def _scale_reduction(values: Array) -> Array:
    """sqrt(((T - 1) / T W + B) / W) of the normal scores of `[T, C, ...]`.

    W is the mean variance within chains, B the variance of the chains' means.
    """
    steps, chains = values.shape[:2]
    count = steps * chains
    ranks = jax.scipy.stats.rankdata(values.reshape(count, -1), axis=0)
    scores = jax.scipy.stats.norm.ppf((ranks - 3 / 8) / (count + 1 / 4))
    scores = scores.reshape(values.shape)
    # The mean of equal scores may differ from them by rounding.
    constant = jnp.all(values == values[0], axis=0)
    variances = jnp.where(constant, 0, jnp.var(scores, axis=0, ddof=1))
    within = jnp.mean(variances, axis=0)
    means = jnp.where(constant, scores[0], jnp.mean(scores, axis=0))
    between = jnp.var(means, axis=0, ddof=1)
    ratio = jnp.sqrt((steps - 1) / steps + between / jnp.where(within > 0, within, 1))
    # Distances from the median may all be equal (for fair bits): uninformative.
    all_equal = jnp.all(values == values[0, 0], axis=(0, 1))
    return jnp.where(within > 0, ratio, jnp.where(all_equal, 1.0, jnp.inf))


def effective_sample_size(samples: Array) -> Array:
    """Effective sample size of the mean, over all chains.

        ESS = (C T) / (1 + 2 sum_t rho_t)

    with the autocorrelations rho_t over all chains, summed as long as sums of adjacent
    pairs are positive and decreasing (Geyer 1992; Vehtari et al. 2021, section 3.2).

    Args:
      samples: T steps of C chains, `[T, C, ...]`.

    Returns:
      Values for the remaining axes, `[...]`; 0 if the chains never moved.

    Example:
      >>> import jax
      >>> from vae_jax.mcmc import effective_sample_size
      >>> samples = jax.random.normal(jax.random.key(0), (500, 4, 2))
      >>> jax.eval_shape(effective_sample_size, samples).shape
      (2,)
    """
    diagnostics = import_extra("blackjax.diagnostics", "mcmc")
    found = diagnostics.effective_sample_size(samples, chain_axis=1, sample_axis=0)
    return found.reshape(samples.shape[2:])
