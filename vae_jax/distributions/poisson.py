"""Independent Poisson counts, parameterized by their means."""

from dataclasses import dataclass, replace
from typing import ClassVar

import jax
import jax.numpy as jnp

from vae_jax.distributions.deviance import log_poisson
from vae_jax.distributions.support import COUNTS
from vae_jax.prng import as_threefry
from vae_jax.types import Array, Distribution, Key


def log_prob(x: Array, mean: Array) -> Array:
    """Log-probability of independent Poisson counts in nats, over the last axis.

        log p(x) = sum_d [x_d log m_d - m_d - log x_d!]

    Exact in float32 for counts of a million.

    Args:
      x: counts, `[..., D]`.
      mean: m, positive, `[..., D]` or anything that broadcasts with `x`.

    Returns:
      Log-probabilities, `[...]`; NaN for what is no count.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.distributions import poisson
      >>> print(f"{poisson.log_prob(jnp.array([0.0, 2.0]), jnp.ones(2)):.4f}")
      -2.6931
    """
    x = COUNTS.nan_outside(jnp.asarray(x, mean.dtype))
    return jnp.sum(log_poisson(x, mean), axis=-1)


# jax.random.poisson accepts by log-gammas of float32: its variance is 2% off at a mean
# of 1e6 and 65% at 1e9, and its integers end at 2^31.
_LARGEST_MEAN = 100_000


def sample(mean: Array, key: Key) -> Array:
    """Draws a count for every mean, in the dtype of the means.

    Above a mean of 100,000 a draw of that mean, moved and stretched to the mean and
    variance.

    Args:
      mean: m, `[..., D]`.
      key: PRNG key, consumed once.

    Returns:
      Draws, `[..., D]`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax.distributions import poisson
      >>> print(poisson.sample(jnp.array([1e-9]), jax.random.key(0)))
      [0.]
    """
    near = jnp.minimum(mean, _LARGEST_MEAN)
    count = jax.random.poisson(as_threefry(key), near)
    off = (count - _LARGEST_MEAN).astype(mean.dtype)
    far = jnp.round(mean + jnp.sqrt(mean / _LARGEST_MEAN) * off)
    return jnp.where(mean > _LARGEST_MEAN, far, count.astype(mean.dtype))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PoissonDistribution(Distribution):
    """Independent Poisson counts.

        p(x) = prod_d Poisson(x_d; mean_d)

    Attributes:
      mean: `[..., D]`, positive.
    """

    mean: Array
    mean_is_exact = True
    is_reparameterizable: ClassVar[bool] = False
    factorizes = True

    def times(self, factor: Array) -> "PoissonDistribution":
        """See `Distribution.times`."""
        return replace(self, mean=self.mean * factor)

    def sample(self, key: Key, num_samples: int) -> Array:
        """Counts, `[S, ..., D]`."""
        return sample(jnp.broadcast_to(self.mean, (num_samples, *self.mean.shape)), key)

    def log_prob(self, value: Array) -> Array:
        """Log-probability in nats, summed over D."""
        COUNTS.require(value)
        return log_prob(value, self.mean)

    def log_prob_per_dimension(self, value: Array) -> Array:
        """See `Distribution.log_prob_per_dimension`."""
        x = COUNTS.nan_outside(jnp.asarray(value, self.mean.dtype))
        return log_poisson(x, self.mean)
