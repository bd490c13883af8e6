"""A run's folder that anything may have happened to: the same figures, or a word."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import vae_jax
from experiments import evaluation_data, figures, mnist
from experiments.runner import checkpoints, metrics
from vae_jax import checkpoint

TINY = mnist.Config(
    dataset="digits",
    likelihood="bernoulli",
    validation=20,
    epochs=4,
    # One that falls depends on the epochs: the run could not go on to others.
    schedule="constant",
    checkpoint_every=1,
    beta_warmup_epochs=0.0,
    hidden_dims=(8,),
    latent_dim=2,
    evaluation_samples=0,
)


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr(figures, "draw_all", lambda *args, **kwargs: [])


def run(folder, **changes):
    return mnist.run(dataclasses.replace(TINY, run_dir=str(folder), **changes))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "draw_all", lambda *args, **kwargs: [])
        results = run(folder)
    return folder, results


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished[0], tmp_path / "run")


def assert_same_figures(results, expected):
    for name, value in expected.items():
        if name.startswith(("test_", "active", "step", "epochs")):
            assert results[name] == value, name


@pytest.mark.long
def test_a_file_in_place_of_a_checkpoint_is_named(copy):
    """It is no checkpoint, and none can be saved by its name."""
    shutil.rmtree(copy / "checkpoints" / "48")
    (copy / "checkpoints" / "48").write_text("a file")
    with pytest.raises(FileExistsError, match="exists already.*checkpoints/48"):
        run(copy)
    (copy / "checkpoints" / "48").unlink()
    assert run(copy)["step"] == 48


class Killed(BaseException):
    """The end of a process, at a place of a test's choice."""


def best_epoch(number):
    """The validation ELBO falls and falls after this epoch."""

    def merit(row):
        of_validation = row["split"] == "validation"
        return -abs(row["epoch"] - number) * 1.0 if of_validation else None

    return merit


