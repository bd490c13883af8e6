"""Rows of an array in a file or in host memory, read on indexing."""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

# Number of values that are read at once: `_BLOCK` for checks and digests,
# `VALUES_AT_ONCE` (all of MNIST; 268 MB as float32) for initialization and test sets.
_BLOCK = 2**22
VALUES_AT_ONCE = 2**26


@dataclass(frozen=True, eq=False)
class Rows:
    """Examples `[n, D]` of an array on the host, read on indexing.

    `rows[indices]` and `rows[start:stop]` return NumPy arrays; `part` reads nothing.

    Attributes:
      source: `[m, D]` or `[m, *data_shape]`, possibly a memory-mapped file.
      rows: indices of the examples in the source, `[n]`.
      dtype: dtype of the examples when read.

    Raises:
      ValueError: on indexing, if the file has changed since it was opened.

    Example:
      >>> import numpy as np
      >>> from vae_jax.data import Rows
      >>> rows = Rows(np.arange(6).reshape(3, 2), np.array([2, 0]), np.dtype(float))
      >>> rows.shape, rows[1:].tolist()
      ((2, 2), [[0.0, 1.0]])
    """

    source: np.ndarray
    rows: np.ndarray
    dtype: np.dtype
    _opened: Any = field(init=False, repr=False)

    def __post_init__(self):
        object.__setattr__(self, "_opened", self._version())

    @property
    def shape(self) -> tuple[int, int]:
        """`(n, D)`."""
        return len(self.rows), math.prod(self.source.shape[1:])

    @property
    def nbytes(self) -> int:
        """Size of all examples in memory, in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> np.ndarray:
        if self._version() != self._opened:
            raise ValueError(
                f"{getattr(self.source, 'filename', None)} was written to while it "
                "was in use: restart with the current file"
            )
        rows = self.rows[index]
        taken = np.asarray(self.source[rows]).astype(self.dtype)
        return taken.reshape(*np.shape(rows), -1)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype or self.dtype)

    def part(self, index: slice) -> "Rows":
        """Select a slice of the rows without reading them."""
        return replace(self, rows=self.rows[index])

    def _version(self) -> tuple[int, ...]:
        """Size and modification time of the file; empty for an array in memory."""
        path = getattr(self.source, "filename", None)
        if path is None:
            return ()
        found = os.stat(path)
        return found.st_size, found.st_mtime_ns


def part(x: np.ndarray | Rows, index: slice) -> Any:
    """Select a slice of rows, without reading them if `x` is `Rows`.

    Args:
      x: `[n, D]`.
      index: the slice.

    Returns:
      An array or `Rows`, as `x`.

    Example:
      >>> import numpy as np
      >>> from vae_jax.data.rows import part
      >>> part(np.arange(3), slice(1, None)).tolist()
      [1, 2]
    """
    return x.part(index) if isinstance(x, Rows) else x[index]


def blocks(x: Any) -> Iterator[tuple[int, np.ndarray]]:
    """Iterate over an array or a file in blocks of rows that fit into memory.

    Args:
      x: `[n, ...]`.

    Yields:
      Index of the first row of the block, and the rows.

    Example:
      >>> import numpy as np
      >>> from vae_jax.data.rows import blocks
      >>> [(first, len(rows)) for first, rows in blocks(np.zeros((3, 2**21)))]
      [(0, 2), (2, 1)]
    """
    size = max(1, _BLOCK // max(1, math.prod(x.shape[1:])))
    for first in range(0, x.shape[0], size):
        yield first, x[first : first + size]


def spacing(x: Any) -> int:
    """Smallest step for which `x[::step]` has at most `VALUES_AT_ONCE` values.

    Args:
      x: `[n, D]`.

    Returns:
      The step, 1 for all but very large arrays.

    Example:
      >>> import numpy as np
      >>> from vae_jax.data.rows import spacing
      >>> spacing(np.zeros((60_000, 784), np.bool_))
      1
    """
    most = max(1, VALUES_AT_ONCE // math.prod(x.shape[1:]))
    return max(1, math.ceil(len(x) / most))
