"""Tables as data: what columns are taken to hold, and one line for what is wrong."""

import json
import re

import numpy as np
import pandas as pd
import pytest
import scipy.sparse

from vae_jax import data

RNG = np.random.default_rng(0)
FRAME = pd.DataFrame(
    {
        "height": RNG.normal(170, 10, size=60).round(2),
        "visits": RNG.poisson(4, size=60),
        "income": np.exp(RNG.normal(8, 3, size=60)).round(2),
        "smoker": RNG.integers(0, 2, size=60),
        "sex": np.array(["f", "m"])[RNG.integers(0, 2, size=60)],
        "city": np.array(["Bonn", "Kiel", "Ulm"])[np.arange(60) % 3],
        "loss": RNG.integers(-5, 5, size=60),
    }
)
KINDS = ["real", "count", "positive", "binary", "binary", "categorical", "real"]


def both(dataset):
    """All rows of a data set, in an order of their values."""
    rows = np.concatenate([dataset.train, dataset.test])
    return rows[np.lexsort(rows.T)]


def coded():
    x = FRAME.copy()
    x["sex"] = (x["sex"] == "m").astype(int)
    x["city"] = x["city"].map({"Bonn": 0, "Kiel": 1, "Ulm": 2})
    rows = x.to_numpy(np.float32)
    return rows[np.lexsort(rows.T)]


def write(folder, ending):
    path = folder / f"people.{ending}"
    if ending == "csv":
        FRAME.to_csv(path, index=False)
    else:
        FRAME.to_parquet(path)
    return path


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_columns_are_inferred(tmp_path, ending):
    dataset = data.load(write(tmp_path, ending))
    assert [column.name for column in dataset.columns] == list(FRAME)
    assert [column.kind for column in dataset.columns] == KINDS
    assert dataset.columns[5].categories == ("Bonn", "Kiel", "Ulm")
    np.testing.assert_array_equal(both(dataset), coded())
    assert dataset.data_shape == (7,) and dataset.values == "mixed"
    assert len(dataset.train) == 54 and dataset.train.dtype == np.float32
    notes = "\n".join(dataset.notes)
    assert re.search(r"column city +categorical +Bonn, Kiel, Ulm", notes)
    assert "6 random examples" in notes


def test_a_script_has_the_same_table_as_a_file(tmp_path):
    from_file = data.load(write(tmp_path, "csv"))
    for table in (FRAME, dict(FRAME), FRAME.astype({"city": "category"})):
        dataset = data.from_table(table)
        np.testing.assert_array_equal(dataset.train, from_file.train)
        assert dataset.columns == from_file.columns
    rows = data.from_table(FRAME[["height", "loss"]].to_numpy())
    assert rows.columns[0] == data.Column("0", "real")


def test_kinds_can_be_given(tmp_path):
    schema = {
        "city": {"kind": "ordinal", "categories": ["Ulm", "Kiel", "Bonn"]},
        "visits": "real",
        "sex": "label",
        "loss": "ignore",
        "smoker": "categorical",
    }
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    with pytest.raises(ValueError, match="got a path: read the file with data.read"):
        data.load(write(tmp_path, "csv"), columns=tmp_path / "schema.json")
    columns = data.read_columns(tmp_path / "schema.json")
    dataset = data.load(write(tmp_path, "csv"), columns=columns)
    kinds = {column.name: column.kind for column in dataset.columns}
    assert kinds == {
        "height": "real",
        "visits": "real",
        "income": "positive",
        "smoker": "categorical",
        "city": "ordinal",
    }
    assert set(np.unique(dataset.train_labels)) == {0, 1}
    assert len(dataset.test_labels) == 6
    names = data.decode_table(dataset.train, dataset.columns)["city"]
    order = np.random.default_rng(0).permutation(60)[:54]
    assert names.tolist() == FRAME["city"].to_numpy()[order].tolist()


