"""What a trained model does with its latents: is it collapsed, what do they say of x?

The rate E_x KL(q(z|x) || p(z)) splits into the mutual information of x and z and the
KL of the aggregate posterior to the prior (Hoffman & Johnson 2016).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vae_jax.aggregate import as_points
from vae_jax.distributions import unit_kl
from vae_jax.estimators.contract import check_num_samples
from vae_jax.model import (
    at_labels,
    build_prior,
    check_observations,
    encode,
    log_prior,
)
from vae_jax.objectives import require_density
from vae_jax.options import require_scalar
from vae_jax.spec import Params
from vae_jax.types import Array, Key, Labels, Latents, Posterior

ACTIVE_VARIANCE = 0.01


class ActiveUnits(NamedTuple):
    """Which latents say something about x.

    Attributes:
      variance: Var_x(E_q[z_j | x]) of each unit, `[L]`.
      active: whether it exceeds the threshold, `[L]`.
      count: how many do, a scalar.
      standard_error: of the variance, over the samples of z, `[L]`; 0 where the
        posterior knows its mean.
    """

    variance: Array
    active: Array
    # The field is meant, not the method of tuples.
    count: Array  # pyright: ignore[reportIncompatibleMethodOverride]
    standard_error: Array


class AggregatePosterior(NamedTuple):
    """The two parts of the rate, in nats.

    Attributes:
      mutual_information: I_q(x; z), a scalar; at most log of the number of examples.
      kl_to_prior: KL(q(z) || p(z)), q(z) the mean of q(z|x) over the examples.
      rate: their sum, E_x KL(q(z|x) || p(z)), by the same samples.
      upper_bound: log B: no data set of B examples shows more mutual information.
      mutual_information_standard_error: over examples.
      kl_to_prior_standard_error: over examples.
    """

    mutual_information: Array
    kl_to_prior: Array
    rate: Array
    upper_bound: Array
    mutual_information_standard_error: Array
    kl_to_prior_standard_error: Array


def active_units(
    params: Params,
    x: Array,
    key: Key | None = None,
    *,
    threshold: float | Array = ACTIVE_VARIANCE,
    num_samples: int = 100,
    labels: Labels = None,
) -> ActiveUnits:
    """Variance over x of each unit's posterior mean, and which exceed a threshold.

    Var_x(E_q[z_j | x]) > 0.01 (Burda, Grosse & Salakhutdinov 2016, section 5.2), the
    variance of these examples (divided by B). Where the posterior does not know its
    mean (a flow, stochastic layers) it is the variance of the means of S samples, less
    what their noise adds to it: unbiased, so below 0 at times for a unit that is not
    active. The units of several stochastic layers follow one another.

    Args:
      params: model parameters.
      x: observations, `[B, D]`.
      key: PRNG key, consumed once; not needed where the mean is exact
        (`types.Distribution`).
      threshold: above which a unit counts as active.
      num_samples: samples S of each example, where the mean is not exact.
      labels: of a conditional model, as for `encode`.

    Returns:
      `ActiveUnits`.

    Raises:
      ValueError: a threshold that is not a scalar; no key, or fewer than 2 samples,
        where the mean is not exact.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax import ModelSpec, active_units, init
      >>> params = init(ModelSpec(), jax.random.key(0))
      >>> print(active_units(params, jnp.zeros((8, 784))).count)
      0
    """
    require_scalar("threshold", threshold)
    check_observations(params, x, labels=labels)
    posterior = encode(params, x, labels=labels)
    if posterior.mean_is_exact:
        variance = jnp.var(as_points(posterior.mean), axis=0)
        error = jnp.zeros_like(variance)
    elif key is None:
        raise ValueError(
            f"active_units needs a key: the mean of a {type(posterior).__name__} is "
            "not known (it does not declare mean_is_exact = True), so it is estimated "
            "from samples"
        )
    else:
        variance, error = _variance_of_means(posterior, key, num_samples)
    active = variance > threshold
    return ActiveUnits(variance, active, jnp.sum(active), error)


def _variance_of_means(
    posterior: Posterior, key: Key, num_samples: int
) -> tuple[Array, Array]:
    """Unbiased estimate of Var_b(E[z_b]) and its standard error, `[L]` each.

    With m_b and v_b the mean and the variance of S samples, Var_b(m_b) is too large by
    (1 - 1/B) mean_b v_b / S. Of the error that remains, m_b - E[z_b] is normal with
    variance v_b / S.
    """
    mean, variance = _moments_of_samples(posterior, key, num_samples)
    count = mean.shape[0]
    noise = variance / num_samples
    centred = mean - jnp.mean(mean, axis=0)
    estimate = jnp.mean(jnp.square(centred) - (1 - 1 / count) * noise, axis=0)
    # The square of a noisy mean holds twice what the second term takes off again.
    squares = 4 * jnp.square(centred) * noise - 2 * jnp.square(noise)
    return estimate, jnp.sqrt(jnp.maximum(jnp.sum(squares, axis=0), 0)) / count


def _moments_of_samples(
    posterior: Posterior, key: Key, num_samples: int
) -> tuple[Array, Array]:
    """Mean and variance (divided by S - 1) of samples one by one, `[B, L]` each."""
    check_num_samples(num_samples, minimum=2, why=", to know what the noise adds")

    def draw(key: Key) -> Array:
        z, _ = posterior.sample_and_log_prob(key, 1)
        return as_points(z)[0]

    def add(moments: tuple[Array, Array], numbered: tuple[Array, Key]):
        mean, squares = moments
        number, own = numbered
        difference = draw(own) - mean
        mean = mean + difference / number
        # Welford's update: no difference of large sums.
        squares = squares + difference * difference * (number - 1) / number
        return (mean, squares), None

    keys = jax.random.split(key, num_samples)
    first = draw(keys[0])
    numbers = jnp.arange(2, num_samples + 1, dtype=first.dtype)
    start = (first, jnp.zeros_like(first))
    (mean, squares), _ = jax.lax.scan(add, start, (numbers, keys[1:]))
    return mean, squares / (num_samples - 1)


def kl_per_unit(params: Params, x: Array, *, labels: Labels = None) -> Array:
    """KL(q(z_j|x) || p(z_j)) of each unit in nats, averaged over the batch.

    Args:
      params: of a model whose posterior and prior are products over units: diagonal
        Gaussian or Bernoulli, with a closed-form KL.
      x: observations, `[B, D]`.
      labels: of a conditional model, as for `encode`.

    Returns:
      `[L]`, whose sum is the KL term of the ELBO.

    Raises:
      ValueError: another posterior or prior.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax import ModelSpec, init, kl_per_unit
      >>> params = init(ModelSpec(), jax.random.key(0))
      >>> kl_per_unit(params, jnp.zeros((8, 784))).shape
      (20,)
    """
    check_observations(params, x, labels=labels)
    posterior = encode(params, x, labels=labels)
    kls = unit_kl(posterior, build_prior(at_labels(params, labels)))
    return jnp.mean(kls, axis=0)


def aggregate_posterior(
    params: Params, x: Array, key: Key, *, chunk_size: int = 100
) -> AggregatePosterior:
    """Mutual information of x and z, and KL(q(z) || p(z)), in nats.

    E[log q(z|x) - log q(z)] and E[log q(z) - log p(z)] with q(z) = 1/B sum_b q(z|x_b)
    (Hoffman & Johnson 2016), one z for each x. For these B examples both are unbiased;
    of a population the first shows log B at most, and the second is too large by what
    the first lacks. Several stochastic layers count as one z. Cost: B^2 densities of q.

    Args:
      params: model parameters.
      x: observations, `[B, D]`; their number matters.
      key: PRNG key, consumed once.
      chunk_size: samples compared with all examples at once.

    Returns:
      `AggregatePosterior`.

    Raises:
      ValueError: a posterior without a density at any point.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax import ModelSpec, aggregate_posterior, init
      >>> params = init(ModelSpec(), jax.random.key(0))
      >>> x = jnp.zeros((8, 784))  # all the same: they say nothing
      >>> found = aggregate_posterior(params, x, jax.random.key(1))
      >>> bool(abs(found.mutual_information) < 1e-5)
      True
    """
    check_observations(params, x)
    posterior = encode(params, x)
    require_density(posterior, "an aggregate posterior")
    if not posterior.has_log_prob:
        raise ValueError(
            f"an aggregate posterior needs log q(z|x) at every z, and "
            f"{type(posterior).__name__} has no log_prob"
        )
    z, log_q = posterior.sample_and_log_prob(key, 1)
    count = log_q.shape[1]

    def log_aggregate(z: Latents) -> Array:
        everywhere = jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf, (1, count, *leaf.shape)), z
        )
        return jax.nn.logsumexp(posterior.log_prob(everywhere)) - jnp.log(count)

    each = jax.tree.map(lambda leaf: leaf[0], z)
    log_q_z = jax.lax.map(log_aggregate, each, batch_size=min(chunk_size, count))
    information, to_prior = log_q[0] - log_q_z, log_q_z - log_prior(params, z)[0]

    def error(values: Array) -> Array:
        return jnp.std(values, ddof=1) / jnp.sqrt(count)

    return AggregatePosterior(
        mutual_information=jnp.mean(information),
        kl_to_prior=jnp.mean(to_prior),
        rate=jnp.mean(information + to_prior),
        upper_bound=jnp.log(jnp.asarray(count, log_q.dtype)),
        mutual_information_standard_error=error(information),
        kl_to_prior_standard_error=error(to_prior),
    )
