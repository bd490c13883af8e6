"""Manifests of checkpoints, and a reader that verifies all contents against them.

A manifest lists the shape, dtype and sha256 of every leaf, and the sha256 of every
file. `read` returns the contents that it describes, or raises `CorruptCheckpoint` for
any other content of the files.
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
    """A file or an array of a checkpoint differs from what was written."""


class Contents(NamedTuple):
    """Contents of a checkpoint.

    Attributes:
      leaves: arrays by the name of their path in the tree.
      spec: the spec as JSON, in the form of `spec_to_json`.
    """

    leaves: dict[str, np.ndarray]
    spec: dict[str, Any]


def write(
    folder: Path, leaves: dict[str, np.ndarray], spec: dict[str, Any], *, step: str
) -> None:
    """Write the spec and the manifest, and flush all files to disk.

    Args:
      folder: folder that already contains `arrays/`.
      leaves: the arrays by name, including empty ones.
      spec: the spec as JSON.
      step: final name of the folder.
    """
    (folder / "spec.json").write_text(json.dumps(spec, indent=2))
    described = {name: _describe(leaf) for name, leaf in leaves.items()}
    manifest = {
        "step": step,
        "leaves": described,
        # Covers shapes and dtypes, which the digest of an empty array does not.
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
      folder: folder of the checkpoint, `.../<step>`.

    Returns:
      The contents of the checkpoint.

    Raises:
      CorruptCheckpoint: a file or an array differs from what was written; the message
        states which.
      FileNotFoundError: the folder does not exist.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no checkpoint at {folder}")
    if folder.is_symlink():
        raise CorruptCheckpoint("it is a symbolic link instead of a folder")
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
    """Raise OSError if there is too little disk space for a checkpoint.

    Checked in advance because orbax raises many types of errors for a full disk.

    Args:
      folder: existing folder on the disk of the checkpoint.
      leaves: the arrays by name.

    Raises:
      OSError: too few bytes or files are left; the error names the folder and the
        numbers.
    """
    disk = os.statvfs(folder)
    needed = sum(leaf.nbytes for leaf in leaves.values()) + _BYTES_BESIDE_ARRAYS
    free = disk.f_bavail * disk.f_frsize
    # Some file systems do not limit the number of files and report 0.
    if free < needed or 0 < disk.f_files and disk.f_favail < _FILES:
        raise OSError(
            errno.ENOSPC,
            f"No space left on device: a checkpoint needs {needed:,} bytes in "
            f"{_FILES} files, and {free:,} in {disk.f_favail} are free",
            str(folder),
        )


# Upper bounds for metadata and manifest, for 100 leaves and partially filled blocks.
_BYTES_BESIDE_ARRAYS, _FILES = 500_000, 50


@contextlib.contextmanager
def checkpointer() -> Iterator[ocp.PyTreeCheckpointer]:
    """Open an orbax checkpointer with its logging disabled; it still raises errors."""
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
      folder: folder of the checkpoint.
      name: name of the file.

    Returns:
      The text; None if the manifest does not list the file.

    Raises:
      CorruptCheckpoint: the file or the manifest differs from what was written.
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
    """Parse and validate step, descriptions of leaves, and digests of files."""
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
    # As NumPy arrays, independent of the sharding they were saved with.
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
    # orbax raises many types of errors. The digests of the files were correct, so the
    # manifest must be wrong.
    except Exception as error:
        raise CorruptCheckpoint(
            f"manifest.json does not describe the arrays ({error!r:.300})"
        ) from error
    for name, description in described.items():
        if described_here.get(name) != description:
            raise CorruptCheckpoint(f"array {name} does not match its sha256")
    return {name: leaves[name] for name in described}


def _require_digest(folder: Path, name: str, digest: str) -> None:
    _require_within(folder, name)
    if _digest(folder / name) != digest:
        raise CorruptCheckpoint(f"{name} does not match its sha256")


def _require_within(folder: Path, name: str) -> None:
    """Raise CorruptCheckpoint unless `name` is a regular file within the folder."""
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
    """Add a path to OSErrors that do not name one.

    Args:
      path: the file or folder that is written.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def discard(path: Path) -> None:
    """Remove a file, a folder or a symbolic link, but not the target of a link.

    Args:
      path: path to remove; need not exist.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk (fsync).

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
