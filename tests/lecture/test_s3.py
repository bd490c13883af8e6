"""Notes S3, probability and the regimes of beta: one test per row and correction."""

import math
from fractions import Fraction
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.integrate
import scipy.stats
from lecture_examples import (
    BIAS,
    COVARIANCE,
    LETTERS,
    NOISE_VAR,
    Q_LOG_VAR,
    Q_MEAN,
    UNIFORM,
    WEIGHTS,
    X,
    best_of,
    linear_spec,
    mean_is,
    numpy_gaussian_kl,
    numpy_kl,
    page,
    small_joint,
)

import vae_jax
from vae_jax import (
    PerPixelGaussian,
    exact,
)
from vae_jax.distributions import (
    discrete,
    gaussian,
    multivariate_gaussian,
)
from vae_jax.estimators import sigma_points as without_noise

DIE = [Fraction(1, 6)] * 6


IS_ODD = jnp.array([1.0, 0, 1, 0, 1, 0])


def test_S3_1_bayes_rule(double):
    """Prior, likelihood, joint, evidence and posterior for a medical test."""
    prior = np.array([0.99, 0.01])
    likelihood = np.array([0.05, 0.9])  # of a positive test
    joint = prior * likelihood
    posterior, log_evidence = discrete.posterior(jnp.log(prior), jnp.log(likelihood))
    np.testing.assert_allclose(posterior, joint / joint.sum())
    np.testing.assert_allclose(jnp.exp(log_evidence), joint.sum())


def test_S3_2_total_probability(double):
    """The evidence of a discrete latent with three values, by a sum."""
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
    """Two means and two full covariances in three dimensions."""
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
    """2 K points whose average of any quadratic is its expectation under N(m, S)."""
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
    """Each step of the proof, with quadratic expectations exact by sigma points."""
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


def test_S3_L30_the_posterior_is_likelihood_times_prior_over_evidence(double):
    """p(y)/p(x) is not a likelihood ratio: p(x|y)/p(x) updates the prior."""
    prior, likelihood = np.array([0.5, 0.3, 0.2]), np.array([0.1, 0.6, 0.3])
    evidence = prior @ likelihood
    posterior, _ = discrete.posterior(jnp.log(prior), jnp.log(likelihood))
    np.testing.assert_allclose(posterior, prior * (likelihood / evidence))
    assert (np.abs(prior / evidence * prior - posterior) > 0.05).any()


def test_S3_L34_the_events_must_also_exhaust(double):
    """1, 2 and 3 are disjoint, but their sum gives 1/3 instead of P(odd) = 1/2."""
    fair = np.full(6, 1 / 6)
    disjoint_only = fair[:3] @ np.asarray(IS_ODD)[:3]
    _, log_evidence = discrete.posterior(jnp.log(fair), jnp.log(IS_ODD))
    assert disjoint_only == pytest.approx(1 / 3)
    assert jnp.exp(log_evidence) == pytest.approx(1 / 2)


def test_S3_L61_bayes_rule_for_the_die(double):
    """P(y|x) P(y) / P(x) gives 3, which is not a probability."""
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
    # The printed value resembles that of a textbook example, (0.36, 0.48, 0.16).
    textbook = jnp.array([0.36, 0.48, 0.16])
    assert discrete.kl_divergence(q, textbook) == pytest.approx(0.097455, abs=1e-6)


def test_S3_L111_zero_only_where_they_are_equal(double):
    p = jnp.asarray(LETTERS)
    assert discrete.kl_divergence(p, p) == 0
    for outcome in range(3):
        moved = p.at[outcome].add(1e-3).at[(outcome + 1) % 3].add(-1e-3)
        assert discrete.kl_divergence(p, moved) > 1e-7


def test_S3_L120_one_symbol_for_the_dimension(double, two_gaussians):
    """K and d are the same dimension: with another d, KL(p || p) would not be 0."""
    means, covariances = two_gaussians
    same = full_kl(means[[0, 0]], covariances[[0, 0]])
    assert same == pytest.approx(0, abs=1e-12)
    trace = np.trace(np.linalg.inv(covariances[0]) @ covariances[0])
    assert (trace - 3) / 2 == pytest.approx(0) and (trace - 2) / 2 == pytest.approx(0.5)


def test_S3_L130_integrals_for_continuous_x():
    """The printed sum over x grows without bound as the grid is refined."""
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
    """Without its 1/2 the last term is too large; the cross term depends on x."""
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
    """L126, L217 and L408 against the mean of log p - log q over 200,000 draws."""
    (mean_1, mean_2), (cov_1, cov_2) = two_gaussians
    x = np.random.default_rng(4).multivariate_normal(mean_1, cov_1, 200_000)
    oracle = scipy.stats.multivariate_normal
    values = oracle(mean_1, cov_1).logpdf(x) - oracle(mean_2, cov_2).logpdf(x)
    error = values.std() / math.sqrt(len(x))
    assert abs(values.mean() - full_kl(*two_gaussians)) < 5 * error


