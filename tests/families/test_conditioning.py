"""Covariances that float32 can work with, whatever a network says."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from specs import covariance_of

from vae_jax import (
    MLP,
    FullCovarianceGaussian,
    FullGaussian,
    Gaussian,
    Householder,
    InverseAutoregressive,
    Linear,
    LowRankGaussian,
    MixtureOfGaussians,
    ModelSpec,
    StandardNormal,
    bijectors,
    elbo_terms,
    encode,
    exact,
    init,
)
from vae_jax.distributions import (
    DiagonalGaussianDistribution,
    FullGaussianDistribution,
    LowRankGaussianDistribution,
    closed_form_kl,
)
from vae_jax.estimators import path_derivative, reparameterization
from vae_jax.families import bound_covariance, unbound_covariance

CORRELATED = [FullGaussian(), Householder(4), LowRankGaussian(2)]


def extreme_outputs(family, latent_dim):
    """Means of 1, and all pairs of log-variances and entries up to 1e4, `[B, n]`."""
    rng = np.random.default_rng(0)
    count = family.num_outputs(latent_dim) - 2 * latent_dim
    entries = [rng.normal(size=count), np.ones(count), rng.choice([-1, 1], count)]
    log_vars = [
        np.zeros(latent_dim),
        np.full(latent_dim, -1e4),
        rng.choice([-1e4, 1e4], latent_dim),
        10 * rng.normal(size=latent_dim),
        np.where(np.arange(latent_dim) == 0, 1e4, -1e4),
    ]
    rows = [
        np.concatenate([np.ones(latent_dim), log_var, size * each])
        for log_var, each, size in itertools.product(
            log_vars, entries, (0, 1, 4, 30, 1e4)
        )
    ]
    return np.float32(rows)


def assert_near(found, expected):
    """Within 1e-2 nats, and rounding of the value itself."""
    expected = np.float64(expected)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-2)


@pytest.mark.long
@pytest.mark.parametrize("latent_dim", [2, 100])
@pytest.mark.parametrize("family", CORRELATED, ids=repr)
def test_float32_knows_the_density_of_its_own_samples(family, latent_dim, key):
    @jax.jit
    def draw(outputs):
        posterior = family.build({}, outputs)
        z, log_q = posterior.sample_and_log_prob(key, 2)
        return posterior, z, log_q, posterior.log_prob(z)

    @jax.jit
    @jax.grad
    def gradient(outputs):
        """Of all that an estimator may differentiate, of ordinary size."""
        posterior = family.build({}, outputs)
        z, log_q = posterior.sample_and_log_prob(key, 2)
        prior = StandardNormal().build({}, latent_dim=latent_dim, encode=None)
        divergence = closed_form_kl(type(posterior), type(prior))(posterior, prior)
        at_fixed = posterior.log_prob(jax.lax.stop_gradient(z))
        return jnp.sum(log_q) + jnp.sum(at_fixed) + jnp.sum(divergence)

    outputs = extreme_outputs(family, latent_dim)
    posterior, z, log_q, log_prob = draw(outputs)
    assert_near(log_prob, log_q)
    assert np.all(np.isfinite(gradient(outputs)))
    if isinstance(family, LowRankGaussian):  # Both by the same formula: one more.
        assert_near(log_q, low_rank_log_prob(posterior, z))


def low_rank_log_prob(posterior, z):
    """By the singular values of D^-1/2 F, in float64."""
    deviation = np.exp(0.5 * np.float64(posterior.log_var))
    loading = np.float64(posterior.factor) / deviation[..., None]
    left, singular, _ = np.linalg.svd(loading, full_matrices=False)
    v = (np.float64(z) - np.float64(posterior.mean)) / deviation
    along = np.einsum("blr,sbl->sbr", left, v)
    rest = v - np.einsum("blr,sbr->sbl", left, along)
    squares = np.sum(rest**2, -1) + np.sum(along**2 / (1 + singular**2), -1)
    log_det = np.sum(np.log(deviation), -1) + 0.5 * np.log1p(singular**2).sum(-1)
    return -0.5 * (squares + v.shape[-1] * np.log(2 * np.pi)) - log_det


def test_every_well_conditioned_covariance_is_in_reach():
    size = 60
    distance = np.abs(np.subtract.outer(np.arange(size), np.arange(size)))
    root = np.random.default_rng(0).normal(size=(size, 2 * size))
    scales = np.geomspace(1e-2, 1e2, size)
    for wanted in (
        0.95**distance,
        np.where(distance == 0, 1, 0.99),
        root @ root.T * np.outer(scales, scales),
        np.array([[1, 0.999], [0.999, 1]]) * np.outer([0.1, 3], [0.1, 3]),
    ):
        raw = unbound_covariance(wanted)
        scale = np.sqrt(np.outer(np.diag(wanted), np.diag(wanted)))
        np.testing.assert_allclose(covariance_of(*raw) / scale, wanted / scale, 1e-8)
        factor = np.float64(bound_covariance(*map(jnp.float32, raw)))
        found = factor @ factor.T / scale
        np.testing.assert_allclose(found, wanted / scale, atol=1e-5)


def test_small_entries_are_correlations_and_none_are_a_diagonal():
    raw = np.float32([0.3, -1.0, 2.0])
    found = bound_covariance(raw, jnp.zeros(3))
    expected = np.diag(np.exp(8.5 * np.tanh(raw / 17)))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    small = np.float32([0.01, -0.02, 0.03])
    factor = np.asarray(bound_covariance(jnp.zeros(3), small))
    below = (factor @ factor.T)[np.tril_indices(3, -1)]
    np.testing.assert_allclose(below, small / np.sqrt(3), atol=1e-3)


SPEC = ModelSpec(
    Linear(),
    Linear(),
    posterior=FullGaussian(),
    likelihood=Gaussian(),
    latent_dim=20,
    data_shape=(4,),
)


@pytest.mark.long
@pytest.mark.parametrize("size", [4.0, 1e4])
def test_an_encoder_that_couples_strongly_stays_below_the_evidence(size, key):
    """All three forms of the ELBO, by each estimator, against the exact log p(x)."""
    params = init(SPEC, jax.random.key(0))
    kernel = size * params.encoder["output"]["kernel"].at[:, :20].set(0.0)
    params = params.replace(encoder={"output": {"kernel": kernel, "bias": kernel[0]}})
    x = jax.random.normal(jax.random.key(1), (6, 4))

    @jax.jit
    def figures(params):
        def total(params, kl, estimator):
            options = {"kl": kl, "estimator": estimator, "num_samples": 64}
            terms = elbo_terms(params, x, key, **options)
            return terms.elbo.sum(), terms.elbo

        ways = [
            ("analytic", reparameterization),
            ("monte_carlo", reparameterization),
            ("monte_carlo", path_derivative),
        ]
        return [jax.grad(total, has_aux=True)(params, *way) for way in ways]

    found = figures(params)
    evidence = exact.log_evidence(exact.linear_gaussian(params), x)
    for gradient, values in found:
        assert np.all(np.asarray(values) < np.asarray(evidence) + 1)
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))
    np.testing.assert_allclose(found[2][1], found[1][1], rtol=1e-5, atol=1e-2)


@pytest.mark.long
@pytest.mark.parametrize("full_covariance", [False, True])
def test_a_mixture_prior_knows_the_density_of_its_own_draws(full_covariance, key):
    prior = MixtureOfGaussians(1, full_covariance)
    own = prior.init(key, latent_dim=50, data_shape=(1,))
    own = {
        name: jnp.float32(1e4 if name == "log_var" else 30)
        * jax.random.normal(jax.random.key(3), leaf.shape)
        for name, leaf in own.items()
    }
    mixture = prior.build(own, latent_dim=50, encode=None)
    draws = mixture.sample(key, 200)[:, 0]
    found = mixture.log_prob(draws[None])[0]
    mean, raw = np.float64(own["mean"][0]), np.float64(own["log_var"][0])
    if not full_covariance:
        deviation = np.exp(10 * np.tanh(raw / 20))
        expected = scipy.stats.norm.logpdf(draws, mean, deviation).sum(-1)
        return assert_near(found, expected)
    factor = np.linalg.cholesky(covariance_of(raw, own["below"][0]))
    log_det = np.sum(np.log(np.diagonal(factor)))
    # The squares of 50 standard normal variables.
    chi_square = -2 * (np.float64(found) + log_det) - 50 * np.log(2 * np.pi)
    error = np.sqrt(2 * 50 / 200)
    assert abs(chi_square.mean() - 50) < 5 * error


def test_a_full_covariance_likelihood_draws_from_its_own_density(key):
    """Whitened by the precision, in float64, its draws are standard normal."""
    family, shape = FullCovarianceGaussian(), (40, 1)
    outputs = 30 * jax.random.normal(key, (*shape, family.num_outputs(30)))
    outputs = outputs.at[..., :30].set(1.0)
    likelihood = family.build({}, outputs)
    draws = np.float64(likelihood.sample(jax.random.key(1), 1)[0]) - 1.0
    factor = np.float64(likelihood.precision_tril)
    noise = np.einsum("sbij,sbi->sbj", factor, draws)
    assert abs(np.mean(noise**2) - 1) < 5 * np.sqrt(2 / noise.size)
    condition = np.linalg.cond(factor / np.linalg.norm(factor, axis=-1)[..., None])
    assert condition.max() < 1e3


def test_divergences_of_correlated_gaussians_are_numpys_and_not_negative():
    """To a prior that is the posterior itself but for rounding, and to another."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.float32(rng.normal(size=shape))

    full, low = (
        closed_form_kl(kind, DiagonalGaussianDistribution)
        for kind in (FullGaussianDistribution, LowRankGaussianDistribution)
    )
    mean, log_var, zero = normal(1000, 3), normal(1000, 3), jnp.zeros((1000, 3))
    for size in (0.0, 1e-6, 1e-3):
        q = FullGaussianDistribution(mean, log_var, size * normal(1000, 3))
        near = full(q, DiagonalGaussianDistribution(mean, log_var))
        assert np.all(np.asarray(near) >= 0) and np.all(np.asarray(near) < 1e-3)
        q = LowRankGaussianDistribution(zero, zero, np.sqrt(size) * normal(1000, 3, 2))
        standard = DiagonalGaussianDistribution(zero[:1], zero[:1])
        assert np.all(np.asarray(low(q, standard)) >= 0)
    q = FullGaussianDistribution(mean, log_var, normal(1000, 3))
    found = full(q, DiagonalGaussianDistribution(zero[:1], log_var[:1]))
    factor, variance = np.float64(q.scale_tril), np.exp(np.float64(log_var[0]))
    squares = np.sum(factor**2, -1) + np.float64(mean) ** 2
    log_ratio = np.log(variance).sum() - 2 * np.linalg.slogdet(factor)[1]
    expected = 0.5 * (np.sum(squares / variance, -1) - 3 + log_ratio)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_log_determinant_of_a_step_is_known_where_it_is_flat():
    """At tanh(9.5), whose square float32 takes for 1: 1 + slope * w'u by NumPy."""
    for at in (7.5, 8.5, 9.5, 11.0):
        z = jnp.float32([[[at, 0.0]]])
        direction, normal = jnp.float32([[1e8, 0.0]]), jnp.float32([[1.0, 0.0]])
        _, found = bijectors.planar(z, direction, normal, jnp.zeros(1, jnp.float32))
        expected = np.log1p(1e8 / np.cosh(at) ** 2)
        np.testing.assert_allclose(found[0, 0], expected, rtol=1e-4)


