"""Gaussian families of q(z|x): diagonal, full covariance, low rank plus diagonal."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from vae_jax.distributions import gaussian, multivariate_gaussian
from vae_jax.posteriors.bounds import bound_covariance, bound_factor, bound_log_var
from vae_jax.types import Array, Key, PyTree


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DiagonalGaussianPosterior:
    """q(z|x) = N(mean, diag(exp(log_var))) for a batch.

    Attributes:
      mean: `[B, L]`.
      log_var: `[B, L]`.
    """

    mean: Array
    log_var: Array
    has_density: ClassVar[bool] = True
    mean_is_exact: ClassVar[bool] = True

    @property
    def scale_tril(self) -> Array:
        """diag(exp(log_var / 2)), `[B, L, L]`."""
        scale = jnp.exp(0.5 * self.log_var)
        return scale[..., None] * jnp.eye(scale.shape[-1], dtype=scale.dtype)

    def sample_and_log_prob(self, key: Key, num_samples: int) -> tuple[Array, Array]:
        """Reparameterized samples `[S, B, L]` and their log q in nats, `[S, B]`."""
        z = gaussian.diagonal_sample(
            self.mean, self.log_var, key, num_samples=num_samples
        )
        return z, self.log_prob(z)

    def log_prob(self, z: Array) -> Array:
        """Log q(z|x) in nats, summed over L: `[S, B]` for `[S, B, L]`."""
        return gaussian.diagonal_log_prob(z, self.mean, self.log_var)

    def from_noise(self, noise: Array) -> Array:
        """The sample that standard normal noise becomes, `[..., L]`."""
        return self.mean + jnp.exp(0.5 * self.log_var) * noise

    def to_noise(self, z: Array) -> Array:
        """The noise that becomes the sample, the inverse of `from_noise`."""
        return (z - self.mean) * jnp.exp(-0.5 * self.log_var)


@dataclass(frozen=True)
class DiagonalGaussian:
    """The family N(mean(x), diag(exp(log_var(x)))), Kingma & Welling 2014, eq. 9.

    The encoder's second half is bounded by `bound_log_var`.

    Example:
      >>> from vae_jax import DiagonalGaussian
      >>> DiagonalGaussian().num_outputs(latent_dim=20)
      40
    """

    hyperparameters: ClassVar[tuple[str, ...]] = ()
    latent_space: ClassVar[str] = "real"
    has_log_prob: ClassVar[bool] = True
    begins_with_gaussian: ClassVar[bool] = True

    def num_outputs(self, latent_dim: int) -> int:
        """A mean and a log-variance for each latent dimension."""
        return 2 * latent_dim

    def init(self, key: Key, *, latent_dim: int) -> dict[str, PyTree]:
        """No parameters of its own."""
        return {}

    def build(
        self, posterior_params: PyTree, outputs: Array
    ) -> DiagonalGaussianPosterior:
        """Splits the encoder's outputs `[B, 2 L]` into mean and log-variance."""
        mean, raw = jnp.split(outputs, 2, axis=-1)
        return DiagonalGaussianPosterior(mean, bound_log_var(raw))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FullGaussianPosterior:
    """q(z|x) = N(mean, A A') for a batch, A lower triangular with positive diagonal.

    Attributes:
      mean: `[B, L]`.
      log_var: of the diagonal of A, whose entries are exp(log_var / 2), `[B, L]`.
      below: the entries of A below its diagonal, row by row, `[B, L (L - 1) / 2]`.
    """

    mean: Array
    log_var: Array
    below: Array
    has_density: ClassVar[bool] = True
    mean_is_exact: ClassVar[bool] = True

    @classmethod
    def from_factor(cls, mean: Array, scale_tril: Array) -> "FullGaussianPosterior":
        """Of means `[B, L]` and A, `[B, L, L]`."""
        diagonal = jnp.diagonal(scale_tril, axis1=-2, axis2=-1)
        below = multivariate_gaussian.entries_below(scale_tril)
        return cls(mean, 2 * jnp.log(diagonal), below)

    @property
    def scale_tril(self) -> Array:
        """A, `[B, L, L]`."""
        diagonal = jnp.exp(0.5 * self.log_var)
        return multivariate_gaussian.lower_triangular(diagonal, self.below)

    def sample_and_log_prob(self, key: Key, num_samples: int) -> tuple[Array, Array]:
        """Reparameterized samples `[S, B, L]` and their log q in nats, `[S, B]`."""
        shape = (num_samples, *self.mean.shape)
        noise = jax.random.normal(key, shape, self.mean.dtype)
        z = self.mean + multivariate_gaussian.times(self.scale_tril, noise)
        # Of the noise, so that nothing has to be solved for.
        log_density = gaussian.diagonal_log_prob(noise, 0.0, jnp.zeros_like(noise))
        return z, log_density - 0.5 * jnp.sum(self.log_var, axis=-1)

    def log_prob(self, z: Array) -> Array:
        """Log q(z|x) in nats, summed over L: `[S, B]` for `[S, B, L]`."""
        return multivariate_gaussian.full_log_prob(z, self.mean, self.scale_tril)


