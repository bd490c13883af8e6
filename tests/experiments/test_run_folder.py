"""A run's folder that anything may have happened to: the same figures, or a word."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import vae_jax
from experiments import figures, mnist
from experiments.runner import checkpoints
from vae_jax import checkpoint

TINY = mnist.Config(
    dataset="digits",
    epochs=4,
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


class Killed(BaseException):
    """The end of a process, at a place of a test's choice."""


def best_epoch(number):
    """The test ELBO falls and falls after this epoch."""

    def merit(row):
        return -abs(row["epoch"] - number) * 1.0 if row["split"] == "test" else None

    return merit


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
    assert best == {"step": 24, "epoch": 2, "test_elbo": 0.0}
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
