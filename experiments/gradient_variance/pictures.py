"""Figures: variance against k, samples and cost; training curves."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.style import add_title, styled

Rows = list[dict[str, Any]]
STYLES = {
    "reparameterization": ("C0", "reparameterization"),
    "path_derivative": ("C6", "path derivative"),
    "doubly_reparameterized": ("C6", "doubly reparameterized"),
    "score_function": ("C1", "score function"),
    "constant_baseline": ("C3", "score function, baseline E f"),
    "mean_baseline": ("C3", "score function, mean baseline"),
    "optimal_baseline": ("C7", "score function, optimal baseline"),
    "optimal_constant": ("C7", "score function, optimal constant"),
    "leave_one_out": ("C4", "score function, leave one out"),
    "delta_control_variate": ("C8", "delta control variate"),
    "measure_valued": ("C2", "measure-valued"),
    "measure_valued_uncoupled": ("C9", "measure-valued, uncoupled"),
    "arm": ("C9", "ARM"),
    "disarm": ("C2", "DisARM"),
    "rebar": ("C0", "REBAR"),
    "gumbel_softmax": ("0.45", "Gumbel-softmax (biased)"),
    "straight_through": ("0.7", "straight-through (biased)"),
}


@styled()
def variance_against_k(
    curves: dict[str, dict[str, Any]], *, mu: float, sigma: float
) -> Figure:
    """Draw the variance of d/d mu against k: exact lines and measured points."""
    figure = Figure((3.2 * len(curves), 3.6))
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
    handles, labels = panels[0].get_legend_handles_labels()
    title = "lines exact, points measured"
    figure.legend(handles, labels, title=title, loc="outside lower center", ncols=3)
    add_title(figure, f"Gradient of E f(x), x ~ N({mu:g}, {sigma:g}²)")
    return figure


@styled()
def variance_against_samples(rows: Rows, stages: Iterable[str], title: str) -> Figure:
    """Draw variances: a column per stage, equal samples above, equal cost below."""
    stages = list(stages)
    figure = Figure((3.2 * len(stages) + 2.4, 6.4))
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
    figure.legend(handles, labels, loc="outside right upper")
    add_title(figure, title)
    return figure


@styled()
def training_curves(curves: dict[str, dict[str, list[float]]], title: str) -> Figure:
    """Draw the test ELBO after each epoch: a panel per model, a line per estimator."""
    figure = Figure((4.4 * len(curves), 3.8))
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    for axes, (model, lines) in zip(panels, curves.items(), strict=True):
        for name, values in lines.items():
            color, label = STYLES[name]
            marker = "o-" if len(values) < 20 else "-"
            axes.plot(range(len(values)), values, marker, color=color, label=label)
        axes.set_title(model)
        axes.set_xlabel("epochs")
        axes.legend()
    panels[0].set_ylabel("test ELBO, nats an image")
    add_title(figure, title)
    return figure


@styled()
def signal_to_noise(rows: Rows, slopes: dict[tuple[str, str], float]) -> Figure:
    """Draw the ratio against importance samples, with fitted slopes in the legend."""
    figure = Figure((6, 4.6))
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
    figure.legend(loc="outside lower center")
    return figure


@styled()
def logistic_curves(curves: dict[str, Any]) -> Figure:
    """Draw the ELBO against steps, one line per estimator."""
    figure = Figure((6, 4))
    axes = figure.subplots()
    for name, curve in curves.items():
        color, label = STYLES[name]
        axes.plot(curve.steps, curve.elbo, color=color, label=label)
    axes.set_xlabel("steps")
    axes.set_ylabel("ELBO of all examples, nats")
    axes.set_title("Bayesian logistic regression, breast cancer")
    axes.legend()
    return figure
