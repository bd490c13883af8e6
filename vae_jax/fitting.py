"""`fit`: train a model in one call, for scripts and notebooks.

`fit` is a loop over `train_epoch`, from which custom training loops can start. For
checkpoints, resuming and several devices, see the training command of the experiments.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from vae_jax.data.rows import Rows, blocks
from vae_jax.evaluation import evaluate
from vae_jax.host_examples import EpochChunks, own_examples, steps_per_chunk
from vae_jax.model import check_observations
from vae_jax.options import require_at_least
from vae_jax.spec import Params
from vae_jax.training import (
    Epoch,
    Preprocess,
    TrainState,
    empty_history,
    init_state,
    shuffled_epoch,
    train_epoch,
    train_step,
)
from vae_jax.training_objectives import ELBO, IWAE, PIWAE, Labelled, Metrics
from vae_jax.types import Array, Key, Objective

Callback = Callable[[int, dict[str, float], Params], Any]
"""`f(epoch, metrics, params)`, called after each epoch; true stops the training."""


class Fitted(NamedTuple):
    """A trained model and its training history.

    Attributes:
      params: parameters of the last epoch, or of the epoch with the best validation
        ELBO; their moving average if `average_decay` is set.
      history: metrics of each epoch, `[num_epochs]` (fewer if training stops early):
        means over the examples of the objective and of the metrics that it logs, in
        nats, and `validation_elbo` if there are validation data.
    """

    params: Params
    history: Metrics


def fit(
    params: Params,
    data: Array | Labelled,
    key: Key,
    *,
    num_epochs: int,
    objective: Objective | None = None,
    optimizer: optax.GradientTransformation | None = None,
    batch_size: int = 128,
    preprocess: Preprocess | None = None,
    average_decay: float | Array | None = None,
    validation: Array | Labelled | None = None,
    patience: int | None = None,
    callback: Callback | None = None,
) -> Fitted:
    """Train a model and return its parameters and training history.

    Without `validation` and `callback`, and with data in memory, `fit` is a pure
    function that is compiled as a whole; under `vmap`, it trains many models. Otherwise
    it is a loop on the host that runs one compiled epoch after another.

    Args:
      params: initial parameters.
      data: training examples, `[n, D]`; `Labelled` for a conditional model. An
        `np.memmap` or `data.Rows` may be larger than the memory; its batches are
        prefetched to the device.
      key: PRNG key, consumed once: training noise, data order, validation noise.
      num_epochs: number of passes over the data.
      objective: objective to maximise; by default the ELBO.
      optimizer: an optax optimizer; by default Adam with learning rate 1e-3.
      batch_size: examples per step, reduced to n if larger; the last batch of an epoch
        may be smaller.
      preprocess: random preprocessing of each batch, `f(batch, key) -> x`, as for
        `train_step`.
      average_decay: decay of an exponential moving average of the parameters; the
        average is then validated and returned. None disables averaging.
      validation: preprocessed examples, `[m, D]` (`preprocess` is not applied). Their
        ELBO is estimated after each epoch, with the same noise each time, and the
        parameters of the best epoch are returned.
      patience: number of epochs without a better validation ELBO after which training
        stops.
      callback: called after each epoch with the epoch (from 0), its metrics as floats,
        and the parameters; training stops if it returns a true value.

    Returns:
      `Fitted`.

    Raises:
      ValueError: `num_epochs`, `batch_size` or `patience` below 1; no examples, a list,
        or another number of labels than of examples; data that are invalid for the
        model (see `encode`; they are not checked if traced, or with `preprocess` or a
        custom objective, which may transform them); `patience` without `validation`;
        `validation`, a callback or data on the host in a function traced by JAX; or a
        validation ELBO that is NaN or -inf in every epoch.

    Example:
      >>> import jax, vae_jax
      >>> spec = vae_jax.ModelSpec(data_shape=(5,), latent_dim=2)
      >>> x = jax.random.bernoulli(jax.random.key(0), 0.2, (64, 5)).astype(float)
      >>> params = vae_jax.init(spec, jax.random.key(1), x=x)
      >>> params, history = vae_jax.fit(params, x, jax.random.key(2), num_epochs=3)
      >>> history["elbo"].shape
      (3,)
    """
    leaves = jax.tree.leaves(data)
    if not all(getattr(leaf, "shape", ()) for leaf in leaves):
        raise ValueError(
            "data must be arrays with one row per example, got a list or a number: "
            "give numpy.asarray of it"
        )
    num_examples = leaves[0].shape[0]
    for name, value in (
        ("num_epochs", num_epochs),
        ("batch_size", batch_size),
        ("patience", 1 if patience is None else patience),
        ("the number of examples", num_examples),
    ):
        require_at_least(name, value)
    lengths = [leaf.shape[0] for leaf in leaves]
    if len(set(lengths)) > 1:
        raise ValueError(f"data must have one label per example, got lengths {lengths}")
    if patience is not None and validation is None:
        raise ValueError(f"patience {patience} needs validation data")
    objective = ELBO() if objective is None else objective
    if preprocess is None and isinstance(objective, ELBO | IWAE | PIWAE):
        _check_data(params, data)
    optimizer = optax.adam(1e-3) if optimizer is None else optimizer
    noise_key, order_key, validation_key = jax.random.split(key, 3)
    step = partial(
        train_step,
        objective=objective,
        optimizer=optimizer,
        preprocess=preprocess,
        average_decay=0.0 if average_decay is None else average_decay,
    )
    run_epoch = partial(_run_epoch, step=step, batch_size=min(batch_size, num_examples))
    start = partial(init_state, optimizer=optimizer, average=average_decay is not None)
    on_host = any(isinstance(leaf, np.memmap | Rows) for leaf in leaves)
    if validation is None and callback is None and not on_host:

        def whole(params, data, noise_key, order_key) -> Fitted:
            state, history = jax.lax.scan(
                lambda state, epoch: run_epoch(state, epoch, data, order_key),
                start(params, noise_key),
                jnp.arange(num_epochs),
            )
            return Fitted(state.evaluation_params, history)

        return jax.jit(whole)(params, data, noise_key, order_key)

    if _is_traced(params, data, key, validation):
        named = {"validation": validation, "callback": callback}
        wanted = [name for name, value in named.items() if value is not None]
        wanted += ["data on the host"] * on_host
        raise ValueError(
            f"fit with {' and '.join(wanted)} is a loop on the host, and cannot be "
            "compiled or mapped: leave them out"
        )
    validate = _validation(validation, validation_key)
    if on_host:
        run_epoch = _host_epochs(step, data, min(batch_size, num_examples))
    else:
        run_epoch = jax.jit(run_epoch, donate_argnums=0)
        data = jax.tree.map(jnp.asarray, data)
    state = start(params, noise_key)
    best, best_elbo, best_epoch, rows = None, -np.inf, -1, []
    for epoch in range(num_epochs):
        state, figures = run_epoch(state, epoch, data, order_key)
        # Copied, because the buffers of the state are donated to the next epoch.
        current = jax.tree.map(jnp.copy, state.evaluation_params)
        rows.append(jax.tree.map(float, figures | validate(current)))
        elbo = rows[-1].get("validation_elbo", np.inf)
        if validation is None or elbo > best_elbo:
            best, best_elbo, best_epoch = current, elbo, epoch
        if callback is not None and callback(epoch, rows[-1], current):
            break
        if patience is not None and epoch - best_epoch >= patience:
            break
    if best is None:
        raise ValueError(
            "the validation ELBO was never above -inf: use a smaller learning rate, or "
            "check the data and the objective for NaN"
        )
    history = {name: jnp.asarray([row[name] for row in rows]) for name in rows[0]}
    return Fitted(best, history)


def _is_traced(*trees: Any) -> bool:
    """Return whether a leaf of a tree is traced by JAX."""
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(trees))


def _check_data(params: Params, data: Array | Labelled) -> None:
    """Raise ValueError if concrete examples are invalid for the model."""
    if _is_traced(params, data):
        return
    x, labels = data if isinstance(data, Labelled) else (data, None)
    for first, rows in blocks(x):
        index = slice(first, first + len(rows))
        own = jax.tree.map(lambda leaf, index=index: leaf[index], labels)
        check_observations(params, rows, labels=own, name="data")


def _run_epoch(
    state: TrainState,
    number: int | Array,
    data: Array | Labelled,
    order_key: Key,
    *,
    step: Callable[..., tuple[TrainState, Metrics]],
    batch_size: int,
) -> tuple[TrainState, Metrics]:
    """Train for one epoch; return also the means of its metrics over the examples."""
    num_examples = jax.tree.leaves(data)[0].shape[0]
    epoch = shuffled_epoch(
        order_key, number, num_examples=num_examples, batch_size=batch_size
    )
    history = empty_history(step, state, epoch, data)
    num_steps = len(epoch.batch_sizes)
    state, history = train_epoch(state, epoch, data, history, num_steps, step=step)
    return state, _means(history, epoch)


def _means(history: Metrics, epoch: Epoch) -> Metrics:
    """Means of an epoch's metrics over its examples."""
    weights = np.array(epoch.batch_sizes) / sum(epoch.batch_sizes)
    return {
        name: figures @ weights.astype(figures.dtype)
        for name, figures in history.items()
    }


