"""The metrics of a run: metrics.jsonl, and the same as TensorBoard events."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from experiments.runner.run_folder import finite, write


class Metrics:
    """The metrics of a run: metrics.jsonl and TensorBoard, each epoch once.

    Attributes:
      rows: one dictionary for each epoch and split.
    """

    def __init__(self, folder: Path, *, epoch: int, step: int):
        """Open the files to go on after an epoch; later rows are dropped.

        Args:
          folder: the run's folder, held.
          epoch: epochs that are complete.
          step: training steps that they took.
        """
        self._path = folder / "metrics.jsonl"
        self.rows = [row for row in _read_rows(self._path) if row["epoch"] <= epoch]
        write(self._path, "".join(json.dumps(row) + "\n" for row in self.rows))
        self._folder, self._step = folder, step
        self._events = None

    def add(self, row: dict[str, Any]) -> None:
        """Append a row; figures, and lists of them, become TensorBoard scalars."""
        row = finite(row)
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
        """Put the rows on disk, before a checkpoint relies on them."""
        with open(self._path, "a") as file:
            os.fsync(file.fileno())

    def close(self) -> None:
        """Flush and close the TensorBoard events."""
        if self._events is not None:
            self._events.close()


def _read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a metrics file; a last line that a crash cut short is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    return rows
