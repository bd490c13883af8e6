"""The command, killed at the n-th call of a function, before or after it.

python -m tests.faults.killed POINT N before|after FLAGS
"""

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments import figures, mnist
from experiments.runner import checkpoints, metrics
from vae_jax import checkpoint, manifest

POINTS: dict[str, tuple[Any, str]] = {
    "fsync": (os, "fsync"),
    "rmtree": (shutil, "rmtree"),
    "rename": (Path, "rename"),
    "replace": (Path, "replace"),
    "mkdir": (Path, "mkdir"),
    "write_text": (Path, "write_text"),
    "row": (metrics.Metrics, "add"),
    "flush": (metrics.Metrics, "flush"),
    "arrays": (checkpoint, "_save_arrays"),
    "manifest": (manifest, "write"),
    "checkpoint": (checkpoint, "save"),
    "best": (checkpoints, "_update_best"),
    "remove": (checkpoint, "remove"),
}


def kill_at(point: str, number: int, when: str) -> None:
    """Replace a function by one that ends the process."""
    owner, name = POINTS[point]
    real: Callable[..., Any] = getattr(owner, name)
    calls = [0]

    def killing(*arguments: Any, **named: Any) -> Any:
        calls[0] += 1
        is_time = calls[0] == number
        if is_time and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        found = real(*arguments, **named)
        if is_time:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    setattr(owner, name, killing)


if __name__ == "__main__":
    point, number, when, *flags = sys.argv[1:]
    figures.draw_all = lambda *arguments, **named: []
    kill_at(point, int(number), when)
    mnist.main(flags)
