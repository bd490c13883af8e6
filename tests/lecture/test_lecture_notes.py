"""The lecture notes, row by row and correction by correction.

`test_S3_18_...` holds row S3-18 of the notes, `test_S3_L444_...` the correction of line
444 of the notes S3: the formula as printed is wrong, by a counter-example, and ours is
right. `pytest -k S3` runs one set of notes. `experiments/lecture/README.md` lists all.
"""

import importlib
import math
import re
from fractions import Fraction
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.integrate
import scipy.stats
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA

import vae_jax
from experiments.lecture import evidence, mixtures, reparameterization
from vae_jax import (
    MLP,
    DiagonalGaussianPrior,
    Gaussian,
    Linear,
    ModelSpec,
    PerPixelGaussian,
    PointMass,
    elbo_terms,
    estimators,
    exact,
    mcmc,
)
from vae_jax.distributions import (
    DiagonalGaussianDistribution,
    discrete,
    gaussian,
    multivariate_gaussian,
)
from vae_jax.estimators import exact_variance
from vae_jax.estimators import sigma_points as without_noise


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


def topic(name):
    return importlib.import_module(f"experiments.lecture.{name}")


def numpy_kl(p, q):
    """The definition, term by term, for probabilities that are all positive."""
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


# ---------------------------------------------------------------- information

LETTERS = np.array([0.7, 0.2, 0.1])
UNIFORM = np.full(3, 1 / 3)


def test_S2_10_information_and_entropy(double):
    assert discrete.information(jnp.array(1 / 8)) == pytest.approx(3 * math.log(2))
    assert discrete.information(jnp.array(0.0)) == math.inf
    expected = scipy.stats.entropy(LETTERS)
    assert discrete.entropy(jnp.asarray(LETTERS)) == pytest.approx(expected)
    assert discrete.entropy(jnp.array([0.0, 1.0])) == 0
    # The mean information of independent events adds up.
    pair = jnp.outer(jnp.asarray(LETTERS), jnp.ones(4) / 4).reshape(-1)
    assert discrete.entropy(pair) == pytest.approx(expected + math.log(4))
    log_var = jnp.log(jnp.array([0.49]))
    differential = scipy.stats.norm(1, 0.7).entropy()
    assert gaussian.diagonal_entropy(log_var) == pytest.approx(differential)


def test_S2_11_both_directions_differ(double):
    p, q = jnp.asarray(LETTERS), jnp.asarray(UNIFORM)
    assert discrete.kl_divergence(p, q) == pytest.approx(numpy_kl(LETTERS, UNIFORM))
    assert discrete.kl_divergence(q, p) == pytest.approx(numpy_kl(UNIFORM, LETTERS))
    assert abs(discrete.kl_divergence(p, q) - discrete.kl_divergence(q, p)) > 0.02
    # And for densities: N(0, 1) against N(0, 4), by an integral.
    narrow, wide = scipy.stats.norm(0, 1), scipy.stats.norm(0, 2)
    for first, second, log_vars in (
        (narrow, wide, (0.0, math.log(4))),
        (wide, narrow, (math.log(4), 0.0)),
    ):
        integral, _ = scipy.integrate.quad(
            lambda x, a=first, b=second: a.pdf(x) * (a.logpdf(x) - b.logpdf(x)), -30, 30
        )
        zero = jnp.zeros(1)
        ours = gaussian.diagonal_kl_divergence(
            zero, zero + log_vars[0], zero, zero + log_vars[1]
        )
        assert ours == pytest.approx(integral)


def test_S2_12_kl_is_never_negative(double):
    p, q = map(jnp.asarray, np.random.default_rng(0).dirichlet(np.ones(4), (2, 2000)))
    assert discrete.kl_divergence(p, q).min() > 0
    assert jnp.abs(discrete.kl_divergence(p, p)).max() == 0
    # An outcome that one excludes: finite one way, infinite the other.
    some, all_of_them = jnp.array([0.5, 0.5, 0.0]), jnp.asarray(UNIFORM)
    assert discrete.kl_divergence(some, all_of_them) == pytest.approx(math.log(1.5))
    assert discrete.kl_divergence(all_of_them, some) == math.inf
    gradient = jax.grad(discrete.kl_divergence)(some, all_of_them)
    assert jnp.isfinite(gradient).all()


def test_S2_14_kl_to_the_standard_normal(double):
    for mean, deviation in ((0.0, 1.0), (1.0, 0.5), (-2.0, 3.0)):
        q = scipy.stats.norm(mean, deviation)
        integral, _ = scipy.integrate.quad(
            lambda x, q=q: q.pdf(x) * (q.logpdf(x) - scipy.stats.norm.logpdf(x)),
            mean - 12 * deviation,
            mean + 12 * deviation,
        )
        log_var = jnp.array([2 * math.log(deviation)])
        ours = gaussian.diagonal_kl_to_standard_normal(jnp.array([mean]), log_var)
        assert ours == pytest.approx(integral, abs=1e-9)


DIE = [Fraction(1, 6)] * 6
IS_ODD = jnp.array([1.0, 0, 1, 0, 1, 0])


def test_S3_1_bayes_rule(double):
    """Prior, likelihood, joint, evidence and posterior of a disease and its test."""
    prior = np.array([0.99, 0.01])
    likelihood = np.array([0.05, 0.9])  # of a positive test
    joint = prior * likelihood
    posterior, log_evidence = discrete.posterior(jnp.log(prior), jnp.log(likelihood))
    np.testing.assert_allclose(posterior, joint / joint.sum())
    np.testing.assert_allclose(jnp.exp(log_evidence), joint.sum())


def test_S3_2_total_probability(double):
    """The evidence of a discrete latent, three values at once, by a sum."""
    prior = np.array([0.5, 0.3, 0.2])
    likelihood = np.array([[0.1, 0.6, 0.3], [0.8, 0.1, 0.1]])  # [x, z]
    _, log_evidence = discrete.posterior(jnp.log(prior), jnp.log(likelihood))
    np.testing.assert_allclose(jnp.exp(log_evidence), likelihood @ prior)


def test_S3_3_the_die(double):
    assert sum(face * p for face, p in enumerate(DIE, 1)) == Fraction(7, 2)
    fair = jnp.ones(6) / 6
    assert fair @ jnp.arange(1, 7) == pytest.approx(3.5)
    given_odd, _ = discrete.posterior(jnp.log(fair), jnp.log(IS_ODD))
    np.testing.assert_allclose(given_odd, np.array([1, 0, 1, 0, 1, 0]) / 3)


def test_S3_4_the_three_letters(double):
    p, q = jnp.asarray(LETTERS), jnp.asarray(UNIFORM)
    assert discrete.kl_divergence(p, q) == pytest.approx(0.296794, abs=1e-6)
    assert discrete.kl_divergence(q, p) == pytest.approx(0.324287, abs=1e-6)
    assert discrete.jensen_shannon_divergence(p, q) == pytest.approx(0.074806, abs=1e-6)
    assert discrete.kl_divergence(q, p) / math.log(2) == pytest.approx(
        0.467847, abs=1e-6
    )
    parts = discrete.entropy(p) + discrete.kl_divergence(p, q)
    assert discrete.cross_entropy(p, q) == pytest.approx(parts)


@pytest.fixture(scope="module")
def two_gaussians():
    """Means and full covariances in three dimensions."""
    draws = np.random.default_rng(0)
    roots = draws.normal(size=(2, 3, 3))
    return draws.normal(size=(2, 3)), roots @ roots.swapaxes(1, 2) + 0.5 * np.eye(3)


def full_kl(means, covariances):
    factors = map(jnp.asarray, np.linalg.cholesky(covariances))
    arguments = [
        item for pair in zip(jnp.asarray(means), factors, strict=True) for item in pair
    ]
    return multivariate_gaussian.full_kl_divergence(*arguments)


def sigma_points(mean, covariance):
    """2 K points whose mean of any quadratic is its expectation under N(m, S)."""
    factor = math.sqrt(len(mean)) * np.linalg.cholesky(covariance)
    return mean + np.concatenate([factor.T, -factor.T])


def test_S3_5_multivariate_normal_log_density(double, two_gaussians):
    (mean, _), (covariance, _) = two_gaussians
    x = np.random.default_rng(1).normal(size=(4, 3))
    ours = multivariate_gaussian.full_log_prob(
        jnp.asarray(x), jnp.asarray(mean), jnp.linalg.cholesky(covariance)
    )
    oracle = scipy.stats.multivariate_normal(mean, covariance)
    np.testing.assert_allclose(ours, oracle.logpdf(x))


def test_S3_6_kl_of_full_gaussians_and_its_proof(double, two_gaussians):
    """Each step of the proof: expectations of quadratics, exact by sigma points."""
    (mean_1, mean_2), (cov_1, cov_2) = two_gaussians
    inverse_1, inverse_2 = np.linalg.inv(cov_1), np.linalg.inv(cov_2)
    x = sigma_points(mean_1, cov_1)
    shift = mean_1 - mean_2

    def mean_square(points, inverse):
        return np.einsum("ni,ij,nj->n", points, inverse, points).mean()

    own = mean_square(x - mean_1, inverse_1) / 2
    other = mean_square(x - mean_1, inverse_2) / 2
    cross = ((x - mean_1) @ inverse_2 @ shift).mean()
    constant = shift @ inverse_2 @ shift / 2
    assert own == pytest.approx(3 / 2)
    assert other == pytest.approx(np.trace(inverse_2 @ cov_1) / 2)
    assert cross == pytest.approx(0, abs=1e-12)
    whole = mean_square(x - mean_2, inverse_2) / 2
    assert whole == pytest.approx(other + cross + constant)
    log_ratio = math.log(np.linalg.det(cov_2) / np.linalg.det(cov_1)) / 2
    assert full_kl(*two_gaussians) == pytest.approx(log_ratio - own + whole)


def test_S3_7_trace_identities(two_gaussians):
    a, b, c = np.random.default_rng(2).normal(size=(3, 3, 3))
    assert np.trace(a @ b) == pytest.approx(np.trace(b @ a))
    assert np.trace(a @ b @ c) == pytest.approx(np.trace(b @ c @ a))
    assert np.trace(a @ b @ c) == pytest.approx(np.trace(c @ a @ b))
    # E tr(X) = tr(E X): the trace is linear.
    x = sigma_points(*(entry[0] for entry in two_gaussians))
    products = np.einsum("ni,nj->nij", x, x)
    traces = np.trace(products, axis1=1, axis2=2)
    assert traces.mean() == pytest.approx(np.trace(products.mean(axis=0)))


def test_S2_L276_the_entropy_is_an_integral_over_x():
    """- int p log p dp, as printed, is no entropy: it does not depend on p at all."""
    printed, _ = scipy.integrate.quad(lambda p: -p * math.log(p), 0, 1)
    for deviation in (0.5, 2.0):
        density = scipy.stats.norm(0, deviation)
        right, _ = scipy.integrate.quad(
            lambda x, d=density: -d.pdf(x) * d.logpdf(x), -20, 20
        )
        log_var = jnp.array([2 * math.log(deviation)])
        assert gaussian.diagonal_entropy(log_var) == pytest.approx(right, rel=1e-5)
        assert abs(printed - right) > 0.1


def test_S2_L290_the_garbled_entropy_is_the_same_integral(double):
    """The integral over x, here on a grid, is what the printed symbols stand for."""
    x = np.linspace(-10, 10, 4001)
    p = scipy.stats.norm.pdf(x)
    step = x[1] - x[0]
    cells = jnp.asarray(p * step)
    # Cells are outcomes: their entropy is the differential one less log of the width.
    ours = discrete.entropy(cells) + math.log(step)
    assert ours == pytest.approx(float(gaussian.diagonal_entropy(jnp.zeros(1))))


