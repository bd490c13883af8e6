"""Table and figures of `experiments.sweep`."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.evaluation import collapse_warning
from experiments.runner.report import columns, mean_of, measured, save_figure
from experiments.style import styled

MEASURES = (
    "validation_elbo",
    "test_elbo",
    "rate",
    "distortion",
    "active_units",
    "log_evidence",
)
ROWS_SHOWN = 20
Row = dict[str, Any]


def over_seeds(rows: Sequence[Row], swept: Sequence[str]) -> list[Row]:
    """Mean and standard error of each setting over its finite models.

    Args:
      rows: one row per model, with its settings and measures.
      swept: names of the swept settings.

    Returns:
      One row per setting, in the order of the models. A measure is a mapping with
      `mean` and `standard_error`, each None if undefined.
    """
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in swept), []).append(row)
    return [
        dict(zip(swept, chosen, strict=True))
        | {"num_models": len(group), "num_finite": sum(row["finite"] for row in group)}
        | {name: _mean(group, name) for name in MEASURES}
        for chosen, group in groups.items()
    ]


def _mean(group: Sequence[Row], name: str) -> dict[str, float | None]:
    values = [row[name] for row in group if row["finite"] and row[name] is not None]
    found: dict[str, float | None] = (
        dict(mean_of(values)) if values else {"mean": None, "standard_error": None}
    )
    return found if len(values) > 1 else found | {"standard_error": None}


def not_finite(rows: Sequence[Row], metrics: Sequence[Row]) -> list[dict[str, int]]:
    """Models that are not finite, and the first epoch with a non-finite ELBO.

    Args:
      rows: one row per model.
      metrics: rows of metrics.jsonl.

    Returns:
      `model` and `epoch` of each; `epoch` is None if every logged ELBO is finite.
    """
    found = []
    for model, row in enumerate(rows):
        if row["finite"]:
            continue
        bad = [
            line["epoch"]
            for line in metrics
            if line["split"] == "train" and line["elbo"][model] is None
        ]
        found.append({"model": model, "epoch": min(bad, default=None)})
    return found


def collapsed(rows: Sequence[Row]) -> list[int]:
    """Indices of the finite models without an active unit."""
    return [
        number
        for number, row in enumerate(rows)
        if row["finite"] and row["active_units"] == 0
    ]


def table(results: dict[str, Any], folder: os.PathLike, *, remedies: str) -> str:
    """Format the settings as a table, best first with validation data, with remarks.

    Args:
      results: content of results.json.
      folder: folder of the sweep.
      remedies: flags to change if a posterior collapsed.

    Returns:
      Lines of text.
    """
    swept = results["swept"]
    ranked = sorted(results["settings"], key=_rank, reverse=True)
    measures = [
        name
        for name in MEASURES
        if any(row[name]["mean"] is not None for row in ranked)
    ]
    rows = [[*swept, *(name.replace("_", " ") for name in measures)]]
    for row in ranked[:ROWS_SHOWN]:
        cells = [measured(*row[name].values()) for name in measures]
        rows.append([f"{row[name]:g}" for name in swept] + cells)
    lines = [columns(rows, ">")]
    if len(ranked) > ROWS_SHOWN:
        lines.append(f"... {len(ranked) - ROWS_SHOWN} more in results.json")
    best = best_model(results["models"])
    if best is not None:
        model = results["models"][best]
        lines.append(
            f"best validation ELBO: model {best}, {describe(model, swept)}; its test "
            f"ELBO {model['test_elbo']:.2f}"
        )
    elif "validation_elbo" not in measures:
        lines.append(
            "in the order of the flags: without validation data (--validation=N) no "
            "model is chosen, and none on the test set"
        )
    for bad in results["not_finite"]:
        model = results["models"][bad["model"]]
        # The last step may break a model whose every logged ELBO is finite.
        since = "at the end" if bad["epoch"] is None else f"since epoch {bad['epoch']}"
        told = f"{describe(model, swept)}, is not finite {since}"
        lines.append(f"WARNING: model {bad['model']}, {told}")
    if results["collapsed"]:
        models = "; ".join(
            f"model {number}, {describe(results['models'][number], swept)}"
            for number in results["collapsed"]
        )
        lines.append(collapse_warning(f"of the models, {models}: have", remedies))
    speed = results["images_per_second"]
    if speed is not None:
        lines.append(
            f"{speed:,.0f} examples/s over all {len(results['models'])} models"
        )
    return "\n".join([*lines, f"files: {folder}"])


def best_model(models: Sequence[Row]) -> int | None:
    """Index of the finite model with the highest validation ELBO; None without one."""
    finite = [
        number
        for number, model in enumerate(models)
        if model["finite"] and np.isfinite(model["validation_elbo"] or np.nan)
    ]
    return max(
        finite, key=lambda number: models[number]["validation_elbo"], default=None
    )


def describe(model: Row, swept: Sequence[str]) -> str:
    """Describe the settings of a model: `beta 0.3, seed 2`."""
    return ", ".join(f"{name} {model[name]:g}" for name in (*swept, "seed"))


def _rank(row: Row) -> float:
    # Equal for all without validation data, and sorting keeps their order.
    mean = row["validation_elbo"]["mean"]
    return -math.inf if mean is None else mean


def draw_all(folder: Path, results: dict[str, Any], metrics: Sequence[Row]) -> None:
    """Draw the figures of a sweep into `folder`, which is created if absent.

    Args:
      folder: folder of the figures.
      results: content of results.json.
      metrics: rows of metrics.jsonl.
    """
    figures = {
        "rate_distortion": draw_rate_distortion(results),
        "training_curves": draw_training_curves(results, metrics),
    }
    for name, figure in figures.items():
        save_figure(figure, folder, name)


@styled()
def draw_rate_distortion(results: dict[str, Any]) -> Figure:
    """Draw distortion against rate, one point per setting, with errors over seeds."""
    rows = [row for row in results["settings"] if row["rate"]["mean"] is not None]
    figure = Figure((8, 5.2))
    axes = figure.subplots()
    for row, color in zip(rows, _colors(len(rows)), strict=True):
        axes.errorbar(
            row["rate"]["mean"],
            row["distortion"]["mean"],
            xerr=row["rate"]["standard_error"],
            yerr=row["distortion"]["standard_error"],
            fmt="o",
            color=color,
            capsize=3,
            label=_label(row, results["swept"]),
        )
    if len(results["swept"]) == 1:
        points = [
            [row[name]["mean"] for row in rows] for name in ("rate", "distortion")
        ]
        axes.plot(*points, color="0.5", linewidth=1, zorder=1)
    axes.grid(visible=False)
    _draw_equal_elbo(axes)
    seeds = max((row["num_models"] for row in rows), default=0)
    axes.set(
        title=f"{results['dataset']}: rate and distortion of the test set\n"
        f"(mean and standard error over {seeds} seeds; grey: equal ELBO)",
        xlabel="rate KL(q(z|x) || p(z)), nats per example",
        ylabel="distortion -E log p(x|z), nats per example",
    )
    _add_legend(axes, len(rows))
    return figure


def _draw_equal_elbo(axes) -> None:
    """Draw lines of constant rate + distortion."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    for total in np.linspace(left + low, right + high, 9)[1:-1]:
        axes.plot(
            [left, right],
            [total - left, total - right],
            color="0.85",
            linewidth=1,
            zorder=0,
        )
    axes.set(xlim=(left, right), ylim=(low, high))


