"""Values and gradients of the estimators on integrands with known expectations."""

import dataclasses
import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from specs import example_data, random_params

from vae_jax import (
    ClassConditionalPrior,
    DiagonalGaussianPrior,
    Gaussian,
    Linear,
    ModelSpec,
    elbo,
    encode,
    importance_weighted_bound,
    log_weight,
    reparameterization,
)
from vae_jax.distributions import (
    BernoulliDistribution,
    DiagonalGaussianDistribution,
    PointMassDistribution,
)
from vae_jax.estimators import (
    Grouped,
    Renyi,
    arm,
    baseline_loss,
    delta_control_variate,
    disarm,
    doubly_reparameterized,
    exact_enumeration,
    gumbel_softmax,
    leave_one_out,
    log_mean_exp,
    mean_baseline,
    measure_valued,
    optimal_baseline,
    path_derivative,
    rebar,
    sample_mean,
    score_function,
    sigma_points,
    straight_through,
    vimco,
)
from vae_jax.model import at_labels, build_prior

MEAN, LOG_VAR = np.float32([[0.3, -1.2]]), np.float32([[0.4, -0.8]])
VAR = np.exp(LOG_VAR)
SLOPE = np.float32([1.5, -0.5])
NUM_KEYS = 5000

P = functools.partial

# name: (f, E f, dE f/d mean, dE f/d log_var)
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
    """One-sample values and gradients, for every integrand and many keys."""

    def one(key):
        def estimate(mean, log_var, name):
            function = INTEGRANDS[name][0]
            posterior = DiagonalGaussianDistribution(mean, log_var)
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
        if np.ptp(samples, axis=0).max() < 1e-6:  # Deterministic, so exact.
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
    posterior = DiagonalGaussianDistribution(jnp.ones((4, 3)), jnp.zeros((4, 3)))

    @jax.jit
    def estimates(key):
        def integrand(z, log_q):
            return {"first": z[..., 0], "log_q": log_q}

        estimate = P(reparameterization, integrand, posterior, key, num_samples=2)
        draws = posterior.sample_and_log_prob(key, 2)
        return integrand(*draws), estimate(), estimate(reduction=log_mean_exp)

    values, means, bounds = jax.tree.map(np.asarray, estimates(key))
    for name in ("first", "log_q"):
        np.testing.assert_allclose(means[name], values[name].mean(axis=0), rtol=1e-6)
        expected = np.log(np.mean(np.exp(values[name]), axis=0))
        np.testing.assert_allclose(bounds[name], expected, rtol=1e-5)


def test_reparameterization_of_a_point_mass_is_the_value_at_the_point(key):
    posterior = PointMassDistribution(jnp.float32(MEAN))
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


# Gaussians of one dimension: means and variances in closed form

NUM_DRAWS = 200_000
_rng = np.random.default_rng(11)
# (mean, standard deviation, k) of f(x) = (x - k)^2.
SETTINGS = _rng.normal(size=(2, 3)) * [1, 0, 1] + _rng.uniform(0.6, 1.6, (2, 1)) * [
    [0, 1, 0]
]


def square(z, k):
    return (z - k) ** 2


def cosine(z, k):
    return jnp.cos(k * z)


def log_ratio_to_target(z, log_q, target):
    mean, deviation = target
    return jax.scipy.stats.norm.logpdf(z[..., 0], mean, deviation) - log_q


@functools.cache
def one_dimensional(make_estimator, integrand, num_draws):
    """Draw gradients by mean and standard deviation, one per example of a batch."""

    @jax.jit
    def program(key, mean, deviation, k, baseline):
        estimator = make_estimator(baseline)

        def total(mean, deviation):
            ones = jnp.ones((num_draws, 1))
            q = DiagonalGaussianDistribution(mean * ones, 2 * jnp.log(deviation) * ones)
            f = P(_first_latent, integrand, k)
            return jnp.sum(estimator(f, q, key))

        ones = jnp.ones((num_draws, 1))
        return jax.grad(total, (0, 1))(mean * ones, deviation * ones)

    def draws(mean, deviation, k, baseline=0.0):
        arguments = np.float32([mean, deviation, k, baseline])
        gradients = program(jax.random.key(0), *arguments)
        return tuple(np.asarray(gradient, np.float64)[:, 0] for gradient in gradients)

    return draws


def _first_latent(integrand, k, z, log_q):
    return integrand(z[..., 0], k)


@functools.cache
def given(estimator, **options):
    return lambda baseline: P(estimator, **options)


def with_baseline(baseline):
    return P(score_function, baseline=baseline)


def three_with_baseline(baseline):
    return P(score_function, baseline=baseline, num_samples=3)


def measure_valued_variances(a, s, coupled):
    if coupled:
        return 4 * a**2 * (4 / np.pi - 1), 4 * a**2 + 4 * s**2
    by_mean = a**2 * (8 / np.pi - 2) + 4 * s**2 / np.pi
    return by_mean, 16 * a**2 + 8 * s**2


def exact_mean_variances(a, s):
    return 8 * a**2 + 10 * s**2, 40 * a**2 + 56 * s**2


def leave_one_out_variances(a, s, n):
    by_mean = (8 * a**2 * n + 10 * s**2 * n - 8 * s**2) / (n * (n - 1))
    one = 40 * a**2 + 56 * s**2
    pair = (one + 8 * a**2 + 8 * s**2) / 2
    return by_mean, ((n - 2) * one + 2 * pair) / (n * (n - 1))


def mean_baseline_variances(a, s, n):
    noise = (4 * a**2 * s**2 + 2 * s**4) / n
    exact = exact_mean_variances(a, s)
    return exact[0] + noise / s**2, exact[1] + 2 * noise / s**2


