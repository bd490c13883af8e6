"""Families of p(x|z) for tables: standardized, nominal and mixed columns.

The standardization of a column is a hyperparameter of the likelihood. It is therefore
saved with the model; x, draws and means are in the user's units; and log p(x) includes
the log-Jacobian.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax.distributions import (
    AffineDistribution,
    NominalDistribution,
    ProductDistribution,
)
from vae_jax.distributions.support import REAL, ColumnSupport
from vae_jax.families.around import Around
from vae_jax.families.codes import Codes
from vae_jax.families.levels import by_pixel
from vae_jax.types import Array, Distribution, Family, Key, PyTree


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
    scale = jnp.std(off, axis=0)
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
      ValueError: `base` has another support.

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


@dataclass(frozen=True)
class Columns(Family):
    """One family per group of table columns, HI-VAE (Nazabal et al. 2020).

        log p(x|z) = sum_k log p_k(x_k|z)

    over the groups k: a density for real columns, a probability for discrete ones. The
    names of group k's own parameters end in `_k`.

    Attributes:
      parts: pairs of a family and the indices of its columns. Every column occurs
        exactly once.

    Raises:
      ValueError: a column is missing or named twice, or a part takes an exposure.

    Example:
      >>> from vae_jax import Bernoulli, Columns, Nominal
      >>> Columns(((Bernoulli(), (0, 2)), (Nominal(3), (1,)))).num_outputs(dim=3)
      5
    """

    parts: tuple[tuple[Family, tuple[int, ...]], ...]

    def __post_init__(self):
        numbers = sorted(number for _, at in self.parts for number in at)
        if not numbers or numbers != list(range(len(numbers))):
            raise ValueError(
                f"parts must name every column from 0 on once, got {numbers}"
            )
        if any(part.takes_exposure for part, _ in self.parts):
            raise ValueError(
                "parts must take no exposure, which applies to all columns: use "
                f"Exposed(...) for the whole table, got {self!r}"
            )

    @property
    def covers_unit_interval(self) -> bool:
        """Whether all parts do."""
        return all(part.covers_unit_interval for part, _ in self.parts)

    @property
    def support(self) -> ColumnSupport:
        """Supports of the parts."""
        return ColumnSupport(tuple((part.support, at) for part, at in self.parts))

    @property
    def hyperparameters(self) -> tuple[str, ...]:
        """Hyperparameters of the parts."""
        return tuple(
            f"{name}_{index}"
            for index, (part, _) in enumerate(self.parts)
            for name in part.hyperparameters
        )

    def num_outputs(self, dim: int) -> int:
        """Outputs of the parts, concatenated."""
        self._require(dim)
        return sum(part.num_outputs(len(at)) for part, at in self.parts)

    def init(self, key: Key, *, dim: int) -> dict[str, PyTree]:
        """Own parameters of all parts."""
        self._require(dim)
        keys = jax.random.split(key, len(self.parts))
        return self._joined(
            [
                part.init(own, dim=len(at))
                for (part, at), own in zip(self.parts, keys, strict=True)
            ]
        )

    def build(self, params: PyTree, outputs: Array) -> ProductDistribution:
        """Split the decoder's outputs among the parts."""
        sizes = [part.num_outputs(len(at)) for part, at in self.parts]
        split = jnp.split(outputs, np.cumsum(sizes)[:-1], axis=-1)
        built = [
            part.build(own, piece)
            for (part, _), own, piece in zip(
                self.parts, self._own(params), split, strict=True
            )
        ]
        return ProductDistribution(tuple(built), tuple(at for _, at in self.parts))

    def encoder_inputs(self, params: PyTree, x: Array) -> Array:
        """Encoder inputs of all parts, concatenated."""
        inputs = [
            part.encoder_inputs(own, x[:, np.asarray(at)])
            for (part, at), own in zip(self.parts, self._own(params), strict=True)
        ]
        return jnp.concatenate(inputs, axis=-1)

    def start_at_data(self, params: PyTree, x: Array) -> tuple[PyTree, Array]:
        """Initialise each part at its columns."""
        self._require(x.shape[-1])
        started = [
            part.start_at_data(own, x[:, np.asarray(at)])
            for (part, at), own in zip(self.parts, self._own(params), strict=True)
        ]
        own, biases = zip(*started, strict=True)
        return self._joined(list(own)), jnp.concatenate(biases)

    def _require(self, dim: int) -> None:
        """Raise ValueError unless `dim` is the number of columns."""
        count = sum(len(at) for _, at in self.parts)
        if dim != count:
            raise ValueError(f"parts are of {count} columns, and the data have {dim}")

    def _joined(self, own: list[dict[str, PyTree]]) -> dict[str, PyTree]:
        return {
            f"{name}_{index}": entry
            for index, part in enumerate(own)
            for name, entry in part.items()
        }

    def _own(self, params: dict[str, PyTree]) -> list[dict[str, PyTree]]:
        return [
            {
                name.removesuffix(f"_{index}"): entry
                for name, entry in params.items()
                if name.endswith(f"_{index}")
            }
            for index in range(len(self.parts))
        ]
