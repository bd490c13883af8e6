"""Mixtures of distributions of the same class."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from vae_jax.types import Array, Distribution, Key


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MixtureDistribution(Distribution):
    """Mixture of K distributions, a batch of one.

        p(z) = sum_k w_k p_k(z)

    Attributes:
      log_weights: normalised log w_k, `[K]`.
      components: p_k, a batch of K distributions.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.distributions import DiagonalGaussianDistribution
      >>> from vae_jax.distributions import MixtureDistribution
      >>> components = DiagonalGaussianDistribution(*jnp.zeros((2, 3, 2)))
      >>> mixture = MixtureDistribution(jnp.log(jnp.ones(3) / 3), components)
      >>> print(f"{mixture.log_prob(jnp.zeros((1, 1, 2))).item():.6f}")
      -1.837877
    """

    log_weights: Array
    components: Distribution
    is_reparameterizable: ClassVar[bool] = False

    @property
    def mean_is_exact(self) -> bool:
        """Whether the means of the components are exact."""
        return self.components.mean_is_exact

    @property
    def mean(self) -> Array:
        """Mean sum_k w_k E_k[v], `[1, L]`."""
        self._require_batch()
        return (jnp.exp(self.log_weights) @ self.components.mean)[None]

    def sample(self, key: Key, num_samples: int) -> Array:
        """See `Distribution.sample`; draws a component, then a sample from it.

        Raises:
          ValueError: an array of the components lacks the leading component axis.
        """
        self._require_batch()
        component_key, noise_key = jax.random.split(key)
        component = jax.random.categorical(
            component_key, self.log_weights, shape=(num_samples,)
        )
        # Arrays shared by all components have a leading axis of size 1.
        chosen = jax.tree.map(
            lambda leaf: leaf[jnp.minimum(component, leaf.shape[0] - 1)],
            self.components,
        )
        return chosen.sample(noise_key, 1)[0][:, None]

    def _require_batch(self) -> None:
        """Raise ValueError if an array lacks the leading component axis."""
        count = self.log_weights.shape[0]
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.components):
            if leaf.ndim < 2 or leaf.shape[0] not in (1, count):
                name = f"components{jax.tree_util.keystr(path)}"
                raise ValueError(
                    f"{name} must lead with the axis of the {count} components, "
                    f"[{count}, ...], or [1, ...] if they share it, got shape "
                    f"{list(leaf.shape)}"
                )

    def log_prob(self, value: Array) -> Array:
        """See `Distribution.log_prob`.

        Raises:
          ValueError: the components have no density at a given point.
        """
        if not self.components.has_log_prob:
            raise ValueError(
                "a mixture of densities needs log_prob of its components, but "
                f"{type(self.components).__name__} has no log_prob"
            )
        points = value.reshape(-1, 1, value.shape[-1])
        shape = (len(points), self.log_weights.shape[0], value.shape[-1])
        each = self.components.log_prob(jnp.broadcast_to(points, shape))
        mixture = jax.nn.logsumexp(each + self.log_weights, axis=-1)
        return mixture.reshape(value.shape[:-1])
