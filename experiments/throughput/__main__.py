"""Measure throughput against hand-written JAX, NumPyro and PyTorch.

    python -m experiments.throughput
    python -m experiments.throughput --workload=b50
    python -m experiments.throughput --workload=c
    python -m experiments.throughput --workload=anatomy
    python -m experiments.throughput --workload=curves
    python -m experiments.throughput --workload=gradients
    python -m experiments.throughput --workload=time_to_quality

Workload a: a multilayer perceptron 784-400-(20+20)-400-784, ReLU, Bernoulli on grey
pixels, the ELBO with one sample and the analytic KL, Adam at 1e-3, batches of 128 from
60,000 images stored on the device as uint8. A round is a freshly shuffled epoch,
truncated to `steps` batches; all contestants get the same batches, and shuffling is not
timed. Timings vary more over time than between contestants, so the contestants take
turns, in a different order each round: read the ratios. Random pixels cost the same as
digits. Two rows are the lower limit: the matrix products of a step and Adam, alone.

Workloads b1 and b50: 784-200-200-(50+50)-200-200-784, tanh, pixels binarized anew at
every step, the importance-weighted bound with 1 and 50 samples, batches of 20.

Workload c: the log evidence of 100 images from 5000 importance samples each, with the
network of b; also the working memory of each contestant against the number of samples.

Workload conv: a training step of convolutional networks. Workload anatomy: a with one
part at a time omitted or replaced. Workload curves: the cost of a step against images,
width, samples and models. Workload gradients: gradients of a known integrand, drawn by
`vmap` as in `gradient_moments`, and by a Python loop over a compiled draw. Workload
time_to_quality: seconds until a test ELBO on MNIST, with a constant learning rate and
with a schedule.

Each workload takes one to three minutes on two cores; docs/results/performance.md has
the results. On a busy machine many short rounds measure the ratios better than few long
ones: --steps=25 --repeats=120.
"""

import datetime
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import vae_jax
from experiments.runner import flags
from experiments.runner.command_line import execute, parse
from experiments.runner.report import num_cores
from experiments.throughput import (
    anatomy,
    convolution,
    curves,
    elbo,
    evidence,
    gradients,
    importance,
    pytorch,
    time_to_quality,
)
from experiments.throughput.contestants import Contestant, Workload
from experiments.throughput.memory import is_known, peak_bytes
from experiments.throughput.report import (
    Results,
    Row,
    make_remarks,
    make_rows,
    save,
    table,
)
from vae_jax import data
from vae_jax.types import Array, Key


class Kind(NamedTuple):
    """Settings of a workload.

    Attributes:
      module: module that defines its `contestants`; None for the curves.
      steps: default number of steps per round.
      batch_size: default number of images per step.
      num_samples: posterior samples per image; None to take the flag.
      spec: the model.
      peers: whether NumPyro and PyTorch take part, if they are installed.
      unit: what is counted per second.
      unused: flags that do not apply to the workload.
    """

    module: ModuleType | None
    steps: int
    batch_size: int
    num_samples: flags.Count | None = 1
    spec: vae_jax.ModelSpec = vae_jax.ModelSpec()
    peers: bool = False
    unit: str = "images"
    unused: tuple[str, ...] = ("num_samples",)


_TANH = vae_jax.MLP((200, 200), jnp.tanh)
DEEP = vae_jax.ModelSpec(encoder=_TANH, decoder=_TANH, latent_dim=50)
CONVOLUTIONAL = vae_jax.ModelSpec(
    encoder=vae_jax.ConvolutionalEncoder(), decoder=vae_jax.ConvolutionalDecoder()
)
KINDS = {
    "a": Kind(elbo, 200, 128, peers=True),
    "b1": Kind(importance, 200, 20, spec=DEEP, peers=True),
    "b50": Kind(importance, 50, 20, 50, spec=DEEP, peers=True),
    "c": Kind(evidence, 1, 100, None, spec=DEEP, peers=True, unused=()),
    "conv": Kind(
        convolution,
        20,
        128,
        spec=CONVOLUTIONAL,
        unused=("num_samples", "keep_denormals"),
    ),
    "anatomy": Kind(anatomy, 200, 128, unused=("num_samples", "keep_denormals")),
    "curves": Kind(
        None,
        50,
        128,
        unused=(
            "batch_size",
            "num_samples",
            "num_examples",
            "dataset",
            "data_dir",
            "seed",
            "peak_memory",
            "keep_denormals",
        ),
    ),
    "gradients": Kind(
        gradients,
        200,
        128,
        unit="gradients",
        unused=("num_samples", "dataset", "data_dir", "keep_denormals"),
    ),
    "time_to_quality": Kind(
        None,
        1,
        128,
        peers=True,
        unused=(
            "steps",
            "repeats",
            "num_samples",
            "num_examples",
            "dataset",
            "peak_memory",
        ),
    ),
}


