"""p(z) against SciPy, and the registry of closed-form divergences."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from sklearn.mixture import GaussianMixture
from specs import random_params

from vae_jax import (
    MLP,
    DiagonalGaussian,
    DiagonalGaussianPrior,
    FactorizedBernoulliPrior,
    Linear,
    MixtureOfGaussians,
    ModelSpec,
    StandardNormal,
    VampPrior,
    elbo,
    elbo_terms,
    encode,
    log_prior,
    register_kl,
)
from vae_jax.distributions import (
    BernoulliDistribution,
    DiagonalGaussianDistribution,
    MixtureDistribution,
    PointMassDistribution,
    closed_form_kl,
    divergence,
    unit_kl,
)
from vae_jax.model import build_prior
from vae_jax.types import Distribution


def built(prior, params=None, latent_dim=3):
    """The distribution that a prior without an encoder builds."""
    return prior.build(params or {}, latent_dim=latent_dim, encode=None)


@pytest.fixture
def registry(monkeypatch):
    """A registry that forgets what a test registers."""
    forms = dict(divergence._closed_forms)
    monkeypatch.setattr(divergence, "_closed_forms", forms)


def test_standard_normal_log_prob_is_scipys():
    z = np.random.default_rng(0).normal(size=(5, 4, 3)).astype(np.float32)
    actual = built(StandardNormal()).log_prob(z)
    expected = scipy.stats.multivariate_normal(np.zeros(3)).logpdf(z)
    assert actual.shape == (5, 4)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_standard_normal_samples_have_the_moments(key, assert_mean):
    z = np.asarray(built(StandardNormal()).sample(key, 20_000)[:, 0])
    assert z.shape == (20_000, 3)
    assert_mean(z, 0.0)
    assert_mean(z**2, 1.0)
    assert_mean(z[:, [0, 1, 2]] * z[:, [1, 2, 0]], 0.0)


def test_the_closed_form_is_the_mean_of_the_log_ratio(key, assert_mean):
    """KL(q || p) = E_q[log q(z) - log p(z)], from samples alone."""
    mean, log_var = np.random.default_rng(1).normal(size=(2, 4, 3)).astype(np.float32)
    posterior = DiagonalGaussianDistribution(jnp.asarray(mean), jnp.asarray(log_var))
    prior = built(StandardNormal())
    expected = closed_form_kl(type(posterior), type(prior))(posterior, prior)
    assert expected.shape == (4,) and jnp.all(expected > 0)

    @jax.jit
    def log_ratio(key):
        z, log_q = posterior.sample_and_log_prob(key, 10_000)
        return log_q - prior.log_prob(z)

    assert_mean(log_ratio(key), expected)


# Learned priors

MEAN, LOG_VAR = np.random.default_rng(2).normal(size=(2, 3)).astype(np.float32)
LOGITS = np.float32([-1.4, 0.3, 2.1])
LEARNED = {
    "gaussian": (
        DiagonalGaussianPrior(),
        {"mean": MEAN, "log_var": LOG_VAR},
        scipy.stats.norm(MEAN, np.exp(LOG_VAR / 2)),
    ),
    "bernoulli": (
        FactorizedBernoulliPrior(),
        {"logits": LOGITS},
        scipy.stats.bernoulli(scipy.special.expit(LOGITS)),
    ),
}


@pytest.mark.parametrize("name", LEARNED)
def test_a_learned_prior_is_scipys(name, key, assert_mean):
    prior, params, reference = LEARNED[name]
    prior = built(prior, params)
    z = np.asarray(jax.jit(lambda: prior.sample(key, 20_000))()[:, 0])
    assert z.shape == (20_000, 3)
    assert_mean(z, reference.mean())
    assert_mean((z - reference.mean()) ** 2, reference.var())
    assert_mean(np.prod(z - reference.mean(), axis=-1), 0.0)
    z = z[:20].reshape(5, 4, 3)
    log_density = getattr(reference, "logpdf", getattr(reference, "logpmf", None))
    actual = prior.log_prob(z)
    assert actual.shape == (5, 4)
    np.testing.assert_allclose(actual, log_density(z).sum(axis=-1), rtol=1e-5)


def test_learned_priors_begin_where_nothing_is_known(key):
    options = {"latent_dim": 3, "data_shape": (5,)}
    params = DiagonalGaussianPrior().init(key, **options)
    z = np.random.default_rng(0).normal(size=(5, 4, 3)).astype(np.float32)
    expected = built(StandardNormal()).log_prob(z)
    actual = built(DiagonalGaussianPrior(), params).log_prob(z)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)
    params = FactorizedBernoulliPrior().init(key, **options)
    bits = (z > 0).astype(np.float32)
    actual = built(FactorizedBernoulliPrior(), params).log_prob(bits)
    np.testing.assert_allclose(actual, np.full((5, 4), -3 * np.log(2)), rtol=1e-6)
    for prior in (DiagonalGaussianPrior(), FactorizedBernoulliPrior()):
        shapes = [leaf.shape for leaf in jax.tree.leaves(prior.init(key, **options))]
        assert set(shapes) == {(3,)} and prior.hyperparameters == ()


def test_the_divergence_from_a_learned_gaussian_is_scipys_expectation():
    """KL(q || p) = -H(q) - E_q[log p], by SciPy's quadrature in each dimension."""
    mean, log_var = np.random.default_rng(3).normal(size=(2, 4, 3)).astype(np.float32)
    prior, params, reference = LEARNED["gaussian"]
    posterior, prior = DiagonalGaussianDistribution(mean, log_var), built(prior, params)
    actual = closed_form_kl(type(posterior), type(prior))(posterior, prior)
    nodes, weights = np.polynomial.hermite_e.hermegauss(8)
    weights = weights / weights.sum()
    deviation = np.exp(log_var / 2)
    z = mean + deviation * nodes[:, None, None]
    log_ratio = scipy.stats.norm.logpdf(z, mean, deviation) - reference.logpdf(z)
    expected = np.tensordot(weights, log_ratio, axes=1).sum(axis=-1)
    assert actual.shape == (4,)
    np.testing.assert_allclose(actual, expected, rtol=1e-4)


