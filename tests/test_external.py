"""Functions in the place of networks: the same figures, and exact ones, by them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from jax.tree_util import Partial

import vae_jax
from vae_jax import (
    ClassConditionalPrior,
    Conditions,
    FactorizedBernoulli,
    Gaussian,
    ModelSpec,
    checkpoint,
    exact,
    replace_networks,
)
from vae_jax.calibration import simulation_ranks
from vae_jax.distributions import (
    BernoulliDistribution,
    DiagonalGaussianDistribution,
    FullGaussianDistribution,
)
from vae_jax.mcmc import metropolis_hastings, posterior_samples, random_walk

RNG = np.random.default_rng(3)
WEIGHTS, BIAS, NOISE_VAR = RNG.normal(size=(4, 2)), RNG.normal(size=4), 0.3
X = RNG.normal(size=(5, 4))
KEY = jax.random.key(1)


def linear(weights, inputs):
    return inputs @ weights["kernel"] + weights["bias"]


def posterior(weights, x):
    mean, log_var = jnp.split(linear(weights, x), 2, axis=-1)
    return DiagonalGaussianDistribution(mean, 20 * jnp.tanh(log_var / 20))


def likelihood(weights, z):
    mean = linear(weights, z)
    return DiagonalGaussianDistribution(mean, jnp.full_like(mean, np.log(NOISE_VAR)))


@pytest.fixture
def usual(x64):
    """A linear model of the library's networks."""
    return exact.linear_vae(exact.LinearGaussian(*map(jnp.array, (WEIGHTS, BIAS, 0.3))))


@pytest.fixture
def own(usual):
    """The same by functions; the networks' weights are not there any more."""
    return replace_networks(
        usual,
        posterior=Partial(posterior, usual.encoder["output"]),
        likelihood=Partial(likelihood, usual.decoder["output"]),
    )


FUNCTIONS = {
    "elbo": vae_jax.elbo,
    "importance_weighted_bound": partial(
        vae_jax.importance_weighted_bound, num_samples=3
    ),
    "partially_importance_weighted_bound": partial(
        vae_jax.partially_importance_weighted_bound, num_samples=4, num_groups=2
    ),
    "log_evidence": partial(vae_jax.log_evidence, num_samples=30),
    "annealed_log_evidence": partial(
        vae_jax.annealed_log_evidence, num_chains=2, num_temperatures=4, num_leapfrog=2
    ),
    "posterior_samples": partial(
        posterior_samples,
        num_chains=2,
        num_samples=4,
        num_warmup=4,
        sampler=partial(metropolis_hastings, proposal=random_walk(0.5)),
    ),
    "active_units": vae_jax.active_units,
    "posterior_predictive": partial(vae_jax.posterior_predictive, num_replications=3),
    "reconstruct": partial(vae_jax.reconstruct, sample=True),
}


@pytest.mark.long
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_of_the_library_take_them(usual, own, name):
    """Equal to the figures of the networks up to rounding."""
    function = jax.jit(FUNCTIONS[name])
    expected, found = (function(params, X, KEY) for params in (usual, own))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9), found, expected)


@pytest.mark.long
def test_calibration_and_generation_take_them(usual, own):
    for function in (
        partial(simulation_ranks, num_simulations=10, num_draws=9),
        partial(vae_jax.generate, num_samples=3, sample=True),
    ):
        expected, found = (jax.jit(function)(params, KEY) for params in (usual, own))
        np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.long
def test_an_exact_posterior_of_ones_own_makes_a_bound_of_one_sample_exact(usual):
    """Any weight is p(x) then, which SciPy knows; a decoder alone is from outside."""
    model = exact.linear_gaussian(usual)

    def exact_posterior(x):
        mean, covariance = exact.posterior(model, x)
        scale = jnp.linalg.cholesky(covariance)
        return FullGaussianDistribution.from_factor(mean, scale[None])

    params = replace_networks(usual, posterior=exact_posterior)
    covariance = WEIGHTS @ WEIGHTS.T + NOISE_VAR * np.eye(4)
    expected = scipy.stats.multivariate_normal(BIAS, covariance).logpdf(X)
    found = vae_jax.importance_weighted_terms(params, X, KEY, num_samples=1)
    np.testing.assert_allclose(found.bound, expected, rtol=1e-9)
    np.testing.assert_allclose(
        vae_jax.elbo(params, X, KEY, kl="monte_carlo"), expected.mean(), rtol=1e-9
    )


@pytest.mark.long
def test_weights_are_trained_and_arrays_of_closures_are_not(usual, own):
    gradients = jax.grad(vae_jax.elbo)(own, X, KEY)
    expected = jax.grad(vae_jax.elbo)(usual, X, KEY)
    for name in ("encoder", "decoder"):
        found, wanted = (
            jax.tree.leaves(getattr(g, name)) for g in (gradients, expected)
        )
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9), found, wanted)
    constant = partial(posterior, usual.encoder["output"])
    closed = replace_networks(usual, posterior=constant)
    assert not jax.tree.leaves(closed.encoder)
    options = {"num_epochs": 3, "optimizer": optax.adam(1e-2), "batch_size": 5}
    trained = [
        vae_jax.fit(params, X, KEY, **options).history["objective"]
        for params in (usual, own)
    ]
    np.testing.assert_allclose(*trained, rtol=1e-9)


