"""Estimators for discrete latents: independent bits, q = prod Bernoulli(sigmoid(l)).

`score_function`, `mean_baseline`, `leave_one_out` and `optimal_baseline` apply to any
distribution. The estimators in this module exploit the structure of Bernoulli
variables or replace them by a differentiable relaxation.
"""

import jax
import jax.numpy as jnp

from vae_jax.distributions import BernoulliDistribution
from vae_jax.estimators.contract import (
    Integrand,
    Reduction,
    along_parameters,
    along_path,
    at_frozen,
    check_temperature,
    constant_draws,
    latent_gradients,
    reduction_gradient,
    require_mean,
    require_type,
    sample_mean,
    values_of,
    with_auxiliary,
    with_surrogate,
)
from vae_jax.options import require_at_least
from vae_jax.prng import in_32_bits
from vae_jax.types import Array, Key, Latents, Posterior, PyTree


def exact_enumeration(
    integrand: Integrand,
    posterior: Posterior,
    key: Key,
    *,
    num_samples: int = 1,
    reduction: Reduction = sample_mean,
    has_aux: bool = False,
) -> PyTree:
    """Exact E_q[f(z)] and its gradient, by summation over all values of z.

        E_q[f(z)] = sum_z q(z) f(z)

    Deterministic; the reference for the other estimators. Cost: 2^L evaluations of f.

    Args:
      integrand: f, called with latents `[2^L, B, L]` and their log q; returns
        `[2^L, B]` or a pytree of such arrays.
      posterior: q, a batch of B enumerable distributions (`enumerate_support`).
      key: unused.
      num_samples: unused.
      reduction: must be the mean.
      has_aux: whether f also returns auxiliary outputs (`types.Estimator`).

    Returns:
      The expectations, `[B]` for each part.

    Raises:
      ValueError: q is not enumerable, or has more than 2^12 states; `reduction` is not
        the mean.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax.estimators import exact_enumeration
      >>> from vae_jax.distributions import BernoulliDistribution
      >>> q = BernoulliDistribution(jnp.zeros((1, 3)))
      >>> print(exact_enumeration(lambda z, _: z.sum(-1), q, jax.random.key(0)))
      [1.5]
    """
    require_mean(reduction, "exact_enumeration", "leave_one_out")
    if not posterior.is_enumerable:
        raise ValueError(
            f"exact_enumeration needs the support of q, and {type(posterior).__name__} "
            "has none"
        )
    # Arrays shared by all examples have a leading axis of size 1.
    batch_size = max(leaf.shape[0] for leaf in jax.tree.leaves(posterior))
    z = posterior.enumerate_support()
    z = jnp.broadcast_to(z, (z.shape[0], batch_size, *z.shape[2:]))
    log_q = posterior.log_prob(z)

    def expectation(values: Array) -> Array:
        return jnp.sum(jnp.exp(log_q) * values, axis=0)

    values, aux = values_of(integrand, z, log_q, has_aux)
    values = jax.tree.map(expectation, values)
    return with_auxiliary(values, aux, has_aux, mean=expectation)


def gumbel_softmax(
    integrand: Integrand,
    posterior: Posterior,
    key: Key,
    *,
    num_samples: int = 1,
    reduction: Reduction = sample_mean,
    has_aux: bool = False,
    temperature: float | Array = 0.5,
    hard: bool = False,
) -> PyTree:
    """Gradient through a relaxed sample, the two-class Gumbel-softmax distribution.

        g = 1/S sum_s d/d l f(sigmoid((l + logit(u_s)) / t))

    with u_s uniform on (0, 1), also called the binary concrete distribution (Jang, Gu &
    Poole 2017; Maddison, Mnih & Teh 2017). Biased, since it is the gradient of an
    expectation under the relaxed distribution; as t decreases, the bias vanishes and
    the variance grows like 1 / t. The value, and the gradient with respect to
    parameters inside f, are evaluated at the bits. Cost: two evaluations of f per
    sample, and one of its derivative.

    Args:
      integrand: f, defined and differentiable between 0 and 1.
      posterior: q, a batch of B factorised Bernoulli distributions.
      key: PRNG key, consumed once.
      num_samples: number S of samples.
      reduction: reduction of `[S, B]` to `[B]`.
      has_aux: whether f also returns auxiliary outputs (`types.Estimator`).
      temperature: t, positive.
      hard: evaluate the derivative of f at the bit instead of at its relaxation
        (straight-through Gumbel-softmax). f is then evaluated only at bits, and the
        gradient is biased at every t.

    Returns:
      The estimates, `[B]` for each `[S, B]`.

    Raises:
      ValueError: `num_samples` is below 1; `temperature` is not positive; q is not
        Bernoulli.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax.estimators import gumbel_softmax
      >>> from vae_jax.distributions import BernoulliDistribution
      >>> q = BernoulliDistribution(jnp.zeros((2, 3)))
      >>> gumbel_softmax(lambda z, _: z.sum(-1), q, jax.random.key(0)).shape
      (2,)
    """
    require_at_least("num_samples", num_samples)
    check_temperature(temperature)
    posterior = require_type(posterior, BernoulliDistribution, "gumbel_softmax")
    shape = (num_samples, *posterior.logits.shape)
    logits = in_32_bits(posterior.logits)
    shifted = logits + jax.random.logistic(key, shape, logits.dtype)
    dtype = posterior.logits.dtype
    relaxed = jax.nn.sigmoid(shifted / temperature).astype(dtype)
    bits = _bits(shifted).astype(dtype)
    point = bits if hard else relaxed
    return _through(integrand, posterior, bits, point, relaxed, reduction, has_aux)


