"""Distributions over levels, against SciPy and sums over all outcomes."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from vae_jax import Categorical, DiscretizedLogistic
from vae_jax.distributions import categorical, discretized_logistic

RNG = np.random.default_rng(0)
log_prob_of, mean_level, sample = (
    jax.jit(functools.partial(function, num_levels=5))
    for function in (
        discretized_logistic.log_prob,
        discretized_logistic.mean_level,
        discretized_logistic.sample,
    )
)
LOGITS = RNG.normal(size=(3, 2, 4))
OTHERS = RNG.normal(size=(3, 2, 4))
LEVELS = np.linspace(0, 1, 5)


@pytest.mark.usefixtures("x64")
def test_categorical_log_prob_is_the_log_softmax_and_its_gradient():
    value = np.array([[3, 0], [1, 1], [2, 3]])
    log_probs = scipy.special.log_softmax(LOGITS, axis=-1)
    expected = np.take_along_axis(log_probs, value[..., None], -1)[..., 0].sum(-1)
    found = categorical.log_prob(jnp.asarray(value), jnp.asarray(LOGITS))
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    total = jax.jit(lambda logits: categorical.log_prob(value, logits).sum())
    gradient = jax.grad(total)(jnp.asarray(LOGITS))
    expected = np.eye(4)[value] - scipy.special.softmax(LOGITS, axis=-1)
    np.testing.assert_allclose(gradient, expected, atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_categorical_entropy_and_divergence_are_scipys():
    p, q = (scipy.special.softmax(logits, axis=-1) for logits in (LOGITS, OTHERS))
    entropy = scipy.stats.entropy(p, axis=-1).sum(-1)
    np.testing.assert_allclose(categorical.entropy(jnp.asarray(LOGITS)), entropy)
    divergence = scipy.stats.entropy(p, q, axis=-1).sum(-1)
    found = categorical.kl_divergence(jnp.asarray(LOGITS), jnp.asarray(OTHERS))
    np.testing.assert_allclose(found, divergence, rtol=1e-10)


def test_an_impossible_category_costs_nothing_and_is_never_drawn():
    logits = jnp.array([[0.0, -jnp.inf, 0.0]])
    assert categorical.entropy(logits) == pytest.approx(np.log(2))
    assert categorical.kl_divergence(logits, jnp.zeros((1, 3))) == pytest.approx(
        np.log(1.5)
    )
    assert np.isinf(categorical.kl_divergence(jnp.zeros((1, 3)), logits))
    draws = categorical.sample(jnp.broadcast_to(logits, (500, 1, 3)), jax.random.key(0))
    assert set(np.unique(draws)) == {0, 2}


def logistic_parts():
    shape = (2, 3)
    return RNG.normal(size=shape), RNG.uniform(size=shape), RNG.normal(size=shape) - 1.5


@pytest.mark.usefixtures("x64")
def test_discretized_logistics_are_differences_of_scipys_distribution_function():
    logits, mean, log_scale = logistic_parts()
    weights = scipy.special.softmax(logits, axis=-1)
    edges = np.concatenate([[-np.inf], (np.arange(4) + 0.5) / 4, [np.inf]])
    cdf = scipy.stats.logistic(mean, np.exp(log_scale)).cdf
    mass = np.diff([np.sum(weights * cdf(edge), axis=-1) for edge in edges], axis=0)
    levels = np.array([[4, 0], [1, 2], [0, 3]])
    expected = np.log(mass[levels, [0, 1]]).sum(axis=-1)
    parts = map(jnp.asarray, (logits, mean, log_scale))
    x = jnp.asarray(LEVELS[levels])
    found = log_prob_of(x, *parts)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.usefixtures("x64")
def test_discretized_logistics_sum_to_one_and_have_the_mean_of_their_levels():
    parts = tuple(map(jnp.asarray, logistic_parts()))
    x = np.array(list(itertools.product(LEVELS, repeat=2)))
    log_prob = log_prob_of(jnp.asarray(x), *parts)
    probability = np.exp(log_prob)
    assert probability.sum() == pytest.approx(1, abs=1e-12)
    found = mean_level(*parts)
    np.testing.assert_allclose(found, probability @ x, rtol=1e-10)


def test_discretized_logistics_draw_what_they_say(assert_mean):
    parts = tuple(jnp.asarray(part, jnp.float32) for part in logistic_parts())
    everywhere = [jnp.broadcast_to(part, (20_000, 2, 3)) for part in parts]
    draws = np.asarray(sample(*everywhere, jax.random.key(0)))
    assert set(np.unique(draws)) == set(np.float32(LEVELS))
    for level in LEVELS:
        one = jnp.full((1, 2), level, jnp.float32)
        each = [
            log_prob_of(one[:, d : d + 1], *(part[d : d + 1] for part in parts))
            for d in range(2)
        ]
        assert_mean(draws == np.float32(level), np.exp(np.ravel(each)))


def test_discretized_logistics_stay_finite_far_out():
    """Also where both ends of an interval round to the same probability."""
    x = jnp.asarray(LEVELS, jnp.float32)[:, None]
    total = jax.jit(
        jax.value_and_grad(lambda parts: log_prob_of(x, np.zeros((1, 1)), *parts).sum())
    )
    for mean, log_scale in itertools.product((-1e3, 0.3, 1e3), (-10.0, 0.0, 10.0)):
        value, gradient = total((np.full((1, 1), mean), np.full((1, 1), log_scale)))
        assert np.isfinite(value) and np.all(np.isfinite(gradient))


@pytest.mark.parametrize(
    "family", [Categorical(5), DiscretizedLogistic(5, num_components=2)], ids=repr
)
def test_families_read_their_outputs_parameter_by_parameter(family, assert_mean):
    """Outputs are [P, D] flattened, as from a convolutional decoder."""
    outputs = RNG.normal(size=(1, 1, family.num_outputs(2))).astype("f")
    likelihood = family.build({}, jnp.asarray(outputs))
    by_pixel = outputs.reshape(-1, 2).T
    x = np.array(list(itertools.product(LEVELS, repeat=2)), np.float32)
    if isinstance(family, Categorical):
        log_p = scipy.special.log_softmax(by_pixel, axis=-1)
        expected = (log_p[0][:, None] + log_p[1]).ravel()
    else:
        logits, mean, raw = np.split(by_pixel, 3, axis=-1)
        log_scale = 10 * np.tanh(raw / 20)
        expected = log_prob_of(jnp.asarray(x), logits, mean, log_scale)
    log_prob = jax.jit(lambda x: likelihood.log_prob(x))(x)[0]
    np.testing.assert_allclose(log_prob, expected, rtol=1e-4)
    mean = np.exp(expected) @ x

    @jax.jit
    def figures(outputs):
        many = jnp.broadcast_to(outputs, (5000, *outputs.shape[1:]))
        started = family.build({}, family.output_bias(jnp.array([0.2, 0.7])))
        draws = family.build({}, many).sample(jax.random.key(1), 1)[0]
        return family.build({}, outputs).mean, draws, started.mean

    own_mean, draws, started = figures(outputs)
    np.testing.assert_allclose(own_mean[0, 0], mean, rtol=1e-4)
    assert_mean(draws[:, 0], mean)
    np.testing.assert_allclose(started, [0.2, 0.7], atol=0.15)
