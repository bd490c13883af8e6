"""Families of p(x|z) for tables: standardized and nominal columns.

The standardization of a column is a hyperparameter of the likelihood. It is therefore
saved with the model; x, draws and means are in the user's units; and log p(x) includes
the log-Jacobian.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from vae_jax.distributions import (
    AffineDistribution,
    NominalDistribution,
)
from vae_jax.distributions.support import REAL
from vae_jax.families.around import Around
from vae_jax.families.codes import Codes
from vae_jax.families.levels import by_pixel
from vae_jax.types import Array, Distribution, Key, PyTree


def moments(x: Array) -> dict[str, Array]:
    """Mean and log standard deviation of each column, 0 for a constant column.

    Args:
      x: `[n, D]`.

    Returns:
      `shift` and `log_scale`, `[D]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.families.tables import moments
      >>> moments(jnp.array([[1.0, 5.0], [3.0, 5.0]]))["log_scale"].tolist()
      [0.0, 0.0]
    """
    # Subtracting the first row makes the mean of a constant column exact; its rounding
    # error would otherwise be taken for the standard deviation.
    off = x - x[:1]
    # float32 cannot hold the squares of very small and very large values.
    largest = jnp.max(jnp.abs(off), axis=0)
    unit = jnp.where(largest > 0, largest, 1)
    scale = unit * jnp.std(off / unit, axis=0)
    log_scale = jnp.log(jnp.where(scale > 0, scale, 1))
    return {"shift": x[0] + jnp.mean(off, axis=0), "log_scale": log_scale}


@dataclass(frozen=True)
class Standardized(Around):
    """A family of real numbers applied to standardized columns.

        log p(x) = log p_base((x - shift) / scale) - sum_d log scale_d

    The hyperparameters shift and log_scale are set by `init(x=...)` from the mean and
    standard deviation of the data.

    Attributes:
      base: a family whose support is all real numbers, such as `Gaussian()`.

    Raises:
      ValueError: `base` has another support, or is standardized.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax import Gaussian, ModelSpec, Standardized, generate, init
      >>> spec = ModelSpec(likelihood=Standardized(Gaussian()), data_shape=(1,))
      >>> x = jnp.array([[1000.0], [3000.0]])
      >>> params = init(spec, jax.random.key(0), x=x)
      >>> print(params.likelihood["shift"], params.likelihood["log_scale"])
      [2000.] [6.9077554]
    """

    support = REAL
    covers_unit_interval = False

    def __post_init__(self):
        if self.base.support != REAL:
            raise ValueError(
                "base must be a family of all real numbers, got "
                f"{self.base!r} of {self.base.support}"
            )
        if "shift" in self.base.hyperparameters:
            raise ValueError(f"{self.base!r} is standardized already: use it as it is")

    @property
    def hyperparameters(self) -> tuple[str, ...]:
        """Hyperparameters of the base, `shift` and `log_scale`."""
        return (*self.base.hyperparameters, "shift", "log_scale")

    def init(self, key: Key, *, dim: int) -> dict[str, PyTree]:
        """Own parameters of the base, and `shift` and `log_scale` = 0, `[D]`."""
        zero = jnp.zeros(dim, jnp.float32)
        return self.base.init(key, dim=dim) | {"shift": zero, "log_scale": zero}

    def build(self, params: PyTree, outputs: Array) -> Distribution:
        """Build the base's distribution, in the units of the data."""
        base = self.base.build(params, outputs)
        return AffineDistribution(base, params["shift"], params["log_scale"])

    def encoder_inputs(self, params: PyTree, x: Array) -> Array:
        """Encoder inputs of the base at the standardized columns."""
        x = (x - params["shift"]) * jnp.exp(-params["log_scale"])
        return self.base.encoder_inputs(params, x)

    def output_bias(self, data_mean: Array) -> Array:
        """Output bias of the base at mean 0, that of standardized data."""
        return self.base.output_bias(jnp.zeros_like(data_mean))

    def start_at_data(self, params: PyTree, x: Array) -> tuple[PyTree, Array]:
        """Initialise shift and scale at the data, the base at standardized data."""
        found = moments(x)
        x = (x - found["shift"]) * jnp.exp(-found["log_scale"])
        params, bias = self.base.start_at_data(params, x)
        # A convolution's channel has one scale, repeated at all positions.
        repeats = params["shift"].size // x.shape[-1]
        return params | {k: jnp.tile(v, repeats) for k, v in found.items()}, bias


@dataclass(frozen=True)
class Nominal(Codes):
    """Family of independent unordered categories, coded 0 to K - 1.

    The encoder inputs are the one-hot codes. `init(x=...)` starts at the category
    frequencies of the data; otherwise the initial probabilities are uniform.

    Attributes:
      num_categories: K.

    Raises:
      ValueError: K below 2.

    Example:
      >>> from vae_jax import Nominal
      >>> Nominal(num_categories=3).num_outputs(dim=2)
      6
    """

    def num_outputs(self, dim: int) -> int:
        """One logit for each category of each dimension."""
        return self.num_categories * dim

    def build(self, params: PyTree, outputs: Array) -> NominalDistribution:
        """Build from logits `[..., K D]`, ordered by category."""
        return NominalDistribution(by_pixel(outputs, self.num_categories))

    def encoder_inputs(self, params: PyTree, x: Array) -> Array:
        """One-hot codes, `[B, D K]`; NaN where x is NaN."""
        codes = x.astype(jnp.int32)
        indicators = jax.nn.one_hot(codes, self.num_categories, dtype=x.dtype)
        indicators = jnp.where(jnp.isnan(x)[..., None], jnp.nan, indicators)
        return indicators.reshape(len(x), -1)

    def start_at_data(self, params: PyTree, x: Array) -> tuple[PyTree, Array]:
        """Log frequencies of the categories, with 0.5 added to each count."""
        codes = jnp.arange(self.num_categories, dtype=x.dtype)
        counts = jnp.sum(x == codes[:, None, None], axis=1)
        return params, jnp.log((counts + 0.5) / (len(x) + 0.5 * len(codes))).ravel()
