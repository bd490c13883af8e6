"""`python -m experiments.evaluate` on runs that were trained for a moment."""

import dataclasses
import json
import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

import vae_jax
from experiments import (
    choices,
    datasets,
    diagnostics,
    evaluate,
    evaluation,
    evaluation_data,
    figures,
    mnist,
    sweep,
)
from experiments.evaluate import Config
from experiments.runner import run_folder
from vae_jax import checkpoint, data


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with two latents, so that quadrature has its say."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "draw_all", lambda *args, **kwargs: [])
        results = mnist.run(
            mnist.Config(
                dataset="digits",
                likelihood="bernoulli",
                epochs=2,
                hidden_dims=(16,),
                latent_dim=2,
                evaluation_samples=50,
                run_dir=str(folder),
            )
        )
    return folder, results


@pytest.fixture(scope="module")
def evaluated(trained):
    folder, _ = trained
    with pytest.MonkeyPatch.context() as patch:
        lines = []
        patch.setattr("builtins.print", lambda *text, **_: lines.extend(text))
        found = evaluate.run(
            Config(
                str(folder),
                evaluation_samples=50,
                num_aggregate=100,
                num_gap=5,
                gap_steps=20,
                num_annealed=0,
                fitted_components=0,
                num_simulated=200,
            )
        )
    return found, "\n".join(lines)


@pytest.mark.long
def test_calibration_has_figures_a_row_and_a_picture(trained, evaluated):
    folder, _ = trained
    found, printed = evaluated
    calibrated = found["calibration"]
    units = len(found["unit_variance"])
    assert len(calibrated["p_values"]) == units + 1  # And log p(x, z).
    assert 0 < calibrated["p_value"] <= 1
    assert calibrated["largest_deviation"] == pytest.approx(
        np.abs(calibrated["deviation"]).max()
    )
    assert "calibration of q(z|x), 200 simulated" in printed
    assert (folder / "figures" / "calibration.png").exists()


def test_the_figures_are_those_of_the_runs_own_evaluation(trained, evaluated):
    folder, results = trained
    found, _ = evaluated
    assert found["elbo"] == pytest.approx(results["test_elbo"], rel=1e-6)
    assert found["rate"] == pytest.approx(results["test_kl_divergence"], rel=1e-6)
    assert found["distortion"] == pytest.approx(-results["test_log_likelihood"])
    name = "importance_weighted_log_likelihood"
    assert found[name] == pytest.approx(results[name], rel=1e-6)
    assert json.loads((folder / "evaluation.json").read_text()) == found
    assert (folder / "figures" / "diagnostics.png").read_bytes()[1:4] == b"PNG"


def test_the_figures_fit_one_another(evaluated):
    found, _ = evaluated
    np.testing.assert_allclose(np.sum(found["unit_kl"]), found["rate"], rtol=1e-4)
    gap = {name: value["mean"] for name, value in found["inference_gap"].items()}
    total = gap["approximation_gap"] + gap["amortization_gap"]
    assert total == pytest.approx(gap["log_evidence"] - gap["elbo"], abs=1e-4)
    assert gap["elbo"] <= gap["best_elbo"]
    integral = found["quadrature_log_evidence"]["mean"]
    # Importance samples by a q that fits two latents are good to a tenth of a nat.
    assert integral == pytest.approx(gap["log_evidence"], abs=0.1)
    assert found["quadrature_error"] < 1e-3


def test_the_table_names_what_it_shows(evaluated):
    found, printed = evaluated
    assert "digits: beta 1, 360 test examples" in printed
    for words in ("ELBO", "mutual information", "amortization gap", "by quadrature"):
        assert words in printed
    assert f"{found['active_units']} of 2" in printed


@pytest.mark.parametrize(
    "flags, expected",
    [
        ({}, "digits: beta 1"),
        ({"objective": "mmd"}, "digits: mmd, beta 1"),
        ({"objective": "mmd", "mmd_weight": 9.0}, "digits: mmd, beta 1, mmd_weight 9"),
        ({"objective": "beta_tc", "beta": 2.0}, "digits: beta_tc, beta 2"),
        (
            {"free_bits": 0.5, "free_bits_per": "example"},
            "digits: beta 1, free_bits 0.5, free_bits_per example",
        ),
        ({"capacity": 20.0}, "digits: beta 1, capacity 20"),
        ({"objective": "iwae", "num_samples": 5}, "digits: iwae, num_samples 5"),
        ({"posterior": "point"}, "digits: elbo"),
    ],
)
def test_the_headline_tells_the_objective_from_others(flags, expected):
    trained = mnist.Config(dataset="digits", **flags)
    assert evaluate.headline(Config("run"), trained) == expected


