"""Scaling of the cost of a training step: `experiments.throughput --workload=curves`.

Five curves of this library alone: over the images per step and the width of the network
(workload a), over posterior samples (the network of b), and over the number of models
trained at once, large (workload a) and small (64-64-8, 8x8 images). Work and time are
both relative to the first point: a curve on the diagonal scales linearly, and one below
it becomes more efficient with size.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from tqdm import tqdm

import vae_jax
from experiments.runner import run_folder
from experiments.runner.report import columns, save_figure
from experiments.style import styled
from experiments.throughput import contestants, limit
from experiments.throughput.contestants import LEARNING_RATE, Workload
from vae_jax.types import Array, Key

SIZES = {
    "images": (32, 64, 128, 256, 512),
    "width": (100, 200, 400, 800),
    "samples": (1, 5, 10, 25, 50),
    "models": (1, 2, 4, 8, 16, 32),
    "small models": (1, 2, 4, 8, 16, 32, 64),
}
# The first points are dominated by launch overhead, the last ones by arithmetic.
ACCELERATOR_SIZES = {
    "images": (1, 20, 128, 1024, 8192),
    "width": (100, 400, 1600, 6400),
    "samples": (1, 5, 50, 500),
    "models": (1, 8, 64, 256),
    "small models": (1, 8, 64, 256, 1024),
}
NUM_EXAMPLES = 2048


def sizes_here() -> dict[str, Sequence[int]]:
    """Sizes of each curve for the device of this process."""
    return SIZES if jax.default_backend() == "cpu" else ACCELERATOR_SIZES


class Point(NamedTuple):
    """Cost of a step at one size.

    Attributes:
      curve: name of the curve.
      size: value of the varied quantity.
      operations: floating-point operations of the step's matrix products.
      seconds: median time per step over the rounds.
      least: minimum time per step, in seconds.
      greatest: maximum time per step, in seconds.
    """

    curve: str
    size: int
    operations: int
    seconds: float
    least: float
    greatest: float


def prepare(curve: str, size: int, num_steps: int) -> tuple[Callable[[], Any], int]:
    """Prepare a round of steps of one size, and count the operations of a step.

    Args:
      curve: name of the curve, as in `SIZES`.
      size: value of the varied quantity.
      num_steps: steps per round.

    Returns:
      `f()`, which runs a round and continues from the last call, and the number of
      operations.
    """
    batch = {"images": size, "samples": 20}.get(curve, 128)
    network = vae_jax.MLP((size if curve == "width" else 400,))
    spec = vae_jax.ModelSpec(encoder=network, decoder=network)
    if curve == "samples":
        network = vae_jax.MLP((200, 200), jnp.tanh)
        spec = vae_jax.ModelSpec(encoder=network, decoder=network, latent_dim=50)
    if curve == "small models":
        network = vae_jax.MLP((64,))
        spec = vae_jax.ModelSpec(
            encoder=network, decoder=network, latent_dim=8, data_shape=(8, 8)
        )
    keys = jax.random.split(jax.random.key(0), 4)
    images = jax.random.bits(keys[0], (NUM_EXAMPLES, spec.data_dim), jnp.uint8)
    num_models = size if "models" in curve else 1
    num_samples = size if curve == "samples" else 1
    workload = Workload(
        params=vae_jax.init(spec, keys[1]),
        images=images,
        num_levels=256,
        batch_shape=(num_steps, batch),
        key=keys[2],
        num_samples=num_samples,
    )
    order = jax.random.randint(keys[3], (num_steps, batch), 0, NUM_EXAMPLES)
    operations = num_models * limit.operations(workload)
    if num_models == 1:
        objective = (
            vae_jax.elbo_objective()
            if curve != "samples"
            else vae_jax.importance_weighted_objective(num_samples=num_samples)
        )
        run = contestants.library_run(workload, objective, lambda x, key: x / 255.0)
        return partial(run, order), operations
    return sweep_round(workload, order, num_models), operations


def sweep_round(
    workload: Workload, order: Array, num_models: int
) -> Callable[[], Array]:
    """Prepare a round of the same steps for many models, with different beta and noise.

    The models train at once, by `vmap`.
    """

    def step(state, batch, beta: Array):
        return vae_jax.train_step(
            state,
            batch,
            objective=vae_jax.elbo_objective(beta=beta),
            optimizer=optax.adam(LEARNING_RATE),
            preprocess=lambda x, key: x / 255.0,
        )

    def state_of(key: Key) -> vae_jax.TrainState:
        adam = optax.adam(LEARNING_RATE)
        return vae_jax.init_state(workload.params, key, optimizer=adam)

    keys = jax.random.split(workload.key, num_models)
    states = vae_jax.stack_states([state_of(key) for key in keys])
    epoch = vae_jax.Epoch(order, jnp.zeros(0, jnp.int32))
    epochs = jax.tree.map(lambda leaf: jnp.stack([leaf] * num_models), epoch)
    betas = jnp.linspace(0.5, 2.0, num_models)
    history = vae_jax.empty_sweep_history(step, states, epochs, workload.images, betas)
    train = vae_jax.jit_sweep(step)

    def run() -> Array:
        nonlocal states
        states, figures = train(
            states, epochs, workload.images, history, len(order), betas
        )
        return figures["objective"]

    return run


def measure(
    sizes: dict[str, Sequence[int]], *, num_steps: int, repeats: int
) -> list[Point]:
    """Time every size of every curve; the sizes of a curve take turns.

    Args:
      sizes: sizes by curve.
      num_steps: steps per round.
      repeats: number of rounds.

    Returns:
      A point for each size of each curve.
    """
    points = []
    total = sum((1 + repeats) * len(chosen) for chosen in sizes.values())
    with tqdm(total=total, unit="round", disable=None) as bar:
        for curve, chosen in sizes.items():
            rounds = [prepare(curve, size, num_steps) for size in chosen]
            seconds = np.zeros((repeats, len(chosen)))
            for run, _ in rounds:
                jax.block_until_ready(run())
                bar.update()
            for number in range(repeats):
                for index, (run, _) in enumerate(rounds):
                    start = time.perf_counter()
                    jax.block_until_ready(run())
                    seconds[number, index] = time.perf_counter() - start
                    bar.update()
            seconds /= num_steps
            for size, (_, operations), values in zip(
                chosen, rounds, seconds.T, strict=True
            ):
                spread = (np.median(values), values.min(), values.max())
                points.append(Point(curve, size, operations, *map(float, spread)))
    return points


def table(points: Sequence[Point]) -> str:
    """Format the points as a table."""
    cells = [("curve", "size", "ms a step", "(min-max)", "time / work, first point 1")]
    for point in points:
        first = next(other for other in points if other.curve == point.curve)
        cells.append(
            (
                point.curve,
                str(point.size),
                f"{1e3 * point.seconds:.3f}",
                f"({1e3 * point.least:.3f}-{1e3 * point.greatest:.3f})",
                f"{relative_cost(point, first):.2f}",
            )
        )
    return columns(cells, "<>")


def relative_cost(point: Point, first: Point) -> float:
    """Time over operations, relative to the first point of the curve."""
    growth = point.seconds / first.seconds
    return growth / (point.operations / first.operations)


@styled()
def draw(points: Sequence[Point], environment: dict[str, Any]) -> Figure:
    """Draw time against work for each curve, both relative to its first point."""
    figure = Figure((7, 6))
    axes = figure.subplots()
    largest = 1.0
    for curve in dict.fromkeys(point.curve for point in points):
        own = [point for point in points if point.curve == curve]
        work = np.array([point.operations for point in own]) / own[0].operations
        times = np.array([point[3:] for point in own]).T / own[0].seconds
        axes.errorbar(
            work,
            times[0],
            yerr=(times[0] - times[1], times[2] - times[0]),
            marker="o",
            capsize=3,
            label=f"{curve}, from {own[0].size} to {own[-1].size}",
        )
        largest = max(largest, work.max())
    axes.plot([1, largest], [1, largest], "--", color="0.6", label="time as work")
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="matrix products of a step, relative to the first point",
        ylabel="time of a step, relative to the first point",
        title="Cost of a training step, {device}, {cores} cores".format(**environment),
    )
    axes.legend()
    return figure


def save(points: Sequence[Point], environment: dict[str, Any], folder: Path) -> None:
    """Write results.json and figures/curves.png."""
    content = {**environment, "points": [point._asdict() for point in points]}
    with run_folder.locked(folder):
        run_folder.write_json(folder / "results.json", content)
        save_figure(draw(points, environment), folder / "figures", "curves")
