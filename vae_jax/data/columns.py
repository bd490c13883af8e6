"""Columns of a table: their names, what their values are, and how they are coded.

A model sees an example as a row of float32: real and positive numbers and counts as
they are, categories by their codes 0, 1, ..., K - 1.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vae_jax.data.rows import blocks

KINDS = ("real", "positive", "count", "binary", "categorical", "ordinal")
# What is no value of a model's: left out, the labels, or given beside x.
OTHER_KINDS = ("ignore", "label", "covariate")
CODED = ("binary", "categorical", "ordinal")
# The largest whole number below which float32 knows all others.
LARGEST_COUNT = 2**24
# Mean over standard deviation, beyond which float32 rounds off what varies.
LARGEST_OFFSET = 1e4
# Positive numbers of this range are taken as such, and not as real numbers.
DECADES = 100.0


class Column(NamedTuple):
    """A column of a table.

    Attributes:
      name: of the column.
      kind: one of `KINDS`.
      categories: of a binary, categorical or ordinal column, in the order of the
        codes; empty where the values are the codes.
    """

    name: str
    kind: str
    categories: tuple[str, ...] = ()


Given = Mapping[str, Any] | Sequence[Column] | None
"""Known contents of columns: kinds by name, or all columns."""


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
    require_counts(x, key)
    return x.astype(np.float32)


def require_counts(x: np.ndarray, key: str, *, may_miss: bool = False) -> None:
    """Raise if values are no counts, of an array or a file of any size.

    Args:
      x: numbers, an example a row.
      key: of the array, for messages.
      may_miss: take NaN as well.

    Raises:
      ValueError: names row, column and value of what is no count.

    Example:
      >>> import numpy as np
      >>> from vae_jax.data.columns import require_counts
      >>> require_counts(np.array([[0, 300]]), "x")
    """
    for first, block in blocks(x):
        rows = block.reshape(len(block), -1)
        wrong = ~are_counts(rows)
        if may_miss:
            wrong &= rows == rows
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            raise ValueError(
                f"{key} must hold counts, whole numbers from 0 to 2^24, got "
                f"{rows[row, column]} in row {first + row}, column {column}"
            )


def are_counts(x: np.ndarray) -> np.ndarray:
    """Elementwise, whether values are whole numbers from 0 to 2^24.

    Args:
      x: numbers.

    Returns:
      Logical values.

    Example:
      >>> import numpy as np
      >>> from vae_jax.data.columns import are_counts
      >>> are_counts(np.array([1.0, 0.5, np.nan])).tolist()
      [True, False, False]
    """
    with np.errstate(invalid="ignore"):
        return (x >= 0) & (x <= LARGEST_COUNT) & (x == np.floor(x))


def loses_digits(mean: float, deviation: float) -> bool:
    """Whether float32 rounds off what varies: the mean is too large beside it.

    Args:
      mean: of a column, in float64.
      deviation: its standard deviation, above 0.

    Returns:
      Whether |mean| is above `LARGEST_OFFSET` standard deviations.

    Example:
      >>> from vae_jax.data.columns import loses_digits
      >>> loses_digits(1.7e9, 17.0)
      True
    """
    return bool(abs(mean) > LARGEST_OFFSET * deviation)


def read_columns(path: str | Path) -> Mapping[str, Any] | tuple[Column, ...]:
    """Read the kinds of columns from a file of a user's own or from a run.

    Args:
      path: a JSON file of names and kinds, `{"age": "real", "sex": "ignore", "size":
        {"kind": "ordinal", "categories": ["S", "M", "L"]}}`; or the folder of a run,
        whose columns are then all there may be.

    Returns:
      What `data.load` takes as `columns`.

    Raises:
      ValueError: no such file, no JSON of that form, or a run without named columns.
    """
    path = Path(path).expanduser()
    is_run = path.is_dir()
    try:
        text = (path / "config.json" if is_run else path).read_text()
        found = json.loads(text)
        if is_run:
            found = json.loads(found.get("columns") or "null")
    except (OSError, ValueError) as error:
        raise ValueError(f"columns {str(path)!r}: {error}") from error
    if isinstance(found, dict):
        return found
    if not isinstance(found, list):
        raise ValueError(
            f"columns {str(path)!r} must hold kinds by the names of columns, got "
            f"{'a run without them' if is_run else type(found).__name__}"
        )
    return columns_from_json(text if not is_run else json.dumps(found))


def columns_to_json(columns: Sequence[Column]) -> str:
    """Columns as text, which `columns_from_json` reads.

    Args:
      columns: of a data set.

    Returns:
      A line of JSON.

    Example:
      >>> from vae_jax.data.columns import Column, columns_to_json
      >>> columns_to_json([Column("age", "real")])
      '[["age", "real", []]]'
    """
    return json.dumps([list(column) for column in columns])


def columns_from_json(text: str) -> tuple[Column, ...]:
    """Columns that `columns_to_json` wrote.

    Args:
      text: a line of JSON.

    Returns:
      The columns.

    Example:
      >>> from vae_jax.data.columns import columns_from_json
      >>> columns_from_json('[["age", "real", []]]')
      (Column(name='age', kind='real', categories=()),)
    """
    return tuple(
        Column(name, kind, tuple(categories))
        for name, kind, categories in json.loads(text)
    )


def given_columns(names: Sequence[str], given: Given) -> dict[str, Column]:
    """The columns that a caller says something of, by name.

    Args:
      names: of the table.
      given: kinds by name, of which others may be left out; or all columns.

    Returns:
      `Column`s, also of a kind in `OTHER_KINDS`.

    Raises:
      ValueError: columns that the table lacks or that are not known, another kind, or
        categories that are not several different texts.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        known = [column.name for column in given]
        extra = [name for name in names if name not in known]
        if extra:
            raise ValueError(
                f"columns {', '.join(map(repr, extra))} are unknown: the columns given "
                f"are {', '.join(known)}"
            )
        given = {column.name: column._asdict() for column in given}
    found = {}
    for name, entry in given.items():
        entry = {"kind": entry} if isinstance(entry, str) else dict(entry)
        column = Column(
            name, entry.get("kind", ""), tuple(map(str, entry.get("categories", ())))
        )
        if name not in names:
            raise ValueError(
                f"column {name!r} is given and not in the table, which has "
                f"{', '.join(names)}"
            )
        if column.kind not in (*KINDS, *OTHER_KINDS):
            kinds = ", ".join((*KINDS, *OTHER_KINDS))
            raise ValueError(
                f"column {name!r} must be of a kind {kinds}, got {column.kind!r}"
            )
        count = len(column.categories)
        if count and (column.kind not in CODED or len(set(column.categories)) < count):
            raise ValueError(
                f"column {name!r}: categories must be different and of a kind "
                f"{', '.join(CODED)}, got {list(column.categories)} of {column.kind}"
            )
        found[name] = column
    return found


