"""A `ModelSpec` as JSON: import paths and fields, no arrays, no pickles.

Tuples become lists, classes and functions their import paths, dataclasses and Linen
modules an import path with their fields. What has no import path (a class of a
closed notebook, a lambda) is written all the same, and asked for on the way back.

On the way back nothing is called but dataclasses, and nothing is imported but this
library and the public functions of jax, unless the caller trusts a module: importing
runs its code, and a file from a stranger must not choose which.
"""

import dataclasses
import importlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from vae_jax.networks import is_linen

# jax keeps its activations in private modules that move; these names stay.
_PUBLIC_MODULES = ("jax.nn", "jax.numpy")
Trust = bool | Sequence[str]
"""Modules outside the library that may be imported: all, none, or those named."""


def spec_to_json(spec: Any) -> Any:
    """Describe a spec, or a part of one, in terms that JSON has.

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
    if isinstance(spec, np.generic):
        spec = spec.item()
    if spec is None or isinstance(spec, bool | int | float | str):
        return spec
    if isinstance(spec, tuple):
        return [spec_to_json(part) for part in spec]
    if dataclasses.is_dataclass(spec) and not isinstance(spec, type):
        # Linen's own: where a module hangs, not what it is.
        left_out = ("parent", "name") if is_linen(spec) else ()
        return {
            "class": _import_path(type(spec)),
            "fields": {
                entry.name: spec_to_json(getattr(spec, entry.name))
                for entry in dataclasses.fields(spec)
                if entry.init and entry.name not in left_out
            },
        }
    return {"import": _import_path(spec)}


def spec_from_json(description: Any, *, trust: Trust = False) -> Any:
    """Rebuild a spec from its description by `spec_to_json`.

    Args:
      description: what JSON gave back.
      trust: whether modules outside `vae_jax` may be imported: True for any, or names
        of modules, those within them included.

    Returns:
      The spec, equal to the one described.

    Raises:
      ValueError: a class or function is outside `vae_jax` and not trusted, is no
        dataclass, cannot be imported, or no longer takes those fields; the message
        names it.

    Example:
      >>> from vae_jax import ModelSpec
      >>> from vae_jax.spec_json import spec_from_json, spec_to_json
      >>> spec_from_json(spec_to_json(ModelSpec())) == ModelSpec()
      True
    """
    if isinstance(description, list):
        return tuple(spec_from_json(part, trust=trust) for part in description)
    if not isinstance(description, dict):
        return description
    require_description(description)
    if "import" in description:
        return _import(description["import"], trust, _PUBLIC_MODULES)
    path = description["class"]
    found = _import(path, trust, ("vae_jax",))
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise ValueError(f"spec: {path} is no dataclass, and is not called; pass spec=")
    fields = {
        name: spec_from_json(part, trust=trust)
        for name, part in description["fields"].items()
    }
    try:
        return found(**fields)
    except ValueError:
        raise
    # A class that checks its fields may fail on them in any way.
    except Exception as error:
        raise ValueError(
            f"spec: {path} does not take its saved fields ({error}); the checkpoint is "
            "of another version of it: pass spec="
        ) from error


# Of specs that people write; a deeper one would end Python's recursion.
_MAX_DEPTH = 50


def require_description(description: Any) -> None:
    """Raise unless something has the form that `spec_to_json` gives.

    Args:
      description: what JSON gave back.

    Raises:
      ValueError: it has not; names the part.

    Example:
      >>> from vae_jax.spec_json import require_description
      >>> require_description({"class": "vae_jax:MLP", "fields": [5]})
      Traceback (most recent call last):
      ValueError: no description of a spec: {'class': 'vae_jax:MLP', 'fields': [5]}
    """
    if not isinstance(description, dict) or not _is_described(description, 0):
        raise ValueError(f"no description of a spec: {description!r:.200}")


def _is_described(part: Any, depth: int) -> bool:
    if isinstance(part, dict):
        named = part.get("import", part.get("class"))
        fields = part.get("fields", {} if "import" in part else None)
        if not (isinstance(named, str) and isinstance(fields, dict)):
            return False
        part = list(fields.values())
    if isinstance(part, list):
        return depth < _MAX_DEPTH and all(_is_described(p, depth + 1) for p in part)
    return True


def differences(description: Any, spec: Any, *, may_move: bool = False) -> list[str]:
    """Differences between a described spec and another.

    A field that is newer than the description stood at its default, and a public class
    may have moved: neither is a difference.

    Args:
      description: what JSON gave back.
      spec: the spec to compare it with.
      may_move: pass over fields that are gone, and over classes and functions from
        outside the library under another import path, with their fields.

    Returns:
      Sentences that name the field with both values.

    Example:
      >>> from vae_jax import MLP
      >>> from vae_jax.spec_json import differences, spec_to_json
      >>> differences(spec_to_json(MLP((5,))), MLP((6,)))
      ['hidden_dims.0 5 there, 6 here']
    """
    found, here = _parts(description), _parts(spec_to_json(spec))
    differing = {
        name: value for name, value in found.items() if here.get(name) != value
    }
    if may_move:
        moved = tuple(
            name[: name.rindex(".") + 1]
            for name, value in differing.items()
            if name.endswith((".class", ".import"))
            and not _within(str(value).partition(":")[0], ["vae_jax", *_PUBLIC_MODULES])
        )
        differing = {
            name: value
            for name, value in differing.items()
            if name in here and not name.startswith(moved)
        }
    return [
        f"{name.strip('.')} {value!r} there, {here.get(name)!r} here"
        for name, value in differing.items()
    ]


def _parts(description: Any, name: str = "") -> dict[str, Any]:
    """Everything in a description by the path of its fields, `.encoder.width`."""
    if isinstance(description, list):
        parts = {str(number): part for number, part in enumerate(description)}
        own = {f"{name}.length": len(description)}
    elif isinstance(description, dict):
        parts = description.get("fields", {})
        kinds = description.keys() & {"class", "import"}
        own = {f"{name}.{kind}": _public(description[kind]) for kind in kinds}
    else:
        return {name: description}
    return own | {
        path: value
        for key, part in parts.items()
        for path, value in _parts(part, f"{name}.{key}").items()
    }


def _public(path: str) -> str:
    """A path by which a public name of the library stays where its module moves."""
    module, _, name = path.partition(":")
    is_public = name in importlib.import_module("vae_jax").__all__
    return f"vae_jax:{name}" if is_public and _within(module, ["vae_jax"]) else path


def _import_path(named: Any) -> str:
    """`module:name`, by a public module where the library or jax has one."""
    name = getattr(named, "__qualname__", None) or getattr(named, "__name__", None)
    if name is None:
        return f"{type(named).__module__}:{named!r}"
    for module in ("vae_jax", *_PUBLIC_MODULES):
        if getattr(importlib.import_module(module), name, None) is named:
            return f"{module}:{name}"
    return f"{named.__module__}:{name}"


def _import(path: str, trust: Trust, known: Sequence[str]) -> Any:
    """Import a class or a function of a known package, or of a trusted module."""
    module, _, name = path.partition(":")
    if not (trust is True or _within(module, [*known, *(trust or ())])):
        raise ValueError(
            f"spec: {path} is no class of vae_jax and no function of jax.nn or "
            "jax.numpy, and importing it runs the code of its module: if you trust it, "
            f"pass trust=True or trust=[{module!r}] (--trust of experiments.evaluate); "
            "otherwise pass spec="
        )
    try:
        module = _public(path).partition(":")[0]
        found = importlib.import_module(module)
        for part in name.split("."):
            if not (found is sys.modules[module] or isinstance(found, type)):
                raise AttributeError(f"{found!r} is no class")
            found = getattr(found, part)
        if not _within(str(found.__module__), [module.partition(".")[0]]):
            raise AttributeError(f"{name} is of {found.__module__}")
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"spec: {path} cannot be imported ({error}); pass spec="
        ) from error
    return found


def _within(module: str, packages: Sequence[str]) -> bool:
    return any(f"{module}.".startswith(f"{package}.") for package in packages)
