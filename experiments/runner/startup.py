"""Set-up of a command's process before its imports: standard streams and Ctrl-C."""

import contextlib
import io
import logging
import os
import signal
import sys
import warnings
from types import FrameType
from typing import NoReturn

INTERRUPTED = "run the same command to resume"


def prepare() -> None:
    """Open standard streams that are closed, and let Ctrl-C end the process.

    If a stream were closed, the next file opened would get its descriptor, and terminal
    output would be written into that file. Ctrl-C ends the process directly because a
    `KeyboardInterrupt` may be swallowed during imports or compilation, or show up as a
    traceback in a thread.
    """
    for number, name in ((0, "stdin"), (1, "stdout"), (2, "stderr")):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free descriptor is that of the stream.
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "r+" if number else "r", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # File names may not be representable in the terminal's encoding.
            stream.reconfigure(errors="backslashreplace")
    # Partly constructed objects, such as an event loop that got no file descriptor,
    # would print further errors on deletion, after the one that is shown.
    sys.unraisablehook = lambda _: None
    unawaited = "coroutine .* was never awaited"
    warnings.filterwarnings("ignore", unawaited, RuntimeWarning)
    # A shell makes its background jobs ignore SIGINT; keep that.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, end_at_once)
    global _is_prepared
    _is_prepared = True


_is_prepared = False


def is_command() -> bool:
    """Return whether this process runs a command, rather than importing one."""
    return _is_prepared


def end_by_sigterm() -> None:
    """In a command, let SIGTERM end the process with a message, as Ctrl-C does."""
    # A handler of jax, of several processes, is kept.
    if _is_prepared and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, end_at_once)


def say_no_more() -> None:
    """In a command, discard tracebacks that follow the error line."""
    if _is_prepared:
        sys.excepthook = lambda *error: None


def quiet_libraries() -> None:
    """In a command, discard errors logged by orbax, which also raises them.

    `vae_jax.manifest.checkpointer` does so while it is open, but threads of orbax may
    outlive it.
    """
    if _is_prepared:
        logging.getLogger("absl").disabled = True


def end_at_once(number: int, frame: FrameType | None) -> NoReturn:
    """Handle a signal by ending the process; no more is lost than with SIGKILL.

    Args:
      number: the signal number.
      frame: the interrupted stack frame.
    """
    with contextlib.suppress(OSError):
        os.write(2, f"interrupted: {INTERRUPTED}\n".encode())
    os._exit(128 + number)
