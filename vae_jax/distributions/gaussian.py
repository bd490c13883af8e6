"""Gaussian densities with diagonal covariance, parameterized by the log-variance.

The log-variance is unconstrained, so any network output gives a valid density. Kingma &
Welling 2014, appendix B.
"""

from dataclasses import dataclass
from typing import ClassVar

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from vae_jax.types import Array, Distribution, Key

LOG_2PI = 1.8378770664093453


def diagonal_log_prob(value: Array, mean: ArrayLike, log_var: Array) -> Array:
    """Log-density of a diagonal Gaussian in nats, summed over the last axis.

        log N(v; m, s^2) = -1/2 sum_d [(v_d - m_d)^2 / s_d^2 + log s_d^2 + log(2 pi)]

    with log s^2 = `log_var`.

    Args:
      value: points, `[..., L]`.
      mean: means, `[..., L]`, broadcasting with `value`.
      log_var: log-variances, broadcasting with `value`.

    Returns:
      Log-densities, `[...]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.distributions import gaussian
      >>> zero = jnp.zeros(2)
      >>> print(f"{gaussian.diagonal_log_prob(zero, zero, zero):.6f}")
      -1.837877
    """
    squares = jnp.square(value - mean) * jnp.exp(-log_var)
    return -0.5 * jnp.sum(squares + log_var + LOG_2PI, axis=-1)


def diagonal_sample(
    mean: Array, log_var: Array, key: Key, *, num_samples: int = 1
) -> Array:
    """Draw from a diagonal Gaussian, differentiably in `mean` and `log_var`.

        z = mean + exp(log_var / 2) * eps with eps ~ N(0, I)

    (Kingma & Welling 2014, section 2.4).

    Args:
      mean: means, `[..., L]`.
      log_var: log-variances, the same shape.
      key: PRNG key, consumed once.
      num_samples: number S of draws.

    Returns:
      Samples `[S, ..., L]`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax.distributions import gaussian
      >>> zero = jnp.zeros((5, 2))
      >>> gaussian.diagonal_sample(zero, zero, jax.random.key(0), num_samples=3).shape
      (3, 5, 2)
    """
    chex.assert_equal_shape([mean, log_var])
    noise = jax.random.normal(key, (num_samples, *mean.shape), mean.dtype)
    return mean + jnp.exp(0.5 * log_var) * noise


def diagonal_kl_divergence(
    mean_0: Array, log_var_0: Array, mean_1: Array, log_var_1: Array
) -> Array:
    """KL(N_0 || N_1) of diagonal Gaussians in nats, summed over the last axis.

        KL = 1/2 sum_d [v_0 / v_1 - 1 - log(v_0 / v_1) + (m_0 - m_1)^2 / v_1]

    with the means m and variances v of dimension d. With r = log v_0 - log v_1, the
    first three terms are computed as expm1(r) - r, which is accurate for nearly equal
    variances.

    Args:
      mean_0: means of N_0, `[..., L]`.
      log_var_0: log-variances of N_0.
      mean_1: means of N_1, broadcasting with those of N_0.
      log_var_1: log-variances of N_1.

    Returns:
      Divergences, `[...]`, non-negative.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.distributions import gaussian
      >>> one, zero = jnp.ones(1), jnp.zeros(1)
      >>> print(gaussian.diagonal_kl_divergence(one, zero, zero, zero))
      0.5
    """
    log_ratio = log_var_0 - log_var_1
    squares = jnp.square(mean_0 - mean_1) * jnp.exp(-log_var_1)
    return 0.5 * jnp.sum(jnp.expm1(log_ratio) - log_ratio + squares, axis=-1)


def diagonal_kl_to_standard_normal(mean: Array, log_var: Array) -> Array:
    """KL(N(mean, diag(exp(log_var))) || N(0, I)) in nats, summed over the last axis.

        KL = 1/2 sum_d [exp(log_var_d) + mean_d^2 - 1 - log_var_d]

    (Kingma & Welling 2014, eq. 10 and appendix B). Some lecture notes print `log_var`
    instead of `exp(log_var)`; the variance then cancels, and the "divergence" of
    N(0, I) from itself is -1/2 per dimension instead of 0.

    Args:
      mean: means, `[..., L]`.
      log_var: log-variances, the same shape.

    Returns:
      Divergences, `[...]`, non-negative.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.distributions import gaussian
      >>> zero = jnp.zeros(3)
      >>> print(gaussian.diagonal_kl_to_standard_normal(zero, zero))
      0.0
    """
    chex.assert_equal_shape([mean, log_var])
    return 0.5 * jnp.sum(jnp.expm1(log_var) - log_var + jnp.square(mean), axis=-1)


def diagonal_entropy(log_var: Array) -> Array:
    """Differential entropy of a diagonal Gaussian in nats, summed over the last axis.

        H = 1/2 sum_d [log s_d^2 + log(2 pi) + 1]

    with log s^2 = `log_var`.

    Args:
      log_var: log-variances, `[..., L]`.

    Returns:
      Entropies, `[...]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.distributions import gaussian
      >>> print(f"{gaussian.diagonal_entropy(jnp.zeros(1)):.6f}")
      1.418939
    """
    return 0.5 * jnp.sum(log_var + LOG_2PI + 1.0, axis=-1)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DiagonalGaussianDistribution(Distribution):
    """Diagonal Gaussian N(mean, diag(exp(log_var))).

    Attributes:
      mean: means, `[..., L]`.
      log_var: log-variances, broadcasting with `mean`.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.distributions import DiagonalGaussianDistribution
      >>> q = DiagonalGaussianDistribution(jnp.zeros((1, 2)), jnp.zeros((1, 2)))
      >>> print(q.log_prob(jnp.zeros((1, 1, 2))))
      [[-1.837877]]
    """

    mean: Array
    log_var: Array
    has_entropy: ClassVar[bool] = True
    mean_is_exact = True
    maps_noise: ClassVar[bool] = True
    factorizes = True

    @property
    def scale_tril(self) -> Array:
        """diag(exp(log_var / 2)), `[..., L, L]`."""
        scale = jnp.exp(0.5 * self._log_var)
        return scale[..., None] * jnp.eye(scale.shape[-1], dtype=scale.dtype)

    @property
    def _log_var(self) -> Array:
        return jnp.broadcast_to(self.log_var, self.mean.shape)

    def sample(self, key: Key, num_samples: int) -> Array:
        """See `Distribution.sample`; reparameterized."""
        return diagonal_sample(self.mean, self._log_var, key, num_samples=num_samples)

    def log_prob(self, value: Array) -> Array:
        """See `Distribution.log_prob`.

        For one variance s^2,

            log p(v) = -|v - mean|^2 / (2 s^2) - L/2 log(2 pi s^2)

        An unweighted squared error corresponds to s^2 = 1/2; the constant matters when
        models are compared.
        """
        return diagonal_log_prob(value, self.mean, self.log_var)

    def log_prob_per_dimension(self, value: Array) -> Array:
        """See `Distribution.log_prob_per_dimension`."""
        squares = jnp.square(value - self.mean) * jnp.exp(-self.log_var)
        return -0.5 * (squares + self.log_var + LOG_2PI)

    def entropy(self) -> Array:
        """See `Distribution.entropy`."""
        return diagonal_entropy(self._log_var)

    def from_noise(self, noise: Array) -> Array:
        """See `Distribution.from_noise`."""
        return self.mean + jnp.exp(0.5 * self.log_var) * noise

    def to_noise(self, value: Array) -> Array:
        """See `Distribution.to_noise`."""
        return (value - self.mean) * jnp.exp(-0.5 * self.log_var)
