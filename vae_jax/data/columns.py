"""Columns of a table: names, kinds of values, and categories.

Models receive an example as a row of float32: real numbers, positive numbers and
counts unchanged, and categories by their codes 0, 1, ..., K - 1.
"""

import json
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vae_jax.data.rows import blocks

KINDS = ("real", "positive", "count", "binary", "categorical", "ordinal")
# Columns that are not part of x: left out, the labels, or covariates.
OTHER_KINDS = ("ignore", "label", "covariate")
CODED = ("binary", "categorical", "ordinal")
# float32 represents all whole numbers up to this one exactly.
LARGEST_COUNT = 2**24
# |mean| / standard deviation above which float32 rounding hides the variation.
LARGEST_OFFSET = 1e4
# Ratio of largest to smallest value from which the kind is positive, not real.
DECADES = 100.0


class Column(NamedTuple):
    """A column of a table.

    Attributes:
      name: name of the column.
      kind: one of `KINDS`.
      categories: categories of a binary, categorical or ordinal column, in the order
        of the codes; empty if the values are the codes.
    """

    name: str
    kind: str
    categories: tuple[str, ...] = ()


Given = Mapping[str, Any] | Sequence[Column] | None
"""Specification of columns: kinds by name, or a sequence of all columns."""


def numbered(num_columns: int, kind: str) -> tuple[Column, ...]:
    """Columns of one kind, named by their positions.

    Args:
      num_columns: number D of columns.
      kind: kind of all columns.

    Returns:
      `Column`s named 0 to D - 1.

    Example:
      >>> from vae_jax.data.columns import numbered
      >>> numbered(2, "count")[1].name
      '1'
    """
    return tuple(Column(str(number), kind) for number in range(num_columns))


def count_values(x: np.ndarray, key: str) -> np.ndarray:
    """Convert counts to float32, which is exact up to 2^24.

    Args:
      x: whole numbers of any type, one example per row.
      key: name of the array, for messages.

    Returns:
      The same values as float32.

    Raises:
      ValueError: a value is not a count; the message states row, column and value.

    Example:
      >>> import numpy as np
      >>> from vae_jax.data.columns import count_values
      >>> count_values(np.array([[0, 300]]), "x").tolist()
      [[0.0, 300.0]]
    """
    require_counts(x, key)
    return x.astype(np.float32)


def require_counts(x: np.ndarray, key: str, *, may_miss: bool = False) -> None:
    """Raise ValueError if a value is not a count, reading the array block by block.

    Args:
      x: numbers, one example per row.
      key: name of the array, for messages.
      may_miss: allow NaN.

    Raises:
      ValueError: a value is not a count; the message states row, column and value.

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
    """Test elementwise whether values are whole numbers from 0 to 2^24.

    Args:
      x: numbers.

    Returns:
      Booleans of the shape of `x`.

    Example:
      >>> import numpy as np
      >>> from vae_jax.data.columns import are_counts
      >>> are_counts(np.array([1.0, 0.5, np.nan])).tolist()
      [True, False, False]
    """
    with np.errstate(invalid="ignore"):
        return (x >= 0) & (x <= LARGEST_COUNT) & (x == np.floor(x))


def are_all_counts(x: np.ndarray) -> bool:
    """Whether all values are counts, and some are neither 0 nor 1.

    Args:
      x: numbers.

    Returns:
      False also for an empty array.

    Example:
      >>> import numpy as np
      >>> from vae_jax.data.columns import are_all_counts
      >>> are_all_counts(np.array([0.0, 3.0])), are_all_counts(np.array([0.0, 1.0]))
      (True, False)
    """
    return bool(are_counts(x).all() and x.size > 0 and x.max() > 1)


def loses_digits(mean: float, deviation: float) -> bool:
    """Whether float32 rounding hides the variation about the mean.

    Args:
      mean: mean of a column, in float64.
      deviation: standard deviation of the column, above 0.

    Returns:
      Whether |mean| is above `LARGEST_OFFSET` standard deviations, or float32 has no
      normal number as small as the deviation.

    Example:
      >>> from vae_jax.data.columns import loses_digits
      >>> loses_digits(1.7e9, 17.0)
      True
    """
    is_lost = deviation < np.finfo(np.float32).tiny
    return bool(abs(mean) > LARGEST_OFFSET * deviation or is_lost)


def read_columns(path: str | Path) -> Mapping[str, Any] | tuple[Column, ...]:
    """Read the kinds of columns from a JSON file or from a run.

    Args:
      path: a JSON file of kinds by name, `{"age": "real", "sex": "ignore", "size":
        {"kind": "ordinal", "categories": ["S", "M", "L"]}}`; or the folder of a run,
        whose columns must then include all columns of the data.

    Returns:
      The argument `columns` of `data.load`.

    Raises:
      ValueError: the file does not exist, is not JSON of this form, or belongs to a run
        without named columns.
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
    try:
        return columns_from_json(text if not is_run else json.dumps(found))
    except ValueError as error:
        raise ValueError(f"columns {str(path)!r}: {error}") from error


