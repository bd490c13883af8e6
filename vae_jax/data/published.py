"""Published data sets: MNIST, Fashion-MNIST, KMNIST, and binarized MNIST.

URLs and sha256 digests are those of tensorflow-datasets, which downloads and verifies
the files; the digests are verified again on every load. TensorFlow is not used.
"""

import contextlib
import gzip
import hashlib
import math
import os
import tempfile
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np

from vae_jax.data.dataset import Dataset

_PROBE_SECONDS = 3
# Suffixes of a file as published, and of one compressed by the user.
ENDS = ("", ".gz")


class DataUnavailable(ValueError):
    """A published data set is not on this machine and cannot be downloaded.

    Attributes:
      reason: why the download failed, in a few words.
    """

    def __init__(self, name: str, reason: str, missing: list[Path]):
        files = ", ".join(path.name for path in missing)
        super().__init__(
            f"{name} cannot be had, {reason}: put {files} into "
            f"{str(missing[0].parent)!r}, or choose --dataset=digits"
        )
        self.reason = reason


class Publication(NamedTuple):
    """Files of a published data set.

    Attributes:
      files: names of the files.
      read: `f(name, contents) -> Dataset`, with the contents in the order of `files`.
    """

    files: tuple[str, ...]
    read: Callable[[str, list[bytes]], Dataset]


def load_published(name: str, data_dir: Path) -> Dataset:
    """Load a published data set, downloading missing files."""
    publication = PUBLISHED[name]
    try:
        paths = [_locate(name, data_dir, file) for file in publication.files]
        missing = [path for path in paths if not path.exists()]
        if missing:
            _download(name, missing)
        contents = [_read_verified(name, path) for path in paths]
    except OSError as error:
        raise ValueError(f"data_dir {str(data_dir)!r}: {error}") from error
    return publication.read(name, contents)


def _from_idx(name: str, contents: list[bytes]) -> Dataset:
    """Build a data set from the IDX files of MNIST and its variants."""
    arrays = [parse_idx(gzip.decompress(content)) for content in contents]
    train, train_labels, test, test_labels = arrays
    return Dataset(
        name,
        train.reshape(len(train), -1),
        test.reshape(len(test), -1),
        train_labels.astype(np.int32),
        test_labels.astype(np.int32),
        data_shape=train.shape[1:],
        num_levels=256,
    )


def _from_amat(name: str, contents: list[bytes]) -> Dataset:
    """Build a data set from bits as text, with the rows shuffled in a fixed order.

    The files are sorted by class: an ELBO of the first thousand rows of a split differs
    from that of all rows by several nats.
    """
    train, validation, test = map(parse_amat, contents)
    orders = np.random.default_rng(0)
    train, validation, test = map(orders.permutation, (train, validation, test))
    side = math.isqrt(train.shape[1])
    return Dataset(
        name,
        train,
        test,
        None,
        None,
        data_shape=(side, side),
        num_levels=2,
        validation=validation,
    )


_IDX = Publication(
    (
        "train-images-idx3-ubyte.gz",
        "train-labels-idx1-ubyte.gz",
        "t10k-images-idx3-ubyte.gz",
        "t10k-labels-idx1-ubyte.gz",
    ),
    _from_idx,
)
PUBLISHED = {
    "mnist": _IDX,
    "fashion_mnist": _IDX,
    "kmnist": _IDX,
    "binarized_mnist": Publication(
        (
            "binarized_mnist_train.amat",
            "binarized_mnist_valid.amat",
            "binarized_mnist_test.amat",
        ),
        _from_amat,
    ),
}


def _locate(name: str, data_dir: Path, file: str) -> Path:
    """Path of a published file, possibly compressed, or its download destination."""
    own = data_dir / name / file
    places = (own, data_dir / file)
    candidates = [place.with_name(place.name + end) for place in places for end in ENDS]
    return next((path for path in candidates if path.exists()), own)


def _registered(name: str) -> dict[str, tuple[str, Any]]:
    """URL, and size and sha256, of each published file by its name."""
    import tensorflow_datasets as tfds

    url_infos: Any = tfds.builder_cls(name).url_infos
    return {info.filename: (url, info) for url, info in url_infos.items()}


def _read_verified(name: str, path: Path) -> bytes:
    """Read a file, undo any compression by the user, and verify its sha256."""
    registered = _registered(name)
    file = path.name if path.name in registered else path.stem
    _, info = registered[file]
    content = path.read_bytes()
    if path.name != file:
        # Limit the length, because the file may unpack to any size.
        with contextlib.suppress(EOFError, gzip.BadGzipFile, zlib.error):
            with gzip.open(path) as unpacked:
                content = unpacked.read(int(info.size) + 1)
    found = hashlib.sha256(content).hexdigest()
    if found == info.checksum:
        return content
    owners = {
        other_info.checksum: f"this is {other}'s {file}"
        for other in PUBLISHED
        for file, (_, other_info) in _registered(other).items()
    }
    raise ValueError(
        f"{path} is not {name}'s: sha256 {info.checksum[:12]} expected, {found[:12]} "
        f"found; {owners.get(found, 'it is cut off or damaged')}"
    )


