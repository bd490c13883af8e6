"""Families of p(x|z) for positive numbers, whose logarithms are standardized."""

from dataclasses import dataclass

import jax.numpy as jnp

from vae_jax.distributions import GammaDistribution, LogNormalDistribution
from vae_jax.distributions.support import POSITIVE
from vae_jax.families.bounds import bound_log_var, unbound_log_var
from vae_jax.families.gaussian import Gaussian
from vae_jax.families.tables import Standardized, moments
from vae_jax.types import Array, Distribution, Family, Key, PyTree

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
    covers_unit_interval = False
    hyperparameters = _GAUSSIAN.hyperparameters

    def num_outputs(self, dim: int) -> int:
        """One mean of a logarithm for each dimension."""
        return _GAUSSIAN.num_outputs(dim)

    def init(self, key: Key, *, dim: int) -> dict[str, PyTree]:
        """Shift 0, log_scale 0 and variance 1."""
        return _GAUSSIAN.init(key, dim=dim)

    def build(self, params: PyTree, outputs: Array) -> Distribution:
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


# A variance of nothing, or of many decades.
LEAST_CONCENTRATION, LARGEST_CONCENTRATION = 1e-3, 1e6


@dataclass(frozen=True)
class Gamma(LogNormal):
    """The family of independent gamma values, a concentration of each dimension.

    The decoder says the log of the mean in standardized units of log x; the
    concentration k, for a variance m^2 / k, is trained and starts at the data's.

    Example:
      >>> import jax
      >>> from vae_jax import Gamma
      >>> sorted(Gamma().init(jax.random.key(0), dim=2))
      ['log_concentration', 'log_scale', 'shift']
    """

    def init(self, key: Key, *, dim: int) -> dict[str, PyTree]:
        """Shift 0, log_scale 0 and concentration 1."""
        own = super().init(key, dim=dim)
        return {
            "log_concentration": own["log_var"],
            "log_scale": own["log_scale"],
            "shift": own["shift"],
        }

    def build(self, params: PyTree, outputs: Array) -> Distribution:
        """Takes the decoder's outputs `[..., D]` as standardized logs of the means."""
        log_mean = params["shift"] + jnp.exp(params["log_scale"]) * outputs
        concentration = jnp.exp(bound_log_var(params["log_concentration"]))
        return GammaDistribution(log_mean, concentration)

    def start_at_data(self, params: PyTree, x: Array) -> tuple[PyTree, Array]:
        """Shift and log_scale at those of log x, mean and variance at those of x."""
        found = moments(jnp.log(x))
        mean = jnp.mean(x, axis=0)
        share = jnp.var(x / mean, axis=0)
        k = jnp.clip(
            1 / jnp.maximum(share, 1e-12), LEAST_CONCENTRATION, LARGEST_CONCENTRATION
        )
        bias = (jnp.log(mean) - found["shift"]) * jnp.exp(-found["log_scale"])
        found["log_concentration"] = unbound_log_var(jnp.log(k))
        repeats = params["shift"].size // x.shape[-1]
        return {k: jnp.tile(v, repeats) for k, v in found.items()}, bias
