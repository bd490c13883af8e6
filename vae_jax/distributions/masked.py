"""Distributions of the observed dimensions: NaN stands for a missing value."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from vae_jax.types import Array, Distribution, Key


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MaskedDistribution(Distribution):
    """Distribution of the dimensions of x that are not NaN.

        log p(x_observed) = sum_(d in observed) log p(x_d)

    Missing at random: which values are missing says nothing of what they are, given the
    others. Draws and means are of all dimensions.

    Attributes:
      base: of all dimensions, which are independent.
      filler: a value of the support in place of missing ones, `[D]`; it has no effect.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.distributions import MaskedDistribution, PoissonDistribution
      >>> base = PoissonDistribution(jnp.array([1.0, 5.0]))
      >>> p = MaskedDistribution(base, jnp.zeros(2))
      >>> print(p.log_prob(jnp.array([0.0, jnp.nan])))
      -1.0
    """

    base: Distribution
    filler: Array
    is_reparameterizable: ClassVar[bool] = True
    factorizes = True

    @property
    def mean_is_exact(self) -> bool:
        """Whether that of the base is."""
        return self.base.mean_is_exact

    @property
    def mean(self) -> Array:
        """Mean of all dimensions, `[..., D]`."""
        return self.base.mean

    def sample(self, key: Key, num_samples: int) -> Array:
        """Draws of all dimensions, `[S, ..., D]`."""
        return self.base.sample(key, num_samples)

    def log_prob(self, value: Array) -> Array:
        """Log-probability of the observed dimensions in nats."""
        return jnp.sum(self.log_prob_per_dimension(value), axis=-1)

    def log_prob_per_dimension(self, value: Array) -> Array:
        """The terms of `log_prob`, 0 where a value is missing."""
        missing = jnp.isnan(value)
        filled = jnp.where(missing, self.filler, value)
        each = self.base.log_prob_per_dimension(filled)
        return jnp.where(missing, 0.0, each)