@pytest.mark.parametrize(
    "texts",
    [
        ("250.0", "250.00", "250.1", "250.10"),
        ("02139", "10001", "94110", "99501"),
        ("01", "1", "10", "010"),
    ],
    ids=["decimals", "leading zeros", "both"],
)
def test_texts_of_categories_are_not_merged_as_numbers(texts):
    table = {"code": list(texts) * 10, "height": np.arange(40.0)}
    found = data.from_table(table, columns={"code": "categorical"})
    assert found.columns[0].categories == tuple(sorted(texts))
    names = data.decode_table(found.train, found.columns)["code"]
    assert set(names) == set(texts)
    labelled = data.from_table(table, columns={"code": "label"})
    assert set(labelled.train_labels) == {0, 1, 2, 3}


def test_underscores_make_no_numbers():
    table = {"name": ["1_2", "12x", "2_1", "21"] * 10, "height": np.arange(40.0)}
    found = data.from_table(table)
    assert found.columns[0] == data.Column(
        "name", "categorical", ("12x", "1_2", "21", "2_1")
    )


def test_codes_without_a_category_are_refused():
    columns = (data.Column("size", "ordinal", ("S", "M", "L")),)
    for code in (-1, 3):
        with pytest.raises(ValueError, match=f"from 0 to 2, got {code}"):
            data.decode_table(np.array([[code]]), columns)


@pytest.mark.parametrize("dtype", [int, float, str, "category"])
def test_labels_are_in_the_order_of_numbers(dtype):
    numbers = np.arange(60) % 12
    order = np.random.default_rng(0).permutation(60)[:54]
    for first, step in ((0, 1), (-3, 5)):
        series = pd.Series(first + step * numbers).astype(dtype)
        found = data.from_table(FRAME.assign(y=series), columns={"y": "label"})
        np.testing.assert_array_equal(found.train_labels, numbers[order])
        said = [note for note in found.notes if "are numbered" in note]
        assert bool(said) == (first == -3)
    assert re.match(r"labels of column 'y' are numbered: 0 = -3\S*, 1 = 2", said[0])
    assert said[0].endswith(", ...")
    texts = data.from_table(FRAME, columns={"city": "label"})
    np.testing.assert_array_equal(texts.train_labels, order % 3)
    cities = sorted(FRAME["city"].unique())
    listed = ", ".join(f"{code} = {city}" for code, city in enumerate(cities))
    assert f"labels of column 'city' are numbered: {listed}" in texts.notes


@pytest.mark.parametrize("missing", ["error", "mask"])
def test_a_missing_label_is_refused(tmp_path, missing):
    numbers = pd.Series(np.arange(60) % 3.0).mask(np.arange(60) == 4)
    for column, line in ((numbers, "row 4"), (FRAME["city"].mask(numbers.isna()), "")):
        frame = FRAME.assign(y=column)
        with pytest.raises(ValueError, match=f"'y', {line}.*: the label is missing"):
            data.from_table(frame, columns={"y": "label"}, missing=missing)
    frame.to_csv(tmp_path / "y.csv", index=False)
    with pytest.raises(ValueError, match="y.csv': column 'y', line 6: the label is"):
        data.load(tmp_path / "y.csv", columns={"y": "label"}, missing=missing)


def test_a_categorical_dtype_says_categories_and_order(tmp_path):
    sizes = pd.CategoricalDtype(["S", "M", "L", "XL"], ordered=True)
    places = pd.CategoricalDtype([30, 10, 20])
    frame = pd.DataFrame(
        {
            "size": pd.Series(["L", "S", "M"] * 10).astype(sizes),
            "place": pd.Series([10, 20, 30] * 10).astype(places),
            "grade": pd.Series([2.5, 1.5] * 15).astype("category"),
        }
    )
    codes = np.stack([frame[name].cat.codes for name in frame], 1).astype(np.float32)
    expected = (
        data.Column("size", "ordinal", ("S", "M", "L", "XL")),
        data.Column("place", "categorical", ("30", "10", "20")),
        data.Column("grade", "binary", ("1.5", "2.5")),
    )
    holes = frame.mask(np.random.default_rng(1).random(frame.shape) < 0.2)
    order = np.random.default_rng(0).permutation(30)[:27]
    for dataset in (
        data.from_table(frame),
        data.from_table(frame, columns={"size": "ordinal"}),
        data.from_table(holes, missing="mask"),
    ):
        assert dataset.columns == expected
        present = ~np.isnan(dataset.train)
        np.testing.assert_array_equal(dataset.train[present], codes[order][present])
    np.testing.assert_array_equal(~present, holes.isna().to_numpy()[order])
    # A file keeps categories that are texts.
    frame.to_parquet(tmp_path / "sizes.parquet")
    assert data.load(tmp_path / "sizes.parquet").columns[0] == expected[0]
    # A caller's word counts more.
    given = data.from_table(frame, columns={"place": "count", "size": "ignore"})
    assert given.columns == (data.Column("place", "count"), expected[2])
    np.testing.assert_array_equal(given.train[:, 0], frame["place"].to_numpy()[order])


