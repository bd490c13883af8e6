"""Several processes under one experiment: the same training, and one that is lost."""

import contextlib
import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import vae_jax
from experiments import figures, mnist
from experiments.runner import lost_process, processes
from experiments.runner.command_line import CommandFailed
from vae_jax import checkpoint

ROOT = Path(__file__).parents[2]
TINY = mnist.Config(
    dataset="digits",
    likelihood="bernoulli",
    epochs=1,
    # By default they depend on the epochs, and the run could not go on to others.
    beta_warmup_epochs=0.0,
    schedule="constant",
    hidden_dims=(16,),
    latent_dim=2,
    evaluation_samples=0,
)
FLAGS = "--dataset=digits --hidden_dims 16 --latent_dim=2 --evaluation_samples=0"
FLAGS += " --likelihood=bernoulli --beta_warmup_epochs=0 --schedule=constant"


def start_two(folder, *flags):
    """Two processes with two devices each, and their output in files."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    xla = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=2")
    command = [sys.executable, "-u", "-m", "experiments.mnist", *FLAGS.split(), *flags]
    command += [f"--run_dir={folder}", f"--coordinator_address={address}"]
    started = []
    for number in range(2):
        out, err = (Path(f"{folder}.{number}.{kind}") for kind in ("out", "err"))
        with out.open("w") as stdout, err.open("w") as stderr:
            process = subprocess.Popen(
                [*command, "--num_processes=2", f"--process_id={number}"],
                cwd=ROOT,
                env=os.environ | {"XLA_FLAGS": xla},
                stdout=stdout,
                stderr=stderr,
            )
        started.append(process)
    return started


def output(folder, number, kind="out"):
    return Path(f"{folder}.{number}.{kind}").read_text()


def largest_difference(one, other):
    return max(
        float(np.max(np.abs(one - other)))
        for one, other in zip(
            jax.tree.leaves(vae_jax.load_run(one)),
            jax.tree.leaves(vae_jax.load_run(other)),
            strict=True,
        )
    )


@pytest.mark.long
def test_two_processes_are_one_with_as_many_devices(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "draw_all", lambda *args, **kwargs: [])
    # At so large a rate the last epoch is worse than the one before, by half a nat.
    chosen = {"validation": 29, "epochs": 3, "learning_rate": 0.4}
    flags = [f"--{name}={value}" for name, value in chosen.items()]
    both = start_two(tmp_path / "two", *flags)
    run_dir = str(tmp_path / "one")
    one = mnist.run(dataclasses.replace(TINY, run_dir=run_dir, num_devices=4, **chosen))
    assert [process.wait(120) for process in both] == [0, 0]
    assert largest_difference(tmp_path / "two", tmp_path / "one") < 1e-5
    assert "test ELBO" in output(tmp_path / "two", 0)
    assert "ELBO" not in output(tmp_path / "two", 1)
    checkpoint.verify(tmp_path / "two" / "checkpoints" / "33")
    two = json.loads((tmp_path / "two" / "results.json").read_text())
    assert two["best_epoch"] == one["best_epoch"] == 2
    for name in ("best_validation_elbo", "best_test_elbo"):
        assert two[name] == pytest.approx(one[name], rel=1e-5)


LOST = (
    "error: process {} lost process {}; start all of them again, and they go on from "
    "the last checkpoint\n"
)


@pytest.mark.slow
def test_an_error_of_the_first_process_is_told_by_both(tmp_path):
    """The other waits for it, and once ended in a stack of C++."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "mine").write_text("no run")
    both = start_two(folder, "--epochs=1")
    assert [process.wait(60) for process in both] == [2, 1]
    said = [output(folder, number, "err") for number in (0, 1)]
    assert re.fullmatch("error: run_dir .* holds no config.json\n", said[0])
    assert said[1] == LOST.format(1, 0)


@pytest.mark.slow
def test_an_error_of_all_processes_is_told_by_all(tmp_path):
    both = start_two(tmp_path / "run", "--epochs=1", "--likelihood=poisson_typo")
    assert [process.wait(60) for process in both] == [2, 2]
    for number in (0, 1):
        said = output(tmp_path / "run", number, "err")
        assert said.startswith("error: --likelihood must be") and said.count("\n") == 1


HEARTBEATS = (
    "Use error polling to propagate the following error to all tasks: UNAVAILABLE: The "
    "following tasks are unhealthy (stopped sending heartbeats):\n{}\nThe tasks have "
    "crashed."
)


@pytest.mark.parametrize(
    "log, own, count, expected",
    [
        ("", 0, 2, "process 1"),
        ("", 1, 2, "process 0"),
        (HEARTBEATS.format(3), 0, 4, "process 3"),
        (HEARTBEATS.format("1\n3"), 0, 4, "process 1 and 3"),
        ("Polled an error: UNAVAILABLE: Socket closed", 2, 4, "process 0"),
        ("Connection closed by peer [127.0.0.1]:4711", 2, 4, "another process"),
        ("UNAVAILABLE", 0, 4, "another process"),
    ],
)
def test_the_lost_process_is_named_by_what_jax_logged(log, own, count, expected):
    watch = SimpleNamespace(own=own, count=count)
    assert lost_process.lost_one(log, watch) == expected


