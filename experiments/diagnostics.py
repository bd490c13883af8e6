"""Picture of what a trained model does with its latent units, by `evaluate`."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.evaluation import active_of
from experiments.figures import ACTIVE_VARIANCE
from experiments.style import add_title, styled


@styled()
def draw(figures: dict[str, Any], title: str) -> Figure:
    """Variance and KL of each unit, in falling order, and the parts of the gap.

    Args:
      figures: of a model, as evaluation.json has them.
      title: names data and model.

    Returns:
      The picture, with a panel for each of the three that the model has.
    """
    parts = {
        "unit_variance": _draw_variances,
        "unit_kl": _draw_kl,
        "inference_gap": _draw_gap,
    }
    shown = [draw for name, draw in parts.items() if figures[name] is not None]
    figure = Figure((3.2 * max(len(shown), 2), 3.6))
    add_title(figure, title)
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    for axes, panel in zip(panels, shown, strict=True):
        panel(axes, figures)
    return figure


def _order_and_colors(figures: dict[str, Any]) -> tuple[np.ndarray, list[str]]:
    """Units by falling variance, those that are not active in grey."""
    variance = np.array(figures["unit_variance"])
    order = np.argsort(variance)[::-1]
    is_active = variance[order] > ACTIVE_VARIANCE
    return order, np.where(is_active, "C0", "0.7").tolist()


def _draw_variances(axes: Axes, figures: dict[str, Any]) -> None:
    order, colors = _order_and_colors(figures)
    variance = np.array(figures["unit_variance"])[order]
    active = active_of(figures["active_units"], len(order))
    axes.bar(np.arange(1, len(order) + 1), variance, color=colors)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.axhline(ACTIVE_VARIANCE, color="C1", linewidth=1)
    axes.set(
        title=f"{active} active (above the line)",
        xlabel="unit, in falling order",
        ylabel="variance over x of E[z|x]",
        yscale="log",
    )


def _draw_kl(axes: Axes, figures: dict[str, Any]) -> None:
    order, colors = _order_and_colors(figures)
    kl = np.array(figures["unit_kl"])[order]
    axes.bar(np.arange(1, len(order) + 1), kl, color=colors)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(title="KL of each unit", xlabel="the same order", ylabel="nats")


def _draw_gap(axes: Axes, figures: dict[str, Any]) -> None:
    names = ("amortization_gap", "approximation_gap")
    gaps = (figures["inference_gap"][name].values() for name in names)
    values, errors = zip(*gaps, strict=True)
    labels = ["the encoder's\n(amortization)", "the family's\n(approximation)"]
    axes.bar(labels, values, yerr=errors, capsize=4, color=["C5", "C3"])
    axes.set(title="from the ELBO to log p(x)", ylabel="nats an image")
