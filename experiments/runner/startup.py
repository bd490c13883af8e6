"""The process of a command before its imports: standard streams and Ctrl-C."""

import contextlib
import io
import logging
import os
import signal
import sys
import warnings
from types import FrameType
from typing import NoReturn

INTERRUPTED = "nothing is lost: the same command goes on"


def prepare() -> None:
    """Open the standard streams that are closed, and let Ctrl-C end the process.

    Without them the first file that is opened would take the number of a stream, and
    what is meant for a terminal would be written into it. A `KeyboardInterrupt` may be
    swallowed by what is being imported or compiled, and end in a traceback of a thread.
    """
    for number, name in ((0, "stdin"), (1, "stdout"), (2, "stderr")):
        try:
            os.fstat(number)
        except OSError:
            # The least free number is that of the stream.
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "r+" if number else "r", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Names of files need not be text in the encoding of the terminal.
            stream.reconfigure(errors="backslashreplace")
    # Half-made objects of libraries, such as an event loop without a free file
    # descriptor, say more when they are deleted than the error that is shown.
    sys.unraisablehook = lambda _: None
    unawaited = "coroutine .* was never awaited"
    warnings.filterwarnings("ignore", unawaited, RuntimeWarning)
    # A shell lets what it starts in the background ignore it.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, end_at_once)
    global _is_prepared
    _is_prepared = True


_is_prepared = False


def is_command() -> bool:
    """Whether this is the process of a command, and not one that imports it."""
    return _is_prepared


def say_no_more() -> None:
    """Discard tracebacks of threads that outlive what went wrong, in a command."""
    if _is_prepared:
        sys.excepthook = lambda *error: None


def quiet_libraries() -> None:
    """Discard the errors that orbax logs, in a command: it raises them as well.

    `vae_jax.manifest.checkpointer` does so while it is open; threads of orbax may
    outlive it.
    """
    if _is_prepared:
        logging.getLogger("absl").disabled = True


def end_at_once(number: int, frame: FrameType | None) -> NoReturn:
    """Handle a signal by the end of the process, which loses no more than SIGKILL.

    Args:
      number: of the signal.
      frame: where it came.
    """
    with contextlib.suppress(OSError):
        os.write(2, f"interrupted: {INTERRUPTED}\n".encode())
    os._exit(128 + number)
