"""Contract checker for custom networks, families, priors and likelihoods.

`check(params, x, key)` tests the assumptions of the objectives: shapes, finite values
and gradients, densities consistent with their samples, ordered bounds, and functions
that can be transformed. `print(check(params, x, key))` shows a table.
"""

from vae_jax.contracts.lines import LINES, check
from vae_jax.contracts.report import Line, Report

__all__ = ["LINES", "Line", "Report", "check"]
