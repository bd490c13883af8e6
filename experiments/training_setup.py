"""What the flags of a run come to: data, state, step and where they are placed.

`config` is `experiments.mnist.Config`, resolved.
"""

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import vae_jax
from experiments import choices
from experiments.evaluation_report import (
    elbo_figures,
    evaluation_keys,
    unit_figures,
)
from experiments.training_loop import Run
from vae_jax import data
from vae_jax.training import TrainState
from vae_jax.types import Array, Key


def training_run(
    config: Any, spec: vae_jax.ModelSpec, dataset: data.Dataset, folder: Path
) -> tuple[Run, TrainState]:
    """What the loop needs: the compiled functions and the state before step 0.

    Args:
      config: the configuration, resolved.
      spec: the model.
      dataset: binarized as the configuration says.
      folder: the run's folder.

    Returns:
      The run and its initial state.
    """
    epoch = data_order(config, len(dataset.train))
    batch_sizes = jax.eval_shape(epoch, 0).batch_sizes
    step = jax.jit(
        partial(
            training_step,
            config=config,
            dataset=dataset,
            steps_per_epoch=len(batch_sizes),
            settings=choices.settings(config),
        ),
        static_argnames="axis_name",
    )
    train_data = training_data(spec, dataset)
    test_data = data.to_unit_interval(jnp.asarray(dataset.test), dataset.num_levels)
    state = initial_state(config, spec, dataset)
    history = vae_jax.empty_history(step, state, epoch(0), train_data)
    placed, train_placed = placement(config, epoch, train_data, step)
    run = Run(
        folder=folder,
        spec=spec,
        num_epochs=config.epochs,
        batch_sizes=batch_sizes,
        checkpoint_every=config.checkpoint_every,
        epoch=placed,
        train=train_placed,
        empty_history=lambda: jax.tree.map(jnp.copy, history),
        evaluate=lambda state: elbo_figures(
            on_one_device(state), test_data, dataset.test_labels
        ),
        active_units=lambda state: [
            unit_figures(on_one_device(state), test_data, dataset.test_labels)[
                "active_units"
            ]
        ],
        remedies=choices.collapse_remedies(config),
    )
    return run, state


def placement(
    config: Any,
    epoch: Callable[[int], vae_jax.Epoch],
    examples: jax.Array | vae_jax.Labelled,
    step: Callable[..., Any],
) -> tuple[Callable[[int], Any], Callable[..., Any]]:
    """Where the examples of an epoch are, and the compiled program that takes them.

    One device holds the data set. Of several, each is given its share of every epoch,
    by the process that it belongs to.

    Args:
      config: the configuration.
      epoch: `f(number)`, the order of the data.
      examples: the data set.
      step: `train_step` with its options given.

    Returns:
      `f(number) -> order`, and `f(state, order, history, stop) -> (state, history)`.
    """
    if config.num_devices == 1:
        compiled = vae_jax.jit_step(partial(vae_jax.train_epoch, step=step))
        return epoch, lambda state, order, history, stop: compiled(
            state, order, examples, history, stop
        )
    devices = jax.devices()[: config.num_devices]
    host_examples = jax.device_get(examples)

    def shares(number: int):
        orders = jax.device_get(vae_jax.shard_epoch(epoch(number), len(devices)))

        def share(device: int):
            own = jax.tree.map(lambda leaf: leaf[device], orders)
            return vae_jax.own_examples(own, host_examples)

        return vae_jax.put_on_devices(share, devices=devices)

    def train_share(state, share, history, stop, *, axis_name):
        order, own = share
        return vae_jax.train_epoch(
            state, order, own, history, stop, step=step, axis_name=axis_name
        )

    # pmap is of one process here; its arguments would be each process's own.
    one_process = jax.process_count() == 1
    executor = vae_jax.pmap_step if one_process else vae_jax.shard_map_step
    return shares, executor(train_share, devices=devices)


def data_order(
    config: Any, num_examples: int
) -> Callable[[int | jax.Array], vae_jax.Epoch]:
    """The order of the data, a compiled function of the epoch's number."""
    return partial(
        jax.jit(vae_jax.shuffled_epoch, static_argnames=("num_examples", "batch_size")),
        jax.random.key(config.seed),
        num_examples=num_examples,
        batch_size=config.batch_size,
    )


def training_data(
    spec: vae_jax.ModelSpec, dataset: data.Dataset
) -> jax.Array | vae_jax.Labelled:
    """The examples to train on, on the device, with labels where the model asks."""
    x = jnp.asarray(dataset.train)
    if not spec.num_classes:
        return x
    return vae_jax.Labelled(x, jnp.asarray(dataset.train_labels))


