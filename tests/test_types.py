"""A user's own script is typed: nothing to report in it, and a mistake is seen."""

import json
import subprocess
import sys
from pathlib import Path

import vae_jax

SCRIPT = """
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import vae_jax
from vae_jax.distributions.support import REAL
from vae_jax.types import Distribution, Family


class Wide(nn.Module):
    width: int = 32

    @nn.compact
    def __call__(self, x):
        return nn.tanh(nn.Dense(self.width)(x))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LaplaceDistribution(Distribution):
    mean: jax.Array
    mean_is_exact = True

    def sample(self, key, num_samples):
        shape = (num_samples, *self.mean.shape)
        return self.mean + jax.random.laplace(key, shape)

    def log_prob(self, value):
        return -jnp.sum(jnp.abs(value - self.mean) + jnp.log(2.0), axis=-1)


@dataclass(frozen=True)
class Laplace(Family):
    support = REAL

    def num_outputs(self, dim):
        return dim

    def build(self, params, outputs):
        return LaplaceDistribution(outputs)


def objective(params, batch, key, step, *, axis_name=None):
    value = vae_jax.elbo(params, batch, key)
    return value, {"elbo": value}


x = jax.random.normal(jax.random.key(0), (64, 5))
spec = vae_jax.ModelSpec(Wide(), Wide(16), likelihood=Laplace(), data_shape=(5,))
params = vae_jax.init(spec, jax.random.key(1), x=x)
optimizer = optax.adam(1e-3)
state = vae_jax.init_state(params, jax.random.key(2), optimizer=optimizer)
for _ in range(3):
    state, metrics = vae_jax.train_step(
        state, x, objective=objective, optimizer=optimizer
    )
    print(metrics["elbo"], vae_jax.encode(state.params, x).mean.shape)
fitted, history = vae_jax.fit(state.params, x, jax.random.key(3), num_epochs=2)
print(history["elbo"][-1], vae_jax.elbo_terms(fitted, x, jax.random.key(4)).elbo.mean())
"""


def errors_in(script: str, folder: Path) -> list[str]:
    """Rules that the checker finds broken in a script."""
    (folder / "script.py").write_text(script)
    settings = {
        "typeCheckingMode": "standard",
        "extraPaths": [str(Path(vae_jax.__file__).parents[1])],
    }
    (folder / "pyrightconfig.json").write_text(json.dumps(settings))
    checker = [sys.executable, "-m", "basedpyright", "--outputjson"]
    done = subprocess.run(
        [*checker, "--pythonpath", sys.executable],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    found = json.loads(done.stdout)
    assert found["summary"]["filesAnalyzed"] == 1
    return [each["rule"] for each in found["generalDiagnostics"]]


def test_a_script_of_a_users_own_is_clean(tmp_path):
    assert errors_in(SCRIPT, tmp_path) == []


def test_a_mistake_in_it_is_seen(tmp_path):
    mistaken = SCRIPT.replace("likelihood=Laplace()", "likelihood=Wide()")
    assert errors_in(mistaken, tmp_path) == ["reportArgumentType"]
