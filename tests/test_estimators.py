"""Estimates of expectations: values and gradients on integrands that are known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from vae_jax import reparameterization
from vae_jax.estimators import log_mean_exp, sample_mean
from vae_jax.posteriors import DiagonalGaussianPosterior, PointMassPosterior

MEAN, LOG_VAR = np.float32([[0.3, -1.2]]), np.float32([[0.4, -0.8]])
VAR = np.exp(LOG_VAR)
SLOPE = np.float32([1.5, -0.5])
NUM_KEYS = 5000

# name: (f, E f, d/d mean, d/d log_var, both of E f)
INTEGRANDS = {
    "constant": (lambda z: jnp.ones(z.shape[:-1]), 1.0, 0 * MEAN, 0 * MEAN),
    "linear": (lambda z: z @ SLOPE, (MEAN @ SLOPE)[0], SLOPE[None], 0 * MEAN),
    "quadratic": (
        lambda z: jnp.sum(z**2, axis=-1),
        np.sum(MEAN**2 + VAR),
        2 * MEAN,
        VAR,
    ),
    "exponential": (
        lambda z: jnp.sum(jnp.exp(z), axis=-1),
        np.sum(np.exp(MEAN + VAR / 2)),
        np.exp(MEAN + VAR / 2),
        VAR / 2 * np.exp(MEAN + VAR / 2),
    ),
}


@pytest.fixture(scope="module")
def draws():
    """Value and gradients of one sample, for every integrand and many keys."""

    def one(key):
        def estimate(mean, log_var, name):
            function = INTEGRANDS[name][0]
            posterior = DiagonalGaussianPosterior(mean, log_var)
            return reparameterization(lambda z, log_q: function(z), posterior, key)[0]

        value_and_grad = jax.value_and_grad(estimate, argnums=(0, 1))
        return {name: value_and_grad(MEAN, LOG_VAR, name) for name in INTEGRANDS}

    keys = jax.random.split(jax.random.key(0), NUM_KEYS)
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(one))(keys))


@pytest.mark.parametrize("name", INTEGRANDS)
def test_reparameterization_has_the_exact_expectations(name, draws, assert_mean):
    value, (by_mean, by_log_var) = draws[name]
    _, *expected = INTEGRANDS[name]
    actual = value, by_mean, by_log_var
    for samples, expectation in zip(actual, expected, strict=True):
        if np.ptp(samples, axis=0).max() < 1e-6:  # The same for every sample: exact.
            np.testing.assert_allclose(samples[0], expectation, atol=1e-6)
        else:
            assert_mean(samples, expectation)


def test_reparameterization_is_exact_where_the_gradient_does_not_depend_on_z(draws):
    _, (by_mean, by_log_var) = draws["constant"]
    assert not by_mean.any() and not by_log_var.any()
    _, (by_mean, _) = draws["linear"]
    np.testing.assert_allclose(by_mean, np.broadcast_to(SLOPE, by_mean.shape))


def test_reparameterization_has_the_known_variance_on_the_quadratic(draws, assert_mean):
    """d/dm of (m + s eps)^2 is 2 z, whose variance is 4 s^2."""
    _, (by_mean, _) = draws["quadratic"]
    assert_mean((by_mean - 2 * MEAN) ** 2, 4 * VAR)


def test_reparameterization_averages_its_samples_and_every_part_of_a_tree(key):
    posterior = DiagonalGaussianPosterior(jnp.ones((4, 3)), jnp.zeros((4, 3)))

    @jax.jit
    def estimates(key):
        def integrand(z, log_q):
            return {"first": z[..., 0], "log_q": log_q}

        estimate = functools.partial(
            reparameterization, integrand, posterior, key, num_samples=2
        )
        draws = posterior.sample_and_log_prob(key, 2)
        return integrand(*draws), estimate(), estimate(reduction=log_mean_exp)

    values, means, bounds = jax.tree.map(np.asarray, estimates(key))
    for name in ("first", "log_q"):
        np.testing.assert_allclose(means[name], values[name].mean(axis=0), rtol=1e-6)
        expected = np.log(np.mean(np.exp(values[name]), axis=0))
        np.testing.assert_allclose(bounds[name], expected, rtol=1e-5)


def test_reparameterization_of_a_point_mass_is_the_value_at_the_point(key):
    posterior = PointMassPosterior(jnp.float32(MEAN))
    value = reparameterization(lambda z, _: z.sum(-1), posterior, key, num_samples=3)
    np.testing.assert_allclose(value, MEAN.sum(axis=-1), rtol=1e-6)


@pytest.mark.parametrize("offset", [-1e4, -200.0, 0.0, 200.0, 1e4])
def test_log_mean_exp_is_scipys_and_never_overflows(offset):
    values = offset + np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
    expected = scipy.special.logsumexp(np.float64(values), axis=0) - np.log(7)
    actual = jax.jit(log_mean_exp)(values)
    np.testing.assert_allclose(actual, expected, rtol=2e-7, atol=1e-6)


def test_log_mean_exp_of_one_sample_is_the_sample():
    values = np.random.default_rng(1).normal(size=(1, 4)).astype(np.float32)
    np.testing.assert_array_equal(jax.jit(log_mean_exp)(values), values[0])
    np.testing.assert_array_equal(sample_mean(values), values[0])


def test_the_gradient_of_log_mean_exp_is_the_normalised_weights():
    values = np.random.default_rng(2).normal(size=(7, 1)).astype(np.float32) * 3
    gradient = jax.jit(jax.grad(lambda values: log_mean_exp(values)[0]))(values)
    np.testing.assert_allclose(gradient, scipy.special.softmax(values, 0), rtol=1e-5)


def test_log_mean_exp_keeps_the_dtype(x64):
    for dtype in (jnp.float32, jnp.float64):
        values = jax.ShapeDtypeStruct((3, 2), dtype)
        assert jax.eval_shape(log_mean_exp, values).dtype == dtype