def test_S2_L298_the_directions_fit_differently(double):
    """One cannot pick either: of two Gaussians each direction prefers another."""
    information = topic("information")
    weights, means, deviation = information.MIXTURE
    mean = weights @ means
    spread = math.sqrt(weights @ (means - mean) ** 2 + deviation**2)
    covering, mode = (
        jnp.asarray(q / q.sum())
        for q in (
            scipy.stats.norm.pdf(information.GRID, mean, spread),
            scipy.stats.norm.pdf(information.GRID, means[0], deviation),
        )
    )
    p = information.mixture_cells()
    forward, backward = (
        [discrete.kl_divergence(*pair(q)) for q in (covering, mode)]
        for pair in (lambda q: (p, q), lambda q: (q, p))
    )
    assert forward[0] < forward[1] - 1
    assert backward[1] < backward[0] - 0.5


def test_S2_L313_the_sign_of_the_lemma():
    """With sum Q = 1/2 over the outcomes of P the printed bound is not the lemma's."""
    p, q = np.array([0.5, 0.5]), np.array([0.25, 0.25])  # half of q lies elsewhere
    left = -np.sum(p * np.log(q / p))
    printed, right = math.log(q.sum()), -math.log(q.sum())
    assert left == pytest.approx(right)
    assert printed < 0 < right  # it holds, but proves no KL to be positive
    ours = discrete.kl_divergence(
        jnp.array([0.5, 0.5, 0.0]), jnp.array([0.25, 0.25, 0.5])
    )
    assert ours == pytest.approx(right, rel=1e-6)


def test_S2_L317_approximately_is_not_distributed_as():
    """q(z|x) is near p(z|x): a KL says how near; no sample is meant."""
    p, q = jnp.array([0.5, 0.5]), jnp.array([0.51, 0.49])
    assert 0 < discrete.kl_divergence(q, p) < 1e-3


def test_S3_L30_the_posterior_is_likelihood_times_prior_over_evidence(double):
    """p(y)/p(x) is no likelihood ratio: the prior is updated by p(x|y)/p(x)."""
    prior, likelihood = np.array([0.5, 0.3, 0.2]), np.array([0.1, 0.6, 0.3])
    evidence = prior @ likelihood
    posterior, _ = discrete.posterior(jnp.log(prior), jnp.log(likelihood))
    np.testing.assert_allclose(posterior, prior * (likelihood / evidence))
    assert (np.abs(prior / evidence * prior - posterior) > 0.05).any()


def test_S3_L34_the_events_must_also_exhaust(double):
    """1, 2 and 3 are disjoint, and their sum misses half of P(odd)."""
    fair = np.full(6, 1 / 6)
    disjoint_only = fair[:3] @ np.asarray(IS_ODD)[:3]
    _, log_evidence = discrete.posterior(jnp.log(fair), jnp.log(IS_ODD))
    assert disjoint_only == pytest.approx(1 / 3)
    assert jnp.exp(log_evidence) == pytest.approx(1 / 2)


def test_S3_L61_bayes_rule_for_the_die(double):
    """P(y|x) P(y) / P(x) gives 3, which is no probability."""
    likelihood, of_three, of_odd = 1, 1 / 6, 1 / 2
    assert likelihood * of_odd / of_three == pytest.approx(3)
    given_odd, _ = discrete.posterior(jnp.log(jnp.ones(6) / 6), jnp.log(IS_ODD))
    assert given_odd[2] == pytest.approx(likelihood * of_three / of_odd)
    assert given_odd[2] == pytest.approx(1 / 3)


def test_S3_L105_kl_of_the_letters(double):
    """0.09673 nats is neither direction, in nats or bits, nor Jensen-Shannon."""
    p, q = jnp.asarray(LETTERS), jnp.asarray(UNIFORM)
    candidates = [
        discrete.kl_divergence(q, p),
        discrete.kl_divergence(p, q),
        discrete.jensen_shannon_divergence(p, q),
    ]
    for value in (*candidates, *(value / math.log(2) for value in candidates)):
        assert abs(value - 0.09673) > 0.01
    assert candidates[0] == pytest.approx(numpy_kl(UNIFORM, LETTERS))
    # The textbook's case P = (0.36, 0.48, 0.16), which it resembles.
    textbook = jnp.array([0.36, 0.48, 0.16])
    assert discrete.kl_divergence(q, textbook) == pytest.approx(0.097455, abs=1e-6)


def test_S3_L111_zero_only_where_they_are_equal(double):
    p = jnp.asarray(LETTERS)
    assert discrete.kl_divergence(p, p) == 0
    for outcome in range(3):
        moved = p.at[outcome].add(1e-3).at[(outcome + 1) % 3].add(-1e-3)
        assert discrete.kl_divergence(p, moved) > 1e-7


def test_S3_L120_one_symbol_for_the_dimension(double, two_gaussians):
    """K of the density is d of the divergence: with another d, KL(p || p) is not 0."""
    means, covariances = two_gaussians
    same = full_kl(means[[0, 0]], covariances[[0, 0]])
    assert same == pytest.approx(0, abs=1e-12)
    trace = np.trace(np.linalg.inv(covariances[0]) @ covariances[0])
    assert (trace - 3) / 2 == pytest.approx(0) and (trace - 2) / 2 == pytest.approx(0.5)


def test_S3_L130_integrals_for_continuous_x():
    """The printed sum over x grows without bound as the points get denser."""
    q = scipy.stats.norm(1, 0.5)
    ours = gaussian.diagonal_kl_to_standard_normal(
        jnp.ones(1), 2 * jnp.log(jnp.ones(1) / 2)
    )
    sums, integrals = [], []
    for count in (200, 2000):
        x = np.linspace(-6, 8, count)
        terms = q.pdf(x) * (q.logpdf(x) - scipy.stats.norm.logpdf(x))
        sums.append(terms.sum())
        integrals.append(np.trapezoid(terms, x))
    assert sums[1] > 9 * sums[0]
    np.testing.assert_allclose(integrals, ours, rtol=1e-5)


def quadratic_terms(two_gaussians):
    (mean_1, mean_2), (cov_1, cov_2) = two_gaussians
    x = np.array([0.3, -1.0, 2.0])
    return x - mean_1, mean_1 - mean_2, np.linalg.inv(cov_2)


def test_S3_L182_the_half_is_of_the_whole_product(two_gaussians):
    a, b, inverse = quadratic_terms(two_gaussians)
    left = (a + b) @ inverse @ (a + b) / 2
    printed = (a / 2 + b) @ inverse @ (a + b)
    right = 0.5 * (a + b) @ inverse @ (a + b)
    assert right == pytest.approx(left)
    assert abs(printed - left) > 0.1


def test_S3_L184_the_cross_term_has_no_half(two_gaussians):
    a, b, inverse = quadratic_terms(two_gaussians)
    left = (a + b) @ inverse @ (a + b) / 2
    others = (a @ inverse @ a + b @ inverse @ b) / 2
    assert left == pytest.approx(others + a @ inverse @ b)
    assert abs(left - others - a @ inverse @ b / 2) > 0.1


def test_S3_L206_the_constant_has_a_half(double, two_gaussians):
    """The printed last term, without 1/2, adds too much; the cross term has x in it."""
    (mean_1, mean_2), (cov_1, cov_2) = two_gaussians
    inverse, shift = np.linalg.inv(cov_2), mean_1 - mean_2
    constant = shift @ inverse @ shift
    trace = np.trace(inverse @ cov_1)
    log_ratio = math.log(np.linalg.det(cov_2) / np.linalg.det(cov_1))
    ours = full_kl(*two_gaussians)
    assert ours == pytest.approx(0.5 * (log_ratio - 3 + trace) + constant / 2)
    assert abs(ours - 0.5 * (log_ratio - 3 + trace) - constant) > 0.1
    crosses = (sigma_points(mean_1, cov_1) - mean_1) @ inverse @ shift
    assert np.ptp(crosses) > 0.1 and crosses.mean() == pytest.approx(0, abs=1e-12)


def test_S3_L190_only_a_scalar_is_its_own_trace(two_gaussians):
    a, _, inverse = quadratic_terms(two_gaussians)
    assert np.trace([[a @ inverse @ a]]) == pytest.approx(a @ inverse @ a)
    matrix = np.outer(a, a)
    assert not np.allclose(np.trace(matrix), matrix)


def test_S3_L200_not_equal_in_general():
    """Commuting matrices are the exception to the printed inequality."""
    a, b, c = np.random.default_rng(3).normal(size=(3, 2, 2))
    assert abs(np.trace(a @ b @ c) - np.trace(a @ c @ b)) > 0.01
    b, c = np.diag([1.0, 2.0]), np.diag([3.0, 4.0])
    assert np.trace(a @ b @ c) == pytest.approx(np.trace(a @ c @ b))


def test_S3_L217_the_final_formula_is_right(double, two_gaussians):
    """L126, L217 and L408 against the mean of log p - log q over a million draws."""
    (mean_1, mean_2), (cov_1, cov_2) = two_gaussians
    x = np.random.default_rng(4).multivariate_normal(mean_1, cov_1, 200_000)
    oracle = scipy.stats.multivariate_normal
    values = oracle(mean_1, cov_1).logpdf(x) - oracle(mean_2, cov_2).logpdf(x)
    error = values.std() / math.sqrt(len(x))
    assert abs(values.mean() - full_kl(*two_gaussians)) < 5 * error


# ------------------------------------------------- a model whose posterior is known

WEIGHTS = np.array([[1.0, 0.5], [0.3, -0.8], [0.2, 0.6]])
BIAS, NOISE_VAR = np.array([0.1, -0.2, 0.3]), 0.5
X = np.array([[0.5, 1.0, -0.3], [1.5, -0.4, 0.2], [-2.0, 0.1, 0.7], [0.0, 0.0, 0.0]])
Q_MEAN = np.array([[0.2, 0.5], [0.9, -0.3], [-1.0, 0.4], [0.1, 0.1]])
Q_LOG_VAR = np.log(np.array([[0.4, 0.6], [0.2, 0.9], [1.3, 0.5], [0.5, 0.5]]))
COVARIANCE = WEIGHTS @ WEIGHTS.T + NOISE_VAR * np.eye(3)


def model_of_weights(weights=WEIGHTS):
    arrays = (weights, BIAS, np.asarray(NOISE_VAR))
    return exact.LinearGaussian(*map(jnp.asarray, arrays))


@pytest.fixture(scope="module")
def known():
    """The library's figures for an arbitrary q, in one compiled program, by NumPy."""

    @jax.jit
    def measure(x, mean, log_var):
        model = model_of_weights()
        params = exact.linear_vae(model)
        q = DiagonalGaussianDistribution(mean, log_var)
        key = jax.random.key(0)
        options = {"posterior": q, "estimator": without_noise}
        terms = elbo_terms(params, x, key, **options)
        sampled = elbo_terms(params, x, key, kl="monte_carlo", **options)
        posterior = exact.posterior(model, x)

        def mean_of(f):
            return without_noise(lambda z, _: f(z), q, key)

        return {
            "elbo": terms.elbo,
            "sgvb_a": sampled.elbo,
            "log_likelihood": terms.log_likelihood,
            "kl": terms.kl_divergence,
            "entropy": gaussian.diagonal_entropy(log_var),
            "log_joint": mean_of(lambda z: vae_jax.log_joint(params, x, z)),
            "log_prior": mean_of(lambda z: vae_jax.log_prior(params, z)),
            "log_evidence": exact.log_evidence(model, x),
            "gap": evidence.gap_to_posterior(model, x, q),
            "posterior_mean": posterior[0],
            "posterior_covariance": posterior[1],
        }

    with jax.enable_x64(True):
        found = measure(*map(jnp.asarray, (X, Q_MEAN, Q_LOG_VAR)))
        return {name: np.asarray(value) for name, value in found.items()}