def test_the_divergence_from_learned_coins_is_the_sum_over_states():
    logits = np.random.default_rng(4).normal(size=(4, 3)).astype(np.float32)
    prior, params, reference = LEARNED["bernoulli"]
    posterior, prior = BernoulliDistribution(jnp.asarray(logits)), built(prior, params)
    actual = closed_form_kl(type(posterior), type(prior))(posterior, prior)
    q = scipy.stats.bernoulli(scipy.special.expit(np.float64(logits)))
    terms = [np.exp(q.logpmf(b)) * (q.logpmf(b) - reference.logpmf(b)) for b in (0, 1)]
    assert actual.shape == (4,)
    np.testing.assert_allclose(actual, np.sum(terms, axis=(0, -1)), rtol=1e-5)


def test_no_closed_form_crosses_between_bits_and_gaussians():
    pair = BernoulliDistribution, DiagonalGaussianDistribution
    assert closed_form_kl(*pair) is closed_form_kl(*pair[::-1]) is None
    assert closed_form_kl(DiagonalGaussianDistribution, MixtureDistribution) is None


def test_the_divergence_of_a_point_mass_is_zero_by_definition():
    posterior = PointMassDistribution(jnp.ones((4, 3)))
    for prior in (built(StandardNormal()), 0):
        closed_form = closed_form_kl(PointMassDistribution, type(prior))
        np.testing.assert_array_equal(closed_form(posterior, prior), np.zeros(4))


def test_an_unknown_pair_has_no_closed_form():
    assert closed_form_kl(DiagonalGaussianDistribution, int) is None
    assert closed_form_kl(int, DiagonalGaussianDistribution) is None


def test_a_registered_pair_is_found_before_any_prior(registry):
    class Posterior(Distribution): ...

    class Prior(Distribution): ...

    def general(q, p): ...

    def special(q, p): ...

    assert register_kl(Posterior, object)(general) is general
    assert closed_form_kl(Posterior, Prior) is general
    register_kl(Posterior, Prior)(special)
    assert closed_form_kl(Posterior, Prior) is special
    assert closed_form_kl(Posterior, DiagonalGaussianDistribution) is general


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ShiftedByThree(DiagonalGaussianDistribution):
    """A subclass with another density."""

    mean: jax.Array
    log_var: jax.Array

    def log_prob(self, value):
        return super().log_prob(value - 3)


