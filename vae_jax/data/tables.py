"""Tables as a model takes them: kinds of columns inferred, values coded, and back."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from vae_jax.data.columns import (
    CODED,
    LARGEST_OFFSET,
    Column,
    Given,
    are_counts,
    given_columns,
    infer_column,
)
from vae_jax.data.readers import Table

MISSING = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "None", "?")
# More columns are not listed one by one.
_SHOWN = 40


class Encoded(NamedTuple):
    """A table as a model takes it.

    Attributes:
      x: `[n, D]`, float32.
      columns: D of them.
      labels: `[n]`, codes of the label column; None where there is none.
    """

    x: np.ndarray
    columns: tuple[Column, ...]
    labels: np.ndarray | None


def encode(table: Table, given: Given, *, default: str | None = None) -> Encoded:
    """Numbers of a table, and what its columns hold, inferred where it is not given.

    Args:
      table: as read.
      given: kinds by name, or all columns.
      default: kind of the columns that are not given; None infers it.

    Returns:
      Values, columns and labels.

    Raises:
      ValueError: names column, row and value of what does not fit.
    """
    known = given_columns(list(table.columns), given)
    if given is not None and not isinstance(given, Mapping):
        table = table._replace(
            columns={column.name: table.columns[column.name] for column in given}
        )
    found, columns, labels = [], [], None
    for name, values in table.columns.items():
        column = known.get(name, Column(name, default or ""))
        if column.kind == "ignore":
            continue
        if column.kind == "label":
            labels = np.unique(values.astype(str), return_inverse=True)[1]
            labels = labels.astype(np.int32)
            continue
        coded, column = _encode_column(column, values, table.place)
        found.append(coded)
        columns.append(column)
    if not found:
        raise ValueError("no column is left to model")
    return Encoded(np.stack(found, axis=1), tuple(columns), labels)


def _encode_column(
    column: Column, values: np.ndarray, place: Callable[[int], str]
) -> tuple[np.ndarray, Column]:
    """Values of one column as float32, and the column with its kind and categories."""
    name = column.name

    def refuse(row: Any, what: str) -> ValueError:
        return ValueError(f"column {name!r}, {place(int(row))}: {what}")

    values, missing = _parsed(values, column, refuse)
    if missing.all():
        raise ValueError(f"column {name!r} has no value in any row: give it 'ignore'")
    if missing.any():
        raise refuse(np.argmax(missing), "a value is missing")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        row = np.argmin(np.isfinite(values))
        raise refuse(row, f"must be finite, got {values[row]}")
    if not column.kind:
        column = infer_column(name, values)
    if column.kind in CODED:
        return _codes(column, values, refuse)
    if values.dtype.kind not in "fiub":
        raise refuse(0, f"{str(values[0])!r} is no number, for kind {column.kind}")
    numbers = values.astype(np.float64)
    fits, expected = {
        "count": (are_counts(numbers), "a count, a whole number from 0 to 2^24"),
        "positive": (numbers > 0, "positive"),
        "real": (np.isfinite(numbers), "finite"),
    }[column.kind]
    fits = fits & (np.abs(numbers) <= np.finfo(np.float32).max)
    if not fits.all():
        row = np.argmin(fits)
        raise refuse(row, f"must be {expected}, got {values[row]}")
    return numbers.astype(np.float32), column


def _parsed(
    values: np.ndarray, column: Column, refuse: Callable[[Any, str], ValueError]
) -> tuple[np.ndarray, np.ndarray]:
    """Numbers where all texts are such, and which values are missing."""
    if values.dtype.kind == "f":
        return values, np.isnan(values)
    if values.dtype.kind in "iub":
        return values, np.zeros(len(values), bool)
    if values.dtype.kind not in "OU":
        raise ValueError(
            f"column {column.name!r} must hold numbers or texts, got {values.dtype}"
        )
    texts = np.array(["" if value is None else str(value).strip() for value in values])
    missing = np.isin(texts, MISSING) & ~np.isin(texts, column.categories)
    present = texts[~missing]
    is_number = np.array([_is_number(text) for text in present], bool)
    if column.categories or not is_number.any():
        return texts, missing
    wants_number = column.kind not in ("", *CODED)
    if not is_number.all():
        # A few texts among numbers are mistakes; the reverse may be categories.
        if wants_number or (is_number.mean() > 0.5 and not column.kind):
            row = np.flatnonzero(~missing)[np.argmin(is_number)]
            raise refuse(
                row,
                f"{str(texts[row])!r} is no number (give the column the kind "
                "'categorical' if it holds categories)",
            )
        return texts, missing
    whole = all(text.lstrip("+-").isdigit() for text in present)
    if whole and not missing.any() and max(map(len, present)) < 19:
        return texts.astype(np.int64), missing
    numbers = np.full(len(texts), np.nan)
    numbers[~missing] = present.astype(np.float64)
    return numbers, missing


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _codes(
    column: Column, values: np.ndarray, refuse: Callable[[Any, str], ValueError]
) -> tuple[np.ndarray, Column]:
    """Codes of categories, which are those given or the sorted values."""
    if not column.categories and column.kind == "binary" and values.dtype.kind != "U":
        fits = np.isin(values, (0, 1))
        if fits.all():
            return values.astype(np.float32), column
    distinct: Any = np.unique(values)
    categories: tuple[str, ...] = column.categories or tuple(
        map(str, distinct.tolist())
    )
    if column.kind == "binary" and len(categories) != 2:
        shown = ", ".join(categories[:5])
        raise refuse(0, f"a binary column must have 2 values, got {shown}")
    if len(categories) < 2:
        only = "".join(categories)
        raise refuse(0, f"all rows are {only!r}: give it the kind 'ignore'")
    code_of = {category: code for code, category in enumerate(categories)}
    texts = [str(value) for value in values.tolist()]
    for row, text in enumerate(texts):
        if text not in code_of:
            raise refuse(row, f"{text!r} is none of {', '.join(categories[:20])}")
    codes = np.array([code_of[text] for text in texts], np.float32)
    return codes, column._replace(categories=categories)


def require_varying(x: np.ndarray, columns: tuple[Column, ...]) -> None:
    """Refuses real columns that do not vary in training, or too little for float32.

    Args:
      x: `[n, D]`, the training examples.
      columns: D of them.

    Raises:
      ValueError: names the column and its value.
    """
    for number, column in enumerate(columns):
        if column.kind not in ("real", "positive"):
            continue
        values = x[:, number].astype(np.float64)
        if values.min() == values.max():
            raise ValueError(
                f"column {column.name!r} is {values[0]:g} in all rows to train on, "
                "which has no density: give it the kind 'ignore'"
            )
        if abs(values.mean()) > LARGEST_OFFSET * values.std():
            raise ValueError(
                f"column {column.name!r} varies by {values.std():.3g} about "
                f"{values.mean():.8g}, of which float32 keeps too few digits: subtract "
                "what is common to all rows"
            )


def decode_table(x: Any, columns: tuple[Column, ...]) -> dict[str, np.ndarray]:
    """Rows of a model as columns by name, categories by their names.

    Args:
      x: `[n, D]`, examples, draws or reconstructions.
      columns: of the data set.

    Returns:
      Values `[n]` by name, which `pandas.DataFrame` takes.

    Raises:
      ValueError: another number of columns.

    Example:
      >>> import numpy as np
      >>> from vae_jax import data
      >>> columns = (data.Column("size", "ordinal", ("S", "L")),)
      >>> data.decode_table(np.array([[1.0]]), columns)["size"].tolist()
      ['L']
    """
    x = np.asarray(x)
    if x.ndim != 2 or x.shape[1] != len(columns):
        raise ValueError(f"x must be [n, {len(columns)}], got {list(x.shape)}")
    return {
        column.name: np.array(column.categories)[np.rint(values).astype(int)]
        if column.categories
        else values
        for column, values in zip(columns, x.T, strict=True)
    }


def describe_columns(x: np.ndarray, columns: tuple[Column, ...]) -> list[str]:
    """What the columns hold, a line each; of many the number of each kind.

    Args:
      x: `[n, D]`.
      columns: D of them.

    Returns:
      Lines of text.
    """
    if len(columns) > _SHOWN:
        kinds = [column.kind for column in columns]
        counts = (f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
        return [f"{len(columns)} columns: {', '.join(counts)}"]
    width = max(len(column.name) for column in columns)
    lines = []
    for column, values in zip(columns, x.T, strict=True):
        shown = f"{values.min():g} to {values.max():g}"
        if column.categories:
            shown = ", ".join(column.categories[:8])
            shown += ", ..." * (len(column.categories) > 8)
        lines.append(f"column {column.name:{width}}  {column.kind:11}  {shown}")
    return lines
