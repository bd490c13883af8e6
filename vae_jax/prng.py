"""Keys of JAX's default generator, made of those of another."""

import jax

from vae_jax.types import Key


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
