"""Moments over draws and their errors, against NumPy and SciPy on the same draws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from vae_jax.estimators import gradient_moments

P = functools.partial
NUM_DRAWS = 3001
NOTHING = np.float32(0)
SCALES = np.float32([[0.5, -2.0, 3.0], [1.0, 4.0, 0.1]])


def skewed(key, offset):
    """Draw correlated exponential variables: a matrix, a scalar and a pair."""
    numbers = jax.random.exponential(key, (2, 3))
    pair = jnp.stack([numbers[0, 0] - 2 * numbers[1, 1], numbers[1, 2]])
    return {"matrix": SCALES * numbers + offset, "rest": (numbers[0, 1], pair)}


@P(jax.jit, static_argnums=(1, 2))
def moments_of(key, num_draws, chunk_size, offset=NOTHING):
    draw = P(skewed, offset=offset)
    return gradient_moments(draw, key, num_draws=num_draws, chunk_size=chunk_size)


@P(jax.jit, static_argnums=1)
def draws_of(key, num_draws, offset=NOTHING):
    keys = jax.vmap(P(jax.random.fold_in, key))(jnp.arange(num_draws))
    return jax.vmap(P(skewed, offset=offset))(keys)


@pytest.fixture(scope="module")
def stored():
    """Moments in chunks of 512 draws, and the draws themselves."""
    key = jax.random.key(0)
    draws = draws_of(key, NUM_DRAWS)
    return moments_of(key, NUM_DRAWS, 512), jax.tree.map(np.float64, draws)


def assert_trees_are_close(actual, expected, rtol):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    paths = jax.tree.leaves_with_path(actual)
    for (path, leaf), other in zip(paths, jax.tree.leaves(expected), strict=True):
        assert np.shape(leaf) == np.shape(other), path
        np.testing.assert_allclose(leaf, other, rtol=rtol, err_msg=str(path))


def test_parameters_have_numpys_mean_and_variance(stored):
    found, draws = stored
    expected = jax.tree.map(lambda leaf: leaf.mean(axis=0), draws)
    assert_trees_are_close(found.parameters.mean, expected, 1e-4)
    expected = jax.tree.map(lambda leaf: leaf.var(axis=0, ddof=1), draws)
    assert_trees_are_close(found.parameters.variance, expected, 1e-4)
    assert found.num_draws == NUM_DRAWS


def test_the_standard_errors_follow_from_scipys_moments(stored):
    """The error of the variance depends on the kurtosis, that of the ratio on both."""
    found, draws = stored
    n = NUM_DRAWS

    def of_mean(leaf):
        return scipy.stats.sem(leaf, axis=0)

    def of_variance(leaf):
        variance = leaf.var(axis=0, ddof=1)
        fourth = scipy.stats.moment(leaf, 4, axis=0)
        return np.sqrt((fourth - variance**2 * (n - 3) / (n - 1)) / n)

    def of_ratio(leaf):
        ratio = np.abs(leaf.mean(axis=0)) / leaf.std(axis=0)
        skewness = np.sign(leaf.mean(axis=0)) * scipy.stats.skew(leaf, axis=0)
        excess = scipy.stats.kurtosis(leaf, axis=0, fisher=False) - 1
        return np.sqrt((1 - ratio * skewness + ratio**2 * excess / 4) / n)

    def ratio(leaf):
        return np.abs(leaf.mean(axis=0)) / leaf.std(axis=0, ddof=1)

    figures = found.parameters
    for actual, expected, rtol in (
        (figures.mean_standard_error, of_mean, 1e-4),
        (figures.variance_standard_error, of_variance, 1e-3),
        (figures.signal_to_noise, ratio, 1e-4),
        (figures.signal_to_noise_standard_error, of_ratio, 1e-3),
    ):
        assert_trees_are_close(actual, jax.tree.map(expected, draws), rtol)


def test_leaves_have_the_norm_of_the_mean_and_the_sum_of_variances(stored):
    found, draws = stored

    def variance(leaf):
        return np.sum(leaf.var(axis=0, ddof=1))

    def norm(leaf):
        square = np.sum(leaf.mean(axis=0) ** 2) - variance(leaf) / NUM_DRAWS
        return np.sqrt(max(square, 0))

    expected = jax.tree.map(variance, draws)
    assert_trees_are_close(found.leaves.variance, expected, 1e-4)
    assert_trees_are_close(found.leaves.mean, jax.tree.map(norm, draws), 1e-3)
    expected = jax.tree.map(lambda leaf: norm(leaf) / np.sqrt(variance(leaf)), draws)
    assert_trees_are_close(found.leaves.signal_to_noise, expected, 1e-3)
    cost = found.cost_adjusted_variance(0.25)
    expected = jax.tree.map(lambda leaf: 0.25 * variance(leaf), draws)
    assert_trees_are_close(cost, expected, 1e-4)


def test_a_leaf_of_one_number_has_the_figures_of_the_number(stored):
    """Its errors are computed around the mean of the first chunk: wide tolerance."""
    found, _ = stored
    for field, of_leaf, of_parameter in zip(
        found.leaves._fields, found.leaves, found.parameters, strict=True
    ):
        rtol = 0.1 if field.endswith("error") else 1e-3
        np.testing.assert_allclose(
            of_leaf["rest"][0], of_parameter["rest"][0], rtol=rtol, err_msg=field
        )


@pytest.mark.parametrize("chunk_size", [100, 5000])
def test_the_figures_do_not_depend_on_the_chunks(chunk_size, stored):
    """A chunk size leaving one draw for the last chunk, and one above the total."""
    found = moments_of(jax.random.key(0), NUM_DRAWS, chunk_size)
    assert_trees_are_close(found.parameters, stored[0].parameters, 1e-3)
    for field, of_leaf, expected in zip(
        found.leaves._fields, found.leaves, stored[0].leaves, strict=True
    ):
        rtol = 0.1 if field.endswith("error") else 1e-3
        assert_trees_are_close(of_leaf, expected, rtol)


def test_two_draws_are_enough(key):
    figures = moments_of(key, 2, 1000)
    draws = jax.tree.map(np.float64, draws_of(key, 2))
    expected = jax.tree.map(lambda leaf: leaf.var(axis=0, ddof=1), draws)
    assert_trees_are_close(figures.parameters.variance, expected, 1e-4)


def test_a_huge_offset_keeps_the_digits(key):
    """Mean 1e4, deviations from 0.1: naive sums of squares would cancel."""
    offset = np.float32(1e4)
    figures = moments_of(key, NUM_DRAWS, 512, offset).parameters
    draws = np.float64(draws_of(key, NUM_DRAWS, offset)["matrix"])
    np.testing.assert_allclose(figures.mean["matrix"], draws.mean(axis=0), rtol=2e-7)
    np.testing.assert_allclose(
        figures.variance["matrix"], draws.var(axis=0, ddof=1), rtol=1e-3
    )
    np.testing.assert_allclose(
        figures.mean_standard_error["matrix"],
        scipy.stats.sem(draws, axis=0),
        rtol=1e-3,
    )


@pytest.fixture(scope="module")
def repeated():
    """Moments for 200 keys, each of 2000 draws of exponential variables."""

    def draw(key):
        return 2.0 + jnp.float32([1.0, 3.0]) * jax.random.exponential(key, (2,))

    @jax.jit
    @jax.vmap
    def figures(key):
        return gradient_moments(draw, key, num_draws=2000)

    keys = jax.random.split(jax.random.key(3), 200)
    return jax.tree.map(np.float64, figures(keys))


@pytest.mark.parametrize("kind", ["parameters", "leaves"])
@pytest.mark.parametrize("field", ["mean", "variance", "signal_to_noise"])
def test_the_standard_errors_are_the_spread_of_repetitions(kind, field, repeated):
    figures = getattr(repeated, kind)
    estimates = getattr(figures, field)
    errors = getattr(figures, f"{field}_standard_error")
    ratio = estimates.std(axis=0, ddof=1) / errors.mean(axis=0)
    assert np.all(np.abs(ratio - 1) < 0.25), ratio


@pytest.mark.parametrize("kind", ["parameters", "leaves"])
def test_the_estimates_are_unbiased(kind, repeated, assert_mean):
    """An exponential variable with mean c has variance c^2."""
    figures = getattr(repeated, kind)
    mean, variance = np.array([3.0, 5.0]), np.array([1.0, 9.0])
    if kind == "leaves":
        mean, variance = np.linalg.norm(mean), variance.sum()
    assert_mean(figures.mean, mean)
    assert_mean(figures.variance, variance)


def test_the_norm_of_a_mean_of_zero_is_not_its_noise(key):
    """Without the correction it would be about sqrt(variance / n)."""
    figures = jax.jit(
        lambda key: gradient_moments(
            lambda key: jax.random.normal(key, (100,)), key, num_draws=1000
        ),
    )(key)
    assert figures.leaves.mean < 0.6 * np.sqrt(100 / 1000)
    np.testing.assert_allclose(figures.leaves.variance, 100, rtol=0.05)


def test_figures_without_a_variance_are_what_they_can_be(key):
    figures = jax.jit(
        lambda key: gradient_moments(
            lambda key: {"three": jnp.full(2, 3.0), "zero": jnp.zeros(2)},
            key,
            num_draws=10,
        ),
    )(key)
    for kind in (figures.parameters, figures.leaves):
        for name in ("three", "zero"):
            np.testing.assert_array_equal(kind.variance[name], 0)
            np.testing.assert_array_equal(kind.mean_standard_error[name], 0)
        assert np.all(np.isinf(kind.signal_to_noise["three"]))
        assert np.all(np.isnan(kind.signal_to_noise["zero"]))
    np.testing.assert_array_equal(figures.parameters.mean["three"], 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_draws": 1}, "num_draws must be at least 2, got 1"),
        ({"num_draws": 5, "chunk_size": 0}, "chunk_size must be at least 1, got 0"),
    ],
)
def test_too_few_draws_are_refused(options, message, key):
    with pytest.raises(ValueError, match=message):
        gradient_moments(jax.random.normal, key, **options)


def test_float64_stays_float64(key, x64):
    def draw(key):
        return jax.random.normal(key, (2,), jnp.float64)

    figures = jax.eval_shape(P(gradient_moments, draw, num_draws=7), key)
    leaves = jax.tree.leaves((figures.parameters, figures.leaves))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float64")}
