"""Sweeps: training many models in one compiled program with `vmap`.

M models of one spec may differ in their weights, noise, data order and any real-valued
setting. They form one `TrainState` whose leaves have a leading axis `[M]`; only `step`
is shared. The models are independent: each equals the model trained alone, up to
rounding, and a model that becomes non-finite does not affect the others.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from vae_jax.parallel import Device
from vae_jax.training import Epoch, TrainState, check_start, train_epoch
from vae_jax.training_objectives import Metrics
from vae_jax.types import Array, PyTree

AXIS = "model"
SweepStep = Callable[[TrainState, PyTree, PyTree], tuple[TrainState, Metrics]]


def stack_states(states: Sequence[TrainState]) -> TrainState:
    """Stack M training states into one state of M models.

    Args:
      states: states of the same spec at the same step.

    Returns:
      A state whose leaves, except `step`, have a leading axis `[M]`.

    Raises:
      ValueError: there are no states, or they differ in spec, structure or step.

    Example:
      >>> import jax, optax
      >>> from vae_jax import ModelSpec, init, init_state, select, stack_states
      >>> adam, spec = optax.adam(1e-3), ModelSpec(latent_dim=2)
      >>> init_keys, noise_keys = jax.random.split(jax.random.key(0), (2, 3))
      >>> states = [
      ...     init_state(init(spec, init_key), noise_key, optimizer=adam)
      ...     for init_key, noise_key in zip(init_keys, noise_keys, strict=True)
      ... ]
      >>> sweep = stack_states(states)
      >>> sweep.params.decoder["output"]["bias"].shape
      (3, 784)
      >>> select(sweep.params, 1).decoder["output"]["bias"].shape
      (784,)
    """
    if not states:
        raise ValueError("states must hold at least one state, got none")
    structures = {jax.tree.structure(state) for state in states}
    if len(structures) > 1:
        raise ValueError(
            f"states must have the same spec and optimizer, got {len(structures)} "
            "structures"
        )
    steps = sorted({int(state.step) for state in states})
    if len(steps) > 1:
        raise ValueError(f"states must be at one step, got {steps}")
    return jax.tree.map(_stack_unless_step, _axes(states[0]), *states)


def _axes(state: TrainState) -> TrainState:
    """Return a mask of the leaves that have a model axis."""
    return dataclasses.replace(jax.tree.map(lambda leaf: True, state), step=False)


def _stack_unless_step(is_of_model: bool, *leaves: Array) -> Array:
    # Copy: `jit_sweep` donates the result, while the caller may still use `states`.
    return jnp.stack(leaves) if is_of_model else jnp.copy(leaves[0])


def select(sweep: PyTree, index: int | Array) -> PyTree:
    """Select one or several models of a sweep.

    Args:
      sweep: a `TrainState` of M models, or `Params` (or any pytree) whose leaves all
        have a leading axis `[M]`.
      index: index of a model, or indices or a slice of several; may be traced.

    Returns:
      The same structure without the model axis for a single index, otherwise with one
      entry per selected model.

    Raises:
      IndexError: a concrete index is out of range.

    Example:
      See `stack_states`.
    """
    _check_index(index, num_models(sweep))
    if isinstance(sweep, TrainState):
        return jax.tree.map(
            lambda is_of_model, leaf: leaf[index] if is_of_model else jnp.copy(leaf),
            _axes(sweep),
            sweep,
        )
    return jax.tree.map(lambda leaf: leaf[index], sweep)


def _check_index(index: int | Array | slice, count: int) -> None:
    """Raise IndexError for concrete indices that JAX would clamp."""
    if isinstance(index, slice | Tracer):
        return
    numbers = np.asarray(index)
    if numbers.dtype != bool and np.any((numbers < -count) | (numbers >= count)):
        raise IndexError(f"index must select a model of {count}, got {index}")


def num_models(sweep: PyTree) -> int:
    """Number M of models in a sweep.

    Args:
      sweep: see `select`.

    Returns:
      The length of the leading axis.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax import num_models
      >>> num_models({"beta": jnp.array([0.1, 1.0, 10.0])})
      3
    """
    params = sweep.params if isinstance(sweep, TrainState) else sweep
    return jax.tree.leaves(params)[0].shape[0]


def sweep_epoch(
    states: TrainState,
    epochs: Epoch,
    data: PyTree,
    history: Metrics,
    stop: int | Array,
    settings: PyTree,
    *,
    step: SweepStep,
) -> tuple[TrainState, Metrics]:
    """Run `train_epoch` for many models at once; compile it with `jit_sweep`.

    Args:
      states: a state of M models (`stack_states`).
      epochs: example indices for each model, `[M, T, B]` and `[M, R]`.
      data: the data set, `[n, ...]`, shared by all models.
      history: metrics of the steps so far, `[T, M]` (`empty_sweep_history`).
      stop: step of the epoch to stop before.
      settings: settings in which the models differ, a pytree of `[M, ...]`; empty if
        they differ only in their state.
      step: `f(state, batch, setting) -> (state, metrics)`, a `train_step` whose
        objective and optimizer are built from one model's setting.

    Returns:
      The state, and the history with the metrics of the steps taken.

    Example:
      >>> import jax, jax.numpy as jnp, optax, vae_jax
      >>> def step(state, batch, setting):
      ...     objective = vae_jax.ELBO(beta=setting["beta"])
      ...     adam = optax.adam(setting["learning_rate"])
      ...     return vae_jax.train_step(
      ...         state, batch, objective=objective, optimizer=adam
      ...     )
      >>> settings = {
      ...     "beta": jnp.array([0.5, 1.0, 4.0]),
      ...     "learning_rate": jnp.array([1e-3, 1e-3, 3e-4]),
      ... }
      >>> spec = vae_jax.ModelSpec(latent_dim=2)
      >>> init_keys, noise_keys, order_keys = jax.random.split(
      ...     jax.random.key(0), (3, 3)
      ... )
      >>> states = vae_jax.stack_states([
      ...     vae_jax.init_state(
      ...         vae_jax.init(spec, init_key), noise_key, optimizer=optax.adam(1e-3)
      ...     )
      ...     for init_key, noise_key in zip(init_keys, noise_keys, strict=True)
      ... ])
      >>> def epoch_of(key):
      ...     return vae_jax.shuffled_epoch(key, 0, num_examples=10, batch_size=4)
      >>> epochs, data = jax.vmap(epoch_of)(order_keys), jnp.zeros((10, 784))
      >>> history = vae_jax.empty_sweep_history(step, states, epochs, data, settings)
      >>> run = vae_jax.jit_sweep(step)
      >>> states, history = run(states, epochs, data, history, 3, settings)
      >>> history["elbo"].shape
      (3, 3)
    """

    def one(state, epoch, history, setting):
        return train_epoch(
            state,
            epoch,
            data,
            history,
            stop,
            step=lambda state, batch: step(state, batch, setting),
        )

    # `step` is not mapped: all models take the same steps, so the loop keeps scalar
    # bounds, and `vmap` adds no selection between states at every step.
    axes: Any = dict(params=0, opt_state=0, step=None, key=0, average=0)
    axes = TrainState(**axes)
    mapped = jax.vmap(one, in_axes=(axes, 0, 1, 0), out_axes=(axes, 1))
    return mapped(states, epochs, history, settings)


def empty_sweep_history(
    step: SweepStep,
    states: TrainState,
    epochs: Epoch,
    data: PyTree,
    settings: PyTree,
) -> Metrics:
    """Allocate the metrics of an epoch's steps, filled with -inf.

    Args:
      step: see `sweep_epoch`, also for the other arguments.
      states: a state of M models at the start of an epoch.
      epochs: any epoch of each model.
      data: the data set, `[n, ...]`.
      settings: a pytree of `[M, ...]`.

    Returns:
      `[T, M]` for each metric that the step returns, with T the number of steps.

    Raises:
      ValueError: the concrete step of the states is not at the start of an epoch.

    Example:
      See `sweep_epoch`.
    """
    check_start(states, len(epochs.batch_sizes))
    first = jax.tree.map(lambda leaf: leaf[: epochs.batch_sizes[0]], data)
    setting = jax.tree.map(lambda leaf: leaf[0], settings)
    shapes = jax.eval_shape(lambda: step(select(states, 0), first, setting)[1])
    shape = (len(epochs.batch_sizes), num_models(states))
    return {
        name: jnp.full(shape, -jnp.inf, figure.dtype) for name, figure in shapes.items()
    }


def jit_sweep(
    step: SweepStep, *, devices: Sequence[Device] | None = None
) -> Callable[..., Any]:
    """Compile `sweep_epoch`, with the models split over devices; states are donated.

    Each device trains its models with no communication between devices.

    Args:
      step: see `sweep_epoch`.
      devices: N devices; only JAX's default device if None.

    Returns:
      `f(states, epochs, data, history, stop, settings)`, a jitted function.

    Raises:
      ValueError: when called, if N does not divide M.

    Example:
      See `sweep_epoch`.
    """
    run = partial(sweep_epoch, step=step)
    if devices is not None:
        run = _on_devices(run, devices)
    return jax.jit(run, donate_argnums=0)


def _on_devices(
    run: Callable[..., Any], devices: Sequence[Device]
) -> Callable[..., Any]:
    """Map `run` over devices, with a share of the models on each."""
    own, all_of_it, steps_first = P(AXIS), P(), P(None, AXIS)
    specs: Any = dict(params=own, opt_state=own, step=P(), key=own, average=own)
    states = TrainState(**specs)
    mapped = jax.shard_map(
        run,
        mesh=jax.make_mesh(
            (len(devices),), (AXIS,), devices=devices, axis_types=(AxisType.Auto,)
        ),
        in_specs=(states, own, all_of_it, steps_first, all_of_it, own),
        out_specs=(states, steps_first),
        check_vma=False,
    )

    def checked(states: TrainState, *arguments: PyTree):
        if num_models(states) % len(devices):
            raise ValueError(
                f"{num_models(states)} models do not divide among {len(devices)} "
                "devices"
            )
        return mapped(states, *arguments)

    return checked
