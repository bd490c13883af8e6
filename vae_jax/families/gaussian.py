"""Gaussian families: shared variance, diagonal, low-rank or full covariance."""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp

from vae_jax.distributions import (
    DiagonalGaussianDistribution,
    FullGaussianDistribution,
    LowRankGaussianDistribution,
    PrecisionGaussianDistribution,
    multivariate_gaussian,
)
from vae_jax.distributions.support import REAL
from vae_jax.families.bounds import (
    CORRELATED_LOG_VAR_BOUND,
    LOG_VAR_BOUND,
    bound_covariance,
    bound_factor,
    bound_log_var,
    unbound_log_var,
)
from vae_jax.options import require_at_least
from vae_jax.types import Array, Family, Key, PyTree

# Lower limit of initial variances relative to their mean: constant pixels have variance
# 0, and their density must not dominate the likelihood.
LEAST_SHARE = 0.1
# Closer to the bound, the raw value diverges.
WITHIN_BOUND = 0.95


def raw_log_var_of(data_variance: Array, *, bound: float = LOG_VAR_BOUND) -> Array:
    """Unbounded log-variances that initialise a Gaussian at the data's variances.

    Args:
      data_variance: variance of each dimension, `[P]`. Variances below a tenth of their
        mean are raised to it; if all are 0 (a single example), 1 is used.
      bound: bound of the log-variances, as for `bound_log_var`.

    Returns:
      Values that `bound_log_var` maps to the log-variances, `[P]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.families.gaussian import raw_log_var_of
      >>> from vae_jax.families import bound_log_var
      >>> raw = raw_log_var_of(jnp.array([0.5, 0.3, 0.0]))
      >>> print([f"{variance:.4f}" for variance in jnp.exp(bound_log_var(raw))])
      ['0.5000', '0.3000', '0.0267']
    """
    mean = jnp.mean(data_variance)
    raised = jnp.maximum(data_variance, LEAST_SHARE * mean)
    log_var = jnp.log(jnp.where(mean > 0, raised, 1.0))
    most = WITHIN_BOUND * bound
    return unbound_log_var(jnp.clip(log_var, -most, most), bound=bound)


@dataclass(frozen=True)
class DiagonalGaussian(Family):
    """Family N(mean, diag(exp(log_var))), Kingma & Welling 2014, eq. 9 and 12.

    The second half of the outputs is bounded by `bound_log_var`. As p(x|z), the decoder
    gives the variance of each pixel; without the bound, the density of a constant pixel
    would be unbounded.

    Example:
      >>> from vae_jax import DiagonalGaussian
      >>> DiagonalGaussian().num_outputs(dim=20)
      40
    """

    latent_space = "real"
    support = REAL
    begins_with_gaussian: ClassVar[bool] = True

    def num_outputs(self, dim: int) -> int:
        """One mean and one log-variance per dimension."""
        return 2 * dim

    def build(self, params: PyTree, outputs: Array) -> DiagonalGaussianDistribution:
        """Split the outputs `[..., 2 D]` into means and log-variances."""
        mean, raw = jnp.split(outputs, 2, axis=-1)
        return DiagonalGaussianDistribution(mean, bound_log_var(raw))

    def output_bias(self, data_mean: Array) -> Array:
        """Data mean, and variance 1."""
        return jnp.concatenate([data_mean, jnp.zeros_like(data_mean)])

    def start_at_variance(
        self, params: PyTree, bias: Array, data_variance: Array
    ) -> tuple[PyTree, Array]:
        """Initialise at the data's variance of each pixel."""
        mean, _ = jnp.split(bias, 2)
        return params, jnp.concatenate([mean, raw_log_var_of(data_variance)])


PerPixelGaussian = DiagonalGaussian


@dataclass(frozen=True)
class FullGaussian(Family):
    """Family N(mean(x), S(x)) with full covariance.

    `bound_covariance` maps any outputs to an S that is well conditioned in float32.
    Attainable are all S whose correlation matrix has no eigenvalue below 1e-4 and whose
    standard deviations lie well within 2e-4 and 4.9e3.

    Example:
      >>> from vae_jax import FullGaussian
      >>> FullGaussian().num_outputs(dim=20)
      230
    """

    latent_space = "real"
    begins_with_gaussian: ClassVar[bool] = True

    def num_outputs(self, dim: int) -> int:
        """Means, log-variances, and one entry per pair of latents."""
        return 2 * dim + dim * (dim - 1) // 2

    def build(self, params: PyTree, outputs: Array) -> FullGaussianDistribution:
        """Split the encoder's outputs `[B, 2 L + L (L - 1) / 2]`."""
        latent_dim = multivariate_gaussian.dimension_of(outputs.shape[-1])
        mean, *raw = jnp.split(outputs, (latent_dim, 2 * latent_dim), axis=-1)
        return FullGaussianDistribution.from_factor(mean, bound_covariance(*raw))


