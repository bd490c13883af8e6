"""Control variate for the score-function estimator: the delta method for Gaussians."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vae_jax.distributions import DiagonalGaussianDistribution
from vae_jax.estimators.contract import (
    Integrand,
    Reduction,
    along_parameters,
    at_frozen,
    constant_draws,
    expand_to_score,
    nonzero,
    require_mean,
    require_type,
    sample_mean,
    scores,
    values_of,
    with_auxiliary,
    with_surrogate,
)
from vae_jax.options import require_at_least
from vae_jax.types import Array, Key, Latents, Posterior, PyTree


def delta_control_variate(
    integrand: Integrand,
    posterior: Posterior,
    key: Key,
    *,
    num_samples: int = 1,
    reduction: Reduction = sample_mean,
    has_aux: bool = False,
    num_coefficient_samples: int = 0,
) -> PyTree:
    """Score-function estimate with a control variate from the delta method.

        g = 1/S sum_s [f(z_s) s(z_s) - c (h(z_s) s(z_s) - d/d phi E_q[h(z)])]
        s(z) = d/d phi log q_phi(z)

    with h the second-order expansion of f at the mean of q, whose expectation under a
    Gaussian is known (Paisley, Blei & Jordan 2012; Mohamed, Rosca, Figurnov & Mnih
    2020, section 7). Unbiased, with zero variance if f is quadratic and c = 1. Cost:
    one evaluation of f per sample, and L + 1 derivatives of f at the mean for the full
    Hessian.

    Args:
      integrand: f; must be twice differentiable for the variance to be reduced.
      posterior: q, a batch of B diagonal Gaussians.
      key: PRNG key, consumed once.
      num_samples: number S of samples.
      reduction: must be the mean.
      has_aux: whether f also returns auxiliary outputs (`types.Estimator`).
      num_coefficient_samples: number of separate samples from which c is estimated for
        each parameter, as Cov(f score, control) / Var(control); 0 sets c = 1.

    Returns:
      The estimates, `[B]` for each `[S, B]`.

    Raises:
      ValueError: `num_samples` is below 1, or `num_coefficient_samples` is 1; q is not
        a diagonal Gaussian; `reduction` is not the mean.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax.estimators import delta_control_variate
      >>> from vae_jax.distributions import DiagonalGaussianDistribution
      >>> def mean_square(mean):
      ...     q = DiagonalGaussianDistribution(mean, jnp.zeros((1, 1)))
      ...     f = lambda z, log_q: jnp.sum(z**2, axis=-1)
      ...     return delta_control_variate(f, q, jax.random.key(0))[0]
      >>> print(jax.grad(mean_square)(jnp.ones((1, 1))))
      [[2.]]
    """
    name = "delta_control_variate"
    require_mean(reduction, name, "leave_one_out")
    posterior = require_type(posterior, DiagonalGaussianDistribution, name)
    key, coefficient_key = jax.random.split(key)
    z, log_q = constant_draws(posterior, key, num_samples, name)
    values, aux = values_of(integrand, z, log_q, has_aux)
    expansions = _expansions(at_frozen(integrand, posterior, has_aux), posterior)
    terms = _terms_and_controls(values, expansions, z, scores(posterior, z))
    if num_coefficient_samples:
        require_at_least("num_coefficient_samples", num_coefficient_samples, 2)
        others = constant_draws(
            posterior, coefficient_key, num_coefficient_samples, name
        )
        coefficients = _coefficients(
            *_terms_and_controls(
                values_of(integrand, *others, has_aux)[0],
                expansions,
                others[0],
                scores(posterior, others[0]),
            )
        )
    else:
        coefficients = jax.tree.map(lambda _: 1.0, terms[0])
    gradients = jax.tree.map(
        lambda term, control, c: sample_mean(term - c * control), *terms, coefficients
    )
    estimates = [
        with_surrogate(sample_mean(value), along_parameters(gradient, posterior))
        for value, gradient in zip(jax.tree.leaves(values), gradients, strict=True)
    ]
    estimates = jax.tree.unflatten(jax.tree.structure(values), estimates)
    return with_auxiliary(estimates, aux, has_aux)


class _Expansion(NamedTuple):
    """Second-order expansion of a function at the mean of a Gaussian.

    Attributes:
      mean: point of expansion, `[B, L]`.
      variance: variance of the Gaussian, `[B, L]`.
      value: `[B]`.
      gradient: `[B, L]`.
      hessian: `[L, B, L]`.
    """

    mean: Array
    variance: Array
    value: Array
    gradient: Array
    hessian: Array


def _expansions(
    function: Callable[[Latents], tuple[PyTree, PyTree]],
    posterior: DiagonalGaussianDistribution,
) -> list[_Expansion]:
    """Constant expansions, one per leaf of the function's values."""
    mean, log_var = jax.lax.stop_gradient((posterior.mean, posterior.log_var))
    basis = jnp.eye(mean.shape[-1], dtype=mean.dtype)

    def expansion(index: int) -> _Expansion:
        def value(mean: Array) -> Array:
            return jax.tree.leaves(function(mean[None])[0])[index][0]

        # Examples are independent in f: the gradient of the sum is per example.
        gradient = jax.grad(lambda mean: jnp.sum(value(mean)))

        def column(direction: Array) -> Array:
            direction = jnp.broadcast_to(direction, mean.shape)
            return jax.jvp(gradient, (mean,), (direction,))[1]

        hessian = jax.vmap(column)(basis)
        return _Expansion(mean, jnp.exp(log_var), value(mean), gradient(mean), hessian)

    num_parts = len(jax.tree.leaves(jax.eval_shape(function, mean[None])[0]))
    return jax.lax.stop_gradient([expansion(index) for index in range(num_parts)])


def _terms_and_controls(
    values: PyTree,
    expansions: list[_Expansion],
    z: Array,
    sample_scores: DiagonalGaussianDistribution,
) -> tuple[list[PyTree], list[PyTree]]:
    """Terms f score and controls h score - d/d phi E[h], per leaf of the values."""
    terms = [
        jax.tree.map(
            lambda score, v=value: expand_to_score(v, score) * score, sample_scores
        )
        for value in jax.tree.leaves(values)
    ]
    controls = []
    for expansion in expansions:
        offset = z - expansion.mean
        bend = jnp.einsum("sbl,lbk,sbk->sb", offset, expansion.hessian, offset)
        h = expansion.value + jnp.sum(expansion.gradient * offset, -1) + 0.5 * bend
        diagonal = jnp.einsum("lbl->bl", expansion.hessian)
        expected = DiagonalGaussianDistribution(
            mean=expansion.gradient, log_var=0.5 * diagonal * expansion.variance
        )
        controls.append(
            jax.tree.map(
                lambda score, mean, h=h: expand_to_score(h, score) * score - mean,
                sample_scores,
                expected,
            )
        )
    return terms, controls


def _coefficients(terms: list[PyTree], controls: list[PyTree]) -> list[PyTree]:
    """Regression coefficients Cov(term, control) / Var(control) over samples."""

    def coefficient(term: Array, control: Array) -> Array:
        control = control - sample_mean(control)
        return jnp.sum(term * control, 0) / nonzero(jnp.sum(jnp.square(control), 0))

    return jax.tree.map(coefficient, terms, controls)
