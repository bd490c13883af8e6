"""A `ModelSpec` as JSON: import paths and fields, no arrays, no pickles.

Tuples become lists, classes and functions their import paths, dataclasses and Linen
modules an import path with their fields. What has no import path (a class of a
closed notebook, a lambda) is written all the same, and asked for on the way back.
"""

import dataclasses
import importlib
from typing import Any

# jax keeps its activations in private modules that move; these names stay.
_PUBLIC_MODULES = ("jax.nn", "jax.numpy")


def spec_to_json(spec: Any) -> Any:
    """Describes a spec, or a part of one, in terms that JSON has.

    Args:
      spec: a `ModelSpec`, or anything that stands in one.

    Returns:
      Dictionaries, lists, strings, numbers, booleans and None.

    Example:
      >>> from vae_jax import MLP
      >>> from vae_jax.spec_json import spec_to_json
      >>> spec_to_json(MLP((5,)))["fields"]
      {'hidden_dims': [5], 'activation': {'import': 'jax.nn:relu'}}
    """
    if spec is None or isinstance(spec, bool | int | float | str):
        return spec
    if isinstance(spec, tuple):
        return [spec_to_json(part) for part in spec]
    if dataclasses.is_dataclass(spec) and not isinstance(spec, type):
        return {
            "class": _import_path(type(spec)),
            "fields": {
                entry.name: spec_to_json(getattr(spec, entry.name))
                for entry in dataclasses.fields(spec)
                # Linen's own: where a module hangs, not what it is.
                if entry.init and entry.name not in ("parent", "name")
            },
        }
    return {"import": _import_path(spec)}


def spec_from_json(description: Any) -> Any:
    """Rebuilds what `spec_to_json` described.

    Args:
      description: what JSON gave back.

    Returns:
      The spec, equal to the one described.

    Raises:
      ValueError: a class or function cannot be imported, or no longer takes those
        fields; the message names it.

    Example:
      >>> from vae_jax import ModelSpec
      >>> from vae_jax.spec_json import spec_from_json, spec_to_json
      >>> spec_from_json(spec_to_json(ModelSpec())) == ModelSpec()
      True
    """
    if isinstance(description, list):
        return tuple(spec_from_json(part) for part in description)
    if not isinstance(description, dict):
        return description
    if "import" in description:
        return _import(description["import"])
    fields = {
        name: spec_from_json(part) for name, part in description["fields"].items()
    }
    try:
        return _import(description["class"])(**fields)
    except TypeError as error:
        raise ValueError(
            f"spec: {description['class']} does not take its saved fields ({error}); "
            "pass spec="
        ) from error


def _import_path(named: Any) -> str:
    """`module:name`, by a public module where jax has one."""
    name = getattr(named, "__qualname__", None) or getattr(named, "__name__", None)
    if name is None:
        return f"{type(named).__module__}:{named!r}"
    for module in _PUBLIC_MODULES:
        if getattr(importlib.import_module(module), name, None) is named:
            return f"{module}:{name}"
    return f"{named.__module__}:{name}"


def _import(path: str) -> Any:
    module, _, name = path.partition(":")
    try:
        found = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"spec: {path} cannot be imported ({error}); pass spec="
        ) from error
    return found
