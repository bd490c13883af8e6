"""Samplers against posteriors that are known: Gaussian, enumerated, or on a grid."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from specs import SPECS, random_params

from vae_jax import (
    MLP,
    FactorizedBernoulli,
    FactorizedBernoulliPrior,
    ModelSpec,
    exact,
)
from vae_jax.mcmc import (
    bit_conditional,
    effective_sample_size,
    gaussian_conditional,
    gibbs,
    hmc,
    metropolis_hastings,
    nuts,
    posterior_samples,
    r_hat,
    random_walk,
)
from vae_jax.objectives import log_joint

NUM_CHAINS, NUM_SAMPLES = 8, 1500
ess = jax.jit(effective_sample_size)


def assert_expectation(values, expected):
    """Of dependent values `[T, C, ...]`, within 5 standard errors."""
    values = np.asarray(values)
    error = values.std(axis=(0, 1)) / np.sqrt(ess(values))
    difference = values.mean(axis=(0, 1)) - np.asarray(expected)
    assert np.all(error > 0), "the samples do not vary: no statistical test"
    assert np.all(np.abs(difference) < 5 * error), difference / error


MODEL = exact.LinearGaussian(
    np.array([[1.0, 0.8], [0.5, -0.6], [0.3, 1.1]], np.float32),
    np.array([0.1, -0.2, 0.3], np.float32),
    np.float32(0.5),
)
X = np.array([[1.0, -1.0, 2.0]], np.float32)
MEAN, COVARIANCE = (np.asarray(part) for part in exact.posterior(MODEL, X))
MEAN = MEAN[0]


def log_density(z):
    """Of the linear-Gaussian posterior, from the joint."""
    residual = X[0] - MODEL.weights @ z - MODEL.bias
    return -0.5 * (jnp.sum(residual**2) / MODEL.noise_var + jnp.sum(z**2))


def shrinking_proposal(key, z):
    """z' ~ N(0.7 z + 0.2, 0.6^2): towards a place that is not the posterior's."""

    def log_q(to, start):
        return -0.5 * jnp.sum(((to - 0.7 * start - 0.2) / 0.6) ** 2)

    candidate = 0.7 * z + 0.2 + 0.6 * jax.random.normal(key, z.shape, z.dtype)
    return candidate, log_q(z, candidate) - log_q(candidate, z)


SAMPLERS = {
    "random walk": functools.partial(
        metropolis_hastings, log_density, proposal=random_walk(np.array([0.8, 0.6]))
    ),
    "asymmetric": functools.partial(
        metropolis_hastings, log_density, proposal=shrinking_proposal
    ),
    "gibbs": functools.partial(gibbs, gaussian_conditional(MEAN, COVARIANCE)),
    "hmc": functools.partial(hmc, log_density, num_leapfrog=5),
    "nuts": functools.partial(nuts, log_density),
}


@pytest.mark.long
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name == "nuts" else [])
        for name in SAMPLERS
    ],
)
def test_linear_gaussian_posterior_has_its_mean_and_covariance(name, key):
    starts = 3 * jax.random.normal(key, (NUM_CHAINS, 2))
    one = functools.partial(SAMPLERS[name], num_samples=NUM_SAMPLES, num_warmup=150)
    chains = jax.jit(jax.vmap(one))(starts, jax.random.split(key, NUM_CHAINS))
    samples = np.swapaxes(chains.samples, 0, 1)
    assert samples.shape == (NUM_SAMPLES, NUM_CHAINS, 2)
    centered = samples - MEAN
    moments = centered[..., [0, 0, 1]] * centered[..., [0, 1, 1]]
    assert_expectation(
        np.concatenate([samples, moments], axis=-1),
        np.concatenate([MEAN, COVARIANCE[[0, 0, 1], [0, 1, 1]]]),
    )
    rate = np.asarray(chains.acceptance_rate)
    assert rate.shape == (NUM_CHAINS,)
    assert np.all(rate == 1) if name == "gibbs" else np.all((rate > 0.2) & (rate < 1))


def test_covariance_of_the_test_is_correlated():
    assert abs(COVARIANCE[0, 1]) > 0.2 * COVARIANCE[0, 0]


def gibbs_of_bits(log_density, *args, **options):
    return gibbs(bit_conditional(log_density), *args, **options)


@pytest.mark.slow
def test_gibbs_on_bits_visits_states_as_often_as_enumeration_says(key):
    spec = ModelSpec(
        encoder=MLP((8,)),
        decoder=MLP((8,)),
        posterior=FactorizedBernoulli(),
        prior=FactorizedBernoulliPrior(),
        latent_dim=2,
        data_shape=(5,),
    )
    params = jax.tree.map(jnp.asarray, random_params(spec))
    x = jnp.array([[0.0, 1, 1, 0, 1], [1, 1, 0, 0, 0]])
    sample = functools.partial(
        posterior_samples,
        sampler=gibbs_of_bits,
        num_chains=NUM_CHAINS,
        num_samples=NUM_SAMPLES,
        num_warmup=20,
    )
    sample = jax.jit(sample)
    found = sample(params, x, key, first=0)
    assert found.samples.shape == (NUM_SAMPLES, NUM_CHAINS, 2, 2)
    states = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32)
    log_joints, evidence = jax.jit(
        lambda z: (log_joint(params, x, z), exact.enumeration_log_evidence(params, x))
    )(np.repeat(states[:, None], 2, axis=1))
    probability = np.exp(log_joints - evidence)
    visits = np.all(found.samples[..., None, :] == states, axis=-1)
    assert np.all(visits.sum(axis=-1) == 1)
    assert_expectation(np.float32(visits), probability.T)
    assert np.all(found.r_hat < 1.05) and found.r_hat.shape == (2, 2)
    assert np.all(found.effective_sample_size > 1000)

    # An image's chains are its own, wherever it stands and whatever the others are.
    again = sample(params, jnp.stack([x[1], 1 - x[0]]), key, first=1)
    np.testing.assert_array_equal(again.samples[:, :, 0], found.samples[:, :, 1])
    assert np.any(again.samples[:, :, 1] != found.samples[:, :, 0])


def curved_params():
    """Two latents, and a decoder that bends far."""
    spec = ModelSpec(
        encoder=MLP((8,)), decoder=MLP((8,)), latent_dim=2, data_shape=(4, 4)
    )
    params = jax.tree.map(jnp.asarray, random_params(spec))
    return params.replace(decoder=jax.tree.map(lambda leaf: 1.5 * leaf, params.decoder))


def grid_moments(params, x):
    """E[z] and E[z^2] of p(z|x) by sums over a grid, `[B, 2]` each."""
    axis = np.linspace(-6, 6, 201, dtype=np.float32)
    z = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 1, 2)
    z = np.repeat(z, len(x), axis=1)
    weights = np.asarray(jax.nn.softmax(log_joint(params, x, z), axis=0))[..., None]
    return np.sum(weights * z, axis=0), np.sum(weights * z**2, axis=0)


@pytest.mark.slow
def test_nuts_has_the_moments_of_a_nonlinear_posterior(key):
    params = curved_params()
    x = np.random.default_rng(1).integers(0, 2, (3, 16)).astype(np.float32)
    sample = functools.partial(posterior_samples, num_samples=600, num_warmup=200)
    found = jax.jit(sample)(params, x, key)
    assert found.samples.shape == (600, 4, 3, 2)
    for power, expected in enumerate(grid_moments(params, x), start=1):
        assert_expectation(found.samples**power, expected)
    assert np.all(found.r_hat < 1.03) and found.r_hat.shape == (3, 2)


@pytest.mark.long
def test_diagnostics_tell_agreeing_chains_from_chains_apart_and_count_samples():
    """Four chains: independent, of means 0 to 3, and AR(1) with coefficient 0.6."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(4000, 4, 3))
    autoregressive = np.zeros((4000, 4))
    for step in range(1, 4000):
        innovation = 0.8 * noise[step, :, 2]
        autoregressive[step] = 0.6 * autoregressive[step - 1] + innovation
    apart = noise[..., 1] + np.arange(4)
    samples = np.stack([noise[..., 0], apart, autoregressive], axis=-1)
    ratio = np.asarray(jax.jit(r_hat)(samples))
    assert np.all(ratio[[0, 2]] < 1.01) and ratio[1] > 1.4
    # Its autocorrelations 0.6^t sum to (1 + 0.6) / (1 - 0.6) = 4.
    counts = np.asarray(ess(samples))
    np.testing.assert_allclose(counts[[0, 2]], [16000, 4000], rtol=0.1)
    assert counts[1] < 40


