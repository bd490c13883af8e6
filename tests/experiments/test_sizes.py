"""Values that no machine holds, refused before anything is written."""

import dataclasses
import io
import re
import zipfile

import numpy as np
import pytest
import scipy.sparse

from experiments import mnist, sweep
from experiments.defaults import resolve
from experiments.runner import memory
from vae_jax import data
from vae_jax.data import files
from vae_jax.data import memory as file_memory

ABSURD = {
    "beta": ("--beta=1e300", "--beta must be 0 or of a size from 1e-37 to 1e37"),
    "learning rate": ("--learning_rate=1e38", "--learning_rate must be"),
    "subnormal": ("--learning_rate=1e-320", "--learning_rate must be 0 or of a size"),
    "variance": ("--variance=1e-300", "--variance must be 0 or of a size"),
    "order": ("--renyi_alpha=1e200", "--renyi_alpha must be 0 or of a size"),
    "count": ("--batch_size=100000000000", "--batch_size must be at most 2147483647"),
    "huge count": (f"--latent_dim={10**400}", "--latent_dim must be at most|Exceeds"),
    "evaluation": (f"--evaluation_samples={10**12}", "--evaluation_samples must be at"),
    "empty folder": ("--run_dir=", "--run_dir must be some text, got ''"),
    "home of nobody": ("--run_dir=~nobody/x", "--run_dir must be a path without ~"),
    "home": ("--data_dir=~/x", "--data_dir must be a path without ~"),
    "address": ("--coordinator_address=nonsense", "must be host:port, or auto"),
    "latents": ("--latent_dim=100000000", "needs at least .* GB of memory"),
    "rank": ("--posterior=low_rank --rank=900000000", "needs at least .* GB"),
    "components": ("--prior=mixture --num_components=1000000000", "needs at least"),
    "samples": ("--num_samples=1000000000", r"GB of --num_samples 1000000000 for"),
}


@pytest.mark.parametrize("name", ABSURD)
@pytest.mark.parametrize("command", [mnist, sweep], ids=lambda m: m.__name__)
def test_a_value_that_no_machine_holds_is_one_line(
    name, command, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    given, message = ABSURD[name]
    with pytest.raises(SystemExit) as stop:
        command.main(["--dataset=digits", "--epochs=1", *given.split()])
    printed = capsys.readouterr().err
    assert stop.value.code == 2
    assert printed.count("\n") == 1 and printed.startswith("error: ")
    assert re.search(message, printed), printed
    assert not list(tmp_path.iterdir())


def test_the_estimate_counts_what_training_holds(monkeypatch):
    """By hand: an encoder 64-400-4 and a decoder 2-400-64, two moments of Adam."""
    config = mnist.Config(
        latent_dim=2,
        batch_size=100,
        num_samples=3,
        dataset="digits",
        likelihood="bernoulli",
        epochs=1,
    )
    digits = data.load("digits")
    config = resolve(config, digits)
    spec = mnist.choices.model_spec(config, digits)
    weights = 64 * 400 + 400 + 400 * 4 + 4 + 2 * 400 + 400 + 400 * 64 + 64
    expected = 4 * (4 * weights + 300 * (2 + 64))

    def make():
        return mnist.initial_state(config, spec, digits)

    # Beside them three counters and a key of two words.
    monkeypatch.setattr(memory, "free_bytes", lambda: expected + 64)
    memory.require(make, config, num_examples=1000)
    monkeypatch.setattr(memory, "free_bytes", lambda: expected - 1)
    with pytest.raises(ValueError, match="needs at least"):
        memory.require(make, config, num_examples=1000)
    monkeypatch.setattr(memory, "free_bytes", lambda: 7 * expected)
    # A batch has no more examples than there are.
    huge = dataclasses.replace(config, batch_size=10**8)
    memory.require(make, huge, num_examples=100)
    with pytest.raises(ValueError, match="10 x "):
        memory.require(make, config, num_examples=1000, num_models=10)


def header(shape, dtype="<f4"):
    """The beginning of a `.npy`, and nothing of what it promises."""
    file = io.BytesIO()
    described = {"shape": shape, "fortran_order": False, "descr": dtype}
    np.lib.format.write_array_header_2_0(file, described)
    return file.getvalue()


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_a_file_that_unpacks_to_more_than_the_memory_is_refused(tmp_path, suffix):
    path = tmp_path / f"bomb{suffix}"
    content = header((10**7, 10**7))
    if suffix == ".npy":
        path.write_bytes(content)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x.npy", content)
    with pytest.raises(ValueError, match=r"800,000.0 GB of memory, and .* available"):
        files.load_file(path, 0, None, None, "error")


def test_what_is_not_read_is_not_counted(tmp_path):
    path = tmp_path / "data.npz"
    np.savez(path, x=np.linspace(0, 1, 40).reshape(20, 2))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("other.npy", header((10**7, 10**7)))
    assert files.load_file(path, 0, None, None, "error").train.shape[1] == 2


def test_the_memory_of_a_file_is_that_of_its_header(monkeypatch):
    file = io.BytesIO()
    np.savez(file, x=np.zeros((10, 3)), y=np.zeros(10, np.int32))
    file.seek(0)
    # 30 of 8 bytes, 10 of 4, and each as a float32.
    monkeypatch.setattr(file_memory, "available_bytes", lambda: 30 * 12 + 10 * 8)
    file_memory.require_room(file, ["x", "y"])
    monkeypatch.setattr(file_memory, "available_bytes", lambda: 30 * 12 + 10 * 8 - 1)
    with pytest.raises(ValueError, match="are available"):
        file_memory.require_room(file, ["x", "y"])


def test_a_sparse_file_is_counted_as_it_unpacks(tmp_path):
    scipy.sparse.save_npz(tmp_path / "x.npz", scipy.sparse.csr_matrix((10**7, 10**7)))
    with pytest.raises(ValueError, match=r"1,200,000.0 GB of memory"):
        files.load_file(tmp_path / "x.npz", 0, None, None, "error")


@pytest.mark.parametrize(
    "names",
    [
        ("memory.max", "memory.current", "memory.stat"),
        (
            "memory/memory.limit_in_bytes",
            "memory/memory.usage_in_bytes",
            "memory/memory.stat",
        ),
    ],
)
def test_pages_of_files_are_memory_that_a_group_gives_back(
    names, tmp_path, monkeypatch
):
    monkeypatch.setattr(file_memory, "_GROUP", tmp_path)
    (tmp_path / "memory").mkdir()
    limit, usage, statistics = (tmp_path / name for name in names)
    limit.write_text("1000\n")
    usage.write_text("1000\n")
    statistics.write_text("anon 300\ninactive_file 600\nactive_file 100\n")
    assert file_memory.available_bytes() == 700
    limit.write_text("max\n")
    assert file_memory.available_bytes() > 10**6
