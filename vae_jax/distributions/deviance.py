"""Parts of count probabilities that stay exact where log-gammas cancel.

A difference of log-gammas of a million is a thousand times less accurate in float32
than a nat. Loader (2000, "Fast and Accurate Computation of Binomial Probabilities")
splits every such probability into Stirling's error, which is small, and deviances,
which are not negative and have no cancellation.
"""

import jax
import jax.numpy as jnp

from vae_jax.types import Array

HALF_LOG_2PI = 0.9189385332046727
# From here on six terms of Stirling's series are exact in float64.
_SERIES_FROM = 16.0
# Within it the direct form cancels, and sixteen terms of the series are exact.
_NEAR = 0.1


def stirling_error(count: Array) -> Array:
    """Error of Stirling's formula: log Gamma(n + 1) less the formula, elementwise.

        delta(n) = log Gamma(n + 1) - (n + 1/2) log n + n - 1/2 log(2 pi)

    which is 1 / (12 n) for large n (Loader 2000, eq. 3).

    Args:
      count: n, positive, not necessarily whole.

    Returns:
      The same shape; not negative.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.distributions.deviance import stirling_error
      >>> print(f"{stirling_error(jnp.array(1e6)):.3e}")
      8.333e-08
    """
    large = jnp.maximum(count, _SERIES_FROM)
    square = 1 / (large * large)
    coefficients = (-691 / 360360, 1 / 1188, -1 / 1680, 1 / 1260, -1 / 360, 1 / 12)
    series = jnp.polyval(jnp.array(coefficients, large.dtype), square) / large
    small = jnp.minimum(count, _SERIES_FROM)
    direct = (
        jax.lax.lgamma(small + 1) - (small + 0.5) * jnp.log(small) + small
    ) - HALF_LOG_2PI
    return jnp.where(count < _SERIES_FROM, direct, series)


@jax.custom_jvp
def _unit_deviance(ratio: Array, excess: Array) -> Array:
    """(1 + u) log(1 + u) - u, with both 1 + u and u given, as neither gives the other.

    Not negative; u^2 / 2 near 0, and 1 at ratio 0.
    """
    series = jnp.zeros_like(excess)
    for power in range(17, 1, -1):
        series = (-1) ** power / (power * (power - 1)) + excess * series
    direct = jax.scipy.special.xlogy(ratio, ratio) - excess
    return jnp.where(jnp.abs(excess) < _NEAR, excess * excess * series, direct)


@_unit_deviance.defjvp
def _unit_deviance_jvp(primals, tangents):
    """d/du = log(1 + u); u carries the whole tangent, the ratio says the same."""
    ratio, excess = primals
    _, excess_dot = tangents
    near = jnp.abs(excess) < 0.5
    slope = jnp.where(
        near,
        jnp.log1p(jnp.where(near, excess, 0.0)),
        jnp.log(jnp.where(near, 1.0, ratio)),
    )
    return _unit_deviance(ratio, excess), slope * excess_dot


def deviance(expected: Array, ratio: Array, excess: Array) -> Array:
    """Deviance of a count from its expectation, elementwise, in nats.

        D(n, m) = n log(n / m) + m - n = m [(1 + u) log(1 + u) - u]

    with 1 + u = n / m (Loader 2000, eq. 4, whose bd0 it is).

    Args:
      expected: m, positive.
      ratio: n / m, not negative.
      excess: (n - m) / m, computed from n - m, which may be far smaller than n.

    Returns:
      What the arguments broadcast to; never negative.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.distributions.deviance import deviance
      >>> print(deviance(jnp.array(1e6), jnp.array(1.001), jnp.array(0.001)))
      0.49983343
    """
    return expected * _unit_deviance(*jnp.broadcast_arrays(ratio, excess))


def log_poisson(count: Array, mean: Array) -> Array:
    """Log-probability of a count under a Poisson distribution, elementwise, in nats.

        log p(n) = n log m - m - log n! = -D(n, m) - delta(n) - 1/2 log(2 pi n)

    with the `deviance` D and the `stirling_error` delta (Loader 2000, eq. 5), also of a
    count that is not whole.

    Args:
      count: n, not negative.
      mean: m, positive.

    Returns:
      What the arguments broadcast to.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.distributions.deviance import log_poisson
      >>> print(f"{log_poisson(jnp.array(0.0), jnp.array(2.0)):.4f}")
      -2.0000
    """
    # Another count in its place where it is 0, so that its gradient is finite.
    positive = jnp.where(count == 0, 1, count)
    off = deviance(mean, positive / mean, (positive - mean) / mean)
    scale = HALF_LOG_2PI + 0.5 * jnp.log(positive)
    return jnp.where(count == 0, -mean, -off - stirling_error(positive) - scale)
