"""Independent Student's t values: real numbers with heavy tails."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from vae_jax.distributions.deviance import HALF_LOG_2PI, stirling_error
from vae_jax.types import Array, Distribution, Key

# From here on 1 + u^2 is u^2 in float32, and u^2 may overflow.
_LARGE = 1e6


def log_prob(x: Array, location: Array, log_scale: Array, freedom: Array) -> Array:
    """Log-density of independent Student's t values in nats, over the last axis.

        p(x) = prod_d c_d (1 + t_d^2 / v_d)^(-(v_d + 1) / 2)
        c = Gamma((v + 1) / 2) / (Gamma(v / 2) sqrt(v pi) s)
        t = (x - m) / s

    with c and t of each dimension; the log-gammas by Stirling's errors, so that v may
    be from 1e-6 to 1e9 in float32 (a Gaussian).

    Args:
      x: real numbers, `[..., D]`.
      location: m, `[..., D]` or anything that broadcasts with `x`.
      log_scale: log s, likewise.
      freedom: v, positive, likewise.

    Returns:
      Log-densities, `[...]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.distributions import student_t
      >>> zero, one = jnp.zeros(1), jnp.ones(1)
      >>> print(f"{student_t.log_prob(zero, zero, zero, one):.4f}")  # -log(pi)
      -1.1447
    """
    return jnp.sum(_log_probs(x, location, log_scale, freedom), axis=-1)


def _log_probs(x: Array, location: Array, log_scale: Array, freedom: Array) -> Array:
    """Elementwise log-density."""
    half = 0.5 * freedom
    gammas = stirling_error(half + 0.5) - stirling_error(half)
    # log Gamma(n + 1) has n + 1/2 in its Stirling's formula.
    gammas += half * jnp.log1p(0.5 / half) - 0.5
    u = jnp.abs(x - location) * jnp.exp(-log_scale) / jnp.sqrt(freedom)
    is_large = u > _LARGE
    small = jnp.log1p(jnp.square(jnp.where(is_large, 0.0, u)))
    tail = jnp.where(is_large, 2 * jnp.log(jnp.where(is_large, u, 1.0)), small)
    return gammas - HALF_LOG_2PI - log_scale - (half + 0.5) * tail


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class StudentTDistribution(Distribution):
    """Independent Student's t values.

        x_d = location_d + scale_d t_d with t_d ~ StudentT(freedom_d)

    Attributes:
      location: m, `[..., D]`.
      log_scale: log s, what broadcasts with it.
      freedom: v, positive, likewise.
    """

    location: Array
    log_scale: Array
    freedom: Array
    mean_is_exact = True
    is_reparameterizable: ClassVar[bool] = True
    factorizes = True

    @property
    def mean(self) -> Array:
        """The location; NaN where v is at most 1, which has no mean, `[..., D]`."""
        return jnp.where(self.freedom > 1, self.location, jnp.nan)

    def sample(self, key: Key, num_samples: int) -> Array:
        """See `Distribution.sample`; reparameterized."""
        shape = (num_samples, *self.location.shape)
        freedom = jnp.broadcast_to(self.freedom, shape)
        noise = jax.random.t(key, freedom, shape, self.location.dtype)
        return self.location + jnp.exp(self.log_scale) * noise

    def log_prob(self, value: Array) -> Array:
        """See `Distribution.log_prob`."""
        return log_prob(value, self.location, self.log_scale, self.freedom)

    def log_prob_per_dimension(self, value: Array) -> Array:
        """See `Distribution.log_prob_per_dimension`."""
        return _log_probs(value, self.location, self.log_scale, self.freedom)
