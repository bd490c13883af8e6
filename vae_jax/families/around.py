"""The part that families have in common which change another one."""

from dataclasses import dataclass

from vae_jax.types import Array, Family, Key, PyTree


@dataclass(frozen=True)
class Around(Family):
    """A family that is its base but for what a subclass changes.

    Attributes:
      base: the other family.
    """

    base: Family

    @property
    def hyperparameters(self) -> tuple[str, ...]:
        """Those of the base."""
        return self.base.hyperparameters

    def num_outputs(self, dim: int) -> int:
        """Those of the base."""
        return self.base.num_outputs(dim)

    def init(self, key: Key, *, dim: int) -> dict[str, PyTree]:
        """Parameters of the base."""
        return self.base.init(key, dim=dim)

    def encoder_inputs(self, params: PyTree, x: Array) -> Array:
        """Those of the base."""
        return self.base.encoder_inputs(params, x)

    def output_bias(self, data_mean: Array) -> Array:
        """That of the base."""
        return self.base.output_bias(data_mean)
