"""`Dataset`: arrays of the splits, and the scale of their values."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax.data.columns import Column, count_values, numbered
from vae_jax.data.rows import blocks, part
from vae_jax.distributions.support import UNIT_INTERVAL, Support, known_values
from vae_jax.options import require_at_least


class Dataset(NamedTuple):
    """Training and test examples, and optionally validation examples.

    Attributes:
      name: name of the data set, used to label results.
      train: training examples, `[n, D]`, uint8 or float32; `Rows` if they stay on the
        host.
      test: test examples, `[m, D]`, uint8 or float32.
      train_labels: `[n]`, int32, or None.
      test_labels: `[m]`, int32, or None.
      data_shape: shape of one example; its product is D.
      num_levels: integers are from 0 to `num_levels - 1`; None for floats in [0, 1]
        and for data with `columns`.
      notes: assumptions made when loading the data, one sentence each, to show to the
        user.
      validation: validation examples, `[v, D]`, like `train`, or None.
      validation_labels: `[v]`, int32, or None.
      columns: the D columns of a table; empty for pixels.
      train_covariates: covariates that the model is conditioned on, `[n, C]`, float32,
        or None.
      test_covariates: `[m, C]`, float32, or None.
      validation_covariates: `[v, C]`, float32, or None.
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
        """Kind of the values: `bits`, `levels`, `reals`, `counts`, or `mixed`."""
        kinds = {column.kind for column in self.columns}
        if kinds:
            alone = {"count": "counts", "real": "reals"}
            return alone.get(kinds.pop(), "mixed") if len(kinds) == 1 else "mixed"
        return {None: "reals", 2: "bits"}.get(self.num_levels, "levels")


def as_counts(dataset: Dataset) -> Dataset:
    """Convert whole numbers from grey levels to counts.

    Args:
      dataset: a data set of whole numbers.

    Returns:
      A `Dataset` of float32.

    Raises:
      ValueError: a value is not a count; the message states row, column and value.

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
    """Scale grey levels to [0, 1], as value / (num_levels - 1).

    Args:
      x: values, `[..., D]`.
      num_levels: `Dataset.num_levels`; None returns the values unchanged.

    Returns:
      `[..., D]`, float32 unless `num_levels` is None.

    Raises:
      ValueError: `num_levels` below 2, or a value above the last level.

    Example:
      >>> import numpy as np
      >>> from vae_jax import data
      >>> data.to_unit_interval(np.array([0, 4, 16], np.uint8), 17).tolist()
      [0.0, 0.25, 1.0]
    """
    if num_levels is None:
        return jnp.asarray(x)
    require_at_least("num_levels", num_levels, 2)
    known = known_values(x)
    if known is not None and known.size and known.max() > num_levels - 1:
        raise ValueError(
            f"x must hold levels from 0 to {num_levels - 1}, got {known.max()}"
        )
    return jnp.asarray(x, jnp.float32) / (num_levels - 1)


def require_declared(dataset: Dataset) -> None:
    """Raise ValueError unless all values are pixels in the range of `num_levels`.

    Args:
      dataset: any data set.

    Raises:
      ValueError: integers above `num_levels - 1`; floats that are NaN or outside
        [0, 1]; or a data set with `columns`, which has no pixels.

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
    remedy = f"num_levels={levels} of the data set must match its values"
    for _, block in blocks(dataset.train):
        support.require(block, "train", remedy=remedy)
    support.require(dataset.test, "test", remedy=remedy)
    if dataset.validation is not None:
        support.require(dataset.validation, "validation", remedy=remedy)


def hold_out(dataset: Dataset, num_examples: int) -> Dataset:
    """Hold out the last training examples for validation.

    Args:
      dataset: a data set without validation examples.
      num_examples: number v of training examples to hold out.

    Returns:
      A `Dataset` of n - v training and v validation examples.

    Raises:
      ValueError: the data set already has validation examples, or `num_examples` is
        not between 1 and n - 1.

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
