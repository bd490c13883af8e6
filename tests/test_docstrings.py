"""The library's docstrings: examples run, and arguments are entries of their list."""

import ast
import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import vae_jax

MODULES = [vae_jax.__name__] + [
    module.name
    for module in pkgutil.walk_packages(vae_jax.__path__, f"{vae_jax.__name__}.")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    module = importlib.import_module(name)
    failed, _ = doctest.testmod(module)
    assert not failed, f"{failed} examples of {name} fail; the output above has them"


def test_there_are_examples_to_run():
    finder = doctest.DocTestFinder(exclude_empty=True)
    counts = {
        name: sum(bool(t.examples) for t in finder.find(importlib.import_module(name)))
        for name in MODULES
    }
    assert sum(counts.values()) > 40, counts


def entries(docstring, section):
    """Lines of a section at its own depth: the first of each entry."""
    _, _, rest = docstring.partition(f"\n{section}:\n")
    body = re.split(r"\n(?=\S)", rest)[0]
    return [line.strip() for line in body.splitlines() if re.match(r"  \S", line)]


@pytest.mark.parametrize("name", MODULES)
def test_a_list_of_arguments_holds_nothing_else(name):
    """Other text there is lost on the page of the API, and the site is not built."""
    path = importlib.import_module(name).__file__
    nodes = ast.walk(ast.parse(Path(path).read_text()))
    documented = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in nodes:
        docstring = isinstance(node, documented) and ast.get_docstring(node)
        for section in ("Args", "Attributes") if docstring else ():
            for entry in entries(docstring, section):
                where = f"{path}: {section} of {node.name}: {entry!r}"
                assert re.match(r"\*{0,2}\w+( \(.*\))?: \S", entry), where
