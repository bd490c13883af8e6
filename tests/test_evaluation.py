"""Evaluation: figures that depend on the image alone, and known log p(x)."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from blackjax.diagnostics import psis_weights
from specs import SPECS, example_data, random_params

from vae_jax import (
    LogEvidence,
    PointMass,
    elbo_terms,
    encode,
    evaluate,
    log_evidence,
    log_joint,
    log_weight,
)
from vae_jax.annealing import annealed_log_evidence
from vae_jax.evaluation import evaluation_keys
from vae_jax.types import Distribution

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
        keys = jax.random.split(jax.random.key(0), 6)[:2]
        elbo_key, key = jax.vmap(jax.random.fold_in, (0, None))(keys, index)
        terms = elbo_terms(PARAMS, x[None], elbo_key, num_samples=NUM_SAMPLES)

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
        pareto_k=np.full(NUM_IMAGES, np.inf),  # Seven weights are too few to tell.
    )
    return {"evaluate": terms, "log_evidence": evidence}


@pytest.mark.long
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


@pytest.mark.long
def test_at_the_exact_posterior_the_evidence_is_exact(linear_gaussian):
    case = linear_gaussian
    found = estimates(case.params, case.x, 200)
    everywhere = np.broadcast_to(case.log_evidence, (200, 6))
    np.testing.assert_allclose(found.estimate, everywhere, rtol=1e-10)
    np.testing.assert_allclose(found.standard_error, 0, atol=1e-6)
    np.testing.assert_allclose(found.effective_sample_size, 1000, rtol=1e-10)


@pytest.mark.long
def test_a_q_whose_examples_share_weights_may_be_drawn_from():
    params = random_params(dict(SPECS)["three-stochastic-layers"])
    key, x = jax.random.key(0), jnp.zeros((3, params.spec.data_dim))
    evidence = functools.partial(log_evidence, params, x, key, num_samples=4)
    found = evidence(posterior=encode(params, x)).estimate
    np.testing.assert_allclose(found, evidence().estimate, rtol=1e-5)


@pytest.mark.long
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


# Weights that are known


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KnownWeights(Distribution):
    """Always z = 0, with a log q that makes log-weights of a known distribution.

    offset + normal N(0, 1) + pareto log X, X generalized Pareto of shape k.
    """

    log_joint: jax.Array  # [B], at z = 0; and so on
    offset: jax.Array
    normal: jax.Array
    pareto: jax.Array
    k: jax.Array

    def sample_and_log_prob(self, key, num_samples):
        u = jax.random.uniform(key, (num_samples, self.k.shape[0]), minval=1e-6)
        log_pareto = jnp.log(((1 - u) ** -self.k - 1) / self.k)
        log_normal = jax.scipy.stats.norm.ppf(u)
        log_w = self.offset + self.normal * log_normal + self.pareto * log_pareto
        return jnp.zeros((*u.shape, SPEC.latent_dim)), self.log_joint - log_w


OFFSETS = [(-4e4, 0.01), (-4e4, 1.0), (-4e7, 1.0), (-4e7, 30.0), (4e4, 1.0), (0, 1e-3)]
SHAPES, REPEATS = (-0.5, 0.3, 0.7, 1.5), 60
CASES = np.array(
    [(offset, scale, 0, 1) for offset, scale in OFFSETS]
    + [(-100, 0, 1, k) for k in SHAPES for _ in range(REPEATS)]
    + [(-100, 0, 0, 1), (-np.inf, 0, 0, 1)],
    np.float32,
)


@pytest.fixture(scope="module")
def known_weights():
    """`log_evidence` of each case, and its log-weights `[B, 900]` in float64."""
    size, count, key = 900, len(CASES), jax.random.key(0)

    @jax.jit
    def program(cases, key):
        x = jnp.zeros((count, 5))
        zero = jnp.zeros((1, count, SPEC.latent_dim))
        q = KnownWeights(log_joint(PARAMS, x, zero)[0], *cases.T)
        options = {"num_samples": size, "chunk_size": 400}
        found = log_evidence(PARAMS, x, key, posterior=q, **options)

        def log_q(image, q):
            own = jax.random.fold_in(evaluation_keys(key).evidence, image)
            one = jax.tree.map(lambda leaf: leaf[None], q)
            draw = lambda s: one.sample_and_log_prob(jax.random.fold_in(own, s), 1)[1]  # noqa: E731
            return jax.vmap(draw)(jnp.arange(size))[:, 0, 0]

        return found, q.log_joint, jax.vmap(log_q)(jnp.arange(count), q)

    found, joint, log_q = program(CASES, key)
    # In the precision that the library has to work with, and from there in float64.
    log_w = np.float64(np.asarray(joint)[:, None] - np.asarray(log_q))
    return jax.tree.map(np.asarray, found), log_w


def test_figures_of_weights_far_from_1_are_those_of_numpy(known_weights):
    """In float32, where -4e7 is known to 4 nats only."""
    found, log_w = jax.tree.map(lambda leaf: leaf[: len(OFFSETS)], known_weights)
    weights = np.exp(log_w - log_w.max(axis=1, keepdims=True))
    mean, size = weights.mean(axis=1), weights.shape[1]
    effective = weights.sum(axis=1) ** 2 / (weights**2).sum(axis=1)
    error = weights.std(axis=1, ddof=1) / np.sqrt(size) / mean
    np.testing.assert_allclose(found.effective_sample_size, effective, rtol=1e-4)
    np.testing.assert_allclose(found.standard_error, error, rtol=5e-3)
    estimate = log_w.max(axis=1) + np.log(mean)
    np.testing.assert_allclose(found.estimate, estimate, rtol=2e-7, atol=1e-6)


def test_effective_sample_size_is_between_1_and_the_number_of_samples(known_weights):
    size = known_weights[0].effective_sample_size
    assert np.all((size >= 1) & (size <= 900))


@pytest.mark.long
@pytest.mark.parametrize("number", range(len(SHAPES)))
def test_pareto_k_is_the_one_that_the_weights_were_drawn_with(number, known_weights):
    """Of generalized Pareto weights; blackjax fits the same k to each set of them."""
    start = len(OFFSETS) + number * REPEATS
    found, log_w = (
        part[start : start + REPEATS]
        for part in (known_weights[0][3], known_weights[1])
    )
    tail = 90  # 3 sqrt(900)
    drawn_to_one_half = (tail * SHAPES[number] + 10 * 0.5) / (tail + 10)
    error = np.std(found, ddof=1) / np.sqrt(REPEATS)
    # Zhang & Stephens' estimate has a bias of a few hundredths at this size.
    assert abs(np.mean(found) - drawn_to_one_half) < 5 * error + 0.04
    expected = jax.vmap(lambda w: psis_weights(w)[1])(np.float32(log_w + 100))
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_weights_without_a_tail(known_weights):
    """All equal, and all zero."""
    equal, zero = (
        jax.tree.map(lambda leaf, i=i: leaf[i], known_weights[0]) for i in (-2, -1)
    )
    assert equal.pareto_k == -np.inf and equal.effective_sample_size == 900
    assert zero.estimate == -np.inf and zero.standard_error == np.inf
    assert zero.pareto_k == np.inf


@pytest.mark.long
@pytest.mark.parametrize("function", [log_evidence, annealed_log_evidence])
def test_one_sample_has_an_infinite_error_and_no_nan_on_the_way(function):
    size = "num_samples" if function is log_evidence else "num_chains"
    few = {} if function is log_evidence else {"num_temperatures": 2}
    one = functools.partial(function, **{size: 1}, **few)
    with jax.debug_nans(True):
        found = jax.jit(one)(PARAMS, X, jax.random.key(0))
    np.testing.assert_array_equal(found.standard_error, np.inf)
    np.testing.assert_array_equal(found.effective_sample_size, 1)


@pytest.mark.long
def test_where_the_error_does_not_cover_pareto_k_says_so(linear_gaussian):
    """A q whose variance is r times that of p(z|x) makes weights of k = 1 - r."""
    case = linear_gaussian
    coverage, alarms = [], []
    for ratio in (0.75, 0.1):
        found = estimates(case.with_encoder(np.zeros(2), ratio), case.x, 100)
        off = np.abs(found.estimate - case.log_evidence)
        coverage.append(np.mean(off < 2 * found.standard_error))
        alarms.append(np.mean(np.asarray(found.pareto_k) > 0.7))
    # 600 intervals each: 5 standard errors of a share are at most 0.1.
    assert coverage[0] > 0.954 - 0.05 and alarms[0] < 0.02
    assert coverage[1] < 0.6 and alarms[1] > 0.65


# Keys


@pytest.mark.long
@functions
@pytest.mark.parametrize("generator", ["rbg", "unsafe_rbg"])
def test_other_generators_too_give_an_image_noise_of_its_own(name, generator):
    """Under `vmap` their noise depends on which keys are in the batch."""
    key = jax.random.key(0, impl=generator)

    @jax.jit
    def program(key):
        function = functools.partial(FUNCTIONS[name], num_samples=NUM_SAMPLES)
        whole = function(PARAMS, X, key)
        return whole, function(PARAMS, X[2:], key, first=2, chunk_size=4)

    whole, part = program(key)
    for one, other in zip(whole, part, strict=True):
        np.testing.assert_allclose(one[2:], other, rtol=1e-5)


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
    message = "log evidence needs the density of .*PointMassDistribution has none"
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(log_evidence, *arguments)


def test_integers_and_images_that_are_not_flat_are_refused(key):
    for function in FUNCTIONS.values():
        with pytest.raises(ValueError, match="x must be floating or boolean"):
            jax.eval_shape(function, PARAMS, X.astype(int), key)
        with pytest.raises(ValueError, match="one example per row"):
            jax.eval_shape(function, PARAMS, X[None], key)


def test_float64_stays_float64_throughout(spec, key, x64):
    params, x = jax.tree.map(np.float64, (random_params(spec), example_data(spec)))
    has_density = spec.posterior != PointMass()
    for function in [evaluate, log_evidence][: 1 + has_density]:
        program = jax.make_jaxpr(function)(params, x, key)
        assert {aval.dtype for aval in program.out_avals} == {jnp.dtype("float64")}
        assert "f32[" not in str(program)
