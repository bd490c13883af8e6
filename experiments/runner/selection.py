"""The best epoch so far, on validation data: part of every checkpoint of such a run."""

from typing import NamedTuple

import numpy as np

from vae_jax.types import Array


class Best(NamedTuple):
    """The best epoch so far.

    Attributes:
      best_elbo: the highest validation ELBO, in nats, float32; -inf before any.
      best_epoch: epochs that were complete then; 0 before any.
    """

    best_elbo: Array | np.ndarray = np.array(-np.inf, np.float32)
    best_epoch: Array | np.ndarray = np.array(0, np.int32)

    def after(self, epoch: int, elbo: float) -> "Best":
        """The best of these and another epoch; of two that are equal, the earlier.

        Args:
          epoch: epochs that are complete.
          elbo: on validation data; nan is never better.

        Returns:
          A `Best`.

        Example:
          >>> from experiments.runner.selection import Best
          >>> best = Best().after(1, -3.0).after(2, -2.0).after(3, float("nan"))
          >>> int(best.best_epoch), best.is_over(4, patience=3)
          (2, False)
        """
        # As it is saved: a run that is restored must compare the same numbers.
        rounded = np.array(elbo, np.float32)
        if not rounded > self.best_elbo:
            return self
        return Best(rounded, np.array(epoch, np.int32))

    def is_over(self, epoch: int, *, patience: int | None) -> bool:
        """Whether that many epochs have passed without a better one.

        Args:
          epoch: epochs that are complete.
          patience: None waits for ever.

        Returns:
          A boolean.
        """
        return patience is not None and epoch - int(self.best_epoch) >= patience
