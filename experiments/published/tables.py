"""Published tables: their cells as runs of `experiments.mnist`, and their records."""

import dataclasses
import json
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

import vae_jax
from experiments import datasets, evaluation, evaluation_data, mnist
from experiments.runner import flags, run_folder
from experiments.runner.command_line import execute, parse
from experiments.runner.report import columns, mean_of, measured

FOLDER = Path(__file__).parent
FIGURES = {"test_elbo": "test ELBO", "log_evidence": "log p(x)"}
STATIC: dict[str, Any] = {
    "dataset": "binarized_mnist",
    "likelihood": "bernoulli",
    "beta_warmup_epochs": 0.0,
}


class Cell(NamedTuple):
    """One or several published figures of one model.

    Attributes:
      name: name of the cell, part of the names of its run folder and record.
      published: published figures in nats, by the names of `FIGURES`.
      config: the run that reproduces them.
      paper_passes: number of passes over the training data in the paper.
      deviations: deviations from the paper's recipe.
      which: the epoch to report: the last, or the best on validation data.
    """

    name: str
    published: Mapping[str, float]
    config: mnist.Config
    paper_passes: float
    deviations: str
    which: Literal["last", "best"] = "last"


class Table(NamedTuple):
    """Published figures of a paper, and the cells that reproduce them.

    Attributes:
      name: name of the module.
      title: title on the page.
      source: source of the published figures.
      cells: the cells of the table.
    """

    name: str
    title: str
    source: str
    cells: tuple[Cell, ...]

    def command(self, cell: Cell) -> str:
        """Return the command that reproduces a cell."""
        return f"python -m experiments.published.{self.name} --cells {cell.name}"


@dataclass(frozen=True)
class Config:
    """Reproduce a published table; run the same command to resume."""

    cells: tuple[str, ...] = ()
    """Names of the cells, by default all."""
    data_dir: str = "data"
    """Folder of data files; downloads go there."""
    run_dir: str = "runs/published"
    """Parent folder of the cells' run folders."""
    results_dir: str = str(FOLDER / "results")
    """Folder of the records of finished cells."""


def run(config: Config, *, table: Table) -> list[dict[str, Any]]:
    """Train and evaluate the cells of a table, and record each.

    Args:
      config: the configuration.
      table: the table.

    Returns:
      The records.

    Raises:
      ValueError: if a name is not that of a cell.
    """
    flags.check(config)
    cells = {cell.name: cell for cell in table.cells}
    records = []
    for name in chosen("cells", config.cells, cells):
        folder = Path(config.run_dir, f"{table.name}-{name}")
        single = dataclasses.replace(
            cells[name].config, data_dir=config.data_dir, run_dir=str(folder)
        )
        begun = provenance(folder)
        results = mnist.run(single)
        records.append(record(table, cells[name], single, results) | begun)
        write(records[-1], config.results_dir, f"{table.name}-{name}")
        print(shown(records[-1]), flush=True)
    return records


def chosen(flag: str, given: Sequence[str], known: Iterable[str]) -> list[str]:
    """Return the names given by a flag, or all if it is empty.

    Args:
      flag: name of the flag.
      given: values of the flag.
      known: all names.

    Returns:
      The names given; all names if none were given.

    Raises:
      ValueError: if a name is unknown.
    """
    names = list(known)
    unknown = set(given) - set(names)
    if unknown:
        raise ValueError(
            f"--{flag} must be some of {', '.join(names)}, got {', '.join(unknown)}"
        )
    return list(given) or names


