"""A command: flags from a dataclass, errors in one line, exit codes."""

import contextlib
import io
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

import tyro

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
    try:
        with contextlib.redirect_stderr(captured):
            return tyro.cli(config_class, prog=command, args=argv, use_underscores=True)
    except SystemExit as stop:
        if stop.code != 2:
            raise
        _fail(_first_paragraph(captured.getvalue()), code=2)


def execute(run: Callable[[ConfigT], Any], config: ConfigT) -> None:
    """Run a command; what goes wrong becomes one line and an exit code.

    Args:
      run: the command.
      config: its configuration.

    Raises:
      SystemExit: 2 for bad input (`ValueError`), 1 for a run that failed, 128 plus
        the signal for one that was interrupted.
    """
    try:
        run(config)
    except ValueError as error:
        _fail(str(error), code=2)
    except CommandFailed as error:
        _fail(str(error), code=1)
    except Interrupted as stop:
        _fail(str(stop), code=128 + stop.signal_number, label="interrupted")
    except KeyboardInterrupt:
        _fail("nothing is lost: the same command goes on", 130, label="interrupted")


def say(*notes: str) -> None:
    """Print notes for the user, a line each."""
    for note in notes:
        print(f"NOTE: {note}", flush=True)


def _fail(message: str, code: int, label: str = "error") -> NoReturn:
    print(f"{label}: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


def _first_paragraph(box: str) -> str:
    """The message in the frame that tyro draws, without its frame and its hints."""
    lines = []
    for line in box.splitlines()[1:]:
        text = line.strip().strip("│").strip()
        if not text or set(text) <= {"─", "╰", "╯"}:
            break
        lines.append(text)
    return " ".join(lines)
