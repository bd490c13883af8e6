"""Encoder and decoder networks; the only file of the library that uses flax.

A network maps `[B, D]` or `[B, L]` to features. `with_output_layer` adds the dense
layer with the number of outputs that a posterior or likelihood requires. Any custom
Linen module that follows `types.Network` can be used. Linen modules are frozen
dataclasses that hash by value, so they can be fields of a `ModelSpec`. Activations must
be named functions, because two identical lambdas compare unequal.
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
    """Affine network: no hidden layer, only the output layer.

    Example:
      >>> from vae_jax import Linear, ModelSpec
      >>> ModelSpec(encoder=Linear(), decoder=Linear(), latent_dim=2).latent_dim
      2
    """

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Return the inputs."""
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
        """Map `[B, D]` to `[B, hidden_dims[-1]]`."""
        for width in self.hidden_dims:
            inputs = self.activation(nn.Dense(width)(inputs))
        return inputs


class GatedMLP(nn.Module):
    """Gated dense hidden layers, (W h + b) * sigmoid(V h + c).

    Dauphin, Fan, Auli & Grangier 2017. Tomczak & Welling 2018 (VampPrior) use two such
    layers of 300 units.

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
        """Map `[B, D]` to `[B, hidden_dims[-1]]`."""
        for width in self.hidden_dims:
            value, gate = nn.Dense(width)(inputs), nn.Dense(width)(inputs)
            inputs = value * nn.sigmoid(gate)
        return inputs


class Conv(nn.Module):
    """3x3 convolution with a bias and zero padding.

    Attributes:
      channels: number of output channels.
      stride: divisor of height and width, which are rounded up.
    """

    channels: int
    stride: int = 1

    @nn.compact
    def __call__(self, images: Array) -> Array:
        """Map `[B, height, width, C]` to `[B, ..., ..., channels]`."""
        images, kernel, bias = _with_weights(self, images)
        return convolve(images, kernel, stride=self.stride) + bias


class ConvTranspose(nn.Module):
    """Transposed 3x3 convolution with a bias, equivalent to flax's.

    Attributes:
      channels: number of output channels.
      stride: factor of height and width.
    """

    channels: int
    stride: int

    @nn.compact
    def __call__(self, images: Array) -> Array:
        """Map `[B, height, width, C]` to `[B, ..., ..., channels]`."""
        images, kernel, bias = _with_weights(self, images)
        return transposed_convolve(images, kernel, stride=self.stride) + bias


def _with_weights(module: nn.Module, images: Array) -> tuple[Array, Array, Array]:
    """Return images, kernel and bias of a 3x3 convolution, in a common dtype."""
    shape = (3, 3, images.shape[-1], module.channels)
    kernel = module.param("kernel", nn.initializers.lecun_normal(), shape)
    bias = module.param("bias", nn.initializers.zeros, shape[-1:])
    images, kernel, bias = promote_dtype(images, kernel, bias)
    return images, kernel, bias


class ResidualBlock(nn.Module):
    """Pre-activation residual block with two 3x3 convolutions (He et al. 2016).

    Attributes:
      channels: number of input and output channels.
      activation: a named function of one array.
    """

    channels: int
    activation: Callable[[Array], Array] = nn.elu

    @nn.compact
    def __call__(self, images: Array) -> Array:
        """Map `[B, height, width, channels]` to the same shape."""
        change = images
        for _ in range(2):
            change = Conv(self.channels)(self.activation(change))
        return images + change


class ConvolutionalEncoder(nn.Module):
    """Strided 3x3 convolutions over an image, then a dense layer.

    Attributes:
      channels: output channels of each convolution; each halves height and width.
      hidden_dim: width of the dense layer.
      num_blocks: number of residual blocks after each convolution.
      activation: a named function of one array.
      data_shape: (height, width) or (height, width, channels); that of the spec if
        None.

    Raises:
      ValueError: the data are not images.
    """

    channels: tuple[int, ...] = (32, 64)
    hidden_dim: int = 256
    num_blocks: int = 0
    activation: Callable[[Array], Array] = nn.relu
    data_shape: tuple[int, ...] | None = None

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Map `[B, D]` to `[B, hidden_dim]`."""
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
      channels: output channels of each convolution, and those of the small image
        (`channels[0]`); each convolution doubles height and width.
      num_blocks: number of residual blocks after each convolution.
      activation: a named function of one array.
      data_shape: see `ConvolutionalEncoder`.

    Raises:
      ValueError: the data are not images.
    """

    channels: tuple[int, ...] = (64, 32)
    num_blocks: int = 0
    activation: Callable[[Array], Array] = nn.relu
    data_shape: tuple[int, ...] | None = None

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Map `[B, L]` to features `[B, height, width, channels[-1]]`."""
        height, width, _ = _image_shape(self.data_shape)
        shrink = 2 ** len(self.channels)
        # Round up to support any size; the surplus is cropped at the end.
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
    """Height, width and channels; raises ValueError if the data are not images."""
    if data_shape is None or len(data_shape) not in (2, 3):
        raise ValueError(
            "a convolutional network needs data_shape (height, width) or (height, "
            f"width, channels), got {data_shape}"
        )
    height, width, channels = (*data_shape, 1)[:3]
    return height, width, channels


