"""Counts of a given total, shared among dimensions: the multinomial distribution."""

from dataclasses import dataclass, replace
from typing import ClassVar

import jax
import jax.numpy as jnp

from vae_jax.distributions.deviance import (
    HALF_LOG_2PI,
    deviance,
    log_poisson,
    stirling_error,
)
from vae_jax.distributions.support import COUNTS
from vae_jax.prng import as_threefry
from vae_jax.types import Array, Distribution, Key


def log_prob(x: Array, logits: Array) -> Array:
    """Log-probability of counts given their total n in nats, over the last axis.

        log p(x|n) = log n! + sum_d [x_d log p_d - log x_d!]

    with p = softmax(logits): Poisson counts of means n p_d given that their total is n,
    which is how it stays exact in float32 for totals of a million.

    Args:
      x: counts, `[..., D]`; their sum is n.
      logits: `[..., D]` or anything that broadcasts with `x`.

    Returns:
      Log-probabilities, `[...]`; NaN for what is no count.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.distributions import multinomial
      >>> x = jnp.array([1.0, 1.0])
      >>> print(f"{multinomial.log_prob(x, jnp.zeros(2)):.4f}")  # log(1 / 2)
      -0.6931
    """
    x = COUNTS.nan_outside(jnp.asarray(x, logits.dtype))
    total = jnp.sum(x, axis=-1, keepdims=True)
    # Of nothing the log-probability is 0.
    some = jnp.where(total == 0, 1, total)
    log_mean = jnp.log(some) + jax.nn.log_softmax(logits, axis=-1)
    apart = jnp.sum(_log_poisson(x, log_mean), axis=-1)
    together = log_poisson(some[..., 0], some[..., 0])
    return jnp.where(total[..., 0] == 0, 0.0, apart - together)


def _log_poisson(count: Array, log_mean: Array) -> Array:
    """`deviance.log_poisson` for means that are no float, elementwise.

    Far from the mean the deviance has no cancellation, and its gradient overflows.
    """
    positive = jnp.where(count == 0, 1, count)
    log_ratio = jnp.log(positive) - log_mean
    is_near = jnp.abs(log_ratio) < 0.5
    near = jnp.where(is_near, jnp.exp(jnp.where(is_near, log_mean, 0.0)), positive)
    mean = jnp.exp(log_mean)
    far = positive * log_ratio + mean - positive
    off = jnp.where(
        is_near, deviance(near, positive / near, (positive - near) / near), far
    )
    scale = HALF_LOG_2PI + 0.5 * jnp.log(positive) + stirling_error(positive)
    return jnp.where(count == 0, -mean, -off - scale)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MultinomialDistribution(Distribution):
    """Counts given their total; log p(x) is of x given its own total.

    Attributes:
      logits: of the shares, `[..., D]`.
      total: n of draws and mean, `[]` or `[...]`.
    """

    logits: Array
    total: Array
    mean_is_exact = True
    is_reparameterizable: ClassVar[bool] = False

    @property
    def mean(self) -> Array:
        """N softmax(logits), `[..., D]`."""
        return self.total[..., None] * jax.nn.softmax(self.logits, axis=-1)

    def given_totals(self, x: Array) -> "MultinomialDistribution":
        """The same shares of the totals of `x`, `[..., D]`."""
        return replace(self, total=jnp.sum(x, axis=-1))

    def sample(self, key: Key, num_samples: int) -> Array:
        """Counts of total n, `[S, ..., D]`."""
        shape = (num_samples, *self.logits.shape)
        shares = jnp.broadcast_to(jax.nn.softmax(self.logits, axis=-1), shape)
        total = jnp.broadcast_to(jnp.round(self.total), shape[:-1])
        drawn = jax.random.multinomial(as_threefry(key), total, shares)
        return drawn.astype(self.logits.dtype)

    def log_prob(self, value: Array) -> Array:
        """Log-probability given the total of `value` in nats."""
        COUNTS.require(value)
        return log_prob(value, self.logits)
