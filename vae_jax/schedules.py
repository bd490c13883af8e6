"""Schedules: functions of the training step whose parameters can be swept.

Any optax schedule can be used as well, but its parameters are hidden in a closure.
"""

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any

import jax.numpy as jnp

from vae_jax.options import (
    register_options,
    require_at_least,
    require_scalar,
    require_value,
)
from vae_jax.types import Array

Scheduled = float | Array | Callable[[Array], Array]
"""A number, a traced scalar, or a function of the step (an optax schedule)."""


def at_step(name: str, value: Scheduled, step: Array) -> float | Array:
    """Value of a scheduled option at a training step.

    Args:
      name: name of the option, for the message.
      value: a number or a schedule.
      step: training step.

    Returns:
      A number, or an array of shape ().

    Raises:
      ValueError: the value is not a scalar.

    Example:
      >>> from vae_jax.schedules import LinearWarmup, at_step
      >>> print(at_step("beta", LinearWarmup(2.0, num_steps=10), 5))
      1.0
    """
    found = value(step) if callable(value) else value
    require_scalar(name, found)
    return found


@register_options()
@dataclass(frozen=True)
class LinearWarmup:
    """Linear increase from 0 to a peak (KL annealing, Bowman et al. 2016).

        value = peak * min(1, step / num_steps)

    as in `optax.linear_schedule`.

    Attributes:
      peak: final value; a number or a traced scalar.
      num_steps: number of steps of the increase, a number or a traced scalar; 0 starts
        at the peak.

    Raises:
      ValueError: `peak` or `num_steps` is not a scalar.

    Example:
      >>> from vae_jax import LinearWarmup
      >>> beta = LinearWarmup(2.0, num_steps=100)
      >>> print(*(float(beta(step)) for step in (0, 50, 100, 150)))
      0.0 1.0 2.0 2.0
    """

    peak: float | Array
    _: KW_ONLY
    num_steps: float | Array

    def __post_init__(self):
        require_scalar("peak", self.peak)
        require_scalar("num_steps", self.num_steps)

    def __call__(self, step: Array) -> Array:
        """Return the value at a step."""
        # With num_steps = 0, the peak is reached at step 0; this avoids 0 / 0.
        share = step / jnp.maximum(self.num_steps, 1)
        return self.peak * jnp.where(step < self.num_steps, share, 1.0)


@register_options(static=("period",))
@dataclass(frozen=True)
class Cyclic:
    """Cyclical increase from 0 to a peak (Fu et al. 2019).

        value = peak * min(1, (step mod period) / (rising_share * period))

    Attributes:
      peak: maximum; a number or a traced scalar.
      period: number of steps of a cycle.
      rising_share: fraction of a cycle with a linear increase, a number or a traced
        scalar; the value stays at the peak for the rest of the cycle.

    Raises:
      ValueError: `period` is below 1, `rising_share` is outside (0, 1], or `peak` or
        `rising_share` is not a scalar. For a traced `rising_share` outside (0, 1],
        every value is NaN.

    Example:
      >>> from vae_jax import Cyclic
      >>> beta = Cyclic(1.0, period=100)
      >>> print(*(float(beta(step)) for step in (0, 25, 50, 99, 100)))
      0.0 0.5 1.0 1.0 0.0
    """

    peak: float | Array
    _: KW_ONLY
    period: int
    rising_share: float | Array = 0.5

    def __post_init__(self):
        require_scalar("peak", self.peak)
        require_scalar("rising_share", self.rising_share)
        require_at_least("period", self.period)
        require_value("rising_share", self.rising_share, _is_share, "in (0, 1]")

    def __call__(self, step: Array) -> Array:
        """Return the value at a step."""
        position = (step % self.period) / (self.rising_share * self.period)
        value = self.peak * jnp.minimum(position, 1.0)
        return jnp.where(_is_share(self.rising_share), value, jnp.nan)


def _is_share(value: Any) -> Any:
    return (value > 0) & (value <= 1)


warmup_schedule = LinearWarmup
cyclic_schedule = Cyclic
