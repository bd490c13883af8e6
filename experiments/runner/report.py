"""Figures for a reader: checks against exact values, tables for a screen, pictures."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vae_jax.manifest import naming

Number = Any
"""A number, or an array of shape ()."""


class Check(NamedTuple):
    """A figure beside what it should be.

    Attributes:
      row: what of the notes it belongs to: `S3-4`.
      what: what was measured, with its unit.
      measured: the figure.
      exact: what it should be, or what it should be above or below; nan where nothing
        is known.
      within: allowed difference; nan where the figure is only shown.
      relation: `=`, `>` (measured above exact) or `<`.
      error: standard error of the figure; nan where it has none.
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
        """Whether the figure is what it should be; nan never is."""
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
    """A `Check` that belongs to no line of notes, or a figure that is only shown."""
    return Check("", what, figure, exact, within)


def mean_check(
    what: str, values: Any, *, exact: float = math.nan, within: float = math.nan
) -> Check:
    """The mean of figures an image, with its standard error over images.

    Args:
      what: was measured.
      values: a figure for each image, `[n]`.
      exact: what it should be, where it is known.
      within: allowed difference, likewise.

    Returns:
      A `Check`.
    """
    found = mean_of(values)
    error = found["standard_error"]
    return Check("", what, found["mean"], exact, within, error=error)


def table(checks: Sequence[Check]) -> str:
    """Checks for a screen.

    Args:
      checks: the rows.

    Returns:
      Lines of text, without the columns that would be empty.
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
    """A table for a screen, each column as wide as its widest cell.

    Args:
      rows: of cells, as many in each.
      align: `<` or `>` for each column; the last one stands for all further ones, and
        without any the columns are aligned to the left.

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


def measured(
    value: float | None, error: float | None = None, *, digits: int = 2, unit: str = ""
) -> str:
    """A figure with its standard error: `-95.11 +- 0.24 nats`.

    Args:
      value: the figure; None is undefined.
      error: its standard error; None or nan where there is none.
      digits: after the point.
      unit: of both.

    Returns:
      Text for a table.
    """
    if value is None:
        return "undefined"
    known = error is not None and not math.isnan(error)
    spread = f" +- {error:.{digits}f}" if known else ""
    return f"{value:.{digits}f}{spread}" + (unit and f" {unit}")


def mean_of(values: Any) -> dict[str, float]:
    """Mean and its standard error over examples or seeds; nan for a single one.

    Args:
      values: a figure for each, `[n]`.

    Returns:
      `mean` and `standard_error`.
    """
    values = np.asarray(values, np.float64)
    spread = values.std(ddof=1) if len(values) > 1 else math.nan
    error = float(spread / math.sqrt(len(values)))
    return {"mean": float(values.mean()), "standard_error": error}


def save_figure(figure: Any, folder: Path, name: str) -> Path:
    """Write a picture into a folder, made if absent; equal figures are equal files.

    Args:
      figure: of matplotlib.
      folder: where to.
      name: of the file, without `.png`.

    Returns:
      The file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.png"
    # It may lead anywhere.
    if path.is_symlink():
        path.unlink()
    # Takes long to import, and not every command draws.
    from experiments.style import styled

    # Colors of the cycle are looked up as late as this.
    with naming(path), styled():
        # Without matplotlib's version in it.
        figure.savefig(path, metadata={"Software": None})
    return path
