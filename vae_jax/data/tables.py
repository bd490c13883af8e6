"""Encode tables as float32, with inferred kinds of columns, and decode them."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from vae_jax.data.columns import (
    CODED,
    LARGEST_COUNT,
    Column,
    Given,
    are_counts,
    given_columns,
    infer_column,
    loses_digits,
    require_categories,
)
from vae_jax.data.readers import Table
from vae_jax.data.rows import Rows, blocks

# What pandas takes for missing values, and "?" of the UCI repository.
MISSING = ("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan")
MISSING += ("1.#IND", "1.#QNAN", "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a")
MISSING += ("nan", "null", "?")
# Maximum number of columns that are described individually.
_SHOWN = 40


class Encoded(NamedTuple):
    """An encoded table.

    Attributes:
      x: values, `[n, D]`, float32.
      columns: the D columns of `x`.
      labels: codes 0 to K - 1 of the K sorted values of the label column, `[n]`; None
        without a label column.
      covariates: `[n, C]`, float32, sorted by the names of the columns; None without
        covariates.
      notes: what the codes of the labels stand for, unless the labels are the codes.
    """

    x: np.ndarray
    columns: tuple[Column, ...]
    labels: np.ndarray | None
    covariates: np.ndarray | None = None
    notes: tuple[str, ...] = ()


def encode(
    table: Table,
    given: Given,
    *,
    default: str | None = None,
    missing: str = "error",
) -> Encoded:
    """Encode a table, inferring the kinds of columns that are not given.

    Args:
      table: the table.
      given: kinds by name, or all columns.
      default: kind of the columns that are neither given nor stated by the table; None
        infers it.
      missing: `mask` converts missing values to NaN, `error` raises ValueError.

    Returns:
      Values, columns, labels and covariates.

    Raises:
      ValueError: an invalid column or value; the message states column, row and value.
    """
    known = given_columns(list(table.columns), given)
    if given is not None and not isinstance(given, Mapping):
        table = table._replace(
            columns={column.name: table.columns[column.name] for column in given}
        )
    found, columns, labels, covariates, notes = [], [], None, {}, ()
    for name, values in table.columns.items():
        stated = table.stated.get(name, Column(name, default or ""))
        column = known.get(name, stated)
        if column.kind == "ignore":
            continue
        if column.kind == "label":
            labels, notes = _label_codes(name, values, table.place)
            continue
        if column.kind == "covariate":
            covariates[name] = _covariate_values(name, values, table.place)
            continue
        if name not in known and column.kind == "categorical":
            present = values[~_absent(values, column)]
            require_categories(name, len(np.unique(present)), len(present))
        if isinstance(given, Mapping) and column == (name, stated.kind, ()):
            column = stated
        coded, column = _encode_column(column, values, table.place, missing)
        found.append(coded)
        columns.append(column)
    if not found:
        raise ValueError("no column is left to model")
    sorted_covariates = [covariates[name] for name in sorted(covariates)]
    return Encoded(
        np.stack(found, axis=1),
        tuple(columns),
        labels,
        np.stack(sorted_covariates, axis=1) if sorted_covariates else None,
        notes,
    )


def _error_of_row(
    name: str, place: Callable[[int], str]
) -> Callable[[Any, str], ValueError]:
    """Return a function that builds the error for a row of a column."""

    def refuse(row: Any, what: str) -> ValueError:
        return ValueError(f"column {name!r}, {place(int(row))}: {what}")

    return refuse


def _label_codes(
    name: str, values: np.ndarray, place: Callable[[int], str]
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Encode labels by their ranks, with a note unless these are the labels."""
    column = Column(name, "categorical")
    refuse = _error_of_row(name, place)
    absent = _absent(values, column)
    if absent.any():
        what = "the label is missing: leave out the row, or give it a separate class"
        raise refuse(np.argmax(absent), what)
    known, codes = np.unique(_parsed(values, column, refuse), return_inverse=True)
    notes = ()
    if known.dtype.kind not in "iubf" or (known != np.arange(len(known))).any():
        first = ", ".join(f"{code} = {value}" for code, value in enumerate(known[:10]))
        more = ", ..." * (len(known) > 10)
        notes = (f"labels of column {name!r} are numbered: {first}{more}",)
    return codes.astype(np.int32), notes


