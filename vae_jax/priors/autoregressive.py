"""A prior that is an autoregressive flow."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from vae_jax import flows
from vae_jax.distributions import gaussian
from vae_jax.families import bound_log_var
from vae_jax.types import Array, Encode, Key, PyTree


@dataclass(frozen=True)
class AutoregressiveFlow:
    """p(z) of N(0, I) noise moved by autoregressive steps, all learned.

    z = exp(s) eps + m with m and s of latent l given by the latents before it
    (Papamakarios, Pavlakou & Murray 2017); the order is reversed between the steps. Its
    density takes one pass, a draw as many as there are latents.

    Attributes:
      num_steps: K.
      hidden_dim: width of each step's network.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax import AutoregressiveFlow
      >>> prior = AutoregressiveFlow(num_steps=1, hidden_dim=8)
      >>> params = prior.init(jax.random.key(0), latent_dim=2, data_shape=(5,))
      >>> prior.log_prob(params, jnp.zeros((4, 8, 2)), encode=None).shape
      (4, 8)
    """

    num_steps: int = 3
    hidden_dim: int = 100
    hyperparameters: ClassVar[tuple[str, ...]] = ()
    latent_space: ClassVar[str] = "real"
    is_reparameterizable: ClassVar[bool] = True

    def init(
        self, key: Key, *, latent_dim: int, data_shape: tuple[int, ...]
    ) -> dict[str, PyTree]:
        """`step_0`, `step_1`, ...: weights of each step's network."""
        return {
            f"step_{k}": flows.init_autoregressive(
                jax.random.fold_in(key, k),
                latent_dim=latent_dim,
                hidden_dim=self.hidden_dim,
            )
            for k in range(self.num_steps)
        }

    def log_prob(
        self, prior_params: PyTree, z: Array, *, encode: Encode | None
    ) -> Array:
        """Log p(z) in nats, `[S, B]` for `[S, B, L]`."""
        log_det = jnp.zeros(z.shape[:-1], z.dtype)
        for k in reversed(range(self.num_steps)):
            mean, raw = flows.autoregressive(prior_params[f"step_{k}"], z)
            log_scale = 0.5 * bound_log_var(raw)
            z = ((z - mean) * jnp.exp(-log_scale))[..., ::-1]
            log_det = log_det + jnp.sum(log_scale, axis=-1)
        return gaussian.diagonal_log_prob(z, 0.0, jnp.zeros_like(z)) - log_det

    def sample(
        self,
        prior_params: PyTree,
        key: Key,
        *,
        num_samples: int,
        latent_dim: int,
        encode: Encode | None,
    ) -> Array:
        """Draws `[num_samples, L]`."""
        dtype = jax.tree.leaves(prior_params)[0].dtype
        z = jax.random.normal(key, (num_samples, latent_dim), dtype)
        for k in range(self.num_steps):
            noise, weights = z[..., ::-1], prior_params[f"step_{k}"]

            def fill_in(_, z: Array, noise=noise, weights=weights) -> Array:
                # Each pass puts one more latent right, the first one first.
                mean, raw = flows.autoregressive(weights, z)
                return noise * jnp.exp(0.5 * bound_log_var(raw)) + mean

            z = jax.lax.fori_loop(0, latent_dim, fill_in, noise)
        return z
