"""Time to a test ELBO: `experiments.throughput --workload=time_to_quality`.

Everyone trains the network of workload a on MNIST, pixels binarized anew at every step,
from the same weights and in the same order, and stops after the first epoch whose test
ELBO is at least `TARGET`. A learning rate is constant at 1e-3, the usual loop, or rises
and falls over `EPOCHS` epochs as in `experiments.mnist`. Compilation is part of the
seconds, evaluation is not.
"""

import importlib.util
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
from matplotlib.ticker import LogLocator
from tqdm import tqdm

import vae_jax
from experiments.runner import run_folder
from experiments.runner.report import columns, save_figure
from experiments.style import styled
from experiments.throughput import pytorch
from experiments.throughput.contestants import (
    LEARNING_RATE,
    NUMPYRO,
    OURS,
    Rate,
    Training,
    Workload,
    library_run,
    svi_run,
)
from vae_jax import data
from vae_jax.types import Array, Key, PyTree

TARGET = -100.5
EPOCHS = 7
MOST_EPOCHS = 40
PEAK, WARMUP_STEPS = 5e-3, 200


class Course(NamedTuple):
    """Training up to the target.

    Attributes:
      name: of who trains, and with which learning rate.
      seconds: of training after each epoch, `[T]`.
      test_elbo: after each epoch, in nats, `[T]`.
      reached: whether the last one is at least the target.
    """

    name: str
    seconds: list[float]
    test_elbo: list[float]
    reached: bool


class Entrant(NamedTuple):
    """A training that takes part, and the epochs after which it ends.

    At the end of a schedule its rate is zero, so nothing is learned afterwards.
    """

    prepare: Callable[[Workload], Training]
    most_epochs: int


class Courses(NamedTuple):
    """Courses of everyone to the same target, a test ELBO in nats."""

    courses: tuple[Course, ...]
    target: float


def schedule(steps_per_epoch: int) -> Rate:
    """A rise to the peak and a cosine to zero, over `EPOCHS` epochs."""
    warmup_steps = min(WARMUP_STEPS, steps_per_epoch)
    return optax.warmup_cosine_decay_schedule(
        0.0, PEAK, warmup_steps, EPOCHS * steps_per_epoch
    )


def binarized(loss: Callable[..., Any]) -> Callable[[Workload], Callable]:
    """A loss of PyTorch on pixels that are drawn anew."""

    def make(workload: Workload) -> Callable[[Any, Any], Any]:
        import torch

        own = loss(workload)
        return lambda weights, grey: own(weights, torch.bernoulli(grey))

    return make


def entrants(steps_per_epoch: int) -> dict[str, Entrant]:
    """Who takes part, of what is installed.

    Args:
      steps_per_epoch: for the schedule.

    Returns:
      Each by its name and that of its learning rate.
    """
    rates = {
        "constant": (LEARNING_RATE, MOST_EPOCHS),
        "schedule": (schedule(steps_per_epoch), EPOCHS),
    }

    def ours(workload: Workload, rate: Rate) -> Training:
        def draw(x: Array, key: Key) -> Array:
            return data.binarize(data.to_unit_interval(x, workload.num_levels), key)

        return library_run(workload, vae_jax.ELBO(), draw, rate)

    def numpyro(workload: Workload, rate: Rate) -> Training:
        from numpyro import infer

        return svi_run(workload, infer.TraceMeanField_ELBO(), data.binarize, rate)

    ways: dict[str, tuple[Callable[..., Training], str | None]] = {
        OURS: (ours, None),
        NUMPYRO: (numpyro, "numpyro"),
    }
    loss = binarized(pytorch.elbo_loss)
    for name, compiled in ((pytorch.EAGER, False), (pytorch.COMPILED, True)):
        way = partial(pytorch.train_run, make_loss=loss, compiled=compiled)
        ways[name] = way, pytorch.TORCH
    return {
        f"{name}, {kind}": Entrant(partial(way, rate=rate), most_epochs)
        for name, (way, needs) in ways.items()
        if needs is None or importlib.util.find_spec(needs)
        for kind, (rate, most_epochs) in rates.items()
    }


def with_weights(params: vae_jax.Params, weights: PyTree) -> vae_jax.Params:
    """Parameters with the layers of `plain_weights`."""

    def network(tree: Any, layers: Sequence[Any]) -> Any:
        *hidden, output = layers
        return {
            "network": dict(zip(tree["network"], hidden, strict=True)),
            "output": output,
        }

    return params.replace(
        encoder=network(params.encoder, weights["encoder"]),
        decoder=network(params.decoder, weights["decoder"]),
    )


