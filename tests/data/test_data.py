"""Tests of `vae_jax.data`: every route to the data, and every way it can be refused."""

import gzip
import hashlib
import http.server
import math
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import requests

from vae_jax import data
from vae_jax.data import published

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "mnist"
needs_mnist = pytest.mark.skipif(
    not REAL.is_dir(), reason="MNIST's four files are not in ../shared/data/mnist"
)
FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)


def idx(array: np.ndarray) -> bytes:
    sizes = np.array(array.shape, ">u4").tobytes()
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


def small_files(seed: int) -> dict[str, bytes]:
    """Four files as they are published, of 6 and 3 images of 4x5 pixels."""
    rng = np.random.default_rng(seed)
    arrays = [
        rng.integers(256, size=(6, 4, 5)),
        rng.integers(10, size=6),
        rng.integers(256, size=(3, 4, 5)),
        rng.integers(10, size=3),
    ]
    return {
        file: gzip.compress(idx(array), mtime=0)
        for file, array in zip(FILES, arrays, strict=True)
    }


SMALL = {
    name: small_files(seed)
    for seed, name in enumerate(("mnist", "fashion_mnist", "kmnist"))
}
BIT_FILES = tuple(
    f"binarized_mnist_{split}.amat" for split in ("train", "valid", "test")
)
BITS = [
    np.random.default_rng(7).integers(2, size=(size, 9), dtype=np.uint8)
    for size in (7, 4, 3)
]


def amat(bits: np.ndarray) -> bytes:
    return "".join(" ".join(map(str, row)) + "\n" for row in bits).encode()


CONTENTS = SMALL | {
    "binarized_mnist": dict(zip(BIT_FILES, map(amat, BITS), strict=True))
}


@pytest.fixture
def publish(monkeypatch):
    """Puts small data sets in the place of the published ones, at a given address."""
    from tensorflow_datasets.core.download.checksums import UrlInfo

    def registered(address, name):
        return {
            file: (
                f"{address}/{name}/{file}",
                UrlInfo(len(content), hashlib.sha256(content).hexdigest(), file),
            )
            for file, content in CONTENTS[name].items()
        }

    def publish_at(address):
        monkeypatch.setattr(
            published, "_registered", lambda name: registered(address, name)
        )

    publish_at("http://nowhere.invalid")
    return publish_at


@pytest.fixture
def offline(monkeypatch):
    def head(*args, **kwargs):
        raise requests.ConnectionError("no network")

    monkeypatch.setattr(requests, "head", head)


