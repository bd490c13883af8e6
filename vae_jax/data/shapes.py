"""Synthetic images of four kinds of shapes, of MNIST's size."""

import numpy as np

from vae_jax.data.dataset import Dataset


def synthetic(num_train: int = 2048, num_test: int = 512, *, seed: int = 0) -> Dataset:
    """Bars, crosses, discs and rings, 28x28 with 256 levels, made from a seed.

    Each has a place, an angle, a length and a width: five continuous causes for a
    model to find, and the kind of shape, which is the label.

    Args:
      num_train: n.
      num_test: m.
      seed: image i of a split depends on this and on nothing else.

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
    """Images `[n, 784]` of random shapes, and the kinds of those."""
    causes = rng.random((num_images, 6), dtype=np.float32)
    kinds = (4 * causes[:, 0]).astype(np.int32)
    # A few at once, so that the distances of all pixels stay in the cache.
    chunks = [slice(start, start + 250) for start in range(0, num_images, 250)]
    images = [_render(kinds[chunk], causes[chunk, 1:]) for chunk in chunks]
    return np.concatenate(images), kinds


def _render(kinds: np.ndarray, causes: np.ndarray) -> np.ndarray:
    """Shapes `[n, 784]`, smooth over one pixel, of causes `[n, 5]` in [0, 1)."""
    row, column, angle, length, width = causes.T[:, :, None]
    rows, columns = np.divmod(np.arange(28 * 28, dtype=np.float32), 28)
    down, right = rows - (10 + 7 * row), columns - (10 + 7 * column)
    cosine, sine = np.cos(np.pi * angle), np.sin(np.pi * angle)
    along = np.abs(right * cosine + down * sine)
    across = np.abs(down * cosine - right * sine)
    length, width = 4 + 4 * length, 1 + 2 * width
    # Distance in pixels from the edge of each shape, negative within.
    bar = np.maximum(along - length, across - width)
    cross = np.minimum(bar, np.maximum(across - length, along - width))
    disc = 2 * width * (np.hypot(along / length, across / (2 * width)) - 1)
    ring = np.abs(disc + 0.75) - 0.75
    distances = np.stack([bar, cross, disc, ring])
    distance = distances[kinds, np.arange(len(kinds))]
    return np.rint(255 * np.clip(0.5 - distance, 0, 1)).astype(np.uint8)
