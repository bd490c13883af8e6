"""Families of p(x|z): normalised, with the constants, against quadrature and SciPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.stats

from vae_jax import Bernoulli, Gaussian, PerPixelGaussian
from vae_jax.distributions import DiagonalGaussianDistribution
from vae_jax.families import bound_log_var


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_bernoulli_probabilities_sum_to_one():
    outcomes = np.float32(list(itertools.product([0, 1], repeat=4)))
    likelihood = Bernoulli().build({}, normal(0, 3, 1, 4))
    log_prob = likelihood.log_prob(outcomes)
    assert log_prob.shape == (3, 16)
    np.testing.assert_allclose(np.exp(log_prob).sum(axis=1), 1, rtol=1e-6)


def test_bernoulli_mean_and_samples(key, assert_mean):
    likelihood = Bernoulli().build({}, jnp.broadcast_to(normal(1, 2, 3), (8000, 2, 3)))
    draws = np.asarray(likelihood.sample(key, 1)[0])
    assert draws.shape == (8000, 2, 3) and set(np.unique(draws)) == {0, 1}
    assert_mean(draws, likelihood.mean[0])
    np.testing.assert_allclose(likelihood.mean, 1 / (1 + np.exp(-likelihood.logits)))


@pytest.mark.parametrize("log_var", [-1.0, 0.0, 1.3])
def test_gaussian_density_integrates_to_one(log_var):
    grid = np.linspace(-12, 12, 201).astype(np.float32)
    points = np.stack(np.meshgrid(grid, grid, indexing="ij"), axis=-1).reshape(-1, 2)
    likelihood = DiagonalGaussianDistribution(normal(2, 1, 1, 2), jnp.float32(log_var))
    density = np.exp(likelihood.log_prob(points)).reshape(201, 201)
    inner = scipy.integrate.simpson(density, x=grid)
    assert scipy.integrate.simpson(inner, x=grid) == pytest.approx(1, rel=1e-4)


def test_gaussian_log_prob_is_scipys_and_keeps_its_constant():
    x, mean = normal(3, 4, 5), normal(4, 3, 4, 5)
    actual = DiagonalGaussianDistribution(mean, jnp.float32(-0.7)).log_prob(x)
    expected = scipy.stats.norm.logpdf(x, mean, np.exp(-0.35)).sum(-1)
    assert actual.shape == (3, 4)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_squared_error_of_weight_one_means_variance_one_half():
    """- |x - m|^2 - D/2 log pi: a network trained on the squared error alone."""
    x, mean = normal(5, 4, 5), normal(6, 1, 4, 5)
    actual = DiagonalGaussianDistribution(mean, jnp.log(0.5)).log_prob(x)
    expected = -np.sum((x - mean) ** 2, axis=-1) - 5 / 2 * np.log(np.pi)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_gaussian_mean_and_samples(key, assert_mean):
    mean = jnp.broadcast_to(normal(7, 2, 3), (8000, 2, 3))
    likelihood = DiagonalGaussianDistribution(mean, jnp.log(0.3))
    draws = np.asarray(likelihood.sample(key, 1)[0])
    assert draws.shape == (8000, 2, 3)
    assert_mean(draws, mean[0])
    assert_mean((draws - mean) ** 2, 0.3)


def test_the_best_learned_variance_is_the_mean_squared_error(x64):
    """The sigma-VAE's optimum (Rybkin, Daniilidis & Levine 2021), found by search."""
    x, mean = np.random.default_rng(8).normal(size=(2, 4, 5)) * 0.3

    @jax.jit
    def log_prob(raw):
        likelihood = Gaussian(learned_variance=True).build({"log_var": raw}, mean)
        return likelihood.log_prob(x).mean()

    best = scipy.optimize.minimize_scalar(lambda raw: -log_prob(raw), tol=1e-12).x
    error = np.mean((x - mean) ** 2)
    assert np.exp(bound_log_var(best)) == pytest.approx(error, rel=1e-6)
    assert jax.jit(jax.grad(log_prob))(best) == pytest.approx(0, abs=1e-6)


def test_a_learned_variance_is_bounded_and_a_fixed_one_is_taken_as_it_is():
    raw = {"log_var": jnp.float32(-1e4)}
    learned = Gaussian(learned_variance=True).build(raw, jnp.zeros((1, 1, 2)))
    assert learned.log_var == -20
    fixed = Gaussian().build({"log_var": jnp.float32(-25.0)}, jnp.zeros((1, 1, 2)))
    assert fixed.log_var == -25


def test_only_a_fixed_variance_is_a_setting():
    assert Gaussian().hyperparameters == ("log_var",)
    assert Gaussian(learned_variance=True).hyperparameters == ()
    assert Bernoulli().hyperparameters == ()


def test_a_variance_can_be_swept(key):
    """It is a leaf, so `vmap` runs over it."""
    x, mean = normal(9, 4, 5), normal(10, 1, 4, 5)
    log_vars = np.log(np.float32([0.1, 1.0]))

    def log_prob(log_var):
        return Gaussian().build({"log_var": log_var}, mean).log_prob(x)

    swept = jax.jit(jax.vmap(log_prob))(log_vars)
    one_by_one = [jax.jit(log_prob)(log_var) for log_var in log_vars]
    np.testing.assert_allclose(swept, one_by_one, rtol=1e-6)


def test_the_output_bias_starts_at_the_datas_mean():
    mean = np.float32([0.0, 0.25, 0.5, 1.0])
    bias = Bernoulli().output_bias(mean)
    clipped = np.array([0.001, 0.25, 0.5, 0.999])
    np.testing.assert_allclose(bias, np.log(clipped / (1 - clipped)), rtol=1e-4)
    np.testing.assert_array_equal(Gaussian().output_bias(mean), mean)


@pytest.mark.parametrize("family", [Bernoulli(), Gaussian()], ids=repr)
def test_likelihoods_pass_through_transformations(family, key):
    own = family.init(key, dim=3)
    likelihood = jax.jit(family.build)(own, jnp.ones((2, 4, 3)))
    assert likelihood.mean.shape == (2, 4, 3)
    assert family.num_outputs(dim=3) == 3


def test_a_variance_for_each_pixel_is_scipys():
    rng = np.random.default_rng(6)
    outputs = rng.normal(size=(2, 3, 8)).astype(np.float32)
    x = rng.normal(size=(3, 4)).astype(np.float32)
    likelihood = PerPixelGaussian().build({}, jnp.asarray(outputs))
    mean, raw = np.split(outputs.astype(float), 2, axis=-1)
    scale = np.exp(0.5 * 20 * np.tanh(raw / 20))
    expected = scipy.stats.norm(mean, scale).logpdf(x).sum(axis=-1)
    np.testing.assert_allclose(likelihood.log_prob(jnp.asarray(x)), expected, rtol=1e-5)
    bias = PerPixelGaussian().output_bias(jnp.full(4, 0.3))
    started = PerPixelGaussian().build({}, bias)
    np.testing.assert_allclose(started.mean, 0.3)
    np.testing.assert_allclose(started.log_var, 0.0)
