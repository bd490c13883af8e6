"""Gaussian families of q(z|x): diagonal, full covariance, low rank plus diagonal."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from vae_jax.distributions import gaussian, multivariate_gaussian
from vae_jax.types import Array, Key, PyTree

LOG_VAR_BOUND = 20.0
# Rounding of float32 then stays below 1, the smallest eigenvalue of I + F' D^-1 F.
LOADING_BOUND = 1e3


def bound_log_var(raw: Array) -> Array:
    """Maps any real number into (-20, 20), nearly unchanged around zero.

    log_var = 20 tanh(raw / 20). A network that runs away would otherwise overflow
    exp(log_var); so the standard deviation stays between 4.5e-5 and 2.2e4, and the
    KL and its gradient finite, whatever the encoder says.

    Args:
      raw: a network's output, any shape.

    Returns:
      Log-variances, the same shape.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.posteriors import bound_log_var
      >>> print(bound_log_var(jnp.array([0.0, 1e9])))
      [ 0. 20.]
    """
    return LOG_VAR_BOUND * jnp.tanh(raw / LOG_VAR_BOUND)


def unbound_log_var(log_var: Array) -> Array:
    """What a network has to say for a log-variance: the inverse of `bound_log_var`.

    raw = 20 artanh(log_var / 20).

    Args:
      log_var: log-variances in (-20, 20), any shape.

    Returns:
      A network's output, the same shape.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.posteriors import bound_log_var, unbound_log_var
      >>> print(bound_log_var(unbound_log_var(jnp.array(-0.5))).round(6))
      -0.5
    """
    return LOG_VAR_BOUND * jnp.arctanh(log_var / LOG_VAR_BOUND)


def bound_factor(raw: Array, log_var: Array) -> Array:
    """Shrinks a factor F whose loadings D^-1/2 F are together longer than 1000.

    F = raw / sqrt(1 + |D^-1/2 raw|^2 / 1000^2), D = diag(exp(log_var)): nearly
    unchanged up to a hundred standard deviations of D. Columns much longer hide D
    from float32's seven digits, and the covariance would be singular to rounding.

    Args:
      raw: a network's output, `[..., L, R]`.
      log_var: log of the diagonal D, `[..., L]`.

    Returns:
      F, `[..., L, R]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.posteriors import bound_factor
      >>> print(f"{bound_factor(jnp.array([[1e9]]), jnp.zeros(1)).item():.0f}")
      1000
    """
    loading = raw * jnp.exp(-0.5 * log_var)[..., None] / LOADING_BOUND
    # The scale cancels; without it the squares overflow.
    largest = jnp.max(jnp.abs(loading), axis=(-2, -1), keepdims=True)
    scale = jax.lax.stop_gradient(jnp.maximum(largest, 1.0))
    squares = jnp.sum(jnp.square(loading / scale), axis=(-2, -1), keepdims=True)
    return raw / scale * jax.lax.rsqrt(squares + jnp.square(1 / scale))


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
    """The family N(mean(x), A(x) A(x)') of all Gaussians.

    A is lower triangular, its diagonal exp(log_var / 2) with `bound_log_var`, so that
    no output of an encoder makes a singular covariance.

    Example:
      >>> from vae_jax import FullGaussian
      >>> FullGaussian().num_outputs(latent_dim=20)
      230
    """

    hyperparameters: ClassVar[tuple[str, ...]] = ()
    latent_space: ClassVar[str] = "real"
    has_log_prob: ClassVar[bool] = True

    def num_outputs(self, latent_dim: int) -> int:
        """Means, log-variances and the entries below the diagonal."""
        return 2 * latent_dim + latent_dim * (latent_dim - 1) // 2

    def init(self, key: Key, *, latent_dim: int) -> dict[str, PyTree]:
        """No parameters of its own."""
        return {}

    def build(self, posterior_params: PyTree, outputs: Array) -> FullGaussianPosterior:
        """Splits the encoder's outputs `[B, 2 L + L (L - 1) / 2]`."""
        latent_dim = multivariate_gaussian.dimension_of(outputs.shape[-1])
        mean, raw, below = jnp.split(outputs, (latent_dim, 2 * latent_dim), axis=-1)
        return FullGaussianPosterior(mean, bound_log_var(raw), below)


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