def straight_through(
    integrand: Integrand,
    posterior: Posterior,
    key: Key,
    *,
    num_samples: int = 1,
    reduction: Reduction = sample_mean,
    has_aux: bool = False,
) -> PyTree:
    """Straight-through gradient: the bit is differentiated as its probability.

        g_d = 1/S sum_s p_d (1 - p_d) d/d z_sd f(z_s)

    for each logit l_d, with p = sigmoid(l) (Bengio, Leonard & Courville 2013). Biased
    unless f is linear in the bits, without interactions. Cost: one evaluation of f and
    one of its derivative per sample.

    Args:
      integrand: f, with a derivative at 0 and 1.
      posterior: q, a batch of B factorised Bernoulli distributions.
      key: PRNG key, consumed once.
      num_samples: number S of samples.
      reduction: reduction of `[S, B]` to `[B]`.
      has_aux: whether f also returns auxiliary outputs (`types.Estimator`).

    Returns:
      The estimates, `[B]` for each `[S, B]`.

    Raises:
      ValueError: `num_samples` is below 1; q is not Bernoulli.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax.estimators import straight_through
      >>> from vae_jax.distributions import BernoulliDistribution
      >>> def expectation(logits):
      ...     q = BernoulliDistribution(logits)
      ...     return straight_through(lambda z, _: z[..., 0], q, jax.random.key(0))[0]
      >>> print(jax.grad(expectation)(jnp.zeros((1, 1))))
      [[0.25]]
    """
    name = "straight_through"
    posterior = require_type(posterior, BernoulliDistribution, name)
    bits, _ = constant_draws(posterior, key, num_samples, name)
    path = jnp.broadcast_to(posterior.mean, bits.shape)
    return _through(integrand, posterior, bits, bits, path, reduction, has_aux)