def test_names_of_rows_are_no_categories_in_a_categorical_dtype_either():
    names = pd.Series([f"id{row}" for row in range(60)]).astype("category")
    frame = FRAME.assign(name=names)
    with pytest.raises(ValueError, match="'name' has 60 different texts in 60 rows"):
        data.from_table(frame)
    given = data.from_table(frame, columns={"name": "categorical"})
    assert len(given.columns[-1].categories) == 60


def test_columns_of_another_table_code_alike_and_nothing_else_passes(tmp_path):
    known = data.from_table(FRAME).columns
    fewer = FRAME[FRAME["city"] != "Bonn"]
    again = data.from_table(fewer, columns=known)
    assert set(np.unique(again.train[:, 5])) == {1, 2} and again.columns == known
    shuffled = data.from_table(fewer[list(FRAME)[::-1]], columns=known)
    np.testing.assert_array_equal(shuffled.train, again.train)
    with pytest.raises(ValueError, match="columns 'age' are unknown: .* height, vis"):
        data.from_table(FRAME.assign(age=1.5), columns=known)
    with pytest.raises(ValueError, match="'city' is given and not in the table"):
        data.from_table(FRAME.drop(columns="city"), columns=known)
    with pytest.raises(ValueError, match="'city', row 1: 'Rom' is none of Bonn, Kiel"):
        data.from_table(FRAME.replace("Kiel", "Rom"), columns=known)


def test_floats_beyond_the_unit_interval_are_real_columns(tmp_path):
    x = RNG.normal(size=(40, 3)) * 100
    np.savez(tmp_path / "mine.npz", x=x, x_test=x[:7], y=np.arange(40))
    dataset = data.load(tmp_path / "mine.npz")
    np.testing.assert_array_equal(dataset.test, np.float32(x[:7]))
    np.testing.assert_array_equal(dataset.train_labels, np.arange(40))
    assert dataset.values == "reals" and len(dataset.columns) == 3
    np.save(tmp_path / "mine.npy", np.abs(x))
    given = {"0": "real", "1": "positive", "2": "ignore"}
    chosen = data.load(tmp_path / "mine.npy", columns=given)
    assert [column.kind for column in chosen.columns] == ["real", "positive"]
    assert chosen.data_shape == (2,)
    np.save(tmp_path / "images.npy", x.reshape(40, 3, 1))
    assert data.load(tmp_path / "images.npy").data_shape == (3, 1)


@pytest.mark.parametrize("has_test", [False, True])
def test_a_label_column_of_an_array_gives_labels_and_the_others_are_counts(
    tmp_path, has_test
):
    x = np.stack([RNG.integers(0, 2, 40), RNG.poisson(5, 40), np.arange(40) % 12], 1)
    rest = {"x_test": x[::-1][:9]} if has_test else {}
    np.savez(tmp_path / "mine.npz", x=x, **rest)
    given = {"columns": {"2": "label"}, "values": "counts"}
    dataset = data.load(tmp_path / "mine.npz", **given)
    order = np.random.default_rng(0).permutation(40)
    train, test = (x, x[::-1][:9]) if has_test else (x[order[:36]], x[order[36:]])
    np.testing.assert_array_equal(dataset.train, train[:, :2])
    np.testing.assert_array_equal(dataset.test, test[:, :2])
    np.testing.assert_array_equal(dataset.train_labels, train[:, 2])
    np.testing.assert_array_equal(dataset.test_labels, test[:, 2])
    assert dataset.values == "counts" and dataset.data_shape == (2,)
    np.savez(tmp_path / "both.npz", x=x, y=x[:, 2], **rest)
    with pytest.raises(ValueError, match="columns has a 'label', and the file .* y"):
        data.load(tmp_path / "both.npz", **given)


