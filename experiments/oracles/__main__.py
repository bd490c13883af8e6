"""Hold trained models to exact answers: how far off is every estimate?

    python -m experiments.oracles

runs three parts (`--part` takes one):
1. linear: a linear VAE trained by gradient steps against probabilistic PCA: evidence,
   and which directions of the data stay alive under beta;
2. plane: a VAE with two latents, where log p(x) is an integral on a grid: importance
   sampling, annealing from both sides, and the No-U-Turn sampler against it;
3. families: one trained decoder, the best q of each image from several families: what
   is left of the gap to log p(x).

Models of parts 2 and 3 are runs of `experiments.mnist` in the run folder. With
`--dataset=mnist` on two cores a part takes about ten minutes, families two. The linear
VAE ends at an ELBO of 185.94 nats on the test set, where 186.02 is the optimum. In the
plane the encoder's own q is a bad proposal for some images (least effective sample size
1 of 10,000), and the standard error says so; a q fitted to the image and widened is a
good one. The best full-covariance q is 2 nats nearer to log p(x) than the best diagonal
one.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from experiments.oracles import families, linear, pictures, plane
from experiments.runner import flags, run_folder
from experiments.runner.command_line import execute, parse, say
from experiments.runner.report import Check, table
from vae_jax import data

PARTS = {"linear": linear.run, "plane": plane.run, "families": families.run}


@dataclass(frozen=True)
class Config(flags.DataFlags):
    """Hold trained models to exact answers; figures go to the run folder."""

    part: Literal["all", "linear", "plane", "families"] = "all"
    """linear: probabilistic PCA; plane: two latents; families: the gap of q."""
    epochs: flags.Count = 20
    """Passes over the training data, of the models of parts plane and families."""
    linear_steps: flags.Count = 12_000
    """Gradient steps of part linear; the sweep over beta takes half of them."""
    num_images: flags.Several = 20
    """Test images of parts plane and families."""
    num_temperatures: flags.Several = 2000
    """Temperatures of annealing."""
    num_chains: flags.Count = 16
    """Chains of annealing for each image."""
    num_samples: flags.Several = 10_000
    """Importance samples an image."""
    gap_steps: flags.Count = 2000
    """Steps of the search for the best q."""
    seed: flags.Natural = 0
    """Seed of weights, noise and order of the data."""
    run_dir: str | None = None
    """The run's folder; by default runs/oracles/<data set>-epochs<n>-seed<n>, whose \
results.json keeps the parts that other commands measured."""


def run(config: Config) -> dict[str, Any]:
    """Train, measure, print and draw.

    Args:
      config: the configuration.

    Returns:
      What results.json holds: a list of rows for each part.

    Raises:
      ValueError: bad input.
    """
    flags.check(config)
    dataset = data.load(config.dataset, data_dir=config.data_dir)
    say(*dataset.notes)
    name = f"{Path(dataset.name).stem}-epochs{config.epochs}-seed{config.seed}"
    folder = Path(config.run_dir or f"runs/oracles/{name}")
    with run_folder.locked(folder):
        results = {"dataset": dataset.name} | (run_folder.read_results(folder) or {})
        for name, part in PARTS.items():
            if config.part not in ("all", name):
                continue
            started = time.perf_counter()
            rows: list[Check] = part(config, dataset, folder)
            seconds = time.perf_counter() - started
            headline = f"\n{name} ({dataset.name}), {seconds:.0f} s"
            print(f"{headline}\n{table(rows)}", flush=True)
            results[name] = [as_json(row) for row in rows]
            pictures.draw(name, rows, dataset.name, folder)
        run_folder.write_json(folder / "results.json", results)
    return results


def as_json(row: Check) -> dict[str, Any]:
    """A row as results.json has it."""
    return {
        "name": row.what,
        "measured": row.measured,
        "error": row.error,
        "exact": row.exact,
        "allowed": row.within,
        "ok": row.ok,
    }


def agrees(results: dict[str, Any]) -> bool:
    """Whether every figure that has an exact value is near enough to it."""
    rows = [row for part in results.values() if isinstance(part, list) for row in part]
    return all(row["ok"] for row in rows if not math.isnan(row["allowed"]))


def main(argv: Sequence[str] | None = None) -> None:
    """The command, with these arguments or those of the process."""
    execute(run, parse(Config, argv, command="python -m experiments.oracles"))


if __name__ == "__main__":
    main()
