"""Data sets as arrays in memory, and how grey pixels become bits.

Nothing here knows of models. An example is a row of `D` values: integers from 0 to
`num_levels - 1`, or floats in [0, 1]. A model sees `to_unit_interval` of them.

MNIST, Fashion-MNIST and KMNIST are kept as the four gzip files that their authors
published. tensorflow-datasets knows where they are and what their sha256 is, fetches
them and verifies them; every reading verifies them again. TensorFlow takes no part.

`digits.npz` beside this file is scikit-learn's `load_digits`: the test set of
"Optical Recognition of Handwritten Digits" by E. Alpaydin and C. Kaynak (1998), UCI
Machine Learning Repository, under CC BY 4.0.
"""

import gzip
import hashlib
import math
import os
import tempfile
import threading
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import jax
import jax.numpy as jnp
import numpy as np

# Published as MNIST is: the name here, and the class in tensorflow-datasets.
_PUBLISHED = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "kmnist": "KMNIST"}
_PUBLISHED_FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
_PROBE_SECONDS = 3
# What is read of a user's `.npz`.
_FILE_KEYS = ("x", "x_test", "y", "y_test")

NAMES = ("auto", *_PUBLISHED, "digits", "synthetic")
BINARIZATIONS = ("dynamic", "fixed", "threshold", "none")


class DataUnavailable(ValueError):
    """A published data set that is neither on this machine nor to be downloaded.

    Attributes:
      reason: why not, in a few words.
    """

    def __init__(self, name: str, reason: str, missing: list[Path]):
        files = ", ".join(path.name for path in missing)
        super().__init__(
            f"{name} cannot be had, {reason}: put {files} into "
            f"{str(missing[0].parent)!r}, or choose --dataset=digits"
        )
        self.reason = reason


class Dataset(NamedTuple):
    """Training and test examples.

    Attributes:
      name: what every figure about it is labelled with.
      train: `[n, D]`, uint8 or float32.
      test: `[m, D]`, likewise.
      train_labels: `[n]`, int32; None where there are none.
      test_labels: `[m]`, likewise.
      data_shape: shape of one example; its product is D.
      num_levels: integers run from 0 to `num_levels - 1`; None for floats in [0, 1].
      notes: sentences to be told to whoever asked for the data.
    """

    name: str
    train: np.ndarray
    test: np.ndarray
    train_labels: np.ndarray | None
    test_labels: np.ndarray | None
    data_shape: tuple[int, ...]
    num_levels: int | None
    notes: tuple[str, ...] = ()


def load(name: str | Path, *, data_dir: str | Path = "data", seed: int = 0) -> Dataset:
    """Loads a data set by its name, or from a user's file.

    A `.npz` file holds `x` and, where there are such, `x_test`, `y` and `y_test`; a
    `.npy` file is `x`. Examples are `[n, D]` or `[n, *data_shape]`: bool, uint8, or
    floats in [0, 1]; labels are integers. Without `x_test` a random tenth is set aside.

    Args:
      name: one of `NAMES`, or a path ending in `.npz` or `.npy`. `auto` is MNIST, or
        `digits` where MNIST cannot be had, which the notes say.
      data_dir: holds the published files, in a folder of the data set's name or
        directly; what is missing is downloaded into the former.
      seed: of the synthetic data, and of the split of a file without `x_test`.

    Returns:
      A `Dataset`.

    Raises:
      DataUnavailable: a published data set is neither there nor to be downloaded.
      ValueError: an unknown name, a file that is not what it should be, or a
        negative seed.

    Example:
      >>> from vae_jax import data
      >>> digits = data.load("digits")
      >>> digits.train.shape, digits.data_shape, digits.num_levels
      ((1437, 64), (8, 8), 17)
    """
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    name, data_dir = str(name), Path(data_dir).expanduser()
    if name.endswith((".npz", ".npy")):
        return _load_file(Path(name).expanduser(), seed)
    if name in _PUBLISHED:
        return _load_published(name, data_dir)
    if name == "auto":
        return _load_mnist_or_digits(data_dir)
    if name == "digits":
        return _load_digits()
    if name == "synthetic":
        return synthetic(seed=seed)
    raise ValueError(
        f"dataset must be one of {', '.join(NAMES)}, or a path ending in .npz or "
        f".npy, got {name!r}"
    )


