"""Disks that are full, streams that are closed, signals at the wrong moment."""

import dataclasses
import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import pytest

import vae_jax
from experiments import figures, mnist
from experiments.runner import run_folder, signals, training
from experiments.runner.command_line import execute
from vae_jax import checkpoint, manifest

ROOT = Path(__file__).parents[2]
TINY = mnist.Config(
    dataset="digits",
    likelihood="bernoulli",
    epochs=2,
    checkpoint_every=1,
    beta_warmup_epochs=0.0,
    hidden_dims=(8,),
    latent_dim=2,
    evaluation_samples=0,
)
FLAGS = (
    "--dataset=digits --likelihood=bernoulli "
    "--epochs=300 --checkpoint_every=1 --beta_warmup_epochs=0 "
    "--hidden_dims 8 --latent_dim=2 --evaluation_samples=0"
).split()


@pytest.fixture(autouse=True)
def not_in_the_background():
    """Or processes that are started here ignore SIGINT, as this one then does."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr(figures, "draw_all", lambda *args, **kwargs: [])


def ends(function, code, capsys):
    """Run a command; its one line."""
    with pytest.raises(SystemExit) as stop:
        execute(lambda config: function(), None)
    assert stop.value.code == code
    printed = capsys.readouterr().err
    assert printed.count("\n") == (code != 128 + signal.SIGPIPE)
    return printed


def run(folder, **changes):
    return mnist.run(dataclasses.replace(TINY, run_dir=str(folder), **changes))


def disk(bytes_free, files_free):
    return lambda path: SimpleNamespace(
        f_bavail=bytes_free, f_frsize=1, f_files=10**6, f_favail=files_free
    )


@pytest.mark.long
@pytest.mark.parametrize("free", [(10_000, 10**6), (10**9, 3)], ids=["bytes", "files"])
def test_a_full_disk_is_one_line_and_the_run_goes_on_with_room(
    tmp_path, capsys, monkeypatch, free
):
    monkeypatch.setattr(os, "statvfs", disk(*free))
    printed = ends(lambda: run(tmp_path), 1, capsys)
    assert ".checkpoints-12.draft: No space left on device: a checkpoint" in printed
    assert not checkpoint.steps(tmp_path / "checkpoints")
    monkeypatch.undo()
    monkeypatch.setattr(figures, "draw_all", lambda *args, **kwargs: [])
    assert run(tmp_path)["step"] == 24
    assert not list(tmp_path.glob(".*.draft"))


def test_a_disk_that_fills_up_under_orbax_is_named(tmp_path, monkeypatch, caplog):
    """Its words, at the end of two screens of them."""

    class Orbax:
        def save(self, *arguments):
            raise ValueError("... Error writing ... [os_error_code='28']")

    class Checkpointer:
        __enter__ = staticmethod(Orbax)
        __exit__ = staticmethod(lambda *error: None)

    monkeypatch.setattr(manifest, "checkpointer", Checkpointer)
    with pytest.raises(OSError, match="No space left on device") as full:
        checkpoint.save(
            tmp_path / "checkpoints" / "1", {"a": jnp.ones(1)}, spec=vae_jax.ModelSpec()
        )
    assert full.value.errno == errno.ENOSPC and "1.draft" in full.value.filename


def test_orbax_does_not_log_what_it_raises(tmp_path, caplog):
    checkpoint.save(
        tmp_path / "checkpoints" / "1", {"a": jnp.ones(1)}, spec=vae_jax.ModelSpec()
    )
    path = tmp_path / "checkpoints" / "1"
    (path / "arrays" / "_METADATA").write_text("{")
    with pytest.raises(checkpoint.CorruptCheckpoint):
        manifest._read_arrays(path, {"state.a": {"shape": [1], "dtype": "float32"}})
    assert not caplog.records


@pytest.mark.long
@pytest.mark.parametrize(
    "name, mode", [("metrics.jsonl", "a"), ("config.json", "w"), ("results.json", "w")]
)
def test_a_file_that_cannot_be_written_is_named(
    tmp_path, capsys, monkeypatch, name, mode
):
    """Python's own error for a write names no file."""
    real = open

    def full(file, *arguments, **named):
        opened = real(file, *arguments, **named)
        if name in str(file) and arguments[:1] == (mode,):
            opened.close()
            opened = real("/dev/full", "w", buffering=1)
        return opened

    monkeypatch.setattr("builtins.open", full)
    printed = ends(lambda: run(tmp_path, epochs=1), 1, capsys)
    assert f"{tmp_path / name}: No space left on device; run the same " in printed


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path, capsys, monkeypatch):
    def full(path, *arguments, **named):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Path, "mkdir", full)
    printed = ends(lambda: run(tmp_path / "run"), 1, capsys)
    assert "run: No space left on device" in printed


def test_a_folder_that_is_removed_while_training_is_named(
    tmp_path, capsys, monkeypatch
):
    save, folder = training.Run.save, tmp_path / "run"

    def removed(own, *arguments):
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        (folder / "config.json").unlink(missing_ok=True)
        save(own, *arguments)

    monkeypatch.setattr(training.Run, "save", removed)
    printed = ends(lambda: run(folder), 1, capsys)
    assert "config.json: was removed while training" in printed


def test_checkpoints_that_are_a_file_are_named(tmp_path, capsys):
    run(tmp_path / "run", epochs=1)
    capsys.readouterr()
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "checkpoints").write_text("a file")
    printed = ends(lambda: run(tmp_path / "run", epochs=1), 1, capsys)
    assert "run/checkpoints" in printed and "exist" in printed.lower()


def test_out_of_memory_is_one_line(capsys):
    def fail():
        raise MemoryError("Unable to allocate 8 TiB")

    assert "error: out of memory: Unable" in ends(fail, 1, capsys)