# name: (estimator, its variances by mean and by s), with a = mean - k
CLOSED_FORMS = {
    "reparameterization": (
        given(reparameterization),
        lambda a, s: (4 * s**2, 4 * a**2 + 8 * s**2),
    ),
    "score_function": (
        given(score_function),
        lambda a, s: (
            a**4 / s**2 + 14 * a**2 + 15 * s**2,
            2 * a**4 / s**2 + 60 * a**2 + 74 * s**2,
        ),
    ),
    "exact mean as baseline": (with_baseline, exact_mean_variances),
    "optimal constant by mean": (
        with_baseline,
        lambda a, s: (8 * a**2 + 6 * s**2, None),
    ),
    "optimal constant by deviation": (
        with_baseline,
        lambda a, s: (None, 40 * a**2 + 24 * s**2),
    ),
    "measure_valued, not coupled": (
        given(measure_valued, coupled=False),
        P(measure_valued_variances, coupled=False),
    ),
    "reparameterization of 3": (
        given(reparameterization, num_samples=3),
        lambda a, s: (4 * s**2 / 3, (4 * a**2 + 8 * s**2) / 3),
    ),
    "exact mean as baseline of 3": (
        three_with_baseline,
        lambda a, s: np.divide(exact_mean_variances(a, s), 3),
    ),
    "measure_valued of 2": (
        given(measure_valued, num_samples=2),
        lambda a, s: np.divide(measure_valued_variances(a, s, coupled=True), 2),
    ),
    "mean_baseline of 2 against 3": (
        given(mean_baseline, num_samples=2, num_baseline_samples=3),
        lambda a, s: np.divide(mean_baseline_variances(a, s, n=3), 2),
    ),
    "leave_one_out of 2": (
        given(leave_one_out),
        P(leave_one_out_variances, n=2),
    ),
    "leave_one_out of 4": (
        given(leave_one_out, num_samples=4),
        P(leave_one_out_variances, n=4),
    ),
}


# Baselines a^2 + c s^2, by c: the mean of f, and the optima for mean and s.
BASELINES = {
    "exact mean as baseline": 1,
    "exact mean as baseline of 3": 1,
    "optimal constant by mean": 3,
    "optimal constant by deviation": 5,
}


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_mean_and_variance_on_a_quadratic_are_the_closed_forms(name, assert_mean):
    make_estimator, variances = CLOSED_FORMS[name]
    for mean, s, k in SETTINGS:
        a = mean - k
        baseline = a**2 + BASELINES.get(name, 0) * s**2
        program = one_dimensional(make_estimator, square, NUM_DRAWS)
        draws = program(mean, s, k, baseline)
        expected = (2 * a, 2 * s), variances(a, s)
        for gradient, exact, variance in zip(draws, *expected, strict=True):
            assert_mean(gradient, exact)
            if variance is not None:
                assert_mean((gradient - exact) ** 2, variance)


@pytest.mark.parametrize("num_coefficient_samples", [0, 4])
def test_the_delta_method_leaves_no_variance_on_a_quadratic(num_coefficient_samples):
    make_estimator = given(
        delta_control_variate, num_coefficient_samples=num_coefficient_samples
    )
    for mean, s, k in SETTINGS:
        draws = one_dimensional(make_estimator, square, 1000)(mean, s, k)
        for gradient, exact in zip(draws, (2 * (mean - k), 2 * s), strict=True):
            np.testing.assert_allclose(gradient, exact, rtol=0, atol=1e-2)
            assert np.median(np.abs(gradient - exact)) < 1e-5


@pytest.mark.long
def test_an_optimal_baseline_costs_the_error_of_its_constant(assert_mean):
    """Variance: that of the optimum plus E[(b - b*)^2] E[score^2], b drawn by NumPy."""
    rng = np.random.default_rng(0)
    mean, s, k = SETTINGS[0]
    a = mean - k
    noise = rng.normal(size=(16, 200_000))
    f = (a + s * noise) ** 2
    scores = noise / s, (noise**2 - 1) / s
    exact = 2 * a, 2 * s
    constants = a**2 + 3 * s**2, a**2 + 5 * s**2
    optima = 8 * a**2 + 6 * s**2, 40 * a**2 + 24 * s**2
    excess = {}
    for n in (4, 16):
        make_estimator = given(optimal_baseline, num_baseline_samples=n)
        draws = one_dimensional(make_estimator, square, 60_000)(mean, s, k)
        for i, gradient in enumerate(draws):
            square_score = scores[i][:n] ** 2
            estimated = np.sum(f[:n] * square_score, 0) / np.sum(square_score, 0)
            error = np.mean((estimated - constants[i]) ** 2) * np.mean(square_score)
            assert_mean(gradient, exact[i])
            assert_mean((gradient - exact[i]) ** 2, optima[i] + error)
            excess[n, i] = gradient.var() - optima[i]
    without = CLOSED_FORMS["score_function"][1](a, s)
    for i in range(2):
        assert 0 < excess[16, i] < min(excess[4, i], without[i] - optima[i])


def test_the_pathwise_estimator_is_not_always_the_best(assert_mean):
    """On cos(k x) with large k s the score function has the smaller variance."""
    mean, s, k = 1.0, 1.5, 1.3
    damped, turn = np.exp(-2 * k**2 * s**2), np.cos(2 * k * mean)
    exact = -k * np.exp(-(k**2) * s**2 / 2) * np.sin(k * mean)
    expected = {
        reparameterization: k**2 / 2 * (1 - damped * turn) - exact**2,
        score_function: (1 + damped * turn * (1 - 4 * k**2 * s**2)) / (2 * s**2)
        - exact**2,
    }
    assert expected[score_function] < expected[reparameterization] / 4
    for estimator, variance in expected.items():
        draws = one_dimensional(given(estimator), cosine, NUM_DRAWS)(mean, s, k)
        assert_mean(draws[0], exact)
        assert_mean((draws[0] - exact) ** 2, variance)


