"""Calibration by simulation: flat for the exact posterior, and nothing else."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import vae_jax
from vae_jax import exact
from vae_jax.calibration import (
    annealed_draws,
    chain_draws,
    encoder_draws,
    rank_test,
    simulation_ranks,
)
from vae_jax.objectives import log_joint

NUM_DRAWS = 19


@pytest.fixture(scope="module")
def params():
    """A linear model whose encoder gives the exact posterior (one latent: diagonal)."""
    weights = jnp.array([[1.0], [0.5], [-0.3]])
    model = exact.LinearGaussian(weights, jnp.array([0.2, 0.0, -1.0]), jnp.array(0.5))
    return exact.linear_vae(model)


def with_variance_times(params, factor):
    bias = params.encoder["output"]["bias"]
    bias = bias.at[1].add(jnp.log(factor))
    return params.replace(
        encoder=params.encoder | {"output": params.encoder["output"] | {"bias": bias}}
    )


def smallest_p(params, *, num_simulations=3000, seed=0, **options):
    ranks = jax.jit(
        partial(
            simulation_ranks,
            num_simulations=num_simulations,
            num_draws=NUM_DRAWS,
            **options,
        )
    )(params, jax.random.key(seed))
    assert ranks.min() >= 0 and ranks.max() <= NUM_DRAWS
    found = rank_test(ranks, jax.random.key(100), num_draws=NUM_DRAWS)
    return float(found.p_value.min() * found.p_value.size)


@pytest.mark.long
def test_the_exact_posterior_is_flat(params):
    assert smallest_p(params) > 0.05


@pytest.mark.long
@pytest.mark.parametrize("factor", [0.8, 1.25])
def test_a_variance_that_is_off_by_a_fifth_is_caught(params, factor):
    assert smallest_p(with_variance_times(params, factor)) < 0.01


@pytest.mark.long
def test_draws_of_the_prior_are_caught_by_the_joint_density_alone(params):
    """Calibrated in each latent whatever x is (Modrak et al. 2023, section 3)."""

    def prior_draws(params, x, key, num_draws):
        return jax.random.normal(key, (num_draws, 1, params.spec.latent_dim))

    ranks = simulation_ranks(
        params, jax.random.key(1), num_simulations=1000, sampler=prior_draws
    )
    found = rank_test(ranks, jax.random.key(2), num_draws=99)
    assert found.p_value[0] > 0.05 and found.p_value[1] < 0.001


@pytest.mark.long
def test_annealing_is_flat_and_a_chain_stopped_too_early_is_caught(params):
    narrow = with_variance_times(params, 0.01)
    annealed = annealed_draws(num_temperatures=20, num_leapfrog=3)
    assert smallest_p(narrow, sampler=annealed, num_simulations=400) > 0.05
    walk = partial(
        vae_jax.mcmc.metropolis_hastings, proposal=vae_jax.mcmc.random_walk(0.3)
    )
    hasty = chain_draws(num_warmup=0, thinning=1, sampler=walk)
    assert smallest_p(narrow, sampler=hasty, num_simulations=400) < 0.01
    patient = chain_draws(num_warmup=100, thinning=30, sampler=walk)
    assert smallest_p(narrow, sampler=patient, num_simulations=400) > 0.05


@pytest.mark.slow
def test_nuts_is_flat_and_caught_when_it_stops_early(params):
    wrong = with_variance_times(params, 0.01)
    nuts = chain_draws(num_warmup=200, thinning=3)
    assert smallest_p(wrong, sampler=nuts, num_simulations=400) > 0.05
    hasty = chain_draws(num_warmup=1, thinning=1)
    assert smallest_p(wrong, sampler=hasty, num_simulations=400) < 0.01


@pytest.mark.long
def test_annealed_samples_have_the_moments_of_the_exact_posterior(params):
    x = jnp.array([[1.0, 0.0, -2.0]])
    sample = partial(
        vae_jax.annealing.annealed_posterior_samples,
        num_samples=2000,
        num_temperatures=30,
        num_leapfrog=3,
    )
    z = jax.jit(sample)(params, x, jax.random.key(3))[:, 0, 0]
    model = exact.linear_gaussian(params)
    mean, covariance = exact.posterior(model, x)
    deviation = float(jnp.sqrt(covariance[0, 0]))
    expected = scipy.stats.norm(float(mean[0, 0]), deviation)
    assert scipy.stats.kstest(np.asarray(z), expected.cdf).pvalue > 0.01


@pytest.mark.long
def test_bits_with_ties_are_flat():
    """Ties are broken at random: ranks of bits are uniform as well."""

    def sampler(params, x, key, num_draws):
        return jax.random.bernoulli(key, 0.5, (num_draws, 1, 6)).astype(jnp.float32)

    spec = vae_jax.ModelSpec(
        encoder=vae_jax.Linear(),
        decoder=vae_jax.Linear(),
        posterior=vae_jax.FactorizedBernoulli(),
        prior=vae_jax.FactorizedBernoulliPrior(),
        latent_dim=6,
        data_shape=(4,),
    )
    params = vae_jax.init(spec, jax.random.key(5))
    params = params.replace(decoder=jax.tree.map(jnp.zeros_like, params.decoder))
    # The decoder ignores z: its posterior is the prior, independent fair bits.
    assert smallest_p(params, sampler=sampler, num_simulations=1000) > 0.05


@pytest.mark.long
def test_ties_of_bits_are_ties_of_their_densities(key):
    """Ranks of log p(x, z) under the exact posterior, which enumerates all four z."""
    hidden = vae_jax.MLP((100,))
    spec = vae_jax.ModelSpec(
        encoder=hidden,
        decoder=hidden,
        posterior=vae_jax.FactorizedBernoulli(),
        prior=vae_jax.FactorizedBernoulliPrior(),
        latent_dim=2,
    )
    params = vae_jax.init(spec, jax.random.key(0))
    states = jnp.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])[:, None]

    def sampler(params, x, key, num_draws):
        logits = log_joint(params, x, states)[:, 0]
        return states[jax.random.categorical(key, logits, shape=(num_draws,))]

    ranks = simulation_ranks(
        params, key, num_simulations=1000, num_draws=NUM_DRAWS, sampler=sampler
    )
    counts = np.bincount(ranks[:, -1], minlength=NUM_DRAWS + 1)
    assert scipy.stats.chisquare(counts).pvalue > 1e-3, counts


def test_the_band_holds_uniform_ranks_as_often_as_it_says():
    ranks = jax.random.randint(jax.random.key(60), (100, 2000), 0, NUM_DRAWS + 1)
    found = rank_test(ranks, jax.random.key(7), num_draws=NUM_DRAWS, coverage=0.9)
    inside = jnp.all(jnp.abs(found.deviation) <= found.band[:, None] + 1e-6, axis=0)
    # The statistic takes few values: the band may hold a little more than it says.
    error = np.sqrt(0.9 * 0.1 / 2000)
    assert 0.9 - 4 * error < inside.mean() < 0.9 + 6 * error
    assert np.mean(found.p_value < 0.1) < 0.1 + 4 * error


def test_what_cannot_be_ranked_is_refused(params):
    key = jax.random.key(8)
    with pytest.raises(ValueError, match="num_draws must be at least 1, got 0"):
        simulation_ranks(params, key, num_draws=0)
    with pytest.raises(ValueError, match="num_simulations must be at least 1"):
        simulation_ranks(params, key, num_simulations=0)
    labelled = vae_jax.init(vae_jax.ModelSpec(num_classes=2), key)
    with pytest.raises(ValueError, match="exposures, got num_classes=2, num_cov"):
        simulation_ranks(labelled, key)

    def too_few(params, x, key, num_draws):
        return encoder_draws(params, x, key, num_draws - 1)

    with pytest.raises(ValueError, match="must return draws .99, 1, L., got 98"):
        simulation_ranks(params, key, sampler=too_few)
    with pytest.raises(ValueError, match="ranks must be integers"):
        rank_test(jnp.zeros((3, 1)), key, num_draws=9)
    for rank in (-1, 10):
        with pytest.raises(ValueError, match=f"num_draws=9, got values from {rank} to"):
            rank_test(jnp.full((3, 1), rank), key, num_draws=9)
    with pytest.raises(ValueError, match="coverage must be in"):
        rank_test(jnp.zeros((3, 1), int), key, num_draws=9, coverage=1.0)
    with pytest.raises(ValueError, match="thinning must be at least 1"):
        chain_draws(thinning=0)
