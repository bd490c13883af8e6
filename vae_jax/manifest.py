"""The files of a checkpoint: its manifest, and a reader that believes nothing else.

A manifest names every leaf with its shape, dtype and sha256, and every file with its
sha256. `read` gives back what it describes, or raises `CorruptCheckpoint`, whatever
the files hold.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import orbax.checkpoint as ocp

from vae_jax.spec_json import require_description
from vae_jax.types import PyTree


class CorruptCheckpoint(ValueError):
    """A checkpoint whose files or arrays are not what was written."""


class Contents(NamedTuple):
    """Contents of a checkpoint.

    Attributes:
      leaves: arrays by the name of their path in the tree.
      spec: the spec as JSON, of the form that `spec_to_json` gives it.
    """

    leaves: dict[str, np.ndarray]
    spec: dict[str, Any]


def write(
    folder: Path, leaves: dict[str, np.ndarray], spec: dict[str, Any], *, step: str
) -> None:
    """Write spec and manifest beside the arrays, and flush all to the disk.

    Args:
      folder: holds `arrays/` by now.
      leaves: what the arrays are.
      spec: the spec as JSON.
      step: the name that the folder is going to have.
    """
    (folder / "spec.json").write_text(json.dumps(spec, indent=2))
    described = {name: _describe(leaf) for name, leaf in leaves.items()}
    manifest = {
        "step": step,
        "leaves": described,
        # An empty array has no bytes that would tell it from another.
        "leaves_sha256": _digest_of(described),
        "files": {
            str(path.relative_to(folder)): _digest(path) for path in _files(folder)
        },
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2))
    for path in [*_files(folder), folder]:
        flush(path)


def read(folder: Path) -> Contents:
    """Read a checkpoint and compare every file and array with its digest.

    Args:
      folder: the checkpoint's own folder, `.../<step>`.

    Returns:
      Its contents.

    Raises:
      CorruptCheckpoint: they are not what was written; names what is not.
      FileNotFoundError: there is no such folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no checkpoint at {folder}")
    if folder.is_symlink():
        raise CorruptCheckpoint("it is a symbolic link, and no folder of its own")
    step, described, files, own_digest = _read_manifest(folder)
    if step != folder.name:
        raise CorruptCheckpoint(f"manifest.json is of step {step}")
    for name, digest in files.items():
        _require_digest(folder, name, digest)
    if "spec.json" not in files:
        raise CorruptCheckpoint("manifest.json has no sha256 of spec.json")
    spec = _read_json(folder / "spec.json")
    try:
        require_description(spec)
    except ValueError as error:
        raise CorruptCheckpoint(f"spec.json cannot be read ({error})") from error
    leaves = _read_arrays(folder, described)
    if own_digest not in (None, _digest_of(described)):
        raise CorruptCheckpoint("manifest.json does not describe the arrays")
    return Contents(leaves, spec)


def require_room(folder: Path, leaves: dict[str, np.ndarray]) -> None:
    """Raise if there is no room for a checkpoint, of which orbax dies in a dozen ways.

    Args:
      folder: exists, on the disk that is written to.
      leaves: the arrays.

    Raises:
      OSError: too few bytes or files are left; names the folder and both numbers.
    """
    disk = os.statvfs(folder)
    needed = sum(leaf.nbytes for leaf in leaves.values()) + _BYTES_BESIDE_ARRAYS
    free = disk.f_bavail * disk.f_frsize
    # Some file systems count no files.
    if free < needed or 0 < disk.f_files and disk.f_favail < _FILES:
        raise OSError(
            errno.ENOSPC,
            f"No space left on device: a checkpoint needs {needed:,} bytes in "
            f"{_FILES} files, and {free:,} in {disk.f_favail} are free",
            str(folder),
        )


# Of the metadata and the manifest; with blocks that are not full, of a hundred leaves.
_BYTES_BESIDE_ARRAYS, _FILES = 500_000, 50


@contextlib.contextmanager
def checkpointer() -> Iterator[ocp.PyTreeCheckpointer]:
    """A checkpointer of orbax, which raises its errors and does not log them too."""
    logger = logging.getLogger("absl")
    before, logger.disabled = logger.disabled, True
    try:
        with ocp.PyTreeCheckpointer() as orbax:
            yield orbax
    finally:
        logger.disabled = before