def test_a_wrong_value_of_an_array_is_told_by_its_own_row(tmp_path):
    x = np.abs(RNG.normal(size=(40, 2)))
    x[7, 1] = x[9, 0] = -99
    np.save(tmp_path / "mine.npy", x)
    with pytest.raises(ValueError, match="column '1', row 7 of x: must be positive"):
        data.load(tmp_path / "mine.npy", columns={"1": "positive"})
    np.savez(tmp_path / "mine.npz", x=x[:9], x_test=x)
    with pytest.raises(ValueError, match="column '0', row 9 of x_test: must be pos"):
        data.load(tmp_path / "mine.npz", columns={"0": "positive"})


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_a_sparse_matrix_of_counts(tmp_path, dtype):
    x = RNG.poisson(0.3, size=(50, 6))
    for make in (scipy.sparse.csr_matrix, scipy.sparse.coo_array):
        scipy.sparse.save_npz(tmp_path / "counts.npz", make(x.astype(dtype)))
        rows = x[np.lexsort(x.T)]
        for values in (None, "counts"):
            dataset = data.load(tmp_path / "counts.npz", values=values)
            np.testing.assert_array_equal(both(dataset), rows)
            assert dataset.values == "counts"
        real = np.where(x, x + 0.5, 0).astype("float32")
        scipy.sparse.save_npz(tmp_path / "real.npz", make(real))
        assert data.load(tmp_path / "real.npz").values == "reals"


def test_a_table_of_counts(tmp_path):
    pd.DataFrame(RNG.poisson(3, size=(30, 2)), columns=["a", "b"]).to_csv(
        tmp_path / "genes.csv", index=False
    )
    assert data.load(tmp_path / "genes.csv", values="counts").values == "counts"


BAD_CSV = {
    "ragged": ("a,b\n1.5,2\n3.5\n", "line 3 has 1 values, and the header 2"),
    "too long": ("a,b\n1.5,2\n3.5,4,5\n", "line 3 has 3 values, and the header 2"),
    "text": ("a,b\n1.5,2\n2.5,3\nx,4\n3.5,5\n", "column 'a', line 4: 'x' is no number"),
    "all missing": ("a,b\n1.5,\n2.5,NA\n", "column 'b' has no value in any row"),
    "missing": (
        "a,b\n1.5,1\n,2\n3.5,3\n",
        "column 'a', line 3: a value is missing: missing='mask'",
    ),
    "constant": ("a,b\n1.5,7.5\n2.5,7.5\n3.5,7.5\n", "column 'b' is 7.5 in all rows"),
    "duplicate": ("a,a\n1.5,2\n2.5,3\n", "two columns are named 'a'"),
    "duplicate after a space": ("a, a\n1.5,2\n2.5,3\n", "two columns are named 'a'"),
    "semicolons": ("a;b\n1.5;2.5\n3.1;4\n", "separated by commas, got ';' in the hea"),
    "decimal commas": ("a;b\n1,5;2,5\n", "separated by commas, got ';' in the header"),
    "dates": (
        "a,b\n" + "".join(f"{d}.5,2020-01-{d:02d}\n" for d in range(1, 29)),
        "'b' has 28 different texts .* or write dates as numbers",
    ),
    "not a number": ("a,b\n1.5,n/a\n2.5,3.5\n4.5,6\n", "line 2: a value is missing"),
    "no name": ("a,\n1.5,2\n2.5,3\n", "column 1 has no name in the header"),
    "empty": ("", "no rows"),
    "header only": ("a,b\n", "no rows below its header"),
    "infinite": ("a,b\n1.5,2\ninf,3\n2.5,4\n", "column 'a', line 3: must be finite"),
    "one category": ("a,b\n1.5,x\n2.5,x\n", "column 'b', line 2: all rows are 'x'"),
    "names of rows": (
        "a,b\n" + "".join(f"{row}.5,id{row}\n" for row in range(40)),
        "column 'b' has 40 different texts in 40 rows",
    ),
    "quote": ('a,b\n1.5,"2\n', "line"),
    "offset": (
        "a,b\n1000000.5,1.5\n1000000.6,2.5\n1000000.7,4.5\n",
        "column 'a' varies by .* float32 keeps too few digits",
    ),
}


