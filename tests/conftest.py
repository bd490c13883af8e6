"""Shared fixtures, and the one list of models that every generic property is held to.

A new architecture or family inherits the whole suite with a line in `SPECS`.
"""

import functools
import gc
import importlib.metadata
import os
import tempfile
from collections.abc import Callable
from typing import NamedTuple

# Read when JAX starts its CPU backend, so it must be there before. Tests compile much
# and compute little: LLVM's optimizations take longer than they save here.
XLA_FLAGS = [
    os.environ.get("XLA_FLAGS", ""),
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
]
if importlib.metadata.version("jaxlib").startswith("0.10."):
    # Compiles in half the time; later versions do not know it and would end.
    XLA_FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join(XLA_FLAGS).strip()

# Compiling is most of what the tests do, and many compile the same program.
# The first process makes the folder; pytest's workers and child processes inherit it.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _compiled = tempfile.TemporaryDirectory(prefix="vae_jax-compiled-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled.name
    os.environ["JAX_PERSISTENT_COMPILATION_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"

import flax.linen as nn
import jax
import numpy as np
import pytest
import scipy.stats

from vae_jax import (
    MLP,
    AutoregressiveFlow,
    Categorical,
    ContinuousBernoulli,
    ConvolutionalDecoder,
    ConvolutionalEncoder,
    DiagonalGaussianPrior,
    DiscretizedLogistic,
    FullCovarianceGaussian,
    FullGaussian,
    GatedMLP,
    Gaussian,
    HierarchicalGaussian,
    HierarchicalGaussianPrior,
    Householder,
    InverseAutoregressive,
    Linear,
    LowRankGaussian,
    MixtureOfGaussians,
    ModelSpec,
    Params,
    PerPixelGaussian,
    Planar,
    PointMass,
    StochasticLayer,
    Sylvester,
    VampPrior,
    init,
)
from vae_jax.families import LOG_VAR_BOUND

# Tracing makes objects by the million, and few of them are garbage.
gc.set_threshold(100_000, 20, 50)


class Gated(nn.Module):
    """A network as a user writes one; it asks for `data_shape` and uses it."""

    width: int = 3
    data_shape: tuple[int, ...] | None = None

    @nn.compact
    def __call__(self, inputs):
        width = self.width * len(self.data_shape)
        return nn.Dense(width)(inputs) * nn.sigmoid(nn.Dense(width)(inputs))


ABOVE = (
    StochasticLayer(3, encoder=MLP((4,)), decoder=MLP((4,))),
    StochasticLayer(2, encoder=MLP((4,)), decoder=Linear()),
)

# (id, spec): every kind of network, posterior and likelihood, and shapes in which a
# wrong reshape, a lost axis or a silent broadcast shows.
SPECS = [
    (
        "linear-gaussian",
        ModelSpec(
            encoder=Linear(),
            decoder=Linear(),
            likelihood=Gaussian(),
            latent_dim=2,
            data_shape=(5,),
        ),
    ),
    (
        "mlp-bernoulli",
        ModelSpec(
            encoder=MLP((8,)), decoder=MLP((8,)), latent_dim=3, data_shape=(4, 4)
        ),
    ),
    (
        "deep-mlp-learned-variance-prime",
        ModelSpec(
            encoder=MLP((8, 6), activation=nn.tanh),
            decoder=MLP((6, 8), activation=nn.tanh),
            likelihood=Gaussian(learned_variance=True),
            latent_dim=1,
            data_shape=(13,),
        ),
    ),
    (
        "users-own-autoencoder",
        ModelSpec(
            encoder=Gated(),
            decoder=Gated(),
            posterior=PointMass(),
            latent_dim=2,
            data_shape=(2, 3),
        ),
    ),
    (
        "conv-bernoulli-odd",
        ModelSpec(
            encoder=ConvolutionalEncoder((2, 3), hidden_dim=6),
            decoder=ConvolutionalDecoder((3, 2)),
            latent_dim=2,
            data_shape=(7, 5),
        ),
    ),
    (
        "conv-gaussian-channels-learned-prior",
        ModelSpec(
            encoder=ConvolutionalEncoder((2,), hidden_dim=6),
            decoder=ConvolutionalDecoder((2,)),
            prior=DiagonalGaussianPrior(),
            likelihood=Gaussian(learned_variance=True),
            latent_dim=3,
            data_shape=(8, 8, 3),
        ),
    ),
    (
        "full-mixture-categorical-gated",
        ModelSpec(
            encoder=GatedMLP((6,)),
            decoder=GatedMLP((6,)),
            posterior=FullGaussian(),
            prior=MixtureOfGaussians(3, full_covariance=True),
            likelihood=Categorical(3),
            latent_dim=3,
            data_shape=(5,),
        ),
    ),
    (
        "low-rank-full-covariance",
        ModelSpec(
            encoder=MLP((6,)),
            decoder=MLP((6,)),
            posterior=LowRankGaussian(rank=2),
            likelihood=FullCovarianceGaussian(),
            latent_dim=4,
            data_shape=(5,),
        ),
    ),
    (
        "autoregressive-flows-discretized-logistic",
        ModelSpec(
            encoder=MLP((6,)),
            decoder=MLP((6,)),
            posterior=InverseAutoregressive(2, hidden_dim=5, context_dim=3),
            prior=AutoregressiveFlow(2, hidden_dim=5),
            likelihood=DiscretizedLogistic(num_levels=3, num_components=2),
            latent_dim=3,
            data_shape=(5,),
        ),
    ),
    (
        "sylvester-residual-continuous",
        ModelSpec(
            encoder=ConvolutionalEncoder((2,), hidden_dim=6, num_blocks=1),
            decoder=ConvolutionalDecoder((2,), num_blocks=1),
            posterior=Sylvester(num_steps=2, num_reflections=2),
            likelihood=ContinuousBernoulli(),
            latent_dim=3,
            data_shape=(4, 4),
        ),
    ),
    (
        "planar-per-pixel",
        ModelSpec(
            encoder=MLP((6,)),
            decoder=MLP((6,)),
            posterior=Planar(num_steps=3),
            likelihood=PerPixelGaussian(),
            latent_dim=2,
            data_shape=(5,),
        ),
    ),
    (
        "householder-vamp",
        ModelSpec(
            encoder=MLP((6,)),
            decoder=MLP((6,)),
            posterior=Householder(num_steps=2),
            prior=VampPrior(3),
            latent_dim=3,
            data_shape=(5,),
        ),
    ),
    (
        "three-stochastic-layers",
        ModelSpec(
            encoder=MLP((6,)),
            decoder=MLP((6,)),
            posterior=HierarchicalGaussian(ABOVE),
            prior=HierarchicalGaussianPrior(ABOVE),
            latent_dim=4,
            data_shape=(5,),
        ),
    ),
]


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


@functools.cache
def random_params(spec: ModelSpec) -> Params:
    """Parameters with no leaf at a special point: fresh biases and variances are 0.

    Drawn by NumPy: compiling JAX's own initializers would take most of the suite.
    """
    rng = np.random.default_rng(0)

    def draw(leaf):
        scale = 1 / np.sqrt(np.prod(leaf.shape[:-1])) if leaf.ndim > 1 else 0.3
        return np.asarray(scale * rng.normal(size=leaf.shape), leaf.dtype)

    fresh = jax.eval_shape(functools.partial(init, spec), jax.random.key(0))
    return jax.tree.map(draw, fresh)


@pytest.fixture
def params(spec: ModelSpec) -> Params:
    return jax.tree.map(jax.numpy.asarray, random_params(spec))


def example_data(spec: ModelSpec) -> np.ndarray:
    """Four examples of zeros and ones, which every likelihood takes, `[4, D]`."""
    rng = np.random.default_rng(1)
    return rng.integers(0, 2, (4, spec.data_dim)).astype(np.float32)


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


def covariance_of(raw_log_var, raw_below, margin=1e-4, bound=17.0) -> np.ndarray:
    """What `bound_covariance` promises of one example, entry by entry in float64."""
    variance = np.exp(bound * np.tanh(np.float64(raw_log_var) / bound))
    size = len(variance)
    rows = np.diag(np.full(size, np.sqrt(size)))
    rows[np.tril_indices(size, -1)] = raw_below
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    shrink = 1 / np.sqrt(1 + margin + np.exp(-bound) / variance)
    correlations = np.outer(shrink, shrink) * (rows @ rows.T)
    np.fill_diagonal(correlations, 1)
    return correlations * np.sqrt(np.outer(variance, variance))


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
