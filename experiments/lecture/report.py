"""Report of a lecture topic (checks, figures, notes) and the command that prints it."""

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
from experiments.style import styled

ConfigT = TypeVar("ConfigT")


class Report(NamedTuple):
    """Results of a topic.

    Attributes:
      title: title of the table.
      checks: rows of the table.
      figures: figures by name.
      notes: lines to print below the table: the data used, further measurements.
    """

    title: str
    checks: Sequence[Check]
    figures: dict[str, Figure]
    notes: Sequence[str] = ()


def finish(report: Report, config: Any, *, seconds: float) -> None:
    """Write the run folder and print the report.

    Args:
      report: results of the topic.
      config: configuration of the topic; `run_dir` is the folder.
      seconds: wall time of the computation.
    """
    folder = Path(config.run_dir)
    with run_folder.locked(folder):
        for name, figure in report.figures.items():
            save_figure(figure, folder / "figures", name)
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
    """Make the function and the command of a topic.

    Args:
      name: name of the topic's module.
      config_class: dataclass of the topic's flags.
      compute: function from a configuration to a `Report`.

    Returns:
      `run(config)`, which validates the configuration, computes, prints the report and
      writes the run folder; and `main(argv=None)`, which exits with status 1 if a check
      fails.
    """

    def run(config: ConfigT) -> Report:
        flags.check(config)
        start = time.perf_counter()
        with styled():
            report = compute(config)
        checks = [_with_floats(check) for check in report.checks]
        report = report._replace(checks=checks)
        finish(report, config, seconds=time.perf_counter() - start)
        return report

    def run_and_judge(config: ConfigT) -> None:
        failed = [check.what for check in run(config).checks if not check.ok]
        if failed:
            raise CommandFailed(f"failed checks: {'; '.join(failed)}")

    def main(argv: Sequence[str] | None = None) -> None:
        command = f"python -m experiments.lecture.{name}"
        execute(run_and_judge, parse(config_class, argv, command=command))

    return run, main


def _with_floats(check: Check) -> Check:
    """Convert the scalar arrays of a check to floats."""
    numbers = ("measured", "exact", "within")
    return check._replace(**{name: float(getattr(check, name)) for name in numbers})


def _finite_or_text(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