@pytest.mark.parametrize("name", BAD_CSV)
def test_a_bad_csv_is_one_line(tmp_path, name):
    text, expected = BAD_CSV[name]
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=expected) as error:
        data.load(path)
    assert str(error.value).startswith(f"dataset {str(path)!r}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "schema, expected",
    [
        ({"loss": "positive"}, r"'loss', row \d+: must be positive, got -\d"),
        ({"loss": "count"}, r"'loss', row \d+: must be a count, .* got -"),
        ({"height": "count"}, "'height', row 0: must be a count, .* got 171.26"),
        ({"height": "count"}, "the kind 'ignore' if it numbers the rows"),
        ({"city": "real"}, "'city', row 0: 'Bonn' is no number"),
        ({"city": "binary"}, "'city', row 0: a binary column must have 2 values"),
        ({"city": "ordinal"}, "'city', row 0: 'Bonn' is no number, .* 'categories'"),
        ({"city": {"kind": "ordinal", "category": []}}, "'city' must be a kind, or"),
        ({"city": {"kind": "ordinal", "categories": 3}}, "'city' must be a kind, or "),
        ({"city": {"kind": "ordinal", "categories": {"Ulm"}}}, "'city' must be a kind"),
        ({"city": {"kind": "ordinal", "categories": "Ulm"}}, "'city' must be a kind, "),
        ({"city": None}, "column 'city' must be a kind, or .* got None"),
        ({"city": "colour"}, "'city' must be of a kind real, .* got 'colour'"),
        ({"town": "ignore"}, "'town' is given and not in the table, which has height"),
        ({"city": {"kind": "real", "categories": ["a"]}}, "'city': categories must"),
        (
            {"city": {"kind": "ordinal", "categories": ["Ulm", "Ulm"]}},
            "'city': categories must be different",
        ),
        (
            {"city": {"kind": "categorical", "categories": ["Ulm", "Bonn"]}},
            "'city', row 1: 'Kiel' is none of Ulm, Bonn",
        ),
        ({name: "ignore" for name in FRAME}, "no column is left"),
    ],
)
def test_kinds_that_do_not_fit_are_refused(schema, expected):
    with pytest.raises(ValueError, match=expected):
        data.from_table(FRAME, columns=schema)


@pytest.mark.parametrize(
    "table, expected",
    [
        (np.zeros(3), r"must be \[n, D\], .* got \[3\]"),
        (np.zeros((0, 3)), "not empty"),
        ({"a": np.zeros(3), "b": np.zeros(2)}, "of one length"),
        (
            pd.DataFrame(np.zeros((3, 2)), columns=["a", "a"]),
            "two columns are named 'a'",
        ),
        ({"a": np.zeros(3, complex)}, "'a' must hold numbers or texts, got complex"),
        (pd.DataFrame({"a": [[1], [2]]}), "'a' must hold numbers or texts"),
    ],
)
def test_what_is_no_table_is_refused(table, expected):
    with pytest.raises(ValueError, match=expected):
        data.from_table(table)


def test_other_files_and_schemas_that_cannot_be_read(tmp_path):
    for name in ("none.csv", "none.parquet"):
        with pytest.raises(ValueError, match="No such file"):
            data.load(tmp_path / name)
    (tmp_path / "bad.parquet").write_text("no parquet")
    with pytest.raises(ValueError, match="no readable .parquet file"):
        data.load(tmp_path / "bad.parquet")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ValueError, match="columns '.*bad.json'"):
        data.read_columns(tmp_path / "bad.json")
    (tmp_path / "list.json").write_text("3")
    with pytest.raises(ValueError, match="must hold kinds by the names .* got int"):
        data.read_columns(tmp_path / "list.json")
    with pytest.raises(ValueError, match="columns are of a file, and dataset is 'dig"):
        data.load("digits", columns={})


