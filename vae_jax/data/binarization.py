"""Binarization of grey-scale images: dynamic, fixed, by a threshold, or none."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax.data.dataset import Dataset, require_declared, to_unit_interval
from vae_jax.data.memory import require_bytes
from vae_jax.data.rows import Rows, blocks
from vae_jax.distributions.support import UNIT_INTERVAL
from vae_jax.prng import in_32_bits

BINARIZATIONS = ("dynamic", "fixed", "threshold", "none")


def binarize(x: jax.Array | np.ndarray, key: jax.Array) -> jax.Array:
    """Draw a bit from Bernoulli(value) for each value, usually in a training step.

    Args:
      x: probabilities, `[..., D]`, floats.
      key: PRNG key, consumed once.

    Returns:
      Zeros and ones, `[..., D]`, in the dtype of `x`; NaN for a traced value outside
      [0, 1].

    Raises:
      ValueError: a concrete value is NaN or outside [0, 1].

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax import data
      >>> data.binarize(jnp.array([0.0, 1.0]), jax.random.key(0)).tolist()
      [0.0, 1.0]
    """
    UNIT_INTERVAL.require(x)
    x = jnp.asarray(x)
    bits = jax.random.bernoulli(key, in_32_bits(x)).astype(x.dtype)
    return jnp.where(UNIT_INTERVAL.contains(x), bits, jnp.nan)


def binarize_dataset(
    dataset: Dataset,
    key: jax.Array,
    *,
    method: str,
    train_key: jax.Array | None = None,
) -> Dataset:
    """Binarize the splits of a data set that a method binarizes before training.

    - `dynamic`: training images stay grey, and `binarize` draws their bits at every
      step; test and validation images are drawn once, as 0 or `num_levels - 1` so that
      all splits have the same scale.
    - `fixed`: all images are drawn once.
    - `threshold`: values of at least half of `num_levels - 1` become 1, others 0.
    - `none`: all images stay grey.

    A draw is from Bernoulli(value / (num_levels - 1)). Image i has its own key, so its
    bits do not depend on the number of images.

    Args:
      dataset: grey-scale or binary images.
      key: PRNG key of the draws; not used by `threshold` and `none`.
      method: one of `BINARIZATIONS`.
      train_key: PRNG key of the training images for `fixed`, so that models of several
        seeds can share a test set; by default derived from `key`.

    Returns:
      A `Dataset`: uint8 with 2 levels for `fixed` and `threshold`.

    Raises:
      ValueError: an unknown method, or values outside the range that the data set
        declares.

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
        # All bits are in memory twice: in blocks, and concatenated.
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
    """Draw bits for images `[n, D]`, row i with `fold_in(key, i)`."""

    def draw(index: jax.Array, image: jax.Array) -> jax.Array:
        image_key = jax.random.fold_in(key, index)
        return binarize(to_unit_interval(image, num_levels), image_key).astype(bool)

    # A thousand at once: random numbers take far more memory than bits.
    chunks = [slice(start, start + 1000) for start in range(0, len(x), 1000)]
    index: Any = np.arange(len(x))
    images: Any = x
    return np.concatenate(
        [jax.vmap(draw)(index[chunk], images[chunk]) for chunk in chunks]
    )
