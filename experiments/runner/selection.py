"""Best epoch on validation data, part of every checkpoint of a run that selects one."""

from typing import NamedTuple

import numpy as np

from vae_jax.types import Array


class Best(NamedTuple):
    """Best epoch so far.

    Attributes:
      best_elbo: the highest validation ELBO, in nats, float32; -inf before any.
      best_epoch: number of epochs completed at that point; 0 before any.
    """

    best_elbo: Array | np.ndarray = np.array(-np.inf, np.float32)
    best_epoch: Array | np.ndarray = np.array(0, np.int32)

    def after(self, epoch: int, elbo: float) -> "Best":
        """Return the better of this and another epoch, the earlier one in a tie.

        Args:
          epoch: number of completed epochs.
          elbo: validation ELBO in nats; nan is never better.

        Returns:
          A `Best`.

        Example:
          >>> from experiments.runner.selection import Best
          >>> best = Best().after(1, -3.0).after(2, -2.0).after(3, float("nan"))
          >>> int(best.best_epoch), best.is_over(4, patience=3)
          (2, False)
        """
        # Rounded as saved: a restored run must compare the same numbers.
        rounded = np.array(elbo, np.float32)
        if not rounded > self.best_elbo:
            return self
        return Best(rounded, np.array(epoch, np.int32))

    def is_over(self, epoch: int, *, patience: int | None) -> bool:
        """Return whether `patience` epochs have passed since the best one.

        Args:
          epoch: number of completed epochs.
          patience: number of epochs; None for no limit.

        Returns:
          A boolean.
        """
        return patience is not None and epoch - int(self.best_epoch) >= patience
