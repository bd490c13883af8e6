"""A likelihood of the user's own, in a file of their own, works everywhere."""

import importlib.util
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

import vae_jax
from vae_jax import Linear, ModelSpec, checkpoint

LAPLACE = """
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from vae_jax.distributions.support import REAL
from vae_jax.types import Distribution, Family


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LaplaceDistribution(Distribution):
    mean: jax.Array
    mean_is_exact = True

    def sample(self, key, num_samples):
        shape = (num_samples, *self.mean.shape)
        return self.mean + jax.random.laplace(key, shape, self.mean.dtype)

    def log_prob(self, value):
        return -jnp.sum(jnp.abs(value - self.mean) + jnp.log(2.0), axis=-1)


@dataclass(frozen=True)
class Laplace(Family):
    support = REAL

    def num_outputs(self, dim):
        return dim

    def build(self, params, outputs):
        return LaplaceDistribution(outputs)
"""


@pytest.fixture(scope="module")
def laplace(tmp_path_factory):
    """The user's module, importable by its name."""
    path = tmp_path_factory.mktemp("own") / "own_laplace.py"
    path.write_text(LAPLACE)
    spec = importlib.util.spec_from_file_location("own_laplace", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["own_laplace"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["own_laplace"]


@pytest.fixture(scope="module")
def model(laplace):
    spec = ModelSpec(
        Linear(), Linear(), likelihood=laplace.Laplace(), latent_dim=2, data_shape=(3,)
    )
    x = jnp.asarray(np.random.default_rng(0).normal(1, 2, (8, 3)), jnp.float32)
    return vae_jax.init(spec, jax.random.key(0), x=x), x


def test_the_library_takes_it(model, key):
    params, x = model
    z = jnp.zeros((1, 8, 2))
    found = vae_jax.decode(params, z)
    expected = scipy.stats.laplace(found.mean[0]).logpdf(x).sum(axis=-1)
    np.testing.assert_allclose(found.log_prob(x)[0], expected, rtol=1e-5)
    np.testing.assert_array_equal(networks_bias(params), np.zeros(3))
    value, gradient = jax.jit(jax.value_and_grad(vae_jax.elbo))(params, x, key)
    assert np.isfinite(value) and np.any(gradient.decoder["output"]["kernel"])
    draws = vae_jax.generate(params, key, num_samples=5, sample=True)
    assert draws.shape == (5, 3)


def networks_bias(params):
    """The decoder's, at which a family without `output_bias` starts."""
    return np.asarray(params.decoder["output"]["bias"])


@pytest.mark.long
def test_check_holds_it_to_the_contracts(model):
    lines = [
        "shapes of the likelihood",
        "likelihood keeps its mass",
        "likelihood has its mean",
    ]
    report = vae_jax.check(*model, jax.random.key(2), only=lines)
    assert report.passed, str(report)
    assert all(line.passed for line in report.lines)


def test_it_is_trained_saved_and_loaded(model, tmp_path):
    params, x = model
    optimizer = optax.adam(1e-2)
    state = vae_jax.init_state(params, jax.random.key(1), optimizer=optimizer)
    objective = vae_jax.elbo_objective()
    step = jax.jit(
        lambda state: vae_jax.train_step(
            state, x, objective=objective, optimizer=optimizer
        )
    )
    trained, _ = step(state)
    before, after = (s.params.decoder["output"]["bias"] for s in (state, trained))
    assert np.any(before != after)
    folder = tmp_path / "checkpoints" / "1"
    checkpoint.save(folder, trained, spec=params.spec)
    loaded = vae_jax.load_run(tmp_path, trust=["own_laplace"])
    assert loaded.spec == params.spec
    jax.tree.map(np.testing.assert_array_equal, loaded, trained.params)