def test_S3_8_from_x_to_z_to_x_again(linear_vae):
    x = jnp.asarray(X, jnp.float32)
    z = vae_jax.reparameterize(vae_jax.encode(linear_vae, x), jax.random.key(0))
    again = vae_jax.decode(linear_vae, z).mean[0]
    assert z.shape == (1, 4, 2) and again.shape == x.shape
    assert jnp.abs(again - jnp.asarray(BIAS)).max() > 0.1  # z depends on x


def test_S3_9_inference_as_optimization(plane):
    """The q that minimises the KL to the posterior maximises the ELBO."""
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
    """Parameters before and after one SGD step, its metrics, and those of the next."""
    optimizer = optax.sgd(1e-3)
    x = jnp.asarray(X, jnp.float32)
    state = vae_jax.init_state(linear_vae, jax.random.key(0), optimizer=optimizer)
    objective = vae_jax.elbo_objective(estimator=without_noise)
    step = partial(vae_jax.train_step, objective=objective, optimizer=optimizer)
    after, metrics = jax.jit(step)(state, x)
    _, later = jax.jit(step)(after, x)
    return state.params, after.params, metrics, later


def test_S3_10_the_loss_is_minus_the_objective(one_step):
    """Descending the loss raises the ELBO and updates both theta and phi."""
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
    """One variance, one per pixel, and a full covariance, compared with SciPy."""
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
    """Any real number is a valid log-variance; a network's output need not be > 0."""
    for log_var in (-80.0, -1.0, 0.0, 5.0):
        value, slope = jax.value_and_grad(
            lambda s: gaussian.diagonal_kl_to_standard_normal(jnp.zeros(1), s)
        )(jnp.array([log_var]))
        assert jnp.isfinite(value) and value >= 0
        assert slope[0] == pytest.approx((math.exp(log_var) - 1) / 2, rel=1e-5)


def test_S3_L5_the_loss_has_a_logarithm(known):
    """Without the logarithm, E p(x|z) gives a different value."""
    ours = -known["log_likelihood"] + known["kl"]
    np.testing.assert_allclose(ours, -known["elbo"])
    draws = np.random.default_rng(0).normal(size=(20_000, 4, 2))
    z = Q_MEAN + np.exp(Q_LOG_VAR / 2) * draws
    density = scipy.stats.norm.pdf(X, z @ WEIGHTS.T + BIAS, math.sqrt(NOISE_VAR))
    printed = -density.prod(axis=-1).mean(axis=0) + known["kl"]
    assert (np.abs(printed - ours) > 1).all()


def test_S3_L17_the_kl_pulls_together():
    """A gradient step on the KL moves the mean towards 0 and the variance towards 1."""
    mean, log_var = jnp.array([2.0]), jnp.array([-1.0])
    by_mean, by_log_var = jax.grad(gaussian.diagonal_kl_to_standard_normal, (0, 1))(
        mean, log_var
    )
    assert abs(mean - 0.1 * by_mean) < abs(mean)
    assert abs(log_var - 0.1 * by_log_var) < abs(log_var)


def test_S3_L79_kullback_and_leibler_1951():
    assert "Kullback-Leibler divergence (1951)" in page()


def test_S3_L244_the_joint_is_of_x_and_z():
    """p(z|x) sums to one over z for each x; only p(x, z) sums to one over both."""
    _, _, joint, posterior = small_joint()
    assert joint.sum() == pytest.approx(1)
    assert posterior.sum() == pytest.approx(3)
    ours, _ = discrete.posterior(jnp.zeros(2), jnp.log(joint[:, 1]))
    np.testing.assert_allclose(ours, posterior[:, 1], rtol=1e-5)


def test_S3_L254_the_prior_stays_in_the_integral(known):
    """int p(x|z) dz, without the prior, differs from p(x)."""
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
    """A sum over points of z depends on their number; the integral does not."""
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
    """- E[log p + KL] rewards a large KL and can fall below - log p(x)."""
    right = -known["log_likelihood"] + known["kl"]
    printed = -(known["log_likelihood"] + known["kl"])
    np.testing.assert_allclose(right, -known["elbo"])
    assert (right >= -known["log_evidence"]).all()
    assert (printed < -known["log_evidence"]).any()