def to_unit_interval(x: jax.Array | np.ndarray, num_levels: int | None) -> jax.Array:
    """Values as a model sees them: value / (num_levels - 1), in [0, 1].

    Args:
      x: `[..., D]`, integers; or floats, which stay as they are.
      num_levels: of the `Dataset`.

    Returns:
      `[..., D]`, float32 for integers.

    Example:
      >>> import numpy as np
      >>> from vae_jax import data
      >>> data.to_unit_interval(np.array([0, 4, 16], np.uint8), 17).tolist()
      [0.0, 0.25, 1.0]
    """
    if num_levels is None:
        return jnp.asarray(x)
    return jnp.asarray(x, jnp.float32) / (num_levels - 1)


def binarize(x: jax.Array | np.ndarray, key: jax.Array) -> jax.Array:
    """Draws each value from Bernoulli(value): fresh bits within a training step.

    Args:
      x: probabilities, `[..., D]`.
      key: PRNG key, consumed once.

    Returns:
      Zeros and ones, `[..., D]`, in the dtype of `x`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax import data
      >>> data.binarize(jnp.array([0.0, 1.0]), jax.random.key(0)).tolist()
      [0.0, 1.0]
    """
    x = jnp.asarray(x)
    return jax.random.bernoulli(key, x).astype(x.dtype)


def binarize_dataset(dataset: Dataset, key: jax.Array, *, method: str) -> Dataset:
    """Turns grey values into bits, as far as that is done once and not at every step.

    - `dynamic`: training images stay grey, for `binarize` at every step; test images
      are drawn once, as 0 or `num_levels - 1`, for both splits share one scale.
    - `fixed`: both are drawn once.
    - `threshold`: both are 1 from half of `num_levels - 1` on.
    - `none`: both stay grey.

    A draw is Bernoulli(value / (num_levels - 1)). Image i is drawn with a key of its
    own, so that its bits do not depend on how many images there are.

    Args:
      dataset: grey or binary images.
      key: PRNG key of the draws; `threshold` and `none` draw nothing.
      method: one of `BINARIZATIONS`.

    Returns:
      A `Dataset`: uint8 of 2 levels for `fixed` and `threshold`.

    Raises:
      ValueError: an unknown method.

    Example:
      >>> import jax
      >>> from vae_jax import data
      >>> digits = data.load("digits")
      >>> bits = data.binarize_dataset(digits, jax.random.key(0), method="threshold")
      >>> bits.num_levels, int(bits.train.max())
      (2, 1)
    """
    if method not in BINARIZATIONS:
        choices = ", ".join(BINARIZATIONS)
        raise ValueError(f"binarization must be one of {choices}, got {method!r}")
    if method == "none":
        return dataset
    train, test, num_levels = dataset.train, dataset.test, dataset.num_levels
    largest = 1 if num_levels is None else num_levels - 1
    train_key, test_key = jax.random.split(key)
    if method == "dynamic":
        bits = _draw_images(test, num_levels, test_key)
        return dataset._replace(test=np.where(bits, largest, 0).astype(test.dtype))
    if method == "fixed":
        train = _draw_images(train, num_levels, train_key)
        test = _draw_images(test, num_levels, test_key)
    else:
        train, test = train >= largest / 2, test >= largest / 2
    return dataset._replace(
        train=train.astype(np.uint8), test=test.astype(np.uint8), num_levels=2
    )


def _draw_images(x: np.ndarray, num_levels: int | None, key: jax.Array) -> np.ndarray:
    """Bernoulli draws of `[n, D]`, row i with `fold_in(key, i)`."""

    def draw(index: jax.Array, image: jax.Array) -> jax.Array:
        image_key = jax.random.fold_in(key, index)
        return binarize(to_unit_interval(image, num_levels), image_key).astype(bool)

    # A thousand at once: the random numbers of all would be far larger than the bits.
    chunks = [slice(start, start + 1000) for start in range(0, len(x), 1000)]
    index = np.arange(len(x))
    return np.concatenate([jax.vmap(draw)(index[chunk], x[chunk]) for chunk in chunks])


