"""A topic of the lecture: checks, figures, and the command that reports them."""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
from matplotlib.figure import Figure

from experiments.runner import flags, run_folder
from experiments.runner.command_line import CommandFailed, execute, parse
from experiments.runner.report import Check, save_figure, table

DPI = 100
ConfigT = TypeVar("ConfigT")


class Report(NamedTuple):
    """Results of a topic.

    Attributes:
      title: of the table.
      checks: its rows.
      figures: pictures by name.
      notes: sentences to print: which data, what was measured besides.
    """

    title: str
    checks: Sequence[Check]
    figures: dict[str, Figure]
    notes: Sequence[str] = ()


def finish(report: Report, config: Any, *, seconds: float) -> None:
    """Write the run folder and print the report.

    Args:
      report: what a topic found.
      config: its configuration; `run_dir` is the folder.
      seconds: how long it took.
    """
    folder = Path(config.run_dir)
    with run_folder.locked(folder):
        for name, figure in report.figures.items():
            save_figure(figure, folder / "figures", name, dpi=DPI)
        results = {
            "checks": [
                {
                    **check._asdict(),
                    # JSON has no infinity.
                    "measured": _finite_or_text(check.measured),
                    "exact": _finite_or_text(check.exact),
                    "ok": check.ok,
                }
                for check in report.checks
            ],
            "notes": list(report.notes),
            "config": dataclasses.asdict(config),
            "jax_version": jax.__version__,
            "seconds": seconds,
        }
        run_folder.write_json(folder / "results.json", results)
    print("\n".join([report.title, table(report.checks), *report.notes]))
    failed = sum(not check.ok for check in report.checks)
    verdict = f"{failed} FAIL" if failed else "all hold"
    print(f"{len(report.checks)} checks: {verdict}; figures in {folder}/figures")


def topic(
    name: str, config_class: type[ConfigT], compute: Callable[[ConfigT], Report]
) -> tuple[Callable[[ConfigT], Report], Callable[..., None]]:
    """A topic as a function and as a command.

    Args:
      name: of its module.
      config_class: its configuration.
      compute: the topic.

    Returns:
      `run(config)`, which refuses bad values, computes, prints and writes the run
      folder, and `main(argv=None)`, where a check that fails is exit code 1.
    """

    def run(config: ConfigT) -> Report:
        flags.check(config)
        start = time.perf_counter()
        report = compute(config)
        checks = [_with_floats(check) for check in report.checks]
        report = report._replace(checks=checks)
        finish(report, config, seconds=time.perf_counter() - start)
        return report

    def run_and_judge(config: ConfigT) -> None:
        failed = [check.what for check in run(config).checks if not check.ok]
        if failed:
            raise CommandFailed(f"not as it should be: {'; '.join(failed)}")

    def main(argv: Sequence[str] | None = None) -> None:
        command = f"python -m experiments.lecture.{name}"
        execute(run_and_judge, parse(config_class, argv, command=command))

    return run, main


def _with_floats(check: Check) -> Check:
    """Arrays of one number, as topics have them, as numbers."""
    numbers = ("measured", "exact", "within")
    return check._replace(**{name: float(getattr(check, name)) for name in numbers})


def _finite_or_text(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
