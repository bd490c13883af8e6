"""Networks: their arithmetic by hand, and the order of what the output layer gives."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from vae_jax import (
    MLP,
    ConvolutionalDecoder,
    ConvolutionalEncoder,
    Gaussian,
    Linear,
    ModelSpec,
    decode,
    elbo,
    encode,
    init,
    networks,
)
from vae_jax.networks.convolution import convolve, transposed_convolve


class Grid(nn.Module):
    """A decoder whose feature at each position of a 2 x 3 image is its number."""

    @nn.compact
    def __call__(self, inputs):
        numbers = jnp.arange(6.0).reshape(1, 2, 3, 1)
        return jnp.broadcast_to(numbers, (inputs.shape[0], 2, 3, 1))


class Normalized(nn.Module):
    """Keeps running means, which no pure function of the weights can."""

    @nn.compact
    def __call__(self, inputs):
        return nn.BatchNorm(use_running_average=False)(inputs)


class Recorder(nn.Module):
    """Says in the size of its kernel which shape it was told."""

    data_shape: tuple[int, ...] | None = None

    @nn.compact
    def __call__(self, inputs):
        return nn.Dense(100 if self.data_shape == (2, 3) else 10)(inputs)


def shapes_of(module, num_inputs):
    return jax.eval_shape(
        lambda key: networks.init(module, key, jnp.zeros((1, num_inputs))),
        jax.random.key(0),
    )


def test_an_mlp_is_what_numpy_makes_of_its_weights():
    rng = np.random.default_rng(0)
    module = networks.with_output_layer(MLP((6, 5), activation=nn.tanh), 3, (4,))
    weights = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32),
        shapes_of(module, 4),
    )
    x = rng.normal(size=(7, 4)).astype(np.float32)
    layers = weights["network"]
    hidden = np.tanh(x @ layers["Dense_0"]["kernel"] + layers["Dense_0"]["bias"])
    hidden = np.tanh(hidden @ layers["Dense_1"]["kernel"] + layers["Dense_1"]["bias"])
    expected = hidden @ weights["output"]["kernel"] + weights["output"]["bias"]
    actual = networks.apply(module, weights, x)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_a_linear_network_is_one_affine_map():
    module = networks.with_output_layer(Linear(), 3, (4,))
    shapes = shapes_of(module, 4)
    assert jax.tree.map(lambda leaf: leaf.shape, shapes) == {
        "output": {"kernel": (4, 3), "bias": (3,)}
    }


@pytest.mark.parametrize("leading", [(), (7,), (2, 7), (1, 2, 7)], ids=str)
def test_apply_takes_any_number_of_leading_axes(leading):
    module = networks.with_output_layer(Linear(), 3, (4,))
    rng = np.random.default_rng(1)
    kernel, inputs = rng.normal(size=(4, 3)), rng.normal(size=(*leading, 4))
    weights = {"output": {"kernel": jnp.asarray(kernel), "bias": jnp.ones(3)}}
    actual = networks.apply(module, weights, jnp.asarray(inputs))
    np.testing.assert_allclose(actual, inputs @ kernel + 1, rtol=1e-4, atol=1e-5)


# Images


@pytest.mark.parametrize("data_shape", [(7, 5), (1, 1), (8, 8, 3), (28, 28)], ids=str)
@pytest.mark.parametrize("channels", [(4,), (4, 3), (5, 4, 3)], ids=len)
def test_convolutions_serve_images_of_any_size(data_shape, channels):
    spec = ModelSpec(
        encoder=ConvolutionalEncoder(channels, hidden_dim=6),
        decoder=ConvolutionalDecoder(channels),
        likelihood=Gaussian(),
        latent_dim=2,
        data_shape=data_shape,
    )

    def sizes(key):
        params = init(spec, key)
        x = jnp.zeros((2, spec.data_dim))
        return encode(params, x).mean, decode(params, jnp.zeros((3, 2, 2))).mean

    mean, decoded = jax.eval_shape(sizes, jax.random.key(0))
    assert mean.shape == (2, 2) and decoded.shape == (3, 2, spec.data_dim)


def test_each_decoder_channel_layer_doubles_and_each_encoder_layer_halves():
    decoder = networks.with_output_layer(ConvolutionalDecoder((5, 4)), 28**2, (28, 28))
    weights = shapes_of(decoder, 2)
    assert weights["network"]["Dense_0"]["kernel"].shape == (2, 7 * 7 * 5)
    encoder = networks.with_output_layer(ConvolutionalEncoder((4, 5)), 2, (28, 28))
    weights = shapes_of(encoder, 28**2)
    assert weights["network"]["Dense_0"]["kernel"].shape == (7 * 7 * 5, 256)


@pytest.mark.parametrize("network", [ConvolutionalEncoder(), ConvolutionalDecoder()])
@pytest.mark.parametrize("data_shape", [(784,), (2, 2, 2, 2)], ids=str)
def test_convolutions_refuse_what_is_no_image(network, data_shape):
    module = networks.with_output_layer(network, 16, data_shape)
    with pytest.raises(ValueError, match=r"data_shape.*\(height, width\)"):
        shapes_of(module, 16)


def with_weights(module, num_inputs, kernel, bias):
    """All weights zero but those of the output layer."""
    weights = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape), shapes_of(module, num_inputs)
    )
    return weights | {"output": {"kernel": jnp.asarray(kernel), "bias": bias}}


def test_an_image_comes_out_in_the_order_height_width_channel():
    """As x is flattened: channel c of every pixel gives c when the bias says so."""
    module = networks.with_output_layer(
        ConvolutionalDecoder((2,)), 8 * 8 * 3, (8, 8, 3)
    )
    bias = jnp.array([10.0, 20.0, 30.0])
    weights = with_weights(module, 2, jnp.zeros((2, 3)), bias)
    image = networks.apply(module, weights, jnp.ones((1, 2))).reshape(8, 8, 3)
    np.testing.assert_array_equal(image, np.broadcast_to(bias, (8, 8, 3)))


def test_positions_come_out_row_by_row():
    module = networks.with_output_layer(Grid(), 6 * 2, (2, 3, 2))
    weights = with_weights(module, 2, jnp.ones((1, 2)), jnp.array([0.0, 100.0]))
    image = networks.apply(module, weights, jnp.ones((1, 2))).reshape(2, 3, 2)
    np.testing.assert_array_equal(image[..., 0], [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(image[..., 1], [[100, 101, 102], [103, 104, 105]])


def test_two_parameters_a_pixel_come_out_one_whole_image_after_the_other():
    """`[P, D]` flattened, which is what a likelihood splits."""
    module = networks.with_output_layer(Grid(), 2 * 12, (2, 3, 2))
    bias = jnp.array([0.0, 100.0, 1000.0, 1100.0])  # parameter by parameter
    weights = with_weights(module, 2, jnp.ones((1, 4)), bias)
    outputs = networks.apply(module, weights, jnp.ones((1, 2))).reshape(2, 2, 3, 2)
    np.testing.assert_array_equal(outputs[1], outputs[0] + 1000)
    np.testing.assert_array_equal(outputs[0, ..., 1], outputs[0, ..., 0] + 100)


def test_positions_that_do_not_divide_the_data_are_refused():
    module = networks.with_output_layer(Grid(), 7, (7,))
    with pytest.raises(ValueError, match=r"Grid gives features at 6 positions.* 7 "):
        shapes_of(module, 2)


# A user's own network


def test_a_users_network_is_given_the_data_shape_it_leaves_open():
    module = networks.with_output_layer(Recorder(), 6, (2, 3))
    assert shapes_of(module, 6)["output"]["kernel"].shape == (100, 6)
    fixed = networks.with_output_layer(Recorder(data_shape=(6,)), 6, (2, 3))
    assert shapes_of(fixed, 6)["output"]["kernel"].shape == (10, 6)


def test_a_users_network_needs_no_data_shape():
    module = networks.with_output_layer(nn.Dense(11), 6, (2, 3))
    assert shapes_of(module, 6)["output"]["kernel"].shape == (11, 6)


def test_a_network_with_batch_statistics_is_refused():
    spec = ModelSpec(encoder=Normalized(), data_shape=(4,))
    with pytest.raises(ValueError, match="Normalized.*batch_stats"):
        jax.eval_shape(lambda key: init(spec, key), jax.random.key(0))


def test_the_output_bias_can_be_set_and_nothing_else_changes():
    weights = {"network": {"a": jnp.ones(2)}, "output": {"kernel": jnp.ones((2, 3))}}
    weights["output"]["bias"] = jnp.zeros(3)
    changed = networks.with_output_bias(weights, np.array([1.0, 2.0, 3.0]))
    np.testing.assert_array_equal(networks.output_bias(changed), [1, 2, 3])
    assert networks.output_bias(changed).dtype == jnp.float32
    np.testing.assert_array_equal(networks.output_bias(weights), 0)
    assert changed["network"] is weights["network"]
    assert changed["output"]["kernel"] is weights["output"]["kernel"]


def test_a_network_in_bfloat16_is_its_rounded_operands_multiplied():
    """Eight bits of the operands and of the outputs, and no more lost between."""
    module = networks.with_output_layer(Linear(), 5, (5,))
    weights = networks.init(module, jax.random.key(0), jnp.ones((1, 30)))
    inputs = jax.random.normal(jax.random.key(1), (4, 30))
    found = networks.apply(module, weights, inputs, dtype="bfloat16")
    assert found.dtype == jnp.float32
    rounded = [
        np.asarray(jnp.asarray(array, jnp.bfloat16), np.float64)
        for array in (inputs, weights["output"]["kernel"])
    ]
    product = rounded[0] @ rounded[1]
    np.testing.assert_allclose(found, product, rtol=2**-8, atol=1e-3)
    assert np.abs(found - networks.apply(module, weights, inputs)).max() > 1e-3


@pytest.mark.long
def test_a_model_in_bfloat16_multiplies_in_it_and_learns_in_float32(key):
    spec = ModelSpec(MLP((6,)), MLP((6,)), latent_dim=3, data_shape=(8,))
    full = init(spec, key)
    half = full.replace(spec=dataclasses.replace(spec, compute_dtype="bfloat16"))
    x = jax.random.bernoulli(key, 0.3, (16, 8)).astype(jnp.float32)
    program = str(jax.make_jaxpr(jax.grad(elbo))(half, x, key))
    products = [line for line in program.splitlines() if "dot_general" in line]
    assert len(products) >= 4 + 7 and all(":bf16" in line for line in products)
    (value, slopes), (expected, exact) = (
        jax.value_and_grad(elbo)(params, x, key) for params in (half, full)
    )
    np.testing.assert_allclose(value, expected, rtol=0.01)
    for name in ("encoder", "decoder"):
        found, wanted = (ravel_pytree(getattr(t, name))[0] for t in (slopes, exact))
        assert found.dtype == jnp.float32
        assert jnp.linalg.norm(found - wanted) < 0.05 * jnp.linalg.norm(wanted)


NHWC = ("NHWC", "HWIO", "NHWC")


def value_and_gradients(function, images, kernel):
    """The value, and the gradients of a sum with random weights."""
    outputs = function(images, kernel)
    weights = np.random.default_rng(2).normal(size=outputs.shape)
    loss = lambda *given: jnp.sum(function(*given) * weights)  # noqa: E731
    return outputs, *jax.grad(loss, (0, 1))(images, kernel)


def assert_same_map(own, of_jax, shape, size):
    """Both give the same value and gradients for images `shape` and a kernel `size`."""
    rng = np.random.default_rng(0)
    given = [rng.normal(size=s) for s in ((2, *shape, 3), (*size, 3, 4))]
    found, expected = (
        value_and_gradients(function, *given) for function in (own, of_jax)
    )
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-12)


def choose_form(monkeypatch, form):
    """Has the form of a platform run on this one."""
    monkeypatch.setattr(
        jax.lax, "platform_dependent", lambda *given, **forms: forms[form](*given)
    )


@pytest.mark.parametrize("form", ["cpu", "default"])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("shape", [(6, 8), (5, 7), (1, 2)])
@pytest.mark.parametrize("size", [(3, 3), (4, 2)])
def test_convolutions_are_those_of_jax(shape, stride, size, form, x64, monkeypatch):
    """By products on a CPU; the accelerators' form is run on the CPU too."""
    choose_form(monkeypatch, form)
    assert_same_map(
        lambda *given: convolve(*given, stride=stride),
        lambda *given: jax.lax.conv_general_dilated(
            *given, (stride, stride), "SAME", dimension_numbers=NHWC
        ),
        shape,
        size,
    )


