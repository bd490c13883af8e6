"""Several stochastic layers: q(z_1|x) q(z_2|z_1) ..., and p(z_K) ... p(z_1|z_2).

    q(z|x) = q(z_1|x) prod_(k = 2)^K q(z_k|z_(k - 1))
    p(z) = p(z_K) prod_(k = 2)^K p(z_(k - 1)|z_k)

Burda, Grosse & Salakhutdinov 2016, section 5, use two. The latents are a tuple that
starts with the layer nearest the data, which is the only input of the spec's decoder.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp

from vae_jax import networks
from vae_jax.bijectors import with_shared_weights
from vae_jax.distributions import DiagonalGaussianDistribution, gaussian
from vae_jax.families import DiagonalGaussian, bound_log_var
from vae_jax.types import (
    Array,
    Distribution,
    Encode,
    Family,
    Key,
    Latents,
    Network,
    Prior,
    PyTree,
)


@dataclass(frozen=True)
class StochasticLayer:
    """A stochastic layer above the first, with its two networks.

    Attributes:
      latent_dim: latent dimension of this layer.
      encoder: network from the layer below to q of this layer.
      decoder: network from this layer to p of the layer below.

    Example:
      >>> from vae_jax import StochasticLayer
      >>> StochasticLayer(50).latent_dim
      50
    """

    latent_dim: int
    encoder: Network = field(default=networks.MLP((100, 100), jnp.tanh))
    decoder: Network = field(default=networks.MLP((100, 100), jnp.tanh))


def require_layers(z: Latents, sizes: tuple[int, ...]) -> None:
    """Raise ValueError if latents are not a tuple of one array per stochastic layer.

    Args:
      z: latents, a tuple of `[..., L]` that starts with the layer nearest the data.
      sizes: latent dimension L of each layer.

    Raises:
      ValueError: `z` is not a tuple, or the number or sizes of its layers are wrong.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.hierarchical import require_layers
      >>> require_layers((jnp.zeros((5, 8, 3)), jnp.zeros((5, 8, 2))), (3, 2))
    """
    if isinstance(z, tuple):
        found = [jnp.shape(leaf) for leaf in z]
        came = f"shapes {found}"
    else:
        found, came = [], f"an array {list(jnp.shape(z))}"
    if tuple(shape[-1] for shape in found) != sizes:
        raise ValueError(
            f"z must be a tuple of {len(sizes)} stochastic layers with last axes "
            f"{sizes}, the layer nearest the data first, got {came}"
        )


def init_gaussian(
    network: Network, key: Key, *, input_dim: int, latent_dim: int
) -> PyTree:
    """Initialise a network from latents to a diagonal Gaussian over other latents."""
    module = networks.with_output_layer(network, 2 * latent_dim, (latent_dim,))
    inputs = jnp.zeros((1, input_dim))
    weights = networks.init(module, key, inputs)
    if networks.draws_random_numbers(module, weights, inputs):
        raise ValueError(
            f"network {network!r} of a further stochastic layer draws random numbers "
            "in training (dropout), which only the spec's encoder and decoder can"
        )
    return weights


def conditional_gaussian(
    network: Network, weights: PyTree, inputs: Array, *, latent_dim: int
) -> DiagonalGaussianDistribution:
    """Diagonal Gaussian given by a network applied to latents `[S, B, L]`."""
    module = networks.with_output_layer(network, 2 * latent_dim, (latent_dim,))
    mean, raw = jnp.split(networks.apply(module, weights, inputs), 2, axis=-1)
    return DiagonalGaussianDistribution(mean, bound_log_var(raw))


def _sizes(latent_dim: int, layers: tuple[StochasticLayer, ...]) -> tuple[int, ...]:
    """Number of units of every layer, starting with the one nearest the data."""
    return (latent_dim, *(layer.latent_dim for layer in layers))


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("first", "weights"),
    meta_fields=("layers",),
)
@dataclass(frozen=True)
class HierarchicalDistribution(Distribution):
    """Hierarchical posterior q(z_1|x) q(z_2|z_1) ... of a batch.

    Attributes:
      first: q(z_1|x).
      weights: weights of each further layer's encoder, `[1, ...]` if shared by all
        examples or `[B, ...]` if per example.
      layers: layers above the first; static.
    """

    first: DiagonalGaussianDistribution
    weights: tuple[PyTree, ...]
    layers: tuple[StochasticLayer, ...]

    def _above(self, index: int, below: Array) -> DiagonalGaussianDistribution:
        """Posterior of a further layer given the layer below, `[S, B, L]`."""
        layer = self.layers[index]
        function = partial(
            conditional_gaussian, layer.encoder, latent_dim=layer.latent_dim
        )
        return with_shared_weights(function, self.weights[index], below)

    def sample_and_log_prob(
        self, key: Key, num_samples: int
    ) -> tuple[tuple[Array, ...], Array]:
        """Draw reparameterized samples, tuples of `[S, B, L]`, and log q, `[S, B]`."""
        keys = jax.random.split(key, 1 + len(self.layers))
        z, log_q = self.first.sample_and_log_prob(keys[0], num_samples)
        latents = [z]
        for index, own in enumerate(keys[1:]):
            above = self._above(index, latents[-1])
            z = above.from_noise(jax.random.normal(own, above.mean.shape, z.dtype))
            log_q = log_q + above.log_prob(z)
            latents.append(z)
        return tuple(latents), log_q

    def log_prob(self, value: tuple[Array, ...]) -> Array:
        """Log q(z|x) of all layers in nats, `[S, B]`.

        Raises:
          ValueError: the value is not a tuple of these layers.
        """
        z = value
        require_layers(z, _sizes(self.first.mean.shape[-1], self.layers))
        log_q = self.first.log_prob(z[0])
        for index in range(len(self.layers)):
            log_q = log_q + self._above(index, z[index]).log_prob(z[index + 1])
        return log_q

    @property
    def mean(self) -> tuple[Array, ...]:
        """Mean of each layer given the mean of the layer below, `[B, L]` each."""
        means = [self.first.mean]
        for index in range(len(self.layers)):
            means.append(self._above(index, means[-1][None]).mean[0])
        return tuple(means)


@dataclass(frozen=True)
class HierarchicalGaussian(Family):
    """Family of hierarchical posteriors q(z_1|x) q(z_2|z_1) ... of diagonal Gaussians.

    Requires a `HierarchicalGaussianPrior` with the same layers.

    Attributes:
      layers: layers above the first; the size of the first is the spec's `latent_dim`.

    Example:
      >>> from vae_jax import HierarchicalGaussian, HierarchicalGaussianPrior
      >>> from vae_jax import ModelSpec, StochasticLayer
      >>> above = (StochasticLayer(50),)
      >>> spec = ModelSpec(
      ...     posterior=HierarchicalGaussian(above),
      ...     prior=HierarchicalGaussianPrior(above),
      ...     latent_dim=100,
      ... )
    """

    layers: tuple[StochasticLayer, ...] = field()
    latent_space = "real"
    begins_with_gaussian: ClassVar[bool] = True

    def num_outputs(self, dim: int) -> int:
        """Return 2 dim: a mean and a log-variance per latent of the first layer."""
        return DiagonalGaussian().num_outputs(dim)

    def init(self, key: Key, *, dim: int) -> dict[str, PyTree]:
        """Return `layer_2`, `layer_3`, ...: weights of the layers' encoders."""
        sizes = _sizes(dim, self.layers)
        return {
            f"layer_{index + 2}": init_gaussian(
                layer.encoder,
                jax.random.fold_in(key, index),
                input_dim=sizes[index],
                latent_dim=layer.latent_dim,
            )
            for index, layer in enumerate(self.layers)
        }

    def build(self, params: PyTree, outputs: Array) -> HierarchicalDistribution:
        """Build the posterior from the outputs `[B, 2 L]` for the first layer."""
        shared = jax.tree.map(lambda leaf: leaf[None], params)
        return HierarchicalDistribution(
            DiagonalGaussian().build({}, outputs),
            tuple(shared[f"layer_{k + 2}"] for k in range(len(self.layers))),
            self.layers,
        )


