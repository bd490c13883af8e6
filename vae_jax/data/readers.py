"""Read tables from .csv, .parquet and .h5ad files, DataFrames, and arrays."""

import csv
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from vae_jax.data.columns import Column, are_all_counts
from vae_jax.extras import import_extra


class Table(NamedTuple):
    """Columns before encoding.

    Attributes:
      columns: values `[n]` by name: numbers, booleans, or strings (dtype object).
      place: `f(row)`, the location of a row for messages.
      stated: columns whose kind and categories the table defines, by name.
    """

    columns: dict[str, np.ndarray]
    place: Callable[[int], str] = "row {}".format
    stated: Mapping[str, Column] = MappingProxyType({})


def read_csv(path: Path) -> Table:
    """Read a comma-separated file with a header.

    Args:
      path: the file.

    Returns:
      A `Table` of strings; `encode` converts them to numbers.

    Raises:
      ValueError: a line whose number of values differs from the header, a duplicate or
        empty name in the header, invalid CSV or UTF-8, or no rows.
    """
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, strict=True)
        header = [name.strip() for name in next(reader, [])]
        if len(header) == 1 and (found := set(header[0]) & set(";\t|")):
            raise ValueError(
                f"values must be separated by commas, got {found.pop()!r} in the "
                f"header {header[0]!r}: save the file with commas and decimal points"
            )
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
    """Convert a pandas DataFrame to a `Table`.

    Args:
      frame: columns of numbers, booleans, categories and strings.

    Returns:
      A `Table`. Its `stated` columns are those of a categorical dtype, including
      categories that are numbers; they are ordinal if the dtype is ordered.

    Raises:
      ValueError: a duplicate or empty column name, or a column of another type.
    """
    columns, stated = [], {}
    for position, name in enumerate(map(str, frame.columns)):
        series = frame.iloc[:, position]
        if series.dtype.name == "category":
            values, stated[name] = _from_categorical(name, series)
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


def _from_categorical(name: str, series: Any) -> tuple[np.ndarray, Column]:
    """Convert a categorical series to strings, None where missing, and a `Column`."""
    dtype = series.dtype
    texts = [str(category).strip() for category in dtype.categories]
    # The code -1 of missing values selects the last entry.
    values = np.array([*texts, None], dtype=object)[series.cat.codes.to_numpy()]
    categories = tuple(dict.fromkeys(texts))
    unordered = "binary" if len(categories) == 2 else "categorical"
    return values, Column(name, "ordinal" if dtype.ordered else unordered, categories)


def read_table(path: Path) -> Table:
    """Read a table from a .csv, .parquet or .h5ad file, chosen by the extension.

    A .h5ad file whose values are all counts is a table of counts, of whatever type.

    Args:
      path: the file.

    Returns:
      A `Table`.

    Raises:
      ValueError: the file is not readable in the format of its extension, or the
        package that reads it is not installed.
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
    # A damaged file can raise many types of errors.
    except Exception as error:
        raise ValueError(f"no readable {path.suffix} file: {error}") from error
    table = read_frame(frame)
    # Counts of cells are often stored as floats.
    if path.suffix == ".h5ad" and are_all_counts(frame.to_numpy()):
        counts = {name: Column(name, "count") for name in table.columns}
        table = table._replace(stated=counts)
    return table


def _named(names: list[str], columns: Any) -> dict[str, np.ndarray]:
    """Map names to columns; raise ValueError for an empty or duplicate name."""
    for position, name in enumerate(names):
        if not name.strip():
            raise ValueError(f"column {position} has no name in the header")
        if name in names[:position]:
            raise ValueError(f"two columns are named {name!r}")
    return dict(zip(names, columns, strict=True))


def as_table(table: Any) -> Table:
    """Convert a DataFrame, a mapping of names to columns, or an array to a `Table`.

    Args:
      table: a `Table`, a DataFrame, a mapping of names to columns `[n]`, or rows
        `[n, D]`.

    Returns:
      A `Table`; the columns of an array are named by their positions.

    Raises:
      ValueError: columns of different lengths, or an array that is empty or not
        `[n, D]`.
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
