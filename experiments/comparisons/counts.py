"""Counts of cells: Poisson, negative binomial and zero-inflated likelihoods compared.

python -m experiments.comparisons.counts --counts=cells.npz

Each likelihood is given the total of a row as its exposure, as in the field (Lopez et
al. 2018), and every row is held out once. Beside log p(x) the share of zeros, which a
Poisson of the right mean need not have, is set beside that of replications.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, kw_only=True)
class Config(protocol.Config):
    """Compare likelihoods of counts by log p(x) of held-out rows, and by zeros."""

    counts: Annotated[str, flags.EXPANDED]
    """File of counts, a row an example: .npz with x, .npy, .csv, .h5ad."""
    latent_dim: flags.Count = 10
    """Number of latents."""
    replications: flags.Several = 500
    """Data sets that the model makes in place of the held-out rows."""


def load(path: str) -> np.ndarray:
    """All rows of a file of counts.

    Args:
      path: of the file.

    Returns:
      `[n, D]`.

    Raises:
      ValueError: no counts, or a row without any, which has no exposure.
    """
    found = data.load(path, values="counts")
    x = np.concatenate([np.asarray(found.train), np.asarray(found.test)])
    empty = int(np.sum(x.sum(axis=1) == 0))
    if empty:
        raise ValueError(
            f"--counts {path}: {empty} of {len(x)} rows have no count, and so no "
            "exposure: leave them out"
        )
    return x


def name_of(config: Config) -> str:
    """The file's name, which a record holds without its folder."""
    return Path(config.counts).name


def spec(likelihood: Family, dim: int, latent_dim: int) -> vae_jax.ModelSpec:
    """A model of counts with an exposure, of the widths of scvi-tools."""
    return vae_jax.ModelSpec(
        encoder=vae_jax.MLP((WIDTH,)),
        decoder=vae_jax.MLP((WIDTH,)),
        likelihood=vae_jax.Exposed(likelihood),
        latent_dim=latent_dim,
        data_shape=(dim,),
    )


_replicate = jax.jit(vae_jax.posterior_predictive, static_argnames="num_replications")


def of_fold(
    likelihood: Family, rows: Rows, key: jax.Array, config: Config
) -> tuple[Held, dict[str, Replicated]]:
    """Train a model on a fold; log p(x) and statistics of its held-out rows.

    Args:
      likelihood: of counts with means.
      rows: of a fold.
      key: PRNG key, consumed once.
      config: the configuration.

    Returns:
      Its figures, and statistics of the held-out rows beside replications'.
    """
    fit_key, refit_key, evidence_key, predictive_key = jax.random.split(key, 4)
    model = spec(likelihood, rows.train.shape[1], config.latent_dim)
    chosen = protocol.candidate(
        model, rows, fit_key, config, name="", labels=with_row_totals
    )
    chosen = chosen._replace(name=f"{chosen.num_epochs} epochs")
    params = protocol.refitted(chosen, rows, refit_key, config, with_row_totals)
    x = jnp.asarray(rows.test, jnp.float32)
    given = with_row_totals(x)
    held = protocol.held_out(
        params,
        rows.test,
        evidence_key,
        num_samples=config.num_samples,
        choice=chosen.name,
        labels=given,
    )
    replicated = _replicate(
        params,
        x,
        predictive_key,
        num_replications=config.replications,
        labels=given,
    )
    return held, jax.tree.map(np.asarray, replicated)


def predictive_figures(folds: Sequence[dict[str, Replicated]]) -> dict[str, Any]:
    """How often the data's statistics lie in the 95% intervals of replications.

    Args:
      folds: of each, statistics of its held-out rows.

    Returns:
      The shares of dimensions inside, over all folds; and the share of zeros of all
      counts, with its mean and interval, of each fold.
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
    """Compare the likelihoods, print and record what was found.

    Args:
      config: the configuration.

    Returns:
      The record.
    """
    flags.check(config)
    x = load(config.counts)
    parts = protocol.splits(len(x), config.folds, config.seed)
    folds = [Rows.of(x, part) for part in parts]
    keys = jax.random.split(jax.random.key(config.seed), len(folds))
    train: Callable[..., Any] = partial(of_fold, config=config)
    held, predictive = {}, {}
    for name, likelihood in LIKELIHOODS.items():
        found = [
            train(likelihood, rows, key) for rows, key in zip(folds, keys, strict=True)
        ]
        held[name] = [figures for figures, _ in found]
        predictive[name] = predictive_figures([replicated for _, replicated in found])
    independent = partial(
        mixed.independent,
        columns=[data.Column(str(number), "count") for number in range(x.shape[1])],
    )
    of_rows = {**baselines.ESTIMATORS, INDEPENDENT: independent}
    totals_too = {name: [model(r) for r in folds] for name, model in of_rows.items()}
    record = {
        "command": f"{COMMAND} --counts={name_of(config)}",
        "rows": len(x),
        "columns": x.shape[1],
        "zeros": float(np.mean(x == 0)),
        "models": protocol.summary(held, REFERENCE),
        "totals_too": protocol.summary(totals_too, INDEPENDENT),
        "predictive": predictive,
        "versions": protocol.versions(),
    }
    for table in _tables(record):
        print(columns(table, "<>"))
    protocol.save(config, "counts", record)
    return record


def _tables(record: dict[str, Any]) -> list[list[tuple[str, ...]]]:
    """Rows of the tables of log p(x), of the check, and of log p(x) without totals."""
    models, predictive = record["models"], record["predictive"]
    evidence = [("likelihood", "log p(x)", f"{REFERENCE} less it", "Pareto k > 0.7")]
    for name, found in models.items():
        less = found["reference_less_this"]
        evidence.append(
            (
                name,
                protocol.shown(found["log_p"], 1),
                "" if name == REFERENCE else protocol.shown(less, 1),
                f"{found['high_pareto_k']:.0%}",
            )
        )
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
    unconditional = [("model", "log p(x)", f"{INDEPENDENT} less it")]
    for name, found in record["totals_too"].items():
        less = protocol.shown(found["reference_less_this"], 1)
        less = "" if name == INDEPENDENT else less
        unconditional.append((name, protocol.shown(found["log_p"], 1), less))
    return [evidence, check, unconditional]


def section(record: dict[str, Any] | None) -> str:
    """The part of the page about it.

    Args:
      record: what `results/counts.json` holds; None where not yet measured.

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
        "The scikit-learn estimator, which is given no total (its `score_samples` "
        "draws from the encoder's q and is lower):",
        "",
        unconditional,
        "",
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """The command, with these arguments or those of the process."""
    execute(run, parse(Config, argv, command=COMMAND))


if __name__ == "__main__":
    main()
