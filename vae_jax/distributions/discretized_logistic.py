"""Mixture of logistics, discretized to evenly spaced levels of [0, 1].

Salimans, Karpathy, Chen & Kingma 2017, section 2.1, for a single channel. A level has
the probability mass of the interval around it; the first and the last interval extend
to infinity. Values are therefore probabilities of, for example, 8-bit pixels rather
than densities.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import jax
import jax.numpy as jnp

from vae_jax.distributions.support import Support
from vae_jax.types import Array, Distribution, Key


def log_prob(
    value: Array, logits: Array, mean: Array, log_scale: Array, *, num_levels: int
) -> Array:
    """Log-probability of levels in nats, summed over the last axis.

        P(v) = prod_d sum_k w_k [F((v_d + h - m_k) / s_k) - F((v_d - h - m_k) / s_k)]

    with the mixture w, m, s of dimension d, F the sigmoid, h = 1 / (2 (n - 1)), and the
    intervals at 0 and 1 extended to infinity (Salimans, Karpathy, Chen & Kingma 2017,
    eq. 2). F(b) - F(a) is computed as F(b) F(-a) (1 - exp(a - b)), which is accurate
    even if both are near 0 or near 1.

    Args:
      value: levels / (n - 1), in [0, 1], `[..., D]`; values within a tenth of a step
        are rounded to the nearest level.
      logits: logits of the weights, `[..., D, K]`.
      mean: m, `[..., D, K]`.
      log_scale: log s, `[..., D, K]`.
      num_levels: number n of levels, 256 for 8 bits.

    Returns:
      `[...]`; NaN for a value that is not a level.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.distributions import discretized_logistic
      >>> one = jnp.full((1, 1), 0.5)
      >>> levels = jnp.array([[0.0], [1.0]])
      >>> log_prob = discretized_logistic.log_prob(levels, one, one, one, num_levels=2)
      >>> print(jnp.exp(log_prob))
      [0.5 0.5]
    """
    each = _log_prob(value, logits, mean, log_scale, num_levels=num_levels)
    return jnp.sum(each, axis=-1)


def _log_prob(
    value: Array, logits: Array, mean: Array, log_scale: Array, *, num_levels: int
) -> Array:
    """Log-probability of each level, `[..., D]`."""
    value = Support(0.0, 1.0, num_levels).nan_outside(value)
    # In float16 the edges between levels are off by up to a tenth of a level.
    value = jnp.asarray(value, mean.dtype)
    level = jnp.round(value * (num_levels - 1))[..., None]
    below = (level - 0.5) / (num_levels - 1)
    above = (level + 0.5) / (num_levels - 1)
    inverse_scale = jnp.exp(-log_scale)
    left, right = (below - mean) * inverse_scale, (above - mean) * inverse_scale
    first, last = level <= 0, level >= num_levels - 1
    log_up_to = jnp.where(last, 0.0, jax.nn.log_sigmoid(right))
    log_from = jnp.where(first, 0.0, jax.nn.log_sigmoid(-left))
    width = inverse_scale / (num_levels - 1)
    log_part = jnp.where(first | last, 0.0, jnp.log(-jnp.expm1(-width)))
    each = log_up_to + log_from + log_part + jax.nn.log_softmax(logits, axis=-1)
    return jax.nn.logsumexp(each, axis=-1)


def mean_level(
    logits: Array, mean: Array, log_scale: Array, *, num_levels: int
) -> Array:
    """Expectation of the levels, as numbers in [0, 1].

        E[v] = 1 / (n - 1) sum_(j = 1)^(n - 1) P(v >= j / (n - 1))

    Summed in a loop over levels.

    Args:
      logits: logits of the weights, `[..., D, K]`.
      mean: m, `[..., D, K]`.
      log_scale: log s, `[..., D, K]`.
      num_levels: number n of levels.

    Returns:
      `[..., D]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.distributions import discretized_logistic
      >>> zero = jnp.zeros((1, 1))
      >>> mean = discretized_logistic.mean_level(zero, zero + 0.5, zero, num_levels=256)
      >>> print(mean.round(6))
      [0.5]
    """
    weights = jax.nn.softmax(logits, axis=-1)
    inverse_scale = jnp.exp(-log_scale)

    def add(total: Array, level: Array) -> tuple[Array, None]:
        edge = (level - 0.5) / (num_levels - 1)
        exceeds = jax.nn.sigmoid((mean - edge) * inverse_scale)
        return total + jnp.sum(weights * exceeds, axis=-1), None

    levels = jnp.arange(1, num_levels, dtype=mean.dtype)
    total, _ = jax.lax.scan(add, jnp.zeros(mean.shape[:-1], mean.dtype), levels)
    return total / (num_levels - 1)


def sample(
    logits: Array, mean: Array, log_scale: Array, key: Key, *, num_levels: int
) -> Array:
    """Draw levels, as numbers in [0, 1].

    Args:
      logits: logits of the weights, `[..., D, K]`.
      mean: m, `[..., D, K]`.
      log_scale: log s, `[..., D, K]`.
      key: PRNG key, consumed once.
      num_levels: number n of levels.

    Returns:
      Levels / (n - 1), `[..., D]`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax.distributions import discretized_logistic
      >>> zero, key = jnp.zeros((3, 1)), jax.random.key(0)
      >>> discretized_logistic.sample(zero, zero, zero, key, num_levels=256).shape
      (3,)
    """
    component_key, noise_key = jax.random.split(key)
    component = jax.random.categorical(component_key, logits)[..., None]
    location, log_spread = (
        jnp.take_along_axis(leaf, component, axis=-1)[..., 0]
        for leaf in (mean, log_scale)
    )
    noise = jax.random.logistic(noise_key, location.shape, location.dtype)
    value = location + jnp.exp(log_spread) * noise
    level = jnp.round(jnp.clip(value, 0, 1) * (num_levels - 1))
    return level / (num_levels - 1)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DiscretizedLogisticDistribution(Distribution):
    """Independent discretized logistic mixtures.

    Attributes:
      logits: logits of the component weights, `[..., L, K]`.
      location: locations of the components, `[..., L, K]`.
      log_scale: log-scales of the components, `[..., L, K]`.
      num_levels: number n of levels; static.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.distributions import DiscretizedLogisticDistribution
      >>> half = jnp.full((2, 1), 0.5)
      >>> print(DiscretizedLogisticDistribution(half, half, half, 256).mean.round(6))
      [0.5 0.5]
    """

    logits: Array
    location: Array
    log_scale: Array
    num_levels: int = field(metadata={"static": True})
    mean_is_exact = True
    is_reparameterizable: ClassVar[bool] = False
    factorizes = True

    def _parts(self) -> tuple[Array, Array, Array]:
        return self.logits, self.location, self.log_scale

    @property
    def mean(self) -> Array:
        """E[v], `[..., L]`."""
        return mean_level(*self._parts(), num_levels=self.num_levels)

    def sample(self, key: Key, num_samples: int) -> Array:
        """See `Distribution.sample`; levels of [0, 1]."""
        parts = [
            jnp.broadcast_to(part, (num_samples, *part.shape)) for part in self._parts()
        ]
        return sample(*parts, key=key, num_levels=self.num_levels)

    def log_prob(self, value: Array) -> Array:
        """See `Distribution.log_prob`."""
        Support(0.0, 1.0, self.num_levels).require(value)
        return log_prob(value, *self._parts(), num_levels=self.num_levels)

    def log_prob_per_dimension(self, value: Array) -> Array:
        """See `Distribution.log_prob_per_dimension`."""
        return _log_prob(value, *self._parts(), num_levels=self.num_levels)
