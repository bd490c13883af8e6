"""Families of p(z), fixed or learned, and closed-form KLs of (posterior, prior) pairs.

`register_kl` is how a pair gets its closed form, here or in a user's own file;
where none is registered the objectives estimate the KL from samples.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from vae_jax.distributions import bernoulli, gaussian
from vae_jax.posteriors import (
    BernoulliPosterior,
    DiagonalGaussianPosterior,
    PointMassPosterior,
)
from vae_jax.types import Array, Encode, Key, Posterior, Prior, PyTree


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

    def init(
        self, key: Key, *, latent_dim: int, data_shape: tuple[int, ...]
    ) -> dict[str, PyTree]:
        """`mean` and `log_var`, `[L]` each."""
        return {"mean": jnp.zeros(latent_dim), "log_var": jnp.zeros(latent_dim)}

    def build(self, prior_params: PyTree) -> DiagonalGaussianPosterior:
        """The distribution itself, as a batch of one."""
        return DiagonalGaussianPosterior(
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

    def init(
        self, key: Key, *, latent_dim: int, data_shape: tuple[int, ...]
    ) -> dict[str, PyTree]:
        """`logits`, `[L]`."""
        return {"logits": jnp.zeros(latent_dim)}

    def build(self, prior_params: PyTree) -> BernoulliPosterior:
        """The distribution itself, as a batch of one."""
        return BernoulliPosterior(prior_params["logits"][None])


@dataclass(frozen=True)
class MixtureOfGaussians:
    """p(z) = sum_k w_k N(mean_k, diag(exp(log_var_k))), all learned.

    Attributes:
      num_components: K.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax import MixtureOfGaussians
      >>> prior = MixtureOfGaussians(num_components=3)
      >>> params = prior.init(jax.random.key(0), latent_dim=2, data_shape=(5,))
      >>> prior.log_prob(params, jnp.zeros((4, 8, 2)), encode=None).shape
      (4, 8)
    """

    num_components: int = 10
    hyperparameters: ClassVar[tuple[str, ...]] = ()

    def init(
        self, key: Key, *, latent_dim: int, data_shape: tuple[int, ...]
    ) -> dict[str, PyTree]:
        """`logits` `[K]`; `mean` `[K, L]`, drawn from N(0, I); `log_var` `[K, L]`."""
        shape = (self.num_components, latent_dim)
        return {
            "logits": jnp.zeros(self.num_components),
            # Equal means would stay equal.
            "mean": jax.random.normal(key, shape),
            "log_var": jnp.zeros(shape),
        }

    def log_prob(
        self, prior_params: PyTree, z: Array, *, encode: Encode | None
    ) -> Array:
        """Log p(z) in nats, `[S, B]` for `[S, B, L]`."""
        each = gaussian.diagonal_log_prob(
            z[..., None, :], prior_params["mean"], prior_params["log_var"]
        )
        log_weights = jax.nn.log_softmax(prior_params["logits"])
        return jax.nn.logsumexp(each + log_weights, axis=-1)

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
        component_key, noise_key = jax.random.split(key)
        component = jax.random.categorical(
            component_key, prior_params["logits"], shape=(num_samples,)
        )
        mean, log_var = (prior_params[n][component] for n in ("mean", "log_var"))
        return gaussian.diagonal_sample(mean, log_var, noise_key)[0]


@dataclass(frozen=True)
class VampPrior:
    """p(z) = 1/K sum_k q(z|u_k) at learned pseudo-inputs u_k, Tomczak & Welling 2018.

    The pseudo-inputs are kept in (0, 1) by a sigmoid, like data. Training moves the
    encoder through the prior as well.

    Attributes:
      num_pseudo_inputs: K.

    Example:
      >>> import jax
      >>> from vae_jax import ModelSpec, VampPrior, generate, init
      >>> spec = ModelSpec(prior=VampPrior(5), latent_dim=2, data_shape=(3,))
      >>> params = init(spec, jax.random.key(0))
      >>> generate(params, jax.random.key(1), num_samples=4).shape
      (4, 3)
    """

    num_pseudo_inputs: int = 500
    hyperparameters: ClassVar[tuple[str, ...]] = ()

    def init(
        self, key: Key, *, latent_dim: int, data_shape: tuple[int, ...]
    ) -> dict[str, PyTree]:
        """`pseudo_inputs` `[K, D]`, before the sigmoid, drawn from N(0, I)."""
        shape = (self.num_pseudo_inputs, math.prod(data_shape))
        return {"pseudo_inputs": jax.random.normal(key, shape)}

    def log_prob(self, prior_params: PyTree, z: Array, *, encode: Encode) -> Array:
        """Log p(z) in nats, `[S, B]` for `[S, B, L]`; needs q's `log_prob`."""
        components = encode(jax.nn.sigmoid(prior_params["pseudo_inputs"]))
        shape = (*z.shape[:-1], self.num_pseudo_inputs, z.shape[-1])
        everywhere = jnp.broadcast_to(z[..., None, :], shape)
        each = components.log_prob(everywhere.reshape(-1, *shape[-2:]))
        mixture = jax.nn.logsumexp(each, axis=-1) - math.log(self.num_pseudo_inputs)
        return mixture.reshape(z.shape[:-1])

    def sample(
        self,
        prior_params: PyTree,
        key: Key,
        *,
        num_samples: int,
        latent_dim: int,
        encode: Encode,
    ) -> Array:
        """Draws `[num_samples, L]`."""
        component_key, noise_key = jax.random.split(key)
        pseudo_inputs = jax.nn.sigmoid(prior_params["pseudo_inputs"])
        component = jax.random.randint(
            component_key, (num_samples,), 0, self.num_pseudo_inputs
        )
        z, _ = encode(pseudo_inputs[component]).sample_and_log_prob(noise_key, 1)
        return z[0]


