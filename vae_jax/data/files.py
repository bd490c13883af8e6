"""Load a user's data: arrays in `.npz` and `.npy` files, and tables."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vae_jax.data.array_checks import bounds, check_arrays, largest_value
from vae_jax.data.columns import Given, are_all_counts, numbered, require_counts
from vae_jax.data.dataset import Dataset
from vae_jax.data.memory import require_bytes, require_room
from vae_jax.data.readers import as_table, read_table
from vae_jax.data.rows import VALUES_AT_ONCE, Rows
from vae_jax.data.tables import describe_columns, encode, require_varying
from vae_jax.extras import import_extra

# Keys that are read from a `.npz`.
_FILE_KEYS = ("x", "x_test", "y", "y_test", "num_levels")
# Keys by which a file of `scipy.sparse.save_npz` is recognized.
_SPARSE_KEYS = {"format", "shape", "data"}


ENDS = (".npz", ".npy", ".csv", ".parquet", ".h5ad")


def load_file(
    path: Path,
    seed: int,
    values: str | None,
    columns: Given,
    missing: str,
    memory_map: bool = False,
) -> Dataset:
    """Load a data set from a file; see `data.load`."""
    options = {"seed": seed, "values": values}
    of_table = options | {"columns": columns, "missing": missing}
    try:
        if path.suffix not in (".npz", ".npy"):
            return from_table(read_table(path), path.stem, **of_table)
        arrays = _read_arrays(path, memory_map)
        if memory_map and columns is not None:
            raise ValueError(
                "columns are of a table in memory, but the rows of this file are read "
                "on demand: leave columns out (--columns), or keep the data in memory "
                "(memory_map=False, --data_on=device)"
            )
        is_table = columns is not None or _are_real(arrays) and values is None
        if is_table or missing == "mask" and arrays["x"].dtype.kind == "f":
            from_rows = _from_mapped_rows if memory_map else _from_rows
            return from_rows(path.stem, arrays, **of_table)
        return _from_arrays(path.stem, arrays, **options)
    except (OSError, ValueError) as error:
        raise ValueError(f"dataset {str(path)!r}: {error}") from error


def from_table(
    table: Any,
    name: str = "table",
    *,
    columns: Given = None,
    values: str | None = None,
    missing: str = "error",
    seed: int = 0,
) -> Dataset:
    """Convert a table to a data set, with a random tenth of the rows as test set.

    Args:
      table: a pandas DataFrame, a mapping of names to columns, or rows `[n, D]`.
      name: name of the data set, used to label results.
      columns: kinds by name (`data.Column`), or all columns of another data set, in
        which case the table must have no others. The kind of a column that is not
        given is inferred; for a categorical dtype of pandas, the categories are taken
        from the dtype, as ordinal if it is ordered (`.parquet` files keep categories
        that are strings). `ignore` leaves a column out, `label` uses it as labels, and
        `covariate` as a numeric covariate. Strings of kind `ordinal` need `categories`,
        from lowest to highest.
      values: `counts` if the columns that are not given are counts.
      missing: `mask` converts missing values (NaN, None, empty, NA) to NaN, for a
        `Masked` likelihood; `error` raises ValueError.
      seed: seed of the split.

    Returns:
      A `Dataset` of float32 whose notes describe the columns.

    Raises:
      ValueError: an invalid column or value; the message states column, row and value.

    Example:
      >>> import numpy as np
      >>> from vae_jax import data
      >>> table = {"size": np.arange(30) ** 2, "name": ["cat", "dog", "hen"] * 10}
      >>> [column.kind for column in data.from_table(table).columns]
      ['count', 'categorical']
    """
    kind = "count" if values == "counts" else None
    encoded = encode(as_table(table), columns, default=kind, missing=missing)
    arrays = {"x": encoded.x}
    if encoded.labels is not None:
        arrays["y"] = encoded.labels
    if encoded.covariates is not None:
        arrays["covariates"] = encoded.covariates
    arrays, notes = _ensure_test(arrays, seed)
    require_varying(arrays["x"], encoded.columns)
    return Dataset(
        name,
        arrays["x"],
        arrays["x_test"],
        arrays.get("y"),
        arrays.get("y_test"),
        encoded.x.shape[1:],
        None,
        (*describe_columns(encoded.x, encoded.columns), *encoded.notes, *notes),
        columns=encoded.columns,
        train_covariates=arrays.get("covariates"),
        test_covariates=arrays.get("covariates_test"),
    )


def _are_real(arrays: dict[str, np.ndarray]) -> bool:
    """Whether all arrays are floats and some value is outside [0, 1]."""
    found = [arrays[key] for key in ("x", "x_test") if key in arrays]
    return all(x.dtype.kind == "f" and x.size > 0 for x in found) and any(
        low < 0 or high > 1 for low, high in map(bounds, found)
    )


def _from_rows(
    name: str,
    arrays: dict[str, np.ndarray],
    *,
    columns: Given,
    seed: int,
    values: str | None,
    missing: str,
) -> Dataset:
    """Build a data set from rows of numbers, with columns named by position."""
    check_arrays(arrays, "columns", missing)
    arrays = {key: array for key, array in arrays.items() if key != "num_levels"}
    shape, num_train = arrays["x"].shape[1:], len(arrays["x"])
    x = np.concatenate([arrays[key] for key in ("x", "x_test") if key in arrays])
    table = as_table(x.reshape(len(x), -1))._replace(
        place=lambda row: (
            f"row {row} of x" if row < num_train else f"row {row - num_train} of x_test"
        )
    )
    default = "count" if values == "counts" else (None if columns else "real")
    encoded = encode(table, columns, default=default, missing=missing)
    found = {"x": encoded.x}
    if encoded.labels is not None:
        if "y" in arrays or "y_test" in arrays:
            raise ValueError(
                "columns has a 'label', and the file has labels y: give the column the "
                "kind 'ignore', or leave y out of the file"
            )
        found["y"] = encoded.labels
    if encoded.covariates is not None:
        found["covariates"] = encoded.covariates
    for key, both in found.items():
        arrays[key] = both[:num_train]
        if "x_test" in arrays:
            arrays[f"{key}_test"] = both[num_train:]
    arrays, notes = _ensure_test(arrays, seed)
    require_varying(arrays["x"], encoded.columns)
    y, y_test = (
        None if key not in arrays else arrays[key].astype(np.int32)
        for key in ("y", "y_test")
    )
    if len(encoded.columns) < x[0].size:
        shape = encoded.x.shape[1:]
    notes = (*describe_columns(encoded.x, encoded.columns), *encoded.notes, *notes)
    return Dataset(
        name,
        arrays["x"],
        arrays["x_test"],
        y,
        y_test,
        shape,
        None,
        notes,
        columns=encoded.columns,
        train_covariates=arrays.get("covariates"),
        test_covariates=arrays.get("covariates_test"),
    )


def _from_mapped_rows(
    name: str,
    arrays: dict[str, np.ndarray],
    *,
    columns: None,
    seed: int,
    values: str | None,
    missing: str,
) -> Dataset:
    """Build a data set from a mapped file whose columns are all real or all counts."""
    check_arrays(arrays, "columns", missing)
    x = arrays["x"]
    kind, largest = "real", float(np.finfo(np.float32).max)
    if values == "counts":
        kind = "count"
        require_counts(x, "x", may_miss=True)
    elif max(map(abs, bounds(x))) > largest:
        raise ValueError(f"x must lie within float32, {largest:g}, got {bounds(x)}")
    known = numbered(math.prod(x.shape[1:]), kind)
    shown = describe_columns(Rows(x, np.arange(len(x)), np.dtype(np.float32)), known)
    arrays, notes = _ensure_test(arrays, seed)
    train, test = (_as_stored(arrays[key], np.float32) for key in ("x", "x_test"))
    require_varying(train, known)
    return Dataset(
        name,
        train,
        np.asarray(test),
        None,
        None,
        x.shape[1:],
        None,
        (*shown, *notes),
        columns=known,
    )


def _as_stored(x: np.ndarray | Rows, dtype: type) -> Any:
    """Flatten examples to `[n, D]` of a dtype; `Rows` are not read."""
    if isinstance(x, Rows):
        return replace(x, dtype=np.dtype(dtype))
    return np.asarray(x, dtype).reshape(len(x), -1)


def _read_arrays(path: Path, memory_map: bool) -> dict[str, np.ndarray]:
    """Read the known keys of a `.npz`, or the array of a `.npy` as `x`."""
    with path.open("rb") as file:
        try:
            if memory_map:
                return {"x": np.load(path, mmap_mode="r", allow_pickle=False)}
            require_room(file, (*_FILE_KEYS, *_SPARSE_KEYS))
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray) != (path.suffix == ".npy"):
                raise ValueError("the content does not match the extension")
            if isinstance(loaded, np.ndarray):
                return {"x": loaded}
            if _SPARSE_KEYS <= set(loaded):
                sparse = import_extra("scipy.sparse", "tables")
                matrix = sparse.load_npz(path)
                require_bytes(math.prod(matrix.shape) * (matrix.dtype.itemsize + 4))
                x = matrix.toarray()
                # Sparse counts are often stored as floats.
                are_floats = x.dtype.kind == "f" and are_all_counts(x)
                return {"x": x.astype(np.int32) if are_floats else x}
            arrays = {key: loaded[key] for key in _FILE_KEYS if key in loaded}
        # A damaged archive can raise many types of errors.
        except Exception as error:
            raise ValueError(f"no readable {path.suffix} file: {error}") from error
    if "x" not in arrays:
        raise ValueError(f"it must have a key x, got {', '.join(loaded) or 'none'}")
    return arrays


def _from_arrays(
    name: str, arrays: dict[str, np.ndarray], seed: int, values: str | None
) -> Dataset:
    """Build a data set from `x` and the optional keys of a file."""
    dtypes = [arrays[key].dtype for key in ("x", "x_test") if key in arrays]
    is_wide = any(dtype.kind in "iu" and dtype != np.uint8 for dtype in dtypes)
    if values is None and is_wide and "num_levels" not in arrays:
        values = "counts"
    check_arrays(arrays, values)
    num_levels, notes = _num_levels(arrays, values)
    shape = arrays["x"].shape[1:]
    arrays = {key: values for key, values in arrays.items() if key != "num_levels"}
    arrays, more = _ensure_test(arrays, seed)
    notes += more
    x, x_test = arrays["x"], arrays["x_test"]
    dtype = np.float32 if num_levels is None else np.uint8
    is_counts, dim = values == "counts", math.prod(shape)
    y, y_test = (
        arrays[key].astype(np.int32) if key in arrays else None
        for key in ("y", "y_test")
    )
    return Dataset(
        name,
        _as_stored(x, dtype),
        np.asarray(_as_stored(x_test, dtype)),
        y,
        y_test,
        shape,
        num_levels,
        tuple(notes),
        columns=numbered(dim, "count") if is_counts else (),
    )


def _num_levels(
    arrays: dict[str, np.ndarray], values: str | None
) -> tuple[int | None, list[str]]:
    """Declared or assumed number of levels, and notes on the assumptions."""
    x = arrays["x"]
    if values == "counts":
        return None, [f"{x.dtype} data are counts, from 0 to {largest_value(arrays)}"]
    if x.dtype.kind == "f":
        return None, []
    if "num_levels" in arrays:
        return int(arrays["num_levels"]), []
    if x.dtype == np.bool_:
        return 2, []
    highest = largest_value(arrays)
    if highest == 255:
        return 256, []
    num_levels, kind = (2, "binary") if highest <= 1 else (256, "8-bit")
    note = (
        f"uint8 data without a value over {highest}: taken as {kind} ({num_levels} "
        "levels); a .npz with the key num_levels says otherwise"
    )
    return num_levels, [note]


def _ensure_test(arrays: dict[str, Any], seed: int) -> tuple[dict[str, Any], list[str]]:
    """Split off test examples unless there are some; return arrays and notes."""
    if "x_test" in arrays:
        return arrays, []
    arrays = _split_off_test(arrays, seed)
    note = (
        f"no x_test: {len(arrays['x_test'])} random examples of x, drawn by seed "
        f"{seed}, are the test set"
    )
    return arrays, [note]


def _split_off_test(arrays: dict[str, Any], seed: int) -> dict[str, Any]:
    """Move a random tenth of the examples to the test set.

    At most `VALUES_AT_ONCE` values, because all test examples are evaluated at once.
    """
    num_examples = len(arrays["x"])
    if num_examples < 2:
        raise ValueError("x without x_test must have at least 2 examples, got 1")
    order = np.random.default_rng(seed).permutation(num_examples)
    most = VALUES_AT_ONCE // math.prod(arrays["x"].shape[1:])
    train, test = np.split(order, [-max(1, min(num_examples // 10, most))])
    return {
        key + suffix: Rows(values, indices, values.dtype)
        if isinstance(values, np.memmap)
        else values[indices]
        for key, values in arrays.items()
        for suffix, indices in (("", train), ("_test", test))
    }
