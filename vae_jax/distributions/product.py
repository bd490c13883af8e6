"""Independent groups of columns, each with a distribution of its own."""

from dataclasses import dataclass, field
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax.types import Array, Distribution, Key


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ProductDistribution(Distribution):
    """Product of distributions of groups of columns of a table.

        p(x) = prod_k p_k(x[columns_k])

    (Nazabal et al. 2020).

    Attributes:
      parts: K distributions.
      columns: K tuples of column numbers, which together are 0 to D - 1; static.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.distributions import (
      ...     BernoulliDistribution,
      ...     PoissonDistribution,
      ...     ProductDistribution,
      ... )
      >>> bits, counts = BernoulliDistribution(jnp.zeros(1)), jnp.ones(1)
      >>> parts = (bits, PoissonDistribution(counts))
      >>> p = ProductDistribution(parts, ((1,), (0,)))
      >>> print(f"{p.log_prob(jnp.array([0.0, 1.0])):.4f}")  # log(1 / 2) - 1
      -1.6931
    """

    parts: tuple[Distribution, ...]
    columns: tuple[tuple[int, ...], ...] = field(metadata={"static": True})
    is_reparameterizable: ClassVar[bool] = False

    @property
    def mean_is_exact(self) -> bool:
        """Whether it is of all parts."""
        return all(part.mean_is_exact for part in self.parts)

    @property
    def factorizes(self) -> bool:
        """Whether all parts do."""
        return all(part.factorizes for part in self.parts)

    @property
    def mean(self) -> Array:
        """Means of the parts, `[..., D]`."""
        return self.in_order([part.mean for part in self.parts])

    def sample(self, key: Key, num_samples: int) -> Array:
        """See `Distribution.sample`."""
        keys = jax.random.split(key, len(self.parts))
        draws = [
            part.sample(own, num_samples)
            for part, own in zip(self.parts, keys, strict=True)
        ]
        return self.in_order(draws)

    def given_totals(self, x: Array) -> "ProductDistribution":
        """See `Distribution.given_totals`, of each part."""
        given = [
            part.given_totals(x[..., np.asarray(at)])
            for part, at in zip(self.parts, self.columns, strict=True)
        ]
        return ProductDistribution(tuple(given), self.columns)

    def log_prob(self, value: Array) -> Array:
        """See `Distribution.log_prob`."""
        log_probs = [
            part.log_prob(value[..., np.asarray(at)])
            for part, at in zip(self.parts, self.columns, strict=True)
        ]
        return sum(log_probs[1:], start=log_probs[0])

    def log_prob_per_dimension(self, value: Array) -> Array:
        """See `Distribution.log_prob_per_dimension`."""
        each = [
            part.log_prob_per_dimension(value[..., np.asarray(at)])
            for part, at in zip(self.parts, self.columns, strict=True)
        ]
        return self.in_order(each)

    def in_order(self, values: list[Array]) -> Array:
        """Values of the parts side by side, `[..., D]`."""
        order = np.argsort([number for at in self.columns for number in at])
        return jnp.concatenate(values, axis=-1)[..., order]
