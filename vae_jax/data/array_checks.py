"""Validate the examples and labels in a user's arrays.

No function here copies an array, because a mapped file may be larger than the memory.
"""

import numpy as np

from vae_jax.data.columns import require_counts


def bounds(x: np.ndarray) -> tuple[float, float]:
    """Smallest and largest value, ignoring NaN.

    Args:
      x: numbers, any shape.

    Returns:
      Minimum and maximum; NaN if all values are NaN.

    Example:
      >>> import numpy as np
      >>> from vae_jax.data.array_checks import bounds
      >>> bounds(np.array([2.0, np.nan, 1.0]))
      (1.0, 2.0)
    """
    return float(np.fmin.reduce(x, axis=None)), float(np.fmax.reduce(x, axis=None))


def largest_value(arrays: dict[str, np.ndarray]) -> int:
    """Largest value of all examples.

    Args:
      arrays: `x` and optionally `x_test`, whole numbers.

    Returns:
      An integer.

    Example:
      >>> import numpy as np
      >>> from vae_jax.data.array_checks import largest_value
      >>> largest_value({"x": np.array([[1, 7]])})
      7
    """
    return max(int(arrays[key].max()) for key in ("x", "x_test") if key in arrays)


def check_arrays(
    arrays: dict[str, np.ndarray], values: str | None, missing: str = "error"
) -> None:
    """Raise ValueError if arrays are not the examples and labels of one data set.

    Args:
      arrays: `x` and optionally `x_test`, `y`, `y_test` and `num_levels`.
      values: `counts` requires counts, and `num_levels` is then not checked.
      missing: `mask` allows NaN.

    Raises:
      ValueError: invalid arrays; the message states the key and the expected content.

    Example:
      >>> import numpy as np
      >>> from vae_jax.data.array_checks import check_arrays
      >>> check_arrays({"x": np.zeros((2, 3)), "y": np.arange(2)}, None)
    """
    for key in ("x", "x_test"):
        if key in arrays:
            _check_examples(key, arrays[key], values, missing, like=arrays["x"])
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
        if int(labels.min()) < -(2**31) or int(labels.max()) >= 2**31:
            values = f"{labels.min()} to {labels.max()}"
            raise ValueError(f"{key} must be integers of 32 bits, got {values}")
    if "num_levels" in arrays and values != "counts":
        _check_num_levels(arrays)


def _check_num_levels(arrays: dict[str, np.ndarray]) -> None:
    """Raise ValueError if `num_levels` is inconsistent with the examples."""
    x, declared = arrays["x"], arrays["num_levels"]
    if declared.dtype.kind not in "iu" or declared.shape != ():
        raise ValueError(f"num_levels must be an integer, got {_describe(declared)}")
    if x.dtype.kind == "f":
        raise ValueError(f"num_levels goes with uint8 examples, got {_describe(x)}")
    lowest = min(int(arrays[key].min()) for key in ("x", "x_test") if key in arrays)
    if lowest < 0:
        raise ValueError(f"levels must be from 0 on, got {lowest}")
    least = max(largest_value(arrays) + 1, 2)
    if not least <= int(declared) <= 256:
        raise ValueError(
            f"num_levels must be from {least}, as the largest value of the examples "
            f"asks, to 256, got {declared}"
        )


def _check_examples(
    key: str, x: np.ndarray, values: str | None, missing: str, *, like: np.ndarray
) -> None:
    """Raise ValueError if `x` is not examples of the shape and kind of `like`."""
    if x.ndim < 2 or x.size == 0:
        expected = "[n, D] or [n, *data_shape], and not empty"
        raise ValueError(f"{key} must be {expected}, got {_describe(x)}")
    is_float = x.dtype.kind == "f"
    if x.dtype.kind not in "fiub":
        expected = "bool, integers, or floats in [0, 1]"
        raise ValueError(f"{key} must be {expected}, got {_describe(x)}")
    if is_float and not _are_finite(x, missing):
        raise ValueError(f"{key} must be finite, got NaN or infinity")
    if values == "counts":
        require_counts(x, key)
    if x.shape[1:] != like.shape[1:] or x.dtype.kind != like.dtype.kind:
        raise ValueError(f"{key} must be like x, {_describe(like)}, got {_describe(x)}")


def _are_finite(x: np.ndarray, missing: str) -> bool:
    """Whether all floats are finite, ignoring NaN if missing values are masked."""
    low = np.fmin if missing == "mask" else np.minimum
    ends = [end.reduce(x, axis=None, initial=0) for end in (low, np.fmax)]
    return bool(np.isfinite(ends).all())


def _describe(array: np.ndarray) -> str:
    """Dtype and shape, as in `uint8[60000, 784]`."""
    return f"{array.dtype}{list(array.shape)}"