def test_S3_L323_plus_the_kl_in_the_loss(plane):
    """With a minus sign the best q is as far from the prior as the grid allows."""
    means, scales, log_likelihood, kl = plane
    printed = -log_likelihood - kl
    row, column = np.unravel_index(np.argmin(printed), printed.shape)
    assert scales[column] == scales.min()
    assert best_of(plane, 1, 1) == pytest.approx((4 / 3, 1 / 3))


def test_S3_L339_the_likelihood_is_of_the_generative_model(linear_vae):
    """At fixed z, log p(x|z) depends on the decoder; log q(z|x) does not."""
    x, z = jnp.asarray(X, jnp.float32), jnp.asarray(Q_MEAN, jnp.float32)[None]
    moved = linear_vae.replace(
        decoder=jax.tree.map(lambda w: w + 0.1, linear_vae.decoder)
    )
    of_x = [vae_jax.decode(params, z).log_prob(x) for params in (linear_vae, moved)]
    of_z = [vae_jax.encode(params, x).log_prob(z) for params in (linear_vae, moved)]
    assert (jnp.abs(of_x[0] - of_x[1]) > 1e-3).all()
    assert (of_z[0] == of_z[1]).all()


def test_S3_L343_a_squared_error_for_one_fixed_variance_only():
    """Per-pixel variances distinguish two x at the same distance from the mean."""
    mean, x = jnp.zeros(2), jnp.array([[1.0, 0.0], [0.0, 1.0]])
    same = gaussian.diagonal_log_prob(x, mean, jnp.zeros(2))
    other = gaussian.diagonal_log_prob(x, mean, jnp.array([0.0, 2.0]))
    assert same[0] == same[1]
    assert other[1] - other[0] == pytest.approx(0.5 * (1 - math.exp(-2)), rel=1e-5)


def test_S3_L354_minus_a_half_and_the_constant():
    """The printed quadratic has the wrong sign: it is largest far from the mean."""
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
    """The remark on narrow distributions belongs to the regime without the KL."""
    _, without = best_of(plane, 1, 0)
    mean, only = best_of(plane, 0, 1)
    assert without < 0.05 and only == 1 and mean == 0
    assert not (only < without)
    # The best decoder for uninformative codes outputs the mean of the data.
    x = jnp.asarray(X, jnp.float32)
    z = jax.random.normal(jax.random.key(0), (64, 4, 2))

    def loss(bias):
        decoder = {"output": collapsed.decoder["output"] | {"bias": bias}}
        return -vae_jax.decode(collapsed.replace(decoder=decoder), z).log_prob(x).mean()

    gradient = jax.grad(loss)(x.mean(axis=0))
    np.testing.assert_allclose(gradient, 0, atol=1e-5)


@pytest.mark.slow
def test_S3_L400_the_aggregate_is_near_the_prior_and_each_q_is_narrower(linear_vae):
    """With the exact posterior, the average of q(z|x) over p(x) is p(z)."""
    x = vae_jax.generate(linear_vae, jax.random.key(0), num_samples=20_000, sample=True)
    mean, covariance = exact.posterior(exact.linear_gaussian(linear_vae), x)
    total = np.cov(np.asarray(mean).T) + covariance
    np.testing.assert_allclose(total, np.eye(2), atol=0.05)
    assert (np.diag(covariance) < 0.7).all()


def test_S3_L412_q_has_the_moments_of_x(linear_vae):
    """Mu and Sigma are functions of x: they differ between two x."""
    q = vae_jax.encode(linear_vae, jnp.asarray(X, jnp.float32))
    assert (jnp.abs(q.mean[0] - q.mean[1]) > 0.1).any()
    kls = gaussian.diagonal_kl_to_standard_normal(q.mean, q.log_var)
    assert kls.shape == (4,) and jnp.ptp(kls) > 0.1


def test_S3_L418_the_closed_forms_are_right(double):
    """Full and diagonal forms against each other and against 200,000 draws."""
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
    """As printed the log-variance cancels: -1/2 per unit at mean 0, and no gradient."""

    def printed(mean, log_var):
        return 0.5 * jnp.sum(log_var + mean**2 - 1 - log_var, axis=-1)

    zero = jnp.zeros(3)
    assert printed(zero, zero) == pytest.approx(-1.5)
    assert (jax.grad(printed, argnums=1)(zero, zero + 1) == 0).all()
    ours = gaussian.diagonal_kl_to_standard_normal
    assert ours(zero, zero) == 0
    slope = jax.grad(ours, argnums=1)(zero, zero + 1)
    np.testing.assert_allclose(slope, (math.e - 1) / 2, rtol=1e-5)
