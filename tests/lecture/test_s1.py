"""Notes S1, the ELBO and its gradients: one test per row and per corrected line."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from lecture_examples import (
    BIAS,
    COVARIANCE,
    NOISE_VAR,
    Q_LOG_VAR,
    Q_MEAN,
    WEIGHTS,
    X,
    linear_spec,
    mean_is,
    numpy_gaussian_kl,
)

import vae_jax
from experiments.lecture import reparameterization
from vae_jax import (
    DiagonalGaussianPrior,
    elbo_terms,
    estimators,
)
from vae_jax.distributions import (
    DiagonalGaussianDistribution,
    gaussian,
    multivariate_gaussian,
)
from vae_jax.estimators import exact_variance


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
    """E_q log q / p(x, z) + log p(x) = KL(q || p(z|x)), which is not negative."""
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
    """d/dtheta E theta z^2 may move inside E; d/dm, moved inside, gives 0, not 2 m."""

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
    # The integrand does not depend on phi.
    inside = jax.grad(lambda mean: jnp.mean(z**2 + 0 * mean))(mean)
    assert inside == 0


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
    """The mean of SGVB A is the ELBO, here by sigma points; S1-13 uses draws."""
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
    """B has less variance far from the posterior; A has none at the posterior."""
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
    """Encode with phi, sample z, decode with theta, and evaluate log p(x|z)."""
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
    """A product over parameters, with one example, is a different number."""
    oracle = scipy.stats.multivariate_normal(BIAS, COVARIANCE).logpdf(X)
    assert known["log_evidence"].sum() == pytest.approx(oracle.sum())
    over_theta = sum(
        scipy.stats.multivariate_normal(BIAS + shift, COVARIANCE).logpdf(X[0])
        for shift in range(len(X))
    )
    assert abs(over_theta - oracle.sum()) > 1


def test_S1_L17_dz_is_no_probability(plane):
    """An integrand of e^10 on a set of volume 2 violates it: 10.69 < 20."""
    left, printed = math.log(2 * math.exp(10)), 2 * 10.0
    assert left == pytest.approx(10.693147) and left < printed
    # With the measure p(z) dz it holds.
    means, scales, log_likelihood, _ = plane
    of_prior = log_likelihood[0, list(scales).index(1.0)]
    assert means[0] == 0
    assert scipy.stats.norm.logpdf(3, 0, math.sqrt(4.5)) > of_prior


def test_S1_L23_the_prior_belongs_in_the_ratio(known):
    ours = known["log_likelihood"] + known["log_prior"] + known["entropy"]
    np.testing.assert_allclose(ours, known["elbo"])
    printed = known["log_likelihood"] + known["entropy"]
    assert (printed > known["log_evidence"]).any()  # not a lower bound


def test_S1_L57_q_divides_once(known):
    ours = known["log_likelihood"] + known["log_prior"] + known["entropy"]
    printed = ours + known["entropy"]
    np.testing.assert_allclose(ours, known["elbo"])
    assert (np.abs(printed - known["elbo"]) > 0.1).all()


def test_S1_L81_two_terms_of_the_product_rule():
    """int grad f q differs from int f grad q; it is 0 if f = log p - log q_phi."""
    mean = jnp.asarray(0.7)
    x = np.linspace(-12, 12, 4001)
    q = scipy.stats.norm.pdf(x, 0.7)
    score = x - 0.7  # d log q / d mean
    f = -(x**2) / 2 - scipy.stats.norm.logpdf(x, 0.7)
    inner = np.trapezoid(-score * q, x)  # grad f = - grad log q
    outer = np.trapezoid(f * score * q, x)
    assert inner == pytest.approx(0, abs=1e-9) and abs(outer) > 0.1
    # E_q f = - (m^2 + 1) / 2 + entropy, with derivative - m.
    assert inner + outer == pytest.approx(-0.7)
    ours = jax.grad(
        lambda mean: -gaussian.diagonal_kl_to_standard_normal(mean[None], jnp.zeros(1))
    )(mean)
    assert ours == pytest.approx(inner + outer, rel=1e-5)


def test_S1_L93_the_score_at_each_sample(gradients):
    """The score of one sample times the mean value of the others has mean 0."""
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
    # E q(z|x) of a Gaussian, without the logarithm, is 1 / sqrt(4 pi s^2) per unit.
    of_q = np.prod(1 / np.sqrt(4 * math.pi * np.exp(Q_LOG_VAR)), axis=1)
    assert (np.abs(known["log_joint"] - of_q - known["elbo"]) > 0.1).all()


def test_S1_L104_a_difference_of_logarithms():
    log_joint, log_q = math.log(0.02), math.log(0.3)
    assert log_joint - log_q == pytest.approx(math.log(0.02 / 0.3))
    with pytest.raises(ValueError, match="expected a positive input|domain"):
        math.log(0.02 - 0.3)


def test_S1_L112_one_signature_for_g(linear_vae):
    """g_phi(eps, x): z depends on the encoder's parameters, on eps and on x."""
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
    """The location mu + A z is a vector; the log-density of x is a scalar."""
    z = jnp.asarray(Q_MEAN[:1], jnp.float32)[None]
    likelihood = vae_jax.decode(linear_vae, z)
    assert likelihood.mean.shape == (1, 1, 3)
    ours = likelihood.log_prob(jnp.asarray(X[:1], jnp.float32))
    assert ours.shape == (1, 1)
    distance = np.square(X[0] - WEIGHTS @ Q_MEAN[0] - BIAS).sum()
    right = -distance / (2 * NOISE_VAR) - 1.5 * math.log(2 * math.pi * NOISE_VAR)
    assert ours[0, 0] == pytest.approx(right, rel=1e-5)