def _covariate_values(
    name: str, values: np.ndarray, place: Callable[[int], str]
) -> np.ndarray:
    """Convert a covariate to float32; raise ValueError if a value is missing."""
    real = Column(name, "real")
    absent = _absent(values, real)
    if absent.any():
        what = "the covariate is missing, but networks need it: leave out the row"
        raise _error_of_row(name, place)(np.argmax(absent), what)
    return _encode_column(real, values, place, "error")[0]


def _encode_column(
    column: Column, values: np.ndarray, place: Callable[[int], str], missing: str
) -> tuple[np.ndarray, Column]:
    """Encode a column as float32; return also its kind and categories."""
    name = column.name
    absent = _absent(values, column)
    rows = np.flatnonzero(~absent)
    refuse = _error_of_row(name, place)
    if absent.all():
        raise ValueError(
            f"column {name!r} has no value in any row: give it the kind 'ignore'"
        )
    if absent.any() and missing == "error":
        what = (
            "a value is missing: missing='mask' (--missing=mask in training) leaves "
            "missing values out of log p(x) under a likelihood Masked(...)"
        )
        raise refuse(np.argmax(absent), what)

    def refuse_present(row: Any, what: str) -> ValueError:
        return refuse(rows[int(row)], what)

    present = _parsed(values[~absent], column, refuse_present)
    if absent.any() and present.dtype.kind == "f" and are_counts(present).all():
        # Integer columns with missing values are read as floats.
        present = present.astype(np.int64)
    coded, column = _encode_present(column, present, refuse_present)
    found = np.full(len(values), np.nan, np.float32)
    found[~absent] = coded
    return found, column


def _encode_present(
    column: Column, values: np.ndarray, refuse: Callable[[Any, str], ValueError]
) -> tuple[np.ndarray, Column]:
    """Encode values without missing ones as float32; return also the `Column`."""
    name = column.name
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
    float32 = np.finfo(np.float32)
    fits, expected = {
        "count": (
            are_counts(numbers),
            "a count, a whole number from 0 to 2^24 (give the column the kind 'ignore' "
            "if it numbers the rows, or 'real')",
        ),
        "positive": (numbers > 0, "positive"),
        "real": (np.isfinite(numbers), "finite"),
    }[column.kind]
    fits = fits & (np.abs(numbers) <= float32.max)
    if not fits.all():
        row = np.argmin(fits)
        raise refuse(row, f"must be {expected}, got {values[row]}")
    if column.kind == "positive" and numbers.min() < float32.tiny:
        row = np.argmin(numbers)
        raise refuse(
            row,
            f"{values[row]} is too small for float32: multiply the column by a "
            "constant, or give it the kind 'real'",
        )
    return numbers.astype(np.float32), column


def _absent(values: np.ndarray, column: Column) -> np.ndarray:
    """Mask of missing values: NaN, None, and strings in `MISSING` but categories."""
    if values.dtype.kind == "f":
        return np.isnan(values)
    if values.dtype.kind in "iub":
        return np.zeros(len(values), bool)
    if values.dtype.kind not in "OU":
        raise ValueError(
            f"column {column.name!r} must hold numbers or texts, got {values.dtype}"
        )
    texts = _texts(values)
    is_none = np.array([value is None for value in values], bool)
    return is_none | np.isin(texts, MISSING) & ~np.isin(texts, column.categories)


def _texts(values: np.ndarray) -> np.ndarray:
    return np.array(["" if value is None else str(value).strip() for value in values])


