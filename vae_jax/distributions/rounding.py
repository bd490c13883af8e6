"""Rounding of what cannot be negative."""

import jax
import jax.numpy as jnp

from vae_jax.types import Array


def without_negative(value: Array) -> Array:
    """The value, 0 where rounding left it below; the gradient stays what it is.

    A divergence between two nearly equal distributions is a sum of terms of both signs,
    and in float32 it comes out as -1e-7 as often as 1e-7. Its derivative does not
    cancel, so it passes, where that of a maximum would be cut off.

    Args:
      value: any shape; infinite and NaN stay as they are.

    Returns:
      The same shape.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax.distributions.rounding import without_negative
      >>> print(without_negative(jnp.array([-1e-7, 2.0])))
      [0. 2.]
      >>> print(jax.grad(without_negative)(-1e-7))
      1.0
    """
    return value - jax.lax.stop_gradient(jnp.minimum(value, 0))
