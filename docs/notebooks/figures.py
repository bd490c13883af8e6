"""Style of the notebooks' figures, that of the commands, and images as one grid."""

import jax
import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes

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

STYLE = {
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


def use_style() -> None:
    """Set the style of all figures that follow."""
    plt.rcParams.update(STYLE)


def show_images(
    axes: Axes, rows, *, shape=(8, 8), title: str = "", row_labels=(), size: int = 40
) -> None:
    """Draw images `[R, C, D]` with values in [0, 1], enlarged smoothly, dark on white.

    Args:
      axes: axes to draw on.
      rows: R rows of C images.
      shape: (height, width) of an image; its product is D.
      title: title of the axes.
      row_labels: a label for each row, or none.
      size: height of an enlarged image in pixels.
    """
    rows = np.asarray(rows)
    height, width = size, size * shape[1] // shape[0]
    images = rows.reshape(*rows.shape[:2], *shape)
    images = jax.image.resize(images, (*rows.shape[:2], height, width), "cubic")
    gap = 4
    padded = np.pad(images, ((0, 0), (0, 0), (0, gap), (0, gap)))
    page = padded.swapaxes(1, 2).reshape(
        rows.shape[0] * (height + gap), rows.shape[1] * (width + gap)
    )
    axes.imshow(page[:-gap, :-gap], cmap="gray_r", vmin=0, vmax=1)
    axes.set_title(title)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set_xticks([])
    axes.set_yticks(
        [row * (height + gap) + height / 2 for row in range(len(row_labels))],
        row_labels,
    )
    axes.tick_params(length=0)
