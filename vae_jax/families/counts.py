"""Families of p(x|z) for counts: Poisson, negative binomial, with additional zeros.

Means and inverse dispersions are exp of `bound_log_var` of what the network says, so
between 2e-9 and 4.9e8. The encoder is given log(1 + x), as counts span decades.
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
# Where a dimension has no count at all, and where its variance is that of a Poisson.
LEAST_MEAN = 1e-3
LARGEST_INVERSE_DISPERSION = 1e4


@dataclass(frozen=True)
class Poisson(Family):
    """The family of independent Poisson counts, prod_d Poisson(exp(log_mean_d)).

    Example:
      >>> from vae_jax import Poisson
      >>> Poisson().num_outputs(dim=1000)
      1000
    """

    support = COUNTS
    covers_unit_interval = False
    has_rates = True

    def num_outputs(self, dim: int) -> int:
        """The log of each mean."""
        return dim

    def build(self, params: PyTree, outputs: Array) -> Distribution:
        """Takes the decoder's outputs `[..., D]` as logs of the means."""
        return PoissonDistribution(jnp.exp(bound_log_var(outputs)))

    def encoder_inputs(self, params: PyTree, x: Array) -> Array:
        """log(1 + x)."""
        return jnp.log1p(x)

    def output_bias(self, data_mean: Array) -> Array:
        """The log of the data's mean; of a dimension without counts, that of 0.001."""
        return unbound_log_var(jnp.log(jnp.maximum(data_mean, LEAST_MEAN)))


@dataclass(frozen=True)
class NegativeBinomial(Poisson):
    """The family of independent counts of variance m + m^2 / r.

    A Poisson count whose rate is gamma-distributed; sequencing and other counts vary
    more than their means. The inverse dispersion r is trained with the weights and
    starts where the data's variance has it.

    Attributes:
      dispersion: whose r is its own: `dimension`, each dimension; `shared`, none; or
        `decoder`, each dimension of each example.

    Raises:
      ValueError: another `dispersion`.

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
        """The log of each mean, and of each r where the decoder says it."""
        return dim * (1 + (self.dispersion == "decoder"))

    def init(self, key: Key, *, dim: int) -> dict[str, PyTree]:
        """`log_inverse_dispersion`, `[D]` or shared, 0, unless it is the decoder's."""
        if self.dispersion == "decoder":
            return {}
        shape = (dim,) if self.dispersion == "dimension" else ()
        return {"log_inverse_dispersion": jnp.zeros(shape, jnp.float32)}

    def build(self, params: PyTree, outputs: Array) -> Distribution:
        """Splits the decoder's outputs into logs of the means and of r."""
        return self._counted(params, outputs)

    def _counted(self, params: PyTree, outputs: Array) -> NegativeBinomialDistribution:
        if self.dispersion == "decoder":
            outputs, raw = jnp.split(outputs, 2, axis=-1)
        else:
            raw = params["log_inverse_dispersion"]
        mean, r = (jnp.exp(bound_log_var(each)) for each in (outputs, raw))
        return NegativeBinomialDistribution(mean, r)

    def output_bias(self, data_mean: Array) -> Array:
        """The log of the data's mean, and r = 1."""
        bias = super().output_bias(data_mean)
        if self.dispersion == "decoder":
            return jnp.concatenate([bias, jnp.zeros_like(bias)])
        return bias

    def start_at_variance(
        self, params: PyTree, bias: Array, data_variance: Array
    ) -> tuple[PyTree, Array]:
        """R at which the variance is the data's, at most 1e4: m^2 / (variance - m)."""
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
            # A convolution's bias is of channels, r of every position.
            raw = jnp.tile(raw, params["log_inverse_dispersion"].size // dim)
        return params | {"log_inverse_dispersion": raw}, bias


@dataclass(frozen=True)
class ZeroInflatedNegativeBinomial(NegativeBinomial):
    """The family of negative binomial counts with additional zeros (Lopez et al. 2018).

        P(x_d) = pi_d 1[x_d = 0] + (1 - pi_d) NB(x_d; m_d, r_d)

    The decoder gives the log-odds of pi for each dimension; r is as for
    `NegativeBinomial`.

    Example:
      >>> from vae_jax import ZeroInflatedNegativeBinomial
      >>> ZeroInflatedNegativeBinomial().num_outputs(dim=1000)
      2000
    """

    def num_outputs(self, dim: int) -> int:
        """Those of the negative binomial, then the log-odds of a zero beside it."""
        return super().num_outputs(dim) + dim

    def build(self, params: PyTree, outputs: Array) -> Distribution:
        """Splits the decoder's outputs; log-odds within (-20, 20)."""
        dim = outputs.shape[-1] // (2 + (self.dispersion == "decoder"))
        counted, logits = outputs[..., :-dim], outputs[..., -dim:]
        return ZeroInflatedNegativeBinomialDistribution(
            bound_log_var(logits), self._counted(params, counted)
        )

    def output_bias(self, data_mean: Array) -> Array:
        """The data's mean, r = 1, and an eighth of additional zeros (log-odds -2)."""
        logits = jnp.full_like(data_mean, -2.0)
        counted = super().output_bias(data_mean / jax.nn.sigmoid(-logits))
        return jnp.concatenate([counted, logits])


@dataclass(frozen=True)
class Multinomial(Poisson):
    """The family of counts given their total, which is that of each example.

    log p(x|z) is of the shares of x, given n = sum_d x_d (`multinomial.log_prob`), and
    compares with no log-probability of the counts themselves. Draws and means have the
    total `log_total` says, a setting, which `init(x=...)` puts at the data's mean.

    Example:
      >>> from vae_jax import Multinomial
      >>> Multinomial().num_outputs(dim=1000)
      1000
    """

    hyperparameters = ("log_total",)
    has_rates = False

    def init(self, key: Key, *, dim: int) -> dict[str, PyTree]:
        """A total of one for each dimension."""
        return {"log_total": jnp.log(jnp.float32(dim))}

    def build(self, params: PyTree, outputs: Array) -> Distribution:
        """Takes the decoder's outputs `[..., D]` as logits of the shares."""
        return MultinomialDistribution(outputs, jnp.exp(params["log_total"]))

    def output_bias(self, data_mean: Array) -> Array:
        """Logs of the data's shares, at least those of 0.001 counts a row."""
        return jnp.log(jnp.maximum(data_mean, LEAST_MEAN))

    def start_at_data(self, params: PyTree, x: Array) -> tuple[PyTree, Array]:
        """Shares and mean total of the data."""
        _, bias = super().start_at_data(params, x)
        total = jnp.maximum(jnp.sum(jnp.mean(x, axis=0)), LEAST_MEAN)
        # A convolution's rows are positions, and init's total is the number of all
        # dimensions.
        log_positions = params["log_total"] - jnp.log(x.shape[-1])
        return {"log_total": jnp.log(total) + log_positions}, bias
