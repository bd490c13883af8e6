"""log p(x) of real and mixed tables: a VAE beside Gaussians, mixtures and PPCA.

python -m experiments.comparisons.tables

The tables are scikit-learn's: wine, breast cancer, diabetes, digits, and wine as a
table of mixed columns. In each of five folds every model is fitted to the same training
rows, makes its choices on the same validation rows, is fitted again to both, and is
measured on the same held-out rows, in the units of the data.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from sklearn.datasets import (
    load_breast_cancer,
    load_diabetes,
    load_digits,
    load_wine,
)

import vae_jax
from experiments.comparisons import baselines, mixed, protocol
from experiments.comparisons.protocol import Held, Rows
from experiments.runner import flags
from experiments.runner.command_line import execute, parse
from experiments.runner.report import columns, markdown
from vae_jax import data
from vae_jax.types import Family

VAE = "VAE"
COMMAND = "python -m experiments.comparisons.tables"
Name = Literal["wine", "breast_cancer", "diabetes", "digits", "mixed"]
LATENTS = (2, 5, 10)
_WIDTH = 64


@dataclass(frozen=True)
class Config(protocol.Config):
    """Compare log p(x) of held-out rows of scikit-learn's tables."""

    tables: tuple[Name, ...] = ("wine", "breast_cancer", "diabetes", "digits", "mixed")
    """Which of them."""


class Table(NamedTuple):
    """Rows, models to compare a VAE with, and likelihoods for it to choose from.

    Attributes:
      x: `[n, D]`, in the units of the data.
      others: by name, `f(rows) -> Held`.
      likelihoods: by name.
      note: what was left out, and why.
    """

    x: np.ndarray
    others: dict[str, Callable[[Rows], Held]]
    likelihoods: dict[str, Family]
    note: str


def _real(x: np.ndarray, note: str = "All rows and columns.") -> Table:
    diagonal = vae_jax.Gaussian(learned_variance=True, per_dimension=True)
    likelihoods: dict[str, Family] = {
        "one variance a column": vae_jax.Standardized(diagonal),
        "variances by the decoder": vae_jax.Standardized(vae_jax.PerPixelGaussian()),
        "covariances by the decoder": vae_jax.Standardized(
            vae_jax.FullCovarianceGaussian()
        ),
    }
    others = {
        "Gaussian, full covariance": baselines.gaussian,
        "mixture of Gaussians": baselines.mixture,
        "PPCA": baselines.ppca,
        **baselines.ESTIMATORS,
    }
    return Table(x, others, likelihoods, note)


def wine() -> Table:
    """Wine, as it is."""
    whole: Any = load_wine()
    return _real(whole.data)


def breast_cancer() -> Table:
    """Breast cancer without the rows of which six columns are exactly 0."""
    whole: Any = load_breast_cancer()
    x = whole.data
    return _real(
        x[(x > 0).all(axis=1)],
        "Without 13 of the 569 rows, of which six columns are exactly 0: a density "
        "there has no bound.",
    )


def diabetes() -> Table:
    """Diabetes in its own units, without the columns that have no density."""
    whole: Any = load_diabetes(scaled=False)
    kept = [name not in ("sex", "s4") for name in whole.feature_names]
    return _real(
        whole.data[:, kept],
        "Without sex, which has two values, and s4, which is exactly 2, 3, 4 or 5 in "
        "most rows: a density there has no bound.",
    )


def mixed_wine() -> Table:
    """Wine with its cultivar, each column of a kind of its own."""
    x, kinds = mixed.wine()
    others = {
        "independent columns": partial(mixed.independent, columns=kinds),
        "independent given the cultivar": partial(
            mixed.independent_given, columns=kinds, name="cultivar"
        ),
    }
    numbers = {
        k: sum(c.kind == k for c in kinds) for k in dict.fromkeys(c.kind for c in kinds)
    }
    listed = ", ".join(f"{count} {kind}" for kind, count in numbers.items())
    return Table(
        x,
        others,
        {"a family a column": vae_jax.Columns.of_table(kinds)},
        f"Wine and its cultivar, {listed}. A Gaussian is no distribution of counts and "
        "categories, so the others are products of the same families, fitted by "
        "maximum likelihood.",
    )


def digits() -> Table:
    """Digits: 64 whole numbers from 0 to 16."""
    whole: Any = load_digits()
    x = whole.data.astype(np.int64)
    kinds = [data.Column(name, "count") for name in whole.feature_names]
    independent = partial(mixed.independent, columns=kinds)
    return Table(
        x,
        {"independent negative binomials": independent, **baselines.ESTIMATORS},
        {
            "Poisson": vae_jax.Poisson(),
            "negative binomial": vae_jax.NegativeBinomial(),
            "zero-inflated negative binomial": vae_jax.ZeroInflatedNegativeBinomial(),
        },
        "As counts: of the three pixels that never vary, and others that hardly do, a "
        "Gaussian has no density.",
    )