def _parsed(
    values: np.ndarray, column: Column, refuse: Callable[[Any, str], ValueError]
) -> np.ndarray:
    """Convert strings to numbers if all are numbers, to integers if all are whole.

    Categories remain strings if the numbers would merge them or drop leading zeros.
    """
    if values.dtype.kind in "fiub":
        return values
    texts = _texts(values)
    is_number = np.array([_is_number(text) for text in texts], bool)
    if column.categories or not is_number.any():
        return texts
    wants_number = column.kind not in ("", *CODED)
    if not is_number.all():
        # If most values are numbers, the strings are mistakes; else all may be
        # categories.
        if wants_number or (is_number.mean() > 0.5 and not column.kind):
            row = np.argmin(is_number)
            raise refuse(
                row,
                f"{str(texts[row])!r} is no number (give the column the kind "
                "'categorical' if it holds categories)",
            )
        return texts
    whole = all(text.lstrip("+-").isdigit() for text in texts)
    fits = whole and max(map(len, texts)) < 19
    numbers = texts.astype(np.int64 if fits else np.float64)
    if column.kind == "categorical" and (
        any(text[:1] == "0" and text[1:2].isdigit() for text in texts)
        or len(np.unique(numbers)) < len(np.unique(texts))
    ):
        return texts
    return numbers


def _is_number(text: str) -> bool:
    if "_" in text:  # Python takes 1_000 for a number.
        return False
    try:
        float(text)
    except ValueError:
        return False
    return True


def _codes(
    column: Column, values: np.ndarray, refuse: Callable[[Any, str], ValueError]
) -> tuple[np.ndarray, Column]:
    """Encode categories, which are those given or else the sorted distinct values."""
    if not column.categories and column.kind == "binary" and values.dtype.kind != "U":
        fits = np.isin(values, (0, 1))
        if fits.all():
            return values.astype(np.float32), column
    if column.kind == "ordinal" and not column.categories and values.dtype.kind == "U":
        raise refuse(
            0,
            f"{str(values[0])!r} is no number, and ordinal texts need an order: give "
            "'categories', from lowest to highest",
        )
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


class ColumnMoments(NamedTuple):
    """Moments of columns over observed values, each `[D]`, float64.

    Attributes:
      num_observed: number of values that are not NaN.
      low: smallest value; NaN for a column without values.
      high: largest value; NaN for a column without values.
      mean: mean; 0 for a column without values.
      deviation: standard deviation, normalized by `num_observed`; 0 for a column
        without values.
    """

    num_observed: np.ndarray
    low: np.ndarray
    high: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray


def column_moments(x: np.ndarray | Rows) -> ColumnMoments:
    """Compute moments of columns block by block (Chan, Golub & LeVeque 1983).

    Args:
      x: `[n, D]`.

    Returns:
      `ColumnMoments`.

    Example:
      >>> import numpy as np
      >>> from vae_jax.data.tables import column_moments
      >>> column_moments(np.array([[1.0], [np.nan], [3.0]])).mean.tolist()
      [2.0]
    """
    dim = x.shape[1]
    count, mean, squares = np.zeros(dim), np.zeros(dim), np.zeros(dim)
    low, high = np.full(dim, np.nan), np.full(dim, np.nan)
    for _, block in blocks(x):
        block = np.asarray(block, np.float64)
        low = np.fmin(low, np.fmin.reduce(block, axis=0))
        high = np.fmax(high, np.fmax.reduce(block, axis=0))
        seen = ~np.isnan(block)
        here = seen.sum(axis=0)
        total = np.maximum(count + here, 1)
        centre = np.where(seen, block, 0).sum(axis=0) / np.maximum(here, 1)
        off = np.where(seen, block - centre, 0)
        step = centre - mean
        squares += np.square(off).sum(axis=0) + step**2 * count * here / total
        mean += step * here / total
        count += here
    return ColumnMoments(
        count, low, high, mean, np.sqrt(squares / np.maximum(count, 1))
    )


