"""`--data_on`: where the training examples are changes nothing but where they are."""

import dataclasses
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from test_mnist import TINY, assert_same_run, no_pictures, run_tiny  # noqa: F401

import vae_jax
from experiments import datasets, mnist, sweep
from experiments.runner import devices, memory, training
from vae_jax import checkpoint, data, host_examples

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The digits as a user's file."""
    path = tmp_path_factory.mktemp("data") / "digits.npy"
    kept = data.load("digits")
    np.save(path, np.concatenate([kept.train, kept.test])[:700].reshape(-1, 8, 8))
    return str(path)


@pytest.mark.long
def test_a_run_on_the_host_is_that_on_the_device_to_the_bit(
    digits,
    tmp_path,
    monkeypatch,
    no_pictures,  # noqa: F811
):
    """Stopped within an epoch and a chunk, gone on with on the host and the device."""
    run_tiny(tmp_path / "device", dataset=digits, data_on="device", epochs=3)
    # Three batches a chunk; an epoch is four of 128 and one of 118.
    monkeypatch.setattr(host_examples, "CHUNK_BYTES", 3 * 128 * 64)
    monkeypatch.setattr(training, "SECONDS_PER_PIECE", 0.0)
    show = training.Run._show
    for stop in (7, 13):

        def interrupt(run, step, *figures, stop=stop):
            show(run, step, *figures)
            if step == stop:
                signal.raise_signal(signal.SIGTERM)

        monkeypatch.setattr(training.Run, "_show", interrupt)
        arguments = [f"--{name}={value}" for name, value in NAMED.items()]
        arguments += [f"--dataset={digits}", "--hidden_dims", "16", "--data_on=host"]
        with pytest.raises(SystemExit):
            mnist.main([*arguments, f"--run_dir={tmp_path / 'host'}"])
        assert checkpoint.steps(tmp_path / "host/checkpoints")[-1] == stop
    monkeypatch.setattr(training.Run, "_show", show)
    run_tiny(tmp_path / "host", dataset=digits, data_on="device", epochs=3)
    assert_same_run(tmp_path / "device", tmp_path / "host")


NAMED = {
    "likelihood": "bernoulli",
    "epochs": 3,
    "schedule": "constant",
    "beta_warmup_epochs": 0,
    "latent_dim": 2,
    "evaluation_samples": 0,
}


@pytest.mark.long
@pytest.mark.parametrize("num_devices", [1, 2])
@pytest.mark.parametrize("num_examples", [22, 3])
def test_devices_share_examples_on_the_host_as_those_on_one(
    num_devices, num_examples, monkeypatch
):
    monkeypatch.setattr(host_examples, "CHUNK_BYTES", 2 * 4 * 6 * 4 + 4)
    x = np.random.default_rng(0).integers(0, 2, (num_examples, 6)).astype(np.float32)
    spec = vae_jax.ModelSpec(
        vae_jax.MLP((4,)), vae_jax.MLP((4,)), latent_dim=2, data_shape=(6,)
    )
    sgd, key = optax.sgd(0.1), jax.random.key(0)
    step = partial(vae_jax.train_step, objective=vae_jax.ELBO(), optimizer=sgd)
    sizes = {"num_examples": num_examples, "batch_size": 4}
    order = partial(vae_jax.shuffled_epoch, key, **sizes)
    histories = []
    for examples in (jax.numpy.asarray(x), x):
        state = vae_jax.init_state(vae_jax.init(spec, key), key, optimizer=sgd)
        history = vae_jax.empty_history(step, state, order(0), x)
        batches, train = devices.place(step, order, examples, num_devices)
        taken = batches(0)
        for stop in (0, 1, 4, len(order(0).batch_sizes)):
            stop = min(stop, len(order(0).batch_sizes))
            state, history = train(state, taken, history, stop)
        histories.append(history)
    np.testing.assert_array_equal(histories[0]["elbo"], histories[1]["elbo"])
    assert np.isfinite(histories[0]["elbo"]).all()


def test_auto_is_the_device_where_the_data_fit(digits, monkeypatch):
    for name, num_bytes in ((digits, 700 * 64 * 5), ("digits", 1437 * 64)):
        config = dataclasses.replace(TINY, dataset=name)
        monkeypatch.setattr(memory, "free_bytes", lambda n=num_bytes: 2 * n)
        kept = datasets.load(config)
        assert isinstance(kept.train, np.ndarray)
        monkeypatch.setattr(memory, "free_bytes", lambda n=num_bytes: 2 * n - 1)
        dataset = datasets.load(config)
        assert isinstance(dataset.train, data.Rows)
        note = dataset.notes[-1]
        assert "stay on the host" in note and "--data_on" in note
        np.testing.assert_array_equal(dataset.train, kept.train)
        found = (datasets.digest(one, name, labelled=False) for one in (kept, dataset))
        assert len(set(found)) == 1
        asked = dataclasses.replace(config, data_on="device")
        assert isinstance(datasets.load(asked).train, np.ndarray)
        asked = dataclasses.replace(config, data_on="host")
        assert not any("stay on" in note for note in datasets.load(asked).notes)


def test_a_sweep_keeps_its_data_on_the_device(capsys):
    with pytest.raises(SystemExit) as stop:
        sweep.main(["--dataset=digits", "--data_on=host"])
    assert stop.value.code == 2
    assert "--data_on=host is of experiments.mnist" in capsys.readouterr().err


# A command that prints its memory at the end, and stops after some steps if told to.
CHILD = """
import os, signal, sys
from experiments import mnist
from experiments.runner import training

stop = int(sys.argv.pop(1))
most = 0

def watch(show, run, step, *figures):
    global most
    show(run, step, *figures)
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon:"):
            most = max(most, int(line.split()[1]) * 1024)
    if step >= stop:
        signal.raise_signal(signal.SIGTERM)

show = training.Run._show
training.Run._show = lambda *arguments: watch(show, *arguments)
training.SECONDS_PER_PIECE = 0.0
try:
    mnist.main()
finally:
    print("RssAnon", most)
"""


@pytest.mark.slow
def test_a_file_of_four_gigabytes_trains_in_private_memory_of_one_and_a_half(tmp_path):
    """Of 2^20 rows of 4096 bytes, sparse on disk: some have pixels, others are 0."""
    path = tmp_path / "large.npy"
    x = np.lib.format.open_memmap(path, "w+", np.uint8, (2**20, 64, 64))
    x[:: 2**12] = np.random.default_rng(0).integers(256, size=(64, 64))
    x.flush()
    assert path.stat().st_size > 2**32 and path.stat().st_blocks * 512 < 2**28

    def steps(stop, folder):
        arguments = [f"--dataset={path}", f"--run_dir={tmp_path / folder}"]
        arguments += ["--data_on=host", "--hidden_dims", "8", "--latent_dim=2"]
        arguments += ["--epochs=1", "--batch_size=64", "--likelihood=bernoulli"]
        child = subprocess.run(
            [sys.executable, "-c", CHILD, str(stop), *arguments],
            cwd=ROOT,
            env=os.environ,
            capture_output=True,
            text=True,
        )
        assert child.returncode == 143, child.stderr
        assert int(child.stdout.split()[-1]) < 1.5e9, child.stdout
        return vae_jax.load_run(tmp_path / folder)

    steps(40, "stopped")
    jax.tree.map(
        np.testing.assert_array_equal, steps(200, "stopped"), steps(200, "whole")
    )