def rebar(
    integrand: Integrand,
    posterior: Posterior,
    key: Key,
    *,
    num_samples: int = 1,
    reduction: Reduction = sample_mean,
    has_aux: bool = False,
    temperature: float | Array = 0.5,
    scale: float | Array = 1.0,
) -> PyTree:
    """REBAR: score function with a control variate from the relaxed sample.

        g = [f(b) - c f(s(z'))] d/d l log q(b) + c d/d l [f(s(z)) - f(s(z'))]
        s(z) = sigmoid(z / t)

    where b = 1[z > 0] with z = l + logistic noise, and z' is distributed like z given b
    (Tucker, Mnih, Maddison, Lawson & Sohl-Dickstein 2017). z and z' use the same noise:
    they are equal in value, but depend on l differently. Unbiased for every t and c,
    which the paper tunes to minimise the variance. Cost: two evaluations of f per
    sample, and one of its derivative.

    Args:
      integrand: f, defined and differentiable between 0 and 1.
      posterior: q, a batch of B factorised Bernoulli distributions.
      key: PRNG key, consumed once.
      num_samples: number S of samples.
      reduction: must be the mean.
      has_aux: whether f also returns auxiliary outputs (`types.Estimator`).
      temperature: t, positive.
      scale: c; 0 gives `score_function`.

    Returns:
      The estimates, `[B]` for each `[S, B]`.

    Raises:
      ValueError: `num_samples` is below 1; `temperature` is not positive; q is not
        Bernoulli; `reduction` is not the mean.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax.estimators import rebar
      >>> from vae_jax.distributions import BernoulliDistribution
      >>> q = BernoulliDistribution(jnp.zeros((2, 3)))
      >>> rebar(lambda z, _: z.sum(-1), q, jax.random.key(0)).shape
      (2,)
    """
    require_at_least("num_samples", num_samples)
    require_mean(reduction, "rebar", "leave_one_out")
    check_temperature(temperature)
    posterior = require_type(posterior, BernoulliDistribution, "rebar")
    logits, dtype = in_32_bits(posterior.logits), posterior.logits.dtype
    shape = (num_samples, *logits.shape)
    free = logits + jax.random.logistic(key, shape, logits.dtype)
    bits = _bits(free)
    moved = _given_bits(free, bits, logits)
    bits = bits.astype(dtype)
    free_path, given_path = (
        jax.nn.sigmoid(z / temperature).astype(dtype) for z in (free, moved)
    )
    controls, gradients, _ = latent_gradients(
        at_frozen(integrand, posterior, has_aux),
        free_path,
        reduction_gradient(sample_mean),
    )
    log_q = posterior.log_prob(bits)
    values, aux = values_of(integrand, bits, log_q, has_aux)
    values, structure = jax.tree.flatten(values)

    def estimate(value: Array, control: Array, gradient: Array) -> Array:
        weight = jax.lax.stop_gradient(value - scale * control)
        path = along_path(gradient, free_path - given_path)
        return with_surrogate(
            sample_mean(value), sample_mean(weight * log_q) + scale * path
        )

    parts = zip(values, jax.tree.leaves(controls), gradients, strict=True)
    estimates = jax.tree.unflatten(structure, [estimate(*part) for part in parts])
    return with_auxiliary(estimates, aux, has_aux)


def _given_bits(z: Array, bits: Array, logits: Array) -> Array:
    """Return z as a function of the logits given the bits (appendix C of the paper).

    With v uniform, z' = softplus(logit v + softplus(l)) for a one and
    - softplus(- logit v + softplus(-l)) for a zero; v is chosen such that z' = z.
    """
    size = jnp.abs(z)
    inverse = size + jnp.log(-jnp.expm1(-size))  # Inverse of softplus.
    up, down = jax.nn.softplus(logits), jax.nn.softplus(-logits)
    noise = jnp.where(bits == 1, inverse - up, down - inverse)
    noise = jax.lax.stop_gradient(noise)
    return jnp.where(
        bits == 1, jax.nn.softplus(noise + up), -jax.nn.softplus(down - noise)
    )


def arm(
    integrand: Integrand,
    posterior: Posterior,
    key: Key,
    *,
    num_samples: int = 1,
    reduction: Reduction = sample_mean,
    has_aux: bool = False,
) -> PyTree:
    """Augment-REINFORCE-merge (ARM): an antithetic pair of bits per uniform number.

        g = [f(1[u > 1 - p]) - f(1[u < p])] (u - 1/2)

    for the logits l of p = sigmoid(l), with u uniform on (0, 1) (Yin & Zhou 2019).
    Unbiased. The value is the mean over the pair. Cost: two evaluations of f per pair.
    `disarm` has the same cost and no larger variance.

    Args:
      integrand: f, called with the latents of all pairs `[2 S, B, L]` and their log q
        `[2 S, B]`; returns `[2 S, B]` or a pytree of such arrays.
      posterior: q, a batch of B factorised Bernoulli distributions.
      key: PRNG key, consumed once.
      num_samples: number S of pairs.
      reduction: must be the mean.
      has_aux: whether f also returns auxiliary outputs (`types.Estimator`).

    Returns:
      The estimates, `[B]` for each `[2 S, B]`.

    Raises:
      ValueError: `num_samples` is below 1; q is not Bernoulli; `reduction` is not the
        mean.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax.estimators import arm
      >>> from vae_jax.distributions import BernoulliDistribution
      >>> q = BernoulliDistribution(jnp.zeros((2, 3)))
      >>> arm(lambda z, _: z.sum(-1), q, jax.random.key(0)).shape
      (2,)
    """

    def weights(u: Array, bits: Array, antithetic: Array, logits: Array) -> Array:
        return 0.5 - u

    return _antithetic(
        integrand, posterior, key, num_samples, reduction, has_aux, weights, "arm"
    )