@dataclass(frozen=True)
class LowRankGaussian(Family):
    """Family N(mean(x), F(x) F(x)' + diag(exp(log_var(x)))).

    The log-variances are bounded by `bound_log_var`, F by `bound_factor`.

    Attributes:
      rank: R, number of columns of F.

    Example:
      >>> from vae_jax import LowRankGaussian
      >>> LowRankGaussian(rank=2).num_outputs(dim=20)
      80
    """

    rank: int = 2
    latent_space = "real"
    begins_with_gaussian: ClassVar[bool] = True

    def __post_init__(self):
        require_at_least("rank", self.rank)

    def num_outputs(self, dim: int) -> int:
        """Means, log-variances and the factor."""
        return (2 + self.rank) * dim

    def build(self, params: PyTree, outputs: Array) -> LowRankGaussianDistribution:
        """Split the encoder's outputs `[B, (2 + R) L]`."""
        latent_dim = outputs.shape[-1] // (2 + self.rank)
        mean, raw, factor = jnp.split(outputs, (latent_dim, 2 * latent_dim), axis=-1)
        factor = factor.reshape(*factor.shape[:-1], latent_dim, self.rank)
        log_var = bound_log_var(raw)
        return LowRankGaussianDistribution(mean, log_var, bound_factor(factor, log_var))


@dataclass(frozen=True)
class Gaussian(Family):
    """Family N(mean(z), s^2 I), with one variance for all pixels or one per pixel.

    The log-variance is the leaf `params.likelihood["log_var"]`, initially 0. A fixed
    variance is a hyperparameter that training does not change; set it with
    `params.replace(likelihood={"log_var": ...})`. A learned variance is trained with
    the weights, kept within (-20, 20) by `bound_log_var`, and initialised at the data's
    variance by `init(x=...)`: starting from variance 1 on data that vary little, the
    posterior would collapse before the variance has shrunk.

    Attributes:
      learned_variance: train the variance.
      per_dimension: one variance per dimension, shared by all examples (factor
        analysis), instead of a single one.

    Example:
      >>> import jax
      >>> from vae_jax import Gaussian
      >>> Gaussian().init(jax.random.key(0), dim=784)
      {'log_var': Array(0., dtype=float32)}
    """

    learned_variance: bool = False
    per_dimension: bool = False
    support = REAL

    @property
    def hyperparameters(self) -> tuple[str, ...]:
        """`log_var`, unless it is learned."""
        return () if self.learned_variance else ("log_var",)

    def num_outputs(self, dim: int) -> int:
        """One mean per pixel."""
        return dim

    def init(self, key: Key, *, dim: int) -> dict[str, PyTree]:
        """`log_var` = 0, `[]` or `[D]`."""
        return {"log_var": jnp.zeros((dim,) * self.per_dimension, jnp.float32)}

    def build(self, params: PyTree, outputs: Array) -> DiagonalGaussianDistribution:
        """Build from means `[..., D]`."""
        log_var = params["log_var"]
        if self.learned_variance:
            log_var = bound_log_var(log_var)
        return DiagonalGaussianDistribution(outputs, log_var)

    def output_bias(self, data_mean: Array) -> Array:
        """Data mean."""
        return data_mean

    def start_at_variance(
        self, params: PyTree, bias: Array, data_variance: Array
    ) -> tuple[PyTree, Array]:
        """Initialise a learned variance at the data's, or at its mean over pixels."""
        if not self.learned_variance:
            return params, bias
        if not self.per_dimension:
            return params | {"log_var": raw_log_var_of(jnp.mean(data_variance))}, bias
        raw = raw_log_var_of(data_variance)
        # A convolution has one bias per channel, but a variance at every position.
        raw = jnp.tile(raw, params["log_var"].size // raw.size)
        return params | {"log_var": raw}, bias


@dataclass(frozen=True)
class FullCovarianceGaussian(Family):
    """Family N(mean(z), (A(z) A(z)')^-1), mean and covariance given by the decoder.

    A is the Cholesky factor of the precision, so that the density requires no linear
    solve (Dorta et al. 2018), and `bound_covariance` keeps it well conditioned;
    exp(log_var) is the variance of a pixel given all others. The decoder gives
    D + D (D + 1) / 2 numbers, and each example costs a factorization in D^3 operations.
    This suits data of few dimensions: 2,144 outputs for 8x8 pixels, 308,504 for 28x28.

    Example:
      >>> from vae_jax import FullCovarianceGaussian
      >>> FullCovarianceGaussian().num_outputs(dim=64)
      2144
    """

    support = REAL

    def num_outputs(self, dim: int) -> int:
        """Means, log-variances and the entries below the diagonal."""
        return 2 * dim + dim * (dim - 1) // 2

    def build(self, params: PyTree, outputs: Array) -> PrecisionGaussianDistribution:
        """Split the decoder's outputs `[..., 2 D + D (D - 1) / 2]`."""
        data_dim = multivariate_gaussian.dimension_of(outputs.shape[-1])
        mean, raw, below = jnp.split(outputs, (data_dim, 2 * data_dim), axis=-1)
        return PrecisionGaussianDistribution(mean, bound_covariance(-raw, below))

    def output_bias(self, data_mean: Array) -> Array:
        """Data mean, and precision I."""
        data_dim = data_mean.shape[-1]
        rest = jnp.zeros(self.num_outputs(data_dim) - data_dim, data_mean.dtype)
        return jnp.concatenate([data_mean, rest])

    def start_at_variance(
        self, params: PyTree, bias: Array, data_variance: Array
    ) -> tuple[PyTree, Array]:
        """Initialise at the data's variance of each pixel, without correlations."""
        data_dim = data_variance.shape[-1]
        raw = raw_log_var_of(data_variance, bound=CORRELATED_LOG_VAR_BOUND)
        return params, bias.at[data_dim : 2 * data_dim].set(raw)
