"""The family of point masses, which makes a model an autoencoder."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from vae_jax.types import Array, Key, PyTree


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PointMassPosterior:
    """q(z|x) with all its mass at one point, for a batch.

    It has no density: a Monte Carlo KL and importance weights do not exist, and
    the KL is 0 by definition, which makes the ELBO an autoencoder's objective.

    Attributes:
      mean: the points, `[B, L]`.
    """

    mean: Array
    has_density: ClassVar[bool] = False
    mean_is_exact: ClassVar[bool] = True

    def sample_and_log_prob(self, key: Key, num_samples: int) -> tuple[Array, Array]:
        """The points `[S, B, L]`, and +inf `[S, B]` for the density they lack."""
        z = jnp.broadcast_to(self.mean, (num_samples, *self.mean.shape))
        return z, jnp.full(z.shape[:-1], jnp.inf, z.dtype)


@dataclass(frozen=True)
class PointMass:
    """The family of point masses: the model is an autoencoder.

    Example:
      >>> from vae_jax import PointMass
      >>> PointMass().num_outputs(latent_dim=20)
      20
    """

    hyperparameters: ClassVar[tuple[str, ...]] = ()
    latent_space: ClassVar[str] = "real"
    has_log_prob: ClassVar[bool] = False

    def num_outputs(self, latent_dim: int) -> int:
        """One number for each latent dimension."""
        return latent_dim

    def init(self, key: Key, *, latent_dim: int) -> dict[str, PyTree]:
        """No parameters of its own."""
        return {}

    def build(self, posterior_params: PyTree, outputs: Array) -> PointMassPosterior:
        """Takes the encoder's outputs `[B, L]` as the points."""
        return PointMassPosterior(outputs)
