"""Kills, environments, races and lost processes: commands in processes of their own."""

import contextlib
import dataclasses
import io
import os
import signal
import socket
import time
from pathlib import Path

import numpy as np

from experiments import mnist
from vae_jax import checkpoint, data

from .bench import Bench, DidNotHold, require, require_one_line
from .killed import POINTS

SECONDS = 120
KILLED = ("tests.faults.killed",)


def random_kill(rng: np.random.Generator, bench: Bench) -> str:
    """SIGKILL at random moments, until the command ends; then it is as if none came."""
    folder, kills = bench.empty(), 0
    for _ in range(3):
        process = bench.start(f"--run_dir={folder}", module=(*KILLED, "row", "0", "-"))
        # Training begins after some seconds of imports and compilation.
        time.sleep(rng.uniform(2.0, 9.0))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
    finish(folder, bench)
    return f"{kills} kills at random moments"


def aimed_kill(rng: np.random.Generator, bench: Bench) -> str:
    """SIGKILL at a named point, once or twice, and to the end."""
    folder, told, kills = bench.empty(), [], 0
    for _ in range(2):
        point = sorted(POINTS)[rng.integers(len(POINTS))]
        number, when = int(rng.integers(1, 9)), ("before", "after")[rng.integers(2)]
        process = bench.start(
            f"--run_dir={folder}", module=(*KILLED, point, str(number), when)
        )
        _, errors = process.communicate(timeout=SECONDS)
        told.append(f"{when} {point} {number}")
        kills += process.returncode == -signal.SIGKILL
        if process.returncode != -signal.SIGKILL:
            require(process.returncode == 0, f"{told}: {errors[-500:]}")
    finish(folder, bench)
    return f"{kills} kills {', '.join(told)}"


def finish(folder: Path, bench: Bench) -> None:
    """The same command to its end, here, and the undisturbed run's figures."""
    errors = bench.resume(folder)
    require(not errors, errors)
    bench.require_same(folder)
    kept = len(checkpoint.steps(folder / "checkpoints"))
    require(kept <= 3, f"{kept} checkpoints are kept")
    best = (folder / "checkpoints" / "best.json").read_text()
    expected = (bench.folder / "checkpoints" / "best.json").read_text()
    require(best == expected, f"{best} for {expected}")


ENVIRONMENTS = {
    "no stderr": {"redirections": "2>&-"},
    "no stdout": {"redirections": ">&-"},
    "no stdin": {"redirections": "<&-"},
    "no streams": {"redirections": "<&- >&- 2>&-"},
    "full stdout": {"redirections": ">/dev/full"},
    "full stderr": {"redirections": "2>/dev/full"},
    "files of 8 kB": {"before": "ulimit -f 16;"},
    "files of 100 kB": {"before": "ulimit -f 200;"},
    "ASCII": {"env": {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}},
    "no home": {"env": {"HOME": "/nonexistent"}},
    "no TMPDIR": {"env": {"TMPDIR": "/nonexistent"}},
    "a dumb terminal": {"env": {"TERM": "dumb", "COLUMNS": "1"}},
    "12 open files": {"before": "ulimit -n 12;"},
    "40 open files": {"before": "ulimit -n 40;"},
}


def environment(rng: np.random.Generator, bench: Bench) -> str:
    """A command in a bad environment, and once more in a good one."""
    name = sorted(ENVIRONMENTS)[rng.integers(len(ENVIRONMENTS))]
    folder = bench.empty()
    process = bench.start(f"--run_dir={folder}", **ENVIRONMENTS[name])
    _, errors = process.communicate(timeout=SECONDS)
    if process.returncode:
        require_one_line(process.returncode, errors, (1,))
    bench.resume(folder)
    bench.require_same(folder)
    return f"{name}: exit code {process.returncode}"


def interruption(rng: np.random.Generator, bench: Bench) -> str:
    """Ctrl-C or SIGTERM, once or twice, at a random moment."""
    folder, number = bench.empty(), (signal.SIGINT, signal.SIGTERM)[rng.integers(2)]
    times, moment = int(rng.integers(1, 3)), rng.uniform(0.3, 8.0)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = bench.start(f"--run_dir={folder}")
    signal.signal(signal.SIGINT, before)
    time.sleep(moment)
    for _ in range(times):
        process.send_signal(number)
    _, errors = process.communicate(timeout=SECONDS)
    require_one_line(process.returncode, errors, (0, -number, 128 + number))
    bench.resume(folder)
    bench.require_same(folder)
    return f"{times} x {number.name} after {moment:.1f} s: {process.returncode}"


def race(rng: np.random.Generator, bench: Bench) -> str:
    """The same command twice at once: one trains, the other is refused or finds it."""
    folder = bench.empty()
    both = [bench.start(f"--run_dir={folder}") for _ in range(2)]
    said = [process.communicate(timeout=SECONDS)[1] for process in both]
    codes = sorted(process.returncode for process in both)
    require(codes in ([0, 0], [0, 2]), f"exit codes {codes}: {said}")
    for process, errors in zip(both, said, strict=True):
        require_one_line(process.returncode, errors, (0, 2))
    bench.require_same(folder)
    return f"exit codes {codes}"


