"""Notes S0, introduction to VAEs: one test per row and per corrected line."""

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
    arbitrary_q,
    best_of,
    linear_spec,
    model_of_weights,
    numpy_gaussian_kl,
    numpy_kl,
    small_joint,
)
from sklearn.cluster import KMeans

import vae_jax
from experiments.lecture import evidence, mixtures
from vae_jax import (
    MLP,
    ModelSpec,
    elbo_terms,
    exact,
)
from vae_jax.distributions import (
    DiagonalGaussianDistribution,
    discrete,
    gaussian,
)
from vae_jax.estimators import sigma_points as without_noise


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
    # The posteriors of neighbouring x overlap: their means differ by less than σ.
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
    # The ELBO equals log p(x) for soft assignments and is lower by the KL for hard
    # ones.
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
    """At the posterior the gap is 0, and ELBO and log p(x) have the same gradient."""
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
    """The best variance is beta / (beta + w^2 / s^2); the mean shrinks towards 0."""
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


def test_S0_L22_the_predictive_is_of_another_x():
    """p(x'|x) sums to one over x'; the printed integrand does not depend on x'."""
    _, likelihood, _, posterior = small_joint()
    predictive = posterior.T @ likelihood  # [x, x']
    np.testing.assert_allclose(predictive.sum(axis=1), 1)
    printed = (posterior * likelihood).sum(axis=0)
    assert (np.abs(3 * printed - 1) > 0.1).any()


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
    """From the best decoder and a wrong q, raising the ELBO lowers log p(x)."""
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

    best = math.sqrt(x**2 - noise_var)  # maximises log p(x)
    both = jax.jit(jax.value_and_grad(elbo))
    value, slope = both(best)
    moved = best + 0.1 * float(slope)
    assert both(moved)[0] > value + 0.01
    assert log_evidence(moved) < log_evidence(best) - 1e-4


def test_S0_L85_minus_the_kl(known):
    np.testing.assert_allclose(known["elbo"], known["log_likelihood"] - known["kl"])
    printed = known["log_likelihood"] + known["kl"]
    assert (printed > known["elbo"] + 0.1).all()
    assert (printed > known["log_evidence"]).any()  # not a lower bound


def test_S0_L109_the_covariance_is_diag_of_squares():
    """Sigma is a standard deviation: as a variance it would scale eps wrongly."""
    sigma = np.array([0.5, 3.0])
    log_var = jnp.log(jnp.asarray(sigma**2, jnp.float32))
    z = gaussian.diagonal_sample(
        jnp.zeros(2), log_var, jax.random.key(0), num_samples=20_000
    )
    np.testing.assert_allclose(z.var(axis=0), sigma**2, rtol=0.06)
    assert (np.abs(z.var(axis=0) / sigma - 1) > 0.4).all()
