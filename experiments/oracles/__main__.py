"""Compare trained models and estimates of log p(x) with exact values.

    python -m experiments.oracles

runs three parts (`--part` selects one):
1. linear: a linear VAE trained by gradient steps, compared with probabilistic PCA: the
   evidence, and the directions that stay active under beta;
2. plane: a VAE with two latents, whose log p(x) is integrated on a grid, compared with
   importance sampling, bidirectional annealing, and the No-U-Turn sampler;
3. families: the remaining gap to log p(x) of the best q of each image from several
   families, for one trained decoder.

The models of parts 2 and 3 are runs of `experiments.mnist` in the run folder. With
`--dataset=mnist` on two cores, part families takes about two minutes and the others ten
minutes each. The linear VAE reaches an ELBO of 185.98 nats on the test set; the optimum
is 186.02. In part plane the encoder's q is a poor proposal for some images (smallest
effective sample size 1 of 10,000), which its standard error reflects; a q fitted to the
image and widened is a good proposal. The best full-covariance q is 2 nats closer to
log p(x) than the best diagonal one.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from experiments.oracles import families, linear, pictures, plane
from experiments.runner import flags, run_folder
from experiments.runner.command_line import execute, parse, say
from experiments.runner.report import Check, table
from vae_jax import data

PARTS = {"linear": linear.run, "plane": plane.run, "families": families.run}
# Of the others, `epochs` is in the name of the folder that all parts share.
_OF_IMAGES = ("all", "plane", "families")
USED_BY: dict[str, flags.Conditions] = {
    "linear_steps": [{"part": ("all", "linear")}],
    "num_images": [{"part": _OF_IMAGES}],
    "num_temperatures": [{"part": ("all", "plane")}],
    "num_chains": [{"part": ("all", "plane")}],
    "num_samples": [{"part": _OF_IMAGES}],
    "gap_steps": [{"part": _OF_IMAGES}],
}


@dataclass(frozen=True)
class Config(flags.DataFlags):
    """Compare trained models with exact values; write figures to the run folder."""

    part: Literal["all", "linear", "plane", "families"] = "all"
    """linear: probabilistic PCA; plane: two latents; families: the gap of q."""
    epochs: flags.Count = 20
    """Training epochs of the models of parts plane and families."""
    linear_steps: flags.Count = 18_000
    """Gradient steps of part linear; the sweep over beta takes half as many."""
    num_images: flags.Several = 20
    """Test images of parts plane and families."""
    num_temperatures: flags.Several = 2000
    """Number of annealing temperatures."""
    num_chains: flags.Count = 16
    """Annealing chains per image."""
    num_samples: flags.Several = 10_000
    """Importance samples per image."""
    gap_steps: flags.Count = 2000
    """Optimization steps for the best q."""
    seed: flags.Natural = 0
    """Seed of weights, noise and order of the data."""
    run_dir: str | None = None
    """Run folder; by default runs/oracles/<data set>-epochs<n>-seed<n>. Parts that \
earlier commands measured stay in its results.json."""


def run(config: Config) -> dict[str, Any]:
    """Run the selected parts, print their tables and draw their figures.

    Args:
      config: the configuration.

    Returns:
      The content of results.json: a list of rows for each part, and the flags that
      each was measured with.

    Raises:
      ValueError: invalid flag value, a flag that the part does not use, data not
        available, or a folder with results of other data.
    """
    flags.check(config)
    flags.refuse_ignored([config], USED_BY)
    dataset = data.load(config.dataset, data_dir=config.data_dir)
    say(*dataset.notes)
    name = f"{Path(dataset.name).stem}-epochs{config.epochs}-seed{config.seed}"
    folder = Path(config.run_dir or f"runs/oracles/{name}")
    with run_folder.locked(folder):
        results: dict[str, Any] = {"dataset": dataset.name, "configs": {}}
        results |= run_folder.read_results(folder) or {}
        if results["dataset"] != dataset.name:
            raise ValueError(
                f"run_dir {folder} holds results of {results['dataset']}, got "
                f"--dataset={dataset.name}: choose another --run_dir"
            )
        for name, part in PARTS.items():
            if config.part not in ("all", name):
                continue
            started = time.perf_counter()
            rows: list[Check] = part(config, dataset, folder)
            seconds = time.perf_counter() - started
            headline = f"\n{name} ({dataset.name}), {seconds:.0f} s"
            print(f"{headline}\n{table(rows)}", flush=True)
            results[name] = [as_json(row) for row in rows]
            results["configs"][name] = asdict(config)
            pictures.draw(name, rows, dataset.name, folder)
        run_folder.write_json(folder / "results.json", results)
    return results


def as_json(row: Check) -> dict[str, Any]:
    """Convert a row to its form in results.json."""
    return {
        "name": row.what,
        "measured": row.measured,
        "error": row.error,
        "exact": row.exact,
        "allowed": row.within,
        "ok": row.ok,
    }


def agrees(results: dict[str, Any]) -> bool:
    """Whether every row with a tolerance is within it."""
    rows = [row for part in results.values() if isinstance(part, list) for row in part]
    return all(row["ok"] for row in rows if not math.isnan(row["allowed"]))


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with the given arguments, by default those of the process."""
    execute(run, parse(Config, argv, command="python -m experiments.oracles"))


if __name__ == "__main__":
    main()
