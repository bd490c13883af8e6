"""The distribution of one value, which has no density."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from vae_jax.types import Array, Distribution, Key


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PointMassDistribution(Distribution):
    """All the mass at one point.

    It has no density: a Monte Carlo KL and importance weights do not exist, and
    the KL is 0 by definition, which makes the ELBO an autoencoder's objective.

    Attributes:
      mean: the points, `[..., L]`.

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
        """The points `[S, ..., L]`, and +inf `[S, ...]` for the density they lack."""
        z = jnp.broadcast_to(self.mean, (num_samples, *self.mean.shape))
        return z, jnp.full(z.shape[:-1], jnp.inf, z.dtype)
