"""Posterior predictive check of a table or of counts: figures, rows and picture."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import vae_jax
from experiments.choices import labels_of
from experiments.figures import are_pixels
from experiments.style import add_title, styled
from vae_jax.predictive import Replicated
from vae_jax.types import Array, Key, Labels

NUM_REPLICATIONS = 200
SHOWN = ("mean", "variance", "zeros", "dispersion")

_check = jax.jit(vae_jax.posterior_predictive, static_argnames="num_replications")


def predictive_figures(
    params: vae_jax.Params, x: Array, labels: Labels, key: Key
) -> dict[str, Any] | None:
    """Statistics of the test set beside those of data that the model made.

    Args:
      params: model parameters.
      x: the test set, `[m, D]`.
      labels: its labels, which a conditional model is given.
      key: PRNG key, consumed once.

    Returns:
      For each statistic the test set's value, mean and 95% interval over replications,
      lists over dimensions, and the share inside of the dimensions that have the
      statistic; None for pixels.
    """
    if are_pixels(params, np.asarray(x)):
        return None
    given = labels_of(params, labels, x)
    found = _check(params, x, key, num_replications=NUM_REPLICATIONS, **given)
    return {
        name: {
            part: np.asarray(values).tolist() for part, values in one._asdict().items()
        }
        | {"inside": _share_inside(one)}
        for name, one in found.items()
    }


def _are_defined(one: Replicated) -> np.ndarray:
    """Dimensions that have a statistic, in the test set and in replications."""
    return np.isfinite(np.asarray(one.observed)) & np.isfinite(np.asarray(one.lower))


def _share_inside(one: Replicated) -> float | None:
    """Share of the dimensions that have the statistic; None where none has."""
    defined = _are_defined(one)
    return float(np.asarray(one.inside)[defined].mean()) if defined.any() else None


def rows(figures: dict[str, Any]) -> list[tuple[str, str]]:
    """The rows of a table: dimensions whose statistics the model has.

    Args:
      figures: of `predictive_figures`.

    Returns:
      Labels and texts.
    """
    zeros = figures["zeros_of_all"]
    found = [("in the 95% predictive interval of the model", "")]
    for name in SHOWN:
        share = figures[name]["inside"]
        text = "undefined" if share is None else f"{share:.0%} of the dimensions"
        found.append((f"  {name} of the test set", text))
    interval = f"predicted {zeros['lower']:.2%} to {zeros['upper']:.2%}"
    return [*found, ("  share of zeros", f"{zeros['observed']:.2%}, {interval}")]


@styled()
def draw(figures: dict[str, Any]) -> Figure:
    """Statistics of each dimension, the test set's against the model's interval.

    Args:
      figures: of `predictive_figures`.

    Returns:
      A panel a statistic, of the dimensions that have it; outside of its interval a
      dimension is red.
    """
    parts = {
        name: Replicated(
            *(jnp.array(figures[name][part], float) for part in Replicated._fields)
        )
        for name in SHOWN
    }
    shown = {name: one for name, one in parts.items() if _are_defined(one).any()}
    num_rows = max(math.ceil(len(shown) / 2), 1)
    figure = Figure((8, 0.4 + 3.1 * num_rows))
    add_title(figure, "posterior predictive check: 95% intervals of each dimension")
    panels = figure.subplots(num_rows, 2, squeeze=False).flat
    for axes, (name, one) in zip(panels, shown.items(), strict=False):
        observed, mean, lower, upper = one
        defined, inside = _are_defined(one), np.asarray(one.inside)
        for here, color in (
            (defined & inside, "C0"),
            (defined & ~inside, "C1"),
        ):
            axes.vlines(
                observed[here], lower[here], upper[here], color=color, alpha=0.5
            )
            axes.plot(observed[here], mean[here], ".", color=color, markersize=3)
        ends = [observed[defined].min(), observed[defined].max()]
        axes.plot(ends, ends, color="0.5", linewidth=1)
        scale = "symlog" if name in ("mean", "variance") else "linear"
        axes.set(title=name, xlabel="test set", ylabel="model")
        axes.set(xscale=scale, yscale=scale)
    for axes in panels[len(shown) :]:
        axes.remove()
    return figure
