"""Beta family of p(x|z), for fractions between 0 and 1."""

from dataclasses import dataclass

import jax.numpy as jnp

from vae_jax.distributions import BetaDistribution
from vae_jax.distributions.support import FRACTIONS
from vae_jax.families.bounds import bound_log_var, unbound_log_var
from vae_jax.types import Array, Distribution, Family, Key, PyTree

# Limits for data without variance, or with more than a beta density can have.
LEAST_CONCENTRATION, LARGEST_CONCENTRATION = 1e-2, 1e6


@dataclass(frozen=True)
class Beta(Family):
    """Family prod_d Beta with mean sigmoid(logits_d(z)) and learned concentration.

    The concentration n of each dimension gives the variance m (1 - m) / (n + 1), and is
    initialised from the variance of the data. The encoder inputs are log-odds. Values
    of exactly 0 and 1 are outside the support.

    Example:
      >>> from vae_jax import Beta
      >>> Beta().num_outputs(dim=5)
      5
    """

    support = FRACTIONS

    def num_outputs(self, dim: int) -> int:
        """One log-odds of the mean per dimension."""
        return dim

    def init(self, key: Key, *, dim: int) -> dict[str, PyTree]:
        """`log_concentration` = 0, `[D]`."""
        return {"log_concentration": jnp.zeros(dim, jnp.float32)}

    def build(self, params: PyTree, outputs: Array) -> Distribution:
        """Build from log-odds of the means, `[..., D]`, bounded to (-20, 20)."""
        concentration = jnp.exp(bound_log_var(params["log_concentration"]))
        return BetaDistribution(bound_log_var(outputs), concentration)

    def encoder_inputs(self, params: PyTree, x: Array) -> Array:
        """log(x / (1 - x))."""
        x = jnp.clip(x, FRACTIONS.low, FRACTIONS.high)
        return jnp.log(x) - jnp.log1p(-x)

    def output_bias(self, data_mean: Array) -> Array:
        """Log-odds of the data mean."""
        mean = jnp.clip(data_mean, 1e-6, 1 - 1e-6)
        return unbound_log_var(jnp.log(mean) - jnp.log1p(-mean))

    def start_at_data(self, params: PyTree, x: Array) -> tuple[PyTree, Array]:
        """Initialise at the mean and variance of the data."""
        mean = jnp.mean(x, axis=0)
        ratio = mean * (1 - mean) / jnp.maximum(jnp.var(x, axis=0), 1e-12) - 1
        ratio = jnp.clip(ratio, LEAST_CONCENTRATION, LARGEST_CONCENTRATION)
        raw = unbound_log_var(jnp.log(ratio))
        raw = jnp.tile(raw, params["log_concentration"].size // raw.size)
        return params | {"log_concentration": raw}, self.output_bias(mean)