def numpy_gaussian_kl(mean, variance, other_mean, other_covariance):
    """KL of a diagonal to a full Gaussian, by the formula and NumPy."""
    inverse, shift = np.linalg.inv(other_covariance), other_mean - mean
    _, log_det = np.linalg.slogdet(other_covariance)
    trace = np.trace(inverse @ np.diag(variance))
    square = shift @ inverse @ shift
    return 0.5 * (trace + square - len(mean) + log_det - np.log(variance).sum())


@pytest.fixture(scope="module")
def plane():
    """E log p(x|z) and KL for a grid of q(z) = N(m, s^2) of one x, by the library.

    x = 3 of x|z ~ N(2 z, 1/2): the posterior N(4/3, 1/9) and N(0, 1) lie on the grid.
    """
    means = np.linspace(0, 8 / 3, 31)
    scales = 3.0 ** (np.arange(-24, 7) / 6)
    m, s = (part.reshape(-1, 1) for part in np.meshgrid(means, scales, indexing="ij"))

    @jax.jit
    def measure(m, s):
        model = exact.LinearGaussian(
            jnp.full((1, 1), 2.0), jnp.zeros(1), jnp.asarray(0.5)
        )
        q = DiagonalGaussianDistribution(m, 2 * jnp.log(s))
        x = jnp.full_like(m, 3.0)
        options = {"posterior": q, "estimator": without_noise}
        return elbo_terms(exact.linear_vae(model), x, jax.random.key(0), **options)

    with jax.enable_x64(True):
        terms = jax.device_get(measure(jnp.asarray(m), jnp.asarray(s)))
    shape = (len(means), len(scales))
    return (
        means,
        scales,
        terms.log_likelihood.reshape(shape),
        terms.kl_divergence.reshape(shape),
    )


def best_of(plane, fidelity, beta):
    """Mean and scale of the q that maximises fidelity * E log p(x|z) - beta * KL."""
    means, scales, log_likelihood, kl = plane
    values = fidelity * log_likelihood - beta * kl
    row, column = np.unravel_index(np.argmax(values), values.shape)
    return means[row], scales[column]


def linear_spec(**choices):
    return ModelSpec(
        **{
            "encoder": Linear(),
            "decoder": Linear(),
            "likelihood": Gaussian(),
            "latent_dim": 2,
            "data_shape": (3,),
        }
        | choices
    )


@pytest.fixture(scope="module")
def autoencoder():
    init = jax.jit(partial(vae_jax.init, linear_spec(posterior=PointMass())))
    return init(jax.random.key(0))


@pytest.fixture(scope="module")
def linear_vae():
    """The known model with its best encoder, in single precision."""
    return exact.linear_vae(
        exact.LinearGaussian(
            *(jnp.asarray(a, jnp.float32) for a in (WEIGHTS, BIAS, NOISE_VAR))
        )
    )


# --------------------------------------------------------------------- notes S0


def test_S0_1_an_autoencoder_encodes_a_point(autoencoder):
    x = jnp.asarray(X, jnp.float32)
    first, second = (vae_jax.reconstruct(autoencoder, x, k) for k in keys(2))
    assert (first == second).all()
    terms = elbo_terms(autoencoder, x, jax.random.key(0))
    assert (terms.kl_divergence == 0).all()


def keys(count):
    return [jax.random.key(number) for number in range(count)]


def test_S0_2_a_vae_encodes_a_gaussian(linear_vae):
    x = jnp.asarray(X, jnp.float32)
    q = vae_jax.encode(linear_vae, x)
    z = vae_jax.reparameterize(q, jax.random.key(0), num_samples=4000)
    np.testing.assert_allclose(z.std(axis=0), jnp.exp(q.log_var / 2), rtol=0.06)
    # Neighbours overlap: the code of one lies within the spread of the other.
    near = vae_jax.encode(linear_vae, x + 0.1)
    assert (jnp.abs(near.mean - q.mean) < jnp.exp(q.log_var / 2)).all()


def test_S0_3_k_means_is_the_limit_of_em(double):
    points = mixtures.make_points(60, 0)
    start = points[[0, 1, 2]]
    kmeans = KMeans(3, init=start, n_init=1, tol=0).fit(points)
    fit = jax.jit(
        jax.vmap(
            lambda log_var: mixtures.fit_centers(
                jnp.asarray(points), jnp.asarray(start), log_var, 60
            )
        )
    )
    centers, log_evidence = fit(2 * jnp.log(jnp.array([2.0, 0.01])))
    off = np.abs(centers - kmeans.cluster_centers_).max(axis=(1, 2))
    assert off[0] > 0.1 and off[1] < 1e-6
    assert np.diff(log_evidence, axis=1).min() > -1e-9
    # Soft assignments have log p(x) for their ELBO; hard ones lack their KL.
    compare = jax.jit(partial(mixtures.hard_and_soft, deviation=2.0))
    total, soft, hard, gap = map(float, compare(points, centers[0]))
    assert soft == pytest.approx(total) and gap > 0.1
    assert total - hard == pytest.approx(gap)


def test_S0_4_posterior_predictive_generation(linear_vae):
    x = jnp.asarray(X[:1], jnp.float32)
    q = vae_jax.encode(linear_vae, x)
    many = np.repeat(x, 40_000, axis=0)
    draws = jax.jit(partial(vae_jax.reconstruct, sample=True))(
        linear_vae, many, jax.random.key(0)
    )
    draws = np.asarray(draws)
    spread = WEIGHTS * np.exp(np.asarray(q.log_var[0]) / 2)
    covariance = spread @ spread.T + NOISE_VAR * np.eye(3)
    bound = 5 * math.sqrt(2 / 40_000)
    mean = WEIGHTS @ np.asarray(q.mean[0]) + BIAS
    np.testing.assert_allclose(draws.mean(axis=0), mean, atol=bound)
    np.testing.assert_allclose(np.cov(draws.T), covariance, atol=bound)


def test_S0_5_the_evidence_by_quadrature_in_two_dimensions(linear_vae):
    x = jnp.asarray(X, jnp.float32)
    found = jax.jit(partial(exact.quadrature_log_evidence, num_points=60))(
        linear_vae, x
    )
    oracle = scipy.stats.multivariate_normal(BIAS, COVARIANCE).logpdf(X)
    np.testing.assert_allclose(found.estimate, oracle, atol=1e-4)
    init = partial(vae_jax.init, linear_spec(latent_dim=3))
    three = jax.eval_shape(init, jax.random.key(0))
    with pytest.raises(ValueError, match="1 or 2 latents, got 3"):
        exact.quadrature_log_evidence(three, x)


def test_S0_6_diagonal_gaussian_q(linear_vae):
    q = vae_jax.encode(linear_vae, jnp.asarray(X, jnp.float32))
    z = np.ones((1, 4, 2), np.float32)
    oracle = scipy.stats.norm(q.mean, np.exp(q.log_var / 2)).logpdf(z).sum(axis=-1)
    np.testing.assert_allclose(q.log_prob(z), oracle, rtol=1e-5)


def test_S0_7_evidence_is_elbo_plus_kl_to_the_posterior(known):
    np.testing.assert_allclose(
        known["log_evidence"], known["elbo"] + known["gap"], rtol=1e-12
    )
    by_numpy = [
        numpy_gaussian_kl(mean, np.exp(log_var), target, known["posterior_covariance"])
        for mean, log_var, target in zip(
            Q_MEAN, Q_LOG_VAR, known["posterior_mean"], strict=True
        )
    ]
    np.testing.assert_allclose(known["gap"], by_numpy, rtol=1e-10)


def test_S0_8_both_effects_of_raising_the_elbo(double):
    """Over q the gap shrinks; over theta, at the posterior, log p(x) rises as much."""
    orthogonal = np.array(
        [[1.0, 0.2], [-0.5, 0.4], [0.0, 1.0]]
    )  # its posterior is diagonal
    x = jnp.asarray(X)

    @jax.jit
    def gradients(weights):
        start = exact.linear_vae(model_of_weights(weights))
        q = vae_jax.encode(start, x)

        def elbo(weights):
            params = exact.linear_vae(model_of_weights(weights))
            return elbo_terms(
                params, x, jax.random.key(0), posterior=q, estimator=without_noise
            ).elbo.sum()

        def log_evidence(weights):
            return exact.log_evidence(model_of_weights(weights), x).sum()

        gap = evidence.gap_to_posterior(model_of_weights(weights), x, q)
        return jax.grad(elbo)(weights), jax.grad(log_evidence)(weights), gap

    of_elbo, of_evidence, gap = gradients(jnp.asarray(orthogonal))
    np.testing.assert_allclose(gap, 0, atol=1e-12)
    np.testing.assert_allclose(of_elbo, of_evidence, rtol=1e-8)


def test_S0_9_three_forms_of_the_elbo(known):
    forms = (
        known["log_joint"] + known["entropy"],
        known["log_prior"] + known["log_likelihood"] + known["entropy"],
        known["log_likelihood"] - known["kl"],
    )
    for form in forms:
        np.testing.assert_allclose(form, known["elbo"], rtol=1e-12)


def test_S0_10_a_larger_beta_widens_q(plane):
    """The best variance is beta / (beta + w^2 / s^2); the mean goes to the prior's."""
    found = [best_of(plane, 1, beta) for beta in (1.0, 4.0, 16.0)]
    for (_, scale), beta in zip(found, (1.0, 4.0, 16.0), strict=True):
        assert scale**2 == pytest.approx(beta / (beta + 8), rel=0.25)
    means, scales = zip(*found, strict=True)
    assert sorted(scales) == list(scales) and sorted(means)[::-1] == list(means)
    assert best_of(plane, 1, 1.0) == pytest.approx((4 / 3, 1 / 3))


def test_S0_11_encoder_and_generator_networks():
    spec = ModelSpec(MLP((5,)), MLP((6,)), latent_dim=2, data_shape=(3,))
    params = jax.eval_shape(partial(vae_jax.init, spec), jax.random.key(0))
    assert params.encoder["output"]["kernel"].shape == (5, 4)  # mean, log-variance
    assert params.decoder["output"]["kernel"].shape == (6, 3)
    x, z = jnp.zeros((7, 3)), jnp.zeros((4, 7, 2))
    of_z = jax.tree.leaves(jax.eval_shape(vae_jax.encode, params, x))
    assert [leaf.shape for leaf in of_z] == [(7, 2), (7, 2)]
    (of_x,) = jax.tree.leaves(jax.eval_shape(vae_jax.decode, params, z))
    assert of_x.shape == (4, 7, 3)


def test_S0_12_reparameterization(known):
    q = DiagonalGaussianDistribution(
        jnp.array([[1.0, -2.0]]), jnp.log(jnp.array([[4.0, 0.25]]))
    )
    z = q.from_noise(jnp.array([[1.0, 2.0]]))
    np.testing.assert_allclose(z, [[1 + 2 * 1, -2 + 0.5 * 2]], rtol=1e-6)
    jacobian = jax.jacobian(
        lambda mean: DiagonalGaussianDistribution(mean, q.log_var).from_noise(z)
    )
    np.testing.assert_allclose(jacobian(q.mean).reshape(2, 2), np.eye(2))


def small_joint():
    """p(z), p(x|z) of two z and three x, and p(z|x) by the definition."""
    prior, likelihood = (
        np.array([0.3, 0.7]),
        np.array([[0.2, 0.5, 0.3], [0.6, 0.1, 0.3]]),
    )
    joint = prior[:, None] * likelihood
    return prior, likelihood, joint, joint / joint.sum(axis=0)


def test_S0_L22_the_predictive_is_of_another_x():
    """p(x'|x) sums to one over x'; the printed integrand does not know x'."""
    _, likelihood, _, posterior = small_joint()
    predictive = posterior.T @ likelihood  # [x, x']
    np.testing.assert_allclose(predictive.sum(axis=1), 1)
    printed = (posterior * likelihood).sum(axis=0)
    assert (np.abs(3 * printed - 1) > 0.1).any()