def _host_epochs(
    step: Callable[..., tuple[TrainState, Metrics]], data: Any, batch_size: int
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Variant of `_run_epoch` for examples on the host."""
    num_examples = jax.tree.leaves(data)[0].shape[0]
    sizes = {"num_examples": num_examples, "batch_size": batch_size}
    order = jax.jit(partial(shuffled_epoch, **sizes))
    length = steps_per_chunk(data, batch_size)

    def train_share(state, share, history, stop):
        batches, own = share
        return train_epoch(state, batches, own, history, stop, step=step)

    compiled = jax.jit(train_share, donate_argnums=0)

    def run_epoch(
        state: TrainState, number: int, data: Any, order_key: Key
    ) -> tuple[TrainState, Metrics]:
        epoch = jax.device_get(order(order_key, number))

        def load(first_step: int) -> Any:
            return jax.device_put(
                own_examples(epoch, data, first_step=first_step, num_steps=length)
            )

        chunks = EpochChunks(load, epoch, steps_per_chunk=length)
        history = empty_history(step, state, epoch, data)
        num_steps = len(epoch.batch_sizes)
        state, history = chunks.train(compiled, state, history, num_steps)
        return state, _means(history, epoch)

    return run_epoch


def _validation(
    validation: Array | Labelled | None, key: Key
) -> Callable[[Params], Metrics]:
    """Return `f(params) -> metrics`, which is empty without validation data."""
    if validation is None:
        return lambda params: {}
    x, labels = validation if isinstance(validation, Labelled) else (validation, None)
    x = jnp.asarray(x)

    def elbo(params: Params) -> Array:
        return jnp.mean(evaluate(params, x, key, labels=labels).elbo)

    compiled = jax.jit(elbo)
    return lambda params: {"validation_elbo": compiled(params)}
