"""Encoder and decoder networks: the only file of the library that uses flax.

A network turns `[B, D]` or `[B, L]` into features; `with_output_layer` adds the
dense layer that gives as many numbers as a posterior or a likelihood asks for. Any
Linen module of the user's own serves as well (`types.Network` has the contract).
Linen modules are frozen dataclasses that hash by value, so they stand in a
`ModelSpec` as they are; activations must be named functions, as two equal lambdas
are two different specs.
"""

import math
from collections.abc import Callable
from typing import Any, TypeGuard

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from vae_jax.convolution import convolve, transposed_convolve
from vae_jax.types import AnyArray, Array, Key, Network, PyTree


class Linear(nn.Module):
    """No hidden layer: the output layer alone, so the network is affine.

    Example:
      >>> from vae_jax import Linear, ModelSpec
      >>> ModelSpec(encoder=Linear(), decoder=Linear(), latent_dim=2).latent_dim
      2
    """

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Returns the inputs."""
        return inputs


class MLP(nn.Module):
    """Dense hidden layers, each followed by the activation.

    Attributes:
      hidden_dims: widths of the hidden layers.
      activation: a named function of one array.

    Example:
      >>> from vae_jax import MLP
      >>> MLP((500, 200)).hidden_dims
      (500, 200)
    """

    hidden_dims: tuple[int, ...] = (400,)
    activation: Callable[[Array], Array] = nn.relu

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Maps `[B, D]` to `[B, hidden_dims[-1]]`."""
        for width in self.hidden_dims:
            inputs = self.activation(nn.Dense(width)(inputs))
        return inputs


class GatedMLP(nn.Module):
    """Dense hidden layers with gates: (W h + b) * sigmoid(V h + c).

    Dauphin, Fan, Auli & Grangier 2017; the VampPrior's networks (Tomczak & Welling
    2018) are two such layers of 300.

    Attributes:
      hidden_dims: widths of the hidden layers.

    Example:
      >>> from vae_jax import GatedMLP
      >>> GatedMLP((300, 300)).hidden_dims
      (300, 300)
    """

    hidden_dims: tuple[int, ...] = (300, 300)

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Maps `[B, D]` to `[B, hidden_dims[-1]]`."""
        for width in self.hidden_dims:
            value, gate = nn.Dense(width)(inputs), nn.Dense(width)(inputs)
            inputs = value * nn.sigmoid(gate)
        return inputs


class Conv(nn.Module):
    """A 3x3 convolution with a bias, zeros around the image.

    Attributes:
      channels: of the outputs.
      stride: by which height and width are divided, rounded up.
    """

    channels: int
    stride: int = 1

    @nn.compact
    def __call__(self, images: Array) -> Array:
        """Maps `[B, height, width, C]` to `[B, ..., ..., channels]`."""
        images, kernel, bias = _with_weights(self, images)
        return convolve(images, kernel, stride=self.stride) + bias


class ConvTranspose(nn.Module):
    """A transposed 3x3 convolution with a bias, as flax's.

    Attributes:
      channels: of the outputs.
      stride: by which height and width are multiplied.
    """

    channels: int
    stride: int

    @nn.compact
    def __call__(self, images: Array) -> Array:
        """Maps `[B, height, width, C]` to `[B, ..., ..., channels]`."""
        images, kernel, bias = _with_weights(self, images)
        return transposed_convolve(images, kernel, stride=self.stride) + bias


def _with_weights(module: nn.Module, images: Array) -> tuple[Array, Array, Array]:
    """Images with the kernel and bias of a 3x3 convolution, in one dtype."""
    shape = (3, 3, images.shape[-1], module.channels)
    kernel = module.param("kernel", nn.initializers.lecun_normal(), shape)
    bias = module.param("bias", nn.initializers.zeros, shape[-1:])
    images, kernel, bias = promote_dtype(images, kernel, bias)
    return images, kernel, bias


class ResidualBlock(nn.Module):
    """An image plus two 3x3 convolutions of it, activation first (He et al. 2016).

    Attributes:
      channels: of the image, before and after.
      activation: a named function of one array.
    """

    channels: int
    activation: Callable[[Array], Array] = nn.elu

    @nn.compact
    def __call__(self, images: Array) -> Array:
        """Maps `[B, height, width, channels]` to the same shape."""
        change = images
        for _ in range(2):
            change = Conv(self.channels)(self.activation(change))
        return images + change


class ConvolutionalEncoder(nn.Module):
    """Strided 3x3 convolutions over an image, then a dense layer.

    Attributes:
      channels: channels of each convolution; each halves height and width.
      hidden_dim: width of the dense layer at the end.
      num_blocks: residual blocks after each convolution.
      activation: a named function of one array.
      data_shape: height, width and, where there is one, channel axis; the spec's
        when left at None.

    Raises:
      ValueError: the data is no image.
    """

    channels: tuple[int, ...] = (32, 64)
    hidden_dim: int = 256
    num_blocks: int = 0
    activation: Callable[[Array], Array] = nn.relu
    data_shape: tuple[int, ...] | None = None

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Maps `[B, D]` to `[B, hidden_dim]`."""
        images = inputs.reshape(-1, *_image_shape(self.data_shape))
        for width in self.channels:
            images = self.activation(Conv(width, stride=2)(images))
            for _ in range(self.num_blocks):
                images = ResidualBlock(width, self.activation)(images)
        flat = images.reshape(images.shape[0], -1)
        return self.activation(nn.Dense(self.hidden_dim)(flat))


