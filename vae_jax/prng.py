"""What random draws need: keys of JAX's default generator, and 32 bits."""

import jax
import jax.numpy as jnp

from vae_jax.types import Array, Key


def in_32_bits(values: Array) -> Array:
    """Values in at least 32 bits, for noise to be drawn in.

    In 16 bits a uniform number is a multiple of 1/128 or 1/1024, and logistic noise
    never exceeds 4.9 or 7.

    Args:
      values: floating-point numbers, such as probabilities or logits.

    Returns:
      The same in float32, or unchanged if they are of 32 bits or more.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.prng import in_32_bits
      >>> in_32_bits(jnp.ones(2, jnp.bfloat16)).dtype
      dtype('float32')
    """
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))


def as_threefry(key: Key) -> Key:
    """The key itself, or one of JAX's default generator that is drawn with it.

    `vmap` of another generator (`rbg`) draws for a batch what it would not draw one by
    one, and JAX draws Poisson counts with the default generator only.

    Args:
      key: PRNG key, consumed once.

    Returns:
      A key of `threefry2x32`.

    Example:
      >>> import jax
      >>> from vae_jax.prng import as_threefry
      >>> print(jax.random.key_impl(as_threefry(jax.random.key(0, impl="rbg"))))
      threefry2x32
    """
    if jax.random.key_impl(key) == "threefry2x32":
        return key
    return jax.random.key(jax.random.bits(key), impl="threefry2x32")
