"""A training run and its folder: restore, train, check, log, save, stop.

The experiment writes the training loop:

    with open_run("mnist", config, ...) as training:
        state, history = training.restore(state, empty)
        for epoch in training.epochs(state):
            for stop in training.pieces(state):
                state, history = train(state, order(epoch), history, stop)
                training.check(state, history)
            training.log(state, history, figures)
            history = empty
            training.save(state, history)

An epoch is split into pieces of a few seconds, all run by one compiled program. After
each piece, the run checks the losses and any signals received.
"""

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from tqdm import tqdm

from experiments.runner import (
    checkpoints,
    processes,
    run_folder,
    selection,
    signals,
    startup,
)
from experiments.runner.checkpoints import History
from experiments.runner.command_line import Interrupted, say
from experiments.runner.flags import RunFlags
from experiments.runner.metrics import NAMES, Metrics
from vae_jax import ModelSpec, TrainState

SECONDS_PER_PIECE = 2.0
# A posterior that collapses early in training has done so by this step.
STEPS_BEFORE_JUDGING = 800

Figures = dict[str, Any]
"""Scalars for one model, or lists with one entry per model."""


@contextlib.contextmanager
def open_run(
    command: str,
    config: RunFlags,
    digest: str,
    spec: ModelSpec,
    batch_sizes: Sequence[int],
    started: float,
    *,
    num_models: int = 1,
    selects: bool = False,
    patience: int | None = None,
) -> Iterator["Run"]:
    """Open and lock a run's folder, new or with the same configuration and data.

    Args:
      command: name of the command, part of the default folder.
      config: the resolved configuration.
      digest: digest of the data.
      spec: the model.
      batch_sizes: number of examples in each step of an epoch.
      started: `time.perf_counter()` at the start of the command.
      num_models: number of models in the state. With more than one, histories and
        figures have one entry per model, and the run continues as long as one of them
        is finite.
      selects: whether to keep the epoch with the best validation ELBO; for a single
        model.
      patience: end the run after this many epochs without a better one; None trains
        for all epochs.

    Yields:
      A `Run`.

    Raises:
      ValueError: if the folder is in use, is not writable or holds another run, or if
        the processes differ in flags or data.
    """
    processes.require_alike(config, digest)
    # Training collects the signal; the evaluation after it would end without a word.
    startup.end_by_sigterm()
    folder = Path(config.run_dir or run_folder.default_folder(command, config))
    with contextlib.ExitStack() as stack:
        stack.enter_context(processes.first_alone(run_folder.locked(folder)))
        if processes.is_first():
            say(*run_folder.claim(folder, config, digest))
        run = Run(folder, config, spec, batch_sizes, num_models, started)
        run.select(selects, patience)
        yield stack.enter_context(contextlib.closing(run))