@dataclass(frozen=True)
class Config:
    """Measure throughput; print the table and write it to the run folder."""

    workload: Literal[
        "a",
        "b1",
        "b50",
        "c",
        "conv",
        "anatomy",
        "curves",
        "gradients",
        "time_to_quality",
    ] = "a"
    """a: training an MLP with 400 hidden units, ELBO with one sample; b1, b50: \
training two layers of 200 with the bound of 1 and 50 samples; c: log evidence with \
the network of b; conv: training convolutional networks; anatomy: the parts of a; \
curves: the cost of a step against images, width, samples and models; gradients: draws \
of a score-function gradient; time_to_quality: seconds until a test ELBO of -100.5 on \
MNIST."""
    repeats: flags.Count = 7
    """Number of rounds; every contestant runs once in each."""
    steps: flags.Count | None = None
    """Steps per contestant and round, at most an epoch; by default 200 (a, b1, \
anatomy, gradients), 50 (b50, curves), 20 (conv) or 1 (c)."""
    batch_size: flags.Count | None = None
    """Images per step; by default 128 (a, conv, anatomy, gradients), 20 (b1, b50) or \
100 (c)."""
    num_samples: int = 5000
    """Importance samples per image in c."""
    num_examples: flags.Count = 60_000
    """Number of images in the data set."""
    dataset: Literal["synthetic", "mnist"] = "synthetic"
    """Random pixels of MNIST's shape, or MNIST itself."""
    data_dir: str = "data"
    """Folder of data files; downloads go there."""
    seed: int = 0
    """Seed of the pixels, the initial weights, the noise and the image order."""
    keep_denormals: bool = False
    """Leave PyTorch's default, which computes with denormal numbers (below 1.2e-38); \
without this flag PyTorch flushes them to zero, as XLA does."""
    peak_memory: bool = False
    """Also measure peak memory, running each contestant in a separate process."""
    run_dir: str = "runs/throughput"
    """Folder for results.json and figures/throughput.png."""


def with_sizes(config: Config) -> Config:
    """Fill in the workload's defaults for steps and batch size."""
    kind = KINDS[config.workload]
    return replace(
        config,
        steps=kind.steps if config.steps is None else config.steps,
        batch_size=kind.batch_size if config.batch_size is None else config.batch_size,
    )


def sizes(config: Config) -> tuple[int, int]:
    """Steps per round and images per step.

    Raises:
      ValueError: one of them is None.
    """
    if config.steps is None or config.batch_size is None:
        raise ValueError(
            "steps and batch_size must be filled in, got "
            f"{config.steps} and {config.batch_size}"
        )
    return config.steps, config.batch_size


def refuse_unused(config: Config) -> None:
    """Raise ValueError if a flag is set that the workload does not use.

    Takes the configuration before the default sizes are filled in.

    Raises:
      ValueError: names the flag.
    """
    for name in KINDS[config.workload].unused:
        if getattr(config, name) != getattr(Config, name):
            raise ValueError(
                f"{name} is not for workload {config.workload}, got "
                f"{getattr(config, name)}"
            )


def check(config: Config) -> None:
    """Raise ValueError for invalid sizes or an unavailable measurement.

    Raises:
      ValueError: names the field.
    """
    flags.check(config)
    multiple = evidence.CHUNK_SIZE
    if config.workload == "c" and config.num_samples % multiple:
        raise ValueError(
            f"num_samples must be a multiple of {multiple}, the chunk size of the "
            f"contestants, got {config.num_samples}"
        )
    if config.peak_memory and not is_known():
        raise ValueError("peak_memory requires Linux: it is read from /proc")
    steps, batch_size = sizes(config)
    longest = config.num_examples // batch_size
    if steps > longest:
        raise ValueError(
            f"steps must be at most {longest}, the full batches of {batch_size} "
            f"in {config.num_examples} examples, got {steps}"
        )


def load_images(config: Config) -> tuple[np.ndarray, int]:
    """Load the images, uint8 `[n, 784]`, and their number of grey levels."""
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
    if dataset.num_levels is None:
        raise ValueError(f"dataset must have grey levels, got {config.dataset}")
    return dataset.train[: config.num_examples], dataset.num_levels


