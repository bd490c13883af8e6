"""Reading a checkpoint that anything may have happened to."""

import json
import os
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

import vae_jax
from vae_jax import checkpoint, manifest
from vae_jax.manifest import CorruptCheckpoint

SPEC = vae_jax.ModelSpec(latent_dim=2, data_shape=(3,))
STATE = {"weight": jnp.arange(6.0).reshape(2, 3), "empty": jnp.zeros((0, 4))}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "checkpoints" / "7"
    checkpoint.save(folder, STATE, spec=SPEC, texts={"notes.txt": "first"})
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "checkpoints" / "7")


def edit(folder, change):
    """Change the manifest; it has no digest of its own."""
    path = folder / "manifest.json"
    found = json.loads(path.read_text())
    path.write_text(json.dumps(change(found)))


def leaf(**changes):
    """A change of one leaf's description."""

    def change(found):
        name = "state.empty" if "shape" in changes else "state.weight"
        found["leaves"][name] |= changes
        return found

    return change


def file(name, digest="0" * 64):
    return lambda found: found | {"files": {**found["files"], name: digest}}


HOSTILE = {
    "a list": lambda found: [found],
    "null": lambda found: None,
    "null leaves": lambda found: found | {"leaves": None},
    "no leaves": lambda found: found | {"leaves": {}},
    "leaves that are numbers": lambda found: found | {"leaves": {"state.weight": 3}},
    "null files": lambda found: found | {"files": None},
    "a list of files": lambda found: found | {"files": [1, 2]},
    "no files": lambda found: found | {"files": {}},
    "a null digest": file("spec.json", None),
    "no step": lambda found: {n: v for n, v in found.items() if n != "step"},
    "a negative size": leaf(shape=[0, -1]),
    "a huge size": leaf(shape=[0, 10**30]),
    "a size that is a word": leaf(shape=["0", 4]),
    "a shape that is a number": leaf(shape=0),
    "an unknown dtype": leaf(dtype="evil"),
    "a dtype of objects": leaf(dtype="object"),
    "a dtype that is a number": leaf(dtype=3),
    "a null digest of a leaf": leaf(sha256=None),
    "an absolute name": file("/etc/hostname"),
    "a name above": file("../../secret"),
    "a name above, from below": file("arrays/../../../secret"),
    "an empty name": file(""),
    "a folder's name": file("arrays"),
    "a name with a null byte": file("spec.json\0"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_manifest_of_another_form_is_corrupt(copy, name):
    (copy.parents[1] / "secret").write_text("not to be read")
    edit(copy, HOSTILE[name])
    with pytest.raises(CorruptCheckpoint):
        checkpoint.verify(copy)


@pytest.mark.parametrize("name", ["/etc/hostname", "../../secret"])
def test_a_file_outside_is_not_even_read(copy, name, monkeypatch):
    """Its digest is right, and the checkpoint is refused all the same."""
    (copy.parents[1] / "secret").write_text("not to be read")
    edit(copy, file(name, manifest._digest(copy / name)))
    read = []
    monkeypatch.setattr(manifest, "_digest", lambda path: read.append(path))
    with pytest.raises(CorruptCheckpoint, match="outside"):
        edit(copy, lambda found: found | {"files": {name: found["files"][name]}})
        checkpoint.verify(copy)
    assert not read


@pytest.mark.parametrize("name", ["manifest.json", "spec.json"])
@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b"\xff\xfe\x00", b'{"a":' * 5000, b"9" * 5000], ids=len
)
def test_files_that_no_parser_reads_are_corrupt(copy, name, content):
    (copy / name).write_bytes(content)
    if name == "spec.json":
        edit(copy, file(name, manifest._digest(copy / name)))
    with pytest.raises(CorruptCheckpoint, match=name):
        checkpoint.verify(copy)


@pytest.mark.parametrize("name", ["manifest.json", "spec.json", "arrays/_METADATA"])
@pytest.mark.parametrize("kind", ["folder", "link", "pipe"])
def test_what_is_no_file_is_not_opened(copy, name, kind):
    """To open a pipe would wait for a writer, and a link leads anywhere."""
    moved = (copy / name).rename(copy.parents[1] / "moved")
    {
        "folder": os.mkdir,
        "link": lambda path: path.symlink_to(moved),
        "pipe": os.mkfifo,
    }[kind](copy / name)
    with pytest.raises(CorruptCheckpoint, match=name):
        checkpoint.verify(copy)


