"""The README: its Python is executed, its files and commands exist."""

import re
from pathlib import Path

import pytest

from experiments import figures

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()


BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.S)


def test_every_python_block_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # Drawing takes seconds and has tests of its own.
    monkeypatch.setattr(figures, "draw_all", lambda *args, **kwargs: [])
    assert len(BLOCKS) >= 8
    namespace = {"__name__": "readme"}
    for block in BLOCKS:
        exec(compile(block, "README.md", "exec"), namespace)
    assert namespace["pictures"].shape == (16, 64)
    assert namespace["between"].shape == (5, 8, 64)


@pytest.mark.parametrize("name", re.findall(r"\]\(([^)h][^)]*)\)", TEXT))
def test_linked_files_exist(name):
    assert (ROOT / name).exists()


def test_mapped_files_exist():
    rows = re.findall(r"^\| (`vae_jax/.*?|`experiments/.*?) \|", TEXT, re.M)
    assert len(rows) >= 8
    for row in rows:
        folder = None
        for name in re.findall(r"`([^`]*)`", row):
            path = ROOT / name if "/" in name else folder / name
            folder = path.parent
            assert path.exists(), name


def test_every_flag_that_is_named_exists():
    from experiments.mnist import Config

    flags = set(re.findall(r"`--(\w+)", TEXT.split("## The command")[1]))
    flags -= {"help"}
    assert len(flags) >= 10
    assert flags <= set(Config.__dataclass_fields__)


def test_commands_are_targets_of_the_makefile():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"`?make ([a-z-]+)", TEXT)) - {"of"} <= targets