def columns_to_json(columns: Sequence[Column]) -> str:
    """Serialize columns as JSON; see `columns_from_json`.

    Args:
      columns: columns of a data set.

    Returns:
      A line of JSON.

    Example:
      >>> from vae_jax.data.columns import Column, columns_to_json
      >>> columns_to_json([Column("age", "real")])
      '[["age", "real", []]]'
    """
    return json.dumps([list(column) for column in columns])


def columns_from_json(text: str) -> tuple[Column, ...]:
    """Parse columns written by `columns_to_json`.

    Args:
      text: a line of JSON.

    Returns:
      The columns.

    Raises:
      ValueError: JSON of another form.

    Example:
      >>> from vae_jax.data.columns import columns_from_json
      >>> columns_from_json('[["age", "real", []]]')
      (Column(name='age', kind='real', categories=()),)
    """
    try:
        return tuple(
            Column(str(name), str(kind), tuple(categories))
            for name, kind, categories in json.loads(text)
        )
    except (TypeError, ValueError) as error:
        raise ValueError(
            'columns must be kinds by name, {"age": "real"}, or all columns, '
            f'[["age", "real", []]], got {text:.200}'
        ) from error


def given_columns(names: Sequence[str], given: Given) -> dict[str, Column]:
    """Columns that the caller specified, by name.

    Args:
      names: names of the columns of the table.
      given: kinds of some columns by name, or all columns.

    Returns:
      `Column`s by name, including those of a kind in `OTHER_KINDS`.

    Raises:
      ValueError: a column that is not in the table, a column of the table that is not
        among all columns given, an unknown kind, duplicate categories, or categories
        for a kind without codes.
    """
    if given is None:
        return {}
    if isinstance(given, str | Path):
        raise ValueError(
            "columns must be kinds by name, got a path: read the file with "
            f"data.read_columns({str(given)!r})"
        )
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
        column = _given_column(name, entry)
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


def _given_column(name: str, entry: Any) -> Column:
    """A column of its entry in `given`: a kind, or a mapping with the categories."""
    entry = {"kind": entry} if isinstance(entry, str) else entry
    if isinstance(entry, Mapping) and set(entry) <= set(Column._fields):
        categories = entry.get("categories", ())
        # Of a set nobody knows the order, and a text is one category.
        is_ordered = not isinstance(categories, str | Mapping | Set)
        if is_ordered and isinstance(categories, Iterable):
            return Column(name, entry.get("kind", ""), tuple(map(str, categories)))
    raise ValueError(
        f"column {name!r} must be a kind, or {{'kind': ..., 'categories': [...]}}, got "
        f"{entry!r}"
    )


def infer_column(name: str, values: np.ndarray) -> Column:
    """Infer the kind of a column from its values.

    Text and boolean columns are binary if they have two distinct values, else
    categorical. Integer columns are binary if they have two distinct values, else
    counts, or real if a value is negative. Float columns are positive if all values are
    positive and the largest is at least 100 times the smallest, else real.

    Args:
      name: name of the column.
      values: `[n]`, without missing values: floats, integers, booleans or strings.

    Returns:
      A `Column`.

    Raises:
      ValueError: too many distinct strings for categories; see `require_categories`.

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
    """Raise ValueError if there are too many distinct strings for categories.

    More than 20 distinct strings that exceed half the number of rows are probably
    identifiers of the rows.

    Args:
      name: name of the column.
      num_texts: number of distinct strings.
      num_rows: number of rows with a value.

    Raises:
      ValueError: `num_texts` exceeds 20 and half of `num_rows`.
    """
    if num_texts > max(20, num_rows / 2):
        raise ValueError(
            f"column {name!r} has {num_texts} different texts in {num_rows} "
            "rows, too many for categories: give it the kind 'ignore' or 'label', or "
            "write dates as numbers"
        )
