"""The best epoch and the best model, chosen on validation data and never on others."""

import dataclasses
import doctest
import json
import shutil
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vae_jax
from experiments import (
    datasets,
    evaluate,
    evaluation_data,
    figures,
    mnist,
    sweep,
    sweep_report,
)
from experiments.evaluation import elbo_figures, evaluation_keys
from experiments.runner import checkpoints, selection, training
from experiments.runner.command_line import Interrupted
from vae_jax import checkpoint, data

SHARED = Path(__file__).parents[3] / "shared" / "data"
# The rate is so large that the ELBO goes up and down, and stops going up soon.
TINY = mnist.Config(
    dataset="digits",
    likelihood="bernoulli",
    validation=400,
    early_stopping=2,
    epochs=40,
    learning_rate=0.05,
    schedule="constant",
    beta_warmup_epochs=0.0,
    checkpoint_every=5,
    hidden_dims=(16,),
    latent_dim=2,
    evaluation_samples=0,
)


@pytest.fixture(scope="module", autouse=True)
def no_pictures():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "draw_all", lambda *args, **kwargs: [])
        patch.setattr(sweep_report, "draw_all", lambda *args: None)
        yield


def run_tiny(folder, **changes):
    return mnist.run(dataclasses.replace(TINY, run_dir=str(folder), **changes))


def rows_of(folder, split):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) | {"images_per_second": None} for line in lines]
    return [row for row in rows if row["split"] == split]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    return folder, run_tiny(folder)


def digits():
    keys = evaluation_keys()
    held_out = data.hold_out(data.load("digits"), 400)
    return data.binarize_dataset(held_out, keys.data, method="dynamic")


def test_examples_run():
    found = doctest.testmod(selection)
    assert found.attempted and not found.failed


@pytest.mark.long
def test_a_run_ends_after_the_patience_and_keeps_its_best_epoch(finished):
    folder, results = finished
    elbos = [row["elbo"] for row in rows_of(folder, "validation")]
    best = int(np.argmax(elbos))
    # The rule, from the end: the two last are no better, and before that none waited.
    assert len(elbos) == best + 1 + 2 < 40
    records = [i for i, elbo in enumerate(elbos) if elbo > max(elbos[:i], default=-1e9)]
    assert max(np.diff([*records, len(elbos) - 1])) == 2
    assert results["best_epoch"] == best + 1 and results["step"] == 9 * len(elbos)
    assert results["epochs"] == len(elbos)
    assert results["best_step"] == 9 * (best + 1)
    assert results["best_validation_elbo"] == pytest.approx(max(elbos), rel=1e-6)
    assert results["validation_elbo"] == elbos[-1]
    named = json.loads((folder / "checkpoints" / "best.json").read_text())
    assert named["step"] == results["best_step"]
    assert results["best_step"] in checkpoint.steps(folder / "checkpoints")
    # The test set is not looked at before the end.
    assert not rows_of(folder, "test") and len(rows_of(folder, "train")) == len(elbos)


def test_both_models_are_loaded_and_are_those_of_the_figures(finished):
    folder, results = finished
    last, best = (vae_jax.load_run(folder, which=which) for which in ("last", "best"))
    for prefix, params in (("", last), ("best_", best)):
        for name in ("test", "validation"):
            split = datasets.split(digits(), name)
            found = elbo_figures(params, split.x)["elbo"]
            assert found == pytest.approx(results[f"{prefix}{name}_elbo"], rel=1e-6)
    assert results["best_test_elbo"] != results["test_elbo"]


