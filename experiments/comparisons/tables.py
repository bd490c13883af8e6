"""log p(x) of real and mixed tables: a VAE beside Gaussians, mixtures and PPCA.

python -m experiments.comparisons.tables

The tables are scikit-learn's: wine, breast cancer, diabetes, digits, and wine as a
table of mixed columns. In each of five folds every model is fitted to the same training
rows, makes its choices on the same validation rows, is fitted again to both, and is
measured on the same held-out rows, in the units of the data.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, Literal, NamedTuple, get_args

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
from experiments.comparisons.counts import LIKELIHOODS
from experiments.comparisons.protocol import Held, Rows
from experiments.published.tables import write
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

    tables: tuple[Name, ...] = get_args(Name)
    """Tables to compare on."""


class Table(NamedTuple):
    """Data, models to compare a VAE with, and likelihoods for it to choose from.

    Attributes:
      x: all rows, `[n, D]`, in the units of the data.
      others: other models by name, as functions of the rows of a fold.
      likelihoods: likelihoods of the VAE, by name.
      note: description of the data, and of rows and columns left out.
    """

    x: np.ndarray
    others: dict[str, Callable[[Rows], Held]]
    likelihoods: dict[str, Family]
    note: str


def _real(
    config: protocol.Config, x: np.ndarray, note: str = "All rows and columns."
) -> Table:
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
        **baselines.estimators(config),
    }
    return Table(x, others, likelihoods, note)


def wine(config: protocol.Config) -> Table:
    """Wine, all rows and columns."""
    whole: Any = load_wine()
    return _real(config, whole.data)


def breast_cancer(config: protocol.Config) -> Table:
    """Breast cancer without the rows in which six columns are exactly 0."""
    whole: Any = load_breast_cancer()
    x = whole.data
    return _real(
        config,
        x[(x > 0).all(axis=1)],
        "Without 13 of the 569 rows, of which six columns are exactly 0: a density "
        "there has no bound.",
    )


def diabetes(config: protocol.Config) -> Table:
    """Diabetes in its own units, without the columns that have no density."""
    whole: Any = load_diabetes(scaled=False)
    kept = [name not in ("sex", "s4") for name in whole.feature_names]
    return _real(
        config,
        whole.data[:, kept],
        "Without sex, which has two values, and s4, which is exactly 2, 3, 4 or 5 in "
        "most rows: a density there has no bound.",
    )


def mixed_wine(_: protocol.Config) -> Table:
    """Wine with its cultivar, with a kind for each column."""
    x, kinds = mixed.wine()
    others = {
        "independent columns": partial(mixed.independent, columns=kinds),
        "independent given the cultivar": partial(
            mixed.independent_given, columns=kinds, name="cultivar"
        ),
    }
    numbers = Counter(column.kind for column in kinds)
    listed = ", ".join(f"{count} {kind}" for kind, count in numbers.items())
    return Table(
        x,
        others,
        {"a family a column": vae_jax.Columns.of_table(kinds)},
        f"Wine and its cultivar, {listed}. A Gaussian is no distribution of counts and "
        "categories, so the others are products of the same families, fitted by "
        "maximum likelihood.",
    )


def digits(config: protocol.Config) -> Table:
    """Digits as 64 counts from 0 to 16."""
    whole: Any = load_digits()
    x = whole.data.astype(np.int64)
    kinds = [data.Column(name, "count") for name in whole.feature_names]
    independent = partial(mixed.independent, columns=kinds)
    return Table(
        x,
        {"independent negative binomials": independent, **baselines.estimators(config)},
        LIKELIHOODS,
        "As counts: of the three pixels that never vary, and others that hardly do, a "
        "Gaussian has no density.",
    )


TABLES: dict[Name, tuple[str, Callable[[protocol.Config], Table]]] = {
    "wine": ("Wine", wine),
    "breast_cancer": ("Breast cancer", breast_cancer),
    "diabetes": ("Diabetes", diabetes),
    "digits": ("Digits", digits),
    "mixed": ("Wine, columns of several kinds", mixed_wine),
}


def vae(rows: Rows, config: protocol.Config, likelihoods: dict[str, Family]) -> Held:
    """Log p(x) of a VAE whose likelihood and latents are chosen by validation ELBO.

    Args:
      rows: rows of a fold.
      config: flags of training and of log p(x).
      likelihoods: likelihoods to choose from, by name.

    Returns:
      Log p(x) of the held-out rows.
    """
    fit_key, refit_key, evidence_key = jax.random.split(rows.key, 3)
    candidates = {}
    for (name, likelihood), latent_dim in product(likelihoods.items(), LATENTS):
        spec = vae_jax.ModelSpec(
            encoder=vae_jax.MLP((_WIDTH,)),
            decoder=vae_jax.MLP((_WIDTH,)),
            likelihood=likelihood,
            latent_dim=latent_dim,
            data_shape=(rows.train.shape[1],),
        )
        found = protocol.candidate(spec, rows, fit_key, config)
        candidates[f"{name}, {latent_dim} latents"] = found
    choice = max(candidates, key=lambda name: candidates[name].validation_elbo)
    spec, _, num_epochs = candidates[choice]
    num_epochs = protocol.refit_epochs(num_epochs, rows, config)
    params = protocol.trained(spec, rows, refit_key, config, num_epochs=num_epochs)
    return protocol.held_out(params, rows, evidence_key, config, choice=choice)


def compare(table: Table, config: protocol.Config) -> dict[str, Any]:
    """Compare all models on a table.

    Args:
      table: the table.
      config: the configuration.

    Returns:
      Results for the record.
    """
    folds = protocol.folds(table.x, config)
    started = time.perf_counter()
    held = {VAE: [vae(rows, config, table.likelihoods) for rows in folds]}
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
    """Compare the models on each table; print and record the results.

    Args:
      config: the configuration.

    Returns:
      The records by name of the table.
    """
    flags.check(config)
    records = {}
    for name in config.tables:
        title, load = TABLES[name]
        command = f"{COMMAND} --tables {name}"
        begun = protocol.provenance(config, command, "scikit-learn", "scipy")
        records[name] = compare(load(config), config) | begun
        print(f"{title}\n{columns(_rows(records[name]), '<>>')}", flush=True)
        write(records[name], config.results_dir, f"tables-{name}")
    return records


def _rows(record: dict[str, Any]) -> list[tuple[str, ...]]:
    models = record["models"]
    names = sorted(models, key=lambda name: -models[name]["log_p"]["mean"])
    ordered = {name: models[name] for name in names}
    return protocol.evidence_rows("model", ordered, VAE)


def section(records: Mapping[Name, dict[str, Any] | None]) -> str:
    """Format the sections of the page on tables.

    Args:
      records: contents of `results/tables-<name>.json`; None if not yet measured.

    Returns:
      Markdown.
    """
    lines = []
    for name, record in records.items():
        title, _ = TABLES[name]
        command = f"{COMMAND} --tables {name}" if record is None else record["command"]
        lines += [f"## {title}", "", f"`{command}`", ""]
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
                f"{name}: {', '.join(_counted(found['chosen']))}"
                for name, found in models.items()
                if any(found["chosen"])
            )
            + f". Pareto k of the VAE's weights is above 0.7 for "
            f"{models[VAE]['high_pareto_k']:.0%} of the rows. Training all of its "
            f"candidates took {record['vae_minutes']:.1f} minutes.",
            "",
        ]
    return "\n".join(lines)


def _counted(choices: Sequence[str]) -> list[str]:
    """Each choice once, with the number of times it was made if several."""
    return [
        f"{choice} ({count})" if count > 1 else choice
        for choice, count in Counter(choices).items()
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with these arguments or those of the process."""
    execute(run, parse(Config, argv, command=COMMAND))


if __name__ == "__main__":
    main()
