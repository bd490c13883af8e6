"""Choices by name: the built-in ones, and `module:Class` of the user's own file.

`module:Class(width=64)` imports the module, from the current directory too, and calls
the class with the arguments, which are Python literals: nothing in them is evaluated.
"""

import ast
import functools
import importlib
import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from vae_jax.networks import adapted

_OWN = re.compile(r"(?P<module>\w+(\.\w+)*):(?P<name>\w+)(?P<arguments>\(.*\))?")


class Own(NamedTuple):
    """A user-defined class or function, with its arguments.

    Attributes:
      target: what was imported.
      arguments: positional arguments.
      keywords: the others.
      text: the flag with its value, for messages.
    """

    target: Callable[..., Any]
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    text: str

    def made(self) -> Any:
        """Call the target.

        Raises:
          ValueError: the arguments do not suit it.
        """
        try:
            return adapted(self.target)(*self.arguments, **self.keywords)
        except TypeError as error:
            raise ValueError(f"{self.text}: {error}") from error

    def function(self) -> Callable[..., Any]:
        """An instance of a class, or a function with its arguments bound."""
        if isinstance(self.target, type):
            return self.made()
        return functools.partial(self.target, *self.arguments, **self.keywords)

    def held_to(self, call: str) -> Callable[..., Any]:
        """Wrap the function so that its TypeError reports how it is called.

        Args:
          call: how, for the message.

        Returns:
          A function; it raises ValueError in place of TypeError.
        """
        function = self.function()

        @functools.wraps(function)
        def held(*arguments: Any, **named: Any) -> Any:
            try:
                return function(*arguments, **named)
            except TypeError as error:
                raise ValueError(
                    f"{self.text} is called as {call}, and fails: {error}"
                ) from error

        return held


def find(flag: str, text: str, names: Mapping[str, Any]) -> Any:
    """Look up a built-in name, or import `module:Class` from a user's file.

    Args:
      flag: whose value it is, for messages.
      text: a name, `module:Class`, or `module:Class(width=64)`.
      names: the built-in choices.

    Returns:
      The value of `names`, or an `Own`.

    Raises:
      ValueError: no such name, no such class, or arguments that are not literals.
    """
    if text in names:
        return names[text]
    shown = f"--{flag}={text}"
    match = _OWN.fullmatch(text)
    if match is None:
        raise ValueError(
            f"--{flag} must be one of {', '.join(names)}, or module:Class or "
            f"module:Class(width=64) of a file of your own, got {text}"
        )
    return Own(_import(shown, **match.groupdict()), *_literals(shown, match), shown)


def _literals(
    shown: str, match: re.Match[str]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments, read without evaluating anything."""
    try:
        call = ast.parse(f"f{match['arguments'] or '()'}", mode="eval").body
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)):
            raise ValueError("it is more than one call")
        keywords = {
            keyword.arg or "**": ast.literal_eval(keyword.value)
            for keyword in call.keywords
        }
        if "**" in keywords:
            raise ValueError("** stands for names that are not there")
        return tuple(map(ast.literal_eval, call.args)), keywords
    except (SyntaxError, ValueError) as error:
        raise ValueError(
            f"{shown}: the arguments must be Python literals (numbers, strings, "
            f"tuples), and {error}"
        ) from error


def _import(shown: str, module: str, name: str, **_: Any) -> Callable[..., Any]:
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        hint = " (name the module without .py)" if module.endswith(".py") else ""
        raise ValueError(f"{shown} cannot be imported: {error}{hint}") from error
    if not callable(found):
        raise ValueError(f"{shown} must name a class or a function, got {found!r}")
    return found
