"""Families of p(x|z) for evenly spaced levels, such as 8-bit pixels."""

from dataclasses import dataclass

import jax.numpy as jnp

from vae_jax.distributions import (
    CategoricalDistribution,
    DiscretizedLogisticDistribution,
)
from vae_jax.distributions.support import Support
from vae_jax.families.bounds import bound_log_var
from vae_jax.options import require_at_least
from vae_jax.types import Array, Family, PyTree


@dataclass(frozen=True)
class Categorical(Family):
    """Family of independent categorical pixels, one category per level.

    Attributes:
      num_levels: n.

    Example:
      >>> from vae_jax import Categorical
      >>> Categorical(num_levels=17).num_outputs(dim=64)
      1088
    """

    num_levels: int = 256

    def __post_init__(self):
        require_at_least("num_levels", self.num_levels, 2)

    @property
    def support(self) -> Support:
        """The levels 0, 1 / (n - 1), ..., 1."""
        return Support(0.0, 1.0, self.num_levels)

    def num_outputs(self, dim: int) -> int:
        """One logit for each level of each pixel."""
        return self.num_levels * dim

    def build(self, params: PyTree, outputs: Array) -> CategoricalDistribution:
        """Build from logits `[..., n D]`, ordered by level."""
        return CategoricalDistribution(by_pixel(outputs, self.num_levels))

    def output_bias(self, data_mean: Array) -> Array:
        """Logits linear in the level with slope log-odds of the mean (approximate)."""
        clipped = jnp.clip(data_mean, 0.001, 0.999)
        log_odds = jnp.log(clipped) - jnp.log1p(-clipped)
        return jnp.outer(jnp.linspace(0, 1, self.num_levels), log_odds).ravel()


@dataclass(frozen=True)
class DiscretizedLogistic(Family):
    """Family of discretized logistic mixtures, Salimans et al. 2017.

    The channels of a color image are modelled as independent.

    Attributes:
      num_levels: n, 256 for 8 bits.
      num_components: K.

    Example:
      >>> from vae_jax import DiscretizedLogistic
      >>> DiscretizedLogistic(num_components=5).num_outputs(dim=784)
      11760
    """

    num_levels: int = 256
    num_components: int = 5

    def __post_init__(self):
        require_at_least("num_levels", self.num_levels, 2)
        require_at_least("num_components", self.num_components)

    @property
    def support(self) -> Support:
        """The levels 0, 1 / (n - 1), ..., 1."""
        return Support(0.0, 1.0, self.num_levels)

    def num_outputs(self, dim: int) -> int:
        """Logit, location and log-scale of each component of each pixel."""
        return 3 * self.num_components * dim

    def build(self, params: PyTree, outputs: Array) -> DiscretizedLogisticDistribution:
        """Split the decoder's outputs `[..., 3 K D]`; scales between e^-10 and e^10."""
        parts = by_pixel(outputs, 3 * self.num_components)
        logits, location, raw = jnp.split(parts, 3, axis=-1)
        log_scale = 0.5 * bound_log_var(raw)
        return DiscretizedLogisticDistribution(
            logits, location, log_scale, self.num_levels
        )

    def output_bias(self, data_mean: Array) -> Array:
        """Every component at the data mean, with a scale of about e^-2."""
        zero, every = jnp.zeros_like(data_mean), self.num_components
        parts = [zero] * every + [data_mean] * every + [zero - 4] * every
        return jnp.concatenate(parts)


def by_pixel(outputs: Array, num_parameters: int) -> Array:
    """Reshape outputs ordered by parameter, `[..., P D]`, to `[..., D, P]`.

    Args:
      outputs: decoder outputs, `[..., P D]`.
      num_parameters: P.

    Returns:
      The same values, `[..., D, P]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.families.levels import by_pixel
      >>> by_pixel(jnp.arange(4), 2).tolist()
      [[0, 2], [1, 3]]
    """
    by_parameter = outputs.reshape(*outputs.shape[:-1], num_parameters, -1)
    return jnp.moveaxis(by_parameter, -2, -1)
