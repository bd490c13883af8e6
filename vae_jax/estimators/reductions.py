"""Reductions over the sample axis: the mean, or a bound that the samples share.

A reduction takes values `[S, B]` to `[B]` and moves with a constant:
R(v + c) = R(v) + c.
Applied to log-weights log p(x, z) - log q(z|x), `sample_mean` gives the ELBO,
`log_mean_exp` the importance-weighted bound, and the others what lies between. Those
with settings are pytrees: a real-valued setting is a leaf and may be traced, the rest
is static, and equal reductions compare equal.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax.options import register_options, require_value
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


@register_options(static=("num_groups",))
@dataclass(frozen=True)
class Grouped:
    """The mean over groups of samples of each group's `log_mean_exp` (MIWAE).

    1/M sum_m log 1/K sum_k w_mk with S = M K samples (Rainforth et al. 2018, "Tighter
    variational bounds are not necessarily better"). One group is `log_mean_exp`, S of
    them the mean.

    Attributes:
      num_groups: M, which must divide the number of samples.

    Raises:
      ValueError: `num_groups` below 1; when it is applied, samples that do not divide
        into groups.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.estimators import Grouped
      >>> print(Grouped(2)(jnp.array([[0.0], [0.0], [2.0], [2.0]])))
      [1.]
    """

    num_groups: int

    def __post_init__(self):
        if self.num_groups < 1:
            raise ValueError(f"num_groups must be at least 1, got {self.num_groups}")

    def __call__(self, values: Array) -> Array:
        """Reduces `[S, B]` to `[B]`."""
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
    """A convex combination of the ELBO and the importance-weighted bound (CIWAE).

    weight * mean + (1 - weight) * log_mean_exp (Rainforth et al. 2018).

    Attributes:
      weight: of the mean, between 0 and 1; a number or a traced scalar.

    Raises:
      ValueError: a `weight` outside [0, 1].

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
        """Reduces `[S, B]` to `[B]`."""
        bound = (1 - self.weight) * log_mean_exp(values)
        return self.weight * sample_mean(values) + bound


@register_options()
@dataclass(frozen=True)
class Renyi:
    """The variational Renyi bound of order alpha, `[S, B]` to `[B]`, in nats.

    1 / (1 - alpha) log 1/S sum_s w_s^(1 - alpha) (Li & Turner 2016, eq. 8). Alpha 0 is
    `log_mean_exp`, alpha to 1 the mean; negative alpha lies above log p(x) as S grows.
    Value and derivatives are accurate to rounding for every alpha, 1 and its
    neighbourhood included.

    Attributes:
      alpha: the order, a number or a traced scalar.

    Raises:
      ValueError: `alpha` is infinite or NaN.

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
        """Reduces `[S, B]` to `[B]`."""
        return _scaled_log_mean_exp(values, 1 - self.alpha)


def _scaled_log_mean_exp(values: Array, scale: float | Array) -> Array:
    """Log mean exp(scale * v) / scale over samples, the mean at scale 0.

    The quotient loses its digits where the exponents are all small. There it is taken
    as the integral over r in [0, 1] of the mean of v with weights exp(r * scale * v),
    which has neither a difference nor a division, by Gauss and Legendre's rule.
    """
    scale = jnp.asarray(scale, values.dtype)
    # A reduction moves with a constant: the largest value is taken out.
    largest = jax.lax.stop_gradient(jnp.max(values, axis=0))
    largest = jnp.where(jnp.isfinite(largest), largest, 0)
    values = values - largest
    spread = jax.lax.stop_gradient(-jnp.min(values, axis=0))
    is_near = jnp.abs(scale) * spread <= 1
    # The branch that is not taken must be finite as well, or its gradient is NaN.
    close, divisor = jnp.where(is_near, values, 0), jnp.where(is_near, 1, scale)

    def tilted_mean(share: Array) -> Array:
        return jnp.sum(jax.nn.softmax(share * scale * close, axis=0) * close, axis=0)

    # Exponents that differ by 1 at most leave an error of 12.6^(-2 n) with n nodes.
    num_nodes = 8 if values.dtype == jnp.float64 else 4
    nodes, weights = np.polynomial.legendre.leggauss(num_nodes)
    shares = jnp.asarray((nodes + 1) / 2, values.dtype)
    near = jnp.asarray(weights / 2, values.dtype) @ jax.vmap(tilted_mean)(shares)
    far = log_mean_exp(divisor * values) / divisor
    return largest + jnp.where(is_near, near, far)
