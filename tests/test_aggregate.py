"""The parts of the KL against quadrature, the MMD against loops, PIWAE against both."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from specs import SPECS, example_data, random_params

from vae_jax import (
    DiagonalGaussian,
    DiagonalGaussianPrior,
    FactorizedBernoulli,
    FactorizedBernoulliPrior,
    Linear,
    MixtureOfGaussians,
    ModelSpec,
    PointMass,
    VampPrior,
    elbo_objective,
    empty_history,
    encode,
    importance_weighted_bound,
    importance_weighted_objective,
    init_state,
    maximum_mean_discrepancy,
    partially_importance_weighted_bound,
    shuffled_epoch,
    total_correlation,
    train_epoch,
    train_step,
)
from vae_jax.aggregate import (
    KERNEL_SCALES,
    kl_decomposition,
    posterior_mmd,
    squared_mmd,
)
from vae_jax.distributions import DiagonalGaussianDistribution, FullGaussianDistribution
from vae_jax.estimators import Grouped, leave_one_out
from vae_jax.model import draw_prior

SPEC = dict(SPECS)["mlp-bernoulli"]
PARAMS = random_params(SPEC)
OF_TWO = random_params(dataclasses.replace(SPEC, latent_dim=2))
X = example_data(SPEC)
MEANS = np.array([[-1.5, -1.0], [1.5, 1.2], [0.3, -0.4]])
SCALES = np.array([[0.5, 0.6], [0.4, 0.7], [0.8, 0.5]])


def by_quadrature():
    """Mutual information, total correlation and unit KL of the mixture of three."""
    axis = np.linspace(-7, 7, 701)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1)
    area = (axis[1] - axis[0]) ** 2
    units = scipy.stats.norm(MEANS, SCALES).pdf(grid[..., None, :])
    q = units.prod(axis=-1).mean(axis=-1)
    marginals = [q.sum(axis=other) * (axis[1] - axis[0]) for other in (1, 0)]
    product = np.outer(*marginals)
    p = scipy.stats.norm.pdf(grid).prod(axis=-1)
    entropy = -np.sum(q * np.log(q)) * area
    conditional = scipy.stats.norm(scale=SCALES).entropy().sum(axis=-1).mean()
    return (
        entropy - conditional,
        np.sum(q * np.log(q / product)) * area,
        np.sum(q * np.log(product / p)) * area,
    )


def mixture():
    """A batch with every example of the mixture as often as the others."""
    mean, log_var = (
        jnp.asarray(np.tile(leaf, (400, 1)), jnp.float32)
        for leaf in (MEANS, 2 * np.log(SCALES))
    )
    return DiagonalGaussianDistribution(mean, log_var)


@pytest.mark.long
def test_the_parts_are_those_of_quadrature(assert_mean):
    """Without the constants of an estimate for a data set, which are no part of it."""
    keys = jax.random.split(jax.random.key(0), 20)
    run = functools.partial(kl_decomposition, OF_TWO, mixture())
    found = jax.jit(lambda keys: jax.lax.map(run, keys))(keys)
    for part, expected in zip(found, by_quadrature(), strict=True):
        assert expected > 0.05
        assert_mean(part, expected)


@pytest.mark.long
def test_the_total_correlation_charges_its_parts_and_no_constant(assert_mean):
    keys = jax.random.split(jax.random.key(1), 20)
    penalty = total_correlation(6.0)
    run = functools.partial(penalty, OF_TWO, mixture(), jnp.zeros(1200), step=0)
    charges = jax.jit(lambda keys: jax.lax.map(lambda key: run(key=key), keys))(keys)
    information, correlation, units = by_quadrature()
    assert_mean(charges, information + 6 * correlation + units)


def test_a_posterior_with_correlations_has_no_units():
    posterior = FullGaussianDistribution(*jnp.zeros((2, 4, 3)), jnp.zeros((4, 3)))
    with pytest.raises(ValueError, match="got FullGaussianDistribution: choose"):
        kl_decomposition(PARAMS, posterior, jax.random.key(0))


def test_the_mmd_is_that_of_all_distinct_pairs():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(5, 3)), rng.normal(size=(4, 3)) + 0.5

    def kernel(p, q):
        widths = 2 * 3 * np.array(KERNEL_SCALES)
        return np.sum(widths / (widths + np.sum((p - q) ** 2)))

    def distinct(points):
        pairs = [(i, j) for i in range(len(points)) for j in range(len(points))]
        return np.mean([kernel(points[i], points[j]) for i, j in pairs if i != j])

    across = np.mean([kernel(p, q) for p in a for q in b])
    expected = distinct(a) + distinct(b) - 2 * across
    assert float(squared_mmd(jnp.asarray(a), jnp.asarray(b))) == pytest.approx(
        expected, rel=1e-4
    )


def test_equal_distributions_have_an_mmd_of_zero_in_expectation(assert_mean):
    draws = jax.random.normal(jax.random.key(0), (200, 2, 20, 3))
    values = jax.jit(jax.vmap(lambda pair: squared_mmd(*pair)))(draws)
    assert_mean(values, 0.0)
    shifted = jax.jit(jax.vmap(lambda pair: squared_mmd(pair[0], pair[1] + 1)))(draws)
    assert np.mean(shifted) > 5 * np.std(shifted) / np.sqrt(200)


def value_of(penalty, spec=SPEC):
    params = random_params(spec)

    @jax.jit
    def value(params, x, key):
        objective = elbo_objective(penalty=penalty, beta=2.0)
        total, metrics = objective(params, x, key, jnp.asarray(0))
        posterior = encode(params, x)
        _, child = jax.random.split(key)
        parts = (
            kl_decomposition(params, posterior, child)
            if spec.posterior != PointMass()
            else ()
        )
        return total, metrics, parts

    return value(params, example_data(spec), jax.random.key(3))


def test_the_penalty_weighs_the_parts():
    penalty = total_correlation(6.0, mutual_information=0.5, unit_kl=2.0)
    total, metrics, parts = value_of(penalty)
    charge = 0.5 * parts[0] + 6 * parts[1] + 2 * parts[2]
    assert float(total) == pytest.approx(
        float(metrics["log_likelihood"] - 2 * charge), rel=1e-5
    )


@pytest.mark.slow
def test_the_mmd_takes_the_place_of_the_kl_also_for_an_autoencoder():
    total, metrics, _ = value_of(maximum_mean_discrepancy(0.0, kl_weight=0.25))
    expected = metrics["log_likelihood"] - 0.5 * metrics["kl_divergence"]
    assert float(total) == pytest.approx(float(expected), rel=1e-5)
    spec = dict(SPECS)["users-own-autoencoder"]
    total, metrics, _ = value_of(maximum_mean_discrepancy(3.0), spec)
    assert np.isfinite(total) and total != metrics["log_likelihood"]


# The gradient by what the samples are drawn from

EXAMPLES = np.array([[0, 1, 1], [1, 1, 0], [0, 0, 1]], np.float32)


def constant_decoder(posterior, prior, latent_dim):
    """A model whose likelihood has no gradient by the latents."""
    spec = ModelSpec(
        Linear(), Linear(), posterior, prior, latent_dim=latent_dim, data_shape=(3,)
    )
    params = random_params(spec)
    output = params.decoder["output"]
    kernel = np.zeros_like(output["kernel"])
    return params.replace(decoder={"output": output | {"kernel": kernel}})


def gradients_of_charge(params, penalty, **options):
    """Of what an objective takes off the log-likelihood, with many keys."""
    objective = elbo_objective(penalty=penalty, **options)

    @jax.jit
    def gradients(params, keys):
        def value(params, key):
            return -objective(params, EXAMPLES, key, jnp.asarray(0))[0]

        return jax.lax.map(lambda key: jax.grad(value)(params, key), keys)

    params = jax.tree.map(jnp.asarray, params)
    return gradients(params, jax.random.split(jax.random.key(8), 4000))


def differences(function, leaf, step=1e-5):
    """Central differences of a function by each entry of an array, in float64."""
    leaf = np.float64(leaf)
    moves = step * np.eye(leaf.size).reshape(-1, *leaf.shape)
    slopes = [(function(leaf + m) - function(leaf - m)) / (2 * step) for m in moves]
    return np.reshape(slopes, leaf.shape)


def kernel_of(square, latent_dim):
    """The sum of inverse multiquadratic kernels at squared distances."""
    widths = 2 * latent_dim * np.array(KERNEL_SCALES)
    return np.sum(widths / (widths + np.asarray(square)[..., None]), axis=-1)


BITS = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])


def log_probabilities(logits):
    """Of the four values of two bits, for each row of logits."""
    logits = np.asarray(logits)[..., None, :]
    return -np.sum(np.logaddexp(0, (1 - 2 * BITS) * logits), axis=-1)


def total_correlation_of_bits(logits, prior_logits):
    """0.5 MI + 6 TC + 2 unit KL by enumeration."""
    log_q = log_probabilities(logits)
    q = np.exp(log_q)
    aggregate = q.mean(axis=0)
    one = aggregate @ BITS
    log_units = np.log(np.where(BITS == 1, one, 1 - one)).sum(axis=-1)
    return (
        0.5 * np.sum(q * (log_q - np.log(aggregate))) / len(q)
        + 6 * aggregate @ (np.log(aggregate) - log_units)
        + 2 * aggregate @ (log_units - log_probabilities(prior_logits))
    )


def mmd_of_bits(logits, prior_logits):
    """By enumeration of all pairs, of distinct examples among themselves."""
    kernel = kernel_of(np.sum((BITS[:, None] - BITS) ** 2, axis=-1), 2)
    q, p = (np.exp(log_probabilities(one)) for one in (logits, prior_logits))
    pairs = q @ kernel @ q.T
    distinct = (pairs.sum() - np.trace(pairs)) / (len(q) * (len(q) - 1))
    return distinct + p @ kernel @ p - 2 * q.mean(axis=0) @ kernel @ p


OF_BITS = {
    "total correlation": (
        total_correlation(6.0, mutual_information=0.5, unit_kl=2.0),
        total_correlation_of_bits,
    ),
    "MMD": (maximum_mean_discrepancy(10.0), lambda *a: 10 * mmd_of_bits(*a)),
}


@pytest.mark.parametrize("name", OF_BITS)
def test_the_gradient_by_bits_is_that_of_enumeration(name, assert_mean):
    """No derivative flows through a bit; the score brings what is missing."""
    penalty, exact = OF_BITS[name]
    params = constant_decoder(FactorizedBernoulli(), FactorizedBernoulliPrior(), 2)
    found = gradients_of_charge(params, penalty, estimator=leave_one_out, num_samples=2)
    output, own = params.encoder["output"], params.prior["logits"]
    outputs = EXAMPLES @ np.float64(output["kernel"])
    expected = differences(lambda bias: exact(outputs + bias, own), output["bias"])
    assert np.abs(expected).min() > 0.01
    assert_mean(found.encoder["output"]["bias"], expected)
    logits = outputs + output["bias"]
    expected = differences(lambda own: exact(logits, own), own)
    assert_mean(found.prior["logits"], expected)


def mmd_of_gaussians(q, weights, p):
    """E of the squared MMD of N(m, s^2) for each example and a mixture, one latent."""
    nodes, chances = np.polynomial.hermite_e.hermegauss(80)
    chances = chances / chances.sum()

    def kernel(one, other):
        mean = one[0][:, None] - other[0]
        scale = np.hypot(one[1][:, None], other[1])
        return kernel_of((mean[..., None] + scale[..., None] * nodes) ** 2, 1) @ chances

    among = kernel(q, q)
    distinct = (among.sum() - np.trace(among)) / (len(among) * (len(among) - 1))
    return (
        distinct
        + weights @ kernel(p, p) @ weights
        - 2 * kernel(q, p).mean(axis=0) @ weights
    )


def gaussians_of(encoder, x):
    """Mean and scale of q(z|x) of one latent."""
    outputs = x @ np.float64(encoder["kernel"]) + encoder["bias"]
    return outputs[:, 0], np.exp(10 * np.tanh(outputs[:, 1] / 20))


def prior_as_mixture(spec, prior, encoder):
    """Weights, and means and scales, of each prior's components."""
    if spec.prior == VampPrior(2):
        pseudo_inputs = 1 / (1 + np.exp(-np.float64(prior["pseudo_inputs"])))
        return np.full(2, 0.5), gaussians_of(encoder, pseudo_inputs)
    weights = np.exp(np.float64(prior.get("logits", np.zeros(1))))
    mean, log_var = (np.float64(prior[name]).ravel() for name in ("mean", "log_var"))
    return weights / weights.sum(), (mean, np.exp(log_var / 2))


