"""Executors of a per-device step: `jit`, `pmap` and `shard_map`.

The step is `f(state, batch, *replicated, axis_name=None) -> (state, ...)`: a
`train_step` or a whole `train_epoch`. With several devices, the batch has a leading
axis `[N, ...]` with one entry per device. State, further arguments and results are
replicated without a device axis, so checkpoints do not depend on N. Each device draws
separate noise: N devices equal one in expectation, but not bit for bit.

With several processes, use `shard_map_step` over `jax.devices()`; each process passes
only the data of its own devices (`put_on_devices`).

Since JAX 0.8, `pmap` is implemented as `jit` of `shard_map` and in maintenance mode. It
has a small overhead per call, which is negligible for a whole epoch.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vae_jax.training import Epoch
from vae_jax.types import Array, PyTree

Device = Any
"""A `jax.Device`, which jaxlib does not declare for type checkers."""

AXIS = "device"
Step = Callable[..., Any]


def jit_step(step: Step) -> Step:
    """Compile a step for one device; the state is donated.

    Args:
      step: `f(state, batch, *replicated)`.

    Returns:
      The compiled function. A state passed to it must not be used again.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax import jit_step
      >>> add = jit_step(lambda state, batch: state + batch.sum())
      >>> print(add(jnp.zeros(()), jnp.ones(3)))
      3.0
    """
    return jax.jit(step, donate_argnums=0)


def pmap_step(step: Step, *, devices: Sequence[Device] | None = None) -> Step:
    """Map a step over devices with `pmap`; the state is donated.

    Args:
      step: `f(state, batch, *replicated, axis_name)`, which averages its gradients
        over the axis.
      devices: devices to use; all local devices by default.

    Returns:
      A function of the same arguments with `batch` as `[N, ...]` (`shard_batch`,
      `shard_epoch`). Its results are replicated, without a leading axis.

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


def shard_map_step(step: Step, *, devices: Sequence[Device] | None = None) -> Step:
    """Map a step over devices with `shard_map`; the state is donated.

    Arguments and results are those of `pmap_step`.

    Args:
      step: `f(state, batch, *replicated, axis_name)`.
      devices: devices to use; the devices of all processes by default.

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

    # With check_vma=True, the gradients of the replicated state are summed over devices
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


def _mesh(devices: Sequence[Device]) -> Mesh:
    # Explicit axes, the default, reject a batch that is not sharded yet.
    return jax.make_mesh(
        (len(devices),), (AXIS,), devices=devices, axis_types=(AxisType.Auto,)
    )


def _with_replicated_state(mapped: Step, mesh: Mesh) -> Step:
    """Replicate all arguments but the batch, so that every call uses one program."""
    replicated_sharding = NamedSharding(mesh, PartitionSpec())

    def run(state: PyTree, batch: PyTree, *replicated: PyTree):
        state, replicated = _replicate((state, replicated), replicated_sharding)
        return mapped(state, batch, replicated)

    return run


def _replicate(tree: PyTree, sharding: NamedSharding) -> PyTree:
    """Replicate a tree on a mesh, which may span several processes."""
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)
    # device_put only reaches the devices of this process; a program reaches all.
    place = _program_that_places(sharding)
    return jax.tree.map(
        lambda leaf: leaf if _is_at(leaf, sharding) else place(leaf), tree
    )


def _is_at(leaf: Any, sharding: NamedSharding) -> bool:
    return getattr(leaf, "sharding", None) == sharding


@cache
def _program_that_places(sharding: NamedSharding) -> Callable[[Any], Array]:
    return jax.jit(lambda leaf: leaf, out_shardings=sharding)


def put_on_devices(
    part: Callable[[int], PyTree], *, devices: Sequence[Device]
) -> PyTree:
    """Put one part of a batch or data set on each device, `[N, ...]` in total.

    Each process creates only the parts of its own devices.

    Args:
      part: `f(index) -> part` for the device with that index; all parts must have equal
        shapes.
      devices: the N devices of all processes.

    Returns:
      The parts as one pytree with a leading axis `[N, ...]`, one entry per device.

    Example:
      >>> import jax, numpy as np
      >>> from vae_jax import put_on_devices
      >>> parts = put_on_devices(lambda d: np.full(3, d), devices=jax.devices()[:1])
      >>> parts.shape
      (1, 3)
    """
    sharding = NamedSharding(_mesh(devices), PartitionSpec(AXIS))
    own = [
        jax.device_put(jax.tree.map(lambda leaf: leaf[None], part(number)), device)
        for number, device in enumerate(devices)
        if device.process_index == jax.process_index()
    ]

    def whole(*leaves: Array) -> Array:
        shape = (len(devices), *leaves[0].shape[1:])
        return jax.make_array_from_single_device_arrays(shape, sharding, list(leaves))

    return jax.tree.map(whole, *own)


def shard_batch(batch: PyTree, num_devices: int) -> PyTree:
    """Split a batch into one part per device, `[B, ...]` to `[N, B / N, ...]`.

    Args:
      batch: arrays with the batch axis first.
      num_devices: number N of devices.

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
    """Split every full batch of an epoch into one part per device.

    The last batch, whose size need not be divisible by N, is copied to every device: an
    average of N gradients of the same examples with different noise is unbiased.

    Args:
      epoch: indices `[T, B]` and `[R]`.
      num_devices: number N of devices.

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
