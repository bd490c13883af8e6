"""Image convolutions, computed as matrix products on a CPU.

XLA rewrites convolutions for its fast CPU kernels only in the outermost program, not in
the body of a loop. Training runs in a loop, where a step on MNIST took thirty times as
long as with the matrix products below (docs/results/performance.md). On accelerators,
the native convolution is used.
"""

import itertools
from functools import partial

import jax
import jax.numpy as jnp

from vae_jax.types import Array


def convolve(images: Array, kernel: Array, *, stride: int = 1) -> Array:
    """Convolution of images with zero padding ("SAME") and without flipping the kernel.

        y[b, i, j] = sum_rs x[b, stride * i + r - m, stride * j + s - n] K[r, s]

    where the margins m and n are half of the total padding, rounded down.

    Args:
      images: `[B, height, width, C]`.
      kernel: `[rows, columns, C, K]`.
      stride: distance in pixels between outputs.

    Returns:
      `[B, ceil(height / stride), ceil(width / stride), K]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.networks.convolution import convolve
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
    # Shifted images, one per kernel entry, to be concatenated: `[B, h, w, r * s * C]`.
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
    """Transposed strided convolution, which enlarges images by the stride.

    The matrix of this linear map is the transpose of that of `convolve` with the kernel
    rotated by 180 degrees and its channels swapped, as in flax's `ConvTranspose`.

    Args:
      images: `[B, height, width, C]`.
      kernel: `[rows, columns, C, K]`.
      stride: number of outputs per pixel in each direction.

    Returns:
      `[B, stride * height, stride * width, K]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.networks.convolution import transposed_convolve
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
