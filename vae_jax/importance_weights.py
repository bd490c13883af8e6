"""Running statistics of importance weights: mean, scatter, and Pareto tail index.

Weights are known by their logarithms, which may be far below what exp can represent.
All sums are therefore relative to the largest weight so far, and are rescaled when a
larger one arrives.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vae_jax.types import Array

# Fewer weights in the tail do not determine its index (Vehtari et al. 2024).
MIN_TAIL = 5
# Above it importance sampling with any feasible number of samples is unreliable.
HIGH_PARETO_K = 0.7


class WeightStatistics(NamedTuple):
    """Statistics of the weights seen so far, the largest of which counts as 1.

    Attributes:
      count: number of weights, a scalar.
      log_largest: log of the largest weight, a scalar.
      mean: mean weight, a scalar.
      scatter: sum of squared deviations from the mean, a scalar.
      log_tail: the largest log-weights in falling order, `[M + 1]`.
    """

    count: Array  # pyright: ignore[reportIncompatibleMethodOverride]
    log_largest: Array
    mean: Array
    scatter: Array
    log_tail: Array


class WeightSummary(NamedTuple):
    """Reductions of S importance weights.

    Attributes:
      log_mean: log of the mean weight, a scalar.
      standard_error: of `log_mean` over the samples (delta method), a scalar; infinite
        for a single weight.
      effective_sample_size: (sum w)^2 / sum w^2, between 1 and S, a scalar.
      pareto_k: tail index of the weights (`pareto_k`), a scalar.
    """

    log_mean: Array
    standard_error: Array
    effective_sample_size: Array
    pareto_k: Array


def tail_size(num_samples: int) -> int:
    """Number of the largest weights that make up the tail, M = min(S/5, 3 sqrt(S)).

    Rounded up (Vehtari, Simpson, Gelman, Yao & Gabry 2024, "Pareto smoothed importance
    sampling").

    Args:
      num_samples: S.

    Returns:
      M.

    Example:
      >>> from vae_jax.importance_weights import tail_size
      >>> tail_size(1000)
      95
    """
    return math.ceil(min(num_samples / 5, 3 * math.sqrt(num_samples)))


def no_weights(num_samples: int, dtype) -> WeightStatistics:
    """Statistics before the first weight.

    Args:
      num_samples: S, how many weights there will be.
      dtype: of the log-weights.

    Returns:
      `WeightStatistics`.
    """
    zero = jnp.zeros((), dtype)
    nothing = jnp.full((tail_size(num_samples) + 1,), -jnp.inf, dtype)
    return WeightStatistics(zero, -jnp.inf + zero, zero, zero, nothing)


def add_weights(
    seen: WeightStatistics, log_w: Array, used: Array | None = None
) -> WeightStatistics:
    """Statistics with further weights, by the update of Chan, Golub & LeVeque (1983).

    Args:
      seen: statistics so far.
      log_w: further log-weights, `[n]`.
      used: which of them count, `[n]`; by default all.

    Returns:
      `WeightStatistics`.
    """
    used = jnp.ones(log_w.shape, bool) if used is None else used
    log_w = jnp.where(used, log_w, -jnp.inf)
    # The gradient does not depend on the scale.
    log_w_values = jax.lax.stop_gradient(log_w)
    log_largest = jnp.maximum(seen.log_largest, jnp.max(log_w_values))
    # Zero weights only, so far, or an infinite one: nothing to divide by.
    scale = jnp.where(jnp.isfinite(log_largest), log_largest, 0)
    shrink = jnp.exp(seen.log_largest - scale)
    weights = jnp.exp(log_w - scale)
    number = jnp.sum(used, dtype=log_w.dtype)
    count = seen.count + number
    mean = jnp.sum(weights) / number
    scatter = jnp.sum(jnp.where(used, jnp.square(weights - mean), 0))
    change = mean - shrink * seen.mean
    tail = jnp.concatenate([seen.log_tail, log_w_values])
    return WeightStatistics(
        count=count,
        log_largest=log_largest,
        mean=shrink * seen.mean + change * number / count,
        scatter=jnp.square(shrink) * seen.scatter
        + scatter
        + jnp.square(change) * seen.count * number / count,
        log_tail=jax.lax.top_k(tail, len(seen.log_tail))[0],
    )


def summarize(seen: WeightStatistics, num_samples: int) -> WeightSummary:
    """Log of the mean weight, its standard error, and how far to trust them.

    Args:
      seen: statistics of all weights.
      num_samples: S, their number.

    Returns:
      `WeightSummary`.
    """
    all_zero = seen.mean == 0
    mean = jnp.where(all_zero, 1, seen.mean)
    # sum (w / mean w - 1)^2, free of the cancellation in sum w^2 - (sum w)^2 / S.
    scatter = jnp.where(all_zero, jnp.inf, seen.scatter / jnp.square(mean))
    variance = scatter / num_samples / max(num_samples - 1, 1)
    effective = num_samples / (1 + scatter / num_samples)
    return WeightSummary(
        log_mean=seen.log_largest + jnp.log(seen.mean),
        # A NaN would be as true for one weight, and stop a search for NaNs.
        standard_error=jnp.sqrt(variance) if num_samples > 1 else variance + jnp.inf,
        effective_sample_size=jnp.clip(effective, 1, num_samples),
        pareto_k=pareto_k(seen.log_tail),
    )


def summarize_all(log_w: Array) -> WeightSummary:
    """`summarize` of log-weights that are all there at once.

    Args:
      log_w: `[S, B]`.

    Returns:
      `WeightSummary`, each `[B]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.importance_weights import summarize_all
      >>> print(summarize_all(jnp.full((3, 1), -1e4)).effective_sample_size)
      [3.]
    """
    size = log_w.shape[0]

    def of_one(log_w: Array) -> WeightSummary:
        return summarize(add_weights(no_weights(size, log_w.dtype), log_w), size)

    return jax.vmap(of_one, in_axes=1)(log_w)


def pareto_k(log_tail: Array) -> Array:
    """Shape k of the generalized Pareto distribution that the largest weights follow.

    Weights have finite moments of order below 1 / k. Below 0.5 their variance is finite
    and standard errors hold; above 0.7 the mean weight and its standard error are
    unreliable at any feasible number of samples (Vehtari et al. 2024). The estimate is
    the one of Zhang & Stephens (2009), drawn towards 0.5 with the weight of ten
    observations, as Vehtari et al. do.

    Args:
      log_tail: the M + 1 largest log-weights in falling order; the last is the
        threshold that the others exceed.

    Returns:
      A scalar: -infinity where no weight exceeds the threshold (the largest are all
      equal); infinity where fewer than five do, which are too few to tell, where all
      weights are zero, and where their ratios exceed 1e30.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax.importance_weights import pareto_k
      >>> uniform = jnp.linspace(0.005, 0.995, 100)  # exact quantiles, k = 1
      >>> print(abs(pareto_k(-jnp.log(uniform)) - 1) < 0.1)
      True
    """
    log_tail = jax.lax.stop_gradient(log_tail)
    largest = log_tail[0]
    # Weights equal to the threshold (discrete latents, rounding) are not in the tail.
    number = jnp.sum(log_tail[:-1] > log_tail[-1])
    known = jnp.isfinite(largest) & (number >= MIN_TAIL)
    # Equal weights stand in where k is unknown, so that no NaN appears on the way.
    equal = jnp.zeros_like(log_tail).at[-1].set(-jnp.inf)
    relative = log_tail - jnp.where(jnp.isfinite(largest), largest, 0)
    relative = jnp.where(known, relative, equal)
    log_w, threshold = relative[:-1], relative[-1]
    exceeds = log_w > threshold
    size = jnp.sum(exceeds)
    # exp(log_w) - exp(threshold) without cancellation, in units of the largest.
    excess = jnp.exp(log_w) * -jnp.expm1(jnp.where(exceeds, threshold - log_w, 0))
    excess = excess / excess[0]
    quartile = excess[size - jnp.maximum((size + 2) // 4, 1)]
    # Beside the largest it vanishes only if k is far above 1.
    spread = quartile < 1e-30
    quartile = jnp.where(spread, 1, quartile)

    grid_size = 30 + math.isqrt(len(excess))
    index = jnp.arange(1, grid_size + 1, dtype=excess.dtype)
    theta = 1 + (1 - jnp.sqrt(grid_size / (index - 0.5))) / (3 * quartile)

    def shape(theta: Array) -> Array:
        return jnp.sum(jnp.log1p(-theta * excess), axis=-1) / size

    shapes = shape(theta[:, None])
    profile = size * (jnp.log(-theta / shapes) - shapes - 1)
    estimate = shape(jnp.sum(theta * jax.nn.softmax(profile)))
    k = (size * estimate + 5) / (size + 10)
    k = jnp.where(known & ~spread, k, jnp.inf)
    k = jnp.where(jnp.isfinite(largest) & (number == 0), -jnp.inf, k)
    return jnp.where(jnp.isnan(largest), jnp.nan, k)
