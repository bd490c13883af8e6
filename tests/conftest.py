"""Shared fixtures, and the environment that JAX starts in."""

import gc
import importlib.metadata
import itertools
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

# Read when JAX starts its CPU backend, so it must be there before. Tests compile much
# and compute little: LLVM's optimizations take longer than they save here.
XLA_FLAGS = [
    os.environ.get("XLA_FLAGS", ""),
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    # With the default of 32 parts LLVM takes longer for programs so small.
    "--xla_cpu_parallel_codegen_split_count=1",
]
if importlib.metadata.version("jaxlib").startswith("0.10."):
    # Compiles in half the time; later versions do not know it and would end.
    XLA_FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join(XLA_FLAGS).strip()
# A line of Python beside every operation of a program, which no test reads.
os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"

# Compiling is most of what the tests do, and many compile the same program.
# The first process makes the folder; pytest's workers and child processes inherit it.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _compiled = tempfile.TemporaryDirectory(prefix="vae_jax-compiled-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled.name
    os.environ["JAX_PERSISTENT_COMPILATION_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"

import jax
import numpy as np
import pytest
import scipy.stats
from specs import SPECS, example_data, random_params

from vae_jax import (
    ModelSpec,
    Params,
)
from vae_jax.families import LOG_VAR_BOUND

# Tracing makes objects by the million, and few of them are garbage.
gc.set_threshold(100_000, 20, 50)


# Each compiled program takes memory maps, of which Linux allows a process 65,530; one
# more is a segmentation fault.
MAPS = Path("/proc/self/maps")
MANY_MAPS = 45_000
BETWEEN_LOOKS = 50
_finished = itertools.count(1)


def pytest_runtest_teardown() -> None:
    if next(_finished) % BETWEEN_LOOKS or not MAPS.exists():
        return
    if MAPS.read_bytes().count(b"\n") > MANY_MAPS:
        jax.clear_caches()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and jax.default_backend() == "cpu":
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs an accelerator"))
    if jax.config.jax_debug_nans:
        for item in items:
            if item.get_closest_marker("expects_nan"):
                item.add_marker(pytest.mark.skip(reason="asks for a nan"))


@pytest.fixture(params=[pytest.param(spec, id=name) for name, spec in SPECS])
def spec(request) -> ModelSpec:
    return request.param


@pytest.fixture
def params(spec: ModelSpec) -> Params:
    return jax.tree.map(jax.numpy.asarray, random_params(spec))


@pytest.fixture
def x(spec: ModelSpec) -> jax.Array:
    return jax.numpy.asarray(example_data(spec))


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(2)


@pytest.fixture
def x64():
    """JAX's 64-bit mode for the length of a test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def assert_mean() -> Callable:
    """Asserts that samples have an expectation, within 5 standard errors."""

    def check(samples, expected, axis: int = 0) -> None:
        samples = np.asarray(samples, np.float64)
        count = samples.shape[axis]
        error = samples.std(axis, ddof=1) / np.sqrt(count)
        difference = samples.mean(axis) - np.asarray(expected, np.float64)
        assert np.all(error > 0), "the samples do not vary: no statistical test"
        assert np.all(np.abs(difference) < 5 * error), difference / error

    return check


class LinearGaussian(NamedTuple):
    """x = W z + b + noise, whose evidence and posterior are known in closed form.

    The columns of W are orthogonal, so the posterior is diagonal and the encoder of
    `params` is that posterior exactly.
    """

    params: Params
    x: np.ndarray  # [B, D]
    log_evidence: np.ndarray  # [B]
    posterior_mean: np.ndarray  # [B, L]
    posterior_var: np.ndarray  # [L]
    bias: np.ndarray  # [D]
    covariance: np.ndarray  # [D, D], of x

    def with_encoder(self, mean_shift, var_ratio) -> Params:
        """The same model with q = N(exact mean + shift, exact variance * ratio)."""
        kernel = np.array(self.params.encoder["output"]["kernel"])
        bias = np.array(self.params.encoder["output"]["bias"])
        latent_dim = len(self.posterior_var)
        bias[:latent_dim] += mean_shift
        bias[latent_dim:] = _raw_log_var(self.posterior_var * var_ratio)
        encoder = {"output": {"kernel": kernel, "bias": bias}}
        return self.params.replace(encoder=jax.tree.map(jax.numpy.asarray, encoder))


def _raw_log_var(variance):
    """What the encoder has to say for a variance, the inverse of `bound_log_var`."""
    return LOG_VAR_BOUND * np.arctanh(np.log(variance) / LOG_VAR_BOUND)


@pytest.fixture
def linear_gaussian(x64) -> LinearGaussian:
    """Five data and two latent dimensions, in float64."""
    rng = np.random.default_rng(3)
    weights = np.linalg.qr(rng.normal(size=(5, 2)))[0] * [1.5, 0.7]
    bias, noise_var = rng.normal(size=5), 0.3
    covariance = weights @ weights.T + noise_var * np.eye(5)
    evidence = scipy.stats.multivariate_normal(bias, covariance)
    x = evidence.rvs(6, random_state=rng)
    precision = np.sum(weights**2, axis=0) + noise_var
    gain = weights / precision
    variance = noise_var / precision
    encoder = {
        "kernel": np.concatenate([gain, np.zeros_like(gain)], axis=1),
        "bias": np.concatenate([-bias @ gain, _raw_log_var(variance)]),
    }
    params = Params(
        encoder={"output": encoder},
        decoder={"output": {"kernel": weights.T, "bias": bias}},
        posterior={},
        prior={},
        likelihood={"log_var": np.log(noise_var)},
        spec=dict(SPECS)["linear-gaussian"],
    )
    return LinearGaussian(
        params=jax.tree.map(jax.numpy.asarray, params),
        x=x,
        log_evidence=evidence.logpdf(x),
        posterior_mean=(x - bias) @ gain,
        posterior_var=variance,
        bias=bias,
        covariance=covariance,
    )