@pytest.mark.long
@pytest.mark.parametrize(
    "prior", [MixtureOfGaussians(3), VampPrior(2), DiagonalGaussianPrior()], ids=repr
)
def test_the_mmd_has_the_gradient_of_its_prior(prior, assert_mean):
    """By quadrature: also of a mixture's weights, which choose and do not move."""
    params = constant_decoder(DiagonalGaussian(), prior, 1)
    output = params.encoder["output"]

    def exact(prior, encoder):
        q = gaussians_of(encoder, EXAMPLES)
        own = prior_as_mixture(params.spec, prior, encoder)
        return 30 * mmd_of_gaussians(q, *own)

    found = gradients_of_charge(params, maximum_mean_discrepancy(30.0))
    for name, leaf in params.prior.items():
        expected = differences(
            lambda leaf, name=name: exact(params.prior | {name: leaf}, output), leaf
        )
        assert np.abs(expected).max() > 0.02, name
        assert_mean(found.prior[name], expected)
    expected = differences(
        lambda bias: exact(params.prior, output | {"bias": bias}), output["bias"]
    )
    assert_mean(found.encoder["output"]["bias"], expected)


@pytest.mark.long
def test_the_layers_of_several_are_units_of_one_point():
    spec = dict(SPECS)["three-stochastic-layers"]
    params = random_params(spec)
    posterior = encode(params, example_data(spec))
    keys = jax.random.split(key := jax.random.key(6))
    z, _ = posterior.sample_and_log_prob(keys[0], 1)
    drawn = draw_prior(params, keys[1], num_samples=4)
    codes, draws = (np.concatenate(leaves, axis=-1) for leaves in (z, drawn))
    assert codes.shape == (1, 4, 9)
    expected = squared_mmd(jnp.asarray(codes[0]), jnp.asarray(draws))
    found = posterior_mmd(params, posterior, key)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.long
