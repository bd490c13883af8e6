"""Objectives, penalties, schedules and reductions as values: equal, traced, swept."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from specs import random_params

from vae_jax import (
    ELBO,
    IWAE,
    MLP,
    PIWAE,
    Capacity,
    Cyclic,
    FreeBits,
    LinearWarmup,
    MaximumMeanDiscrepancy,
    ModelSpec,
    TotalCorrelation,
    capacity,
    cyclic_schedule,
    elbo_objective,
    free_bits,
    importance_weighted_objective,
    importance_weighted_terms,
    init_state,
    maximum_mean_discrepancy,
    partially_importance_weighted_terms,
    total_correlation,
    train_step,
    warmup_schedule,
)
from vae_jax.estimators import (
    Combined,
    Grouped,
    Renyi,
    doubly_reparameterized,
    mean_baseline,
)

SPEC = ModelSpec(encoder=MLP((4,)), decoder=MLP((4,)), latent_dim=3, data_shape=(5,))
X = np.random.default_rng(0).integers(0, 2, (6, 5)).astype(np.float32)
KEY, STEP = jax.random.key(1), jnp.asarray(3)
OPTAX = optax.linear_schedule(0.0, 2.0, 9)

# Each made twice, with another value of its real number in place of `weight`.
MADE = {
    "ELBO": lambda weight: ELBO(beta=weight, num_samples=2, estimator=mean_baseline),
    "warm-up": lambda weight: ELBO(beta=LinearWarmup(weight, num_steps=10)),
    "length of a warm-up": lambda weight: ELBO(
        beta=LinearWarmup(1.0, num_steps=20 * weight)
    ),
    "cycles": lambda weight: ELBO(beta=Cyclic(weight, period=5)),
    "share of a cycle": lambda share: ELBO(
        beta=Cyclic(1.0, period=50, rising_share=share)
    ),
    "free bits": lambda nats: ELBO(penalty=FreeBits(nats, per="example")),
    "capacity": lambda nats: ELBO(penalty=Capacity(LinearWarmup(nats, num_steps=4))),
    "total correlation": lambda weight: ELBO(penalty=TotalCorrelation(weight)),
    "MMD": lambda weight: ELBO(penalty=MaximumMeanDiscrepancy(1.0, kl_weight=weight)),
    "CIWAE": lambda weight: IWAE(num_samples=4, reduction=Combined(weight)),
    "Renyi": lambda alpha: IWAE(num_samples=4, reduction=Renyi(alpha)),
}
WITHOUT_NUMBERS = {
    "optax": lambda: ELBO(beta=OPTAX, penalty=FreeBits(0.1)),
    "MIWAE": lambda: IWAE(num_samples=4, reduction=Grouped(2)),
    "DReG": lambda: IWAE(num_samples=4, estimator=doubly_reparameterized),
    "PIWAE": lambda: PIWAE(num_samples=4, num_groups=2),
}
EVERY = WITHOUT_NUMBERS | {
    name: functools.partial(make, 0.5) for name, make in MADE.items()
}


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(jnp.asarray, random_params(SPEC))


@pytest.mark.parametrize("make", EVERY.values(), ids=EVERY)
def test_equal_objectives_are_equal_and_hash_alike(make):
    assert make() == make() and hash(make()) == hash(make())
    assert jax.tree.structure(make()) == jax.tree.structure(make())
    leaves, structure = jax.tree.flatten(make())
    assert jax.tree.unflatten(structure, leaves) == make()
    assert all(isinstance(leaf, int | float) for leaf in leaves)


def traced(**how):
    """A compiled value of an objective, and the list of its traces."""
    traces = []

    @functools.partial(jax.jit, **how)
    def value(params, objective):
        traces.append(None)
        return objective(params, X, KEY, STEP)[0]

    return value, traces


@pytest.mark.parametrize("make", EVERY.values(), ids=EVERY)
@pytest.mark.parametrize("how", [{}, {"static_argnums": 1}], ids=["pytree", "static"])
def test_an_equal_objective_compiles_nothing_again(params, make, how):
    value, traces = traced(**how)
    assert value(params, make()) == value(params, make())
    assert len(traces) == 1


@pytest.mark.long
@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_a_real_number_is_traced_and_swept(params, make):
    value, traces = traced()
    weights = (0.25, 0.5, 1.0)
    alone = [value(params, make(weight)) for weight in weights]
    assert len(traces) == 1
    several = jax.tree.map(lambda *leaves: jnp.array(leaves), *map(make, weights))
    together = jax.vmap(value, in_axes=(None, 0))(params, several)
    np.testing.assert_allclose(together, alone, rtol=1e-4)
    inside = jax.vmap(lambda weight: value(params, make(weight)))(jnp.array(weights))
    np.testing.assert_allclose(inside, alone, rtol=1e-4)
    assert len(set(map(float, alone))) == 3


def test_several_numbers_that_are_not_mapped_are_refused(params):
    several = jax.tree.map(lambda *leaves: jnp.array(leaves), ELBO(), ELBO())
    with pytest.raises(ValueError, match=r"beta must be a number .*shape \(2,\)"):
        several(params, X, KEY, STEP)


def test_another_count_or_function_compiles_again(params):
    value, traces = traced()
    for objective in (ELBO(), ELBO(num_samples=2), ELBO(estimator=mean_baseline)):
        value(params, objective)
    assert len(traces) == 3


def test_a_step_takes_its_objective_as_an_argument(params):
    sgd = optax.sgd(0.1)
    state = init_state(params, KEY, optimizer=sgd)

    @jax.jit
    def step(state, objective):
        return train_step(state, X, objective=objective, optimizer=sgd)

    _, given = step(state, ELBO(beta=0.5))
    _, closed = jax.jit(
        functools.partial(train_step, objective=ELBO(beta=0.5), optimizer=sgd)
    )(state, X)
    assert given["objective"] == pytest.approx(float(closed["objective"]), rel=1e-6)


@pytest.mark.long
def test_the_gradient_by_an_option_is_that_of_its_formula(params):
    """The value is log-likelihood - beta KL."""

    def value(objective):
        return objective(params, X, KEY, STEP)

    gradient, metrics = jax.grad(value, has_aux=True)(ELBO(beta=0.5))
    np.testing.assert_allclose(gradient.beta, -metrics["kl_divergence"], rtol=1e-6)


def test_the_names_of_the_constructors_stay():
    assert elbo_objective(beta=0.5, penalty=free_bits(0.1, per="unit")) == ELBO(
        beta=0.5, penalty=FreeBits(0.1)
    )
    assert capacity(warmup_schedule(2.0, num_steps=3)) == Capacity(
        LinearWarmup(2.0, num_steps=3)
    )
    assert cyclic_schedule(1.0, period=4) == Cyclic(1.0, period=4)
    assert total_correlation(6.0, unit_kl=2.0) == TotalCorrelation(6.0, unit_kl=2.0)
    assert maximum_mean_discrepancy(1.0) == MaximumMeanDiscrepancy(1.0)
    assert importance_weighted_objective(num_samples=4, reduction=Renyi(0.5)) == IWAE(
        num_samples=4, reduction=Renyi(0.5)
    )
    assert importance_weighted_objective(
        num_samples=4, terms=partially_importance_weighted_terms, num_groups=2
    ) == PIWAE(num_samples=4, num_groups=2)


@pytest.mark.long
def test_a_bound_of_ones_own_is_an_objective(params):
    """Its options are its own."""

    def scaled_terms(params, x, key, *, num_samples, scale, labels):
        terms = importance_weighted_terms(
            params, x, key, num_samples=num_samples, labels=labels
        )
        return terms._replace(bound=scale * terms.bound)

    own = importance_weighted_objective(num_samples=4, terms=scaled_terms, scale=3.0)
    value, metrics = own(params, X, KEY, STEP, axis_name=None)
    expected, others = IWAE(num_samples=4)(params, X, KEY, STEP)
    np.testing.assert_allclose(value, 3 * expected, rtol=1e-6)
    assert metrics == others


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ELBO(num_samples=0), "num_samples must be at least 1, got 0"),
        (lambda: IWAE(num_samples=0), "num_samples must be at least 1, got 0"),
        (
            lambda: IWAE(num_samples=6, reduction=Grouped(4)),
            "num_groups must divide num_samples 6, got 4",
        ),
        (
            lambda: PIWAE(num_samples=6, num_groups=4),
            "num_groups must divide num_samples 6, got 4",
        ),
        (lambda: LinearWarmup(jnp.ones(2), num_steps=1), "peak must be a number"),
        (lambda: LinearWarmup(1.0, num_steps=jnp.ones(2)), "num_steps must be a num"),
        (lambda: Cyclic(jnp.ones(2), period=1), "peak must be a number"),
    ],
)
def test_bad_options_are_refused_when_they_are_built(make, message):
    with pytest.raises(ValueError, match=message):
        make()
