"""Generate README.md of this folder from the records in `results/`."""

import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.published import estimators, miwae
from experiments.published.tables import FIGURES, FOLDER, Cell, Table
from experiments.runner.command_line import parse
from experiments.runner.report import markdown, measured

NAMES = ("reference_vae", "flax_example", "burda", "vampprior", "planar")
HEAD = """# Published tables

One command a row. *Published* is the paper's figure and *here* ours, in nats, with its
standard error over the 10,000 test images; *passes* are those over the training images,
ours and the paper's. No epoch is chosen on the test set; learning rates of our own
follow `docs/results/recipes.md`, whose table is of test figures. The minutes are of
training, by the clock, on two cores that others used too: they are no benchmark. The
record of each row, with all flags, versions and the commit, is in `results/`.

`python -m experiments.published` writes this page from them.
"""
COLUMNS: tuple[str, ...] = (
    "cell",
    "figure",
    "published",
    "here",
    "difference",
    "passes",
    "of the paper's",
    "minutes",
)


def tables() -> list[Table]:
    """Return the tables, in the order of the page."""
    modules = (f"experiments.published.{name}" for name in NAMES)
    return [importlib.import_module(module).TABLE for module in modules]


def page(results: Path) -> str:
    """Format the page from the records of a folder.

    Args:
      results: the folder; a cell without a record is listed as not yet measured.

    Returns:
      Markdown.
    """
    parts = [HEAD]
    for table in tables():
        parts.append(f"## {table.title}\n\nPublished: {table.source}.\n")
        rows, notes = [COLUMNS], []
        for cell in table.cells:
            path = results / f"{table.name}-{cell.name}.json"
            found = json.loads(path.read_text()) if path.exists() else None
            rows += _rows(cell, found)
            note = (
                f"- `{cell.name}`: `{table.command(cell)}`. Deviations: "
                f"{cell.deviations}."
            )
            warned = _warning(found)
            notes.append(note + (f" {warned}" if warned else ""))
        parts += [markdown(rows), "\n".join(["", *notes, ""])]
    parts.append(estimators.section(results))
    path = results / "miwae.json"
    found = json.loads(path.read_text()) if path.exists() else None
    return "\n".join([*parts, miwae.section(found)])


def _rows(cell: Cell, found: Mapping[str, Any] | None) -> list[tuple[str, ...]]:
    rows = []
    for name, value in cell.published.items():
        cells = [f"`{cell.name}`", FIGURES[name], f"{value:.2f}"]
        if found is None:
            rows.append((*cells, "not yet measured", "", "", "", ""))
            continue
        here = found["found"][name]
        passes, paper = found["passes"], found["paper_passes"]
        rows.append(
            (
                *cells,
                measured(here["mean"], here["standard_error"], sign="±"),
                f"{here['mean'] - value:+.2f}",
                f"{passes} of {paper:.0f}",
                f"{passes / paper:.2f}",
                f"{found['training_minutes']:.0f}",
            )
        )
    return rows


def _warning(found: Mapping[str, Any] | None) -> str:
    """Warn about log p(x) if its importance weights are heavy-tailed."""
    share = None if found is None else found["high_pareto_k"]
    if found is None or share is None or "log_evidence" not in found["published"]:
        return ""
    return (
        f"Pareto k of the {found['evaluation_samples']} weights is above 0.7 for "
        f"{share:.0%} of the images: log p(x) is a lower bound."
    )


@dataclass(frozen=True)
class Config:
    """Write the page of published tables from their records."""


def main(argv: Sequence[str] | None = None) -> None:
    """Write the page; the only flag is --help."""
    parse(Config, argv, command="python -m experiments.published")
    (FOLDER / "README.md").write_text(page(FOLDER / "results"))


if __name__ == "__main__":
    main()
