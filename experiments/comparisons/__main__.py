"""Write README.md of this folder from the records in `results/`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.comparisons import counts, scvi_tools, tables
from experiments.comparisons.protocol import FOLDER
from experiments.runner.command_line import parse

HEAD = """# Held-out log p(x) of tables and counts

A VAE beside other densities on data that come with scikit-learn, and beside itself
with other likelihoods on counts. Every row is held out in one of five folds. Every
model makes its choices on the same validation rows of a fold (a fifth of the others),
is fitted again to training and validation rows, and is measured on the rows held out:
log p(x) in nats a row, in the units of the data, ± a standard error over rows. The
difference to the reference is that of paired rows. Log p(x) of a VAE takes 5000
importance samples of a row, drawn from its best Gaussian q with twice the variance: of
rows unlike all others the encoder's q is so far off that its samples miss p(z|x).

`python -m experiments.comparisons` writes this page from the records in `results/`,
which hold all flags, versions and the commit.
"""


def page(results: Path) -> str:
    """Generate the page from the records of a folder.

    Args:
      results: the folder; a comparison without a record is shown as not yet measured.

    Returns:
      Markdown.
    """

    def record(name: str) -> dict[str, Any] | None:
        path = results / f"{name}.json"
        return json.loads(path.read_text()) if path.exists() else None

    found: dict[tables.Name, dict[str, Any] | None]
    found = {name: record(f"tables-{name}") for name in tables.TABLES}
    parts = [
        HEAD,
        tables.section(found),
        counts.section(record("counts")),
        scvi_tools.section(record("scvi_tools")),
    ]
    return "\n".join(parts)


@dataclass(frozen=True)
class Config:
    """Write the page of comparisons from their records."""


def main(argv: Sequence[str] | None = None) -> None:
    """Write the page; the only flag is --help."""
    parse(Config, argv, command="python -m experiments.comparisons")
    (FOLDER / "README.md").write_text(page(FOLDER / "results"))


if __name__ == "__main__":
    main()
