"""What the package promises as a whole, read from its source or in a fresh process."""

import ast
import importlib.metadata
import inspect
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import vae_jax
from vae_jax import distributions
from vae_jax.extras import import_extra

ROOT = Path(vae_jax.__file__).parent
SOURCES = {
    str(path.relative_to(ROOT)): ast.parse(path.read_text())
    for path in sorted(ROOT.rglob("*.py"))
}
sources = pytest.mark.parametrize("name", SOURCES)

# Each imports from the rows above its own, or from its own row.
ORDER = [
    ["types", "extras"],
    ["prng", "dependence", "leaf_names"],
    ["distributions"],
    ["options"],
    ["bijectors", "data"],
    ["networks", "families", "priors"],
    ["hierarchical"],
    ["spec", "spec_json"],
    ["conditions", "external"],
    ["model"],
    ["estimators", "importance_weights", "quasi_newton"],
    ["objectives", "schedules"],
    ["aggregate"],
    ["penalties"],
    ["training_objectives"],
    ["exact", "evaluation", "diagnostics", "annealing", "mcmc", "training"],
    ["variational_fit", "calibration", "imputation", "predictive", "host_examples"],
    ["fitted_prior", "fitting"],
    ["contracts", "parallel", "sweep", "manifest", "checkpoint", "sklearn"],
]
RANK = {name: rank for rank, row in enumerate(ORDER) for name in row}


def imports_of(tree):
    """Full names of what a module imports, wherever in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(name):
    """The room of a file: `distributions/gaussian.py` is in `distributions`."""
    return name.removesuffix(".py").split("/")[0]


@sources
def test_imports_run_one_way(name):
    if name == "__init__.py":
        return
    ours = {
        found.split(".")[1]
        for found in imports_of(SOURCES[name])
        if found.startswith("vae_jax.")
    }
    assert room(name) in RANK, f"give {name} its place in ORDER"
    for imported in ours:
        assert RANK[imported] <= RANK[room(name)], f"{name} imports {imported}"


@sources
def test_flax_is_imported_by_networks_alone_and_tensorflow_by_nobody(name):
    packages = {found.split(".")[0] for found in imports_of(SOURCES[name])}
    assert "flax" not in packages or room(name) == "networks"
    assert "tensorflow" not in packages


def dotted(node):
    """`jax.jit` of the expression that says so."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    if isinstance(node, ast.Call):
        return dotted(node.func)
    return getattr(node, "id", "")


@sources
def test_nothing_is_compiled_printed_plotted_or_configured(name):
    """A decorator that compiles would hide retraces; the caller composes."""
    for node in ast.walk(SOURCES[name]):
        for decorator in getattr(node, "decorator_list", []):
            arguments = getattr(decorator, "args", [])
            for used in map(dotted, [decorator, *arguments]):
                assert used.split(".")[-1] not in ("jit", "pmap"), node.name
        if isinstance(node, ast.Call):
            assert dotted(node.func) not in ("print", "jax.config.update")
        if isinstance(node, ast.Attribute):
            assert dotted(node) != "jax.config", f"line {node.lineno}"
    packages = {found.split(".")[0] for found in imports_of(SOURCES[name])}
    assert not packages & {"matplotlib", "absl", "argparse", "tyro"}


@sources
def test_only_public_jax_is_used(name):
    private = [found for found in imports_of(SOURCES[name]) if "._" in found]
    assert not [found for found in private if not found.startswith("vae_jax.")]


CHILD = """
import importlib, pkgutil, sys, warnings
warnings.simplefilter("error")
import vae_jax
for module in pkgutil.walk_packages(vae_jax.__path__, "vae_jax."):
    importlib.import_module(module.name)
heavy = {"tensorflow", "torch", "matplotlib"} & set(sys.modules)
assert not heavy, heavy
vae_jax.ModelSpec()
import jax
try:
    jax.devices()
except RuntimeError:
    print("no device was needed")
"""


