"""Figures: variance against k, samples and cost; training curves."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.runner.report import save_figure

DPI = 130
Rows = list[dict[str, Any]]
STYLES = {
    "reparameterization": ("tab:blue", "reparameterization"),
    "path_derivative": ("tab:cyan", "path derivative"),
    "doubly_reparameterized": ("tab:cyan", "doubly reparameterized"),
    "score_function": ("tab:red", "score function"),
    "constant_baseline": ("tab:orange", "score function, baseline E f"),
    "mean_baseline": ("tab:orange", "score function, mean baseline"),
    "optimal_baseline": ("tab:brown", "score function, optimal baseline"),
    "optimal_constant": ("tab:brown", "score function, optimal constant"),
    "leave_one_out": ("tab:purple", "score function, leave one out"),
    "delta_control_variate": ("tab:pink", "delta control variate"),
    "measure_valued": ("tab:green", "measure-valued"),
    "measure_valued_uncoupled": ("tab:olive", "measure-valued, uncoupled"),
    "arm": ("tab:olive", "ARM"),
    "disarm": ("tab:green", "DisARM"),
    "rebar": ("tab:blue", "REBAR"),
    "gumbel_softmax": ("0.45", "Gumbel-softmax (biased)"),
    "straight_through": ("0.7", "straight-through (biased)"),
}


save = partial(save_figure, dpi=DPI)


def variance_against_k(
    curves: dict[str, dict[str, Any]], *, mu: float, sigma: float
) -> Figure:
    """Draw the variance of d/d mu against k: exact lines and measured points."""
    figure = Figure((4.4 * len(curves), 4.2), layout="constrained")
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    titles = {
        "quadratic": "f(x) = (x - k)²",
        "exponential": "f(x) = exp(-k x²)",
        "cos": "f(x) = cos(k x)",
    }
    for axes, (integrand, content) in zip(panels, curves.items(), strict=True):
        for name, lines in content["lines"].items():
            color, label = STYLES[name]
            axes.plot(content["k"], lines["exact"], color=color, label=label)
            axes.errorbar(
                content["measured_k"],
                lines["variance"],
                yerr=lines["error"],
                fmt="o",
                markersize=4,
                color=color,
            )
        axes.set_title(titles[integrand])
        axes.set_xlabel("k")
        axes.set_yscale("log")
        if min(content["k"]) > 0:
            axes.set_xscale("log")
    panels[0].set_ylabel("variance of d/dμ, one sample")
    panels[0].legend(fontsize=8, title="lines exact, points measured")
    figure.suptitle(f"Gradient of E f(x), x ~ N({mu:g}, {sigma:g}²)")
    return figure


def variance_against_samples(rows: Rows, stages: Iterable[str], title: str) -> Figure:
    """Draw variances: a column per stage, equal samples above, equal cost below."""
    stages = list(stages)
    figure = Figure((4.4 * len(stages), 7.6), layout="constrained")
    panels = figure.subplots(2, len(stages), sharex="col", sharey="row", squeeze=False)
    quantities = (
        ("variance", "sum of variances over the encoder"),
        ("cost_adjusted_variance", "the same times seconds a draw"),
    )
    for column, stage in enumerate(stages):
        for (quantity, label), axes in zip(quantities, panels[:, column], strict=True):
            for name in dict.fromkeys(row["estimator"] for row in rows):
                points = [
                    (row["num_samples"], row[quantity])
                    for row in rows
                    if (row["estimator"], row["stage"]) == (name, stage)
                ]
                if not points or name not in STYLES:
                    continue
                color, text = STYLES[name]
                counts, values = zip(*points, strict=True)
                axes.loglog(counts, values, "o-", color=color, label=text, markersize=4)
            if column == 0:
                axes.set_ylabel(label)
        panels[0, column].set_title(stage)
        panels[1, column].set_xlabel("samples of an estimate")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=8)
    figure.suptitle(title)
    return figure


def training_curves(curves: dict[str, dict[str, list[float]]], title: str) -> Figure:
    """Draw the test ELBO after each epoch: a panel per model, a line per estimator."""
    figure = Figure((5.2 * len(curves), 4), layout="constrained")
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    for axes, (model, lines) in zip(panels, curves.items(), strict=True):
        for name, values in lines.items():
            color, label = STYLES[name]
            marker = "o-" if len(values) < 20 else "-"
            axes.plot(range(len(values)), values, marker, color=color, label=label)
        axes.set_title(model)
        axes.set_xlabel("epochs")
        axes.legend(fontsize=8)
    panels[0].set_ylabel("test ELBO, nats an image")
    figure.suptitle(title)
    return figure


def signal_to_noise(rows: Rows, slopes: dict[tuple[str, str], float]) -> Figure:
    """Draw the ratio against importance samples, with fitted slopes in the legend."""
    figure = Figure((6, 4.6), layout="constrained")
    axes = figure.subplots()
    for (group, name), slope in slopes.items():
        points = np.array(
            [
                (row["num_samples"], row["signal_to_noise"])
                for row in rows
                if (row["parameters"], row["estimator"]) == (group, name)
            ]
        )
        color, label = STYLES[name]
        style = "o--" if group == "generative" else "o-"
        text = f"{group} parameters, {label}: slope {slope:+.2f}"
        axes.loglog(*points.T, style, color=color, label=text, markersize=4)
    axes.set_xlabel("importance samples K")
    axes.set_ylabel("signal-to-noise ratio of the gradient")
    axes.set_title("A tighter bound, and the gradients that it gives")
    figure.legend(loc="outside lower center", fontsize=8)
    return figure


def logistic_curves(curves: dict[str, Any]) -> Figure:
    """Draw the ELBO against steps, one line per estimator."""
    figure = Figure((6, 4), layout="constrained")
    axes = figure.subplots()
    for name, curve in curves.items():
        color, label = STYLES[name]
        axes.plot(curve.steps, curve.elbo, color=color, label=label)
    axes.set_xlabel("steps")
    axes.set_ylabel("ELBO of all examples, nats")
    axes.set_title("Bayesian logistic regression, breast cancer")
    axes.legend(fontsize=8)
    return figure
