"""Memory requirement of the arrays in a file, computed before reading them.

A small compressed file may unpack to any size; the header of each array states it.
"""

import math
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np


def available_bytes() -> int:
    """Memory that this process may still allocate, in bytes.

    Returns:
      The minimum of the memory of the machine, the memory available according to
      `/proc/meminfo`, and the memory left in the control group, as far as known.

    Example:
      >>> from vae_jax.data.memory import available_bytes
      >>> available_bytes() > 0
      True
    """
    known = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            known.append(int(line.split()[1]) * 1024)
    known += [
        left for names in _GROUP_FILES if (left := _bytes_left(*names)) is not None
    ]
    return max(min(known), 0)


# Limit, usage and statistics of a control group, of version 2 and of version 1.
_GROUP = Path("/sys/fs/cgroup")
_GROUP_FILES = (
    ("memory.max", "memory.current", "memory.stat"),
    (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
    ),
)


def _bytes_left(limit: str, usage: str, statistics: str) -> int | None:
    """Bytes left in the control group; None if it has no limit.

    Its usage includes the page cache of files, which the kernel frees on demand.
    """
    limits, used = _lines(_GROUP / limit), _lines(_GROUP / usage)
    if not (limits and used and limits[0].isdecimal()):
        return None
    pages = dict(line.split()[:2] for line in _lines(_GROUP / statistics))
    of_files = sum(int(pages.get(f"{kind}_file", 0)) for kind in ("active", "inactive"))
    return int(limits[0]) - int(used[0]) + of_files


def gigabytes(count: float) -> str:
    """Format a number of bytes.

    Args:
      count: number of bytes.

    Returns:
      The number in GB, or in MB if below 0.1 GB.

    Example:
      >>> from vae_jax.data.memory import gigabytes
      >>> gigabytes(2.5e9), gigabytes(3e6)
      ('2.5 GB', '3.0 MB')
    """
    if count < 1e8:
        return f"{count / 1e6:,.1f} MB"
    return f"{count / 1e9:,.1f} GB"


def _lines(path: str | Path) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def require_room(file: IO[bytes], keys: Sequence[str]) -> None:
    """Raise ValueError if the arrays of a file need more memory than is available.

    The memory of an array is that of its stored dtype plus that of a float32 copy.

    Args:
      file: a `.npz` or `.npy`, opened, at its beginning; the position is reset to it.
      keys: keys of a `.npz` that will be read.

    Raises:
      ValueError: too little memory; the message states both numbers.

    Example:
      >>> import io, numpy as np
      >>> from vae_jax.data.memory import require_room
      >>> file = io.BytesIO()
      >>> np.save(file, np.zeros(3))
      >>> file.seek(0)
      0
      >>> require_room(file, ["x"])
    """
    needed = 0
    if zipfile.is_zipfile(file):
        file.seek(0)
        with zipfile.ZipFile(file) as archive:
            for key in {f"{key}.npy" for key in keys} & {*archive.namelist()}:
                with archive.open(key) as member:
                    needed += _bytes_of(member)
    else:
        file.seek(0)
        needed = _bytes_of(file)
    file.seek(0)
    require_bytes(needed)


def require_bytes(needed: int) -> None:
    """Raise ValueError if arrays need more memory than is available.

    Args:
      needed: memory needed, in bytes.

    Raises:
      ValueError: too little memory; the message states both numbers.

    Example:
      >>> from vae_jax.data.memory import require_bytes
      >>> require_bytes(1000)
    """
    available = available_bytes()
    if needed > available:
        raise ValueError(
            f"its arrays need {gigabytes(needed)} of memory, and "
            f"{gigabytes(available)} are available"
        )


def bytes_of_file(path: str | Path) -> int:
    """Memory of the array in a `.npy`, in its stored dtype plus a float32 copy.

    Args:
      path: the file.

    Returns:
      Bytes; 0 if the file cannot be read, which is left to the reader to report.

    Example:
      >>> from vae_jax.data.memory import bytes_of_file
      >>> bytes_of_file("no_such.npy")
      0
    """
    try:
        with Path(path).expanduser().open("rb") as file:
            return _bytes_of(file)
    except OSError:
        return 0


def _bytes_of(file: IO[bytes]) -> int:
    """Memory of one array; 0 without a valid header, which the reader reports."""
    try:
        version = np.lib.format.read_magic(file)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, _, dtype = read(file)
    except (ValueError, KeyError, EOFError):
        return 0
    return math.prod(shape) * (dtype.itemsize + 4)
