"""Evaluation: figures that depend on the image alone, and known log p(x)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from conftest import SPECS, example_data, random_params

from vae_jax import (
    LogEvidence,
    PointMass,
    elbo_terms,
    encode,
    evaluate,
    log_evidence,
    log_weight,
)

SPEC = dict(SPECS)["linear-gaussian"]
PARAMS = random_params(SPEC)
NUM_IMAGES, NUM_SAMPLES = 5, 7
X = np.random.default_rng(0).normal(size=(NUM_IMAGES, 5)).astype(np.float32)
FUNCTIONS = {"evaluate": evaluate, "log_evidence": log_evidence}
functions = pytest.mark.parametrize("name", FUNCTIONS)
# What is computed at once: a chunk size, and the first image of a part of the data.
CUTS = {
    ("evaluate", "two of the last three"): {"chunk_size": 14, "first": 2},
    ("log_evidence", "part of an image"): {"chunk_size": 4},
    ("log_evidence", "the last three"): {"chunk_size": 1000, "first": 2},
}


@pytest.fixture(scope="module")
def figures():
    """Each function for its cuts, from one compiled program."""

    @jax.jit
    def program(params, x, key):
        return {
            (name, cut): FUNCTIONS[name](
                params,
                x[options.get("first", 0) :],
                key,
                num_samples=NUM_SAMPLES,
                **options,
            )
            for (name, cut), options in CUTS.items()
        }

    return program(PARAMS, X, jax.random.key(0))


@pytest.fixture(scope="module")
def by_hand():
    """The same from the ELBO of each image, and the weight of each sample, alone."""

    @jax.jit
    @jax.vmap
    def program(x, index):
        key = jax.random.fold_in(jax.random.key(0), index)
        terms = elbo_terms(PARAMS, x[None], key, num_samples=NUM_SAMPLES)

        def sample(s):
            draw = encode(PARAMS, x[None]).sample_and_log_prob
            return log_weight(PARAMS, x[None], *draw(jax.random.fold_in(key, s), 1))

        log_w = jax.lax.map(sample, jnp.arange(NUM_SAMPLES))
        return jax.tree.map(lambda leaf: leaf[0], terms), log_w[:, 0, 0]

    terms, log_w = program(X, np.arange(NUM_IMAGES))
    log_w = np.float64(log_w)
    weights = np.exp(log_w - log_w.max(axis=1, keepdims=True))
    error = weights.std(axis=1, ddof=1) / np.sqrt(NUM_SAMPLES)
    evidence = LogEvidence(
        estimate=scipy.special.logsumexp(log_w, axis=1) - np.log(NUM_SAMPLES),
        standard_error=error / weights.mean(axis=1),
        effective_sample_size=weights.sum(axis=1) ** 2 / (weights**2).sum(axis=1),
    )
    return {"evaluate": terms, "log_evidence": evidence}


@pytest.mark.parametrize(("name", "cut"), CUTS)
def test_an_images_figures_do_not_depend_on_what_is_computed_with_it(
    name, cut, figures, by_hand
):
    """Image i has the noise of its number, whatever the chunks and the data set."""
    first = CUTS[name, cut].get("first", 0)
    for actual, expected in zip(figures[name, cut], by_hand[name], strict=True):
        assert actual.shape == (NUM_IMAGES - first,)
        np.testing.assert_allclose(actual, expected[first:], rtol=1e-4)


# The linear-Gaussian model


@functools.partial(jax.jit, static_argnames="num_keys")
def estimates(params, x, num_keys):
    def one(key):
        return log_evidence(params, x, key, num_samples=1000, chunk_size=300)

    return jax.lax.map(one, jax.random.split(jax.random.key(0), num_keys))


def test_at_the_exact_posterior_the_evidence_is_exact(linear_gaussian):
    case = linear_gaussian
    found = estimates(case.params, case.x, 200)
    everywhere = np.broadcast_to(case.log_evidence, (200, 6))
    np.testing.assert_allclose(found.estimate, everywhere, rtol=1e-10)
    np.testing.assert_allclose(found.standard_error, 0, atol=1e-6)
    np.testing.assert_allclose(found.effective_sample_size, 1000, rtol=1e-10)


def test_another_q_may_be_drawn_from(linear_gaussian):
    """The exact posterior in place of an encoder that is shifted and too narrow."""
    bad = linear_gaussian.with_encoder(np.array([3.0, -3.0]), 0.01)
    q = encode(linear_gaussian.params, linear_gaussian.x)
    evidence = functools.partial(log_evidence, num_samples=7, chunk_size=3)
    found = jax.jit(evidence)(bad, linear_gaussian.x, jax.random.key(0), posterior=q)
    np.testing.assert_allclose(found.estimate, linear_gaussian.log_evidence, rtol=1e-6)
    np.testing.assert_allclose(found.effective_sample_size, 7, rtol=1e-6)
    alone = evidence(bad, linear_gaussian.x, jax.random.key(0))
    assert np.all(alone.estimate < linear_gaussian.log_evidence - 5)


def test_elsewhere_the_standard_error_is_calibrated(linear_gaussian):
    """z-scores over many keys have mean 0 and variance 1."""
    case = linear_gaussian
    params = case.with_encoder(np.array([0.3, -0.2]), np.array([1.4, 0.9]))
    found = jax.tree.map(np.asarray, estimates(params, case.x, 200))
    assert np.all(found.standard_error > 0.005)
    assert np.all(
        (found.effective_sample_size > 1) & (found.effective_sample_size < 1000)
    )
    z = (found.estimate - case.log_evidence) / found.standard_error
    assert np.abs(z).max() < 5
    # The bias of the logarithm, about half the squared error, is part of the mean.
    count = z.size
    bias = -0.5 * found.standard_error.mean()
    assert abs(z.mean() - bias) < 5 / np.sqrt(count)
    assert abs(z.var() - 1) < 5 * np.sqrt(2 / count)


# What it costs


def test_memory_does_not_grow_with_the_number_of_samples():
    function = functools.partial(log_evidence, num_samples=100_000, chunk_size=100)
    program = jax.jit(function).lower(PARAMS, X, jax.random.key(0)).compile()
    latents = 100_000 * SPEC.latent_dim * 4  # bytes, of one image
    assert program.memory_analysis().temp_size_in_bytes < latents / 10


# What it refuses


@functions
@pytest.mark.parametrize("option", ["num_samples", "chunk_size"])
@pytest.mark.parametrize("value", [0, -1])
def test_sizes_below_one_are_refused(name, option, value):
    with pytest.raises(ValueError, match=f"{option} must be at least 1, got {value}"):
        FUNCTIONS[name](PARAMS, X, jax.random.key(0), **{option: value})


def test_a_point_mass_has_an_elbo_but_no_evidence(key):
    spec = dict(SPECS)["users-own-autoencoder"]
    assert spec.posterior == PointMass()
    arguments = random_params(spec), example_data(spec), key
    terms = jax.jit(evaluate)(*arguments)
    np.testing.assert_array_equal(terms.kl_divergence, np.zeros(4))
    np.testing.assert_array_equal(terms.elbo, terms.log_likelihood)
    message = "log evidence needs the density of .*PointMassPosterior has none"
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(log_evidence, *arguments)


def test_integers_and_images_that_are_not_flat_are_refused(key):
    for function in FUNCTIONS.values():
        with pytest.raises(ValueError, match="x must be floating or boolean"):
            jax.eval_shape(function, PARAMS, X.astype(int), key)
        with pytest.raises(AssertionError):
            jax.eval_shape(function, PARAMS, X[None], key)


def test_float64_stays_float64_throughout(spec, key, x64):
    params, x = jax.tree.map(np.float64, (random_params(spec), example_data(spec)))
    has_density = spec.posterior != PointMass()
    for function in [evaluate, log_evidence][: 1 + has_density]:
        program = jax.make_jaxpr(function)(params, x, key)
        assert {aval.dtype for aval in program.out_avals} == {jnp.dtype("float64")}
        assert "f32[" not in str(program)