def ranked_split_r_hat(samples):
    """Vehtari et al. 2021, section 4, of `[T, C]`, by SciPy."""
    half = len(samples) // 2
    halves = np.concatenate([samples[:half], samples[-half:]], axis=1)
    found = []
    for values in (halves, np.abs(halves - np.median(halves))):
        ranks = scipy.stats.rankdata(values).reshape(values.shape)
        scores = scipy.stats.norm.ppf((ranks - 3 / 8) / (values.size + 1 / 4))
        within = scores.var(axis=0, ddof=1).mean()
        between = scores.mean(axis=0).var(ddof=1)
        found.append(np.sqrt(((half - 1) / half * within + between) / within))
    return max(found)


def test_r_hat_is_that_of_scipys_ranks_with_ties_and_drift():
    rng = np.random.default_rng(3)
    walk = np.cumsum(rng.normal(size=(301, 4)), axis=0)
    rounded = rng.normal(size=(301, 4)).round(1)
    stuck = rng.normal(size=(301, 4))
    stuck[:, 0] = 0.1  # One chain of four stays near the median.
    samples = np.stack([walk, rounded, stuck], axis=-1)
    expected = [ranked_split_r_hat(samples[..., i]) for i in range(3)]
    found = np.asarray(jax.jit(r_hat)(samples))
    np.testing.assert_allclose(found, expected, rtol=2e-3)
    assert found[0] > 1.1 and found[1] < 1.02 and found[2] > 1.05


