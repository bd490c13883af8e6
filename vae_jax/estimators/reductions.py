"""Reductions over the sample axis: the mean and multi-sample bounds.

A reduction maps values `[S, B]` to `[B]` and is equivariant to shifts:
R(v + c) = R(v) + c. Applied to log-weights log p(x, z) - log q(z|x), `sample_mean`
gives the ELBO, `log_mean_exp` the importance-weighted bound, and the others
interpolate. Reductions with settings are pytrees: real-valued settings are leaves and
may be traced, other settings are static, and equal reductions compare equal.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax.options import (
    register_options,
    require_at_least,
    require_scalar,
    require_value,
)
from vae_jax.types import Array

Reduction = Callable[[Array], Array]


def sample_mean(values: Array) -> Array:
    """Mean over samples, `[S, B]` to `[B]`: an unbiased estimate of the expectation.

        R(v) = 1/S sum_s v_s

    Applied to log-weights, it gives the ELBO.
    """
    return jnp.mean(values, axis=0)


def log_mean_exp(values: Array) -> Array:
    """Log of the mean of exponentials over samples, `[S, B]` to `[B]`.

        R(v) = log(1/S sum_s exp(v_s))

    Computed without overflow by subtracting the maximum.

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


@register_options(static=("num_groups",))
@dataclass(frozen=True)
class Grouped:
    """Mean over groups of samples of each group's `log_mean_exp` (MIWAE).

        R(v) = 1/M sum_m log(1/K sum_k exp(v_mk))

    with S = M K samples (Rainforth et al. 2018, "Tighter variational bounds are not
    necessarily better"). With one group, it is `log_mean_exp`; with S groups, the mean.

    Attributes:
      num_groups: number M of groups; must divide the number of samples.

    Raises:
      ValueError: `num_groups` is below 1; when called, if it does not divide the number
        of samples.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.estimators import Grouped
      >>> print(Grouped(2)(jnp.array([[0.0], [0.0], [2.0], [2.0]])))
      [1.]
    """

    num_groups: int

    def __post_init__(self):
        require_at_least("num_groups", self.num_groups)

    def __call__(self, values: Array) -> Array:
        """Reduce `[S, B]` to `[B]`."""
        if values.shape[0] % self.num_groups:
            raise ValueError(
                f"num_groups must divide num_samples {values.shape[0]}, got "
                f"{self.num_groups}"
            )
        groups = values.reshape(self.num_groups, -1, *values.shape[1:])
        return jnp.mean(jax.vmap(log_mean_exp)(groups), axis=0)


@register_options()
@dataclass(frozen=True)
class Combined:
    """Convex combination of the ELBO and the importance-weighted bound (CIWAE).

        R(v) = weight * 1/S sum_s v_s + (1 - weight) * log(1/S sum_s exp(v_s))

    (Rainforth et al. 2018).

    Attributes:
      weight: weight of the mean, in [0, 1]; a number or a traced scalar.

    Raises:
      ValueError: `weight` is outside [0, 1]; when called, it is not a scalar.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.estimators import Combined
      >>> print(Combined(1.0)(jnp.array([[0.0], [2.0]])))
      [1.]
    """

    weight: float | Array

    def __post_init__(self):
        require_value(
            "weight", self.weight, lambda v: (v >= 0) & (v <= 1), "between 0 and 1"
        )

    def __call__(self, values: Array) -> Array:
        """Reduce `[S, B]` to `[B]`."""
        require_scalar("weight", self.weight)
        share = self.weight
        # A part that is -inf does not count at weight 0.
        mean = jnp.where(share == 0, 0, share * sample_mean(values))
        bound = jnp.where(share == 1, 0, (1 - share) * log_mean_exp(values))
        return mean + bound


@register_options()
@dataclass(frozen=True)
class Renyi:
    """Variational Renyi bound of order alpha, `[S, B]` to `[B]`, in nats.

        R(v) = 1 / (1 - alpha) log(1/S sum_s exp((1 - alpha) v_s))

    of the log-weights v (Li & Turner 2016, eq. 8). Alpha = 0 gives `log_mean_exp`, the
    limit alpha -> 1 the mean. For negative alpha, the limit S -> infinity lies above
    log p(x). Value and derivatives are accurate to rounding error for every alpha,
    including 1 and its neighbourhood.

    Attributes:
      alpha: order of the bound; a number or a traced scalar.

    Raises:
      ValueError: `alpha` is infinite or NaN; when called, it is not a scalar.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.estimators import Renyi
      >>> log_weights = jnp.array([[0.0], [2.0]])
      >>> print(Renyi(1.0)(log_weights), Renyi(0.0)(log_weights).round(4))
      [1.] [1.4338]
    """

    alpha: float | Array

    def __post_init__(self):
        require_value("alpha", self.alpha, np.isfinite, "finite", "; 0 is log_mean_exp")

    def __call__(self, values: Array) -> Array:
        """Reduce `[S, B]` to `[B]`."""
        require_scalar("alpha", self.alpha)
        return _scaled_log_mean_exp(values, 1 - self.alpha)


def _scaled_log_mean_exp(values: Array, scale: float | Array) -> Array:
    """log(mean(exp(scale * v))) / scale over samples; the mean at scale 0.

    The quotient is inaccurate if all exponents are small. It is then computed as the
    integral over r in [0, 1] of the mean of v with weights exp(r * scale * v), by
    Gauss-Legendre quadrature, which involves neither a cancellation nor a division.
    """
    scale = jnp.asarray(scale, values.dtype)
    # The maximum is subtracted and added back: reductions are equivariant to shifts.
    largest = jax.lax.stop_gradient(jnp.max(values, axis=0))
    largest = jnp.where(jnp.isfinite(largest), largest, 0)
    values = values - largest
    spread = jax.lax.stop_gradient(-jnp.min(values, axis=0))
    # At scale 0 the spread may be infinite.
    is_near = (scale == 0) | (jnp.abs(scale) * spread <= 1)
    # The branch not taken must be finite as well, or the gradient is NaN.
    close = jnp.where(is_near & jnp.isfinite(values), values, 0)
    divisor = jnp.where(is_near, 1, scale)

    def tilted_mean(share: Array) -> Array:
        return jnp.sum(jax.nn.softmax(share * scale * close, axis=0) * close, axis=0)

    # For exponents that differ by at most 1, n nodes have an error of 12.6^(-2 n).
    num_nodes = 8 if values.dtype == jnp.float64 else 4
    nodes, weights = np.polynomial.legendre.leggauss(num_nodes)
    shares = jnp.asarray((nodes + 1) / 2, values.dtype)
    near = jnp.asarray(weights / 2, values.dtype) @ jax.vmap(tilted_mean)(shares)
    near = jnp.where(jnp.isfinite(spread), near, -jnp.inf)
    far = log_mean_exp(divisor * values) / divisor
    return largest + jnp.where(is_near, near, far)
