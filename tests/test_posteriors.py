"""Families of q(z|x) against SciPy, and their bounds where an encoder runs away."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from vae_jax import DiagonalGaussian, PointMass, StandardNormal, reparameterize
from vae_jax.posteriors import (
    LOG_VAR_BOUND,
    DiagonalGaussianPosterior,
    bound_log_var,
)
from vae_jax.priors import closed_form_kl

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
    assert DiagonalGaussian().num_outputs(latent_dim=3) == 6
    assert DiagonalGaussian().init(jax.random.key(0), latent_dim=3) == {}


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


def test_an_encoder_that_runs_away_gives_finite_divergences_and_gradients(key):
    @jax.jit
    @jax.value_and_grad
    def total(raw):
        posterior = DiagonalGaussian().build({}, raw)
        closed_form = closed_form_kl(type(posterior), StandardNormal)
        z, log_q = posterior.sample_and_log_prob(key, 2)
        divergence = closed_form(posterior, StandardNormal(), {})
        return jnp.sum(divergence) + jnp.sum(log_q) + 1e-9 * jnp.sum(z)

    for scale in (1e4, -1e4, 1e9, -1e9):
        for raw in (outputs(scale), np.full((4, 6), scale, np.float32)):
            value, gradient = total(raw)
            assert np.isfinite(value) and np.all(np.isfinite(gradient))


def test_the_gradient_of_log_q_flows_through_the_samples(key):
    """With z = m + s eps, log q(z) = -eps^2 / 2 - log s + const: no gradient in m."""

    def log_q(mean, log_var):
        posterior = DiagonalGaussianPosterior(mean, log_var)
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
    assert not posterior.has_density and DiagonalGaussianPosterior.has_density
    assert PointMass().num_outputs(latent_dim=6) == 6


@pytest.mark.parametrize("family", [DiagonalGaussian(), PointMass()], ids=repr)
def test_posteriors_pass_through_transformations(family, key):
    """They are pytrees: a compiled function returns one, and `vmap` maps over it."""
    posterior = jax.jit(lambda raw: family.build({}, raw))(outputs())
    assert type(posterior) is type(family.build({}, outputs()))
    means = jax.vmap(lambda posterior: posterior.mean)(posterior)
    np.testing.assert_array_equal(means, posterior.mean)
