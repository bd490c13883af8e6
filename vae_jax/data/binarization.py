"""How grey pixels become bits: at every step, once, by a threshold, or not."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax.data.dataset import Dataset, require_declared, to_unit_interval
from vae_jax.data.memory import require_bytes
from vae_jax.data.rows import Rows, blocks
from vae_jax.distributions.support import UNIT_INTERVAL

BINARIZATIONS = ("dynamic", "fixed", "threshold", "none")


def binarize(x: jax.Array | np.ndarray, key: jax.Array) -> jax.Array:
    """Draws each value from Bernoulli(value): fresh bits within a training step.

    Args:
      x: probabilities, `[..., D]`, floats.
      key: PRNG key, consumed once.

    Returns:
      Zeros and ones, `[..., D]`, in the dtype of `x`; NaN where a traced value is no
      probability.

    Raises:
      ValueError: a value outside [0, 1], or NaN.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax import data
      >>> data.binarize(jnp.array([0.0, 1.0]), jax.random.key(0)).tolist()
      [0.0, 1.0]
    """
    UNIT_INTERVAL.require(x)
    x = jnp.asarray(x)
    bits = jax.random.bernoulli(key, x).astype(x.dtype)
    return jnp.where(UNIT_INTERVAL.contains(x), bits, jnp.nan)


def binarize_dataset(
    dataset: Dataset,
    key: jax.Array,
    *,
    method: str,
    train_key: jax.Array | None = None,
) -> Dataset:
    """Turns grey values into bits, as far as that is done once and not at every step.

    - `dynamic`: training images stay grey, for `binarize` at every step; test and
      validation images are drawn once, as 0 or `num_levels - 1`, for all splits share
      one scale.
    - `fixed`: all are drawn once.
    - `threshold`: all are 1 from half of `num_levels - 1` on.
    - `none`: all stay grey.

    A draw is Bernoulli(value / (num_levels - 1)). Image i is drawn with a key of its
    own, so that its bits do not depend on how many images there are.

    Args:
      dataset: grey or binary images.
      key: PRNG key of the draws; `threshold` and `none` draw nothing.
      method: one of `BINARIZATIONS`.
      train_key: PRNG key of the training images where they are drawn, so that models
        of several seeds may share a test set; by default a child of `key`.

    Returns:
      A `Dataset`: uint8 of 2 levels for `fixed` and `threshold`.

    Raises:
      ValueError: an unknown method, or values that the data set does not declare.

    Example:
      >>> import jax
      >>> from vae_jax import data
      >>> digits = data.load("digits")
      >>> bits = data.binarize_dataset(digits, jax.random.key(0), method="threshold")
      >>> bits.num_levels, int(bits.train.max())
      (2, 1)
    """
    if method not in BINARIZATIONS:
        choices = ", ".join(BINARIZATIONS)
        raise ValueError(f"binarization must be one of {choices}, got {method!r}")
    if method == "none" and dataset.columns:
        return dataset
    require_declared(dataset)
    if method == "none":
        return dataset
    num_levels = dataset.num_levels
    largest = 1 if num_levels is None else num_levels - 1
    child_key, test_key, validation_key = jax.random.split(key, 3)
    keys = {
        "train": child_key if train_key is None else train_key,
        "test": test_key,
        "validation": validation_key,
    }
    if method == "dynamic":
        del keys["train"]
    elif isinstance(dataset.train, Rows):
        # Of all examples in memory, in parts and as a whole.
        require_bytes(2 * math.prod(dataset.train.shape))
    bits = {}
    for split, split_key in keys.items():
        x = getattr(dataset, split)
        if x is None:
            continue
        if method == "threshold":
            bits[split] = np.concatenate([b >= largest / 2 for _, b in blocks(x)])
        else:
            bits[split] = _draw_images(x, num_levels, split_key)
    if method == "dynamic":
        kept = dataset.train.dtype
        bits = {
            split: np.where(b, largest, 0).astype(kept) for split, b in bits.items()
        }
        return dataset._replace(**bits)
    bits = {split: b.astype(np.uint8) for split, b in bits.items()}
    if isinstance(dataset.train, Rows):
        rows = np.arange(len(dataset.train))
        bits["train"] = Rows(bits["train"], rows, np.dtype(np.uint8))
    return dataset._replace(**bits, num_levels=2)


def _draw_images(x: np.ndarray, num_levels: int | None, key: jax.Array) -> np.ndarray:
    """Bernoulli draws of `[n, D]`, row i with `fold_in(key, i)`."""

    def draw(index: jax.Array, image: jax.Array) -> jax.Array:
        image_key = jax.random.fold_in(key, index)
        return binarize(to_unit_interval(image, num_levels), image_key).astype(bool)

    # A thousand at once: the random numbers of all would be far larger than the bits.
    chunks = [slice(start, start + 1000) for start in range(0, len(x), 1000)]
    index: Any = np.arange(len(x))
    images: Any = x
    return np.concatenate(
        [jax.vmap(draw)(index[chunk], images[chunk]) for chunk in chunks]
    )
