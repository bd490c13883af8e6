"""Mixture priors: mixtures of learned Gaussians or of the encoder's posteriors."""

import math
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from vae_jax.distributions import (
    DiagonalGaussianDistribution,
    FullGaussianDistribution,
    MixtureDistribution,
)
from vae_jax.families import bound_covariance, bound_log_var
from vae_jax.options import require_at_least
from vae_jax.types import Encode, Key, Prior, PyTree


@dataclass(frozen=True)
class MixtureOfGaussians(Prior):
    """Learned mixture of Gaussians.

        p(z) = sum_k w_k N(z; mean_k, S_k)

    with w = softmax(logits). S_k is diagonal, with log-variances
    `bound_log_var(log_var)`. With `full_covariance`, its Cholesky factor is
    `bound_covariance(log_var, below)`.

    Attributes:
      num_components: number K of components.
      full_covariance: whether the components have full covariance matrices.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax import MixtureOfGaussians
      >>> prior = MixtureOfGaussians(num_components=3)
      >>> params = prior.init(jax.random.key(0), latent_dim=2, data_shape=(5,))
      >>> p = prior.build(params, latent_dim=2, encode=None)
      >>> p.log_prob(jnp.zeros((4, 8, 2))).shape
      (4, 8)
    """

    num_components: int = 10
    full_covariance: bool = False
    latent_space = "real"

    def __post_init__(self):
        require_at_least("num_components", self.num_components)

    def init(
        self, key: Key, *, latent_dim: int, data_shape: tuple[int, ...]
    ) -> dict[str, PyTree]:
        """Return `logits` `[K]`, `mean` `[K, L]` and `log_var` `[K, L]`.

        With full covariance, also `below`, `[K, L (L - 1) / 2]`. The means are drawn
        from N(0, I); S_k is initialised to I.
        """
        shape = (self.num_components, latent_dim)
        entries = latent_dim * (latent_dim - 1) // 2
        below = {"below": jnp.zeros((self.num_components, entries))}
        return (below if self.full_covariance else {}) | {
            "logits": jnp.zeros(self.num_components),
            # Random, since equal means would stay equal during training.
            "mean": jax.random.normal(key, shape),
            "log_var": jnp.zeros(shape),
        }

    def components(
        self, prior_params: PyTree
    ) -> DiagonalGaussianDistribution | FullGaussianDistribution:
        """Build N(mean_k, S_k) for every k, a batch of K."""
        mean, log_var = prior_params["mean"], prior_params["log_var"]
        if not self.full_covariance:
            return DiagonalGaussianDistribution(mean, bound_log_var(log_var))
        factor = bound_covariance(log_var, prior_params["below"])
        return FullGaussianDistribution.from_factor(mean, factor)

    def build(
        self, prior_params: PyTree, *, latent_dim: int, encode: Encode | None
    ) -> MixtureDistribution:
        """Build the mixture, a batch of one."""
        log_weights = jax.nn.log_softmax(prior_params["logits"])
        return MixtureDistribution(log_weights, self.components(prior_params))


@dataclass(frozen=True)
class VampPrior(Prior):
    """VampPrior: the mean of the encoder's posteriors at learned pseudo-inputs.

        p(z) = 1/K sum_k q(z|u_k)

    with the pseudo-inputs u_k (Tomczak & Welling 2018), which a sigmoid keeps in
    (0, 1). The encoder also receives gradients through the prior. The prior requires a
    posterior with a density at any z, real or discrete, a model without labels, and a
    likelihood of data that may lie in [0, 1] (`Family.covers_unit_interval`).

    Attributes:
      num_pseudo_inputs: number K of pseudo-inputs.

    Example:
      >>> import jax
      >>> from vae_jax import ModelSpec, VampPrior, generate, init
      >>> spec = ModelSpec(prior=VampPrior(5), latent_dim=2, data_shape=(3,))
      >>> params = init(spec, jax.random.key(0))
      >>> generate(params, jax.random.key(1), num_samples=4).shape
      (4, 3)
    """

    num_pseudo_inputs: int = 500
    is_mixture_of_posteriors: ClassVar[bool] = True
    encodes_unit_interval: ClassVar[bool] = True
    # The component is drawn uniformly, independent of the parameters.
    is_reparameterizable: ClassVar[bool] = True

    def __post_init__(self):
        require_at_least("num_pseudo_inputs", self.num_pseudo_inputs)

    def init(
        self, key: Key, *, latent_dim: int, data_shape: tuple[int, ...]
    ) -> dict[str, PyTree]:
        """Return `pseudo_inputs` `[K, D]` (before the sigmoid), drawn from N(0, I)."""
        shape = (self.num_pseudo_inputs, math.prod(data_shape))
        return {"pseudo_inputs": jax.random.normal(key, shape)}

    def build(
        self, prior_params: PyTree, *, latent_dim: int, encode: Encode
    ) -> MixtureDistribution:
        """Build the mixture of the encoder's posteriors, a batch of one."""
        components = encode(jax.nn.sigmoid(prior_params["pseudo_inputs"]))
        count = self.num_pseudo_inputs
        return MixtureDistribution(jnp.full(count, -math.log(count)), components)
