"""A run's folder: its lock, its configuration and its files.

config.json      the configuration, with the data set that was used
metrics.jsonl    one line per epoch and split
results.json     the final figures
tensorboard/     the metrics as TensorBoard events
checkpoints/     one folder per step, and best.json
figures/         PNG files
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import math
import os
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from experiments.runner import flags
from experiments.runner.flags import FORMER_DEFAULTS, IGNORED, RunFlags
from vae_jax.data.columns import Column, columns_from_json
from vae_jax.manifest import discard, naming


def default_folder(experiment: str, config: RunFlags) -> Path:
    """Return `runs/<experiment>/<data set>-<digest>`, a function of the flags.

    Args:
      experiment: name of the experiment.
      config: the configuration, with data set and epochs resolved.

    Returns:
      A relative path. It does not depend on `epochs` itself, so a run can be extended
      in its folder, unless another flag depends on `epochs`: the default warm-up of a
      run of fewer than 800 steps, and `schedule_epochs` of a run with a schedule.
    """
    identity = {
        name: value
        for name, value in dataclasses.asdict(config).items()
        if name not in IGNORED - {"columns"} | {"epochs"}
    }
    # Where they say nothing, folders keep the names they had before these flags.
    for name, silent in (("missing", "error"), ("columns", None)):
        if identity[name] == silent:
            del identity[name]
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return Path("runs") / experiment / f"{Path(config.dataset).stem}-{digest[:8]}"


# Errors that no flag causes: disk, quota, memory, number of open files.
_OF_THE_MACHINE = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EIO,
    errno.ENOMEM,
    errno.EMFILE,
    errno.ENFILE,
)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make the folder and hold its lock, which is released when the process ends.

    Args:
      folder: the run's folder.

    Raises:
      ValueError: if the folder is not writable, another process holds the lock, or a
        subfolder is a symbolic link.
    """
    flags.require_text("run_dir", str(folder.absolute()))
    for name in ("checkpoints", "figures", "tensorboard"):
        if (folder / name).is_symlink():
            raise ValueError(
                f"{folder / name} is a symbolic link, but a run writes and deletes in "
                "its own folder only: replace it by a folder, or choose another "
                "--run_dir"
            )
    lock = FileLock(folder / ".lock", blocking=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise ValueError(
            f"run_dir {folder} is in use: a live process is training in it"
        ) from error
    except OSError as error:
        if error.errno in _OF_THE_MACHINE:
            raise
        raise ValueError(f"run_dir {folder} cannot be written to: {error}") from error
    try:
        _remove_drafts(folder)
        yield
    finally:
        lock.release()


def claim(folder: Path, config: RunFlags, data_digest: str) -> list[str]:
    """Write config.json of a new run, or compare it with that of an existing one.

    Args:
      folder: the run's folder, locked.
      config: the configuration, with data set and epochs resolved; with `overwrite`,
        an existing run is removed first.
      data_digest: SHA-256 of the data.

    Returns:
      Notes for the user.

    Raises:
      ValueError: if the folder holds a run with another configuration (the message
        names the fields and the columns that differ, or says that the data have
        changed), or files that are not a run's.
    """
    wanted = json.loads(json.dumps(dataclasses.asdict(config)))
    path, notes = folder / "config.json", []
    if not path.exists():
        if any(entry.name != ".lock" for entry in folder.iterdir()):
            raise ValueError(f"run_dir {folder} is not empty and holds no config.json")
    elif config.overwrite:
        _remove_run(folder)
    else:
        # A field added since the run was made takes its default, or the value that
        # describes what runs did before it existed.
        defaults = {field.name: field.default for field in dataclasses.fields(config)}
        defaults |= FORMER_DEFAULTS
        known = read_signed(path).content
        found = json.loads(json.dumps(defaults, default=str)) | known
        differing = {
            name: f"{name} {found.get(name)!r} there, {value!r} here"
            for name, value in wanted.items()
            if name not in IGNORED and not _compatible(name, found.get(name), value)
        }
        if found.get("data_sha256") != data_digest:
            differing |= _other_data(found, wanted, differing.keys())
        if differing:
            hint = ""
            # Its default depends on the epochs of a short run.
            if list(differing) == ["beta_warmup_epochs"]:
                warmup = found["beta_warmup_epochs"]
                hint = f"--beta_warmup_epochs={warmup} goes on with it, "
            if list(differing) == ["columns"] and found["columns"]:
                hint = f"--columns={folder} takes its columns, "
            raise ValueError(
                f"run_dir {folder} holds a run of another configuration: "
                f"{'; '.join(differing.values())} ({hint}--overwrite starts anew)"
            )
        if found.get("num_devices") != config.num_devices:
            notes.append(
                f"this run had num_devices {found.get('num_devices')}; going on with "
                f"{config.num_devices} is sound, but not bit-exact"
            )
        return notes
    write_signed(path, wanted | {"data_sha256": data_digest})
    return notes


# Flags besides the columns on which the values or labels of the same data depend.
_LOADED_BY = {"validation", "missing", "likelihood", "conditional"}
COLUMNS_NAMED = 5


def _other_data(
    found: dict[str, Any], wanted: dict[str, Any], differing: Set[str]
) -> dict[str, str]:
    """Say why the data as loaded are others, unless a flag that differs says it.

    Args:
      found: configuration of the run.
      wanted: configuration of the command.
      differing: names of the flags that differ.

    Returns:
      A text by what has changed, or nothing.
    """
    if "dataset" in differing:
        return {}
    there, here = (_columns_of(config) for config in (found, wanted))
    columns = [
        f"column {name!r} {_kind(there.get(name))} there, {_kind(here.get(name))} here"
        for name in there | here
        if there.get(name) != here.get(name)
    ]
    if columns:
        more = len(columns) - COLUMNS_NAMED
        end = [f"and {more} more columns"] if more > 0 else []
        return {"columns": "; ".join(columns[:COLUMNS_NAMED] + end)}
    if differing & _LOADED_BY:
        return {}
    return {"data": f"the data of {wanted['dataset']} have changed"}


def _columns_of(config: dict[str, Any]) -> dict[str, Column]:
    """Columns of a resolved configuration, which names them if anything does."""
    columns = config["columns"]
    return {column.name: column for column in columns_from_json(columns or "[]")}


def _kind(column: Column | None) -> str:
    """Kind of a column, with its categories, for a message."""
    if column is None:
        return "not named"
    categories = f" of {', '.join(column.categories)}" if column.categories else ""
    return column.kind + categories


def record(folder: Path, config: RunFlags) -> None:
    """Write the flags of the command that goes on with a run into config.json.

    Args:
      folder: the run's folder, claimed; its checkpoints were found to be of this run.
      config: the configuration, resolved.
    """
    path = folder / "config.json"
    known = read_signed(path).content
    flags_of_run = dataclasses.asdict(config)
    write_signed(path, flags_of_run | {"data_sha256": known.get("data_sha256")})


def require_present(folder: Path) -> None:
    """Raise FileNotFoundError if a run's folder was removed during training.

    Args:
      folder: the run's folder.

    Raises:
      FileNotFoundError: if config.json no longer exists.
    """
    path = folder / "config.json"
    if not path.exists():
        message = "was removed while training, so the run cannot be saved"
        raise FileNotFoundError(errno.ENOENT, message, str(path))


def _compatible(name: str, found: Any, wanted: Any) -> bool:
    """Return whether a run may be resumed; only `epochs` may change, upwards."""
    if name == "epochs" and isinstance(found, int):
        return wanted >= found
    return found == wanted


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file atomically; non-finite floats become null.

    Args:
      path: the file.
      content: dictionaries, lists, strings and numbers.
    """
    write(path, json.dumps(finite(content), indent=2) + "\n")


class Signed(NamedTuple):
    """Content of a JSON file, and whether it was changed since it was written.

    Attributes:
      content: the content of the file.
      is_changed: whether the digest does not match; None if the file has no digest
        (written by an earlier version).
    """

    content: dict[str, Any]
    is_changed: bool | None


def write_signed(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Write a JSON file with a digest of its content, which reveals later edits.

    Args:
      path: the file.
      content: as in `write_json`.

    Returns:
      The content with the digest, `sha256`.
    """
    content = content | {"sha256": _digest(content)}
    write_json(path, content)
    return content


def read_signed(path: Path) -> Signed:
    """Read a JSON file written by `write_signed`.

    Args:
      path: the file.

    Returns:
      The content including the digest, and whether it was changed.

    Raises:
      ValueError: if the file does not hold a JSON object; names the file.
    """
    try:
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            raise ValueError(f"expected a JSON object, got {type(content).__name__}")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    digest = content.get("sha256")
    return Signed(content, None if digest is None else digest != _digest(content))


def _digest(content: dict[str, Any]) -> str:
    signed = {name: value for name, value in content.items() if name != "sha256"}
    text = json.dumps(finite(signed), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def read_results(folder: Path) -> dict[str, Any] | None:
    """Read the results of a completed run.

    Args:
      folder: the run's folder.

    Returns:
      The content of results.json; None if there is no such file.

    Raises:
      ValueError: if the file cannot be read.
    """
    path = folder / "results.json"
    return read_signed(path).content if path.exists() else None


def write(path: Path, text: str) -> None:
    """Write a file atomically, even if power is lost."""
    draft = path.with_name(f".{path.name}.draft")
    with naming(path):
        with open(draft, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)


def finite(content: Any) -> Any:
    """Replace every non-finite float in nested content by None."""
    if isinstance(content, dict):
        return {name: finite(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content


def _remove_drafts(folder: Path) -> None:
    """Remove partial files left by a process that was killed while writing."""
    for pattern in (".*.draft", ".*.removed", "checkpoints/.*.draft"):
        for path in folder.glob(pattern):
            discard(path)


def _remove_run(folder: Path) -> None:
    """Remove all files of a run and its evaluation; config.json last."""
    folders = [folder / n for n in ("checkpoints", "corrupt", "figures", "tensorboard")]
    for path in (*folders, *folder.glob("model-*")):
        discard(path)
    names = ("results.json", "evaluation.json", "metrics.jsonl", "config.json")
    for name in names:
        discard(folder / name)
