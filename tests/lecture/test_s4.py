"""Notes S4, Monte Carlo and variational inference: one test per row and correction."""

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
    NOISE_VAR,
    WEIGHTS,
    X,
    model_of_weights,
    numpy_gaussian_kl,
    page,
)

import vae_jax
from vae_jax import (
    exact,
    mcmc,
)


def test_S4_1_the_posterior_by_bayes_rule(known):
    precision = np.eye(2) + WEIGHTS.T @ WEIGHTS / NOISE_VAR
    covariance = np.linalg.inv(precision)
    np.testing.assert_allclose(known["posterior_covariance"], covariance)
    means = (X - BIAS) @ WEIGHTS @ covariance / NOISE_VAR
    np.testing.assert_allclose(known["posterior_mean"], means)
    # The ratio of densities at an arbitrary z.
    z = np.array([0.3, -0.4])
    joint = scipy.stats.norm.logpdf(
        X[0], WEIGHTS @ z + BIAS, math.sqrt(NOISE_VAR)
    ).sum()
    joint += scipy.stats.norm.logpdf(z).sum()
    posterior = scipy.stats.multivariate_normal(means[0], covariance).logpdf(z)
    assert joint - known["log_evidence"][0] == pytest.approx(posterior)


@pytest.fixture(scope="module")
def chains(known, linear_vae):
    """States of 50 chains of each sampler on the posterior of the first x."""
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
    """Assert moments, with standard errors from the independent means of the chains."""
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
    """The best q of each x, fitted from a start at the prior."""
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


@pytest.mark.long
def test_S4_4_variational_inference_of_one_x(fitted, known):
    mean, log_var = fitted
    np.testing.assert_allclose(mean, known["posterior_mean"], atol=0.03)
    precision = np.linalg.inv(known["posterior_covariance"])
    np.testing.assert_allclose(np.exp(log_var) * np.diag(precision), 1, atol=0.06)


def test_S4_5_chains_against_variational_inference(chains, fitted, known):
    """Standard deviations are too small for a diagonal q but right for a chain."""
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
    """Across two decoders, the larger ELBO can have the larger KL to its posterior."""
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
    """An amortized q has a larger gap than the best diagonal q of each x."""
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
    amortization = known["gap"] - best  # of an arbitrary q in place of an encoder's
    assert (amortization > 0.01).all()
