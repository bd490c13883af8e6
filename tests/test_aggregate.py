"""The parts of the KL against quadrature, the MMD against loops, PIWAE against both."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from conftest import SPECS, example_data, random_params

from vae_jax import (
    PointMass,
    elbo_objective,
    encode,
    importance_weighted_bound,
    importance_weighted_objective,
    maximum_mean_discrepancy,
    partially_importance_weighted_bound,
    total_correlation,
)
from vae_jax.aggregate import KERNEL_SCALES, kl_decomposition, squared_mmd
from vae_jax.estimators import Grouped
from vae_jax.posteriors import DiagonalGaussianPosterior, FullGaussianPosterior

SPEC = dict(SPECS)["mlp-bernoulli"]
PARAMS = random_params(SPEC)
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


def decomposition(dataset_size=None):
    """Of every example of the mixture as often as the others."""
    mean, log_var = (
        jnp.asarray(np.tile(leaf, (400, 1)), jnp.float32)
        for leaf in (MEANS, 2 * np.log(SCALES))
    )
    posterior = DiagonalGaussianPosterior(mean, log_var)
    keys = jax.random.split(jax.random.key(0), 20)
    run = functools.partial(
        kl_decomposition, PARAMS, posterior, dataset_size=dataset_size
    )
    return jax.jit(lambda keys: jax.lax.map(run, keys))(keys)


def test_the_parts_are_those_of_quadrature(assert_mean):
    for part, expected in zip(decomposition(), by_quadrature(), strict=True):
        assert expected > 0.05
        assert_mean(part, expected)


@pytest.mark.slow
def test_the_size_of_the_data_set_shifts_the_parts_and_not_their_sum():
    alone, of_many = decomposition(), decomposition(dataset_size=60_000)
    shift = np.log(60_000)
    shifts = (shift, shift, -2 * shift)
    for part, other, expected in zip(alone, of_many, shifts, strict=True):
        np.testing.assert_allclose(other - part, expected, rtol=1e-3)
    np.testing.assert_allclose(sum(alone), sum(of_many), atol=1e-3)


def test_a_posterior_with_correlations_has_no_units():
    posterior = FullGaussianPosterior(*jnp.zeros((2, 4, 3)), jnp.zeros((4, 3)))
    with pytest.raises(ValueError, match="factorized posteriors, got FullGaussian"):
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
        child = jax.random.fold_in(key, 1)
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
