"""Linen modules for encoders and decoders: MLPs and convolutional networks.

A network maps `[B, D]` or `[B, L]` to features; `with_output_layer` adds the output
layer. Linen modules are frozen dataclasses that hash by value, so they can be fields of
a `ModelSpec`. Activations must be named functions, because two identical lambdas
compare unequal.
"""

import math
from collections.abc import Callable

import flax.linen as nn
from flax.linen.dtypes import promote_dtype

from vae_jax.networks.convolution import convolve, transposed_convolve
from vae_jax.types import Array


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
    """Gated dense hidden layers.

        h' = (W h + b) * sigmoid(V h + c)

    elementwise (Dauphin, Fan, Auli & Grangier 2017). Tomczak & Welling 2018 (VampPrior)
    use two such layers of 300 units.

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
        images = inputs.reshape(-1, *image_shape(self.data_shape))
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
        height, width, _ = image_shape(self.data_shape)
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


def image_shape(data_shape: tuple[int, ...] | None) -> tuple[int, int, int]:
    """Height, width and channels; raises ValueError if the data are not images."""
    if data_shape is None or len(data_shape) not in (2, 3):
        raise ValueError(
            "a convolutional network needs data_shape (height, width) or (height, "
            f"width, channels), got {data_shape}"
        )
    height, width, channels = (*data_shape, 1)[:3]
    return height, width, channels