@pytest.mark.long
def test_the_gates_of_an_inverse_autoregressive_flow_do_not_close(key):
    family = InverseAutoregressive(num_steps=2, hidden_dim=8, context_dim=3)
    own = family.init(jax.random.key(0), dim=4)
    outputs = 1e4 * jax.random.normal(key, (16, family.num_outputs(4)))
    z, log_q = family.build(own, outputs).sample_and_log_prob(key, 4)
    # Densest at the start: 4 * (10 - log(2 pi) / 2); each gate adds 20 at most.
    assert np.all(np.isfinite(z)) and np.asarray(log_q).max() < 4 * (10 + 2 * 20)


@pytest.mark.long
def test_a_fresh_encoder_starts_near_a_diagonal_covariance():
    """A fifth of a nat a latent of total correlation, however many pairs there are."""
    spec = ModelSpec(
        MLP((8,)), Linear(), posterior=FullGaussian(), latent_dim=50, data_shape=(30,)
    )
    q = encode(
        init(spec, jax.random.key(1)), jax.random.uniform(jax.random.key(0), (20, 30))
    )
    factor = np.float64(q.scale_tril)
    rows = factor / np.linalg.norm(factor, axis=-1, keepdims=True)
    correlation = -np.linalg.slogdet(rows)[1]
    assert np.all(correlation > 0) and correlation.mean() < 0.2 * 50
