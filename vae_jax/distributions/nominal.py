"""Independent categories without an order, coded 0, 1, ..., K - 1."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from vae_jax.distributions import categorical
from vae_jax.distributions.support import Support
from vae_jax.types import Array, Distribution, Key


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NominalDistribution(Distribution):
    """Independent categories, each v_d one of the codes 0 to K - 1.

        p(v) = prod_d softmax(logits_d)[v_d]

    Attributes:
      logits: `[..., D, K]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.distributions import NominalDistribution
      >>> p = NominalDistribution(jnp.zeros((1, 4)))
      >>> print(f"{p.log_prob(jnp.array([3.0])):.4f}")  # log(1 / 4)
      -1.3863
    """

    logits: Array
    has_entropy: ClassVar[bool] = True
    is_reparameterizable: ClassVar[bool] = False
    factorizes = True

    @property
    def mean(self) -> Array:
        """The likeliest code: categories have no mean, `[..., D]`."""
        return jnp.argmax(self.logits, axis=-1).astype(self.logits.dtype)

    def sample(self, key: Key, num_samples: int) -> Array:
        """Codes, `[S, ..., D]`."""
        logits = jnp.broadcast_to(self.logits, (num_samples, *self.logits.shape))
        return categorical.sample(logits, key).astype(logits.dtype)

    def log_prob(self, value: Array) -> Array:
        """Log-probability in nats, summed over D."""
        self._support.require(value)
        return jnp.sum(self.log_prob_per_dimension(value), axis=-1)

    def log_prob_per_dimension(self, value: Array) -> Array:
        """See `Distribution.log_prob_per_dimension`."""
        value = jnp.asarray(value, self.logits.dtype)
        # -1 is no category: NaN.
        code = jnp.where(self._support.contains(value), value, -1).astype(jnp.int32)
        return categorical.log_prob(code[..., None], self.logits[..., None, :])

    @property
    def _support(self) -> Support:
        return Support(0.0, self.logits.shape[-1] - 1, whole=True)

    def entropy(self) -> Array:
        """See `Distribution.entropy`."""
        return categorical.entropy(self.logits)
