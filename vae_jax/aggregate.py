"""Aggregate posterior of a batch compared with the prior: KL decomposition and MMD.

    q(z) = 1/B sum_b q(z|x_b)

`penalties.py` turns these quantities into training penalties;
`diagnostics.aggregate_posterior` evaluates them on a data set. If no gradient flows
through a sample (bits, the component of a mixture), a score-function gradient is used.
"""

from functools import reduce
from operator import add
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from vae_jax.distributions import BernoulliDistribution, DiagonalGaussianDistribution
from vae_jax.estimators import leave_one_out, reparameterization
from vae_jax.estimators.contract import constant_draws, with_surrogate
from vae_jax.model import build_prior, draw_prior
from vae_jax.spec import Params
from vae_jax.types import Array, Key, Latents, Posterior

# Scales of the kernel in units of 2 L, as in the released code of Tolstikhin et al.
KERNEL_SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class KLDecomposition(NamedTuple):
    """Decomposition of E_x KL(q(z|x) || p(z)), in nats; all fields are scalars.

    Attributes:
      mutual_information: mutual information of x and z, E[log q(z|x) - log q(z)].
      total_correlation: total correlation of the units,
        E[log q(z) - sum_j log q(z_j)].
      unit_kl: E[sum_j log q(z_j) - log p(z)], the sum of the units' KLs if the prior
        factorizes over units.
    """

    mutual_information: Array
    total_correlation: Array
    unit_kl: Array


def kl_decomposition(params: Params, posterior: Posterior, key: Key) -> KLDecomposition:
    """Decompose the KL in nats, estimated from one sample per example.

        E_x[KL(q(z|x) || p(z))] = I(x; z) + KL(q(z) || prod_j q(z_j))
          + sum_j KL(q(z_j) || p(z_j))

    for a prior that factorizes over the units (Chen, Li, Grosse & Duvenaud 2018, eq.
    2), with q(z) the mean of the posteriors of this batch. Their minibatch-weighted
    estimate for a data set of size N (appendix C.1) also divides q(z) by N. This adds
    the constants log N, (L - 1) log N and -L log N to the parts, which have no gradient
    and do not improve the estimates; they are omitted. Binary latents take two samples
    per example, with the gradient of `estimators.leave_one_out`.

    Args:
      params: model parameters, conditioned with `model.at_labels` if the prior depends
        on labels.
      posterior: q(z|x) of a batch, factorized over units.
      key: PRNG key, consumed once.

    Returns:
      `KLDecomposition`; differentiable in params and posterior.

    Raises:
      ValueError: the posterior does not factorize over units.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax import ModelSpec, encode, init
      >>> from vae_jax.aggregate import kl_decomposition
      >>> params = init(ModelSpec(), jax.random.key(0))
      >>> posterior = encode(params, jnp.zeros((8, 784)))  # all the same
      >>> parts = kl_decomposition(params, posterior, jax.random.key(1))
      >>> bool(abs(parts.mutual_information) < 1e-4)
      True
    """
    # A subclass may have a different density, which need not factorize.
    if type(posterior) not in (DiagonalGaussianDistribution, BernoulliDistribution):
        raise ValueError(
            "the total correlation is known for factorized posteriors, got "
            f"{type(posterior).__name__}: choose a diagonal Gaussian or Bernoulli "
            "posterior, or compare samples of z with the prior (MMD)"
        )
    units = jax.tree.map(lambda leaf: leaf[..., None], posterior)
    prior = build_prior(params)

    def parts(z: Array, log_q: Array) -> KLDecomposition:
        # Axes: sample, its example, example of the posterior, unit.
        each = units.log_prob(z[:, :, None, :, None])
        log_count = jnp.log(each.shape[2])
        log_aggregate = jax.nn.logsumexp(each.sum(axis=-1), axis=2) - log_count
        log_units = jnp.sum(jax.nn.logsumexp(each, axis=2) - log_count, axis=-1)
        log_p = prior.log_prob(z)
        return KLDecomposition(
            mutual_information=log_q - log_aggregate,
            total_correlation=log_aggregate - log_units,
            unit_kl=log_units - log_p,
        )

    if posterior.is_reparameterizable:
        estimates = reparameterization(parts, posterior, key)
    else:
        estimates = leave_one_out(parts, posterior, key)
    return jax.tree.map(jnp.mean, estimates)


def as_points(z: Latents) -> Array:
    """Concatenate the units of several stochastic layers, `[..., L]`.

    Args:
      z: an array `[..., L]`, or a tuple of such arrays.

    Returns:
      One array.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.aggregate import as_points
      >>> as_points((jnp.zeros((8, 3)), jnp.zeros((8, 2)))).shape
      (8, 5)
    """
    return jnp.concatenate(jax.tree.leaves(z), axis=-1)


