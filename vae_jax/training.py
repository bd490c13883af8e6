"""Training as pure functions: a state, a step, and a loop of steps in one program.

The minus sign that turns an objective to be maximised into a loss to be minimised
stands here, in `train_step`, and nowhere else. Noise is counter-based: step t uses
`fold_in(state.key, t)`, then `fold_in(_, device_index)`, so a state is all there is
to save, and a run resumed from it equals one that never stopped. With JAX's
default generator `fold_in(key, i)` is `split(key, n)[i]`: a root has one child for each
purpose (`run_keys`), and counters are folded into that child alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from vae_jax.model import trainable
from vae_jax.options import require_value
from vae_jax.spec import Params
from vae_jax.training_objectives import Metrics, over_devices
from vae_jax.types import Array, Key, Objective, PyTree

Preprocess = Callable[[PyTree, Key], PyTree]


class RunKeys(NamedTuple):
    """Children of a run's root key, one for each purpose.

    Attributes:
      weights: draws the initial parameters.
      noise: root of the noise of the steps.
      order: root of the orders of the examples.
      data: draws a data set that is binarized once.
      evaluation: root of the evaluation of the trained model.
    """

    weights: Key
    noise: Key
    order: Key
    data: Key
    evaluation: Key


def run_keys(key: Key) -> RunKeys:
    """Children of the root key of a run, one for each purpose.

    `init_state` takes `noise` of the key that it is given and `shuffled_epoch` takes
    `order`, so that one root may serve both.

    Args:
      key: root of the run.

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
    """State of a training run, all that is needed to resume it.

    Attributes:
      params: model parameters.
      opt_state: state of the optax optimizer.
      step: number of steps taken, a scalar int32.
      key: root of the training noise; never changes.
      average: moving average of the parameters since step 0, or None.
    """

    params: Params
    opt_state: PyTree
    step: Array
    key: Key
    average: Params | None

    @property
    def evaluation_params(self) -> Params:
        """The parameters to evaluate: the average where one is kept."""
        return self.params if self.average is None else self.average


def init_state(
    params: Params,
    key: Key,
    *,
    optimizer: optax.GradientTransformation,
    average: bool = False,
) -> TrainState:
    """The state before the first step.

    Args:
      params: initial parameters; the state holds a copy, as a step that donates its
        state (`jit_step`) deletes what is in it.
      key: root of a run; the noise of its steps comes from the child `noise`
        (`run_keys`).
      optimizer: an optax optimizer; the same goes to `train_step`.
      average: keep a moving average of the parameters.

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
        opt_state=optimizer.init(_for_optax(params)),
        step=jnp.zeros((), jnp.int32),
        key=run_keys(key).noise,
        average=params if average else None,
    )
    # A copy of each leaf: a state that is donated may neither hold a buffer twice (an
    # optimizer may begin at the parameters, too) nor one that the caller goes on with.
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
    """One step of gradient ascent on an objective.

    Args:
      state: the state before the step.
      batch: this device's examples, `[B, ...]`; `Labelled` for a conditional model.
      objective: what to maximise (`types.Objective`).
      optimizer: an optax optimizer, the one that `init_state` was given.
      preprocess: `f(batch, key) -> x`, for what is drawn afresh at every step
        (dynamic binarization); None takes the batch as it is.
      average_decay: decay d of the moving average, where the state keeps one: after
        step t the parameters of step s weigh (1 - d) d^(t - s) / (1 - d^t), so that
        those before the first step weigh nothing (Kingma & Ba 2015, section 3).
      axis_name: name of the mapped axis of devices; gradients and metrics are
        averaged over it, and the objective is given it. None where there is one
        device.

    Returns:
      The state after the step, and scalars: `objective` (the value that was
      maximised) and what the objective logs.

    Raises:
      ValueError: `average_decay` outside [0, 1), where a state keeps an average; on
        several devices, an objective that does not take `axis_name`.

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
    device = 0 if axis_name is None else jax.lax.axis_index(axis_name)
    step_key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), device)
    data_key, objective_key = jax.random.split(step_key)
    x = batch if preprocess is None else preprocess(batch, data_key)

    devices = over_devices("objective", objective, axis_name)

    def loss(params: Params):
        value, metrics = objective(params, x, objective_key, state.step, **devices)
        return -value, {"objective": value, **metrics}

    gradients, metrics = jax.grad(loss, has_aux=True)(state.params)
    if axis_name is not None:
        # After the gradient, never of the loss: only this form is right under vmap,
        # pmap and shard_map alike (test_parallel.py holds them together). A mean inside
        # the loss, of a statistic of the batch, is an objective's own.
        gradients, metrics = jax.lax.pmean((gradients, metrics), axis_name)
    params = _for_optax(state.params)
    updates, opt_state = optimizer.update(gradients, state.opt_state, params)
    # Also what needs no gradient (weight decay) must leave settings alone.
    updates = jax.tree.map(
        lambda update, train: update if train else jnp.zeros_like(update),
        updates,
        trainable(state.params),
    )
    params: Any = optax.apply_updates(params, updates)
    average: Any = state.average
    if average is not None:
        share = _share_of_newest(average_decay, state.step + 1)
        average = optax.incremental_update(params, average, share)
    return TrainState(params, opt_state, state.step + 1, state.key, average), metrics


