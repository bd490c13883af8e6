"""The loop around `train_epoch`: checkpoints, exact resume, signals, bad losses.

An epoch runs in pieces of a few seconds, one compiled program for all of them.
After each piece the loop looks at the losses and at the signals that came in.
"""

import contextlib
import json
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, NoReturn

import jax
import numpy as np
from tqdm import tqdm

from experiments import processes
from experiments.command_line import CommandFailed, Interrupted
from experiments.evaluation_report import collapse_warning
from experiments.run_folder import Metrics, NoMetrics, write_json
from vae_jax import Epoch, ModelSpec, TrainState, checkpoint
from vae_jax.types import Array

SECONDS_PER_PIECE = 2.0
# By then a posterior that is going to collapse at the start has done so.
STEPS_BEFORE_JUDGING = 800
CHECKPOINTS_TO_KEEP = 2

History = dict[str, Array]
Figures = dict[str, float | list[float]]
"""Of one model, or lists of many."""


@dataclass(frozen=True)
class Run:
    """What the loop needs to know of a run.

    Attributes:
      folder: the run's folder, held.
      spec: the model's choices.
      num_epochs: epochs to train.
      batch_sizes: examples in each step of an epoch.
      checkpoint_every: epochs between checkpoints.
      epoch: `f(number) -> Epoch`, the order of the data.
      train: `f(state, epoch, history, stop) -> (state, history)`, compiled.
      empty_history: `f() -> history` before the first step of an epoch.
      evaluate: `f(state) -> figures` of the test set.
      active_units: `f(state) -> [M]`, of the test set.
      remedies: what to change if the posterior collapses, for the user.
      num_models: models in the state; with several, histories and figures have one
        entry for each, and the run goes on while one of them is finite.
    """

    folder: Path
    spec: ModelSpec
    num_epochs: int
    batch_sizes: tuple[int, ...]
    checkpoint_every: int
    epoch: Callable[[int], Epoch]
    train: Callable[..., tuple[TrainState, History]]
    empty_history: Callable[[], History]
    evaluate: Callable[[TrainState], Figures]
    active_units: Callable[[TrainState], Sequence[int]]
    remedies: str
    num_models: int = 1

    @property
    def num_steps(self) -> int:
        """Steps of an epoch."""
        return len(self.batch_sizes)

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints are."""
        return self.folder / "checkpoints"


class Trained(NamedTuple):
    """The end of a training run.

    Attributes:
      state: the state after the last step.
      rows: the rows of metrics.jsonl.
      images_per_second: over the training scans of this process; None without any.
      seconds_to_first_step: from `started`, compilation included; likewise.
    """

    state: TrainState
    rows: list[dict]
    images_per_second: float | None
    seconds_to_first_step: float | None


class Piece(NamedTuple):
    """Some consecutive steps of an epoch, taken."""

    state: TrainState
    history: History
    num_steps: int
    num_images: int
    seconds: float


def train(run: Run, state: TrainState, *, started: float) -> Trained:
    """Trains from the last good checkpoint, or from the state given, to the end.

    Args:
      run: what to train and where.
      state: the state before the first step; also the structure of checkpoints.
      started: `time.perf_counter()` at the start of the command.

    Returns:
      The final state, which is also the newest checkpoint, and the metrics.

    Raises:
      CommandFailed: a loss that is not finite; names the first bad step.
      Interrupted: a signal came; the state is saved.
    """
    state, history = restore_newest(run, state)
    first_epoch, position = divmod(int(state.step), run.num_steps)
    metrics = NoMetrics()
    if processes.is_first():
        step = int(state.step) - position
        metrics = Metrics(run.folder, epoch=first_epoch, step=step)
    pace, totals, to_first_step, stopping = _Pace(), np.zeros(2), None, 0
    judged = not processes.is_first()
    with _signals() as received, contextlib.closing(metrics), _bar(run) as bar:
        bar.update(int(state.step))
        if first_epoch < run.num_epochs:
            # No step: compiles, so that no figure of speed contains it.
            state, history = run.train(state, run.epoch(first_epoch), history, 0)
            jax.block_until_ready(state)
        for epoch in range(first_epoch, run.num_epochs):
            epoch_totals = np.zeros(2)
            for piece in _pieces(run, state, history, epoch, pace):
                to_first_step = to_first_step or time.perf_counter() - started
                state, history = piece.state, piece.history
                epoch_totals += piece.num_images, piece.seconds
                _show(bar, piece)
                (stopping,) = processes.agree([received[0] if received else 0])
                if stopping and int(state.step) % run.num_steps:
                    _save(run, state, history, metrics)
                    _stop(stopping, state)
            totals += epoch_totals
            speed = float(epoch_totals[0] / epoch_totals[1])
            _log_epoch(run, metrics, state, _average(run, history), speed)
            history = run.empty_history()
            last = epoch + 1 == run.num_epochs
            if not (judged or last) and int(state.step) >= STEPS_BEFORE_JUDGING:
                judged = True
                _warn_of_collapse(run, state)
            if last or stopping or (epoch + 1) % run.checkpoint_every == 0:
                _save(run, state, history, metrics)
            if stopping and not last:
                _stop(stopping, state)
    speed = float(totals[0] / totals[1]) if totals[1] else None
    return Trained(state, metrics.rows, speed, to_first_step)


class _Pace:
    """How many steps make a piece: one at first, then what fits into the time."""

    num_steps = 1

    def measure(self, num_steps: int, seconds: float) -> None:
        self.num_steps = max(1, int(num_steps / seconds * SECONDS_PER_PIECE))


def _pieces(
    run: Run, state: TrainState, history: History, epoch: int, pace: _Pace
) -> Iterator[Piece]:
    """Takes the steps of an epoch that are left, piece by piece."""
    order = run.epoch(epoch)
    position = int(state.step) % run.num_steps
    while position < run.num_steps:
        (num_steps,) = processes.agree([pace.num_steps])
        stop = min(position + num_steps, run.num_steps)
        began = time.perf_counter()
        state, history = run.train(state, order, history, stop)
        objective = np.asarray(history["objective"])
        seconds = time.perf_counter() - began
        finite = np.isfinite(objective[position:stop].reshape(stop - position, -1))
        bad = np.flatnonzero(~finite.any(axis=1))
        if bad.size:
            _fail_not_finite(run, epoch * run.num_steps + position + int(bad[0]))
        num_images = run.num_models * sum(run.batch_sizes[position:stop])
        pace.measure(stop - position, seconds)
        yield Piece(state, history, stop - position, num_images, seconds)
        position = stop


def restore_newest(run: Run, state: TrainState) -> tuple[TrainState, History]:
    """The newest checkpoint that is intact, or the state given where there is none.

    A broken one is warned of and moved to `corrupt/` in the run's folder.

    Args:
      run: the run.
      state: the state before the first step; the structure of checkpoints.

    Returns:
      A state, and the history of the epoch that it stands in.
    """
    history = run.empty_history()
    steps = checkpoint.steps(run.checkpoints)
    while steps:
        step = steps.pop()
        folder = run.checkpoints / str(step)
        try:
            found = checkpoint.restore_state(folder, state, extra=history)
        except checkpoint.CorruptCheckpoint as error:
            found, problem = None, error
        # If one process cannot read it, none goes on from it.
        if not processes.agree([found is None])[0]:
            return found
        if processes.is_first():
            before = steps[-1] if steps else 0
            _put_aside(run, step)
            print(
                f"warning: corrupt checkpoint {step}: "
                f"{problem if found is None else 'to another process'}; going on from "
                f"{before}",
                file=sys.stderr,
            )
    return state, history


def _put_aside(run: Run, step: int) -> None:
    """Moves a checkpoint to where no run looks."""
    aside = run.folder / "corrupt" / str(step)
    shutil.rmtree(aside, ignore_errors=True)
    aside.parent.mkdir(exist_ok=True)
    (run.checkpoints / str(step)).rename(aside)


def _save(run: Run, state: TrainState, history: History, metrics: Metrics) -> None:
    """Saves a checkpoint; keeps the newest ones and the best."""
    if not finite_models(run, state).any():
        _fail_not_finite(run, int(state.step))
    metrics.flush()
    step = int(state.step)
    if not (run.checkpoints / str(step)).exists():
        checkpoint.save(
            run.checkpoints / str(step), state, spec=run.spec, extra=history
        )
    if not processes.is_first():
        return
    best = _update_best(run, step, metrics.rows)
    for old in checkpoint.steps(run.checkpoints)[:-CHECKPOINTS_TO_KEEP]:
        if old != best:
            checkpoint.remove(run.checkpoints / str(old))


def finite_models(run: Run, state: TrainState) -> np.ndarray:
    """Which models have finite parameters, `[M]`; of a single one `[1]`.

    Args:
      run: the run.
      state: its state.

    Returns:
      Booleans.
    """
    finite = [
        np.isfinite(np.asarray(leaf)).reshape(run.num_models, -1).all(axis=1)
        for leaf in jax.tree.leaves(state.params)
    ]
    return np.all(finite, axis=0)


def _update_best(run: Run, step: int, rows: list[dict]) -> int | None:
    """Names the checkpoint with the highest test ELBO in best.json."""
    path = run.checkpoints / "best.json"
    candidates = [json.loads(path.read_text())] if path.exists() else []
    candidates += [
        {"step": row["step"], "epoch": row["epoch"], "test_elbo": row["elbo"]}
        for row in rows[-1:]
        if row["step"] == step and isinstance(row["elbo"], float)
    ]
    kept = checkpoint.steps(run.checkpoints)
    candidates = [entry for entry in candidates if entry["step"] in kept]
    if not candidates:
        return None
    best = max(candidates, key=lambda entry: entry["test_elbo"])
    write_json(path, best)
    return best["step"]


def _average(run: Run, history: History) -> Figures:
    """Means over the examples of an epoch."""
    return {
        name: np.average(
            np.asarray(values, float), axis=0, weights=run.batch_sizes
        ).tolist()
        for name, values in history.items()
    }


def _log_epoch(
    run: Run, metrics: Metrics, state: TrainState, train: Figures, speed: float
) -> None:
    """Adds the rows of an epoch; prints about ten of them in a run."""
    if not processes.is_first():
        return
    step = int(state.step)
    epoch = step // run.num_steps
    test = run.evaluate(state)
    names = ("elbo", "log_likelihood", "kl_divergence")
    for split, figures in (("train", train), ("test", test)):
        metrics.add(
            {"epoch": epoch, "step": step, "split": split}
            | {name: figures[name] for name in names}
            | {"images_per_second": speed if split == "train" else None}
        )
    if epoch % max(1, run.num_epochs // 10) == 0 or epoch == run.num_epochs:
        tqdm.write(
            f"epoch {epoch}/{run.num_epochs}: ELBO {_span(train['elbo'])} train, "
            f"{_span(test['elbo'])} test; KL {_span(test['kl_divergence'])} nats; "
            f"{speed:,.0f} images/s"
        )


def _warn_of_collapse(run: Run, state: TrainState) -> None:
    """Says early that a model has no active unit, while there is time to stop."""
    finite = finite_models(run, state)
    units = run.active_units(state)
    collapsed = [
        index for index, count in enumerate(units) if finite[index] and not count
    ]
    if not collapsed:
        return
    models = "the model has"
    if run.num_models > 1:
        models = f"of the models, {', '.join(map(str, collapsed))} have"
    tqdm.write(collapse_warning(models, run.remedies), file=sys.stderr)


def _span(figure: np.typing.ArrayLike, digits: int = 2) -> str:
    """A figure, or the least and the greatest of many models."""
    figure = np.asarray(figure, float)
    finite = figure[np.isfinite(figure)]
    if not finite.size:
        return "nan"
    ends = dict.fromkeys(f"{end:.{digits}f}" for end in (finite.min(), finite.max()))
    return " to ".join(ends)


def _fail_not_finite(run: Run, step: int) -> NoReturn:
    """Stops the run; nothing that is not finite is ever saved."""
    good = checkpoint.steps(run.checkpoints)
    kept = f"checkpoint {good[-1]} is the last good one" if good else "none was saved"
    raise CommandFailed(
        f"the loss is not finite at step {step} (the first is 0): {kept}; a smaller "
        "learning rate may help"
    )


def _stop(signal_number: int, state: TrainState) -> NoReturn:
    raise Interrupted(
        signal_number,
        f"saved at step {int(state.step)}; the same command goes on from there",
    )


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM; a second one of a kind acts at once."""
    received: list[int] = []

    def receive(number: int, frame) -> None:
        received.append(number)
        signal.signal(number, before[number])

    numbers = (signal.SIGINT, signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {number: signal.signal(number, receive) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _bar(run: Run) -> tqdm:
    """A progress bar over all steps; silent where nobody watches."""
    total = run.num_epochs * run.num_steps
    silent = None if processes.is_first() else True
    return tqdm(total=total, unit="step", disable=silent, dynamic_ncols=True)


def _show(bar: tqdm, piece: Piece) -> None:
    """Live figures: of the last step taken."""
    history = jax.tree.map(np.asarray, piece.history)
    last = (int(piece.state.step) - 1) % len(history["elbo"])
    bar.set_postfix(
        ELBO=_span(history["elbo"][last], digits=1),
        KL=_span(history["kl_divergence"][last], digits=1),
        images_per_second=f"{piece.num_images / piece.seconds:,.0f}",
    )
    bar.update(piece.num_steps)