def test_chains_that_never_moved_do_not_agree(x64):
    """Each at a value of its own, or all at the same: nothing is known of either."""
    apart = np.broadcast_to(np.random.default_rng(0).normal(size=4), (100, 4))
    together = np.full((100, 4), 0.1)
    bits = np.random.default_rng(1).integers(0, 2, (100, 4))
    missing = np.where(np.arange(100)[:, None] == 3, np.nan, apart + bits)
    samples = np.stack([apart, together, bits, missing], axis=-1)
    with jax.debug_nans(False):
        found = np.asarray(jax.jit(r_hat)(samples))
    np.testing.assert_array_equal(found[:2], np.inf)
    assert found[2] < 1.05 and np.isnan(found[3])
    with pytest.raises(ValueError, match="at least 4 steps of each chain, got 3"):
        r_hat(samples[:3])


@pytest.mark.long
def test_a_sampler_that_accepts_nothing_is_seen_by_r_hat():
    params = random_params(
        ModelSpec(MLP((4,)), MLP((4,)), latent_dim=2, data_shape=(3,))
    )
    far = functools.partial(metropolis_hastings, proposal=random_walk(1e6))
    sample = functools.partial(posterior_samples, sampler=far, num_samples=20)
    found = jax.jit(sample)(params, jnp.zeros((2, 3)), jax.random.key(0))
    np.testing.assert_array_equal(found.acceptance_rate, 0)
    np.testing.assert_array_equal(found.r_hat, np.inf)
    np.testing.assert_array_equal(found.num_divergences, np.zeros((4, 2)))


def test_trajectories_that_diverge_are_counted():
    """Into a wall that the step size, adapted to the room between, does not see."""

    def log_density(wall, z):
        outside = jnp.maximum(jnp.abs(z) - 2, 0)
        return -0.5 * jnp.sum(z**2) - wall * jnp.sum(outside**2)

    @jax.jit
    @jax.vmap
    def counts(wall):
        density = functools.partial(log_density, wall)
        chain = hmc(
            density,
            jnp.zeros(1),
            jax.random.key(0),
            num_samples=200,
            num_warmup=300,
            num_leapfrog=3,
        )
        return chain.num_divergences

    none, some = counts(jnp.array([0.0, 1e7]))
    assert none == 0 and 0 < some <= 200


def test_a_chain_leaves_a_start_without_density_and_takes_no_proposal_without(x64):
    """The density is nan on the left, where the chain starts and half the line is."""

    def log_density(z):
        return jnp.where(z[0] < 0, jnp.nan, -z[0])

    sample = functools.partial(
        metropolis_hastings, log_density, num_samples=200, proposal=random_walk(2.0)
    )
    chain = jax.jit(sample)(jnp.array([-1.0]), jax.random.key(0))
    assert chain.samples.dtype == chain.acceptance_rate.dtype == jnp.float64
    assert np.all(chain.samples[20:] > 0)
    assert 0 < chain.acceptance_rate < 1


ONE = {"num_samples": 1, "num_warmup": 1}


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("wrong", [{"num_samples": 0}, {"num_warmup": -1}])
def test_numbers_that_are_too_small_are_named(name, wrong):
    (option,) = wrong
    sample = functools.partial(SAMPLERS[name], **ONE | wrong)
    with pytest.raises(ValueError, match=f"{option} must be at least"):
        jax.eval_shape(sample, jnp.zeros(2), jax.random.key(0))


@pytest.mark.parametrize("sampler", [nuts, functools.partial(hmc, num_leapfrog=2)])
def test_samplers_that_follow_gradients_refuse_bits(sampler):
    spec = ModelSpec(
        posterior=FactorizedBernoulli(),
        prior=FactorizedBernoulliPrior(),
        latent_dim=2,
        data_shape=(5,),
    )
    params, x = random_params(spec), jnp.zeros((1, 5))
    with pytest.raises(ValueError, match="continuous latents, got Bernoulli"):
        posterior_samples(params, x, jax.random.key(0), sampler=sampler)
    with pytest.raises(ValueError, match="num_chains must be at least 1, got 0"):
        posterior_samples(params, x, jax.random.key(0), num_chains=0)


@pytest.mark.long
def test_chains_of_several_layers_are_refused():
    params = random_params(dict(SPECS)["three-stochastic-layers"])
    sampler = functools.partial(metropolis_hastings, proposal=random_walk(0.5))
    x = jnp.zeros((1, params.spec.data_dim))
    with pytest.raises(ValueError, match="takes one layer of latents, got 3"):
        posterior_samples(params, x, jax.random.key(0), sampler=sampler)
