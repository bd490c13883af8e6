"""Checkpoints of a run: restore the newest good one, keep the last two and the best.

Each holds the state and the history of the epoch that it stands in.
"""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import jax
import numpy as np

from experiments.runner import processes
from experiments.runner.command_line import CommandFailed
from experiments.runner.run_folder import write_json
from vae_jax import ModelSpec, Params, TrainState, checkpoint
from vae_jax.types import Array

CHECKPOINTS_TO_KEEP = 2
History = dict[str, Array]


def restore_newest(
    folder: Path, state: TrainState, history: History, spec: ModelSpec
) -> tuple[TrainState, History]:
    """The newest checkpoint that is intact, or the arguments where there is none.

    A broken one is moved to `corrupt/` in the run's folder, with a warning.

    Args:
      folder: the run's folder.
      state: the state before the first step; the structure of checkpoints.
      history: the history before the first step of an epoch.
      spec: the model, whose classes may have changed since the run began.

    Returns:
      A state, and the history of the epoch that it stands in.

    Raises:
      ValueError: the newest is of another model; names what differs.
    """
    steps = checkpoint.steps(folder / "checkpoints")
    while steps:
        step = steps.pop()
        path = folder / "checkpoints" / str(step)
        found, problem = None, "to another process"
        try:
            found = checkpoint.restore_state(path, state, extra=history, spec=spec)
        except checkpoint.CorruptCheckpoint as error:
            problem = str(error)
        except ValueError as error:
            raise ValueError(
                f"run_dir {folder} holds a run of another configuration: {error} "
                "(--overwrite starts anew)"
            ) from error
        # If one process cannot read it, none goes on from it.
        if not processes.agree([found is None])[0] and found is not None:
            return found
        if processes.is_first():
            aside = folder / "corrupt" / str(step)
            shutil.rmtree(aside, ignore_errors=True)
            aside.parent.mkdir(exist_ok=True)
            path.rename(aside)
            print(
                f"warning: corrupt checkpoint {step}: "
                f"{problem}; going on from "
                f"{steps[-1] if steps else 0}",
                file=sys.stderr,
            )
    return state, history


def save(
    folder: Path,
    state: TrainState,
    history: History,
    *,
    spec: ModelSpec,
    num_models: int,
    rows: Sequence[dict],
) -> None:
    """Save a checkpoint; remove all but the newest ones and the best.

    Args:
      folder: the run's folder.
      state: the state.
      history: of the epoch that it stands in.
      spec: the model.
      num_models: models in the state.
      rows: the rows of metrics.jsonl.

    Raises:
      CommandFailed: no model is finite; nothing is saved.
    """
    step, checkpoints = int(state.step), folder / "checkpoints"
    if not finite_models(state.params, num_models).any():
        fail_not_finite(folder, step)
    if not (checkpoints / str(step)).exists():
        checkpoint.save(checkpoints / str(step), state, spec=spec, extra=history)
    if not processes.is_first():
        return
    best = _update_best(checkpoints, step, rows)
    for old in checkpoint.steps(checkpoints)[:-CHECKPOINTS_TO_KEEP]:
        if old != best:
            checkpoint.remove(checkpoints / str(old))


def finite_models(params: Params, num_models: int) -> np.ndarray:
    """Whether each model has finite parameters, `[M]`; `[1]` for a single one.

    Args:
      params: of all models.
      num_models: M.

    Returns:
      Booleans.
    """
    finite = [
        np.isfinite(np.asarray(leaf)).reshape(num_models, -1).all(axis=1)
        for leaf in jax.tree.leaves(params)
    ]
    return np.all(finite, axis=0)


def fail_not_finite(folder: Path, step: int) -> NoReturn:
    """Stop the run; nothing that is not finite is ever saved.

    Args:
      folder: the run's folder.
      step: the first bad step.

    Raises:
      CommandFailed: names the step and the last good checkpoint.
    """
    good = checkpoint.steps(folder / "checkpoints")
    kept = f"checkpoint {good[-1]} is the last good one" if good else "none was saved"
    raise CommandFailed(
        f"the loss is not finite at step {step} (the first is 0): {kept}; a smaller "
        "learning rate may help"
    )


def _update_best(checkpoints: Path, step: int, rows: Sequence[dict]) -> int | None:
    """Name the checkpoint with the highest test ELBO in best.json."""
    path = checkpoints / "best.json"
    candidates = [json.loads(path.read_text())] if path.exists() else []
    candidates += [
        {"step": row["step"], "epoch": row["epoch"], "test_elbo": row["elbo"]}
        for row in rows[-1:]
        if row["step"] == step and isinstance(row["elbo"], float)
    ]
    kept = checkpoint.steps(checkpoints)
    candidates = [entry for entry in candidates if entry["step"] in kept]
    if not candidates:
        return None
    best = max(candidates, key=lambda entry: entry["test_elbo"])
    write_json(path, best)
    return best["step"]
