"""Probabilities of counts against SciPy in float64, over the whole range of data."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from vae_jax.distributions import (
    NegativeBinomialDistribution,
    PoissonDistribution,
    ZeroInflatedNegativeBinomialDistribution,
    negative_binomial,
    poisson,
)
from vae_jax.distributions.deviance import stirling_error

COUNTS = (0, 1, 2, 5, 17, 100, 1e3, 1e4, 1e5, 999_999, 1e6)
MEANS = (1e-8, 1e-4, 0.1, 1, 3, 20, 1e3, 1e5, 1e6, 1e7)
INVERSE_DISPERSIONS = (1e-6, 1e-3, 0.1, 1, 10, 1e3, 1e5, 1e7, 1e9)


def grid(*axes):
    """Every combination of the axes, each `[n, 1]`, rounded to float32."""
    points = np.array(list(itertools.product(*axes)), np.float32)
    return points.T[..., None]


def log_poisson(x, mean):
    x, mean = np.float64(x), np.float64(mean)
    return scipy.special.xlogy(x, mean) - mean - scipy.special.gammaln(x + 1)


def log_negative_binomial(x, mean, r):
    x, mean, r = np.float64(x), np.float64(mean), np.float64(r)
    gammaln = scipy.special.gammaln
    # In float64 the first difference loses 1e-6 nats at r = 1e9.
    coefficient = gammaln(x + r) - gammaln(r) - gammaln(x + 1)
    return coefficient - r * np.log1p(mean / r) + x * (np.log(mean) - np.log(mean + r))


def assert_exact(found, expected):
    """Assert agreement within 1e-3 nats or 1e-5 relative, whichever is larger."""
    assert found.dtype == jnp.float32
    error = np.abs(np.float64(found) - expected.sum(-1))
    assert np.all(error <= np.maximum(1e-3, 1e-5 * np.abs(expected.sum(-1))))


@pytest.mark.long
def test_poisson_in_float32():
    x, mean = grid(COUNTS, MEANS)
    assert_exact(poisson.log_prob(x, jnp.asarray(mean)), log_poisson(x, mean))
    gradient = jax.grad(lambda mean: poisson.log_prob(x, mean).sum())(jnp.asarray(mean))
    slope = (np.float64(x) - np.float64(mean)) / np.float64(mean)
    np.testing.assert_allclose(gradient, slope, rtol=1e-5, atol=1e-6)


@pytest.mark.long
def test_negative_binomial_in_float32():
    x, mean, r = grid(COUNTS, MEANS, INVERSE_DISPERSIONS)
    mean, r = jnp.asarray(mean), jnp.asarray(r)
    found = negative_binomial.log_prob(x, mean, r)
    assert_exact(found, log_negative_binomial(x, mean, r))


@pytest.mark.long
def test_gradients_of_the_negative_binomial_in_float32():
    """With respect to the log of each parameter, which is a network's output."""
    x, mean, r = map(np.float64, grid(COUNTS, MEANS, INVERSE_DISPERSIONS))

    def total(mean, r):
        return negative_binomial.log_prob(x, mean, r).sum()

    gradients = jax.grad(total, argnums=(0, 1))(jnp.float32(mean), jnp.float32(r))
    by_mean, by_r = gradients[0] * mean, gradients[1] * r
    np.testing.assert_allclose(by_mean, (x - mean) * r / (r + mean), rtol=3e-5)
    # At r = 1e9 the difference of digammas is below the rounding of float64 itself.
    digammas = scipy.special.digamma(x + r) - scipy.special.digamma(r)
    exact = r * (digammas - np.log1p(mean / r) + (mean - x) / (r + mean))
    assert np.isfinite(by_r).all()
    few = r <= 1e5
    np.testing.assert_allclose(by_r[few], exact[few], rtol=1e-4, atol=0.1)


def test_the_negative_binomial_of_no_dispersion_is_poisson():
    x, mean = grid(COUNTS, (1e-4, 0.1, 3, 20))
    r = jnp.full_like(mean, 1e30)
    found = negative_binomial.log_prob(x, jnp.asarray(mean), r)
    np.testing.assert_allclose(
        found, poisson.log_prob(x, jnp.asarray(mean)), rtol=1e-6, atol=1e-5
    )


