"""Independent gamma values, parameterized by mean and concentration."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from vae_jax.distributions.deviance import HALF_LOG_2PI, deviance, stirling_error
from vae_jax.distributions.support import POSITIVE
from vae_jax.types import Array, Distribution, Key


def log_prob(x: Array, log_mean: Array, concentration: Array) -> Array:
    """Log-density of independent gamma values in nats, over the last axis.

        p(x) = prod_d 1 / Gamma(k_d) (k_d / m_d)^k_d x_d^(k_d - 1) exp(-(k_d x_d) / m_d)

    of mean m and variance m^2 / k. Computed from Stirling's error of k and the deviance
    of k from k x / m, which stay exact in float32 where the log-gamma and the powers
    cancel.

    Args:
      x: positive numbers, `[..., D]`.
      log_mean: log m, `[..., D]` or anything that broadcasts with `x`.
      concentration: k, positive, likewise.

    Returns:
      Log-densities, `[...]`; NaN for what is not positive.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.distributions import gamma
      >>> x, one = jnp.array([3.0]), jnp.ones(1)
      >>> print(f"{gamma.log_prob(x, 0 * one, one):.4f}")  # exponential
      -3.0000
    """
    return jnp.sum(_log_probs(x, log_mean, concentration), axis=-1)


def _log_probs(x: Array, log_mean: Array, concentration: Array) -> Array:
    """Elementwise log-density."""
    x = POSITIVE.nan_outside(jnp.asarray(x, log_mean.dtype))
    k, log_x = concentration, jnp.log(x)
    # x / m - 1 - log(x / m), by the deviance near 1, where it cancels, unless m is
    # rounded to 0 or infinity.
    log_ratio, kinds = log_x - log_mean, jnp.finfo(log_mean.dtype)
    has_mean = (log_mean > jnp.log(kinds.tiny)) & (log_mean < jnp.log(kinds.max))
    is_near = (jnp.abs(log_ratio) < 0.5) & has_mean
    near, mean = jnp.where(is_near, x, 1), jnp.exp(jnp.where(is_near, log_mean, 0))
    # Values by x and m, derivatives by log(x / m): those by m are divided by m^2, which
    # may be rounded to 0 or infinity. The difference is 0.
    near, mean = jax.lax.stop_gradient((near, mean))
    step = log_ratio - jax.lax.stop_gradient(log_ratio)
    inverse = mean / near
    off_near = deviance(
        k * (near / mean) * jnp.exp(step),
        inverse * jnp.exp(-step),
        (mean - near) / near + inverse * jnp.expm1(-step),
    )
    far = jnp.where(is_near, 0.0, log_ratio)
    off_far = k * (jnp.exp(far) - 1 - far)
    off = jnp.where(is_near, off_near, off_far)
    scale = 0.5 * jnp.log(k) - HALF_LOG_2PI - stirling_error(k)
    return scale - off - log_x


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GammaDistribution(Distribution):
    """Independent gamma values of mean exp(log_mean_d) and concentration k_d.

    Attributes:
      log_mean: log m, `[..., D]`.
      concentration: k, positive, what broadcasts with it.
    """

    log_mean: Array
    concentration: Array
    mean_is_exact = True
    is_reparameterizable: ClassVar[bool] = True
    factorizes = True

    @property
    def mean(self) -> Array:
        """M, `[..., D]`."""
        return jnp.exp(self.log_mean)

    def sample(self, key: Key, num_samples: int) -> Array:
        """See `Distribution.sample`; reparameterized, not below the support."""
        shape = (num_samples, *self.log_mean.shape)
        k = jnp.broadcast_to(self.concentration, shape)
        log_noise = jax.random.loggamma(key, k, shape, self.log_mean.dtype)
        drawn = jnp.exp(self.log_mean + log_noise - jnp.log(k))
        return jnp.maximum(drawn, POSITIVE.low)

    def log_prob(self, value: Array) -> Array:
        """Log-density in nats, summed over D."""
        POSITIVE.require(value)
        return log_prob(value, self.log_mean, self.concentration)

    def log_prob_per_dimension(self, value: Array) -> Array:
        """See `Distribution.log_prob_per_dimension`."""
        return _log_probs(value, self.log_mean, self.concentration)
