"""Data and labels that a model cannot have: refused where known, NaN where traced."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
from specs import random_params

from vae_jax import (
    MLP,
    Bernoulli,
    Categorical,
    ClassConditionalPrior,
    Conditions,
    ContinuousBernoulli,
    DiscretizedLogistic,
    FullCovarianceGaussian,
    Gaussian,
    Linear,
    ModelSpec,
    PerPixelGaussian,
    active_units,
    aggregate_posterior,
    annealed_log_evidence,
    data,
    decode,
    elbo,
    encode,
    evaluate,
    exact,
    fit_posterior,
    generate,
    importance_weighted_bound,
    inference_gap,
    init,
    kl_per_unit,
    log_evidence,
    log_joint,
    log_prior,
    mcmc,
)
from vae_jax.distributions import discretized_logistic
from vae_jax.networks import with_output_bias

SMALL = functools.partial(
    ModelSpec, encoder=MLP((4,)), decoder=MLP((4,)), latent_dim=2, data_shape=(3,)
)
NAN = float("nan")
KEY = jax.random.key(0)
Z = jnp.zeros((1, 1, 2))


@functools.cache
def model(likelihood):
    # The first to ask may be tracing, and a tracer must not be kept.
    with jax.ensure_compile_time_eval():
        return jax.tree.map(jnp.asarray, random_params(SMALL(likelihood=likelihood)))


def row(value):
    """One example, of which one pixel is in question."""
    return np.array([[0.0, value, 1.0]], np.float32)


# Observations

BOUNDED = {
    "bernoulli": Bernoulli(),
    "continuous": ContinuousBernoulli(),
    "categorical": Categorical(3),
    "logistic": DiscretizedLogistic(3, num_components=2),
}
REAL = {
    "gaussian": Gaussian(),
    "per pixel": PerPixelGaussian(),
    "full": FullCovarianceGaussian(),
}
OUTSIDE = {
    "raw": (255.0, r"x must lie in \[0, 1\], got values from 0 to 255; divide"),
    "above": (2.0, r"x must lie in \[0, 1\], got values from 0 to 2; "),
    "wraps": (-1 / 3, r"x must lie in \[0, 1\], got values from -0\.333"),
    "nan": (NAN, "x must be finite, got NaN or infinity in 1 of 3 values"),
    "infinity": (np.inf, "x must be finite"),
}


def density(params, x):
    return decode(params, Z).log_prob(x)[0, 0]


@pytest.mark.long
@pytest.mark.parametrize("name", BOUNDED)
def test_outside_its_support_a_likelihood_is_nan_and_refused(name):
    params = model(BOUNDED[name])
    cases = dict(OUTSIDE)
    if name in ("categorical", "logistic"):
        cases["between levels"] = 0.1, "x must hold 3 evenly spaced levels .* got 0.1 "
    else:
        assert np.isfinite(density(params, row(0.1)))
    both = jax.jit(jax.value_and_grad(density))
    for value, expected in cases.values():
        with pytest.raises(ValueError, match=expected):
            density(params, row(value))
        log_prob, gradient = both(params, row(value))
        assert np.isnan(log_prob), value
        # Who looks at gradients alone must see it, too.
        assert np.isnan(gradient.decoder["output"]["bias"]).any(), value
    for value in (0.0, 0.5, 1.0):
        log_prob, gradient = both(params, row(value))
        assert np.isfinite(log_prob)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.long
@pytest.mark.parametrize("name", REAL)
def test_a_density_of_real_numbers_takes_all_of_them_and_no_nan(name):
    params = model(REAL[name])
    assert np.isfinite(density(params, row(255.0)))
    for value in (NAN, np.inf):
        for of_data in (
            lambda x: log_joint(params, x, Z),
            lambda x: elbo(params, x, KEY),
            lambda x: importance_weighted_bound(params, x, KEY, num_samples=2),
        ):
            with pytest.raises(ValueError, match="x must be finite"):
                of_data(row(value))
    assert np.isnan(density(params, row(NAN)))
    assert np.isnan(jax.jit(density)(params, row(NAN)))


def test_only_the_example_that_is_outside_is_nan():
    x = jnp.concatenate([row(0.5), row(7.0), row(1.0)])
    log_prob = jax.jit(lambda x: decode(model(Bernoulli()), Z).log_prob(x))(x)
    assert np.isnan(log_prob).tolist() == [[False, True, False]]


@pytest.mark.parametrize(
    "num_levels, dtype", [(256, np.float16), (256, np.float32), (17, np.float64)]
)
def test_levels_rounded_to_any_float_are_levels(num_levels, dtype):
    """The probability is SciPy's softmax at the level, whatever rounded the level."""
    level = np.arange(num_levels)
    logits = np.random.default_rng(0).normal(size=(num_levels, num_levels))
    expected = np.diag(scipy.special.log_softmax(logits, axis=-1)).sum()
    likelihood = Categorical(num_levels).build({}, jnp.float32(logits.T.ravel()))
    x = (level / (num_levels - 1)).astype(dtype)
    np.testing.assert_allclose(likelihood.log_prob(x), expected, rtol=1e-5)