@pytest.mark.long
def test_a_kill_between_the_best_checkpoint_and_its_name_keeps_it(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(checkpoints, "merit", best_epoch(2))
    save = checkpoint.save

    def killed_after_the_second(folder, *arguments, **named):
        save(folder, *arguments, **named)
        if Path(folder).name == "24":
            raise Killed

    monkeypatch.setattr(checkpoint, "save", killed_after_the_second)
    with pytest.raises(Killed):
        run(tmp_path)
    monkeypatch.setattr(checkpoint, "save", save)
    run(tmp_path, epochs=5)
    best = json.loads((tmp_path / "checkpoints" / "best.json").read_text())
    assert best == {"step": 24, "epoch": 2, "validation_elbo": 0.0}
    assert checkpoint.steps(tmp_path / "checkpoints") == [24, 48, 60]


def test_a_kill_before_old_checkpoints_are_removed_leaves_no_more(copy, monkeypatch):
    newest = copy / "checkpoints" / "48"
    monkeypatch.setattr(checkpoint, "remove", lambda path: None)
    run(copy, epochs=6)
    assert len(checkpoint.steps(copy / "checkpoints")) > 3
    monkeypatch.undo()
    run(copy, epochs=6)
    assert checkpoint.steps(copy / "checkpoints")[-2:] == [60, 72]
    assert len(checkpoint.steps(copy / "checkpoints")) <= 3 and not newest.exists()


@pytest.mark.parametrize("content", ["", "{}", "[[[", '{"step": 12}', "null", None])
def test_the_name_of_the_best_is_made_anew(finished, copy, content):
    path = copy / "checkpoints" / "best.json"
    path.unlink() if content is None else path.write_text(content)
    run(copy)
    assert path.read_text() == (finished[0] / "checkpoints" / "best.json").read_text()


def test_other_entries_of_the_checkpoints_are_left_alone(finished, copy):
    (copy / "checkpoints" / "732").write_text("a file")
    (copy / "checkpoints" / "0732").mkdir()
    (copy / "checkpoints" / "٧٣").mkdir()
    assert_same_figures(run(copy), finished[1])


def test_links_are_not_followed_when_deleting(finished, copy, tmp_path, capsys):
    kept = tmp_path / "kept"
    (kept / "48").mkdir(parents=True)
    (kept / "48" / "file").write_text("kept")
    (copy / "corrupt").symlink_to(kept)
    for name in (".checkpoints-60.draft", ".checkpoints-1.removed", ".x.draft"):
        (copy / name).symlink_to(kept)
    (copy / "checkpoints" / ".best.json.draft").symlink_to(kept / "48" / "file")
    (copy / "checkpoints" / "48" / "spec.json").write_text("{}")
    assert_same_figures(run(copy), finished[1])
    assert "warning: corrupt checkpoint 48" in capsys.readouterr().err
    assert [str(path.relative_to(kept)) for path in kept.rglob("*")] == [
        "48",
        "48/file",
    ]
    assert (kept / "48" / "file").read_text() == "kept"
    assert (copy / "corrupt" / "48" / "spec.json").read_text() == "{}"


def test_a_manifest_of_nothing_is_put_aside(finished, copy, capsys):
    for step in checkpoint.steps(copy / "checkpoints"):
        (copy / "checkpoints" / str(step) / "manifest.json").write_text("null")
    assert_same_figures(run(copy), finished[1])
    assert "going on from 0" in capsys.readouterr().err
    jax.tree.map(
        np.testing.assert_array_equal,
        vae_jax.load_run(copy),
        vae_jax.load_run(finished[0]),
    )


@pytest.mark.parametrize("name", ["checkpoints", "figures", "tensorboard"])
def test_a_folder_that_is_a_link_is_refused(copy, tmp_path, name):
    moved = (
        shutil.move(copy / name, tmp_path / "moved")
        if (copy / name).exists()
        else (tmp_path / "moved")
    )
    Path(moved).mkdir(exist_ok=True)
    before = sorted(Path(moved).rglob("*"))
    (copy / name).symlink_to(moved)
    with pytest.raises(ValueError, match=f"{name} is a symbolic link"):
        run(copy, epochs=5)
    assert sorted(Path(moved).rglob("*")) == before


DAMAGE = {
    "emptied": lambda text: "",
    "cut": lambda text: text[: len(text) // 2],
    "doubled": lambda text: text + text,
    "no UTF-8": lambda text: text.encode().replace(b"e", b"\xff", 1),
    "nested": lambda text: "[" * 100_000,
    "a list": lambda text: "[1, 2]",
    "null": lambda text: "null",
    "numbers edited": lambda text: text.replace("-", "-1"),
}


def damage(path, name):
    content = DAMAGE[name](path.read_text())
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.mark.parametrize("name", DAMAGE)
def test_results_that_were_changed_are_not_called_verified(
    finished, copy, name, capsys
):
    damage(copy / "results.json", name)
    assert_same_figures(run(copy), finished[1])
    printed = capsys.readouterr()
    assert "complete" not in printed.out
    assert "results.json is not what a run wrote" in printed.err
    run(copy)
    printed = capsys.readouterr()
    assert "complete: checkpoint 48 verified" in printed.out and not printed.err


def test_a_figure_that_was_edited_is_measured_again(finished, copy, capsys):
    found = json.loads((copy / "results.json").read_text())
    found["test_elbo"] += 1
    (copy / "results.json").write_text(json.dumps(found))
    assert run(copy)["test_elbo"] == finished[1]["test_elbo"]
    assert "results.json is not what" in capsys.readouterr().err


def test_results_of_an_earlier_version_are_measured_again(finished, copy, capsys):
    found = json.loads((copy / "results.json").read_text())
    del found["sha256"]
    (copy / "results.json").write_text(json.dumps(found))
    assert_same_figures(run(copy), finished[1])
    assert not capsys.readouterr().err


@pytest.mark.parametrize("name", DAMAGE)
def test_metrics_are_restored_from_the_checkpoint(finished, copy, name, capsys):
    path = copy / "metrics.jsonl"
    whole = path.read_text()
    damage(path, name)
    assert_same_figures(run(copy), finished[1])
    assert path.read_text() == whole
    assert "metrics.jsonl: was damaged or edited" in capsys.readouterr().err


def test_metrics_that_are_gone_are_restored(finished, copy, capsys):
    (copy / "metrics.jsonl").unlink()
    run(copy)
    assert (copy / "metrics.jsonl").read_text() == (
        finished[0] / "metrics.jsonl"
    ).read_text()
    assert "metrics.jsonl: was damaged or edited" in capsys.readouterr().err


def test_history_that_only_an_earlier_version_had_is_said_to_be_lost(
    finished, copy, capsys, monkeypatch
):
    monkeypatch.setattr(checkpoint, "read_text", lambda folder, name: None)
    path = copy / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:2], *lines[3:], lines[0], '{"epoch": 9}\n']))
    assert_same_figures(run(copy), finished[1])
    assert "the history of epochs [2] is lost" in capsys.readouterr().err
    assert path.read_text() == "".join([*lines[:2], *lines[3:]])