def test_the_mmd_of_one_example_is_refused():
    """There is no pair of distinct codes; 0 / 0 would make every weight NaN."""
    with pytest.raises(ValueError, match="same dimension, got 3 and 1"):
        squared_mmd(jnp.zeros((3, 3)), jnp.zeros((4, 1)))
    with pytest.raises(ValueError, match="a must hold at least 2 points, got 1"):
        squared_mmd(jnp.zeros((1, 3)), jnp.zeros((5, 3)))
    with pytest.raises(ValueError, match="b must hold at least 2 points, got 1"):
        squared_mmd(jnp.zeros((5, 3)), jnp.zeros((1, 3)))
    adam = optax.adam(1e-3)
    step = functools.partial(
        train_step,
        objective=elbo_objective(penalty=maximum_mean_discrepancy(1.0)),
        optimizer=adam,
    )
    state = init_state(PARAMS, jax.random.key(0), optimizer=adam)
    x = np.repeat(example_data(SPEC), 3, axis=0)[:9]
    epoch = shuffled_epoch(jax.random.key(1), 0, num_examples=9, batch_size=4)
    history = empty_history(step, state, epoch, x)
    with pytest.raises(ValueError, match="at least 2 examples in a batch, got 1"):
        jax.eval_shape(
            functools.partial(train_epoch, step=step), state, epoch, x, history, 3
        )