def initial_state(
    config: Any, spec: vae_jax.ModelSpec, dataset: data.Dataset
) -> TrainState:
    """The state before step 0, which starts at the data's mean and variance."""
    variance = config.variance if config.likelihood == "gaussian" else None
    return _initial_state(
        jax.random.key(config.seed),
        jnp.asarray(dataset.train),
        variance,
        spec=spec,
        num_levels=dataset.num_levels,
        average=config.ema_decay is not None,
    )


# One program: compiled one operation at a time it takes a second longer.
@partial(jax.jit, static_argnames=("spec", "num_levels", "average"))
def _initial_state(
    key: Key,
    examples: Array,
    variance: float | None,
    *,
    spec: vae_jax.ModelSpec,
    num_levels: int | None,
    average: bool,
) -> TrainState:
    x = data.to_unit_interval(examples, num_levels)
    params = vae_jax.init(spec, vae_jax.run_keys(key).weights, x=x)
    if variance is not None:
        log_var = jnp.log(jnp.float32(variance))
        params = params.replace(likelihood={"log_var": log_var})
    # Of any learning rate: Adam's state does not depend on it.
    adam = optax.adam(1e-3)
    return vae_jax.init_state(params, key, optimizer=adam, average=average)


def training_step(
    state: TrainState,
    batch: jax.Array | vae_jax.Labelled,
    *,
    config: Any,
    dataset: data.Dataset,
    steps_per_epoch: int,
    settings: choices.Settings,
    axis_name: str | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """`train_step` as the flags have it.

    Args:
      state: the state before the step.
      batch: examples of the data set.
      config: the configuration, resolved.
      dataset: what is trained on.
      steps_per_epoch: for schedules.
      settings: the numbers of `choices.settings`, of which each may be traced.
      axis_name: name of the mapped axis of devices.

    Returns:
      The state after it, and its figures.
    """
    return vae_jax.train_step(
        state,
        batch,
        objective=choices.objective(
            config,
            settings,
            steps_per_epoch=steps_per_epoch,
        ),
        optimizer=optax.adam(settings["learning_rate"]),
        preprocess=partial(
            _as_seen, binarization=config.binarization, num_levels=dataset.num_levels
        ),
        average_decay=config.ema_decay or 0.0,
        axis_name=axis_name,
    )


def binarized(config: Any, original: data.Dataset) -> data.Dataset:
    """The data set that a run trains on and is tested on.

    Args:
      config: the configuration, resolved.
      original: the data as loaded.

    Returns:
      The data, binarized as the configuration says; the test set always alike.
    """
    return data.binarize_dataset(
        original,
        evaluation_keys().data,
        method=config.binarization,
        train_key=vae_jax.run_keys(jax.random.key(config.seed)).data,
    )


def _as_seen(
    batch: jax.Array | vae_jax.Labelled,
    key: jax.Array,
    *,
    binarization: str,
    num_levels: int | None,
) -> jax.Array | vae_jax.Labelled:
    """Examples as the model sees them in one step."""
    if isinstance(batch, vae_jax.Labelled):
        options = {"binarization": binarization, "num_levels": num_levels}
        return batch._replace(x=_as_seen(batch.x, key, **options))
    x = data.to_unit_interval(batch, num_levels)
    return data.binarize(x, key) if binarization == "dynamic" else x


def on_one_device(state: TrainState) -> vae_jax.Params:
    """The parameters to evaluate, on one of the devices that have them."""
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), state.evaluation_params)


def num_classes(config: Any, dataset: data.Dataset) -> int:
    """Classes of a conditional model, 0 for another."""
    if not config.conditional:
        return 0
    if dataset.train_labels is None:
        raise ValueError(f"--conditional needs labels, and {dataset.name} has none")
    labels = np.concatenate([dataset.train_labels, dataset.test_labels])
    if labels.min() < 0:
        raise ValueError(f"--conditional needs labels from 0 on, got {labels.min()}")
    return int(labels.max()) + 1


def data_digest(config: Any, dataset: data.Dataset) -> str:
    """Of the data as loaded: a file that changed is another run."""
    digest = hashlib.sha256()
    arrays = [dataset.train, dataset.test]
    if config.conditional:
        arrays += [dataset.train_labels, dataset.test_labels]
    if config.dataset.endswith((".npz", ".npy")):
        # A file may declare them; of other data sets the name does.
        digest.update(f"{dataset.num_levels} levels".encode())
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def keep_compiled(config: Any) -> None:
    """Has every program written to `--compilation_cache`, and taken from there."""
    if config.compilation_cache is None:
        return
    jax.config.update("jax_compilation_cache_dir", config.compilation_cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