@dataclass(frozen=True)
class HierarchicalGaussianPrior(Prior):
    """Hierarchical prior p(z) = N(z_K; 0, I) ... p(z_1|z_2) of diagonal Gaussians.

    Attributes:
      layers: layers above the first, equal to those of the `HierarchicalGaussian`.

    Example:
      See `HierarchicalGaussian`.
    """

    layers: tuple[StochasticLayer, ...] = field()
    latent_space = "real"
    is_reparameterizable: ClassVar[bool] = True

    def init(
        self, key: Key, *, latent_dim: int, data_shape: tuple[int, ...]
    ) -> dict[str, PyTree]:
        """Return `layer_1`, `layer_2`, ...: weights of the decoders of these layers."""
        sizes = _sizes(latent_dim, self.layers)
        return {
            f"layer_{index + 1}": init_gaussian(
                layer.decoder,
                jax.random.fold_in(key, index),
                input_dim=layer.latent_dim,
                latent_dim=sizes[index],
            )
            for index, layer in enumerate(self.layers)
        }

    def build(
        self, prior_params: PyTree, *, latent_dim: int, encode: Encode | None
    ) -> "HierarchicalPriorDistribution":
        """Build the prior, a batch of one."""
        count = len(self.layers)
        weights = tuple(prior_params[f"layer_{k + 1}"] for k in range(count))
        return HierarchicalPriorDistribution(weights, latent_dim, self.layers)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class HierarchicalPriorDistribution(Distribution):
    """Hierarchical prior p(z_K) ... p(z_1|z_2), a batch of one.

    Attributes:
      weights: weights of the networks that decode to each layer but the last.
      latent_dim: latent dimension of the first layer; static.
      layers: layers above the first; static.
    """

    weights: tuple[PyTree, ...]
    latent_dim: int = field(metadata={"static": True})
    layers: tuple[StochasticLayer, ...] = field(metadata={"static": True})

    def _below(self, index: int, above: Array) -> DiagonalGaussianDistribution:
        """Prior of layer `index` given the layer above it."""
        return conditional_gaussian(
            self.layers[index].decoder,
            self.weights[index],
            above,
            latent_dim=_sizes(self.latent_dim, self.layers)[index],
        )

    def log_prob(self, value: tuple[Array, ...]) -> Array:
        """Log p(z) of all layers in nats, `[S, B]`.

        Raises:
          ValueError: the value is not a tuple of these layers.
        """
        require_layers(value, _sizes(self.latent_dim, self.layers))
        zero = jnp.zeros((), value[-1].dtype)
        log_p = gaussian.diagonal_log_prob(value[-1], zero, zero)
        for index in range(len(self.layers)):
            below = self._below(index, value[index + 1])
            log_p = log_p + below.log_prob(value[index])
        return log_p

    def sample(self, key: Key, num_samples: int) -> tuple[Array, ...]:
        """Draw by ancestral sampling, a tuple of `[S, 1, L]`, lowest layer first."""
        top, *others = jax.random.split(key, 1 + len(self.layers))
        lowest = [*others, top]
        sizes = _sizes(self.latent_dim, self.layers)
        dtype = jax.tree.leaves(self.weights)[0].dtype
        return self._from_noise(
            [
                jax.random.normal(own, (num_samples, 1, size), dtype)
                for own, size in zip(lowest, sizes, strict=True)
            ]
        )

    @property
    def mean(self) -> tuple[Array, ...]:
        """Mean of each layer given that of the layer above; not the expectation."""
        dtype = jax.tree.leaves(self.weights)[0].dtype
        sizes = _sizes(self.latent_dim, self.layers)
        return self._from_noise([jnp.zeros((1, size), dtype) for size in sizes])

    def _from_noise(self, noise: list[Array]) -> tuple[Array, ...]:
        """Map the noise of each layer to latents, with the lowest layer first."""
        latents = [noise[-1]]
        for index in reversed(range(len(self.layers))):
            below = self._below(index, latents[0])
            latents.insert(0, below.from_noise(noise[index]))
        return tuple(latents)
