"""Every diagnostic of a trained run, with error bars.

    python -m experiments.evaluate runs/mnist/digits-1234abcd

Is the posterior collapsed (active units, KL of each unit, mutual information)? What is
log p(x) really (importance sampling, annealing from both sides), and how much of log
p(x) - ELBO is the family's fault, how much the encoder's? Would a prior fitted to the
codes make better samples? Always at beta = 1, on the run's own test set. A minute on
two cores for the digits, some minutes for MNIST.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import tyro

import vae_jax
from experiments import (
    calibration,
    choices,
    diagnostics,
    evaluation_data,
    mnist,
    predictive,
)
from experiments.choices import labels_of
from experiments.evaluation import (
    active_of,
    active_units,
    counts_of,
    elbo_figures,
    evaluation_keys,
    evidence_warnings,
    has_density,
    importance_weighted_figures,
    pareto_k_row,
)
from experiments.figures import are_pixels, draw_grid, draw_samples
from experiments.runner import flags, run_folder
from experiments.runner.command_line import execute, parse, say
from experiments.runner.report import columns, mean_of, measured, save_figure
from vae_jax import exact
from vae_jax.types import Array, Labels


@dataclass(frozen=True)
class Config:
    """Evaluate a trained run; evaluation.json and figures go to its folder."""

    run_folder: tyro.conf.Positional[str]
    """The folder of a run of experiments.mnist, or of a sweep."""
    model: int | None = None
    """Number of a sweep's model, by default the one with the highest validation ELBO; \
results go to its model-<number> folder."""
    trust: bool = False
    """Import the classes outside vae_jax that the run names, which runs the code of \
their modules."""
    dataset: str | None = None
    """The data of a folder that vae_jax.save_run wrote, a name or a file; levels of \
grey are seen in [0, 1], and drawn as bits for a Bernoulli likelihood."""
    columns: str | None = None
    """What the columns of that data set hold, covariates among them, as --columns of \
experiments.mnist."""
    exposure: Literal["none", "row_total"] = "none"
    """Exposure of the rows of that data set, for a model that takes one."""
    data_dir: str | None = None
    """Folder of data files; by default the run's."""
    which: Literal["last", "best"] = "last"
    """The last model of a run, or the best one on validation data; a sweep keeps only \
its last models."""
    step: int | None = None
    """The checkpoint in place of the last."""
    evaluation_samples: flags.Count = 1000
    """Importance samples an image for log p(x)."""
    num_aggregate: flags.Several = 2000
    """Test examples that make up the aggregate posterior."""
    num_gap: flags.Count = 100
    """Test examples whose own best q is sought."""
    gap_steps: flags.Count = 500
    """Steps of that search."""
    num_annealed: flags.Natural = 10
    """Test examples, and as many simulated ones, for annealing; 0 leaves it out."""
    num_temperatures: flags.Several = 300
    """Temperatures of annealing."""
    fitted_components: flags.Natural = 10
    """Gaussians of a prior fitted to the codes of the training set; 0 leaves it out."""
    num_simulated: flags.Natural = 1000
    """Simulated observations for the calibration of q(z|x); 0 leaves it out."""


USED_BY: dict[str, flags.Conditions] = {
    "num_temperatures": [{"num_annealed": flags.Other([0])}]
}


