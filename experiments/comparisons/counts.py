"""Counts of cells: Poisson, negative binomial and zero-inflated likelihoods compared.

python -m experiments.comparisons.counts --counts=cells.npz

The exposure is the total of each row (Lopez et al. 2018), and every row is held out
once. A posterior predictive check compares the share of zeros, which a Poisson with the
right mean need not reproduce, with that of replications.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

import vae_jax
from experiments.choices import with_row_totals
from experiments.comparisons import baselines, mixed, protocol
from experiments.comparisons.protocol import Held, Rows
from experiments.published.tables import write
from experiments.runner import flags
from experiments.runner.command_line import execute, parse
from experiments.runner.report import columns, markdown
from vae_jax import data
from vae_jax.predictive import Replicated
from vae_jax.types import Family

COMMAND = "python -m experiments.comparisons.counts"
LIKELIHOODS: dict[str, Family] = {
    "Poisson": vae_jax.Poisson(),
    "negative binomial": vae_jax.NegativeBinomial(),
    "zero-inflated negative binomial": vae_jax.ZeroInflatedNegativeBinomial(),
}
REFERENCE = "negative binomial"
INDEPENDENT = "independent negative binomials"
WIDTH = 128
STATISTICS = ("zeros", "mean", "variance")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(protocol.Config):
    """Compare likelihoods of counts by log p(x) of held-out rows, and by zeros."""

    counts: Annotated[str, flags.EXPANDED]
    """File of counts, one example per row: .npz with x, .npy, .csv, .h5ad."""
    latent_dim: flags.Count = 10
    """Number of latents."""
    replications: flags.Several = 500
    """Number of replicated data sets per fold."""


def load(path: str) -> np.ndarray:
    """Load all rows of a file of counts.

    Args:
      path: path of the file.

    Returns:
      Counts, `[n, D]`, integers: the estimator takes those for counts.

    Raises:
      ValueError: if values are not counts, or all counts of a row are 0, so that it has
        no exposure.
    """
    found = data.load(path, values="counts")
    x = np.concatenate([np.asarray(found.train), np.asarray(found.test)])
    empty = int(np.sum(x.sum(axis=1) == 0))
    if empty:
        raise ValueError(
            f"--counts {path}: {empty} of {len(x)} rows have no count, and so no "
            "exposure: leave them out"
        )
    return x.astype(np.int64)


def provenance(config: Config, command: str, *packages: str) -> dict[str, Any]:
    """Return `protocol.provenance`, with the name of the file but not its folder."""
    named = dataclasses.replace(config, counts=Path(config.counts).name)
    return protocol.provenance(named, f"{command} --counts={named.counts}", *packages)


def spec(likelihood: Family, dim: int, latent_dim: int) -> vae_jax.ModelSpec:
    """Spec of a model of counts with an exposure, as wide as that of scvi-tools."""
    return vae_jax.ModelSpec(
        encoder=vae_jax.MLP((WIDTH,)),
        decoder=vae_jax.MLP((WIDTH,)),
        likelihood=vae_jax.Exposed(likelihood),
        latent_dim=latent_dim,
        data_shape=(dim,),
    )


_replicate = jax.jit(vae_jax.posterior_predictive, static_argnames="num_replications")


def of_fold(
    likelihood: Family, rows: Rows, config: Config
) -> tuple[Held, dict[str, Replicated]]:
    """Train a model on a fold; return log p(x) and statistics of its held-out rows.

    Args:
      likelihood: a family of counts with means.
      rows: rows of a fold.
      config: the configuration.

    Returns:
      Log p(x), and statistics of the held-out rows and of replications.
    """
    fit_key, refit_key, evidence_key, predictive_key = jax.random.split(rows.key, 4)
    model = spec(likelihood, rows.train.shape[1], config.latent_dim)
    found = protocol.candidate(model, rows, fit_key, config, with_row_totals)
    params = protocol.trained(
        model,
        rows,
        refit_key,
        config,
        num_epochs=protocol.refit_epochs(found.num_epochs, rows, config),
        labels=with_row_totals,
    )
    held = protocol.held_out(
        params,
        rows,
        evidence_key,
        config,
        choice=f"{found.num_epochs} epochs",
        labels=with_row_totals,
    )
    x = jnp.asarray(rows.test, jnp.float32)
    replicated = _replicate(
        params,
        x,
        predictive_key,
        num_replications=config.replications,
        labels=with_row_totals(x),
    )
    return held, jax.tree.map(np.asarray, replicated)


def predictive_figures(folds: Sequence[dict[str, Replicated]]) -> dict[str, Any]:
    """Summarise how often statistics lie in the 95% intervals of replications.

    Args:
      folds: statistics of the held-out rows of each fold.

    Returns:
      The share of dimensions inside, over all folds, and for each fold the share of
      zeros among all counts with its predictive mean and interval.
    """
    found: dict[str, Any] = {
        f"{name}_inside": float(
            np.mean([np.asarray(fold[name].inside) for fold in folds])
        )
        for name in STATISTICS
    }
    zeros = [fold["zeros_of_all"] for fold in folds]
    found["zeros_of_all"] = [
        {part: float(value) for part, value in one._asdict().items()} for one in zeros
    ]
    found["folds_inside"] = int(sum(bool(one.inside) for one in zeros))
    return found


def run(config: Config) -> dict[str, Any]:
    """Compare the likelihoods; print and record the results.

    Args:
      config: the configuration.

    Returns:
      The record.
    """
    flags.check(config)
    begun = provenance(config, COMMAND)
    x = load(config.counts)
    folds = protocol.folds(x, config)
    held, predictive = {}, {}
    for name, likelihood in LIKELIHOODS.items():
        found = [of_fold(likelihood, rows, config) for rows in folds]
        held[name] = [figures for figures, _ in found]
        predictive[name] = predictive_figures([replicated for _, replicated in found])
    kinds = [data.Column(str(number), "count") for number in range(x.shape[1])]
    independent = partial(mixed.independent, columns=kinds)
    of_rows = {**baselines.estimators(config), INDEPENDENT: independent}
    totals_too = {name: [model(r) for r in folds] for name, model in of_rows.items()}
    record = {
        "rows": len(x),
        "columns": x.shape[1],
        "zeros": float(np.mean(x == 0)),
        "models": protocol.summary(held, REFERENCE),
        "totals_too": protocol.summary(totals_too, INDEPENDENT),
        "predictive": predictive,
        **begun,
    }
    for table in _tables(record):
        print(columns(table, "<>"))
    write(record, config.results_dir, "counts")
    return record


def _tables(record: dict[str, Any]) -> list[list[tuple[str, ...]]]:
    """Rows of the tables: log p(x), the check, and log p(x) without totals."""
    models, predictive = record["models"], record["predictive"]
    high = [f"{found['high_pareto_k']:.0%}" for found in models.values()]
    evidence = [
        (*row, last)
        for row, last in zip(
            protocol.evidence_rows("likelihood", models, REFERENCE, 1),
            ["Pareto k > 0.7", *high],
            strict=True,
        )
    ]
    check = [
        (
            "likelihood",
            "share of all zeros inside",
            "off the middle of replications",
            *(f"{name} of a gene inside" for name in STATISTICS),
        )
    ]
    for name, found in predictive.items():
        folds = found["zeros_of_all"]
        off = np.mean([fold["observed"] - fold["mean"] for fold in folds])
        check.append(
            (
                name,
                f"in {found['folds_inside']} of {len(folds)} folds",
                f"{off:+.2%}",
                *(f"{found[f'{each}_inside']:.1%}" for each in STATISTICS),
            )
        )
    unconditional = protocol.evidence_rows(
        "model", record["totals_too"], INDEPENDENT, 1
    )
    return [evidence, check, unconditional]


def section(record: dict[str, Any] | None) -> str:
    """Format the section of the page on counts.

    Args:
      record: content of `results/counts.json`; None if not yet measured.

    Returns:
      Markdown.
    """
    lines = ["## Counts of cells", ""]
    if record is None:
        return "\n".join([*lines, f"`{COMMAND}`: not yet measured.", ""])
    evidence, check, unconditional = map(markdown, _tables(record))
    lines += [
        f"`{record['command']}`",
        "",
        f"{record['rows']} cells of blood (PBMC), their {record['columns']} most "
        f"expressed genes, {record['zeros']:.1%} of the counts 0. log p(x) is given "
        "the total of the row.",
        "",
        evidence,
        "",
        "Statistics of the held-out cells, and whether the 95% interval of "
        f"{record['config']['replications']} replications holds them:",
        "",
        check,
        "",
        "Intervals of a model that fits hold 95% of the genes. The share of all zeros "
        "is a mean over thousands of counts, so that its interval is narrow and a bias "
        "of half a percent lies outside.",
        "",
        "The scikit-learn estimator, which is given no total (its `score_samples` "
        "draws from the encoder's q and is lower):",
        "",
        unconditional,
        "",
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with these arguments or those of the process."""
    execute(run, parse(Config, argv, command=COMMAND))


if __name__ == "__main__":
    main()
