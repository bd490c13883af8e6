"""Several processes in one experiment: joining, agreement, and who writes.

Every process runs the same command; only the first writes and prints. Collective
operations (a piece of an epoch, a checkpoint) must be identical in all of them, so
decisions that depend on a clock or a signal are agreed on first.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from typing import NoReturn, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from experiments.runner import command_line, flags, lost_process, startup
from experiments.runner.command_line import CommandFailed
from experiments.runner.flags import RunFlags

ConfigT = TypeVar("ConfigT", bound=RunFlags)

# Heartbeat timeout of a silent process; a killed process is noticed at once.
SECONDS_UNTIL_LOST = 12
SECONDS_FOR_THE_OTHERS = 3


@contextlib.contextmanager
def joined(config: ConfigT) -> Iterator[ConfigT]:
    """Join the processes that the flags name; only the first one prints.

    Args:
      config: the configuration as given.

    Yields:
      The configuration. Several processes use all devices if `num_devices` is 1, the
      default.

    Raises:
      ValueError: if flags are inconsistent.
      CommandFailed: if the other processes cannot be reached.
    """
    join(config)
    if jax.process_count() > 1 and config.num_devices == 1:
        config = dataclasses.replace(config, num_devices=jax.device_count())
    with silent_unless_first(), lost_process_ends_the_run():
        yield config


def join(config: RunFlags) -> None:
    """Initialize JAX's distributed runtime if the flags name a coordinator.

    Args:
      config: has `coordinator_address`, `num_processes` and `process_id`; all None for
        a single process, and the address alone if the environment of a cluster (SLURM,
        Open MPI, Cloud TPU) supplies the others.

    Raises:
      ValueError: if flags are inconsistent.
      CommandFailed: if the other processes cannot be reached.
    """
    flags.check(config)
    address, count, own = (
        config.coordinator_address,
        config.num_processes,
        config.process_id,
    )
    if address is None:
        if count is not None or own is not None:
            raise ValueError(
                "--num_processes and --process_id need --coordinator_address"
            )
        return
    if (count is None) != (own is None):
        raise ValueError("--num_processes and --process_id go together")
    if count is not None and count < 1:
        raise ValueError(f"--num_processes must be at least 1, got {count}")
    if count is not None and own is not None and not 0 <= own < count:
        raise ValueError(f"--process_id must be 0 to {count - 1}, got {own}")
    if jax.distributed.is_initialized():
        return
    if startup.is_command() and own is not None and count is not None and count > 1:
        global _watch
        _watch = lost_process.Watch(own, count)
    try:
        jax.distributed.initialize(
            coordinator_address=None if address == "auto" else address,
            num_processes=count,
            process_id=own,
            initialization_timeout=60,
            heartbeat_timeout_seconds=SECONDS_UNTIL_LOST,
            shutdown_timeout_seconds=SECONDS_UNTIL_LOST,
        )
    except (RuntimeError, ValueError) as error:
        raise CommandFailed(
            f"could not meet the other processes at --coordinator_address {address}: "
            f"{error}"
        ) from error


_watch: lost_process.Watch | None = None


def is_first() -> bool:
    """Return whether this is the process that writes and prints."""
    return jax.process_index() == 0


# Flags that may differ between processes.
OF_A_PROCESS = ("process_id", "data_dir", "compilation_cache")


def require_alike(config: RunFlags, data_digest: str) -> None:
    """Raise ValueError if the processes differ in their flags or data.

    Args:
      config: the resolved configuration.
      data_digest: digest of the data.

    Raises:
      ValueError: in every process, if any of them differs.
    """
    own = dict.fromkeys(OF_A_PROCESS) | {"data_sha256": data_digest}
    described = json.dumps(dataclasses.asdict(config) | own, sort_keys=True)
    number = int(hashlib.sha256(described.encode()).hexdigest()[:7], 16)
    greatest, negative_least = agree([number, -number])
    if greatest != -negative_least:
        raise ValueError(
            "the processes differ in their flags or their data: give all of them the "
            f"same ones but for --{', --'.join(OF_A_PROCESS)}"
        )


@contextlib.contextmanager
def first_alone(manager: contextlib.AbstractContextManager) -> Iterator[None]:
    """Enter a context in the first process only, held while any process is inside.

    Args:
      manager: entered by the first process, while the others wait; exited after all
        have finished.
    """
    with manager if is_first() else contextlib.nullcontext():
        agree([0])
        yield
        agree([0])


@contextlib.contextmanager
def silent_unless_first() -> Iterator[None]:
    """Discard the standard output of all processes but the first."""
    if is_first():
        yield
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def agree(values: Sequence[int]) -> list[int]:
    """Elementwise maximum over all processes, identical in each.

    Args:
      values: integers, equally many in every process.

    Returns:
      The maxima.
    """
    if jax.process_count() == 1:
        return list(values)
    every = multihost_utils.process_allgather(np.asarray(values, np.int32))
    return np.max(every, axis=0).tolist()


def of_first(value: float) -> float:
    """Broadcast a number from the first process, rounded to float32, to all.

    Args:
      value: the number in the first process; ignored in the others.

    Returns:
      The number of the first process; not rounded if it is the only one.
    """
    if jax.process_count() == 1:
        return value
    return float(multihost_utils.broadcast_one_to_all(np.float32(value)))


@contextlib.contextmanager
def lost_process_ends_the_run() -> Iterator[None]:
    """Report an error caused by the loss of another process in one line, and exit.

    The process exits at once, with code 1: anything else would wait for the lost one.
    """
    try:
        yield
    except BaseException as error:
        if _watch is not None:
            if lost_process.is_cause(error):
                _watch.end(str(error))
            # A normal exit of Python would wait for the others, which wait for it.
            command_line.end = _end_before_the_others
        raise


def _end_before_the_others(code: int) -> NoReturn:
    """Exit at once; the coordinator waits until others can report their own errors."""
    sys.stdout.flush()
    if is_first():
        time.sleep(SECONDS_FOR_THE_OTHERS)
    os._exit(code)