@pytest.mark.parametrize(
    "flags, expected",
    [
        (
            {"beta_warmup_epochs": (0.0, 5.0), "variance": (0.5, 1.0)},
            "digits, model 7: beta 1, beta_warmup_epochs 5, variance 1, seed 1",
        ),
        ({"objective": "iwae"}, "digits, model 1: iwae, seed 1"),
    ],
)
def test_the_headline_names_what_a_model_of_a_sweep_differs_in(
    flags, expected, tmp_path
):
    config = sweep.Config(dataset="digits", beta=(1.0,), num_seeds=2, **flags)
    run_folder.write_signed(tmp_path / "config.json", dataclasses.asdict(config))
    models = sweep.grid(config)
    last = len(models) - 1
    assert evaluate.headline(Config(str(tmp_path), model=last), models[last]) == (
        expected
    )


def test_the_best_epoch_of_a_sweep_is_refused_before_a_model_is_chosen(
    tmp_path, capsys
):
    run_folder.write_signed(
        tmp_path / "config.json", dataclasses.asdict(sweep.Config(dataset="digits"))
    )
    row = {"beta": 1.0, "seed": 0, "finite": True, "validation_elbo": -20.0}
    results = {"models": [row], "swept": ["beta"]}
    run_folder.write_signed(tmp_path / "results.json", results)
    for model in (None, 0):
        config = Config(str(tmp_path), which="best", model=model)
        with pytest.raises(ValueError, match="last models alone, so leave out --which"):
            evaluate.run(config)
    assert not capsys.readouterr().out
    assert evaluation_data.best_model(tmp_path) == 0


def test_a_long_headline_stays_within_the_picture():
    found = {
        "unit_variance": [1.0, 0.5],
        "unit_variance_standard_error": [0.1, 0.1],
        "active_units": 2,
        "unit_kl": None,
        "inference_gap": None,
    }
    picture = diagnostics.draw(found, "digits: " + "free_bits 0.5, " * 9)
    canvas = FigureCanvasAgg(picture)
    canvas.draw()
    (title,) = (text for text in picture.texts if "digits" in text.get_text())
    assert title.get_window_extent(canvas.get_renderer()).x1 <= picture.bbox.x1


def test_heavy_tailed_importance_weights_are_warned_of(evaluated):
    found, printed = evaluated
    share = found["importance_weighted_high_pareto_k"]
    # Fifty samples of a model that has hardly been trained: some, but not all.
    assert 0 < share < 1
    assert f"{share:.1%} of the examples" in printed
    assert ("warning: log p(x) is unreliable" in printed) == (share > 0.1)
    for value, expected in ((0.5, 1), (0.05, 0), (None, 0)):
        figures = {"importance_weighted_high_pareto_k": value}
        assert len(evaluation.evidence_warnings(figures)) == expected
    assert "quadrature is off" in evaluate.warnings({"quadrature_error": 0.2})[0]
    assert not evaluate.warnings({"quadrature_error": 0.05})


@pytest.mark.parametrize("share", [1.0, 0.8])
def test_a_search_that_did_not_converge_is_warned_of(share):
    gap = {"inference_gap": {"converged": {"mean": share}}}
    lines = evaluate.warnings(gap)
    assert len(lines) == (share < 1)
    assert share == 1 or "not found for 20% of the examples" in lines[0]


@pytest.mark.slow
def test_a_prior_fitted_to_the_codes_is_better(trained, capsys):
    folder, _ = trained
    few = {"num_gap": 2, "gap_steps": 2, "num_annealed": 0, "fitted_components": 3}
    found = evaluate.run(Config(str(folder), evaluation_samples=2, **few))
    printed = capsys.readouterr().out
    assert found["fitted_prior"]["elbo"] > found["elbo"] + 0.01
    assert found["fitted_prior"]["kl_divergence"] < found["rate"] - 0.01
    assert (folder / "figures" / "samples_fitted_prior.png").exists()
    assert "a prior fitted to the codes" in printed


