"""Densities and probabilities of tables against SciPy in float64, at extremes."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from vae_jax.distributions import (
    BetaDistribution,
    GammaDistribution,
    LaplaceDistribution,
    MultinomialDistribution,
    OrdinalDistribution,
    StudentTDistribution,
    beta,
    gamma,
    laplace,
    multinomial,
    ordinal,
    student_t,
)
from vae_jax.distributions.support import FRACTIONS

# Beyond 1e6 the rounding of the mean itself is more than the density allows.
CONCENTRATIONS = (1e-6, 1e-3, 0.1, 1, 2, 10, 1e3, 1e6)


def grid(*axes):
    """Every combination, each `[n, 1]`, as float32 has it."""
    points = np.array(list(itertools.product(*axes)), np.float32)
    return points.T[..., None]


def assert_exact(log_prob, expected, *arguments):
    """Within 1e-3 nats or 1e-5 of the value, and with finite gradients."""
    x, *parameters = map(jnp.asarray, arguments)
    found = jax.jit(log_prob)(x, *parameters)
    assert found.dtype == jnp.float32
    held = np.abs(expected) < 1e37
    error = np.abs(np.float64(found) - expected)[held]
    assert np.all(error <= np.maximum(1e-3, 1e-5 * np.abs(expected[held])))
    every = range(1, len(arguments))
    gradients = jax.jit(jax.grad(lambda *a: log_prob(*a).sum(), argnums=tuple(every)))
    for gradient in gradients(x, *parameters):
        assert np.isfinite(np.asarray(gradient)[held]).all()


def test_student_t_in_float32():
    freedoms = (1e-6, 1e-3, 0.1, 1, 2.5, 10, 100, 1e4, 1e6, 1e9)
    places = (-1e20, -30, -1, 0, 0.5, 3, 1e4, 1e15)
    points = grid(places, (0, 2), (-20, -3, 0, 5), freedoms)
    x, location, log_scale, freedom = np.float64(points)
    t = (x - location) / np.exp(log_scale)
    known = scipy.stats.t.logpdf(t, freedom) - log_scale
    assert_exact(student_t.log_prob, known[:, 0], *points)


def test_student_t_of_great_freedom_is_gaussian():
    x = jnp.linspace(-4, 4, 9)[:, None]
    found = student_t.log_prob(x, jnp.zeros(1), jnp.zeros(1), jnp.full(1, 1e9))
    np.testing.assert_allclose(found, scipy.stats.norm.logpdf(x[:, 0]), atol=1e-5)


def test_laplace_in_float32():
    points = grid((-1e20, -3, 0, 1e-20, 2, 1e6), (0, 2), (-20, -3, 0, 8))
    x, location, log_scale = np.float64(points)
    known = scipy.stats.laplace.logpdf(x, location, np.exp(log_scale))
    assert_exact(laplace.log_prob, known[:, 0], *points)


def test_gamma_in_float32():
    places = (1e-30, 1e-8, 1e-3, 0.5, 1, 1.0001, 3, 1e3, 1e7, 1e20)
    points = grid(places, (-30, -18, -1, 0, 1e-3, 7, 16), CONCENTRATIONS)
    x, log_mean, k = np.float64(points)
    known = scipy.stats.gamma.logpdf(x, k, scale=np.exp(log_mean) / k)
    assert_exact(gamma.log_prob, known[:, 0], *points)


def test_gradients_of_gamma_in_float32_at_means_whose_squares_it_lacks():
    means = (1e-45, 1e-37, 1e-21, 1e-19, 1.0, 1e19, 1e36, 1e45)
    ratio, log_mean, k = grid((0.3, 0.9, 1, 1.4, 1e3), np.log(means), (0.3, 5, 300))
    x = np.exp(np.float64(log_mean) + np.log(ratio)).clip(1e-37, 1e37)
    x = np.float32(x)
    gradients = jax.jit(jax.grad(lambda *a: gamma.log_prob(*a).sum(), argnums=(1, 2)))
    of_mean, of_k = gradients(x, log_mean, k)
    k = np.float64(k)
    log_ratio = np.log(np.float64(x)) - log_mean
    known = k * np.expm1(log_ratio)
    np.testing.assert_allclose(of_mean, known, rtol=1e-4, atol=6e-3)
    known = np.log(k) - scipy.special.digamma(k) - np.expm1(log_ratio) + log_ratio
    np.testing.assert_allclose(of_k, known, rtol=1e-4, atol=1e-4)


def test_beta_in_float32():
    places = (FRACTIONS.low, 1e-37, 1e-30, 1e-6, 0.01, 0.3, 0.5, 0.5001, 0.9, 0.999)
    places += (FRACTIONS.high,)
    points = grid(places, (-15, -3, 0, 1e-3, 2, 15), CONCENTRATIONS)
    x, logits, n = np.float64(points)
    a, b = n * scipy.special.expit(logits), n * scipy.special.expit(-logits)
    assert_exact(beta.log_prob, scipy.stats.beta.logpdf(x, a, b)[:, 0], *points)


def test_beta_draws_at_the_ends_of_the_support_have_a_density():
    """A third of the draws are rounded to one of them."""
    p = BetaDistribution(jnp.zeros(1), jnp.full(1, 0.01))
    drawn = p.sample(jax.random.key(0), 2000)
    assert 0.2 < np.mean(np.isin(drawn, (FRACTIONS.low, FRACTIONS.high))) < 0.95
    known = scipy.stats.beta.logpdf(np.float64(drawn), 0.005, 0.005)
    np.testing.assert_allclose(p.log_prob(drawn), known[:, 0], rtol=1e-5, atol=1e-5)
    slope = jax.grad(lambda p: p.log_prob(drawn).sum())(p)
    assert np.isfinite(slope.logits).all() and np.isfinite(slope.concentration).all()


def test_ordinal_in_float32():
    cuts = np.array([-1.0, -0.999, 0.5, 300])
    locations = np.array([-1e4, -90, -2, 0, 0.5, 3, 90, 1e4])
    below = scipy.stats.logistic.logcdf(cuts - locations[:, None])
    found = ordinal.log_probs(
        jnp.float32(locations), jnp.broadcast_to(jnp.float32(cuts), (8, 4))
    )
    assert np.isfinite(found).all()
    np.testing.assert_allclose(np.exp(found).sum(-1), 1, rtol=1e-5)
    np.testing.assert_allclose(found[:, 0], below[:, 0], rtol=1e-5, atol=1e-5)
    # Of a difference of logs in float64, where it has digits.
    gap = np.float64(np.float32(cuts[1])) - np.float64(np.float32(cuts[0]))
    narrow = below[:, 1] + np.log(-np.expm1(-gap))
    narrow += scipy.stats.logistic.logsf(cuts[0] - locations)
    np.testing.assert_allclose(found[:, 1], narrow, rtol=1e-5, atol=1e-3)
    middle = np.diff(scipy.special.expit(cuts - locations[2:6, None]))[:, 1]
    np.testing.assert_allclose(np.exp(found[2:6, 2]), middle, rtol=1e-5)


@pytest.mark.parametrize("total", [0, 1, 7, 1000, 10**6])
def test_multinomial_in_float32(total):
    shares = np.array([0.7, 0.2, 0.0999, 1e-4, 1e-36])
    logits = jnp.log(jnp.float32(shares))
    exact = np.exp(np.float64(logits))
    exact /= exact.sum()
    rng = np.random.default_rng(0)
    x = np.concatenate(
        [rng.multinomial(total, exact, 5), [[0, 0, 0, total, 0], [0, 0, 0, 0, total]]]
    )
    known = scipy.stats.multinomial.logpmf(x, total, exact)
    assert_exact(multinomial.log_prob, known, np.float32(x), np.tile(logits, (7, 1)))


def test_multinomial_sums_to_one():
    x = [row for row in itertools.product(range(5), repeat=3) if sum(row) == 4]
    log_p = jax.jit(multinomial.log_prob)(jnp.float32(x), jnp.array([0.3, -1.0, 2.0]))
    assert float(jnp.exp(log_p).sum()) == pytest.approx(1, rel=1e-5)


TWO = jnp.array([-0.4, 1.1])
A, B = np.float64(TWO)
DRAWN = {
    "student t": (
        StudentTDistribution(TWO, 0.3 * TWO, jnp.array([6.0, 30.0])),
        [scipy.stats.t(v, m, np.exp(0.3 * m)) for v, m in ((6, A), (30, B))],
    ),
    "laplace": (
        LaplaceDistribution(TWO, 0.3 * TWO),
        [scipy.stats.laplace(m, np.exp(0.3 * m)) for m in (A, B)],
    ),
    "gamma": (
        GammaDistribution(TWO, jnp.array([0.3, 4.0])),
        [scipy.stats.gamma(k, scale=np.exp(m) / k) for k, m in ((0.3, A), (4, B))],
    ),
    "beta": (
        BetaDistribution(TWO, jnp.array([0.7, 9.0])),
        [
            scipy.stats.beta(n * scipy.special.expit(m), n * scipy.special.expit(-m))
            for n, m in ((0.7, A), (9, B))
        ],
    ),
}


@pytest.mark.parametrize("name", DRAWN)
def test_draws_and_means_are_those_of_scipy(name, key):
    distribution, theirs = DRAWN[name]
    draws = np.asarray(distribution.sample(key, 4000), np.float64)
    for mean, column, their in zip(distribution.mean, draws.T, theirs, strict=True):
        assert float(mean) == pytest.approx(their.mean(), rel=1e-5)
        assert scipy.stats.kstest(column, their.cdf).pvalue > 1e-4


def test_draws_of_categories_and_shares(key, assert_mean):
    thresholds = jnp.array([[-1.0, 0.0, 2.0], [0.0, 0.1, 0.2]])
    p = OrdinalDistribution(TWO, thresholds)
    draws = np.asarray(p.sample(key, 8000))
    shares = np.stack([(draws == code).mean(0) for code in range(4)], axis=-1)
    exact = np.exp(ordinal.log_probs(TWO, thresholds))
    error = np.sqrt(exact * (1 - exact) / 8000)
    assert (abs(shares - exact) < 5 * error).all()
    assert_mean(draws, p.mean)
    found = [float(p.log_prob(jnp.array([code, 3.0]))) for code in (0.0, 1, 2, 3)]
    np.testing.assert_allclose(found, np.log(exact[0]) + np.log(exact[1, 3]), rtol=1e-5)
    p = MultinomialDistribution(jnp.array([[0.0, 1.0, 2.0]]), jnp.float32(50))
    draws = np.asarray(p.sample(key, 4000))
    assert (draws.sum(-1) == 50).all() and draws.dtype == np.float32
    assert_mean(draws, p.mean)


@pytest.mark.parametrize(
    "distribution, outside",
    [
        (DRAWN["gamma"][0], (0.0, -1.0)),
        (DRAWN["beta"][0], (0.0, 1.0, 1.5)),
        (OrdinalDistribution(TWO, jnp.zeros((2, 1))), (-1.0, 0.5, 2.0)),
        (MultinomialDistribution(TWO, jnp.float32(3)), (-1.0, 0.5)),
    ],
)
def test_values_outside_are_refused_or_nan(distribution, outside):
    for value in outside:
        x = jnp.array([value, 0.5 if "Beta" in type(distribution).__name__ else 1.0])
        with pytest.raises(ValueError, match="x must"):
            distribution.log_prob(x)
        assert np.isnan(jax.jit(distribution.log_prob)(x))


def test_a_student_t_without_a_mean_says_so():
    p = StudentTDistribution(TWO, TWO, jnp.array([1.0, 1.5]))
    assert np.isnan(p.mean).tolist() == [True, False]
