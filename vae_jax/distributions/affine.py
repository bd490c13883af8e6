"""A distribution after a shift and a scale of each dimension: standardized columns."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from vae_jax.types import Array, Distribution, Key


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AffineDistribution(Distribution):
    """The distribution of x = shift + scale v for v of another one.

        log p(x) = log p_v((x - shift) / scale) - sum_d log scale_d

    Attributes:
      base: of v, real numbers of a density.
      shift: `[D]`.
      log_scale: `[D]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.distributions import (
      ...     AffineDistribution,
      ...     DiagonalGaussianDistribution,
      ... )
      >>> base = DiagonalGaussianDistribution(jnp.zeros(1), jnp.zeros(1))
      >>> p = AffineDistribution(base, jnp.array([5.0]), jnp.array([1.0]))
      >>> print(f"{p.log_prob(jnp.array([5.0])):.4f}")  # -log(e sqrt(2 pi))
      -1.9189
    """

    base: Distribution
    shift: Array
    log_scale: Array
    is_reparameterizable: ClassVar[bool] = True

    @property
    def mean_is_exact(self) -> bool:
        """Whether that of the base is."""
        return self.base.mean_is_exact

    @property
    def factorizes(self) -> bool:
        """Whether the base does."""
        return self.base.factorizes

    @property
    def mean(self) -> Array:
        """Shift + scale E[v], `[..., D]`."""
        return self.shift + jnp.exp(self.log_scale) * self.base.mean

    def sample(self, key: Key, num_samples: int) -> Array:
        """See `Distribution.sample`."""
        drawn = self.base.sample(key, num_samples)
        return self.shift + jnp.exp(self.log_scale) * drawn

    def log_prob(self, value: Array) -> Array:
        """See `Distribution.log_prob`; with the log-determinant of the scale."""
        standardized = (value - self.shift) * jnp.exp(-self.log_scale)
        return self.base.log_prob(standardized) - jnp.sum(self.log_scale, axis=-1)

    def log_prob_per_dimension(self, value: Array) -> Array:
        """See `Distribution.log_prob_per_dimension`."""
        standardized = (value - self.shift) * jnp.exp(-self.log_scale)
        return self.base.log_prob_per_dimension(standardized) - self.log_scale
