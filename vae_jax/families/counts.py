"""Families of p(x|z) for counts: Poisson, negative binomial, multinomial.

Means and inverse dispersions are exp(bound_log_var(output)), hence between 2e-9 and
4.9e8. The encoder input is log(1 + x), since counts span orders of magnitude.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from vae_jax.distributions import (
    MultinomialDistribution,
    NegativeBinomialDistribution,
    PoissonDistribution,
    ZeroInflatedNegativeBinomialDistribution,
)
from vae_jax.distributions.support import COUNTS
from vae_jax.families.bounds import bound_log_var, unbound_log_var
from vae_jax.types import Array, Distribution, Family, Key, PyTree

Dispersion = Literal["shared", "dimension", "decoder"]
# Used for a dimension without counts, and for one whose variance is at most its mean.
LEAST_MEAN = 1e-3
LARGEST_INVERSE_DISPERSION = 1e4


@dataclass(frozen=True)
class Poisson(Family):
    """Family of independent Poisson counts, prod_d Poisson(exp(log_mean_d)).

    Example:
      >>> from vae_jax import Poisson
      >>> Poisson().num_outputs(dim=1000)
      1000
    """

    support = COUNTS
    covers_unit_interval = False
    has_rates = True

    def num_outputs(self, dim: int) -> int:
        """One log-mean per dimension."""
        return dim

    def build(self, params: PyTree, outputs: Array) -> Distribution:
        """Build from unbounded log-means `[..., D]`."""
        return PoissonDistribution(jnp.exp(bound_log_var(outputs)))

    def encoder_inputs(self, params: PyTree, x: Array) -> Array:
        """log(1 + x)."""
        return jnp.log1p(x)

    def output_bias(self, data_mean: Array) -> Array:
        """Log of the data mean, at least log(0.001)."""
        return unbound_log_var(jnp.log(jnp.maximum(data_mean, LEAST_MEAN)))


@dataclass(frozen=True)
class NegativeBinomial(Poisson):
    """Family of independent overdispersed counts with variance m + m^2 / r.

    A Poisson count with a gamma-distributed rate, for data (such as sequencing counts)
    whose variance exceeds the mean. The inverse dispersion r is learned, and
    initialised so that the variance is that of the data.

    Attributes:
      dispersion: `dimension`, one r per dimension; `shared`, one for all; `decoder`,
        one for each dimension of each example, given by the decoder.

    Raises:
      ValueError: unknown `dispersion`.

    Example:
      >>> from vae_jax import NegativeBinomial
      >>> NegativeBinomial("decoder").num_outputs(dim=1000)
      2000
    """

    dispersion: Dispersion = "dimension"

    def __post_init__(self):
        known = ("shared", "dimension", "decoder")
        if self.dispersion not in known:
            raise ValueError(
                f"dispersion must be one of {', '.join(known)}, got {self.dispersion!r}"
            )

    def num_outputs(self, dim: int) -> int:
        """One log-mean per dimension, and one log r if the decoder gives r."""
        return dim * (1 + (self.dispersion == "decoder"))

    def init(self, key: Key, *, dim: int) -> dict[str, PyTree]:
        """`log_inverse_dispersion` = 0, `[D]` or `[]`; none if the decoder gives r."""
        if self.dispersion == "decoder":
            return {}
        shape = (dim,) if self.dispersion == "dimension" else ()
        return {"log_inverse_dispersion": jnp.zeros(shape, jnp.float32)}

    def build(self, params: PyTree, outputs: Array) -> Distribution:
        """Split the decoder's outputs into log-means and, if it gives them, log r."""
        return self._counted(params, outputs)

    def _counted(self, params: PyTree, outputs: Array) -> NegativeBinomialDistribution:
        if self.dispersion == "decoder":
            outputs, raw = jnp.split(outputs, 2, axis=-1)
        else:
            raw = params["log_inverse_dispersion"]
        mean, r = (jnp.exp(bound_log_var(each)) for each in (outputs, raw))
        return NegativeBinomialDistribution(mean, r)

    def output_bias(self, data_mean: Array) -> Array:
        """Log of the data mean, and r = 1."""
        bias = super().output_bias(data_mean)
        if self.dispersion == "decoder":
            return jnp.concatenate([bias, jnp.zeros_like(bias)])
        return bias

    def start_at_variance(
        self, params: PyTree, bias: Array, data_variance: Array
    ) -> tuple[PyTree, Array]:
        """Initialise r = m^2 / (variance - m) from the data's variance, at most 1e4."""
        dim = data_variance.size
        mean = jnp.exp(bound_log_var(bias[:dim]))
        square, excess = jnp.square(mean), data_variance - mean
        if self.dispersion == "shared":
            square, excess = jnp.sum(square), jnp.sum(excess)
        share = jnp.maximum(excess / square, 1 / LARGEST_INVERSE_DISPERSION)
        raw = unbound_log_var(-jnp.log(share))
        if self.dispersion == "decoder":
            return params, bias.at[dim : 2 * dim].set(raw)
        if params["log_inverse_dispersion"].shape != raw.shape:
            # A convolution has one bias per channel, but r at every position.
            raw = jnp.tile(raw, params["log_inverse_dispersion"].size // dim)
        return params | {"log_inverse_dispersion": raw}, bias


@dataclass(frozen=True)
class ZeroInflatedNegativeBinomial(NegativeBinomial):
    """Family of zero-inflated negative binomial counts, Lopez et al. 2018.

        P(x_d) = pi_d 1[x_d = 0] + (1 - pi_d) NB(x_d; m_d, r_d)

    The decoder gives the log-odds of pi for each dimension. For r see
    `NegativeBinomial`.

    Example:
      >>> from vae_jax import ZeroInflatedNegativeBinomial
      >>> ZeroInflatedNegativeBinomial().num_outputs(dim=1000)
      2000
    """

    def num_outputs(self, dim: int) -> int:
        """Those of the negative binomial, then the log-odds of an additional zero."""
        return super().num_outputs(dim) + dim

    def build(self, params: PyTree, outputs: Array) -> Distribution:
        """Split the decoder's outputs; bound the log-odds to (-20, 20)."""
        dim = outputs.shape[-1] // (2 + (self.dispersion == "decoder"))
        counted, logits = outputs[..., :-dim], outputs[..., -dim:]
        return ZeroInflatedNegativeBinomialDistribution(
            bound_log_var(logits), self._counted(params, counted)
        )

    def output_bias(self, data_mean: Array) -> Array:
        """Data mean, r = 1, and an eighth of additional zeros (log-odds -2)."""
        logits = jnp.full_like(data_mean, -2.0)
        counted = super().output_bias(data_mean / jax.nn.sigmoid(-logits))
        return jnp.concatenate([counted, logits])


@dataclass(frozen=True)
class Multinomial(Poisson):
    """Family of counts conditional on the total of each example.

    log p(x|z) is conditional on n = sum_d x_d (`multinomial.log_prob`) and thus not
    comparable with a log-probability of the counts. Draws and means have the total
    exp(log_total), a hyperparameter that `init(x=...)` sets to the mean total of the
    data.

    Example:
      >>> from vae_jax import Multinomial
      >>> Multinomial().num_outputs(dim=1000)
      1000
    """

    hyperparameters = ("log_total",)
    has_rates = False

    def init(self, key: Key, *, dim: int) -> dict[str, PyTree]:
        """`log_total` = log D: a total of one per dimension."""
        return {"log_total": jnp.log(jnp.float32(dim))}

    def build(self, params: PyTree, outputs: Array) -> Distribution:
        """Build from the logits of the proportions, `[..., D]`."""
        return MultinomialDistribution(outputs, jnp.exp(params["log_total"]))

    def output_bias(self, data_mean: Array) -> Array:
        """Log of the data mean, at least log(0.001): logits of the proportions."""
        return jnp.log(jnp.maximum(data_mean, LEAST_MEAN))

    def start_at_data(self, params: PyTree, x: Array) -> tuple[PyTree, Array]:
        """Initialise at the proportions and the mean total of the data."""
        _, bias = super().start_at_data(params, x)
        total = jnp.maximum(jnp.sum(jnp.mean(x, axis=0)), LEAST_MEAN)
        # The rows of a convolution are positions; `init` sets the total to the number
        # of dimensions over all positions.
        log_positions = params["log_total"] - jnp.log(x.shape[-1])
        return {"log_total": jnp.log(total) + log_positions}, bias
