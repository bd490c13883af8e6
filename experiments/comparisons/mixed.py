"""A table with columns of several kinds, and densities of independent columns.

A Gaussian is not a distribution of counts or categories. The likelihood of a mixed
table is a density of its real and positive columns times a probability of the others.
The models to compare with are therefore products of a family for each column, fitted by
maximum likelihood.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import scipy.optimize
import scipy.stats
from sklearn.datasets import load_wine

from experiments.comparisons.protocol import Held, Rows
from vae_jax import data

# Codes that the training rows lack are given half an observation, as is a count of a
# column of zeros.
_UNSEEN = 0.5

LogProb = Callable[[np.ndarray], np.ndarray]


def wine() -> tuple[np.ndarray, tuple[data.Column, ...]]:
    """Wine with its cultivar as a column, and a kind for each column.

    Magnesium and proline are whole numbers; colour intensity and malic acid are
    positive and vary by more than a factor of ten. The amount of flavanoids is replaced
    by whether it is above 2, because no column of the data set is binary.

    Returns:
      Values `[178, 14]` and columns.
    """
    whole: Any = load_wine()
    table: dict[str, np.ndarray] = {}
    for name, values in zip(whole.feature_names, whole.data.T, strict=True):
        table[name] = values
    for name in ("magnesium", "proline"):
        table[name] = table[name].astype(np.int64)
    table["flavanoids"] = np.where(table["flavanoids"] > 2, "high", "low")
    table["cultivar"] = whole.target_names[whole.target]
    kinds = {name: "positive" for name in ("color_intensity", "malic_acid")}
    kinds |= {name: "count" for name in ("magnesium", "proline")}
    kinds |= {"flavanoids": "binary", "cultivar": "categorical"}
    given = {name: kinds.get(name, "real") for name in table}
    found = data.from_table(table, "wine", columns=given)
    return np.concatenate([found.train, found.test]), found.columns


def log_prob(column: data.Column, x: np.ndarray) -> LogProb:
    """Fit the family of a column by maximum likelihood; return its log-probability.

    Args:
      column: the column, whose kind names the family.
      x: training values, `[n]`.

    Returns:
      `f(values) -> [n]`, in nats.
    """
    if column.kind == "real":
        return partial(scipy.stats.norm.logpdf, loc=x.mean(), scale=x.std())
    if column.kind == "positive":
        log_x = np.log(x)
        shape = {"s": log_x.std(), "scale": np.exp(log_x.mean())}
        return partial(scipy.stats.lognorm.logpdf, **shape)
    if column.kind == "count":
        return negative_binomial(x)
    size = max(2, len(column.categories))
    counts = np.bincount(x.astype(int), minlength=size) + _UNSEEN
    log_shares = np.log(counts / counts.sum())
    return lambda values: log_shares[values.astype(int)]


def negative_binomial(x: np.ndarray) -> LogProb:
    """Fit a negative binomial by maximum likelihood; its mean is that of the data."""
    mean = max(x.mean(), _UNSEEN / len(x))

    def at(log_r: float) -> Any:
        return scipy.stats.nbinom(np.exp(log_r), 1 / (1 + mean * np.exp(-log_r)))

    found = scipy.optimize.minimize_scalar(
        lambda log_r: -at(log_r).logpmf(x).sum(), bounds=(-7, 14), method="bounded"
    )
    return at(found.x).logpmf


def independent(rows: Rows, columns: Sequence[data.Column]) -> Held:
    """Log p(x) of independent columns."""
    return Held(_product(rows.known, rows.test, columns))


def independent_given(rows: Rows, columns: Sequence[data.Column], name: str) -> Held:
    """Log p(x) of columns that are independent given a categorical one (naive Bayes).

        log p(x) = log p(c) + sum_d log p(x_d | c)

    Args:
      rows: rows of a fold.
      columns: the D columns.
      name: name of the column c.

    Returns:
      Log p(x) of the held-out rows.

    Raises:
      ValueError: if a category of the held-out rows has fewer than 2 rows to train on.
    """
    names = [column.name for column in columns]
    at = names.index(name)
    others = [number for number in range(len(names)) if number != at]
    kept = [columns[number] for number in others]
    log_p = log_prob(columns[at], rows.known[:, at])(rows.test[:, at])
    for code in np.unique(rows.test[:, at]):
        here = rows.test[:, at] == code
        known = rows.known[rows.known[:, at] == code][:, others]
        if len(known) < 2:
            raise ValueError(
                f"column {name!r} must have 2 rows to train on of each category, got "
                f"{len(known)} of {code:g}"
            )
        log_p[here] += _product(known, rows.test[here][:, others], kept)
    return Held(log_p)


def _product(
    train: np.ndarray, test: np.ndarray, columns: Sequence[data.Column]
) -> np.ndarray:
    each = zip(columns, train.T, test.T, strict=True)
    return np.sum([log_prob(column, x)(held) for column, x, held in each], axis=0)
