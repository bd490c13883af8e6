"""Compare gradient estimators: score function, reparameterization, and others.

    python -m experiments.gradient_variance

runs four parts (`--part` selects one):
1. exact: mean and variance on known integrands, compared with exact values;
2. snr: signal-to-noise ratio of importance-weighted bounds (Rainforth et al. 2018);
3. logistic: Bayesian logistic regression, as in Mohamed et al. 2020;
4. vae: the encoder gradient of a VAE, at three stages of training.

The estimators are those of `vae_jax.estimators`; the exact variances of part 1 are in
`vae_jax.estimators.exact_variance`. On two cores parts 1 to 3 take about 1, 2 and 1
minutes; part vae takes 5 minutes on the 8x8 digits and 20 on MNIST.

Results with `--dataset=mnist`: the largest deviation of 100 means and 70 variances from
their exact values is 2.1 standard errors. The slopes of part snr are +0.50, -0.50 and
+0.46. After 5 epochs with 4 samples, the test ELBO is -106.2 nats with
reparameterization, -110.5 with leave-one-out and -145.3 with the plain score function.
The last line of the output gives the ratio of the encoder gradient's variances, score
function over reparameterization: 4827.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
from tqdm import tqdm

from experiments.gradient_variance import (
    exact,
    logistic_regression,
    pictures,
    signal_to_noise,
    vae,
)
from experiments.runner import flags, run_folder
from experiments.runner.command_line import execute, parse
from experiments.runner.report import columns, save_figure
from vae_jax import data, run_keys
from vae_jax.estimators import exact_variance

_FLAGS = {
    "exact": ("mu", "sigma", "k", "logit", "num_samples", "num_draws"),
    "snr": ("snr_draws",),
    "logistic": ("logistic_steps",),
    "vae": (
        "dataset",
        "data_dir",
        "epochs",
        "latent_dim",
        "num_bits",
        "hidden_dim",
        "batch_size",
        "sample_counts",
        "vae_draws",
    ),
}
USED_BY: dict[str, flags.Conditions] = {
    flag: [{"part": ("all", part)}] for part, names in _FLAGS.items() for flag in names
}


@dataclass(frozen=True)
class Config(flags.DataFlags):
    """Compare gradient estimators; write figures and results.json to the run folder."""

    part: Literal["all", "exact", "snr", "logistic", "vae"] = "all"
    """exact: known integrands; snr: importance-weighted bounds; logistic: Bayesian \
logistic regression; vae: the encoder of a VAE."""
    mu: flags.Finite = 1.0
    """Mean of the Gaussian in part exact."""
    sigma: flags.Positive = 1.5
    """Standard deviation of the Gaussian in part exact."""
    k: flags.Finite | None = None
    """Constant of the integrands (x - k)^2, exp(-k x^2), cos(k x); by default -3, 0.7 \