@pytest.fixture(scope="module")
def landing():
    """Draw gradients of E[log target - log q] by mean and standard deviation."""

    @P(jax.jit, static_argnums=0)
    def program(estimator, mean, deviation, target):
        ones = jnp.ones((NUM_DRAWS, 1))
        f = P(log_ratio_to_target, target=target)

        def total(mean, deviation):
            q = DiagonalGaussianDistribution(mean, 2 * jnp.log(deviation))
            return jnp.sum(estimator(f, q, jax.random.key(0)))

        return jax.grad(total, (0, 1))(mean * ones, deviation * ones)

    def draws(estimator, *arguments):
        gradients = program(estimator, *(np.float32(a) for a in arguments))
        return [np.asarray(gradient, np.float64)[:, 0] for gradient in gradients]

    return draws


def test_the_path_derivative_has_the_known_moments(landing, assert_mean):
    (mean, s, _), (target_mean, target_s, _) = SETTINGS
    by_mean, by_s = landing(path_derivative, mean, s, (target_mean, target_s))
    slope = 1 / s - s / target_s**2
    pull = -(mean - target_mean) / target_s**2
    assert_mean(by_mean, pull)
    assert_mean((by_mean - pull) ** 2, slope**2)
    assert_mean(by_s, slope)
    assert_mean((by_s - slope) ** 2, pull**2 + 2 * slope**2)


def test_the_path_derivative_lands_without_noise(landing):
    mean, s, _ = SETTINGS[1]
    for draws in landing(path_derivative, mean, s, (mean, s)):
        np.testing.assert_allclose(draws, 0, atol=1e-4)
    by_s = landing(reparameterization, mean, s, (mean, s))[1]
    assert by_s.std() > 0.1


# Several dimensions coupled by the integrand, with exact values


GAUSSIAN = {
    "reparameterization": reparameterization,
    "path_derivative": path_derivative,
    "doubly_reparameterized": doubly_reparameterized,
    "score_function": score_function,
    "score_function, baseline": P(
        score_function, baseline={"f": 0.7, "huge": 3e7, "z": -2.0}
    ),
    "mean_baseline": mean_baseline,
    "leave_one_out": P(leave_one_out, num_samples=2),
    "optimal_baseline": P(optimal_baseline, num_baseline_samples=4),
    "measure_valued": measure_valued,
    "delta_control_variate": P(delta_control_variate, num_samples=2),
    "delta_control_variate, own coefficients": P(
        delta_control_variate, num_coefficient_samples=8
    ),
}
HALF = 20_000
BEND = np.float32([[0.2, 0.3, -0.1], [0.3, -0.1, 0.2], [-0.1, 0.2, 0.15]])
TILT = np.float32([0.5, -0.8, 0.3])
MEANS = _rng.normal(size=(2, 3)).astype(np.float32)
LOG_VARS = _rng.uniform(-1.5, 0.3, (2, 3)).astype(np.float32)
THETAS = np.float32([1.7, -0.6])


def coupled(z, xp):
    bend = xp.sum((z @ BEND) * z, axis=-1)
    return xp.sin(bend + z @ TILT)


@functools.cache
def three_dimensional(name):
    """Values and gradients for a batch of two examples, each repeated HALF times.

    The integrand has three parts: "f" is the one of interest, "z" is a single latent,
    and "huge" is 1e8 times it, which must not affect the gradient of "f".
    """

    def program(mean, log_var, theta, first_half, key):
        def estimate(mean, log_var, theta):
            def integrand(z, log_q):
                return {
                    "f": theta * (coupled(z, jnp) + 0.3 * log_q),
                    "huge": 1e8 * z[..., 0],
                    "z": z[..., 0],
                }

            q = DiagonalGaussianDistribution(mean, log_var)
            return GAUSSIAN[name](integrand, q, key)

        values, pull_back = jax.vjp(estimate, mean, log_var, theta)
        nothing = jax.tree.map(jnp.zeros_like, values)
        return {
            "values": values,
            "gradients": pull_back({**nothing, "f": jnp.ones_like(theta)}),
            "first half's": pull_back({**nothing, "f": first_half}),
        }

    program = jax.jit(program)
    arguments = [np.repeat(array, HALF, axis=0) for array in (MEANS, LOG_VARS, THETAS)]
    first_half = np.repeat(np.float32([1, 0]), HALF)
    return jax.tree.map(np.asarray, program(*arguments, first_half, jax.random.key(4)))