def synthetic(num_train: int = 2048, num_test: int = 512, *, seed: int = 0) -> Dataset:
    """Bars, crosses, discs and rings, 28x28 with 256 levels, made from a seed.

    Each has a place, an angle, a length and a width: five continuous causes for a
    model to find, and the kind of shape, which is the label.

    Args:
      num_train: n.
      num_test: m.
      seed: image i of a split depends on this and on nothing else.

    Returns:
      A `Dataset`.

    Raises:
      ValueError: a number of images below 1.

    Example:
      >>> from vae_jax import data
      >>> data.synthetic(num_train=3, num_test=1).train.shape
      (3, 784)
    """
    if min(num_train, num_test) < 1:
        given = f"{num_train} and {num_test}"
        raise ValueError(f"num_train and num_test must be at least 1, got {given}")
    train, train_labels = _draw_shapes(np.random.default_rng([seed, 0]), num_train)
    test, test_labels = _draw_shapes(np.random.default_rng([seed, 1]), num_test)
    return Dataset(
        "synthetic", train, test, train_labels, test_labels, (28, 28), num_levels=256
    )


def _draw_shapes(
    rng: np.random.Generator, num_images: int
) -> tuple[np.ndarray, np.ndarray]:
    """Images `[n, 784]` of random shapes, and the kinds of those."""
    causes = rng.random((num_images, 6), dtype=np.float32)
    kinds = (4 * causes[:, 0]).astype(np.int32)
    # A few at once, so that the distances of all pixels stay in the cache.
    chunks = [slice(start, start + 250) for start in range(0, num_images, 250)]
    images = [_render(kinds[chunk], causes[chunk, 1:]) for chunk in chunks]
    return np.concatenate(images), kinds


def _render(kinds: np.ndarray, causes: np.ndarray) -> np.ndarray:
    """Shapes `[n, 784]`, smooth over one pixel, of causes `[n, 5]` in [0, 1)."""
    row, column, angle, length, width = causes.T[:, :, None]
    rows, columns = np.divmod(np.arange(28 * 28, dtype=np.float32), 28)
    down, right = rows - (10 + 7 * row), columns - (10 + 7 * column)
    cosine, sine = np.cos(np.pi * angle), np.sin(np.pi * angle)
    along = np.abs(right * cosine + down * sine)
    across = np.abs(down * cosine - right * sine)
    length, width = 4 + 4 * length, 1 + 2 * width
    # Distance in pixels from the edge of each shape, negative within.
    bar = np.maximum(along - length, across - width)
    cross = np.minimum(bar, np.maximum(across - length, along - width))
    disc = 2 * width * (np.hypot(along / length, across / (2 * width)) - 1)
    ring = np.abs(disc + 0.75) - 0.75
    distances = np.stack([bar, cross, disc, ring])
    distance = distances[kinds, np.arange(len(kinds))]
    return np.rint(255 * np.clip(0.5 - distance, 0, 1)).astype(np.uint8)


def _load_digits() -> Dataset:
    """The handwritten digits that come with the package."""
    with np.load(Path(__file__).with_name("digits.npz")) as arrays:
        x, y = arrays["x"], arrays["y"].astype(np.int32)
    return Dataset(
        "digits", x[:1437], x[1437:], y[:1437], y[1437:], (8, 8), num_levels=17
    )


def _load_mnist_or_digits(data_dir: Path) -> Dataset:
    """MNIST, or else the digits and a note."""
    try:
        return _load_published("mnist", data_dir)
    except DataUnavailable as error:
        note = (
            f"MNIST cannot be had here, {error.reason}: training on scikit-learn's "
            "8x8 handwritten digits instead"
        )
        return _load_digits()._replace(notes=(note,))