def arbitrary_q():
    prior, likelihood, joint, posterior = small_joint()
    q = np.array([0.6, 0.4])
    return q, joint[:, 0], posterior[:, 0], joint[:, 0].sum()


def test_S0_L47_no_term_may_be_dropped():
    q, joint, posterior, evidence_of_x = arbitrary_q()
    left = numpy_kl(q, posterior)
    right = q @ np.log(q) - (q @ np.log(joint) - math.log(evidence_of_x))
    assert left == pytest.approx(right)
    ours = discrete.kl_divergence(jnp.asarray(q), jnp.asarray(posterior))
    assert ours == pytest.approx(left, rel=1e-5)
    for printed in (q @ np.log(joint / evidence_of_x), q @ np.log(joint)):
        assert abs(printed - left) > 0.1


def test_S0_L49_the_sign_of_log_p():
    q, _, _, evidence_of_x = arbitrary_q()
    printed_left = -(q @ np.full(2, math.log(evidence_of_x)))
    assert printed_left == pytest.approx(-math.log(evidence_of_x))
    assert abs(printed_left - math.log(evidence_of_x)) > 1


def test_S0_L69_log_p_need_not_rise():
    """From the best decoder and a wrong q the ELBO rises only where log p(x) falls."""
    x, noise_var, mean, variance = 2.0, 0.5, 0.4, 0.1

    def log_evidence(w):
        return scipy.stats.norm.logpdf(x, 0, math.sqrt(w**2 + noise_var))

    def elbo(w):
        model = exact.LinearGaussian(
            jnp.array([[w]]), jnp.zeros(1), jnp.array(noise_var)
        )
        q = DiagonalGaussianDistribution(
            jnp.array([[mean]]), jnp.log(jnp.array([[variance]]))
        )
        return elbo_terms(
            exact.linear_vae(model),
            jnp.array([[x]]),
            jax.random.key(0),
            posterior=q,
            estimator=without_noise,
        ).elbo[0]

    best = math.sqrt(x**2 - noise_var)  # of log p(x)
    both = jax.jit(jax.value_and_grad(elbo))
    value, slope = both(best)
    moved = best + 0.1 * float(slope)
    assert both(moved)[0] > value + 0.01
    assert log_evidence(moved) < log_evidence(best) - 1e-4


def test_S0_L85_minus_the_kl(known):
    np.testing.assert_allclose(known["elbo"], known["log_likelihood"] - known["kl"])
    printed = known["log_likelihood"] + known["kl"]
    assert (printed > known["elbo"] + 0.1).all()
    assert (printed > known["log_evidence"]).any()  # it is no lower bound


def test_S0_L109_the_covariance_is_diag_of_squares():
    """Sigma stands for a deviation: as a variance, eps would be scaled wrongly."""
    sigma = np.array([0.5, 3.0])
    log_var = jnp.log(jnp.asarray(sigma**2, jnp.float32))
    z = gaussian.diagonal_sample(
        jnp.zeros(2), log_var, jax.random.key(0), num_samples=20_000
    )
    np.testing.assert_allclose(z.var(axis=0), sigma**2, rtol=0.06)
    assert (np.abs(z.var(axis=0) / sigma - 1) > 0.4).all()


# --------------------------------------------------------------------- notes S1


def test_S1_1_maximum_likelihood_of_independent_data(known):
    product = np.prod(scipy.stats.multivariate_normal(BIAS, COVARIANCE).pdf(X))
    assert known["log_evidence"].sum() == pytest.approx(math.log(product))


def test_S1_2_the_marginal_likelihood_is_an_integral(known):
    def integrand(z2, z1, x):
        z = np.array([z1, z2])
        density = scipy.stats.norm.pdf(x, WEIGHTS @ z + BIAS, math.sqrt(NOISE_VAR))
        return density.prod() * scipy.stats.norm.pdf(z).prod()

    nodes, weights = np.polynomial.hermite_e.hermegauss(24)
    value = sum(
        a * b * integrand(y, x, X[0]) * math.exp((x**2 + y**2) / 2)
        for x, a in zip(nodes, weights, strict=True)
        for y, b in zip(nodes, weights, strict=True)
    )
    assert known["log_evidence"][0] == pytest.approx(math.log(value))


@pytest.mark.parametrize(("a", "b"), [(1.0, 9.0), (0.1, 100.0), (2.0, 2.0)])
def test_S1_3_jensen_for_two_points(a, b):
    of_logs = (math.log(a) + math.log(b)) / 2
    ours = estimators.log_mean_exp(jnp.log(jnp.array([[a], [b]])))[0]
    assert ours == pytest.approx(math.log((a + b) / 2), rel=1e-5)
    assert (ours > of_logs + 0.1) if a != b else ours == pytest.approx(of_logs)


def test_S1_4_any_q_gives_a_lower_bound(plane):
    _, _, log_likelihood, kl = plane
    log_evidence = scipy.stats.norm.logpdf(3, 0, math.sqrt(4.5))
    assert (log_likelihood - kl <= log_evidence + 1e-12).all()
    assert (log_likelihood - kl).max() == pytest.approx(log_evidence)


def test_S1_5_the_bound_from_the_kl(known):
    """E_q log q / p(x, z) + log p(x) = KL(q || p(z|x)), of which none is negative."""
    negative_bound = -known["entropy"] - known["log_joint"]
    divergence = negative_bound + known["log_evidence"]
    np.testing.assert_allclose(divergence, known["gap"], rtol=1e-10)
    assert (divergence > 0).all()


def test_S1_6_reconstruction_less_distance_to_the_prior(known):
    by_hand = [
        numpy_gaussian_kl(mean, np.exp(log_var), np.zeros(2), np.eye(2))
        for mean, log_var in zip(Q_MEAN, Q_LOG_VAR, strict=True)
    ]
    np.testing.assert_allclose(known["kl"], by_hand)
    np.testing.assert_allclose(known["elbo"], known["log_likelihood"] - by_hand)


def test_S1_7_the_prior_may_learn():
    init = partial(vae_jax.init, linear_spec(prior=DiagonalGaussianPrior()))
    params = jax.jit(init)(jax.random.key(0))
    x = jnp.asarray(X, jnp.float32)
    gradient = jax.jit(jax.grad(lambda p: vae_jax.elbo(p, x, jax.random.key(1))))(
        params
    )
    assert all(jnp.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(gradient.prior))


def test_S1_8_the_gradient_by_phi_needs_the_distribution():
    """Of E theta z^2: by theta inside; by the mean of q that gives 0, and not 2 m."""

    def value(theta, mean, key):
        q = DiagonalGaussianDistribution(mean[None, None], jnp.zeros((1, 1)))
        integrand = lambda z, _: theta * z[..., 0] ** 2  # noqa: E731
        return estimators.reparameterization(integrand, q, key, num_samples=20_000)[0]

    mean = jnp.asarray(1.5)
    by_theta, by_mean = jax.jit(jax.grad(value, argnums=(0, 1)))(
        1.0, mean, jax.random.key(0)
    )
    assert by_theta == pytest.approx(1.5**2 + 1, rel=0.06)
    assert by_mean == pytest.approx(2 * 1.5, rel=0.06)
    z = 1.5 + jax.random.normal(jax.random.key(0), (100,))
    inside = jax.grad(lambda mean: jnp.mean(z**2 + 0 * mean))(mean)  # f has no phi
    assert inside == 0


@pytest.fixture(scope="module")
def gradients():
    """20,000 draws of d/dmu E (z + 3)^2 at N(1, 1.5^2) by two estimators."""

    def draws(name):
        def value(mean, key):
            q = DiagonalGaussianDistribution(
                mean[None, None], jnp.full((1, 1), 2 * math.log(1.5))
            )
            integrand = lambda z, _: (z[..., 0] + 3) ** 2  # noqa: E731
            return getattr(estimators, name)(integrand, q, key, num_samples=1)[0]

        many = jax.random.split(jax.random.key(0), 20_000)
        return jax.jit(jax.vmap(jax.grad(value), in_axes=(None, 0)))(
            jnp.asarray(1.0), many
        )

    return {
        name: np.asarray(draws(name))
        for name in ("score_function", "reparameterization")
    }


def mean_is(draws, value):
    return abs(draws.mean() - value) < 5 * draws.std() / math.sqrt(len(draws))


def test_S1_9_the_score_function_is_right_and_noisy(gradients):
    noisy, calm = gradients["score_function"], gradients["reparameterization"]
    assert mean_is(noisy, 8) and mean_is(calm, 8)
    moments = exact_variance.gaussian_moments("quadratic", mu=1.0, sigma=1.5, k=-3.0)[
        "mu"
    ]
    wanted = exact_variance.score_function_variance(moments)
    assert noisy.var() == pytest.approx(wanted, rel=0.2)
    assert wanted > 40 * calm.var()


def test_S1_10_the_whole_elbo_from_samples(known):
    """SGVB A has the ELBO for its mean: exact points here, draws in S1-13."""
    np.testing.assert_allclose(known["sgvb_a"], known["elbo"], rtol=1e-12)


def test_S1_11_generic_reparameterization(gradients):
    q = DiagonalGaussianDistribution(jnp.array([[1.0, 2.0]]), jnp.array([[0.3, -1.0]]))
    noise = jnp.array([[[0.4, -1.2]]])
    np.testing.assert_allclose(q.to_noise(q.from_noise(noise)), noise, rtol=1e-5)
    assert mean_is(gradients["reparameterization"], 8)
    assert gradients["reparameterization"].var() == pytest.approx(9, rel=0.06)


def test_S1_12_example_a_is_singular():
    matrix = reparameterization.SINGULAR
    z = reparameterization.samples_of(
        reparameterization.EXAMPLES[0], jax.random.key(0), 500
    )
    assert (z[:, 0] == 0).all() and 0.8 < z[:, 1].std() < 1.2
    with pytest.raises(ValueError, match="no density"):
        multivariate_gaussian.cholesky_factor(jnp.asarray(matrix @ matrix.T))
    divergence = gaussian.diagonal_kl_to_standard_normal(
        jnp.zeros(2), jnp.array([-jnp.inf, 0.0])
    )
    assert divergence == math.inf


@pytest.fixture(scope="module")
def sgvb():
    measure = jax.jit(reparameterization.measured_elbos, static_argnames="num_draws")
    scales = (0.15, reparameterization.BEST_DEVIATION, 1.4)
    with jax.enable_x64(True):
        return {
            scale: jax.device_get(
                measure(jnp.asarray(scale), jax.random.key(0), num_draws=20_000)
            )
            for scale in scales
        }


def test_S1_13_a_closed_form_kl_and_its_variance(sgvb):
    """B is calmer for a q far from the posterior, A at the posterior, where it is 0."""
    for scale, values in sgvb.items():
        for kind, elbos in values.items():
            wanted = reparameterization.exact_elbo_variance(kind, scale)
            assert elbos.var() == pytest.approx(wanted, rel=0.15, abs=1e-12)
        gap = values["A"] - values["B"]
        assert abs(gap.mean()) < 5 * gap.std() / math.sqrt(len(gap)) + 1e-12
    far, best, wide = sgvb.values()
    assert far["B"].var() < far["A"].var() and wide["B"].var() < wide["A"].var()
    assert best["A"].var() < 1e-12 < 0.1 < best["B"].var()


def density_of(example, eps):
    z = example.mean + example.matrix @ eps
    covariance = example.matrix @ example.matrix.T
    factor = jnp.asarray(np.linalg.cholesky(covariance))
    ours = multivariate_gaussian.full_log_prob(
        jnp.asarray(z), jnp.asarray(example.mean), factor
    )
    change = scipy.stats.norm.logpdf(eps).sum() - math.log(
        abs(np.linalg.det(example.matrix))
    )
    return ours, change


