"""Peak memory of each contestant of `experiments.throughput`.

Each contestant runs alone in a separate process. The peak is the increase in resident
memory: arrays, compiled programs and the compiler's memory, but not the interpreter,
the libraries and the data set, which were loaded before.
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
    """Whether the system reports peak memory, as Linux does."""
    return FORGET_PEAK.exists()


def peak_bytes(
    names: Sequence[str], prepared: Callable[[str], tuple[Contestant, Any, list]]
) -> dict[str, dict[str, int]]:
    """Measure the peak resident memory of each contestant.

    Args:
      names: names of the contestants.
      prepared: `f(name) -> (contestant, workload, rounds)`; must be picklable.

    Returns:
      Bytes by name, then `compiling` (set-up and first round) and `running` (second
      round).
    """
    found = {}
    for name in names:
        # Spawn, because a fork would start with the memory of this process.
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
    """Read a memory size of this process, in bytes."""
    (line,) = (li for li in STATUS.read_text().splitlines() if li.startswith(name))
    return int(line.split()[1]) * 1024
