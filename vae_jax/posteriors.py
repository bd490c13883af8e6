"""Families of q(z|x): a point mass, the diagonal Gaussian, independent bits.

A family (in the spec, hashable) says how many numbers it wants from the encoder and
builds of them a posterior (a pytree of arrays). `types.PosteriorFamily` and
`types.Posterior` are the two contracts.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from vae_jax.distributions import bernoulli, gaussian
from vae_jax.types import Array, Key, PyTree

LOG_VAR_BOUND = 20.0


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
class PointMassPosterior:
    """q(z|x) with all its mass at one point, for a batch.

    It has no density: a Monte Carlo KL and importance weights do not exist, and
    the KL is 0 by definition, which makes the ELBO an autoencoder's objective.

    Attributes:
      mean: the points, `[B, L]`.
    """

    mean: Array
    has_density: ClassVar[bool] = False

    def sample_and_log_prob(self, key: Key, num_samples: int) -> tuple[Array, Array]:
        """The points `[S, B, L]`, and +inf `[S, B]` for the density they lack."""
        z = jnp.broadcast_to(self.mean, (num_samples, *self.mean.shape))
        return z, jnp.full(z.shape[:-1], jnp.inf, z.dtype)


@dataclass(frozen=True)
class PointMass:
    """The family of point masses: the model is an autoencoder.

    Example:
      >>> from vae_jax import PointMass
      >>> PointMass().num_outputs(latent_dim=20)
      20
    """

    hyperparameters: ClassVar[tuple[str, ...]] = ()

    def num_outputs(self, latent_dim: int) -> int:
        """One number for each latent dimension."""
        return latent_dim

    def init(self, key: Key, *, latent_dim: int) -> dict[str, PyTree]:
        """No parameters of its own."""
        return {}

    def build(self, posterior_params: PyTree, outputs: Array) -> PointMassPosterior:
        """Takes the encoder's outputs `[B, L]` as the points."""
        return PointMassPosterior(outputs)


# 4096 states: a decoder still takes them all in one call.
MAX_ENUMERABLE_BITS = 12


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BernoulliPosterior:
    """q(z|x) = prod_l Bernoulli(z_l; sigmoid(logits_l)) for a batch: discrete.

    No gradient flows through its samples; `estimators` has the choices for those.

    Attributes:
      logits: `[B, L]`.
    """

    logits: Array
    has_density: ClassVar[bool] = True
    is_reparameterizable: ClassVar[bool] = False

    @property
    def mean(self) -> Array:
        """The probabilities of a one, `[B, L]`."""
        return jax.nn.sigmoid(self.logits)

    def sample_and_log_prob(self, key: Key, num_samples: int) -> tuple[Array, Array]:
        """Zeros and ones `[S, B, L]` and their log q in nats, `[S, B]`."""
        logits = jnp.broadcast_to(self.logits, (num_samples, *self.logits.shape))
        z = bernoulli.sample(jax.lax.stop_gradient(logits), key)
        return z, self.log_prob(z)

    def log_prob(self, z: Array) -> Array:
        """Log q(z|x) in nats, summed over L: `[S, B]` for `[S, B, L]`."""
        return bernoulli.log_prob(z, self.logits)

    def support(self) -> Array:
        """All values that z can take, `[2^L, 1, L]`.

        Raises:
          ValueError: L is above 12.
        """
        num_bits = self.logits.shape[-1]
        if num_bits > MAX_ENUMERABLE_BITS:
            raise ValueError(
                f"latent_dim {num_bits} has 2^{num_bits} states; at most "
                f"{MAX_ENUMERABLE_BITS} bits are enumerated"
            )
        states = jnp.arange(2**num_bits)[:, None] >> jnp.arange(num_bits)
        return (states & 1).astype(self.logits.dtype)[:, None]


@dataclass(frozen=True)
class FactorizedBernoulli:
    """The family of independent bits, prod_l Bernoulli(z_l; sigmoid(logits_l(x))).

    Its gradient needs an estimator for discrete latents, `leave_one_out` or `disarm`
    among them; `reparameterization` refuses it.

    Example:
      >>> from vae_jax import FactorizedBernoulli
      >>> FactorizedBernoulli().num_outputs(latent_dim=20)
      20
    """

    hyperparameters: ClassVar[tuple[str, ...]] = ()

    def num_outputs(self, latent_dim: int) -> int:
        """One logit for each latent dimension."""
        return latent_dim

    def init(self, key: Key, *, latent_dim: int) -> dict[str, PyTree]:
        """No parameters of its own."""
        return {}

    def build(self, posterior_params: PyTree, outputs: Array) -> BernoulliPosterior:
        """Takes the encoder's outputs `[B, L]` as the logits."""
        return BernoulliPosterior(outputs)