def write(found: Mapping[str, Any], folder: str, name: str) -> None:
    """Write a record into a folder of results, made if absent."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    run_folder.write_json(Path(folder, f"{name}.json"), found)


def record(
    table: Table, cell: Cell, config: mnist.Config, results: Mapping[str, Any]
) -> dict[str, Any]:
    """Make the record of a cell for `results/`.

    Args:
      table: the table.
      cell: a cell of the table.
      config: the configuration of the run.
      results: the content of the run's results.json.

    Returns:
      Figures with standard errors over the test images, cost, and the command and
      configuration to reproduce them.

    Raises:
      ValueError: if the results lack figures of the epoch to report, or do not match
        the model on disk.
    """
    folder = Path(str(config.run_dir))
    prefix = "" if cell.which == "last" else "best_"
    evidence = f"{prefix}importance_weighted"
    if f"{prefix}test_elbo" not in results:
        raise ValueError(
            f"run_dir {folder}: results.json has no figures of the {cell.which} epoch, "
            "whose checkpoint could not be read: start it anew"
        )
    elbo, reported = _elbo(cell, config), results[f"{prefix}test_elbo"]
    if abs(elbo["mean"] - reported) > 1e-3:
        raise ValueError(
            f"run_dir {folder}: the model of the {cell.which} epoch has a test ELBO of "
            f"{elbo['mean']:.4f}, and results.json says {reported:.4f}: start it anew"
        )
    found = {
        "test_elbo": elbo,
        "log_evidence": {
            "mean": results[f"{evidence}_log_likelihood"],
            "standard_error": results[f"{evidence}_standard_error"],
        },
    }
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if row["split"] == "train"]
    images = len(datasets.load(config).train)
    seconds = sum(images / row["images_per_second"] for row in rows)
    return {
        "command": table.command(cell),
        "published": dict(cell.published),
        "found": found,
        "which": cell.which,
        "epoch": results[f"{prefix}epoch"] if prefix else len(rows),
        "evaluation_samples": config.evaluation_samples,
        "high_pareto_k": results[f"{evidence}_high_pareto_k"],
        "active_units": results[f"{prefix}active_units"],
        "passes": len(rows),
        "paper_passes": cell.paper_passes,
        "training_minutes": seconds / 60,
        "minutes_are": "of training, by the clock, on two cores that others used too",
        "deviations": cell.deviations,
        "config": dataclasses.asdict(cell.config),
    }


def provenance(folder: Path) -> dict[str, Any]:
    """Versions and commit with which a run was started, saved next to its folder.

    Args:
      folder: the run's folder, which need not exist yet.

    Returns:
      `versions`, and `commit`, which is None if unknown.
    """
    path = folder.with_name(f"{folder.name}.provenance.json")
    if not (folder / "config.json").exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        run_folder.write_json(path, {"versions": versions(), "commit": commit()})
    if not path.exists():
        return {"versions": versions(), "commit": None}
    return json.loads(path.read_text())


def _elbo(cell: Cell, config: mnist.Config) -> dict[str, float]:
    """Mean test ELBO and its standard error, recomputed from the run's checkpoint."""
    # The cells name no user-defined classes, so no spec is needed to load the run.
    folder = str(config.run_dir)
    params = vae_jax.load_run(folder, which=cell.which)
    _, found = evaluation_data.of_run(folder)
    noise = evaluation.evaluation_keys().noise
    terms = jax.jit(vae_jax.evaluate)(params, found.test, noise)
    return mean_of(np.asarray(terms.elbo))


def versions() -> dict[str, str]:
    """Versions of Python, vae_jax, JAX and optax."""
    names = ("vae_jax", "jax", "optax")
    found = {name: metadata.version(name) for name in names}
    return {"python": platform.python_version(), **found}


def commit() -> str | None:
    """Commit of the code, marked as dirty if files differ; None if unknown."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        found = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True)
    except OSError:
        return None
    return found.stdout.strip() or None


def shown(found: Mapping[str, Any]) -> str:
    """Format a record as text."""
    rows = [("", "published", "here", "difference")]
    for name, value in found["published"].items():
        here = found["found"][name]
        rows.append(
            (
                FIGURES[name],
                f"{value:.2f}",
                measured(here["mean"], here["standard_error"]),
                f"{here['mean'] - value:+.2f} nats",
            )
        )
    ratio = found["passes"] / found["paper_passes"]
    return (
        f"{columns(rows, '<>')}\n{found['passes']} passes, {ratio:.2f} of the paper's; "
        f"{found['training_minutes']:.0f} minutes of training"
    )


def main(table: Table, argv: Sequence[str] | None = None) -> None:
    """Run the command of a table with these arguments or those of the process."""
    name = f"python -m experiments.published.{table.name}"
    config = parse(Config, argv, command=name)
    execute(lambda config: run(config, table=table), config)