def posterior_mmd(params: Params, posterior: Posterior, key: Key) -> Array:
    """Unbiased squared MMD between aggregate posterior and prior.

    `squared_mmd` of one sample per example and as many draws from the prior. The
    gradient flows through the samples. If it cannot (bits, or a prior that does not
    declare `is_reparameterizable`, such as a mixture with learned weights), a
    score-function estimate is used, whose baseline replaces a point by another draw.

    Args:
      params: model parameters, conditioned with `model.at_labels` if the prior depends
        on labels.
      posterior: q(z|x) of a batch of at least 2 examples.
      key: PRNG key, consumed once.

    Returns:
      A scalar; differentiable in params and posterior.

    Raises:
      ValueError: the batch has one example.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax import ModelSpec, encode, init
      >>> from vae_jax.aggregate import posterior_mmd
      >>> params = init(ModelSpec(), jax.random.key(0))
      >>> posterior = encode(params, jnp.zeros((100, 784)))
      >>> bool(posterior_mmd(params, posterior, jax.random.key(1)) < 0.5)
      True
    """
    posterior_key, prior_key = jax.random.split(key)
    codes = _codes(posterior, posterior_key)
    count = codes.points.shape[0]
    if count < 2:
        raise ValueError(
            "an MMD compares distinct examples and needs at least 2 examples in a "
            f"batch, got {count}: choose a batch_size whose last batch is not of size 1"
        )
    moves = params.spec.prior.is_reparameterizable and posterior.is_reparameterizable
    draws = _draws(params, prior_key, count, moves=moves)
    draws = draws._replace(points=draws.points.astype(codes.points.dtype))
    distance = squared_mmd(codes.points, draws.points)
    surrogate = jnp.zeros_like(distance)
    for some, reference in ((codes, draws), (draws, codes)):
        if some.others is not None and some.log_prob is not None:
            weights = _changes(some.points, some.others, reference.points)
            surrogate += jnp.sum(weights * some.log_prob)
    return with_surrogate(distance, surrogate)


class _Points(NamedTuple):
    """Points `[n, L]`, with replacements and log p for score-function gradients."""

    points: Array
    others: Array | None = None
    log_prob: Array | None = None


def _codes(posterior: Posterior, key: Key) -> _Points:
    """Draw one sample per example."""
    if posterior.is_reparameterizable:
        z, _ = posterior.sample_and_log_prob(key, 1)
        return _Points(as_points(z)[0])
    z, log_q = constant_draws(posterior, key, 2, "an MMD of discrete latents")
    return _Points(*as_points(z), log_prob=log_q[0])


def _draws(params: Params, key: Key, count: int, *, moves: bool) -> _Points:
    """Draw from the prior."""
    if moves:
        return _Points(as_points(draw_prior(params, key, num_samples=count)))
    z, others = (
        jax.lax.stop_gradient(draw_prior(params, own_key, num_samples=count))
        for own_key in jax.random.split(key)
    )
    alone = jax.tree.map(lambda leaf: leaf[None], z)
    log_p = build_prior(params).log_prob(alone)[0]
    return _Points(as_points(z), as_points(others), log_p)


def _changes(points: Array, others: Array, reference: Array) -> Array:
    """Change of the squared MMD if each point is replaced by another, constant `[n]`.

    The replacement is independent of all other points, so the baseline is unbiased.
    """
    count = points.shape[0]
    among = _kernel(points, points) - _kernel(others, points)
    among = jnp.sum(jnp.where(jnp.eye(count, dtype=bool), 0, among), axis=1)
    across = jnp.mean(_kernel(points, reference) - _kernel(others, reference), axis=1)
    return jax.lax.stop_gradient(2 / count * (among / (count - 1) - across))


def _kernel(a: Array, b: Array) -> Array:
    """Sum of the kernels over all scales, for each pair, `[n, m]`."""
    squares = jnp.sum(jnp.square(a[:, None] - b), axis=-1)
    widths = [2 * a.shape[-1] * scale for scale in KERNEL_SCALES]
    return reduce(add, (width / (width + squares) for width in widths))


def squared_mmd(a: Array, b: Array) -> Array:
    """Unbiased squared maximum mean discrepancy (MMD) of two samples.

        MMD^2 = E[k(a, a')] + E[k(b, b')] - 2 E[k(a, b)]
        k(a, b) = sum_c c / (c + |a - b|^2)

    over distinct pairs (Gretton et al. 2012, lemma 6), with c = 2 L times 0.1 to 10
    (Tolstikhin, Bousquet, Gelly & Schoelkopf 2018, section 4). The expectation is 0 for
    equal distributions, so the estimate may be negative.

    Args:
      a: points, `[n, L]`, n at least 2.
      b: points, `[m, L]`, m at least 2.

    Returns:
      A scalar.

    Raises:
      ValueError: a sample has a single point, and thus no distinct pairs, or the points
        have different dimensions.

    Example:
      >>> import jax
      >>> from vae_jax.aggregate import squared_mmd
      >>> a, b = jax.random.normal(jax.random.key(0), (2, 100, 3))
      >>> bool(squared_mmd(a, b + 1) > squared_mmd(a, b))
      True
    """
    chex.assert_rank([a, b], 2)
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            f"a and b must have points of the same dimension, got {a.shape[1]} and "
            f"{b.shape[1]}"
        )
    for name, points in (("a", a), ("b", b)):
        if points.shape[0] < 2:
            raise ValueError(
                f"{name} must hold at least 2 points, got {points.shape[0]}"
            )

    def of_distinct(points: Array) -> Array:
        count = points.shape[0]
        # Subtract the pairs of a point with itself, where each kernel is 1.
        total = jnp.sum(_kernel(points, points)) - count * len(KERNEL_SCALES)
        return total / (count * (count - 1))

    return of_distinct(a) + of_distinct(b) - 2 * jnp.mean(_kernel(a, b))
