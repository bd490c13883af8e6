"""Supports of distributions.

Outside its support, the log-density of a distribution is NaN. For concrete (not traced)
values, `Support.require` raises an error with an explanation instead.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from vae_jax.types import Array

Values = TypeVar("Values", Array, np.ndarray)

# As a fraction of the step between levels; float16 rounds 8-bit values by less.
_LEVEL_TOLERANCE = 0.1
_REMEDY = (
    "divide by the largest value that the data may have "
    "(vae_jax.data.to_unit_interval), or choose a likelihood of real numbers"
)


def known_values(x: float | Array | np.ndarray) -> np.ndarray | None:
    """Concrete values of an array on the host; None if they are not available.

    Args:
      x: an array, traced or not, or a number.

    Returns:
      A NumPy array; None for a tracer, or for an array that this process holds only
      partially.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax.distributions.support import known_values
      >>> known_values(jnp.arange(3)).tolist()
      [0, 1, 2]
      >>> jax.jit(lambda x: 0 if known_values(x) is None else 1)(jnp.arange(3)).item()
      0
    """
    if isinstance(x, Tracer):
        return None
    if not getattr(x, "is_fully_addressable", True):
        return None
    return np.asarray(x)


@dataclass(frozen=True)
class Support:
    """An interval of real numbers, or evenly spaced levels in it.

    Attributes:
      low: smallest value.
      high: largest value.
      num_levels: number n of levels low, low + (high - low) / (n - 1), ..., high, from
        which values may deviate by a tenth of a step; None for the whole interval.
      whole: whether only whole numbers belong to the support.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.distributions.support import Support
      >>> Support(0.0, 1.0, 3).contains(jnp.array([0.5, 0.1, jnp.nan])).tolist()
      [True, False, False]
    """

    low: float = -math.inf
    high: float = math.inf
    num_levels: int | None = None
    whole: bool = False

    @property
    def interval(self) -> "Support":
        """The interval without discretization, which contains means of values."""
        return replace(self, num_levels=None, whole=False)

    def filler(self, dim: int) -> np.ndarray:
        """A value inside, in the place of values that are missing, `[dim]`."""
        low = 0.0 if self.low == -math.inf else self.low
        is_open = not self.whole and self.num_levels is None and self.low > 0
        # Far from the ends of an interval without its ends.
        inside = min(1.0, self.high / 2) if is_open else low
        return np.full(dim, inside)

    def contains(self, x: Values) -> Values:
        """Elementwise membership; False for NaN."""
        inside = (x >= self.low) & (x <= self.high)
        if self.whole:
            rounded = x.round()
            whole = (rounded <= x) & (x <= rounded)
            return inside & whole & (x > -jnp.inf) & (x < jnp.inf)
        if self.num_levels is None:
            return inside
        level = (x - self.low) * ((self.num_levels - 1) / (self.high - self.low))
        return inside & (abs(level - level.round()) <= _LEVEL_TOLERANCE)

    def nan_outside(self, x: Array) -> Array:
        """Replace values outside the support by NaN."""
        return jnp.where(self.contains(x), x, jnp.nan)

    def require(
        self, x: Array | np.ndarray, name: str = "x", *, remedy: str = _REMEDY
    ) -> None:
        """Raise ValueError for concrete values outside the support.

        Args:
          x: an array; traced arrays are not checked.
          name: name of the argument, for the message.
          remedy: advice on values outside the support, for the message.

        Raises:
          ValueError: `x` holds NaN, an infinity, or a value outside the support.
        """
        values = known_values(x)
        if values is None or values.size == 0:
            return
        finite = np.isfinite(values)
        if not finite.all():
            raise ValueError(
                f"{name} must be finite, got NaN or infinity in "
                f"{finite.size - finite.sum()} of {finite.size} values"
            )
        inside = self.contains(values)
        if inside.all():
            return
        lowest, highest = float(values.min()), float(values.max())
        if lowest < self.low or highest > self.high:
            raise ValueError(
                f"{name} must lie in [{self.low:g}, {self.high:g}], got values from "
                f"{lowest:.8g} to {highest:.8g}; {remedy}"
            )
        between = float(values[~inside][0])
        if self.whole:
            raise ValueError(
                f"{name} must hold whole numbers, got {between:.8g}; give the counts "
                "themselves, or choose a likelihood of real numbers"
            )
        raise ValueError(
            f"{name} must hold {self.num_levels} evenly spaced levels of "
            f"[{self.low:g}, {self.high:g}], got {between:.8g} between two of them; "
            f"{remedy}"
        )


@dataclass(frozen=True)
class ColumnSupport:
    """A support for each column of a table; a `Support` of their product.

    Attributes:
      parts: supports, each with the numbers of its columns; all of D once.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.distributions.support import COUNTS, REAL, ColumnSupport
      >>> support = ColumnSupport(((REAL, (1,)), (COUNTS, (0,))))
      >>> support.contains(jnp.array([0.5, 0.5])).tolist()
      [False, True]
    """

    parts: tuple[tuple[Support, tuple[int, ...]], ...]

    @property
    def interval(self) -> "ColumnSupport":
        """All values between the smallest and the largest, as means are."""
        return ColumnSupport(tuple((part.interval, at) for part, at in self.parts))

    def filler(self, dim: int) -> np.ndarray:
        """A value of each column inside, `[dim]`."""
        found = np.zeros(dim)
        for part, at in self.parts:
            found[list(at)] = part.filler(len(at))
        return found

    def contains(self, x: Values) -> Values:
        """Elementwise membership, `[..., D]`."""
        inside = [part.contains(x[..., list(at)]) for part, at in self.parts]
        numpy: Any = np if isinstance(x, np.ndarray) else jnp
        order = np.argsort([number for _, at in self.parts for number in at])
        return numpy.concatenate(inside, axis=-1)[..., order]

    def nan_outside(self, x: Array) -> Array:
        """The values, NaN in place of those outside."""
        return jnp.where(self.contains(x), x, jnp.nan)

    def require(
        self, x: Array | np.ndarray, name: str = "x", *, remedy: str = _REMEDY
    ) -> None:
        """Refuses values outside, as `Support.require`, and names their columns."""
        values = known_values(x)
        if values is None:
            return
        for part, at in self.parts:
            for number in at:
                part.require(
                    values[..., number], f"{name}, column {number},", remedy=remedy
                )


@dataclass(frozen=True)
class MaskedSupport:
    """The values of another support, and NaN for those that are missing.

    Attributes:
      base: a `Support` or a `ColumnSupport`.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.distributions.support import COUNTS, MaskedSupport
      >>> MaskedSupport(COUNTS).contains(jnp.array([2.0, jnp.nan, 0.5])).tolist()
      [True, True, False]
    """

    base: Support | ColumnSupport

    @property
    def interval(self) -> "MaskedSupport":
        """All values between the smallest and the largest, and NaN."""
        return MaskedSupport(self.base.interval)

    def contains(self, x: Values) -> Values:
        """Elementwise membership, `[..., D]`."""
        missing: Any = x != x
        return self.base.contains(x) | missing

    def nan_outside(self, x: Array) -> Array:
        """The values, infinity in place of those outside: NaN is a missing one."""
        return jnp.where(self.contains(x), x, jnp.inf)

    def require(
        self, x: Array | np.ndarray, name: str = "x", *, remedy: str = _REMEDY
    ) -> None:
        """Refuses values outside, as far as they are known."""
        values = known_values(x)
        if values is None or values.size == 0:
            return
        filler = self.base.filler(values.shape[-1]).astype(values.dtype)
        filled = np.where(np.isnan(values), filler, values)
        self.base.require(filled, name, remedy=remedy)


REAL = Support()
UNIT_INTERVAL = Support(0.0, 1.0)
COUNTS = Support(0.0, whole=True)
# From the smallest float32 that is not rounded to 0.
POSITIVE = Support(float(np.finfo(np.float32).tiny))
# Between 0 and 1, to the largest float32 below 1.
FRACTIONS = Support(POSITIVE.low, 1 - 2.0**-24)