def make_workload(config: Config) -> tuple[Workload | Key, list[Array]]:
    """Make the workload and the batches of every round, `[T, B]`, warm-up first."""
    params_key, noise_key, order_key = jax.random.split(jax.random.key(config.seed), 3)
    steps, batch_size = sizes(config)
    counts = {"num_examples": config.num_examples, "batch_size": batch_size}
    rounds = [
        vae_jax.shuffled_epoch(order_key, number, **counts).batches[:steps]
        for number in range(config.repeats + 1)
    ]
    if config.workload == "gradients":
        return jax.block_until_ready((noise_key, rounds))
    images, num_levels = load_images(config)
    if config.workload == "c":
        images, num_levels = (images > num_levels // 2).astype(np.uint8), 2
    workload = Workload(
        params=vae_jax.init(KINDS[config.workload].spec, params_key),
        images=jnp.asarray(images),
        num_levels=num_levels,
        batch_shape=(steps, batch_size),
        key=noise_key,
        num_samples=KINDS[config.workload].num_samples or config.num_samples,
    )
    return jax.block_until_ready((workload, rounds))


def measure(
    entrants: Sequence[Contestant], workload: Workload | Key, rounds: Sequence[Array]
) -> tuple[Row, ...]:
    """Compile and warm up every contestant, then time them in turns."""
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
                # A different contestant starts each round, so drift affects all alike.
                index = (number + turn) % len(entrants)
                start = time.perf_counter()
                jax.block_until_ready(runs[index](batches))
                seconds[number, index] = time.perf_counter() - start
                bar.update()
    names = [entrant.name for entrant in entrants]
    return make_rows(names, seconds, np.array(first_seconds), rounds[0].size)


Found = Results | list[curves.Point] | time_to_quality.Courses


def run(config: Config) -> Found:
    """Measure a workload and write the run folder.

    Args:
      config: the configuration.

    Returns:
      `Results`; for the curves, their points; for time_to_quality, `Courses`.

    Raises:
      ValueError: invalid sizes, or data not available.
    """
    refuse_unused(config)
    config = with_sizes(config)
    check(config)
    load = os.getloadavg()[0]
    cores = num_cores()
    if config.workload == "curves":
        return run_curves(config, cores)
    if config.workload == "time_to_quality":
        return run_time_to_quality(config, cores)
    workload, rounds = make_workload(config)
    kind = KINDS[config.workload]
    entrants = contestants_of(config)
    rows = measure(entrants, workload, rounds)
    temporary, peaks = {}, {}
    if isinstance(workload, Workload) and config.workload == "c":
        temporary = evidence.temporary_bytes(entrants, workload)
    if config.peak_memory:
        peaks = peak_bytes([row.name for row in rows], partial(prepared, config))
    samples = getattr(workload, "num_samples", 1)
    environment = environment_of(config, cores) | {"num_samples": samples}
    remarks = make_remarks(rows, load, cores, peers=kind.peers)
    results = Results(rows, environment, remarks, temporary, peaks)
    save(results, Path(config.run_dir))
    return results


def contestants_of(config: Config) -> list[Contestant]:
    """Installed contestants of the workload, with PyTorch's denormals configured."""
    kind = KINDS[config.workload]
    if kind.peers:
        pytorch.flush_denormals(not config.keep_denormals)
    return kind.module.contestants() if kind.module else []


def prepared(
    config: Config, name: str
) -> tuple[Contestant, Workload | Key, list[Array]]:
    """Prepare a contestant, its workload and rounds, to run in a separate process."""
    workload, rounds = make_workload(config)
    entrants = contestants_of(config)
    (entrant,) = (entrant for entrant in entrants if entrant.name == name)
    return entrant, workload, rounds


def environment_of(config: Config, cores: int) -> dict[str, Any]:
    """Settings, versions and device, as written to results.json."""
    kind = KINDS[config.workload]
    return {
        **{
            name: flag
            for name, flag in asdict(config).items()
            if name not in kind.unused
        },
        "unit": kind.unit,
        "jax_version": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "cores": cores,
        "date": datetime.date.today().isoformat(),
    }


def run_curves(config: Config, cores: int) -> list[curves.Point]:
    """Measure the cost curves and write the run folder."""
    points = curves.measure(
        curves.sizes_here(), num_steps=sizes(config)[0], repeats=config.repeats
    )
    environment = environment_of(config, cores)
    curves.save(points, environment, Path(config.run_dir))
    return points


def run_time_to_quality(config: Config, cores: int) -> time_to_quality.Courses:
    """Train everyone up to the target and write the run folder."""
    pytorch.flush_denormals(not config.keep_denormals)
    dataset = data.load("mnist", data_dir=config.data_dir)
    courses = time_to_quality.measure(
        dataset, batch_size=sizes(config)[1], seed=config.seed
    )
    environment = environment_of(config, cores)
    time_to_quality.save(courses, environment, Path(config.run_dir))
    return courses


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with the given arguments, by default those of the process."""
    config = parse(Config, argv, command="python -m experiments.throughput")
    execute(lambda config: show(run(config)), config)


def show(found: Found) -> None:
    """Print the table."""
    if isinstance(found, Results):
        print(table(found))
    elif isinstance(found, time_to_quality.Courses):
        print(time_to_quality.table(found))
    else:
        print(curves.table(found))


if __name__ == "__main__":
    main()