TABLES: dict[Name, tuple[str, Callable[[], Table]]] = {
    "wine": ("Wine", wine),
    "breast_cancer": ("Breast cancer", breast_cancer),
    "diabetes": ("Diabetes", diabetes),
    "digits": ("Digits", digits),
    "mixed": ("Wine, columns of several kinds", mixed_wine),
}


def vae(
    rows: Rows,
    key: jax.Array,
    config: protocol.Config,
    likelihoods: dict[str, Family],
    latents: Sequence[int] = LATENTS,
) -> Held:
    """A VAE, its likelihood and number of latents chosen by validation ELBO.

    Args:
      rows: of a fold.
      key: PRNG key, consumed once.
      config: of the training and of log p(x).
      likelihoods: by name.
      latents: numbers of them.

    Returns:
      Its figures.
    """
    fit_key, refit_key, evidence_key = jax.random.split(key, 3)
    candidates = []
    for name, likelihood in likelihoods.items():
        for latent_dim in latents:
            spec = vae_jax.ModelSpec(
                encoder=vae_jax.MLP((_WIDTH,)),
                decoder=vae_jax.MLP((_WIDTH,)),
                likelihood=likelihood,
                latent_dim=latent_dim,
                data_shape=(rows.train.shape[1],),
            )
            told = f"{name}, {latent_dim} latents"
            candidates.append(
                protocol.candidate(spec, rows, fit_key, config, name=told)
            )
    chosen = max(candidates, key=lambda found: found.validation_elbo)
    params = protocol.refitted(chosen, rows, refit_key, config)
    return protocol.held_out(
        params,
        rows.test,
        evidence_key,
        num_samples=config.num_samples,
        choice=chosen.name,
    )


def compare(table: Table, config: protocol.Config) -> dict[str, Any]:
    """Figures of all models of a table.

    Args:
      table: the table.
      config: the configuration.

    Returns:
      Its part of the record.
    """
    parts = protocol.splits(len(table.x), config.folds, config.seed)
    folds = [Rows.of(table.x, part) for part in parts]
    keys = jax.random.split(jax.random.key(config.seed), len(folds))
    started = time.perf_counter()
    held = {
        VAE: [
            vae(rows, key, config, table.likelihoods)
            for rows, key in zip(folds, keys, strict=True)
        ]
    }
    minutes = (time.perf_counter() - started) / 60
    held |= {
        name: [model(rows) for rows in folds] for name, model in table.others.items()
    }
    return {
        "rows": len(table.x),
        "columns": table.x.shape[1],
        "note": table.note,
        "vae_minutes": minutes,
        "models": protocol.summary(held, VAE),
    }


def run(config: Config) -> dict[str, Any]:
    """Compare the models on each table, print and record what was found.

    Args:
      config: the configuration.

    Returns:
      The records by name of the table.
    """
    flags.check(config)
    records = {}
    for name in config.tables:
        title, load = TABLES[name]
        record = {
            "command": f"{COMMAND} --tables {name}",
            **compare(load(), config),
            "versions": protocol.versions("scikit-learn", "scipy"),
        }
        print(f"{title}\n{columns(_rows(record), '<>>')}", flush=True)
        protocol.save(config, f"tables-{name}", record)
        records[name] = record
    return records


def _rows(record: dict[str, Any]) -> list[tuple[str, str, str]]:
    ordered = sorted(
        record["models"].items(), key=lambda item: -item[1]["log_p"]["mean"]
    )
    rows = [("model", "log p(x)", "VAE less it")]
    for name, found in ordered:
        less = "" if name == VAE else protocol.shown(found["reference_less_this"])
        rows.append((name, protocol.shown(found["log_p"]), less))
    return rows


def section(records: Mapping[Name, dict[str, Any] | None]) -> str:
    """The part of the page about them.

    Args:
      records: what `results/tables-<name>.json` hold, None where not yet measured.

    Returns:
      Markdown.
    """
    lines = []
    for name, record in records.items():
        title, _ = TABLES[name]
        lines += [f"## {title}", "", f"`{COMMAND} --tables {name}`", ""]
        if record is None:
            lines += ["Not yet measured.", ""]
            continue
        models = record["models"]
        lines += [
            f"{record['rows']} rows of {record['columns']} columns. {record['note']}",
            "",
            markdown(_rows(record)),
            "",
            "Chosen on validation rows, by fold: "
            + "; ".join(
                f"{name}: {', '.join(counted(found['chosen']))}"
                for name, found in models.items()
                if any(found["chosen"])
            )
            + f". Pareto k of the VAE's weights is above 0.7 for "
            f"{models[VAE]['high_pareto_k']:.0%} of the rows. Training all of its "
            f"candidates took {record['vae_minutes']:.1f} minutes.",
            "",
        ]
    return "\n".join(lines)


def counted(choices: Sequence[str]) -> list[str]:
    """Choices, each once, with how often it was made."""
    return [
        f"{choice} ({choices.count(choice)})" if choices.count(choice) > 1 else choice
        for choice in dict.fromkeys(choices)
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """The command, with these arguments or those of the process."""
    execute(run, parse(Config, argv, command=COMMAND))


if __name__ == "__main__":
    main()
