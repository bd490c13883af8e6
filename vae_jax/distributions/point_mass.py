"""Point mass, a distribution without a density."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from vae_jax.types import Array, Distribution, Key


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PointMassDistribution(Distribution):
    """Point mass (Dirac delta).

    It has no density, so a Monte Carlo KL and importance weights do not exist. The KL
    is defined as 0, which turns the ELBO into the objective of an autoencoder.

    Attributes:
      mean: points, `[..., L]`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax.distributions import PointMassDistribution
      >>> print(PointMassDistribution(jnp.ones((1, 2))).sample(jax.random.key(0), 1))
      [[[1. 1.]]]
    """

    mean: Array
    has_density: ClassVar[bool] = False
    has_log_prob: ClassVar[bool] = False
    mean_is_exact = True

    def sample_and_log_prob(self, key: Key, num_samples: int) -> tuple[Array, Array]:
        """Return the points `[S, ..., L]`, and +inf `[S, ...]` as their log-density."""
        z = jnp.broadcast_to(self.mean, (num_samples, *self.mean.shape))
        return z, jnp.full(z.shape[:-1], jnp.inf, z.dtype)
