"""Independent Bernoulli variables, parameterized by their logits.

Log-probabilities are computed from logits without forming probabilities:

    log sigmoid(l) = min(l, 0) - log1p(exp(-|l|))

All values are accurate to rounding error, and all gradients finite, for any finite
logits.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from vae_jax.distributions.rounding import without_negative
from vae_jax.distributions.support import UNIT_INTERVAL
from vae_jax.prng import in_32_bits
from vae_jax.types import Array, Distribution, Key

# 4096 states, which a decoder can process in one call.
MAX_ENUMERABLE_BITS = 12


@jax.custom_jvp
def _log_prob(x: Array, logits: Array) -> Array:
    """Elementwise x log p + (1 - x) log(1 - p), p = sigmoid(logits)."""
    return (
        jnp.minimum(logits, 0) - (1 - x) * logits - jnp.log1p(jnp.exp(-jnp.abs(logits)))
    )


@_log_prob.defjvp
def _log_prob_jvp(primals, tangents):
    """Custom derivative x - p by the logits: |l| and min have no derivative at 0."""
    x, logits = primals
    x_dot, logits_dot = tangents
    gradient = x - jax.nn.sigmoid(logits)
    return _log_prob(x, logits), gradient * logits_dot + logits * x_dot


def log_prob(x: Array, logits: Array) -> Array:
    """Log-probability of independent Bernoulli variables in nats, over the last axis.

        log p(x) = sum_d [x_d log p_d + (1 - x_d) log(1 - p_d)]

    with p = sigmoid(logits) (Kingma & Welling 2014, appendix C.1, eq. 11). For `x`
    strictly between 0 and 1, this is a negative cross-entropy rather than a
    log-probability.

    Args:
      x: outcomes in [0, 1], `[..., D]`.
      logits: log-odds, `[..., D]`, broadcasting with `x`.

    Returns:
      Log-probabilities, `[...]`; NaN for outcomes outside [0, 1].

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.distributions import bernoulli
      >>> print(bernoulli.log_prob(jnp.array([1.0, 0.0]), jnp.array([1e3, 1e3])))
      -1000.0
    """
    x = UNIT_INTERVAL.nan_outside(jnp.asarray(x, logits.dtype))
    shape = jnp.broadcast_shapes(x.shape, logits.shape)
    # XLA sums a matrix faster than an array with a leading axis of one sample.
    x, logits = (
        jnp.broadcast_to(array, shape).reshape(-1, shape[-1]) for array in (x, logits)
    )
    return jnp.sum(_log_prob(x, logits), axis=-1).reshape(shape[:-1])


def sample(logits: Array, key: Key) -> Array:
    """Draw 0 or 1 for every logit, in the dtype of the logits.

    Args:
      logits: log-odds, `[..., D]`.
      key: PRNG key, consumed once.

    Returns:
      Draws, `[..., D]`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax.distributions import bernoulli
      >>> print(bernoulli.sample(jnp.array([-1e3, 1e3]), jax.random.key(0)))
      [0. 1.]
    """
    draws = jax.random.bernoulli(key, jax.nn.sigmoid(in_32_bits(logits)))
    return draws.astype(logits.dtype)


def kl_divergence(logits_0: Array, logits_1: Array) -> Array:
    """KL between products of Bernoulli variables in nats, summed over the last axis.

        KL(q || p) = sum_d [q_d log(q_d / p_d) + (1 - q_d) log((1 - q_d) / (1 - p_d))]

    Args:
      logits_0: log-odds of p, `[..., D]`.
      logits_1: log-odds of q, broadcasting with the first.

    Returns:
      Divergences, `[...]`, non-negative.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.distributions import bernoulli
      >>> print(bernoulli.kl_divergence(jnp.ones(3), jnp.ones(3)))
      0.0
    """
    log_ratio_one = jax.nn.log_sigmoid(logits_0) - jax.nn.log_sigmoid(logits_1)
    log_ratio_zero = jax.nn.log_sigmoid(-logits_0) - jax.nn.log_sigmoid(-logits_1)
    probability = jax.nn.sigmoid(logits_0)
    terms = probability * log_ratio_one + jax.nn.sigmoid(-logits_0) * log_ratio_zero
    return without_negative(jnp.sum(terms, axis=-1))


def entropy(logits: Array) -> Array:
    """Entropy of a product of Bernoulli variables in nats, summed over the last axis.

        H = -sum_d [p_d log p_d + (1 - p_d) log(1 - p_d)]

    with p = sigmoid(logits).

    Args:
      logits: log-odds, `[..., D]`.

    Returns:
      Entropies, `[...]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.distributions import bernoulli
      >>> print(f"{bernoulli.entropy(jnp.zeros(1)):.6f}")
      0.693147
    """
    rarer = -jnp.abs(logits)  # Even in the logit; no cancellation for negative ones.
    return jnp.sum(jax.nn.softplus(rarer) - rarer * jax.nn.sigmoid(rarer), axis=-1)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BernoulliDistribution(Distribution):
    """Independent bits.

        p(v) = prod_l Bernoulli(v_l; sigmoid(logits_l))

    No gradient flows through the samples; see `estimators` for discrete latents.
    `log_prob` accepts all of [0, 1], so that grey values are scored by a cross-entropy.

    Attributes:
      logits: log-odds, `[..., L]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.distributions import BernoulliDistribution
      >>> print(BernoulliDistribution(jnp.zeros((1, 2))).mean)
      [[0.5 0.5]]
    """

    logits: Array
    has_entropy: ClassVar[bool] = True
    mean_is_exact = True
    is_reparameterizable: ClassVar[bool] = False
    is_enumerable: ClassVar[bool] = True
    factorizes = True

    @property
    def mean(self) -> Array:
        """Probabilities of a one, `[..., L]`."""
        return jax.nn.sigmoid(self.logits)

    def sample(self, key: Key, num_samples: int) -> Array:
        """See `Distribution.sample`; zeros and ones."""
        logits = jnp.broadcast_to(self.logits, (num_samples, *self.logits.shape))
        return sample(jax.lax.stop_gradient(logits), key)

    def log_prob(self, value: Array) -> Array:
        """See `Distribution.log_prob`."""
        UNIT_INTERVAL.require(value)
        return log_prob(value, self.logits)

    def log_prob_per_dimension(self, value: Array) -> Array:
        """See `Distribution.log_prob_per_dimension`."""
        value = UNIT_INTERVAL.nan_outside(jnp.asarray(value, self.logits.dtype))
        return _log_prob(value, self.logits)

    def entropy(self) -> Array:
        """See `Distribution.entropy`."""
        return entropy(self.logits)

    def enumerate_support(self) -> Array:
        """All values of L bits, `[2^L, 1, L]`.

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
