"""A measured figure beside the exact one, and the table of such."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
      name: what it is.
      measured: the figure.
      error: its standard error; nan where it has none.
      exact: what it should be; nan where nothing is known.
      allowed: how far it may be off; nan where it is only shown.
    """

    name: str
    measured: float
    error: float = math.nan
    exact: float = math.nan
    allowed: float = math.nan

    @property
    def ok(self) -> bool:
        """Whether it is as near to the exact figure as it should be."""
        return abs(self.measured - self.exact) <= self.allowed

    def as_json(self) -> dict[str, Any]:
        """What results.json holds of it."""
        return asdict(self) | {"ok": self.ok}


def mean_row(name: str, values, **exact: float) -> Row:
    """The mean of figures an image, with its standard error over images."""
    values = np.asarray(values, np.float64)
    error = values.std(ddof=1) / math.sqrt(len(values))
    return Row(name, float(values.mean()), float(error), **exact)


def table(rows: list[Row]) -> str:
    """The rows for a screen.

    Args:
      rows: what was measured.

    Returns:
      Lines of text.
    """
    cells = [("", "measured", "exact", "")]
    for row in rows:
        error = "" if math.isnan(row.error) else f" +- {row.error:.3f}"
        exact = "" if math.isnan(row.exact) else f"{row.exact:.3f}"
        verdict = "" if math.isnan(row.allowed) else ("ok" if row.ok else "NO")
        cells.append((row.name, f"{row.measured:.3f}{error}", exact, verdict))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True))
        for line in cells
    )
