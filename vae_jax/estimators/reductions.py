"""What several samples come to: the mean, or a bound that they share.

A reduction takes values `[S, B]` to `[B]` and moves with a constant:
R(v + c) = R(v) + c.
Applied to log-weights log p(x, z) - log q(z|x), `sample_mean` gives the ELBO,
`log_mean_exp` the importance-weighted bound, and the others what lies between.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from vae_jax.types import Array

Reduction = Callable[[Array], Array]


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


def grouped(num_groups: int) -> Reduction:
    """The mean over groups of samples of each group's `log_mean_exp` (MIWAE).

    1/M sum_m log 1/K sum_k w_mk with S = M K samples (Rainforth et al. 2018, "Tighter
    variational bounds are not necessarily better"). One group is `log_mean_exp`, S of
    them the mean.

    Args:
      num_groups: M, which must divide the number of samples.

    Returns:
      The reduction.

    Raises:
      ValueError: when it is applied to samples that do not divide into groups.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.estimators import grouped
      >>> print(grouped(2)(jnp.array([[0.0], [0.0], [2.0], [2.0]])))
      [1.]
    """

    def reduction(values: Array) -> Array:
        if num_groups < 1 or values.shape[0] % num_groups:
            raise ValueError(
                f"num_groups must divide num_samples {values.shape[0]}, got "
                f"{num_groups}"
            )
        groups = values.reshape(num_groups, -1, *values.shape[1:])
        return jnp.mean(jax.vmap(log_mean_exp)(groups), axis=0)

    return reduction


def combined(weight: float | Array) -> Reduction:
    """A convex combination of the ELBO and the importance-weighted bound (CIWAE).

    weight * mean + (1 - weight) * log_mean_exp (Rainforth et al. 2018).

    Args:
      weight: of the mean, between 0 and 1.

    Returns:
      The reduction.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.estimators import combined
      >>> print(combined(1.0)(jnp.array([[0.0], [2.0]])))
      [1.]
    """
    return lambda values: (
        weight * sample_mean(values) + (1 - weight) * log_mean_exp(values)
    )


def renyi(alpha: float) -> Reduction:
    """The variational Renyi bound of order alpha.

    1 / (1 - alpha) log 1/S sum_s w_s^(1 - alpha) (Li & Turner 2016, eq. 8). Alpha 0 is
    `log_mean_exp`, alpha to 1 the mean; negative alpha lies above log p(x) as S grows.

    Args:
      alpha: the order; 1 is taken as its limit, the mean.

    Returns:
      The reduction.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.estimators import renyi
      >>> print(renyi(1.0)(jnp.array([[0.0], [2.0]])))
      [1.]
    """
    if alpha == 1:
        return sample_mean
    return lambda values: log_mean_exp((1 - alpha) * values) / (1 - alpha)