def evaluate(
    params: vae_jax.Params, x: Array, labels: Labels, config: Config
) -> dict[str, Any]:
    """Every figure that the model has; None where one does not exist for it."""
    keys = evaluation_keys()
    given = labels_of(params, labels, x)
    elbo = elbo_figures(params, x, labels)
    figures: dict[str, Any] = {
        "elbo": elbo["elbo"],
        "rate": elbo["kl_divergence"],
        "distortion": -elbo["log_likelihood"],
        **importance_weighted_figures(
            params, x, labels, num_samples=config.evaluation_samples
        ),
    }
    units = active_units(params, x, labels)
    figures["active_units"] = counts_of(units, x)["active_units"]
    figures["unit_variance"] = np.asarray(units.variance).tolist()
    figures["unit_variance_standard_error"] = np.asarray(units.standard_error).tolist()
    figures["unit_kl"] = _if_defined(
        "the KL of each unit", jax.jit(vae_jax.kl_per_unit), params, x, **given
    )
    aggregate = _if_defined(
        "the aggregate posterior",
        jax.jit(vae_jax.aggregate_posterior),
        params,
        x[: config.num_aggregate],
        keys.aggregate,
    )
    figures["aggregate_posterior"] = aggregate
    gap = jax.jit(partial(vae_jax.inference_gap, num_steps=config.gap_steps))
    first = jax.tree.map(lambda value: value[: config.num_gap], given)
    examples = x[: config.num_gap]
    gap = _if_defined("the inference gap", gap, params, examples, keys.gap, **first)
    figures["inference_gap"] = gap and {name: mean_of(gap[name]) for name in gap}
    figures["annealing"] = _annealing(params, x, keys.noise, config)
    standard = isinstance(params.spec.prior, vae_jax.StandardNormal)
    if params.spec.latent_dim <= 2 and standard and not given:
        integral = jax.jit(exact.quadrature_log_evidence)(params, x[: config.num_gap])
        figures["quadrature_log_evidence"] = mean_of(integral.estimate)
        figures["quadrature_error"] = float(np.max(integral.error))
    return figures


def _annealing(
    params: vae_jax.Params, x: Array, key: Array, config: Config
) -> dict[str, Any] | None:
    """Log p(x) from below of test images, and from both sides of simulated ones."""
    if not config.num_annealed:
        return None
    settings = {"num_temperatures": config.num_temperatures}
    forward = jax.jit(partial(vae_jax.annealed_log_evidence, **settings))
    both = jax.jit(
        partial(
            vae_jax.bidirectional_log_evidence,
            num_examples=config.num_annealed,
            **settings,
        )
    )
    examples = x[: config.num_annealed]
    found = _if_defined("annealing", forward, params, examples, key)
    if found is None:
        return None
    simulated = _if_defined("annealing from both sides", both, params, key)
    if simulated is None:
        return None
    names = ("lower", "upper", "gap")
    return {
        "estimate": mean_of(found["estimate"]),
        "acceptance_rate": float(np.mean(found["acceptance_rate"])),
        "simulated": {name: mean_of(simulated[name]) for name in names},
    }


def fitted_prior(
    params: vae_jax.Params,
    run_data: evaluation_data.RunData,
    config: Config,
    folder: Path,
) -> dict[str, Any] | None:
    """The ELBO under a prior fitted to the codes, and a picture of its samples."""
    posterior = params.spec.posterior
    # Gaussians are fitted to one layer of real numbers.
    suits = posterior.latent_space == "real" and posterior.layers is None
    if not (config.fitted_components and suits):
        return None
    fit_key, draw_key = jax.random.split(evaluation_keys().fitted_prior)
    num_components = min(config.fitted_components, len(run_data.train))
    fitted = vae_jax.fit_mixture_prior(
        params,
        run_data.train,
        fit_key,
        num_components=num_components,
        **labels_of(params, run_data.train_labels),
    )
    draw = partial(
        draw_grid, dataset_name="fitted prior", data_shape=params.spec.data_shape
    )
    note = f", a mixture of {num_components} Gaussians fitted to the codes"
    if are_pixels(params, np.asarray(run_data.test)):
        picture = draw_samples(draw, fitted, draw_key, note)
        save_figure(picture, folder, "samples_fitted_prior")
    if not has_density(params, run_data.test, run_data.test_labels):
        return {"elbo": None, "kl_divergence": None}
    figures = elbo_figures(fitted, run_data.test, run_data.test_labels)
    return {name: figures[name] for name in ("elbo", "kl_divergence")}


def _if_defined(name: str, function, *arguments, **named) -> Any:
    """Compute a figure as lists and numbers; say why if the model has none."""
    try:
        found = function(*arguments, **named)
    except ValueError as error:
        say(f"{name} is left out: {error}")
        return None
    if hasattr(found, "_asdict"):
        return {
            name: np.asarray(value).tolist() for name, value in found._asdict().items()
        }
    return np.asarray(found).tolist()


