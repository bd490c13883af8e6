"""Throughput: training against hand-written JAX and NumPyro; drawing gradients.

    python -m experiments.throughput
    python -m experiments.throughput --workload=gradients

Workload a: a multilayer perceptron 784-400-(20+20)-400-784, ReLU, Bernoulli on grey
pixels, the ELBO with one sample and the analytic KL, Adam at 1e-3, batches of 128 out
of 60,000 images that lie on the device as uint8. A round is an epoch shuffled afresh
and cut short after `steps` batches, the same for everyone; shuffling is not timed.
A machine's speed drifts by more than the contestants differ, so they take turns, in
another order each round: read the ratios. Random pixels cost the same as digits.

Workload gradients: as many gradients of a known integrand, one draw each, drawn by
`vmap` as `gradient_moments` does it, and by a Python loop over a compiled draw.

On two virtual cores, a minute: 22,400 images/s, 0.98 of the hand-written scan and 1.03
of NumPyro; first step after 3, 1 and 4 s. On a busy machine many short rounds find the
ratios better than few long ones: --steps=25 --repeats=120.
"""

import datetime
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

import vae_jax
from experiments import throughput_gradients
from experiments.command_line import execute, parse
from experiments.throughput_contestants import (
    NUMPYRO,
    OURS,
    Contestant,
    Workload,
    contestants,
)
from vae_jax import data
from vae_jax.types import Array, Key

UNITS = {"a": "images", "gradients": "gradients"}


@dataclass(frozen=True)
class Config:
    """Measure throughput; the table also goes to the run folder."""

    workload: Literal["a", "gradients"] = "a"
    """a: training an MLP of 400 hidden units, ELBO with one sample; gradients: draws \
of a score-function gradient."""
    repeats: int = 7
    """Rounds; in each, every contestant runs once."""
    steps: int = 200
    """Training steps of a contestant in a round; an epoch at most."""
    batch_size: int = 128
    """Images of a step."""
    num_examples: int = 60_000
    """Images in the data set."""
    dataset: Literal["synthetic", "mnist"] = "synthetic"
    """Random pixels of MNIST's shape, or MNIST itself."""
    data_dir: str = "data"
    """Where MNIST is looked for and downloaded to."""
    seed: int = 0
    """Of pixels, initial weights, noise and the order of the images."""
    run_dir: str = "runs/throughput"
    """Where results.json and figures/throughput.png go."""


