"""Optional packages, imported where they are needed."""

import importlib
from typing import Any


def import_extra(module: str, extra: str) -> Any:
    """The module of an optional package, or an error that names the extra to install.

    Args:
      module: full name, `sklearn.mixture`.
      extra: the extra of `vae_jax` that brings it.

    Returns:
      The module.

    Raises:
      ImportError: it is not installed.

    Example:
      >>> from vae_jax.extras import import_extra
      >>> import_extra("math", "mcmc").sqrt(4.0)
      2.0
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{module} is not installed: pip install 'vae_jax[{extra}]'"
        ) from error
