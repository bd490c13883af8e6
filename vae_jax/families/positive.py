"""Families of p(x|z) for positive numbers, whose logarithms are standardized."""

from dataclasses import dataclass

import jax.numpy as jnp

from vae_jax.distributions import LogNormalDistribution
from vae_jax.distributions.support import POSITIVE
from vae_jax.families.bounds import bound_log_var
from vae_jax.families.gaussian import Gaussian
from vae_jax.families.tables import Standardized
from vae_jax.types import Array, Family, Key, PyTree

# Of the logarithms.
_GAUSSIAN = Standardized(Gaussian(True, per_dimension=True))


@dataclass(frozen=True)
class LogNormal(Family):
    """The family of independent log-normal values, HI-VAE's for positive columns.

    The decoder says the mean of log x in standardized units, a variance of each
    dimension is learned. Shift and log_scale are settings, which `init(x=...)` takes
    from the logarithms of the data; the encoder sees these standardized.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax import LogNormal, ModelSpec, init
      >>> spec = ModelSpec(likelihood=LogNormal(), data_shape=(1,))
      >>> x = jnp.exp(jnp.array([[1.0], [3.0]]))
      >>> print(init(spec, jax.random.key(0), x=x).likelihood["shift"])
      [2.]
    """

    support = POSITIVE
    hyperparameters = _GAUSSIAN.hyperparameters

    def num_outputs(self, dim: int) -> int:
        """One mean of a logarithm for each dimension."""
        return _GAUSSIAN.num_outputs(dim)

    def init(self, key: Key, *, dim: int) -> dict[str, PyTree]:
        """Shift 0, log_scale 0 and variance 1."""
        return _GAUSSIAN.init(key, dim=dim)

    def build(self, params: PyTree, outputs: Array) -> LogNormalDistribution:
        """Takes the decoder's outputs `[..., D]` as standardized means of log x."""
        log_var = bound_log_var(params["log_var"]) + 2 * params["log_scale"]
        mean = _GAUSSIAN.build(params, outputs).mean
        return LogNormalDistribution(mean, log_var)

    def encoder_inputs(self, params: PyTree, x: Array) -> Array:
        """Standardized logarithms."""
        return _GAUSSIAN.encoder_inputs(params, jnp.log(jnp.maximum(x, POSITIVE.low)))

    def start_at_data(self, params: PyTree, x: Array) -> tuple[PyTree, Array]:
        """Shift, log_scale and variance at those of log x."""
        return _GAUSSIAN.start_at_data(params, jnp.log(x))
