"""Closed-form KLs of (posterior, prior) pairs, and the registry that finds them.

`register_kl` is how a pair gets its closed form, here or in a user's own file;
where none is registered the objectives estimate the KL from samples. A pair is of the
classes themselves: a subclass may have another density, so it inherits no closed form.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax.distributions import (
    BernoulliDistribution,
    DiagonalGaussianDistribution,
    FullGaussianDistribution,
    LowRankGaussianDistribution,
    PointMassDistribution,
    bernoulli,
    gaussian,
    multivariate_gaussian,
)
from vae_jax.distributions.rounding import without_negative
from vae_jax.families import HouseholderDistribution
from vae_jax.priors.factorized import (
    ClassConditionalPrior,
    DiagonalGaussianPrior,
    FactorizedBernoulliPrior,
    StandardNormal,
)
from vae_jax.types import Array, Posterior, Prior, PyTree

KLDivergence = Callable[[Posterior, Prior, PyTree], Array]
# The function, and whether it is one of units.
_closed_forms: dict[tuple[type, type], tuple[KLDivergence, bool]] = {}


def register_kl(
    posterior_type: type, prior_type: type, *, factorized: bool = False
) -> Callable[[KLDivergence], KLDivergence]:
    """Registers the closed-form KL(q(z|x) || p(z)) of a pair, as a decorator.

    The function is called as `f(posterior, prior, prior_params)` and returns nats
    summed over the latent dimensions, `[B]`. It holds for these two classes and not for
    their subclasses, which may have another density: a subclass that shares it is
    registered as well.

    Args:
      posterior_type: the class of the posterior that a family builds.
      prior_type: the class of the prior; `object` stands for any, where the pair itself
        is not registered.
      factorized: whether both are products over units and every array of both has the
        latent dimension last, so that `unit_kl` may take them unit by unit.

    Returns:
      The decorator, which gives its function back unchanged.

    Example:
      >>> from vae_jax import StandardNormal, register_kl
      >>> class MyPosterior: ...
      >>> @register_kl(MyPosterior, StandardNormal)
      ... def my_kl(posterior, prior, prior_params): ...
    """

    def register(function: KLDivergence) -> KLDivergence:
        _closed_forms[posterior_type, prior_type] = function, factorized
        return function

    return register


def closed_form_kl(posterior_type: type, prior_type: type) -> KLDivergence | None:
    """The KL registered for a pair of classes; None where none is.

    Args:
      posterior_type: the class of a posterior.
      prior_type: the class of a prior.

    Returns:
      A function `f(posterior, prior, prior_params) -> [B]`, or None.

    Example:
      >>> from vae_jax.priors import closed_form_kl
      >>> closed_form_kl(int, int) is None
      True
    """
    return _registered(posterior_type, prior_type)[0]


def _registered(
    posterior_type: type, prior_type: type
) -> tuple[KLDivergence | None, bool]:
    """What is registered for these classes, or for the posterior and any prior."""
    of_any_prior = _closed_forms.get((posterior_type, object), (None, False))
    return _closed_forms.get((posterior_type, prior_type), of_any_prior)


def unit_kl(posterior: Posterior, prior: Prior, prior_params: PyTree) -> Array:
    """KL(q(z_j|x) || p(z_j)) of each example and unit in nats, not summed.

    Args:
      posterior: a product over units: diagonal Gaussian or Bernoulli, batch B.
      prior: likewise, with a closed-form KL registered as `factorized`.
      prior_params: its parameters.

    Returns:
      `[B, L]`.

    Raises:
      ValueError: another pair.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax import StandardNormal
      >>> from vae_jax.distributions import DiagonalGaussianDistribution
      >>> from vae_jax.priors import unit_kl
      >>> q = DiagonalGaussianDistribution(jnp.array([[0.0, 2.0]]), jnp.zeros((1, 2)))
      >>> print(unit_kl(q, StandardNormal(), {}))
      [[0. 2.]]
    """
    closed_form, factorized = _registered(type(posterior), type(prior))
    if closed_form is None or not factorized:
        raise ValueError(
            "the KL of a unit is known for factorized posteriors with a closed-form "
            f"KL, got {type(posterior).__name__} and {prior}"
        )
    # Each unit as a distribution of its own, in one dimension.
    posterior, prior_params = jax.tree.map(
        lambda leaf: leaf[..., None], (posterior, prior_params)
    )
    return closed_form(posterior, prior, prior_params)


@register_kl(DiagonalGaussianDistribution, StandardNormal, factorized=True)
def _diagonal_to_standard(
    posterior: DiagonalGaussianDistribution, prior: Prior, prior_params: PyTree
) -> Array:
    return gaussian.diagonal_kl_to_standard_normal(posterior.mean, posterior.log_var)


@register_kl(DiagonalGaussianDistribution, ClassConditionalPrior, factorized=True)
@register_kl(DiagonalGaussianDistribution, DiagonalGaussianPrior, factorized=True)
def _diagonal_to_diagonal(
    posterior: DiagonalGaussianDistribution, prior: Prior, prior_params: PyTree
) -> Array:
    return gaussian.diagonal_kl_divergence(
        posterior.mean, posterior.log_var, prior_params["mean"], prior_params["log_var"]
    )


@register_kl(FullGaussianDistribution, StandardNormal)
def _full_to_standard(
    posterior: FullGaussianDistribution, prior: Prior, prior_params: PyTree
) -> Array:
    """The diagonal one's, and the squares of the entries below the diagonal."""
    diagonal = gaussian.diagonal_kl_to_standard_normal(
        posterior.mean, posterior.log_var
    )
    return diagonal + 0.5 * jnp.sum(jnp.square(posterior.below), axis=-1)


