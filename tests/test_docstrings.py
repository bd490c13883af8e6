"""Every example in the library's docstrings runs, and shows what it says."""

import doctest
import importlib
import pkgutil

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
