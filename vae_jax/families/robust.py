"""Families of p(x|z) for real numbers with outliers: Student's t and Laplace."""

from dataclasses import dataclass

import jax.numpy as jnp

from vae_jax.distributions import LaplaceDistribution, StudentTDistribution
from vae_jax.distributions.support import REAL
from vae_jax.families.bounds import bound_log_var, unbound_log_var
from vae_jax.families.gaussian import raw_log_var_of
from vae_jax.types import Array, Distribution, Family, Key, PyTree

# Of a Student's t at first.
INITIAL_FREEDOM = 5.0


@dataclass(frozen=True)
class Laplace(Family):
    """The family prod_d Laplace(mean_d(z), b_d), b of each dimension trained.

    Example:
      >>> from vae_jax import Laplace
      >>> Laplace().num_outputs(dim=13)
      13
    """

    support = REAL

    def num_outputs(self, dim: int) -> int:
        """One location for each dimension."""
        return dim

    def init(self, key: Key, *, dim: int) -> dict[str, PyTree]:
        """`log_width`, twice the log of b, `[D]`, 0."""
        return {"log_width": jnp.zeros(dim, jnp.float32)}

    def build(self, params: PyTree, outputs: Array) -> Distribution:
        """Takes the decoder's outputs `[..., D]` as locations."""
        return LaplaceDistribution(outputs, 0.5 * bound_log_var(params["log_width"]))

    def output_bias(self, data_mean: Array) -> Array:
        """The data's mean."""
        return data_mean

    def start_at_variance(
        self, params: PyTree, bias: Array, data_variance: Array
    ) -> tuple[PyTree, Array]:
        """The width at which the variance, 2 b^2, is the data's."""
        return params | {"log_width": self._raw(params, data_variance / 2)}, bias

    def _raw(self, params: PyTree, square: Array) -> Array:
        # A convolution's bias is of channels, a width of every position.
        raw = raw_log_var_of(square)
        return jnp.tile(raw, params["log_width"].size // raw.size)


@dataclass(frozen=True)
class StudentT(Laplace):
    """The family of location_d(z) + s_d t(v_d), scale and freedom v trained.

    Both are of each dimension; v is above 1, so that a mean exists, and starts at 5. An
    outlier costs log(1 + t^2) where it costs t^2 under a Gaussian (Takahashi et al.
    2018).

    Example:
      >>> import jax
      >>> from vae_jax import StudentT
      >>> sorted(StudentT().init(jax.random.key(0), dim=2))
      ['log_freedom', 'log_width']
    """

    def init(self, key: Key, *, dim: int) -> dict[str, PyTree]:
        """`log_width`, twice the log of s, and `log_freedom`, of v - 1, each `[D]`."""
        raw = unbound_log_var(jnp.full(dim, jnp.log(INITIAL_FREEDOM - 1), jnp.float32))
        return super().init(key, dim=dim) | {"log_freedom": raw}

    def build(self, params: PyTree, outputs: Array) -> Distribution:
        """Takes the decoder's outputs `[..., D]` as locations."""
        log_scale = 0.5 * bound_log_var(params["log_width"])
        # A little more than 1 is 1 in float32.
        freedom = 1.001 + jnp.exp(bound_log_var(params["log_freedom"]))
        return StudentTDistribution(outputs, log_scale, freedom)

    def start_at_variance(
        self, params: PyTree, bias: Array, data_variance: Array
    ) -> tuple[PyTree, Array]:
        """The scale at which the variance, s^2 v / (v - 2), is the data's."""
        share = 1 - 2 / INITIAL_FREEDOM
        return params | {"log_width": self._raw(params, share * data_variance)}, bias