@pytest.fixture
def server(publish, monkeypatch):
    """A server of the small data sets; `answers` overrides what a path gets."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    answers, requested = {}, []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(200)
            self.end_headers()

        def do_GET(self):
            requested.append(Path(self.path).name)
            name, file = self.path.strip("/").split("/")
            status, content, length = answers.get(
                file, (200, CONTENTS[name][file], None)
            )
            self.send_response(status)
            self.send_header("Content-Length", str(length or len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, daemon=True)
        thread.start()
        publish(f"http://127.0.0.1:{listening.server_port}")
        yield SimpleNamespace(answers=answers, requested=requested)
        listening.shutdown()


def put(folder: Path, name: str, files=FILES) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        (folder / file).write_bytes(SMALL[name][file])
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Everything under a folder, by its path; hidden files as well."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def message(error) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


# Names


def test_unknown_name_lists_the_names():
    with pytest.raises(ValueError) as error:
        data.load("minst")
    for part in ("dataset", "'minst'", *data.NAMES, ".npz", ".npy"):
        assert part in message(error)


def test_negative_seed():
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        data.load("synthetic", seed=-1)


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    theirs, ours = load_digits(), data.load("digits")
    np.testing.assert_array_equal(np.vstack([ours.train, ours.test]), theirs.data)
    labels = np.hstack([ours.train_labels, ours.test_labels])
    np.testing.assert_array_equal(labels, theirs.target)
    assert (ours.name, ours.data_shape, ours.num_levels) == ("digits", (8, 8), 17)
    assert (len(ours.train), len(ours.test), ours.notes) == (1437, 360, ())
    assert ours.train.dtype == np.uint8 and ours.test_labels.dtype == np.int32
    assert Path(data.__file__).with_name("digits.npz").stat().st_size < 50_000


# Published files


@pytest.mark.long
@needs_mnist
@pytest.mark.parametrize("name", ["mnist", "auto"])
@pytest.mark.parametrize("data_dir", [REAL, REAL.parent], ids=["direct", "in folder"])
def test_mnist(name, data_dir, monkeypatch):
    monkeypatch.setattr(published, "_download", None)
    mnist = data.load(name, data_dir=data_dir)
    assert (mnist.name, mnist.data_shape, mnist.num_levels) == ("mnist", (28, 28), 256)
    assert mnist.train.shape == (60000, 784) and mnist.test.shape == (10000, 784)
    assert mnist.train.dtype == np.uint8 and mnist.train_labels.dtype == np.int32
    # Both figures are quoted wherever MNIST is normalised.
    assert mnist.train.mean() / 255 == pytest.approx(0.1307, abs=5e-5)
    assert mnist.train.std() / 255 == pytest.approx(0.3081, abs=5e-5)
    assert (mnist.train_labels[0], mnist.test_labels[0], mnist.notes) == (5, 7, ())
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(mnist.train_labels).tolist() == counts
    counts = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert np.bincount(mnist.test_labels).tolist() == counts


@pytest.mark.parametrize("name", CONTENTS)
def test_registered_by_tensorflow_datasets(name):
    registered = published._registered(name)
    assert sorted(registered) == sorted(CONTENTS[name])
    for file, (url, info) in registered.items():
        assert url.startswith("http") and url.endswith(file)
        assert re.fullmatch("[0-9a-f]{64}", info.checksum)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("folder", [".", "{name}"], ids=["direct", "in folder"])
def test_published_files_are_read_where_they_are(publish, tmp_path, name, folder):
    put(tmp_path / folder.format(name=name), name)
    before = contents(tmp_path)
    dataset = data.load(name, data_dir=tmp_path)
    assert contents(tmp_path) == before
    rng = np.random.default_rng(list(SMALL).index(name))
    np.testing.assert_array_equal(
        dataset.train, rng.integers(256, size=(6, 4, 5)).reshape(6, 20)
    )
    np.testing.assert_array_equal(dataset.train_labels, rng.integers(10, size=6))
    np.testing.assert_array_equal(
        dataset.test, rng.integers(256, size=(3, 4, 5)).reshape(3, 20)
    )
    np.testing.assert_array_equal(dataset.test_labels, rng.integers(10, size=3))
    assert dataset.name == name and dataset.data_shape == (4, 5)
    assert dataset.train_labels.dtype == dataset.test_labels.dtype == np.int32


needs_bits = pytest.mark.skipif(
    not (REAL.parent / "binarized_mnist").is_dir(),
    reason="the binarized files are not in ../shared/data/binarized_mnist",
)


@pytest.mark.long
@needs_bits
def test_binarized_mnist(monkeypatch):
    monkeypatch.setattr(published, "_download", None)
    bits = data.load("binarized_mnist", data_dir=REAL.parent)
    assert (bits.name, bits.data_shape, bits.num_levels) == (
        "binarized_mnist",
        (28, 28),
        2,
    )
    splits = (bits.train, bits.validation, bits.test)
    assert [len(split) for split in splits] == [50_000, 10_000, 10_000]
    assert all(set(np.unique(split)) == {0, 1} for split in splits)
    # The files are sorted by class: a thousand rows would not be like the others.
    shares = np.array([bits.test[:1000].mean(), bits.test.mean()])
    error = bits.test.mean(axis=1).std() / np.sqrt(1000)
    assert abs(shares[0] - shares[1]) < 5 * error


def sorted_rows(bits):
    return sorted(map(tuple, bits))


@pytest.mark.parametrize("compressed", [(), BIT_FILES[:1], BIT_FILES])
@pytest.mark.parametrize("folder", [".", "binarized_mnist"])
def test_bits_are_read_as_text_or_compressed(publish, tmp_path, compressed, folder):
    (tmp_path / folder).mkdir(exist_ok=True)
    for file, content in CONTENTS["binarized_mnist"].items():
        if file in compressed:
            file, content = f"{file}.gz", gzip.compress(content)
        (tmp_path / folder / file).write_bytes(content)
    first, again = (data.load("binarized_mnist", data_dir=tmp_path) for _ in range(2))
    for split, expected in zip(("train", "validation", "test"), BITS, strict=True):
        rows = getattr(first, split)
        assert sorted_rows(rows) == sorted_rows(expected) and rows.dtype == np.uint8
        np.testing.assert_array_equal(rows, getattr(again, split))
    assert not np.array_equal(first.train, BITS[0])
    assert first.data_shape == (3, 3) and first.train_labels is None


@pytest.mark.parametrize(
    "damage",
    [lambda content: content[:-9], lambda content: content + bytes(10**6)],
    ids=["cut off", "longer"],
)
def test_compressed_bits_that_are_damaged(publish, tmp_path, damage):
    for file, content in CONTENTS["binarized_mnist"].items():
        (tmp_path / f"{file}.gz").write_bytes(gzip.compress(content))
    path = tmp_path / f"{BIT_FILES[1]}.gz"
    path.write_bytes(gzip.compress(damage(gzip.decompress(path.read_bytes()))))
    with pytest.raises(ValueError, match="cut off or damaged") as error:
        data.load("binarized_mnist", data_dir=tmp_path)
    assert str(path) in message(error)
    path.write_bytes(gzip.compress(CONTENTS["binarized_mnist"][BIT_FILES[1]])[:-12])
    with pytest.raises(ValueError, match="cut off or damaged"):
        data.load("binarized_mnist", data_dir=tmp_path)


def test_bits_are_downloaded(server, tmp_path):
    dataset = data.load("binarized_mnist", data_dir=tmp_path)
    assert contents(tmp_path) == {
        f"binarized_mnist/{file}": content
        for file, content in CONTENTS["binarized_mnist"].items()
    }
    assert sorted_rows(dataset.validation) == sorted_rows(BITS[1])


@pytest.mark.parametrize(
    "text",
    [b"", b"0 1 1", b"0 1\n1\n", b"0 2\n", b"0,1\n", b"0 1\n1 0 ", b"0\n1 0\n1\n"],
)
def test_what_is_no_text_of_bits(text):
    with pytest.raises(ValueError, match="bits"):
        published.parse_amat(text)


def test_the_last_training_examples_are_held_out():
    digits = data.load("digits")
    held = data.hold_out(digits, 100)
    np.testing.assert_array_equal(
        np.concatenate([held.train, held.validation]), digits.train
    )
    np.testing.assert_array_equal(held.validation_labels, digits.train_labels[-100:])
    assert len(held.train_labels) == len(held.train) == 1337
    with pytest.raises(ValueError, match="100 validation examples of its own"):
        data.hold_out(held, 10)
    for count in (0, 1437):
        with pytest.raises(ValueError, match=f"from 1 to 1436.*got {count}"):
            data.hold_out(digits, count)


@pytest.mark.long
@pytest.mark.parametrize("method", data.BINARIZATIONS)
def test_validation_examples_are_binarized_like_the_test_set(method):
    digits = data.load("digits")
    held = data.hold_out(digits._replace(test=digits.train[-300:]), 300)
    key = jax.random.key(3)
    bits = data.binarize_dataset(held, key, method=method)
    without = data.binarize_dataset(held._replace(validation=None), key, method=method)
    # Bits of their own, of the same probabilities.
    assert np.array_equal(bits.validation, bits.test) == (
        method in ("threshold", "none")
    )
    difference = (bits.validation.astype(float) - bits.test).mean() / bits.test.max()
    assert abs(difference) < 5 * np.sqrt(0.5 / bits.test.size)
    np.testing.assert_array_equal(without.test, bits.test)
    assert bits.validation.dtype == bits.test.dtype


def test_the_data_sets_own_folder_comes_first(publish, tmp_path):
    put(tmp_path, "fashion_mnist")
    put(tmp_path / "mnist", "mnist")
    assert data.load("mnist", data_dir=tmp_path).name == "mnist"


def cut_off(content):
    return content[:-1]


def flipped(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("damage", [cut_off, flipped])
@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("name", ["mnist", "auto"])
def test_damaged_file(publish, offline, tmp_path, name, file, damage):
    path = put(tmp_path, "mnist") / file
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_bytes(damage(path.read_bytes()))
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(ValueError) as error:
        data.load(name, data_dir=tmp_path)
    assert not isinstance(error.value, data.DataUnavailable)
    for part in (str(path), expected[:12], found[:12], "damaged"):
        assert part in message(error)


def test_files_of_another_data_set(publish, tmp_path):
    put(tmp_path, "fashion_mnist")
    with pytest.raises(ValueError, match=f"this is fashion_mnist's {FILES[0]}"):
        data.load("kmnist", data_dir=tmp_path)


def test_files_that_were_swapped(publish, tmp_path):
    put(tmp_path, "mnist")
    shutil.copy(tmp_path / FILES[2], tmp_path / FILES[0])
    with pytest.raises(ValueError, match=f"this is mnist's {FILES[2]}"):
        data.load("mnist", data_dir=tmp_path)


@pytest.mark.parametrize("there", [(), FILES[:1], FILES[1:]])
@pytest.mark.parametrize("folder", [".", "kmnist"])
def test_offline_names_what_is_missing(publish, offline, tmp_path, there, folder):
    put(tmp_path / folder, "kmnist", there)
    before = contents(tmp_path)
    with pytest.raises(data.DataUnavailable) as error:
        data.load("kmnist", data_dir=tmp_path)
    for file in FILES:
        assert (file in message(error)) == (file not in there)
    for part in (
        "kmnist cannot be had",
        "nowhere.invalid cannot be reached",
        "ConnectionError",
        str(tmp_path / "kmnist"),
        "--dataset=digits",
    ):
        assert part in message(error)
    assert contents(tmp_path) == before


def test_auto_offline_is_digits_and_says_so(publish, offline, tmp_path):
    dataset = data.load("auto", data_dir=tmp_path / "none")
    (note,) = dataset.notes
    assert dataset.name == "digits" and dataset.train.shape == (1437, 64)
    assert "MNIST cannot be had" in note and "nowhere.invalid" in note
    assert "handwritten digits" in note and "\n" not in note
    assert not (tmp_path / "none").exists()


@pytest.mark.long
def test_a_network_that_hangs_is_known_within_seconds(publish, monkeypatch, tmp_path):
    released = threading.Event()
    monkeypatch.setattr(requests, "head", lambda *args, **kwargs: released.wait(60))
    start = time.monotonic()
    with pytest.raises(data.DataUnavailable, match="no answer in 3 seconds"):
        data.load("mnist", data_dir=tmp_path)
    assert time.monotonic() - start < 5
    released.set()


def test_the_probe_is_short_and_follows_redirects(publish, monkeypatch, tmp_path):
    def head(url, *, timeout, allow_redirects):
        assert url.startswith("http://nowhere.invalid/mnist/") and timeout <= 4
        assert allow_redirects
        return SimpleNamespace(ok=False, status_code=503)

    monkeypatch.setattr(requests, "head", head)
    with pytest.raises(data.DataUnavailable, match="HTTP status 503"):
        data.load("mnist", data_dir=tmp_path)


def test_download(server, tmp_path, capfd):
    data_dir = tmp_path / "new" / "data"
    first = data.load("mnist", data_dir=data_dir)
    assert contents(data_dir) == {
        f"mnist/{file}": content for file, content in SMALL["mnist"].items()
    }
    assert [path.name for path in data_dir.iterdir()] == ["mnist"]
    assert len(list((data_dir / "mnist").iterdir())) == 4
    assert capfd.readouterr() == ("", "")
    second = data.load("mnist", data_dir=data_dir)
    np.testing.assert_array_equal(first.train, second.train)
    assert server.requested == list(FILES)


def test_download_of_what_is_missing(server, tmp_path):
    put(tmp_path, "mnist", FILES[:2])
    put(tmp_path / "mnist", "mnist", FILES[3:])
    data.load("auto", data_dir=tmp_path)
    assert server.requested == [FILES[2]]
    assert (tmp_path / "mnist" / FILES[2]).is_file()


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param((404, b"", None), id="status"),
        pytest.param((200, b"<html>Please log in</html>", None), id="other content"),
        pytest.param((200, SMALL["mnist"][FILES[2]][:50], 200), id="breaks off"),
    ],
)
def test_a_download_that_fails_leaves_whole_files_only(server, tmp_path, answer):
    server.answers[FILES[2]] = answer
    with pytest.raises(data.DataUnavailable) as error:
        data.load("mnist", data_dir=tmp_path)
    assert f"127.0.0.1 did not send {FILES[2]}" in message(error)
    assert f"put {FILES[2]}, {FILES[3]} into" in message(error)
    whole = {f"mnist/{file}": SMALL["mnist"][file] for file in FILES[:2]}
    assert contents(tmp_path) == whole
    assert len(list((tmp_path / "mnist").iterdir())) == 2
    assert data.load("auto", data_dir=tmp_path).name == "digits"
    del server.answers[FILES[2]]
    assert data.load("auto", data_dir=tmp_path).name == "mnist"


def test_data_dir_that_cannot_be_written(server, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError) as error:
        data.load("auto", data_dir=tmp_path / "file")
    assert f"data_dir {str(tmp_path / 'file')!r}" in message(error)
    assert not isinstance(error.value, data.DataUnavailable)


@pytest.mark.parametrize("shape", [(7,), (2, 3), (300, 2, 2)])
def test_parse_idx(shape):
    array = np.random.default_rng(0).integers(256, size=shape).astype(np.uint8)
    np.testing.assert_array_equal(data.parse_idx(idx(array)), array)


@pytest.mark.parametrize(
    "content, expected",
    [
        (b"", "no IDX file"),
        (b"\0\0\x08", "IDX file"),
        (b"PK\x03\x04" + bytes(20), "no IDX file"),
        (b"\0\0\x0d" + idx(np.zeros((2, 3)))[3:], "no IDX file"),
        (idx(np.zeros((2, 3)))[:9], "no IDX file"),
        (idx(np.zeros((2, 3)))[:-1], r"shape \(2, 3\) holds 5 values"),
        (idx(np.zeros((2, 3))) + b"\0", r"shape \(2, 3\) holds 7 values"),
    ],
)
def test_parse_idx_refuses(content, expected):
    with pytest.raises(ValueError, match=expected):
        data.parse_idx(content)


# A user's files

GREY = np.random.default_rng(0).integers(256, size=(30, 4, 3)).astype(np.uint8)
BINARY = (GREY > 127).astype(np.uint8)
UNIT = np.random.default_rng(0).random((30, 12))


def save(folder: Path, **arrays) -> Path:
    np.savez(folder / "mine.npz", **arrays)
    return folder / "mine.npz"


@pytest.mark.parametrize(
    "x, stored, num_levels, binary_note",
    [
        (GREY, GREY, 256, False),
        (BINARY, BINARY, 2, True),
        (BINARY.astype(bool), BINARY, 2, False),
        (UNIT, UNIT.astype(np.float32), None, False),
        (UNIT.astype(np.float16), UNIT.astype(np.float16), None, False),
        (UNIT.astype(">f4"), UNIT.astype(np.float32), None, False),
    ],
    ids=["uint8", "binary", "bool", "float64", "float16", "big-endian"],
)
def test_users_values(tmp_path, x, stored, num_levels, binary_note):
    dataset = data.load(save(tmp_path, x=x, x_test=x[:5]))
    np.testing.assert_array_equal(dataset.train, stored.reshape(30, 12))
    np.testing.assert_array_equal(dataset.test, stored[:5].reshape(5, 12))
    kind = np.float32 if num_levels is None else np.uint8
    assert dataset.train.dtype == dataset.test.dtype == kind
    assert dataset.num_levels == num_levels and dataset.name == "mine"
    assert dataset.data_shape == x.shape[1:]
    assert dataset.train_labels is None and dataset.test_labels is None
    assert [("binary" in note) for note in dataset.notes] == [True] * binary_note


def test_one_grey_split_makes_both_grey(tmp_path):
    for x, x_test in [(BINARY, GREY), (GREY, BINARY)]:
        dataset = data.load(save(tmp_path, x=x, x_test=x_test))
        assert dataset.num_levels == 256 and dataset.notes == ()


LEVELS = np.random.default_rng(1).integers(17, size=(30, 4, 3)).astype(np.uint8)


def test_a_file_of_few_levels_is_read_as_8_bit_with_a_note_or_as_it_declares(tmp_path):
    """Digits of 17 levels: white is 16 / 16 where the file says so, else 16 / 255."""
    assumed = data.load(save(tmp_path, x=LEVELS, x_test=LEVELS))
    (note,) = assumed.notes
    assert assumed.num_levels == 256
    for part in ("without a value over 16", "256 levels", ".npz", "key num_levels"):
        assert part in note
    declared = data.load(save(tmp_path, x=LEVELS, num_levels=17))
    assert declared.num_levels == 17 and len(declared.train) == 27
    assert not any("levels" in note for note in declared.notes)
    white = [
        float(data.to_unit_interval(dataset.train, dataset.num_levels).max())
        for dataset in (assumed, declared)
    ]
    assert white == pytest.approx([16 / 255, 1])
    np.save(tmp_path / "mine.npy", LEVELS)
    assert any("key num_levels" in n for n in data.load(tmp_path / "mine.npy").notes)


def test_bits_that_are_few_levels_of_many_can_be_declared(tmp_path):
    dataset = data.load(save(tmp_path, x=BINARY, x_test=BINARY, num_levels=256))
    assert (dataset.num_levels, dataset.notes) == (256, ())


def test_users_labels(tmp_path):
    y, y_test = np.arange(30), np.arange(5, dtype=np.uint8)
    dataset = data.load(save(tmp_path, x=GREY, x_test=GREY[:5], y=y, y_test=y_test))
    np.testing.assert_array_equal(dataset.train_labels, y)
    np.testing.assert_array_equal(dataset.test_labels, y_test)
    assert dataset.train_labels.dtype == dataset.test_labels.dtype == np.int32


@pytest.mark.parametrize("num_examples, num_test", [(2, 1), (19, 1), (30, 3)])
def test_random_tenth_for_the_test(tmp_path, num_examples, num_test):
    x = np.arange(num_examples, dtype=np.uint8)[:, None] * np.ones(2, np.uint8)
    path = save(tmp_path, x=x, y=np.arange(num_examples))
    dataset = data.load(path)
    assert dataset.test.shape == (num_test, 2)
    # Nothing lost, nothing twice, and labels stay with their examples.
    together = np.concatenate([dataset.train, dataset.test])[:, 0]
    assert sorted(together) == list(range(num_examples))
    np.testing.assert_array_equal(dataset.train[:, 0], dataset.train_labels)
    np.testing.assert_array_equal(dataset.test[:, 0], dataset.test_labels)
    order = np.random.default_rng(0).permutation(num_examples)
    np.testing.assert_array_equal(dataset.test_labels, order[-num_test:])
    assert any("no x_test" in note and "seed 0" in note for note in dataset.notes)


def test_the_split_is_the_seeds(tmp_path):
    path = save(tmp_path, x=GREY)
    test = {seed: data.load(path, seed=seed).test for seed in (0, 1)}
    np.testing.assert_array_equal(test[0], data.load(path).test)
    assert (test[0] != test[1]).any()


def test_npy(tmp_path):
    np.save(tmp_path / "mine.npy", GREY)
    np.savez(tmp_path / "mine.npz", x=GREY)
    single, archive = (data.load(tmp_path / f"mine.{end}") for end in ("npy", "npz"))
    np.testing.assert_array_equal(single.train, archive.train)
    assert single[5:] == archive[5:]


@pytest.mark.parametrize(
    "arrays, expected",
    [
        ({"images": GREY, "y": GREY}, "must have a key x, got images, y"),
        ({}, "must have a key x, got none"),
        ({"x": GREY.astype(object)}, "allow_pickle=False"),
        ({"x": GREY.astype(str)}, "x must be bool, integers, .* got <U"),
        ({"x": UNIT.astype(complex)}, "x must be bool, integers, .* got complex128"),
        ({"x": GREY[:, 0, 0]}, r"x must be \[n, D\] .* got uint8\[30\]"),
        ({"x": np.float32(0)}, r"x must be \[n, D\] .* got float32\[\]"),
        ({"x": GREY[:0]}, r"not empty, got uint8\[0, 4, 3\]"),
        ({"x": GREY[:, :0]}, r"not empty, got uint8\[30, 0, 3\]"),
        ({"x": GREY[:1]}, "at least 2 examples, got 1"),
        ({"x": UNIT, "x_test": UNIT[:0]}, "x_test must be .* not empty"),
        ({"x": np.where(UNIT > 0.9, np.nan, UNIT)}, "x must be finite"),
        ({"x": np.where(UNIT > 0.9, np.inf, UNIT)}, "x must be finite"),
        ({"x": UNIT, "x_test": np.full((1, 12), np.nan)}, "x_test must be finite"),
        ({"x": np.full((3, 2), 255.0)}, "column '0' is 255 in all rows to train on"),
        ({"x": UNIT, "x_test": UNIT[:, 1:]}, r"like x, float64\[30, 12\], .*\[30, 11"),
        ({"x": GREY, "x_test": GREY.reshape(30, 12)}, "x_test must be like x"),
        ({"x": BINARY, "x_test": UNIT.reshape(30, 4, 3)}, "x_test must be like x"),
        ({"x": GREY, "y": np.arange(29)}, "y must be integers, .* 30 .* int64"),
        ({"x": GREY, "y": np.zeros((30, 10), int)}, "y must be integers"),
        ({"x": GREY, "y": np.zeros(30)}, "y must be integers, .* got float64"),
        ({"x": GREY, "x_test": GREY, "y_test": np.arange(3)}, "y_test must be int"),
        ({"x": GREY, "y_test": np.arange(3)}, "y_test without x_test"),
        ({"x": GREY, "y": np.full(30, 2**31)}, "y must be integers of 32 bits, got 2"),
        ({"x": GREY, "num_levels": 17}, "from 256, as the largest value .* got 17"),
        ({"x": GREY, "num_levels": 300}, "num_levels must be from .* to 256, got 300"),
        ({"x": BINARY, "num_levels": 1}, "num_levels must be from 2,"),
        ({"x": GREY, "num_levels": 256.0}, "num_levels must be an integer, got float"),
        ({"x": GREY, "num_levels": [256]}, r"must be an integer, got int64\[1\]"),
        ({"x": UNIT, "num_levels": 17}, "num_levels goes with uint8 examples, got f"),
    ],
)
def test_users_file_is_refused(tmp_path, arrays, expected):
    path = save(tmp_path, **arrays)
    with pytest.raises(ValueError, match=expected) as error:
        data.load(path)
    assert message(error).startswith(f"dataset {str(path)!r}: ")


def test_users_file_with_more_in_it(tmp_path):
    path = save(tmp_path, x=GREY, settings=np.array({"a": 1}, object))
    assert data.load(path).train.shape == (27, 12)


@pytest.mark.parametrize(
    "content, name",
    [
        pytest.param(b"", "empty.npz", id="empty npz"),
        pytest.param(b"", "empty.npy", id="empty npy"),
        pytest.param(b"label,pixel\n5,0\n", "table.npz", id="text"),
        pytest.param("npz", "other.npy", id="npz named npy"),
        pytest.param("npy", "other.npz", id="npy named npz"),
        pytest.param("cut npz", "cut.npz", id="npz cut off"),
        pytest.param("cut npy", "cut.npy", id="npy cut off"),
    ],
)
def test_no_such_format(tmp_path, content, name):
    np.save(tmp_path / "good.npy", GREY)
    npy, npz = (tmp_path / "good.npy").read_bytes(), save(tmp_path, x=GREY).read_bytes()
    made = {"npy": npy, "npz": npz, "cut npy": npy[:-9], "cut npz": npz[:-9]}
    (tmp_path / name).write_bytes(made.get(content, content))
    with pytest.raises(ValueError, match=f"no readable {name[-4:]} file") as error:
        data.load(tmp_path / name)
    assert str(tmp_path / name) in message(error)


@pytest.mark.parametrize("name", ["missing.npz", "missing.npy", "folder.npz"])
def test_no_such_file(tmp_path, name):
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(ValueError, match="No such file|Is a directory") as error:
        data.load(str(tmp_path / name))
    assert str(tmp_path / name) in message(error)


# Values and bits


@pytest.mark.parametrize("num_levels", [2, 17, 256])
def test_to_unit_interval(num_levels):
    values = np.arange(num_levels, dtype=np.uint8)
    expected = values / (num_levels - 1)
    for function in (
        data.to_unit_interval,
        jax.jit(data.to_unit_interval, static_argnums=1),
    ):
        unit = function(values, num_levels)
        assert unit.dtype == jnp.float32 and (unit[0], unit[-1]) == (0, 1)
        np.testing.assert_allclose(unit, expected, rtol=2e-7)


def test_floats_are_left_alone():
    x = UNIT.astype(np.float32)
    np.testing.assert_array_equal(data.to_unit_interval(x, None), x)


def within_five_standard_errors(bits, probability):
    error = math.sqrt(probability * (1 - probability) / bits.size)
    return abs(float(bits.mean()) - probability) < 5 * error


@pytest.mark.parametrize("value", [0, 1, 64, 128, 254, 255])
def test_binarize_is_bernoulli(value):
    x = data.to_unit_interval(np.full((500, 400), value, np.uint8), 256)
    bits = jax.jit(data.binarize)(x, jax.random.key(value))
    assert bits.dtype == x.dtype and set(np.unique(bits)) <= {0, 1}
    if value in (0, 255):
        assert (bits == value // 255).all()
    else:
        assert within_five_standard_errors(bits, value / 255)


@pytest.mark.long
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_binarize_is_bernoulli_in_16_bits(dtype):
    """Of probabilities far below the distance of two uniform numbers in 16 bits."""
    x = jnp.full((500, 400), 1 / 255, dtype)
    bits = data.binarize(x, jax.random.key(0))
    assert bits.dtype == dtype
    assert within_five_standard_errors(np.float32(bits), float(x[0, 0]))


@pytest.mark.long
def test_binarize_draws_afresh_with_every_key():
    x = jnp.full((10, 20), 0.5)
    first, again, other = (data.binarize(x, jax.random.key(i)) for i in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.2


def dataset_of(train, test=None, num_levels=256):
    test = train if test is None else test
    labels = np.arange(len(train)), np.arange(len(test))
    return data.Dataset("d", train, test, *labels, train.shape[1:], num_levels)


IMAGES = np.random.default_rng(1).integers(256, size=(40, 30)).astype(np.uint8)


@pytest.mark.long
def test_dynamic_leaves_the_training_images_grey():
    grey = dataset_of(IMAGES)
    bits = data.binarize_dataset(grey, jax.random.key(0), method="dynamic")
    assert bits.train is grey.train and bits.num_levels == 256
    # On the scale of the training images, so that one rule serves both.
    assert bits.test.dtype == np.uint8 and set(np.unique(bits.test)) == {0, 255}
    assert set(np.unique(data.to_unit_interval(bits.test, 256))) == {0, 1}
    assert bits.train_labels is grey.train_labels


def test_dynamic_of_floats():
    x = IMAGES / np.float32(255)
    bits = data.binarize_dataset(
        dataset_of(x, num_levels=None), jax.random.key(0), method="dynamic"
    )
    assert bits.test.dtype == np.float32 and set(np.unique(bits.test)) == {0, 1}
    assert bits.num_levels is None


def test_fixed_is_drawn_once_by_the_key():
    grey = dataset_of(IMAGES)
    first, again, other = (
        data.binarize_dataset(grey, jax.random.key(i), method="fixed")
        for i in (0, 0, 1)
    )
    assert first.num_levels == 2 and first.train.dtype == first.test.dtype == np.uint8
    assert set(np.unique(first.train)) == set(np.unique(first.test)) == {0, 1}
    np.testing.assert_array_equal(first.train, again.train)
    np.testing.assert_array_equal(first.test, again.test)
    assert (first.train != other.train).any() and (first.test != other.test).any()
    # The same images in both splits here: their draws are independent.
    assert (first.train != first.test).any()
    assert first.test_labels is grey.test_labels


def test_fixed_and_dynamic_share_the_test_set():
    grey = dataset_of(IMAGES)
    fixed, dynamic = (
        data.binarize_dataset(grey, jax.random.key(3), method=method)
        for method in ("fixed", "dynamic")
    )
    np.testing.assert_array_equal(fixed.test * 255, dynamic.test)


@pytest.mark.long
@pytest.mark.parametrize("num_levels", [17, 256, None])
def test_draws_have_the_pixels_probability(num_levels):
    top = 1 if num_levels is None else num_levels - 1
    dtype = np.float32 if num_levels is None else np.uint8
    value = dtype(0.25 * top)
    x = np.full((600, 300), value)
    bits = data.binarize_dataset(
        dataset_of(x, num_levels=num_levels), jax.random.key(0), method="fixed"
    )
    assert within_five_standard_errors(bits.train, value / top)
    assert within_five_standard_errors(bits.test, value / top)


@pytest.mark.long
def test_bits_do_not_depend_on_the_number_of_images():
    """Few and many, on both sides of where the drawing goes on to the next chunk."""
    key = jax.random.key(0)
    many = dataset_of(IMAGES, np.tile(IMAGES, (26, 1)))
    few_bits = data.binarize_dataset(dataset_of(IMAGES), key, method="dynamic").test
    many_bits = data.binarize_dataset(many, key, method="dynamic").test
    np.testing.assert_array_equal(few_bits, many_bits[:40])
    # Every image has a key of its own: copies of one image all differ.
    copies = many_bits.reshape(26, 40, 30)[:, 0]
    assert len(np.unique(copies, axis=0)) == 26


def test_threshold():
    grey = dataset_of(np.array([[0, 127, 128, 255]], np.uint8))
    bits = data.binarize_dataset(grey, jax.random.key(0), method="threshold")
    for split in (bits.train, bits.test):
        assert split.dtype == np.uint8 and split.tolist() == [[0, 0, 1, 1]]
    assert bits.num_levels == 2


@pytest.mark.parametrize(
    "x, num_levels",
    [(np.array([[7, 8]], np.uint8), 17), (np.array([[0.49, 0.5]], np.float32), None)],
)
def test_threshold_is_inclusive(x, num_levels):
    bits = data.binarize_dataset(
        dataset_of(x, num_levels=num_levels), jax.random.key(0), method="threshold"
    )
    assert bits.train.tolist() == bits.test.tolist() == [[0, 1]]


def test_none_changes_nothing():
    grey = dataset_of(IMAGES)
    assert data.binarize_dataset(grey, jax.random.key(0), method="none") is grey


@pytest.mark.parametrize("method", ["dynamic", "fixed", "threshold"])
def test_bits_stay_what_they_are(method):
    binary = dataset_of((IMAGES > 127).astype(np.uint8), num_levels=2)
    bits = data.binarize_dataset(binary, jax.random.key(0), method=method)
    np.testing.assert_array_equal(bits.train, binary.train)
    np.testing.assert_array_equal(bits.test, binary.test)


def test_unknown_binarization_lists_the_choices():
    with pytest.raises(ValueError) as error:
        data.binarize_dataset(dataset_of(IMAGES), jax.random.key(0), method="static")
    for part in ("'static'", *data.BINARIZATIONS):
        assert part in message(error)


# Synthetic images


def test_synthetic():
    dataset = data.load("synthetic")
    assert dataset.train.shape == (2048, 784) and dataset.test.shape == (512, 784)
    assert dataset.train.dtype == np.uint8 and dataset.train_labels.dtype == np.int32
    assert (dataset.data_shape, dataset.num_levels) == ((28, 28), 256)
    assert dataset.train.min() == 0 and dataset.train.max() == 255
    # Edges are smooth: there are all levels, though few pixels are neither 0 nor 255.
    assert len(np.unique(dataset.train)) == 256
    assert 0.05 < dataset.train.mean() / 255 < 0.2
    frame = np.ones((28, 28), bool)
    frame[1:-1, 1:-1] = False
    assert not dataset.train[:, frame.ravel()].any()
    assert len(np.unique(dataset.train, axis=0)) == 2048


def test_synthetic_labels_are_the_kinds():
    dataset = data.synthetic(4000, 1)
    images = dataset.train.reshape(-1, 28, 28) / 255
    for kind in range(4):
        assert within_five_standard_errors(dataset.train_labels == kind, 0.25)
    bar, cross, disc, ring = (images[dataset.train_labels == kind] for kind in range(4))
    area = [shape.sum(axis=(1, 2)).mean() for shape in (bar, cross, disc, ring)]
    assert area[0] < area[1] and area[3] < area[2]
    # The centre of mass is white in all kinds but the ring.
    for shape, white in ((bar, 1), (cross, 1), (disc, 1), (ring, 0)):
        rows, columns = centres(shape)
        centre = shape[np.arange(len(shape)), rows, columns]
        assert abs(np.median(centre) - white) < 0.1


def centres(images):
    axis = np.arange(28)
    total = images.sum(axis=(1, 2))
    rows = (images.sum(axis=2) @ axis) / total
    columns = (images.sum(axis=1) @ axis) / total
    return np.rint(rows).astype(int), np.rint(columns).astype(int)


def test_synthetic_image_depends_on_seed_and_index_only():
    few, many = data.synthetic(300, 40, seed=3), data.synthetic(700, 20, seed=3)
    np.testing.assert_array_equal(few.train, many.train[:300])
    np.testing.assert_array_equal(few.train_labels, many.train_labels[:300])
    np.testing.assert_array_equal(few.test[:20], many.test)
    assert (data.load("synthetic", seed=3).train[:300] == few.train).all()
    assert (data.load("synthetic", seed=4).train[:300] != few.train).any()
    assert (few.train[:40] != few.test).any()


@pytest.mark.parametrize("sizes", [(0, 5), (5, 0), (-1, 5)])
def test_synthetic_refuses(sizes):
    with pytest.raises(ValueError, match=f"at least 1, got {sizes[0]} and {sizes[1]}"):
        data.synthetic(*sizes)


@pytest.mark.long
def test_importing_needs_neither_network_nor_tensorflow_datasets():
    code = (
        "import sys; from vae_jax import data; data.load('digits'); "
        "print([m for m in ('tensorflow', 'tensorflow_datasets', 'requests') "
        "if m in sys.modules])"
    )
    root = Path(data.__file__).parents[2]
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True
    )
    assert out.stdout.strip() == "[]", out.stderr
