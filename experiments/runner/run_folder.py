"""A run's folder: who may write into it, and the files that it holds.

config.json      what was asked for, with the data set that it came to
metrics.jsonl    a line for each epoch and split, each once
results.json     the figures at the end
tensorboard/     the metrics as TensorBoard events
checkpoints/     one folder a step, best.json
figures/         pictures
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from experiments.runner import flags
from experiments.runner.flags import FORMER_DEFAULTS, IGNORED, RunFlags
from vae_jax.manifest import discard, naming


def default_folder(experiment: str, config: RunFlags) -> Path:
    """`runs/<experiment>/<data set>-<digest>`: the same for the same run.

    Args:
      experiment: name of the experiment.
      config: its configuration, data set and epochs resolved.

    Returns:
      A relative path. More epochs of the same run lead to the same folder, where they
      leave the other flags alone: the default warm-up depends on them in a run of less
      than 800 steps, and `schedule_epochs` where there is a schedule.
    """
    identity = {
        name: value
        for name, value in dataclasses.asdict(config).items()
        if name not in IGNORED | {"epochs"}
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return Path("runs") / experiment / f"{Path(config.dataset).stem}-{digest[:8]}"


# What is wrong with no flag: disk, quota, memory, number of open files.
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
    """Make the folder and hold its lock, which ends with the process.

    Args:
      folder: the run's folder.

    Raises:
      ValueError: it cannot be written to, a live process holds it, or a folder in it
        is a symbolic link.
    """
    flags.require_text("run_dir", str(folder.absolute()))
    for name in ("checkpoints", "figures", "tensorboard"):
        if (folder / name).is_symlink():
            raise ValueError(
                f"{folder / name} is a symbolic link, and a run writes and deletes in "
                "its own folder only: put a folder in its place, or choose --run_dir"
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
    """Write config.json, or compare it with the run that is there.

    Args:
      folder: the run's folder, held.
      config: the configuration, data set and epochs resolved; with `overwrite` a
        run that is there is removed first.
      data_digest: sha256 of the data.

    Returns:
      Sentences to tell the user.

    Raises:
      ValueError: the folder holds a run of another configuration, or something else
        than a run; the message names the fields that differ.
    """
    wanted = dataclasses.asdict(config) | {"data_sha256": data_digest}
    wanted = json.loads(json.dumps(wanted))
    path, notes = folder / "config.json", []
    if not path.exists():
        if any(entry.name != ".lock" for entry in folder.iterdir()):
            raise ValueError(f"run_dir {folder} is not empty and holds no config.json")
    elif config.overwrite:
        _remove_run(folder)
    else:
        # A field that is newer than the run stood at its default, or did what the
        # default of its time was.
        defaults = {field.name: field.default for field in dataclasses.fields(config)}
        defaults |= FORMER_DEFAULTS
        known = read_signed(path).content
        found = json.loads(json.dumps(defaults, default=str)) | known
        differing = [
            f"{name} {found.get(name)!r} there, {value!r} here"
            for name, value in wanted.items()
            if name not in IGNORED and not _compatible(name, found.get(name), value)
        ]
        if differing:
            raise ValueError(
                f"run_dir {folder} holds a run of another configuration: "
                f"{'; '.join(differing)} (--overwrite starts anew)"
            )
        if found.get("num_devices") != config.num_devices:
            notes.append(
                f"this run had num_devices {found.get('num_devices')}; going on with "
                f"{config.num_devices} is sound, but not bit-exact"
            )
    write_signed(path, wanted)
    return notes


def require_present(folder: Path) -> None:
    """Raise if a run's folder was removed: what is saved would belong to no run.

    Args:
      folder: the run's folder.

    Raises:
      FileNotFoundError: it has no config.json any more.
    """
    path = folder / "config.json"
    if not path.exists():
        message = "was removed while training, and with it what the run is"
        raise FileNotFoundError(errno.ENOENT, message, str(path))


def _compatible(name: str, found: Any, wanted: Any) -> bool:
    """A run may be continued to more epochs, not to fewer."""
    if name == "epochs" and isinstance(found, int):
        return wanted >= found
    return found == wanted


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file whole or not at all; a float that is not finite becomes null.

    Args:
      path: the file.
      content: dictionaries, lists, strings and numbers.
    """
    write(path, json.dumps(finite(content), indent=2) + "\n")


class Signed(NamedTuple):
    """A file of figures or flags, and whether it is what was written.

    Attributes:
      content: what it holds.
      is_changed: whether its digest is another; None where it has none, of an earlier
        version.
    """

    content: dict[str, Any]
    is_changed: bool | None


def write_signed(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Write a JSON file with a digest of its content, by which an edit is noticed.

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
    """Read a JSON file that `write_signed` wrote.

    Args:
      path: the file.

    Returns:
      Its content with the digest, and whether it was changed.

    Raises:
      ValueError: it is no dictionary in JSON; names the file.
    """
    try:
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            raise ValueError(f"a {type(content).__name__}, no dictionary")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    digest = content.get("sha256")
    return Signed(content, None if digest is None else digest != _digest(content))


def _digest(content: dict[str, Any]) -> str:
    signed = {name: value for name, value in content.items() if name != "sha256"}
    text = json.dumps(finite(signed), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def read_results(folder: Path) -> dict[str, Any] | None:
    """The results of a run that is complete.

    Args:
      folder: the run's folder.

    Returns:
      What results.json holds, or None where there is none.

    Raises:
      ValueError: it cannot be read.
    """
    path = folder / "results.json"
    return read_signed(path).content if path.exists() else None


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all, even if the power goes."""
    draft = path.with_name(f".{path.name}.draft")
    with naming(path):
        with open(draft, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)


def finite(content: Any) -> Any:
    """The content with None for every float that is not finite."""
    if isinstance(content, dict):
        return {name: finite(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content


def _remove_drafts(folder: Path) -> None:
    """Remove what a process that was killed while writing left behind."""
    for pattern in (".*.draft", ".*.removed", "checkpoints/.*.draft"):
        for path in folder.glob(pattern):
            discard(path)


def _remove_run(folder: Path) -> None:
    """Remove what a run and its evaluation wrote; its mark, config.json, last."""
    folders = [folder / n for n in ("checkpoints", "corrupt", "figures", "tensorboard")]
    for path in (*folders, *folder.glob("model-*")):
        discard(path)
    names = ("results.json", "evaluation.json", "metrics.jsonl", "config.json")
    for name in names:
        discard(folder / name)