class Spread(NamedTuple):
    """A figure over the rounds."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: np.ndarray) -> "Spread":
        """Of one figure a round."""
        return cls(float(np.median(values)), float(values.min()), float(values.max()))


class Row(NamedTuple):
    """Figures of one contestant.

    Attributes:
      name: the contestant.
      per_second: images trained on, or gradients drawn, in a second.
      ratio: this library's over the contestant's in each round.
      seconds_to_first_step: setting up and compiling.
    """

    name: str
    per_second: Spread
    ratio: Spread
    seconds_to_first_step: float


class Results(NamedTuple):
    """The table, where it was measured, and what to know when reading it."""

    rows: tuple[Row, ...]
    environment: dict[str, Any]
    remarks: tuple[str, ...]


def check(config: Config) -> None:
    """Refuses sizes that leave nothing to measure.

    Raises:
      ValueError: naming the field.
    """
    for name in ("repeats", "steps", "batch_size", "num_examples"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be positive, got {getattr(config, name)}")
    longest = config.num_examples // config.batch_size
    if config.steps > longest:
        raise ValueError(
            f"steps must be at most {longest}, the full batches of {config.batch_size} "
            f"in {config.num_examples} examples, got {config.steps}"
        )


def load_images(config: Config) -> tuple[np.ndarray, int]:
    """The images, uint8 `[n, 784]`, and their number of grey levels."""
    if config.dataset == "synthetic":
        generator = np.random.default_rng(config.seed)
        shape = (config.num_examples, 784)
        return generator.integers(0, 256, shape, dtype=np.uint8), 256
    dataset = data.load(config.dataset, data_dir=config.data_dir)
    if config.num_examples > len(dataset.train):
        raise ValueError(
            f"num_examples must be at most {len(dataset.train)} for "
            f"{config.dataset}, got {config.num_examples}"
        )
    return dataset.train[: config.num_examples], dataset.num_levels


def make_workload(config: Config) -> tuple[Workload | Key, list[Array]]:
    """The work, and the batches of every round, `[T, B]`; the first is the warm-up."""
    params_key, noise_key, order_key = jax.random.split(jax.random.key(config.seed), 3)
    sizes = {"num_examples": config.num_examples, "batch_size": config.batch_size}
    rounds = [
        vae_jax.shuffled_epoch(order_key, number, **sizes).batches[: config.steps]
        for number in range(config.repeats + 1)
    ]
    if config.workload == "gradients":
        return jax.block_until_ready((noise_key, rounds))
    images, num_levels = load_images(config)
    params = vae_jax.init(vae_jax.ModelSpec(), params_key)
    shape = (config.steps, config.batch_size)
    workload = Workload(params, jnp.asarray(images), num_levels, shape, noise_key)
    return jax.block_until_ready((workload, rounds))


def measure(
    entrants: Sequence[Contestant], workload: Workload | Key, rounds: Sequence[Array]
) -> tuple[Row, ...]:
    """Lets the contestants take turns, after each has compiled and warmed up."""
    runs, first_seconds = [], []
    seconds = np.zeros((len(rounds) - 1, len(entrants)))
    with tqdm(total=seconds.size + len(entrants), unit="run", disable=None) as bar:
        for entrant in entrants:
            bar.set_description(f"compiling {entrant.name}")
            start = time.perf_counter()
            runs.append(entrant.prepare(workload))
            jax.block_until_ready(runs[-1](rounds[0]))
            first_seconds.append(time.perf_counter() - start)
            bar.update()
        bar.set_description("measuring")
        for number, batches in enumerate(rounds[1:]):
            for turn in range(len(entrants)):
                # Each round another begins: what slows down over time hits all.
                index = (number + turn) % len(entrants)
                start = time.perf_counter()
                jax.block_until_ready(runs[index](batches))
                seconds[number, index] = time.perf_counter() - start
                bar.update()
    names = [entrant.name for entrant in entrants]
    return make_rows(names, seconds, np.array(first_seconds), rounds[0].size)


def make_rows(
    names: Sequence[str], seconds: np.ndarray, first_seconds: np.ndarray, images: int
) -> tuple[Row, ...]:
    """The table of seconds `[R, C]` in which each trained on so many images."""
    # The warm-up was a whole round too: what it took beyond one is the first step's.
    to_first_step = np.maximum(first_seconds - np.median(seconds, axis=0), 0)
    ratios = seconds / seconds[:, [names.index(OURS)]]
    return tuple(
        Row(
            name,
            Spread.of(images / seconds[:, i]),
            Spread.of(ratios[:, i]),
            float(first),
        )
        for i, (name, first) in enumerate(zip(names, to_first_step, strict=True))
    )


def make_remarks(rows: Sequence[Row], load: float, cores: int) -> tuple[str, ...]:
    """What to know when reading the table: a missing row, a disturbed machine."""
    remarks = []
    names = [row.name for row in rows]
    if NUMPYRO not in names and throughput_gradients.LOOP not in names:
        remarks.append('no NumPyro here: pip install -e ".[bench]" adds its row')
    speeds = [row.per_second for row in rows]
    widest = max((speed.max - speed.min) / speed.median for speed in speeds)
    if load > cores / 2 or widest > 0.2:
        remarks.append(
            f"WARNING: other load may have disturbed this: {load:.1f} busy processes "
            f"on {cores} cores before the start, rounds up to {widest:.0%} apart"
        )
    return tuple(remarks)


def table(results: Results) -> str:
    """The results for a screen."""
    heading = (
        f"{'':18}{UNITS[results.environment['workload']] + '/s':>12}{'(min-max)':>24}"
    )
    lines = [f"{heading}{'ours/theirs':>13}{'(min-max)':>14}{'first step, s':>15}"]
    for row in results.rows:
        speed, ratio = row.per_second, row.ratio
        lines.append(
            f"{row.name:18}{speed.median:12,.0f}"
            f"{f'({speed.min:,.0f}-{speed.max:,.0f})':>24}{ratio.median:13.2f}"
            f"{f'({ratio.min:.2f}-{ratio.max:.2f})':>14}{row.seconds_to_first_step:15.1f}"
        )
    return "\n".join([*lines, *results.remarks])


def draw(results: Results) -> Figure:
    """Bars of the median speeds, whiskers from the least to the greatest."""
    names = [row.name for row in results.rows]
    speeds = np.array([row.per_second for row in results.rows])
    medians, least, greatest = speeds.T
    figure = Figure((7, 1.2 + 0.5 * len(names)), dpi=120, layout="constrained")
    axes = figure.subplots()
    colors = ["tab:blue" if name == OURS else "0.7" for name in names]
    whiskers = (medians - least, greatest - medians)
    axes.barh(names, medians, xerr=whiskers, color=colors, capsize=3)
    axes.invert_yaxis()
    unit = UNITS[results.environment["workload"]]
    axes.set_xlabel(f"{unit} per second (median, least and greatest of the rounds)")
    title = "Throughput, workload {workload}, {device}, {cores} cores"
    axes.set_title(title.format(**results.environment))
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def save(results: Results, folder: Path) -> None:
    """Writes results.json and figures/throughput.png."""
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    rows = [row._asdict() for row in results.rows]
    unit = UNITS[results.environment["workload"]]
    for row in rows:
        row[f"{unit}_per_second"] = row.pop("per_second")._asdict()
        row["ratio"] = row["ratio"]._asdict()
    content = {**results.environment, "remarks": results.remarks, "rows": rows}
    (folder / "results.json").write_text(json.dumps(content, indent=2) + "\n")
    draw(results).savefig(folder / "figures" / "throughput.png")


def run(config: Config) -> Results:
    """Measures and writes the run folder.

    Args:
      config: what to measure.

    Returns:
      The table and what belongs to it.

    Raises:
      ValueError: sizes that do not fit, or no data.
    """
    check(config)
    load = os.getloadavg()[0]
    cores = os.cpu_count() or 1
    workload, rounds = make_workload(config)
    entrants = (
        contestants() if config.workload == "a" else throughput_gradients.contestants()
    )
    rows = measure(entrants, workload, rounds)
    environment = {
        "workload": config.workload,
        "dataset": config.dataset,
        "jax_version": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "cores": cores,
        "date": datetime.date.today().isoformat(),
    }
    results = Results(rows, environment, make_remarks(rows, load, cores))
    save(results, Path(config.run_dir))
    return results


def main(argv: Sequence[str] | None = None) -> None:
    """The command.

    Args:
      argv: its arguments; those of the process where None.
    """
    config = parse(Config, argv, command="python -m experiments.throughput")
    execute(lambda: print(table(run(config))))


if __name__ == "__main__":
    main()