def _load_published(name: str, data_dir: Path) -> Dataset:
    """A data set in MNIST's format, downloaded as far as it is not there."""
    try:
        paths = [_locate(name, data_dir, file) for file in _PUBLISHED_FILES]
        missing = [path for path in paths if not path.exists()]
        if missing:
            _download(name, missing)
        contents = [gzip.decompress(_read_verified(name, path)) for path in paths]
    except OSError as error:
        raise ValueError(f"data_dir {str(data_dir)!r}: {error}") from error
    train, train_labels, test, test_labels = map(parse_idx, contents)
    return Dataset(
        name,
        train.reshape(len(train), -1),
        test.reshape(len(test), -1),
        train_labels.astype(np.int32),
        test_labels.astype(np.int32),
        data_shape=train.shape[1:],
        num_levels=256,
    )


def _locate(name: str, data_dir: Path, file: str) -> Path:
    """Where a published file is, or where it is to be."""
    own, shared = data_dir / name / file, data_dir / file
    return shared if shared.exists() and not own.exists() else own


def _registered(name: str) -> dict[str, tuple[str, Any]]:
    """URL, and size and sha256, of each published file."""
    import tensorflow_datasets as tfds

    builder = getattr(tfds.image_classification, _PUBLISHED[name])
    return {info.filename: (url, info) for url, info in builder.url_infos.items()}


def _read_verified(name: str, path: Path) -> bytes:
    """The content of a published file, if its sha256 is that of the publication."""
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    _, info = _registered(name)[path.name]
    if found == info.checksum:
        return content
    owners = {
        other_info.checksum: f"this is {other}'s {file}"
        for other in _PUBLISHED
        for file, (_, other_info) in _registered(other).items()
    }
    raise ValueError(
        f"{path} is not {name}'s: sha256 {info.checksum[:12]} expected, {found[:12]} "
        f"found; {owners.get(found, 'it is cut off or damaged')}"
    )


def _download(name: str, missing: list[Path]) -> None:
    """Fetches published files; each is in its place verified and whole, or not."""
    import requests
    import tensorflow_datasets as tfds

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
        manager = tfds.download.DownloadManager(
            download_dir=draft,
            url_infos=dict(registered.values()),
            force_checksums_validation=True,
        )
        # One by one: when one fails, none is still being written.
        for position, (path, url) in enumerate(zip(missing, urls, strict=True)):
            try:
                fetched = manager.download(url)
            except (
                requests.RequestException,
                tfds.download.DownloadError,
                tfds.core.download.download_manager.NonMatchingChecksumError,
            ) as error:
                reason = f"{host} did not send {path.name} ({type(error).__name__})"
                raise DataUnavailable(name, reason, missing[position:]) from error
            os.replace(fetched, path)


def _why_unreachable(url: str) -> str | None:
    """Why a URL cannot be read, known within seconds; None where it can."""
    import requests

    outcome: list[str | None] = [f"no answer in {_PROBE_SECONDS} seconds"]

    def probe() -> None:
        try:
            answer = requests.head(url, timeout=_PROBE_SECONDS, allow_redirects=True)
            outcome[0] = None if answer.ok else f"HTTP status {answer.status_code}"
        except Exception as error:
            outcome[0] = type(error).__name__

    # A thread, for looking up a host's name has no timeout; a daemon, for Python
    # would wait for any other when it ends.
    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(_PROBE_SECONDS)
    return outcome[0]


