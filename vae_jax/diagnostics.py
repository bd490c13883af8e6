"""Use of the latents by a trained model: active units, KL per unit, mutual information.

The rate is the sum of the mutual information of x and z and the KL between aggregate
posterior and prior (Hoffman & Johnson 2016):

    E_x[KL(q(z|x) || p(z))] = I(x; z) + KL(q(z) || p(z))
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vae_jax.aggregate import as_points
from vae_jax.distributions import unit_kl
from vae_jax.model import (
    at_labels,
    build_prior,
    check_observations,
    encode,
    log_prior,
)
from vae_jax.objectives import require_density
from vae_jax.options import require_at_least, require_scalar
from vae_jax.spec import Params
from vae_jax.types import Array, Key, Labels, Latents, Posterior

ACTIVE_VARIANCE = 0.01


class ActiveUnits(NamedTuple):
    """Active units of a model.

    Attributes:
      variance: Var_x(E_q[z_j | x]) of each unit, `[L]`.
      active: whether the variance exceeds the threshold, `[L]`.
      count: number of active units, a scalar.
      standard_error: Monte Carlo standard error of the variance, `[L]`; 0 if the
        posterior mean is exact.
    """

    variance: Array
    active: Array
    # Shadows the method of tuples on purpose.
    count: Array  # pyright: ignore[reportIncompatibleMethodOverride]
    standard_error: Array


class AggregatePosterior(NamedTuple):
    """Decomposition of the rate, in nats; all fields are scalars.

    Attributes:
      mutual_information: I_q(x; z), at most the log of the number of examples.
      kl_to_prior: KL(q(z) || p(z)), with q(z) the mean of q(z|x) over the examples.
      rate: their sum, E_x KL(q(z|x) || p(z)), from the same samples.
      upper_bound: log B, the largest mutual information that B examples can show.
      mutual_information_standard_error: standard error over examples; infinite for one.
      kl_to_prior_standard_error: likewise.
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
    """Active units: variance over x of each unit's posterior mean.

    A unit j is active if

        Var_x(E_q(z|x)[z_j]) > 0.01

    (Burda, Grosse & Salakhutdinov 2016, section 5.2), with the variance over these
    examples (divided by B). If the posterior mean is not exact (flows, stochastic
    layers), the variance is that of the means of S samples, corrected for their noise.
    This estimate is unbiased, and may be negative for inactive units. The units of
    several stochastic layers are concatenated.

    Args:
      params: model parameters.
      x: observations, `[B, D]`.
      key: PRNG key, consumed once; not needed if the mean is exact
        (`types.Distribution`).
      threshold: variance above which a unit counts as active.
      num_samples: number S of samples per example, if the mean is not exact.
      labels: labels of a conditional model; see `encode`.

    Returns:
      `ActiveUnits`.

    Raises:
      ValueError: `threshold` is not a scalar; or the mean is not exact, and there is no
        key or `num_samples` is below 2.

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

    With m_b and v_b the mean and variance of S samples, Var_b(m_b) is biased upwards by
    (1 - 1/B) mean_b v_b / S. The standard error assumes that m_b - E[z_b] is normal
    with variance v_b / S.
    """
    mean, variance = _moments_of_samples(posterior, key, num_samples)
    count = mean.shape[0]
    noise = variance / num_samples
    centred = mean - jnp.mean(mean, axis=0)
    estimate = jnp.mean(jnp.square(centred) - (1 - 1 / count) * noise, axis=0)
    # The square of a noisy mean contains twice the term subtracted here.
    squares = 4 * jnp.square(centred) * noise - 2 * jnp.square(noise)
    return estimate, jnp.sqrt(jnp.maximum(jnp.sum(squares, axis=0), 0)) / count


def _moments_of_samples(
    posterior: Posterior, key: Key, num_samples: int
) -> tuple[Array, Array]:
    """Running mean and variance (divided by S - 1) of samples, `[B, L]` each."""
    require_at_least("num_samples", num_samples, 2, ": the noise must be estimated")

    def draw(key: Key) -> Array:
        z, _ = posterior.sample_and_log_prob(key, 1)
        return as_points(z)[0]

    def add(moments: tuple[Array, Array], numbered: tuple[Array, Key]):
        mean, squares = moments
        number, own = numbered
        difference = draw(own) - mean
        mean = mean + difference / number
        # Welford's update, which avoids a difference of large sums.
        squares = squares + difference * difference * (number - 1) / number
        return (mean, squares), None

    keys = jax.random.split(key, num_samples)
    first = draw(keys[0])
    numbers = jnp.arange(2, num_samples + 1, dtype=first.dtype)
    start = (first, jnp.zeros_like(first))
    (mean, squares), _ = jax.lax.scan(add, start, (numbers, keys[1:]))
    return mean, squares / (num_samples - 1)


def kl_per_unit(params: Params, x: Array, *, labels: Labels = None) -> Array:
    """KL divergence of each unit in nats, averaged over the batch.

        KL_j = 1/B sum_b KL(q(z_j|x_b) || p(z_j))

    Args:
      params: parameters of a model whose posterior and prior factorize over units
        (diagonal Gaussian or Bernoulli), with a closed-form KL.
      x: observations, `[B, D]`.
      labels: labels of a conditional model; see `encode`.

    Returns:
      `[L]`; the sum is the KL term of the ELBO.

    Raises:
      ValueError: posterior and prior have no factorized closed-form KL.

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

        I(x; z) = E[log q(z|x) - log q(z)]
        KL(q(z) || p(z)) = E[log q(z) - log p(z)]
        q(z) = 1/B sum_b q(z|x_b)

    (Hoffman & Johnson 2016), from one z per x. Both are unbiased for these B examples.
    As estimates for the population, the mutual information is at most log B, and the KL
    is too large by the amount that the mutual information is too small. Several
    stochastic layers are treated as one z. Cost: B^2 densities of q.

    Args:
      params: model parameters.
      x: observations, `[B, D]`; the result depends on B.
      key: PRNG key, consumed once.
      chunk_size: number of samples compared with all examples at once.

    Returns:
      `AggregatePosterior`.

    Raises:
      ValueError: the posterior has no density at arbitrary points.

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
            f"an aggregate posterior needs log q(z|x) at every z, but "
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
        if count == 1:
            return jnp.full_like(values[0], jnp.inf)
        return jnp.std(values, ddof=1) / jnp.sqrt(count)

    return AggregatePosterior(
        mutual_information=jnp.mean(information),
        kl_to_prior=jnp.mean(to_prior),
        rate=jnp.mean(information + to_prior),
        upper_bound=jnp.log(jnp.asarray(count, log_q.dtype)),
        mutual_information_standard_error=error(information),
        kl_to_prior_standard_error=error(to_prior),
    )