class ConvolutionalDecoder(nn.Module):
    """A dense layer to a small image, then strided transposed 3x3 convolutions.

    Attributes:
      channels: channels of the image before each convolution; each doubles height
        and width.
      num_blocks: residual blocks after each convolution.
      activation: a named function of one array.
      data_shape: as in `ConvolutionalEncoder`.

    Raises:
      ValueError: the data is no image.
    """

    channels: tuple[int, ...] = (64, 32)
    num_blocks: int = 0
    activation: Callable[[Array], Array] = nn.relu
    data_shape: tuple[int, ...] | None = None

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Maps `[B, L]` to features `[B, height, width, channels[-1]]`."""
        height, width, _ = _image_shape(self.data_shape)
        shrink = 2 ** len(self.channels)
        # Rounded up, so that any size works; the surplus is cut off at the end.
        small = (math.ceil(height / shrink), math.ceil(width / shrink))
        images = nn.Dense(math.prod(small) * self.channels[0])(inputs)
        images = self.activation(images).reshape(-1, *small, self.channels[0])
        for channels in self.channels:
            images = ConvTranspose(channels, stride=2)(images)
            images = self.activation(images)
            for _ in range(self.num_blocks):
                images = ResidualBlock(channels, self.activation)(images)
        return images[:, :height, :width]


def _image_shape(data_shape: tuple[int, ...] | None) -> tuple[int, int, int]:
    """Height, width, channels of the data; an error where it is no image."""
    if data_shape is None or len(data_shape) not in (2, 3):
        raise ValueError(
            "a convolutional network needs data_shape (height, width) or (height, "
            f"width, channels), got {data_shape}"
        )
    height, width, channels = (*data_shape, 1)[:3]
    return height, width, channels


class _WithOutputLayer(nn.Module):
    """A network, then one dense map of its last axis to `num_outputs` numbers."""

    network: Network
    num_outputs: int
    data_dim: int

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        features = self.network(inputs)
        positions = math.prod(features.shape[1:-1])
        if self.num_outputs % positions or self.data_dim % positions:
            raise ValueError(
                f"network {type(self.network).__name__} gives features at {positions} "
                f"positions, which divide neither {self.num_outputs} outputs nor "
                f"{self.data_dim} data dimensions evenly"
            )
        outputs = nn.Dense(self.num_outputs // positions, name="output")(features)
        if positions == 1:
            return outputs
        # From position by position to parameter by parameter: [P, D] flattened.
        channels = self.data_dim // positions
        outputs = outputs.reshape(outputs.shape[0], positions, -1, channels)
        return outputs.swapaxes(1, 2).reshape(outputs.shape[0], -1)


def with_output_layer(
    network: Network, num_outputs: int, data_shape: tuple[int, ...]
) -> nn.Module:
    """Completes a network of a spec with its output layer.

    Args:
      network: a Linen module that obeys `types.Network`.
      num_outputs: numbers to give for each example.
      data_shape: shape of one example; given to a network that has a field of that
        name left at None.

    Returns:
      A Linen module from `[B, ...]` to `[B, num_outputs]`.
    """
    if reads_images(network):
        network = network.clone(data_shape=data_shape)
    return _WithOutputLayer(network, num_outputs, math.prod(data_shape))


def reads_images(network: Network) -> TypeGuard[nn.Module]:
    """Whether a network takes the shape of the data from the spec."""
    return getattr(network, "data_shape", ()) is None


def beside(
    inputs: Array, labels: AnyArray, data_shape: tuple[int, ...] | None
) -> Array:
    """Labels beside a network's inputs: more numbers, or more channels of an image.

    Args:
      inputs: `[..., D]`.
      labels: `[..., C]`, broadcasting with the inputs.
      data_shape: height, width and channels of the inputs, for which the labels
        become constant channels; None where they are no image.

    Returns:
      `[..., D + C]`, or `[..., D + height * width * C]`.
    """
    if data_shape is None:
        labels = jnp.broadcast_to(labels, (*inputs.shape[:-1], labels.shape[-1]))
        return jnp.concatenate([inputs, labels.astype(inputs.dtype)], axis=-1)
    height, width, channels = _image_shape(data_shape)
    leading = inputs.shape[:-1]
    images = inputs.reshape(*leading, height * width, channels)
    return beside(images, labels[..., None, :], None).reshape(*leading, -1)


def with_channels(data_shape: tuple[int, ...], num_classes: int) -> tuple[int, ...]:
    """The shape of an image with the labels as further channels."""
    height, width, channels = _image_shape(data_shape)
    return (height, width, channels + num_classes)


def init(module: nn.Module, key: Key, inputs: Array) -> PyTree:
    """Initial weights of a completed network.

    Args:
      module: what `with_output_layer` returned.
      key: PRNG key, consumed once.
      inputs: an example batch; its shape counts, not its values.

    Returns:
      A dictionary of arrays.

    Raises:
      ValueError: the module keeps state other than weights (batch statistics), of
        which a pure function of the weights knows nothing.
    """
    variables = module.init(key, inputs)
    others = sorted(set(variables) - {"params"})
    if others:
        raise ValueError(
            f"network {module.network} keeps collections {others} besides its "
            "weights; only networks that are functions of weights and input can serve"
        )
    return variables.get("params", {})


def apply(
    module: nn.Module, weights: PyTree, inputs: Array, *, dtype: str | None = None
) -> Array:
    """Applies a completed network with leading axes of any number.

    Args:
      module: what `with_output_layer` returned.
      weights: what `init` returned.
      inputs: `[..., D]` or `[..., L]`.
      dtype: what to compute in; None for that of weights and inputs.

    Returns:
      Outputs, `[..., num_outputs]`, in the dtype that they have where `dtype` is None.
    """
    flat = inputs.reshape(-1, inputs.shape[-1])
    outputs: Any
    if dtype is None:
        outputs = module.apply({"params": weights}, flat)
    else:
        own = jnp.result_type(flat, *jax.tree.leaves(weights))
        weights, flat = jax.tree.map(lambda leaf: leaf.astype(dtype), (weights, flat))
        outputs = module.apply({"params": weights}, flat)
        outputs = outputs.astype(own)
    return outputs.reshape(*inputs.shape[:-1], -1)


def output_bias(weights: PyTree) -> Array:
    """The bias of the output layer; the positions of an image share it."""
    return weights["output"]["bias"]


def with_output_bias(weights: PyTree, bias: AnyArray) -> PyTree:
    """The weights with another bias of the output layer, of the same shape."""
    bias = bias.astype(output_bias(weights).dtype)
    return weights | {"output": weights["output"] | {"bias": bias}}


def with_scaled_outputs(weights: PyTree, factor: float | Array) -> PyTree:
    """The weights of the network whose outputs are multiplied by a factor."""
    output = {
        name: (factor * leaf).astype(leaf.dtype)
        for name, leaf in weights["output"].items()
    }
    return weights | {"output": output}


def is_linen(value: Any) -> bool:
    """Whether it is a Linen module, with fields of Linen's own."""
    return isinstance(value, nn.Module)