@dataclass(frozen=True)
class NormalAtThree(StandardNormal):
    """A prior of the user's own: N(3, I), by way of the library's N(0, I)."""

    def build(self, prior_params, *, latent_dim, encode):
        at_zero = super().build(prior_params, latent_dim=latent_dim, encode=encode)
        return ShiftedByThree(at_zero.mean, at_zero.log_var)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class HalfAsWide(DiagonalGaussianDistribution):
    """A posterior of the user's own, N(mean, exp(log_var) / 4)."""

    mean: jax.Array
    log_var: jax.Array

    def sample_and_log_prob(self, key, num_samples):
        narrow = DiagonalGaussianDistribution(self.mean, self.log_var - 2 * np.log(2))
        return narrow.sample_and_log_prob(key, num_samples)


@dataclass(frozen=True)
class NarrowGaussian(DiagonalGaussian):
    def build(self, params, outputs):
        q = super().build(params, outputs)
        return HalfAsWide(q.mean, q.log_var)


@pytest.mark.parametrize(
    "changes, location, width",
    [({"prior": NormalAtThree()}, 3, 1), ({"posterior": NarrowGaussian()}, 0, 0.5)],
    ids=["prior", "posterior"],
)
def test_a_subclass_with_another_density_has_another_kl(changes, location, width):
    """KL(q || p) = E_q[log q - log p] by quadrature; its parents' is another."""
    spec = ModelSpec(Linear(), Linear(), latent_dim=2, data_shape=(3,), **changes)
    params = jax.tree.map(jnp.asarray, random_params(spec))
    x = jnp.tile(jnp.array([[0.0, 1.0, 1.0]]), (2000, 1))
    kl = jax.jit(elbo_terms)(params, x, jax.random.key(0)).kl_divergence
    posterior = encode(params, x[:1])
    mean = np.asarray(posterior.mean, float)[0]
    deviation = width * np.exp(np.asarray(posterior.log_var, float)[0] / 2)
    nodes, weights = np.polynomial.hermite_e.hermegauss(8)
    z = mean + deviation * nodes[:, None]
    log_ratio = scipy.stats.norm.logpdf(z, mean, deviation)
    log_ratio = log_ratio - scipy.stats.norm.logpdf(z, location)
    expected = np.sum(weights / weights.sum() @ log_ratio)
    error = np.std(kl, ddof=1) / np.sqrt(len(kl))
    assert abs(np.mean(kl) - expected) < 5 * error, (np.mean(kl), expected, error)


def test_a_subclass_has_the_closed_form_it_registers(registry):
    pair = DiagonalGaussianDistribution, ShiftedByThree
    assert closed_form_kl(*pair) is None
    closed_form = closed_form_kl(pair[0], pair[0])
    register_kl(*pair)(closed_form)
    assert closed_form_kl(*pair) is closed_form
    q = DiagonalGaussianDistribution(jnp.array([[0.0, 2.0]]), jnp.zeros((1, 2)))
    p = ShiftedByThree(jnp.zeros((1, 2)), jnp.zeros((1, 2)))
    with pytest.raises(ValueError, match="the KL of a unit is known for factorized"):
        unit_kl(q, p)
    register_kl(*pair, factorized=True)(closed_form)
    np.testing.assert_array_equal(unit_kl(q, p), [[0, 2]])


@pytest.mark.parametrize("name", LEARNED)
def test_the_divergences_of_the_units_add_up(name):
    prior, params, _ = LEARNED[name]
    prior = built(prior, params)
    leaves = np.random.default_rng(8).normal(size=(2, 4, 3)).astype(np.float32)
    posterior = type(prior)(*leaves[: len(jax.tree.leaves(prior))])
    total = closed_form_kl(type(posterior), type(prior))(posterior, prior)
    found = unit_kl(posterior, prior)
    assert found.shape == (4, 3)
    np.testing.assert_allclose(found.sum(axis=-1), total, rtol=1e-5)