@pytest.mark.long
@pytest.mark.parametrize("form", ["cpu", "default"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", [(3, 4), (1, 2)])
def test_transposed_convolutions_are_those_of_jax(
    shape, stride, form, x64, monkeypatch
):
    choose_form(monkeypatch, form)
    assert_same_map(
        lambda *given: transposed_convolve(*given, stride=stride),
        lambda *given: jax.lax.conv_transpose(
            *given, (stride, stride), "SAME", dimension_numbers=NHWC
        ),
        shape,
        (3, 3),
    )


@pytest.mark.parametrize("platform, by_xla", [("cpu", False), ("cuda", True)])
def test_the_platform_compiled_for_chooses_the_form(platform, by_xla):
    """Not the one that traces: a program may be lowered for another machine."""

    def loss(kernel, images):
        images = transposed_convolve(images, kernel, stride=2)
        return jnp.sum(convolve(images, kernel, stride=2))

    traced = jax.jit(jax.grad(loss)).trace(
        jnp.ones((3, 3, 2, 2)), jnp.ones((1, 4, 4, 2))
    )
    program = traced.lower(lowering_platforms=(platform,)).as_text()
    assert ("stablehlo.convolution" in program) == by_xla
    assert ("stablehlo.dot_general" in program) != by_xla


@pytest.mark.parametrize(
    "own, of_flax",
    [
        (networks.Conv(4, stride=2), nn.Conv(4, (3, 3), strides=2)),
        (networks.ConvTranspose(4, 2), nn.ConvTranspose(4, (3, 3), strides=(2, 2))),
    ],
    ids=["convolution", "transposed"],
)
def test_a_layer_is_that_of_flax(own, of_flax):
    """The same initial weights, and the same outputs from them."""
    images = np.random.default_rng(0).normal(size=(2, 5, 6, 3)).astype(np.float32)
    weights, expected = (
        module.init(jax.random.key(0), images) for module in (own, of_flax)
    )
    jax.tree.map(np.testing.assert_array_equal, weights, expected)
    weights = jax.tree.map(lambda leaf: leaf + 0.1, weights)
    np.testing.assert_allclose(
        own.apply(weights, images), of_flax.apply(weights, images), rtol=1e-4, atol=1e-5
    )
