"""Checkpoints of a run: restore the newest intact one, keep the last two and the best.

A checkpoint holds the state, the history of its current epoch, the metrics of the
epochs before and, if there are validation data, the best epoch so far.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

import jax
import numpy as np

from experiments.runner import processes
from experiments.runner.command_line import CommandFailed
from experiments.runner.run_folder import write_json
from vae_jax import ModelSpec, Params, TrainState, checkpoint
from vae_jax.manifest import discard
from vae_jax.types import Array

CHECKPOINTS_TO_KEEP = 2
METRICS = "metrics.jsonl"
History = dict[str, Array]


class Restored(NamedTuple):
    """Progress from which a run resumes.

    Attributes:
      state: the training state.
      history: the history of its current epoch.
      rows: the lines of metrics.jsonl up to then; None if there is no checkpoint, or
        one written by an earlier version without them.
    """

    state: TrainState
    history: History
    rows: str | None


def restore_newest(
    folder: Path, state: TrainState, history: History, spec: ModelSpec
) -> Restored:
    """Return the newest intact checkpoint, or the arguments if there is none.

    A corrupt one is moved to `corrupt/` in the run's folder, with a warning.

    Args:
      folder: the run's folder.
      state: the state before the first step, which has the structure of checkpoints.
      history: the history before the first step of an epoch.
      spec: the model, whose classes may have changed since the run began.

    Returns:
      The state, the history of its current epoch, and the metrics so far.

    Raises:
      ValueError: if the newest checkpoint is of another model; names what differs.
    """
    steps = checkpoint.steps(folder / "checkpoints")
    while steps:
        step = steps.pop()
        path = folder / "checkpoints" / str(step)
        found, problem = None, "to another process"
        try:
            found_state, found_history = checkpoint.restore_state(
                path, state, extra=history, spec=spec
            )
            rows = checkpoint.read_text(path, METRICS)
            found = Restored(found_state, found_history, rows)
        except checkpoint.CorruptCheckpoint as error:
            problem = str(error)
        except ValueError as error:
            raise ValueError(
                f"run_dir {folder} holds a run of another configuration: {error} "
                "(--overwrite starts anew)"
            ) from error
        # If one process cannot read it, none may resume from it.
        if not processes.agree([found is None])[0] and found is not None:
            return found
        if processes.is_first():
            _put_aside(path, folder / "corrupt")
            print(
                f"warning: corrupt checkpoint {step}: "
                f"{problem}; going on from "
                f"{steps[-1] if steps else 0}",
                file=sys.stderr,
            )
    return Restored(state, history, None)


def restore_best(folder: Path, step: int, spec: ModelSpec) -> Params | None:
    """Restore the parameters of the best checkpoint in all processes.

    Warn if the checkpoint is missing or corrupt; a corrupt one is moved to `corrupt/`
    in the run's folder.

    Args:
      folder: the run's folder.
      step: step of the checkpoint.
      spec: the model, whose classes may be user-defined.

    Returns:
      The parameters; None if they cannot be read.
    """
    path = folder / "checkpoints" / str(step)
    found, problem = None, "to another process"
    try:
        found = checkpoint.restore(path, spec=spec)
    except (checkpoint.CorruptCheckpoint, FileNotFoundError) as error:
        problem = str(error)
    # If one process cannot read it, none may evaluate it.
    if not processes.agree([found is None])[0]:
        return found
    if processes.is_first():
        is_there = path.is_dir()
        if is_there:
            _put_aside(path, folder / "corrupt")
        print(
            f"warning: {'corrupt' if is_there else 'missing'} checkpoint {step}, the "
            f"best on validation data: {problem}; no figures best_* are written",
            file=sys.stderr,
        )
    return None


def _put_aside(path: Path, corrupt: Path) -> None:
    """Move a checkpoint into the folder `corrupt`, replacing one of the same step."""
    if corrupt.is_symlink() or not corrupt.is_dir():
        discard(corrupt)
    corrupt.mkdir(exist_ok=True)
    discard(corrupt / path.name)
    path.rename(corrupt / path.name)


def save(
    folder: Path,
    state: TrainState,
    history: History,
    *,
    spec: ModelSpec,
    num_models: int,
    lines: str,
) -> None:
    """Save a checkpoint; `keep_best_and_newest` removes older ones.

    Args:
      folder: the run's folder.
      state: the training state.
      history: the history of its current epoch.
      spec: the model.
      num_models: number of models in the state.
      lines: the whole text of metrics.jsonl.

    Raises:
      CommandFailed: if no model has finite parameters; nothing is saved.
    """
    step, checkpoints = int(state.step), folder / "checkpoints"
    if not finite_models(state.params, num_models).any():
        fail_not_finite(folder, step)
    # `checkpoint.save` raises if something other than a checkpoint has this name.
    if step not in checkpoint.steps(checkpoints):
        texts = {METRICS: lines}
        checkpoint.save(
            checkpoints / str(step), state, spec=spec, extra=history, texts=texts
        )


def keep_best_and_newest(folder: Path, rows: Sequence[dict]) -> None:
    """Record the best checkpoint in best.json; remove all but it and the newest.

    Does nothing in a process that does not write.

    Args:
      folder: the run's folder.
      rows: the rows of metrics.jsonl; empty if no best epoch is selected.
    """
    if not processes.is_first():
        return
    checkpoints = folder / "checkpoints"
    best = _update_best(checkpoints, rows)
    for old in checkpoint.steps(checkpoints)[:-CHECKPOINTS_TO_KEEP]:
        if old not in best:
            checkpoint.remove(checkpoints / str(old))


def finite_models(params: Params, num_models: int) -> np.ndarray:
    """Return whether each model has finite parameters.

    Args:
      params: the parameters of all models.
      num_models: number of models M.

    Returns:
      Booleans `[M]`; `[1]` for a single model.
    """
    finite = [
        np.isfinite(np.asarray(leaf)).reshape(num_models, -1).all(axis=1)
        for leaf in jax.tree.leaves(params)
    ]
    return np.all(finite, axis=0)


def fail_not_finite(folder: Path, step: int) -> NoReturn:
    """Raise CommandFailed for a loss or parameters that are not finite.

    Args:
      folder: the run's folder.
      step: the first step that is not finite.

    Raises:
      CommandFailed: names the step and the last good checkpoint.
    """
    good = checkpoint.steps(folder / "checkpoints")
    kept = f"checkpoint {good[-1]} is the last good one" if good else "none was saved"
    remedy = "a smaller learning rate may help"
    if step == 0:
        remedy = "no step was taken before: look at the scale of the data"
    raise CommandFailed(
        f"the loss is not finite at step {step} (the first is 0): {kept}; {remedy}"
    )


def merit(row: dict) -> float | None:
    """Criterion for the best checkpoint; higher is better.

    Args:
      row: a row of metrics.jsonl.

    Returns:
      The validation ELBO of a single model, rounded to float32 as in
      `selection.Best`; None if the row has none.
    """
    elbo = row.get("elbo")
    is_one = row.get("split") == "validation" and isinstance(elbo, float)
    return float(np.float32(elbo)) if is_one else None


def _update_best(checkpoints: Path, rows: Sequence[dict]) -> set[int]:
    """Record the best of the existing checkpoints in best.json.

    All are compared again, since a process may have ended after saving a checkpoint and
    before recording it.

    Returns:
      For each of the newest checkpoints, the step of the best one up to it: if the last
      is found corrupt, the run resumes from the one before, with the best at that time.
    """
    kept = checkpoint.steps(checkpoints)
    candidates = [
        {"step": row["step"], "epoch": row["epoch"], "validation_elbo": merit(row)}
        for row in rows
        if row["step"] in kept and merit(row) is not None
    ]
    best = [
        max(until, key=lambda entry: entry["validation_elbo"])
        for newest in kept[-CHECKPOINTS_TO_KEEP:]
        if (until := [entry for entry in candidates if entry["step"] <= newest])
    ]
    if best:
        write_json(checkpoints / "best.json", best[-1])
    return {entry["step"] for entry in best}