@register_kl(FullGaussianDistribution, ClassConditionalPrior)
@register_kl(FullGaussianDistribution, DiagonalGaussianPrior)
def _full_to_diagonal(
    posterior: FullGaussianDistribution, prior: Prior, prior_params: PyTree
) -> Array:
    """In units of the prior's deviations, in which the prior is N(0, I)."""
    scale = jnp.exp(-0.5 * prior_params["log_var"])
    rows, _ = np.tril_indices(scale.shape[-1], -1)
    return _full_to_standard(
        FullGaussianDistribution(
            (posterior.mean - prior_params["mean"]) * scale,
            posterior.log_var - prior_params["log_var"],
            posterior.below * scale[..., rows],
        ),
        prior,
        {},
    )


@register_kl(LowRankGaussianDistribution, StandardNormal)
def _low_rank_to_standard(
    posterior: LowRankGaussianDistribution, prior: Prior, prior_params: PyTree
) -> Array:
    diagonal = gaussian.diagonal_kl_to_standard_normal(
        posterior.mean, posterior.log_var
    )
    log_det = multivariate_gaussian.low_rank_log_det(
        posterior.log_var, posterior.factor
    )
    squares = jnp.sum(jnp.square(posterior.factor), axis=(-2, -1))
    log_ratio = log_det - jnp.sum(posterior.log_var, axis=-1)
    return without_negative(diagonal + 0.5 * (squares - log_ratio))


@register_kl(HouseholderDistribution, StandardNormal)
def _householder_to_standard(
    posterior: HouseholderDistribution, prior: Prior, prior_params: PyTree
) -> Array:
    """That of its start: N(0, I) looks the same from everywhere."""
    return gaussian.diagonal_kl_to_standard_normal(posterior.start, posterior.log_var)


@register_kl(BernoulliDistribution, FactorizedBernoulliPrior, factorized=True)
def _bernoulli_to_bernoulli(
    posterior: BernoulliDistribution, prior: Prior, prior_params: PyTree
) -> Array:
    return bernoulli.kl_divergence(posterior.logits, prior_params["logits"])


@register_kl(PointMassDistribution, object)
def _point_mass_to_any(
    posterior: PointMassDistribution, prior: Prior, prior_params: PyTree
) -> Array:
    """0 by definition: the objective of an autoencoder has no such term."""
    return jnp.zeros(posterior.mean.shape[:-1], posterior.mean.dtype)