@pytest.fixture(scope="module")
def quadrature():
    """E[f] and its gradients by mean and log-variance, E[f score], and by theta.

    Gauss-Hermite quadrature in each of the three dimensions.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    noise = np.stack(np.meshgrid(nodes, nodes, nodes), axis=-1).reshape(-1, 3)
    weights = np.prod(np.meshgrid(weights, weights, weights), axis=0).ravel()
    weights = weights / weights.sum()
    found = []
    for mean, log_var, theta in zip(MEANS, LOG_VARS, THETAS, strict=True):
        s = np.exp(np.float64(log_var) / 2)
        log_q = scipy.stats.norm.logpdf(noise).sum(axis=-1) - np.log(s).sum()
        plain = coupled(mean + s * noise, np) + 0.3 * log_q
        f = theta * plain
        found.append(
            (
                weights @ f,
                weights @ (f[:, None] * noise / s),
                weights @ (f[:, None] * (noise**2 - 1) / 2),
                weights @ plain,
            )
        )
    return found


@pytest.mark.parametrize("name", GAUSSIAN)
def test_every_gaussian_estimator_has_the_gradient_by_quadrature(
    name, quadrature, assert_mean
):
    found = three_dimensional(name)
    for half, expected in zip(
        (slice(HALF), slice(HALF, None)), quadrature, strict=True
    ):
        actual = (found["values"]["f"], *found["gradients"])
        for draws, expectation in zip(actual, expected, strict=True):
            assert_mean(draws[half], expectation)


@pytest.mark.parametrize("name", GAUSSIAN)
def test_what_the_integrand_holds_gets_the_plain_gradient(name):
    """f is linear in theta, so theta times the gradient by theta is the value."""
    found = three_dimensional(name)
    theta = np.repeat(THETAS, HALF)
    value = found["values"]["f"]
    # Rounding of differences of numbers near 1.
    np.testing.assert_allclose(
        theta * found["gradients"][2], value, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("name", GAUSSIAN)
def test_no_gradient_leaks_from_one_example_to_another(name):
    found = three_dimensional(name)
    pairs = zip(found["first half's"], found["gradients"], strict=True)
    for gradient, whole in pairs:
        assert not gradient[HALF:].any()
        np.testing.assert_allclose(gradient[:HALF], whole[:HALF], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", GAUSSIAN)
def test_the_value_is_the_plain_estimate_however_large_the_surrogate(name):
    """With one sample, exactly to the bit: "huge" is 1e8 times "z"."""
    values = three_dimensional(name)["values"]
    expected = np.float32(1e8) * values["z"]
    if getattr(GAUSSIAN[name], "keywords", {}).get("num_samples", 1) == 1:
        np.testing.assert_array_equal(values["huge"], expected)
    else:
        np.testing.assert_allclose(values["huge"], expected, rtol=1e-6, atol=20)


# Bounds with two samples, against quadrature

TARGET = {"prior_mean": 0.4, "prior_log_var": 0.5}
OBSERVED, NOISE_LOG_VAR = 1.1, -0.7
MEASURED = {"mean": 0.1, "log_var": 0.2}


def log_normal(x, mean, log_var, xp):
    return -0.5 * ((x - mean) ** 2 / xp.exp(log_var) + log_var + np.log(2 * np.pi))


def log_joint(z, prior_mean, prior_log_var, xp):
    likelihood = log_normal(OBSERVED, z, NOISE_LOG_VAR, xp)
    return likelihood + log_normal(z, prior_mean, prior_log_var, xp)


def bound_by_quadrature(parameters):
    """E[log mean of two weights] by Gauss-Hermite quadrature, in float64."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(120)
    weights = weights / weights.sum()
    mean, log_var = parameters["mean"], parameters["log_var"]
    z = mean + np.exp(log_var / 2) * nodes
    log_w = log_joint(z, parameters["prior_mean"], parameters["prior_log_var"], np)
    log_w = log_w - log_normal(z, mean, log_var, np)
    return weights @ (np.logaddexp(log_w[:, None], log_w) - np.log(2)) @ weights


def gradient_by_quadrature(parameters):
    def central(name):
        up, down = (
            bound_by_quadrature({**parameters, name: parameters[name] + step})
            for step in (1e-4, -1e-4)
        )
        return (up - down) / 2e-4

    return {name: central(name) for name in parameters}


BOUNDS = {
    "reparameterization": reparameterization,
    "doubly_reparameterized": doubly_reparameterized,
    "score_function": score_function,
    "score_function, baseline": P(score_function, baseline=-1.5),
    "mean_baseline": mean_baseline,
    "vimco": vimco,
    "path_derivative": P(path_derivative, allow_biased=True),
}


@functools.cache
def bound_program(name, with_prior):
    @jax.jit
    def program(parameters):
        def total(parameters):
            q = DiagonalGaussianDistribution(parameters["mean"], parameters["log_var"])
            prior = parameters["prior_mean"], parameters["prior_log_var"]
            estimator = BOUNDS[name]
            if with_prior:
                estimator = P(estimator, prior=DiagonalGaussianDistribution(*prior))
                prior = jax.lax.stop_gradient(prior)

            def log_w(z, log_q):
                return log_joint(z, *prior, jnp).sum(-1) - log_q

            key = jax.random.key(1)
            bounds = estimator(log_w, q, key, num_samples=2, reduction=log_mean_exp)
            return jnp.sum(bounds), bounds

        gradient, bounds = jax.grad(total, has_aux=True)(parameters)
        return {**{of: leaf[:, 0] for of, leaf in gradient.items()}, "": bounds}

    return program


def bound_draws(name, parameters, with_prior=False):
    """Draw the bound and its gradient, one per example."""
    ones = np.ones((100_000, 1), np.float32)
    batch = {name: np.float32(value) * ones for name, value in parameters.items()}
    return jax.tree.map(np.asarray, bound_program(name, with_prior)(batch))


@pytest.mark.parametrize("name", [name for name in BOUNDS if name != "path_derivative"])
def test_the_gradient_of_a_bound_is_that_by_quadrature(name, assert_mean):
    parameters = {**MEASURED, **TARGET}
    draws = bound_draws(name, parameters)
    assert_mean(draws[""], bound_by_quadrature(parameters))
    for parameter, expected in gradient_by_quadrature(parameters).items():
        assert_mean(draws[parameter], expected)


def weight_of_the_first(name, first, second):
    """Bound minus the bound with the first weight replaced, minus its own share."""
    bound = np.logaddexp(first, second) - np.log(2)
    baseline = {"vimco": second, "score_function, baseline": -1.5}[name]
    replaced = np.logaddexp(baseline, second) - np.log(2)
    return bound - replaced - np.exp(first - np.logaddexp(first, second))


@pytest.mark.parametrize("name", ["vimco", "score_function, baseline"])
def test_each_sample_is_weighed_by_what_it_adds_to_the_bound(name, assert_mean):
    """Variance by quadrature; log q in the integrand contributes a score as well."""
    parameters = {**MEASURED, **TARGET}
    nodes, weights = np.polynomial.hermite_e.hermegauss(120)
    weights = np.outer(weights, weights) / weights.sum() ** 2
    mean, log_var = MEASURED["mean"], MEASURED["log_var"]
    z = mean + np.exp(log_var / 2) * nodes
    log_w = log_joint(z, TARGET["prior_mean"], TARGET["prior_log_var"], np)
    log_w = log_w - log_normal(z, mean, log_var, np)
    improvement = weight_of_the_first(name, log_w[:, None], log_w)
    expected = gradient_by_quadrature(parameters)
    scores = {"mean": nodes / np.exp(log_var / 2), "log_var": (nodes**2 - 1) / 2}
    draws = bound_draws(name, parameters)
    for parameter, score in scores.items():
        gradient = improvement * score[:, None]
        gradient = gradient + gradient.T
        np.testing.assert_allclose(
            np.sum(weights * gradient), expected[parameter], rtol=1e-4
        )
        variance = np.sum(weights * (gradient - expected[parameter]) ** 2)
        assert_mean((draws[parameter] - expected[parameter]) ** 2, variance)


