"""Everything that can be asked of a trained run, with error bars.

    python -m experiments.evaluate runs/mnist/digits-1234abcd

Is the posterior collapsed (active units, KL of each unit, mutual information)? What is
log p(x) really, and how much of log p(x) - ELBO is the family's fault, how much the
encoder's? Always at beta = 1, on the run's own test set. Half a minute on two cores for
the digits, some minutes for MNIST.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from matplotlib.figure import Figure

import vae_jax
from experiments import mnist, run_folder
from experiments.command_line import execute, parse
from experiments.evaluation_report import (
    elbo_figures,
    evaluation_keys,
    importance_weighted_figures,
)
from vae_jax import data, exact
from vae_jax.types import Array


@dataclass(frozen=True)
class Config:
    """Evaluate a trained run; evaluation.json and figures go to its folder."""

    run_folder: tyro.conf.Positional[str]
    """The folder of a run of experiments.mnist."""
    data_dir: str | None = None
    """Where the data lie; by default where the run found them."""
    step: int | None = None
    """The checkpoint; by default the newest."""
    evaluation_samples: int = 1000
    """Importance samples an image for log p(x)."""
    num_aggregate: int = 2000
    """Test images that make up the aggregate posterior."""
    num_gap: int = 100
    """Test images whose own best q is sought."""
    gap_steps: int = 500
    """Steps of that search."""


def check(config: Config) -> None:
    """Refuses values that leave nothing to evaluate.

    Raises:
      ValueError: names the flag, its value and what was expected.
    """
    for name, least in (
        ("evaluation_samples", 1),
        ("num_aggregate", 2),
        ("num_gap", 1),
        ("gap_steps", 1),
    ):
        value = getattr(config, name)
        if value < least:
            raise ValueError(f"--{name} must be at least {least}, got {value}")


def load_test_set(config: Config) -> tuple[mnist.Config, Array]:
    """The run's configuration and its test set, `[n, D]`, as it was evaluated.

    Raises:
      ValueError: no run there, or its data are not those that it was trained on.
    """
    path = Path(config.run_folder) / "config.json"
    if not path.exists():
        raise ValueError(f"{config.run_folder} holds no config.json of a run")
    found = json.loads(path.read_text())
    names = {field.name for field in fields(mnist.Config)}
    known = {name: value for name, value in found.items() if name in names}
    known["hidden_dims"] = tuple(known["hidden_dims"])
    trained = mnist.Config(**known)
    original = data.load(trained.dataset, data_dir=config.data_dir or trained.data_dir)
    if mnist.data_digest(original) != found["data_sha256"]:
        raise ValueError(
            f"the {trained.dataset} data found are not those of the run in "
            f"{config.run_folder}"
        )
    dataset = mnist.binarized(trained, original)
    x = data.to_unit_interval(jnp.asarray(dataset.test), dataset.num_levels)
    return trained, x


def evaluate(params: vae_jax.Params, x: Array, config: Config) -> dict[str, Any]:
    """Every figure that the model has; None where one does not exist for it."""
    aggregate_key, gap_key = jax.random.split(evaluation_keys().evidence)
    elbo = elbo_figures(params, x)
    figures: dict[str, Any] = {
        "elbo": elbo["elbo"],
        "rate": elbo["kl_divergence"],
        "distortion": -elbo["log_likelihood"],
        **importance_weighted_figures(params, x, num_samples=config.evaluation_samples),
    }
    units = jax.jit(vae_jax.active_units)(params, x)
    figures["active_units"] = int(units.count)
    figures["unit_variance"] = np.asarray(units.variance).tolist()
    figures["unit_kl"] = _if_defined(jax.jit(vae_jax.kl_per_unit), params, x)
    aggregate = _if_defined(
        jax.jit(vae_jax.aggregate_posterior),
        params,
        x[: config.num_aggregate],
        aggregate_key,
    )
    figures["aggregate_posterior"] = aggregate
    gap = jax.jit(partial(vae_jax.inference_gap, num_steps=config.gap_steps))
    figures["inference_gap"] = _means(
        _if_defined(gap, params, x[: config.num_gap], gap_key)
    )
    if params.spec.latent_dim <= 2 and isinstance(
        params.spec.prior, vae_jax.StandardNormal
    ):
        integral = jax.jit(exact.quadrature_log_evidence)(params, x[: config.num_gap])
        figures["quadrature_log_evidence"] = _mean(np.asarray(integral.estimate))
        figures["quadrature_error"] = float(np.max(integral.error))
    return figures


def _if_defined(function, *arguments) -> Any:
    """The figure as lists and numbers, or None for a model that has none."""
    try:
        found = function(*arguments)
    except ValueError:
        return None
    if hasattr(found, "_asdict"):
        return {
            name: np.asarray(value).tolist() for name, value in found._asdict().items()
        }
    return np.asarray(found).tolist()


def _means(gap: dict[str, list[float]] | None) -> dict[str, Any] | None:
    return gap and {name: _mean(np.asarray(value)) for name, value in gap.items()}


def _mean(values: np.ndarray) -> dict[str, float]:
    """Of figures an image, with the standard error over images."""
    spread = values.std(ddof=1) if len(values) > 1 else math.nan
    error = spread / math.sqrt(len(values))
    return {"mean": float(values.mean()), "standard_error": float(error)}


def table(figures: dict[str, Any], config: Config) -> str:
    """The figures for a screen, in nats an image."""

    def measured(value: float | None, error: float | None = None) -> str:
        if value is None:
            return "undefined"
        return f"{value:.3f}" + ("" if error is None else f" +- {error:.3f}")

    rows = [
        ("ELBO", measured(figures["elbo"])),
        ("  distortion, -E_q log p(x|z)", measured(figures["distortion"])),
        ("  rate, KL(q(z|x) || p(z))", measured(figures["rate"])),
        (
            f"log p(x), {config.evaluation_samples} samples",
            measured(
                figures["importance_weighted_log_likelihood"],
                figures["importance_weighted_standard_error"],
            ),
        ),
        (
            "active units, Var E[z|x] > 0.01",
            f"{figures['active_units']} of {len(figures['unit_variance'])}",
        ),
    ]
    aggregate = figures["aggregate_posterior"]
    if aggregate is not None:
        bound = f" (log of the number of images: {aggregate['upper_bound']:.3f})"
        rows += [
            (
                "mutual information of x and z",
                measured(
                    aggregate["mutual_information"],
                    aggregate["mutual_information_standard_error"],
                )
                + bound,
            ),
            (
                "KL(aggregate posterior || prior)",
                measured(
                    aggregate["kl_to_prior"], aggregate["kl_to_prior_standard_error"]
                ),
            ),
        ]
    gap = figures["inference_gap"]
    if gap is not None:
        for label, name in (
            (f"of the first {config.num_gap}: log p(x), by best q", "log_evidence"),
            ("  approximation gap", "approximation_gap"),
            ("  amortization gap", "amortization_gap"),
        ):
            rows.append((label, measured(*_pair(gap, name))))
    if "quadrature_log_evidence" in figures:
        value = measured(*_pair(figures, "quadrature_log_evidence"))
        error = figures["quadrature_error"]
        rows.append(("  log p(x) by quadrature", f"{value} (grid error {error:.1g})"))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _pair(figures: dict[str, Any], name: str) -> tuple[float, float]:
    return figures[name]["mean"], figures[name]["standard_error"]


def draw(figures: dict[str, Any], title: str) -> Figure:
    """KL and variance of each unit, in falling order, and the parts of the gap."""
    figure = Figure((12, 4), dpi=130, layout="constrained")
    figure.suptitle(title)
    left, middle, right = figure.subplots(1, 3)
    variance = np.array(figures["unit_variance"])
    order = np.argsort(variance)[::-1]
    colors = np.where(variance[order] > 0.01, "tab:blue", "0.7")
    units = np.arange(1, len(order) + 1)
    left.bar(units, variance[order], color=colors)
    left.axhline(0.01, color="tab:red", linewidth=1)
    left.set(
        title=f"{figures['active_units']} active units (above the line)",
        xlabel="unit, in falling order",
        ylabel="variance over x of E[z|x]",
        yscale="log",
    )
    middle.set(title="KL of each unit", xlabel="the same order", ylabel="nats")
    if figures["unit_kl"] is not None:
        middle.bar(units, np.array(figures["unit_kl"])[order], color=colors)
    right.set(title="from the ELBO to log p(x)", ylabel="nats an image")
    gap = figures["inference_gap"]
    if gap is not None:
        names = ("amortization_gap", "approximation_gap")
        values, errors = zip(*(_pair(gap, name) for name in names), strict=True)
        labels = ["the encoder's\n(amortization)", "the family's\n(approximation)"]
        right.bar(labels, values, yerr=errors, capsize=4, color=["0.5", "tab:orange"])
    return figure


def run(config: Config) -> dict[str, Any]:
    """Evaluates, prints, and writes into the run's folder.

    Args:
      config: what to evaluate.

    Returns:
      What evaluation.json holds.

    Raises:
      ValueError: no run there, other data, or a value that no run can have.
    """
    check(config)
    trained, x = load_test_set(config)
    params = vae_jax.load_run(config.run_folder, step=config.step)
    folder = Path(config.run_folder)
    with run_folder.locked(folder):
        figures = evaluate(params, x, config)
        title = f"{trained.dataset}: beta {trained.beta:g}, {len(x)} test images"
        run_folder.write_json(folder / "evaluation.json", figures)
        (folder / "figures").mkdir(exist_ok=True)
        draw(figures, title).savefig(
            folder / "figures" / "diagnostics.png", metadata={"Software": None}
        )
    print(f"{title}\n{table(figures, config)}")
    return figures


def main(argv: Sequence[str] | None = None) -> None:
    """The command.

    Args:
      argv: its arguments; those of the process where None.
    """
    config = parse(Config, argv, command="python -m experiments.evaluate")
    execute(lambda: run(config))


if __name__ == "__main__":
    main()