class _WithOutputLayer(nn.Module):
    """A network followed by a dense map of its last axis to `num_outputs` in total."""

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
                f"positions, which must divide both {self.num_outputs} outputs and "
                f"{self.data_dim} data dimensions evenly"
            )
        outputs = nn.Dense(self.num_outputs // positions, name="output")(features)
        if positions == 1:
            return outputs
        # Reorder from positions first to parameters first: [P, D] flattened.
        channels = self.data_dim // positions
        outputs = outputs.reshape(outputs.shape[0], positions, -1, channels)
        return outputs.swapaxes(1, 2).reshape(outputs.shape[0], -1)


def with_output_layer(
    network: Network, num_outputs: int, data_shape: tuple[int, ...]
) -> nn.Module:
    """Add the output layer to a network of a spec.

    Args:
      network: a Linen module that follows `types.Network`.
      num_outputs: number of outputs per example.
      data_shape: shape of one example; passed to a network that has a field of that
        name with value None.

    Returns:
      A Linen module from `[B, ...]` to `[B, num_outputs]`.
    """
    if reads_images(network):
        network = network.clone(data_shape=data_shape)
    return _WithOutputLayer(network, num_outputs, math.prod(data_shape))


def reads_images(network: Network) -> TypeGuard[nn.Module]:
    """Whether a network takes `data_shape` from the spec, and thus reads images."""
    return getattr(network, "data_shape", ()) is None


def beside(
    inputs: Array, labels: AnyArray, data_shape: tuple[int, ...] | None
) -> Array:
    """Concatenate labels to a network's inputs, or append them as image channels.

    Args:
      inputs: `[..., D]`.
      labels: `[..., C]`, broadcasting with the inputs.
      data_shape: height, width and channels of image inputs, to which the labels are
        appended as constant channels; None for other inputs.

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
    """Shape of an image with the labels as further channels."""
    height, width, channels = _image_shape(data_shape)
    return (height, width, channels + num_classes)


def init(module: nn.Module, key: Key, inputs: Array) -> PyTree:
    """Initialise the weights of a network with its output layer.

    Args:
      module: module returned by `with_output_layer`.
      key: PRNG key, consumed once.
      inputs: an example batch; only its shape and dtype matter.

    Returns:
      A dictionary of arrays.

    Raises:
      ValueError: the module has state other than weights (batch statistics), which is
        not supported.
    """
    variables = module.init(key, inputs)
    others = sorted(set(variables) - {"params"})
    if others:
        raise ValueError(
            f"network {module.network} has collections {others} besides its weights; "
            "only networks without other state are supported"
        )
    return variables.get("params", {})


def apply(
    module: nn.Module, weights: PyTree, inputs: Array, *, dtype: str | None = None
) -> Array:
    """Apply a network with its output layer, for any number of leading axes.

    Args:
      module: module returned by `with_output_layer`.
      weights: weights returned by `init`.
      inputs: `[..., D]` or `[..., L]`.
      dtype: dtype of the computation; that of weights and inputs if None.

    Returns:
      Outputs, `[..., num_outputs]`, in the dtype of weights and inputs.
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
    """Bias of the output layer, shared by all positions of an image."""
    return weights["output"]["bias"]


def with_output_bias(weights: PyTree, bias: AnyArray) -> PyTree:
    """Replace the bias of the output layer by one of the same shape."""
    bias = bias.astype(output_bias(weights).dtype)
    return weights | {"output": weights["output"] | {"bias": bias}}


def with_scaled_outputs(weights: PyTree, factor: float | Array) -> PyTree:
    """Scale the output layer, which multiplies the network's outputs by a factor."""
    output = {
        name: (factor * leaf).astype(leaf.dtype)
        for name, leaf in weights["output"].items()
    }
    return weights | {"output": output}


def is_linen(value: Any) -> bool:
    """Whether a value is a Linen module, which has additional fields of Linen."""
    return isinstance(value, nn.Module)
