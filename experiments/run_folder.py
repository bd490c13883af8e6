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
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

# May differ between two commands that share a run.
IGNORED = (
    "run_dir",
    "data_dir",
    "overwrite",
    "evaluation_samples",
    "checkpoint_every",
    "num_devices",
    "models_at_once",
    "coordinator_address",
    "num_processes",
    "process_id",
    "compilation_cache",
)


def default_folder(experiment: str, config: Any) -> Path:
    """`runs/<experiment>/<data set>-<digest>`: the same for the same run.

    Args:
      experiment: name of the experiment.
      config: its configuration, data set and epochs resolved.

    Returns:
      A relative path. More epochs of the same run lead to the same folder.
    """
    identity = {
        name: value
        for name, value in dataclasses.asdict(config).items()
        if name not in (*IGNORED, "epochs")
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return Path("runs") / experiment / f"{Path(config.dataset).stem}-{digest[:8]}"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes the folder and holds it: one process at a time.

    The lock goes with the process, however that ends.

    Args:
      folder: the run's folder.

    Raises:
      ValueError: it cannot be written to, or a live process holds it.
    """
    lock = FileLock(folder / ".lock", blocking=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise ValueError(
            f"run_dir {folder} is in use: a live process is training in it"
        ) from error
    except OSError as error:
        raise ValueError(f"run_dir {folder} cannot be written to: {error}") from error
    try:
        _remove_drafts(folder)
        yield
    finally:
        lock.release()


def claim(folder: Path, config: Any, data_digest: str) -> list[str]:
    """Writes config.json, or compares it with the run that is there.

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
        # A field that is newer than the run stood at its default.
        defaults = {field.name: field.default for field in dataclasses.fields(config)}
        found = json.loads(json.dumps(defaults, default=str)) | _read_json(path)
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
    write_json(path, wanted)
    return notes


def _compatible(name: str, found: Any, wanted: Any) -> bool:
    """A run may be continued to more epochs, not to fewer."""
    if name == "epochs" and isinstance(found, int):
        return wanted >= found
    return found == wanted


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file whole or not at all; what is not finite becomes null.

    Args:
      path: the file.
      content: dictionaries, lists, strings and numbers.
    """
    _write(path, json.dumps(_finite(content), indent=2) + "\n")


class Metrics:
    """The metrics of a run: metrics.jsonl and TensorBoard, each epoch once.

    Attributes:
      rows: one dictionary for each epoch and split.
    """

    def __init__(self, folder: Path, *, epoch: int, step: int):
        """Opens the files to go on after an epoch; what lies behind is dropped.

        Args:
          folder: the run's folder, held.
          epoch: epochs that are complete.
          step: training steps that they took.
        """
        self._path = folder / "metrics.jsonl"
        self.rows = [row for row in _read_rows(self._path) if row["epoch"] <= epoch]
        _write(self._path, "".join(json.dumps(row) + "\n" for row in self.rows))
        self._folder, self._step = folder, step
        self._events = None

    def add(self, row: dict[str, Any]) -> None:
        """Appends a row; figures, and lists of them, become TensorBoard scalars."""
        row = _finite(row)
        self.rows.append(row)
        with open(self._path, "a") as file:
            file.write(json.dumps(row) + "\n")
        # Not before there is something to say: a writer leaves a file behind.
        self._events = self._events or self._open_events()
        for name, value in row.items():
            tag = f"{name}/{row['split']}"
            if isinstance(value, float):
                self._events.add_scalar(tag, value, row["step"])
            for model, one in enumerate(value if isinstance(value, list) else ()):
                if one is not None:
                    self._events.add_scalar(f"{tag}/{model}", one, row["step"])

    def _open_events(self):
        # Not at the top: it imports PyTorch where there is one.
        from tensorboardX import SummaryWriter

        return SummaryWriter(
            str(self._folder / "tensorboard"),
            purge_step=self._step + 1 if self._step else None,
        )

    def flush(self) -> None:
        """Makes the rows survive a power cut, before a checkpoint counts on them."""
        with open(self._path, "a") as file:
            os.fsync(file.fileno())

    def close(self) -> None:
        """Flushes and closes the TensorBoard events."""
        if self._events is not None:
            self._events.close()


class NoMetrics:
    """The metrics of a process that writes none.

    Attributes:
      rows: none.
    """

    rows: tuple = ()

    def add(self, row: dict[str, Any]) -> None:
        """Does nothing, as the others."""

    def flush(self) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


def _read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a metrics file; a last line that a crash cut short is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    return rows


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def read_results(folder: Path) -> dict[str, Any] | None:
    """The results of a run that is complete.

    Args:
      folder: the run's folder.

    Returns:
      What results.json holds, or None where there is none.
    """
    path = folder / "results.json"
    return _read_json(path) if path.exists() else None


def _write(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}.draft")
    with open(draft, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: _finite(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content


def _remove_drafts(folder: Path) -> None:
    """What a process that was killed while writing left behind."""
    for path in folder.glob(".*.draft"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in folder.glob(".*.removed"):
        shutil.rmtree(path)


def _remove_run(folder: Path) -> None:
    """Removes what a run and its evaluation wrote; its mark, config.json, last."""
    folders = [folder / n for n in ("checkpoints", "corrupt", "figures", "tensorboard")]
    for path in (*folders, *folder.glob("model-*")):
        shutil.rmtree(path, ignore_errors=True)
    names = ("results.json", "evaluation.json", "metrics.jsonl", "config.json")
    for name in names:
        (folder / name).unlink(missing_ok=True)
