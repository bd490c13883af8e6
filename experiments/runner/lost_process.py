"""Exit of a process that has lost another: one line and exit code 1.

When JAX detects that a process is gone, one of its threads logs a C++ stack trace and
aborts, which cannot be prevented. The log is therefore redirected to a file, from which
the lost process is read, and a handler of SIGABRT prints the line.
"""

import ctypes
import os
import re
import signal
import sys
import tempfile
from typing import NoReturn

import jax
from jax.experimental import multihost_utils

_OF_THE_RUNTIME = (jax.errors.JaxRuntimeError, multihost_utils.ProcessFailureError)
_OF_A_CONNECTION = re.compile(
    r"\bGloo [\w-]+ failed|coordination service|Barrier (timed out|failed)"
)
_handler_type = ctypes.CFUNCTYPE(None, ctypes.c_int)


class Watch:
    """Redirection of the C++ log, and a handler of SIGABRT.

    Attributes:
      own: number of this process.
      count: number of processes.
    """

    def __init__(self, own: int, count: int):
        """Take over standard error and SIGABRT, permanently."""
        self.own, self.count = own, count
        self._log = tempfile.TemporaryFile()
        self._stderr = os.dup(2)
        sys.stderr = open(self._stderr, "w", buffering=1, errors="backslashreplace")
        os.dup2(self._log.fileno(), 2)
        # Python runs its handlers after C++ returns, and an abort does not return.
        self._handler = _handler_type(lambda number: self.end())
        libc = ctypes.CDLL(None)
        libc.signal.argtypes = [ctypes.c_int, _handler_type]
        libc.signal(signal.SIGABRT, self._handler)

    def end(self, reason: str = "") -> NoReturn:
        """Print the line and exit, without cleanup that would wait for the lost one.

        Args:
          reason: the message of JAX's error, if it raised one.
        """
        os.lseek(self._log.fileno(), 0, os.SEEK_SET)
        log = os.read(self._log.fileno(), 10**6).decode(errors="replace")
        line = (
            f"error: process {self.own} lost {lost_one(log + reason, self)}; start all "
            "of them again, and they go on from the last checkpoint\n"
        )
        os.write(self._stderr, line.encode())
        os._exit(1)


def is_cause(error: BaseException | None) -> bool:
    """Return whether an error was caused by the loss of another process.

    JAX, orbax and the collectives each raise their own errors for this, including a
    `ValueError`, and wrap those of the others.

    Args:
      error: the error raised by a command.

    Returns:
      Whether the error, or one that it was raised from, is a runtime or connection
      error.
    """
    while error is not None:
        if isinstance(error, _OF_THE_RUNTIME) or _OF_A_CONNECTION.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def lost_one(log: str, watch: Watch) -> str:
    """Name the lost process, as far as JAX's log identifies it.

    Args:
      log: log of the coordination service.
      watch: the watch of this process.

    Returns:
      A phrase, such as "process 1".
    """
    unhealthy = re.search(r"stopped sending heartbeats\):\s*((?:\d+\s+)+)", log)
    if unhealthy:
        numbers = sorted({int(n) for n in unhealthy[1].split()} - {watch.own})
        if numbers:
            return f"process {' and '.join(map(str, numbers))}"
    if watch.count == 2:
        return f"process {1 - watch.own}"
    # The coordinator is process 0; without it the log names no process.
    if watch.own and re.search("Socket closed|failed to connect|UNAVAILABLE", log):
        return "process 0"
    return "another process"
