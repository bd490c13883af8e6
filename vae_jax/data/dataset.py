"""What a data set is: arrays in memory, and the scale on which a model sees them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax.data.columns import Column, count_values, numbered
from vae_jax.data.rows import blocks, part
from vae_jax.distributions.support import UNIT_INTERVAL, Support


class Dataset(NamedTuple):
    """Training and test examples, and examples to choose by where there are some.

    Attributes:
      name: what every figure about it is labelled with.
      train: `[n, D]`, uint8 or float32; `Rows` where they stay on the host.
      test: `[m, D]`, likewise.
      train_labels: `[n]`, int32; None where there are none.
      test_labels: `[m]`, likewise.
      data_shape: shape of one example; its product is D.
      num_levels: integers run from 0 to `num_levels - 1`; None for floats in [0, 1]
        and for counts.
      notes: sentences to be told to whoever asked for the data.
      validation: `[v, D]`, like `train`; None where none are set aside.
      validation_labels: `[v]`, int32; None where there are none.
      columns: of a table, D of them; empty for pixels.
      train_covariates: `[n, C]`, float32, what is given beside x; None where there are
        none.
      test_covariates: `[m, C]`, likewise.
      validation_covariates: `[v, C]`, likewise.
    """

    name: str
    train: Any
    test: np.ndarray
    train_labels: np.ndarray | None
    test_labels: np.ndarray | None
    data_shape: tuple[int, ...]
    num_levels: int | None
    notes: tuple[str, ...] = ()
    validation: np.ndarray | None = None
    validation_labels: np.ndarray | None = None
    columns: tuple[Column, ...] = ()
    train_covariates: np.ndarray | None = None
    test_covariates: np.ndarray | None = None
    validation_covariates: np.ndarray | None = None

    @property
    def values(self) -> str:
        """Values of the examples: `bits`, `levels`, `reals`, `counts`, or `mixed`."""
        kinds = {column.kind for column in self.columns}
        if kinds:
            alone = {"count": "counts", "real": "reals"}
            return alone.get(kinds.pop(), "mixed") if len(kinds) == 1 else "mixed"
        return {None: "reals", 2: "bits"}.get(self.num_levels, "levels")


def as_counts(dataset: Dataset) -> Dataset:
    """The data set with its whole numbers as counts, and not as levels of grey.

    Args:
      dataset: of whole numbers.

    Returns:
      A `Dataset` of float32.

    Raises:
      ValueError: names row, column and value of what is no count.

    Example:
      >>> from vae_jax import data
      >>> from vae_jax.data.dataset import as_counts
      >>> as_counts(data.load("digits")).values
      'counts'
    """
    splits = ("train", "test", "validation")
    arrays = {name: getattr(dataset, name) for name in splits}
    return dataset._replace(
        num_levels=None,
        columns=numbered(dataset.train.shape[1], "count"),
        **{name: count_values(x, name) for name, x in arrays.items() if x is not None},
    )


def to_unit_interval(x: jax.Array | np.ndarray, num_levels: int | None) -> jax.Array:
    """Values as a model sees them: value / (num_levels - 1), in [0, 1]; or counts.

    Args:
      x: `[..., D]`, integers; or floats, which stay as they are.
      num_levels: of the `Dataset`.

    Returns:
      `[..., D]`, float32 for integers.

    Raises:
      ValueError: `num_levels` below 2.

    Example:
      >>> import numpy as np
      >>> from vae_jax import data
      >>> data.to_unit_interval(np.array([0, 4, 16], np.uint8), 17).tolist()
      [0.0, 0.25, 1.0]
    """
    if num_levels is None:
        return jnp.asarray(x)
    if num_levels < 2:
        raise ValueError(f"num_levels must be at least 2, got {num_levels}")
    return jnp.asarray(x, jnp.float32) / (num_levels - 1)


def require_declared(dataset: Dataset) -> None:
    """Raise if there are values that `num_levels` rules out, or no pixels at all.

    Args:
      dataset: any data set.

    Raises:
      ValueError: integers beyond `num_levels - 1`; floats outside [0, 1], or NaN;
        counts.

    Example:
      >>> from vae_jax import data
      >>> from vae_jax.data.dataset import require_declared
      >>> require_declared(data.load("digits"))
    """
    if dataset.columns:
        raise ValueError(
            f"the values of {dataset.name} are {dataset.values}, no grey levels: "
            "binarization must be 'none'"
        )
    support, levels = UNIT_INTERVAL, dataset.num_levels
    if levels is not None:
        support = Support(0, levels - 1)
    remedy = f"num_levels={levels} of the data set must be that of its values"
    for _, block in blocks(dataset.train):
        support.require(block, "train", remedy=remedy)
    support.require(dataset.test, "test", remedy=remedy)
    if dataset.validation is not None:
        support.require(dataset.validation, "validation", remedy=remedy)


def hold_out(dataset: Dataset, num_examples: int) -> Dataset:
    """Sets the last training examples aside, to choose by.

    Args:
      dataset: a data set without validation examples.
      num_examples: v, how many of `train` become `validation`.

    Returns:
      A `Dataset` of n - v training and v validation examples.

    Raises:
      ValueError: it has validation examples, or none would be left to train on.

    Example:
      >>> from vae_jax import data
      >>> digits = data.hold_out(data.load("digits"), 437)
      >>> digits.train.shape, digits.validation.shape
      ((1000, 64), (437, 64))
    """
    if dataset.validation is not None:
        raise ValueError(
            f"{dataset.name} has {len(dataset.validation)} validation examples of its "
            "own, as it was published"
        )
    if not 1 <= num_examples < len(dataset.train):
        raise ValueError(
            f"num_examples must be from 1 to {len(dataset.train) - 1}, to leave some "
            f"to train on, got {num_examples}"
        )
    train = part(dataset.train, slice(None, -num_examples))
    validation = np.asarray(dataset.train[-num_examples:])
    dataset = dataset._replace(train=train, validation=validation)
    for name in ("labels", "covariates"):
        values = getattr(dataset, f"train_{name}")
        if values is not None:
            train, validation = np.split(values, [-num_examples])
            own = {f"train_{name}": train, f"validation_{name}": validation}
            dataset = dataset._replace(**own)
    return dataset
