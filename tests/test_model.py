"""The steps of the model: shapes for every spec, moments where they are known."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vae_jax
from vae_jax import (
    MLP,
    ConvolutionalDecoder,
    ConvolutionalEncoder,
    DiagonalGaussian,
    FactorizedBernoulli,
    FactorizedBernoulliPrior,
    FullCovarianceGaussian,
    FullGaussian,
    Gaussian,
    Householder,
    InverseAutoregressive,
    Linear,
    LowRankGaussian,
    Masked,
    ModelSpec,
    Nominal,
    PerPixelGaussian,
    Planar,
    PointMass,
    StandardNormal,
    Sylvester,
    active_units,
    data,
    decode,
    encode,
    fit,
    generate,
    init,
    interpolate,
    log_prior,
    reconstruct,
    reparameterize,
    trainable,
)
from vae_jax.distributions.support import COUNTS
from vae_jax.model import as_float
from vae_jax.networks import output_bias

TINY = ModelSpec(encoder=MLP((4,)), decoder=MLP((4,)), latent_dim=2, data_shape=(3,))


# Every spec


def test_encode_decode_and_prior_shapes(spec, params, x, key):
    def steps(params, x, key):
        posterior = encode(params, x)
        z = reparameterize(posterior, key, num_samples=3)
        likelihood = decode(params, z)
        log_probs = log_prior(params, z), likelihood.log_prob(x)
        # Of several stochastic layers, the one next to the data.
        lowest = [jax.tree.leaves(latents)[0] for latents in (posterior.mean, z)]
        return *lowest, likelihood.mean, likelihood.sample(key, 1)[0], *log_probs

    shapes = [leaf.shape for leaf in jax.eval_shape(steps, params, x, key)]
    latent, data = spec.latent_dim, spec.data_dim
    assert shapes == [(4, latent), (3, 4, latent), *[(3, 4, data)] * 2, *[(3, 4)] * 2]


@pytest.mark.parametrize("sample", [False, True], ids=["mean", "sample"])
def test_reconstruct_generate_interpolate_shapes(spec, params, x, key, sample):
    again = functools.partial(reconstruct, sample=sample)
    assert jax.eval_shape(again, params, x, key).shape == (4, spec.data_dim)
    draw = functools.partial(generate, num_samples=6, sample=sample)
    assert jax.eval_shape(draw, params, key).shape == (6, spec.data_dim)
    line = functools.partial(interpolate, num_steps=5)
    assert jax.eval_shape(line, params, x, x).shape == (5, 4, spec.data_dim)


def test_float64_stays_float64_throughout(spec, params, x, key, x64):
    """No intermediate falls back to float32, where digits would be lost unseen."""
    params, x = jax.tree.map(np.float64, (params, x))
    # JAX draws Poisson counts of a float32 mean.
    draws = (False,) if spec.likelihood.support == COUNTS else (False, True)

    def everything(params, x, key):
        return (
            interpolate(params, x, x, num_steps=3),
            [reconstruct(params, x, key, sample=sample) for sample in draws],
            [generate(params, key, num_samples=2, sample=sample) for sample in draws],
        )

    program = jax.make_jaxpr(everything)(params, x, key)
    assert {aval.dtype for aval in program.out_avals} == {jnp.dtype("float64")}
    assert "f32[" not in str(program)


def test_init_gives_every_leaf_in_the_dtype_asked_for(spec, x64):
    for dtype in (jnp.float32, jnp.float64):
        make = functools.partial(init, spec, dtype=dtype)
        leaves = jax.tree.leaves(jax.eval_shape(make, jax.random.key(0)))
        assert {leaf.dtype for leaf in leaves} == {jnp.dtype(dtype)}


def test_trainable_is_a_tree_of_booleans_and_false_for_settings_only(spec, params):
    mask = trainable(params)
    assert jax.tree.structure(mask) == jax.tree.structure(params)
    assert all(isinstance(leaf, bool) for leaf in jax.tree.leaves(mask))
    assert all(jax.tree.leaves((mask.encoder, mask.decoder)))
    if isinstance(spec.likelihood, Gaussian):
        learned = spec.likelihood.learned_variance
        assert mask.likelihood == {"log_var": learned}


# init


init_tiny = jax.jit(functools.partial(init, TINY))


@functools.cache
def fresh(seed):
    return init_tiny(jax.random.key(seed))


def test_init_depends_on_its_key_alone():
    again = init_tiny(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, fresh(0), again)
    kernels = [np.asarray(fresh(seed).encoder["output"]["kernel"]) for seed in (0, 1)]
    assert not np.any(kernels[0] == kernels[1])


def test_init_carries_the_spec_and_starts_biases_at_zero():
    assert fresh(0).spec == TINY
    for weights in (fresh(0).encoder, fresh(0).decoder):
        np.testing.assert_array_equal(output_bias(weights), 0)


def started(spec, data):
    """The output bias that `init` sets, without drawing any weight."""
    return jax.jit(lambda key: output_bias(init(spec, key, x=data).decoder))(
        jax.random.key(0)
    )


DATA = np.float32(np.random.default_rng(0).uniform(size=(20, 12)))


@pytest.mark.parametrize("decoder", [Linear(), MLP((4,))], ids=["linear", "mlp"])
def test_init_with_data_starts_at_the_log_odds_of_each_pixel(decoder):
    data = DATA.copy()
    data[:, 0], data[:, 1] = 0, 1
    spec = ModelSpec(encoder=Linear(), decoder=decoder, data_shape=(12,))
    mean = np.clip(data.mean(axis=0), 0.001, 0.999)
    expected = np.log(mean / (1 - mean))
    np.testing.assert_allclose(started(spec, data), expected, rtol=1e-3, atol=1e-6)


def test_init_with_data_starts_a_gaussian_at_the_mean():
    spec = ModelSpec(
        encoder=Linear(), decoder=Linear(), likelihood=Gaussian(), data_shape=(12,)
    )
    np.testing.assert_allclose(started(spec, DATA), DATA.mean(axis=0), rtol=1e-6)


def test_init_with_data_starts_a_convolution_at_the_mean_over_positions():
    spec = ModelSpec(
        encoder=Linear(),
        decoder=ConvolutionalDecoder((2,)),
        likelihood=Gaussian(),
        data_shape=(2, 2, 3),
    )
    expected = DATA.reshape(20, 4, 3).mean(axis=(0, 1))
    np.testing.assert_allclose(started(spec, DATA), expected, rtol=1e-6)


def started_variance(likelihood, data):
    """Variances of p(x|z) at z = 0, `[D]`, as `init` sets them."""
    spec = ModelSpec(
        encoder=Linear(), decoder=Linear(), likelihood=likelihood, data_shape=(12,)
    )

    def covariance(key):
        start = decode(init(spec, key, x=data), jnp.zeros((1, spec.latent_dim)))
        if isinstance(likelihood, FullCovarianceGaussian):
            return start.precision_tril
        return jnp.broadcast_to(jnp.exp(start.log_var), (1, 12))

    found = np.asarray(jax.jit(covariance)(jax.random.key(0)))[0]
    if found.ndim == 2:
        found = np.linalg.inv(found @ found.T)
        np.testing.assert_allclose(found, np.diag(np.diag(found)), atol=1e-7)
        found = np.diag(found)
    return found


def test_init_with_data_starts_a_learned_variance_at_the_datas():
    data = 0.3 * DATA
    data[:, 3] = 0.5  # Its own variance would make it all that counts.
    variance = data.var(axis=0)
    mean = variance.mean()
    assert mean < 0.01
    found = started_variance(Gaussian(learned_variance=True), data)
    np.testing.assert_allclose(found, np.full(12, mean), rtol=1e-4)
    for family in (PerPixelGaussian(), FullCovarianceGaussian()):
        expected = np.where(np.arange(12) == 3, 0.1 * mean, variance)
        np.testing.assert_allclose(started_variance(family, data), expected, rtol=1e-4)


def test_a_variance_starts_at_1_where_it_is_fixed_or_nothing_varies():
    assert np.all(started_variance(Gaussian(), DATA) == 1)
    learned = Gaussian(learned_variance=True)
    assert np.all(started_variance(learned, DATA[:1]) == 1)


def test_init_with_data_starts_a_convolution_at_the_variance_over_positions():
    spec = ModelSpec(
        encoder=Linear(),
        decoder=ConvolutionalDecoder((2,)),
        likelihood=PerPixelGaussian(),
        data_shape=(2, 2, 3),
    )
    pixels = DATA.reshape(80, 3)
    mean, raw = np.split(started(spec, DATA), 2)
    np.testing.assert_allclose(mean, pixels.mean(axis=0), rtol=1e-6)
    variance = np.exp(20 * np.tanh(raw / 20))
    np.testing.assert_allclose(variance, pixels.var(axis=0), rtol=1e-4)


NARROW = [
    DiagonalGaussian(),
    FullGaussian(),
    LowRankGaussian(),
    Householder(),
    Sylvester(),
    Planar(),
    InverseAutoregressive(),
]


@pytest.mark.parametrize("family", NARROW, ids=lambda family: type(family).__name__)
def test_init_with_data_starts_the_posterior_narrow(family):
    """Means and log-variances come first among the encoder's outputs."""
    spec = ModelSpec(
        encoder=Linear(),
        decoder=Linear(),
        posterior=family,
        latent_dim=2,
        data_shape=(12,),
    )

    def start(key):
        params = init(spec, key, x=DATA)
        return output_bias(params.encoder), encode(params, jnp.zeros((1, 12))).log_var

    bias, log_var = jax.jit(start)(jax.random.key(0))
    np.testing.assert_array_equal(bias, np.r_[0, 0, -3, -3, 0 * bias[4:]])
    np.testing.assert_allclose(log_var, [[-3, -3]], atol=0.1)