def test_S1_14_example_b_is_diagonal(double):
    ours, change = density_of(reparameterization.EXAMPLES[1], np.array([0.3, -1.1]))
    assert ours == pytest.approx(change)


def test_S1_15_example_c_is_full(double):
    example = reparameterization.EXAMPLES[2]
    ours, change = density_of(example, np.array([0.3, -1.1]))
    assert ours == pytest.approx(change)
    turn = scipy.stats.ortho_group.rvs(2, random_state=1)
    rotated, _ = density_of(
        example._replace(matrix=example.matrix @ turn), turn.T @ [0.3, -1.1]
    )
    assert rotated == pytest.approx(ours)


def test_S1_16_the_training_procedure(linear_vae):
    """Phi gives q, eps gives z, theta gives x~, and log p(x|z) compares."""
    x, key = jnp.asarray(X, jnp.float32), jax.random.key(3)
    q = vae_jax.encode(linear_vae, x)
    z = vae_jax.reparameterize(q, key)
    rebuilt = vae_jax.decode(linear_vae, z).mean
    np.testing.assert_allclose(rebuilt, z @ WEIGHTS.T + BIAS, rtol=1e-4, atol=1e-5)
    distance = np.square(X - rebuilt[0]).sum(axis=-1)
    log_likelihood = -distance / (2 * NOISE_VAR) - 1.5 * math.log(
        2 * math.pi * NOISE_VAR
    )
    kl = gaussian.diagonal_kl_to_standard_normal(q.mean, q.log_var)
    ours = elbo_terms(linear_vae, x, key).elbo
    np.testing.assert_allclose(ours, log_likelihood - kl, rtol=1e-4)


def test_S1_17_a_mean_that_is_affine_in_z(linear_vae):
    z = jnp.asarray(Q_MEAN, jnp.float32)[None]
    ours = vae_jax.decode(linear_vae, z).log_prob(jnp.asarray(X, jnp.float32))[0]
    centers = Q_MEAN @ WEIGHTS.T + BIAS
    oracle = scipy.stats.norm(centers, math.sqrt(NOISE_VAR)).logpdf(X).sum(axis=1)
    np.testing.assert_allclose(ours, oracle, rtol=1e-5)


def test_S1_L6_the_product_is_over_examples(known):
    """Over parameters it is of one example each: another number."""
    oracle = scipy.stats.multivariate_normal(BIAS, COVARIANCE).logpdf(X)
    assert known["log_evidence"].sum() == pytest.approx(oracle.sum())
    over_theta = sum(
        scipy.stats.multivariate_normal(BIAS + shift, COVARIANCE).logpdf(X[0])
        for shift in range(len(X))
    )
    assert abs(over_theta - oracle.sum()) > 1


def test_S1_L17_dz_is_no_probability(plane):
    """The integrand e^10 on a set of volume 2: 10.69 is not above 20."""
    left, printed = math.log(2 * math.exp(10)), 2 * 10.0
    assert left == pytest.approx(10.693147) and left < printed
    # With p(z) for the measure it holds.
    means, scales, log_likelihood, _ = plane
    of_prior = log_likelihood[0, list(scales).index(1.0)]
    assert means[0] == 0
    assert scipy.stats.norm.logpdf(3, 0, math.sqrt(4.5)) > of_prior


def test_S1_L23_the_prior_belongs_in_the_ratio(known):
    ours = known["log_likelihood"] + known["log_prior"] + known["entropy"]
    np.testing.assert_allclose(ours, known["elbo"])
    printed = known["log_likelihood"] + known["entropy"]
    assert (printed > known["log_evidence"]).any()  # no lower bound


def test_S1_L57_q_divides_once(known):
    ours = known["log_likelihood"] + known["log_prior"] + known["entropy"]
    printed = ours + known["entropy"]
    np.testing.assert_allclose(ours, known["elbo"])
    assert (np.abs(printed - known["elbo"]) > 0.1).all()


def test_S1_L81_two_terms_of_the_product_rule():
    """int grad f q is not int f grad q; it is 0 where f is log p - log q of phi."""
    mean = jnp.asarray(0.7)
    x = np.linspace(-12, 12, 4001)
    q = scipy.stats.norm.pdf(x, 0.7)
    score = x - 0.7  # d log q / d mean
    f = -(x**2) / 2 - scipy.stats.norm.logpdf(x, 0.7)
    inner = np.trapezoid(-score * q, x)  # grad f = - grad log q
    outer = np.trapezoid(f * score * q, x)
    assert inner == pytest.approx(0, abs=1e-9) and abs(outer) > 0.1
    # E_q f = - (m^2 + 1) / 2 + entropy, by m: - m.
    assert inner + outer == pytest.approx(-0.7)
    ours = jax.grad(
        lambda mean: -gaussian.diagonal_kl_to_standard_normal(mean[None], jnp.zeros(1))
    )(mean)
    assert ours == pytest.approx(inner + outer, rel=1e-5)


def test_S1_L93_the_score_at_each_sample(gradients):
    """With the score at one z for all samples, its mean times the values' mean is 0."""
    z = np.random.default_rng(0).normal(1.0, 1.5, (20_000, 8))
    score, values = (z - 1) / 1.5**2, (z + 3) ** 2
    right, printed = (
        (values * score).mean(axis=1),
        values[:, 1:].mean(axis=1) * score[:, 0],
    )
    assert mean_is(right, 8) and mean_is(printed, 0) and not mean_is(printed, 8)
    assert mean_is(gradients["score_function"], 8)


def test_S1_L101_the_log_of_q(known):
    ours = known["log_joint"] + known["entropy"]
    np.testing.assert_allclose(ours, known["elbo"])
    # E q(z|x) of a Gaussian, without the logarithm: 1 / sqrt(4 pi s^2) for each unit.
    of_q = np.prod(1 / np.sqrt(4 * math.pi * np.exp(Q_LOG_VAR)), axis=1)
    assert (np.abs(known["log_joint"] - of_q - known["elbo"]) > 0.1).all()


def test_S1_L104_a_difference_of_logarithms():
    log_joint, log_q = math.log(0.02), math.log(0.3)
    assert log_joint - log_q == pytest.approx(math.log(0.02 / 0.3))
    with pytest.raises(ValueError, match="expected a positive input|domain"):
        math.log(0.02 - 0.3)


def test_S1_L112_one_signature_for_g(linear_vae):
    """g_phi(eps, x): the encoder's parameters and x make q, q and eps make z."""
    x = jnp.asarray(X, jnp.float32)
    noise = jnp.ones((4, 2))

    def g(params, eps, x):
        return vae_jax.encode(params, x).from_noise(eps)

    moved = linear_vae.replace(
        encoder=jax.tree.map(lambda w: w + 0.1, linear_vae.encoder)
    )
    z = g(linear_vae, noise, x)
    for changed in (
        g(moved, noise, x),
        g(linear_vae, -noise, x),
        g(linear_vae, noise, x + 1),
    ):
        assert (jnp.abs(changed - z) > 1e-3).any()


def test_S1_L154_a_location_is_no_log_density(linear_vae):
    """Mu + A z is a vector; the log-density of x there is a number."""
    z = jnp.asarray(Q_MEAN[:1], jnp.float32)[None]
    likelihood = vae_jax.decode(linear_vae, z)
    assert likelihood.mean.shape == (1, 1, 3)
    ours = likelihood.log_prob(jnp.asarray(X[:1], jnp.float32))
    assert ours.shape == (1, 1)
    distance = np.square(X[0] - WEIGHTS @ Q_MEAN[0] - BIAS).sum()
    right = -distance / (2 * NOISE_VAR) - 1.5 * math.log(2 * math.pi * NOISE_VAR)
    assert ours[0, 0] == pytest.approx(right, rel=1e-5)


# --------------------------------------------------------------------- notes S2


def test_S2_1_the_loss_is_a_squared_error(autoencoder):
    x = jnp.asarray(X, jnp.float32)
    half = autoencoder.replace(likelihood={"log_var": jnp.log(0.5)})
    rebuilt = vae_jax.reconstruct(half, x, jax.random.key(0))
    squared = np.square(X - rebuilt).sum(axis=1)
    terms = elbo_terms(half, x, jax.random.key(0))
    np.testing.assert_allclose(
        -terms.elbo - 1.5 * math.log(math.pi), squared, rtol=1e-4
    )


def test_S2_2_a_bottleneck_keeps_few_numbers(autoencoder):
    """All that is decoded lies in a plane of as many dimensions as the code."""
    x = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    code = vae_jax.encode(autoencoder, x).mean
    rebuilt = vae_jax.decode(autoencoder, code).mean
    assert code.shape == (50, 2)
    assert np.linalg.matrix_rank(rebuilt - rebuilt.mean(axis=0), tol=1e-4) == 2


@pytest.fixture(scope="module")
def tied():
    """Centered data in five dimensions, and W of a tied autoencoder of two latents."""
    draws = np.random.default_rng(1)
    x = draws.normal(size=(200, 5)) * np.array([3.0, 2.0, 1.0, 0.5, 0.2])
    x = (x - x.mean(axis=0)) @ scipy.stats.ortho_group.rvs(5, random_state=0)
    module = topic("autoencoders")
    with jax.enable_x64(True):
        weights = module.tied_weights(x, jax.random.key(0), latent_dim=2, num_steps=60)
    return x, np.asarray(weights)


def test_S2_3_a_linear_autoencoder_finds_the_plane_of_pca(tied):
    x, weights = tied
    pca = PCA(2).fit(x)
    projector = pca.components_.T @ pca.components_
    np.testing.assert_allclose(weights @ weights.T, projector, atol=1e-6)
    rebuilt = pca.inverse_transform(pca.transform(x))
    np.testing.assert_allclose(x @ weights @ weights.T, rebuilt, atol=1e-5)


@pytest.fixture(scope="module")
def deep():
    """Squared errors of a deep autoencoder of one latent: a circle, six points."""
    training = topic("training")
    spec = ModelSpec(
        encoder=MLP((32,)),
        decoder=MLP((32,)),
        posterior=PointMass(),
        likelihood=Gaussian(),
        latent_dim=1,
        data_shape=(2,),
    )
    angle = np.linspace(0, 5, 96)  # Most of a circle: one number says where.
    circle = jnp.asarray(np.stack([np.cos(angle), np.sin(angle)], axis=1), jnp.float32)
    # Each of them many times, so that one program serves both.
    few = jnp.tile(circle[::16] * jnp.array([[1.0, 0.6]]), (16, 1))

    @jax.jit
    def train(key, x):
        params = vae_jax.init(spec, key)
        params, _ = training.fit(
            params, x, key, num_epochs=800, preprocess=None, learning_rate=1e-2
        )
        rebuilt = vae_jax.decode(params, vae_jax.encode(params, x).mean).mean
        return jnp.mean(jnp.sum(jnp.square(x - rebuilt), axis=-1))

    pca = PCA(1).fit(circle)
    linear = np.square(circle - pca.inverse_transform(pca.transform(circle))).sum(
        axis=1
    )
    key = jax.random.key(2)
    return float(train(key, circle)), float(linear.mean()), float(train(key, few))


@pytest.mark.slow
def test_S2_4_a_deep_autoencoder_beats_the_plane(deep):
    curved, linear, _ = deep
    assert curved < 0.2 * linear


