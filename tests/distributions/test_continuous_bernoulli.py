"""The continuous Bernoulli distribution, against quadrature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from vae_jax import ContinuousBernoulli
from vae_jax.distributions import continuous_bernoulli

# Near the switch to the series (0.2 in log_prob and mean, 0.001 in sample), and far.
LOGITS = np.float32([-30, -3, -0.21, -0.19, -1.1e-3, 0, 0.9e-3, 0.05, 0.199, 0.201, 8])


@pytest.mark.long
@pytest.mark.parametrize("logit", LOGITS)
def test_density_and_mean_are_those_of_quadrature(logit):
    def unnormalized(x):
        return np.exp(float(logit) * x)

    total, _ = scipy.integrate.quad(unnormalized, 0, 1, epsabs=1e-13)
    first, _ = scipy.integrate.quad(lambda x: x * unnormalized(x), 0, 1, epsabs=1e-13)
    x = np.float32([0, 0.3, 1])
    found = continuous_bernoulli.log_prob(x[:, None], jnp.full((3, 1), logit))
    expected = np.log(unnormalized(x.astype(float)) / total)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6)
    mean = continuous_bernoulli.mean(jnp.asarray([logit]))
    np.testing.assert_allclose(mean, [first / total], rtol=3e-5)


@pytest.mark.long
@pytest.mark.parametrize("logit", [-6.0, -0.5, 5e-4, 0.0, 2.0])
def test_samples_have_the_distribution_function(logit):
    draws = continuous_bernoulli.sample(jnp.full(20_000, logit), jax.random.key(0))

    def distribution(x):
        return np.expm1(logit * x) / np.expm1(logit) if logit else x

    assert scipy.stats.kstest(np.asarray(draws, float), distribution).pvalue > 1e-4
    assert np.all((draws >= 0) & (draws <= 1))


@pytest.mark.long
def test_the_gradient_is_x_less_the_mean_everywhere_and_finite():
    logits = jnp.concatenate([jnp.asarray(LOGITS), jnp.array([-1e4, 1e4])])

    def total(logits):
        return continuous_bernoulli.log_prob(jnp.full_like(logits, 0.3), logits)

    gradient = jax.grad(total)(logits)
    expected = 0.3 - continuous_bernoulli.mean(logits)
    np.testing.assert_allclose(gradient, expected, atol=2e-5)
    slope = jax.grad(lambda l: continuous_bernoulli.mean(l).sum())(logits)  # noqa: E741
    assert np.all(np.isfinite(slope))


@pytest.mark.slow
def test_it_is_a_family_of_likelihoods():
    likelihood = ContinuousBernoulli().build({}, jnp.zeros((2, 3, 4)))
    np.testing.assert_array_equal(
        likelihood.log_prob(jnp.ones((3, 4))), np.zeros((2, 3))
    )
    np.testing.assert_allclose(likelihood.mean, 0.5)
    assert likelihood.sample(jax.random.key(0), 5).shape == (5, 2, 3, 4)
