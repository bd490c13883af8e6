"""Command line: flags from a dataclass, one-line errors, exit codes."""

import contextlib
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn, TextIO, TypeVar

import tyro

from experiments.runner.startup import INTERRUPTED, quiet_libraries, say_no_more

ConfigT = TypeVar("ConfigT")


class CommandFailed(RuntimeError):
    """Failure of a run that is not due to its arguments; exit code 1."""


class Interrupted(RuntimeError):
    """Stop of a run by a signal, with its state saved; exit code 128 + signal."""

    def __init__(self, signal_number: int, message: str):
        super().__init__(message)
        self.signal_number = signal_number


def parse(
    config_class: type[ConfigT], argv: Sequence[str] | None, *, command: str
) -> ConfigT:
    """Read the flags of a command into its `Config`.

    Underscores and hyphens are equivalent, and so are `--beta=1.0` and `--beta 1.0`. A
    flag that is unknown, abbreviated or of the wrong type ends the process with one
    line on stderr and exit code 2.

    Args:
      config_class: a frozen dataclass whose field docstrings are the help texts.
      argv: the arguments; None for those of the process.
      command: name of the command in the help.

    Returns:
      An instance of `config_class`.

    Raises:
      SystemExit: with code 2 for bad flags, 0 after `--help`.
    """
    captured = io.StringIO()
    with _one_line():
        try:
            with contextlib.redirect_stderr(captured):
                return tyro.cli(
                    config_class, prog=command, args=argv, use_underscores=True
                )
        except SystemExit as stop:
            if stop.code != 2:
                sys.stdout.flush()
                raise
        _fail(_first_paragraph(captured.getvalue()), code=2)
    raise AssertionError("an error in the flags ends the process")


def execute(run: Callable[[ConfigT], Any], config: ConfigT) -> None:
    """Run a command; report an error as one line and an exit code.

    Args:
      run: the command.
      config: its configuration.

    Raises:
      SystemExit: with code 2 for invalid input (`ValueError`), 1 if the run failed, ran
        out of memory or could not access a file, 128 plus the signal number if it was
        interrupted or its output pipe was closed.
    """
    quiet_libraries()
    with _one_line():
        run(config)
        sys.stdout.flush()


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    """Turn an expected error into one line and an exit code."""
    try:
        yield
    except BrokenPipeError:
        # The reader closed the pipe.
        _let_go_of(sys.stdout, sys.stderr)
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        _fail(_cause(error), code=1)
    except MemoryError as error:
        _fail(f"out of memory: {error}", code=1)
    except ValueError as error:
        _fail(str(error), code=2)
    except CommandFailed as error:
        _fail(str(error), code=1)
    except Interrupted as stop:
        _fail(str(stop), code=128 + stop.signal_number, label="interrupted")
    except KeyboardInterrupt:
        _fail(INTERRUPTED, 130, label="interrupted")


def _cause(error: OSError) -> str:
    """Return the file of an error and the reason."""
    file = error.filename
    if file is None:
        # Errors on the run's own files name the file, so this may be standard output.
        try:
            os.write(sys.stdout.fileno(), b"\n")
        except ValueError:
            pass
        except OSError:
            file = "standard output"
            _let_go_of(sys.stdout)
    where = "" if file is None else f"{os.fsdecode(file)}: "
    return f"{where}{error.strerror or error}; {INTERRUPTED} once this is fixed"


def _let_go_of(*streams: TextIO) -> None:
    """Discard all pending and further output of standard streams."""
    for stream in streams:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


end: Callable[[int], NoReturn] = sys.exit
"""Function that ends a command; replaced after an error in one of several processes."""


def say(*notes: str) -> None:
    """Print notes for the user, one per line."""
    for note in notes:
        print(f"NOTE: {note}", flush=True)


def _fail(message: str, code: int, label: str = "error") -> NoReturn:
    try:
        print(f"{label}: {' '.join(message.split())}", file=sys.stderr, flush=True)
    except OSError:
        _let_go_of(sys.stderr)
    say_no_more()
    end(code)


def _first_paragraph(box: str) -> str:
    """Extract the message from tyro's error box, without its frame and hints."""
    lines = []
    for line in box.splitlines()[1:]:
        text = line.strip().strip("│").strip()
        if not text or set(text) <= {"─", "╰", "╯"}:
            break
        lines.append(text)
    return " ".join(lines)