def table(figures: dict[str, Any], config: Config) -> str:
    """The figures for a screen, in nats an image."""
    shown = partial(measured, digits=3)
    aggregate, gap = figures["aggregate_posterior"], figures["inference_gap"]
    annealing, fitted = figures["annealing"], figures["fitted_prior"]
    evidence = (
        figures[f"importance_weighted_{name}"]
        for name in ("log_likelihood", "standard_error")
    )
    units = active_of(figures["active_units"], len(figures["unit_variance"]))
    rows = [
        ("ELBO", shown(figures["elbo"])),
        ("  distortion, -E_q log p(x|z)", shown(figures["distortion"])),
        ("  rate, KL(q(z|x) || p(z))", shown(figures["rate"])),
        (f"log p(x), {config.evaluation_samples} samples", shown(*evidence)),
        *pareto_k_row(figures),
        ("active units, Var E[z|x] > 0.01", units),
    ]
    if aggregate is not None:
        information, kl = (
            shown(aggregate[name], aggregate[f"{name}_standard_error"])
            for name in ("mutual_information", "kl_to_prior")
        )
        bound = f" (log of the number of examples: {aggregate['upper_bound']:.3f})"
        rows += [
            ("mutual information of x and z", information + bound),
            ("KL(aggregate posterior || prior)", kl),
        ]
    means = []
    if gap is not None:
        label = f"of the first {config.num_gap}: log p(x), by best q"
        means += [
            (label, gap["log_evidence"]),
            ("  approximation gap", gap["approximation_gap"]),
            ("  amortization gap", gap["amortization_gap"]),
        ]
    if annealing is not None:
        simulated = annealing["simulated"]
        name = f"of the first {config.num_annealed}: log p(x) by annealing, from below"
        means += [
            (name, annealing["estimate"]),
            ("of as many simulated: from below", simulated["lower"]),
            ("  from above", simulated["upper"]),
            ("  gap, a bound on the error", simulated["gap"]),
        ]
    if "quadrature_log_evidence" in figures:
        value = shown(*figures["quadrature_log_evidence"].values())
        error = f" (grid error {figures['quadrature_error']:.1g})"
        label = f"of the first {config.num_gap}: log p(x) by quadrature"
        rows.append((label, value + error))
    rows += [(label, shown(*mean.values())) for label, mean in means]
    if fitted is not None and fitted["elbo"] is not None:
        rows.append(("ELBO with a prior fitted to the codes", shown(fitted["elbo"])))
    if figures["calibration"] is not None:
        rows.append(calibration.row(figures["calibration"]))
    if figures.get("posterior_predictive") is not None:
        rows += predictive.rows(figures["posterior_predictive"])
    return "\n".join([columns(rows), *warnings(figures)])


def warnings(figures: dict[str, Any]) -> list[str]:
    """Warnings about figures that are unreliable, and remedies."""
    found = evidence_warnings(figures)
    gap = figures.get("inference_gap")
    if gap is not None and not gap["converged"]["mean"] == 1:
        found.append(
            f"warning: the best q was not found for {1 - gap['converged']['mean']:.0%} "
            "of the examples: their approximation gap is too large and their "
            "amortization gap too small; raise --gap_steps"
        )
    error = figures.get("quadrature_error", 0.0)
    if not error <= exact.MAX_QUADRATURE_ERROR:
        found.append(
            f"warning: quadrature is off by up to {error:.1g} nats on some example: "
            "p(z|x) is narrower than the grid or reaches beyond it"
        )
    return found


