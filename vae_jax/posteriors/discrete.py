"""The family of independent bits."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from vae_jax.distributions import bernoulli
from vae_jax.types import Array, Key, PyTree

# 4096 states: a decoder still takes them all in one call.
MAX_ENUMERABLE_BITS = 12


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BernoulliPosterior:
    """q(z|x) = prod_l Bernoulli(z_l; sigmoid(logits_l)) for a batch: discrete.

    No gradient flows through its samples; `estimators` has the choices for those.

    Attributes:
      logits: `[B, L]`.
    """

    logits: Array
    has_density: ClassVar[bool] = True
    mean_is_exact: ClassVar[bool] = True
    is_reparameterizable: ClassVar[bool] = False

    @property
    def mean(self) -> Array:
        """The probabilities of a one, `[B, L]`."""
        return jax.nn.sigmoid(self.logits)

    def sample_and_log_prob(self, key: Key, num_samples: int) -> tuple[Array, Array]:
        """Zeros and ones `[S, B, L]` and their log q in nats, `[S, B]`."""
        logits = jnp.broadcast_to(self.logits, (num_samples, *self.logits.shape))
        z = bernoulli.sample(jax.lax.stop_gradient(logits), key)
        return z, self.log_prob(z)

    def log_prob(self, z: Array) -> Array:
        """Log q(z|x) in nats, summed over L: `[S, B]` for `[S, B, L]`."""
        return bernoulli.log_prob(z, self.logits)

    def support(self) -> Array:
        """All values that z can take, `[2^L, 1, L]`.

        Raises:
          ValueError: L is above 12.
        """
        num_bits = self.logits.shape[-1]
        if num_bits > MAX_ENUMERABLE_BITS:
            raise ValueError(
                f"latent_dim {num_bits} has 2^{num_bits} states; at most "
                f"{MAX_ENUMERABLE_BITS} bits are enumerated"
            )
        states = jnp.arange(2**num_bits)[:, None] >> jnp.arange(num_bits)
        return (states & 1).astype(self.logits.dtype)[:, None]


@dataclass(frozen=True)
class FactorizedBernoulli:
    """The family of independent bits, prod_l Bernoulli(z_l; sigmoid(logits_l(x))).

    Its gradient needs an estimator for discrete latents, `leave_one_out` or `disarm`
    among them; `reparameterization` refuses it.

    Example:
      >>> from vae_jax import FactorizedBernoulli
      >>> FactorizedBernoulli().num_outputs(latent_dim=20)
      20
    """

    hyperparameters: ClassVar[tuple[str, ...]] = ()
    latent_space: ClassVar[str] = "binary"
    has_log_prob: ClassVar[bool] = True

    def num_outputs(self, latent_dim: int) -> int:
        """One logit for each latent dimension."""
        return latent_dim

    def init(self, key: Key, *, latent_dim: int) -> dict[str, PyTree]:
        """No parameters of its own."""
        return {}

    def build(self, posterior_params: PyTree, outputs: Array) -> BernoulliPosterior:
        """Takes the encoder's outputs `[B, L]` as the logits."""
        return BernoulliPosterior(outputs)
