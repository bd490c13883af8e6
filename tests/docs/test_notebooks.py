"""The notebooks: their structure, and, slow, that each runs as a plain script."""

import os
import re
import runpy
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

from experiments.style import STYLE

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("[0-9]*.py"))
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


class Cell(NamedTuple):
    is_markdown: bool
    text: str


def read_cells(path: Path) -> list[Cell]:
    """Cells of a percent-format file; markdown without its comment signs."""
    header, *parts = re.split(r"(?m)^# %%", path.read_text())
    assert re.fullmatch(r"# ---\n(# .*\n)+# ---\n\n", header), "a jupytext header"
    assert "format_name: percent" in header
    cells = []
    for part in parts:
        options, text = part.split("\n", 1)
        assert options in ("", " [markdown]"), options
        if options:
            lines = text.rstrip().splitlines()
            assert all(re.match(r"#( |$)", line) for line in lines), text
            text = "\n".join(line[2:] for line in lines)
        cells.append(Cell(bool(options), text))
    return cells


def test_notebooks_are_numbered():
    numbers = [int(path.stem.split("_")[0]) for path in NOTEBOOKS]
    assert numbers == list(range(1, len(NOTEBOOKS) + 1))
    assert numbers


@each
def test_every_cell_is_prose_or_python(path):
    cells = read_cells(path)
    assert cells[0].is_markdown and cells[0].text.startswith("# ")
    for cell in cells:
        assert cell.text.strip()
        if cell.is_markdown:
            assert cell.text.count("$") % 2 == 0, cell.text
            assert cell.text.count("**") % 2 == 0, cell.text
        else:
            compile(cell.text, path.name, "exec")
            assert len(cell.text.splitlines()) <= 45, "short cells"


@each
def test_claims_are_asserted_and_figures_shown(path):
    code = "".join(cell.text for cell in read_cells(path) if not cell.is_markdown)
    assert len(re.findall(r"^(?:assert |np\.testing\.assert_)", code, re.M)) >= 8
    assert code.count("plt.show()") >= 3
    assert code.count("subplots(") == code.count("plt.show()")


@each
def test_three_exercises_have_solutions_that_run(path):
    cells = read_cells(path)
    of_exercises = [cell for cell in cells if cell.text.startswith("## Exercises")]
    assert len(of_exercises) == 1
    asked = re.findall(r"^(\d)\. \*\*(.+?)\.?\*\*", of_exercises[0].text, re.M)
    assert [number for number, _ in asked] == ["1", "2", "3"]
    solutions = cells[cells.index(of_exercises[0]) + 1 :]
    assert solutions[0].text.startswith("## Solutions")
    answered = []
    for cell, following in pairwise(solutions):
        for heading in re.findall(r"^### (\d)\. (.+)$", cell.text, re.M):
            answered.append(heading)
            assert not following.is_markdown and "assert" in following.text
    assert answered == asked


@each
def test_files_hold_neither_paths_nor_output(path):
    text = path.read_text()
    assert not re.search(r"""["'](/|[A-Z]:\\|~/|\.\./)""", text)
    assert not re.search(r"execution_count|image/png|savefig|np\.savez|open\(", text)
    assert not re.search(r"^[%!]", text, re.M)


def test_their_figures_have_the_style_of_the_commands():
    """The module stands alone, since readers download it with a notebook."""
    assert runpy.run_path(str(FOLDER / "figures.py"))["STYLE"] == STYLE


@pytest.mark.slow
@each
def test_notebook_runs_as_a_script(path, tmp_path):
    environment = os.environ | {"MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT)}
    environment["XLA_FLAGS"] = ""
    found = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", path],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert found.returncode == 0, found.stderr[-3000:]
    assert not list(tmp_path.iterdir())
