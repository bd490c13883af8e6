"""Likelihoods of tables: by the kinds of their columns."""

from collections.abc import Sequence

import vae_jax
from vae_jax import data
from vae_jax.distributions.support import REAL
from vae_jax.types import Family

# What `--likelihood=auto` is: whether the data are a table, and their values.
LIKELIHOOD_OF = {
    (False, "bits"): "bernoulli",
    (False, "levels"): "discretized_logistic",
    (False, "reals"): "gaussian_learned",
    (True, "reals"): "gaussian_per_dimension",
    (True, "counts"): "negative_binomial",
    (True, "mixed"): "columns",
}
_OF_COUNTS = (
    "poisson",
    "multinomial",
    *(
        f"{name}{whose}"
        for name in ("negative_binomial", "zero_inflated_negative_binomial")
        for whose in ("", "_shared", "_decoder")
    ),
)
_OF_REALS = (
    "gaussian",
    "gaussian_learned",
    "gaussian_per_dimension",
    "gaussian_per_pixel",
    "gaussian_full",
    "student_t",
    "laplace",
    "log_normal",
    "gamma",
    "beta",
)
# Those that a table may have, by its values; of others `columns` alone.
SUITABLE = {
    "counts": (*_OF_COUNTS, "columns"),
    "reals": (*_OF_REALS, "columns"),
}


def standardized(family: Family) -> Family:
    """A family of real numbers about standardized columns; another one as it is.

    Args:
      family: what `--likelihood` names.

    Returns:
      A family.
    """
    return vae_jax.Standardized(family) if family.support == REAL else family


def _of_kind(column: data.Column) -> Family:
    """The family of a column, HI-VAE's (Nazabal et al. 2020) but for counts."""
    of_codes = {"categorical": vae_jax.Nominal, "ordinal": vae_jax.Ordinal}
    if column.kind in of_codes:
        return of_codes[column.kind](len(column.categories))
    return {
        "real": vae_jax.Standardized(vae_jax.Gaussian(True, per_dimension=True)),
        "positive": vae_jax.LogNormal(),
        "count": vae_jax.NegativeBinomial(),
        "binary": vae_jax.Bernoulli(),
    }[column.kind]


def product(columns: Sequence[data.Column]) -> vae_jax.Columns:
    """The product of a family for each kind of column.

    Args:
      columns: of a table.

    Returns:
      A family, the columns of one kind together.
    """
    groups: dict[Family, list[int]] = {}
    for number, column in enumerate(columns):
        groups.setdefault(_of_kind(column), []).append(number)
    return vae_jax.Columns(
        tuple((family, tuple(numbers)) for family, numbers in groups.items())
    )
