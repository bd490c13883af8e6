"""Dependence of a function's outputs on its argument, read from the jaxpr."""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import Var

from vae_jax.types import PyTree


def outputs_that_use_it(
    function: Callable[[Any], PyTree], argument: PyTree
) -> list[bool]:
    """Whether each output depends on the argument, according to the jaxpr.

    Args:
      function: a function that JAX can trace.
      argument: arrays or typed keys; their shapes matter, not their values.

    Returns:
      A logical value for each leaf of the output.

    Example:
      >>> from vae_jax.dependence import outputs_that_use_it
      >>> outputs_that_use_it(lambda x: (2 * x, 3.0), 1.0)
      [True, False]
    """
    jaxpr = jax.make_jaxpr(function)(argument).jaxpr
    return _reached_outputs(jaxpr, [True] * len(jaxpr.invars))


# Operations that run the program in their parameter `jaxpr` on their own inputs.
_CALLS = ("jit", "remat2")


def _reached_outputs(jaxpr: Any, inputs: list[bool]) -> list[bool]:
    """Outputs of a program that some of its inputs reach."""
    pairs = zip(jaxpr.invars, inputs, strict=True)
    reached = {variable for variable, is_reached in pairs if is_reached}

    def are_reached(variables: list[Any]) -> list[bool]:
        return [isinstance(v, Var) and v in reached for v in variables]

    for equation in jaxpr.eqns:
        given = are_reached(equation.invars)
        if equation.primitive.name in _CALLS:
            called = equation.params["jaxpr"]
            found = _reached_outputs(getattr(called, "jaxpr", called), given)
        else:
            found = [any(given)] * len(equation.outvars)
        pairs = zip(equation.outvars, found, strict=True)
        reached |= {variable for variable, is_reached in pairs if is_reached}
    return are_reached(jaxpr.outvars)
