"""Independent log-normal values: positive numbers whose logarithms are Gaussian."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from vae_jax.distributions import gaussian
from vae_jax.distributions.support import POSITIVE
from vae_jax.types import Array, Distribution, Key


def log_prob(x: Array, log_median: Array, log_var: Array) -> Array:
    """Log-density of independent log-normal values in nats, over the last axis.

        log p(x) = sum_d [log N(log x_d; m_d, s_d^2) - log x_d]

    Args:
      x: positive numbers, `[..., D]`.
      log_median: m, `[..., D]` or anything that broadcasts with `x`.
      log_var: log s^2, likewise.

    Returns:
      Log-densities, `[...]`; NaN for what is not positive.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.distributions import log_normal
      >>> one, zero = jnp.ones(1), jnp.zeros(1)
      >>> print(f"{log_normal.log_prob(one, zero, zero):.4f}")
      -0.9189
    """
    log_x = jnp.log(POSITIVE.nan_outside(jnp.asarray(x, log_median.dtype)))
    log_p = gaussian.diagonal_log_prob(log_x, log_median, log_var)
    return log_p - jnp.sum(log_x, axis=-1)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LogNormalDistribution(Distribution):
    """Independent log-normal values.

        log x_d ~ N(log_median_d, exp(log_var_d))

    Attributes:
      log_median: m, `[..., D]`.
      log_var: log s^2, the same shape, or what broadcasts with it.
    """

    log_median: Array
    log_var: Array
    mean_is_exact = True
    is_reparameterizable: ClassVar[bool] = True
    factorizes = True

    @property
    def mean(self) -> Array:
        """exp(m + s^2 / 2), `[..., D]`."""
        return jnp.exp(self.log_median + 0.5 * jnp.exp(self.log_var))

    def sample(self, key: Key, num_samples: int) -> Array:
        """See `Distribution.sample`; reparameterized."""
        log_var = jnp.broadcast_to(self.log_var, self.log_median.shape)
        return jnp.exp(
            gaussian.diagonal_sample(
                self.log_median, log_var, key, num_samples=num_samples
            )
        )

    def log_prob(self, value: Array) -> Array:
        """Log-density in nats, summed over D."""
        POSITIVE.require(value)
        return log_prob(value, self.log_median, self.log_var)

    def log_prob_per_dimension(self, value: Array) -> Array:
        """See `Distribution.log_prob_per_dimension`."""
        log_x = jnp.log(POSITIVE.nan_outside(value))
        of_log = gaussian.DiagonalGaussianDistribution(self.log_median, self.log_var)
        return of_log.log_prob_per_dimension(log_x) - log_x
