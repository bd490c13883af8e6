"""Exact variances of the estimators, against quadrature and explicit sums."""

import itertools

import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from vae_jax.estimators import exact_variance

RNG = np.random.default_rng(5)
SETTINGS = [
    dict(mu=float(mu), sigma=float(sigma), k=float(k))
    for mu, sigma, k in zip(
        RNG.normal(size=3),
        RNG.uniform(0.4, 1.8, 3),
        RNG.uniform(0.2, 2, 3),
        strict=True,
    )
]
F = {
    "quadratic": lambda x, k: (x - k) ** 2,
    "exponential": lambda x, k: np.exp(-k * x**2),
    "cos": lambda x, k: np.cos(k * x),
}
SLOPE = {
    "quadratic": lambda x, k: 2 * (x - k),
    "exponential": lambda x, k: -2 * k * x * np.exp(-k * x**2),
    "cos": lambda x, k: -k * np.sin(k * x),
}


def expectation(function, mu, sigma):
    density = scipy.stats.norm(mu, sigma).pdf
    value, _ = scipy.integrate.quad(
        lambda x: function(x) * density(x),
        mu - 12 * sigma,
        mu + 12 * sigma,
        limit=500,
        epsabs=1e-12,
    )
    return value


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("integrand", F)
def test_gaussian_moments_are_those_of_quadrature(integrand, setting):
    mu, sigma, k = setting.values()
    f, slope = F[integrand], SLOPE[integrand]
    scores = {
        "mu": lambda x: (x - mu) / sigma**2,
        "sigma": lambda x: ((x - mu) ** 2 / sigma**2 - 1) / sigma,
    }
    paths = {"mu": lambda x: 1.0, "sigma": lambda x: (x - mu) / sigma}
    found = exact_variance.gaussian_moments(integrand, **setting)
    for name in scores:
        wanted = [
            expectation(function, mu, sigma)
            for function in integrands(f, slope, k, scores[name], paths[name])
        ]
        np.testing.assert_allclose(found[name], wanted, rtol=1e-8, atol=1e-9)


def integrands(f, slope, k, score, path):
    """Integrands of the fields of `ScoreMoments`, in their order."""
    return [
        lambda x: f(x, k),
        lambda x: f(x, k) ** 2,
        lambda x: f(x, k) * score(x),
        lambda x: score(x) ** 2,
        lambda x: f(x, k) * score(x) ** 2,
        lambda x: (f(x, k) * score(x)) ** 2,
        lambda x: (slope(x, k) * path(x)) ** 2,
    ]


# Computed by hand at mu = 1, sigma = 1.5, k = -3, from polynomials in a = 4.
WORKED = {
    "mu": (9, 371.5278, 150.5, 141.5, 141.5, 48.6667, 17.4873),
    "sigma": (82, 1354.0556, 766, 694, 456, 203.6667, 73),
}


@pytest.mark.parametrize("parameter", WORKED)
def test_the_worked_example(parameter):
    setting = dict(mu=1.0, sigma=1.5, k=-3.0)
    moments = exact_variance.gaussian_moments("quadratic", **setting)[parameter]
    score, loo = (
        exact_variance.score_function_variance,
        exact_variance.leave_one_out_variance,
    )
    best = exact_variance.optimal_constant(moments)
    found = [
        exact_variance.reparameterization_variance(moments),
        score(moments),
        score(moments, baseline=moments.f),
        score(moments, baseline=best),
        loo(moments, num_samples=2),
        loo(moments, num_samples=4),
        exact_variance.measure_valued_variance(parameter, **setting, coupled=True),
    ]
    np.testing.assert_allclose(found, WORKED[parameter], rtol=1e-5)


def bits(count):
    return itertools.product((0, 1), repeat=count)


@pytest.mark.parametrize("logit", [-1.3, 0.2, 2.0])
@pytest.mark.parametrize("num_samples", [2, 3, 4])
def test_leave_one_out_is_a_sum_over_all_outcomes(logit, num_samples):
    f, p = np.array([0.7, -1.9]), 1 / (1 + np.exp(-logit))
    score = np.array([-p, 1 - p])
    estimates, weights = [], []
    for outcome in bits(num_samples):
        z = np.array(outcome)
        estimates.append(np.sum((f[z] - f[z].mean()) * score[z]) / (num_samples - 1))
        weights.append(np.prod(np.where(z, p, 1 - p)))
    mean = np.dot(weights, estimates)
    wanted = np.dot(weights, (np.array(estimates) - mean) ** 2)
    moments = exact_variance.bernoulli_moments(logit=logit, f0=f[0], f1=f[1])
    found = exact_variance.leave_one_out_variance(moments, num_samples=num_samples)
    np.testing.assert_allclose([found, moments.fs], [wanted, mean], rtol=1e-10)


@pytest.mark.parametrize("logit", [-2.0, -0.3, 0.0, 1.1])
def test_arm_and_disarm_are_integrals_over_the_uniform_number(logit):
    f, p = np.array([0.7, -1.9]), 1 / (1 + np.exp(-logit))
    pair = dict(logit=logit, f0=f[0], f1=f[1])
    u = (np.arange(200_000) + 0.5) / 200_000
    bit, antithetic = (u < p).astype(int), (1 - u < p).astype(int)
    # ARM for a given u: half the sum of f(b) d log q(b)/d logit over both bits.
    arm = (f[bit] - f[antithetic]) * (0.5 - u)
    differs = bit != antithetic
    # DisARM is E[ARM | both bits]: the mean of 1/2 - u where they differ.
    share = np.abs(0.5 - u[differs]).mean() if differs.any() else 0
    disarm = np.where(
        differs, (f[bit] - f[antithetic]) * np.where(bit == 1, share, -share), 0
    )
    gradient = p * (1 - p) * (f[1] - f[0])
    for draws, found in (
        (arm, exact_variance.arm_variance(**pair)),
        (disarm, exact_variance.disarm_variance(**pair)),
    ):
        np.testing.assert_allclose(draws.mean(), gradient, atol=1e-4)
        np.testing.assert_allclose(found, draws.var(), rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sigma": 0.0}, "sigma must be positive, got 0"),
        ({"integrand": "sine"}, "integrand must be one of quadratic, exponential, cos"),
        (
            {"integrand": "exponential", "k": -3.0},
            "k of exp.* must be above .* = -0.1111",
        ),
    ],
)
def test_what_has_no_variance_is_refused(change, message):
    setting = {"integrand": "quadratic", "mu": 1.0, "sigma": 1.5, "k": 1.0} | change
    with pytest.raises(ValueError, match=message):
        exact_variance.gaussian_moments(**setting)