def require_digits(
    x: np.ndarray, name: str = "x", *, remedy: str = "subtract its mean"
) -> None:
    """Raise ValueError if float32 rounds off what varies in a column.

    Whole numbers that float32 represents exactly lose nothing.

    Args:
      x: `[n, D]`, NaN where missing.
      name: name of the argument, for the message.
      remedy: advice, for the message.

    Raises:
      ValueError: a column varies too little about its mean.

    Example:
      >>> import numpy as np
      >>> from vae_jax.data.tables import require_digits
      >>> try:
      ...     require_digits(np.array([[1.7e9], [1.7e9 + 0.5]]))
      ... except ValueError as error:
      ...     print(str(error)[:45])
      x varies by 0.25 about 1700000000 in column 0
    """
    _, low, high, mean, deviation = column_moments(x)
    for number in np.flatnonzero(low < high):
        if not loses_digits(mean[number], deviation[number]):
            continue
        column = x[:, number]
        column = column[~np.isnan(column)]
        exact = np.abs(column) <= LARGEST_COUNT
        if (exact & (column == np.rint(column))).all():
            continue
        raise ValueError(
            f"{name} varies by {deviation[number]:.3g} about {mean[number]:.10g} in "
            f"column {number}, of which float32 keeps too few digits: {remedy}"
        )


def require_varying(x: np.ndarray | Rows, columns: tuple[Column, ...]) -> None:
    """Raise ValueError if a real or positive column is constant up to float32 rounding.

    Args:
      x: the training examples, `[n, D]`.
      columns: the D columns.

    Raises:
      ValueError: a column of any kind has no values, or a real or positive column is
        constant or varies too little about its mean for float32.
    """
    each = zip(*column_moments(x), strict=True)
    for column, (count, low, high, mean, deviation) in zip(columns, each, strict=True):
        if not count:
            raise ValueError(
                f"column {column.name!r} has no value in any row to train on: give it "
                "the kind 'ignore'"
            )
        if column.kind not in ("real", "positive"):
            continue
        if low == high:
            raise ValueError(
                f"column {column.name!r} is {low:g} in all rows to train on, so it has "
                "no density: give it the kind 'ignore'"
            )
        if loses_digits(mean, deviation):
            raise ValueError(
                f"column {column.name!r} varies by {deviation:.3g} about "
                f"{mean:.8g}, and float32 keeps too few digits: subtract a constant "
                "from all rows, and divide them by one"
            )


def decode_table(x: Any, columns: tuple[Column, ...]) -> dict[str, np.ndarray]:
    """Decode rows to columns by name, with codes replaced by categories.

    Args:
      x: examples, draws or reconstructions, `[n, D]`.
      columns: columns of the data set.

    Returns:
      Values `[n]` by name, an argument for `pandas.DataFrame`.

    Raises:
      ValueError: `x` is not `[n, D]` with D the number of columns, or a code has no
        category.

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
        column.name: _names(column, values) if column.categories else values
        for column, values in zip(columns, x.T, strict=True)
    }


def _names(column: Column, codes: np.ndarray) -> np.ndarray:
    """Replace codes by categories, and NaN by None."""
    missing = np.isnan(codes)
    known = np.rint(np.where(missing, 0, codes)).astype(int)
    last = len(column.categories) - 1
    outside = (known < 0) | (known > last)
    if outside.any():
        raise ValueError(
            f"codes of column {column.name!r} must be from 0 to {last}, got "
            f"{codes[outside][0]:g}"
        )
    names = np.array(column.categories, object)[known]
    names[missing] = None
    return names


def describe_columns(x: np.ndarray | Rows, columns: tuple[Column, ...]) -> list[str]:
    """Describe each column in a line, or count the kinds if there are many columns.

    Args:
      x: `[n, D]`.
      columns: the D columns.

    Returns:
      Lines of text; a single one for more than 40 columns.
    """
    if len(columns) > _SHOWN:
        kinds = [column.kind for column in columns]
        counts = (f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
        return [f"{len(columns)} columns: {', '.join(counts)}"]
    width = max(len(column.name) for column in columns)
    lines, found = [], column_moments(x)
    absent_of = 1 - found.num_observed / len(x)
    each = zip(columns, found.low, found.high, absent_of, strict=True)
    for column, low, high, absent in each:
        shown = f"{low:g} to {high:g}"
        if column.categories:
            shown = ", ".join(column.categories[:8])
            shown += ", ..." * (len(column.categories) > 8)
        shown += f", {absent:.1%} missing" if absent else ""
        lines.append(f"column {column.name:{width}}  {column.kind:11}  {shown}")
    return lines
