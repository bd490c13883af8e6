"""Families of q(z|x) against SciPy, and their bounds where an encoder runs away."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from vae_jax import (
    DiagonalGaussian,
    FactorizedBernoulli,
    FullGaussian,
    Householder,
    LowRankGaussian,
    PointMass,
    StandardNormal,
    reparameterize,
)
from vae_jax.distributions import (
    MAX_ENUMERABLE_BITS,
    BernoulliDistribution,
    DiagonalGaussianDistribution,
    closed_form_kl,
)
from vae_jax.distributions.multivariate_gaussian import low_rank_log_prob
from vae_jax.families import LOG_VAR_BOUND, bound_factor, bound_log_var

RAW = np.float32([-np.inf, -1e9, -1e4, -100.0, -1.0, 0.0, 1.0, 100.0, 1e4, 1e9, np.inf])


def test_bound_log_var_keeps_what_it_promises():
    value = np.asarray(jax.jit(bound_log_var)(RAW))
    assert np.all(np.abs(value) <= LOG_VAR_BOUND) and LOG_VAR_BOUND == 20
    assert np.all(np.diff(value) >= 0)
    deviation = np.exp(value / 2)
    assert deviation.min() == pytest.approx(4.5e-5, rel=0.02)
    assert deviation.max() == pytest.approx(2.2e4, rel=0.02)


def test_bound_log_var_is_nearly_the_identity_around_zero():
    raw = np.float32([-2.0, -0.5, 0.0, 0.5, 2.0])
    np.testing.assert_allclose(bound_log_var(raw), raw, rtol=4e-3)
    gradient = jax.vmap(jax.grad(bound_log_var))(RAW)
    assert gradient[5] == 1 and np.all(np.isfinite(gradient))


def outputs(scale=1.0):
    """The encoder's outputs for 4 examples and 3 latent dimensions."""
    raw = np.random.default_rng(0).normal(size=(4, 6)) * scale
    return jnp.asarray(raw, jnp.float32)


def test_diagonal_gaussian_reads_means_first_then_log_variances():
    posterior = DiagonalGaussian().build({}, outputs())
    np.testing.assert_array_equal(posterior.mean, outputs()[:, :3])
    np.testing.assert_array_equal(posterior.log_var, bound_log_var(outputs()[:, 3:]))
    assert DiagonalGaussian().num_outputs(dim=3) == 6
    assert DiagonalGaussian().init(jax.random.key(0), dim=3) == {}


