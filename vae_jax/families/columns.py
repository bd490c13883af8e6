"""The family of p(x|z) for tables whose columns are of several kinds."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax.data.columns import Column
from vae_jax.distributions import ProductDistribution
from vae_jax.distributions.support import ColumnSupport
from vae_jax.families.bernoulli import Bernoulli
from vae_jax.families.counts import NegativeBinomial
from vae_jax.families.gaussian import Gaussian
from vae_jax.families.ordinal import Ordinal
from vae_jax.families.positive import LogNormal
from vae_jax.families.tables import Nominal, Standardized
from vae_jax.types import Array, Family, Key, PyTree


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

    @classmethod
    def of_table(cls, columns: Sequence[Column]) -> "Columns":
        """Return the product with the usual family for each kind of column.

        These are HI-VAE's (Nazabal et al. 2020, section 2.2), but for counts, which are
        negative binomials, and for real columns, whose variance the decoder does not
        predict.

        Args:
          columns: `columns` of a `data.Dataset`.

        Returns:
          A family, with the columns of one kind in one part.

        Raises:
          ValueError: no column, or one of another kind.

        Example:
          >>> from vae_jax import Columns, data
          >>> size = data.Column("size", "positive")
          >>> sex = data.Column("sex", "binary", ("f", "m"))
          >>> Columns.of_table([size, sex]).parts[1]
          (Bernoulli(), (1,))
        """
        groups: dict[Family, list[int]] = {}
        for number, column in enumerate(columns):
            groups.setdefault(_usual_family(column), []).append(number)
        return cls(tuple((family, tuple(at)) for family, at in groups.items()))

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


def _usual_family(column: Column) -> Family:
    """Return the family that suits the kind of a column."""
    match column.kind:
        case "real":
            return Standardized(Gaussian(learned_variance=True, per_dimension=True))
        case "positive":
            return LogNormal()
        case "count":
            return NegativeBinomial()
        case "binary":
            return Bernoulli()
        case "categorical":
            return Nominal(len(column.categories))
        case "ordinal":
            return Ordinal(len(column.categories))
    raise ValueError(
        f"columns must be of a table's values, got {column.name!r} of kind "
        f"{column.kind!r}"
    )
