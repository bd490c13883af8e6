"""Priors that are products over units: standard normal, and learned ones."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from vae_jax.distributions import (
    BernoulliDistribution,
    DiagonalGaussianDistribution,
    gaussian,
)
from vae_jax.distributions.support import known_values
from vae_jax.types import Array, Encode, Key, PyTree


@dataclass(frozen=True)
class StandardNormal:
    """p(z) = N(0, I), without parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax import StandardNormal
      >>> z = jnp.zeros((1, 1, 2))
      >>> print(StandardNormal().log_prob({}, z, encode=None))
      [[-1.837877]]
    """

    hyperparameters: ClassVar[tuple[str, ...]] = ()
    latent_space: ClassVar[str] = "real"
    is_reparameterizable: ClassVar[bool] = True

    def init(
        self, key: Key, *, latent_dim: int, data_shape: tuple[int, ...]
    ) -> dict[str, PyTree]:
        """No parameters."""
        return {}

    def log_prob(
        self, prior_params: PyTree, z: Array, *, encode: Encode | None
    ) -> Array:
        """Log N(z; 0, I) in nats, summed over L: `[S, B]` for `[S, B, L]`."""
        zero = jnp.zeros((), z.dtype)
        return gaussian.diagonal_log_prob(z, zero, zero)

    def sample(
        self,
        prior_params: PyTree,
        key: Key,
        *,
        num_samples: int,
        latent_dim: int,
        encode: Encode | None,
    ) -> Array:
        """Draws from N(0, I), `[num_samples, L]`."""
        return jax.random.normal(key, (num_samples, latent_dim))


class LearnedPrior:
    """What priors have in common whose density is that of a `types.Posterior`.

    A subclass supplies `init` and `build(prior_params)`, a batch of one.
    """

    hyperparameters: ClassVar[tuple[str, ...]] = ()

    def log_prob(
        self, prior_params: PyTree, z: Array, *, encode: Encode | None
    ) -> Array:
        """Log p(z) in nats, summed over L: `[S, B]` for `[S, B, L]`."""
        return self.build(prior_params).log_prob(z)

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
        z, _ = self.build(prior_params).sample_and_log_prob(key, num_samples)
        return z[:, 0]


@dataclass(frozen=True)
class DiagonalGaussianPrior(LearnedPrior):
    """p(z) = N(mean, diag(exp(log_var))), both learned; N(0, I) to begin with.

    Example:
      >>> import jax
      >>> from vae_jax import DiagonalGaussianPrior
      >>> params = DiagonalGaussianPrior().init(
      ...     jax.random.key(0), latent_dim=2, data_shape=(5,)
      ... )
      >>> print(params["mean"])
      [0. 0.]
    """

    latent_space: ClassVar[str] = "real"
    is_reparameterizable: ClassVar[bool] = True

    def init(
        self, key: Key, *, latent_dim: int, data_shape: tuple[int, ...]
    ) -> dict[str, PyTree]:
        """`mean` and `log_var`, `[L]` each."""
        return {"mean": jnp.zeros(latent_dim), "log_var": jnp.zeros(latent_dim)}

    def build(self, prior_params: PyTree) -> DiagonalGaussianDistribution:
        """The distribution itself, as a batch of one."""
        return DiagonalGaussianDistribution(
            prior_params["mean"][None], prior_params["log_var"][None]
        )


@dataclass(frozen=True)
class FactorizedBernoulliPrior(LearnedPrior):
    """p(z) = prod_l Bernoulli(z_l; sigmoid(logits_l)), learned; fair coins at first.

    Example:
      >>> import jax
      >>> from vae_jax import FactorizedBernoulliPrior
      >>> params = FactorizedBernoulliPrior().init(
      ...     jax.random.key(0), latent_dim=2, data_shape=(5,)
      ... )
      >>> print(params["logits"])
      [0. 0.]
    """

    latent_space: ClassVar[str] = "binary"
    is_reparameterizable: ClassVar[bool] = False

    def init(
        self, key: Key, *, latent_dim: int, data_shape: tuple[int, ...]
    ) -> dict[str, PyTree]:
        """`logits`, `[L]`."""
        return {"logits": jnp.zeros(latent_dim)}

    def build(self, prior_params: PyTree) -> BernoulliDistribution:
        """The distribution itself, as a batch of one."""
        return BernoulliDistribution(prior_params["logits"][None])


@dataclass(frozen=True)
class ClassConditionalPrior(DiagonalGaussianPrior):
    """p(z|y) = N(mean_y, diag(exp(log_var_y))), learned for each class y.

    For a spec with `num_classes`, whose functions take `labels`.

    Attributes:
      num_classes: C.

    Example:
      >>> import jax
      >>> from vae_jax import ClassConditionalPrior, ModelSpec, generate, init
      >>> spec = ModelSpec(
      ...     prior=ClassConditionalPrior(10), num_classes=10, data_shape=(5,)
      ... )
      >>> params, labels = init(spec, jax.random.key(0)), jax.numpy.arange(10)
      >>> generate(params, jax.random.key(1), num_samples=10, labels=labels).shape
      (10, 5)
    """

    num_classes: int

    def init(
        self, key: Key, *, latent_dim: int, data_shape: tuple[int, ...]
    ) -> dict[str, PyTree]:
        """`mean` and `log_var`, `[C, L]` each."""
        shape = (self.num_classes, latent_dim)
        return {"mean": jnp.zeros(shape), "log_var": jnp.zeros(shape)}

    def given(self, prior_params: PyTree, labels: Array) -> PyTree:
        """The parameters of the classes that labels `[B, C]` choose, `[B, L]`.

        One class each, with weight 1: a mixture of classes is not the Gaussian between
        them. Other weights are refused, or NaN where they are traced.
        """
        known = known_values(labels)
        weights = labels if known is None else known
        is_one = ((weights == 0) | (weights == 1)).all(axis=-1)
        if known is not None and not is_one.all():
            raise ValueError(
                "labels must choose one class each for ClassConditionalPrior, whose "
                "densities they do not mix: give integers [B], or weights of 0 and 1, "
                f"got {known[~is_one][0]}"
            )
        labels = jnp.where(is_one[:, None], labels, jnp.nan)
        return jax.tree.map(lambda leaf: labels.astype(leaf.dtype) @ leaf, prior_params)

    def sample(
        self,
        prior_params: PyTree,
        key: Key,
        *,
        num_samples: int,
        latent_dim: int,
        encode: Encode | None,
    ) -> Array:
        """Draws `[num_samples, L]`, one for each label."""
        z, _ = self.build(prior_params).sample_and_log_prob(key, 1)
        return z.reshape(num_samples, latent_dim)
