"""A contract checker for networks, families, priors and likelihoods of a user's own.

`check(params, x, key)` holds a model to what the objectives take for granted: shapes,
finite values and gradients, densities that belong to their samples, bounds in order,
and functions that may be transformed. `print(check(params, x, key))` shows a table.
"""

from vae_jax.contracts.lines import LINES, check
from vae_jax.contracts.report import Line, Report

__all__ = ["LINES", "Line", "Report", "check"]