def _check_folder(config: Config) -> None:
    """Raise ValueError for flags that do not suit this folder."""
    folder = config.run_folder
    if config.which == "best" and evaluation_data.is_sweep(Path(folder)):
        raise ValueError(
            f"--which=best is of a single run: the sweep in {folder} keeps its last "
            "models alone, so leave out --which"
        )
    if config.dataset and (Path(folder) / "config.json").exists():
        raise ValueError(
            f"--dataset is for a folder of vae_jax.save_run, and {folder} holds a "
            "config.json that names its data: for other data, evaluate a copy made by "
            f"save_run(COPY, load_run({folder!r}))"
        )
    for name in ("columns", "exposure"):
        if not config.dataset and getattr(config, name) != getattr(Config, name):
            raise ValueError(
                f"--{name} describes the data that --dataset names; those of a run are "
                "known from its config.json"
            )


def run(config: Config) -> dict[str, Any]:
    """Evaluate a run, print the figures, and write them to its folder.

    Args:
      config: what to evaluate.

    Returns:
      The content of evaluation.json.

    Raises:
      ValueError: the folder holds no run, its data have changed, or a flag is invalid.
    """
    flags.check(config)
    flags.refuse_ignored([config], USED_BY)
    _check_folder(config)
    trained, found = None, None
    if not config.dataset:
        if config.model is None:
            best = evaluation_data.best_model(Path(config.run_folder))
            config = replace(config, model=best)
        trained, found = evaluation_data.of_run(
            config.run_folder, model=config.model, data_dir=config.data_dir
        )
    params = vae_jax.load_run(
        config.run_folder,
        which=config.which,
        step=config.step,
        model=config.model,
        trust=config.trust,
    )
    run_data = found or evaluation_data.of_dataset(
        str(config.dataset),
        params.spec,
        data_dir=config.data_dir,
        columns=config.columns,
        exposure=config.exposure,
    )
    x = run_data.test
    config = replace(
        config,
        num_gap=min(config.num_gap, len(x)),
        num_annealed=min(config.num_annealed, len(x)),
    )
    folder = Path(config.run_folder)
    with run_folder.locked(folder):
        if config.model is not None:
            folder = folder / f"model-{config.model}"
        which = config.which if config.step is None else None
        figures: dict[str, Any] = {"which": which, "step": config.step}
        figures |= evaluate(params, x, run_data.test_labels, config)
        figures["fitted_prior"] = fitted_prior(
            params, run_data, config, folder / "figures"
        )
        calibrated = calibration.calibration_figures(
            params,
            evaluation_keys().calibration,
            num_simulated=config.num_simulated,
        )
        figures["calibration"] = calibrated
        if calibrated is not None:
            picture = calibration.draw(calibrated)
            save_figure(picture, folder / "figures", "calibration")
        checked = predictive.predictive_figures(
            params, x, run_data.test_labels, evaluation_keys().predictive
        )
        figures["posterior_predictive"] = checked
        if checked is not None:
            picture = predictive.draw(checked)
            save_figure(picture, folder / "figures", "posterior_predictive")
        told = f", step {config.step}" if which is None else _OF_EPOCH[which]
        title = f"{headline(config, trained)}{told}, {len(x)} test examples"
        save_figure(diagnostics.draw(figures, title), folder / "figures", "diagnostics")
        run_folder.write_json(folder / "evaluation.json", figures)
    print(f"{title}\n{table(figures, config)}")
    return figures


_OF_EPOCH = {"last": "", "best": ", the best on validation data"}


def headline(config: Config, trained: mnist.Config | None) -> str:
    """The data and the objective of a run, for a title."""
    if trained is None:
        return f"{config.dataset}: trained by a script"
    told, model = choices.set_of_objective(trained), ""
    is_plain = trained.objective == "elbo" and "beta" in told
    if config.model is not None:
        model = f", model {config.model}"
        swept = (*evaluation_data.swept(config.run_folder), "seed")
        told |= {name: getattr(trained, name) for name in swept}
    parts = [] if is_plain else [trained.objective]
    parts += [
        f"{name} {value}" if isinstance(value, str) else f"{name} {value:g}"
        for name, value in told.items()
    ]
    return f"{trained.dataset}{model}: {', '.join(parts)}"


def main(argv: Sequence[str] | None = None) -> None:
    """The command, with these arguments or those of the process."""
    execute(run, parse(Config, argv, command="python -m experiments.evaluate"))


if __name__ == "__main__":
    main()
