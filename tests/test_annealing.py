"""Annealing against known evidence: unbiased whatever the settings, tight at good ones.

The crude settings are the severe test: few temperatures and long steps, at which a
forgotten rejection or a wrong increment cannot hide.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from specs import SPECS, random_params

from vae_jax import (
    MLP,
    FactorizedBernoulli,
    FactorizedBernoulliPrior,
    HierarchicalGaussian,
    HierarchicalGaussianPrior,
    MixtureOfGaussians,
    ModelSpec,
    StandardNormal,
    StochasticLayer,
    VampPrior,
    exact,
)
from vae_jax.annealing import (
    annealed_log_evidence,
    bidirectional_log_evidence,
    reverse_annealed_log_evidence,
    sigmoid_schedule,
)
from vae_jax.distributions import DiagonalGaussianDistribution

SETTINGS = ("num_examples", "num_chains", "num_temperatures", "num_leapfrog")
forward, reverse, bidirectional = (
    jax.jit(function, static_argnames=SETTINGS[start:])
    for start, function in (
        (1, annealed_log_evidence),
        (1, reverse_annealed_log_evidence),
        (0, bidirectional_log_evidence),
    )
)
CRUDE = {
    "num_chains": 10,
    "num_temperatures": 12,
    "num_leapfrog": 2,
    "initial_step_size": 1.3,
}
COPIES = 2000
QUADRATURE = jax.jit(functools.partial(exact.quadrature_log_evidence, num_points=120))


def test_schedule_rises_from_0_to_1_and_is_its_own_mirror_image():
    schedule = np.float64(sigmoid_schedule(10))
    assert schedule.shape == (11,) and (schedule[0], schedule[-1]) == (0, 1)
    assert np.all(np.diff(schedule) > 0)
    np.testing.assert_allclose(schedule, 1 - schedule[::-1], atol=1e-6)
    # Wu et al. 2017: sigmoid(delta (2 k / K - 1)), moved and scaled.
    curve = 1 / (1 + np.exp(-4 * (2 * np.arange(11) / 10 - 1)))
    expected = (curve - curve[0]) / (curve[-1] - curve[0])
    np.testing.assert_allclose(schedule, expected, atol=1e-6)


@pytest.mark.long
def test_forward_weight_is_unbiased_and_its_log_a_lower_bound(
    linear_gaussian, key, assert_mean
):
    x, evidence = linear_gaussian.x[:3], linear_gaussian.log_evidence[:3]
    x = np.tile(x, (COPIES, 1))
    found = forward(linear_gaussian.params, x, key, first=0, **CRUDE)
    assert {leaf.dtype for leaf in found} == {jnp.dtype("float64")}
    excess = np.asarray(found.estimate).reshape(COPIES, 3) - evidence
    assert 0.2 < np.mean(found.acceptance_rate) < 0.9, "rejection is not put to a test"
    assert_mean(np.exp(excess), np.ones(3))
    error = excess.std(axis=0) / np.sqrt(COPIES)
    assert np.all(excess.mean(axis=0) < -5 * error), "no gap: the settings are too good"
    claimed = np.asarray(found.standard_error).reshape(COPIES, 3)
    claimed = np.sqrt(np.mean(np.square(claimed), axis=0))
    np.testing.assert_allclose(claimed, excess.std(axis=0), rtol=0.35)
    effective = np.asarray(found.effective_sample_size)
    assert np.all((effective >= 1) & (effective <= CRUDE["num_chains"]))

    # An image's figures are its own, wherever it stands and whatever the others are.
    others = np.concatenate([x[7:], x[:7] + 1])
    again = forward(linear_gaussian.params, others, key, first=7, **CRUDE)
    for one, other in zip(found, again, strict=True):
        np.testing.assert_allclose(one[7:], other[:-7], rtol=1e-9)


@pytest.mark.slow
def test_reverse_weight_is_unbiased_and_its_log_an_upper_bound(
    linear_gaussian, key, assert_mean
):
    # With little noise 1 / p(x|z) has such tails that no mean of it can be had.
    params = linear_gaussian.params.replace(likelihood={"log_var": jnp.zeros(())})
    model, x = exact.linear_gaussian(params), linear_gaussian.x[:3]
    mean, covariance = exact.posterior(model, x)
    noise = np.random.default_rng(0).normal(size=(COPIES, 3, 2))
    z = mean + noise @ np.linalg.cholesky(covariance).T
    x = np.tile(x, (COPIES, 1))
    found = reverse(params, x, z.reshape(-1, 2), key, **CRUDE)
    excess = np.asarray(found.estimate - exact.log_evidence(model, x))
    excess = excess.reshape(COPIES, 3)
    assert_mean(np.exp(-excess), np.ones(3))
    error = excess.std(axis=0) / np.sqrt(COPIES)
    assert np.all(excess.mean(axis=0) > 5 * error), "no gap: the settings are too good"


def curved_params():
    """Two latents, a mixture for a prior, and a decoder that bends far."""
    spec = ModelSpec(
        encoder=MLP((8,)),
        decoder=MLP((8,)),
        prior=MixtureOfGaussians(3),
        latent_dim=2,
        data_shape=(4, 4),
    )
    params = jax.tree.map(jnp.asarray, random_params(spec))
    return params.replace(decoder=jax.tree.map(lambda leaf: 1.5 * leaf, params.decoder))


@pytest.mark.slow
def test_bidirectional_holds_a_nonlinear_models_evidence_as_quadrature_has_it(key):
    params, count = curved_params(), 100
    found = bidirectional(
        params,
        key,
        num_examples=count,
        num_chains=16,
        num_temperatures=60,
        num_leapfrog=5,
        initial_step_size=0.3,
    )
    evidence = QUADRATURE(params, found.x)
    assert np.max(evidence.error) < 0.01
    for estimate in (found.lower, found.upper):
        error = estimate - evidence.estimate
        assert np.abs(np.mean(error)) < 0.05, np.mean(error)
        assert np.std(error) < 0.3, np.std(error)
    np.testing.assert_allclose(found.gap, found.upper - found.lower)
    assert set(np.unique(found.x)) == {0, 1}


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"num_chains": 0}, "num_chains"),
        ({"num_temperatures": 1}, "num_temperatures"),
        ({"num_leapfrog": 0}, "num_leapfrog"),
    ],
)
def test_numbers_that_are_too_small_are_named(options, name):
    params = random_params(dict(SPECS)["linear-gaussian"])
    with pytest.raises(ValueError, match=f"{name} must be at least"):
        annealed_log_evidence(params, jnp.zeros((1, 5)), jax.random.key(0), **options)
    with pytest.raises(ValueError, match="num_examples must be at least"):
        bidirectional_log_evidence(params, jax.random.key(0), num_examples=0)


@pytest.mark.parametrize("size", [0.0, -1.0])
def test_a_step_that_moves_nothing_is_refused(size):
    """All of its moves would be accepted, or none."""
    params = random_params(dict(SPECS)["linear-gaussian"])
    with pytest.raises(ValueError, match="initial_step_size must be positive, got"):
        annealed_log_evidence(
            params, jnp.zeros((1, 5)), jax.random.key(0), initial_step_size=size
        )
    with pytest.raises(ValueError, match="sharpness must be positive, got"):
        sigmoid_schedule(4, sharpness=size)


class Twice(DiagonalGaussianDistribution):
    def sample(self, key, num_samples):
        z = super().sample(key, num_samples)
        return z, z


class TwoLayers(StandardNormal):
    def build(self, *args, **options):
        normal = super().build(*args, **options)
        return Twice(normal.mean, normal.log_var)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (
            {"posterior": FactorizedBernoulli(), "prior": FactorizedBernoulliPrior()},
            "continuous latents, got Bernoulli",
        ),
        ({"prior": TwoLayers()}, "one array of latents, got a tuple from TwoLayers"),
        ({"num_classes": 3}, "an unconditional model, got one of num_classes=3"),
    ],
)
def test_latents_that_cannot_be_moved_are_named(choices, message):
    params = random_params(ModelSpec(latent_dim=2, data_shape=(5,), **choices))
    x, key = jnp.zeros((1, 5)), jax.random.key(0)
    with pytest.raises(ValueError, match=message):
        annealed_log_evidence(params, x, key)
    with pytest.raises(ValueError, match=message):
        reverse_annealed_log_evidence(params, x, jnp.zeros((1, 2)), key)
    with pytest.raises(ValueError, match=message):
        bidirectional_log_evidence(params, key, num_examples=1)


def test_several_layers_that_cannot_be_moved_are_named_on_one_line():
    layers = (StochasticLayer(4), StochasticLayer(2))
    posterior, prior = HierarchicalGaussian(layers), HierarchicalGaussianPrior(layers)
    spec = ModelSpec(posterior=posterior, prior=prior, latent_dim=3, data_shape=(5,))
    with pytest.raises(ValueError) as refusal:
        annealed_log_evidence(random_params(spec), jnp.zeros((1, 5)), jax.random.key(0))
    assert str(refusal.value).endswith(
        "needs one array of latents, got a tuple from HierarchicalGaussianPrior, with "
        "3, 4, 2 units in its layers"
    )


def test_a_prior_that_needs_the_encoder_is_given_it():
    spec = ModelSpec(prior=VampPrior(3), latent_dim=2, data_shape=(5,))
    shapes = jax.eval_shape(
        functools.partial(annealed_log_evidence, random_params(spec)),
        jax.ShapeDtypeStruct((4, 5), jnp.float32),
        jax.random.key(0),
    )
    assert {leaf.shape for leaf in shapes} == {(4,)}


def test_single_precision_stays_single_where_double_is_the_default(x64):
    params = random_params(dict(SPECS)["linear-gaussian"])
    found = jax.eval_shape(
        functools.partial(bidirectional_log_evidence, params, num_examples=4),
        jax.random.key(0),
    )
    assert {leaf.dtype for leaf in found} == {jnp.dtype("float32")}
