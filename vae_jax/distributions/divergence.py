"""Closed-form KL divergences of pairs of distributions, and their registry.

`register_kl` registers a closed form for a pair of classes, in this file or in user
code; for other pairs, the objectives estimate the KL from samples. Subclasses do not
inherit a closed form, since their density may differ.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax.distributions import bernoulli, gaussian, multivariate_gaussian
from vae_jax.distributions.bernoulli import BernoulliDistribution
from vae_jax.distributions.gaussian import DiagonalGaussianDistribution
from vae_jax.distributions.multivariate_gaussian import (
    FullGaussianDistribution,
    LowRankGaussianDistribution,
)
from vae_jax.distributions.point_mass import PointMassDistribution
from vae_jax.distributions.rounding import without_negative
from vae_jax.types import Array, Distribution

Q = TypeVar("Q")
P = TypeVar("P")
# A function of instances of the two classes that it is registered for.
KLDivergence = Callable[[Any, Any], Array]
# The function, and whether both distributions factorize over units.
_closed_forms: dict[tuple[type, type], tuple[KLDivergence, bool]] = {}


def register_kl(
    q_type: type[Q], p_type: type[P], *, factorized: bool = False
) -> Callable[[Callable[[Q, P], Array]], Callable[[Q, P], Array]]:
    """Register the closed-form KL(q || p) of a pair of distributions, as a decorator.

    The function is called as `f(q, p)` and returns nats summed over the dimensions,
    `[B]`. It applies to exactly these two classes. A subclass with the same density
    must be registered separately.

    Args:
      q_type: class of q, a `types.Distribution` that a family builds.
      p_type: class of p, which a prior builds. `object` matches any class for which the
        pair itself is not registered.
      factorized: whether both distributions factorize over units and all their arrays
        have the latent dimension last, so that `unit_kl` can be computed.

    Returns:
      A decorator that returns its function unchanged.

    Raises:
      ValueError: an argument is not a class of distributions, for example a family or a
        prior.

    Example:
      >>> from vae_jax import register_kl
      >>> from vae_jax.distributions import DiagonalGaussianDistribution, closed_form_kl
      >>> class Mine(DiagonalGaussianDistribution): ...
      >>> @register_kl(Mine, DiagonalGaussianDistribution)
      ... def my_kl(q, p): ...
      >>> closed_form_kl(Mine, DiagonalGaussianDistribution) is my_kl
      True
    """
    _require_distributions("q_type", q_type)
    if p_type is not object:
        _require_distributions("p_type", p_type)

    def register(function: Callable[[Q, P], Array]) -> Callable[[Q, P], Array]:
        _closed_forms[q_type, p_type] = function, factorized
        return function

    return register


def _require_distributions(name: str, given: Any) -> None:
    if not (isinstance(given, type) and issubclass(given, Distribution)):
        raise ValueError(
            f"{name} must be a subclass of vae_jax.types.Distribution, which a family "
            f"or a prior builds, got {given!r}"
        )


def closed_form_kl(q_type: type, p_type: type) -> KLDivergence | None:
    """Return the KL function registered for a pair of classes, or None.

    Args:
      q_type: class of q.
      p_type: class of p.

    Returns:
      A function `f(q, p) -> [B]`, or None.

    Example:
      >>> from vae_jax.distributions import closed_form_kl
      >>> closed_form_kl(int, int) is None
      True
    """
    return _registered(q_type, p_type)[0]


def _registered(q_type: type, p_type: type) -> tuple[KLDivergence | None, bool]:
    """Look up the entry of a pair of classes, or that of q with any p."""
    of_any = _closed_forms.get((q_type, object), (None, False))
    return _closed_forms.get((q_type, p_type), of_any)


def unit_kl(q: Distribution, p: Distribution) -> Array:
    """KL(q_l || p_l) of each example and unit in nats, not summed.

    Args:
      q: distribution that factorizes over units (diagonal Gaussian or Bernoulli), batch
        B.
      p: likewise, with a batch of one or B; the closed-form KL of the pair must be
        registered as `factorized`.

    Returns:
      `[B, L]`.

    Raises:
      ValueError: no factorized closed-form KL is registered for the pair.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.distributions import DiagonalGaussianDistribution, unit_kl
      >>> q = DiagonalGaussianDistribution(jnp.array([[0.0, 2.0]]), jnp.zeros((1, 2)))
      >>> p = DiagonalGaussianDistribution(jnp.zeros((1, 2)), jnp.zeros((1, 2)))
      >>> print(unit_kl(q, p))
      [[0. 2.]]
    """
    closed_form, factorized = _registered(type(q), type(p))
    if closed_form is None or not factorized:
        raise ValueError(
            "the KL of a unit is known for factorized posteriors with a closed-form "
            f"KL, got {type(q).__name__} and {type(p).__name__}: choose a diagonal "
            "Gaussian or Bernoulli posterior and a prior of the same kind, or set a "
            "target for the mean KL (capacity)"
        )
    # Treat each unit as a separate one-dimensional distribution.
    return closed_form(*jax.tree.map(lambda leaf: leaf[..., None], (q, p)))


@register_kl(
    DiagonalGaussianDistribution, DiagonalGaussianDistribution, factorized=True
)
def _diagonal_to_diagonal(
    q: DiagonalGaussianDistribution, p: DiagonalGaussianDistribution
) -> Array:
    return gaussian.diagonal_kl_divergence(q.mean, q.log_var, p.mean, p.log_var)


@register_kl(FullGaussianDistribution, DiagonalGaussianDistribution)
def _full_to_diagonal(
    q: FullGaussianDistribution, p: DiagonalGaussianDistribution
) -> Array:
    """Diagonal KL plus the squared entries below the diagonal, scaled by p."""
    rows, _ = np.tril_indices(p.mean.shape[-1], -1)
    _, log_var = jnp.broadcast_arrays(p.mean, p.log_var)
    below = q.below * jnp.exp(-0.5 * log_var)[..., rows]
    diagonal = gaussian.diagonal_kl_divergence(q.mean, q.log_var, p.mean, p.log_var)
    return diagonal + 0.5 * jnp.sum(jnp.square(below), axis=-1)


@register_kl(LowRankGaussianDistribution, DiagonalGaussianDistribution)
def _low_rank_to_diagonal(
    q: LowRankGaussianDistribution, p: DiagonalGaussianDistribution
) -> Array:
    """Diagonal KL plus the contributions of F to trace and determinant."""
    diagonal = gaussian.diagonal_kl_divergence(q.mean, q.log_var, p.mean, p.log_var)
    factor = q.factor * jnp.exp(-0.5 * p.log_var)[..., None]
    squares = jnp.sum(jnp.square(factor), axis=(-2, -1))
    log_det = multivariate_gaussian.low_rank_log_det(q.log_var, q.factor)
    log_ratio = log_det - jnp.sum(q.log_var, axis=-1)
    return without_negative(diagonal + 0.5 * (squares - log_ratio))


@register_kl(BernoulliDistribution, BernoulliDistribution, factorized=True)
def _bernoulli_to_bernoulli(
    q: BernoulliDistribution, p: BernoulliDistribution
) -> Array:
    return bernoulli.kl_divergence(q.logits, p.logits)


@register_kl(PointMassDistribution, object)
def _point_mass_to_any(q: PointMassDistribution, p: object) -> Array:
    """Return 0 by definition, which gives the objective of an autoencoder."""
    return jnp.zeros(q.mean.shape[:-1], q.mean.dtype)