@pytest.mark.long
def test_importing_everything_touches_no_device_and_no_heavy_package():
    """A platform that does not exist makes the first touch an error."""
    child = subprocess.run(
        [sys.executable, "-c", CHILD],
        env=os.environ | {"JAX_PLATFORMS": "nonesuch"},
        cwd=ROOT.parent,
        capture_output=True,
        text=True,
    )
    assert child.stdout.strip() == "no device was needed", child.stderr


def distributions_of(requirements):
    """Names of `jax>=0.10.2,<0.13` and the like, extras left out."""
    return {
        re.split(r"[\[<>=;]", one)[0].lower().replace("-", "_") for one in requirements
    }


def test_what_the_library_imports_is_what_it_depends_on():
    """Modules of other packages, by a statement or by `import_extra`."""
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    declared = distributions_of(
        project["dependencies"] + extras["sklearn"] + extras["mcmc"]
    )
    known = importlib.metadata.packages_distributions()
    imported = {
        name.split(".")[0] for tree in SOURCES.values() for name in imports_of(tree)
    } | {"sklearn", "blackjax", "tqdm"}
    others = imported - set(sys.stdlib_module_names) - {"vae_jax"}
    needed = distributions_of({known[name][0] for name in others})
    assert needed <= declared, needed - declared
    # jaxlib and importlib_resources serve packages that are imported.
    assert declared - needed <= {"jaxlib", "importlib_resources"}


def test_a_missing_extra_is_named():
    with pytest.raises(ImportError, match=r"pip install 'vae_jax\[mcmc\]'"):
        import_extra("a_module_that_nobody_has", "mcmc")


def test_the_public_list_is_what_is_imported_sorted():
    imported = [
        alias.asname or alias.name
        for node in SOURCES["__init__.py"].body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    assert sorted(vae_jax.__all__) == sorted(imported)
    assert len(set(vae_jax.__all__)) == len(vae_jax.__all__)
    assert all(hasattr(vae_jax, name) for name in vae_jax.__all__)


DESIGNED = """
    ModelSpec MLP DiagonalGaussian StandardNormal Bernoulli Gaussian Params init encode
    reparameterize decode elbo elbo_terms importance_weighted_bound log_evidence
    reconstruct generate interpolate train_step train_epoch
"""


@pytest.mark.parametrize("name", DESIGNED.split())
def test_the_names_that_others_lean_on_are_there(name):
    assert name in vae_jax.__all__


PUBLIC = {name: getattr(vae_jax, name) for name in vae_jax.__all__} | {
    f"{module}.{name}": function
    for module in distributions.__all__
    if inspect.ismodule(getattr(distributions, module))
    for name, function in vars(getattr(distributions, module)).items()
    if inspect.isfunction(function) and function.__module__.startswith("vae_jax")
    if not name.startswith("_")
}


@pytest.mark.parametrize("name", PUBLIC)
def test_everything_public_has_a_docstring(name):
    assert inspect.getdoc(PUBLIC[name]), name


FUNCTIONS = [name for name, value in PUBLIC.items() if inspect.isfunction(value)]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_public_function_says_what_it_takes_returns_and_shows_it(name):
    text = inspect.getdoc(PUBLIC[name])
    for section in ("Args:", "Returns:", "Example:"):
        assert section in text, f"{name} has no {section}"
    for parameter in inspect.signature(PUBLIC[name]).parameters:
        assert f"\n  {parameter}:" in text or f"\n  **{parameter}:" in text, parameter


@pytest.mark.parametrize(
    "name", ["elbo", "elbo_terms", "importance_weighted_bound", "log_evidence"]
)
def test_the_signature_is_params_data_key_and_then_names(name):
    """Options go by name, so that no number lands on the wrong one."""
    parameters = inspect.signature(PUBLIC[name]).parameters.values()
    positional = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == ["params", "x", "key"]
