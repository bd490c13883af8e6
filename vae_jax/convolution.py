"""Convolutions of images as matrix products, where that is the faster way: on a CPU.

XLA brings convolutions into a form that its CPU kernels know in the outermost program
alone, not in the body of a loop, and training here is a loop: a step there took thirty
times as long on MNIST as by the products below (experiments/PERFORMANCE.md). On an
accelerator they are left to its own kernels.
"""

import itertools
from functools import partial

import jax
import jax.numpy as jnp

from vae_jax.types import Array


def convolve(images: Array, kernel: Array, *, stride: int = 1) -> Array:
    """Convolution of images, zeros around them, as networks define it (no flip).

    y[b, i, j] = sum_rs x[b, stride i + r - m, stride j + s - m'] K[r, s], with margins
    m, m' that share out what the kernel overhangs, the smaller half first ("SAME").

    Args:
      images: `[B, height, width, C]`.
      kernel: `[rows, columns, C, K]`.
      stride: pixels from one output to the next.

    Returns:
      `[B, ceil(height / stride), ceil(width / stride), K]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.convolution import convolve
      >>> print(convolve(jnp.ones((1, 3, 3, 1)), jnp.ones((3, 3, 1, 1)))[0, :, :, 0])
      [[4. 6. 4.]
       [6. 9. 6.]
       [4. 6. 4.]]
    """
    return jax.lax.platform_dependent(
        images,
        kernel,
        cpu=partial(_by_products, stride=stride),
        default=partial(_by_xla, stride=stride),
    )


def _by_xla(images: Array, kernel: Array, *, stride: int) -> Array:
    return jax.lax.conv_general_dilated(
        images,
        kernel,
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _by_products(images: Array, kernel: Array, *, stride: int) -> Array:
    rows, columns = kernel.shape[:2]
    margins = jax.lax.padtype_to_pads(
        images.shape[1:3], (rows, columns), (stride, stride), "SAME"
    )
    padded = jnp.pad(images, ((0, 0), *margins, (0, 0)))
    height, width = (-(-size // stride) for size in images.shape[1:3])
    # What each entry of the kernel meets, beside one another: `[B, h, w, r * s * C]`.
    met = [
        padded[
            :,
            row : row + stride * (height - 1) + 1 : stride,
            column : column + stride * (width - 1) + 1 : stride,
        ]
        for row, column in itertools.product(range(rows), range(columns))
    ]
    return jnp.concatenate(met, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


def transposed_convolve(images: Array, kernel: Array, *, stride: int) -> Array:
    """The transpose of a strided convolution: larger images, by the stride.

    The linear map whose matrix is the transpose of that of `convolve` with the kernel
    turned by half a circle, inputs and outputs exchanged: as flax's `ConvTranspose`.

    Args:
      images: `[B, height, width, C]`.
      kernel: `[rows, columns, C, K]`.
      stride: outputs from one pixel to the next.

    Returns:
      `[B, stride * height, stride * width, K]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.convolution import transposed_convolve
      >>> image, kernel = jnp.ones((1, 1, 2, 1)), jnp.ones((3, 3, 1, 1))
      >>> print(transposed_convolve(image, kernel, stride=2)[0, :, :, 0])
      [[1. 1. 2. 1.]
       [1. 1. 2. 1.]]
    """
    batch, height, width, _ = images.shape
    turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    larger = jax.ShapeDtypeStruct(
        (batch, stride * height, stride * width, kernel.shape[-1]), images.dtype
    )

    def transposed(convolve, images: Array, turned: Array) -> Array:
        transpose = jax.linear_transpose(
            lambda outputs: convolve(outputs, turned, stride=stride), larger
        )
        (outputs,) = transpose(images)
        return outputs

    return jax.lax.platform_dependent(
        images,
        turned,
        cpu=partial(transposed, _by_products),
        default=partial(transposed, _by_xla),
    )
