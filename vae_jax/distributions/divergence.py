"""Closed-form KLs of pairs of distributions, and the registry that finds them.

`register_kl` is how a pair gets its closed form, here or in a user's own file;
where none is registered the objectives estimate the KL from samples. A pair is of the
classes themselves: a subclass may have another density, so it inherits no closed form.
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
# Of the two classes that it is registered for.
KLDivergence = Callable[[Any, Any], Array]
# The function, and whether it is one of products over units.
_closed_forms: dict[tuple[type, type], tuple[KLDivergence, bool]] = {}


def register_kl(
    q_type: type[Q], p_type: type[P], *, factorized: bool = False
) -> Callable[[Callable[[Q, P], Array]], Callable[[Q, P], Array]]:
    """Registers the closed-form KL(q || p) of a pair of distributions, as a decorator.

    The function is called as `f(q, p)` and returns nats summed over the dimensions,
    `[B]`. It holds for these two classes and not for their subclasses, which may have
    another density: a subclass that shares it is registered as well.

    Args:
      q_type: the class of q, a `types.Distribution` that a family builds.
      p_type: the class of p, which a prior builds; `object` stands for any, where the
        pair itself is not registered.
      factorized: whether both are products over units and every array of both has the
        latent dimension last, so that `unit_kl` may take them unit by unit.

    Returns:
      The decorator, which gives its function back unchanged.

    Raises:
      ValueError: a family, a prior or anything else that is no class of distributions.

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
    """The KL registered for a pair of classes; None where none is.

    Args:
      q_type: the class of q.
      p_type: the class of p.

    Returns:
      A function `f(q, p) -> [B]`, or None.

    Example:
      >>> from vae_jax.distributions import closed_form_kl
      >>> closed_form_kl(int, int) is None
      True
    """
    return _registered(q_type, p_type)[0]


def _registered(q_type: type, p_type: type) -> tuple[KLDivergence | None, bool]:
    """What is registered for these classes, or for q and any p."""
    of_any = _closed_forms.get((q_type, object), (None, False))
    return _closed_forms.get((q_type, p_type), of_any)


def unit_kl(q: Distribution, p: Distribution) -> Array:
    """KL(q_l || p_l) of each example and unit in nats, not summed.

    Args:
      q: a product over units: diagonal Gaussian or Bernoulli, batch B.
      p: likewise, a batch of one or of B, with a closed-form KL registered as
        `factorized`.

    Returns:
      `[B, L]`.

    Raises:
      ValueError: another pair.

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
            f"KL, got {type(q).__name__} and {type(p).__name__}"
        )
    # Each unit as a distribution of its own, in one dimension.
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
    """The diagonal one's, and the squares below the diagonal in deviations of p."""
    rows, _ = np.tril_indices(p.mean.shape[-1], -1)
    _, log_var = jnp.broadcast_arrays(p.mean, p.log_var)
    below = q.below * jnp.exp(-0.5 * log_var)[..., rows]
    diagonal = gaussian.diagonal_kl_divergence(q.mean, q.log_var, p.mean, p.log_var)
    return diagonal + 0.5 * jnp.sum(jnp.square(below), axis=-1)


@register_kl(LowRankGaussianDistribution, DiagonalGaussianDistribution)
def _low_rank_to_diagonal(
    q: LowRankGaussianDistribution, p: DiagonalGaussianDistribution
) -> Array:
    """The diagonal one's, and what F adds to the trace and the determinant."""
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
    """0 by definition: the objective of an autoencoder has no such term."""
    return jnp.zeros(q.mean.shape[:-1], q.mean.dtype)
