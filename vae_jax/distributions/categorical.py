"""Categorical distribution, parameterized by logits."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from vae_jax.distributions.rounding import without_negative
from vae_jax.distributions.support import Support
from vae_jax.types import Array, Distribution, Key


def log_prob(value: Array, logits: Array) -> Array:
    """Log-probability of independent categories in nats, summed over the last axis.

        log p(v) = sum_d (logits_d[v_d] - log(sum_k exp(logits_d[k])))

    Args:
      value: categories as integers from 0 to K - 1, `[..., D]`.
      logits: unnormalised log-probabilities, `[..., D, K]`; the leading axes broadcast.

    Returns:
      `[...]`; NaN for an invalid category.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.distributions import categorical
      >>> print(categorical.log_prob(jnp.array([1]), jnp.zeros((1, 2))).round(6))
      -0.693147
    """
    return jnp.sum(_log_prob(value, logits), axis=-1)


def _log_prob(value: Array, logits: Array) -> Array:
    """Log-probability of each category, `[..., D]`."""
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    shape = jnp.broadcast_shapes(value.shape, logits.shape[:-1])
    log_probs = jnp.broadcast_to(log_probs, (*shape, logits.shape[-1]))
    exists = (value >= 0) & (value < logits.shape[-1])
    value = jnp.broadcast_to(jnp.where(exists, value, 0), shape)[..., None]
    chosen = jnp.take_along_axis(log_probs, value, axis=-1)[..., 0]
    # Multiply instead of `where`, so that the gradient is NaN as well.
    return chosen * jnp.where(exists, 1.0, jnp.nan)


def sample(logits: Array, key: Key) -> Array:
    """Draw a category for each entry, as an integer.

    Args:
      logits: `[..., D, K]`.
      key: PRNG key, consumed once.

    Returns:
      Integers from 0 to K - 1, `[..., D]`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax.distributions import categorical
      >>> categorical.sample(jnp.zeros((4, 3, 5)), jax.random.key(0)).shape
      (4, 3)
    """
    return jax.random.categorical(key, logits)


def entropy(logits: Array) -> Array:
    """Entropy of independent categories in nats, summed over the second to last axis.

        H = -sum_d sum_k p_dk log p_dk

    with p_d = softmax(logits_d).

    Args:
      logits: `[..., D, K]`.

    Returns:
      `[...]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.distributions import categorical
      >>> print(categorical.entropy(jnp.zeros((1, 2))).round(6))
      0.693147
    """
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    return -jnp.sum(_times_probability(log_probs, log_probs), axis=(-2, -1))


def kl_divergence(logits_0: Array, logits_1: Array) -> Array:
    """KL(p_0 || p_1) of independent categories in nats, summed over dimensions.

        KL(p_0 || p_1) = sum_d sum_k p_0_dk (log p_0_dk - log p_1_dk)

    with p_0 = softmax(logits_0) and p_1 = softmax(logits_1).

    Args:
      logits_0: logits of p_0, `[..., D, K]`.
      logits_1: logits of p_1, `[..., D, K]`.

    Returns:
      `[...]`, non-negative.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.distributions import categorical
      >>> print(categorical.kl_divergence(jnp.ones((1, 2)), jnp.zeros((1, 2))))
      0.0
    """
    log_probs = jax.nn.log_softmax(logits_0, axis=-1)
    difference = log_probs - jax.nn.log_softmax(logits_1, axis=-1)
    divergence = jnp.sum(_times_probability(log_probs, difference), axis=(-2, -1))
    return without_negative(divergence)


def _times_probability(log_probs: Array, values: Array) -> Array:
    """Return p v, and 0 if p is 0 and v infinite; the gradient is not NaN either."""
    possible = log_probs > -jnp.inf
    probability = jnp.exp(log_probs)
    return probability * jnp.where(possible, values, 0)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CategoricalDistribution(Distribution):
    """Independent categories.

        p(v) = prod_l softmax(logits_l)[v_l (n - 1)]

    Each v_l is one of n evenly spaced levels of [0, 1].

    Attributes:
      logits: unnormalised log-probabilities, `[..., L, n]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.distributions import CategoricalDistribution
      >>> print(CategoricalDistribution(jnp.zeros((2, 17))).mean.round(6))
      [0.5 0.5]
    """

    logits: Array
    has_entropy: ClassVar[bool] = True
    mean_is_exact = True
    is_reparameterizable: ClassVar[bool] = False
    factorizes = True

    @property
    def mean(self) -> Array:
        """E[v], `[..., L]`."""
        values = jnp.linspace(0, 1, self.logits.shape[-1], dtype=self.logits.dtype)
        return jax.nn.softmax(self.logits, axis=-1) @ values

    def sample(self, key: Key, num_samples: int) -> Array:
        """See `Distribution.sample`; levels of [0, 1]."""
        logits = jnp.broadcast_to(self.logits, (num_samples, *self.logits.shape))
        return sample(logits, key).astype(logits.dtype) / (logits.shape[-1] - 1)

    def log_prob(self, value: Array) -> Array:
        """See `Distribution.log_prob`."""
        Support(0.0, 1.0, self.logits.shape[-1]).require(value)
        return jnp.sum(self.log_prob_per_dimension(value), axis=-1)

    def log_prob_per_dimension(self, value: Array) -> Array:
        """See `Distribution.log_prob_per_dimension`."""
        num_levels = self.logits.shape[-1]
        support = Support(0.0, 1.0, num_levels)
        value = jnp.asarray(value, self.logits.dtype)
        # -1 is an invalid category and gives NaN.
        level = jnp.where(
            support.contains(value), jnp.round(value * (num_levels - 1)), -1
        )
        return _log_prob(level.astype(jnp.int32), self.logits)

    def entropy(self) -> Array:
        """See `Distribution.entropy`."""
        return entropy(self.logits)