and 1.3."""
    logit: flags.Finite = 0.4
    """Logit of the Bernoulli variable in part exact."""
    num_samples: flags.Count = 1
    """Samples per estimate in part exact."""
    num_draws: flags.Several = 1_000_000
    """Gradients drawn for each estimator in part exact."""
    snr_draws: flags.Several = 1000
    """Gradients drawn for each number of importance samples in part snr."""
    logistic_steps: flags.Count = 5000
    """Training steps of part logistic."""
    epochs: flags.Count | None = None
    """Training epochs of part vae; by default about 2000 steps, at least 5 epochs."""
    latent_dim: flags.Count = 20
    """Gaussian latents of part vae."""
    num_bits: Annotated[flags.Count, flags.at_most(12)] = 8
    """Bernoulli latents of part vae; all values are enumerated, so at most 12."""
    hidden_dim: flags.Count = 200
    """Hidden width of encoder and decoder in part vae."""
    batch_size: flags.Count = 8
    """Images in the batch whose gradient part vae draws."""
    sample_counts: flags.Counts = (1, 4, 16, 64)
    """Numbers of samples per estimate in part vae."""
    vae_draws: flags.Several = 200
    """Gradients drawn for each row of part vae."""
    seed: flags.Natural = 0
    """Seed of all noise."""
    run_dir: str = "runs/gradient_variance"
    """Folder for results.json and figures/."""


def run_exact(config: Config, folder: Path, progress) -> tuple[list[dict], list[str]]:
    """Run part exact; return its rows and the lines to print."""
    gaussian = {"mu": config.mu, "sigma": config.sigma}
    cases: list[exact.Case] = []
    notes = []
    for name in exact_variance.INTEGRANDS:
        k = exact.DEFAULT_K[name] if config.k is None else config.k
        shared = {"k": k, "num_samples": config.num_samples}
        try:
            cases += exact.gaussian_cases(name, **gaussian, **shared)
        except ValueError as error:
            notes.append(f"NOTE: {name} under the Gaussian is left out: {error}")
        cases += exact.bernoulli_cases(name, logit=config.logit, **shared)
    cases += exact.elbo_cases(**gaussian, num_samples=config.num_samples)
    key = jax.random.key(config.seed)
    rows = []
    for case in cases:
        progress(f"exact: {case.estimator} on {case.integrand}")
        measured = exact.measure(case, key, num_draws=config.num_draws)
        rows += exact.rows_of(case, measured)
    if config.num_samples == 1:
        notes.append("NOTE: leave_one_out takes 2 samples where the others take 1")
    progress("exact: variance against k")
    curves = curves_against_k(config)
    figure = pictures.variance_against_k(curves, **gaussian)
    save_figure(figure, folder, "variance_against_k")
    largest = exact.largest_z(rows)
    verdict = "all as they should be" if largest < 5 else "WARNING: above 5"
    count = sum(row["variance_z"] is not None for row in rows)
    return rows, [
        f"Part exact: {config.num_draws:,} gradients a row; z in standard errors",
        exact_table(rows),
        *notes,
        *crossings(curves),
        f"largest |z| of {len(rows)} means (biased estimators aside) and {count} "
        f"variances: {largest:.2f}, {verdict}",
    ]


def exact_table(rows: list[dict]) -> str:
    """Format the rows of part exact as a table."""
    heading = "integrand estimator by S mean exact z variance +- exact z"
    cells: list[Sequence[str]] = [heading.split()]
    for row in rows:
        known = row["exact_variance"] is not None
        cells.append(
            [
                *(str(row[name]) for name in ("integrand", "estimator", "parameter")),
                str(row["num_samples"]),
                *(f"{row[name]:.5g}" for name in ("mean", "exact_mean")),
                f"{row['mean_z']:.2f}" if row["unbiased"] else "biased",
                f"{row['variance']:.5g}",
                f"{row['variance_standard_error']:.2g}",
                f"{row['exact_variance']:.5g}" if known else "-",
                f"{row['variance_z']:.2f}" if known else "-",
            ]
        )
    return columns(cells, "<<<>")


CURVE_ESTIMATORS = ("reparameterization", "score_function", "constant_baseline")
EVERY = 10  # Every tenth point of an exact line is also measured.
CURVE_K = {
    "quadratic": np.linspace(-3, 3, 61),
    "exponential": np.geomspace(0.02, 20, 61),
    "cos": np.geomspace(0.1, 5, 61),
}


def curves_against_k(config: Config) -> dict[str, dict[str, Any]]:
    """Exact and measured variances of d/d mu against k, with one sample."""
    curves = {}
    for integrand, grid in CURVE_K.items():
        lines: dict[str, dict[str, list[float | None]]] = {
            name: {"exact": [], "variance": [], "error": []}
            for name in CURVE_ESTIMATORS
        }
        for number, k in enumerate(grid):
            found = exact.gaussian_cases(
                integrand, mu=config.mu, sigma=config.sigma, k=float(k), num_samples=1
            )
            for case in found:
                if case.estimator not in CURVE_ESTIMATORS:
                    continue
                line = lines[case.estimator]
                line["exact"].append(case.exact["mu"][1])
                if number % EVERY == 0:
                    key = jax.random.key(config.seed)
                    moments = exact.measure(case, key, num_draws=config.num_draws)
                    line["variance"].append(float(moments.variance["mu"]))
                    line["error"].append(float(moments.variance_standard_error["mu"]))
        curves[integrand] = {"k": grid, "measured_k": grid[::EVERY], "lines": lines}
    return curves


def crossings(curves: dict[str, dict[str, Any]]) -> list[str]:
    """Smallest k for which the score function has the smaller variance on cos."""
    content = curves["cos"]
    lines = content["lines"]
    wins = np.array(lines["score_function"]["exact"]) < np.array(
        lines["reparameterization"]["exact"]
    )
    if not wins.any():
        return []
    return [
        f"on cos(k x) the score function has the smaller variance from k = "
        f"{content['k'][int(np.argmax(wins))]:.2f} on"
    ]


def run_snr(config: Config, folder: Path, progress) -> tuple[list[dict], list[str]]:
    """Run part snr; return its rows and the lines to print."""
    rows = signal_to_noise.measure(
        num_draws=config.snr_draws, key=jax.random.key(config.seed), progress=progress
    )
    slopes = signal_to_noise.slopes(rows)
    figure = pictures.signal_to_noise(rows, slopes)
    save_figure(figure, folder, "signal_to_noise")
    cells = [("parameters", "estimator", "slope", "expected")]
    for (group, name), slope in slopes.items():
        expected = signal_to_noise.EXPECTED_SLOPES[group, name]
        cells.append((group, name, f"{slope:+.3f}", f"{expected:+.1f}"))
    title = "Part snr: slope of log signal-to-noise against log importance samples"
    return rows, [title, columns(cells, "<<>")]


def run_logistic(
    config: Config, folder: Path, progress
) -> tuple[list[dict], list[str]]:
    """Run part logistic; return its rows and the lines to print."""
    rows, curves, summary = logistic_regression.measure(
        num_steps=config.logistic_steps,
        key=jax.random.key(config.seed),
        progress=progress,
    )
    save_figure(pictures.logistic_curves(curves), folder, "logistic_regression")
    heading = "estimator", "ELBO at the end", "accuracy", "at the start", "at the end"
    cells: list[tuple[str, ...]] = [heading]
    for name in dict.fromkeys(row["estimator"] for row in rows):
        variances = [
            f"{row['variance']:.4g}"
            for row in rows
            if row["estimator"] == name and row["parameter"] == "mean"
        ]
        found = summary.get(name)
        trained = ("-", "-")
        if found:
            trained = f"{found['elbo']:.2f}", f"{found['accuracy']:.3f}"
        cells.append((name, *trained, *variances))
    title = (
        f"Part logistic: {config.logistic_steps} steps; variance of the gradient by "
        "the mean of q, 10 samples"
    )
    return rows, [title, columns(cells, "<>")]


def run_vae(config: Config, folder: Path, progress) -> tuple[list[dict], list[str]]:
    """Run part vae; return its rows and the lines to print, the ratio last."""
    dataset = data.load(config.dataset, data_dir=config.data_dir)
    epochs = vae.num_epochs(config.epochs, dataset)
    width = config.hidden_dim
    models = (
        vae.gaussian_model(dataset.data_shape, config.latent_dim, width),
        vae.bits_model(dataset.data_shape, config.num_bits, width),
    )
    # `vae.train` uses the first child for the test set.
    _, key = jax.random.split(run_keys(jax.random.key(config.seed)).evaluation)
    x = vae.binarized_test(dataset)[: config.batch_size]
    rows, lines, curves = [], [], {}
    lines += [f"NOTE: {note}" for note in dataset.notes]
    lines.append(
        f"Part vae: {dataset.name}, {epochs} epochs; variance of the encoder gradient "
        f"of {len(x)} images, {config.vae_draws} draws"
    )
    for model in models:
        trained = {}
        for name, estimator in model.trained_with.items():
            progress(f"{model.name}: training with {name}")
            trained[name] = vae.train(
                model, estimator, dataset, epochs=epochs, seed=config.seed
            )
        curves[model.name] = {name: run.test_elbo for name, run in trained.items()}
        stages = next(iter(trained.values())).stages
        found = vae.measure(
            model,
            stages,
            x,
            sample_counts=config.sample_counts,
            num_draws=config.vae_draws,
            key=key,
            progress=progress,
        )
        for objective in dict.fromkeys(row["objective"] for row in found):
            part = [row for row in found if row["objective"] == objective]
            lines.append(vae_table(f"{model.name}, {objective}", part))
            title = f"{dataset.name}, {model.name}, {objective}"
            figure = pictures.variance_against_samples(part, vae.STAGES, title)
            name = f"vae_{model.name}_{objective}".lower().replace(",", "")
            save_figure(figure, folder, name.replace(" ", "_").replace("-", "_"))
        rows += found
    figure = pictures.training_curves(
        curves, f"{dataset.name}: the same start, {vae.TRAINING_SAMPLES} samples"
    )
    save_figure(figure, folder, "training_curves")
    for model_name, ends in curves.items():
        scores = ", ".join(f"{name} {curve[-1]:.2f}" for name, curve in ends.items())
        lines.append(f"test ELBO after training, {model_name}: {scores}")
    unbiased = [abs(row["mean_z"]) for row in rows if row["unbiased"]]
    lines.append(
        f"largest |z| of {len(unbiased)} means against their references, biased "
        f"estimators aside: {max(unbiased):.2f}"
    )
    fewest = min(config.sample_counts)
    lines.append(
        "variance of the encoder gradient, score function over reparameterization, "
        f"{fewest} sample(s), end of training: {vae.variance_ratio(rows):.6g}"
    )
    return rows, lines


def vae_table(title: str, rows: list[dict]) -> str:
    """Format variances by stage and estimator, one column per number of samples."""
    counts = sorted({row["num_samples"] for row in rows})
    heading = [f"{kind}S={count}" for kind in ("", "x s, ") for count in counts]
    cells = [["", "", *heading, "max |z|"]]
    for stage in vae.STAGES:
        for name in dict.fromkeys(row["estimator"] for row in rows):
            chosen = {
                row["num_samples"]: row
                for row in rows
                if (row["stage"], row["estimator"]) == (stage, name)
            }
            figures = [
                f"{chosen[count][quantity]:.3g}" if count in chosen else "-"
                for quantity in ("variance", "cost_adjusted_variance")
                for count in counts
            ]
            largest = max(abs(row["mean_z"]) for row in chosen.values())
            cells.append([stage, name, *figures, f"{largest:.2f}"])
    return f"{title}\n{columns(cells, '<<>')}"


def run(config: Config) -> dict[str, Any]:
    """Run the selected parts, print their tables and write the run folder.

    Args:
      config: the configuration.

    Returns:
      The content of results.json: `rows`, those of other parts that earlier commands
      measured included, the flags of each part, the part and seed of this command, the
      JAX version, the device, and the wall time.

    Raises:
      ValueError: invalid flag value, a flag that the part does not use, or data not
        available.
    """
    flags.check(config)
    flags.refuse_ignored([config], USED_BY)
    parts = {
        "exact": run_exact,
        "snr": run_snr,
        "logistic": run_logistic,
        "vae": run_vae,
    }
    chosen = parts if config.part == "all" else {config.part: parts[config.part]}
    folder = Path(config.run_dir)
    start = time.perf_counter()
    results: dict[str, Any] = {}
    with run_folder.locked(folder):
        known = run_folder.read_results(folder) or {}
        rows = [row for row in known.get("rows", []) if row["part"] not in chosen]
        configs = known.get("configs", {})
        for name, part in chosen.items():
            with tqdm(
                bar_format="{desc} [{elapsed}]", disable=None, leave=False
            ) as bar:
                found, lines = part(config, folder / "figures", bar.set_description)
            print("\n".join(lines), flush=True)
            rows += found
            configs[name] = asdict(config)
            results = {
                "rows": rows,
                "config": {"part": config.part, "seed": config.seed},
                "configs": configs,
                "jax_version": jax.__version__,
                "device": jax.devices()[0].device_kind,
                "seconds": time.perf_counter() - start,
            }
            run_folder.write_json(folder / "results.json", results)
    return results


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with the given arguments, by default those of the process."""
    execute(run, parse(Config, argv, command="python -m experiments.gradient_variance"))


if __name__ == "__main__":
    main()