def test_temperatures_without_annealing_are_refused(trained):
    config = Config(str(trained[0]), num_annealed=0, num_temperatures=7)
    with pytest.raises(ValueError, match="num_temperatures 7 has no effect: only"):
        evaluate.run(config)


@pytest.mark.slow
def test_annealing_agrees_with_quadrature(trained):
    folder, _ = trained
    options = {"num_gap": 10, "num_annealed": 10, "fitted_components": 0}
    found = evaluate.run(Config(str(folder), evaluation_samples=10, **options))
    annealed = found["annealing"]["estimate"]["mean"]
    exact = found["quadrature_log_evidence"]["mean"]
    assert annealed == pytest.approx(exact, abs=0.1)
    gap = found["annealing"]["simulated"]["gap"]
    assert abs(gap["mean"]) < 0.1 + 3 * gap["standard_error"]


@pytest.mark.slow
def test_every_kind_of_model_is_evaluated(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(figures, "draw_all", lambda *args, **kwargs: [])
    for index, changes in enumerate(
        (
            {"conditional": True, "posterior": "full"},
            {"upper_latent_dims": (2,)},
            {"posterior": "iaf", "prior": "flow"},
        )
    ):
        folder = tmp_path / str(index)
        tiny = {"epochs": 1, "hidden_dims": (8,), "latent_dim": 3}
        mnist.run(
            mnist.Config(
                dataset="digits",
                likelihood="bernoulli",
                evaluation_samples=0,
                run_dir=str(folder),
                **tiny,
                **changes,
            )
        )
        capsys.readouterr()
        few = {"num_gap": 3, "gap_steps": 5, "num_annealed": 2, "num_temperatures": 5}
        found = evaluate.run(Config(str(folder), evaluation_samples=5, **few))
        assert np.isfinite(found["elbo"]) and found["inference_gap"] is not None
        assert (found["annealing"] is None) == (index < 2)
        assert (found["fitted_prior"] is None) == (index == 1)
        said = capsys.readouterr().out
        assert "undefined" not in said
        assert ("NOTE: annealing is left out: " in said) == (index < 2)
        aggregate, layers = found["aggregate_posterior"], 3 + 2 * (index == 1)
        assert (aggregate is None) == (index != 1)
        assert len(found["unit_variance_standard_error"]) == layers
        assert (min(found["unit_variance_standard_error"]) > 0) == (index > 0)


@pytest.mark.slow
def test_an_autoencoder_has_what_it_can_have(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(figures, "draw_all", lambda *args, **kwargs: [])
    tiny = mnist.Config(
        dataset="digits",
        likelihood="bernoulli",
        epochs=1,
        hidden_dims=(8,),
        latent_dim=3,
        posterior="point",
        evaluation_samples=0,
        run_dir=str(tmp_path),
    )
    mnist.run(tiny)
    found = evaluate.run(Config(str(tmp_path)))
    for name in ("unit_kl", "aggregate_posterior", "inference_gap"):
        assert found[name] is None
    assert found["active_units"] == 3
    assert "undefined" in capsys.readouterr().out


def test_bad_input_is_one_line_and_exit_code_2(trained, tmp_path, capsys):
    folder, _ = trained
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"data_sha256": "0"}))
    for arguments, message in (
        ([str(tmp_path)], "holds no config.json of a run"),
        ([str(folder), "--num_gap=0"], "--num_gap must be at least 1, got 0"),
        ([str(folder), "--step=7"], "step must be one of"),
        ([str(other)], "data found are not those of the run"),
    ):
        with pytest.raises(SystemExit) as stop:
            evaluate.main(arguments)
        assert stop.value.code == 2
        error = capsys.readouterr().err.strip()
        assert message in error and "\n" not in error


def test_the_run_is_left_as_it_was(trained, evaluated):
    folder, results = trained
    assert json.loads((folder / "results.json").read_text()) == results
    assert vae_jax.load_run(folder).spec.latent_dim == 2