def test_leaves_that_are_no_arrays_are_static(usual):
    """A module of Equinox has its activation among the leaves."""

    def activated(weights, activation, x):
        return posterior(weights, activation(x))

    weights = usual.encoder["output"]
    params = replace_networks(usual, posterior=Partial(activated, weights, jnp.tanh))
    found = jax.jit(vae_jax.encode)(params, X).mean
    expected = posterior(weights, np.tanh(X)).mean
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert len(jax.tree.leaves(params.encoder)) == 2


@pytest.mark.long
def test_labels_covariates_and_exposures_reach_them():
    spec = ModelSpec(
        prior=ClassConditionalPrior(2),
        likelihood=vae_jax.Exposed(vae_jax.Poisson()),
        latent_dim=2,
        data_shape=(3,),
        num_classes=2,
        num_covariates=1,
    )

    def own_posterior(x, *, labels):
        assert labels.exposure is None
        mean = jnp.concatenate([labels.labels[:, :1], labels.covariates], axis=-1)
        return DiagonalGaussianDistribution(mean, jnp.zeros_like(mean))

    def own_likelihood(z, *, labels):
        rates = jnp.ones((*z.shape[:-1], 3)) * labels.exposure[:, None]
        return vae_jax.distributions.PoissonDistribution(rates)

    params = replace_networks(
        vae_jax.init(spec, KEY), posterior=own_posterior, likelihood=own_likelihood
    )
    x, given = jnp.array([[0.0, 1, 2], [3, 0, 1]]), (jnp.array([0, 1]), [[5.0], [7.0]])
    labels = Conditions(given[0], jnp.array(given[1]), jnp.array([2.0, 3.0]))
    mean = vae_jax.encode(params, x, labels=labels).mean
    np.testing.assert_array_equal(mean, [[1, 5], [0, 7]])
    found = vae_jax.elbo_terms(params, x, KEY, labels=labels).log_likelihood
    expected = scipy.stats.poisson([[2.0], [3.0]]).logpmf(x).sum(axis=-1)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    with pytest.raises(ValueError, match="needs labels"):
        vae_jax.encode(params, x)
    with pytest.raises(ValueError, match="needs exposures"):
        vae_jax.decode(
            params, jnp.zeros((1, 2, 2)), labels=labels._replace(exposure=None)
        )


GAUSSIAN = DiagonalGaussianDistribution
REFUSED = {
    "no distribution": (lambda x: x, "must build a distribution, got"),
    "another number of latents": (
        lambda x: GAUSSIAN(x, x),
        r"mean is \[5, 2\], got DiagonalGaussianDistribution with \[5, 4\]",
    ),
    "no batch": (lambda x: GAUSSIAN(x[0, :2], x[0, :2]), r"mean is \[5, 2\]"),
    "a variance without batch": (
        lambda x: GAUSSIAN(x[:, :2], x[0, :2]),
        r"arrays \[5, ...\] or \[1, ...\] of 5 examples, got one of \[2\]",
    ),
    "bits": (lambda x: BernoulliDistribution(x[:, :2]), "latents are discrete"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_posteriors_of_another_shape_are_refused(usual, case):
    function, message = REFUSED[case]
    params = replace_networks(usual, posterior=function)
    with pytest.raises(ValueError, match=message):
        vae_jax.elbo(params, X, KEY)


def test_likelihoods_of_another_shape_and_others_are_refused(usual, tmp_path):
    def of_one_dimension(z):
        return GAUSSIAN(z[..., :1], z[..., :1])

    params = replace_networks(usual, likelihood=of_one_dimension)
    with pytest.raises(ValueError, match=r"likelihood must .* \[1, 5, 4\], got"):
        vae_jax.elbo(params, X, KEY)
    with pytest.raises(ValueError, match="decoder of the library"):
        exact.linear_gaussian(params)
    with pytest.raises(ValueError, match="likelihood of replace_networks is code"):
        vae_jax.save_run(tmp_path / "run", params)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="likelihood of replace_networks has none"):
        vae_jax.check(params, X, KEY)
    with pytest.raises(ValueError, match="posterior must be a function, got"):
        replace_networks(usual, posterior=vae_jax.encode(usual, X))


def test_bits_are_taken_where_the_model_has_bits():
    spec = ModelSpec(
        posterior=FactorizedBernoulli(),
        prior=vae_jax.FactorizedBernoulliPrior(),
        likelihood=Gaussian(),
        latent_dim=2,
        data_shape=(4,),
    )
    usual = vae_jax.init(spec, KEY)
    params = replace_networks(usual, posterior=lambda x: vae_jax.encode(usual, x))
    x = jnp.asarray(X, jnp.float32)
    score = vae_jax.estimators.score_function
    found, expected = (
        vae_jax.elbo(model, x, KEY, estimator=score) for model in (params, usual)
    )
    assert found == expected


def test_a_state_with_functions_is_restored_into_the_same_functions_only(own, tmp_path):
    """Their code is in no checkpoint, so that nothing else could call the weights."""
    state = vae_jax.init_state(own, KEY, optimizer=optax.adam(1e-3))
    checkpoint.save(tmp_path / "run" / "3", state, spec=own.spec)
    found, _ = checkpoint.restore_state(tmp_path / "run" / "3", state)
    same = (vae_jax.elbo(each.params, X, KEY) for each in (state, found))
    np.testing.assert_array_equal(*same)
    with pytest.raises(ValueError, match="the checkpoint has no state.params.encoder"):
        checkpoint.restore(tmp_path / "run" / "3")
