"""Autoregressive flow prior."""

from dataclasses import dataclass, field
from typing import ClassVar

import jax
import jax.numpy as jnp

from vae_jax import bijectors
from vae_jax.distributions import gaussian
from vae_jax.families import bound_log_var
from vae_jax.types import Array, Distribution, Encode, Key, Prior, PyTree


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AutoregressiveFlowDistribution(Distribution):
    """Autoregressive flow of N(0, I) noise, a batch of one.

    Attributes:
      steps: weights of each step's network.
      latent_dim: number L of latents; static.
    """

    steps: tuple[PyTree, ...]
    latent_dim: int = field(metadata={"static": True})
    maps_noise: ClassVar[bool] = True

    @property
    def mean(self) -> Array:
        """Image of the mean of the noise, `[1, L]`; not the expectation."""
        dtype = jax.tree.leaves(self.steps)[0].dtype
        return self.from_noise(jnp.zeros((1, self.latent_dim), dtype))

    def sample(self, key: Key, num_samples: int) -> Array:
        """See `Distribution.sample`; reparameterized."""
        dtype = jax.tree.leaves(self.steps)[0].dtype
        shape = (num_samples, 1, self.latent_dim)
        return self.from_noise(jax.random.normal(key, shape, dtype))

    def log_prob(self, value: Array) -> Array:
        """See `Distribution.log_prob`."""
        noise, log_det = self._inverse(value)
        return gaussian.diagonal_log_prob(noise, 0.0, jnp.zeros_like(noise)) - log_det

    def from_noise(self, noise: Array) -> Array:
        """See `Distribution.from_noise`."""
        for weights in self.steps:
            noise = noise[..., ::-1]

            def fill_in(_, z: Array, noise=noise, weights=weights) -> Array:
                # After pass k, the first k latents are correct.
                mean, raw = bijectors.autoregressive(weights, z)
                return noise * jnp.exp(0.5 * bound_log_var(raw)) + mean

            noise = jax.lax.fori_loop(0, self.latent_dim, fill_in, noise)
        return noise

    def to_noise(self, value: Array) -> Array:
        """See `Distribution.to_noise`."""
        return self._inverse(value)[0]

    def _inverse(self, z: Array) -> tuple[Array, Array]:
        """Return the noise, and the log-determinant of the map from it to z."""
        log_det = jnp.zeros(z.shape[:-1], z.dtype)
        for weights in reversed(self.steps):
            mean, raw = bijectors.autoregressive(weights, z)
            log_scale = 0.5 * bound_log_var(raw)
            z = ((z - mean) * jnp.exp(-log_scale))[..., ::-1]
            log_det = log_det + jnp.sum(log_scale, axis=-1)
        return z, log_det


@dataclass(frozen=True)
class AutoregressiveFlow(Prior):
    """Learned autoregressive flow p(z) of N(0, I) noise.

        z = exp(s) * eps + m with eps ~ N(0, I)

    where m and s of latent l are functions of the latents before it (Papamakarios,
    Pavlakou & Murray 2017). The order of the latents is reversed between steps.
    Evaluating the density takes one pass per step, drawing a sample L passes.

    Attributes:
      num_steps: number K of steps.
      hidden_dim: width of each step's network.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax import AutoregressiveFlow
      >>> prior = AutoregressiveFlow(num_steps=1, hidden_dim=8)
      >>> params = prior.init(jax.random.key(0), latent_dim=2, data_shape=(5,))
      >>> p = prior.build(params, latent_dim=2, encode=None)
      >>> p.log_prob(jnp.zeros((4, 8, 2))).shape
      (4, 8)
    """

    num_steps: int = 3
    hidden_dim: int = 100
    latent_space = "real"
    is_reparameterizable: ClassVar[bool] = True

    def init(
        self, key: Key, *, latent_dim: int, data_shape: tuple[int, ...]
    ) -> dict[str, PyTree]:
        """Return `step_0`, `step_1`, ...: weights of each step's network."""
        return {
            f"step_{k}": bijectors.init_autoregressive(
                jax.random.fold_in(key, k),
                latent_dim=latent_dim,
                hidden_dim=self.hidden_dim,
            )
            for k in range(self.num_steps)
        }

    def build(
        self, prior_params: PyTree, *, latent_dim: int, encode: Encode | None
    ) -> AutoregressiveFlowDistribution:
        """Build the flow, a batch of one."""
        steps = tuple(prior_params[f"step_{k}"] for k in range(self.num_steps))
        return AutoregressiveFlowDistribution(steps, latent_dim)