def train(
    name: str,
    training: Training,
    rounds: Callable[[int], Array],
    test_elbo: Callable[[PyTree], float],
    *,
    target: float = TARGET,
    most_epochs: int = MOST_EPOCHS,
) -> Course:
    """Train until the test ELBO is at least the target.

    Args:
      name: for the table.
      training: a training at its start.
      rounds: batches of an epoch, `[T, B]`, by its number.
      test_elbo: of weights, in nats.
      target: to reach.
      most_epochs: after which it ends.

    Returns:
      The course of it.
    """
    seconds, found = [], []
    with tqdm(total=most_epochs, desc=name, unit="epoch", disable=None) as bar:
        for number in range(most_epochs):
            batches = jax.block_until_ready(rounds(number))
            start = time.perf_counter()
            jax.block_until_ready(training(batches))
            seconds.append(time.perf_counter() - start)
            found.append(test_elbo(training.weights()))
            bar.update()
            if found[-1] >= target:
                break
    return Course(name, np.cumsum(seconds).tolist(), found, found[-1] >= target)


def measure(
    dataset: data.Dataset,
    *,
    batch_size: int,
    seed: int,
    target: float = TARGET,
    most_epochs: int = MOST_EPOCHS,
) -> Courses:
    """Let everyone train, one after the other.

    Args:
      dataset: of grey levels.
      batch_size: images of a step; the last incomplete batch is left out.
      seed: of weights, noise and order.
      target: test ELBO to reach, in nats.
      most_epochs: after which a training ends; with a schedule, after at most `EPOCHS`.

    Returns:
      `Courses`.

    Raises:
      ValueError: the data have no grey levels.
    """
    if dataset.num_levels is None:
        raise ValueError(f"dataset must have grey levels, got {dataset.name}")
    weights_key, noise_key, order_key, *test_keys = jax.random.split(
        jax.random.key(seed), 5
    )
    steps = len(dataset.train) // batch_size
    mean = data.to_unit_interval(dataset.train.mean(axis=0), dataset.num_levels)
    spec = vae_jax.ModelSpec(data_shape=dataset.data_shape)
    workload = Workload(
        params=vae_jax.init(spec, weights_key, x=mean[None]),
        images=jnp.asarray(dataset.train),
        num_levels=dataset.num_levels,
        batch_shape=(steps, batch_size),
        key=noise_key,
    )
    grey = data.to_unit_interval(jnp.asarray(dataset.test), dataset.num_levels)
    x_test = data.binarize(grey, test_keys[0])

    def rounds(number: int) -> Array:
        counts = {"num_examples": len(dataset.train), "batch_size": batch_size}
        return vae_jax.shuffled_epoch(order_key, number, **counts).batches

    @jax.jit
    def mean_elbo(weights: PyTree) -> Array:
        params = with_weights(workload.params, weights)
        return jnp.mean(vae_jax.evaluate(params, x_test, test_keys[1]).elbo)

    courses = (
        train(
            name,
            entrant.prepare(workload),
            rounds,
            lambda weights: float(mean_elbo(weights)),
            target=target,
            most_epochs=min(most_epochs, entrant.most_epochs),
        )
        for name, entrant in entrants(steps).items()
    )
    return Courses(tuple(courses), target)


def table(found: Courses) -> str:
    """A table of the courses."""
    by_name = {course.name: course for course in found.courses}
    ours = by_name[f"{OURS}, schedule"]
    cells = [("", "epochs", "seconds", "ours/theirs", "test ELBO")]
    for course in found.courses:
        ratio = course.seconds[-1] / ours.seconds[-1]
        cells.append(
            (
                course.name,
                str(len(course.seconds)),
                f"{course.seconds[-1]:.1f}",
                f"{ratio:.2f}" if course.reached and ours.reached else "",
                f"{course.test_elbo[-1]:.2f}"
                + ("" if course.reached else ", not reached"),
            )
        )
    return columns(cells, "<>")


@styled()
def draw(found: Courses) -> Figure:
    """Draw the test ELBO against the seconds of training."""
    figure = Figure((7, 4.5))
    axes = figure.subplots()
    for course in found.courses:
        style = "-o" if course.name.endswith("schedule") else "--"
        axes.plot(course.seconds, course.test_elbo, style, ms=3, label=course.name)
    axes.axhline(found.target, color="0.6", lw=1)
    axes.set_xscale("log", subs=[])
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set(
        xlabel="seconds of training and compilation",
        ylabel="test ELBO, nats",
        title="Time to a test ELBO",
    )
    axes.legend()
    return figure


def save(found: Courses, environment: dict[str, Any], folder: Path) -> None:
    """Write results.json and figures/time_to_quality.png."""
    courses = [course._asdict() for course in found.courses]
    content = {**environment, "target": found.target, "courses": courses}
    with run_folder.locked(folder):
        run_folder.write_json(folder / "results.json", content)
        save_figure(draw(found), folder / "figures", "time_to_quality")
