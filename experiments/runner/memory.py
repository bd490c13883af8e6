"""Lower bound on the memory of a run, checked against free memory before it starts."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import jax

from vae_jax import TrainState
from vae_jax.data.memory import available_bytes, gigabytes
from vae_jax.types import PyTree


def free_bytes() -> int:
    """Free memory in bytes of the accelerator, or of the host if there is none."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in statistics:
        return statistics["bytes_limit"] - statistics["bytes_in_use"]
    return available_bytes()


def stays_on_host(data_on: str, num_bytes: int) -> bool:
    """Return whether training data stay on the host, with only batches on a device.

    Args:
      data_on: `--data_on`.
      num_bytes: size of the data.

    Returns:
      True for `host`, or for `auto` if the data exceed half of the free memory.
    """
    return data_on == "host" or data_on == "auto" and 2 * num_bytes > free_bytes()


def require(
    initial_state: Callable[[], TrainState],
    config: Any,
    *,
    num_examples: int,
    num_models: int = 1,
) -> None:
    """Raise ValueError if parameters or batches exceed the free memory.

    The lower bound counts the state and the gradient, and z and the decoder's output
    for each sample of each example. Training may need more.

    Args:
      initial_state: makes the state of a model; traced, not run.
      config: has `batch_size`, divided among `num_devices`, and `num_samples`.
      num_examples: number of training examples, which bounds the batch size.
      num_models: number of models whose states are held at once.

    Raises:
      ValueError: names the memory needed, its parts, and the free memory.
    """
    try:
        # Warnings about sizes beyond 32 bits, for which an error is raised below.
        with warnings.catch_warnings(action="ignore"):
            state = jax.eval_shape(initial_state)
    except (MemoryError, OverflowError) as error:
        raise ValueError(
            f"the model is larger than any memory ({error}): choose smaller sizes"
        ) from error
    spec = state.params.spec
    of_state = _bytes(state) + _bytes(state.params)
    samples, batch = config.num_samples, min(config.batch_size, num_examples)
    values = samples * math.ceil(batch / config.num_devices)
    of_samples = 4 * values * (spec.latent_dim + math.prod(spec.data_shape))
    needed, free = num_models * of_state + of_samples, free_bytes()
    if needed > free:
        raise ValueError(
            f"training needs at least {gigabytes(needed)} of memory, but "
            f"{gigabytes(free)} are free: {num_models} x {gigabytes(of_state)} "
            f"of parameters, optimizer and gradient, {gigabytes(of_samples)} of "
            f"--num_samples {samples} for --batch_size {batch}; choose smaller sizes"
        )


def _bytes(tree: PyTree) -> int:
    sizes = (
        math.prod(leaf.shape) * getattr(leaf.dtype, "itemsize", 4)
        for leaf in jax.tree.leaves(tree)
    )
    return sum(sizes)
