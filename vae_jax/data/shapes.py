"""Synthetic images of four kinds of shapes, of the size of MNIST images."""

import numpy as np

from vae_jax.data.dataset import Dataset


def synthetic(num_train: int = 2048, num_test: int = 512, *, seed: int = 0) -> Dataset:
    """Generate images of bars, crosses, discs and rings, 28x28 with 256 levels.

    Each image has five continuous factors (row, column, angle, length, width); its
    label is the kind of shape.

    Args:
      num_train: number n of training images.
      num_test: number m of test images.
      seed: seed of the images; image i of a split does not depend on n and m.

    Returns:
      A `Dataset`.

    Raises:
      ValueError: a number of images below 1.

    Example:
      >>> from vae_jax import data
      >>> data.synthetic(num_train=3, num_test=1).train.shape
      (3, 784)
    """
    if min(num_train, num_test) < 1:
        given = f"{num_train} and {num_test}"
        raise ValueError(f"num_train and num_test must be at least 1, got {given}")
    train, train_labels = _draw_shapes(np.random.default_rng([seed, 0]), num_train)
    test, test_labels = _draw_shapes(np.random.default_rng([seed, 1]), num_test)
    return Dataset(
        "synthetic", train, test, train_labels, test_labels, (28, 28), num_levels=256
    )


def _draw_shapes(
    rng: np.random.Generator, num_images: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw images `[n, 784]` of random shapes, and their kinds `[n]`."""
    causes = rng.random((num_images, 6), dtype=np.float32)
    kinds = (4 * causes[:, 0]).astype(np.int32)
    # In chunks, so that the distances of all pixels fit into the cache.
    chunks = [slice(start, start + 250) for start in range(0, num_images, 250)]
    images = [_render(kinds[chunk], causes[chunk, 1:]) for chunk in chunks]
    return np.concatenate(images), kinds


def _render(kinds: np.ndarray, causes: np.ndarray) -> np.ndarray:
    """Render anti-aliased shapes `[n, 784]` from factors `[n, 5]` in [0, 1)."""
    row, column, angle, length, width = causes.T[:, :, None]
    rows, columns = np.divmod(np.arange(28 * 28, dtype=np.float32), 28)
    down, right = rows - (10 + 7 * row), columns - (10 + 7 * column)
    cosine, sine = np.cos(np.pi * angle), np.sin(np.pi * angle)
    along = np.abs(right * cosine + down * sine)
    across = np.abs(down * cosine - right * sine)
    length, width = 4 + 4 * length, 1 + 2 * width
    # Signed distance in pixels from the edge of each shape, negative inside.
    bar = np.maximum(along - length, across - width)
    cross = np.minimum(bar, np.maximum(across - length, along - width))
    disc = 2 * width * (np.hypot(along / length, across / (2 * width)) - 1)
    ring = np.abs(disc + 0.75) - 0.75
    distances = np.stack([bar, cross, disc, ring])
    distance = distances[kinds, np.arange(len(kinds))]
    return np.rint(255 * np.clip(0.5 - distance, 0, 1)).astype(np.uint8)