@pytest.mark.long
def test_what_is_set_aside_is_not_trained_on(finished, tmp_path):
    """A file with the other examples alone trains the same model to the bit."""
    folder, results = finished
    plain = data.load("digits")
    for name, test in (("same", plain.test), ("other", plain.test[::-1] // 2)):
        file = tmp_path / f"{name}.npz"
        # All of them, and a test set that may differ: the choice does not see it.
        np.savez(file, x=plain.train, x_test=test, num_levels=17)
        again = run_tiny(tmp_path / name, dataset=str(file))
        assert again["best_epoch"] == results["best_epoch"]
        for split in ("train", "validation"):
            assert rows_of(tmp_path / name, split) == rows_of(folder, split)
    np.savez(
        tmp_path / "less.npz", x=plain.train[:-400], x_test=plain.test, num_levels=17
    )
    run_tiny(
        tmp_path / "less",
        dataset=str(tmp_path / "less.npz"),
        validation=0,
        early_stopping=None,
        epochs=len(rows_of(folder, "train")),
    )
    # Of a file the shape is 64, not 8x8: the leaves are compared.
    less, whole = map(
        jax.tree.leaves, map(vae_jax.load_run, (tmp_path / "less", folder))
    )
    for one, other in zip(less, whole, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.long
def test_patience_survives_an_interruption(finished, tmp_path, monkeypatch):
    """Within the last epoch, after one that was no better."""
    folder, results = finished
    monkeypatch.setattr(training, "SECONDS_PER_PIECE", 0.0)
    show = training.Run._show

    def interrupt(run, step, *shown):
        show(run, step, *shown)
        if step == results["step"] - 4:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(training.Run, "_show", interrupt)
    with pytest.raises(Interrupted):
        run_tiny(tmp_path)
    # What the files beside the checkpoints say is not what decides.
    (tmp_path / "checkpoints" / "best.json").unlink()
    again = run_tiny(tmp_path)
    clocks = {"images_per_second", "seconds", "seconds_to_first_step", "sha256"}
    for name in results.keys() - clocks:
        assert again[name] == results[name], name
    jax.tree.map(
        np.testing.assert_array_equal,
        vae_jax.load_run(tmp_path, which="best"),
        vae_jax.load_run(folder, which="best"),
    )
    complete = run_tiny(tmp_path)
    assert complete == again


@pytest.mark.long
def test_without_validation_data_there_is_no_best(tmp_path):
    results = run_tiny(tmp_path, validation=0, early_stopping=None, epochs=2)
    assert not [name for name in results if name.startswith(("best", "validation"))]
    assert not (tmp_path / "checkpoints" / "best.json").exists()
    assert len(rows_of(tmp_path, "test")) == 2
    message = "holds no checkpoint that is best on validation data"
    with pytest.raises(ValueError, match=message):
        vae_jax.load_run(tmp_path, which="best")
    # As an earlier version chose it, and what no version writes.
    for text in (
        '{"step": 24, "test_elbo": 1}',
        '{"step": 24.0, "validation_elbo": 1}',
        "[" * 100_000,
    ):
        (tmp_path / "checkpoints" / "best.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            vae_jax.load_run(tmp_path, which="best")


@pytest.mark.long
def test_a_model_without_an_elbo_has_no_best_epoch(tmp_path):
    """A point has no density: log p(x|z) alone would be compared."""
    results = run_tiny(tmp_path, posterior="point", early_stopping=None, epochs=2)
    assert not [name for name in results if name.startswith("best_")]
    assert not (tmp_path / "checkpoints" / "best.json").exists()
    assert len(rows_of(tmp_path, "validation")) == 2


def test_which_is_last_or_best_and_excludes_a_step(finished):
    folder, results = finished
    with pytest.raises(ValueError, match="which must be last or best, got 'worst'"):
        vae_jax.load_run(folder, which="worst")
    with pytest.raises(ValueError, match="step 9 and which='best' exclude"):
        vae_jax.load_run(folder, which="best", step=9)


def test_the_best_is_evaluated_by_its_command(finished, monkeypatch):
    folder, _ = finished
    seen = []

    def stop(params, *_):
        seen.append(params)
        raise ValueError("that is all")

    monkeypatch.setattr(evaluate, "evaluate", stop)
    for which in ("best", "last"):
        with pytest.raises(ValueError, match="that is all"):
            evaluate.run(evaluate.Config(str(folder), which=which))
        expected = vae_jax.load_run(folder, which=which)
        jax.tree.map(np.testing.assert_array_equal, seen[-1], expected)
    _, found = evaluation_data.of_run(folder)
    assert len(found.train) == 1437 - 400


@pytest.mark.parametrize("harm", ["corrupt", "missing"])
def test_a_best_epoch_without_its_checkpoint_has_no_figures(
    finished, tmp_path, harm, capsys
):
    """Its step and its validation ELBO are not written beside another model's."""
    folder, results = finished
    run = tmp_path / "run"
    shutil.copytree(folder, run)
    (run / "results.json").unlink()
    path = run / "checkpoints" / str(results["best_step"])
    if harm == "corrupt":
        file = max(path.rglob("*"), key=lambda found: found.stat().st_size)
        content = file.read_bytes()
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        checkpoint.remove(path)
    again = run_tiny(run)
    assert [name for name in results if name.startswith("best_")]
    assert not [name for name in again if name.startswith("best_")]
    for name in ("test_elbo", "validation_elbo", "step"):
        assert again[name] == results[name]
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith(f"warning: {harm} checkpoint {path.name}, the best on")
    assert not path.exists()
    assert (run / "corrupt" / path.name).is_dir() == (harm == "corrupt")
    # The same command again finds it all done.
    assert run_tiny(run) == again


def test_the_best_of_the_checkpoint_before_is_kept_too(tmp_path):
    """Should the newest be corrupt, the run goes on from the one before."""
    elbos = {5: -3.0, 6: -4.0, 7: -2.0, 8: -5.0}
    rows = [
        {"step": step, "epoch": step, "split": split, "elbo": elbo + other}
        for step, elbo in elbos.items()
        for split, other in (("validation", 0.0), ("train", 9.0), ("test", 9.0))
    ]
    left = {5: {5}, 6: {5, 6}, 7: {5, 6, 7}, 8: {7, 8}}
    for step, expected in left.items():
        (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
        rows_now = [row for row in rows if row["step"] <= step]
        checkpoints.keep_best_and_newest(tmp_path, rows_now)
        assert set(checkpoint.steps(tmp_path / "checkpoints")) == expected
        best = json.loads((tmp_path / "checkpoints" / "best.json").read_text())
        assert best["step"] == max(
            (s for s in elbos if s <= step), key=lambda s: elbos[s]
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"validation": 0}, "--early_stopping 2 needs validation data: give --valid"),
        ({"validation": 1437}, "num_examples must be from 1 to 1436"),
        ({"validation": -1}, "--validation must be at least 0, got -1"),
        ({"early_stopping": 0}, "--early_stopping must be at least 1, got 0"),
        ({"posterior": "point"}, "--early_stopping 2 needs an ELBO"),
    ],
)
def test_what_cannot_be_chosen_is_refused_before_the_run_begins(
    tmp_path, changes, message
):
    with pytest.raises(ValueError, match=message):
        run_tiny(tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_another_validation_set_is_another_run(finished):
    folder, _ = finished
    with pytest.raises(ValueError, match="validation 400 there, 300 here"):
        run_tiny(folder, validation=300)


@pytest.mark.long
@pytest.mark.skipif(not SHARED.is_dir(), reason="the data are not beside the project")
def test_binarized_mnist_has_validation_data_of_its_own(monkeypatch):
    config = dataclasses.replace(
        TINY, dataset="binarized_mnist", data_dir=str(SHARED), validation=0
    )
    found = datasets.load(config)
    watched = datasets.watched(found)
    assert watched.name == "validation" and watched.x.shape == (10_000, 784)
    monkeypatch.setattr(data, "load", lambda *_, **__: found)
    with pytest.raises(ValueError, match="10000 validation examples of its own"):
        datasets.load(dataclasses.replace(config, validation=100))


def test_a_class_of_the_validation_examples_alone_is_counted():
    """One-hot labels beyond the number of classes would be all zeros."""
    plain = data.load("digits")
    labels = np.concatenate([np.zeros(1037, np.int32), np.full(400, 3, np.int32)])
    dataset = plain._replace(train_labels=labels, test_labels=plain.test_labels * 0)
    held_out = data.hold_out(dataset, 400)
    assert datasets.num_classes(held_out, conditional=True) == 4


def model(validation, test, finite=True):
    return {"validation_elbo": validation, "test_elbo": test, "finite": finite}


def test_the_best_model_is_chosen_on_validation_data_alone():
    models = [model(-3.0, -1.0), model(-2.0, -9.0), model(-1.0, -5.0, finite=False)]
    assert sweep_report.best_model(models) == 1
    assert sweep_report.best_model([model(None, -1.0), model(None, -2.0)]) is None
    assert sweep_report.best_model([model(float("nan"), -1.0)]) is None


TWO_RATES = sweep.Config(
    dataset="digits",
    likelihood="bernoulli",
    validation=400,
    beta=(1.0,),
    learning_rate=(1e-4, 1e-2),
    hidden_dims=(16,),
    latent_dim=2,
    epochs=2,
)


@pytest.mark.long
def test_a_sweep_ranks_by_validation_data(tmp_path, capsys, monkeypatch):
    results = sweep.run(dataclasses.replace(TWO_RATES, run_dir=str(tmp_path)))
    assert results["best_model"] == 1
    split = datasets.split(digits(), "validation")
    for number, row in enumerate(results["models"]):
        params = vae_jax.load_run(tmp_path, model=number)
        found = elbo_figures(params, jnp.asarray(split.x))["elbo"]
        assert row["validation_elbo"] == pytest.approx(found, rel=1e-6)
    printed = capsys.readouterr().out.splitlines()
    (line,) = (line for line in printed if "best validation ELBO" in line)
    assert "model 1, learning_rate 0.01, seed 0; its test ELBO" in line
    (header,) = (at for at, line in enumerate(printed) if "validation elbo" in line)
    assert [row.split()[0] for row in printed[header + 1 :][:2]] == ["0.01", "0.0001"]
    assert rows_of(tmp_path, "validation") and not rows_of(tmp_path, "test")
    assert_the_best_model_is_evaluated(tmp_path, capsys, monkeypatch)


@pytest.mark.long
def test_a_sweep_of_points_has_no_best_model(tmp_path):
    """Their "ELBO" is log p(x|z) alone."""
    config = dataclasses.replace(
        TWO_RATES, posterior="point", beta=(), run_dir=str(tmp_path)
    )
    results = sweep.run(config)
    assert [row["validation_elbo"] for row in results["models"]] == [None, None]
    assert results["best_model"] is None
    with pytest.raises(ValueError, match="--model must name one of the sweep's models"):
        evaluation_data.best_model(tmp_path)


def assert_the_best_model_is_evaluated(folder, capsys, monkeypatch):
    """Not the first, nor the best on the test set; and none without validation data."""
    assert evaluation_data.best_model(folder) == 1
    printed = capsys.readouterr().out
    assert "model 1: learning_rate 0.01, seed 0, whose validation ELBO" in printed
    trained, _ = evaluation_data.of_run(folder, model=1)
    assert trained.learning_rate == 1e-2
    seen = []

    def stop(*given):
        seen.append(given[-1].model)
        raise ValueError("that is all")

    monkeypatch.setattr(evaluate, "evaluate", stop)
    for model in (None, 0):
        with pytest.raises(ValueError, match="that is all"):
            evaluate.run(evaluate.Config(str(folder), model=model))
    assert seen == [1, 0]
    path = folder / "results.json"
    results = json.loads(path.read_text())
    edited = [
        row | {"validation_elbo": -row["learning_rate"]} for row in results["models"]
    ]
    path.write_text(json.dumps(results | {"models": edited}))
    assert evaluation_data.best_model(folder) == 0
    assert f"{path} is not what the run wrote" in capsys.readouterr().err
    unwatched = [row | {"validation_elbo": None} for row in results["models"]]
    for text, message in (
        (json.dumps(results | {"models": unwatched}), "none is chosen on the test set"),
        (json.dumps(results | {"models": [1]}), "results.json cannot be read"),
        (None, "the sweep is not done"),
    ):
        path.unlink() if text is None else path.write_text(text)
        with pytest.raises(ValueError, match=message):
            evaluation_data.best_model(folder)
