"""Reports: checks against exact values, text tables, image files."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vae_jax.manifest import naming

Number = Any
"""A number, or an array of shape ()."""


class Check(NamedTuple):
    """A measured value compared with a reference.

    Attributes:
      row: the row of the lecture notes that it belongs to, such as `S3-4`.
      what: the quantity measured, with its unit.
      measured: the measured value.
      exact: the reference: the expected value or bound; nan if unknown.
      within: tolerance; nan if the value is only displayed.
      relation: `=`, `>` (measured above exact) or `<`.
      error: standard error of the measured value; nan if it has none.
    """

    row: str
    what: str
    measured: Number
    exact: Number = math.nan
    within: Number = 0.0
    relation: str = "="
    error: Number = math.nan

    @property
    def ok(self) -> bool:
        """Whether the measured value satisfies the relation; False for nan."""
        if self.measured == self.exact:  # Two infinities have no difference.
            return self.relation == "="
        difference = self.measured - self.exact
        return {
            "=": abs(difference) <= self.within,
            ">": difference > -self.within,
            "<": difference < self.within,
        }[self.relation]


def row(
    what: str, figure: Number, exact: Number = math.nan, within: Number = math.nan
) -> Check:
    """Return a `Check` that belongs to no row of the notes."""
    return Check("", what, figure, exact, within)


def mean_check(
    what: str, values: Any, *, exact: float = math.nan, within: float = math.nan
) -> Check:
    """Return a `Check` of a mean over images, with its standard error.

    Args:
      what: the quantity measured.
      values: one value per image, `[n]`.
      exact: the reference; nan if unknown.
      within: tolerance; nan if the mean is only displayed.

    Returns:
      A `Check`.
    """
    found = mean_of(values)
    error = found["standard_error"]
    return Check("", what, found["mean"], exact, within, error=error)


def table(checks: Sequence[Check]) -> str:
    """Format checks as a text table.

    Args:
      checks: the rows.

    Returns:
      Lines of text; empty columns are omitted.
    """
    rows = [("row", "what", "measured", "", "exact", "within", "ok")]
    for check in checks:
        has_error = not math.isnan(check.error)
        figure = measured(check.measured, check.error, digits=3)
        is_known, is_held = not math.isnan(check.exact), not math.isnan(check.within)
        rows.append(
            (
                check.row,
                check.what,
                figure if has_error else f"{check.measured:.7g}",
                check.relation if is_known else "",
                f"{check.exact:.7g}" if is_known else "",
                f"{check.within:.1g}" if check.within and is_held else "",
                ("yes" if check.ok else "NO") if is_held else "",
            )
        )
    used = [index for index in range(7) if any(row[index] for row in rows[1:])]
    cells = [[row[index] for index in used] for row in rows]
    return columns(cells, "".join("<<><>><"[index] for index in used))


def columns(rows: Sequence[Sequence[str]], align: str = "") -> str:
    """Format a text table, each column as wide as its widest cell.

    Args:
      rows: rows of cells, all of the same length.
      align: `<` or `>` for each column; the last character applies to all further
        columns. Empty means left-aligned.

    Returns:
      Lines of text.

    Example:
      >>> from experiments.runner.report import columns
      >>> print(columns([("step", "elbo"), ("1", "-26.9")], "<>"))
      step   elbo
      1     -26.9
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = (align or "<").ljust(len(widths), (align or "<")[-1])
    return "\n".join(
        "  ".join(
            f"{cell:{side}{width}}"
            for cell, side, width in zip(row, sides, widths, strict=True)
        ).rstrip()
        for row in rows
    )


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Format a Markdown table whose first row is the header.

    Args:
      rows: rows of cells, all of the same length.

    Returns:
      Lines of text.

    Example:
      >>> from experiments.runner.report import markdown
      >>> print(markdown([("step", "elbo"), ("1", "-26.9")]))
      | step | elbo |
      | --- | --- |
      | 1 | -26.9 |
    """
    lines = [f"| {' | '.join(cells)} |" for cells in rows]
    lines.insert(1, f"|{' --- |' * len(rows[0])}")
    return "\n".join(lines)


def measured(
    value: float | None,
    error: float | None = None,
    *,
    digits: int = 2,
    unit: str = "",
    sign: str = "+-",
) -> str:
    """Format a value with its standard error: `-95.11 +- 0.24 nats`.

    Args:
      value: the value; None if undefined.
      error: standard error; None or nan if there is none.
      digits: number of decimals.
      unit: unit of the value and its error.
      sign: sign before the error; ± on pages, but not on terminals, which may lack it.

    Returns:
      Text for a table.
    """
    if value is None:
        return "undefined"
    known = error is not None and not math.isnan(error)
    spread = f" {sign} {error:.{digits}f}" if known else ""
    return f"{value:.{digits}f}{spread}" + (unit and f" {unit}")


def mean_of(values: Any) -> dict[str, float]:
    """Mean over examples or seeds, and its standard error.

    Args:
      values: one value per example or seed, `[n]`.

    Returns:
      `mean` and `standard_error`, which is nan for a single value.
    """
    values = np.asarray(values, np.float64)
    spread = values.std(ddof=1) if len(values) > 1 else math.nan
    error = float(spread / math.sqrt(len(values)))
    return {"mean": float(values.mean()), "standard_error": error}


def num_cores() -> int:
    """Number of cores on which this process may run, as far as the system tells."""
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def save_figure(figure: Any, folder: Path, name: str) -> Path:
    """Save a figure as a PNG file; equal figures give identical files.

    Args:
      figure: a matplotlib figure.
      folder: the folder to write to, made if absent.
      name: name of the file, without `.png`.

    Returns:
      Path of the file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.png"
    # Do not write through a link to a file elsewhere.
    if path.is_symlink():
        path.unlink()
    # Slow to import, and not every command draws.
    from experiments.style import styled

    # Colors of the property cycle are resolved when the figure is saved.
    with naming(path), styled():
        # Leaves out matplotlib's version.
        figure.savefig(path, metadata={"Software": None})
    return path
