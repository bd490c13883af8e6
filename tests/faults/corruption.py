"""Damage to any file or folder of a run, and who reads it afterwards."""

import shutil
from pathlib import Path

import numpy as np

import vae_jax
from experiments import evaluation_data
from experiments.runner.command_line import CommandFailed
from vae_jax import checkpoint

from .bench import Bench, DidNotHold, require


def flip(path: Path, rng: np.random.Generator, bench: Bench) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(rng.integers(1, 4)):
        if content:
            content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
    path.write_bytes(bytes(content))


def truncate(path: Path, rng: np.random.Generator, bench: Bench) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: rng.integers(len(content) + 1)])


def overwrite(path: Path, rng: np.random.Generator, bench: Bench) -> None:
    content = bytearray(path.read_bytes())
    start = int(rng.integers(len(content) + 1))
    content[start : start + 64] = rng.bytes(64)
    path.write_bytes(bytes(content))


def swap(path: Path, rng: np.random.Generator, bench: Bench) -> None:
    others = sorted(p for p in path.parent.iterdir() if p.is_file() == path.is_file())
    other = others[rng.integers(len(others))]
    if other != path:
        aside = path.rename(path.with_name("aside"))
        other.rename(path)
        aside.rename(other)


def be_a_link(path: Path, rng: np.random.Generator, bench: Bench) -> None:
    is_file = path.is_file()
    remove(path)
    path.symlink_to(bench.outside / ("file" if is_file else "48"))


def be_another_kind(path: Path, rng: np.random.Generator, bench: Bench) -> None:
    is_file = path.is_file()
    remove(path)
    path.mkdir() if is_file else path.write_text("a file")


def remove(path: Path, *unused: object) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


ANYTHING = (remove, swap, be_a_link, be_another_kind)
OF_A_FILE = (
    *(flip, flip, flip, truncate, overwrite, *ANYTHING),
    lambda path, rng, bench: path.write_bytes(b""),
    lambda path, rng, bench: path.write_bytes(2 * path.read_bytes()),
    lambda path, rng, bench: path.write_bytes(bytes(len(path.read_bytes()))),
)


def corruption(rng: np.random.Generator, bench: Bench) -> str:
    """Break one entry of a copy of the run, and read it in one of three ways."""
    folder = bench.copy()
    entries = sorted(p for p in folder.rglob("*") if p.name != ".lock")
    # Checkpoints hold most files; the others are met as often.
    beside = [p for p in entries if "arrays" not in p.parts]
    entries = beside if rng.random() < 0.6 else entries
    path = entries[rng.integers(len(entries))]
    actions = OF_A_FILE if path.is_file() else ANYTHING
    action = actions[rng.integers(len(actions))]
    action(path, rng, bench)
    name = getattr(action, "__name__", "").replace("<lambda>", "fill")
    reader = READERS[rng.integers(len(READERS))]
    what = f"{name} {path.relative_to(folder)}, {reader.__name__}"
    try:
        reader(folder, path, bench)
        bench.require_outside_untouched()
    except DidNotHold as error:
        raise DidNotHold(f"{what}: {error}") from error
    # All errors but these are tracebacks to a user.
    except (ValueError, OSError, CommandFailed) as error:
        bench.require_outside_untouched()
        if not str(error):
            raise DidNotHold(f"{what}: an error without a word") from error
    except Exception as error:
        raise DidNotHold(f"{what}: {error!r}") from error
    return what


def load(folder: Path, path: Path, bench: Bench) -> None:
    """`load_run`, which gives the undisturbed parameters or an error."""
    steps = checkpoint.steps(folder / "checkpoints")
    if steps and steps[-1] == 48:
        require(bench.is_same(vae_jax.load_run(folder)), "other parameters")


def resume(folder: Path, path: Path, bench: Bench) -> None:
    """The same command, which comes to the same to the bit or ends with an error."""
    bench.resume(folder)
    bench.require_same(folder)


def evaluated(folder: Path, path: Path, bench: Bench) -> None:
    """The data and parameters of an evaluation; a changed configuration is said."""
    import contextlib
    import io

    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        trained, found = evaluation_data.of_run(folder)
    if not errors.getvalue():
        wanted = evaluation_data.of_run(bench.folder)
        require(
            np.array_equal(found.test, wanted[1].test)
            and np.array_equal(found.train, wanted[1].train),
            "other data",
        )
    load(folder, path, bench)


READERS = (load, load, load, resume, evaluated)