def test_densities_are_scipys(x64):
    x = np.arange(30.0)[:, None]
    mean, r = jnp.array([2.3]), jnp.array([0.7])
    share = np.asarray(r / (r + mean))
    np.testing.assert_allclose(
        poisson.log_prob(x, mean), scipy.stats.poisson(mean).logpmf(x)[:, 0], rtol=1e-12
    )
    plain = scipy.stats.nbinom(np.asarray(r), share)
    np.testing.assert_allclose(
        negative_binomial.log_prob(x, mean, r), plain.logpmf(x)[:, 0], rtol=1e-12
    )
    logits = jnp.array([-0.4])
    zero = scipy.special.expit(-0.4)
    expected = np.log((1 - zero) * plain.pmf(x)[:, 0] + zero * (x[:, 0] == 0))
    found = negative_binomial.zero_inflated_log_prob(x, logits, mean, r)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_stirlings_error_is_that_of_log_gamma(x64):
    n = np.concatenate([np.geomspace(1e-6, 15.9, 40), np.geomspace(16, 100, 20)])
    formula = (n + 0.5) * np.log(n) - n + 0.5 * np.log(2 * np.pi)
    expected = scipy.special.gammaln(n + 1) - formula
    np.testing.assert_allclose(stirling_error(jnp.asarray(n)), expected, atol=3e-13)


MEAN = jnp.array([[0.3, 4.0, 60.0]])
DISTRIBUTIONS = {
    "poisson": PoissonDistribution(MEAN),
    "negative binomial": NegativeBinomialDistribution(MEAN, jnp.array([0.5, 2.0, 1e6])),
    "zero-inflated": ZeroInflatedNegativeBinomialDistribution(
        jnp.array([[-1.0, 0.0, 2.0]]),
        NegativeBinomialDistribution(MEAN, jnp.array([0.5, 2.0, 8.0])),
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("implementation", ["threefry2x32", "rbg"])
def test_draws_have_the_moments_of_the_probabilities(name, implementation, assert_mean):
    distribution = DISTRIBUTIONS[name]
    key = jax.random.key(0, impl=implementation)
    draws = distribution.sample(key, 20_000)
    assert draws.shape == (20_000, 1, 3) and draws.dtype == jnp.float32
    assert_mean(draws, distribution.mean)
    grid = jnp.arange(3000.0)[:, None, None]
    for unit in range(3):
        one = jax.tree.map(lambda leaf, u=unit: leaf[..., u : u + 1], distribution)
        weight = np.exp(np.float64(one.log_prob(grid)))
        np.testing.assert_allclose(weight.sum(0), 1, rtol=1e-4)
        values = np.asarray(grid)[..., 0]
        np.testing.assert_allclose(
            (weight * values).sum(0), one.mean[..., 0], rtol=1e-4
        )
        assert_mean(draws[..., unit] ** 2, (weight * values**2).sum(0))
        median = float(values[np.searchsorted(weight.cumsum(), 0.5), 0])
        assert_mean(draws[..., unit] <= median, weight[values <= median].sum())


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_what_is_no_count_is_refused_or_nan(name):
    distribution = DISTRIBUTIONS[name]
    for value, said in (
        (-1.0, r"must lie in \[0, inf\]"),
        (0.5, "whole numbers, got 0.5"),
        (np.nan, "finite"),
        (np.inf, "finite"),
    ):
        x = jnp.array([[1.0, 2.0, value]])
        with pytest.raises(ValueError, match=said):
            distribution.log_prob(x)
        assert jnp.isnan(jax.jit(distribution.log_prob)(x)).all()


@pytest.mark.parametrize("mean", [1e4, 1e6, 1e8, 4e10])
def test_draws_of_large_means_have_their_variance(mean):
    """Those of jax.random have 1.02 of it at 1e6, and end at 2^31."""
    p = PoissonDistribution(jnp.full(1, mean))
    drawn = np.float64(p.sample(jax.random.key(0), 200_000))
    off = (drawn - np.float64(np.float32(mean))) / np.sqrt(mean)
    assert abs(off.mean()) < 5 / np.sqrt(len(off))
    assert abs(off.var() - 1) < 5 * np.sqrt(2 / len(off))
