"""Estimators for discrete latents: independent bits, q = prod Bernoulli(sigmoid(l)).

`score_function`, `mean_baseline`, `leave_one_out` and `optimal_baseline` serve them as
they serve any distribution. Those here know more about a bit, or replace it by
something that has a derivative.
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
    check_num_samples,
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
    """E_q[f(z)] itself and its gradient, by a sum over all values of z.

    sum_z q(z) f(z). No noise: the yardstick of the others. Cost: f, 2^L times.

    Args:
      integrand: f, called with latents `[2^L, B, L]` and their log q; returns
        `[2^L, B]` or a pytree of such.
      posterior: q, a batch of B distributions with a `support()` of few states.
      key: not used; there is nothing to draw.
      num_samples: not used.
      reduction: must be the mean.
      has_aux: whether f returns auxiliary outputs too (`types.Estimator`).

    Returns:
      The expectations, `[B]` for each part.

    Raises:
      ValueError: q has no `support`, or one of more than 2^12 states; another
        reduction.

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
    # What the examples share leads with an axis of 1.
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
    """The gradient through a relaxed sample, sigmoid((l + logistic noise) / t).

    d/d l f(sigmoid((l + logit u) / t)), the two-class Gumbel-softmax or binary concrete
    distribution (Jang, Gu & Poole 2017; Maddison, Mnih & Teh 2017). Biased: it is the
    gradient of another expectation; the bias vanishes with t, while the variance grows
    like 1 / t. The value and the gradient of what f holds are those at the bits.
    Cost: f twice a sample, and its derivative.

    Args:
      integrand: f, defined and differentiable between 0 and 1.
      posterior: q, a batch of B factorised Bernoulli distributions.
      key: PRNG key, consumed once.
      num_samples: samples S.
      reduction: from `[S, B]` to `[B]`.
      has_aux: whether f returns auxiliary outputs too (`types.Estimator`).
      temperature: t, positive.
      hard: take f's derivative at the bit instead of its relaxation (straight-through
        Gumbel-softmax); f is then evaluated at bits only, and biased at every t.

    Returns:
      The estimates, `[B]` for each `[S, B]`.

    Raises:
      ValueError: `num_samples` below 1; a temperature of 0 or less; q is not Bernoulli.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax.estimators import gumbel_softmax
      >>> from vae_jax.distributions import BernoulliDistribution
      >>> q = BernoulliDistribution(jnp.zeros((2, 3)))
      >>> gumbel_softmax(lambda z, _: z.sum(-1), q, jax.random.key(0)).shape
      (2,)
    """
    check_num_samples(num_samples)
    check_temperature(temperature)
    posterior = require_type(posterior, BernoulliDistribution, "gumbel_softmax")
    shape = (num_samples, *posterior.logits.shape)
    shifted = posterior.logits + jax.random.logistic(key, shape, posterior.logits.dtype)
    relaxed = jax.nn.sigmoid(shifted / temperature)
    bits = _bits(shifted)
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
    """The gradient as if the bit were its probability: d f / d z at the bit, d p / d l.

    sum_d (d f / d z_d)(z) p_d (1 - p_d) (Bengio, Leonard & Courville 2013). Biased,
    unless f is linear in each bit and does not couple them. Cost: f once a sample, and
    its derivative.

    Args:
      integrand: f, with a derivative at 0 and 1.
      posterior: q, a batch of B factorised Bernoulli distributions.
      key: PRNG key, consumed once.
      num_samples: samples S.
      reduction: from `[S, B]` to `[B]`.
      has_aux: whether f returns auxiliary outputs too (`types.Estimator`).

    Returns:
      The estimates, `[B]` for each `[S, B]`.

    Raises:
      ValueError: `num_samples` below 1; q is not Bernoulli.

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
    """The score function with the relaxed sample as its control variate.

    [f(b) - c f(s(z'))] d log q(b) + c d f(s(z)) - c d f(s(z')), where b = 1[z > 0] with
    z = l + logistic noise, z' is distributed like z given b, and s(z) = sigmoid(z / t)
    (Tucker, Mnih, Maddison, Lawson & Sohl-Dickstein 2017). z and z' share their noise:
    they are one number and differ by how l moves them. Unbiased for every t and c,
    which their paper tunes to the least variance. Cost: f twice a sample, and its
    derivative once.

    Args:
      integrand: f, defined and differentiable between 0 and 1.
      posterior: q, a batch of B factorised Bernoulli distributions.
      key: PRNG key, consumed once.
      num_samples: samples S.
      reduction: must be the mean.
      has_aux: whether f returns auxiliary outputs too (`types.Estimator`).
      temperature: t, positive.
      scale: c; 0 leaves `score_function`.

    Returns:
      The estimates, `[B]` for each `[S, B]`.

    Raises:
      ValueError: `num_samples` below 1; q is not Bernoulli; another reduction.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax.estimators import rebar
      >>> from vae_jax.distributions import BernoulliDistribution
      >>> q = BernoulliDistribution(jnp.zeros((2, 3)))
      >>> rebar(lambda z, _: z.sum(-1), q, jax.random.key(0)).shape
      (2,)
    """
    check_num_samples(num_samples)
    require_mean(reduction, "rebar", "leave_one_out")
    check_temperature(temperature)
    posterior = require_type(posterior, BernoulliDistribution, "rebar")
    logits = posterior.logits
    shape = (num_samples, *logits.shape)
    free = logits + jax.random.logistic(key, shape, logits.dtype)
    bits = _bits(free)
    moved = _given_bits(free, bits, logits)
    free_path, given_path = (jax.nn.sigmoid(z / temperature) for z in (free, moved))
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
    """The same z, as a function of the logits at a fixed bit (their appendix C).

    With v uniform, z' = softplus(logit v + softplus(l)) for a one and
    - softplus(- logit v + softplus(-l)) for a zero; v is what makes it z.
    """
    size = jnp.abs(z)
    inverse = size + jnp.log(-jnp.expm1(-size))  # Of softplus.
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
    """Augment-REINFORCE-merge: an antithetic pair of bits from one uniform number.

    [f(1[u > 1 - p]) - f(1[u < p])] (u - 1/2) by the logits (Yin & Zhou 2019). Unbiased.
    The value is the mean over the pair. Cost: f twice a sample; `disarm` costs the same
    and has no larger variance.

    Args:
      integrand: f, called with latents `[S, B, L]` and their log q `[S, B]`; returns
        `[S, B]` or a pytree of such.
      posterior: q, a batch of B factorised Bernoulli distributions.
      key: PRNG key, consumed once.
      num_samples: pairs S.
      reduction: must be the mean.
      has_aux: whether f returns auxiliary outputs too (`types.Estimator`).

    Returns:
      The estimates, `[B]` for each `[S, B]`.

    Raises:
      ValueError: `num_samples` below 1; q is not Bernoulli; another reduction.

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
    """Antithetic bits with the uniform number integrated out.

    1/2 [f(b) - f(b')] (-1)^b' 1[b != b'] sigmoid(|l|) for each logit l (Dong, Mnih &
    Tucker 2020; with U2G of Yin, Ho, Yan, Qian & Zhou 2020). Unbiased, its variance
    never above that of `arm`, nor, for one bit, above `leave_one_out` with two samples.
    The value is the mean over the pair. Cost: f twice a sample. The first choice for
    bits.

    Args:
      integrand: f, as in `arm`.
      posterior: q, a batch of B factorised Bernoulli distributions.
      key: PRNG key, consumed once.
      num_samples: pairs S.
      reduction: must be the mean.
      has_aux: whether f returns auxiliary outputs too (`types.Estimator`).

    Returns:
      The estimates, `[B]` for each `[S, B]`.

    Raises:
      ValueError: `num_samples` below 1; q is not Bernoulli; another reduction.

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
    """The gradient sum_d [f(b) - f(b')] weight_d, b = 1[u < p], b' = 1[1 - u < p]."""
    check_num_samples(num_samples)
    require_mean(reduction, name, "leave_one_out")
    posterior = require_type(posterior, BernoulliDistribution, name)
    logits = jax.lax.stop_gradient(posterior.logits)
    probability = jax.nn.sigmoid(logits)
    u = jax.random.uniform(key, (num_samples, *logits.shape), logits.dtype)
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
    """R(f) at the bits, its gradient f's derivative at a point along a path."""
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
