"""Metrics of a run, in metrics.jsonl and as TensorBoard events."""

import contextlib
import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from experiments.runner.run_folder import finite, write
from vae_jax.manifest import naming

NAMES = ("elbo", "log_likelihood", "kl_divergence")


class Metrics:
    """Metrics of a run, in metrics.jsonl and TensorBoard, with each epoch once.

    Attributes:
      rows: one dictionary per epoch and split.
      text: the content of the file: one line of JSON per row.
    """

    def __init__(self, folder: Path, *, epoch: int, step: int, known: str | None):
        """Open the files to continue after an epoch, dropping later rows.

        Warn if rows of the file are missing or differ from those of the checkpoint.

        Args:
          folder: the run's folder, locked.
          epoch: number of completed epochs.
          step: number of training steps in these epochs.
          known: the lines of these epochs, from a checkpoint; None if only the file
            has them.
        """
        self._path = folder / "metrics.jsonl"
        self.rows, warning = _restored(self._path, epoch, known)
        if warning:
            _warn(self._path, warning)
        # Kept so that a save does not format all rows again.
        self.text = "".join(map(_line, self.rows))
        write(self._path, self.text)
        self._folder, self._step = folder, step
        self._events = None

    def add(self, row: dict[str, Any]) -> None:
        """Append a row; floats and lists of floats become TensorBoard scalars."""
        row = finite(row)
        self.rows.append(row)
        line = _line(row)
        self.text += line
        with naming(self._path), open(self._path, "a") as file:
            file.write(line)
        for name, value in row.items():
            tag = f"{name}/{row['split']}"
            if isinstance(value, float):
                self._add_scalar(tag, value, row["step"])
            for model, one in enumerate(value if isinstance(value, list) else ()):
                if one is not None:
                    self._add_scalar(f"{tag}/{model}", one, row["step"])

    def _add_scalar(self, tag: str, value: float, step: int) -> None:
        # Imported here because it imports PyTorch if it is installed.
        from tensorboardX.summary import scalar

        self._write(step=step, summary=scalar(tag, value))

    def _write(self, **event: Any) -> None:
        """Write an event synchronously: an error in a thread would go unnoticed."""
        from tensorboardX.event_file_writer import EventsWriter

        proto: Any = importlib.import_module("tensorboardX.proto.event_pb2")
        folder = self._folder / "tensorboard"
        with naming(folder):
            # Opened at the first event: a writer creates a file even if unused.
            if self._events is None:
                folder.mkdir(exist_ok=True)
                self._events = EventsWriter(str(folder / "events"))
                if self._step:
                    start = proto.SessionLog(status=proto.SessionLog.START)
                    self._write(step=self._step + 1, session_log=start)
            self._events.write_event(proto.Event(wall_time=time.time(), **event))

    def flush(self) -> None:
        """Flush all rows to disk; warn and restore the file if it was changed."""
        text = self._path.read_text(errors="replace") if self._path.exists() else ""
        if text != self.text:
            _warn(self._path, "was changed while training, and is restored")
            write(self._path, self.text)
        with naming(self._path), open(self._path, "a") as file:
            os.fsync(file.fileno())
        if self._events is not None:
            with naming(self._folder / "tensorboard"):
                self._events.flush()

    def close(self) -> None:
        """Flush and close the TensorBoard events."""
        if self._events is not None:
            with naming(self._folder / "tensorboard"):
                self._events.close()


def _warn(path: Path, what: str) -> None:
    print(f"warning: {path}: {what}", file=sys.stderr)


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row) + "\n"


def _restored(
    path: Path, epoch: int, known: str | None
) -> tuple[list[dict[str, Any]], str | None]:
    """Return the rows up to an epoch, and a warning if the file has others."""
    text = path.read_text(errors="replace") if path.exists() else ""
    found = [row for row in _rows(text) if row["epoch"] <= epoch]
    if known is not None:
        rows = _rows(known)
        return rows, None if found == rows else "was damaged or edited, and is restored"
    # Checkpoints of earlier versions hold no metrics: keep each epoch and split once.
    once = {}
    for row in found:
        once.setdefault((row["epoch"], row["split"]), row)
    epochs = [row["epoch"] for row in once.values()]
    lost = [number for number in range(1, epoch + 1) if epochs.count(number) < 2]
    warning = f"the history of epochs {lost} is lost" if lost else None
    return list(once.values()), warning


def _rows(text: str) -> list[dict[str, Any]]:
    """Parse rows from lines, skipping damaged and truncated ones."""
    rows = []
    for line in text.splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            rows.append(json.loads(line))
    return [row for row in rows if _is_row(row)]


# Types of the entries that every row has.
_KINDS = {"epoch": int, "step": int, "split": str}
_NUMBERS = (int, float, list, type(None))


def _is_row(row: Any) -> bool:
    if not isinstance(row, dict) or any(
        type(row.get(name)) is not kind for name, kind in _KINDS.items()
    ):
        return False
    figures = [value for name, value in row.items() if name not in _KINDS]
    return {*NAMES} <= row.keys() and all(type(f) in _NUMBERS for f in figures)