def test_metrics_that_vanish_while_training_are_restored(
    finished, tmp_path, capsys, monkeypatch
):
    add, path = metrics.Metrics.add, tmp_path / "metrics.jsonl"

    def vanishing(own, row):
        add(own, row)
        if row["epoch"] == 2:
            path.unlink(missing_ok=True)

    monkeypatch.setattr(metrics.Metrics, "add", vanishing)
    run(tmp_path)
    assert "metrics.jsonl: was changed while training" in capsys.readouterr().err
    epochs = [json.loads(line)["epoch"] for line in path.read_text().splitlines()]
    assert epochs == [1, 1, 2, 2, 3, 3, 4, 4]


@pytest.mark.parametrize("name", [n for n in DAMAGE if n != "numbers edited"])
def test_a_configuration_that_cannot_be_read_is_named(copy, name):
    damage(copy / "config.json", name)
    before = (copy / "config.json").read_bytes()
    with pytest.raises(ValueError, match="config.json cannot be read"):
        run(copy)
    with pytest.raises(ValueError, match="config.json cannot be read"):
        evaluation_data.of_run(copy)
    assert (copy / "config.json").read_bytes() == before


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"seed": "0"}, "--seed must be of type int, got '0'"),
        ({"seed": None}, "--seed must be of type int, got None"),
        ({"conditional": 1}, "--conditional must be of type bool, got 1"),
        ({"hidden_dims": 8}, "--hidden_dims must be several values, got 8"),
        ({"binarization": "dynamib"}, "--binarization must be one of auto, .*dynamib"),
        ({"num_seeds": 2, "beta": "ab"}, "--beta must be several values, got 'ab'"),
        ({"data_sha256": 3}, "data found are not those"),
    ],
)
def test_a_configuration_of_other_types_is_refused(copy, changes, message):
    path = copy / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ValueError, match=message):
        evaluation_data.of_run(copy)


def test_an_edited_configuration_is_said_to_be_one(copy, capsys):
    evaluation_data.of_run(copy)
    assert not capsys.readouterr().err
    path = copy / "config.json"
    path.write_text(path.read_text().replace('"dynamic"', '"threshold"'))
    evaluation_data.of_run(copy)
    assert "config.json is not what the run wrote" in capsys.readouterr().err


def test_a_refused_command_leaves_the_configuration_as_it_was(copy, monkeypatch):
    """Of a class of the user's that changed: known from the checkpoint alone."""

    def refuse(*given):
        raise ValueError("holds a run of another configuration")

    before = (copy / "config.json").read_text()
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "restore_newest", refuse)
        with pytest.raises(ValueError, match="holds a run of another configuration"):
            run(copy, epochs=5)
    assert (copy / "config.json").read_text() == before
    run(copy, epochs=5)
    assert json.loads((copy / "config.json").read_text())["epochs"] == 5


def test_a_checkpoint_that_cannot_be_loaded_is_named(copy):
    (copy / "checkpoints" / "48" / "spec.json").write_text("{}")
    with pytest.raises(checkpoint.CorruptCheckpoint, match="checkpoints/48: spec.json"):
        vae_jax.load_run(copy)
    vae_jax.load_run(copy, step=36)
