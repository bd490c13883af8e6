"""Training as pure functions: a state, a step, and a compiled loop of steps.

`train_step` is the only place where the sign of an objective is flipped to obtain a
loss. Noise is counter-based: step t uses `fold_in(state.key, t)`, then
`fold_in(_, device_index)`. The order of epoch e depends only on e and the key given to
`shuffled_epoch`. Keep the state and that key; with both, a resumed run is identical to
an uninterrupted one. With JAX's default generator, `fold_in(key, i)` equals
`split(key, n)[i]`; a root key therefore has one child per purpose (`run_keys`), and
counters are folded only into these children.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from vae_jax.model import trainable, with_network_key
from vae_jax.options import require_value
from vae_jax.spec import Params
from vae_jax.training_objectives import Metrics, over_devices
from vae_jax.types import Array, Key, Objective, PyTree

Preprocess = Callable[[PyTree, Key], PyTree]


class RunKeys(NamedTuple):
    """Children of a run's root key, one per purpose.

    Attributes:
      weights: key for the initial parameters.
      noise: root key of the training noise.
      order: root key of the shuffling of the examples.
      data: key for binarizing a data set once.
      evaluation: root key of the evaluation of the trained model.
    """

    weights: Key
    noise: Key
    order: Key
    data: Key
    evaluation: Key


def run_keys(key: Key) -> RunKeys:
    """Split the root key of a run into one child per purpose.

    `init_state` uses the child `noise` of its key and `shuffled_epoch` the child
    `order`, so both can be given the same root.

    Args:
      key: root key of the run.

    Returns:
      `RunKeys`.

    Example:
      >>> import jax
      >>> from vae_jax import ModelSpec, init, run_keys
      >>> params = init(ModelSpec(), run_keys(jax.random.key(0)).weights)
    """
    return RunKeys(*jax.random.split(key, len(RunKeys._fields)))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """State of a training run; with the key of the shuffling, sufficient to resume it.

    Attributes:
      params: model parameters.
      opt_state: state of the optax optimizer.
      step: number of steps taken, a scalar int32.
      key: root key of the training noise; never changes.
      average: moving average of the parameters since step 0, or None.
    """

    params: Params
    opt_state: PyTree
    step: Array
    key: Key
    average: Params | None

    @property
    def evaluation_params(self) -> Params:
        """Parameters to evaluate: the average if one is kept."""
        return self.params if self.average is None else self.average


def init_state(
    params: Params,
    key: Key,
    *,
    optimizer: optax.GradientTransformation,
    average: bool = False,
) -> TrainState:
    """Initialise the training state.

    Args:
      params: initial parameters. The state holds a copy, because a step that donates
        its state (`jit_step`) deletes the buffers in it.
      key: root key of a run; the training noise uses its child `noise` (`run_keys`).
      optimizer: optax optimizer; pass the same one to `train_step`.
      average: whether to keep a moving average of the parameters.

    Returns:
      A `TrainState` at step 0.

    Example:
      >>> import jax, optax
      >>> from vae_jax import ModelSpec, init, init_state
      >>> params = init(ModelSpec(), jax.random.key(0))
      >>> state = init_state(params, jax.random.key(1), optimizer=optax.adam(1e-3))
      >>> print(state.step)
      0
    """
    state = TrainState(
        params=params,
        opt_state=optimizer.init(cast(Any, params)),
        step=jnp.zeros((), jnp.int32),
        key=run_keys(key).noise,
        average=params if average else None,
    )
    # Copy each leaf: a donated state must not hold a buffer twice (an optimizer state
    # may contain the parameters) nor share one with the caller.
    return jax.tree.map(jnp.copy, state)


def train_step(
    state: TrainState,
    batch: PyTree,
    *,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    preprocess: Preprocess | None = None,
    average_decay: float | Array = 0.999,
    axis_name: str | None = None,
) -> tuple[TrainState, Metrics]:
    """Take one optimizer step that maximises an objective.

    Args:
      state: state before the step.
      batch: this device's examples, `[B, ...]`; `Labelled` for a conditional model.
      objective: objective to maximise (`types.Objective`).
      optimizer: optax optimizer, the one passed to `init_state`.
      preprocess: `f(batch, key) -> x`, applied at every step with a new key, for
        example dynamic binarization. None leaves the batch unchanged.
      average_decay: decay d of the moving average, if the state keeps one. After step
        t, the parameters of step s have weight (1 - d) d^(t - s) / (1 - d^t); the
        initial parameters have weight 0 (Kingma & Ba 2015, section 3).
      axis_name: name of the mapped device axis. Gradients and metrics are averaged
        over it, and it is passed to the objective. None for a single device.

    Returns:
      The state after the step, and a dict of scalars: `objective` (the maximised
      value) and the objective's own metrics.

    Raises:
      ValueError: the objective is a class, not an instance; `average_decay` is outside
        [0, 1) and the state keeps an average; or there are several devices and the
        objective does not take `axis_name`.

    Example:
      >>> import jax, jax.numpy as jnp, optax, vae_jax
      >>> adam = optax.adam(1e-3)
      >>> params = vae_jax.init(vae_jax.ModelSpec(), jax.random.key(0))
      >>> state = vae_jax.init_state(params, jax.random.key(1), optimizer=adam)
      >>> state, metrics = vae_jax.train_step(
      ...     state,
      ...     jnp.zeros((8, 784)),
      ...     objective=vae_jax.ELBO(),
      ...     optimizer=adam,
      ... )
      >>> sorted(metrics)
      ['elbo', 'kl_divergence', 'log_likelihood', 'objective']
    """
    if isinstance(objective, type):
        name = objective.__name__
        raise ValueError(f"objective must be an instance, {name}(...), got the class")
    device = 0 if axis_name is None else jax.lax.axis_index(axis_name)
    step_key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), device)
    data_key, objective_key, network_key = jax.random.split(step_key, 3)
    x = batch if preprocess is None else preprocess(batch, data_key)

    devices = over_devices("objective", objective, axis_name)

    def loss(params: Params):
        params = with_network_key(params, network_key)
        value, metrics = objective(params, x, objective_key, state.step, **devices)
        return -value, {"objective": value, **metrics}

    gradients, metrics = jax.grad(loss, has_aux=True)(state.params)
    if axis_name is not None:
        # Average the gradients, never the loss inside the gradient: only this form is
        # correct under vmap, pmap and shard_map alike (see test_parallel.py). An
        # objective may average batch statistics inside the loss itself.
        gradients, metrics = jax.lax.pmean((gradients, metrics), axis_name)
    params: Any = state.params  # Optax takes any pytree, but annotates fewer.
    updates, opt_state = optimizer.update(gradients, state.opt_state, params)
    # Mask updates that do not depend on the gradient (weight decay) for settings.
    updates = jax.tree.map(
        lambda update, train: update if train else jnp.zeros_like(update),
        updates,
        trainable(state.params),
    )
    params = optax.apply_updates(params, updates)
    average: Any = state.average
    if average is not None:
        share = _share_of_newest(average_decay, state.step + 1)
        average = optax.incremental_update(params, average, share)
    return TrainState(params, opt_state, state.step + 1, state.key, average), metrics


def _share_of_newest(decay: float | Array, count: Array) -> Array:
    """Weight of the newest of `count` values in a bias-corrected moving average."""
    require_value("average_decay", decay, lambda d: (d >= 0) & (d < 1), "in [0, 1)")
    return (1 - decay) / -jnp.expm1(count * jnp.log(decay))


class Epoch(NamedTuple):
    """Example indices for each step of an epoch; every example occurs once.

    Attributes:
      batches: indices of the full batches, `[T, B]`.
      rest: indices of the last, smaller batch, `[R]` with R < B; empty if R = 0.
    """

    batches: Array
    rest: Array

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Number of examples in each step of the epoch."""
        rest = self.rest.shape[-1]
        return (self.batches.shape[-1],) * self.batches.shape[-2] + (rest,) * (rest > 0)