def parse_idx(content: bytes) -> np.ndarray:
    """The array in a file of MNIST's format, IDX: a header, then unsigned bytes.

    Args:
      content: the file, decompressed.

    Returns:
      uint8, of the shape that the header says.

    Raises:
      ValueError: another format, or another number of values than the shape has.

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


def _load_file(path: Path, seed: int) -> Dataset:
    """A user's data set."""
    try:
        return _from_arrays(path.stem, _read_arrays(path), seed)
    except (OSError, ValueError) as error:
        raise ValueError(f"dataset {str(path)!r}: {error}") from error


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a `.npz` that are of use, or that of a `.npy` as `x`."""
    with path.open("rb") as file:
        try:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray) != (path.suffix == ".npy"):
                raise ValueError("it is the other of .npz and .npy")
            if isinstance(loaded, np.ndarray):
                return {"x": loaded}
            arrays = {key: loaded[key] for key in _FILE_KEYS if key in loaded}
        # A damaged archive fails in a dozen ways.
        except Exception as error:
            raise ValueError(f"no readable {path.suffix} file: {error}") from error
    if "x" not in arrays:
        raise ValueError(f"it must have a key x, got {', '.join(loaded) or 'none'}")
    return arrays


def _from_arrays(name: str, arrays: dict[str, np.ndarray], seed: int) -> Dataset:
    """A data set of `x` and what there is of `x_test`, `y` and `y_test`."""
    _check_arrays(arrays)
    notes = []
    if "x_test" not in arrays:
        arrays = _set_aside(arrays, seed)
        notes.append(
            f"no x_test: {len(arrays['x_test'])} random examples of x, drawn by seed "
            f"{seed}, are the test set"
        )
    x, x_test = arrays["x"], arrays["x_test"]
    dtype, num_levels = np.float32, None
    if x.dtype.kind != "f":
        dtype, num_levels = np.uint8, 2 if max(x.max(), x_test.max()) <= 1 else 256
    if x.dtype == np.uint8 and num_levels == 2:
        notes.append("uint8 data without a value over 1: taken as binary (2 levels)")
    y, y_test = (
        arrays[key].astype(np.int32) if key in arrays else None
        for key in ("y", "y_test")
    )
    return Dataset(
        name,
        np.asarray(x, dtype).reshape(len(x), -1),
        np.asarray(x_test, dtype).reshape(len(x_test), -1),
        y,
        y_test,
        x.shape[1:],
        num_levels,
        tuple(notes),
    )


def _set_aside(arrays: dict[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
    """The arrays, with the last tenth of a random order as test examples."""
    num_examples = len(arrays["x"])
    if num_examples < 2:
        raise ValueError("x without x_test must have at least 2 examples, got 1")
    order = np.random.default_rng(seed).permutation(num_examples)
    train, test = np.split(order, [-max(1, num_examples // 10)])
    return {
        key + suffix: values[indices]
        for key, values in arrays.items()
        for suffix, indices in (("", train), ("_test", test))
    }


def _check_arrays(arrays: dict[str, np.ndarray]) -> None:
    """Refuses what cannot be the examples and labels of one data set."""
    for key in ("x", "x_test"):
        if key in arrays:
            _check_examples(key, arrays[key], like=arrays["x"])
    for key, of in (("y", "x"), ("y_test", "x_test")):
        if key not in arrays:
            continue
        if of not in arrays:
            raise ValueError(f"it has {key} without {of}")
        num_examples, labels = len(arrays[of]), arrays[key]
        if labels.dtype.kind not in "iu" or labels.shape != (num_examples,):
            raise ValueError(
                f"{key} must be integers, one for each of {num_examples} examples, "
                f"got {_describe(labels)}"
            )


def _check_examples(key: str, x: np.ndarray, *, like: np.ndarray) -> None:
    """Refuses what are no examples, or not of the kind of `like`."""
    if x.ndim < 2 or x.size == 0:
        expected = "[n, D] or [n, *data_shape], and not empty"
        raise ValueError(f"{key} must be {expected}, got {_describe(x)}")
    is_float = x.dtype.kind == "f"
    if not is_float and x.dtype not in (np.uint8, np.bool_):
        expected = "bool, uint8, or floats in [0, 1]"
        raise ValueError(f"{key} must be {expected}, got {_describe(x)}")
    if is_float and not np.isfinite(x).all():
        raise ValueError(f"{key} must be finite, got NaN or infinity")
    if is_float and (x.min() < 0 or x.max() > 1):
        values = f"{x.min():g} to {x.max():g}"
        raise ValueError(f"{key} must be floats in [0, 1], got {values}")
    if x.shape[1:] != like.shape[1:] or x.dtype.kind != like.dtype.kind:
        raise ValueError(f"{key} must be like x, {_describe(like)}, got {_describe(x)}")


def _describe(array: np.ndarray) -> str:
    """Dtype and shape, as in `uint8[60000, 784]`."""
    return f"{array.dtype}{list(array.shape)}"
