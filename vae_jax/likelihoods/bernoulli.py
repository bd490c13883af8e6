"""Bernoulli families of p(x|z): for bits, and continuous for grey values."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from vae_jax.distributions import bernoulli, continuous_bernoulli
from vae_jax.distributions.support import UNIT_INTERVAL, Support
from vae_jax.types import Array, Key, PyTree


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BernoulliLikelihood:
    """p(x|z) = prod_d Bernoulli(x_d; sigmoid(logits_d)).

    Attributes:
      logits: `[S, B, D]`.
    """

    logits: Array

    def log_prob(self, x: Array) -> Array:
        """Log p(x|z) in nats, summed over D: `[S, B]` for `x` `[B, D]`."""
        UNIT_INTERVAL.require(x)
        return bernoulli.log_prob(x, self.logits)

    @property
    def mean(self) -> Array:
        """The probabilities of a one, `[S, B, D]`."""
        return jax.nn.sigmoid(self.logits)

    def sample(self, key: Key) -> Array:
        """Zeros and ones, `[S, B, D]`."""
        return bernoulli.sample(self.logits, key)


@dataclass(frozen=True)
class Bernoulli:
    """The family of independent Bernoulli pixels, Kingma & Welling 2014, app. C.1.

    Example:
      >>> from vae_jax import Bernoulli
      >>> Bernoulli().num_outputs(data_dim=784)
      784
    """

    hyperparameters: ClassVar[tuple[str, ...]] = ()
    support: ClassVar[Support] = UNIT_INTERVAL

    def num_outputs(self, data_dim: int) -> int:
        """One logit a pixel."""
        return data_dim

    def init(self, key: Key, *, data_dim: int) -> dict[str, PyTree]:
        """No parameters of its own."""
        return {}

    def build(self, likelihood_params: PyTree, outputs: Array) -> BernoulliLikelihood:
        """Takes the decoder's outputs `[..., D]` as logits."""
        return BernoulliLikelihood(outputs)

    def output_bias(self, data_mean: Array) -> Array:
        """The data's log-odds, the means clipped to [0.001, 0.999].

        Burda, Grosse & Salakhutdinov 2016 start there in their released code.
        """
        clipped = jnp.clip(data_mean, 0.001, 0.999)
        return jnp.log(clipped) - jnp.log1p(-clipped)


# A density of 256 on [0, 1] resolves one level of 8-bit data.
CONTINUOUS_LOGIT_BOUND = 256.0


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ContinuousBernoulliLikelihood:
    """p(x|z) = prod_d C(l_d) exp(l_d x_d) on [0, 1], a density of grey values.

    Attributes:
      logits: l, `[S, B, D]`.
    """

    logits: Array

    def log_prob(self, x: Array) -> Array:
        """Log p(x|z) in nats, summed over D: `[S, B]` for `x` `[B, D]`."""
        UNIT_INTERVAL.require(x)
        return continuous_bernoulli.log_prob(x, self.logits)

    @property
    def mean(self) -> Array:
        """E[x|z], `[S, B, D]`; not sigmoid(l)."""
        return continuous_bernoulli.mean(self.logits)

    def sample(self, key: Key) -> Array:
        """Draws in [0, 1], `[S, B, D]`."""
        return continuous_bernoulli.sample(self.logits, key)


@dataclass(frozen=True)
class ContinuousBernoulli:
    """The family of continuous Bernoulli pixels, Loaiza-Ganem & Cunningham 2019.

    What a cross-entropy on grey values lacks is this density's normalizer. At 0 and 1
    the density grows with the logit without limit, so pixels that are exactly black or
    white would drive an ELBO up for ever. The logits are therefore kept within (-256,
    256) by 256 tanh(output / 256), nearly unchanged up to 50: no density exceeds 256
    (5.55 nats a pixel), and means stay within [0.004, 0.996], one level of 8-bit data
    from the ends. It remains a density: figures compare with densities alone, and
    `DiscretizedLogistic` gives a probability of the levels.

    Example:
      >>> from vae_jax import ContinuousBernoulli
      >>> ContinuousBernoulli().num_outputs(data_dim=784)
      784
    """

    hyperparameters: ClassVar[tuple[str, ...]] = ()
    support: ClassVar[Support] = UNIT_INTERVAL

    def num_outputs(self, data_dim: int) -> int:
        """One logit a pixel."""
        return data_dim

    def init(self, key: Key, *, data_dim: int) -> dict[str, PyTree]:
        """No parameters of its own."""
        return {}

    def build(
        self, likelihood_params: PyTree, outputs: Array
    ) -> ContinuousBernoulliLikelihood:
        """Takes the decoder's outputs `[..., D]` as logits, bounded."""
        bounded = jnp.tanh(outputs / CONTINUOUS_LOGIT_BOUND)
        return ContinuousBernoulliLikelihood(CONTINUOUS_LOGIT_BOUND * bounded)

    def output_bias(self, data_mean: Array) -> Array:
        """The data's log-odds, as for `Bernoulli`: near enough to start from."""
        return Bernoulli().output_bias(data_mean)
