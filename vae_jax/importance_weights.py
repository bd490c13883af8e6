"""Running statistics of importance weights: mean, scatter, and Pareto tail index.

Weights are given by their logarithms, and may underflow when exponentiated. All sums
are therefore relative to the largest weight so far, and rescaled when a larger one
arrives.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vae_jax.types import Array

# Minimum number of tail weights for estimating the tail index (Vehtari et al. 2024).
MIN_TAIL = 5
# Above this, importance sampling is unreliable at any feasible number of samples.
HIGH_PARETO_K = 0.7


class WeightStatistics(NamedTuple):
    """Statistics of the weights so far, in units of the largest weight.

    Attributes:
      count: number of weights, a scalar.
      log_largest: log of the largest weight, a scalar.
      mean: mean weight, a scalar.
      scatter: sum of squared deviations from the mean, a scalar.
      log_tail: the largest log-weights in descending order, `[M + 1]`.
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
      standard_error: Monte Carlo standard error of `log_mean` (delta method), a scalar;
        infinite for a single weight.
      effective_sample_size: (sum w)^2 / sum w^2, between 1 and S, a scalar.
      pareto_k: tail index of the weights (`pareto_k`), a scalar.
    """

    log_mean: Array
    standard_error: Array
    effective_sample_size: Array
    pareto_k: Array


def tail_size(num_samples: int) -> int:
    """Number M of weights in the tail, min(S/5, 3 sqrt(S)) rounded up.

    Vehtari, Simpson, Gelman, Yao & Gabry 2024, "Pareto smoothed importance sampling".

    Args:
      num_samples: number S of samples.

    Returns:
      M.

    Example:
      >>> from vae_jax.importance_weights import tail_size
      >>> tail_size(1000)
      95
    """
    return math.ceil(min(num_samples / 5, 3 * math.sqrt(num_samples)))


def no_weights(num_samples: int, dtype: DTypeLike) -> WeightStatistics:
    """Statistics before the first weight.

    Args:
      num_samples: total number S of weights to be added.
      dtype: dtype of the log-weights.

    Returns:
      `WeightStatistics`.
    """
    zero = jnp.zeros((), dtype)
    nothing = jnp.full((tail_size(num_samples) + 1,), -jnp.inf, dtype)
    return WeightStatistics(zero, -jnp.inf + zero, zero, zero, nothing)


def add_weights(
    seen: WeightStatistics, log_w: Array, used: Array | None = None
) -> WeightStatistics:
    """Update the statistics with further weights (Chan, Golub & LeVeque 1983).

    Args:
      seen: statistics so far.
      log_w: further log-weights, `[n]`.
      used: mask of the weights to include, `[n]`; all by default.

    Returns:
      `WeightStatistics`.
    """
    used = jnp.ones(log_w.shape, bool) if used is None else used
    log_w = jnp.where(used, log_w, -jnp.inf)
    # The gradient is independent of the scale.
    log_w_values = jax.lax.stop_gradient(log_w)
    log_largest = jnp.maximum(seen.log_largest, jnp.max(log_w_values))
    # No finite scale if all weights so far are zero, or if one is infinite.
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
    """Log of the mean weight, its standard error, and reliability diagnostics.

        log_mean = log m with m = 1/S sum_s w_s
        standard_error = sqrt(1 / (S - 1) sum_s (w_s - m)^2) / (m sqrt(S))
        effective_sample_size = (sum_s w_s)^2 / (sum_s w_s^2)

    The effective sample size is that of Kong, Liu & Wong 1994.

    Args:
      seen: statistics of all weights.
      num_samples: number S of weights.

    Returns:
      `WeightSummary`.
    """
    all_zero = seen.mean == 0
    mean = jnp.where(all_zero, 1, seen.mean)
    # sum (w / mean w - 1)^2, without the cancellation of sum w^2 - (sum w)^2 / S.
    scatter = jnp.where(all_zero, jnp.inf, seen.scatter / jnp.square(mean))
    variance = scatter / num_samples / max(num_samples - 1, 1)
    effective = num_samples / (1 + scatter / num_samples)
    return WeightSummary(
        log_mean=seen.log_largest + jnp.log(seen.mean),
        # For one weight, infinity instead of NaN, which would trigger jax_debug_nans.
        standard_error=jnp.sqrt(variance) if num_samples > 1 else variance + jnp.inf,
        effective_sample_size=jnp.clip(effective, 1, num_samples),
        pareto_k=pareto_k(seen.log_tail),
    )


def summarize_all(log_w: Array) -> WeightSummary:
    """Summarize all log-weights at once; see `summarize`.

    Args:
      log_w: log-weights, `[S, B]`.

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
    """Shape k of a generalized Pareto distribution fitted to the largest weights.

        P(w > u + t) = P(w > u) (1 + k t / sigma)^(-1 / k)

    for weights w above the threshold u, with a scale sigma. Weights have finite moments
    of order below 1 / k. For k < 0.5, their variance is finite and standard errors are
    valid; for k > 0.7, the mean weight and its standard error are unreliable at any
    feasible number of samples (Vehtari et al. 2024). The estimator is that of Zhang &
    Stephens (2009), shrunk towards 0.5 with the weight of ten observations, as in
    Vehtari et al.

    Args:
      log_tail: the M + 1 largest log-weights in descending order; the last is the
        threshold.

    Returns:
      A scalar. It is -infinity if no weight exceeds the threshold (the largest weights
      are all equal). It is infinity if between one and four weights exceed it, which is
      too few for an estimate, if all weights are zero, or if their ratios exceed 1e30.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax.importance_weights import pareto_k
      >>> uniform = jnp.linspace(0.005, 0.995, 100)  # exact quantiles, k = 1
      >>> print(abs(pareto_k(-jnp.log(uniform)) - 1) < 0.1)
      True
    """
    log_tail = jax.lax.stop_gradient(log_tail)
    largest = log_tail[0]
    # Weights equal to the threshold (discrete latents, rounding) do not count.
    number = jnp.sum(log_tail[:-1] > log_tail[-1])
    known = jnp.isfinite(largest) & (number >= MIN_TAIL)
    # If k is unknown, substitute equal weights to avoid intermediate NaNs.
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
    # Relative to the largest, it vanishes only for k far above 1.
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