@pytest.mark.long
def test_a_discretized_logistic_takes_levels_rounded_to_float16():
    """The probability is that of SciPy's logistic between the edges of the level."""
    level, scale = np.arange(256.0), 0.002
    noise = np.random.default_rng(1).normal(size=256)
    mean = (level / 255 + noise * scale).astype(np.float32)
    edges = np.stack([level - 0.5, level + 0.5]) / 255
    edges[0, 0], edges[1, -1] = -np.inf, np.inf
    low, high = scipy.stats.logistic.cdf(edges, np.float64(mean), scale)
    found = discretized_logistic.log_prob(
        (level / 255).astype(np.float16)[:, None],
        jnp.zeros((256, 1, 1)),
        jnp.asarray(mean)[:, None, None],
        jnp.full((256, 1, 1), np.log(scale)),
        num_levels=256,
    )
    np.testing.assert_allclose(found, np.log(high - low), rtol=1e-4, atol=2e-3)


CALLS = {
    "elbo": elbo,
    "importance_weighted_bound": functools.partial(
        importance_weighted_bound, num_samples=2
    ),
    "log_joint": lambda params, x, key: log_joint(params, x, Z),
    "evaluate": lambda params, x, key: evaluate(params, x, key).elbo,
    "log_evidence": lambda params, x, key: (
        log_evidence(params, x, key, num_samples=2).estimate
    ),
}
ONLY_REFUSE = {
    "annealed_log_evidence": functools.partial(
        annealed_log_evidence, num_chains=1, num_temperatures=2
    ),
    "posterior_samples": functools.partial(
        mcmc.posterior_samples, num_samples=4, num_chains=1
    ),
    "quadrature_log_evidence": lambda params, x, key: exact.quadrature_log_evidence(
        params, x
    ),
    "active_units": lambda params, x, key: active_units(params, x),
    "kl_per_unit": lambda params, x, key: kl_per_unit(params, x),
    "aggregate_posterior": aggregate_posterior,
    "fit_posterior": fit_posterior,
    "inference_gap": inference_gap,
}


@pytest.mark.parametrize("name", CALLS | ONLY_REFUSE)
def test_every_figure_of_data_refuses_what_is_known(name):
    call, x = (CALLS | ONLY_REFUSE)[name], jnp.asarray(row(255.0))
    with pytest.raises(ValueError, match="x must lie in"):
        jax.eval_shape(lambda params: call(params, x, KEY), model(Bernoulli()))


def test_every_way_to_a_density_is_nan_for_what_is_traced():
    @jax.jit
    def values(params, x):
        return {name: call(params, x, KEY) for name, call in CALLS.items()}

    found = values(model(Bernoulli()), row(255.0))
    assert {name for name, value in found.items() if np.isnan(value).all()} == set(
        CALLS
    )