@pytest.mark.slow
def test_S2_5_denoising_super_resolution_inpainting():
    applications = topic("applications")
    x = jnp.asarray(np.random.default_rng(0).uniform(0, 1, (5, 64)), jnp.float32)
    key = jax.random.key(0)
    noisy, coarse, covered = (f(x, key, (8, 8)) for f in applications.DAMAGES)
    assert 0.1 < jnp.abs(noisy - x).mean() < 0.5
    blocks = coarse.reshape(5, 4, 2, 4, 2)
    np.testing.assert_allclose(blocks.std(axis=(2, 4)), 0, atol=1e-6)
    np.testing.assert_allclose(
        blocks.mean(axis=(2, 4)), x.reshape(5, 4, 2, 4, 2).mean((2, 4)), rtol=1e-5
    )
    assert (covered[:, 32:] == 0).all() and (covered[:, :32] == x[:, :32]).all()
    assert applications.psnr(x + 0.1, x) == pytest.approx(20, abs=1e-3)


@pytest.mark.slow
def test_S2_6_a_small_data_set_is_learnt_by_heart(deep):
    assert deep[2] < 5e-3


def test_S2_7_an_autoencoder_has_no_density_to_draw_from(autoencoder):
    x = jnp.asarray(X, jnp.float32)
    for refused in (
        lambda: vae_jax.log_evidence(autoencoder, x, jax.random.key(0)),
        lambda: vae_jax.aggregate_posterior(autoencoder, x, jax.random.key(0)),
    ):
        with pytest.raises(ValueError, match="has none"):
            refused()
    # Its codes may be anywhere: nothing holds them near N(0, I).
    far = jnp.abs(vae_jax.encode(autoencoder, 100 * x).mean)
    assert far.max() > 20
    assert (
        elbo_terms(autoencoder, 100 * x, jax.random.key(0)).kl_divergence == 0
    ).all()


FOUR = np.array(
    [
        [0.0, 1.0, 2.0, 0.5, 1.0],
        [1.0, 0.0, 0.0, 1.0, 0.0],
        [2.0, 2.0, 1.0, 0.0, 0.0],
        [0.0, 0.0, 1.0, 1.0, 3.0],
    ]
)


def test_S2_8_a_gaussian_from_four_points():
    mean, factor = mixtures.fit_to_four(FOUR)
    np.testing.assert_allclose(mean, FOUR.mean(axis=0))
    np.testing.assert_allclose(factor @ factor.T, np.cov(FOUR.T, bias=True))
    draws = mixtures.draw_from_four(FOUR, jax.random.key(0), 4000)
    assert np.linalg.matrix_rank(draws - mean, tol=1e-3) == 3
    np.testing.assert_allclose(np.cov(draws.T), factor @ factor.T, atol=0.15)


def test_S2_9_generation_from_the_prior(linear_vae):
    generate = jax.jit(partial(vae_jax.generate, num_samples=40_000, sample=True))
    x = np.asarray(generate(linear_vae, jax.random.key(0)))
    bound = 5 * math.sqrt(2 / 40_000) * COVARIANCE.max()
    np.testing.assert_allclose(x.mean(axis=0), BIAS, atol=bound)
    np.testing.assert_allclose(np.cov(x.T), COVARIANCE, atol=bound)


def test_S2_13_the_identity_for_a_discrete_latent():
    """Log P(X) = KL + L, by sums, for an arbitrary Q."""
    q, joint, posterior, evidence_of_x = arbitrary_q()
    bound = q @ np.log(joint / q)
    divergence = discrete.kl_divergence(jnp.asarray(q), jnp.asarray(posterior))
    assert bound + divergence == pytest.approx(math.log(evidence_of_x), rel=1e-5)
    bayes, log_evidence = discrete.posterior(
        *map(jnp.log, (joint / 0.5, np.full(2, 0.5)))
    )
    np.testing.assert_allclose(bayes, posterior, rtol=1e-5)
    assert log_evidence == pytest.approx(math.log(evidence_of_x), rel=1e-5)


def test_S2_15_squared_error_plus_kl(linear_vae):
    half = linear_vae.replace(likelihood={"log_var": jnp.log(0.5)})
    x, key = jnp.asarray(X, jnp.float32), jax.random.key(1)
    q = vae_jax.encode(half, x)
    rebuilt = vae_jax.decode(half, vae_jax.reparameterize(q, key)).mean[0]
    squared = np.square(X - rebuilt).sum(axis=1)
    kl = 0.5 * (-q.log_var + q.mean**2 + jnp.exp(q.log_var) - 1).sum(axis=1)
    ours = -elbo_terms(half, x, key).elbo
    np.testing.assert_allclose(ours, squared + kl + 1.5 * math.log(math.pi), rtol=1e-4)


@pytest.fixture(scope="module")
def collapsed(linear_vae):
    """The same model with an encoder and a decoder that ignore their inputs."""
    nothing = partial(jax.tree.map, jnp.zeros_like)
    decoder = linear_vae.decoder["output"]
    decoder = {"output": decoder | {"kernel": jnp.zeros_like(decoder["kernel"])}}
    return linear_vae.replace(encoder=nothing(linear_vae.encoder), decoder=decoder)


@pytest.mark.slow
def test_S2_16_collapse_is_independence(collapsed):
    x = jnp.asarray(X, jnp.float32)
    information = vae_jax.aggregate_posterior(collapsed, x, jax.random.key(0))
    assert information.mutual_information == pytest.approx(0, abs=1e-5)
    assert vae_jax.active_units(collapsed, x).count == 0
    assert jnp.abs(vae_jax.kl_per_unit(collapsed, x)).max() == 0
    # When it is the best there is: eigenvalues against beta times the noise.
    data = np.random.default_rng(0).normal(size=(500, 3)) * np.array([2.0, 1.0, 0.2])
    eigenvalues = np.linalg.eigvalsh(np.cov(data.T, bias=True))
    for beta in (1.0, 5.0, 20.0):
        ours = exact.live_units(data, noise_var=0.5, beta=beta)
        assert ours == (eigenvalues > 0.5 * beta).sum()


def test_S2_17_reparameterization_has_the_law_of_z():
    q = DiagonalGaussianDistribution(jnp.array([[2.0]]), jnp.log(jnp.array([[0.49]])))
    z = np.asarray(
        vae_jax.reparameterize(q, jax.random.key(0), num_samples=4000)
    ).ravel()
    assert scipy.stats.kstest(z, scipy.stats.norm(2.0, 0.7).cdf).pvalue > 1e-4


def test_S2_L29_the_plane_but_not_the_axes(tied):
    x, weights = tied
    axes = PCA(2).fit(x).components_.T
    np.testing.assert_allclose(weights @ weights.T, axes @ axes.T, atol=1e-6)
    assert np.abs(axes.T @ weights).max(axis=1).min() < 0.99
    turn = axes.T @ weights  # W = U Q
    np.testing.assert_allclose(turn @ turn.T, np.eye(2), atol=1e-6)


def test_S2_L47_w_transposed_w_is_the_identity(tied):
    _, weights = tied
    np.testing.assert_allclose(weights.T @ weights, np.eye(2), atol=1e-6)
    product = weights @ weights.T
    np.testing.assert_allclose(product @ product, product, atol=1e-6)
    assert np.linalg.norm(product - np.eye(5)) == pytest.approx(math.sqrt(3), abs=1e-5)


def test_S2_L131_four_points_have_a_singular_covariance():
    mean, factor = mixtures.fit_to_four(FOUR)
    covariance = factor @ factor.T
    assert np.linalg.matrix_rank(covariance) == 3 < len(mean)
    with pytest.raises(ValueError, match="no density"):
        multivariate_gaussian.cholesky_factor(jnp.asarray(covariance))
    multivariate_gaussian.cholesky_factor(jnp.asarray(covariance + 0.01 * np.eye(5)))


def test_S2_L157_a_minus_for_the_equals():
    """X_i = mu would be false or true; X_i - mu gives the covariance."""
    mean, factor = mixtures.fit_to_four(FOUR)
    printed = sum(np.outer(x == mean, x - mean) for x in FOUR) / 4
    right = sum(np.outer(x - mean, x - mean) for x in FOUR) / 4
    np.testing.assert_allclose(factor @ factor.T, right)
    assert np.abs(printed - right).max() > 0.1


def test_S2_L368_the_weight_of_the_squared_error(linear_vae):
    """Weight 1 is the variance 1/2, and its constant counts; variance 1 has 1/2."""
    x = jnp.asarray(X, jnp.float32)
    z = jnp.asarray(Q_MEAN, jnp.float32)[None]
    for variance, weight in ((0.5, 1.0), (1.0, 0.5)):
        params = linear_vae.replace(likelihood={"log_var": jnp.log(variance)})
        likelihood = vae_jax.decode(params, z)
        squared = np.square(X - likelihood.mean[0]).sum(axis=1)
        constant = 1.5 * math.log(2 * math.pi * variance)
        ours = -likelihood.log_prob(x)[0]
        np.testing.assert_allclose(ours, weight * squared + constant, rtol=1e-4)
        assert (np.abs(ours - squared) > 0.1).any()


def test_S2_L378_collapse_is_of_q_for_all_x(collapsed):
    """One x with q(z|x) = p(z) is none; all of them, and z says nothing."""
    some = DiagonalGaussianDistribution(jnp.array([[0.0], [1.0]]), jnp.zeros((2, 1)))
    kls = gaussian.diagonal_kl_to_standard_normal(some.mean, some.log_var)
    assert kls[0] == 0 and kls[1] > 0
    assert jnp.var(some.mean) > vae_jax.diagnostics.ACTIVE_VARIANCE
    q = vae_jax.encode(collapsed, jnp.asarray(X, jnp.float32))
    assert (q.mean == 0).all() and (q.log_var == 0).all()


# --------------------------------------------------------------------- notes S3


def test_S3_8_from_x_to_z_to_x_again(linear_vae):
    x = jnp.asarray(X, jnp.float32)
    z = vae_jax.reparameterize(vae_jax.encode(linear_vae, x), jax.random.key(0))
    again = vae_jax.decode(linear_vae, z).mean[0]
    assert z.shape == (1, 4, 2) and again.shape == x.shape
    assert jnp.abs(again - jnp.asarray(BIAS)).max() > 0.1  # z says something of x


def test_S3_9_inference_as_optimization(plane):
    """The q of least KL to the posterior is the q of greatest ELBO: the posterior."""
    means, scales, log_likelihood, kl = plane
    target = (np.array([4 / 3]), np.eye(1) / 9)
    divergences = [
        [numpy_gaussian_kl(np.array([m]), np.array([s**2]), *target) for s in scales]
        for m in means
    ]
    log_evidence = scipy.stats.norm.logpdf(3, 0, math.sqrt(4.5))
    np.testing.assert_allclose(
        log_evidence - (log_likelihood - kl), divergences, atol=1e-9
    )
    assert np.argmin(divergences) == np.argmax(log_likelihood - kl)


@pytest.fixture(scope="module")
def one_step(linear_vae):
    """Parameters before and after a step of gradient ascent, and its metrics."""
    optimizer = optax.sgd(1e-3)
    x = jnp.asarray(X, jnp.float32)
    state = vae_jax.init_state(linear_vae, jax.random.key(0), optimizer=optimizer)
    objective = vae_jax.elbo_objective(estimator=without_noise)
    step = partial(vae_jax.train_step, objective=objective, optimizer=optimizer)
    after, metrics = jax.jit(step)(state, x)
    _, later = jax.jit(step)(after, x)
    return state.params, after.params, metrics, later


def test_S3_10_the_loss_is_minus_the_objective(one_step):
    """Descending on the loss raises the ELBO, by theta and by phi."""
    before, after, metrics, later = one_step
    assert later["elbo"] > metrics["elbo"]
    for part in ("encoder", "decoder"):
        pairs = zip(
            *(jax.tree.leaves(getattr(p, part)) for p in (before, after)), strict=True
        )
        assert any((new != old).any() for old, new in pairs)


def test_S3_11_recognition_and_generative_model(one_step):
    before, _, _, _ = one_step
    assert set(before.encoder["output"]) == set(before.decoder["output"])
    assert before.encoder["output"]["kernel"].shape == (3, 2 * 2)
    assert before.decoder["output"]["kernel"].shape == (2, 3)


