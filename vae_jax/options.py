"""Options as pytrees: real numbers are leaves, everything else compares by value.

Objectives, penalties, schedules and reductions are frozen dataclasses. When passed to a
compiled program, their real-valued fields may be traced and swept with `vmap`; counts,
names and functions are static. Equal options share a compiled program.
"""

import dataclasses
import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax.distributions.support import known_values
from vae_jax.types import AnyArray, Array

Options = TypeVar("Options")


def register_options(
    *, static: Sequence[str] = ()
) -> Callable[[type[Options]], type[Options]]:
    """Register a frozen dataclass of options as a pytree, as a decorator.

    A field that holds a function is static; one that holds another pytree of options is
    a subtree. `beta`, for example, may be a number, a function of the step, or a
    schedule with a swept peak. (With `jax.tree_util.register_dataclass`, whether a
    field is static does not depend on its value.)

    Args:
      static: names of the fields that are not real numbers, such as counts and names.

    Returns:
      The decorator.

    Example:
      >>> import jax
      >>> from dataclasses import dataclass
      >>> from vae_jax.options import register_options
      >>> @register_options(static=("count",))
      ... @dataclass(frozen=True)
      ... class Settings:
      ...     count: int
      ...     weight: object
      >>> jax.tree.leaves(Settings(3, 0.5)), jax.tree.leaves(Settings(3, abs))
      ([0.5], [])
    """

    def register(cls: type[Options]) -> type[Options]:
        names = [field.name for field in dataclasses.fields(cast(Any, cls))]

        def is_static(name: str, value: Any) -> bool:
            is_leaf = jax.tree_util.all_leaves([value])
            return name in static or (callable(value) and is_leaf)

        def flatten(options: Options):
            values = {name: getattr(options, name) for name in names}
            fixed = tuple(entry for entry in values.items() if is_static(*entry))
            real = [entry for entry in values.items() if not is_static(*entry)]
            key = jax.tree_util.GetAttrKey
            return [(key(name), value) for name, value in real], fixed

        def unflatten(fixed, children) -> Options:
            # Bypass the constructor: JAX also unflattens with shapes or axes as leaves.
            options = object.__new__(cls)
            real = [name for name in names if name not in dict(fixed)]
            vars(options).update(fixed, **dict(zip(real, children, strict=True)))
            return options

        jax.tree_util.register_pytree_with_keys(cls, flatten, unflatten)
        return cls

    return register


def require_scalar(name: str, value: float | Array) -> None:
    """Raise ValueError if a real-valued option is not a scalar.

    An array would broadcast silently against the examples or the units.

    Args:
      name: name of the option, for the message.
      value: value of the option; may be traced.

    Raises:
      ValueError: `value` has an axis.

    Example:
      >>> from vae_jax.options import require_scalar
      >>> require_scalar("beta", 4.0)
    """
    if jnp.shape(value) != ():
        raise ValueError(
            f"{name} must be a number or an array of shape (), got shape "
            f"{jnp.shape(value)}; use jax.vmap for several values"
        )


def require_at_least(name: str, value: int, least: int = 1, why: str = "") -> None:
    """Raise ValueError if a count is not an integer or is below its minimum.

    Args:
      name: name of the argument.
      value: its value.
      least: the minimum.
      why: reason for the minimum, for the message.

    Raises:
      ValueError: `value` is not an integer, such as 3.0, or less than `least`.

    Example:
      >>> from vae_jax.options import require_at_least
      >>> require_at_least("num_samples", 0)
      Traceback (most recent call last):
      ValueError: num_samples must be at least 1, got 0
    """
    try:
        operator.index(value)
    except TypeError as error:
        raise ValueError(f"{name} must be an integer, got {value!r}") from error
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}{why}")


def require_value(
    name: str,
    value: float | AnyArray,
    is_valid: Callable[[Any], Any],
    expected: str,
    remedy: str = "",
) -> None:
    """Raise ValueError if a concrete real-valued option is invalid.

    Args:
      name: name of the option, for the message.
      value: value of the option, a number or an array; traced values are not checked.
      is_valid: elementwise predicate on NumPy arrays.
      expected: description of valid values, for the message.
      remedy: advice appended to the message.

    Raises:
      ValueError: `is_valid` is False for an element of `value`.

    Example:
      >>> import numpy as np
      >>> from vae_jax.options import require_value
      >>> require_value("share", np.float32(0.5), lambda v: v > 0, "positive")
    """
    known = known_values(value)
    if known is not None and not np.all(is_valid(known)):
        raise ValueError(f"{name} must be {expected}, got {value}{remedy}")
