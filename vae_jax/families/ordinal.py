"""Cumulative-logit family of p(x|z), for ordered categories."""

from dataclasses import dataclass

import jax.numpy as jnp

from vae_jax.distributions import OrdinalDistribution
from vae_jax.families.bounds import bound_log_var, unbound_log_var
from vae_jax.families.codes import Codes
from vae_jax.types import Array, Distribution, Key, PyTree


@dataclass(frozen=True)
class Ordinal(Codes):
    """Family of ordered categories 0 to K - 1, used by HI-VAE for ordinal columns.

        P(x <= k) = sigmoid(t_k - h(z))

    with increasing thresholds t, learned for each dimension, and h from the decoder.
    The thresholds are initialised at the category frequencies of the data. The encoder
    inputs are the codes divided by K - 1.

    Attributes:
      num_categories: K.

    Raises:
      ValueError: K below 2.

    Example:
      >>> from vae_jax import Ordinal
      >>> Ordinal(num_categories=5).num_outputs(dim=3)
      3
    """

    def num_outputs(self, dim: int) -> int:
        """One location per dimension."""
        return dim

    def init(self, key: Key, *, dim: int) -> dict[str, PyTree]:
        """`first_threshold` `[D]` and `log_gaps` `[D, K - 2]`, all 0."""
        return {
            "first_threshold": jnp.zeros(dim, jnp.float32),
            "log_gaps": jnp.zeros((dim, self.num_categories - 2), jnp.float32),
        }

    def build(self, params: PyTree, outputs: Array) -> Distribution:
        """Build from locations `[..., D]`."""
        gaps = jnp.exp(bound_log_var(params["log_gaps"]))
        first = params["first_threshold"][..., None]
        above = first + jnp.cumsum(gaps, axis=-1)
        thresholds = jnp.concatenate([first, above], axis=-1)
        return OrdinalDistribution(outputs, thresholds, gaps)

    def encoder_inputs(self, params: PyTree, x: Array) -> Array:
        """Codes scaled to [0, 1]."""
        return x / (self.num_categories - 1)

    def start_at_data(self, params: PyTree, x: Array) -> tuple[PyTree, Array]:
        """Initialise thresholds at the data's frequencies, with 0.5 added per count."""
        codes = jnp.arange(self.num_categories, dtype=x.dtype)
        counts = jnp.sum(x[..., None] == codes, axis=0) + 0.5
        below = jnp.cumsum(counts, axis=-1)[:, :-1]
        above = jnp.cumsum(counts[:, ::-1], axis=-1)[:, -2::-1]
        first = jnp.log(below[:, 0]) - jnp.log(above[:, 0])
        # Gaps of the thresholds log(below / above); subtracting these would cancel for
        # a rare category.
        between = counts[:, 1:-1]
        gaps = jnp.log1p(between / below[:, :-1]) + jnp.log1p(between / above[:, 1:])
        log_gaps = unbound_log_var(jnp.log(gaps))
        repeats = params["first_threshold"].size // x.shape[-1]
        started = {
            "first_threshold": jnp.tile(first, repeats),
            "log_gaps": jnp.tile(log_gaps, (repeats, 1)),
        }
        return started, jnp.zeros(x.shape[-1], x.dtype)