KLDivergence = Callable[[Posterior, Prior, PyTree], Array]
_closed_forms: dict[tuple[type, type], KLDivergence] = {}


def register_kl(
    posterior_type: type, prior_type: type
) -> Callable[[KLDivergence], KLDivergence]:
    """Registers the closed-form KL(q(z|x) || p(z)) of a pair, as a decorator.

    The function is called as `f(posterior, prior, prior_params)` and returns nats
    summed over the latent dimensions, `[B]`.

    Args:
      posterior_type: the class of the posterior that a family builds.
      prior_type: the class of the prior; `object` stands for any.

    Returns:
      The decorator, which gives its function back unchanged.

    Example:
      >>> from vae_jax import StandardNormal, register_kl
      >>> class MyPosterior: ...
      >>> @register_kl(MyPosterior, StandardNormal)
      ... def my_kl(posterior, prior, prior_params): ...
    """

    def register(function: KLDivergence) -> KLDivergence:
        _closed_forms[posterior_type, prior_type] = function
        return function

    return register


def closed_form_kl(posterior_type: type, prior_type: type) -> KLDivergence | None:
    """The registered KL of a pair, the most specific first; None where none is.

    Args:
      posterior_type: the class of a posterior.
      prior_type: the class of a prior.

    Returns:
      A function `f(posterior, prior, prior_params) -> [B]`, or None.

    Example:
      >>> from vae_jax.priors import closed_form_kl
      >>> closed_form_kl(int, int) is None
      True
    """
    for posterior_class in posterior_type.__mro__:
        for prior_class in prior_type.__mro__:
            if (posterior_class, prior_class) in _closed_forms:
                return _closed_forms[posterior_class, prior_class]
    return None


def unit_kl(posterior: Posterior, prior: Prior, prior_params: PyTree) -> Array:
    """KL(q(z_j|x) || p(z_j)) of each example and unit in nats, not summed.

    Args:
      posterior: a product over units: diagonal Gaussian or Bernoulli, batch B.
      prior: likewise, with a closed-form KL to it.
      prior_params: its parameters.

    Returns:
      `[B, L]`.

    Raises:
      ValueError: another pair.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax import StandardNormal
      >>> from vae_jax.posteriors import DiagonalGaussianPosterior
      >>> from vae_jax.priors import unit_kl
      >>> q = DiagonalGaussianPosterior(jnp.array([[0.0, 2.0]]), jnp.zeros((1, 2)))
      >>> print(unit_kl(q, StandardNormal(), {}))
      [[0. 2.]]
    """
    closed_form = closed_form_kl(type(posterior), type(prior))
    factorized = isinstance(posterior, DiagonalGaussianPosterior | BernoulliPosterior)
    if closed_form is None or not factorized:
        raise ValueError(
            "the KL of a unit is known for factorized posteriors with a closed-form "
            f"KL, got {type(posterior).__name__} and {prior}"
        )
    # Each unit as a distribution of its own, in one dimension.
    posterior, prior_params = jax.tree.map(
        lambda leaf: leaf[..., None], (posterior, prior_params)
    )
    return closed_form(posterior, prior, prior_params)


@register_kl(DiagonalGaussianPosterior, StandardNormal)
def _diagonal_to_standard(
    posterior: DiagonalGaussianPosterior, prior: Prior, prior_params: PyTree
) -> Array:
    return gaussian.diagonal_kl_to_standard_normal(posterior.mean, posterior.log_var)


@register_kl(DiagonalGaussianPosterior, DiagonalGaussianPrior)
def _diagonal_to_diagonal(
    posterior: DiagonalGaussianPosterior, prior: Prior, prior_params: PyTree
) -> Array:
    return gaussian.diagonal_kl_divergence(
        posterior.mean, posterior.log_var, prior_params["mean"], prior_params["log_var"]
    )


@register_kl(BernoulliPosterior, FactorizedBernoulliPrior)
def _bernoulli_to_bernoulli(
    posterior: BernoulliPosterior, prior: Prior, prior_params: PyTree
) -> Array:
    return bernoulli.kl_divergence(posterior.logits, prior_params["logits"])


@register_kl(PointMassPosterior, object)
def _point_mass_to_any(
    posterior: PointMassPosterior, prior: Prior, prior_params: PyTree
) -> Array:
    """0 by definition: the objective of an autoencoder has no such term."""
    return jnp.zeros(posterior.mean.shape[:-1], posterior.mean.dtype)