@pytest.mark.parametrize("family", [PointMass(), FactorizedBernoulli()], ids=repr)
def test_a_posterior_without_a_variance_starts_as_it_is(family):
    prior = FactorizedBernoulliPrior() if family.latent_space == "binary" else None
    spec = ModelSpec(
        encoder=Linear(),
        decoder=Linear(),
        posterior=family,
        prior=prior or StandardNormal(),
        data_shape=(12,),
    )
    params = jax.jit(lambda key: init(spec, key, x=DATA))(jax.random.key(0))
    np.testing.assert_array_equal(output_bias(params.encoder), 0)


@pytest.mark.long
def test_a_deep_network_that_starts_at_the_data_uses_its_latents():
    """It ended at a KL of 0: the ELBO of independent pixels, -26.8 nats."""
    digits = data.load("digits")
    grey = data.to_unit_interval(jnp.asarray(digits.train), digits.num_levels)
    x = data.binarize(grey, jax.random.key(0))
    spec = ModelSpec(
        encoder=MLP((100, 100)),
        decoder=MLP((100, 100)),
        latent_dim=50,
        data_shape=(8, 8),
    )
    params = init(spec, jax.random.key(1), x=x)
    params, history = fit(params, x, jax.random.key(2), num_epochs=16)
    assert history["kl_divergence"][-1] > 0.5
    assert active_units(params, x).count > 10