@pytest.mark.long
def test_a_model_of_a_script_is_evaluated(tmp_path, capsys):
    """`save_run` and `--dataset`; the ELBO is that of `elbo_figures` on the data."""
    digits = vae_jax.data.load("digits")
    x = datasets.test_images(datasets.binarized(digits, "dynamic", seed=0))
    spec = vae_jax.ModelSpec(latent_dim=2, data_shape=digits.data_shape)
    params = vae_jax.init(spec, jax.random.key(0), x=x)
    vae_jax.save_run(tmp_path, params, step=7)
    few = ["--num_gap=2", "--gap_steps=2", "--num_annealed=0", "--fitted_components=0"]
    few += ["--num_simulated=0", "--evaluation_samples=2", "--num_aggregate=10"]
    evaluate.main([str(tmp_path), "--dataset=digits", *few])
    found = json.loads((tmp_path / "evaluation.json").read_text())
    expected = evaluation.elbo_figures(params, x)["elbo"]
    assert found["elbo"] == pytest.approx(expected, rel=1e-6)
    assert "digits: trained by a script" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        evaluate.main([str(tmp_path), "--dataset=synthetic", *few])
    assert "must have the model's 64 values an example, got 784" in (
        capsys.readouterr().err
    )
    with pytest.raises(FileExistsError):
        vae_jax.save_run(tmp_path, params, step=7)
    with pytest.raises(ValueError, match="step must be at least 0, got -1"):
        vae_jax.save_run(tmp_path, params, step=-1)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SystemExit):
        evaluate.main([str(tmp_path), "--dataset=digits", *few])
    assert "names its data" in capsys.readouterr().err


@pytest.mark.long
def test_counts_with_covariates_and_gaps_of_a_script_are_evaluated(tmp_path, capsys):
    """The ELBO is that of `vae_jax.evaluate` with the same conditions, to rounding."""
    rng = np.random.default_rng(0)
    x, age = rng.poisson(3.0, (40, 3)) + 1, rng.normal(size=40)
    rows = np.column_stack([x, age.round(3)]).astype(object)
    rows[1::2, 1] = ""
    table = tmp_path / "cells.csv"
    lines = ["a,b,c,age", *(",".join(map(str, row)) for row in rows)]
    table.write_text("\n".join(lines) + "\n")
    schema = tmp_path / "schema.json"
    schema.write_text(
        json.dumps({name: "count" for name in "abc"} | {"age": "covariate"})
    )
    network = vae_jax.MLP((5,))
    spec = vae_jax.ModelSpec(
        encoder=network,
        decoder=network,
        likelihood=vae_jax.Masked(vae_jax.Poisson()),
        latent_dim=1,
        data_shape=(3,),
        num_covariates=1,
    )
    vae_jax.save_run(tmp_path / "mine", vae_jax.init(spec, jax.random.key(0)), step=1)
    few = ["--num_gap=2", "--gap_steps=2", "--num_annealed=0", "--fitted_components=0"]
    few += ["--num_simulated=0", "--evaluation_samples=2", "--num_aggregate=8"]
    command = [str(tmp_path / "mine"), f"--dataset={table}", *few]
    evaluate.main([*command, f"--columns={schema}"])
    found = json.loads((tmp_path / "mine" / "evaluation.json").read_text())
    dataset = vae_jax.data.load(
        str(table),
        values="counts",
        columns=vae_jax.data.read_columns(str(schema)),
        missing="mask",
    )
    assert np.isnan(dataset.test).any()
    params = vae_jax.load_run(tmp_path / "mine")
    given = vae_jax.Conditions(None, dataset.test_covariates)
    expected = evaluation.elbo_figures(params, jnp.asarray(dataset.test), given)
    assert found["elbo"] == pytest.approx(expected["elbo"], rel=1e-5)
    capsys.readouterr()
    (tmp_path / "no.json").write_text(json.dumps({"age": "ignore"}))
    for arguments, message in (
        ([*command, f"--columns={tmp_path / 'no.json'}"], "takes 1 covariates a row"),
        (
            [str(tmp_path / "mine"), f"--columns={schema}"],
            "--columns describes the data",
        ),
    ):
        with pytest.raises(SystemExit):
            evaluate.main(arguments)
        assert message in capsys.readouterr().err


