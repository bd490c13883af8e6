"""Counts and tables from the command to the evaluation."""

import dataclasses
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest

import vae_jax
from experiments import (
    calibration,
    datasets,
    defaults,
    evaluate,
    evaluation_data,
    mnist,
    predictive,
    sweep,
)
from experiments.evaluation import elbo_figures, evaluation_keys
from experiments.runner import run_folder
from vae_jax import data

PBMC = Path(__file__).resolve().parents[3] / "shared/data/pbmc_counts"
SMALL = {
    "epochs": 2,
    "hidden_dims": (8,),
    "latent_dim": 2,
    "evaluation_samples": 20,
    "batch_size": 50,
}


@pytest.fixture
def counts(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.poisson(np.exp(rng.normal(1, 1, size=(120, 1)) + np.zeros(6)))
    np.savez(tmp_path / "cells.npz", x=x.astype(np.uint16))
    return str(tmp_path / "cells.npz")


@pytest.mark.long
def test_counts_train_and_are_evaluated(counts, tmp_path, capsys):
    folder = tmp_path / "run"
    # Three latents: an integral over two is seconds of work.
    config = mnist.Config(
        dataset=counts,
        likelihood="auto",
        run_dir=str(folder),
        **(SMALL | {"latent_dim": 3}),
    )
    results = mnist.run(config)
    printed = capsys.readouterr().out
    assert "uint16 data are counts" in printed
    assert "6, counts, negative_binomial likelihood" in printed
    chosen = json.loads((folder / "config.json").read_text())
    assert (chosen["likelihood"], chosen["binarization"]) == (
        "negative_binomial",
        "none",
    )
    # A log-probability, whatever the units.
    assert np.isfinite(results["test_elbo"]) and results["test_elbo"] < 0
    names = {path.stem for path in (folder / "figures").iterdir()}
    assert names == {"training_curves"}
    params = vae_jax.load_run(folder)
    assert params.spec.likelihood == vae_jax.NegativeBinomial()
    found = evaluate.run(
        evaluate.Config(
            str(folder),
            evaluation_samples=20,
            num_annealed=0,
            num_simulated=0,
            num_gap=2,
            gap_steps=2,
            fitted_components=2,
        )
    )
    assert found["elbo"] == pytest.approx(results["test_elbo"], abs=1e-4)
    names = {path.stem for path in (folder / "figures").iterdir()}
    assert names >= {"training_curves", "diagnostics", "posterior_predictive"}
    assert not names & {"reconstructions", "samples", "samples_fitted_prior"}
    checked = found["posterior_predictive"]
    test = datasets.load(config).test
    np.testing.assert_allclose(checked["mean"]["observed"], test.mean(0), rtol=1e-5)
    assert checked["zeros_of_all"]["observed"] == pytest.approx((test == 0).mean())
    inside = [
        low <= mean <= high
        for low, mean, high in zip(
            checked["mean"]["lower"],
            checked["mean"]["observed"],
            checked["mean"]["upper"],
            strict=True,
        )
    ]
    assert checked["mean"]["inside"] == pytest.approx(np.mean(inside))
    evaluated = capsys.readouterr().out
    assert "in the 95% predictive interval" in evaluated
    # Rows of a table are no images.
    assert "12 test examples" in evaluated
    assert not re.search(r"\bimages?\b", printed + evaluated)
    # The same command finds the run complete.
    again = mnist.run(dataclasses.replace(config, likelihood="negative_binomial"))
    assert again["test_elbo"] == results["test_elbo"]


@pytest.mark.long
def test_dimensions_without_a_statistic_are_left_out_of_the_check():
    params = vae_jax.init(
        vae_jax.ModelSpec(likelihood=vae_jax.Poisson(), data_shape=(2,)),
        jax.random.key(0),
    )
    x = np.float32([[0, 1], [0, 3], [0, 2]])
    found = predictive.predictive_figures(params, x, None, jax.random.key(1))
    assert found is not None and np.isnan(found["dispersion"]["observed"][0])
    assert found["dispersion"]["inside"] in (0, 1)
    nowhere = found | {"dispersion": found["dispersion"] | {"lower": [np.nan] * 2}}
    for figures, shown in ((found, 1), (nowhere, 0)):
        drawn = {axes.get_title("left"): axes for axes in predictive.draw(figures).axes}
        lines = drawn["dispersion"].lines if shown else ()
        assert ("dispersion" in drawn) == bool(shown)
        points = [line for line in lines if line.get_marker() == "."]
        assert sum(len(line.get_xdata()) for line in points) == shown


@pytest.mark.long
def test_a_sweep_of_counts(counts, tmp_path):
    small = SMALL | {"evaluation_samples": 0, "dataset": counts, "likelihood": "auto"}
    folder = str(tmp_path / "sweep")
    results = sweep.run(sweep.Config(run_dir=folder, beta=(0.5, 1.0), **small))
    assert all(np.isfinite(model["test_elbo"]) for model in results["models"])
    params = vae_jax.load_run(folder, model=1)
    assert params.spec.likelihood == vae_jax.NegativeBinomial()


@pytest.mark.slow
@pytest.mark.skipif(not PBMC.is_dir(), reason="no ../shared/data/pbmc_counts")
def test_real_counts_vary_more_than_poisson(tmp_path):
    """Held-out log p(x) of cells: overdispersed counts against Poisson ones."""
    found = {}
    for name in ("poisson", "negative_binomial"):
        found[name] = mnist.run(
            mnist.Config(
                dataset=str(PBMC / "pbmc_10k_top1000.npz"),
                likelihood=name,
                run_dir=str(tmp_path / name),
                epochs=60,
                hidden_dims=(64,),
                latent_dim=10,
                evaluation_samples=200,
            )
        )["importance_weighted_log_likelihood"]
    assert found["negative_binomial"] > found["poisson"] + 20


KINDS = ("real", "positive", "count", "binary", "categorical", "ordinal")


def test_each_kind_of_column_has_its_family():
    columns = [data.Column(kind, kind, ("a", "b", "c")) for kind in KINDS * 2]
    parts = vae_jax.Columns.of_table(columns).parts
    names = [type(family).__name__ for family, _ in parts]
    reals = ["Standardized", "LogNormal"]
    assert names == [*reals, "NegativeBinomial", "Bernoulli", "Nominal", "Ordinal"]
    assert [at for _, at in parts] == [(number, number + 6) for number in range(6)]
    with pytest.raises(ValueError, match="got 'age' of kind 'covariate'"):
        vae_jax.Columns.of_table([data.Column("age", "covariate")])


@pytest.mark.long
def test_a_mixed_table_trains_and_is_evaluated(tmp_path, capsys):
    rng = np.random.default_rng(0)
    z = rng.normal(size=150)
    lines = ["age,visits,sex,id"] + [
        f"{40 + 9 * a:.1f},{rng.poisson(np.exp(a))},{'fm'[int(a > 0)]},{row}"
        for row, a in enumerate(z)
    ]
    (tmp_path / "people.csv").write_text("\n".join(lines))
    (tmp_path / "schema.json").write_text('{"id": "ignore"}')
    folder = tmp_path / "run"
    config = mnist.Config(
        dataset=str(tmp_path / "people.csv"),
        columns=str(tmp_path / "schema.json"),
        likelihood="auto",
        run_dir=str(folder),
        **SMALL,
    )
    results = mnist.run(config)
    printed = capsys.readouterr().out
    assert "column sex     binary       f, m" in printed
    assert "3, mixed, columns likelihood" in printed
    params = vae_jax.load_run(folder)
    # The moments are the training split's, saved with the model.
    order = np.random.default_rng(0).permutation(150)[:-15]
    ages = np.array([float(line.split(",")[0]) for line in lines[1:]])[order]
    assert params.likelihood["shift_0"] == pytest.approx(ages.mean(), rel=1e-5)
    drawn = vae_jax.generate(params, jax.random.key(0), num_samples=50, sample=True)
    table = data.decode_table(drawn, data.read_columns(folder)[:3])
    assert set(table["sex"]) <= {"f", "m"} and abs(table["age"].mean() - 40) < 10
    # The columns of a run are those that another table must have.
    again = dataclasses.replace(config, columns=str(folder))
    found = datasets.load(again)
    np.testing.assert_array_equal(found.train, datasets.load(config).train)
    # Such a run does not need the other one afterwards, and hands its columns on.
    resolved = datasets.resolved_columns(again.columns, found)
    assert resolved == json.loads((folder / "config.json").read_text())["columns"]
    # The run is evaluated without the schema.
    (tmp_path / "schema.json").unlink()
    _, found = evaluation_data.of_run(folder)
    elbo = elbo_figures(params, found.test)["elbo"]
    assert elbo == pytest.approx(results["test_elbo"], abs=1e-4)


def test_a_conditional_model_of_a_table_is_told_how_to_name_the_labels(tmp_path):
    path, schema = tmp_path / "iris.csv", tmp_path / "schema.json"
    rows = (f"{number / 7:.3f},{'abc'[number % 3]}" for number in range(60))
    path.write_text("\n".join(["length,species", *rows]))
    config = mnist.Config(dataset=str(path), conditional=True)
    with pytest.raises(ValueError, match='--columns, as ({"species": "label"})') as no:
        datasets.num_classes(datasets.load(config), conditional=True)
    schema.write_text(str(no.value).rpartition(" as ")[2])
    config = dataclasses.replace(config, columns=str(schema))
    assert datasets.num_classes(datasets.load(config), conditional=True) == 3


def test_a_run_of_other_columns_is_refused_by_their_names(tmp_path):
    rng = np.random.default_rng(0)
    sizes = np.array(["S", "M", "L"])[rng.integers(3, size=60)]
    rows = zip(rng.integers(9, size=60), sizes, rng.normal(size=60), strict=True)
    path = tmp_path / "people.csv"
    path.write_text(
        "\n".join(["visits,size,dose", *(",".join(map(str, row)) for row in rows)])
    )
    folder = tmp_path / "run"
    folder.mkdir()
    schemas = {
        "one": {"size": {"kind": "ordinal", "categories": ["S", "M", "L"]}},
        "other": {"size": {"kind": "ordinal", "categories": ["L", "M", "S"]}},
    }
    schemas["other"]["visits"] = "real"

    def claim(**changes):
        config = mnist.Config(**{"dataset": str(path)} | changes)
        loaded = datasets.load(config)
        digest = datasets.digest(loaded, config.dataset, labelled=False)
        return run_folder.claim(folder, defaults.resolve(config, loaded), digest)

    for name, schema in schemas.items():
        (tmp_path / name).write_text(json.dumps(schema))
    one, other = (str(tmp_path / name) for name in schemas)
    claim(columns=one)
    assert claim(columns=one) == claim(columns=str(folder)) == []
    with pytest.raises(ValueError) as refusal:
        claim(columns=other)
    assert (
        "configuration: column 'visits' count there, real here; "
        "column 'size' ordinal of S, M, L there, ordinal of L, M, S here "
        f"(--columns={folder} takes its columns, --overwrite starts anew)"
    ) in str(refusal.value)
    with pytest.raises(ValueError, match="n: validation 0 there, 9 here .--overwrite"):
        claim(columns=one, validation=9)
    path.write_text(path.read_text().replace("0.", "1."))
    for changes, start in (({}, ""), ({"seed": 1}, "seed 0 there, 1 here; ")):
        said = f"configuration: {start}the data of {path} have changed "
        with pytest.raises(ValueError, match=said):
            claim(columns=one, **changes)


@pytest.mark.long
def test_a_fixed_variance_keeps_the_units_of_a_table(tmp_path):
    """The variance is of standardized columns, beside their shift and scale."""
    x = np.random.default_rng(0).normal(size=(60, 3)) * 1000
    np.save(tmp_path / "x.npy", x)
    config = mnist.Config(
        dataset=str(tmp_path / "x.npy"),
        likelihood="gaussian",
        variance=0.5,
        run_dir=str(tmp_path / "run"),
        **(SMALL | {"epochs": 1, "evaluation_samples": 0}),
    )
    mnist.run(config)
    likelihood = vae_jax.load_run(tmp_path / "run").likelihood
    assert float(likelihood["log_var"]) == pytest.approx(np.log(0.5))
    assert np.exp(likelihood["log_scale"]) == pytest.approx(1000, rel=0.3)
    names = {path.stem for path in (tmp_path / "run" / "figures").iterdir()}
    assert names == {"training_curves", "latent_scatter"}


@pytest.mark.long
def test_a_table_with_holes_trains_and_is_imputed(tmp_path):
    rng = np.random.default_rng(0)
    z = rng.normal(size=120)
    x = np.stack([z, 2 * z, -z], axis=1) * 100 + rng.normal(size=(120, 3))
    holes = np.where(rng.random(x.shape) < 0.3, np.nan, x)
    np.save(tmp_path / "x.npy", holes)
    folder = tmp_path / "run"
    config = mnist.Config(
        dataset=str(tmp_path / "x.npy"),
        likelihood="auto",
        missing="mask_seen",
        run_dir=str(folder),
        **SMALL,
    )
    results = mnist.run(config)
    assert np.isfinite(results["importance_weighted_log_likelihood"])
    params = vae_jax.load_run(folder)
    assert params.spec.likelihood.shows_mask
    _, found = evaluation_data.of_run(folder)
    assert np.isnan(found.test).any()
    filled = vae_jax.impute(params, found.test, jax.random.key(0), num_samples=20)
    assert np.isfinite(filled.mean).all()
    with pytest.raises(ValueError, match="x must be finite, got NaN"):
        datasets.load(dataclasses.replace(config, missing="error"))
    with pytest.raises(ValueError, match="missing 'mask_seen' there, 'mask' here"):
        mnist.run(dataclasses.replace(config, missing="mask"))


@pytest.mark.long
def test_exposures_are_the_totals_of_rows(counts, tmp_path):
    folder, some = tmp_path / "run", str(tmp_path / "some.npy")
    np.save(some, np.load(counts)["x"] + 1)
    config = mnist.Config(
        dataset=some,
        likelihood="auto",
        exposure="row_total",
        run_dir=str(folder),
        **SMALL,
    )
    results = mnist.run(config)
    params = vae_jax.load_run(folder)
    assert params.spec.likelihood == vae_jax.Exposed(vae_jax.NegativeBinomial())
    test = datasets.load(config).test
    given = vae_jax.Conditions(exposure=test.sum(axis=-1))
    terms = vae_jax.evaluate(params, test, evaluation_keys().noise, labels=given)
    assert results["test_elbo"] == pytest.approx(float(terms.elbo.mean()), rel=1e-5)
    key = evaluation_keys().predictive
    # Draws take the totals too, so they have the spread of the data's.
    found = predictive.predictive_figures(params, test, None, key)
    assert np.less(found["variance"]["lower"], found["variance"]["observed"]).all()
    assert calibration.calibration_figures(params, key, num_simulated=5) is None
    with pytest.raises(ValueError, match="--exposure must be row_total"):
        evaluation_data.of_dataset(counts, params.spec)


@pytest.mark.parametrize(
    "changes, expected",
    [
        (["--likelihood=multinomial"], "is of counts with means, .* multinomial"),
        (["--likelihood=gaussian", "--dataset=digits"], "is of counts with means"),
        (["--missing=mask"], "row_total and --missing=mask exclude one another"),
        (["--dataset=EMPTY"], "positive total of every row, got 0 in row"),
    ],
)
def test_exposures_that_are_refused(changes, expected, counts, tmp_path, capsys):
    x = np.load(counts)["x"]
    x[3] = 0
    np.save(tmp_path / "empty.npy", x)
    arguments = ["--exposure=row_total", f"--dataset={counts}", "--likelihood=poisson"]
    arguments += [c.replace("EMPTY", f"{tmp_path}/empty.npy") for c in changes]
    with pytest.raises(SystemExit) as stop:
        mnist.main([*arguments, f"--run_dir={tmp_path / 'run'}"])
    assert stop.value.code == 2
    assert re.search(expected, capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_covariates_are_given_beside_the_columns(tmp_path):
    rng = np.random.default_rng(1)
    dose, batch, size = rng.normal(size=(3, 150))
    rows = zip(size + 3 * dose, size - batch, batch, dose, strict=True)
    lines = ["one,two,batch,a_dose", *(",".join(map(str, row)) for row in rows)]
    (tmp_path / "cells.csv").write_text("\n".join(lines))
    kinds = {"batch": "covariate", "a_dose": {"kind": "covariate"}}
    (tmp_path / "schema.json").write_text(json.dumps(kinds))
    folder = tmp_path / "run"
    config = mnist.Config(
        dataset=str(tmp_path / "cells.csv"),
        columns=str(tmp_path / "schema.json"),
        likelihood="auto",
        validation=15,
        run_dir=str(folder),
        **SMALL,
    )
    results = mnist.run(config)
    params = vae_jax.load_run(folder)
    assert (params.spec.num_covariates, params.spec.data_dim) == (2, 2)
    dataset = datasets.load(config)
    assert [column.name for column in dataset.columns] == ["one", "two"]
    # In the order of their names, with the rows they came with.
    x, c = (
        np.concatenate([getattr(dataset, f"{part}{end}") for part in PARTS])
        for end in ("", "_covariates")
    )
    assert c.shape == (150, 2) and len(dataset.validation_covariates) == 15
    np.testing.assert_allclose(np.sort(x[:, 0] - 3 * c[:, 0]), np.sort(size), atol=1e-5)
    np.testing.assert_allclose(x[:, 1] + c[:, 1], x[:, 0] - 3 * c[:, 0], atol=1e-5)
    given = vae_jax.Conditions(covariates=dataset.test_covariates)
    terms = vae_jax.evaluate(
        params, dataset.test, evaluation_keys().noise, labels=given
    )
    assert results["test_elbo"] == pytest.approx(float(terms.elbo.mean()), rel=1e-5)
    trained, found = evaluation_data.of_run(folder)
    np.testing.assert_array_equal(found.test_labels.covariates, given.covariates)
    assert len(found.train_labels.covariates) == len(found.train) == 120
    assert datasets.warnings(dataset, params.spec.likelihood, "none") == []
    in_grams = dataset._replace(train_covariates=dataset.train_covariates * [1, 1000])
    (warning,) = datasets.warnings(in_grams, params.spec.likelihood, "none")
    assert re.search(r"large: 1 \(root mean square .*\); .* standardize", warning)
    other = (tmp_path / "cells.csv").read_text().replace(str(dose[7]), "0.5")
    (tmp_path / "cells.csv").write_text(other)
    with pytest.raises(ValueError, match="are not those of the run"):
        evaluation_data.of_run(folder)


PARTS = ("train", "test", "validation")
