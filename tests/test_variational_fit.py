"""The best q of each example, against the closed form of linear-Gaussian models."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vae_jax import elbo_terms, exact, fit_posterior, inference_gap
from vae_jax.quasi_newton import minimize

FIT = jax.jit(fit_posterior)


def model_and_data(noise_var, weights):
    """A linear model whose posterior is correlated, so that a diagonal q has a gap."""
    rng = np.random.default_rng(5)
    data_dim = len(weights)
    bias = rng.normal(size=data_dim)
    covariance = weights @ weights.T + noise_var * np.eye(data_dim)
    x = rng.multivariate_normal(bias, covariance, size=4)
    model = exact.LinearGaussian(
        *(jnp.asarray(part, jnp.float32) for part in (weights, bias, noise_var))
    )
    return model, jnp.asarray(x, jnp.float32)


def correlated(noise_var):
    rng = np.random.default_rng(4)
    weights = rng.normal(size=(5, 2)) + 0.45 * rng.normal(size=(5, 1))
    return model_and_data(noise_var, weights)


def at_the_prior(model):
    """Its VAE with an encoder that says N(0, I) of every x."""
    params = exact.linear_vae(model)
    return params.replace(encoder=jax.tree.map(jnp.zeros_like, params.encoder))


def displaced(model):
    """Its VAE with an encoder that is off."""
    params = exact.linear_vae(model)
    output = params.encoder["output"]
    bias = output["bias"] + jnp.array([0.4, -0.3, 0.5, 0.5])
    return params.replace(encoder={"output": output | {"bias": bias}})


def divergence(model, x, q):
    """KL(q || p(z|x)) of diagonal Gaussians in float64, `[B]`: log p(x) - ELBO."""
    weights, noise = np.float64(model.weights), np.float64(model.noise_var)
    precision = weights.T @ weights / noise + np.eye(weights.shape[1])
    target = np.linalg.solve(precision, ((x - model.bias) @ weights / noise).T).T
    off, var = np.float64(q.mean) - target, np.exp(np.float64(q.log_var))
    squares = np.einsum("bi,ij,bj->b", off, precision, off) + var @ np.diag(precision)
    log_dets = np.log(var).sum(axis=1) + np.linalg.slogdet(precision)[1]
    return 0.5 * (squares - var.shape[1] - log_dets)


def least_divergence(model):
    weights, noise = np.float64(model.weights), np.float64(model.noise_var)
    precision = weights.T @ weights / noise + np.eye(weights.shape[1])
    return 0.5 * (np.log(np.diag(precision)).sum() - np.linalg.slogdet(precision)[1])


@pytest.mark.long
@pytest.mark.parametrize("noise_var", [0.5, 1e-3])
@pytest.mark.parametrize("encoder", [at_the_prior, displaced])
def test_the_fitted_posterior_is_the_best_of_its_family(encoder, noise_var):
    """Variance 1 / diag(precision); N(0, I) is up to thousands of nats from it."""
    model, x = correlated(noise_var)
    fitted = FIT(encoder(model), x, jax.random.key(0))
    excess = divergence(model, x, fitted.posterior) - least_divergence(model)
    assert least_divergence(model) > 0.1
    assert np.all(excess < 0.03), excess
    assert np.all(fitted.converged)
    assert np.all(np.abs(fitted.remaining_improvement) < 0.05)


@pytest.mark.long
def test_convergence_is_not_claimed_where_it_is_not_there():
    """Standard deviations from 1e-4 to 1, in directions that are no axes."""
    rng = np.random.default_rng(0)
    size = 12
    rotations = [np.linalg.qr(rng.normal(size=(size, size)))[0] for _ in range(2)]
    weights = rotations[0] * np.geomspace(1, 1e4, size) @ rotations[1]
    model, x = model_and_data(1.0, weights)
    few = jax.jit(functools.partial(fit_posterior, num_steps=5))
    fitted = few(at_the_prior(model), x, jax.random.key(0))
    excess = divergence(model, x, fitted.posterior) - least_divergence(model)
    assert np.all(excess > 1), "the search is better than the test needs it to be"
    assert not np.any(fitted.converged)


@pytest.mark.long
def test_an_examples_fit_is_its_own():
    """Wherever it stands, and whatever is computed with it."""
    model, x = correlated(0.5)
    params, key = displaced(model), jax.random.key(1)

    @jax.jit
    def fits(key):
        few = functools.partial(fit_posterior, num_steps=2, num_samples=2)
        whole = few(params, x, key, chunk_size=2 * 128)
        return whole, few(params, x[2:], key, first=2)

    whole, part = fits(key)
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(part), strict=True):
        np.testing.assert_allclose(one[2:], other, rtol=1e-3, atol=1e-3)


@pytest.mark.long
def test_the_gap_of_an_encoder_at_the_prior_is_that_of_the_family():
    split = jax.jit(inference_gap)
    for noise_var in (0.5, 1e-3):
        model, x = correlated(noise_var)
        gap = split(at_the_prior(model), x, jax.random.key(3))
        evidence = np.asarray(exact.log_evidence(model, x))
        np.testing.assert_allclose(gap.log_evidence, evidence, atol=0.1)
        # A thousand samples of terms that spread by about a nat.
        family = least_divergence(model)
        np.testing.assert_allclose(gap.approximation_gap, family, atol=0.25)
        assert np.all(gap.amortization_gap > 1) and np.all(gap.converged)


@pytest.mark.slow
def test_the_gap_splits_into_family_and_encoder():
    model, x = correlated(0.5)
    params = displaced(model)
    gap = jax.jit(inference_gap)(params, x, jax.random.key(3))
    many = functools.partial(elbo_terms, num_samples=20_000)
    key = jax.random.key(4)
    own, best = (
        jax.jit(many)(p, x, key).elbo for p in (params, exact.linear_vae(model))
    )
    np.testing.assert_allclose(gap.amortization_gap, best - own, atol=0.25)
    assert np.all(np.asarray(best - own) > 0.3)


@pytest.mark.parametrize("option", ["num_steps", "num_samples", "chunk_size"])
def test_sizes_below_one_are_refused(option):
    model, x = correlated(0.5)
    params, key = displaced(model), jax.random.key(0)
    for function in (fit_posterior, inference_gap):
        with pytest.raises(ValueError, match=f"{option} must be at least 1, got 0"):
            function(params, x, key, **{option: 0})


@pytest.mark.parametrize("condition", [1.0, 1e4])
def test_quasi_newton_steps_find_the_minimum_of_a_bowl(condition):
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))[0]
    hessian = jnp.asarray(rotation * np.geomspace(1, condition, 6) @ rotation.T)
    center = jnp.arange(6.0)

    def bowl(z):
        return 0.5 * (z - center) @ hessian @ (z - center) + 7

    found = minimize(bowl, jnp.zeros(6), num_evaluations=60)
    np.testing.assert_allclose(found.point, center, atol=2e-2)
    assert found.value <= found.start_value and found.num_accepted > 5


def test_quasi_newton_steps_stay_where_the_function_is_defined():
    """-log z + z is infinite or nan at and below 0, and least at 1."""
    found = minimize(
        lambda z: jnp.sum(z - jnp.log(z)), jnp.array([1e-3, 20.0]), num_evaluations=40
    )
    np.testing.assert_allclose(found.point, 1, atol=1e-2)
