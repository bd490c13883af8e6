"""Counts as data: which arrays are counts, and what is refused."""

import re

import numpy as np
import pytest

from vae_jax import data

RNG = np.random.default_rng(0)
COUNTS = RNG.negative_binomial(1, 0.01, size=(30, 4))


@pytest.mark.parametrize("dtype", ["uint16", "int32", "int64", "uint64"])
def test_wide_integers_are_counts(tmp_path, dtype):
    np.save(tmp_path / "mine.npy", COUNTS.astype(dtype))
    dataset = data.load(tmp_path / "mine.npy")
    assert dataset.values == "counts" and dataset.num_levels is None
    assert dataset.train.dtype == np.float32 and dataset.data_shape == (4,)
    assert [column.kind for column in dataset.columns] == ["count"] * 4
    both = np.concatenate([dataset.train, dataset.test])
    assert sorted(map(tuple, both)) == sorted(map(tuple, COUNTS))
    assert f"{dtype} data are counts, from 0 to {COUNTS.max()}" in dataset.notes


@pytest.mark.parametrize("dtype", ["bool", "uint8", "float32", "float64"])
def test_whole_numbers_of_any_type_can_be_counts(tmp_path, dtype):
    x = (COUNTS > 50).astype(dtype)
    np.savez(tmp_path / "mine.npz", x=x, x_test=x, num_levels=2)
    dataset = data.load(tmp_path / "mine.npz", values="counts")
    assert dataset.values == "counts"
    np.testing.assert_array_equal(dataset.train, x)
    np.savez(tmp_path / "mine.npz", x=x, x_test=x)
    assert data.load(tmp_path / "mine.npz").values != "counts"


def test_grey_levels_of_a_named_data_set_can_be_counts():
    dataset, digits = data.load("digits", values="counts"), data.load("digits")
    np.testing.assert_array_equal(dataset.train, digits.train)
    assert (dataset.values, digits.values) == ("counts", "levels")
    assert dataset.data_shape == (8, 8) and len(dataset.columns) == 64
    with pytest.raises(ValueError, match="values must be 'counts' or None, got 'cou"):
        data.load("digits", values="count")


def test_a_test_set_of_wider_integers_makes_both_counts(tmp_path):
    """As 8 bits its values would wrap around."""
    narrow = np.minimum(COUNTS, 255).astype(np.uint8)
    np.savez(tmp_path / "mine.npz", x=narrow, x_test=COUNTS.astype(np.uint16))
    dataset = data.load(tmp_path / "mine.npz")
    np.testing.assert_array_equal(dataset.test, COUNTS)
    assert dataset.values == "counts" and dataset.test.max() > 255


def test_wide_integers_of_declared_levels_are_levels(tmp_path):
    x = COUNTS % 17
    np.savez(tmp_path / "mine.npz", x=x, num_levels=17)
    dataset = data.load(tmp_path / "mine.npz")
    assert (dataset.values, dataset.num_levels) == ("levels", 17)
    np.savez(tmp_path / "mine.npz", x=x - 1, num_levels=17)
    with pytest.raises(ValueError, match="levels must be from 0 on, got -1"):
        data.load(tmp_path / "mine.npz")


@pytest.mark.parametrize("value", [-1, 0.5, np.inf, 2**24 + 1])
@pytest.mark.parametrize("key", ["x", "x_test"])
def test_what_is_no_count_is_refused_with_its_place(tmp_path, value, key):
    arrays = {"x": COUNTS.astype(float), "x_test": COUNTS.astype(float)}
    arrays[key] = arrays[key].copy()
    arrays[key][7, 2] = value
    np.savez(tmp_path / "mine.npz", **arrays)
    place = re.escape(f"got {float(value)} in row 7, column 2")
    expected = "finite" if value == np.inf else f"{key} must hold counts, .* {place}"
    with pytest.raises(ValueError, match=expected):
        data.load(tmp_path / "mine.npz", values="counts")


def test_signed_and_unsigned_integers_do_not_mix(tmp_path):
    np.savez(tmp_path / "mine.npz", x=COUNTS, x_test=COUNTS.astype(np.uint16))
    with pytest.raises(ValueError, match="x_test must be like x"):
        data.load(tmp_path / "mine.npz")


def test_counts_have_no_grey_levels_to_binarize():
    import jax

    dataset, key = data.load("digits", values="counts"), jax.random.key(0)
    assert data.binarize_dataset(dataset, key, method="none") is dataset
    for method in ("dynamic", "fixed", "threshold"):
        with pytest.raises(ValueError, match="are counts, no grey levels"):
            data.binarize_dataset(dataset, key, method=method)
