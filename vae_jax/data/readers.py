"""Tables as they are read: .csv, .parquet and .h5ad, DataFrames, arrays."""

import csv
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from vae_jax.data.columns import Column
from vae_jax.extras import import_extra


class Table(NamedTuple):
    """Columns as they were read.

    Attributes:
      columns: values `[n]` by name: numbers, logical values, or texts (objects).
      place: `f(row)`, where a row stands, for messages.
      stated: what the table itself says of columns, by name.
    """

    columns: dict[str, np.ndarray]
    place: Callable[[int], str] = "row {}".format
    stated: Mapping[str, Column] = MappingProxyType({})


def read_csv(path: Path) -> Table:
    """A file of values between commas, with a header.

    Args:
      path: the file.

    Returns:
      A `Table` of texts; `encode` makes numbers of them.

    Raises:
      ValueError: names the line of another number of values than the header has, or
        the name that the header has twice or not at all.
    """
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, strict=True)
        header = next(reader, [])
        rows, lines = [], []
        try:
            for row in reader:
                if len(row) != len(header) and row:
                    raise ValueError(
                        f"line {reader.line_num} has {len(row)} values, and the header "
                        f"{len(header)}"
                    )
                if row:
                    rows.append(row)
                    lines.append(reader.line_num)
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"line {reader.line_num}: {error}") from error
    if not rows:
        raise ValueError("it holds no rows below its header")
    columns = np.array(rows, dtype=object).T
    return Table(_named(header, columns), lambda row: f"line {lines[row]}")


def read_frame(frame: Any) -> Table:
    """The columns of a pandas DataFrame.

    Args:
      frame: of numbers, logical values, categories and texts.

    Returns:
      A `Table`, which states the categories of columns of a categorical dtype:
      ordinal ones where that is ordered, also of numbers.

    Raises:
      ValueError: two columns of one name, or a column of another type.
    """
    columns, stated = [], {}
    for position, name in enumerate(map(str, frame.columns)):
        series = frame.iloc[:, position]
        if series.dtype.name == "category":
            values, stated[name] = _of_categories(name, series)
            columns.append(values)
            continue
        values = series.to_numpy()
        if values.dtype.kind not in "fiub":
            values = np.array(series.astype(object), dtype=object)
            values[np.asarray(series.isna())] = None
        if values.dtype.kind == "c" or any(
            isinstance(value, list | dict | tuple | np.ndarray) for value in values[:1]
        ):
            raise ValueError(f"column {name!r} must hold numbers or texts")
        columns.append(values)
    names = [str(name) for name in frame.columns]
    return Table(_named(names, columns), stated=stated)


def _of_categories(name: str, series: Any) -> tuple[np.ndarray, Column]:
    """Texts of a column of a categorical dtype, None where missing, and what it is."""
    dtype = series.dtype
    texts = [str(category).strip() for category in dtype.categories]
    # The last is that of the code -1.
    values = np.array([*texts, None], dtype=object)[series.cat.codes.to_numpy()]
    categories = tuple(dict.fromkeys(texts))
    unordered = "binary" if len(categories) == 2 else "categorical"
    return values, Column(name, "ordinal" if dtype.ordered else unordered, categories)


def read_table(path: Path) -> Table:
    """The table in a file, by its name's end: .csv, .parquet or .h5ad.

    Args:
      path: the file.

    Returns:
      A `Table`.

    Raises:
      ValueError: not readable as what its name says.
    """
    if path.suffix == ".csv":
        return read_csv(path)
    try:
        if path.suffix == ".parquet":
            frame = import_extra("pandas", "tables").read_parquet(path)
        else:
            frame = import_extra("anndata", "anndata").read_h5ad(path).to_df()
    except ImportError as error:
        raise ValueError(str(error)) from error
    except FileNotFoundError as error:
        raise ValueError("No such file") from error
    # A damaged file fails in a dozen ways.
    except Exception as error:
        raise ValueError(f"no readable {path.suffix} file: {error}") from error
    return read_frame(frame)


def _named(names: list[str], columns: Any) -> dict[str, np.ndarray]:
    """Columns by name, refused where a name is missing or there twice."""
    for position, name in enumerate(names):
        if not name.strip():
            raise ValueError(f"column {position} has no name in the header")
        if name in names[:position]:
            raise ValueError(f"two columns are named {name!r}")
    return dict(zip(names, columns, strict=True))


def as_table(table: Any) -> Table:
    """A table in a script: a DataFrame, columns by name, or rows `[n, D]`.

    Args:
      table: what holds the columns.

    Returns:
      A `Table`.

    Raises:
      ValueError: columns of several lengths, or an array that is no table.
    """
    if isinstance(table, Table):
        return table
    if isinstance(table, Mapping):
        columns = {str(name): np.asarray(values) for name, values in table.items()}
        shapes = {values.shape for values in columns.values()}
        if len(shapes) != 1 or len(next(iter(shapes))) != 1:
            raise ValueError(f"columns must be of one length, got {sorted(shapes)}")
        return Table(columns)
    if hasattr(table, "iloc"):
        return read_frame(table)
    x = np.asarray(table)
    if x.ndim != 2 or x.size == 0:
        raise ValueError(f"a table must be [n, D], and not empty, got {list(x.shape)}")
    return Table({str(number): x[:, number] for number in range(x.shape[1])})