def test_init_with_data_of_another_width_is_refused():
    with pytest.raises(ValueError, match=r"got \[20, 12\]: flatten images"):
        jax.eval_shape(lambda key: init(TINY, key, x=DATA), jax.random.key(0))


def test_init_takes_booleans_and_refuses_integers():
    binary = DATA[:, :3] > 0.5
    mean = np.clip(binary.mean(axis=0), 0.001, 0.999)
    spec = ModelSpec(encoder=Linear(), decoder=Linear(), data_shape=(3,))
    expected = np.log(mean / (1 - mean))
    np.testing.assert_allclose(started(spec, binary), expected, rtol=1e-4)
    with pytest.raises(ValueError, match="x must be floating or boolean, got uint8"):
        started(spec, binary.astype(np.uint8))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.int32])
def test_parameters_of_16_bits_and_integers_are_refused(dtype):
    """Draws would be biased: a uniform bfloat16 is a multiple of 1/128."""
    message = f"float32 or float64, got {jnp.dtype(dtype).name}.*compute"
    with pytest.raises(ValueError, match=message):
        init(TINY, jax.random.key(0), dtype=dtype)


# Observations


def test_booleans_become_floats_and_floats_stay():
    assert as_float(np.array([True]), jnp.float32).dtype == jnp.float32
    assert as_float(jnp.ones(2, jnp.bfloat16), jnp.float32).dtype == jnp.bfloat16


