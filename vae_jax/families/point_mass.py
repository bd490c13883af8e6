"""The family of point masses, which makes a model an autoencoder."""

from dataclasses import dataclass
from typing import ClassVar

from vae_jax.distributions import PointMassDistribution
from vae_jax.types import Array, Family, PyTree


@dataclass(frozen=True)
class PointMass(Family):
    """The family of point masses: the model is an autoencoder.

    Example:
      >>> from vae_jax import PointMass
      >>> PointMass().num_outputs(dim=20)
      20
    """

    latent_space = "real"
    has_log_prob: ClassVar[bool] = False

    def num_outputs(self, dim: int) -> int:
        """One number for each latent dimension."""
        return dim

    def build(self, params: PyTree, outputs: Array) -> PointMassDistribution:
        """Takes the encoder's outputs `[B, L]` as the points."""
        return PointMassDistribution(outputs)