def disarm(
    integrand: Integrand,
    posterior: Posterior,
    key: Key,
    *,
    num_samples: int = 1,
    reduction: Reduction = sample_mean,
    has_aux: bool = False,
) -> PyTree:
    """DisARM: antithetic pairs of bits with the uniform number integrated out.

        g_d = 1/2 [f(b) - f(b')] (-1)^b'_d 1[b_d != b'_d] sigmoid(|l_d|)

    for each logit l_d, with the pair of bits b = 1[u < p] and b' = 1[1 - u < p] (Dong,
    Mnih & Tucker 2020; also U2G of Yin, Ho, Yan, Qian & Zhou 2020). Unbiased. The
    variance is at most that of `arm` and, for a single bit, at most that of
    `leave_one_out` with two samples. The value is the mean over the pair. Cost: two
    evaluations of f per pair. It is the default choice for Bernoulli latents.

    Args:
      integrand: f, as in `arm`.
      posterior: q, a batch of B factorised Bernoulli distributions.
      key: PRNG key, consumed once.
      num_samples: number S of pairs.
      reduction: must be the mean.
      has_aux: whether f also returns auxiliary outputs (`types.Estimator`).

    Returns:
      The estimates, `[B]` for each `[2 S, B]`.

    Raises:
      ValueError: `num_samples` is below 1; q is not Bernoulli; `reduction` is not the
        mean.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax.estimators import disarm
      >>> from vae_jax.distributions import BernoulliDistribution
      >>> def expectation(logits):
      ...     q = BernoulliDistribution(logits)
      ...     return disarm(lambda z, _: z[..., 0], q, jax.random.key(0))[0]
      >>> print(jax.grad(expectation)(jnp.zeros((1, 1))))
      [[0.25]]
    """

    def weights(u: Array, bits: Array, antithetic: Array, logits: Array) -> Array:
        return 0.5 * (bits - antithetic) * jax.nn.sigmoid(jnp.abs(logits))

    return _antithetic(
        integrand, posterior, key, num_samples, reduction, has_aux, weights, "disarm"
    )


def _antithetic(
    integrand: Integrand,
    posterior: Posterior,
    key: Key,
    num_samples: int,
    reduction: Reduction,
    has_aux: bool,
    weights,
    name: str,
) -> PyTree:
    """Gradient [f(b) - f(b')] weight_d per logit; b = 1[u < p], b' = 1[1 - u < p]."""
    require_at_least("num_samples", num_samples)
    require_mean(reduction, name, "leave_one_out")
    posterior = require_type(posterior, BernoulliDistribution, name)
    logits = jax.lax.stop_gradient(posterior.logits)
    probability = jax.nn.sigmoid(in_32_bits(logits))
    u = jax.random.uniform(key, (num_samples, *logits.shape), probability.dtype)
    bits, antithetic = (
        (uniform < probability).astype(logits.dtype) for uniform in (u, 1 - u)
    )
    weight = weights(u, bits, antithetic, logits)
    both = jnp.concatenate([bits, antithetic])
    values, aux = values_of(integrand, both, posterior.log_prob(both), has_aux)

    def estimate(values: Array) -> Array:
        difference = values[:num_samples] - values[num_samples:]
        gradients = sample_mean(difference[..., None] * weight)
        surrogate = along_parameters(BernoulliDistribution(gradients), posterior)
        return with_surrogate(sample_mean(values), surrogate)

    return with_auxiliary(jax.tree.map(estimate, values), aux, has_aux)


def _through(
    integrand: Integrand,
    posterior: Posterior,
    bits: Latents,
    point: Latents,
    path: Latents,
    reduction: Reduction,
    has_aux: bool,
) -> PyTree:
    """R(f) at the bits; its gradient is f's derivative at `point` times d `path`."""
    _, gradients, _ = latent_gradients(
        at_frozen(integrand, posterior, has_aux), point, reduction_gradient(reduction)
    )
    values, aux = values_of(integrand, bits, posterior.log_prob(bits), has_aux)
    values, structure = jax.tree.flatten(values)
    estimates = [
        with_surrogate(reduction(value), along_path(gradient, path))
        for value, gradient in zip(values, gradients, strict=True)
    ]
    return with_auxiliary(jax.tree.unflatten(structure, estimates), aux, has_aux)


def _bits(shifted: Array) -> Array:
    return (jax.lax.stop_gradient(shifted) > 0).astype(shifted.dtype)