def shuffled_epoch(
    key: Key, epoch: int | Array, *, num_examples: int, batch_size: int
) -> Epoch:
    """Shuffle the example indices for one epoch and split them into batches.

    Args:
      key: root key of a run; epoch e uses `fold_in(run_keys(key).order, e)`.
      epoch: epoch number.
      num_examples: number n of examples.
      batch_size: number B of examples per batch.

    Returns:
      An `Epoch` that contains each of 0, ..., n - 1 once.

    Example:
      >>> import jax
      >>> from vae_jax import shuffled_epoch
      >>> epoch = shuffled_epoch(jax.random.key(0), 0, num_examples=10, batch_size=4)
      >>> epoch.batches.shape, epoch.batch_sizes
      ((2, 4), (4, 4, 2))
    """
    epoch_key = jax.random.fold_in(run_keys(key).order, epoch)
    order = jax.random.permutation(epoch_key, num_examples)
    full = num_examples // batch_size * batch_size
    return Epoch(order[:full].reshape(-1, batch_size), order[full:])


def train_epoch(
    state: TrainState,
    epoch: Epoch,
    data: PyTree,
    history: Metrics,
    stop: int | Array,
    *,
    step: Callable[..., tuple[TrainState, Metrics]],
    first_step: int | Array | None = None,
    axis_name: str | None = None,
) -> tuple[TrainState, Metrics]:
    """Take the steps of an epoch, up to `stop`, in one compiled loop.

    The first step follows from `state.step`, and `stop` may be a traced argument. An
    epoch can thus be run in pieces of any length, without recompilation and with
    bit-identical results. `stop=0` compiles without taking a step.

    Args:
      state: state at the start of or within the epoch.
      epoch: example indices of each step; this device's share of them.
      data: the whole data set on the device, `[n, ...]`, or `Labelled`.
      history: metrics of the epoch's steps so far (`empty_history`).
      stop: step of the epoch to stop before; past the end, all steps are taken.
      step: `train_step` with its options bound.
      first_step: `state.step` at the start of the epoch. None if every epoch of the run
        has as many steps as this one; it then follows from `state.step`.
      axis_name: name of the mapped device axis, passed to the step.

    Returns:
      The state, and the history with the metrics of the steps taken. The metrics of a
      step with an out-of-range index are NaN.

    Raises:
      ValueError: the history has a different number of steps; concrete indices are out
        of range.

    Example:
      >>> import functools, jax, jax.numpy as jnp, optax, vae_jax
      >>> adam = optax.adam(1e-3)
      >>> params = vae_jax.init(vae_jax.ModelSpec(), jax.random.key(0))
      >>> state = vae_jax.init_state(params, jax.random.key(1), optimizer=adam)
      >>> epoch = vae_jax.shuffled_epoch(
      ...     jax.random.key(2), 0, num_examples=10, batch_size=4
      ... )
      >>> step = functools.partial(
      ...     vae_jax.train_step,
      ...     objective=vae_jax.ELBO(),
      ...     optimizer=adam,
      ... )
      >>> data = jnp.zeros((10, 784))
      >>> history = vae_jax.empty_history(step, state, epoch, data)
      >>> run = jax.jit(functools.partial(vae_jax.train_epoch, step=step))
      >>> state, history = run(state, epoch, data, history, 3)
      >>> int(state.step), history["elbo"].shape
      (3, (3,))
    """
    take_step = step if axis_name is None else partial(step, axis_name=axis_name)
    num_batches = epoch.batches.shape[0]
    num_steps = len(epoch.batch_sizes)
    num_examples = jax.tree.leaves(data)[0].shape[0]
    _check_indices(epoch, num_examples)
    for name, values in history.items():
        if values.shape[0] != num_steps:
            raise ValueError(
                f"history must have a value for each of the epoch's {num_steps} "
                f"steps, got {values.shape[0]} of {name}: make it for these batches "
                "(empty_history)"
            )

    def body(indices_of, position, carry):
        state, history = carry
        indices = indices_of(position)
        batch = jax.tree.map(lambda leaf: leaf[indices], data)
        state, metrics = take_step(state, batch)
        # JAX clamps out-of-range indices to the nearest example.
        exist = jnp.all((indices >= 0) & (indices < num_examples))
        history = {
            name: values.at[position].set(jnp.where(exist, metrics[name], jnp.nan))
            for name, values in history.items()
        }
        return state, history

    start = state.step % num_steps if first_step is None else state.step - first_step
    batches = partial(body, lambda position: epoch.batches[position])
    carry = (state, history)
    if num_batches > 0:
        last = jnp.minimum(stop, num_batches)
        carry = jax.lax.fori_loop(start, last, batches, carry)
    if num_steps > num_batches:
        rest = partial(body, lambda position: epoch.rest)
        # At most one iteration: the loop serves as a conditional.
        first = jnp.maximum(start, num_batches)
        carry = jax.lax.fori_loop(first, jnp.minimum(stop, num_steps), rest, carry)
    return carry


