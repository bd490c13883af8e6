"""Smooth maps from unbounded outputs to covariances well conditioned in float32.

Network outputs are unbounded, whereas a density requires a covariance whose factor can
be inverted. Each bound is smooth and close to the identity for moderate outputs.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax.distributions import multivariate_gaussian
from vae_jax.types import AnyArray, Array

LOG_VAR_BOUND = 20.0
# With a mean of 1 and a hundred correlated latents, float32 would not resolve noise of
# a standard deviation below exp(-17 / 2) = 2e-4.
CORRELATED_LOG_VAR_BOUND = 17.0
# Smallest variance in any direction, relative to the variances of its latents.
CORRELATION_MARGIN = 1e-4
# The same margin for a low-rank factor plus a diagonal: 1 / (1 + 100^2).
LOADING_BOUND = 1e2


def bound_log_var(raw: Array, *, bound: float = LOG_VAR_BOUND) -> Array:
    """Map real numbers into (-20, 20), nearly the identity around zero.

        log_var = 20 tanh(raw / 20)

    The standard deviation stays between 4.5e-5 and 2.2e4, and the KL and its gradient
    stay finite for any encoder output. Without the bound a diverging network would
    overflow exp(log_var).

    Args:
      raw: network outputs, any shape.
      bound: used in place of 20.

    Returns:
      Log-variances, the same shape.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.families import bound_log_var
      >>> print(bound_log_var(jnp.array([0.0, 1e9])))
      [ 0. 20.]
    """
    return bound * jnp.tanh(raw / bound)


def unbound_log_var(log_var: AnyArray, *, bound: float = LOG_VAR_BOUND) -> Array:
    """Inverse of `bound_log_var`: the network output for a log-variance.

        raw = 20 artanh(log_var / 20)

    Args:
      log_var: log-variances in (-20, 20), any shape.
      bound: used in place of 20.

    Returns:
      Network outputs, the same shape.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.families import bound_log_var, unbound_log_var
      >>> print(bound_log_var(unbound_log_var(jnp.array(-0.5))).round(6))
      -0.5
    """
    return bound * jnp.arctanh(log_var / bound)


def bound_factor(raw: Array, log_var: Array) -> Array:
    """Shrink a factor F so that the norm of the loadings D^(-1/2) F is below 100.

        F = raw / sqrt(1 + |D^(-1/2) raw|^2 / 100^2)

    with D = diag(exp(log_var)) and |.| the Frobenius norm: nearly the identity up to
    ten standard deviations of D. With much longer columns D is lost to rounding in
    float32: at a norm of 1000 the log-density is off by nats.

    Args:
      raw: network outputs, `[..., L, R]`.
      log_var: log of the diagonal of D, `[..., L]`.

    Returns:
      F, `[..., L, R]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.families import bound_factor
      >>> print(f"{bound_factor(jnp.array([[1e9]]), jnp.zeros(1)).item():.0f}")
      100
    """
    loading = raw * jnp.exp(-0.5 * log_var)[..., None] / LOADING_BOUND
    # The scale cancels; it keeps the squares from overflowing.
    largest = jnp.max(jnp.abs(loading), axis=(-2, -1), keepdims=True)
    scale = jax.lax.stop_gradient(jnp.maximum(largest, 1.0))
    squares = jnp.sum(jnp.square(loading / scale), axis=(-2, -1), keepdims=True)
    return raw / scale * jax.lax.rsqrt(squares + jnp.square(1 / scale))


def bound_covariance(raw_log_var: Array, raw_below: Array) -> Array:
    """Cholesky factor of a covariance that is well conditioned in float32.

        A A' = S R S
        R_ij = g_i g_j sum_k c_ik c_jk for i != j
        g_i^-2 = 1 + 1e-4 + (2e-4 / S_ii)^2

    S is diagonal and holds the standard deviations exp(log_var / 2), with log_var
    bounded by `bound_log_var` at 17: 2e-4 to 4.9e3. R is the correlation matrix of the
    directions c_i = (raw_i1, ..., raw_i,i-1, sqrt(L)) / norm. Without g every
    covariance is attainable, since the angles of c are free (Pinheiro & Bates 1996,
    section 2.3); g keeps the eigenvalues of R above 1e-4. Attainable covariances are
    thus those whose correlation matrix has no eigenvalue below 1e-4 (two latents: a
    correlation up to .9999) and whose standard deviations lie well within their bounds.
    Entries of 0 give S^2; small entries give the correlations raw_ij / sqrt(L).

    Args:
      raw_log_var: log-variances of the latents before bounding, `[..., L]`.
      raw_below: unbounded entries below the diagonal, row by row,
        `[..., L (L - 1) / 2]`.

    Returns:
      A, lower triangular with positive diagonal, `[..., L, L]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.families import bound_covariance
      >>> factor = bound_covariance(jnp.zeros(2), jnp.array([1e6]))
      >>> print((factor @ factor.T).round(4))
      [[1.     0.9999]
       [0.9999 1.    ]]
    """
    latent_dim = raw_log_var.shape[-1]
    log_var = bound_log_var(raw_log_var, bound=CORRELATED_LOG_VAR_BOUND)
    # Dividing by sqrt(L) keeps a network near a diagonal covariance at initialisation
    # for any L.
    last = jnp.full_like(log_var, math.sqrt(latent_dim))
    rows = multivariate_gaussian.lower_triangular(last, raw_below)
    margin = CORRELATION_MARGIN + jnp.exp(-CORRELATED_LOG_VAR_BOUND - log_var)
    squares = (1 + margin) * jnp.sum(jnp.square(rows), axis=-1)
    rows = rows * jax.lax.rsqrt(squares)[..., None]
    # An accelerator's default precision may be coarser than the margin.
    products = jnp.einsum("...ik,...jk->...ij", rows, rows, precision="highest")
    correlations = jnp.where(jnp.eye(latent_dim, dtype=bool), 1, products)
    return jnp.exp(0.5 * log_var)[..., None] * jnp.linalg.cholesky(correlations)


def unbound_covariance(covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Inverse of `bound_covariance`, computed with NumPy.

    The eigenvalues of a covariance that `bound_covariance` cannot attain are raised.

    Args:
      covariance: symmetric positive-definite, `[..., L, L]`, float64.

    Returns:
      `raw_log_var` `[..., L]` and `raw_below` `[..., L (L - 1) / 2]`.

    Example:
      >>> import numpy as np
      >>> from vae_jax.families import bound_covariance, unbound_covariance
      >>> wanted = np.array([[4.0, 1.0], [1.0, 2.0]])
      >>> factor = np.asarray(bound_covariance(*unbound_covariance(wanted)))
      >>> print((factor @ factor.T).round(5))
      [[4. 1.]
       [1. 2.]]
    """
    latent_dim = covariance.shape[-1]
    log_var = np.log(np.diagonal(covariance, axis1=-2, axis2=-1))
    most = 0.999 * CORRELATED_LOG_VAR_BOUND
    log_var = np.clip(log_var, -most, most)
    margin = CORRELATION_MARGIN + np.exp(-CORRELATED_LOG_VAR_BOUND - log_var)
    scale = np.exp(0.5 * log_var) / np.sqrt(1 + margin)
    products = covariance / (scale[..., None] * scale[..., None, :])
    products = np.where(np.eye(latent_dim, dtype=bool), 1.0, products)
    values, vectors = np.linalg.eigh(products)
    values = np.maximum(values, 1e-9)[..., None, :]
    rows = np.linalg.cholesky((vectors * values) @ vectors.swapaxes(-2, -1))
    last = np.diagonal(rows, axis1=-2, axis2=-1)[..., None]
    below = (rows / last)[..., *np.tril_indices(latent_dim, -1)]
    raw = CORRELATED_LOG_VAR_BOUND * np.arctanh(log_var / CORRELATED_LOG_VAR_BOUND)
    return raw, math.sqrt(latent_dim) * below


def bound_ratio(log_var: Array) -> Array:
    """Raise log-variances whose variance is negligible relative to the mean variance.

        raised_l = log(exp(log_var_l) + 1e-4 * 1/L sum_k exp(log_var_k))

    For variances along directions other than the coordinate axes, where float32 cannot
    resolve a small variance next to large ones.

    Args:
      log_var: log-variances, `[..., L]`.

    Returns:
      Log-variances, the same shape.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.families.bounds import bound_ratio
      >>> print([f"{one:.3f}" for one in bound_ratio(jnp.array([0.0, -20.0]))])
      ['0.000', '-9.903']
    """
    variance = jnp.exp(log_var)
    mean = jnp.mean(variance, axis=-1, keepdims=True)
    return jnp.log(variance + CORRELATION_MARGIN * mean)
