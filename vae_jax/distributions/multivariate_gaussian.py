"""Gaussians with full (Cholesky factor) or low-rank-plus-diagonal covariance.

A full covariance is given by a lower triangular factor with positive diagonal, which is
valid for any network output. `cholesky_factor` computes it from a covariance matrix and
rejects singular ones.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.scipy import linalg

from vae_jax.distributions.gaussian import LOG_2PI, diagonal_log_prob
from vae_jax.distributions.rounding import without_negative
from vae_jax.types import Array, Distribution, Key


def cholesky_factor(covariance: Array) -> Array:
    """Lower triangular factor A of a non-singular covariance A A'.

    Args:
      covariance: symmetric and positive definite, `[..., L, L]`; must not be a tracer,
        because its values are checked.

    Returns:
      A, `[..., L, L]`.

    Raises:
      ValueError: the covariance is not symmetric, is not numerically positive definite
        (a Gaussian on a subspace has no density), or is a tracer.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.distributions import multivariate_gaussian
      >>> print(multivariate_gaussian.cholesky_factor(jnp.array([[4.0, 2], [2, 2]])))
      [[2. 0.]
       [1. 1.]]
    """
    if isinstance(covariance, Tracer):
        raise ValueError(
            "covariance must have values, to see whether it is singular; inside a "
            "compiled function parameterize by a triangular factor"
        )
    covariance = jnp.asarray(covariance)
    size = jnp.max(jnp.abs(covariance), initial=0.0)
    rounding = covariance.shape[-1] * jnp.finfo(covariance.dtype).eps * size
    if jnp.any(jnp.abs(covariance - covariance.mT) > rounding):
        raise ValueError("covariance must be symmetric")
    # A Cholesky of a singular matrix may succeed by rounding; check the eigenvalues.
    smallest = jnp.min(jnp.linalg.eigvalsh(covariance))
    if not smallest > rounding:
        raise ValueError(
            "covariance must be positive definite, got one with the eigenvalue "
            f"{smallest:.3g}: a rank-deficient Gaussian has no density"
        )
    return jnp.linalg.cholesky(covariance)


def full_log_prob(value: Array, mean: Array, scale_tril: Array) -> Array:
    """Log-density of N(mean, A A') in nats, summed over the last axis.

        log N(v; m, A A') = -1/2 |A^-1 (v - m)|^2 - sum_d log A_dd - L/2 log(2 pi)

    Args:
      value: points, `[..., L]`.
      mean: means, broadcasting with `value`.
      scale_tril: A, lower triangular with positive diagonal, `[..., L, L]`.

    Returns:
      Log-densities, `[...]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.distributions import multivariate_gaussian
      >>> zero = jnp.zeros(2)
      >>> log_prob = multivariate_gaussian.full_log_prob(zero, zero, jnp.eye(2))
      >>> print(f"{log_prob:.6f}")
      -1.837877
    """
    centered = value - mean
    squares = jnp.sum(jnp.square(_solve(scale_tril, centered)), axis=-1)
    constant = centered.shape[-1] * LOG_2PI
    return -0.5 * (squares + constant) - _log_det(scale_tril)


def full_sample(
    mean: Array, scale_tril: Array, key: Key, *, num_samples: int = 1
) -> Array:
    """Draw from N(mean, A A'), differentiably in `mean` and A.

        z = mean + A eps with eps ~ N(0, I)

    Args:
      mean: means, `[..., L]`.
      scale_tril: A, `[..., L, L]`.
      key: PRNG key, consumed once.
      num_samples: number S of draws.

    Returns:
      Samples `[S, ..., L]`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax.distributions import multivariate_gaussian
      >>> key = jax.random.key(0)
      >>> multivariate_gaussian.full_sample(jnp.zeros(2), jnp.eye(2), key).shape
      (1, 2)
    """
    noise = jax.random.normal(key, (num_samples, *mean.shape), mean.dtype)
    return mean + times(scale_tril, noise)


def full_kl_divergence(
    mean_0: Array, scale_tril_0: Array, mean_1: Array, scale_tril_1: Array
) -> Array:
    """KL(N_0 || N_1) of Gaussians with full covariance in nats, summed over L.

        KL = 1/2 [tr(S_1^-1 S_0) + Q - L + log(|S_1| / |S_0|)]
        Q = (m_1 - m_0)' S_1^-1 (m_1 - m_0)

    with the means m and covariances S (Kullback 1959, chapter 9), computed from the
    factors of S_0 and S_1.

    Args:
      mean_0: means of N_0, `[..., L]`.
      scale_tril_0: factors of S0, `[..., L, L]`.
      mean_1: means of N_1.
      scale_tril_1: factors of S1.

    Returns:
      Divergences, `[...]`, non-negative.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.distributions import multivariate_gaussian
      >>> zero, eye = jnp.zeros(2), jnp.eye(2)
      >>> print(multivariate_gaussian.full_kl_divergence(zero + 1, eye, zero, eye))
      1.0
    """
    latent_dim = mean_0.shape[-1]
    factor_1, factor_0 = jnp.broadcast_arrays(scale_tril_1, scale_tril_0)
    ratio = linalg.solve_triangular(factor_1, factor_0, lower=True)
    trace = jnp.sum(jnp.square(ratio), axis=(-2, -1))
    squares = jnp.sum(jnp.square(_solve(scale_tril_1, mean_0 - mean_1)), axis=-1)
    log_ratio = _log_det(scale_tril_1) - _log_det(scale_tril_0)
    return without_negative(0.5 * (trace + squares - latent_dim) + log_ratio)


def full_entropy(scale_tril: Array) -> Array:
    """Differential entropy of a Gaussian with covariance A A' in nats.

        H = sum_l log A_ll + L/2 (1 + log(2 pi))

    Args:
      scale_tril: A, `[..., L, L]`.

    Returns:
      Entropies, `[...]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.distributions import multivariate_gaussian
      >>> print(f"{multivariate_gaussian.full_entropy(jnp.eye(1)):.6f}")
      1.418939
    """
    return _log_det(scale_tril) + 0.5 * scale_tril.shape[-1] * (1.0 + LOG_2PI)


def precision_log_prob(value: Array, mean: Array, precision_tril: Array) -> Array:
    """Log-density of N(mean, (A A')^-1) in nats, summed over the last axis.

        log p(v) = -1/2 |A' (v - m)|^2 + sum_d log A_dd - L/2 log(2 pi)

    Computed without a linear solve.

    Args:
      value: points, `[..., L]`.
      mean: means, broadcasting with `value`.
      precision_tril: A, lower triangular with positive diagonal, `[..., L, L]`.

    Returns:
      Log-densities, `[...]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.distributions import multivariate_gaussian
      >>> one = jnp.ones(1)
      >>> found = multivariate_gaussian.precision_log_prob(one, one, 2 * jnp.eye(1))
      >>> print(f"{found:.6f}")
      -0.225791
    """
    squares = jnp.sum(jnp.square(times(precision_tril.mT, value - mean)), axis=-1)
    return _log_det(precision_tril) - 0.5 * (squares + value.shape[-1] * LOG_2PI)


def precision_sample(mean: Array, precision_tril: Array, key: Key) -> Array:
    """Draw one sample of each N(mean, (A A')^-1).

        z = mean + (A')^-1 eps with eps ~ N(0, I)

    Args:
      mean: means, `[..., L]`.
      precision_tril: A, `[..., L, L]`.
      key: PRNG key, consumed once.

    Returns:
      `[..., L]`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax.distributions import multivariate_gaussian
      >>> zero, key = jnp.zeros((3, 2)), jax.random.key(0)
      >>> factor = jnp.broadcast_to(jnp.eye(2), (3, 2, 2))
      >>> multivariate_gaussian.precision_sample(zero, factor, key).shape
      (3, 2)
    """
    noise = jax.random.normal(key, mean.shape, mean.dtype)[..., None]
    return (
        mean
        + linalg.solve_triangular(precision_tril, noise, lower=True, trans=1)[..., 0]
    )


def low_rank_log_prob(
    value: Array, mean: Array, log_var: Array, factor: Array
) -> Array:
    """Log-density of N(mean, F F' + diag(exp(log_var))) in nats, summed over L.

    With S = F F' + D, D = diag(exp(log_var)) and the R x R matrix C = I + F' D^-1 F,

        log N(v; m, S) = -1/2 Q - 1/2 log |S| - L/2 log(2 pi)
        log |S| = log |D| + log |C|
        Q = min_u [|D^(-1/2) (v - m - F u)|^2 + |u|^2]

    by the determinant lemma and ridge regression, with the minimum attained at
    u = C^-1 F' D^-1 (v - m). Unlike the difference of squares of the Woodbury identity,
    this involves no cancellation, and an error of u enters only quadratically.

    Args:
      value: points, `[..., L]`.
      mean: means, broadcasting with `value`.
      log_var: log of the diagonal D, `[..., L]`.
      factor: F, `[..., L, R]`.

    Returns:
      Log-densities, `[...]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.distributions import multivariate_gaussian
      >>> zero = jnp.zeros(2)
      >>> print(
      ...     multivariate_gaussian.low_rank_log_prob(
      ...         zero, zero, zero, jnp.zeros((2, 1))
      ...     ).round(6)
      ... )
      -1.837877
    """
    scaled = (value - mean) * jnp.exp(-0.5 * log_var)
    loading = factor * jnp.exp(-0.5 * log_var)[..., None]
    capacitance = _capacitance(loading)
    shared = _solve(capacitance, times(loading.mT, scaled))
    shared = _solve(capacitance, shared, transposed=True)
    residual = scaled - times(loading, shared)
    squares = jnp.sum(jnp.square(residual), axis=-1)
    squares = squares + jnp.sum(jnp.square(shared), axis=-1)
    log_det = 0.5 * jnp.sum(log_var, axis=-1) + _log_det(capacitance)
    return -0.5 * (squares + value.shape[-1] * LOG_2PI) - log_det


def low_rank_sample(
    mean: Array, log_var: Array, factor: Array, key: Key, *, num_samples: int = 1
) -> Array:
    """Draw from N(mean, F F' + diag(exp(log_var))), differentiably in all parameters.

        z = mean + exp(log_var / 2) * eps + F u with eps ~ N(0, I) and u ~ N(0, I)

    Args:
      mean: means, `[..., L]`.
      log_var: log of the diagonal, `[..., L]`.
      factor: F, `[..., L, R]`.
      key: PRNG key, consumed once.
      num_samples: number S of draws.

    Returns:
      Samples `[S, ..., L]`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax.distributions import multivariate_gaussian
      >>> zero, factor = jnp.zeros(2), jnp.ones((2, 1))
      >>> key = jax.random.key(0)
      >>> multivariate_gaussian.low_rank_sample(zero, zero, factor, key).shape
      (1, 2)
    """
    latent_dim, rank = factor.shape[-2:]
    shape = (num_samples, *mean.shape[:-1], latent_dim + rank)
    noise = jax.random.normal(key, shape, mean.dtype)
    own, shared = noise[..., :latent_dim], noise[..., latent_dim:]
    return mean + jnp.exp(0.5 * log_var) * own + times(factor, shared)


def low_rank_log_det(log_var: Array, factor: Array) -> Array:
    """Log-determinant of F F' + diag(exp(log_var)), by the determinant lemma.

        log |F F' + D| = log |D| + log |I + F' D^-1 F|

    with D = diag(exp(log_var)).

    Args:
      log_var: log of the diagonal, `[..., L]`.
      factor: F, `[..., L, R]`.

    Returns:
      `[...]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.distributions import multivariate_gaussian
      >>> factor = jnp.zeros((2, 1))
      >>> print(multivariate_gaussian.low_rank_log_det(jnp.ones(2), factor))
      2.0
    """
    loading = factor * jnp.exp(-0.5 * log_var)[..., None]
    return jnp.sum(log_var, axis=-1) + 2 * _log_det(_capacitance(loading))


def lower_triangular(diagonal: Array, below: Array) -> Array:
    """Build a lower triangular matrix from its entries.

    Args:
      diagonal: entries on the diagonal, `[..., L]`.
      below: entries below the diagonal, row by row, `[..., L (L - 1) / 2]`.

    Returns:
      `[..., L, L]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.distributions import multivariate_gaussian
      >>> print(multivariate_gaussian.lower_triangular(jnp.ones(2), jnp.array([3.0])))
      [[1. 0.]
       [3. 1.]]
    """
    latent_dim = diagonal.shape[-1]
    rows, columns = np.tril_indices(latent_dim, -1)
    each = np.arange(latent_dim)
    matrix = jnp.zeros((*diagonal.shape, latent_dim), diagonal.dtype)
    matrix = matrix.at[..., each, each].set(diagonal)
    return matrix.at[..., rows, columns].set(below)


def entries_below(matrix: Array) -> Array:
    """Entries below the diagonal, row by row, in the order of `lower_triangular`.

    Args:
      matrix: `[..., L, L]`.

    Returns:
      `[..., L (L - 1) / 2]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.distributions import multivariate_gaussian
      >>> matrix = jnp.array([[1.0, 0.0], [3.0, 2.0]])
      >>> print(multivariate_gaussian.entries_below(matrix))
      [3.]
    """
    rows, columns = np.tril_indices(matrix.shape[-1], -1)
    return matrix[..., rows, columns]


def dimension_of(num_entries: int) -> int:
    """Dimension L of a Gaussian from the number of entries of mean and factor.

    Solves L + L (L + 1) / 2 = n.

    Args:
      num_entries: total number n of entries.

    Returns:
      L.

    Example:
      >>> from vae_jax.distributions import multivariate_gaussian
      >>> multivariate_gaussian.dimension_of(5)
      2
    """
    return (math.isqrt(9 + 8 * num_entries) - 3) // 2


def times(matrix: Array, vector: Array) -> Array:
    """Matrix-vector product with broadcasting over leading axes.

    Args:
      matrix: `[..., L, R]`.
      vector: `[..., R]`.

    Returns:
      `[..., L]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.distributions.multivariate_gaussian import times
      >>> times(jnp.ones((4, 2, 3)), jnp.ones((5, 4, 3))).shape
      (5, 4, 2)
    """
    return jnp.einsum("...lr,...r->...l", matrix, vector, precision="highest")


def _solve(scale_tril: Array, vector: Array, transposed: bool = False) -> Array:
    """A^-1 v or A'^-1 v for v `[..., L]`; samples share one solve as its columns."""
    batch = scale_tril.shape[:-2]
    samples = max(0, vector.ndim - 1 - len(batch))
    batch = jnp.broadcast_shapes(batch, vector.shape[samples:-1])
    vector = jnp.broadcast_to(
        vector, vector.shape[:samples] + batch + vector.shape[-1:]
    )
    scale_tril = jnp.broadcast_to(scale_tril, batch + scale_tril.shape[-2:])
    columns = jnp.moveaxis(vector.reshape(-1, *vector.shape[samples:]), 0, -1)
    solved = linalg.solve_triangular(
        scale_tril, columns, lower=True, trans=int(transposed)
    )
    return jnp.moveaxis(solved, -1, 0).reshape(vector.shape)


def _capacitance(loading: Array) -> Array:
    """Cholesky factor of I + F' F, `[..., R, R]`."""
    rank = loading.shape[-1]
    inner = jnp.einsum("...lr,...ls->...rs", loading, loading, precision="highest")
    return jnp.linalg.cholesky(jnp.eye(rank, dtype=loading.dtype) + inner)


def _log_det(scale_tril: Array) -> Array:
    diagonal = jnp.diagonal(scale_tril, axis1=-2, axis2=-1)
    return jnp.sum(jnp.log(diagonal), axis=-1)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FullGaussianDistribution(Distribution):
    """Gaussian N(mean, A A'), with A lower triangular with positive diagonal.

    Attributes:
      mean: means, `[..., L]`.
      log_var: the diagonal of A is exp(log_var / 2), `[..., L]`.
      below: entries of A below its diagonal, row by row, `[..., L (L - 1) / 2]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.distributions import FullGaussianDistribution
      >>> q = FullGaussianDistribution(*jnp.zeros((2, 1, 2)), jnp.ones((1, 1)))
      >>> print(q.scale_tril[0])
      [[1. 0.]
       [1. 1.]]
    """

    mean: Array
    log_var: Array
    below: Array
    has_entropy: ClassVar[bool] = True
    mean_is_exact = True

    @classmethod
    def from_factor(cls, mean: Array, scale_tril: Array) -> "FullGaussianDistribution":
        """Build the distribution from means `[..., L]` and A, `[..., L, L]`."""
        diagonal = jnp.diagonal(scale_tril, axis1=-2, axis2=-1)
        return cls(mean, 2 * jnp.log(diagonal), entries_below(scale_tril))

    @property
    def scale_tril(self) -> Array:
        """A, `[..., L, L]`."""
        return lower_triangular(jnp.exp(0.5 * self.log_var), self.below)

    def sample_and_log_prob(self, key: Key, num_samples: int) -> tuple[Array, Array]:
        """See `Distribution.sample_and_log_prob`; reparameterized."""
        shape = (num_samples, *self.mean.shape)
        noise = jax.random.normal(key, shape, self.mean.dtype)
        z = self.mean + times(self.scale_tril, noise)
        # Evaluate the density at the noise, which avoids a linear solve.
        log_density = diagonal_log_prob(noise, 0.0, jnp.zeros_like(noise))
        return z, log_density - 0.5 * jnp.sum(self.log_var, axis=-1)

    def log_prob(self, value: Array) -> Array:
        """See `Distribution.log_prob`."""
        return full_log_prob(value, self.mean, self.scale_tril)

    def entropy(self) -> Array:
        """See `Distribution.entropy`."""
        return full_entropy(self.scale_tril)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LowRankGaussianDistribution(Distribution):
    """Gaussian N(mean, F F' + diag(exp(log_var))).

    Attributes:
      mean: means, `[..., L]`.
      log_var: log of the diagonal, `[..., L]`.
      factor: F, `[..., L, R]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.distributions import LowRankGaussianDistribution
      >>> q = LowRankGaussianDistribution(*jnp.zeros((2, 1, 2)), jnp.zeros((1, 2, 1)))
      >>> print(f"{q.log_prob(jnp.zeros((1, 1, 2))).item():.6f}")
      -1.837877
    """

    mean: Array
    log_var: Array
    factor: Array
    has_entropy: ClassVar[bool] = True
    mean_is_exact = True

    def sample(self, key: Key, num_samples: int) -> Array:
        """See `Distribution.sample`; reparameterized."""
        return low_rank_sample(
            self.mean, self.log_var, self.factor, key, num_samples=num_samples
        )

    def log_prob(self, value: Array) -> Array:
        """See `Distribution.log_prob`."""
        return low_rank_log_prob(value, self.mean, self.log_var, self.factor)

    def entropy(self) -> Array:
        """See `Distribution.entropy`."""
        log_det = low_rank_log_det(self.log_var, self.factor)
        return 0.5 * (log_det + self.log_var.shape[-1] * (1.0 + LOG_2PI))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PrecisionGaussianDistribution(Distribution):
    """Gaussian N(mean, (A A')^-1), with A lower triangular with positive diagonal.

    Attributes:
      mean: means, `[..., L]`.
      precision_tril: A, `[..., L, L]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.distributions import PrecisionGaussianDistribution
      >>> p = PrecisionGaussianDistribution(jnp.ones((1, 1)), 2 * jnp.ones((1, 1, 1)))
      >>> print(f"{p.log_prob(jnp.ones((1, 1))).item():.6f}")
      -0.225791
    """

    mean: Array
    precision_tril: Array
    has_entropy: ClassVar[bool] = True
    mean_is_exact = True

    def sample(self, key: Key, num_samples: int) -> Array:
        """See `Distribution.sample`; reparameterized."""
        mean, factor = (
            jnp.broadcast_to(leaf, (num_samples, *leaf.shape))
            for leaf in (self.mean, self.precision_tril)
        )
        return precision_sample(mean, factor, key)

    def log_prob(self, value: Array) -> Array:
        """See `Distribution.log_prob`."""
        return precision_log_prob(value, self.mean, self.precision_tril)

    def entropy(self) -> Array:
        """See `Distribution.entropy`."""
        size = self.mean.shape[-1]
        return 0.5 * size * (1.0 + LOG_2PI) - _log_det(self.precision_tril)
