"""Family of p(x|z) for data with missing values, coded NaN."""

from dataclasses import dataclass

import jax.numpy as jnp

from vae_jax.distributions import MaskedDistribution
from vae_jax.distributions.support import MaskedSupport
from vae_jax.families.around import Around
from vae_jax.families.exposure import exposure_of_rows
from vae_jax.types import Array, Distribution, PyTree


@dataclass(frozen=True)
class Masked(Around):
    """Family of the observed values: missing values are excluded from log p(x|z).

    Every bound is then one on log p(x_observed); the importance-weighted bound is MIWAE
    (Mattei & Frellsen 2019). The encoder input is 0 for a missing value, which is the
    mean of a `Standardized` column.

    Attributes:
      base: the family of complete data, with independent dimensions.
      shows_mask: append the mask to the encoder inputs: 1 for an observed and 0 for a
        missing value of each dimension.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax import Gaussian, Masked
      >>> x = jnp.array([[3.0, jnp.nan]])
      >>> Masked(Gaussian(), shows_mask=True).encoder_inputs({}, x).tolist()
      [[3.0, 0.0, 1.0, 0.0]]
    """

    shows_mask: bool = False

    @property
    def support(self) -> MaskedSupport:
        """Support of the base, and NaN."""
        return MaskedSupport(self.base.support)

    @property
    def takes_exposure(self) -> bool:
        """Whether the base does."""
        return self.base.takes_exposure

    @property
    def covers_unit_interval(self) -> bool:
        """Whether the base does."""
        return self.base.covers_unit_interval

    def build(self, params: PyTree, outputs: Array) -> Distribution:
        """Build the base's distribution, restricted to the observed dimensions.

        Raises:
          ValueError: the dimensions of the base are not independent.
        """
        built = self.base.build(params, outputs)
        if not built.factorizes:
            raise ValueError(
                "missing values require a likelihood of independent dimensions, got "
                f"{self.base!r}"
            )
        filler = self.base.support.filler(built.mean.shape[-1])
        return MaskedDistribution(built, jnp.asarray(filler, outputs.dtype))

    def encoder_inputs(self, params: PyTree, x: Array) -> Array:
        """Inputs of the base, 0 for missing values, and the mask if shown."""
        inputs = self.base.encoder_inputs(params, x)
        inputs = jnp.where(jnp.isnan(inputs), 0, inputs)
        if not self.shows_mask:
            return inputs
        return jnp.concatenate([inputs, (~jnp.isnan(x)).astype(x.dtype)], axis=-1)

    def start_at_data(self, params: PyTree, x: Array) -> tuple[PyTree, Array]:
        """Initialise the base at the observed values.

        A column without any has a value of the support in each row.
        """
        scale = exposure_of_rows(params, len(x)) if self.takes_exposure else 1.0
        # A value goes into the row of another example as a rate.
        filled = fill_by_quantiles(x / scale) * scale
        filler = jnp.asarray(self.base.support.filler(x.shape[-1]), x.dtype)
        filled = jnp.where(jnp.isnan(filled), filler, filled)
        return self.base.start_at_data(params, filled)


def fill_by_quantiles(x: Array) -> Array:
    """Replace m missing values of a column by m quantiles of its observed values.

        x_i = the observed value of rank floor((i + 1/2) count / m), i = 0 to m - 1

    The moments of a column stay near those of its observed values, whatever the order
    of the rows.

    Args:
      x: `[n, D]`, NaN where missing.

    Returns:
      `[n, D]`; NaN in columns without an observed value.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.families.missing import fill_by_quantiles
      >>> x = jnp.array([[7.0], [jnp.nan], [5.0], [jnp.nan]])
      >>> fill_by_quantiles(x)[:, 0].tolist()
      [7.0, 5.0, 5.0, 7.0]
    """
    missing = jnp.isnan(x)
    ascending = jnp.sort(x, axis=0)  # NaN comes last.
    turn = jnp.cumsum(missing, axis=0) - 0.5
    num_missing = jnp.sum(missing, axis=0)
    count = len(x) - num_missing
    rank = jnp.floor(turn * count / jnp.maximum(num_missing, 1)).astype(int)
    rank = jnp.clip(rank, 0, jnp.maximum(count - 1, 0))
    return jnp.where(missing, jnp.take_along_axis(ascending, rank, axis=0), x)
