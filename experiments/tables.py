"""Likelihoods of tables: by the kinds of their columns."""

import vae_jax
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