def lost(rng: np.random.Generator, bench: Bench) -> str:
    """One of two processes is killed: the other names it within 30 seconds."""
    folder, victim = bench.empty(), int(rng.integers(2))
    folder.parent.mkdir(parents=True)
    flags = ["--num_processes=2", "--epochs=500", f"--run_dir={folder}"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        flags.append(f"--coordinator_address=127.0.0.1:{free.getsockname()[1]}")
    xla = os.environ.get("XLA_FLAGS", "").replace("device_count=8", "device_count=1")
    both = [
        bench.start(
            *flags,
            f"--process_id={number}",
            env={"XLA_FLAGS": xla},
            stdout=-3,
        )
        for number in range(2)
    ]
    deadline = time.monotonic() + SECONDS
    while not checkpoint.steps(folder / "checkpoints") and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(rng.uniform(0, 2))
    both[victim].send_signal(signal.SIGKILL)
    both[victim].communicate()
    began = time.monotonic()
    other = both[1 - victim]
    _, errors = other.communicate(timeout=SECONDS)
    seconds = time.monotonic() - began
    require_one_line(other.returncode, errors, (1,))
    require(f"lost process {victim};" in errors, errors)
    require(seconds < 30, f"{seconds:.0f} s")
    return f"process {victim}; the other ended after {seconds:.1f} s"


ABSURD = ("nan", "inf", "-inf", "-1", "1e300", "1e-320", "word", "", "9" * 40, "~x")
NUMERIC = [
    field.name
    for field in dataclasses.fields(mnist.Config)
    if any(kind in str(field.type) for kind in ("Count", "Natural", "NonNegative"))
    or field.name in ("seed", "learning_rate", "variance", "ema_decay", "run_dir")
]


def flag(rng: np.random.Generator, bench: Bench) -> str:
    """A value that no flag takes: one line, exit code 2, nothing written."""
    name, value = NUMERIC[rng.integers(len(NUMERIC))], ABSURD[rng.integers(10)]
    folder = bench.empty()
    flags = ["--dataset=digits", f"--run_dir={folder}", f"--{name}={value}"]
    if name == "run_dir" and value not in ("", "~x"):
        return f"--{name}={value!r} is a name"
    errors, code = io.StringIO(), 0
    try:
        output = contextlib.redirect_stdout(io.StringIO())
        with contextlib.redirect_stderr(errors), output:
            mnist.main(flags)
    except SystemExit as stop:
        code = int(stop.code or 0)
    except Exception as error:
        raise DidNotHold(f"--{name}={value!r}: {error!r}") from error
    said = f"--{name}={value!r}: {errors.getvalue()}"
    require_one_line(code, said, (2,))
    require(not folder.exists(), f"{said}: it was written")
    return f"--{name}={value!r}"


class Marker:
    """An object whose unpickling would leave a mark."""

    def __init__(self, path: Path):
        """With the place of the mark."""
        self.path = path

    def __reduce__(self):
        """Make the folder."""
        return (os.mkdir, (str(self.path),))


def hostile_file(rng: np.random.Generator, bench: Bench) -> str:
    """A damaged or hostile file of data: an error with its name, or the data."""
    folder = bench.empty()
    folder.mkdir(parents=True)
    path, mark = folder / "data.npz", folder / "mark"
    x = np.linspace(0, 1, 200).reshape(50, 4)
    kind = ("flips", "cut", "pickle", "noise", "header")[rng.integers(5)]
    np.savez_compressed(path, x=x)
    content = bytearray(path.read_bytes())
    if kind == "flips":
        for _ in range(rng.integers(1, 6)):
            content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
    if kind == "cut":
        content = content[: rng.integers(len(content))]
    if kind == "noise":
        content = bytearray(rng.bytes(int(rng.integers(500))))
    if kind == "pickle":
        np.savez(path, x=np.array([Marker(mark)], dtype=object))
        content = bytearray(path.read_bytes())
    if kind == "header":
        file = io.BytesIO()
        shape = tuple(int(n) for n in rng.integers(1, 2**40, size=2))
        described = {"shape": shape, "fortran_order": False, "descr": "<f8"}
        np.lib.format.write_array_header_2_0(file, described)
        path, content = path.with_suffix(".npy"), bytearray(file.getvalue())
    path.write_bytes(bytes(content))
    try:
        found = data.load(str(path))
    except ValueError as error:
        require(path.name in str(error), f"{kind}: no name in {error}")
    except Exception as error:
        raise DidNotHold(f"{kind}: {error!r}") from error
    else:
        require(found.train.shape[1] == 4, f"{kind}: {found.train.shape}")
    require(not mark.exists(), f"{kind}: code was run")
    return kind