def test_exposures_and_labels_of_a_script_are_named_or_refused(tmp_path):
    counts = np.random.default_rng(0).poisson(3.0, (30, 3)) + 1
    path = tmp_path / "x.npz"
    labels = np.arange(30) % 3
    np.savez(path, x=counts, y=labels, x_test=counts, y_test=labels)
    spec = vae_jax.ModelSpec(
        encoder=vae_jax.MLP((5,)),
        decoder=vae_jax.MLP((5,)),
        likelihood=vae_jax.Exposed(vae_jax.Poisson()),
        latent_dim=1,
        data_shape=(3,),
        num_classes=3,
    )
    load = partial(evaluation_data.of_dataset, str(path))
    with pytest.raises(ValueError, match="--exposure must be row_total for Exposed"):
        load(spec)
    load = partial(load, exposure="row_total")
    found = load(spec)
    params = vae_jax.init(spec, jax.random.key(0))
    given = choices.labels_of(params, found.test_labels, found.test)["labels"]
    np.testing.assert_array_equal(given.exposure, counts.sum(axis=1))
    np.testing.assert_array_equal(given.labels, labels)
    plain = dataclasses.replace(spec, likelihood=vae_jax.Poisson())
    with pytest.raises(
        ValueError, match=r"--exposure row_total needs.*got Poisson\(\)"
    ):
        load(plain)
    spec = dataclasses.replace(spec, num_classes=2)
    with pytest.raises(ValueError, match="labels up to 2, and the model takes 2 class"):
        load(spec)


@pytest.mark.parametrize(
    "likelihood", [vae_jax.Poisson(), vae_jax.Masked(vae_jax.Poisson())]
)
def test_small_counts_of_a_script_are_not_taken_for_grey_levels(likelihood, tmp_path):
    counts = np.random.default_rng(0).poisson(3.0, (30, 3)).astype(np.uint8)
    path = tmp_path / "x.npz"
    np.savez(path, x=counts, x_test=counts)
    spec = vae_jax.ModelSpec(
        encoder=vae_jax.MLP((5,)),
        decoder=vae_jax.MLP((5,)),
        likelihood=likelihood,
        latent_dim=1,
        data_shape=(3,),
    )
    found = evaluation_data.of_dataset(str(path), spec)
    for x in (found.train, found.test):
        np.testing.assert_array_equal(x, counts)


def test_a_category_that_a_table_lacks_takes_no_others_number(tmp_path, capsys):
    """Without "a", "b" would be 0, which is the code of "a" in the model."""
    rows = np.array(["b", "c"])[np.arange(60) % 2]
    path, schema = tmp_path / "t.csv", tmp_path / "s.json"
    ages = np.arange(60) / 7
    lines = [f"{age:.3f},{row},{row}" for age, row in zip(ages, rows, strict=True)]
    path.write_text("\n".join(["age,city,batch", *lines]) + "\n")
    kinds = {"city": "categorical", "batch": "ignore"}
    columns = [
        data.Column("age", "real"),
        data.Column("city", "categorical", ("a", "b", "c")),
    ]
    spec = vae_jax.ModelSpec(
        encoder=vae_jax.MLP((5,)),
        decoder=vae_jax.MLP((5,)),
        likelihood=vae_jax.Columns.of_table(columns),
        latent_dim=1,
        data_shape=(2,),
    )
    load = partial(evaluation_data.of_dataset, str(path), columns=str(schema))
    schema.write_text(json.dumps(kinds))
    with pytest.raises(ValueError, match="'city' has 2 categories, and the model 3"):
        load(spec)
    city = {"kind": "categorical", "categories": ["a", "b", "c"]}
    schema.write_text(json.dumps(kinds | {"city": city}))
    found = load(spec)
    assert set(np.unique(found.train[:, 1])) == {1, 2}
    assert "columns are taken in the order of the file" in capsys.readouterr().out
    schema.write_text(json.dumps(kinds | {"city": city, "batch": "label"}))
    with pytest.raises(ValueError, match="labels up to 1, and the model takes 3"):
        load(dataclasses.replace(spec, num_classes=3))
    assert "labels of column 'batch' are numbered: 0 = b, 1 = c" in (
        capsys.readouterr().out
    )


@pytest.mark.long
def test_a_step_is_not_called_the_last(trained):
    folder, _ = trained
    steps = checkpoint.steps(folder / "checkpoints")
    few = {"num_gap": 2, "gap_steps": 2, "num_annealed": 0, "fitted_components": 0}
    config = Config(
        str(folder), step=steps[0], num_simulated=0, num_aggregate=10, **few
    )
    found = evaluate.run(config)
    assert found["which"] is None and found["step"] == steps[0]