class Run:
    """An open run and its progress.

    Attributes:
      folder: the run's folder, locked by this command.
      rows: the rows of metrics.jsonl; empty in a process that does not write.
      images_per_second: average over all training by this process; None before any.
    """

    def __init__(
        self,
        folder: Path,
        config: RunFlags,
        spec: ModelSpec,
        batch_sizes: Sequence[int],
        num_models: int,
        started: float,
    ):
        """See `open_run`."""
        self.folder, self._config, self._spec = folder, config, spec
        self._batch_sizes, self._num_models = batch_sizes, num_models
        if config.epochs is None or config.checkpoint_every is None:
            raise ValueError(
                "epochs and checkpoint_every must be resolved, got "
                f"{config.epochs} and {config.checkpoint_every}"
            )
        self._num_steps, self._num_epochs = len(batch_sizes), config.epochs
        self._checkpoint_every = config.checkpoint_every
        self._started, self._seconds_to_first_step = started, None
        self._metrics: Metrics | None = None
        self._judged = not processes.is_first()
        self._received: list[int] = []
        self._stopping = 0
        self._steps_per_piece = 0
        # Images and seconds, in this epoch and in total.
        self._epoch, self._total = np.zeros(2), np.zeros(2)
        self._while_training = contextlib.ExitStack()
        self._best: selection.Best | None = None
        self._patience: int | None = None

    def select(self, selects: bool, patience: int | None) -> None:
        """Set whether to keep the best epoch, and the patience: see `open_run`."""
        self._best = selection.Best() if selects else None
        self._patience = patience

    @property
    def best(self) -> dict[str, Any] | None:
        """Step, epoch and validation ELBO of the best epoch; None if there is none."""
        if self._best is None or not self._best.best_epoch:
            return None
        epoch = int(self._best.best_epoch)
        return {
            "step": epoch * self._num_steps,
            "epoch": epoch,
            "validation_elbo": float(self._best.best_elbo),
        }

    @property
    def rows(self) -> list[dict]:
        """See the class."""
        return self._metrics.rows if self._metrics else []

    @property
    def images_per_second(self) -> float | None:
        """See the class."""
        images, seconds = self._total
        return float(images / seconds) if seconds else None

    def restore(
        self, state: TrainState, history: History
    ) -> tuple[TrainState, History]:
        """Restore the newest intact checkpoint, or return the arguments.

        Args:
          state: the state before the first step.
          history: the history before the first step of an epoch.

        Returns:
          The state, and the history of its current epoch.
        """
        saved = history | (self._best._asdict() if self._best else {})
        state, saved, rows = checkpoints.restore_newest(
            self.folder, state, saved, self._spec
        )
        history = {name: saved[name] for name in history}
        if self._best:
            own = (saved[name] for name in self._best._fields)
            self._best = selection.Best(*map(np.asarray, own))
        epoch, position = divmod(int(state.step), self._num_steps)
        if processes.is_first():
            run_folder.record(self.folder, self._config)
            step = int(state.step) - position
            self._metrics = Metrics(self.folder, epoch=epoch, step=step, known=rows)
            self._keep_best_and_newest()
        return state, history

    def epochs(self, state: TrainState) -> Iterator[int]:
        """Iterate over the remaining epochs, deferring signals to `check` and `save`.

        Args:
          state: the restored state.

        Yields:
          Epoch numbers, counted from 0.
        """
        if self._metrics:
            self._while_training.callback(self._metrics.close)
        self._received = self._while_training.enter_context(signals.collected())
        # A progress bar over all steps, disabled if stderr is not a terminal.
        self._bar = self._while_training.enter_context(
            tqdm(
                total=self._num_epochs * self._num_steps,
                unit="step",
                disable=None if processes.is_first() else True,
                dynamic_ncols=True,
            )
        )
        self._bar.update(int(state.step))
        for epoch in range(int(state.step) // self._num_steps, self._num_epochs):
            if self._is_over(epoch):
                break
            yield epoch
        self._while_training.close()

    def _is_over(self, epoch: int) -> bool:
        """Return whether the run ends after this number of epochs."""
        stopped = self._best and self._best.is_over(epoch, patience=self._patience)
        return bool(stopped) or epoch == self._num_epochs

    def pieces(self, state: TrainState) -> Iterator[int]:
        """Iterate over the steps of the epoch at which a piece ends.

        The first piece in a process takes no steps: it only compiles, so that measured
        speeds exclude compilation. The second takes one step, each of the others about
        `SECONDS_PER_PIECE` seconds. `check` must be called after each piece.

        Args:
          state: the state at the start of the epoch, or restored within it.

        Yields:
          The step within the epoch at which the next piece ends.
        """
        position = int(state.step) % self._num_steps
        while position < self._num_steps:
            (count,) = processes.agree([self._steps_per_piece])
            stop = min(position + count, self._num_steps)
            self._piece, self._began = slice(position, stop), time.perf_counter()
            yield stop
            position = stop

    def check(self, state: TrainState, history: History) -> None:
        """Check the losses of a piece; save and stop if a signal was received.

        Args:
          state: the state after the piece.
          history: the history of the epoch so far.

        Raises:
          CommandFailed: if a loss is not finite (for several models: if all of them
            are not); names the first such step.
          Interrupted: if a signal was received; the state has been saved.
        """
        jax.block_until_ready((state, history))
        seconds = time.perf_counter() - self._began
        start, stop = self._piece.start, self._piece.stop
        if start == stop:
            self._steps_per_piece = 1
            return
        objective = np.asarray(history["objective"])[start:stop]
        finite = np.isfinite(objective.reshape(stop - start, -1)).any(axis=1)
        step = int(state.step)
        if not finite.all():
            first_bad = step - (stop - start) + int(np.argmin(finite))
            checkpoints.fail_not_finite(self.folder, first_bad)
        if self._seconds_to_first_step is None:
            self._seconds_to_first_step = time.perf_counter() - self._started
        images = self._num_models * sum(self._batch_sizes[self._piece])
        self._epoch += images, seconds
        self._steps_per_piece = max(
            1, int((stop - start) / seconds * SECONDS_PER_PIECE)
        )
        self._show(step, history, images / seconds)
        (self._stopping,) = processes.agree([*self._received, 0][:1])
        if self._stopping and stop < self._num_steps:
            self._save(state, history)
            self._stop(state)

    def log(
        self, state: TrainState, history: History, figures: Figures | None, split: str
    ) -> None:
        """Log the metrics of an epoch; print about ten epochs per run.

        Args:
          state: the state at the end of the epoch.
          history: the history of the whole epoch.
          figures: ELBO and its terms on held-out data; None in a process that does not
            write.
          split: the held-out data: `validation`, which selects the best epoch, or
            `test`.
        """
        step = int(state.step)
        epoch = step // self._num_steps
        if self._best:
            elbo = processes.of_first(figures["elbo"] if figures else np.nan)
            self._best = self._best.after(epoch, elbo)
        speed = float(self._epoch[0] / self._epoch[1])
        self._total += self._epoch
        self._epoch[:] = 0
        if self._metrics is None or figures is None:
            return
        train = {
            name: np.average(
                np.asarray(history[name], float), axis=0, weights=self._batch_sizes
            ).tolist()
            for name in NAMES
        }
        for name, values in (("train", train), (split, figures)):
            self._metrics.add(
                {"epoch": epoch, "step": step, "split": name}
                | {figure: values[figure] for figure in NAMES}
                | {"images_per_second": speed if name == "train" else None}
            )
        every = max(1, self._num_epochs // 10)
        if epoch % every == 0 or self._is_over(epoch):
            tqdm.write(
                f"epoch {epoch}/{self._num_epochs}: ELBO {_span(train['elbo'])} train, "
                f"{_span(figures['elbo'])} {split}; KL "
                f"{_span(figures['kl_divergence'])} nats; {speed:,.0f} examples/s"
            )
        if self._is_over(epoch) and epoch < self._num_epochs:
            tqdm.write(f"no better validation ELBO for {self._patience} epochs: stop")

    def is_time_to_judge(self, state: TrainState) -> bool:
        """Return whether to test for posterior collapse now, once and early in a run.

        Args:
          state: the state at the end of an epoch.

        Returns:
          True once, after `STEPS_BEFORE_JUDGING` steps and before the last, in the
          process that prints.
        """
        last = int(state.step) == self._num_epochs * self._num_steps
        now = not (self._judged or last) and int(state.step) >= STEPS_BEFORE_JUDGING
        self._judged = self._judged or now
        return now

    def save(self, state: TrainState, history: History) -> None:
        """Save a checkpoint if one is due; stop if a signal was received.

        Args:
          state: the state at the end of an epoch.
          history: the history before the first step of the next epoch.

        Raises:
          CommandFailed: if the parameters are not finite.
          Interrupted: if a signal was received; the state has been saved.
        """
        epoch = int(state.step) // self._num_steps
        last = self._is_over(epoch)
        due = epoch % self._checkpoint_every == 0
        better = self._best is not None and self._best.best_epoch == epoch
        if last or self._stopping or due or better:
            self._save(state, history)
        if self._stopping and not last:
            self._stop(state)

    def finished(self, state: TrainState, **asked: Any) -> Figures | None:
        """Return the existing results, if they belong to this state.

        Args:
          state: the state at the end of the run.
          **asked: entries that the results must contain.

        Returns:
          The content of results.json; None if training or evaluation is incomplete.
        """
        path, wanted = self.folder / "results.json", asked | {"step": int(state.step)}
        if self.images_per_second or not path.exists():
            return None
        try:
            found, is_changed = run_folder.read_signed(path)
        except ValueError:
            found, is_changed = {}, True
        if is_changed:
            print(
                f"warning: {path} is not what a run wrote: evaluating the model again",
                file=sys.stderr,
            )
        same = all(found.get(name) == wanted[name] for name in wanted)
        return found if is_changed is False and same else None

    def write_results(self, state: TrainState, figures: Figures) -> Figures:
        """Write results.json.

        Args:
          state: the state at the end of the run.
          figures: figures of the model.

        Returns:
          The figures, with speed, times, epochs and steps, JAX version and devices.
          `images_per_second`, `seconds` and `seconds_to_first_step` are of this
          process, which in a resumed run is the last of several; the speed is that of
          the last epoch if this process trained none.
        """
        speeds = [
            row["images_per_second"] for row in self.rows if row["split"] == "train"
        ]
        results = figures | {
            "images_per_second": self.images_per_second or (speeds or [None])[-1],
            "seconds_to_first_step": self._seconds_to_first_step,
            "epochs": int(state.step) // self._num_steps,
            "step": int(state.step),
            "jax_version": jax.__version__,
            "device": f"{self._config.num_devices} x {jax.devices()[0].device_kind}",
            "seconds": time.perf_counter() - self._started,
        }
        return run_folder.write_signed(self.folder / "results.json", results)

    def close(self) -> None:
        """Close the files and the progress bar, and restore the signal handlers."""
        self._while_training.close()

    def _save(self, state: TrainState, history: History) -> None:
        if self._metrics:
            run_folder.require_present(self.folder)
            self._metrics.flush()
        checkpoints.save(
            self.folder,
            state,
            history | (self._best._asdict() if self._best else {}),
            spec=self._spec,
            num_models=self._num_models,
            lines=self._metrics.text if self._metrics else "",
        )
        self._keep_best_and_newest()

    def _keep_best_and_newest(self) -> None:
        rows = self.rows if self._best else []
        checkpoints.keep_best_and_newest(self.folder, rows)

    def _stop(self, state: TrainState) -> NoReturn:
        raise Interrupted(
            self._stopping,
            f"saved at step {int(state.step)}; run the same command to resume",
        )

    def _show(self, step: int, history: History, speed: float) -> None:
        """Show the figures of the last step in the progress bar."""
        elbo, kl = (
            np.asarray(history[name])[self._piece.stop - 1]
            for name in ("elbo", "kl_divergence")
        )
        self._bar.set_postfix(
            ELBO=_span(elbo, digits=1),
            KL=_span(kl, digits=1),
            images_per_second=f"{speed:,.0f}",
        )
        self._bar.update(step - self._bar.n)


def _span(figure: np.typing.ArrayLike, digits: int = 2) -> str:
    """Format one figure, or the minimum and maximum over several models."""
    figure = np.asarray(figure, float)
    finite = figure[np.isfinite(figure)]
    if not finite.size:
        return "nan"
    ends = dict.fromkeys(f"{end:.{digits}f}" for end in (finite.min(), finite.max()))
    return " to ".join(ends)
