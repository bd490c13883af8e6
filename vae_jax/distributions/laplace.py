"""Independent Laplace values: real numbers, of which absolute errors count."""

import math
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from vae_jax.types import Array, Distribution, Key


def log_prob(x: Array, location: Array, log_scale: Array) -> Array:
    """Log-density of independent Laplace values in nats, over the last axis.

        log p(x) = -sum_d [|x_d - m_d| / b_d + log(2 b_d)]

    Args:
      x: real numbers, `[..., D]`.
      location: m, `[..., D]` or anything that broadcasts with `x`.
      log_scale: log b, likewise.

    Returns:
      Log-densities, `[...]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.distributions import laplace
      >>> zero = jnp.zeros(1)
      >>> print(f"{laplace.log_prob(zero, zero, zero):.4f}")  # -log(2)
      -0.6931
    """
    return jnp.sum(_log_probs(x, location, log_scale), axis=-1)


def _log_probs(x: Array, location: Array, log_scale: Array) -> Array:
    """Elementwise log-density."""
    distance = jnp.abs(x - location) * jnp.exp(-log_scale)
    return -distance - log_scale - math.log(2)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LaplaceDistribution(Distribution):
    """Independent Laplace values.

        p(x) = prod_d Laplace(x_d; location_d, exp(log_scale_d))

    Attributes:
      location: m, `[..., D]`.
      log_scale: log b, what broadcasts with it.
    """

    location: Array
    log_scale: Array
    mean_is_exact = True
    is_reparameterizable: ClassVar[bool] = True
    factorizes = True

    @property
    def mean(self) -> Array:
        """The location, `[..., D]`."""
        return self.location

    def sample(self, key: Key, num_samples: int) -> Array:
        """See `Distribution.sample`; reparameterized."""
        shape = (num_samples, *self.location.shape)
        noise = jax.random.laplace(key, shape, self.location.dtype)
        return self.location + jnp.exp(self.log_scale) * noise

    def log_prob(self, value: Array) -> Array:
        """See `Distribution.log_prob`."""
        return log_prob(value, self.location, self.log_scale)

    def log_prob_per_dimension(self, value: Array) -> Array:
        """See `Distribution.log_prob_per_dimension`."""
        return _log_probs(value, self.location, self.log_scale)