def test_a_learned_prior_may_be_doubly_reparameterized(assert_mean):
    parameters = {**MEASURED, **TARGET}
    draws = bound_draws("doubly_reparameterized", parameters, with_prior=True)
    assert_mean(draws[""], bound_by_quadrature(parameters))
    for parameter, expected in gradient_by_quadrature(parameters).items():
        assert_mean(draws[parameter], expected)
    plain = bound_draws("doubly_reparameterized", parameters)
    assert np.abs(draws["prior_mean"] - plain["prior_mean"]).mean() > 0.1
    np.testing.assert_allclose(draws["mean"], plain["mean"], rtol=1e-4, atol=1e-5)


def test_the_path_derivative_of_a_bound_is_biased_as_it_says():
    parameters = {**MEASURED, **TARGET}
    draws = np.float64(bound_draws("path_derivative", parameters)["mean"])
    error = draws.std() / np.sqrt(len(draws))
    difference = draws.mean() - gradient_by_quadrature(parameters)["mean"]
    assert abs(difference) > 20 * error


def test_doubly_reparameterized_loses_its_noise_near_the_posterior():
    precision = 1 / np.exp(TARGET["prior_log_var"]) + 1 / np.exp(NOISE_LOG_VAR)
    mean = TARGET["prior_mean"] / np.exp(TARGET["prior_log_var"])
    mean = (mean + OBSERVED / np.exp(NOISE_LOG_VAR)) / precision
    exact = {"mean": mean, "log_var": -np.log(precision), **TARGET}
    near = {**exact, "mean": mean + 0.05}
    for parameter in ("mean", "log_var"):
        deviations = {
            name: bound_draws(name, near)[parameter].std()
            for name in ("doubly_reparameterized", "reparameterization")
        }
        assert (
            deviations["doubly_reparameterized"] < deviations["reparameterization"] / 4
        )
        at_the_posterior = bound_draws("doubly_reparameterized", exact)[parameter]
        np.testing.assert_allclose(at_the_posterior, 0, atol=1e-4)


# Models


TINY = ModelSpec(
    encoder=Linear(),
    decoder=Linear(),
    prior=DiagonalGaussianPrior(),
    likelihood=Gaussian(),
    latent_dim=2,
    data_shape=(3,),
)


ON_MODELS = {
    "score_function": score_function,
    "mean_baseline": mean_baseline,
    "leave_one_out": leave_one_out,
    "optimal_baseline": P(optimal_baseline, num_baseline_samples=2),
    "measure_valued": measure_valued,
    "delta_control_variate": delta_control_variate,
    "path_derivative": path_derivative,
    "doubly_reparameterized": doubly_reparameterized,
}


def model_gradients(objective, key, num_draws):
    """Draw independent gradients of an objective, `[num_draws, ...]`."""
    params, x = random_params(TINY), example_data(TINY)[:2]
    keys = jax.random.split(key, num_draws)
    draws = jax.jit(jax.vmap(lambda key: jax.grad(objective)(params, x, key)))(keys)
    return jax.tree.map(lambda leaf: np.float64(leaf), draws)


def assert_same_means(some, others):
    """Assert that the means of two sets of draws agree within 5 standard errors."""
    for one, other in zip(jax.tree.leaves(some), jax.tree.leaves(others), strict=True):
        variance = one.var(axis=0) / len(one) + other.var(axis=0) / len(other)
        difference = np.abs(one.mean(axis=0) - other.mean(axis=0))
        assert np.all(difference <= 5 * np.sqrt(variance) + 1e-5)


@pytest.fixture(scope="module")
def default_gradients():
    return model_gradients(elbo, jax.random.key(6), 10_000)


QUICKER = ("score_function", "path_derivative", "doubly_reparameterized")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in QUICKER else pytest.mark.slow)
        for name in ON_MODELS
    ],
)
def test_the_elbos_gradient_is_the_same_by_every_estimator(name, default_gradients):
    """For encoder, decoder and prior; pathwise estimators use a Monte Carlo KL."""
    estimator = ON_MODELS[name]
    kl = "auto" if name in list(ON_MODELS)[:6] else "monte_carlo"
    options = {"num_samples": 2} if name == "leave_one_out" else {}
    objective = P(elbo, estimator=estimator, kl=kl, **options)
    draws = model_gradients(objective, jax.random.key(7), 10_000)
    assert_same_means(draws, default_gradients)
    assert np.all(draws.encoder["output"]["bias"].std(axis=0) > 0)


def test_the_bound_of_a_model_doubly_reparameterizes_its_prior_as_documented():
    def objective(params, x, key):
        prior = build_prior(params)
        frozen = params.replace(prior=jax.lax.stop_gradient(params.prior))
        estimator = P(doubly_reparameterized, prior=prior)
        return importance_weighted_bound(
            frozen, x, key, num_samples=3, estimator=estimator
        )

    plain = P(importance_weighted_bound, num_samples=3)
    draws = model_gradients(objective, jax.random.key(8), 5000)
    expected = model_gradients(plain, jax.random.key(9), 5000)
    assert_same_means(draws, expected)
    assert np.all(draws.prior["mean"].std(axis=0) > 0)


CONDITIONAL = replace(TINY, prior=ClassConditionalPrior(2), num_classes=2, latent_dim=1)