@pytest.mark.parametrize("dtype", ["int32", "uint8"])
def test_integers_are_refused(dtype):
    x = jnp.ones((2, 3), dtype)
    with pytest.raises(ValueError, match=f"got {dtype}: convert counts .* levels by"):
        encode(fresh(0), x)


@pytest.mark.parametrize("shape", [(3,), (2, 4), (1, 2, 3)], ids=str)
def test_observations_of_another_shape_are_refused(shape):
    message = (
        rf"x must be \[B, 3\], one example per row, got {re.escape(str([*shape]))}"
    )
    with pytest.raises(ValueError, match=message):
        encode(fresh(0), jnp.ones(shape))


def test_interpolation_between_batches_of_two_sizes_is_refused():
    with pytest.raises(ValueError, match=r"same shape.* got \[2, 3\] and \[1, 3\]"):
        interpolate(fresh(0), jnp.ones((2, 3)), jnp.ones((1, 3)), num_steps=3)


# Values


def test_interpolation_is_the_straight_line_between_the_means():
    rng = np.random.default_rng(1)
    x0, x1 = rng.uniform(size=(2, 4, 3)).astype(np.float32)

    @jax.jit
    def lines(params, x0, x1):
        start, end = encode(params, x0).mean, encode(params, x1).mean
        points = [start + (end - start) * t for t in (0, 0.25, 0.5, 0.75, 1)]
        expected = decode(params, jnp.stack(points)).mean
        return interpolate(params, x0, x1, num_steps=5), expected

    np.testing.assert_allclose(*lines(fresh(0), x0, x1), rtol=1e-5)


def test_generated_data_have_the_mean_and_covariance_of_the_model(
    linear_gaussian, key, assert_mean
):
    """x = W z + b + noise with z ~ N(0, I): covariance W W' + s^2 I, or W W'."""
    case = linear_gaussian
    noise_var = np.exp(case.params.likelihood["log_var"])

    @jax.jit
    def draws(params, key):
        make = functools.partial(generate, params, key, num_samples=20_000)
        return make(sample=True), make()

    covariances = case.covariance, case.covariance - noise_var * np.eye(5)
    for x, covariance in zip(draws(case.params, key), covariances, strict=True):
        assert_mean(x, case.bias)
        centred = np.asarray(x) - case.bias
        assert_mean(centred[:, :, None] * centred[:, None, :], covariance)


def test_reconstructions_have_the_moments_of_the_posterior_predictive(
    linear_gaussian, key, assert_mean
):
    """x' = W z + b (+ noise) with z ~ q(z|x): one sample of z, not its mean."""
    case = linear_gaussian
    weights = np.asarray(case.params.decoder["output"]["kernel"])
    x = np.broadcast_to(case.x[0], (20_000, 5))
    of_mean = (weights.T * case.posterior_var) @ weights
    noise = np.exp(case.params.likelihood["log_var"]) * np.eye(5)

    @jax.jit
    def draws(params, x, key):
        return reconstruct(params, x, key, sample=True), reconstruct(params, x, key)

    again = draws(case.params, x, key)
    for actual, covariance in zip(again, (of_mean + noise, of_mean), strict=True):
        centred = np.asarray(actual) - (case.posterior_mean[0] @ weights + case.bias)
        assert_mean(centred, 0.0)
        assert_mean(centred[:, :, None] * centred[:, None, :], covariance)