def read_text(folder: Path, name: str) -> str | None:
    """Read a file of a checkpoint and compare it with its digest.

    Args:
      folder: the checkpoint's own folder.
      name: of the file.

    Returns:
      Its text; None where the manifest has no such file.

    Raises:
      CorruptCheckpoint: it is not what was written.
    """
    digest = _read_manifest(folder).files.get(name)
    if digest is None:
        return None
    _require_digest(folder, name, digest)
    return (folder / name).read_text()


class _Manifest(NamedTuple):
    step: str
    leaves: dict[str, dict[str, Any]]
    files: dict[str, str]
    leaves_sha256: str | None
    """None in checkpoints of earlier versions."""


def _read_manifest(folder: Path) -> _Manifest:
    manifest = _read_json(folder / "manifest.json")
    try:
        return _parse(manifest)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CorruptCheckpoint(f"manifest.json cannot be read ({error!r})") from error


def _parse(manifest: Any) -> _Manifest:
    """Step, descriptions of leaves and digests of files, with the types they have."""
    leaves, files = dict(manifest["leaves"]), dict(manifest["files"])
    for name, leaf in leaves.items():
        shape, dtype = leaf["shape"], leaf["dtype"]
        if not all(type(size) is int and 0 <= size < 2**63 for size in shape):
            raise ValueError(f"{name} has the shape {shape}")
        if not isinstance(dtype, str) or np.dtype(dtype).hasobject:
            raise ValueError(f"{name} has the dtype {dtype}")
        leaves[name] = {"shape": list(shape), "dtype": dtype, "sha256": leaf["sha256"]}
    if not leaves:
        raise ValueError("it names no arrays")
    return _Manifest(manifest["step"], leaves, files, manifest.get("leaves_sha256"))


def _read_arrays(
    folder: Path, described: dict[str, dict[str, Any]]
) -> dict[str, np.ndarray]:
    # As NumPy arrays: on how many devices they were, here, is not asked.
    wanted = {
        name: ocp.RestoreArgs(restore_type=np.ndarray)
        for name, description in described.items()
        if 0 not in description["shape"]
    }
    try:
        with checkpointer() as orbax:
            leaves: PyTree = orbax.restore(
                (folder / "arrays").absolute(), restore_args=wanted
            )
        empty = {
            name: np.zeros(description["shape"], description["dtype"])
            for name, description in described.items()
            if 0 in description["shape"]
        }
        leaves = {**leaves, **empty}
        described_here = {name: _describe(leaf) for name, leaf in leaves.items()}
    except MemoryError:
        raise
    # orbax fails in dozens of ways. The files are what was written, so the manifest
    # is not.
    except Exception as error:
        raise CorruptCheckpoint(
            f"manifest.json does not describe the arrays ({error!r:.300})"
        ) from error
    for name, description in described.items():
        if described_here.get(name) != description:
            raise CorruptCheckpoint(f"array {name} has another sha256 than was written")
    return {name: leaves[name] for name in described}


def _require_digest(folder: Path, name: str, digest: str) -> None:
    _require_within(folder, name)
    if _digest(folder / name) != digest:
        raise CorruptCheckpoint(f"{name} has another sha256 than was written")


def _require_within(folder: Path, name: str) -> None:
    """Refuse the name of anything but a file of the folder's own."""
    parts = PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts or "\\" in name or "\0" in name:
        raise CorruptCheckpoint(f"manifest.json names a file outside: {name!r}")
    path = folder / name
    ancestors = [folder.joinpath(*parts.parts[:n]) for n in range(len(parts.parts) + 1)]
    if not path.is_file() or any(part.is_symlink() for part in ancestors):
        raise CorruptCheckpoint(f"{name} is missing")


def _read_json(path: Path) -> Any:
    _require_within(path.parent, path.name)
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptCheckpoint(f"{path.name} cannot be read ({error})") from error


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name a file in the errors of the system that do not name any.

    Args:
      path: what is written.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def discard(path: Path) -> None:
    """Remove a file, a folder or a link; what a link leads to stays.

    Args:
      path: what may not exist.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Make a file or the entries of a folder survive a power cut.

    Args:
      path: the file or folder.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _describe(leaf: np.ndarray) -> dict[str, Any]:
    content = np.ascontiguousarray(leaf).tobytes()
    return {
        "shape": list(leaf.shape),
        "dtype": str(leaf.dtype),
        "sha256": hashlib.sha256(content).hexdigest(),
    }


def _digest_of(described: dict[str, Any]) -> str:
    text = json.dumps(described, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CorruptCheckpoint(f"{path.name} cannot be read ({error})") from error


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