@pytest.fixture(scope="module")
def bounds():
    """Value and gradient of PIWAE, IWAE and MIWAE with the same samples."""

    @jax.jit
    def all_of_them(params, x, key):
        options = {"num_samples": 6}
        functions = {
            "piwae": functools.partial(
                partially_importance_weighted_bound, num_groups=3
            ),
            "iwae": importance_weighted_bound,
            "miwae": functools.partial(importance_weighted_bound, reduction=Grouped(3)),
            "objective": lambda params, x, key, num_samples: (
                importance_weighted_objective(num_samples=num_samples)(
                    params, x, key, jnp.asarray(0)
                )[0]
            ),
        }
        logged = importance_weighted_objective(num_samples=6)(params, x, key, 0)[1]
        return {
            name: jax.value_and_grad(functools.partial(function, **options))(
                params, x, key
            )
            for name, function in functions.items()
        } | {"logged": logged}

    params = jax.tree.map(jnp.asarray, PARAMS)
    return jax.device_get(all_of_them(params, X, jax.random.key(4)))


@pytest.mark.long
def test_piwae_has_the_value_and_decoder_gradient_of_iwae(bounds):
    value, gradient = bounds["piwae"]
    assert value == pytest.approx(bounds["iwae"][0], rel=1e-6)
    for part, other in (("decoder", "iwae"), ("encoder", "miwae")):
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
            getattr(gradient, part),
            getattr(bounds[other][1], part),
        )
    kernels = [
        bounds[name][1].encoder["output"]["kernel"] for name in ("iwae", "miwae")
    ]
    assert np.abs(np.subtract(*kernels)).max() > 1e-4


def test_the_objective_is_the_bound_and_logs_the_elbo_of_the_same_samples(bounds):
    assert bounds["objective"][0] == pytest.approx(bounds["iwae"][0], rel=1e-6)
    compare = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(compare, bounds["objective"][1], bounds["iwae"][1])
    logged = bounds["logged"]
    assert sorted(logged) == ["elbo", "kl_divergence", "log_likelihood"]
    assert logged["elbo"] == pytest.approx(
        logged["log_likelihood"] - logged["kl_divergence"], rel=1e-5
    )
    assert logged["elbo"] < bounds["iwae"][0]