@pytest.mark.long
def test_diagonal_gaussian_samples_come_with_their_density(key, assert_mean):
    posterior = DiagonalGaussian().build({}, outputs())
    z, log_q = posterior.sample_and_log_prob(key, 5000)
    assert z.shape == (5000, 4, 3) and log_q.shape == (5000, 4)
    deviation = np.exp(np.asarray(posterior.log_var) / 2)
    expected = scipy.stats.norm.logpdf(z, posterior.mean, deviation).sum(-1)
    np.testing.assert_allclose(log_q, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(posterior.log_prob(z), log_q)
    assert_mean(z, posterior.mean)
    assert_mean((z - posterior.mean) ** 2, deviation**2)
    assert_mean(-log_q, scipy.stats.norm.entropy(scale=deviation).sum(-1))


def test_reparameterize_is_the_first_half_of_sample_and_log_prob(key):
    posterior = DiagonalGaussian().build({}, outputs())
    z, _ = posterior.sample_and_log_prob(key, 2)
    np.testing.assert_array_equal(reparameterize(posterior, key, num_samples=2), z)
    assert jax.eval_shape(reparameterize, posterior, key).shape == (1, 4, 3)


@pytest.mark.parametrize(
    "family",
    [DiagonalGaussian(), FullGaussian(), LowRankGaussian(rank=3), Householder(2)],
    ids=repr,
)
def test_an_encoder_that_runs_away_gives_finite_divergences_and_gradients(family, key):
    @jax.jit
    @jax.value_and_grad
    def total(raw):
        posterior = family.build({}, raw)
        prior = StandardNormal().build({}, latent_dim=3, encode=None)
        closed_form = closed_form_kl(type(posterior), type(prior))
        z, log_q = posterior.sample_and_log_prob(key, 2)
        divergence = closed_form(posterior, prior)
        return jnp.sum(divergence) + jnp.sum(log_q) + 1e-9 * jnp.sum(z)

    shape = (4, family.num_outputs(dim=3))
    drawn = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    signs = np.where(np.arange(shape[1]) % 6 < 3, 1, -1).astype(np.float32)
    for scale in (1e3, -1e3, 1e9, -1e9):
        for raw in (scale * drawn, np.full(shape, scale), scale * signs + 0 * drawn):
            value, gradient = total(np.float32(raw))
            assert np.isfinite(value) and np.all(np.isfinite(gradient))


def test_a_long_factor_keeps_its_direction_and_a_short_one_its_length():
    """In float64, so that a covariance at the bound can be compared with SciPy."""
    raw = np.random.default_rng(1).normal(size=(3, 2))
    with jax.enable_x64():
        log_var = jnp.array([0.0, -6.0, 2.0])
        short, long = (bound_factor(size * raw, log_var) for size in (0.1, 1e12))
        np.testing.assert_allclose(short, 0.1 * raw, rtol=1e-3)
        np.testing.assert_allclose(long / long[0, 0], raw / raw[0, 0], rtol=1e-12)
        loading = long * jnp.exp(-log_var / 2)[:, None]
        np.testing.assert_allclose(jnp.linalg.norm(loading), 100, rtol=1e-6)
        covariance = long @ long.T + jnp.diag(jnp.exp(log_var))
        value = jnp.array([0.1, -0.2, 0.3])
        expected = scipy.stats.multivariate_normal.logpdf(value, cov=covariance)
        found = low_rank_log_prob(value, jnp.zeros(3), log_var, long)
        np.testing.assert_allclose(found, expected, rtol=1e-7)


def test_the_gradient_of_log_q_flows_through_the_samples(key):
    """With z = m + s eps, log q(z) = -eps^2 / 2 - log s + const: no gradient in m."""

    def log_q(mean, log_var):
        posterior = DiagonalGaussianDistribution(mean, log_var)
        return posterior.sample_and_log_prob(key, 2)[1].sum()

    ones = np.ones((4, 3), np.float32)
    by_mean, by_log_var = jax.jit(jax.grad(log_q, (0, 1)))(ones, ones)
    np.testing.assert_allclose(by_mean, 0.0, atol=1e-6)
    np.testing.assert_allclose(by_log_var, -1.0, rtol=1e-5)


def test_point_mass_has_one_point_and_no_density(key):
    posterior = PointMass().build({}, outputs())
    z, log_q = posterior.sample_and_log_prob(key, 5)
    assert z.shape == (5, 4, 6) and log_q.shape == (5, 4)
    np.testing.assert_array_equal(z, np.broadcast_to(outputs(), (5, 4, 6)))
    assert np.all(np.isposinf(log_q))
    assert not posterior.has_density and DiagonalGaussianDistribution.has_density
    assert PointMass().num_outputs(dim=6) == 6


def test_a_gaussian_is_its_noise_transformed(key):
    posterior = DiagonalGaussian().build({}, outputs())
    z, _ = posterior.sample_and_log_prob(key, 5)
    noise = jax.random.normal(key, (5, 4, 3))
    np.testing.assert_allclose(posterior.from_noise(noise), z, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(posterior.to_noise(z), noise, rtol=1e-4, atol=1e-5)


def test_factorized_bernoulli_takes_the_outputs_as_logits():
    posterior = FactorizedBernoulli().build({}, outputs())
    np.testing.assert_array_equal(posterior.logits, outputs())
    expected = scipy.special.expit(outputs())
    np.testing.assert_allclose(posterior.mean, expected, rtol=1e-6)
    assert FactorizedBernoulli().num_outputs(dim=6) == 6
    assert FactorizedBernoulli().init(jax.random.key(0), dim=6) == {}
    assert posterior.has_density and not posterior.is_reparameterizable


def test_bernoulli_samples_come_with_their_probability(key, assert_mean):
    posterior = FactorizedBernoulli().build({}, outputs())
    z, log_q = jax.jit(lambda: posterior.sample_and_log_prob(key, 5000))()
    assert z.shape == (5000, 4, 6) and log_q.shape == (5000, 4)
    assert set(np.unique(z)) == {0.0, 1.0} and z.dtype == jnp.float32
    p = scipy.special.expit(np.float64(outputs()))
    expected = scipy.stats.bernoulli.logpmf(z, p).sum(axis=-1)
    np.testing.assert_allclose(log_q, expected, rtol=1e-5)
    np.testing.assert_allclose(posterior.log_prob(z), log_q, rtol=1e-6)
    assert_mean(z, p)
    assert_mean(-log_q, scipy.stats.bernoulli.entropy(p).sum(axis=-1))
    products = (z - p) * np.roll(z - p, 1, axis=-1)
    assert_mean(products, 0.0)


def test_no_gradient_flows_through_bits_but_the_score_does(key):
    @jax.jit
    def gradients(logits):
        def draw(logits):
            z, log_q = BernoulliDistribution(logits).sample_and_log_prob(key, 2)
            return (z.sum(), log_q.sum()), z

        _, pull_back, z = jax.vjp(draw, logits, has_aux=True)
        return pull_back((1.0, 0.0))[0], pull_back((0.0, 1.0))[0], z

    by_z, score, z = gradients(outputs())
    assert not by_z.any()
    expected = (z - scipy.special.expit(outputs())).sum(axis=0)
    np.testing.assert_allclose(score, expected, rtol=1e-4, atol=1e-6)


def test_the_support_of_bits_is_every_state_once():
    posterior = BernoulliDistribution(outputs())
    states = np.asarray(posterior.enumerate_support())
    assert states.shape == (64, 1, 6) and states.dtype == np.float32
    assert set(map(tuple, states[:, 0])) == set(itertools.product([0, 1], repeat=6))
    log_q = posterior.log_prob(posterior.enumerate_support())
    assert log_q.shape == (64, 4)
    np.testing.assert_allclose(np.exp(log_q).sum(axis=0), 1, rtol=1e-5)


def test_the_support_of_many_bits_is_refused():
    most = BernoulliDistribution(jnp.zeros((1, MAX_ENUMERABLE_BITS)))
    assert jax.eval_shape(lambda: most.enumerate_support()).shape == (4096, 1, 12)
    with pytest.raises(ValueError, match=r"latent_dim 13 has 2\^13 states; at most 12"):
        BernoulliDistribution(jnp.zeros((1, 13))).enumerate_support()


def test_certain_bits_are_finite(key):
    logits = jnp.float32([[-1e4, 1e4, 0.0]])

    def log_q(logits):
        z, log_q = BernoulliDistribution(logits).sample_and_log_prob(key, 3)
        return log_q.sum(), z

    gradient, z = jax.jit(jax.grad(log_q, has_aux=True))(logits)
    np.testing.assert_array_equal(z[..., :2], np.broadcast_to([0.0, 1.0], (3, 1, 2)))
    np.testing.assert_array_equal(gradient[0, :2], 0)


@pytest.mark.parametrize(
    "family", [DiagonalGaussian(), PointMass(), FactorizedBernoulli()], ids=repr
)
def test_posteriors_pass_through_transformations(family, key):
    """They are pytrees: a compiled function returns one, and `vmap` maps over it."""
    posterior = jax.jit(lambda raw: family.build({}, raw))(outputs())
    assert type(posterior) is type(family.build({}, outputs()))
    means = jax.vmap(lambda posterior: posterior.mean)(posterior)
    np.testing.assert_array_equal(means, posterior.mean)
