"""A command: flags from a dataclass, errors in one line, exit codes."""

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
    """A run that cannot go on, through no fault of its arguments; exit code 1."""


class Interrupted(RuntimeError):
    """A run that stopped at a signal, its state saved; exit code 128 + signal."""

    def __init__(self, signal_number: int, message: str):
        super().__init__(message)
        self.signal_number = signal_number


def parse(
    config_class: type[ConfigT], argv: Sequence[str] | None, *, command: str
) -> ConfigT:
    """Read the flags of a command into its `Config`.

    Underscores and hyphens are the same, `--beta=1.0` and `--beta 1.0` too. A flag
    that is unknown, abbreviated or ill-typed ends the process with one line on
    stderr and exit code 2.

    Args:
      config_class: a frozen dataclass whose field docstrings are the help.
      argv: the arguments; those of the process where None.
      command: what the help calls it.

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
    raise AssertionError("an error of flags ends the process")


def execute(run: Callable[[ConfigT], Any], config: ConfigT) -> None:
    """Run a command; report an error as one line and an exit code.

    Args:
      run: the command.
      config: its configuration.

    Raises:
      SystemExit: 2 for bad input (`ValueError`), 1 for a run that failed or whose
        files cannot be written, 128 plus the signal for one that was interrupted or
        whose output nobody reads any more.
    """
    quiet_libraries()
    with _one_line():
        run(config)
        sys.stdout.flush()


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    """Turn an error that a user can act on into one line and an exit code."""
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
    """The file of an error and what is wrong with it."""
    file = error.filename
    if file is None:
        # Files of the run are named where they are written.
        try:
            os.write(sys.stdout.fileno(), b"\n")
        except ValueError:
            pass
        except OSError:
            file = "standard output"
            _let_go_of(sys.stdout)
    where = "" if file is None else f"{os.fsdecode(file)}: "
    return f"{where}{error.strerror or error}; {INTERRUPTED} once this is mended"


def _let_go_of(*streams: TextIO) -> None:
    """Discard what standard streams could not take, and all that follows."""
    for stream in streams:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


end: Callable[[int], NoReturn] = sys.exit
"""How a command ends after its line; one of several processes ends otherwise."""


def say(*notes: str) -> None:
    """Print notes for the user, a line each."""
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
    """The message in the frame that tyro draws, without its frame and its hints."""
    lines = []
    for line in box.splitlines()[1:]:
        text = line.strip().strip("│").strip()
        if not text or set(text) <= {"─", "╰", "╯"}:
            break
        lines.append(text)
    return " ".join(lines)