def raised_from(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error, expected",
    [
        (ValueError("UNKNOWN: Gloo AllGather failed: Connection reset by peer"), True),
        (jax.errors.JaxRuntimeError("INTERNAL"), True),
        (
            raised_from(
                OSError(5, "Input/output error", "run/.checkpoints-33.draft"),
                ValueError("the Barrier timed out"),
            ),
            True,
        ),
        (ValueError("--beta must be at least 0, got -1"), False),
        (ValueError("run_dir /data/Gloo/Barrier holds a run of other flags"), False),
        (OSError(28, "No space left on device", "run"), False),
        (KeyboardInterrupt(), False),
    ],
)
def test_an_error_of_a_connection_is_that_of_a_lost_process(error, expected):
    assert lost_process.is_cause(error) == expected


ABORTED = """
import os, sys, threading, time
from experiments.runner.lost_process import Watch
watch = Watch(0, 2)
os.write(2, b"a stack of C++")
threading.Thread(target=os.abort).start()
time.sleep(60)
"""


def test_an_abort_is_one_line():
    done = subprocess.run(
        [sys.executable, "-c", ABORTED], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, "", LOST.format(0, 1))


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_process_ends_the_other_and_all_can_go_on(tmp_path, lost):
    folder = tmp_path / "run"
    both = start_two(folder, "--epochs=1000", "--checkpoint_every=1")
    wait_for(lambda: checkpoint.steps(folder / "checkpoints"))
    both[lost].send_signal(signal.SIGKILL)
    both[lost].wait()
    # The transport notices at once, or the coordinator after the heartbeat's limit.
    assert both[1 - lost].wait(30) == 1
    assert output(folder, 1 - lost, "err") == LOST.format(1 - lost, lost)
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"epochs": 1000', '"epochs": 1'))
    step = checkpoint.steps(folder / "checkpoints")[-1]
    epochs = step // 12 + 1
    both = start_two(folder, f"--epochs={epochs}", "--checkpoint_every=1")
    assert [process.wait(120) for process in both] == [0, 0]
    assert checkpoint.steps(folder / "checkpoints")[-1] == 12 * epochs
    results = mnist.run(
        dataclasses.replace(TINY, run_dir=str(folder), epochs=epochs + 1)
    )
    assert results["step"] == 12 * (epochs + 1)


def wait_for(condition, seconds=120):
    for _ in range(10 * seconds):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("it did not happen")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_processes": 2}, "need --coordinator_address"),
        (
            {"coordinator_address": "localhost:1", "num_processes": 2},
            "--num_processes and --process_id go together",
        ),
        (
            {"coordinator_address": "localhost:1", "num_processes": 2, "process_id": 2},
            "--process_id must be 0 to 1, got 2",
        ),
        (
            {"coordinator_address": "localhost:1", "num_processes": 0, "process_id": 0},
            "--num_processes must be at least 1, got 0",
        ),
    ],
)
def test_flags_of_processes_go_together(changes, message):
    with pytest.raises(ValueError, match=message):
        processes.join(dataclasses.replace(TINY, **changes))


def test_others_that_cannot_be_met_are_said_so(monkeypatch):
    def fail(**options):
        raise RuntimeError("nobody there")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    config = dataclasses.replace(TINY, coordinator_address="localhost:1")
    with pytest.raises(CommandFailed, match="localhost:1: nobody there"):
        processes.join(config)


@pytest.mark.parametrize(
    "changes, digest, alike",
    [
        ({"process_id": 1, "data_dir": "elsewhere"}, "a", True),
        ({"compilation_cache": "elsewhere"}, "a", True),
        ({"seed": 1}, "a", False),
        ({}, "b", False),
    ],
)
def test_processes_of_other_flags_or_data_are_refused(
    changes, digest, alike, monkeypatch
):
    said = []

    def with_the_other(values):
        said.append(values)
        return np.max(said, axis=0).tolist()

    monkeypatch.setattr(processes, "agree", with_the_other)
    first = dataclasses.replace(TINY, process_id=0)
    processes.require_alike(first, "a")
    other = dataclasses.replace(first, **changes)
    with contextlib.nullcontext() if alike else pytest.raises(ValueError, match="same"):
        processes.require_alike(other, digest)


def test_one_process_agrees_with_itself():
    assert processes.is_first()
    assert processes.agree([3, 0]) == [3, 0]


def test_each_device_is_given_its_own_examples():
    """Together they are what the whole epoch takes, in the same order."""
    data = np.random.default_rng(0).normal(size=(10, 3))
    epoch = vae_jax.shuffled_epoch(jax.random.key(0), 0, num_examples=10, batch_size=4)
    orders = jax.device_get(vae_jax.shard_epoch(epoch, 2))

    def share(device):
        own = jax.tree.map(lambda leaf: leaf[device], orders)
        return vae_jax.own_examples(own, data)

    devices = jax.devices()[:2]
    order, examples = vae_jax.put_on_devices(share, devices=devices)
    assert examples.shape == (2, 6, 3)
    assert {shard.device for shard in examples.addressable_shards} == set(devices)
    for device in range(2):
        met = np.asarray(examples[device])[np.asarray(order.batches[device])]
        expected = data[np.asarray(epoch.batches)[:, 2 * device : 2 * device + 2]]
        np.testing.assert_allclose(met, expected, rtol=1e-6)
        rest = np.asarray(examples[device])[np.asarray(order.rest[device])]
        np.testing.assert_allclose(rest, data[np.asarray(epoch.rest)], rtol=1e-6)
