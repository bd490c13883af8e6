"""Columns of a table: their names, and what their values are."""

from typing import NamedTuple

import numpy as np

# The largest whole number below which float32 knows all others.
LARGEST_COUNT = 2**24


class Column(NamedTuple):
    """A column of a table.

    Attributes:
      name: of the column.
      kind: `count`.
    """

    name: str
    kind: str


def numbered(num_columns: int, kind: str) -> tuple[Column, ...]:
    """Columns without names, called by their numbers.

    Args:
      num_columns: D.
      kind: of all.

    Returns:
      `Column`s named 0 to D - 1.

    Example:
      >>> from vae_jax.data.columns import numbered
      >>> numbered(2, "count")[1].name
      '1'
    """
    return tuple(Column(str(number), kind) for number in range(num_columns))


def count_values(x: np.ndarray, key: str) -> np.ndarray:
    """Counts as a model takes them, float32, which is exact up to 2^24.

    Args:
      x: whole numbers of any type, an example a row.
      key: of the array, for messages.

    Returns:
      The same values.

    Raises:
      ValueError: names row, column and value of what is no count.

    Example:
      >>> import numpy as np
      >>> from vae_jax.data.columns import count_values
      >>> count_values(np.array([[0, 300]]), "x").tolist()
      [[0.0, 300.0]]
    """
    rows = x.reshape(len(x), -1)
    with np.errstate(invalid="ignore"):
        wrong = ~((rows >= 0) & (rows <= LARGEST_COUNT) & (rows == np.floor(rows)))
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise ValueError(
            f"{key} must hold counts, whole numbers from 0 to 2^24, got "
            f"{rows[row, column]} in row {row}, column {column}"
        )
    return x.astype(np.float32)
