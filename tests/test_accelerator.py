"""An accelerator computes what the CPU computes; skipped where there is none.

Products are asked for in full precision: an accelerator's own default rounds their
factors, on recent GPUs to TF32's three digits.
"""

import functools
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from specs import SPECS, example_data, random_params

import vae_jax
from vae_jax import checkpoint

pytestmark = pytest.mark.gpu

ADAM = optax.adam(3e-2)
SPEC = dict(SPECS)["mlp-bernoulli"]
STEP = functools.partial(
    vae_jax.train_step, objective=vae_jax.elbo_objective(), optimizer=ADAM
)


def on_each(function, *arguments):
    """What the accelerator and the CPU make of it, on the host."""
    found = []
    for device in (jax.devices()[0], jax.devices("cpu")[0]):
        placed = jax.device_put(arguments, device)
        with jax.default_matmul_precision("highest"):
            result = jax.jit(function)(*placed)
        assert all(leaf.devices() == {device} for leaf in jax.tree.leaves(result))
        found.append(jax.device_get(result))
    return found


def assert_close(one, other, rtol=1e-3):
    """Within a share of the largest number of an array."""

    def check(one, other):
        np.testing.assert_allclose(one, other, rtol=0, atol=rtol * np.abs(other).max())

    jax.tree.map(check, one, other)


def train(state, epoch, x, history):
    return vae_jax.train_epoch(state, epoch, x, history, 25, step=STEP)


def start():
    """A state, 25 batches of 4, and room for their figures."""
    rng = np.random.default_rng(0)
    x = (rng.random((100, SPEC.data_dim)) < 0.9).astype(np.float32)
    params = jax.tree.map(jnp.asarray, random_params(SPEC))
    state = vae_jax.init_state(params, jax.random.key(1), optimizer=ADAM)
    epoch = vae_jax.shuffled_epoch(jax.random.key(2), 0, num_examples=100, batch_size=4)
    return state, epoch, x, vae_jax.empty_history(STEP, state, epoch, x)


def test_elbo_and_gradient_are_those_of_the_cpu(spec, params):
    found, expected = on_each(
        jax.value_and_grad(vae_jax.elbo), params, example_data(spec), jax.random.key(0)
    )
    assert_close(found, expected)


def test_noise_is_that_of_the_cpu():
    """One key, one noise: results on the two differ by rounding alone."""
    key = jax.random.key(3)
    bits, cpu_bits = on_each(lambda key: jax.random.bits(key, (1000,)), key)
    np.testing.assert_array_equal(bits, cpu_bits)
    noise, cpu_noise = on_each(lambda key: jax.random.normal(key, (1000,)), key)
    np.testing.assert_allclose(noise, cpu_noise, rtol=1e-4, atol=1e-6)


def test_training_is_that_of_the_cpu():
    history, expected = on_each(lambda *arguments: train(*arguments)[1], *start())
    assert_close(history, expected, rtol=1e-2)
    # It learns at all: a step that changes nothing would agree as well.
    assert expected["elbo"][-10:].mean() > expected["elbo"][:10].mean() + 0.5


def test_a_donated_state_is_gone():
    """Two states at a time would not fit where one nearly fills the memory."""
    state, epoch, x, history = start()
    run = jax.jit(train, donate_argnums=0)
    run(state, epoch, x, history)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))


def test_a_checkpoint_is_read_back_to_the_bit(tmp_path):
    state, *rest = start()
    state, _ = jax.jit(train)(state, *rest)
    checkpoint.save(tmp_path / "25", state, spec=SPEC)
    found = checkpoint.restore(tmp_path / "25")
    jax.tree.map(np.testing.assert_array_equal, found, state.params)


def test_models_of_a_sweep_are_those_that_train_alone():
    betas = jnp.array([0.5, 2.0])

    def step(state, batch, beta):
        return vae_jax.train_step(
            state,
            batch,
            objective=vae_jax.elbo_objective(beta=beta),
            optimizer=ADAM,
        )

    state, epoch, x, _ = start()
    states = vae_jax.stack_states([state, state])
    epochs = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), epoch)
    history = vae_jax.empty_sweep_history(step, states, epochs, x, betas)
    with jax.default_matmul_precision("highest"):
        _, together = vae_jax.jit_sweep(step)(states, epochs, x, history, 25, betas)
        for number, beta in enumerate(betas):
            own = functools.partial(step, beta=beta)
            empty = vae_jax.empty_history(own, state, epoch, x)
            run = jax.jit(functools.partial(vae_jax.train_epoch, step=own))
            _, alone = run(state, epoch, x, empty, 25)
            found = {name: values[:, number] for name, values in together.items()}
            assert_close(found, alone, rtol=1e-2)


def test_the_command_prints_the_figures_of_the_cpu(tmp_path):
    """Trained on one, in its own default precision, and on the other: half a nat."""
    found = []
    for name, environment in (("own", {}), ("cpu", {"JAX_PLATFORMS": "cpu"})):
        folder = tmp_path / name
        command = [sys.executable, "-m", "experiments.mnist", "--dataset=digits"]
        command += ["--likelihood=bernoulli", "--epochs=30", f"--run_dir={folder}"]
        subprocess.run(command, check=True, env=os.environ | environment)
        found.append(json.loads((folder / "results.json").read_text()))
    own, cpu = found
    assert own["test_elbo"] == pytest.approx(cpu["test_elbo"], abs=0.5)
