"""Priors that factorize over units: standard normal, and learned ones."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from vae_jax.distributions import (
    BernoulliDistribution,
    DiagonalGaussianDistribution,
)
from vae_jax.distributions.support import known_values
from vae_jax.types import AnyArray, Encode, Key, Prior, PyTree


@dataclass(frozen=True)
class StandardNormal(Prior):
    """Standard normal prior p(z) = N(0, I), without parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax import StandardNormal
      >>> p = StandardNormal().build({}, latent_dim=2, encode=None)
      >>> print(p.log_prob(jnp.zeros((1, 1, 2))))
      [[-1.837877]]
    """

    latent_space = "real"
    is_reparameterizable: ClassVar[bool] = True

    def build(
        self, prior_params: PyTree, *, latent_dim: int, encode: Encode | None
    ) -> DiagonalGaussianDistribution:
        """Build N(0, I), a batch of one."""
        # Weakly typed, so that densities keep the dtype of the latents.
        zero = jnp.full((1, latent_dim), 0.0)
        return DiagonalGaussianDistribution(zero, zero)


@dataclass(frozen=True)
class DiagonalGaussianPrior(Prior):
    """Learned prior p(z) = N(mean, diag(exp(log_var))), initialised to N(0, I).

    Example:
      >>> import jax
      >>> from vae_jax import DiagonalGaussianPrior
      >>> params = DiagonalGaussianPrior().init(
      ...     jax.random.key(0), latent_dim=2, data_shape=(5,)
      ... )
      >>> print(params["mean"])
      [0. 0.]
    """

    latent_space = "real"
    is_reparameterizable: ClassVar[bool] = True

    def init(
        self, key: Key, *, latent_dim: int, data_shape: tuple[int, ...]
    ) -> dict[str, PyTree]:
        """Return `mean` and `log_var`, `[L]` each."""
        return {"mean": jnp.zeros(latent_dim), "log_var": jnp.zeros(latent_dim)}

    def build(
        self, prior_params: PyTree, *, latent_dim: int, encode: Encode | None
    ) -> DiagonalGaussianDistribution:
        """Build N(mean, diag(exp(log_var))), a batch of one, or of B given labels."""
        shape = (-1, latent_dim)
        return DiagonalGaussianDistribution(
            prior_params["mean"].reshape(shape), prior_params["log_var"].reshape(shape)
        )


@dataclass(frozen=True)
class FactorizedBernoulliPrior(Prior):
    """Learned prior p(z) = prod_l Bernoulli(z_l; sigmoid(logits_l)).

    All probabilities are initialised to 1/2.

    Example:
      >>> import jax
      >>> from vae_jax import FactorizedBernoulliPrior
      >>> params = FactorizedBernoulliPrior().init(
      ...     jax.random.key(0), latent_dim=2, data_shape=(5,)
      ... )
      >>> print(params["logits"])
      [0. 0.]
    """

    latent_space = "binary"

    def init(
        self, key: Key, *, latent_dim: int, data_shape: tuple[int, ...]
    ) -> dict[str, PyTree]:
        """Return `logits`, `[L]`."""
        return {"logits": jnp.zeros(latent_dim)}

    def build(
        self, prior_params: PyTree, *, latent_dim: int, encode: Encode | None
    ) -> BernoulliDistribution:
        """Build the product of Bernoulli distributions, a batch of one."""
        return BernoulliDistribution(prior_params["logits"][None])


@dataclass(frozen=True)
class ClassConditionalPrior(DiagonalGaussianPrior):
    """Class-conditional prior p(z|y) = N(mean_y, diag(exp(log_var_y))).

    For a spec with `num_classes`, whose functions take `labels`.

    Attributes:
      num_classes: number C of classes.

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

    num_classes: int = field()
    depends_on_labels: ClassVar[bool] = True

    def init(
        self, key: Key, *, latent_dim: int, data_shape: tuple[int, ...]
    ) -> dict[str, PyTree]:
        """Return `mean` and `log_var`, `[C, L]` each."""
        shape = (self.num_classes, latent_dim)
        return {"mean": jnp.zeros(shape), "log_var": jnp.zeros(shape)}

    def given(self, prior_params: PyTree, labels: AnyArray) -> PyTree:
        """Select the parameters of the classes of labels `[B, C]`, `[B, L]`.

        Each row must select one class with weight 1, because a mixture of classes is
        not a Gaussian. Other weights raise ValueError, or give NaN if traced.
        """
        known = known_values(labels)
        weights = labels if known is None else known
        is_one = ((weights == 0) | (weights == 1)).all(axis=-1)
        if known is not None and not is_one.all():
            raise ValueError(
                "labels must choose one class each for ClassConditionalPrior, which "
                "does not mix classes: give integers [B], or weights of 0 and 1, "
                f"got {known[~is_one][0]}"
            )
        labels = jnp.where(is_one[:, None], labels, jnp.nan)
        return jax.tree.map(lambda leaf: labels.astype(leaf.dtype) @ leaf, prior_params)


@dataclass(frozen=True)
class CovariateGaussianPrior(Prior):
    """Prior p(z|c) = N(A c + b, diag(exp(D c + e))) given covariates and labels c.

    The conditional prior of the identifiable VAE with linear functions (Khemakhem,
    Kingma, Monti & Hyvarinen 2020, arXiv:1907.04809); initially N(0, I). Covariates
    should be of about unit scale.

    Attributes:
      num_covariates: number of covariates, that of the spec.
      num_classes: number of classes, that of the spec; 0 for none. Class weights
        precede the covariates in c.

    Example:
      >>> import jax
      >>> from vae_jax import Conditions, CovariateGaussianPrior, ModelSpec
      >>> from vae_jax import generate, init
      >>> spec = ModelSpec(
      ...     prior=CovariateGaussianPrior(2), num_covariates=2, data_shape=(5,)
      ... )
      >>> given = Conditions(covariates=jax.numpy.zeros((3, 2)))
      >>> params = init(spec, jax.random.key(0))
      >>> generate(params, jax.random.key(1), num_samples=3, labels=given).shape
      (3, 5)
    """

    num_covariates: int = field()
    num_classes: int = 0
    latent_space = "real"
    depends_on_labels: ClassVar[bool] = True
    is_reparameterizable: ClassVar[bool] = True

    def init(
        self, key: Key, *, latent_dim: int, data_shape: tuple[int, ...]
    ) -> dict[str, Any]:
        """Return `mean` and `log_var`: a `kernel` `[C, L]` and a `bias` `[L]` each."""
        size = self.num_classes + self.num_covariates
        zeros = {"kernel": jnp.zeros((size, latent_dim)), "bias": jnp.zeros(latent_dim)}
        return {"mean": zeros, "log_var": zeros}

    def given(self, prior_params: PyTree, labels: AnyArray) -> PyTree:
        """Return `mean` and `log_var` `[B, L]` of rows of labels and covariates."""
        return {
            name: labels @ linear["kernel"] + linear["bias"]
            for name, linear in prior_params.items()
        }

    def build(
        self, prior_params: PyTree, *, latent_dim: int, encode: Encode | None
    ) -> DiagonalGaussianDistribution:
        """Build N(mean, diag(exp(log_var))), a batch of B."""
        return DiagonalGaussianDistribution(
            prior_params["mean"], prior_params["log_var"]
        )
