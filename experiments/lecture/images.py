"""Images for the lecture topics, scaled to [0, 1]."""

from typing import Any, NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure

from experiments.evaluation import evaluation_keys
from experiments.style import add_title, draw_pixels
from vae_jax import data
from vae_jax.evaluation import example_keys
from vae_jax.types import Array


class Images(NamedTuple):
    """A labelled data set of images in [0, 1].

    Attributes:
      train: `[n, D]`.
      train_labels: `[n]`.
      test: `[m, D]`.
      test_labels: `[m]`.
      data_shape: shape of an image.
      name: name of the data set.
      notes: lines to print about the data.
    """

    train: Array
    train_labels: np.ndarray
    test: Array
    test_labels: np.ndarray
    data_shape: tuple[int, ...]
    name: str
    notes: tuple[str, ...]


def load(config: Any) -> Images:
    """Load the images named by a configuration's `dataset`, `data_dir` and `seed`.

    Args:
      config: configuration of a topic.

    Returns:
      `Images`.

    Raises:
      ValueError: the data set is unknown or has no labels.
    """
    dataset = data.load(config.dataset, data_dir=config.data_dir, seed=config.seed)
    if dataset.train_labels is None or dataset.test_labels is None:
        raise ValueError(f"--dataset must have labels, but {dataset.name} has none")
    train, test = (
        data.to_unit_interval(x, dataset.num_levels)
        for x in (dataset.train, dataset.test)
    )
    return Images(
        train,
        dataset.train_labels,
        test,
        dataset.test_labels,
        dataset.data_shape,
        dataset.name,
        dataset.notes,
    )


def binary_test(images: Images, *, count: int) -> Array:
    """Binarize the first test images once, with one fixed key per image.

    Args:
      images: the data set.
      count: number of images.

    Returns:
      `[count, D]`, zeros and ones.
    """
    test = images.test[:count]
    keys = example_keys(evaluation_keys().data, len(test))
    return jax.vmap(data.binarize)(test, keys)


def draw_rows(
    rows: list[tuple[str, Array]], data_shape: tuple[int, ...], title: str
) -> Figure:
    """Draw rows of images.

    Args:
      rows: name and images `[columns, D]` of each row.
      data_shape: shape of an image.
      title: title of the figure.

    Returns:
      The figure.
    """
    columns = len(rows[0][1])
    figure = Figure((0.8 * columns + 1.2, 0.8 * len(rows) + 0.5))
    panels = figure.subplots(len(rows), columns, squeeze=False)
    for row, (name, pictures) in zip(panels, rows, strict=True):
        for axes, picture in zip(row, np.asarray(pictures), strict=True):
            draw_pixels(axes, picture.reshape(data_shape))
        row[0].set_ylabel(name, rotation=0, ha="right", va="center")
    add_title(figure, title)
    return figure
