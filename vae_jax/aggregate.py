"""The aggregate posterior of a batch against the prior: KL decomposition and MMD.

q(z) = 1/B sum_b q(z|x_b). What a training objective may charge for it is in
`penalties.py`; `diagnostics.aggregate_posterior` measures it on a data set. Where no
gradient flows through a sample (bits, the choice of a mixture's component) the score of
its distribution brings it.
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

# Of the kernel, in units of 2 L; those of Tolstikhin et al.'s released code.
KERNEL_SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class KLDecomposition(NamedTuple):
    """The three parts of E_x KL(q(z|x) || p(z)), in nats, scalars.

    Attributes:
      mutual_information: of x and z, E[log q(z|x) - log q(z)].
      total_correlation: of the units, E[log q(z) - sum_j log q(z_j)].
      unit_kl: E[sum_j log q(z_j) - log p(z)]; for a prior that is a product over units,
        the sum of their KLs.
    """

    mutual_information: Array
    total_correlation: Array
    unit_kl: Array


def kl_decomposition(params: Params, posterior: Posterior, key: Key) -> KLDecomposition:
    """The parts of the KL, estimated in nats from one sample of each example.

    Chen, Li, Grosse & Duvenaud 2018, eq. 2, with q(z) the mean of the posteriors of
    this batch. Their minibatch-weighted estimate for a data set of N (appendix C.1)
    divides q(z) by N besides. That adds log N, (L - 1) log N and -L log N to the parts,
    constants of no gradient that estimate nothing: they are left out. Bits take two
    samples of each example, with the gradient of `estimators.leave_one_out`.

    Args:
      params: model parameters; of a prior that depends on labels, at those labels
        (`model.at_labels`).
      posterior: q(z|x) of a batch, a product over units.
      key: PRNG key, consumed once.

    Returns:
      `KLDecomposition`; differentiable in params and posterior.

    Raises:
      ValueError: a posterior that is not a product over units.

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
    # A subclass may have another density, which need not be a product.
    if type(posterior) not in (DiagonalGaussianDistribution, BernoulliDistribution):
        raise ValueError(
            "the total correlation is known for factorized posteriors, got "
            f"{type(posterior).__name__}"
        )
    units = jax.tree.map(lambda leaf: leaf[..., None], posterior)
    prior = build_prior(params)

    def parts(z: Array, log_q: Array) -> KLDecomposition:
        # Axes: sample, its example, the posterior of another example, unit.
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
    """Latents with the units of several layers one after another, `[..., L]`.

    Args:
      z: an array `[..., L]`, or a tuple of such.

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
    """Squared MMD of the aggregate posterior and the prior, unbiased.

    `squared_mmd` of one sample of each example and of as many draws of the prior. The
    gradient flows through the samples. Where it does not (bits; a prior that does not
    declare `is_reparameterizable`, such as a mixture, whose weights choose a component)
    it is the score-function estimate, each point against another draw in its place.

    Args:
      params: model parameters; of a prior that depends on labels, at those labels
        (`model.at_labels`).
      posterior: q(z|x) of a batch of 2 examples or more.
      key: PRNG key, consumed once.

    Returns:
      A scalar; differentiable in params and posterior.

    Raises:
      ValueError: a batch of one example, of which there are no two codes to compare.

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
            f"batch, got {count}: choose a batch_size that leaves no rest of 1"
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
    """Points `[n, L]`; where they do not move, others to replace them, and log p."""

    points: Array
    others: Array | None = None
    log_prob: Array | None = None


def _codes(posterior: Posterior, key: Key) -> _Points:
    """A sample of each example."""
    if posterior.is_reparameterizable:
        z, _ = posterior.sample_and_log_prob(key, 1)
        return _Points(as_points(z)[0])
    z, log_q = constant_draws(posterior, key, 2, "an MMD of discrete latents")
    return _Points(*as_points(z), log_prob=log_q[0])


def _draws(params: Params, key: Key, count: int, *, moves: bool) -> _Points:
    """Draws of the prior."""
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
    """Squared MMD less what it is with another point in place of each, constant `[n]`.

    The other is independent of all the rest, so it is a baseline without a bias.
    """
    count = points.shape[0]
    among = _kernel(points, points) - _kernel(others, points)
    among = jnp.sum(jnp.where(jnp.eye(count, dtype=bool), 0, among), axis=1)
    across = jnp.mean(_kernel(points, reference) - _kernel(others, reference), axis=1)
    return jax.lax.stop_gradient(2 / count * (among / (count - 1) - across))


def _kernel(a: Array, b: Array) -> Array:
    """Sum of the kernels of all scales for each pair, `[n, m]`."""
    squares = jnp.sum(jnp.square(a[:, None] - b), axis=-1)
    widths = [2 * a.shape[-1] * scale for scale in KERNEL_SCALES]
    return reduce(add, (width / (width + squares) for width in widths))


def squared_mmd(a: Array, b: Array) -> Array:
    """Squared maximum mean discrepancy of two samples, unbiased.

    E k(a, a') + E k(b, b') - 2 E k(a, b) over distinct pairs (Gretton et al. 2012,
    lemma 6), k(a, b) = sum_c c / (c + |a - b|^2) with c = 2 L times 0.1 to 10
    (Tolstikhin, Bousquet, Gelly & Schoelkopf 2018, section 4). 0 in expectation where
    the distributions agree, so below 0 at times.

    Args:
      a: points, `[n, L]`, n at least 2.
      b: points, `[m, L]`, m at least 2.

    Returns:
      A scalar.

    Raises:
      ValueError: a sample of one point, which has no distinct pairs.

    Example:
      >>> import jax
      >>> from vae_jax.aggregate import squared_mmd
      >>> a, b = jax.random.normal(jax.random.key(0), (2, 100, 3))
      >>> bool(squared_mmd(a, b + 1) > squared_mmd(a, b))
      True
    """
    chex.assert_rank([a, b], 2)
    for name, points in (("a", a), ("b", b)):
        if points.shape[0] < 2:
            raise ValueError(
                f"{name} must hold at least 2 points, got {points.shape[0]}"
            )

    def of_distinct(points: Array) -> Array:
        count = points.shape[0]
        # A point with itself has the kernel's largest value, 1 for each width.
        total = jnp.sum(_kernel(points, points)) - count * len(KERNEL_SCALES)
        return total / (count * (count - 1))

    return of_distinct(a) + of_distinct(b) - 2 * jnp.mean(_kernel(a, b))