@styled()
def draw_training_curves(results: dict[str, Any], metrics: Sequence[Row]) -> Figure:
    """Draw the ELBO of every model by epoch, on validation data if there are any."""
    figure = Figure((8, 5.2))
    axes = figure.subplots()
    rows, swept = results["settings"], results["swept"]
    numbers = {_label(row, swept): number for number, row in enumerate(rows)}
    colors, named = _colors(len(rows)), set()
    test = [row for row in metrics if row["split"] != "train"]
    epochs = [row["epoch"] for row in test]
    split = test[0]["split"] if test else "test"
    for number, model in enumerate(results["models"]):
        label = _label(model, swept)
        values = np.array([row["elbo"][number] for row in test], float)
        axes.plot(
            epochs,
            values,
            color=colors[numbers[label]],
            label=None if label in named else label,
            linewidth=1,
            marker="." if len(epochs) < 3 else None,
        )
        named.add(label)
    axes.set(
        title=f"{results['dataset']}: {split} ELBO of {len(results['models'])} models",
        xlabel="epoch",
        ylabel="ELBO at beta 1, nats per example",
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    late = np.array([row["elbo"] for row in test[len(test) // 10 :]], float)
    late = late[np.isfinite(late)]
    if late.size and np.ptp(late) > 0:
        margin = 0.05 * np.ptp(late)
        axes.set_ylim(late.min() - margin, late.max() + margin)
    _add_legend(axes, len(rows))
    return figure


def _label(row: Row, swept: Sequence[str]) -> str:
    return ", ".join(f"{name} {row[name]:g}" for name in swept)


def _colors(count: int) -> np.ndarray:
    return colormaps["viridis"](np.linspace(0, 0.88, max(count, 1)))[:count]


def _add_legend(axes, count: int) -> None:
    """Add a legend next to the axes, unless it would be too long."""
    if 0 < count <= ROWS_SHOWN:
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
