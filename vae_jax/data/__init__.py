"""Data sets as arrays in memory, and how grey pixels become bits.

Nothing here knows of models. An example is a row of `D` values: integers from 0 to
`num_levels - 1`, or floats in [0, 1], of which a model sees `to_unit_interval`; or
counts, which it sees as they are.

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
    """Loads a data set by its name, or from a user's file.

    A `.npz` file holds `x` and, where there are such, `x_test`, `y`, `y_test` and
    `num_levels`; a `.npy` file is `x`. Examples are `[n, D]` or `[n, *data_shape]`:
    bool, uint8, floats in [0, 1], wider integers, which are counts, or other floats,
    which are real columns; labels are integers. A `.csv` has a header; it, `.parquet`
    and `.h5ad` are tables (`from_table`); a `.npz` that `scipy.sparse.save_npz` wrote
    is made dense. Without `x_test` a random tenth is set aside. Without `num_levels`
    uint8 values have 256 levels, or 2 where none is over 1; the notes say so where no
    value is 255.

    `binarized_mnist` is MNIST binarized once for good, as Larochelle and Murray
    published it (2011): 50,000 examples to train, 10,000 to choose by, 10,000 to test;
    its files may be compressed with gzip. They are sorted by class, so the rows come in
    a random order, always the same.

    Args:
      name: one of `NAMES`, or a path ending in `.npz`, `.npy`, `.csv`, `.parquet` or
        `.h5ad`. `auto` is MNIST, or `digits` where MNIST cannot be had, which the notes
        say.
      data_dir: holds the published files, in a folder of the data set's name or
        directly; what is missing is downloaded into the former.
      seed: of the synthetic data, and of the split of a file without `x_test`.
      values: `counts` takes whole numbers of any type and width as counts; None takes
        integers wider than 8 bits as such, where no `num_levels` says otherwise.
      columns: of a file, as for `from_table`; `read_columns` reads them.
      missing: of a file, as for `from_table`.
      memory_map: leave the training examples of a `.npy` in the file, as `Rows` that
        are read where they are indexed; the file may be larger than the memory.

    Returns:
      A `Dataset`.

    Raises:
      DataUnavailable: a published data set is neither there nor to be downloaded.
      ValueError: an unknown name, a file that is not what it should be, counts that
        are none, another `values`, a negative seed, or `memory_map` of what is no
        `.npy` or with `columns`.

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
        raise ValueError(f"memory_map is of a .npy file, and dataset is {name!r}")
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
    """A data set by its name."""
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
    """The handwritten digits that come with the package."""
    with np.load(Path(__file__).with_name("digits.npz")) as arrays:
        x, y = arrays["x"], arrays["y"].astype(np.int32)
    return Dataset(
        "digits", x[:1437], x[1437:], y[:1437], y[1437:], (8, 8), num_levels=17
    )


def _load_mnist_or_digits(data_dir: Path) -> Dataset:
    """MNIST, or else the digits and a note."""
    try:
        return load_published("mnist", data_dir)
    except DataUnavailable as error:
        note = (
            f"MNIST cannot be had here, {error.reason}: training on scikit-learn's "
            "8x8 handwritten digits instead"
        )
        return _load_digits()._replace(notes=(note,))
