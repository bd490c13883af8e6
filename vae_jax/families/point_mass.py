"""Point-mass family of q(z|x): a deterministic autoencoder."""

from dataclasses import dataclass
from typing import ClassVar

from vae_jax.distributions import PointMassDistribution
from vae_jax.types import Array, Family, PyTree


@dataclass(frozen=True)
class PointMass(Family):
    """Family of point masses: the model becomes a deterministic autoencoder.

    Example:
      >>> from vae_jax import PointMass
      >>> PointMass().num_outputs(dim=20)
      20
    """

    latent_space = "real"
    has_log_prob: ClassVar[bool] = False

    def num_outputs(self, dim: int) -> int:
        """One coordinate per latent dimension."""
        return dim

    def build(self, params: PyTree, outputs: Array) -> PointMassDistribution:
        """Build from the points `[B, L]`."""
        return PointMassDistribution(outputs)