@pytest.mark.slow
def test_S3_12_a_decoder_of_means_and_covariances(linear_vae):
    """One variance, one for each pixel, and a full covariance, against SciPy."""
    spec = linear_spec(likelihood=PerPixelGaussian())
    params = jax.jit(partial(vae_jax.init, spec))(jax.random.key(0))
    z, x = jnp.asarray(Q_MEAN, jnp.float32)[None], jnp.asarray(X, jnp.float32)
    for model in (params, linear_vae):
        likelihood = vae_jax.decode(model, z)
        scale = np.broadcast_to(np.exp(likelihood.log_var / 2), (1, 4, 3))
        oracle = scipy.stats.norm(likelihood.mean, scale).logpdf(X).sum(axis=-1)
        np.testing.assert_allclose(likelihood.log_prob(x), oracle, rtol=1e-5)
    assert np.ptp(vae_jax.decode(params, z).log_var) > 0  # it depends on z and pixel
    factor = jnp.linalg.cholesky(jnp.asarray(COVARIANCE, jnp.float32))
    ours = multivariate_gaussian.full_log_prob(x, jnp.zeros(3), factor)
    oracle = scipy.stats.multivariate_normal(np.zeros(3), COVARIANCE).logpdf(X)
    np.testing.assert_allclose(ours, oracle, rtol=1e-5)


@pytest.mark.slow
def test_S3_13_interpolation(linear_vae):
    x = jnp.asarray(X, jnp.float32)
    line = vae_jax.interpolate(linear_vae, x[:2], x[2:], num_steps=5)
    z1, z2 = (vae_jax.encode(linear_vae, part).mean for part in (x[:2], x[2:]))
    for step, weight in ((0, 0.0), (1, 0.25), (2, 0.5), (4, 1.0)):
        z = (1 - weight) * z1 + weight * z2
        expected = z @ WEIGHTS.T + BIAS
        np.testing.assert_allclose(line[step], expected, rtol=1e-4, atol=1e-5)


def test_S3_14_without_the_kl_q_shrinks(plane):
    _, scale = best_of(plane, 1, 0)
    assert scale == plane[1].min()  # as narrow as the grid allows: an autoencoder


def test_S3_15_with_the_kl_alone_q_is_the_prior(plane):
    assert best_of(plane, 0, 1) == (0, 1)
    assert plane[3].min() == pytest.approx(0, abs=1e-12)


def test_S3_16_with_both_q_is_the_posterior(plane):
    mean, scale = best_of(plane, 1, 1)
    assert mean == pytest.approx(4 / 3) and scale == pytest.approx(1 / 3)


def test_S3_17_kl_to_the_standard_normal_full_and_diagonal(double, two_gaussians):
    (mean, _), (covariance, _) = two_gaussians
    identity = np.eye(3)
    full = 0.5 * (
        np.trace(covariance) + mean @ mean - 3 - np.linalg.slogdet(covariance)[1]
    )
    ours = full_kl(np.stack([mean, 0 * mean]), np.stack([covariance, identity]))
    assert ours == pytest.approx(full)
    variance = np.diag(covariance)
    diagonal = 0.5 * np.sum(variance + mean**2 - 1 - np.log(variance))
    ours = gaussian.diagonal_kl_to_standard_normal(jnp.asarray(mean), jnp.log(variance))
    assert ours == pytest.approx(diagonal)


def test_S3_18_log_variance():
    """Any real number is a log-variance; a variance from a network need not be one."""
    for log_var in (-80.0, -1.0, 0.0, 5.0):
        value, slope = jax.value_and_grad(
            lambda s: gaussian.diagonal_kl_to_standard_normal(jnp.zeros(1), s)
        )(jnp.array([log_var]))
        assert jnp.isfinite(value) and value >= 0
        assert slope[0] == pytest.approx((math.exp(log_var) - 1) / 2, rel=1e-5)


def test_S3_L5_the_loss_has_a_logarithm(known):
    """The mean of p(x|z) itself is another number: between 0 and its maximum."""
    ours = -known["log_likelihood"] + known["kl"]
    np.testing.assert_allclose(ours, -known["elbo"])
    draws = np.random.default_rng(0).normal(size=(20_000, 4, 2))
    z = Q_MEAN + np.exp(Q_LOG_VAR / 2) * draws
    density = scipy.stats.norm.pdf(X, z @ WEIGHTS.T + BIAS, math.sqrt(NOISE_VAR))
    printed = -density.prod(axis=-1).mean(axis=0) + known["kl"]
    assert (np.abs(printed - ours) > 1).all()


def test_S3_L17_the_kl_pulls_together():
    """A step down its gradient brings a mean nearer to 0, a deviation nearer to 1."""
    mean, log_var = jnp.array([2.0]), jnp.array([-1.0])
    by_mean, by_log_var = jax.grad(gaussian.diagonal_kl_to_standard_normal, (0, 1))(
        mean, log_var
    )
    assert abs(mean - 0.1 * by_mean) < abs(mean)
    assert abs(log_var - 0.1 * by_log_var) < abs(log_var)


def test_S3_L79_kullback_and_leibler_1951():
    assert "Kullback-Leibler divergence (1951)" in page()


def test_S3_L244_the_joint_is_of_x_and_z():
    """P(z|x) sums to one over z for each x; only p(x, z) does over both."""
    _, _, joint, posterior = small_joint()
    assert joint.sum() == pytest.approx(1)
    assert posterior.sum() == pytest.approx(3)
    ours, _ = discrete.posterior(jnp.zeros(2), jnp.log(joint[:, 1]))
    np.testing.assert_allclose(ours, posterior[:, 1], rtol=1e-5)


def test_S3_L254_the_prior_stays_in_the_integral(known):
    """int p(x|z) dz, with W of two latents and three pixels, is another number."""
    axis = np.linspace(-9, 9, 181)
    z = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    likelihood = scipy.stats.norm.pdf(
        X[0], z @ WEIGHTS.T + BIAS, math.sqrt(NOISE_VAR)
    ).prod(axis=1)
    cell = (axis[1] - axis[0]) ** 2
    right = (likelihood * scipy.stats.norm.pdf(z).prod(axis=1)).sum() * cell
    printed = likelihood.sum() * cell
    assert math.log(right) == pytest.approx(known["log_evidence"][0], abs=1e-6)
    assert abs(math.log(printed) - known["log_evidence"][0]) > 0.5


def test_S3_L268_an_integral_for_continuous_z(known):
    """A sum over points of z depends on how many there are; the integral does not."""
    mean, scale = Q_MEAN[0, 0], math.exp(Q_LOG_VAR[0, 0] / 2)
    sums, integrals = [], []
    for count in (400, 4000):
        z = np.linspace(-9, 9, count)
        q = scipy.stats.norm.pdf(z, mean, scale)
        terms = q * (
            scipy.stats.norm.logpdf(z, mean, scale) - scipy.stats.norm.logpdf(z)
        )
        sums.append(terms.sum())
        integrals.append(np.trapezoid(terms, z))
    ours = gaussian.diagonal_kl_to_standard_normal(
        jnp.array([mean]), jnp.array([Q_LOG_VAR[0, 0]])
    )
    np.testing.assert_allclose(integrals, ours, rtol=1e-5)
    assert sums[1] > 9 * sums[0]


def test_S3_L310_vae():
    assert "VAC" not in vae_jax.__doc__ and "VAE" in page()


def test_S3_L314_the_bracket_closes_before_the_kl(known):
    """- E[log p + KL] is less than - log p(x) can be: it rewards a large KL."""
    right = -known["log_likelihood"] + known["kl"]
    printed = -(known["log_likelihood"] + known["kl"])
    np.testing.assert_allclose(right, -known["elbo"])
    assert (right >= -known["log_evidence"]).all()
    assert (printed < -known["log_evidence"]).any()


def test_S3_L323_plus_the_kl_in_the_loss(plane):
    """With a minus the best q is as far from the prior as can be: not the posterior."""
    means, scales, log_likelihood, kl = plane
    printed = -log_likelihood - kl
    row, column = np.unravel_index(np.argmin(printed), printed.shape)
    assert scales[column] == scales.min()
    assert best_of(plane, 1, 1) == pytest.approx((4 / 3, 1 / 3))


def test_S3_L339_the_likelihood_is_of_the_generative_model(linear_vae):
    """E_q log p(x|z) moves with the decoder at fixed z; log q(z|x) does not."""
    x, z = jnp.asarray(X, jnp.float32), jnp.asarray(Q_MEAN, jnp.float32)[None]
    moved = linear_vae.replace(
        decoder=jax.tree.map(lambda w: w + 0.1, linear_vae.decoder)
    )
    of_x = [vae_jax.decode(params, z).log_prob(x) for params in (linear_vae, moved)]
    of_z = [vae_jax.encode(params, x).log_prob(z) for params in (linear_vae, moved)]
    assert (jnp.abs(of_x[0] - of_x[1]) > 1e-3).all()
    assert (of_z[0] == of_z[1]).all()


def test_S3_L343_a_squared_error_for_one_fixed_variance_only():
    """Of two x as far from the mean, variances of pixels prefer one."""
    mean, x = jnp.zeros(2), jnp.array([[1.0, 0.0], [0.0, 1.0]])
    same = gaussian.diagonal_log_prob(x, mean, jnp.zeros(2))
    other = gaussian.diagonal_log_prob(x, mean, jnp.array([0.0, 2.0]))
    assert same[0] == same[1]
    assert other[1] - other[0] == pytest.approx(0.5 * (1 - math.exp(-2)), rel=1e-5)


def test_S3_L354_minus_a_half_and_the_constant():
    """The printed quadratic grows away from the mean: it prefers what is far."""
    factor = jnp.linalg.cholesky(jnp.asarray(COVARIANCE, jnp.float32))
    mean, inverse = np.zeros(3), np.linalg.inv(COVARIANCE)
    printed = np.einsum("bi,ij,bj->b", X, inverse, X)
    ours = multivariate_gaussian.full_log_prob(
        jnp.asarray(X, jnp.float32), jnp.zeros(3), factor
    )
    constant = 0.5 * np.linalg.slogdet(COVARIANCE)[1] + 1.5 * math.log(2 * math.pi)
    np.testing.assert_allclose(ours, -0.5 * printed - constant, rtol=1e-5)
    assert np.argmax(printed) == np.argmin(ours) and mean.shape == (3,)


def test_S3_L371_the_prior_has_a_covariance_matrix(linear_vae):
    z = jnp.asarray(Q_MEAN, jnp.float32)[None]
    oracle = scipy.stats.multivariate_normal(np.zeros(2), np.eye(2)).logpdf(Q_MEAN)
    np.testing.assert_allclose(vae_jax.log_prior(linear_vae, z)[0], oracle, rtol=1e-5)


@pytest.mark.slow
def test_S3_L376_narrow_q_belong_to_no_kl(plane, collapsed):
    """The note on narrow distributions stands under the wrong regime."""
    _, without = best_of(plane, 1, 0)
    mean, only = best_of(plane, 0, 1)
    assert without < 0.05 and only == 1 and mean == 0
    assert not (only < without)
    # A decoder fitted to codes that say nothing is best at the mean of the data.
    x = jnp.asarray(X, jnp.float32)
    z = jax.random.normal(jax.random.key(0), (64, 4, 2))

    def loss(bias):
        decoder = {"output": collapsed.decoder["output"] | {"bias": bias}}
        return -vae_jax.decode(collapsed.replace(decoder=decoder), z).log_prob(x).mean()

    gradient = jax.grad(loss)(x.mean(axis=0))
    np.testing.assert_allclose(gradient, 0, atol=1e-5)