@dataclass(frozen=True)
class FullGaussian:
    """The family N(mean(x), S(x)) of Gaussians with all covariances.

    `bound_covariance` makes S of any outputs, so well conditioned that float32 knows
    the density of its samples. In reach is every S whose correlation matrix has no
    eigenvalue below 1e-4, with deviations well between 2e-4 and 4.9e3.

    Example:
      >>> from vae_jax import FullGaussian
      >>> FullGaussian().num_outputs(latent_dim=20)
      230
    """

    hyperparameters: ClassVar[tuple[str, ...]] = ()
    latent_space: ClassVar[str] = "real"
    has_log_prob: ClassVar[bool] = True
    begins_with_gaussian: ClassVar[bool] = True

    def num_outputs(self, latent_dim: int) -> int:
        """Means, log-variances, and a number for each pair of latents."""
        return 2 * latent_dim + latent_dim * (latent_dim - 1) // 2

    def init(self, key: Key, *, latent_dim: int) -> dict[str, PyTree]:
        """No parameters of its own."""
        return {}

    def build(self, posterior_params: PyTree, outputs: Array) -> FullGaussianPosterior:
        """Splits the encoder's outputs `[B, 2 L + L (L - 1) / 2]`."""
        latent_dim = multivariate_gaussian.dimension_of(outputs.shape[-1])
        mean, *raw = jnp.split(outputs, (latent_dim, 2 * latent_dim), axis=-1)
        return FullGaussianPosterior.from_factor(mean, bound_covariance(*raw))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LowRankGaussianPosterior:
    """q(z|x) = N(mean, F F' + diag(exp(log_var))) for a batch.

    Attributes:
      mean: `[B, L]`.
      log_var: `[B, L]`.
      factor: F, `[B, L, R]`.
    """

    mean: Array
    log_var: Array
    factor: Array
    has_density: ClassVar[bool] = True
    mean_is_exact: ClassVar[bool] = True

    def sample_and_log_prob(self, key: Key, num_samples: int) -> tuple[Array, Array]:
        """Reparameterized samples `[S, B, L]` and their log q in nats, `[S, B]`."""
        z = multivariate_gaussian.low_rank_sample(
            self.mean, self.log_var, self.factor, key, num_samples=num_samples
        )
        return z, self.log_prob(z)

    def log_prob(self, z: Array) -> Array:
        """Log q(z|x) in nats, summed over L: `[S, B]` for `[S, B, L]`."""
        return multivariate_gaussian.low_rank_log_prob(
            z, self.mean, self.log_var, self.factor
        )


@dataclass(frozen=True)
class LowRankGaussian:
    """The family N(mean(x), F(x) F(x)' + diag(exp(log_var(x)))).

    The log-variances are bounded by `bound_log_var`, F by `bound_factor`.

    Attributes:
      rank: R, the columns of F.

    Example:
      >>> from vae_jax import LowRankGaussian
      >>> LowRankGaussian(rank=2).num_outputs(latent_dim=20)
      80
    """

    rank: int = 2
    hyperparameters: ClassVar[tuple[str, ...]] = ()
    latent_space: ClassVar[str] = "real"
    has_log_prob: ClassVar[bool] = True
    begins_with_gaussian: ClassVar[bool] = True

    def num_outputs(self, latent_dim: int) -> int:
        """Means, log-variances and the factor."""
        return (2 + self.rank) * latent_dim

    def init(self, key: Key, *, latent_dim: int) -> dict[str, PyTree]:
        """No parameters of its own."""
        return {}

    def build(
        self, posterior_params: PyTree, outputs: Array
    ) -> LowRankGaussianPosterior:
        """Splits the encoder's outputs `[B, (2 + R) L]`."""
        latent_dim = outputs.shape[-1] // (2 + self.rank)
        mean, raw, factor = jnp.split(outputs, (latent_dim, 2 * latent_dim), axis=-1)
        factor = factor.reshape(*factor.shape[:-1], latent_dim, self.rank)
        log_var = bound_log_var(raw)
        return LowRankGaussianPosterior(mean, log_var, bound_factor(factor, log_var))
