"""Families of p(x|z) for values of evenly spaced levels, as 8-bit pixels have."""

from dataclasses import dataclass, field
from typing import ClassVar

import jax
import jax.numpy as jnp

from vae_jax.distributions import categorical, discretized_logistic
from vae_jax.distributions.support import Support
from vae_jax.posteriors import bound_log_var
from vae_jax.types import Array, Key, PyTree


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CategoricalLikelihood:
    """p(x|z) = prod_d softmax(logits_d)[x_d (n - 1)], x one of n levels of [0, 1].

    Attributes:
      logits: `[S, B, D, n]`.
    """

    logits: Array

    def log_prob(self, x: Array) -> Array:
        """Log p(x|z) in nats, summed over D: `[S, B]` for `x` `[B, D]`."""
        num_levels = self.logits.shape[-1]
        support = Support(0.0, 1.0, num_levels)
        support.require(x)
        x = jnp.asarray(x, self.logits.dtype)
        # -1 is no category: NaN.
        level = jnp.where(support.contains(x), jnp.round(x * (num_levels - 1)), -1)
        return categorical.log_prob(level.astype(jnp.int32), self.logits)

    @property
    def mean(self) -> Array:
        """E[x|z], `[S, B, D]`."""
        values = jnp.linspace(0, 1, self.logits.shape[-1], dtype=self.logits.dtype)
        return jax.nn.softmax(self.logits, axis=-1) @ values

    def sample(self, key: Key) -> Array:
        """Draws in [0, 1], `[S, B, D]`."""
        level = categorical.sample(self.logits, key).astype(self.logits.dtype)
        return level / (self.logits.shape[-1] - 1)


@dataclass(frozen=True)
class Categorical:
    """The family of independent categories, one for each level of a pixel.

    Attributes:
      num_levels: n.

    Example:
      >>> from vae_jax import Categorical
      >>> Categorical(num_levels=17).num_outputs(data_dim=64)
      1088
    """

    num_levels: int = 256
    hyperparameters: ClassVar[tuple[str, ...]] = ()

    @property
    def support(self) -> Support:
        """The levels 0, 1 / (n - 1), ..., 1."""
        return Support(0.0, 1.0, self.num_levels)

    def num_outputs(self, data_dim: int) -> int:
        """A logit for each level of each pixel."""
        return self.num_levels * data_dim

    def init(self, key: Key, *, data_dim: int) -> dict[str, PyTree]:
        """No parameters of its own."""
        return {}

    def build(self, likelihood_params: PyTree, outputs: Array) -> CategoricalLikelihood:
        """Takes the decoder's outputs `[..., n D]` as logits, level by level."""
        return CategoricalLikelihood(_by_pixel(outputs, self.num_levels))

    def output_bias(self, data_mean: Array) -> Array:
        """Logits that rise with the level by the mean's log-odds: near the mean."""
        clipped = jnp.clip(data_mean, 0.001, 0.999)
        log_odds = jnp.log(clipped) - jnp.log1p(-clipped)
        return jnp.outer(jnp.linspace(0, 1, self.num_levels), log_odds).ravel()


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DiscretizedLogisticLikelihood:
    """p(x|z) as products over pixels of discretized logistic mixtures.

    Attributes:
      logits: of the weights of the components, `[S, B, D, K]`.
      location: of the components, `[S, B, D, K]`.
      log_scale: of the components, `[S, B, D, K]`.
      num_levels: n; static.
    """

    logits: Array
    location: Array
    log_scale: Array
    num_levels: int = field(metadata={"static": True})

    def _parts(self) -> tuple[Array, Array, Array]:
        return self.logits, self.location, self.log_scale

    def log_prob(self, x: Array) -> Array:
        """Log p(x|z) in nats, summed over D: `[S, B]` for `x` `[B, D]`."""
        Support(0.0, 1.0, self.num_levels).require(x)
        return discretized_logistic.log_prob(
            x, *self._parts(), num_levels=self.num_levels
        )

    @property
    def mean(self) -> Array:
        """E[x|z], `[S, B, D]`."""
        return discretized_logistic.mean_level(
            *self._parts(), num_levels=self.num_levels
        )

    def sample(self, key: Key) -> Array:
        """Draws in [0, 1], `[S, B, D]`."""
        return discretized_logistic.sample(
            *self._parts(), key, num_levels=self.num_levels
        )


@dataclass(frozen=True)
class DiscretizedLogistic:
    """The family of discretized logistic mixtures, Salimans et al. 2017.

    For one channel; the channels of a color image are taken as independent.

    Attributes:
      num_levels: n, 256 for 8 bits.
      num_components: K.

    Example:
      >>> from vae_jax import DiscretizedLogistic
      >>> DiscretizedLogistic(num_components=5).num_outputs(data_dim=784)
      11760
    """

    num_levels: int = 256
    num_components: int = 5
    hyperparameters: ClassVar[tuple[str, ...]] = ()

    @property
    def support(self) -> Support:
        """The levels 0, 1 / (n - 1), ..., 1."""
        return Support(0.0, 1.0, self.num_levels)

    def num_outputs(self, data_dim: int) -> int:
        """Logit, location and log-scale of each component of each pixel."""
        return 3 * self.num_components * data_dim

    def init(self, key: Key, *, data_dim: int) -> dict[str, PyTree]:
        """No parameters of its own."""
        return {}

    def build(
        self, likelihood_params: PyTree, outputs: Array
    ) -> DiscretizedLogisticLikelihood:
        """Splits the decoder's outputs `[..., 3 K D]`; scales within e^-10 and e^10."""
        parts = _by_pixel(outputs, 3 * self.num_components)
        logits, location, raw = jnp.split(parts, 3, axis=-1)
        log_scale = 0.5 * bound_log_var(raw)
        return DiscretizedLogisticLikelihood(
            logits, location, log_scale, self.num_levels
        )

    def output_bias(self, data_mean: Array) -> Array:
        """Every component at the data's mean, with a scale of about e^-2."""
        zero, every = jnp.zeros_like(data_mean), self.num_components
        parts = [zero] * every + [data_mean] * every + [zero - 4] * every
        return jnp.concatenate(parts)


def _by_pixel(outputs: Array, num_parameters: int) -> Array:
    """From parameter by parameter, `[..., P D]`, to `[..., D, P]`."""
    by_parameter = outputs.reshape(*outputs.shape[:-1], num_parameters, -1)
    return jnp.moveaxis(by_parameter, -2, -1)
