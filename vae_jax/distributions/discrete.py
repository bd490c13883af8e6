"""Information measures of finite distributions, from probabilities, in nats.

A distribution is an array whose last axis holds the probabilities of K outcomes.
Impossible outcomes contribute 0 to a mean: 0 log 0 = 0. `categorical` provides the same
measures from logits, for networks. Cover & Thomas 2006, chapter 2.
"""

import chex
import jax
import jax.numpy as jnp

from vae_jax.types import Array


def information(probability: Array) -> Array:
    """Information content of an event in nats; infinite for p = 0.

        I = -log p

    Args:
      probability: p, any shape.

    Returns:
      The same shape.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.distributions import discrete
      >>> print(discrete.information(jnp.array(0.5)).round(6))
      0.693147
    """
    return -jnp.log(probability)


def entropy(probabilities: Array) -> Array:
    """Entropy in nats.

        H(p) = -sum_k p_k log p_k

    (Cover & Thomas 2006, eq. 2.1).

    Args:
      probabilities: `[..., K]`.

    Returns:
      `[...]`, between 0 and log K.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.distributions import discrete
      >>> print(discrete.entropy(jnp.array([0.5, 0.5, 0.0])).round(6))
      0.693147
    """
    return cross_entropy(probabilities, probabilities)


def cross_entropy(probabilities_0: Array, probabilities_1: Array) -> Array:
    """Cross-entropy in nats: the entropy of p plus KL(p || q).

        H(p, q) = -sum_k p_k log q_k

    Args:
      probabilities_0: p, the distribution of the expectation, `[..., K]`.
      probabilities_1: q, `[..., K]`.

    Returns:
      `[...]`, infinite if q_k = 0 and p_k > 0 for some k.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.distributions import discrete
      >>> p, q = jnp.array([1.0, 0.0]), jnp.array([0.5, 0.5])
      >>> print(discrete.cross_entropy(p, q).round(6))
      0.693147
    """
    chex.assert_equal(probabilities_0.shape[-1], probabilities_1.shape[-1])
    return _mean_where_possible(probabilities_0, (probabilities_1, -1))


def kl_divergence(probabilities_0: Array, probabilities_1: Array) -> Array:
    """Kullback-Leibler divergence in nats.

        KL(p || q) = sum_k p_k log(p_k / q_k)

    (Cover & Thomas 2006, eq. 2.26). Since probabilities sum to 1 only up to rounding
    error, the result for nearly equal distributions may be negative by a similar amount
    (3e-7 in float32).

    Args:
      probabilities_0: p, `[..., K]`.
      probabilities_1: q, `[..., K]`.

    Returns:
      `[...]`, infinite if q_k = 0 and p_k > 0 for some k.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.distributions import discrete
      >>> p, uniform = jnp.array([0.7, 0.2, 0.1]), jnp.ones(3) / 3
      >>> print(discrete.kl_divergence(uniform, p).round(6))
      0.324287
      >>> print(discrete.kl_divergence(p, uniform).round(6))
      0.296794
    """
    chex.assert_equal(probabilities_0.shape[-1], probabilities_1.shape[-1])
    return _mean_where_possible(
        probabilities_0, (probabilities_0, 1), (probabilities_1, -1)
    )


def jensen_shannon_divergence(probabilities_0: Array, probabilities_1: Array) -> Array:
    """Jensen-Shannon divergence in nats.

        JS(p, q) = 1/2 KL(p || m) + 1/2 KL(q || m)

    with m = (p + q) / 2 (Lin 1991). Symmetric in p and q, and at most log 2.

    Args:
      probabilities_0: p, `[..., K]`.
      probabilities_1: q, `[..., K]`.

    Returns:
      `[...]`, between 0 and log 2.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.distributions import discrete
      >>> p, q = jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])
      >>> print(discrete.jensen_shannon_divergence(p, q).round(6))
      0.693147
    """
    mean = (probabilities_0 + probabilities_1) / 2
    return 0.5 * (
        kl_divergence(probabilities_0, mean) + kl_divergence(probabilities_1, mean)
    )


def posterior(log_prior: Array, log_likelihood: Array) -> tuple[Array, Array]:
    """Bayes' rule for a latent with K values: p(z|x) and the log evidence in nats.

        p(z|x) = (p(x|z) p(z)) / p(x)
        p(x) = sum_z p(x|z) p(z)

    Computed with logarithms to avoid underflow.

    Args:
      log_prior: log p(z), `[..., K]`, with probabilities that sum to 1.
      log_likelihood: log p(x|z), `[..., K]`; the leading axes broadcast.

    Returns:
      Probabilities p(z|x), `[..., K]`, and log p(x), `[...]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.distributions import discrete
      >>> is_odd = jnp.array([1.0, 0, 1, 0, 1, 0])  # p(x is odd | z) for a die
      >>> given_odd, log_evidence = discrete.posterior(
      ...     jnp.log(jnp.ones(6) / 6), jnp.log(is_odd)
      ... )
      >>> print(given_odd[2].round(6), jnp.exp(log_evidence).round(6))
      0.333333 0.5
    """
    log_joint = log_prior + log_likelihood
    log_evidence = jax.nn.logsumexp(log_joint, axis=-1)
    return jax.nn.softmax(log_joint, axis=-1), log_evidence


def _mean_where_possible(probabilities: Array, *factors: tuple[Array, int]) -> Array:
    """Sum of p_k sum_i sign_i log factor_ik over the k with p_k > 0, without NaN.

    Impossible outcomes are masked before the logarithm, so that the gradient is finite.
    """
    possible = probabilities > 0
    values = sum(sign * jnp.log(jnp.where(possible, f, 1)) for f, sign in factors)
    return jnp.sum(jnp.where(possible, probabilities * values, 0), axis=-1)
