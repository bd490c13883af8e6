"""Penalties, schedules and reductions of log-weights, against NumPy and SciPy."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
from specs import random_params

from vae_jax import (
    MLP,
    MixtureOfGaussians,
    ModelSpec,
    PointMass,
    VampPrior,
    active_units,
    capacity,
    cyclic_schedule,
    elbo,
    elbo_objective,
    elbo_terms,
    encode,
    free_bits,
    importance_weighted_bound,
    maximum_mean_discrepancy,
    total_correlation,
)
from vae_jax.estimators import Combined, Grouped, Renyi, log_mean_exp, sample_mean

SPEC = ModelSpec(encoder=MLP((4,)), decoder=MLP((4,)), latent_dim=3, data_shape=(5,))
X = np.random.default_rng(0).integers(0, 2, (6, 5)).astype(np.float32)
KEY = jax.random.key(1)


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(jnp.asarray, random_params(SPEC))


@pytest.fixture(scope="module")
def kls(params):
    """KL of every example and unit by the textbook, `[6, 3]`."""
    posterior = encode(params, X)
    mean, log_var = np.asarray(posterior.mean), np.asarray(posterior.log_var)
    return 0.5 * (np.exp(log_var) + mean**2 - 1 - log_var)


def charged(params, penalty, beta=1.0, step=0):
    """What an objective takes off the log-likelihood."""
    objective = elbo_objective(beta=beta, penalty=penalty)
    value, metrics = objective(params, X, KEY, jnp.asarray(step))
    expected = metrics["log_likelihood"] - metrics["kl_divergence"]
    np.testing.assert_allclose(metrics["elbo"], expected, rtol=1e-6)
    return metrics["log_likelihood"] - value


def test_free_bits_per_unit_floor_the_batchs_mean(params, kls):
    means = kls.mean(axis=0)
    nats = float(np.sort(means)[:2].mean())  # Between the least and the next.
    expected = np.maximum(means, nats).sum()
    assert expected > means.sum() + 1e-3
    np.testing.assert_allclose(charged(params, free_bits(nats)), expected, rtol=1e-4)
    found = charged(params, free_bits(nats), beta=3.0)
    np.testing.assert_allclose(found, 3 * expected, rtol=1e-4)


def test_free_bits_per_example_floor_each_examples_whole(params, kls):
    each = kls.sum(axis=1)
    nats = float(np.median(each))
    found = charged(params, free_bits(nats, per="example"))
    np.testing.assert_allclose(found, np.maximum(each, nats).mean(), rtol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("per", ["unit", "example"])
def test_below_the_allowance_the_kl_has_no_gradient(params, per):
    penalty = free_bits(100.0, per=per)

    def charge(params):
        posterior = encode(params, X)
        kl = 0.5 * jnp.sum(posterior.mean**2, axis=-1)
        return penalty(params, posterior, kl, jax.random.key(0), 0)

    gradient = jax.grad(charge)(params).encoder
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_free_bits_are_of_the_kl_and_not_of_an_estimate(params, kls, assert_mean):
    """The maximum of an estimate is above that of its mean."""
    each = kls.sum(axis=1)
    nats = float(each.mean())
    objective = elbo_objective(
        kl="monte_carlo", penalty=free_bits(nats, per="example"), num_samples=1
    )

    def value_and_estimate(key):
        value, metrics = objective(params, X, key, jnp.asarray(0))
        return metrics["log_likelihood"] - value, metrics["kl_divergence"]

    keys = jax.random.split(jax.random.key(2), 1000)
    charges, estimates = jax.jit(jax.vmap(value_and_estimate))(keys)
    assert_mean(estimates, each.mean())
    np.testing.assert_allclose(charges, np.maximum(each, nats).mean(), rtol=1e-3)


def test_capacity_is_the_distance_from_a_target_that_moves(params, kls):
    rate = kls.sum(axis=1).mean()
    target = optax.linear_schedule(0.0, 2 * rate, 10)
    for step, distance in ((0, rate), (5, 0.0), (10, rate)):
        found = charged(params, capacity(target), step=step)
        np.testing.assert_allclose(found, distance, atol=1e-4)
    np.testing.assert_allclose(charged(params, capacity(0.0)), rate, rtol=1e-4)


def test_a_cycle_rises_stays_and_starts_again():
    schedule = cyclic_schedule(2.0, period=10, rising_share=0.4)
    found = [float(schedule(step)) for step in range(20)]
    cycle = [0, 0.5, 1, 1.5, 2, 2, 2, 2, 2, 2]
    np.testing.assert_allclose(found, cycle * 2, rtol=1e-6)


VALUES = np.random.default_rng(3).normal(size=(6, 4)).astype(np.float32) * 2


def log_mean(values, axis=0):
    return scipy.special.logsumexp(values, axis=axis) - np.log(values.shape[axis])


EXPECTED = {
    "grouped": (Grouped(3), log_mean(VALUES.reshape(3, 2, 4), axis=1).mean(axis=0)),
    "combined": (Combined(0.3), 0.3 * VALUES.mean(0) + 0.7 * log_mean(VALUES)),
    "renyi": (Renyi(0.4), log_mean(0.6 * VALUES) / 0.6),
    "renyi, negative": (Renyi(-1.0), log_mean(2 * VALUES) / 2),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_reduction_is_its_formula_and_moves_with_a_constant(name):
    reduction, expected = EXPECTED[name]
    np.testing.assert_allclose(reduction(VALUES), expected, rtol=1e-5)
    moved = reduction(VALUES + 10)
    np.testing.assert_allclose(moved, expected + 10, rtol=1e-5)


def test_the_ends_of_each_family_are_the_mean_and_the_bound():
    mean, bound = sample_mean(VALUES), log_mean_exp(VALUES)
    for reduction in (Grouped(6), Combined(1.0), Renyi(1.0), Renyi(0.999)):
        np.testing.assert_allclose(reduction(VALUES), mean, atol=0.02)
    for reduction in (Grouped(1), Combined(0.0), Renyi(0.0)):
        np.testing.assert_allclose(reduction(VALUES), bound, rtol=1e-5)


@pytest.mark.long
def test_the_bounds_of_a_model_lie_in_their_order(params):
    """Of the same log-weights: the ELBO, then larger and larger groups."""
    ordered = [sample_mean, Grouped(4), Grouped(2), log_mean_exp, Renyi(-1.0)]
    found = [
        importance_weighted_bound(params, X, KEY, num_samples=8, reduction=reduction)
        for reduction in ordered
    ]
    assert np.all(np.diff(np.array(found)) > 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: free_bits(1.0, per="pixel"),
            "per must be unit or example",
        ),
        (lambda: cyclic_schedule(1.0, period=0), "period must be at least 1, got 0"),
        (
            lambda: cyclic_schedule(1.0, period=2, rising_share=0.0),
            r"rising_share must be in \(0, 1\], got 0.0",
        ),
        (lambda: Grouped(4)(VALUES), "num_groups must divide num_samples 6, got 4"),
    ],
)
def test_bad_settings_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


SHAPES = [(6,), (3, 1), (1,)]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_weight_is_one_number(params, shape):
    """Against the examples it would broadcast, and a mean would hide it."""
    several = jnp.ones(shape)
    named = rf"must be a number .*got shape \({shape[0]}"
    for call in (
        lambda beta: elbo_terms(params, X, KEY, beta=beta),
        lambda beta: elbo(params, X, KEY, beta=beta),
        lambda beta: jax.jit(elbo)(params, X, KEY, beta=beta),
        lambda beta: elbo_objective(beta=beta),
        lambda beta: elbo_objective(beta=lambda step: beta)(params, X, KEY, 0),
        free_bits,
        capacity,
        lambda nats: charged(params, capacity(lambda step: nats)),
        total_correlation,
        lambda weight: total_correlation(1.0, unit_kl=weight),
        maximum_mean_discrepancy,
        lambda weight: maximum_mean_discrepancy(1.0, kl_weight=weight),
        lambda threshold: active_units(params, X, threshold=threshold),
    ):
        with pytest.raises(ValueError, match=named):
            call(several)


def test_many_weights_are_mapped(params):
    betas = jnp.array([0.0, 0.5, 2.0])
    run = jax.jit(jax.vmap(lambda beta: elbo_terms(params, X, KEY, beta=beta)))
    terms = run(betas)
    expected = terms.log_likelihood - betas[:, None] * terms.kl_divergence
    assert terms.elbo.shape == (3, 6)
    np.testing.assert_allclose(terms.elbo, expected, rtol=1e-5)


@pytest.mark.parametrize("prior", [MixtureOfGaussians(2), VampPrior(2)], ids=repr)
def test_free_bits_of_an_example_need_a_closed_form(key, prior):
    params = jax.tree.map(jnp.asarray, random_params(replace(SPEC, prior=prior)))
    objective = elbo_objective(penalty=free_bits(0.1, per="example"))
    with pytest.raises(ValueError, match="closed-form KL, and DiagonalGaussianDist"):
        jax.eval_shape(objective, params, X, key, jnp.asarray(0))


def test_free_bits_need_units(key):
    spec = ModelSpec(
        encoder=MLP((4,)),
        decoder=MLP((4,)),
        posterior=PointMass(),
        latent_dim=3,
        data_shape=(5,),
    )
    params = jax.tree.map(jnp.asarray, random_params(spec))
    with pytest.raises(ValueError, match="factorized posteriors"):
        elbo_objective(penalty=free_bits(0.1))(params, X, key, jnp.asarray(0))
