"""Families of p(x|z) for positive numbers, on standardized logarithms."""

from dataclasses import dataclass

import jax.numpy as jnp

from vae_jax.distributions import GammaDistribution, LogNormalDistribution
from vae_jax.distributions.support import POSITIVE
from vae_jax.families.bounds import bound_log_var, unbound_log_var
from vae_jax.families.gaussian import Gaussian
from vae_jax.families.tables import Standardized, moments
from vae_jax.types import Array, Distribution, Family, Key, PyTree

# The family of log x.
_GAUSSIAN = Standardized(Gaussian(True, per_dimension=True))


@dataclass(frozen=True)
class LogNormal(Family):
    """Family of independent log-normal values, used by HI-VAE for positive columns.

    The decoder gives the mean of log x in standardized units; one variance per
    dimension is learned. The hyperparameters shift and log_scale are set by
    `init(x=...)` from the logarithms of the data. The encoder inputs are the
    standardized logarithms.

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
        """One mean of log x per dimension."""
        return _GAUSSIAN.num_outputs(dim)

    def init(self, key: Key, *, dim: int) -> dict[str, PyTree]:
        """`shift`, `log_scale` and `log_var` = 0, `[D]`."""
        return _GAUSSIAN.init(key, dim=dim)

    def build(self, params: PyTree, outputs: Array) -> Distribution:
        """Build from standardized means of log x, `[..., D]`."""
        log_var = bound_log_var(params["log_var"]) + 2 * params["log_scale"]
        mean = _GAUSSIAN.build(params, outputs).mean
        return LogNormalDistribution(mean, log_var)

    def encoder_inputs(self, params: PyTree, x: Array) -> Array:
        """Standardized logarithms."""
        return _GAUSSIAN.encoder_inputs(params, jnp.log(jnp.maximum(x, POSITIVE.low)))

    def start_at_data(self, params: PyTree, x: Array) -> tuple[PyTree, Array]:
        """Initialise shift, scale and variance at the moments of log x."""
        return _GAUSSIAN.start_at_data(params, jnp.log(x))


# Limits for data that span many orders of magnitude, or have no variance.
LEAST_CONCENTRATION, LARGEST_CONCENTRATION = 1e-3, 1e6


@dataclass(frozen=True)
class Gamma(LogNormal):
    """Family of independent gamma values, with one concentration per dimension.

    The decoder gives the log of the mean m in standardized units of log x. The
    concentration k (variance m^2 / k) is learned, and initialised from the data.

    Example:
      >>> import jax
      >>> from vae_jax import Gamma
      >>> sorted(Gamma().init(jax.random.key(0), dim=2))
      ['log_concentration', 'log_scale', 'shift']
    """

    def init(self, key: Key, *, dim: int) -> dict[str, PyTree]:
        """`shift`, `log_scale` and `log_concentration` = 0, `[D]`."""
        own = super().init(key, dim=dim)
        return {
            "log_concentration": own["log_var"],
            "log_scale": own["log_scale"],
            "shift": own["shift"],
        }

    def build(self, params: PyTree, outputs: Array) -> Distribution:
        """Build from standardized log-means, `[..., D]`."""
        log_mean = params["shift"] + jnp.exp(params["log_scale"]) * outputs
        concentration = jnp.exp(bound_log_var(params["log_concentration"]))
        return GammaDistribution(log_mean, concentration)

    def start_at_data(self, params: PyTree, x: Array) -> tuple[PyTree, Array]:
        """Initialise shift and scale from log x, mean and variance from x."""
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
