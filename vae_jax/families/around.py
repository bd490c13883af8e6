"""Base class of families that modify another family."""

from dataclasses import dataclass

from vae_jax.types import Array, Family, Key, PyTree


@dataclass(frozen=True)
class Around(Family):
    """A wrapper that delegates to `base` whatever a subclass does not override.

    Attributes:
      base: the wrapped family.
    """

    base: Family

    @property
    def hyperparameters(self) -> tuple[str, ...]:
        """Hyperparameters of the base."""
        return self.base.hyperparameters

    def num_outputs(self, dim: int) -> int:
        """Number of outputs of the base."""
        return self.base.num_outputs(dim)

    def init(self, key: Key, *, dim: int) -> dict[str, PyTree]:
        """Initialise the base's own parameters."""
        return self.base.init(key, dim=dim)

    def encoder_inputs(self, params: PyTree, x: Array) -> Array:
        """Encoder inputs of the base."""
        return self.base.encoder_inputs(params, x)

    def output_bias(self, data_mean: Array) -> Array:
        """Output bias of the base."""
        return self.base.output_bias(data_mean)
