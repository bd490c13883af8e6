"""A small run that faults happen to, and what it comes to without them."""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

import vae_jax
from experiments import figures, mnist

ROOT = Path(__file__).parents[2]
CONFIG = mnist.Config(
    dataset="digits",
    likelihood="bernoulli",
    epochs=4,
    checkpoint_every=1,
    validation=100,
    hidden_dims=(8,),
    latent_dim=2,
    evaluation_samples=0,
)
FLAGS = (
    "--dataset=digits --likelihood=bernoulli "
    "--epochs=4 --checkpoint_every=1 --validation=100 "
    "--hidden_dims 8 --latent_dim=2 --evaluation_samples=0"
).split()


class DidNotHold(AssertionError):
    """A fault that was silent, ended in a traceback, or reached outside the folder."""


def require(holds: Any, what: str) -> None:
    """Raise unless something holds."""
    if not holds:
        raise DidNotHold(what)


class Bench:
    """The finished run, and a place to break copies of it.

    Attributes:
      folder: of the finished run.
      outside: a folder that nothing may touch.
    """

    def __init__(self) -> None:
        """Train the run."""
        self._place = tempfile.TemporaryDirectory(prefix="vae_jax-faults-")
        place = Path(self._place.name)
        self.folder, self.outside = place / "finished" / "run", place / "outside"
        self._scratch, self._count = place / "scratch", 0
        (self.outside / "48").mkdir(parents=True)
        (self.outside / "48" / "file").write_text("kept")
        (self.outside / "file").write_text("kept")
        # Drawing takes seconds, and is no part of what may break.
        figures.draw_all = lambda *arguments, **named: []
        self.resume(self.folder)
        self.results, self.rows = outcome(self.folder)
        self.params = jax.device_get(vae_jax.load_run(self.folder))
        self._before = self._outside()

    def close(self) -> None:
        """Remove all of it."""
        self._place.cleanup()

    def copy(self) -> Path:
        """A copy of the finished run, under the same name in a new folder."""
        return shutil.copytree(self.folder, self.empty())

    def empty(self) -> Path:
        """A folder that does not exist yet, the only one of its kind."""
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._count += 1
        return self._scratch / str(self._count) / "run"

    def resume(self, folder: Path) -> str:
        """Run the command on a folder, in this process; what it printed as errors."""
        config = dataclasses.replace(CONFIG, run_dir=str(folder))
        errors, output = io.StringIO(), contextlib.redirect_stdout(io.StringIO())
        with contextlib.redirect_stderr(errors), output:
            mnist.run(config)
        return errors.getvalue()

    def require_same(self, folder: Path) -> None:
        """Raise unless a folder holds what the undisturbed run does, to the bit."""
        results, rows = outcome(folder)
        require(results == self.results, f"results {results} for {self.results}")
        require(rows == self.rows, f"metrics {rows} for {self.rows}")
        require(self.is_same(vae_jax.load_run(folder)), "other parameters")

    def is_same(self, params: vae_jax.Params) -> bool:
        """Whether parameters are those of the undisturbed run, to the bit."""
        pairs = zip(jax.tree.leaves(params), jax.tree.leaves(self.params), strict=True)
        return all(np.array_equal(np.asarray(one), other) for one, other in pairs)

    def require_outside_untouched(self) -> None:
        """Raise if something outside the run's folder has changed."""
        require(self._outside() == self._before, "a file outside the folder changed")

    def _outside(self) -> list[tuple[str, str]]:
        return [
            (str(p), hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "")
            for p in sorted(self.outside.rglob("*"))
        ]

    def start(
        self,
        *flags: str,
        module: tuple[str, ...] = ("experiments.mnist",),
        before: str = "",
        redirections: str = "",
        **options: Any,
    ) -> subprocess.Popen:
        """Start the command in a process of its own, by a shell."""
        script = f'{before} exec "$0" -m "$@" {redirections}'
        return subprocess.Popen(
            ["sh", "-c", script, sys.executable, *module, *FLAGS, *flags],
            cwd=ROOT,
            env=os.environ | options.pop("env", {}),
            stdout=options.pop("stdout", subprocess.PIPE),
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )


def outcome(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Results and metrics of a run, without what a clock put there."""
    results = json.loads((folder / "results.json").read_text())
    results = {
        name: value
        for name, value in results.items()
        if name.startswith(("test_", "best_", "active", "step", "epochs"))
    }
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) | {"images_per_second": None} for line in lines]
    return results, rows


def require_one_line(code: int, errors: str, codes: tuple[int, ...]) -> None:
    """Raise unless a process that failed ended with one line and such a code."""
    require(code in codes, f"exit code {code}: {errors[-500:]}")
    require("Traceback" not in errors, f"a traceback: {errors[-500:]}")
    last = [line for line in errors.splitlines() if not line.startswith("warning: ")]
    require(len(last) <= 1, f"more than a line: {errors[:500]}")
