"""Gaussian families of p(x|z): one variance, one a pixel, or all covariances."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from vae_jax.distributions import gaussian, multivariate_gaussian
from vae_jax.distributions.support import REAL, Support
from vae_jax.posteriors import bound_covariance, bound_log_var, unbound_log_var
from vae_jax.posteriors.bounds import CORRELATED_LOG_VAR_BOUND, LOG_VAR_BOUND
from vae_jax.types import Array, Key, PyTree

# Where a variance starts at the data's: a constant pixel has none, and its density
# must not be what the model is about.
LEAST_SHARE = 0.1
# Nearer to its bound a log-variance has no raw value to speak of.
WITHIN_BOUND = 0.95


def raw_log_var_of(data_variance: Array, *, bound: float = LOG_VAR_BOUND) -> Array:
    """Raw log-variances at which a Gaussian starts with the data's variances.

    Args:
      data_variance: variance of each dimension, `[P]`; those below a tenth of the mean
        are raised to it. Where nothing varies (a single example), they count as 1.
      bound: of the log-variances, as for `bound_log_var`.

    Returns:
      What `bound_log_var` maps to their logarithms, `[P]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.likelihoods.gaussian import raw_log_var_of
      >>> from vae_jax.posteriors import bound_log_var
      >>> raw = raw_log_var_of(jnp.array([0.5, 0.3, 0.0]))
      >>> print([f"{variance:.4f}" for variance in jnp.exp(bound_log_var(raw))])
      ['0.5000', '0.3000', '0.0267']
    """
    mean = jnp.mean(data_variance)
    raised = jnp.maximum(data_variance, LEAST_SHARE * mean)
    log_var = jnp.log(jnp.where(mean > 0, raised, 1.0))
    most = WITHIN_BOUND * bound
    return unbound_log_var(jnp.clip(log_var, -most, most), bound=bound)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GaussianLikelihood:
    """p(x|z) = N(x; mean, exp(log_var) I).

    Attributes:
      mean: `[S, B, D]`.
      log_var: a scalar for all pixels, or what broadcasts with `mean`.
    """

    mean: Array
    log_var: Array

    def log_prob(self, x: Array) -> Array:
        """Log p(x|z) in nats, summed over D: `[S, B]` for `x` `[B, D]`.

        - |x - mean|^2 / (2 s^2) - D/2 log(2 pi s^2): squared error with weight one
        means s^2 = 1/2, and the constant counts where models are compared.
        """
        REAL.require(x)
        return gaussian.diagonal_log_prob(x, self.mean, self.log_var)

    def sample(self, key: Key) -> Array:
        """Draws, `[S, B, D]`."""
        log_var = jnp.broadcast_to(self.log_var, self.mean.shape)
        return gaussian.diagonal_sample(self.mean, log_var, key)[0]


@dataclass(frozen=True)
class Gaussian:
    """The family N(mean(z), s^2 I) with one variance for all pixels.

    The log-variance is the leaf `params.likelihood["log_var"]`, 0 at first. Fixed,
    it is a setting that training leaves alone: put another there with
    `params.replace(likelihood={"log_var": ...})`. Learned, it is trained with the
    weights, `bound_log_var` keeps it within (-20, 20), and `init(x=...)` starts it at
    the data's variance: on data that vary little, noise of variance 1 hides what the
    latents could say, and the posterior collapses before the variance has shrunk.

    Attributes:
      learned_variance: whether training updates the variance.

    Example:
      >>> import jax
      >>> from vae_jax import Gaussian
      >>> Gaussian().init(jax.random.key(0), data_dim=784)
      {'log_var': Array(0., dtype=float32)}
    """

    learned_variance: bool = False
    support: ClassVar[Support] = REAL

    @property
    def hyperparameters(self) -> tuple[str, ...]:
        """The variance, unless it is learned."""
        return () if self.learned_variance else ("log_var",)

    def num_outputs(self, data_dim: int) -> int:
        """One mean a pixel."""
        return data_dim

    def init(self, key: Key, *, data_dim: int) -> dict[str, PyTree]:
        """Unit variance."""
        return {"log_var": jnp.zeros((), jnp.float32)}

    def build(self, likelihood_params: PyTree, outputs: Array) -> GaussianLikelihood:
        """Takes the decoder's outputs `[..., D]` as means."""
        log_var = likelihood_params["log_var"]
        if self.learned_variance:
            log_var = bound_log_var(log_var)
        return GaussianLikelihood(outputs, log_var)

    def output_bias(self, data_mean: Array) -> Array:
        """The data's mean."""
        return data_mean

    def start_at_variance(
        self, likelihood_params: PyTree, bias: Array, data_variance: Array
    ) -> tuple[PyTree, Array]:
        """A learned variance at the data's, the mean over pixels; a fixed one as is."""
        if self.learned_variance:
            mean = jnp.mean(data_variance)
            likelihood_params = {"log_var": raw_log_var_of(mean)}
        return likelihood_params, bias


@dataclass(frozen=True)
class PerPixelGaussian:
    """The family N(mean(z), diag(exp(log_var(z)))): the decoder says both.

    Kingma & Welling 2014, eq. 12. `bound_log_var` keeps the log-variances within
    (-20, 20): without a bound a pixel that never changes has an infinite density.

    Example:
      >>> from vae_jax import PerPixelGaussian
      >>> PerPixelGaussian().num_outputs(data_dim=784)
      1568
    """

    hyperparameters: ClassVar[tuple[str, ...]] = ()
    support: ClassVar[Support] = REAL

    def num_outputs(self, data_dim: int) -> int:
        """A mean and a log-variance a pixel."""
        return 2 * data_dim

    def init(self, key: Key, *, data_dim: int) -> dict[str, PyTree]:
        """No parameters of its own."""
        return {}

    def build(self, likelihood_params: PyTree, outputs: Array) -> GaussianLikelihood:
        """Splits the decoder's outputs `[..., 2 D]` into means and log-variances."""
        mean, raw = jnp.split(outputs, 2, axis=-1)
        return GaussianLikelihood(mean, bound_log_var(raw))

    def output_bias(self, data_mean: Array) -> Array:
        """The data's mean, and variance 1."""
        return jnp.concatenate([data_mean, jnp.zeros_like(data_mean)])

    def start_at_variance(
        self, likelihood_params: PyTree, bias: Array, data_variance: Array
    ) -> tuple[PyTree, Array]:
        """The data's variance of each pixel."""
        mean, _ = jnp.split(bias, 2)
        return likelihood_params, jnp.concatenate([mean, raw_log_var_of(data_variance)])


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FullCovarianceGaussianLikelihood:
    """p(x|z) = N(x; mean, (A A')^-1), A lower triangular with positive diagonal.

    Attributes:
      mean: `[S, B, D]`.
      precision_tril: A, `[S, B, D, D]`.
    """

    mean: Array
    precision_tril: Array

    def log_prob(self, x: Array) -> Array:
        """Log p(x|z) in nats, summed over D: `[S, B]` for `x` `[B, D]`."""
        REAL.require(x)
        return multivariate_gaussian.precision_log_prob(
            x, self.mean, self.precision_tril
        )

    def sample(self, key: Key) -> Array:
        """Draws, `[S, B, D]`."""
        return multivariate_gaussian.precision_sample(
            self.mean, self.precision_tril, key
        )


@dataclass(frozen=True)
class FullCovarianceGaussian:
    """The family N(mean(z), (A(z) A(z)')^-1): the decoder says mean and covariance.

    A is the factor of the precision, as the density needs no solution of equations then
    (Dorta et al. 2018), and well conditioned by `bound_covariance`: exp(log_var) is
    the variance of a pixel given all others. The decoder gives D + D (D + 1) / 2
    numbers and each example's matrix is factorized, in D^3 operations, so this is for
    data of few dimensions: 2,144 numbers for 8x8 pixels, 308,504 for 28x28.

    Example:
      >>> from vae_jax import FullCovarianceGaussian
      >>> FullCovarianceGaussian().num_outputs(data_dim=64)
      2144
    """

    hyperparameters: ClassVar[tuple[str, ...]] = ()
    support: ClassVar[Support] = REAL

    def num_outputs(self, data_dim: int) -> int:
        """Means, log-variances and the entries below the diagonal."""
        return 2 * data_dim + data_dim * (data_dim - 1) // 2

    def init(self, key: Key, *, data_dim: int) -> dict[str, PyTree]:
        """No parameters of its own."""
        return {}

    def build(
        self, likelihood_params: PyTree, outputs: Array
    ) -> FullCovarianceGaussianLikelihood:
        """Splits the decoder's outputs `[..., 2 D + D (D - 1) / 2]`."""
        data_dim = multivariate_gaussian.dimension_of(outputs.shape[-1])
        mean, raw, below = jnp.split(outputs, (data_dim, 2 * data_dim), axis=-1)
        return FullCovarianceGaussianLikelihood(mean, bound_covariance(-raw, below))

    def output_bias(self, data_mean: Array) -> Array:
        """The data's mean, and precision I."""
        data_dim = data_mean.shape[-1]
        rest = jnp.zeros(self.num_outputs(data_dim) - data_dim, data_mean.dtype)
        return jnp.concatenate([data_mean, rest])

    def start_at_variance(
        self, likelihood_params: PyTree, bias: Array, data_variance: Array
    ) -> tuple[PyTree, Array]:
        """The data's variance of each pixel, no covariances."""
        data_dim = data_variance.shape[-1]
        raw = raw_log_var_of(data_variance, bound=CORRELATED_LOG_VAR_BOUND)
        return likelihood_params, bias.at[data_dim : 2 * data_dim].set(raw)
