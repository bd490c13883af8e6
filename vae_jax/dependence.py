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
    reached = set(jaxpr.invars)
    for equation in jaxpr.eqns:
        if reached.intersection(v for v in equation.invars if isinstance(v, Var)):
            reached.update(equation.outvars)
    return [isinstance(v, Var) and v in reached for v in jaxpr.outvars]
