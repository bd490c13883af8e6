"""Reductions over samples; the Renyi bound around order 1 in 50-digit arithmetic."""

import decimal
from decimal import Decimal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vae_jax.estimators import Combined, Grouped, Renyi

RNG = np.random.default_rng(0)
EPSILON = np.finfo(np.float32).eps
DISTANCES = [sign * 10.0**-k for k in range(1, 8) for sign in (1, -1)]

# Log-weights [8, 2] with spreads from 0.01 to hundreds of nats.
LOG_WEIGHTS = {
    "narrow": 0.01 * RNG.normal(size=(8, 2)),
    "ordinary": RNG.normal(size=(8, 2)),
    "wide": -500 + 200 * RNG.normal(size=(8, 2)),
    "far": -1e4 + 10 * RNG.normal(size=(8, 2)),
}
LOG_WEIGHTS = {name: v.astype(np.float32) for name, v in LOG_WEIGHTS.items()}


def exact(t, column):
    """Bound at order 1 - t, and its derivatives by the values and the order."""
    with decimal.localcontext(decimal.Context(prec=50)):
        v, t = [Decimal(float(value)) for value in column], Decimal(float(t))
        mean = sum(v) / len(v)
        if t == 0:
            variance = sum((value - mean) ** 2 for value in v) / len(v)
            return mean, [Decimal(1) / len(v)] * len(v), -variance / 2
        weights = [(t * value).exp() for value in v]
        total = sum(weights)
        weights = [weight / total for weight in weights]
        bound = (total / len(v)).ln() / t
        tilted = sum(weight * value for weight, value in zip(weights, v, strict=True))
        return bound, weights, -(tilted - bound) / t


def exact_columns(t, values):
    bounds, weights, slopes = zip(*(exact(t, v) for v in values.T), strict=True)
    return np.float64(bounds), np.float64(weights).T, np.float64(slopes)


@pytest.fixture(scope="module")
def by_traced_order():
    """Bound and its gradients by values and order, for many traced orders."""

    def everything(alpha, values):
        def bound(alpha, values):
            return Renyi(alpha)(values)

        by_values = jax.grad(lambda values: jnp.sum(bound(alpha, values)))(values)
        return bound(alpha, values), by_values, jax.jacfwd(bound)(alpha, values)

    return jax.jit(jax.vmap(everything, (0, None)))


@pytest.mark.parametrize("name", LOG_WEIGHTS)
def test_the_renyi_bound_is_exact_to_rounding_through_order_1(name, by_traced_order):
    values = LOG_WEIGHTS[name]
    alphas = np.float32([1 - t for t in DISTANCES] + [1.0, 0.5, 0.0, -1.0, 3.0])
    found = [np.float64(part) for part in by_traced_order(alphas, values)]
    size, spread = np.abs(values).max(), np.ptp(values, axis=0).max()
    for alpha, bound, by_values, by_order in zip(alphas, *found, strict=True):
        expected = exact_columns(1 - np.float64(alpha), values)
        np.testing.assert_allclose(bound, expected[0], rtol=0, atol=4 * EPSILON * size)
        np.testing.assert_allclose(by_values, expected[1], rtol=0, atol=2e-6)
        np.testing.assert_allclose(
            by_order, expected[2], rtol=1e-5, atol=EPSILON * spread**2
        )


@pytest.mark.parametrize("t", [0.01, -1e-6])
def test_an_order_that_is_a_number_gives_the_same_bound(t):
    values = LOG_WEIGHTS["ordinary"]
    found = jax.jit(Renyi(1 - t))(values)
    expected = exact_columns(t, values)[0]
    np.testing.assert_allclose(found, expected, rtol=0, atol=8 * EPSILON)


def test_the_renyi_bound_is_exact_in_double_precision(x64):
    values = np.float64(LOG_WEIGHTS["ordinary"])
    compiled = jax.jit(lambda alpha, values: Renyi(alpha)(values))
    for t in (0.25, 0.01, -1e-6, -0.3):
        expected = exact_columns(1 - (1 - t), values)[0]
        found = compiled(1 - t, values)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-14)


def test_a_weight_of_zero_has_a_bound_and_a_gradient_where_they_exist():
    values = np.float32([[0.0], [-np.inf]])
    bound = jax.jit(jax.value_and_grad(lambda values, a: Renyi(a)(values)[0]))
    value, gradient = bound(values, 0.5)
    assert value == pytest.approx(2 * np.log(0.5), rel=1e-6)
    np.testing.assert_allclose(gradient, [[1.0], [0.0]])
    assert bound(values, 2.0)[0] == -np.inf
    assert bound(np.float32([[-np.inf], [-np.inf]]), 0.5)[0] == -np.inf


def test_a_part_without_weight_does_not_count_where_a_sample_has_density_0():
    values = np.float32([[0.0, -np.inf], [-np.inf, -np.inf]])
    expected = [np.log(0.5), -np.inf]
    np.testing.assert_allclose(jax.jit(Combined(0.0))(values), expected, rtol=1e-6)
    np.testing.assert_array_equal(jax.jit(Combined(1.0))(values), -np.inf)
    np.testing.assert_array_equal(jax.jit(Renyi(1.0))(values), -np.inf)


@pytest.mark.parametrize("reduction", [Renyi, Combined])
def test_settings_that_would_belong_to_an_example_each_are_refused(reduction):
    settings = jnp.array([0.0, 1.0])
    with pytest.raises(ValueError, match=r"got shape \(2,\); use jax.vmap"):
        reduction(settings)(jnp.zeros((3, 2)))


@pytest.mark.parametrize("alpha", [np.nan, np.inf, -np.inf])
def test_an_order_that_is_not_finite_is_refused(alpha):
    with pytest.raises(ValueError, match="alpha must be finite, got"):
        Renyi(alpha)


@pytest.mark.parametrize("weight", [-0.1, 1.5, np.nan])
def test_a_combination_that_is_not_convex_is_refused(weight):
    with pytest.raises(ValueError, match="weight must be between 0 and 1, got"):
        Combined(weight)


def test_equal_reductions_share_a_program_and_a_setting_may_be_swept():
    values = LOG_WEIGHTS["ordinary"]
    compiled = jax.jit(lambda values, reduction: reduction(values), static_argnums=1)
    for _ in range(2):
        compiled(values, Grouped(1))
        compiled(values, Renyi(0.5))
    assert compiled._cache_size() == 2
    alphas = np.float32([0.0, 0.5, 1.0])
    swept = jax.vmap(lambda reduction: reduction(values))(Renyi(alphas))
    for alpha, bound in zip(alphas, swept, strict=True):
        expected = exact_columns(1 - np.float64(alpha), values)[0]
        np.testing.assert_allclose(bound, expected, rtol=1e-6)
