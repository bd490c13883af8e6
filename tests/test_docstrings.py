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


# Much to compile, and each of their functions is tested by other means as well.
SLOWER = (
    "vae_jax.aggregate",
    "vae_jax.annealing.evidence",
    "vae_jax.contracts.lines",
    "vae_jax.diagnostics",
    "vae_jax.estimators.control_variate",
    "vae_jax.estimators.discrete",
    "vae_jax.distributions.multivariate_gaussian",
    "vae_jax.estimators.measure_valued",
    "vae_jax.estimators.moments",
    "vae_jax.estimators.pathwise",
    "vae_jax.estimators.score_function",
    "vae_jax.evaluation",
    "vae_jax.exact",
    "vae_jax.fitted_prior",
    "vae_jax.flows",
    "vae_jax.mcmc.convergence",
    "vae_jax.objectives",
    "vae_jax.priors.autoregressive",
    "vae_jax.priors.factorized",
    "vae_jax.priors.mixtures",
    "vae_jax.sweep",
    "vae_jax.training",
    "vae_jax.variational_fit",
)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in SLOWER else [])
        for name in MODULES
    ],
)
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
