"""Auxiliary outputs of an integrand are estimated and do not affect its gradient."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vae_jax import (
    MLP,
    FactorizedBernoulli,
    FactorizedBernoulliPrior,
    ModelSpec,
    elbo_terms,
    estimators,
    importance_weighted_bound,
    importance_weighted_objective,
    importance_weighted_terms,
    init,
)
from vae_jax.distributions import BernoulliDistribution, DiagonalGaussianDistribution

RNG = np.random.default_rng(8)
MEAN, LOG_VAR, LOGITS = (RNG.normal(size=(2, 3)).astype(np.float32) for _ in range(3))
GAUSSIAN = DiagonalGaussianDistribution(MEAN, LOG_VAR)
BITS = BernoulliDistribution(LOGITS)

# Estimator and a distribution it supports.
ESTIMATORS = {
    "value_only": (estimators.value_only, GAUSSIAN),
    "reparameterization": (estimators.reparameterization, GAUSSIAN),
    "path_derivative": (estimators.path_derivative, GAUSSIAN),
    "doubly_reparameterized": (estimators.doubly_reparameterized, GAUSSIAN),
    "delta_control_variate": (estimators.delta_control_variate, GAUSSIAN),
    "measure_valued": (estimators.measure_valued, GAUSSIAN),
    "sigma_points": (estimators.sigma_points, GAUSSIAN),
    "score_function": (estimators.score_function, BITS),
    "mean_baseline": (estimators.mean_baseline, BITS),
    "leave_one_out": (estimators.leave_one_out, BITS),
    "optimal_baseline": (estimators.optimal_baseline, BITS),
    "exact_enumeration": (estimators.exact_enumeration, BITS),
    "gumbel_softmax": (estimators.gumbel_softmax, BITS),
    "straight_through": (estimators.straight_through, BITS),
    "rebar": (estimators.rebar, BITS),
    "arm": (estimators.arm, BITS),
    "disarm": (estimators.disarm, BITS),
}


def test_every_estimator_is_here():
    known = {name for name in estimators.__all__ if name in ESTIMATORS}
    others = {"GradientMoments", "Moments", "baseline_loss", "gradient_moments"}
    reductions = {"Combined", "Grouped", "Renyi", "log_mean_exp", "sample_mean"}
    assert known | others | reductions | {"vimco"} == set(estimators.__all__)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_auxiliary_outputs_are_estimated_and_change_nothing(name):
    """They equal the estimate of a plain integrand and have no gradient."""
    estimator, posterior = ESTIMATORS[name]
    options = {"num_samples": 1 if name == "sigma_points" else 2}

    def integrand(z, log_q):
        return jnp.sum(jnp.sin(z), axis=-1) - log_q

    def auxiliary(z, log_q):
        return jnp.sum(z**3, axis=-1) + log_q

    def estimate(posterior, function, has_aux):
        return estimator(
            function, posterior, jax.random.key(3), has_aux=has_aux, **options
        )

    @jax.jit
    def everything(posterior):
        def with_both(posterior):
            value, aux = estimate(
                posterior, lambda *draw: (integrand(*draw), auxiliary(*draw)), True
            )
            return jnp.sum(value), (value, aux)

        def alone(posterior):
            value = estimate(posterior, integrand, False)
            return jnp.sum(value), value

        def of_auxiliary(posterior):
            _, (_, aux) = with_both(posterior)
            return jnp.sum(aux)

        return (
            jax.grad(with_both, has_aux=True)(posterior),
            jax.grad(alone, has_aux=True)(posterior),
            estimate(posterior, auxiliary, False),
            jax.grad(of_auxiliary)(posterior),
        )

    both, alone, aux, aux_gradient = jax.device_get(everything(posterior))
    (gradient, (value, found)), (expected_gradient, expected) = both, alone
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(found, aux, rtol=1e-5)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
        gradient,
        expected_gradient,
    )
    jax.tree.map(lambda leaf: np.testing.assert_array_equal(leaf, 0), aux_gradient)


def test_an_auxiliary_output_of_another_shape_is_refused():
    with pytest.raises(AssertionError, match="shape"):
        estimators.reparameterization(
            lambda z, log_q: (jnp.sum(z, axis=-1), z),
            GAUSSIAN,
            jax.random.key(0),
            has_aux=True,
        )


SPEC = ModelSpec(MLP((4,)), MLP((4,)), latent_dim=2, data_shape=(5,))
BITS_SPEC = dataclasses.replace(
    SPEC, posterior=FactorizedBernoulli(), prior=FactorizedBernoulliPrior()
)
X = RNG.integers(0, 2, (3, 5)).astype(np.float32)


@pytest.mark.parametrize(
    "spec, estimator",
    [
        (SPEC, estimators.reparameterization),
        (SPEC, estimators.doubly_reparameterized),
        (BITS_SPEC, estimators.vimco),
    ],
    ids=["pathwise", "DReG", "VIMCO"],
)
def test_what_is_logged_costs_no_product_of_matrices(spec, estimator):
    """The gradient's program has as many products with logged terms as without."""
    params, key = init(spec, jax.random.key(0)), jax.random.key(1)
    options = {"num_samples": 4, "estimator": estimator}
    objective = importance_weighted_objective(**options)

    def bound(params):
        return importance_weighted_bound(params, X, key, **options)

    def logged(params):
        return objective(params, X, key, 0)

    def products(gradient):
        return str(jax.make_jaxpr(gradient)(params)).count("dot_general")

    assert products(jax.grad(logged, has_aux=True)) == products(jax.grad(bound))


@pytest.mark.parametrize("spec", [SPEC, BITS_SPEC], ids=["normal", "bits"])
def test_the_terms_of_a_bound_are_those_of_the_elbo(spec):
    params, key = init(spec, jax.random.key(0)), jax.random.key(1)
    options = {"num_samples": 4, "estimator": estimators.value_only}
    bound, terms = jax.jit(
        lambda params: (
            importance_weighted_terms(params, X, key, **options),
            elbo_terms(params, X, key, **options),
        )
    )(params)
    np.testing.assert_allclose(bound.log_likelihood, terms.log_likelihood, rtol=1e-6)
    np.testing.assert_allclose(bound.kl_divergence, terms.kl_divergence, rtol=1e-6)