def test_an_autoencoder_reconstructs_without_noise(key):
    spec = ModelSpec(
        encoder=Linear(),
        decoder=Linear(),
        posterior=PointMass(),
        likelihood=Gaussian(),
        latent_dim=3,
        data_shape=(3,),
    )
    params = jax.tree.map(
        lambda leaf: np.eye(*leaf.shape) if leaf.ndim == 2 else np.zeros(leaf.shape),
        jax.eval_shape(functools.partial(init, spec), key),
    )
    x = DATA[:, :3]
    np.testing.assert_allclose(jax.jit(reconstruct)(params, x, key), x, rtol=1e-6)


def test_samples_of_a_bernoulli_model_are_zeros_and_ones(key):
    again = jax.jit(functools.partial(reconstruct, sample=True))
    assert set(np.unique(again(fresh(0), DATA[:, :3], key))) == {0, 1}


def test_a_convolutional_encoder_sees_the_image_as_it_is_flattened():
    """Height, width, channel: only so does a filter on channel 2 see channel 2."""
    spec = ModelSpec(
        encoder=ConvolutionalEncoder((1,), hidden_dim=1),
        decoder=Linear(),
        posterior=PointMass(),
        latent_dim=1,
        data_shape=(4, 4, 3),
    )
    params = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, np.float32),
        jax.eval_shape(functools.partial(init, spec), jax.random.key(0)),
    )
    params.encoder["network"]["Conv_0"]["kernel"][:, :, 2] = 1
    params.encoder["network"]["Dense_0"]["kernel"][:] = 1
    params.encoder["output"]["kernel"][:] = 1
    image = np.zeros((3, 4, 4, 3), np.float32)
    for channel in range(3):
        image[channel, :, :, channel] = 1
    response = np.asarray(jax.jit(encode)(params, image.reshape(3, -1)).mean)[:, 0]
    assert response[0] == response[1] == 0 and response[2] > 0


@pytest.mark.parametrize("num_classes", [0, 2])
@pytest.mark.parametrize(
    "likelihood, inputs",
    [(Nominal(3), 48), (Masked(Gaussian(), shows_mask=True), 32)],
)
def test_inputs_of_another_number_than_the_image_are_refused(
    likelihood, inputs, num_classes
):
    spec = ModelSpec(
        encoder=ConvolutionalEncoder((2,), hidden_dim=4),
        decoder=Linear(),
        likelihood=likelihood,
        latent_dim=2,
        data_shape=(4, 4),
        num_classes=num_classes,
    )
    name = re.escape(repr(likelihood))
    message = rf"the {inputs} inputs .* likelihood {name} .*Encoder.* such as MLP"
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(functools.partial(init, spec), jax.random.key(0))
    # Without the mask, as many as values.
    spec = dataclasses.replace(spec, likelihood=Masked(Gaussian()))
    jax.eval_shape(functools.partial(init, spec), jax.random.key(0))


def test_grey_levels_are_refused_wherever_observations_are_taken():
    spec = ModelSpec(latent_dim=2, data_shape=(4,))
    params, key = init(spec, jax.random.key(0)), jax.random.key(1)
    levels, x = jnp.full((3, 4), 255.0), jnp.ones((3, 4))
    for call in (
        lambda: vae_jax.reconstruct(params, levels, key),
        lambda: vae_jax.interpolate(params, levels, x, num_steps=2),
        lambda: vae_jax.interpolate(params, x, levels, num_steps=2),
        lambda: vae_jax.fit_mixture_prior(params, levels, key, num_components=1),
    ):
        with pytest.raises(ValueError, match=r"must lie in \[0, 1\], got values"):
            call()


def test_a_number_of_draws_that_is_none_is_refused():
    params = init(ModelSpec(latent_dim=2, data_shape=(4,)), jax.random.key(0))
    for number in (0, -1):
        with pytest.raises(ValueError, match="num_samples must be at least 1"):
            vae_jax.generate(params, jax.random.key(1), num_samples=number)
    x = jnp.ones((3, 4))
    with pytest.raises(ValueError, match="num_steps must be at least 2, got 1: both"):
        vae_jax.interpolate(params, x, x, num_steps=1)
