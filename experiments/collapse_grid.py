"""Test common networks for posterior collapse with the default settings.

    python -m experiments.collapse_grid

trains networks with one to three layers, narrow and wide, ReLU and tanh, dense, gated
and convolutional, with 2 to 128 latents. Each is a run of `experiments.mnist` with its
defaults for about 900 steps; a posterior that collapses does so within the first
hundred. `--beta_warmup_epochs=0` shows which networks depend on the warm-up. The table
is printed and written to `table.md`. Run the same command to resume. Exits with status
1 if any posterior collapsed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from experiments import mnist
from experiments.runner import flags
from experiments.runner.command_line import CommandFailed, execute, parse, say
from experiments.runner.report import markdown
from vae_jax import data


@dataclass(frozen=True)
class Config:
    """Train a grid of networks with the defaults and count the collapsed ones."""

    datasets: tuple[str, ...] = ("mnist", "fashion_mnist", "digits")
    """Data sets; those not available are skipped."""
    data_dir: str = "data"
    """Folder of data files; downloads go there."""
    steps: flags.Count = 900
    """Training steps of each network, rounded up to whole epochs."""
    beta_warmup_epochs: flags.NonNegative | None = None
    """As for experiments.mnist."""
    seed: flags.Natural = 0
    """As for experiments.mnist."""
    run_dir: str = "runs/collapse_grid"
    """Folder for the runs and the table."""


class Network(NamedTuple):
    """Network of the grid, as flags of `experiments.mnist`."""

    network: str
    hidden_dims: tuple[int, ...]
    activation: str
    latent_dim: int

    @property
    def name(self) -> str:
        """Name of the network in its run folder."""
        widths = "-".join(map(str, self.hidden_dims))
        return f"{self.network}-{self.activation}-{widths}-{self.latent_dim}"


# Gated networks have gates instead of an activation: the flag keeps its default.
NETWORKS = (
    Network("mlp", (100,), "relu", 2),
    Network("mlp", (400,), "relu", 20),
    Network("mlp", (512,), "relu", 128),
    Network("mlp", (200, 200), "relu", 50),
    Network("mlp", (256, 128), "relu", 32),
    Network("mlp", (512, 512), "relu", 128),
    Network("mlp", (100, 100, 100), "relu", 128),
    Network("mlp", (512, 512, 512), "relu", 2),
    Network("mlp", (512, 512, 512), "relu", 128),
    Network("mlp", (512,), "tanh", 128),
    Network("mlp", (200, 200), "tanh", 50),
    Network("mlp", (100, 100, 100), "tanh", 10),
    Network("mlp", (512, 512, 512), "tanh", 128),
    Network("gated", (512,), "relu", 2),
    Network("gated", (300, 300), "relu", 40),
    Network("gated", (100, 100, 100), "relu", 128),
    Network("conv", (256,), "relu", 20),
    Network("conv", (512,), "tanh", 128),
)


def run(config: Config) -> list[dict[str, Any]]:
    """Train the grid; print and write its table.

    Args:
      config: the configuration.

    Returns:
      One row for each network and data set.

    Raises:
      ValueError: no data set is available, or a flag is invalid.
      CommandFailed: a posterior collapsed.
    """
    flags.check(config)
    sizes = available(config)
    rows = [
        train(config, name, size, network)
        for name, size in sizes.items()
        for network in NETWORKS
    ]
    text = table(rows)
    Path(config.run_dir, "table.md").write_text(text + "\n")
    print(text)
    collapsed = [row for row in rows if row["collapsed"]]
    print(f"{len(collapsed)} of {len(rows)} collapsed; {config.run_dir}/table.md")
    if collapsed:
        raise CommandFailed(f"{len(collapsed)} of {len(rows)} networks collapsed")
    return rows


def available(config: Config) -> dict[str, int]:
    """Available data sets, by name, with their numbers of training examples."""
    sizes = {}
    for name in config.datasets:
        try:
            sizes[name] = len(data.load(name, data_dir=config.data_dir).train)
        except data.DataUnavailable as error:
            say(f"without {name}: {error}")
    if not sizes:
        raise ValueError(
            f"none of --datasets {', '.join(config.datasets)} is available"
        )
    return sizes


def train(
    config: Config, dataset: str, num_examples: int, network: Network
) -> dict[str, Any]:
    """Run `experiments.mnist` for one network; return its row of the table."""
    steps_per_epoch = math.ceil(num_examples / mnist.Config.batch_size)
    results = mnist.run(
        mnist.Config(
            dataset=dataset,
            likelihood="bernoulli",
            data_dir=config.data_dir,
            epochs=math.ceil(config.steps / steps_per_epoch),
            beta_warmup_epochs=config.beta_warmup_epochs,
            seed=config.seed,
            evaluation_samples=0,
            run_dir=str(Path(config.run_dir, f"{dataset}-{network.name}")),
            **network._asdict(),
        )
    )
    return {
        "data set": dataset,
        "network": network.network,
        "hidden": "-".join(map(str, network.hidden_dims)),
        "units": "gates" if network.network == "gated" else network.activation,
        "latents": network.latent_dim,
        "test ELBO": results["test_elbo"],
        "KL": results["test_kl_divergence"],
        "active units": results["active_units"],
        "collapsed": results["active_units"] == 0,
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Format the rows as a Markdown table."""
    lines = [list(rows[0])]
    for row in rows:
        figures = {name: f"{row[name]:.2f}" for name in ("test ELBO", "KL")}
        verdict = {"collapsed": "**yes**" if row["collapsed"] else "no"}
        lines.append([str(cell) for cell in (row | figures | verdict).values()])
    return markdown(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with the given arguments, by default those of the process."""
    execute(run, parse(Config, argv, command="python -m experiments.collapse_grid"))


if __name__ == "__main__":
    main()
