"""Style of every figure that a command draws: the one place that sets matplotlib's.

`docs/notebooks/figures.py`, which a reader downloads with a notebook, has the same.
"""

from typing import Any

import matplotlib
from cycler import cycler
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

COLORS = (
    "#3266ad",
    "#d1495b",
    "#2a9d8f",
    "#edae49",
    "#7b4fa3",
    "#6c757d",
    "#5fb3dd",
    "#8a5a3c",
    "#e08bb4",
    "#9aa53c",
)
BY_LABEL = ListedColormap(COLORS)

STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.prop_cycle": cycler(color=COLORS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "figure.constrained_layout.use": True,
    "figure.dpi": 120,
    "figure.figsize": (7.5, 4.0),
    "font.size": 10.5,
    "grid.alpha": 0.25,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}


def styled():
    """The style as a context, or a decorator of what draws; nothing else changes.

    Returns:
      A context in which figures are made and saved.

    Example:
      >>> import matplotlib
      >>> from experiments.style import styled
      >>> with styled():
      ...     matplotlib.rcParams["legend.frameon"]
      False
      >>> matplotlib.rcParams["legend.frameon"]
      True
    """
    return matplotlib.rc_context(STYLE)


def add_title(figure: Figure, text: str) -> None:
    """Add the title of a figure of several panels, where one panel has its own."""
    figure.suptitle(text, x=0.01, ha="left", weight="bold", wrap=True)


def draw_pixels(axes: Any, pixels: Any) -> None:
    """Draw a grey image, `[height, width]` in [0, 1], without frame and ticks."""
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=1)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
