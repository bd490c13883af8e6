"""Examples gathered on the host: the steps of an epoch on the device, to the bit."""

from functools import partial
from typing import NamedTuple

import jax
import numpy as np
import pytest

import vae_jax
from vae_jax import Epoch, Labelled, data, host_examples

RNG = np.random.default_rng(7)
X = RNG.integers(0, 2, (43, 6)).astype(np.float32)
LABELS = RNG.integers(0, 3, 43)
SPEC = vae_jax.ModelSpec(vae_jax.MLP((4,)), vae_jax.MLP((4,)), latent_dim=2)


@pytest.mark.parametrize("num_examples", [43, 40, 5])
@pytest.mark.parametrize("length", [1, 2, 4, None])
def test_every_step_of_every_chunk_takes_its_own_examples(num_examples, length):
    x = np.arange(num_examples) * 10
    epoch = vae_jax.shuffled_epoch(
        jax.random.key(0), 0, num_examples=num_examples, batch_size=8
    )
    epoch = jax.device_get(epoch)
    num_batches = len(epoch.batches)
    for first in range(0, max(1, num_batches), length or max(1, num_batches)):
        own, kept = vae_jax.own_examples(epoch, x, first_step=first, num_steps=length)
        assert own.batches.shape == epoch.batches.shape
        np.testing.assert_array_equal(kept[own.rest], x[epoch.rest])
        for step in range(first, min(first + (length or num_batches), num_batches)):
            np.testing.assert_array_equal(
                kept[own.batches[step]], x[epoch.batches[step]]
            )
        size = num_batches if length is None else length
        assert len(kept) == 8 * size + len(epoch.rest)


@pytest.fixture
def mapped(tmp_path):
    np.save(tmp_path / "x.npy", X)
    return np.load(tmp_path / "x.npy", mmap_mode="r")


@pytest.mark.long
@pytest.mark.parametrize("kind", ["memmap", "labelled"])
def test_fit_of_a_file_is_fit_of_its_array(kind, mapped, monkeypatch):
    # Two steps in a chunk of five, and a last batch of three.
    monkeypatch.setattr(host_examples, "CHUNK_BYTES", 2 * 8 * 6 * 4 + 8 * 2 * 4)
    classes = 3 * (kind == "labelled")
    spec = vae_jax.ModelSpec(
        SPEC.encoder, SPEC.decoder, latent_dim=2, data_shape=(6,), num_classes=classes
    )
    params = vae_jax.init(spec, jax.random.key(0))
    labels = LABELS.astype(np.int32)
    on_host, kept = {
        "memmap": (mapped, X),
        "labelled": (
            Labelled(data.Rows(mapped, np.arange(43)[::-1], X.dtype), labels),
            Labelled(X[::-1], labels),
        ),
    }[kind]
    options = {"num_epochs": 2, "batch_size": 8}
    key = jax.random.key(1)
    found = vae_jax.fit(params, on_host, key, **options)
    same = vae_jax.fit(params, kept, key, callback=lambda *_: None, **options)
    # Another program, whose sums may round otherwise.
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7)
    jax.tree.map(close, found, same)


class State(NamedTuple):
    step: int


def test_chunks_are_loaded_once_each_and_one_ahead():
    loaded = []

    def load(first_step):
        loaded.append(first_step)
        return first_step

    def run(state, share, history, stop):
        return state._replace(step=stop), [*history, (share, stop)]

    sizes = Epoch(batches=np.zeros((7, 2), int), rest=np.zeros(1, int))
    chunks = host_examples.EpochChunks(load, sizes, steps_per_chunk=3)
    state, taken = chunks.train(run, State(0), [], 0)
    state, taken = chunks.train(run, state, taken, 4)
    assert taken == [(0, 0), (0, 3), (3, 4)]
    state, taken = chunks.train(run, state, [], 8)
    # The last chunk holds the last, smaller batch too.
    assert taken == [(3, 6), (6, 8)]
    assert loaded == [0, 3, 6]


def test_an_error_while_loading_ahead_is_raised():
    def load(first_step):
        raise ValueError("gone")

    sizes = Epoch(batches=np.zeros((2, 2), int), rest=np.zeros(0, int))
    chunks = host_examples.EpochChunks(load, sizes, steps_per_chunk=1)
    with pytest.raises(ValueError, match="gone"):
        chunks.train(lambda *_: None, State(0), {}, 1)


def test_a_chunk_is_of_at_most_its_bytes_and_of_one_step_at_least():
    x = np.zeros((100, 784), np.uint8)
    assert host_examples.steps_per_chunk(x, 10) == 10
    assert (
        host_examples.steps_per_chunk(np.broadcast_to(x[0], (10**6, 784)), 128) == 334
    )
    wide = np.broadcast_to(np.float32(0), (50, 10**8))
    assert host_examples.steps_per_chunk(wide, 20) == 1
