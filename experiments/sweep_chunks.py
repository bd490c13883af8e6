"""Turns of a sweep: train as many models in one program as fit in memory."""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import vae_jax
from experiments.runner.memory import free_bytes
from vae_jax.types import PyTree

# Fraction of the free memory that the program may use.
MEMORY_SHARE = 0.8


class Chunks(NamedTuple):
    """Assignment of models to turns of one program.

    Attributes:
      indices: models of each turn, `[C, K]`; the last turn is padded by repeating the
        last model.
      reason: explanation for the user.
    """

    indices: np.ndarray
    reason: str

    @classmethod
    def of(
        cls, num_models: int, *, at_once: int, num_devices: int, reason: str
    ) -> "Chunks":
        """Assign the models to as few turns as possible, all of the same length."""
        turns = math.ceil(num_models / at_once)
        length = math.ceil(num_models / turns / num_devices) * num_devices
        indices = np.minimum(np.arange(turns * length), num_models - 1)
        return cls(indices.reshape(turns, length), reason)


def place(
    step: Callable[..., Any],
    state: vae_jax.TrainState,
    order: vae_jax.Epoch,
    examples: PyTree,
    history: PyTree,
    settings: PyTree,
    *,
    at_once: int | None,
    num_devices: int,
) -> tuple[Chunks, Callable[..., Any]]:
    """Compile the steps of an epoch for as many models at once as fit in memory.

    Args:
      step: `f(state, batch, setting)`.
      state: state of all models.
      order: order of an epoch.
      examples: data set.
      history: history before the first step of an epoch.
      settings: settings of all models.
      at_once: `--models_at_once`; None for as many as fit in memory.
      num_devices: number of devices over which the models are distributed.

    Returns:
      The assignment of models to turns, and `f(state, order, history, stop) -> (state,
      history)`.
    """
    devices = jax.local_devices()[:num_devices]
    sweep = vae_jax.jit_sweep(step, devices=devices)
    train, compiled = in_chunks(sweep, examples, settings)
    chunks, program = compile_chunks(
        lambda indices: compiled(indices, state, order, history),
        vae_jax.num_models(state),
        at_once=at_once,
        num_devices=num_devices,
        state_bytes=sum(leaf.nbytes for leaf in jax.tree.leaves(state)),
    )
    return chunks, partial(train, program, chunks)


def compile_chunks(
    compiled: Callable[[np.ndarray], Any],
    num_models: int,
    *,
    at_once: int | None,
    num_devices: int,
    state_bytes: int,
) -> tuple[Chunks, Any]:
    """Compile the program for as many models at once as fit in memory.

    Args:
      compiled: `f(indices)`, which compiles the program of these models.
      num_models: number of models, M.
      at_once: `--models_at_once`; None for as many as fit in memory.
      num_devices: number of devices over which the models are distributed.
      state_bytes: size of the state of all models, which is held in addition to the
        program if there are several turns.

    Returns:
      The assignment of models to turns, and the program.
    """
    free, asked = free_bytes(), at_once is not None
    reason = "all of them"
    if asked:
        reason = f"--models_at_once {at_once} on {num_devices} devices"
    at_once = at_once or num_models
    while True:
        chunks = Chunks.of(
            num_models, at_once=at_once, num_devices=num_devices, reason=reason
        )
        program = compiled(chunks.indices[0])
        turns, size = chunks.indices.shape
        needed = program_bytes(program) + (state_bytes if turns > 1 else 0)
        fits = needed <= MEMORY_SHARE * free
        if asked or fits or size == num_devices:
            told = f"{size} at once: {reason}"
            return chunks._replace(
                reason=f"{told}; they take {needed / 1e9:.2f} of {free / 1e9:.1f} GB "
                "that are free"
            ), program
        at_once = math.ceil(size / 2)
        reason = f"{size} would need {needed / 1e9:.2f} GB of memory"


def program_bytes(program: Any) -> int:
    """Device memory in bytes that a compiled program uses while it runs."""
    memory = program.memory_analysis()
    return (
        memory.temp_size_in_bytes
        + memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
    )


def in_chunks(
    jitted: Any, data: PyTree, settings: PyTree
) -> tuple[Callable[..., tuple], Callable[..., Any]]:
    """Apply a `jit_sweep` function to chunks of the models.

    Args:
      jitted: function returned by `jit_sweep`.
      data: data set.
      settings: settings of all models, `[M, ...]`.

    Returns:
      `f(program, chunks, state, order, history, stop)`, which runs the chunks in turn,
      and `f(indices, state, order, history)`, which compiles the program of these
      models.
    """
    device = jax.local_devices()[0]

    # Each of these is compiled: in a short epoch, one operation per array would take
    # many times longer than the steps.
    @jax.jit
    def taken(indices, state, order, history):
        return (
            vae_jax.select(state, indices),
            vae_jax.select(order, indices),
            {name: values[:, indices] for name, values in history.items()},
            vae_jax.select(settings, indices),
        )

    @partial(jax.jit, donate_argnums=0)
    def put_back(state, history, indices, new_state, new_history):
        # The step number is shared by all models, and every turn starts from the same.
        state = jax.tree.map(
            lambda whole, new: whole.at[indices].set(new) if whole.ndim else whole,
            state,
            new_state,
        )
        history = {
            name: values.at[:, indices].set(new_history[name])
            for name, values in history.items()
        }
        return state, history

    def arguments(indices, state, order, history, stop):
        state, order, history, own = taken(indices, state, order, history)
        return state, order, data, history, jnp.int32(stop), own

    def compiled(indices, state, order, history):
        return jitted.lower(*arguments(indices, state, order, history, 0)).compile()

    def train(program, chunks, state, order, history, stop):
        def run(*given):
            return program(*jax.device_put(given, program.input_shardings[0]))

        if chunks.indices.shape == (1, vae_jax.num_models(state)):
            return run(state, order, data, history, jnp.int32(stop), settings)
        state, history = jax.device_put((state, history), device)
        step = state.step
        for indices in chunks.indices:
            found = run(*arguments(indices, state, order, history, stop))
            found = jax.device_put(found, device)
            step = found[0].step
            state, history = put_back(state, history, indices, *found)
        return dataclasses.replace(state, step=step), history

    return train, compiled
