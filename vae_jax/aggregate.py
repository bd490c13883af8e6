"""The aggregate posterior of a batch against the prior: KL decomposition and MMD.

q(z) = 1/B sum_b q(z|x_b). What a training objective may charge for it is in
`penalties.py`; `diagnostics.aggregate_posterior` measures it on a data set.
"""

import math
from functools import partial
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from vae_jax.model import encode, with_constant_settings
from vae_jax.posteriors import BernoulliPosterior, DiagonalGaussianPosterior
from vae_jax.spec import Params
from vae_jax.types import Array, Key, Posterior

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


def kl_decomposition(
    params: Params, posterior: Posterior, key: Key, *, dataset_size: int | None = None
) -> KLDecomposition:
    """The parts of the KL, estimated in nats from one sample of each example.

    Chen, Li, Grosse & Duvenaud 2018, eq. 2. Without `dataset_size` the batch is all
    there is: q(z) is the mean of its posteriors. With N of it, their minibatch-weighted
    estimate (appendix C.1): log q(z) = log 1/(N B) sum_b q(z|x_b), which shifts the
    parts by constants and leaves their sum as it is.

    Args:
      params: model parameters; of a prior that depends on labels, at those labels
        (`model.prior_params`).
      posterior: q(z|x) of a batch, a product over units.
      key: PRNG key, consumed once.
      dataset_size: N.

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
    if not isinstance(posterior, DiagonalGaussianPosterior | BernoulliPosterior):
        raise ValueError(
            "the total correlation is known for factorized posteriors, got "
            f"{type(posterior).__name__}"
        )
    z, log_q = posterior.sample_and_log_prob(key, 1)
    units = jax.tree.map(lambda leaf: leaf[..., None], posterior)
    # Sample of one example, posterior of another, unit.
    each = units.log_prob(z[0][:, None, :, None])
    count = each.shape[1]
    log_count = math.log(count) + (math.log(dataset_size) if dataset_size else 0.0)
    log_aggregate = jax.nn.logsumexp(each.sum(axis=-1), axis=1) - log_count
    log_units = jnp.sum(jax.nn.logsumexp(each, axis=1) - log_count, axis=-1)
    prior, encoder = params.spec.prior, partial(encode, params)
    own = with_constant_settings(prior, params.prior)
    log_p = prior.log_prob(own, z, encode=encoder)[0]
    return KLDecomposition(
        mutual_information=jnp.mean(log_q[0] - log_aggregate),
        total_correlation=jnp.mean(log_aggregate - log_units),
        unit_kl=jnp.mean(log_units - log_p),
    )


def squared_mmd(a: Array, b: Array) -> Array:
    """Squared maximum mean discrepancy of two samples, unbiased.

    E k(a, a') + E k(b, b') - 2 E k(a, b) over distinct pairs (Gretton et al. 2012,
    lemma 6), k(a, b) = sum_c c / (c + |a - b|^2) with c = 2 L times 0.1 to 10
    (Tolstikhin, Bousquet, Gelly & Schoelkopf 2018, section 4). 0 in expectation where
    the distributions agree, so below 0 at times.

    Args:
      a: points, `[n, L]`.
      b: points, `[m, L]`.

    Returns:
      A scalar.

    Example:
      >>> import jax
      >>> from vae_jax.aggregate import squared_mmd
      >>> a, b = jax.random.normal(jax.random.key(0), (2, 100, 3))
      >>> bool(squared_mmd(a, b + 1) > squared_mmd(a, b))
      True
    """
    chex.assert_rank([a, b], 2)

    def kernel(a: Array, b: Array) -> Array:
        squares = jnp.sum(jnp.square(a[:, None] - b), axis=-1)
        widths = [2 * a.shape[-1] * scale for scale in KERNEL_SCALES]
        return sum(width / (width + squares) for width in widths)

    def of_distinct(points: Array) -> Array:
        count = points.shape[0]
        # A point with itself has the kernel's largest value, 1 for each width.
        total = jnp.sum(kernel(points, points)) - count * len(KERNEL_SCALES)
        return total / (count * (count - 1))

    return of_distinct(a) + of_distinct(b) - 2 * jnp.mean(kernel(a, b))