@pytest.mark.slow
def test_S3_L400_the_aggregate_is_near_the_prior_and_each_q_is_narrower(linear_vae):
    """With the exact posterior the mean of q(z|x) over p(x) is p(z) itself."""
    x = vae_jax.generate(linear_vae, jax.random.key(0), num_samples=20_000, sample=True)
    mean, covariance = exact.posterior(exact.linear_gaussian(linear_vae), x)
    total = np.cov(np.asarray(mean).T) + covariance
    np.testing.assert_allclose(total, np.eye(2), atol=0.05)
    assert (np.diag(covariance) < 0.7).all()


def test_S3_L412_q_has_the_moments_of_x(linear_vae):
    """Mu and Sigma are functions of x: with two x they are two, whatever z."""
    q = vae_jax.encode(linear_vae, jnp.asarray(X, jnp.float32))
    assert (jnp.abs(q.mean[0] - q.mean[1]) > 0.1).any()
    kls = gaussian.diagonal_kl_to_standard_normal(q.mean, q.log_var)
    assert kls.shape == (4,) and jnp.ptp(kls) > 0.1


def test_S3_L418_the_closed_forms_are_right(double):
    """Full and diagonal against a million draws, and against each other."""
    mean, variance = np.array([0.5, -1.0]), np.array([0.3, 2.0])
    ours = gaussian.diagonal_kl_to_standard_normal(jnp.asarray(mean), jnp.log(variance))
    full = full_kl(np.stack([mean, 0 * mean]), np.stack([np.diag(variance), np.eye(2)]))
    assert ours == pytest.approx(float(full))
    z = np.random.default_rng(0).normal(mean, np.sqrt(variance), (200_000, 2))
    values = scipy.stats.norm.logpdf(
        z, mean, np.sqrt(variance)
    ) - scipy.stats.norm.logpdf(z)
    assert mean_is(values.sum(axis=1), float(ours))


@pytest.mark.slow
def test_S3_L444_the_exponential_of_the_log_variance():
    """As printed the log-variance cancels: -1/2 a unit at mean 0, and no gradient."""

    def printed(mean, log_var):
        return 0.5 * jnp.sum(log_var + mean**2 - 1 - log_var, axis=-1)

    zero = jnp.zeros(3)
    assert printed(zero, zero) == pytest.approx(-1.5)
    assert (jax.grad(printed, argnums=1)(zero, zero + 1) == 0).all()
    ours = gaussian.diagonal_kl_to_standard_normal
    assert ours(zero, zero) == 0
    slope = jax.grad(ours, argnums=1)(zero, zero + 1)
    np.testing.assert_allclose(slope, (math.e - 1) / 2, rtol=1e-5)


# --------------------------------------------------------------------- notes S4


def test_S4_1_the_posterior_by_bayes_rule(known):
    precision = np.eye(2) + WEIGHTS.T @ WEIGHTS / NOISE_VAR
    covariance = np.linalg.inv(precision)
    np.testing.assert_allclose(known["posterior_covariance"], covariance)
    means = (X - BIAS) @ WEIGHTS @ covariance / NOISE_VAR
    np.testing.assert_allclose(known["posterior_mean"], means)
    # As a ratio of densities, at any z.
    z = np.array([0.3, -0.4])
    joint = scipy.stats.norm.logpdf(
        X[0], WEIGHTS @ z + BIAS, math.sqrt(NOISE_VAR)
    ).sum()
    joint += scipy.stats.norm.logpdf(z).sum()
    posterior = scipy.stats.multivariate_normal(means[0], covariance).logpdf(z)
    assert joint - known["log_evidence"][0] == pytest.approx(posterior)


@pytest.fixture(scope="module")
def chains(known, linear_vae):
    """States of 50 chains of both samplers on the posterior of the first x."""
    log_density = mcmc.posterior_log_density(linear_vae, jnp.asarray(X[0], jnp.float32))
    target = (known["posterior_mean"][0], known["posterior_covariance"])
    conditional = mcmc.gaussian_conditional(
        *(jnp.asarray(a, jnp.float32) for a in target)
    )
    samplers = (
        partial(mcmc.metropolis_hastings, log_density, proposal=mcmc.random_walk(0.9)),
        partial(mcmc.gibbs, conditional),
    )
    starts = jnp.zeros((50, 2))
    many = jax.random.split(jax.random.key(0), 50)

    def run(sampler):
        sample = partial(sampler, num_samples=1000, num_warmup=200)
        return np.asarray(jax.jit(jax.vmap(sample))(starts, many).samples)

    return [run(sampler) for sampler in samplers]


def has_moments(samples, mean, covariance):
    """Against chains' means, which are independent of each other."""
    of_chains = samples.mean(axis=1)
    error = of_chains.std(axis=0, ddof=1) / math.sqrt(len(of_chains))
    assert (np.abs(of_chains.mean(axis=0) - mean) < 5 * error).all()
    spread = np.cov(samples.reshape(-1, samples.shape[-1]).T)
    np.testing.assert_allclose(spread, covariance, atol=0.05)


def test_S4_2_metropolis_hastings(chains, known):
    has_moments(chains[0], known["posterior_mean"][0], known["posterior_covariance"])


def test_S4_3_gibbs(chains, known):
    has_moments(chains[1], known["posterior_mean"][0], known["posterior_covariance"])


@pytest.fixture(scope="module")
def fitted(linear_vae):
    """The best q of each x, from an encoder that starts at the prior."""
    nothing = jax.tree.map(jnp.zeros_like, linear_vae.encoder)
    fit = partial(
        vae_jax.fit_posterior, num_steps=800, num_samples=32, learning_rate=0.05
    )
    q = jax.jit(fit)(
        linear_vae.replace(encoder=nothing),
        jnp.asarray(X, jnp.float32),
        jax.random.key(0),
    ).posterior
    return np.asarray(q.mean), np.asarray(q.log_var)


def test_S4_4_variational_inference_of_one_x(fitted, known):
    mean, log_var = fitted
    np.testing.assert_allclose(mean, known["posterior_mean"], atol=0.03)
    precision = np.linalg.inv(known["posterior_covariance"])
    np.testing.assert_allclose(np.exp(log_var) * np.diag(precision), 1, atol=0.06)


def test_S4_5_chains_against_variational_inference(chains, fitted, known):
    """Both find the mean; the deviation of a diagonal q is too small."""
    deviation = np.sqrt(np.diag(known["posterior_covariance"]))
    of_chain = chains[0].reshape(-1, 2).std(axis=0)
    of_q = np.exp(fitted[1][0] / 2)
    assert (np.abs(of_chain / deviation - 1) < 0.05).all()
    precision = np.linalg.inv(known["posterior_covariance"])
    short = 1 / np.sqrt(np.diag(precision)) / deviation
    np.testing.assert_allclose(of_q / deviation, short, atol=0.03)
    assert (short < 0.999).all()


def test_S4_6_the_identity_step_by_step(known):
    energy = -known["log_joint"] - known["entropy"]
    np.testing.assert_allclose(-energy, known["elbo"])  # L[q]
    np.testing.assert_allclose(known["gap"], -known["elbo"] + known["log_evidence"])
    np.testing.assert_allclose(known["log_evidence"], known["gap"] + known["elbo"])


def test_S4_7_least_kl_is_greatest_bound(plane):
    means, scales, log_likelihood, kl = plane
    elbo = log_likelihood - kl
    divergence = scipy.stats.norm.logpdf(3, 0, math.sqrt(4.5)) - elbo
    assert np.argmin(divergence) == np.argmax(elbo)
    order = np.argsort(elbo.ravel())
    assert (np.diff(divergence.ravel()[order]) <= 1e-12).all()


def test_S4_L4_vae():
    assert "VEA" not in vae_jax.__doc__ and "not VEA" in page()


def test_S4_L32_metropolis_hastings_has_an_s():
    assert mcmc.metropolis_hastings.__doc__.count("Hastings 1970") == 1
    assert "Metropolis-Hastings" in page()


def test_S4_L83_only_for_a_fixed_theta(double):
    """Between two decoders the larger ELBO may have the larger KL to its posterior."""
    x, q_mean, q_var = 3.0, np.zeros(1), np.ones(1)
    found = []
    for w, noise_var in ((0.8, 1.0), (0.01, 0.5)):
        covariance = np.eye(1) / (1 + w**2 / noise_var)
        posterior = covariance[0] * w * x / noise_var
        divergence = numpy_gaussian_kl(q_mean, q_var, posterior, covariance)
        log_evidence = scipy.stats.norm.logpdf(x, 0, math.sqrt(w**2 + noise_var))
        model = exact.LinearGaussian(
            jnp.array([[w]]), jnp.zeros(1), jnp.asarray(noise_var)
        )
        ours = exact.log_evidence(model, jnp.array([[x]]))[0]
        assert ours == pytest.approx(log_evidence)
        found.append((log_evidence - divergence, divergence))
    (elbo, divergence), (other_elbo, other_divergence) = found
    assert elbo > other_elbo and divergence > other_divergence + 1


def test_S4_all_amortization_gap(known):
    """One encoder for all x has a gap that the best q of each x has not, never less."""
    precision = np.linalg.inv(known["posterior_covariance"])
    best = [
        numpy_gaussian_kl(
            mean, 1 / np.diag(precision), mean, known["posterior_covariance"]
        )
        for mean in known["posterior_mean"]
    ]
    with jax.enable_x64(True):
        approximation = exact.diagonal_gap(model_of_weights())
    np.testing.assert_allclose(best, approximation)
    amortization = known["gap"] - best  # of the arbitrary q, as an encoder gives one
    assert (amortization > 0.01).all()


# --------------------------------------------------------------------- the page

PAGE = Path(evidence.__file__).with_name("README.md")
NUMBER_OF_ROWS = {"S0": 12, "S1": 17, "S2": 17, "S3": 18, "S4": 7}
ROWS = [
    f"{notes}-{n}" for notes, last in NUMBER_OF_ROWS.items() for n in range(1, last + 1)
]


def page():
    return PAGE.read_text()


@pytest.mark.parametrize("row", ROWS)
def test_every_row_is_on_the_page_with_its_test(row):
    lines = [line for line in page().splitlines() if line.startswith(f"| {row} |")]
    assert len(lines) == 1
    named = re.findall(r"`(test_\w+)`", lines[0])
    assert named and all(name in globals() for name in named)
    assert any(name.startswith(f"test_{row.replace('-', '_')}_") for name in named)


def test_every_correction_is_on_the_page():
    found = set(re.findall(r"`(test_S\d_(?:L\d+|all)_\w+)`", page()))
    here = {name for name in globals() if re.match(r"test_S\d_(L\d+|all)_", name)}
    assert found == here


def test_every_picture_of_the_page_is_there_and_small():
    pictures = re.findall(r"\((pictures/[\w.]+)\)", page())
    assert len(pictures) >= 9
    for name in pictures:
        assert (PAGE.parent / name).stat().st_size < 60_000


# ------------------------------------------------------------------ the topics


# What each topic takes to be quick, and still to hold all of its checks.
TOPICS = {
    "information": {},
    "mixtures": {"dataset": "digits"},
    "autoencoders": {"dataset": "digits"},
    "reparameterization": {},
    "evidence": {},
    "collapse": {"dataset": "digits"},
    "applications": {"dataset": "digits"},
    "regimes": {"dataset": "digits"},
    "inference": {},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TOPICS)
def test_every_check_of_a_topic_holds(name, tmp_path, capsys):
    module = topic(name)
    config = module.Config(**TOPICS[name], run_dir=str(tmp_path / name))
    report = module.run(config)
    assert not [check.what for check in report.checks if not check.ok]
    assert "all hold" in capsys.readouterr().out
    drawn = {path.stem for path in (tmp_path / name / "figures").glob("*.png")}
    assert drawn == set(report.figures)
