"""Figure of each part: measured values with error bars, and exact values."""

import math
from pathlib import Path

from matplotlib.figure import Figure

from experiments.runner.report import Check, save_figure
from experiments.style import styled


@styled()
def draw(part: str, rows: list[Check], dataset_name: str, folder: Path) -> Path:
    """Draw the rows of a part into the run folder.

    Args:
      part: name of the part.
      rows: rows of its table.
      dataset_name: name of the data set, for the title.
      folder: run folder.

    Returns:
      Path of the file.
    """
    shown = [row for row in rows if selected(part, row)]
    figure = Figure((9, 1.2 + 0.4 * len(shown)))
    axes = figure.subplots()
    axes.set(title=f"{dataset_name}: {TITLES[part]}", xlabel=LABELS[part])
    for height, row in enumerate(reversed(shown)):
        error = 0 if math.isnan(row.error) else 2 * row.error
        axes.errorbar(row.measured, height, xerr=error, fmt="o", color="C0", capsize=3)
        if not math.isnan(row.exact):
            axes.plot(row.exact, height, "|", color="C1", markersize=18, mew=2)
    axes.set_yticks(range(len(shown)), [row.what.strip() for row in reversed(shown)])
    axes.plot([], [], "o", color="C0", label="measured, 2 standard errors")
    if any(not math.isnan(row.exact) for row in shown):
        axes.plot([], [], "|", color="C1", markersize=12, mew=2, label="exact")
    axes.grid(visible=False, axis="y")
    axes.margins(y=0.15)
    axes.legend(loc="best")
    return save_figure(figure, folder, part)


TITLES = {
    "linear": "a linear VAE and probabilistic PCA",
    "plane": "estimates of log p(x), less quadrature",
    "families": "what the best q of a family leaves of log p(x)",
}
LABELS = {
    "linear": "nats an image",
    "plane": "nats an image",
    "families": "log p(x) - ELBO, nats an image",
}


def selected(part: str, row: Check) -> bool:
    """Whether a row belongs to the figure of a part."""
    marks = {"linear": "ELBO, trained", "plane": " - quadrature", "families": "ELBO:"}
    return marks[part] in row.what
