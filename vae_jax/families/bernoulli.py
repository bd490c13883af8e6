"""Bernoulli families: bits, and continuous values of [0, 1] for grey pixels."""

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
    """The family of independent bits, prod_d Bernoulli(sigmoid(logits_d)).

    As p(x|z) Kingma & Welling 2014, appendix C.1. As q(z|x) its gradient needs an
    estimator for discrete latents, `leave_one_out` or `disarm` among them;
    `reparameterization` refuses it.

    Example:
      >>> from vae_jax import Bernoulli
      >>> Bernoulli().num_outputs(dim=784)
      784
    """

    latent_space = "binary"
    support = UNIT_INTERVAL

    def num_outputs(self, dim: int) -> int:
        """One logit for each dimension."""
        return dim

    def build(self, params: PyTree, outputs: Array) -> BernoulliDistribution:
        """Takes the outputs `[..., D]` as logits."""
        return BernoulliDistribution(outputs)

    def output_bias(self, data_mean: Array) -> Array:
        """The data's log-odds, the means clipped to [0.001, 0.999].

        Burda, Grosse & Salakhutdinov 2016 start there in their released code.
        """
        clipped = jnp.clip(data_mean, 0.001, 0.999)
        return jnp.log(clipped) - jnp.log1p(-clipped)


FactorizedBernoulli = Bernoulli

# A density of 256 on [0, 1] resolves one level of 8-bit data.
CONTINUOUS_LOGIT_BOUND = 256.0


@dataclass(frozen=True)
class ContinuousBernoulli(Family):
    """The family of continuous Bernoulli pixels, Loaiza-Ganem & Cunningham 2019.

    What a cross-entropy on grey values lacks is this density's normalizer. At 0 and 1
    the density grows with the logit without limit, so pixels that are exactly black or
    white would drive an ELBO up for ever. The logits are therefore kept within
    (-256, 256):

        logits = 256 tanh(output / 256)

    nearly unchanged up to 50: no density exceeds 256 (5.55 nats a pixel), and means
    stay within [0.004, 0.996], one level of 8-bit data from the ends. It remains a
    density: figures compare with densities alone, and `DiscretizedLogistic` gives a
    probability of the levels.

    Example:
      >>> from vae_jax import ContinuousBernoulli
      >>> ContinuousBernoulli().num_outputs(dim=784)
      784
    """

    support = UNIT_INTERVAL

    def num_outputs(self, dim: int) -> int:
        """One logit a pixel."""
        return dim

    def build(self, params: PyTree, outputs: Array) -> ContinuousBernoulliDistribution:
        """Takes the decoder's outputs `[..., D]` as logits, bounded."""
        bounded = jnp.tanh(outputs / CONTINUOUS_LOGIT_BOUND)
        return ContinuousBernoulliDistribution(CONTINUOUS_LOGIT_BOUND * bounded)

    def output_bias(self, data_mean: Array) -> Array:
        """The data's log-odds, as for `Bernoulli`: near enough to start from."""
        return Bernoulli().output_bias(data_mean)
