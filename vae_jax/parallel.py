"""One per-device step, three executors: `jit`, `pmap` and `shard_map`.

The step is `f(state, batch, *replicated, axis_name=None) -> (state, ...)`: a
`train_step` or a whole `train_epoch`. With several devices the batch carries a
leading axis `[N, ...]`, one entry a device; state, further arguments and results are
replicated and unstacked, so a checkpoint looks the same for any N. Each device draws
noise of its own: N devices equal one in expectation, not bit for bit.

Since JAX 0.8 `pmap` is itself `jit` of `shard_map`, in maintenance mode; per call it
costs a little more, around a whole epoch there is no difference to be seen.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vae_jax.training import Epoch
from vae_jax.types import Array, PyTree

AXIS = "device"
Step = Callable[..., Any]


def jit_step(step: Step) -> Step:
    """Compiles a step for one device; the state is donated.

    Args:
      step: `f(state, batch, *replicated)`.

    Returns:
      The compiled function. Do not use a state again that went into it.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax import jit_step
      >>> add = jit_step(lambda state, batch: state + batch.sum())
      >>> print(add(jnp.zeros(()), jnp.ones(3)))
      3.0
    """
    return jax.jit(step, donate_argnums=0)


def pmap_step(step: Step, *, devices: Sequence[jax.Device] | None = None) -> Step:
    """Maps a step over devices with `pmap`; the state is donated.

    Args:
      step: `f(state, batch, *replicated, axis_name)`, which averages its gradients
        over the axis.
      devices: the devices to use; all local ones by default.

    Returns:
      A function of the same arguments with `batch` as `[N, ...]` (`shard_batch`,
      `shard_epoch`); its results are replicated, without a leading axis.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax import pmap_step
      >>> def add(state, batch, axis_name):
      ...     return state + jax.lax.pmean(batch.sum(), axis_name)
      >>> one = jax.devices()[:1]
      >>> print(pmap_step(add, devices=one)(jnp.zeros(()), jnp.ones((1, 3))))
      3.0
    """
    mapped = jax.pmap(
        lambda state, batch, replicated: step(
            state, batch, *replicated, axis_name=AXIS
        ),
        axis_name=AXIS,
        in_axes=(None, 0, None),
        out_axes=None,
        donate_argnums=0,
        devices=devices,
    )
    devices = jax.local_devices() if devices is None else devices
    return _with_replicated_state(mapped, _mesh(devices))


def shard_map_step(step: Step, *, devices: Sequence[jax.Device] | None = None) -> Step:
    """Maps a step over devices with `shard_map`; the state is donated.

    Arguments and results are those of `pmap_step`.

    Args:
      step: `f(state, batch, *replicated, axis_name)`.
      devices: the devices to use; all by default.

    Returns:
      A function of the same arguments with `batch` as `[N, ...]`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax import shard_map_step
      >>> def add(state, batch, axis_name):
      ...     return state + jax.lax.pmean(batch.sum(), axis_name)
      >>> one = jax.devices()[:1]
      >>> print(shard_map_step(add, devices=one)(jnp.zeros(()), jnp.ones((1, 3))))
      3.0
    """
    devices = jax.devices() if devices is None else devices
    mesh = _mesh(devices)

    def local(state: PyTree, batch: PyTree, replicated: tuple):
        batch = jax.tree.map(lambda leaf: leaf[0], batch)
        return step(state, batch, *replicated, axis_name=AXIS)

    # check_vma=True would sum the gradients of the replicated state over devices
    # before the step averages them: N times too large, without an error.
    mapped = jax.jit(
        jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(PartitionSpec(), PartitionSpec(AXIS), PartitionSpec()),
            out_specs=PartitionSpec(),
            check_vma=False,
        ),
        donate_argnums=0,
    )
    return _with_replicated_state(mapped, mesh)


def _mesh(devices: Sequence[jax.Device]) -> Mesh:
    # Explicit axes, the default, would refuse a batch that is not sharded yet.
    return jax.make_mesh(
        (len(devices),), (AXIS,), devices=devices, axis_types=(AxisType.Auto,)
    )


def _with_replicated_state(mapped: Step, mesh: Mesh) -> Step:
    """Puts what is not cut where results are, so one program serves every call."""
    replicated_sharding = NamedSharding(mesh, PartitionSpec())

    def run(state: PyTree, batch: PyTree, *replicated: PyTree):
        state, replicated = jax.device_put((state, replicated), replicated_sharding)
        return mapped(state, batch, replicated)

    return run


def shard_batch(batch: PyTree, num_devices: int) -> PyTree:
    """Cuts a batch into one part a device, `[B, ...]` to `[N, B / N, ...]`.

    Args:
      batch: arrays with the batch axis first.
      num_devices: N.

    Returns:
      The same arrays reshaped.

    Raises:
      ValueError: N does not divide B.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax import shard_batch
      >>> shard_batch(jnp.zeros((8, 784)), 4).shape
      (4, 2, 784)
    """

    def cut(leaf: Array) -> Array:
        if leaf.shape[0] % num_devices:
            raise ValueError(
                f"a batch of {leaf.shape[0]} does not divide among {num_devices} "
                "devices"
            )
        return leaf.reshape(num_devices, len(leaf) // num_devices, *leaf.shape[1:])

    return jax.tree.map(cut, batch)


def shard_epoch(epoch: Epoch, num_devices: int) -> Epoch:
    """Cuts every batch of an epoch into one part a device.

    The rest, whose size need not divide, goes whole to every device: the mean of N
    gradients of the same examples under different noise is as unbiased as one.

    Args:
      epoch: indices `[T, B]` and `[R]`.
      num_devices: N.

    Returns:
      Indices `[N, T, B / N]` and `[N, R]`.

    Raises:
      ValueError: N does not divide B.

    Example:
      >>> import jax
      >>> from vae_jax import shard_epoch, shuffled_epoch
      >>> epoch = shuffled_epoch(jax.random.key(0), 0, num_examples=10, batch_size=4)
      >>> [part.shape for part in shard_epoch(epoch, 2)]
      [(2, 2, 2), (2, 2)]
    """
    columns = shard_batch(epoch.batches.T, num_devices)
    return Epoch(
        batches=jnp.swapaxes(columns, 1, 2),
        rest=jnp.broadcast_to(epoch.rest, (num_devices, *epoch.rest.shape)),
    )