def test_a_reader_that_left_ends_the_command_quietly(capsys):
    def fail():
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    assert ends(fail, 128 + signal.SIGPIPE, capsys) == ""


@pytest.mark.parametrize("flag", ["run_dir", "dataset", "data_dir"])
def test_a_path_that_is_no_text_is_refused(tmp_path, flag, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.npz")
    with pytest.raises(ValueError, match=rf"--{flag} must be UTF-8, got .*\\udcff"):
        mnist.check(dataclasses.replace(TINY, **{flag: path}))
    with pytest.raises(ValueError, match="--run_dir must be UTF-8"):
        with run_folder.locked(Path(path)):
            pass
    assert not list(tmp_path.iterdir())


# In processes of their own, without a device more than a user has.


def command(*arguments, before="", redirections="", **options):
    xla = " ".join(f for f in os.environ["XLA_FLAGS"].split() if "count" not in f)
    script = f'{before} exec "$0" -m experiments.mnist "$@" {redirections}'
    return subprocess.Popen(
        ["sh", "-c", script, sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": xla},
        **options,
    )


IMPORTING = """
import os, signal, sys
sys.argv[:1] = ["-m"]
import experiments
try:
    os.kill(os.getpid(), signal.SIGINT)
    while True: pass
except BaseException:
    print("an import that swallows everything")
"""


def test_ctrl_c_during_imports_is_one_line():
    done = subprocess.run(
        [sys.executable, "-c", IMPORTING], cwd=ROOT, capture_output=True, timeout=60
    )
    assert done.returncode == 130 and not done.stdout
    assert done.stderr == b"interrupted: run the same command to resume\n"


EVALUATING = """
import os, signal, sys
sys.argv[:1] = ["-m"]
from experiments import final_evaluation, mnist
final_evaluation.evaluate = lambda *given: os.kill(os.getpid(), signal.SIGTERM)
mnist.main(sys.argv[1:])
"""


@pytest.mark.long
def test_sigterm_in_the_final_evaluation_is_one_line(tmp_path):
    flags = ["--dataset=digits", "--epochs=1", "--hidden_dims=8", "--latent_dim=2"]
    done = subprocess.run(
        [sys.executable, "-c", EVALUATING, *flags, f"--run_dir={tmp_path}"],
        cwd=ROOT,
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 143
    assert done.stderr == b"interrupted: run the same command to resume\n"
    assert checkpoint.steps(tmp_path / "checkpoints")


PREPARED = """
import os, sys
sys.argv[:1] = ["-m"]
import experiments
sys.argv[:1] = ["command"]
print("to stdout")
print("to stderr", file=sys.stderr)
name = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)
assert name > 2, name
"""


@pytest.mark.parametrize("closed", ["", "0", "1", "2", "12", "012"])
def test_streams_that_are_closed_are_opened(tmp_path, closed):
    """Else the first file would be where Python and C print."""
    redirections = " ".join(f"{number}>&-" for number in closed)
    script = f'exec "$0" -c "$1" "$2" {redirections}'
    done = subprocess.run(
        ["sh", "-c", script, sys.executable, PREPARED, tmp_path / "file"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ("" if "1" in closed else "to stdout\n")
    assert done.stderr == ("" if "2" in closed else "to stderr\n")
    assert (tmp_path / "file").read_bytes() == b""


def test_nothing_happens_to_a_process_that_is_no_command():
    script = "import signal, experiments; print(signal.getsignal(signal.SIGINT))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True
    )
    assert "default_int_handler" in done.stdout


def test_a_second_signal_is_that_of_before():
    acted = []
    before = signal.signal(signal.SIGTERM, lambda *arguments: acted.append("at once"))
    try:
        with signals.collected() as received:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert received == [signal.SIGTERM] and acted == ["at once"]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["head", "dev_full", "closed", "two signals", "limit"])
def test_a_command_in_a_bad_environment(tmp_path, case):
    folder, errors = tmp_path / "run", tmp_path / "errors"
    options = {"stdout": subprocess.DEVNULL, "redirections": f"2>{errors}"}
    if case == "head":
        options["stdout"] = subprocess.PIPE
    if case == "dev_full":
        options["redirections"] += " >/dev/full"
    if case == "limit":
        options["before"] = "ulimit -f 16;"
    if case == "closed":
        options["redirections"] = "2>&-"
        errors.touch()
    flags = [flag.replace("300", "3") if case == "closed" else flag for flag in FLAGS]
    process = command(*flags, f"--run_dir={folder}", **options)
    if case == "head":
        process.stdout.readline()
        process.stdout.close()
    if case == "two signals":
        while not checkpoint.steps(folder / "checkpoints"):
            time.sleep(0.05)
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)
    code = process.wait(120)
    printed = errors.read_text()
    assert "Traceback" not in printed and printed.count("\n") <= 1
    expected, message = {
        "head": (141, ""),
        "dev_full": (1, "standard output: No space left on device"),
        "closed": (0, ""),
        "two signals": (130, "interrupted: "),
        "limit": (1, "File too large"),
    }[case]
    assert code == expected and message in printed, printed


def test_destructors_of_a_command_say_nothing():
    program = (
        "from experiments.runner import startup; startup.prepare()\n"
        "class HalfMade:\n"
        "    def __del__(self): self.never_set\n"
        "HalfMade()\n"
        "async def wait(): pass\n"
        "wait()"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_threads_that_outlive_a_save_log_nothing():
    program = (
        "import experiments.runner.startup as startup; startup.prepare()\n"
        "from absl import logging\n"
        "from experiments.runner.command_line import execute\n"
        "execute(lambda config: logging.error('from a thread'), None)"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