def bound_of_two_samples(params, x, labels):
    """E[log mean of two weights] summed over examples, by Gauss-Hermite quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    weights = weights / weights.sum()
    q = encode(params, x, labels=labels)
    z = q.from_noise(jnp.broadcast_to(nodes[:, None, None], (40, len(x), 1)))
    log_w = log_weight(params, x, z, q.log_prob(z), labels=labels)
    pairs = jnp.logaddexp(log_w[:, None], log_w) - np.log(2)
    return jnp.einsum("s,t,stb->", weights, weights, pairs)


@pytest.mark.long
def test_the_prior_of_each_class_is_doubly_reparameterized_at_the_labels(
    x64, assert_mean
):
    """Two examples and two classes, with the labels in reverse order."""
    labels = np.array([1, 0])
    params = jax.tree.map(lambda leaf: np.float64(leaf), random_params(CONDITIONAL))
    x = np.float64(example_data(CONDITIONAL)[:2])

    def objective(params, key):
        prior = build_prior(at_labels(params, labels))
        return importance_weighted_bound(
            params.replace(prior=jax.lax.stop_gradient(params.prior)),
            x,
            key,
            num_samples=2,
            estimator=P(doubly_reparameterized, prior=prior),
            labels=labels,
        )

    keys = jax.random.split(jax.random.key(8), 5000)
    draws = jax.jit(jax.vmap(jax.grad(objective), (None, 0)))(params, keys)
    by_quadrature = jax.jit(P(bound_of_two_samples, x=x, labels=labels))
    for name, leaf in params.prior.items():
        for entry in range(2):
            up, down = (
                by_quadrature(params.replace(prior={**params.prior, name: leaf + step}))
                for step in 1e-5 * np.eye(2)[entry][None, :, None] * [[[1]], [[-1]]]
            )
            expected = (up - down) / 2e-5 / len(x)
            assert_mean(draws.prior[name][:, entry, 0], expected)


def test_an_elbo_with_its_divergence_in_closed_form_refuses_the_path_derivative(key):
    params, x = random_params(TINY), example_data(TINY)
    with pytest.raises(ValueError, match="kl='monte_carlo'"):
        jax.eval_shape(P(elbo, estimator=path_derivative), params, x, key)


# Transformations and dtypes


BITS = {
    "score_function": score_function,
    "mean_baseline": mean_baseline,
    "leave_one_out": leave_one_out,
    "optimal_baseline": P(optimal_baseline, num_baseline_samples=4),
    "exact_enumeration": exact_enumeration,
    "gumbel_softmax": gumbel_softmax,
    "gumbel_softmax, hard": P(gumbel_softmax, hard=True),
    "straight_through": straight_through,
    "rebar": rebar,
    "arm": arm,
    "disarm": disarm,
}
GAUSSIANS = {
    name: estimator for name, estimator in GAUSSIAN.items() if "baseline" not in name
}
EVERY = [
    *[("gaussian", name) for name in (*GAUSSIANS, "mean_baseline", "optimal_baseline")],
    *[("bits", name) for name in BITS],
]


def smooth_integrand(theta, z, log_q):
    return {"wave": jnp.sin(theta * z.sum(axis=-1)) + 0.1 * log_q}


@pytest.mark.parametrize(("family", "name"), EVERY)
def test_every_estimator_transforms_and_stays_float64(family, name, x64):
    """Traces gradients with three samples under `vmap` over parameters and keys."""
    estimator = (GAUSSIAN if family == "gaussian" else BITS)[name]

    def estimate(parameters, theta, key):
        if family == "gaussian":
            q = DiagonalGaussianDistribution(*parameters)
        else:
            q = BernoulliDistribution(parameters[0])

        def integrand(z, log_q):
            return {"wave": jnp.sin(theta * z.sum(axis=-1)) + 0.1 * log_q}

        return jnp.sum(estimator(integrand, q, key, num_samples=3)["wave"])

    both = jax.value_and_grad(estimate, (0, 1))
    mapped = jax.vmap(jax.vmap(both, (None, None, 0)), (0, 0, None))
    parameters, theta = np.zeros((2, 5, 4, 3)), np.ones(5)
    keys = jax.random.split(jax.random.key(1), 6)
    program = jax.make_jaxpr(mapped)(tuple(parameters), theta, keys)
    shapes = [(5, 6), (5, 6, 4, 3), (5, 6, 4, 3), (5, 6)]
    assert [aval.shape for aval in program.out_avals] == shapes
    assert {aval.dtype for aval in program.out_avals} == {jnp.dtype("float64")}
    assert "f32[" not in str(program)


# Errors


def traced(estimator, integrand, posterior, key, **options):
    """Trace an estimate; errors are raised without compiling a program."""

    def estimate(posterior, key):
        return estimator(integrand, posterior, key, **options)

    return jax.eval_shape(estimate, posterior, key)


def normal():
    zeros = jnp.zeros((2, 3))
    return DiagonalGaussianDistribution(zeros, zeros)


def coins():
    return BernoulliDistribution(jnp.zeros((2, 3)))


def total(z, log_q):
    return z.sum(axis=-1) - log_q


@pytest.mark.parametrize(
    ("family", "name"), [pair for pair in EVERY if pair[1] != "exact_enumeration"]
)
def test_no_samples_are_refused(family, name, key):
    estimator = (GAUSSIAN if family == "gaussian" else BITS)[name]
    posterior = normal() if family == "gaussian" else coins()
    message = f"num_samples must be at least {2 if name == 'leave_one_out' else 1}"
    with pytest.raises(ValueError, match=f"{message}, got 0"):
        traced(estimator, total, posterior, key, num_samples=0)


@pytest.mark.parametrize("estimator", [mean_baseline, optimal_baseline])
def test_no_baseline_samples_are_refused(estimator, key):
    with pytest.raises(ValueError, match="must be at least 1, got 0"):
        traced(estimator, total, normal(), key, num_baseline_samples=0)


def test_one_sample_cannot_be_left_out(key):
    with pytest.raises(ValueError, match="at least 2, got 1: leave_one_out compares"):
        traced(leave_one_out, total, normal(), key, num_samples=1)


def test_one_sample_gives_no_coefficient(key):
    message = "num_coefficient_samples must be at least 2, got 1"
    with pytest.raises(ValueError, match=message):
        traced(delta_control_variate, total, normal(), key, num_coefficient_samples=1)


@pytest.mark.parametrize(
    "estimator", [reparameterization, path_derivative, doubly_reparameterized]
)
def test_what_differentiates_samples_refuses_bits(estimator, key):
    message = f"{estimator.__name__} .*BernoulliDistribution are discrete: use leave"
    with pytest.raises(ValueError, match=message):
        traced(estimator, total, coins(), key)


@pytest.mark.parametrize("estimator", [measure_valued, delta_control_variate])
def test_what_is_known_for_gaussians_refuses_bits(estimator, key):
    message = f"{estimator.__name__} requires a DiagonalGaussianDistribution, got a B"
    with pytest.raises(ValueError, match=message):
        traced(estimator, total, coins(), key)


@pytest.mark.parametrize(
    "estimator", [gumbel_softmax, straight_through, rebar, arm, disarm]
)
def test_what_is_known_for_bits_refuses_a_gaussian(estimator, key):
    message = f"{estimator.__name__} requires a BernoulliDistribution, got a Diagonal"
    with pytest.raises(ValueError, match=message):
        traced(estimator, total, normal(), key)


@pytest.mark.parametrize(
    "estimator, posterior",
    [
        (measure_valued, normal()),
        (delta_control_variate, normal()),
        *((e, coins()) for e in (gumbel_softmax, straight_through, rebar, arm, disarm)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_subclass_may_have_another_density_and_is_refused(estimator, posterior, key):
    own = jax.tree_util.register_dataclass(
        type("Own", (type(posterior),), {"log_prob": lambda self, z: z.sum(-1)})
    )
    leaves = dataclasses.asdict(posterior)
    with pytest.raises(ValueError, match=f"{estimator.__name__} requires .* got a Own"):
        traced(estimator, total, own(**leaves), key)


def test_a_gaussian_cannot_be_enumerated(key):
    message = "needs the support of q, and DiagonalGaussianDistribution has none"
    with pytest.raises(ValueError, match=message):
        traced(exact_enumeration, total, normal(), key)


@pytest.mark.parametrize(
    "estimator",
    [
        score_function,
        mean_baseline,
        leave_one_out,
        optimal_baseline,
        path_derivative,
        doubly_reparameterized,
    ],
)
def test_what_needs_a_density_refuses_a_point_mass(estimator, key):
    posterior = PointMassDistribution(jnp.zeros((2, 3)))
    message = f"{estimator.__name__} needs log q.*PointMassDistribution has no log_prob"
    with pytest.raises(ValueError, match=message):
        traced(estimator, total, posterior, key)


@pytest.mark.parametrize(
    ("estimator", "posterior"),
    [
        (optimal_baseline, normal),
        (measure_valued, normal),
        (delta_control_variate, normal),
        (exact_enumeration, coins),
        (rebar, coins),
        (arm, coins),
        (disarm, coins),
    ],
)
def test_what_estimates_a_mean_refuses_a_bound(estimator, posterior, key):
    message = rf"{estimator.__name__} estimates a plain .*log_mean_exp\): use "
    with pytest.raises(ValueError, match=message):
        traced(
            estimator, total, posterior(), key, num_samples=2, reduction=log_mean_exp
        )


@pytest.mark.parametrize("reduction", [log_mean_exp, Grouped(1), Renyi(0.5)])
def test_the_path_derivative_refuses_a_bound_unless_a_bias_is_asked_for(reduction, key):
    params, x = random_params(TINY), example_data(TINY)
    bound = P(
        importance_weighted_bound,
        num_samples=4,
        estimator=path_derivative,
        reduction=reduction,
    )
    message = "path_derivative estimates.*use doubly_reparameterized, or allow_biased"
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(bound, params, x, key)
    biased = P(path_derivative, allow_biased=True)
    assert jax.eval_shape(P(bound, estimator=biased), params, x, key).shape == ()
    # The bound of one sample is the ELBO.
    assert jax.eval_shape(P(bound, num_samples=1), params, x, key).shape == ()


def test_doubly_reparameterized_refuses_an_unknown_reduction(key):
    def largest(values):
        return values.max(axis=0)

    with pytest.raises(ValueError, match="requires the reduction sample_mean or"):
        traced(doubly_reparameterized, total, normal(), key, reduction=largest)


def test_doubly_reparameterized_refuses_a_prior_that_is_not_a_transformed_noise(key):
    with pytest.raises(
        ValueError, match="to_noise, and BernoulliDistribution has none"
    ):
        traced(doubly_reparameterized, total, normal(), key, prior=coins())


STEPS = {
    "comparison": lambda z: (z > 0) * 1.0,
    "rounding": jnp.round,
    "integer": lambda z: z.astype(int).astype(float),
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    "estimator", [reparameterization, path_derivative, doubly_reparameterized]
)
def test_steps_are_refused_where_their_derivative_would_be_taken(estimator, step, key):
    def integrand(z, log_q):
        return STEPS[step](z).sum(axis=-1) - log_q

    with pytest.raises(ValueError, match="in steps only.*use score_function"):
        traced(estimator, integrand, normal(), key)


@pytest.mark.parametrize(
    "estimator", [score_function, leave_one_out, measure_valued, delta_control_variate]
)
def test_steps_are_what_the_other_estimators_are_for(estimator, key):
    def integrand(z, log_q):
        return STEPS["comparison"](z).sum(axis=-1)

    assert traced(estimator, integrand, normal(), key, num_samples=3).shape == (2,)


@pytest.mark.parametrize("estimator", [path_derivative, doubly_reparameterized])
def test_an_integrand_without_log_q_has_no_score_to_leave_out(estimator, key):
    message = f"{estimator.__name__} requires .* uses log q.*kl='monte_carlo'"
    with pytest.raises(ValueError, match=message):
        traced(estimator, lambda z, log_q: z.sum(axis=-1), normal(), key)


def test_one_baseline_for_two_parts_is_refused(key):
    def integrand(z, log_q):
        return {"first": z[..., 0], "second": z[..., 1]}

    with pytest.raises(ValueError, match="baseline must have an entry for each term"):
        traced(score_function, integrand, normal(), key, baseline=1.0)


def test_a_baseline_is_fitted_by_least_squares():
    baseline, estimate = jnp.array([0.5, -1.0]), jnp.array([1.5, 2.0])
    slopes = jax.grad(lambda b, e: baseline_loss(b, e), (0, 1))(baseline, estimate)
    assert baseline_loss(baseline, estimate) == (1 + 9) / 2
    np.testing.assert_allclose(slopes[0], [-1.0, -3.0])
    assert not slopes[1].any()
    with pytest.raises(ValueError, match=r"same shape, got \[2, 1\] and \[2\]"):
        baseline_loss(baseline[:, None], estimate)


@pytest.mark.parametrize("shape", [(4, 1), (2, 4), (3,)])
def test_a_baseline_of_another_shape_is_refused(shape, key):
    posterior = DiagonalGaussianDistribution(jnp.zeros((4, 2)), jnp.zeros((4, 2)))
    baselined = functools.partial(score_function, baseline=jnp.ones(shape))
    with pytest.raises(ValueError, match=r"baseline must be .* shape \(4,\)"):
        baselined(lambda z, _: z.sum(-1), posterior, key)


def test_a_step_hidden_among_smooth_parts_is_refused(key):
    posterior = DiagonalGaussianDistribution(jnp.zeros((4, 2)), jnp.zeros((4, 2)))

    def parts(z, log_q):
        return {"smooth": z.sum(-1), "step": 1.0 * (z > 0).sum(-1)}

    with pytest.raises(ValueError, match="in steps only"):
        reparameterization(parts, posterior, key)


def test_values_with_a_stray_axis_are_refused(key):
    posterior = DiagonalGaussianDistribution(jnp.zeros((4, 1)), jnp.zeros((4, 1)))
    for estimator in (reparameterization, score_function):
        with pytest.raises(AssertionError, match="shape"):
            estimator(lambda z, _: z, posterior, key)


@pytest.mark.parametrize("log_var", [-np.inf, np.nan])
def test_a_singular_covariance_is_refused_where_it_is_known(log_var, key):
    def estimate(mean, estimator):
        posterior = DiagonalGaussianDistribution(mean, jnp.full((1, 2), log_var))
        return estimator(lambda z, log_q: z.sum(-1) - log_q, posterior, key)[0]

    for estimator in (score_function, path_derivative):
        with pytest.raises(ValueError, match="covariance with a variance of 0"):
            jax.grad(estimate)(jnp.zeros((1, 2)), estimator)


def quadratic(z, log_q):
    """Linear, square, cross and cubic terms, with a closed-form expectation."""
    crossed = jnp.prod(z, axis=-1)
    return jnp.sum(z + 2 * z**2 + z**3, axis=-1) + crossed


def expected_quadratic(mean, var):
    cubes = mean**3 + 3 * mean * var
    return jnp.sum(mean + 2 * (mean**2 + var) + cubes, -1) + jnp.prod(mean, -1)


@pytest.mark.long
def test_sigma_points_are_exact_to_the_third_degree(x64):
    mean = jnp.array([[0.7, -1.2], [0.1, 2.0]])
    log_var = jnp.array([[0.3, -1.0], [-2.0, 0.5]])

    def value(mean, log_var):
        q = DiagonalGaussianDistribution(mean, log_var)
        return sigma_points(quadratic, q, jax.random.key(0))

    def exact(mean, log_var):
        return expected_quadratic(mean, jnp.exp(log_var))

    np.testing.assert_allclose(value(mean, log_var), exact(mean, log_var), rtol=1e-12)
    for argument in (0, 1):
        found, expected = (
            jax.grad(lambda *args, f=f: jnp.sum(f(*args)), argument)(mean, log_var)
            for f in (value, exact)
        )
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_sigma_points_know_the_log_density_and_nothing_of_the_fourth_degree(x64):
    q = DiagonalGaussianDistribution(jnp.zeros((1, 3)), jnp.log(jnp.full((1, 3), 0.5)))
    entropy = -sigma_points(lambda z, log_q: log_q, q, jax.random.key(0))
    expected = scipy.stats.norm(scale=np.sqrt(0.5)).entropy() * 3
    np.testing.assert_allclose(entropy, expected, rtol=1e-12)
    two = DiagonalGaussianDistribution(jnp.zeros((1, 2)), jnp.zeros((1, 2)))
    fourth = sigma_points(lambda z, log_q: jnp.sum(z**4, -1), two, jax.random.key(0))
    # L sigma^4 per unit, instead of the exact 3 sigma^4.
    assert fourth[0] == pytest.approx(4.0)


def test_sigma_points_refuse_what_they_cannot_do(key):
    q = DiagonalGaussianDistribution(jnp.zeros((1, 2)), jnp.zeros((1, 2)))
    with pytest.raises(
        ValueError,
        match="sigma_points requires .* got a PointMass",
    ):
        sigma_points(quadratic, PointMassDistribution(jnp.zeros((1, 2))), key)
    with pytest.raises(ValueError, match="must be 1, got 2"):
        sigma_points(quadratic, q, key, num_samples=2)
    with pytest.raises(ValueError, match="no other reduction"):
        sigma_points(quadratic, q, key, reduction=log_mean_exp)
    with pytest.raises(AssertionError, match="equal"):
        sigma_points(lambda z, log_q: z, q, key)