MIXTURE = MixtureOfGaussians(3)


def mixture_params():
    rng = np.random.default_rng(2)
    shapes = {"logits": (3,), "mean": (3, 2), "log_var": (3, 2)}
    return {name: rng.normal(size=shape).astype("f") for name, shape in shapes.items()}


def test_a_mixture_is_scikit_learns():
    params = mixture_params()
    oracle = GaussianMixture(3, covariance_type="diag")
    oracle.weights_ = scipy.special.softmax(params["logits"].astype(float))
    oracle.means_ = params["mean"].astype(float)
    oracle.covariances_ = np.exp(20 * np.tanh(params["log_var"].astype(float) / 20))
    oracle.precisions_cholesky_ = oracle.covariances_**-0.5
    z = np.random.default_rng(3).normal(size=(4, 5, 2)).astype("f")
    found = built(MIXTURE, params, 2).log_prob(jnp.asarray(z))
    expected = oracle.score_samples(z.reshape(-1, 2).astype(float)).reshape(4, 5)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_draws_of_a_mixture_have_its_moments(assert_mean):
    params = mixture_params()
    mixture = built(MIXTURE, params, 2)
    draws = np.asarray(mixture.sample(jax.random.key(4), 50_000)[:, 0])
    weights = scipy.special.softmax(params["logits"])[:, None]
    mean = np.sum(weights * params["mean"], axis=0)
    assert_mean(draws, mean)
    assert mixture.mean_is_exact
    np.testing.assert_allclose(mixture.mean, mean[None], rtol=1e-5)
    variance = np.exp(20 * np.tanh(params["log_var"] / 20))
    second = np.sum(weights * (params["mean"] ** 2 + variance), axis=0)
    assert_mean(draws**2, second)


@pytest.fixture(scope="module")
def vamp():
    spec = ModelSpec(
        encoder=MLP((4,)),
        decoder=MLP((4,)),
        prior=VampPrior(3),
        latent_dim=2,
        data_shape=(5,),
    )
    return jax.tree.map(jnp.asarray, random_params(spec))


def test_a_vampprior_is_the_mixture_of_posteriors_at_its_pseudo_inputs(vamp):
    inputs = 1 / (1 + np.exp(-np.asarray(vamp.prior["pseudo_inputs"], float)))
    posterior = encode(vamp, jnp.asarray(inputs, jnp.float32))
    mean, scale = np.asarray(posterior.mean), np.exp(0.5 * posterior.log_var)
    z = np.random.default_rng(5).normal(size=(4, 6, 2)).astype("f")
    each = scipy.stats.norm(mean, scale).pdf(z[:, :, None]).prod(axis=-1)
    found = log_prior(vamp, jnp.asarray(z))
    np.testing.assert_allclose(found, np.log(each.mean(axis=-1)), rtol=1e-4)


def test_draws_of_a_vampprior_have_its_moments(vamp, assert_mean):
    draws = np.asarray(build_prior(vamp).sample(jax.random.key(6), 50_000)[:, 0])
    posterior = encode(vamp, jax.nn.sigmoid(vamp.prior["pseudo_inputs"]))
    assert_mean(draws, posterior.mean.mean(axis=0))
    second = posterior.mean**2 + np.exp(posterior.log_var)
    assert_mean(draws**2, second.mean(axis=0))


def test_an_elbo_with_a_vampprior_trains_pseudo_inputs_and_estimates_its_kl(vamp):
    x = np.random.default_rng(0).integers(0, 2, (4, 5)).astype("f")
    key = jax.random.key(7)

    @jax.jit
    def figures(params):
        z, log_q = encode(params, x).sample_and_log_prob(key, 1)
        by_hand = (log_q - log_prior(params, z))[0]
        kl = elbo_terms(params, x, key).kl_divergence
        return kl, by_hand, jax.grad(elbo)(params, x, key)

    kl, expected, gradient = figures(vamp)
    np.testing.assert_allclose(kl, expected, rtol=1e-4, atol=1e-5)
    assert np.any(gradient.prior["pseudo_inputs"])
    with pytest.raises(ValueError, match="no closed form is registered"):
        elbo_terms(vamp, x, key, kl="analytic")
