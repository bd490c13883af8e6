"""Deterministic Gaussian expectations, exact for quadratic integrands."""

import math

import jax
import jax.numpy as jnp

from vae_jax.distributions import DiagonalGaussianDistribution
from vae_jax.estimators.contract import (
    Integrand,
    Reduction,
    require_type,
    sample_mean,
    values_of,
    with_auxiliary,
)
from vae_jax.types import Key, Posterior, PyTree


def sigma_points(
    integrand: Integrand,
    posterior: Posterior,
    key: Key,
    *,
    num_samples: int = 1,
    reduction: Reduction = sample_mean,
    has_aux: bool = False,
) -> PyTree:
    """E_q[f(z)] of a diagonal Gaussian from 2 L sigma points (unscented transform).

        E_q[f(z)] ~= 1 / (2 L) sum_l [f(m + sqrt(L) s_l e_l) + f(m - sqrt(L) s_l e_l)]

    with m the mean, s_l the standard deviations and e_l the unit vectors (Julier &
    Uhlmann 1997, with kappa 0). The points have the mean and covariance of q,
    so the result and its gradient are exact for polynomials up to the third degree;
    other integrands have a bias. The ELBO of a linear-Gaussian model is then
    deterministic and exact.

    Args:
      integrand: f, called with latents `[2 L, B, L]` and their log q `[2 L, B]`;
        returns `[2 L, B]` or a pytree of such arrays.
      posterior: q, a batch of B diagonal Gaussians.
      key: unused; part of the `types.Estimator` protocol.
      num_samples: must be 1; the points are fixed.
      reduction: must be the mean.
      has_aux: whether f also returns auxiliary outputs (`types.Estimator`).

    Returns:
      The expectations, `[B]` for each `[2 L, B]`.

    Raises:
      ValueError: q is not a diagonal Gaussian, `num_samples` is not 1, or `reduction`
        is not the mean.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax.estimators import sigma_points
      >>> from vae_jax.distributions import DiagonalGaussianDistribution
      >>> q = DiagonalGaussianDistribution(jnp.ones((1, 2)), jnp.zeros((1, 2)))
      >>> square = lambda z, log_q: jnp.sum(z**2, axis=-1)
      >>> print(sigma_points(square, q, jax.random.key(0)).round(3))
      [4.]
    """
    posterior = require_type(posterior, DiagonalGaussianDistribution, "sigma_points")
    if num_samples != 1:
        raise ValueError(f"num_samples of sigma_points must be 1, got {num_samples}")
    if reduction is not sample_mean:
        raise ValueError("sigma_points take sample_mean and no other reduction")
    size = posterior.mean.shape[-1]
    axes = math.sqrt(size) * jnp.eye(size, dtype=posterior.mean.dtype)
    z = posterior.from_noise(jnp.concatenate([axes, -axes])[:, None])
    values, aux = values_of(integrand, z, posterior.log_prob(z), has_aux)
    return with_auxiliary(jax.tree.map(reduction, values), aux, has_aux)