def test_an_annotated_matrix(tmp_path):
    anndata = pytest.importorskip("anndata", reason="anndata is not installed")
    x = scipy.sparse.csr_matrix(RNG.poisson(0.5, size=(40, 5)).astype(np.float32))
    cells = anndata.AnnData(x)
    cells.var_names = [f"gene {number}" for number in range(5)]
    for frame in (cells.obs, cells.var):  # Arrow strings of pandas 3 are not written.
        frame.index = frame.index.astype(object)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    for values in (None, "counts"):
        dataset = data.load(tmp_path / "cells.h5ad", values=values)
        assert dataset.values == "counts" and dataset.columns[4].name == "gene 4"
        assert dataset.train.sum() + dataset.test.sum() == x.sum()


def holes():
    """The table with a fifth of its values missing."""
    return FRAME.mask(np.random.default_rng(1).random(FRAME.shape) < 0.2)


def test_missing_values_are_nan_and_kinds_are_as_without(tmp_path):
    frame = holes()
    frame.to_csv(tmp_path / "holes.csv", index=False)
    frame.to_parquet(tmp_path / "holes.parquet")
    whole = data.from_table(FRAME)
    for table in ("holes.csv", "holes.parquet"):
        dataset = data.load(tmp_path / table, missing="mask")
        assert [column.kind for column in dataset.columns] == KINDS
        present = ~np.isnan(dataset.train)
        np.testing.assert_array_equal(dataset.train[present], whole.train[present])
        order = np.random.default_rng(0).permutation(60)[:54]
        np.testing.assert_array_equal(~present, frame.isna().to_numpy()[order])
        assert any(re.search(r"loss .*, \d+.\d% missing", n) for n in dataset.notes)
        names = data.decode_table(dataset.train, dataset.columns)["city"]
        assert (names == None).any() and set(names) == {None, "Bonn", "Kiel", "Ulm"}  # noqa: E711
        with pytest.raises(ValueError, match="a value is missing"):
            data.load(tmp_path / table)


@pytest.mark.parametrize("values", [None, "counts"])
def test_rows_of_numbers_may_have_holes(tmp_path, values):
    x = RNG.integers(0, 2, size=(40, 3)).astype(float)
    x[RNG.random(x.shape) < 0.2] = np.nan
    np.savez(tmp_path / "x.npz", x=x, x_test=x)
    dataset = data.load(tmp_path / "x.npz", missing="mask", values=values)
    np.testing.assert_array_equal(dataset.test, x)
    assert dataset.values == (values or "reals")
    with pytest.raises(ValueError, match="x must be finite"):
        data.load(tmp_path / "x.npz", values=values)
    with pytest.raises(ValueError, match="missing='mask' is of a file"):
        data.load("digits", missing="mask")
    with pytest.raises(ValueError, match="missing must be 'error' or 'mask', got 'm'"):
        data.load("digits", missing="m")


def test_positive_values_that_float32_takes_for_0_are_refused():
    table = {"mass": np.r_[1e-60, np.geomspace(1e-20, 1, 29)]}
    with pytest.raises(ValueError, match="'mass', row 0: 1e-60 is too small"):
        data.from_table(table)


@pytest.mark.parametrize(
    "values, expected",
    [
        ([1.0, np.nan, 2.0], "column 'dose', row 1: the covariate is missing"),
        ([1.0, np.inf, 2.0], "column 'dose', row 1: must be finite"),
        (["a", "b", "c"], "column 'dose', row 0: 'a' is no number"),
    ],
)
def test_what_no_covariate_may_hold(values, expected):
    table = {"size": np.arange(30.0) ** 2, "dose": np.array(values * 10)}
    for missing in ("error", "mask"):
        with pytest.raises(ValueError, match=expected):
            data.from_table(table, columns={"dose": "covariate"}, missing=missing)
