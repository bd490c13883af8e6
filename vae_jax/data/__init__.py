"""Load data sets as arrays in memory, and binarize grey-scale images.

Nothing here depends on models. An example is a row of `D` values: integers from 0 to
`num_levels - 1` or floats in [0, 1], which models receive through `to_unit_interval`,
or counts, real numbers and coded categories, which models receive unchanged.

`digits.npz` beside this file is scikit-learn's `load_digits`: the test set of
"Optical Recognition of Handwritten Digits" by E. Alpaydin and C. Kaynak (1998), UCI
Machine Learning Repository, under CC BY 4.0.
"""

from pathlib import Path
from typing import Literal

import numpy as np

from vae_jax.data.binarization import BINARIZATIONS, binarize, binarize_dataset
from vae_jax.data.columns import Column, Given, read_columns
from vae_jax.data.dataset import Dataset, as_counts, hold_out, to_unit_interval
from vae_jax.data.files import ENDS, from_table, load_file
from vae_jax.data.published import (
    PUBLISHED,
    DataUnavailable,
    load_published,
    parse_idx,
)
from vae_jax.data.rows import Rows
from vae_jax.data.shapes import synthetic
from vae_jax.data.tables import decode_table

__all__ = [
    "BINARIZATIONS",
    "NAMES",
    "Column",
    "DataUnavailable",
    "Dataset",
    "Rows",
    "binarize",
    "binarize_dataset",
    "decode_table",
    "from_table",
    "hold_out",
    "load",
    "parse_idx",
    "read_columns",
    "synthetic",
    "to_unit_interval",
]

NAMES = ("auto", *PUBLISHED, "digits", "synthetic")


def load(
    name: str | Path,
    *,
    data_dir: str | Path = "data",
    seed: int = 0,
    values: Literal["counts"] | None = None,
    columns: Given = None,
    missing: Literal["error", "mask"] = "error",
    memory_map: bool = False,
) -> Dataset:
    """Load a data set by its name or from a file.

    A `.npz` file holds `x` and optionally `x_test`, `y`, `y_test` and `num_levels`; a
    `.npy` file holds `x` only. Examples are `[n, D]` or `[n, *data_shape]`: bool,
    uint8, floats in [0, 1], wider integers (counts), or other floats (real columns);
    labels are integers. `.csv` files with a header, `.parquet` and `.h5ad` files are
    tables (`from_table`). A sparse matrix written by `scipy.sparse.save_npz` is
    converted to a dense one. Without `x_test`, a random tenth of the examples is the
    test set. Without `num_levels`, uint8 values have 2 levels if none exceeds 1, else
    256; a note reports this assumption if no value is 255.

    `binarized_mnist` is the fixed binarization of MNIST by Larochelle and Murray
    (2011): 50,000 training, 10,000 validation and 10,000 test examples. Its files may
    be compressed with gzip. The files are sorted by class, so the rows are shuffled in
    a fixed order.

    Args:
      name: one of `NAMES`, or a path ending in `.npz`, `.npy`, `.csv`, `.parquet` or
        `.h5ad`. `auto` is MNIST, or `digits` with a note if MNIST is unavailable.
      data_dir: folder of the published files, which are either in a subfolder named
        after the data set or directly in it. Missing files are downloaded into the
        subfolder.
      seed: seed of the synthetic data, and of the split of a file without `x_test`.
      values: `counts` treats whole numbers of any type as counts; None does so for
        integers other than uint8, unless the file has `num_levels`.
      columns: columns of a file, as for `from_table`; see also `read_columns`.
      missing: treatment of missing values in a file, as for `from_table`.
      memory_map: leave the training examples of a `.npy` in the file, as `Rows` that
        are read on indexing; the file may be larger than the memory.

    Returns:
      A `Dataset`.

    Raises:
      DataUnavailable: a published data set is neither present nor downloadable.
      ValueError: an unknown name, an invalid file, invalid counts, an invalid `values`
        or `missing`, a negative seed, `columns` or `missing` without a file, or
        `memory_map` for a file other than `.npy` or with `columns`.

    Example:
      >>> from vae_jax import data
      >>> digits = data.load("digits")
      >>> digits.train.shape, digits.data_shape, digits.num_levels
      ((1437, 64), (8, 8), 17)
    """
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    if values not in (None, "counts"):
        raise ValueError(f"values must be 'counts' or None, got {values!r}")
    if missing not in ("error", "mask"):
        raise ValueError(f"missing must be 'error' or 'mask', got {missing!r}")
    name, data_dir = str(name), Path(data_dir).expanduser()
    if memory_map and not name.endswith(".npy"):
        raise ValueError(f"memory_map is of a .npy file only, got dataset {name!r}")
    if name.endswith(ENDS):
        return load_file(
            Path(name).expanduser(), seed, values, columns, missing, memory_map
        )
    if columns is not None or missing != "error":
        asked = "columns are" if columns is not None else f"missing={missing!r} is"
        raise ValueError(f"{asked} of a file, and dataset is {name!r}")
    dataset = _load_named(name, data_dir, seed)
    return as_counts(dataset) if values == "counts" else dataset


def _load_named(name: str, data_dir: Path, seed: int) -> Dataset:
    """Load one of the data sets in `NAMES`."""
    if name in PUBLISHED:
        return load_published(name, data_dir)
    if name == "auto":
        return _load_mnist_or_digits(data_dir)
    if name == "digits":
        return _load_digits()
    if name == "synthetic":
        return synthetic(seed=seed)
    raise ValueError(
        f"dataset must be one of {', '.join(NAMES)}, or a path ending in "
        f"{', '.join(ENDS)}, got {name!r}"
    )


def _load_digits() -> Dataset:
    """Load the handwritten digits that come with the package."""
    with np.load(Path(__file__).with_name("digits.npz")) as arrays:
        x, y = arrays["x"], arrays["y"].astype(np.int32)
    return Dataset(
        "digits", x[:1437], x[1437:], y[:1437], y[1437:], (8, 8), num_levels=17
    )


def _load_mnist_or_digits(data_dir: Path) -> Dataset:
    """Load MNIST, or the digits with a note if MNIST is unavailable."""
    try:
        return load_published("mnist", data_dir)
    except DataUnavailable as error:
        note = (
            f"MNIST cannot be had here, {error.reason}: training on scikit-learn's "
            "8x8 handwritten digits instead"
        )
        return _load_digits()._replace(notes=(note,))
