"""How much memory each contestant of `experiments.throughput` takes at its most.

Each is alone in a process of its own, which the system asks for its resident memory:
arrays, compiled programs and what their compiler used, but not the interpreter, the
libraries and the data set that were there before.
"""

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import jax

from experiments.throughput.contestants import Contestant
from vae_jax.types import Array

STATUS, FORGET_PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def is_known() -> bool:
    """Whether this system tells: Linux does."""
    return FORGET_PEAK.exists()


def peak_bytes(
    names: Sequence[str], prepared: Callable[[str], tuple[Contestant, Any, list]]
) -> dict[str, dict[str, int]]:
    """Peak resident memory by contestant, while it compiles and while it runs.

    Args:
      names: of the contestants.
      prepared: `f(name) -> (contestant, workload, rounds)`; it is pickled.

    Returns:
      Bytes by name, then by `compiling` (and the first round) and `running` (the
      second).
    """
    found = {}
    for name in names:
        # Spawned: a fork would begin with this process's memory.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as executor:
            found[name] = executor.submit(_peaks, prepared, name).result()
    return found


def _peaks(prepared: Callable[[str], tuple], name: str) -> dict[str, int]:
    entrant, workload, rounds = prepared(name)
    before = _resident("VmRSS")

    def peak(work: Callable[[], Array]) -> int:
        FORGET_PEAK.write_text("5")
        jax.block_until_ready(work())
        return _resident("VmHWM") - before

    runs = []

    def first() -> Array:
        runs.append(entrant.prepare(workload))
        return runs[0](rounds[0])

    return {"compiling": peak(first), "running": peak(lambda: runs[0](rounds[1]))}


def _resident(name: str) -> int:
    """A size of this process, in bytes."""
    (line,) = (li for li in STATUS.read_text().splitlines() if li.startswith(name))
    return int(line.split()[1]) * 1024