def _for_optax(params: Params) -> Any:
    """The parameters: optax declares nests of dicts and lists only, and takes any."""
    return params


def _share_of_newest(decay: float | Array, count: Array) -> Array:
    """Weight of the last of `count` values in their bias-corrected moving average."""
    require_value("average_decay", decay, lambda d: (d >= 0) & (d < 1), "in [0, 1)")
    return (1 - decay) / -jnp.expm1(count * jnp.log(decay))


class Epoch(NamedTuple):
    """Indices of the examples of each step of an epoch: every example once.

    Attributes:
      batches: indices of the full batches, `[T, B]`.
      rest: indices of a last, smaller batch, `[R]` with R < B; none where R = 0.
    """

    batches: Array
    rest: Array

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Examples in each step of the epoch."""
        rest = self.rest.shape[-1]
        return (self.batches.shape[-1],) * self.batches.shape[-2] + (rest,) * (rest > 0)


def shuffled_epoch(
    key: Key, epoch: int | Array, *, num_examples: int, batch_size: int
) -> Epoch:
    """A random order of the data set for one epoch, cut into batches.

    Args:
      key: root of a run; epoch e uses `fold_in(run_keys(key).order, e)`.
      epoch: number of the epoch.
      num_examples: n.
      batch_size: B.

    Returns:
      An `Epoch` in which each of 0, ..., n - 1 stands once.

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

    Where it begins follows from `state.step`, and `stop` is an argument of the
    program: an epoch may be run whole or in pieces of any length, without compiling
    again and with the same result to the bit. With `stop=0` it only compiles.

    Args:
      state: a state at or within the epoch.
      epoch: the order of the examples; this device's share of it.
      data: the whole data set on the device, `[n, ...]`, or `Labelled`.
      history: figures of the epoch's steps so far (`empty_history`).
      stop: step of the epoch to stop before; all steps where it is beyond the end.
      step: `train_step` with its options given.
      first_step: `state.step` at the start of the epoch. None where all epochs of the
        run have as many steps as this one; then it follows from `state.step`.
      axis_name: name of the mapped axis of devices, passed on to the step.

    Returns:
      The state, and the history with the figures of the steps taken. They are nan at a
      step whose indices are not all of examples that there are.

    Raises:
      ValueError: a history of another number of steps; indices of examples that there
        are not, where they are known.

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
                f"history must have a figure for each of the epoch's {num_steps} "
                f"steps, got {values.shape[0]} of {name}: was it of other batches? "
                "(empty_history)"
            )

    def body(indices_of, position, carry):
        state, history = carry
        indices = indices_of(position)
        batch = jax.tree.map(lambda leaf: leaf[indices], data)
        state, metrics = take_step(state, batch)
        # JAX takes the nearest example in place of one that there is not.
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
        # Once or never: the loop is the condition.
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
    """Room for the figures of an epoch's steps, -inf where no step was taken yet.

    (Not nan, at which `jax_debug_nans` would stop.)

    Args:
      step: `train_step` with its options given.
      state: a state at the start of an epoch.
      epoch: any epoch.
      data: the data set, `[n, ...]`.
      first_step: as for `train_epoch`.

    Returns:
      `[T]` for each figure that the step gives.

    Raises:
      ValueError: a state within an epoch of that many steps, or indices of examples
        that there are not, where they are known.

    Example:
      See `train_epoch`.
    """
    num_steps = len(epoch.batch_sizes)
    check_start(state, num_steps, first_step)
    _check_indices(epoch, jax.tree.leaves(data)[0].shape[0])
    # A batch as the steps meet it, so that a compiled step is traced once for both.
    first = jax.tree.map(lambda leaf: leaf[: epoch.batch_sizes[0]], data)
    _, metrics = jax.eval_shape(step, state, first)
    return {
        name: jnp.full(num_steps, -jnp.inf, figure.dtype)
        for name, figure in metrics.items()
    }


def check_start(
    state: TrainState, num_steps: int, first_step: int | Array | None = None
) -> None:
    """Raise if a state is not at the start of an epoch, where its step is known.

    `train_epoch` would begin in the middle: it takes the epochs of a run for equally
    long.
    """
    if isinstance(state.step, Tracer) or first_step is not None:
        return
    step = int(state.step)
    if step % num_steps:
        raise ValueError(
            f"state.step must be a multiple of the {num_steps} steps of an epoch, got "
            f"{step}: if the batches changed, or the history of the steps that were "
            "taken is lost, give train_epoch and empty_history the epoch's first_step"
        )


def _check_indices(epoch: Epoch, num_examples: int) -> None:
    """Raise for indices that JAX would clamp or wrap, where they are known."""
    if any(isinstance(indices, Tracer) for indices in epoch):
        return
    indices = np.concatenate([np.ravel(part) for part in epoch])
    if np.any((indices < 0) | (indices >= num_examples)):
        raise ValueError(
            f"epoch must hold indices of the {num_examples} examples, got "
            f"{indices.min()} to {indices.max()}: give shuffled_epoch "
            f"num_examples={num_examples}"
        )
