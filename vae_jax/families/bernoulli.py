"""Bernoulli families: bits, and continuous grey values in [0, 1]."""

from dataclasses import dataclass

import jax.numpy as jnp

from vae_jax.distributions import (
    BernoulliDistribution,
    ContinuousBernoulliDistribution,
)
from vae_jax.distributions.support import UNIT_INTERVAL
from vae_jax.types import Array, Family, PyTree


@dataclass(frozen=True)
class Bernoulli(Family):
    """Family of independent bits, prod_d Bernoulli(sigmoid(logits_d)).

    As p(x|z): Kingma & Welling 2014, appendix C.1. As q(z|x), its gradient requires an
    estimator for discrete latents, such as `leave_one_out` or `disarm`;
    `reparameterization` raises ValueError.

    Example:
      >>> from vae_jax import Bernoulli
      >>> Bernoulli().num_outputs(dim=784)
      784
    """

    latent_space = "binary"
    support = UNIT_INTERVAL

    def num_outputs(self, dim: int) -> int:
        """One logit per dimension."""
        return dim

    def build(self, params: PyTree, outputs: Array) -> BernoulliDistribution:
        """Build from logits `[..., D]`."""
        return BernoulliDistribution(outputs)

    def output_bias(self, data_mean: Array) -> Array:
        """Log-odds of the data mean, clipped to [0.001, 0.999].

        The initialisation in the released code of Burda, Grosse & Salakhutdinov 2016.
        """
        clipped = jnp.clip(data_mean, 0.001, 0.999)
        return jnp.log(clipped) - jnp.log1p(-clipped)


FactorizedBernoulli = Bernoulli

# A density of 256 on [0, 1] corresponds to the width of one level of 8-bit data.
CONTINUOUS_LOGIT_BOUND = 256.0


@dataclass(frozen=True)
class ContinuousBernoulli(Family):
    """Family of continuous Bernoulli pixels, Loaiza-Ganem & Cunningham 2019.

    The cross-entropy on grey values, plus its missing log-normalizer. At 0 and 1 the
    density grows without bound in the logit, so exactly black or white pixels would
    increase the ELBO indefinitely. The logits are therefore kept within (-256, 256):

        logits = 256 tanh(output / 256)

    which is nearly the identity up to 50. No density exceeds 256 (5.55 nats per pixel),
    and means stay within [0.004, 0.996], one level of 8-bit data from the ends. Values
    are log-densities and comparable only with log-densities; for log-probabilities of
    the levels use `DiscretizedLogistic`.

    Example:
      >>> from vae_jax import ContinuousBernoulli
      >>> ContinuousBernoulli().num_outputs(dim=784)
      784
    """

    support = UNIT_INTERVAL

    def num_outputs(self, dim: int) -> int:
        """One logit per pixel."""
        return dim

    def build(self, params: PyTree, outputs: Array) -> ContinuousBernoulliDistribution:
        """Build from unbounded logits `[..., D]`."""
        bounded = jnp.tanh(outputs / CONTINUOUS_LOGIT_BOUND)
        return ContinuousBernoulliDistribution(CONTINUOUS_LOGIT_BOUND * bounded)

    def output_bias(self, data_mean: Array) -> Array:
        """Log-odds of the data mean as for `Bernoulli`: an approximate start."""
        return Bernoulli().output_bias(data_mean)