def _download(name: str, missing: list[Path]) -> None:
    """Download published files; each is moved into place only after verification."""
    import requests
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import DownloadError, DownloadManager
    from tensorflow_datasets.core.download.download_manager import (
        NonMatchingChecksumError,
    )

    registered = _registered(name)
    urls = [registered[path.name][0] for path in missing]
    host = urlsplit(urls[0]).hostname
    obstacle = _why_unreachable(urls[0])
    if obstacle is not None:
        reason = f"{host} cannot be reached ({obstacle})"
        raise DataUnavailable(name, reason, missing)
    tfds.disable_progress_bar()
    folder = missing[0].parent
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as draft:
        manager = DownloadManager(
            download_dir=draft,
            url_infos=dict(registered.values()),
            force_checksums_validation=True,
        )
        # Sequentially, so that no other file is being written if one fails.
        for position, (path, url) in enumerate(zip(missing, urls, strict=True)):
            try:
                fetched = manager.download(url)
            except (
                requests.RequestException,
                DownloadError,
                NonMatchingChecksumError,
            ) as error:
                reason = f"{host} did not send {path.name} ({type(error).__name__})"
                raise DataUnavailable(name, reason, missing[position:]) from error
            os.replace(fetched, path)


def _why_unreachable(url: str) -> str | None:
    """Reason why a URL cannot be read, with a timeout; None if it can."""
    import requests

    outcome: list[str | None] = [f"no answer in {_PROBE_SECONDS} seconds"]

    def probe() -> None:
        try:
            answer = requests.head(url, timeout=_PROBE_SECONDS, allow_redirects=True)
            outcome[0] = None if answer.ok else f"HTTP status {answer.status_code}"
        except Exception as error:
            outcome[0] = type(error).__name__

    # A thread, because DNS lookups have no timeout; a daemon, because Python waits for
    # other threads at exit.
    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(_PROBE_SECONDS)
    return outcome[0]


def parse_idx(content: bytes) -> np.ndarray:
    """Parse an IDX file (the format of MNIST): a header, then unsigned bytes.

    Args:
      content: content of the file, decompressed.

    Returns:
      uint8, of the shape in the header.

    Raises:
      ValueError: not an IDX file of unsigned bytes, or the number of values does not
        match the shape.

    Example:
      >>> from vae_jax import data
      >>> data.parse_idx(bytes([0, 0, 8, 1, 0, 0, 0, 2, 5, 7])).tolist()
      [5, 7]
    """
    # Two zeros, the type (8: unsigned bytes), the number of axes, the size of each.
    num_axes = content[3] if len(content) > 3 else 0
    sizes, values = content[4 : 4 + 4 * num_axes], content[4 + 4 * num_axes :]
    if content[:3] != b"\0\0\x08" or len(sizes) < 4 * num_axes:
        raise ValueError(f"no IDX file of unsigned bytes: it begins {content[:8]!r}")
    shape = tuple(np.frombuffer(sizes, ">u4").tolist())
    if len(values) != math.prod(shape):
        raise ValueError(f"IDX file of shape {shape} holds {len(values)} values")
    return np.frombuffer(values, np.uint8).reshape(shape)


def parse_amat(content: bytes) -> np.ndarray:
    r"""Parse lines of zeros and ones separated by spaces, one example per line.

    Args:
      content: content of the file.

    Returns:
      uint8, `[n, D]`.

    Raises:
      ValueError: other characters, or lines of different lengths.

    Example:
      >>> from vae_jax.data.published import parse_amat
      >>> parse_amat(b"0 1 1\n1 0 0\n").tolist()
      [[0, 1, 1], [1, 0, 0]]
    """
    characters = np.frombuffer(content, np.uint8)
    width = content.find(b"\n") + 1
    if not width or width % 2 or len(content) % width:
        raise ValueError(f"must be lines of bits of equal length, got {content[:8]!r}")
    lines = characters.reshape(-1, width)
    bits, between = lines[:, ::2], lines[:, 1:-1:2]
    if not (
        np.isin(bits, (ord("0"), ord("1"))).all()
        and (between == ord(" ")).all()
        and (lines[:, -1] == ord("\n")).all()
    ):
        raise ValueError("bits must be 0 and 1 with single spaces between them")
    return bits - ord("0")