def test_bits_are_booleans_and_integers_of_a_likelihood_as_well():
    likelihood = decode(model(Bernoulli()), Z)
    floats = likelihood.log_prob(row(1.0))
    for dtype in (bool, np.int32, np.uint8):
        x = np.asarray(row(1.0)).astype(dtype)
        np.testing.assert_array_equal(likelihood.log_prob(x), floats)


# init


def starts(spec, x):
    """Traces `init` at known data; nothing is drawn."""
    return jax.eval_shape(lambda key: init(spec, key, x=x), KEY)


@jax.jit
def started(x):
    return init(SMALL(), KEY, x=x).decoder["output"]["bias"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_init_refuses_data_that_the_likelihood_cannot_have(name):
    value, expected = OUTSIDE[name]
    with pytest.raises(ValueError, match=expected):
        starts(SMALL(), row(value))
    assert np.isnan(started(row(value))).tolist() == [False, True, False]


def test_init_takes_means_of_levels_and_real_numbers_where_they_are_data():
    starts(SMALL(likelihood=Categorical(3)), row(0.1))
    starts(SMALL(likelihood=Gaussian()), row(-255.0))
    with pytest.raises(ValueError, match="x must be finite"):
        starts(SMALL(likelihood=Gaussian()), row(NAN))


def test_init_refuses_to_start_at_the_mean_of_nothing():
    with pytest.raises(ValueError, match="x must hold at least one example"):
        starts(SMALL(), jnp.zeros((0, 3)))


# Labels

CLASSES = 4
CONDITIONAL = SMALL(num_classes=CLASSES)
BY_CLASS = SMALL(num_classes=CLASSES, prior=ClassConditionalPrior(CLASSES))
X = jnp.zeros((CLASSES, 3))
EACH = np.eye(CLASSES, dtype=np.float32)


@functools.cache
def conditional(spec):
    return jax.tree.map(jnp.asarray, random_params(spec))


def elbo_at(params, labels):
    return elbo(params, X, KEY, labels=labels)


traced_elbo = jax.jit(elbo_at)


def with_row(index, weights):
    changed = EACH.copy()
    changed[index] = weights
    return changed


WRONG_VALUES = {
    "out of range": np.array([4, 5, -1, 99]),
    "one out of range": np.array([0, 1, 2, 4]),
    "negative weight": with_row(1, [-0.5, 0.5, 0.5, 0.5]),
    "no class": with_row(2, 0),
    "weights of 2": 2 * EACH,
    "nan": with_row(0, [NAN, 0, 0, 0]),
}
WRONG_SHAPES = {
    "floats": jnp.array([0.0, 1.0, 2.0, 3.0]),
    "integers by class": jnp.eye(CLASSES, dtype=jnp.int32),
    "too many classes": jnp.eye(CLASSES, CLASSES + 1),
    "one for all": jnp.array([2]),
    "weights of one for all": EACH[:1],
    "a number": jnp.array(2),
}


@pytest.mark.parametrize("name", WRONG_VALUES)
@pytest.mark.parametrize("spec", [CONDITIONAL, BY_CLASS], ids=["standard", "by class"])
def test_labels_that_name_no_class_are_refused_and_nan(spec, name):
    params, labels = conditional(spec), WRONG_VALUES[name]
    with pytest.raises(ValueError, match=r"labels must be integers \[B\] from 0 to 3"):
        jax.eval_shape(lambda params: elbo_at(params, labels), params)
    assert np.isnan(traced_elbo(params, labels))


@pytest.mark.parametrize("name", WRONG_SHAPES)
def test_labels_of_another_shape_are_refused_traced_or_not(name):
    params, labels = conditional(CONDITIONAL), WRONG_SHAPES[name]
    known = functools.partial(elbo_at, labels=labels)
    for function, arguments in ((elbo_at, (params, labels)), (known, (params,))):
        with pytest.raises(ValueError, match=r"labels must be .*, got .* for 4 exam"):
            jax.eval_shape(function, *arguments)


def test_every_function_of_labels_refuses_them():
    params, wrong = conditional(BY_CLASS), WRONG_VALUES["out of range"]
    calls = [
        lambda params: encode(params, X, labels=wrong),
        lambda params: decode(params, jnp.zeros((1, 4, 2)), labels=wrong),
        lambda params: log_prior(params, jnp.zeros((1, 4, 2)), labels=wrong),
        lambda params: generate(params, KEY, num_samples=4, labels=wrong),
        lambda params: evaluate(params, X, KEY, labels=wrong),
        lambda params: log_evidence(params, X, KEY, num_samples=2, labels=wrong),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="labels must be integers"):
            jax.eval_shape(call, params)


@pytest.mark.parametrize("labels", [[0, 1, 2, 3], Conditions(labels=(0, 1, 2, 3))])
def test_a_list_of_labels_is_no_array(labels):
    params = conditional(CONDITIONAL)
    for function in (evaluate, log_evidence):
        with pytest.raises(ValueError, match="labels must be an array, got a"):
            function(params, X, KEY, num_samples=2, labels=labels)


def test_classes_and_weights_of_one_are_the_same_labels():
    params, order = conditional(BY_CLASS), jnp.array([2, 0, 3, 1])
    found = traced_elbo(params, order)
    for same in (order.astype(jnp.uint8), EACH[order], EACH[order] > 0):
        np.testing.assert_allclose(traced_elbo(params, same), found, rtol=1e-6)
    posterior = encode(params, X, labels=order)
    again = encode(params, X, labels=EACH[order])
    np.testing.assert_allclose(posterior.mean, again.mean, rtol=1e-6)


def test_the_log_prior_of_a_class_is_scipys_and_none_is_the_gaussian_between():
    params, z = conditional(BY_CLASS), np.float32([0.3, -1.2])
    own = params.prior
    expected = scipy.stats.norm(own["mean"], np.exp(own["log_var"] / 2)).logpdf(z)
    latents = jnp.broadcast_to(z, (1, CLASSES, 2))
    found = log_prior(params, latents, labels=jnp.arange(CLASSES))
    np.testing.assert_allclose(found[0], expected.sum(axis=-1), rtol=1e-5)
    soft = jnp.full((CLASSES, CLASSES), 1 / CLASSES)
    with pytest.raises(ValueError, match="labels must choose one class each"):
        log_prior(params, latents, labels=soft)
    evidence = functools.partial(log_evidence, num_samples=2, labels=soft)
    with pytest.raises(ValueError, match="labels must choose one class each"):
        jax.eval_shape(evidence, params, X, KEY)
    traced = jax.jit(lambda labels: log_prior(params, latents, labels=labels))
    assert np.isnan(traced(soft)).all()
    # Networks may be given any weights.
    assert np.isfinite(traced_elbo(conditional(CONDITIONAL), soft))


# Bits


def test_binarize_refuses_what_is_no_probability():
    for value, expected in OUTSIDE.values():
        with pytest.raises(ValueError, match=expected):
            data.binarize(row(value), KEY)
        bits = jax.jit(data.binarize)(row(value), KEY)
        assert np.isnan(bits).tolist() == [[False, True, False]]


@pytest.mark.parametrize("method", ["dynamic", "fixed", "threshold"])
def test_binarize_dataset_refuses_values_beyond_its_levels(method):
    x = np.array([[0, 16, 255]], np.uint8)
    dataset = data.Dataset("d", x, x, None, None, (3,), num_levels=17)
    with pytest.raises(ValueError, match=r"train must lie in \[0, 16\], got .* 255; n"):
        data.binarize_dataset(dataset, KEY, method=method)
    grey = np.full((1, 3), np.nan, np.float32)
    dataset = data.Dataset("d", grey, grey, None, None, (3,), num_levels=None)
    with pytest.raises(ValueError, match="train must be finite"):
        data.binarize_dataset(dataset, KEY, method=method)


def test_one_level_is_no_scale():
    with pytest.raises(ValueError, match="num_levels must be at least 2, got 1"):
        data.to_unit_interval(np.zeros((1, 2), np.uint8), 1)
    with pytest.raises(ValueError, match="levels from 0 to 16, got 255"):
        data.to_unit_interval(np.full((1, 2), 255, np.uint8), 17)


# Dtypes


def test_float64_without_x64_mode_is_refused():
    params = conditional(SMALL(compute_dtype="float64"))
    for call in (lambda: encode(params, X), lambda: decode(params, Z)):
        with pytest.raises(ValueError, match="compute_dtype=float64 needs JAX's x64"):
            call()
    with pytest.raises(ValueError, match="dtype=float64 needs JAX's x64 mode"):
        init(SMALL(), KEY, dtype=jnp.float64)


def test_float64_in_x64_mode_computes_in_it(x64):
    spec = SMALL(compute_dtype="float64")
    single, double = (
        jax.tree.map(jnp.asarray, random_params(choice)) for choice in (SMALL(), spec)
    )
    x = np.float32(row(1.0))
    found = encode(double, x).mean
    exactly = encode(jax.tree.map(np.float64, single), np.float64(x)).mean
    assert found.dtype == jnp.float32 and exactly.dtype == jnp.float64
    np.testing.assert_array_equal(found, np.float32(exactly))


# The continuous Bernoulli's bound


def test_a_continuous_bernoulli_is_a_bounded_density_whatever_the_decoder_says():
    """Normalised by quadrature, and at most 256 at pixels that are black or white."""
    spec = SMALL(decoder=Linear(), likelihood=ContinuousBernoulli(), data_shape=(1,))
    params = conditional(spec)
    far = (-1e8, -1e4, -300.0, -3.0, 0.0, 40.0, 1e3, 1e30)
    grid = np.concatenate([[0], np.geomspace(1e-5, 1, 2001)])
    x = jnp.float32(np.union1d(grid, 1 - grid))[:, None]

    @jax.jit
    def figures(bias):
        decoder = with_output_bias(params.decoder, bias[None])
        z = jnp.zeros((1, 1, 2))
        likelihood = decode(params.replace(decoder=decoder), z)
        return likelihood.log_prob(x)[0], likelihood.mean[0, 0, 0]

    for bias in far:
        log_density, mean = figures(jnp.float32(bias))
        density, at = np.exp(np.float64(log_density)), np.asarray(x, float)[:, 0]
        assert density.max() <= 256 * (1 + 1e-4)
        total = scipy.integrate.simpson(density, x=at)
        first = scipy.integrate.simpson(density * at, x=at)
        assert total == pytest.approx(1, abs=1e-4)
        assert mean == pytest.approx(first, abs=1e-4)
    gradient = jax.grad(lambda bias: figures(bias)[0].sum())(jnp.float32(1e30))
    assert np.isfinite(gradient)


def test_the_bound_hardly_moves_ordinary_logits():
    spec = SMALL(decoder=Linear(), likelihood=ContinuousBernoulli())
    params = conditional(spec)
    logits = np.float32([-6.0, 0.5, 6.0])
    zero = jax.tree.map(jnp.zeros_like, params.decoder)
    decoder = with_output_bias(zero, jnp.asarray(logits))
    found = decode(params.replace(decoder=decoder), Z).log_prob(row(0.5))

    def log_density(logit, x):
        total, _ = scipy.integrate.quad(lambda t: np.exp(logit * t), 0, 1)
        return logit * x - np.log(total)

    expected = sum(map(log_density, np.float64(logits), (0, 0.5, 1)))
    np.testing.assert_allclose(found, [[expected]], rtol=1e-3)
