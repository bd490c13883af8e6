"""Gradients of expectations: estimates of E_q[f(z)] whose gradient is a choice.

`types.Estimator` is the contract: the value is the plain Monte Carlo estimate, the
gradient the estimator's. Mohamed, Rosca, Figurnov & Mnih 2020.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from vae_jax.types import Array, Key, Latents, Posterior, PyTree


def sample_mean(values: Array) -> Array:
    """Mean over samples, `[S, B]` to `[B]`: the estimate of an expectation."""
    return jnp.mean(values, axis=0)


def log_mean_exp(values: Array) -> Array:
    """Log of the mean of exponentials over samples, `[S, B]` to `[B]`.

    log 1/S sum_s exp(v_s), with the largest taken out so that nothing overflows.

    Args:
      values: log-weights, `[S, B]`.

    Returns:
      `[B]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.estimators import log_mean_exp
      >>> print(log_mean_exp(jnp.full((3, 1), -1000.0)))
      [-1000.]
    """
    log_num_samples = jnp.log(jnp.asarray(values.shape[0], values.dtype))
    return jax.nn.logsumexp(values, axis=0) - log_num_samples


def reparameterization(
    integrand: Callable[[Latents, Array], PyTree],
    posterior: Posterior,
    key: Key,
    *,
    num_samples: int = 1,
    reduction: Callable[[Array], Array] = sample_mean,
) -> PyTree:
    """The pathwise estimate of E_q[f(z)]: the gradient flows through the samples.

    d/d phi E_q[f(z)] = E_eps[d/d phi f(g_phi(eps))]
    (Kingma & Welling 2014, section 2.4). Unbiased where f is differentiable.

    Args:
      integrand: f, called with latents `[S, B, L]` and their log q `[S, B]`; returns
        `[S, B]` or a pytree of such.
      posterior: q, a batch of B.
      key: PRNG key, consumed once.
      num_samples: samples S.
      reduction: from `[S, B]` to `[B]`; the mean, or `log_mean_exp` for a bound.

    Returns:
      The estimates, `[B]` for each `[S, B]`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax.estimators import reparameterization
      >>> from vae_jax.posteriors import DiagonalGaussianPosterior
      >>> def mean_square(mean):
      ...     q = DiagonalGaussianPosterior(mean, jnp.full((1, 1), -20.0))
      ...     square = lambda z, log_q: jnp.sum(z**2, axis=-1)
      ...     return reparameterization(square, q, jax.random.key(0))[0]
      >>> print(jax.grad(mean_square)(jnp.ones((1, 1))).round(3))
      [[2.]]
    """
    z, log_q = posterior.sample_and_log_prob(key, num_samples)
    return jax.tree.map(reduction, integrand(z, log_q))
