"""Heavy-tailed families of p(x|z) for real numbers: Student's t and Laplace."""

from dataclasses import dataclass

import jax.numpy as jnp

from vae_jax.distributions import LaplaceDistribution, StudentTDistribution
from vae_jax.distributions.support import REAL
from vae_jax.families.bounds import bound_log_var, unbound_log_var
from vae_jax.families.gaussian import raw_log_var_of
from vae_jax.types import Array, Distribution, Family, Key, PyTree

# Initial degrees of freedom of `StudentT`.
INITIAL_FREEDOM = 5.0


@dataclass(frozen=True)
class Laplace(Family):
    """Family prod_d Laplace(mean_d(z), b_d), with a learned b per dimension.

    Example:
      >>> from vae_jax import Laplace
      >>> Laplace().num_outputs(dim=13)
      13
    """

    support = REAL

    def num_outputs(self, dim: int) -> int:
        """One location per dimension."""
        return dim

    def init(self, key: Key, *, dim: int) -> dict[str, PyTree]:
        """`log_width` = 2 log b = 0, `[D]`."""
        return {"log_width": jnp.zeros(dim, jnp.float32)}

    def build(self, params: PyTree, outputs: Array) -> Distribution:
        """Build from locations `[..., D]`."""
        return LaplaceDistribution(outputs, 0.5 * bound_log_var(params["log_width"]))

    def output_bias(self, data_mean: Array) -> Array:
        """Data mean."""
        return data_mean

    def start_at_variance(
        self, params: PyTree, bias: Array, data_variance: Array
    ) -> tuple[PyTree, Array]:
        """Initialise b so that the variance 2 b^2 is that of the data."""
        return params | {"log_width": self._raw(params, data_variance / 2)}, bias

    def _raw(self, params: PyTree, square: Array) -> Array:
        # A convolution has one bias per channel, but a width at every position.
        raw = raw_log_var_of(square)
        return jnp.tile(raw, params["log_width"].size // raw.size)


@dataclass(frozen=True)
class StudentT(Laplace):
    """Family of location_d(z) + s_d t(v_d), with learned scale and degrees of freedom.

    Each dimension has its own s and v. The degrees of freedom v are above 1, so that
    the mean exists, and initially 5. The cost of an outlier grows as log(1 + t^2)
    rather than t^2 as for a Gaussian (Takahashi et al. 2018).

    Example:
      >>> import jax
      >>> from vae_jax import StudentT
      >>> sorted(StudentT().init(jax.random.key(0), dim=2))
      ['log_freedom', 'log_width']
    """

    def init(self, key: Key, *, dim: int) -> dict[str, PyTree]:
        """`log_width` (2 log s) and `log_freedom` (log(v - 1), unbounded), `[D]`."""
        raw = unbound_log_var(jnp.full(dim, jnp.log(INITIAL_FREEDOM - 1), jnp.float32))
        return super().init(key, dim=dim) | {"log_freedom": raw}

    def build(self, params: PyTree, outputs: Array) -> Distribution:
        """Build from locations `[..., D]`."""
        log_scale = 0.5 * bound_log_var(params["log_width"])
        # 1 + exp(-20) would round to 1 in float32.
        freedom = 1.001 + jnp.exp(bound_log_var(params["log_freedom"]))
        return StudentTDistribution(outputs, log_scale, freedom)

    def start_at_variance(
        self, params: PyTree, bias: Array, data_variance: Array
    ) -> tuple[PyTree, Array]:
        """Initialise s so that the variance s^2 v / (v - 2) is that of the data."""
        share = 1 - 2 / INITIAL_FREEDOM
        return params | {"log_width": self._raw(params, share * data_variance)}, bias
