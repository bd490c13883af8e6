"""Independent ordered categories, coded 0, 1, ..., K - 1: the cumulative logit."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from vae_jax.distributions.support import Support
from vae_jax.types import Array, Distribution, Key


def log_probs(location: Array, thresholds: Array, gaps: Array | None = None) -> Array:
    """Log-probabilities of all categories in nats.

        P(v <= k) = sigmoid(t_k - h)
        P(v = k) = sigmoid(u) - sigmoid(l) = sigmoid(u) sigmoid(-l) (1 - exp(l - u))

    with u = t_k - h and l = t_(k - 1) - h (McCullagh 1980, proportional odds). The last
    form has no cancellation.

    Args:
      location: h, `[..., D]`.
      thresholds: t, rising along the last axis, `[..., D, K - 1]`.
      gaps: differences of the thresholds, `[..., D, K - 2]`; None subtracts them, which
        cancels for a rare category.

    Returns:
      `[..., D, K]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.distributions import ordinal
      >>> found = ordinal.log_probs(jnp.zeros(1), jnp.array([[-1.0, 1.0]]))
      >>> [round(p, 4) for p in jnp.exp(found)[0].tolist()]
      [0.2689, 0.4621, 0.2689]
    """
    cut = thresholds - location[..., None]
    gaps = jnp.diff(thresholds, axis=-1) if gaps is None else gaps
    below = jax.nn.log_sigmoid(cut)
    above = jax.nn.log_sigmoid(-cut)
    between = below[..., 1:] + above[..., :-1] + jnp.log(-jnp.expm1(-gaps))
    return jnp.concatenate([below[..., :1], between, above[..., -1:]], axis=-1)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class OrdinalDistribution(Distribution):
    """Independent ordered categories, each v_d one of the codes k = 0 to K - 1.

        P(v_d = k) = sigmoid(t_k - h_d) - sigmoid(t_(k - 1) - h_d)

    Attributes:
      location: h, `[..., D]`.
      thresholds: t, rising, `[..., D, K - 1]`.
      gaps: differences of the thresholds, as in `log_probs`.
    """

    location: Array
    thresholds: Array
    gaps: Array | None = None
    mean_is_exact = True
    is_reparameterizable: ClassVar[bool] = False
    factorizes = True

    @property
    def mean(self) -> Array:
        """Mean of the codes, `[..., D]`: the number of thresholds that are passed."""
        cut = self.location[..., None] - self.thresholds
        return jnp.sum(jax.nn.sigmoid(cut), axis=-1)

    def sample(self, key: Key, num_samples: int) -> Array:
        """Codes, `[S, ..., D]`."""
        shape = (num_samples, *self.location.shape)
        noise = jax.random.logistic(key, shape, self.location.dtype)
        passed = (self.location + noise)[..., None] > self.thresholds
        return jnp.sum(passed, axis=-1).astype(self.location.dtype)

    def log_prob(self, value: Array) -> Array:
        """Log-probability in nats, summed over D."""
        self._support.require(value)
        return jnp.sum(self.log_prob_per_dimension(value), axis=-1)

    def log_prob_per_dimension(self, value: Array) -> Array:
        """See `Distribution.log_prob_per_dimension`."""
        value = jnp.asarray(value, self.location.dtype)
        each = log_probs(self.location, self.thresholds, self.gaps)
        inside = self._support.contains(value)
        code = jnp.where(inside, value, 0).astype(jnp.int32)
        shape = jnp.broadcast_shapes(each.shape[:-1], code.shape)
        found = jnp.take_along_axis(
            jnp.broadcast_to(each, (*shape, each.shape[-1])),
            jnp.broadcast_to(code, shape)[..., None],
            axis=-1,
        )[..., 0]
        return jnp.where(inside, found, jnp.nan)

    @property
    def _support(self) -> Support:
        return Support(0.0, self.thresholds.shape[-1], whole=True)
