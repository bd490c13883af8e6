"""Independent continuous Bernoulli variables on [0, 1], parameterized by logits.

    p(x) = C(l) exp(l x)
    C(l) = l / (exp(l) - 1)

(Loaiza-Ganem & Cunningham 2019, with l = log(lambda / (1 - lambda))). With h = l / 2,
the variable is uniform at h = 0, and log-normalizer and mean are even and odd functions
of h, computed from their power series near 0.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from vae_jax.distributions.support import UNIT_INTERVAL
from vae_jax.types import Array, Distribution, Key

# Below this |h|, three terms of the series are exact to float32 rounding.
_SMALL = 0.1


def log_prob(x: Array, logits: Array) -> Array:
    """Log-density of continuous Bernoulli variables in nats, over the last axis.

        log p(x) = sum_d [h_d (2 x_d - 1) - log(sinh(h_d) / h_d)]

    with h = logits / 2.

    Args:
      x: values in [0, 1], `[..., D]`.
      logits: log-odds of the parameter lambda, broadcasting with `x`.

    Returns:
      Log-densities, `[...]`; NaN for values outside [0, 1].

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.distributions import continuous_bernoulli
      >>> print(continuous_bernoulli.log_prob(jnp.array([0.5]), jnp.ones(1)).round(3))
      -0.041
    """
    return jnp.sum(_log_prob(x, logits), -1)


def _log_prob(x: Array, logits: Array) -> Array:
    """Log-density of each variable, `[..., D]`."""
    half = 0.5 * logits
    x = UNIT_INTERVAL.nan_outside(jnp.asarray(x, half.dtype))
    return half * (2 * x - 1) - _log_sinhc(half)


def mean(logits: Array) -> Array:
    """Mean of each continuous Bernoulli variable.

        E[x] = 1/2 + 1/2 (coth(h) - 1 / h)

    with h = logits / 2.

    Args:
      logits: log-odds of the parameter lambda, `[..., D]`.

    Returns:
      Means, `[..., D]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.distributions import continuous_bernoulli
      >>> print(continuous_bernoulli.mean(jnp.array([0.0])))
      [0.5]
    """
    half = 0.5 * logits
    small = jnp.abs(half) < _SMALL
    # The branch not taken must be finite as well, or the gradient is NaN.
    large = jnp.where(small, 1.0, half)
    series = half / 3 - half**3 / 45 + 2 * half**5 / 945
    return 0.5 + 0.5 * jnp.where(small, series, 1 / jnp.tanh(large) - 1 / large)


def sample(logits: Array, key: Key) -> Array:
    """Draw by inverting the distribution function, differentiable in the logits.

        x = log(1 + u (exp(l) - 1)) / l

    with u uniform on (0, 1), evaluated at -|l| to avoid overflow.

    Args:
      logits: log-odds of the parameter lambda, `[..., D]`.
      key: PRNG key, consumed once.

    Returns:
      Draws, `[..., D]`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax.distributions import continuous_bernoulli
      >>> continuous_bernoulli.sample(jnp.zeros((2, 3)), jax.random.key(0)).shape
      (2, 3)
    """
    u = jax.random.uniform(key, logits.shape, logits.dtype)
    small = jnp.abs(logits) < 1e-3
    falling = -jnp.abs(jnp.where(small, 1.0, logits))
    inverse = jnp.log1p(u * jnp.expm1(falling)) / falling
    x = jnp.where(logits > 0, 1 - inverse, inverse)
    # First-order expansion in the logit around the uniform variable.
    return jnp.where(small, u - 0.5 * logits * u * (u - 1), x)


def _log_sinhc(half: Array) -> Array:
    """log(sinh(h) / h), an even function that grows like |h|."""
    small = jnp.abs(half) < _SMALL
    size = jnp.abs(jnp.where(small, 1.0, half))
    square = jnp.square(half)
    series = square / 6 - square**2 / 180 + square**3 / 2835
    exact = size + jnp.log(-jnp.expm1(-2 * size)) - jnp.log(2 * size)
    return jnp.where(small, series, exact)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ContinuousBernoulliDistribution(Distribution):
    """Density of grey values on [0, 1].

        p(v) = prod_l C(logits_l) exp(logits_l v_l)

    with C as in the docstring of the module.

    Attributes:
      logits: log-odds of the parameter lambda, `[..., L]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.distributions import ContinuousBernoulliDistribution
      >>> print(ContinuousBernoulliDistribution(jnp.zeros(1)).mean)
      [0.5]
    """

    logits: Array
    mean_is_exact = True
    factorizes = True

    @property
    def mean(self) -> Array:
        """E[v], `[..., L]`; not sigmoid(logits)."""
        return mean(self.logits)

    def sample(self, key: Key, num_samples: int) -> Array:
        """See `Distribution.sample`; reparameterized, in [0, 1]."""
        shape = (num_samples, *self.logits.shape)
        return sample(jnp.broadcast_to(self.logits, shape), key)

    def log_prob(self, value: Array) -> Array:
        """See `Distribution.log_prob`."""
        UNIT_INTERVAL.require(value)
        return log_prob(value, self.logits)

    def log_prob_per_dimension(self, value: Array) -> Array:
        """See `Distribution.log_prob_per_dimension`."""
        return _log_prob(value, self.logits)
