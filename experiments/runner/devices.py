"""Placement of data and training steps on the devices of a run."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax

import vae_jax
from vae_jax.host_examples import EpochChunks, steps_per_chunk
from vae_jax.types import PyTree


def require(num_devices: int, available: int) -> None:
    """Raise ValueError if a run asks for more devices than are available.

    Args:
      num_devices: `--num_devices`.
      available: number of devices available to this run.

    Raises:
      ValueError: if there are too few devices, or if a run of several processes would
        leave some devices unused.
    """
    if num_devices > available:
        raise ValueError(
            f"--num_devices is {num_devices}, but there are {available} "
            f"({jax.devices()[0].platform})"
        )
    if jax.process_count() > 1 and num_devices != available:
        raise ValueError(
            f"--num_devices must be all {available} of the {jax.process_count()} "
            f"processes, got {num_devices}"
        )


def require_divisible(batch_size: int, num_devices: int) -> None:
    """Raise ValueError if devices would get batches of different sizes."""
    if batch_size % num_devices:
        raise ValueError(
            f"--batch_size {batch_size} does not divide among --num_devices "
            f"{num_devices}"
        )


def place(
    step: Callable[..., Any],
    order: Callable[[int], vae_jax.Epoch],
    examples: PyTree,
    num_devices: int,
) -> tuple[Callable[[int], Any], Callable[..., Any]]:
    """Compile the steps of an epoch for devices that share each batch.

    A single device holds the whole data set. With several, each device gets its share
    of every epoch from its own process. Examples on the host stay there; only the
    batches of the next steps are moved to the devices.

    Args:
      step: `train_step` with its options bound.
      order: `f(number) -> Epoch`, the order of the data.
      examples: the data set; NumPy arrays and `Rows` stay on the host.
      num_devices: number of devices to use.

    Returns:
      `f(number) -> batches` of an epoch, on the devices that need them, and
      `f(state, batches, history, stop) -> (state, history)`, the compiled
      `train_epoch`.
    """
    on_host = not isinstance(jax.tree.leaves(examples)[0], jax.Array)
    if num_devices == 1 and not on_host:
        compiled = vae_jax.jit_step(partial(vae_jax.train_epoch, step=step))
        return order, lambda state, batches, history, stop: compiled(
            state, batches, examples, history, stop
        )
    devices = jax.devices()[:num_devices]
    host_examples = examples if on_host else jax.device_get(examples)
    sizes = jax.eval_shape(order, 0)
    num_batches, batch_size = sizes.batches.shape
    length = max(1, num_batches)
    if on_host:
        length = steps_per_chunk(examples, batch_size)

    def chunks(number: int) -> EpochChunks:
        shares = jax.device_get(vae_jax.shard_epoch(order(number), num_devices))

        def load(first_step: int):
            def share(device: int):
                own = jax.tree.map(lambda leaf: leaf[device], shares)
                return vae_jax.own_examples(
                    own, host_examples, first_step=first_step, num_steps=length
                )

            if num_devices == 1:
                return jax.device_put(share(0))
            return vae_jax.put_on_devices(share, devices=devices)

        return EpochChunks(load, sizes, steps_per_chunk=length)

    def train_share(state, share, history, stop, *, axis_name=None):
        batches, own = share
        return vae_jax.train_epoch(
            state, batches, own, history, stop, step=step, axis_name=axis_name
        )

    if num_devices == 1:
        compiled = vae_jax.jit_step(train_share)
    else:
        # With several processes, pmap would take each process's local arguments.
        one_process = jax.process_count() == 1
        executor = vae_jax.pmap_step if one_process else vae_jax.shard_map_step
        compiled = executor(train_share, devices=devices)
    return chunks, lambda state, batches, history, stop: batches.train(
        compiled, state, history, stop
    )


def on_one(tree: PyTree) -> PyTree:
    """Return the copy of replicated arrays on one of this process's devices."""
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)


def keep_compiled(folder: str | None) -> None:
    """Enable JAX's persistent compilation cache for all programs.

    Args:
      folder: `--compilation_cache`; None leaves the cache as it is.
    """
    if folder is None:
        return
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
