"""Independent beta values, parameterized by the mean's log-odds and a concentration."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from vae_jax.distributions.deviance import HALF_LOG_2PI, deviance, stirling_error
from vae_jax.distributions.support import FRACTIONS
from vae_jax.types import Array, Distribution, Key


def log_prob(x: Array, logits: Array, concentration: Array) -> Array:
    """Log-density of independent beta values in nats, over the last axis.

        p(x) = prod_d 1 / B(a_d, b_d) x_d^(a_d - 1) (1 - x_d)^(b_d - 1)
        B(a, b) = (Gamma(a) Gamma(b)) / Gamma(a + b)

    with n = a + b the concentration and a / n = sigmoid(logits) the mean. Computed from
    Stirling's errors, and the deviances of a from n x and of b from n (1 - x), as of a
    binomial (Loader 2000).

    Args:
      x: fractions, `[..., D]`, between 0 and 1.
      logits: log(a / b), `[..., D]` or anything that broadcasts with `x`.
      concentration: n, positive, likewise.

    Returns:
      Log-densities, `[...]`; NaN for 0, 1 and what is beyond.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.distributions import beta
      >>> x, zero = jnp.array([0.3]), jnp.zeros(1)
      >>> print(f"{abs(beta.log_prob(x, zero, zero + 2)):.4f}")  # uniform
      0.0000
    """
    return jnp.sum(_log_probs(x, logits, concentration), axis=-1)


def _log_probs(x: Array, logits: Array, concentration: Array) -> Array:
    """Elementwise log-density."""
    x = FRACTIONS.nan_outside(jnp.asarray(x, logits.dtype))
    n, rest = concentration, 1 - x
    shares = jax.nn.sigmoid(logits), jax.nn.sigmoid(-logits)
    a, b = n * shares[0], n * shares[1]
    # Of the two differences the one of the smaller numbers is exact.
    difference = jnp.where(x < 0.5, shares[0] - x, rest - shares[1])
    log_shares = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    deviances = n * (
        _unit_deviance(x, shares[0], log_shares[0], difference)
        + _unit_deviance(rest, shares[1], log_shares[1], -difference)
    )
    errors = stirling_error(n) - stirling_error(a) - stirling_error(b)
    scale = 0.5 * (jnp.log(a) + jnp.log(shares[1])) - HALF_LOG_2PI
    return errors - deviances + scale - jnp.log(x) - jnp.log(rest)


def _unit_deviance(
    part: Array, share: Array, log_share: Array, difference: Array
) -> Array:
    """Deviance of a share from a part of 1, with the difference share - part.

    Far from the share the direct form has no cancellation, and the ratio overflows.
    """
    log_ratio = log_share - jnp.log(part)
    is_near = jnp.abs(log_ratio) < 0.5
    near = jnp.where(is_near, part, 1.0)
    off_near = deviance(near, share / near, difference / near)
    off_far = share * jnp.where(is_near, 0.0, log_ratio) + part - share
    return jnp.where(is_near, off_near, off_far)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BetaDistribution(Distribution):
    """Independent beta values of mean m = sigmoid(logits) and concentration n.

        p(x) = prod_d Beta(x_d; n_d m_d, n_d (1 - m_d))

    Attributes:
      logits: log-odds of the mean, `[..., D]`.
      concentration: n = a + b, positive, what broadcasts with it.
    """

    logits: Array
    concentration: Array
    mean_is_exact = True
    is_reparameterizable: ClassVar[bool] = True
    factorizes = True

    @property
    def mean(self) -> Array:
        """A / n, `[..., D]`."""
        return jax.nn.sigmoid(self.logits)

    def sample(self, key: Key, num_samples: int) -> Array:
        """See `Distribution.sample`; reparameterized, within the support."""
        shape = (num_samples, *self.logits.shape)
        n = jnp.broadcast_to(self.concentration, shape)
        keys = jax.random.split(key)
        log_odds = [
            jax.random.loggamma(own, n * jax.nn.sigmoid(sign * self.logits), shape)
            for own, sign in zip(keys, (1, -1), strict=True)
        ]
        drawn = jax.nn.sigmoid(log_odds[0] - log_odds[1]).astype(self.logits.dtype)
        return jnp.clip(drawn, FRACTIONS.low, FRACTIONS.high)

    def log_prob(self, value: Array) -> Array:
        """Log-density in nats, summed over D."""
        FRACTIONS.require(value)
        return log_prob(value, self.logits, self.concentration)

    def log_prob_per_dimension(self, value: Array) -> Array:
        """See `Distribution.log_prob_per_dimension`."""
        return _log_probs(value, self.logits, self.concentration)
