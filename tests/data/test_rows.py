"""Files that stay on disk: the same data set as in memory, and the same refusals."""

import jax
import numpy as np
import pytest

from vae_jax import data
from vae_jax.data import files, rows, tables
from vae_jax.data.memory import bytes_of_file

RNG = np.random.default_rng(0)
GREY = RNG.integers(256, size=(60, 4, 3)).astype(np.uint8)
REALS = RNG.normal(3, 2, size=(60, 5))
HOLES = np.where(RNG.random(REALS.shape) < 0.2, np.nan, REALS)
COUNTS = RNG.poisson(4, size=(60, 5)).astype(np.uint16)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Three rows or less at once, so that all that is read in blocks is in many."""
    monkeypatch.setattr(rows, "_BLOCK", 30)


def both(folder, x, **options):
    """The data set of a file in memory, and that of the file as it lies."""
    np.save(folder / "x.npy", x)
    return (
        data.load(folder / "x.npy", memory_map=memory_map, **options)
        for memory_map in (False, True)
    )


@pytest.mark.parametrize(
    "x, options",
    [
        (GREY, {}),
        (GREY > 99, {}),
        (GREY / 255, {}),
        ((GREY / 255).astype(">f4"), {}),
        (COUNTS, {}),
        (COUNTS.astype(float), {"values": "counts"}),
        (REALS, {}),
        (np.asfortranarray(REALS), {"seed": 3}),
        (HOLES, {"missing": "mask"}),
        (np.round(HOLES + 9), {"missing": "mask", "values": "counts"}),
    ],
    ids=lambda value: f"{value.dtype}" if hasattr(value, "dtype") else None,
)
def test_a_mapped_file_is_the_same_data_set(tmp_path, x, options):
    kept, mapped = both(tmp_path, x, **options)
    assert isinstance(mapped.train, data.Rows) and not isinstance(kept.train, data.Rows)
    for name in kept._fields:
        if name == "train":
            assert mapped.train.dtype == kept.train.dtype
            assert mapped.train.nbytes == kept.train.nbytes
        if name in ("train", "test"):
            np.testing.assert_array_equal(getattr(kept, name), getattr(mapped, name))
        else:
            assert getattr(kept, name) == getattr(mapped, name), name
    aside = [data.hold_out(one, 7) for one in (kept, mapped)]
    assert isinstance(aside[1].train, data.Rows)
    np.testing.assert_array_equal(aside[0].train, aside[1].train)
    np.testing.assert_array_equal(aside[0].validation, aside[1].validation)
    np.testing.assert_array_equal(kept.train[3:9:2], mapped.train[3:9:2])
    np.testing.assert_array_equal(kept.train[4], mapped.train[4])


@pytest.mark.long
@pytest.mark.parametrize("method", data.BINARIZATIONS)
def test_bits_of_a_mapped_file(tmp_path, method):
    key = jax.random.key(0)
    kept, mapped = (
        data.binarize_dataset(one, key, method=method) for one in both(tmp_path, GREY)
    )
    assert isinstance(mapped.train, data.Rows)
    np.testing.assert_array_equal(kept.train, mapped.train)
    np.testing.assert_array_equal(kept.test, mapped.test)


LATE = np.where(np.arange(60)[:, None] == 58, 0.5, COUNTS)


@pytest.mark.parametrize(
    "x, options, expected",
    [
        (np.where(REALS > 5, np.nan, REALS), {}, "x must be finite"),
        (np.where(REALS > 5, np.inf, REALS), {"missing": "mask"}, "x must be finite"),
        (REALS * 1e39, {}, "x must lie within float32, 3.40282e.38, got"),
        (LATE, {"values": "counts"}, "whole numbers .* got 0.5 in row 58, column 0"),
        (
            LATE,
            {"values": "counts", "missing": "mask"},
            "whole numbers .* got 0.5 in row 58, column 0",
        ),
        (
            REALS * [1, 1, 0, 1, 1] + 2,
            {},
            "column '2' is 2 in all rows to train on",
        ),
        (
            HOLES * [1, 1, np.nan, 1, 1],
            {"missing": "mask"},
            "column '2' has no value in any row",
        ),
        (REALS + 1e7, {}, "column '0' varies by .* float32 keeps too few digits"),
        (GREY.astype(complex), {}, "x must be bool, integers"),
        (GREY[:1], {}, "at least 2 examples"),
        (REALS, {"columns": {"0": "ignore"}}, "columns are of a table in memory"),
    ],
)
def test_what_a_mapped_file_must_not_hold(tmp_path, x, options, expected):
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(ValueError, match=expected):
        data.load(tmp_path / "x.npy", memory_map=True, **options)


def test_only_a_npy_is_mapped(tmp_path):
    np.savez(tmp_path / "x.npz", x=GREY)
    for name in (tmp_path / "x.npz", "digits"):
        with pytest.raises(ValueError, match="memory_map is of a .npy file"):
            data.load(name, memory_map=True)
    (tmp_path / "x.npy").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="no readable .npy file"):
        data.load(tmp_path / "x.npy", memory_map=True)


def test_a_file_that_changes_is_not_read_on(tmp_path):
    np.save(tmp_path / "x.npy", GREY)
    dataset = data.load(tmp_path / "x.npy", memory_map=True)
    with (tmp_path / "x.npy").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(ValueError, match="x.npy was written to while it was in use"):
        dataset.train[:2]


def test_moments_in_blocks_are_numpys():
    found = tables.column_moments(HOLES)
    expected = [np.nanmin, np.nanmax, np.nanmean, np.nanstd]
    np.testing.assert_array_equal(found.num_observed, (~np.isnan(HOLES)).sum(axis=0))
    for values, function in zip(found[1:], expected, strict=True):
        np.testing.assert_allclose(values, function(HOLES, axis=0), rtol=1e-13)


def test_no_more_is_tested_on_than_is_read_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "VALUES_AT_ONCE", 4 * 12)
    for dataset in both(tmp_path, GREY):
        assert (len(dataset.train), len(dataset.test)) == (56, 4)
        assert any("4 random examples" in note for note in dataset.notes)


def test_spacing_is_the_least_that_fits(monkeypatch):
    monkeypatch.setattr(rows, "VALUES_AT_ONCE", 20 * 12)
    x = GREY.reshape(60, 12)
    assert [rows.spacing(x[:n]) for n in (20, 21, 40, 41, 60)] == [1, 2, 2, 3, 3]
    assert all(len(x[:n][:: rows.spacing(x[:n])]) <= 20 for n in range(1, 61))


def test_bytes_of_a_file_are_those_of_its_header(tmp_path):
    np.save(tmp_path / "x.npy", REALS)
    assert bytes_of_file(tmp_path / "x.npy") == 300 * (8 + 4)
