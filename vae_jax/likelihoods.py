"""Families of p(x|z): Bernoulli, discrete and continuous, and Gaussian.

Each is a normalised density or probability of x, its constant kept, so that
figures in nats compare across models. `types.LikelihoodFamily` is the contract.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from vae_jax.distributions import bernoulli, continuous_bernoulli, gaussian
from vae_jax.posteriors import bound_log_var
from vae_jax.types import Array, Key, PyTree


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BernoulliLikelihood:
    """p(x|z) = prod_d Bernoulli(x_d; sigmoid(logits_d)).

    Attributes:
      logits: `[S, B, D]`.
    """

    logits: Array

    def log_prob(self, x: Array) -> Array:
        """Log p(x|z) in nats, summed over D: `[S, B]` for `x` `[B, D]`."""
        return bernoulli.log_prob(x, self.logits)

    @property
    def mean(self) -> Array:
        """The probabilities of a one, `[S, B, D]`."""
        return jax.nn.sigmoid(self.logits)

    def sample(self, key: Key) -> Array:
        """Zeros and ones, `[S, B, D]`."""
        return bernoulli.sample(self.logits, key)


@dataclass(frozen=True)
class Bernoulli:
    """The family of independent Bernoulli pixels, Kingma & Welling 2014, app. C.1.

    Example:
      >>> from vae_jax import Bernoulli
      >>> Bernoulli().num_outputs(data_dim=784)
      784
    """

    hyperparameters: ClassVar[tuple[str, ...]] = ()

    def num_outputs(self, data_dim: int) -> int:
        """One logit a pixel."""
        return data_dim

    def init(self, key: Key, *, data_dim: int) -> dict[str, PyTree]:
        """No parameters of its own."""
        return {}

    def build(self, likelihood_params: PyTree, outputs: Array) -> BernoulliLikelihood:
        """Takes the decoder's outputs `[..., D]` as logits."""
        return BernoulliLikelihood(outputs)

    def output_bias(self, data_mean: Array) -> Array:
        """The data's log-odds, the means clipped to [0.001, 0.999].

        Burda, Grosse & Salakhutdinov 2016 start there in their released code.
        """
        clipped = jnp.clip(data_mean, 0.001, 0.999)
        return jnp.log(clipped) - jnp.log1p(-clipped)


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
    weights, and `bound_log_var` keeps it within (-20, 20).

    Attributes:
      learned_variance: whether training updates the variance.

    Example:
      >>> import jax
      >>> from vae_jax import Gaussian
      >>> Gaussian().init(jax.random.key(0), data_dim=784)
      {'log_var': Array(0., dtype=float32)}
    """

    learned_variance: bool = False

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


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ContinuousBernoulliLikelihood:
    """p(x|z) = prod_d C(l_d) exp(l_d x_d) on [0, 1], a density of grey values.

    Attributes:
      logits: l, `[S, B, D]`.
    """

    logits: Array

    def log_prob(self, x: Array) -> Array:
        """Log p(x|z) in nats, summed over D: `[S, B]` for `x` `[B, D]`."""
        return continuous_bernoulli.log_prob(x, self.logits)

    @property
    def mean(self) -> Array:
        """E[x|z], `[S, B, D]`; not sigmoid(l)."""
        return continuous_bernoulli.mean(self.logits)

    def sample(self, key: Key) -> Array:
        """Draws in [0, 1], `[S, B, D]`."""
        return continuous_bernoulli.sample(self.logits, key)


@dataclass(frozen=True)
class ContinuousBernoulli:
    """The family of continuous Bernoulli pixels, Loaiza-Ganem & Cunningham 2019.

    What a cross-entropy on grey values lacks is this density's normalizer.

    Example:
      >>> from vae_jax import ContinuousBernoulli
      >>> ContinuousBernoulli().num_outputs(data_dim=784)
      784
    """

    hyperparameters: ClassVar[tuple[str, ...]] = ()

    def num_outputs(self, data_dim: int) -> int:
        """One logit a pixel."""
        return data_dim

    def init(self, key: Key, *, data_dim: int) -> dict[str, PyTree]:
        """No parameters of its own."""
        return {}

    def build(
        self, likelihood_params: PyTree, outputs: Array
    ) -> ContinuousBernoulliLikelihood:
        """Takes the decoder's outputs `[..., D]` as logits."""
        return ContinuousBernoulliLikelihood(outputs)

    def output_bias(self, data_mean: Array) -> Array:
        """The data's log-odds, as for `Bernoulli`: near enough to start from."""
        return Bernoulli().output_bias(data_mean)
