"""Posterior predictive checks: statistics of data and of replications by the model."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vae_jax.distributions.support import known_values
from vae_jax.evaluation import example_keys
from vae_jax.model import (
    as_float,
    check_observations,
    decode,
    dtype_of,
    encode,
    reparameterize,
)
from vae_jax.options import require_at_least
from vae_jax.spec import Params
from vae_jax.types import Array, Key, Labels

QUANTILES = (0.1, 0.5, 0.9)


class Replicated(NamedTuple):
    """A statistic of data, and its distribution over replications.

    Replications in which the statistic is NaN are ignored, such as the dispersion of
    counts that are all zero. If it is NaN in all, so are the mean and the interval.

    Attributes:
      observed: statistic of the data, `[D]`, or `[]` over all dimensions.
      mean: mean over the replications.
      lower: lower end of the predictive interval.
      upper: upper end of the predictive interval.
    """

    observed: Array
    mean: Array
    lower: Array
    upper: Array

    @property
    def inside(self) -> Array:
        """Whether the observed statistic is not outside the predictive interval.

        Also true if the statistic or the interval is NaN, when they cannot be compared.
        """
        return ~((self.observed < self.lower) | (self.upper < self.observed))


def statistics(x: Array) -> dict[str, Array]:
    """Compute mean, variance, zeros, dispersion and quantiles of each dimension.

    Args:
      x: `[B, D]`, NaN where a value is missing.

    Returns:
      `mean`, `variance`, `zeros` (share of zeros), `dispersion` (variance / mean),
      `quantile_0.1`, `quantile_0.5`, `quantile_0.9`, each `[D]`; and `zeros_of_all`,
      the share of zeros over all dimensions, `[]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.predictive import statistics
      >>> print(statistics(jnp.array([[0.0], [4.0]]))["dispersion"])
      [2.]
    """
    mean, variance = jnp.nanmean(x, axis=0), jnp.nanvar(x, axis=0)
    is_zero = jnp.where(jnp.isnan(x), jnp.nan, x == 0)
    quantiles = jnp.nanquantile(x, jnp.array(QUANTILES, x.dtype), axis=0)
    return {
        "mean": mean,
        "variance": variance,
        "zeros": jnp.nanmean(is_zero, axis=0),
        "dispersion": variance / mean,
        **{
            f"quantile_{q}": values
            for q, values in zip(QUANTILES, quantiles, strict=True)
        },
        "zeros_of_all": jnp.nanmean(is_zero),
    }


def posterior_predictive(
    params: Params,
    x: Array,
    key: Key,
    *,
    num_replications: int = 200,
    level: float | Array = 0.95,
    labels: Labels = None,
) -> dict[str, Replicated]:
    """Compare statistics of data with those of replications x' ~ E_q(z|x)[p(x'|z)].

    Each replication draws a new z and a new x' for every example (Gelman, Meng & Stern
    1996), with the same values missing. An observed statistic outside the interval is
    one that the model does not reproduce. The data are used twice, to infer z and for
    the comparison, so the check is conservative: an observed statistic inside the
    interval is weaker evidence than one outside.

    Args:
      params: model parameters.
      x: observations, `[B, D]`.
      key: PRNG key, consumed once; replication r uses `fold_in(key, r)`.
      num_replications: number of replications.
      level: probability of the predictive intervals, between 0 and 1.
      labels: labels for a conditional model, as for `encode`.

    Returns:
      A `Replicated` for each of `statistics`, by name.

    Raises:
      ValueError: `num_replications` or `level` out of range, or observations that are
        invalid for the model.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax import ModelSpec, Poisson, init, posterior_predictive
      >>> spec = ModelSpec(likelihood=Poisson(), data_shape=(3,))
      >>> x, key = jnp.ones((10, 3)), jax.random.key(0)
      >>> found = posterior_predictive(init(spec, key), x, key, num_replications=20)
      >>> found["zeros"].observed.tolist()
      [0.0, 0.0, 0.0]
    """
    require_at_least("num_replications", num_replications)
    known = known_values(level)
    if known is not None and not 0 < known < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}")
    check_observations(params, x, labels=labels)
    x = as_float(x, dtype_of(params)).astype(dtype_of(params))
    posterior = encode(params, x, labels=labels)

    def replication(key: Key) -> dict[str, Array]:
        latent_key, data_key = jax.random.split(key)
        z = reparameterize(posterior, latent_key)
        p = decode(params, z, labels=labels).given_totals(x)
        drawn = p.sample(data_key, 1)[0, 0]
        return statistics(jnp.where(jnp.isnan(x), jnp.nan, drawn))

    drawn = jax.lax.map(replication, example_keys(key, num_replications))
    level = jnp.where((level > 0) & (level < 1), level, jnp.nan)
    ends = jnp.stack([(1 - level) / 2, (1 + level) / 2])
    return {
        name: Replicated(
            observed,
            jnp.nanmean(drawn[name], axis=0),
            *jnp.nanquantile(drawn[name], ends.astype(drawn[name].dtype), axis=0),
        )
        for name, observed in statistics(x).items()
    }