def empty_history(
    step: Callable[..., tuple[TrainState, Metrics]],
    state: TrainState,
    epoch: Epoch,
    data: PyTree,
    *,
    first_step: int | Array | None = None,
) -> Metrics:
    """Allocate the metrics of an epoch's steps, filled with -inf.

    The fill value is not NaN because `jax_debug_nans` would raise an error.

    Args:
      step: `train_step` with its options bound.
      state: state at the start of an epoch.
      epoch: any epoch.
      data: the data set, `[n, ...]`.
      first_step: see `train_epoch`.

    Returns:
      `[T]` for each metric that the step returns, with T the number of steps.

    Raises:
      ValueError: the concrete step of the state is not at the start of an epoch of that
        many steps, or concrete indices are out of range.

    Example:
      See `train_epoch`.
    """
    num_steps = len(epoch.batch_sizes)
    check_start(state, num_steps, first_step)
    _check_indices(epoch, jax.tree.leaves(data)[0].shape[0])
    # Shaped like the batch of a step, so that a compiled step is traced only once.
    first = jax.tree.map(lambda leaf: leaf[: epoch.batch_sizes[0]], data)
    _, metrics = jax.eval_shape(step, state, first)
    return {
        name: jnp.full(num_steps, -jnp.inf, figure.dtype)
        for name, figure in metrics.items()
    }


def check_start(
    state: TrainState, num_steps: int, first_step: int | Array | None = None
) -> None:
    """Raise ValueError if the concrete step of a state is not at the start of an epoch.

    `train_epoch` would start in the middle of the epoch, because it assumes that all
    epochs of a run have the same number of steps.
    """
    if isinstance(state.step, Tracer) or first_step is not None:
        return
    step = int(state.step)
    if step % num_steps:
        raise ValueError(
            f"state.step must be a multiple of the {num_steps} steps of an epoch, got "
            f"{step}: if the batches changed, or the history of the steps that were "
            "taken is lost, pass the epoch's first_step to train_epoch and "
            "empty_history"
        )


def _check_indices(epoch: Epoch, num_examples: int) -> None:
    """Raise ValueError for concrete indices that JAX would clamp or wrap."""
    if any(isinstance(indices, Tracer) for indices in epoch):
        return
    indices = np.concatenate([np.ravel(part) for part in epoch])
    if np.any((indices < 0) | (indices >= num_examples)):
        raise ValueError(
            f"epoch must hold indices of the {num_examples} examples, got "
            f"{indices.min()} to {indices.max()}: give shuffled_epoch "
            f"num_examples={num_examples}"
        )
