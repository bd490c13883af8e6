"""Results of `experiments.throughput`: table, JSON and figure."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from experiments.runner import run_folder
from experiments.runner.report import columns, save_figure
from experiments.style import styled
from experiments.throughput.contestants import NUMPYRO, OURS
from experiments.throughput.limit import ADAM, PRODUCTS
from experiments.throughput.pytorch import EAGER


class Spread(NamedTuple):
    """Median and range of a quantity over the rounds."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: np.ndarray) -> "Spread":
        """Compute the spread of one value per round."""
        return cls(float(np.median(values)), float(values.min()), float(values.max()))


class Row(NamedTuple):
    """Measurements of one contestant.

    Attributes:
      name: name of the contestant.
      per_second: images trained on or evaluated, or gradients drawn, per second.
      ratio: speed of this library over that of the contestant, per round.
      seconds_to_first_step: time for set-up and compilation.
    """

    name: str
    per_second: Spread
    ratio: Spread
    seconds_to_first_step: float


class Results(NamedTuple):
    """Results of a workload.

    Attributes:
      rows: rows of the table.
      environment: workload, sizes, versions, device.
      remarks: remarks printed below the table.
      temporary_bytes: temporary memory of the compiled programs, by contestant and
        number of samples; empty except for workload c.
      peak_bytes: peak resident memory by contestant, while compiling and while running;
        empty without `peak_memory`.
    """

    rows: tuple[Row, ...]
    environment: dict[str, Any]
    remarks: tuple[str, ...]
    temporary_bytes: dict[str, dict[int, int]]
    peak_bytes: dict[str, dict[str, int]]


def make_rows(
    names: Sequence[str], seconds: np.ndarray, first_seconds: np.ndarray, images: int
) -> tuple[Row, ...]:
    """Make the rows from seconds per round, `[R, C]`, and images per round."""
    # The warm-up was a full round: the time beyond one round is set-up and compilation.
    to_first_step = np.maximum(first_seconds - np.median(seconds, axis=0), 0)
    ratios = seconds / seconds[:, [names.index(OURS)]]
    return tuple(
        Row(
            name,
            Spread.of(images / seconds[:, i]),
            Spread.of(ratios[:, i]),
            float(first),
        )
        for i, (name, first) in enumerate(zip(names, to_first_step, strict=True))
    )


def make_remarks(
    rows: Sequence[Row], load: float, cores: int, *, peers: bool = True
) -> tuple[str, ...]:
    """Remarks on missing contestants, the share of the limit, and other load."""
    remarks = []
    by_name = {row.name: row for row in rows}
    if peers:
        if NUMPYRO not in by_name:
            remarks.append('no NumPyro here: pip install -e ".[bench]" adds its row')
        if EAGER not in by_name:
            remarks.append('no PyTorch here: pip install -e ".[peers]" adds its rows')
    if PRODUCTS in by_name:
        shares = [by_name[name].ratio.median for name in (PRODUCTS, ADAM)]
        remarks.append(
            f"share of the limit: products and Adam alone take {shares[0]:.2f} + "
            f"{shares[1]:.2f} = {sum(shares):.2f} of the time of {OURS}"
        )
    speeds = [row.per_second for row in rows]
    widest = max((speed.max - speed.min) / speed.median for speed in speeds)
    if load > cores / 2 or widest > 0.2:
        remarks.append(
            f"WARNING: other load may have disturbed this: {load:.1f} busy processes "
            f"on {cores} cores before the start, rounds up to {widest:.0%} apart"
        )
    return tuple(remarks)


def table(results: Results) -> str:
    """Format the results as tables and remarks."""
    unit = results.environment["unit"]
    cells: list[tuple[str, ...]] = [
        ("", f"{unit}/s", "(min-max)", "ours/theirs", "(min-max)", "first step, s")
    ]
    for row in results.rows:
        # Slow workloads, such as log evidence, need a decimal.
        digits = ",.0f" if row.per_second.median > 100 else ".1f"
        spreads = _spread(row.per_second, digits), _spread(row.ratio, ".2f")
        cells.append((row.name, *sum(spreads, ()), f"{row.seconds_to_first_step:.1f}"))
    samples = {
        name: {f"{count:,} samples": size for count, size in sizes.items()}
        for name, sizes in results.temporary_bytes.items()
    }
    memory = {"working memory": samples, "peak memory": results.peak_bytes}
    tables = [_memory_table(*titled) for titled in memory.items() if titled[1]]
    return "\n".join([columns(cells, "<>"), *tables, *results.remarks])


def _spread(figure: Spread, digits: str) -> tuple[str, str]:
    """Format two cells: the median and the range."""
    return f"{figure.median:{digits}}", f"({figure.min:{digits}}-{figure.max:{digits}})"


def _memory_table(title: str, found: dict[str, dict[str, int]]) -> str:
    """Format memory sizes, one line per contestant."""
    cells = [(title, *next(iter(found.values())))]
    for name, sizes in found.items():
        cells.append((name, *(f"{size / 1e6:,.1f} MB" for size in sizes.values())))
    return columns(cells, "<>")


@styled()
def draw(results: Results) -> Figure:
    """Draw bars of the median speeds with whiskers over the range."""
    names = [row.name for row in results.rows]
    speeds = np.array([row.per_second for row in results.rows])
    medians, least, greatest = speeds.T
    figure = Figure((7, 1.2 + 0.5 * len(names)))
    axes = figure.subplots()
    colors = ["C0" if name == OURS else "0.7" for name in names]
    whiskers = (medians - least, greatest - medians)
    axes.barh(names, medians, xerr=whiskers, color=colors, capsize=3)
    axes.invert_yaxis()
    unit = results.environment["unit"]
    axes.set_xlabel(f"{unit} per second (median, least and greatest of the rounds)")
    title = "Throughput, workload {workload}, {device}, {cores} cores"
    axes.set_title(title.format(**results.environment))
    return figure


def save(results: Results, folder: Path) -> None:
    """Write results.json and figures/throughput.png."""
    rows = [row._asdict() for row in results.rows]
    unit = results.environment["unit"]
    for row in rows:
        row[f"{unit}_per_second"] = row.pop("per_second")._asdict()
        row["ratio"] = row["ratio"]._asdict()
    content = {**results.environment, "remarks": results.remarks, "rows": rows}
    for name in ("temporary_bytes", "peak_bytes"):
        if found := getattr(results, name):
            content[name] = found
    with run_folder.locked(folder):
        run_folder.write_json(folder / "results.json", content)
        save_figure(draw(results), folder / "figures", "throughput")