def infer_column(name: str, values: np.ndarray) -> Column:
    """Infer the kind of a column from its values.

    Texts and logical values are categories, of two binary; whole numbers are counts, or
    binary where there are two; other numbers are positive where the largest is a
    hundred times the smallest or more, else real.

    Args:
      name: of the column.
      values: `[n]`, without missing ones: floats, integers, logical values or texts.

    Returns:
      A `Column`.

    Raises:
      ValueError: nearly as many different texts as rows.

    Example:
      >>> import numpy as np
      >>> from vae_jax.data.columns import infer_column
      >>> infer_column("length", np.array([0.1, 2.5, 40.0])).kind
      'positive'
    """
    if values.dtype.kind == "f":
        is_positive = values.min() > 0 and values.max() >= DECADES * values.min()
        return Column(name, "positive" if is_positive else "real")
    distinct = np.unique(values)
    if values.dtype.kind in "iu" and len(distinct) != 2:
        return Column(name, "count" if distinct[0] >= 0 else "real")
    if values.dtype.kind in "iu" and distinct.tolist() == [0, 1]:
        return Column(name, "binary")
    categories = tuple(map(str, distinct.tolist()))
    require_categories(name, len(categories), len(values))
    return Column(name, "binary" if len(categories) == 2 else "categorical", categories)


def require_categories(name: str, num_texts: int, num_rows: int) -> None:
    """Refuses nearly as many different texts as rows, as names of the rows are.

    Args:
      name: of the column.
      num_texts: that differ.
      num_rows: that have one.

    Raises:
      ValueError: names the column.
    """
    if num_texts > max(20, num_rows / 2):
        raise ValueError(
            f"column {name!r} has {num_texts} different texts in {num_rows} "
            "rows, which are no categories: give it the kind 'ignore' or 'label'"
        )
