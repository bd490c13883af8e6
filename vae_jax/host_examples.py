"""Training examples in host memory, prefetched to the devices by a thread.

The devices hold a chunk of batches at a time. The results are bitwise equal to those
of `train_epoch` on the whole data set.
"""

import math
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from vae_jax.training import Epoch, TrainState
from vae_jax.training_objectives import Metrics
from vae_jax.types import PyTree

# Size of the examples of a chunk; another chunk is prefetched.
CHUNK_BYTES = 2**25


def own_examples(
    epoch: Epoch, data: PyTree, *, first_step: int = 0, num_steps: int | None = None
) -> tuple[Epoch, PyTree]:
    """Select the examples that one device uses in an epoch, in order of use.

    The device then only holds its share of the data set, or of a chunk of batches.

    Args:
      epoch: the device's share of an epoch, `[T, B / N]` and `[R]`.
      data: the data set on the host, `[n, ...]`.
      first_step: first step of the chunk, a multiple of K.
      num_steps: number K of steps in the chunk, by default all T. All chunks of an
        epoch have the same shapes.

    Returns:
      The epoch as indices into the selected examples, valid for steps `first_step` to
      `first_step + K - 1`, and these examples, `[K B / N + R, ...]`.

    Example:
      >>> import numpy as np
      >>> from vae_jax import Epoch, own_examples
      >>> epoch = Epoch(batches=np.array([[4, 2]]), rest=np.array([0]))
      >>> epoch, data = own_examples(epoch, np.arange(5) * 10)
      >>> print(epoch.batches, epoch.rest, data)
      [[0 1]] [2] [40 20  0]
    """
    total, size = np.shape(epoch.batches)
    length = total if num_steps is None else num_steps
    batches = np.asarray(epoch.batches)[first_step : first_step + length]
    # The last chunk may be shorter: it is padded with examples that no step uses.
    order = np.concatenate([np.resize(batches, length * size), epoch.rest])
    within: Any = np.arange(total, dtype=np.int32) % max(1, length)
    columns = np.arange(size, dtype=np.int32)
    rest: Any = length * size + np.arange(len(epoch.rest), dtype=np.int32)
    own = Epoch(batches=within[:, None] * size + columns, rest=rest)
    return own, jax.tree.map(lambda leaf: np.asarray(leaf[order]), data)


def steps_per_chunk(data: PyTree, batch_size: int) -> int:
    """Number of steps per chunk.

    Args:
      data: the data set on the host.
      batch_size: examples per step.

    Returns:
      The largest number of steps whose examples fit into `CHUNK_BYTES`, at least 1 and
      at most the number of full batches in an epoch.

    Example:
      >>> import numpy as np
      >>> from vae_jax.host_examples import steps_per_chunk
      >>> steps_per_chunk(np.zeros((60_000, 784), np.bool_), 128)
      334
    """
    leaves = jax.tree.leaves(data)
    row = sum(math.prod(leaf.shape[1:]) * leaf.dtype.itemsize for leaf in leaves)
    fitting = CHUNK_BYTES // (row * batch_size)
    return max(1, min(fitting, leaves[0].shape[0] // batch_size))


class EpochChunks:
    """An epoch in chunks of steps; a thread loads the next chunk during training."""

    def __init__(
        self,
        load: Callable[[int], Any],
        sizes: Epoch,
        *,
        steps_per_chunk: int,
    ):
        """Initialize without loading any examples.

        Args:
          load: `f(first_step) -> share`, which puts the result of `own_examples` for a
            chunk on the devices.
          sizes: an epoch of the same shapes. A smaller last batch is in the last
            chunk.
          steps_per_chunk: number K of steps per chunk.
        """
        self._load, self._length = load, steps_per_chunk
        self._num_steps = len(sizes.batch_sizes)
        self._num_chunks = max(1, math.ceil(sizes.batches.shape[0] / steps_per_chunk))
        self._loaded: dict[int, Future[Any]] = {}
        self._thread = ThreadPoolExecutor(1)

    def _share(self, number: int) -> Any:
        """Return the share of a chunk and start loading the next one."""
        self._loaded = {k: v for k, v in self._loaded.items() if k >= number}
        for wanted in range(number, min(number + 2, self._num_chunks)):
            if wanted not in self._loaded:
                first_step = wanted * self._length
                self._loaded[wanted] = self._thread.submit(self._load, first_step)
        return self._loaded[number].result()

    def train(
        self,
        run: Callable[..., tuple[TrainState, Metrics]],
        state: TrainState,
        history: Metrics,
        stop: int,
    ) -> tuple[TrainState, Metrics]:
        """Take the steps of the epoch up to `stop`, as `train_epoch` does.

        Args:
          run: `f(state, share, history, stop) -> (state, history)`, compiled.
          state: state at the start of the epoch or within it.
          history: metrics of the epoch's steps so far.
          stop: step of the epoch to stop before; 0 compiles without taking a step.

        Returns:
          The state, and the history with the metrics of the steps taken.
        """
        position = int(state.step) % self._num_steps
        while True:
            number = min(position // self._length, self._num_chunks - 1)
            is_last = number == self._num_chunks - 1
            end = stop if is_last else min(stop, (number + 1) * self._length)
            state, history = run(state, self._share(number), history, end)
            if end >= stop:
                return state, history
            position = end
