"""Moments of a gradient estimator over many independent draws.

Estimators are compared by their variance, and an estimated variance has a standard
error. Both follow from the first four moments, accumulated in one pass over draws that
are made with `vmap` in chunks.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vae_jax.options import require_at_least
from vae_jax.types import Array, Key, PyTree


class Moments(NamedTuple):
    """Mean, variance and signal-to-noise ratio, with their standard errors.

    Attributes:
      mean: mean of the draws.
      variance: unbiased estimate of the variance of a single draw.
      signal_to_noise: |mean| / standard deviation of a single draw; NaN for 0/0.
      mean_standard_error: sqrt(variance / n).
      variance_standard_error: sqrt((m4 - variance^2 (n - 3) / (n - 1)) / n), with m4
        the fourth central moment.
      signal_to_noise_standard_error: standard error by the delta method.
    """

    mean: PyTree
    variance: PyTree
    signal_to_noise: PyTree
    mean_standard_error: PyTree
    variance_standard_error: PyTree
    signal_to_noise_standard_error: PyTree


class GradientMoments(NamedTuple):
    """Result of `gradient_moments`.

    Attributes:
      parameters: moments of each parameter; every field is a tree like the gradient.
      leaves: moments of each leaf as one vector; every field is a tree like the
        gradient with one scalar per leaf: the norm of the mean, the sum of the
        variances, and their ratio |mean| / sqrt(sum of variances).
      num_draws: number n of draws.
    """

    parameters: Moments
    leaves: Moments
    num_draws: int

    def cost_adjusted_variance(self, seconds_per_draw: float) -> PyTree:
        """Sum of the variances of each leaf, times the measured cost of a draw.

        This is the variance of the average of one second of draws, by which estimators
        of different cost can be compared.
        """
        return jax.tree.map(
            lambda variance: variance * seconds_per_draw, self.leaves.variance
        )


def gradient_moments(
    gradient: Callable[[Key], PyTree],
    key: Key,
    *,
    num_draws: int,
    chunk_size: int = 1000,
) -> GradientMoments:
    """Mean, variance and signal-to-noise ratio of a random gradient, with errors.

    Draw i is `gradient(fold_in(key, i))`, so different estimators use the same keys.
    The results do not depend on the chunk size, except for the standard errors of
    `leaves`: these use the mean of the first chunk as a reference, which should hold at
    least a hundred draws. Memory: one chunk of draws and six trees like the gradient.
    Call it under `jit`.

    Args:
      gradient: one draw, a tree of arrays, such as
        `lambda key: jax.grad(elbo)(params, x, key)`.
      key: PRNG key.
      num_draws: number n of independent draws, at least 2.
      chunk_size: number of draws made at once.

    Returns:
      `GradientMoments`.

    Raises:
      ValueError: `num_draws` is below 2, or `chunk_size` is below 1.

    Example:
      >>> import jax
      >>> from vae_jax.estimators import gradient_moments
      >>> noise = lambda key: {"weights": 1.0 + jax.random.normal(key, (3,))}
      >>> moments = gradient_moments(noise, jax.random.key(0), num_draws=10_000)
      >>> print(moments.parameters.mean["weights"].round(1))
      [1. 1. 1.]
      >>> print(moments.leaves.variance["weights"].round(1))
      3.0
    """
    require_at_least("num_draws", num_draws, 2)
    require_at_least("chunk_size", chunk_size)
    chunk_size = min(chunk_size, num_draws)

    def chunk(start: Array) -> list[Array]:
        index = start + jnp.arange(chunk_size)
        draws = jax.vmap(lambda i: gradient(jax.random.fold_in(key, i)))(index)
        return jax.tree.leaves(draws)

    def add_chunk(carry: tuple[list[Array], list[_Sums]], start: Array):
        pivots, sums = carry
        draws = chunk(start)
        # A pivot near the mean, so that powers of differences keep their precision.
        pivots = [
            jnp.where(start == 0, jnp.mean(leaf, axis=0), pivot)
            for leaf, pivot in zip(draws, pivots, strict=True)
        ]
        # The last chunk may extend beyond `num_draws`.
        counted = start + jnp.arange(chunk_size) < num_draws
        more = [
            _sums(leaf, pivot, counted)
            for leaf, pivot in zip(draws, pivots, strict=True)
        ]
        return (pivots, jax.tree.map(jnp.add, sums, more)), None

    shapes = jax.eval_shape(gradient, key)
    pivots = [jnp.zeros(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(shapes)]
    nothing = [_sums(pivot[None], pivot, jnp.zeros(1, dtype=bool)) for pivot in pivots]
    starts = jnp.arange(0, num_draws, chunk_size)
    (pivots, sums), _ = jax.lax.scan(add_chunk, (pivots, nothing), starts)
    structure = jax.tree.structure(shapes)

    def collect(moments: Callable[[_Sums, Array, int], Moments]) -> Moments:
        each = [moments(*pair, num_draws) for pair in zip(sums, pivots, strict=True)]
        return Moments(
            *(structure.unflatten(field) for field in zip(*each, strict=True))
        )

    return GradientMoments(collect(_by_parameter), collect(_by_leaf), num_draws)


class _Sums(NamedTuple):
    """Sums over draws for one leaf, with d = draw - pivot.

    Attributes:
      powers: sums of d, d^2, d^3 and d^4, `[4, ...]`.
      vector: sums of a, a^2, t, t^2 and a t, `[5]`, with a the component of d along the
        pivot and t the squared norm of d.
    """

    powers: Array
    vector: Array


def _sums(draws: Array, pivot: Array, counted: Array) -> _Sums:
    """Sums over the draws `[n, ...]` selected by `counted`, `[n]`."""
    difference = draws - pivot
    mask = counted.reshape(counted.shape + (1,) * pivot.ndim)
    difference = jnp.where(mask, difference, 0)
    square = jnp.square(difference)
    powers = (difference, square, difference * square, jnp.square(square))
    norm = jnp.linalg.norm(pivot)
    axes = tuple(range(1, draws.ndim))
    along = jnp.sum(difference * pivot, axes) / jnp.where(norm == 0, 1, norm)
    total = jnp.sum(square, axes)
    vector = (along, along**2, total, total**2, along * total)
    return _Sums(
        powers=jnp.stack([jnp.sum(power, axis=0) for power in powers]),
        vector=jnp.stack([jnp.sum(scalar) for scalar in vector]),
    )


def _by_parameter(sums: _Sums, pivot: Array, n: int) -> Moments:
    first, second, third, fourth = sums.powers / n
    m2 = second - first**2
    m3 = third - 3 * first * second + 2 * first**3
    m4 = fourth - 4 * first * third + 6 * first**2 * second - 3 * first**4
    mean, variance = pivot + first, m2 * n / (n - 1)
    return _moments(
        mean=jnp.abs(mean),
        variance=variance,
        n=n,
        mean_variance=variance,
        variance_variance=m4 - variance**2 * (n - 3) / (n - 1),
        covariance=jnp.sign(mean) * m3,
    )._replace(mean=mean)


def _by_leaf(sums: _Sums, pivot: Array, n: int) -> Moments:
    """Moments along the direction of the mean, with the total variance."""
    first = sums.powers[0] / n
    along, along_square, total, total_square, product = sums.vector / n
    variance = (total - jnp.sum(first**2)) * n / (n - 1)
    # The squared norm of a noisy mean is biased upwards by its variance.
    square = jnp.sum((pivot + first) ** 2) - variance / n
    return _moments(
        mean=jnp.sqrt(jnp.maximum(square, 0)),
        variance=variance,
        n=n,
        mean_variance=along_square - along**2,
        variance_variance=total_square - total**2,
        covariance=product - along * total,
    )


def _moments(
    *,
    mean: Array,
    variance: Array,
    n: int,
    mean_variance: Array,
    variance_variance: Array,
    covariance: Array,
) -> Moments:
    """Ratio and standard errors of mean and variance.

    The last three arguments are n times the (co)variances of mean and variance.
    """
    ratio = mean / jnp.sqrt(variance)
    ratio_variance = (
        mean_variance / variance
        + jnp.square(ratio / variance) * variance_variance / 4
        - mean * covariance / jnp.square(variance)
    )

    def error(n_times_variance: Array) -> Array:
        return jnp.sqrt(jnp.maximum(n_times_variance, 0) / n)

    return Moments(
        mean=mean,
        variance=variance,
        signal_to_noise=ratio,
        mean_standard_error=error(mean_variance),
        variance_standard_error=error(variance_variance),
        signal_to_noise_standard_error=error(ratio_variance),
    )
