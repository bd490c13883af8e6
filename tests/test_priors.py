"""p(z) against SciPy, and the registry of closed-form divergences."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from vae_jax import StandardNormal, register_kl
from vae_jax import priors as priors_module
from vae_jax.posteriors import DiagonalGaussianPosterior, PointMassPosterior
from vae_jax.priors import closed_form_kl


@pytest.fixture
def registry(monkeypatch):
    """A registry that forgets what a test registers."""
    forms = dict(priors_module._closed_forms)
    monkeypatch.setattr(priors_module, "_closed_forms", forms)


def test_standard_normal_log_prob_is_scipys():
    z = np.random.default_rng(0).normal(size=(5, 4, 3)).astype(np.float32)
    actual = StandardNormal().log_prob({}, z, encode=None)
    expected = scipy.stats.multivariate_normal(np.zeros(3)).logpdf(z)
    assert actual.shape == (5, 4)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_standard_normal_samples_have_the_moments(key, assert_mean):
    z = StandardNormal().sample({}, key, num_samples=20_000, latent_dim=3, encode=None)
    z = np.asarray(z)
    assert z.shape == (20_000, 3)
    assert_mean(z, 0.0)
    assert_mean(z**2, 1.0)
    assert_mean(z[:, [0, 1, 2]] * z[:, [1, 2, 0]], 0.0)


def test_the_closed_form_is_the_mean_of_the_log_ratio(key, assert_mean):
    """KL(q || p) = E_q[log q(z) - log p(z)], from samples alone."""
    mean, log_var = np.random.default_rng(1).normal(size=(2, 4, 3)).astype(np.float32)
    posterior = DiagonalGaussianPosterior(jnp.asarray(mean), jnp.asarray(log_var))
    closed_form = closed_form_kl(DiagonalGaussianPosterior, StandardNormal)
    expected = closed_form(posterior, StandardNormal(), {})
    assert expected.shape == (4,) and jnp.all(expected > 0)

    @jax.jit
    def log_ratio(key):
        z, log_q = posterior.sample_and_log_prob(key, 10_000)
        return log_q - StandardNormal().log_prob({}, z, encode=None)

    assert_mean(log_ratio(key), expected)


def test_the_divergence_of_a_point_mass_is_zero_by_definition():
    posterior = PointMassPosterior(jnp.ones((4, 3)))
    for prior in (StandardNormal, int):
        divergence = closed_form_kl(PointMassPosterior, prior)(posterior, prior(), {})
        np.testing.assert_array_equal(divergence, np.zeros(4))


def test_an_unknown_pair_has_no_closed_form():
    assert closed_form_kl(DiagonalGaussianPosterior, int) is None
    assert closed_form_kl(int, StandardNormal) is None


def test_a_registered_pair_is_found_and_the_most_specific_first(registry):
    class Posterior: ...

    class Narrow(Posterior): ...

    @dataclass(frozen=True)
    class Prior:
        hyperparameters: ClassVar[tuple[str, ...]] = ()

    def general(posterior, prior, prior_params): ...

    def special(posterior, prior, prior_params): ...

    assert register_kl(Posterior, object)(general) is general
    assert closed_form_kl(Narrow, Prior) is general
    register_kl(Posterior, Prior)(special)
    assert closed_form_kl(Narrow, Prior) is special
    assert closed_form_kl(Narrow, StandardNormal) is general


def test_a_subclass_of_a_prior_keeps_its_closed_form():
    class Renamed(StandardNormal): ...

    assert closed_form_kl(DiagonalGaussianPosterior, Renamed) is not None