def test_a_checkpoint_that_is_a_link_is_corrupt(copy):
    moved = copy.rename(copy.parents[1] / "elsewhere")
    copy.symlink_to(moved)
    assert checkpoint.steps(copy.parent) == [7]
    with pytest.raises(CorruptCheckpoint, match="link"):
        checkpoint.verify(copy)


def test_the_spec_has_to_be_in_the_manifest(copy):
    def without(found):
        del found["files"]["spec.json"]
        return found

    edit(copy, without)
    with pytest.raises(CorruptCheckpoint, match="no sha256 of spec.json"):
        checkpoint.restore(copy)


def test_every_flipped_bit_of_a_manifest_is_found_or_without_effect(copy):
    """One bit in every tenth byte; the arrays are what they were, or named."""
    path, arrays = copy / "manifest.json", dict(STATE)
    whole, found = path.read_bytes(), 0
    for position in range(0, len(whole), 10):
        content = bytearray(whole)
        content[position] ^= 1 << position // 10 % 8
        path.write_bytes(bytes(content))
        try:
            state, _ = checkpoint.restore_state(copy, arrays)
        except CorruptCheckpoint:
            found += 1
        else:
            for name, array in arrays.items():
                np.testing.assert_array_equal(state[name], array)
    assert found > len(whole) / 10 / 2


SPECS_OF_A_STRANGER = {
    "no dict": [1, 2],
    "no name": {"fields": {}},
    "fields of a list": {"class": "vae_jax:ModelSpec", "fields": [1]},
    "a name that is a number": {"import": 3},
}


@pytest.mark.parametrize("name", SPECS_OF_A_STRANGER)
def test_a_spec_of_another_form_is_corrupt(copy, name):
    (copy / "spec.json").write_text(json.dumps(SPECS_OF_A_STRANGER[name]))
    edit(copy, file("spec.json", manifest._digest(copy / "spec.json")))
    for read in (checkpoint.restore, lambda path: checkpoint.restore_state(path, {})):
        with pytest.raises(CorruptCheckpoint, match="spec.json"):
            read(copy)


@pytest.mark.parametrize(
    "field, value",
    [
        ("encoder", 3),
        ("posterior", "diagonal"),
        ("latent_dim", "20"),
        ("latent_dim", {"import": "jax.nn:relu"}),
        ("encoder", {"class": "vae_jax:MLP", "fields": {"hidden_dims": "ab"}}),
        ("data_shape", {"class": "vae_jax:StandardNormal", "fields": {}}),
    ],
)
def test_a_spec_of_which_there_is_no_model_is_a_value_error(copy, field, value):
    description = json.loads((copy / "spec.json").read_text())
    description["fields"][field] = value
    (copy / "spec.json").write_text(json.dumps(description))
    edit(copy, file("spec.json", manifest._digest(copy / "spec.json")))
    with pytest.raises(ValueError):
        checkpoint.restore(copy)


def test_only_folders_named_by_their_number_count(copy):
    for name in ("0732", "٧", "1e3", "-1", "9" * 99):
        (copy.parent / name).mkdir()
    (copy.parent / "732").write_text("a file")
    assert checkpoint.steps(copy.parent) == [7]


def test_a_link_is_removed_and_not_followed(copy, tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("kept")
    (copy.parent / "8").symlink_to(kept)
    # As a stranger would leave them where a checkpoint is drafted or removed.
    (tmp_path / ".checkpoints-9.draft").symlink_to(kept)
    (tmp_path / ".checkpoints-8.removed").symlink_to(kept)
    checkpoint.remove(copy.parent / "8")
    checkpoint.save(copy.parent / "9", STATE, spec=SPEC)
    checkpoint.verify(copy.parent / "9")
    assert checkpoint.steps(copy.parent) == [7, 9]
    assert (kept / "file").read_text() == "kept"


def test_a_text_comes_back_or_is_corrupt(copy):
    assert checkpoint.read_text(copy, "notes.txt") == "first"
    assert checkpoint.read_text(copy, "others.txt") is None
    (copy / "notes.txt").write_text("other")
    with pytest.raises(CorruptCheckpoint, match="notes.txt"):
        checkpoint.read_text(copy, "notes.txt")
    with pytest.raises(CorruptCheckpoint, match="notes.txt"):
        checkpoint.verify(copy)
