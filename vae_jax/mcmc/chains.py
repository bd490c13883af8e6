"""Metropolis-Hastings and Gibbs sampling."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vae_jax.options import require_at_least
from vae_jax.types import Array, Key

LogDensity = Callable[[Array], Array]
"""Maps a state `[L]` to its log-density, up to a constant, in nats."""
Conditional = Callable[[Key, Array, Array], Array]
"""`conditional(key, z, index)` draws coordinate `index` of `z` `[L]`, a scalar."""
Proposal = Callable[[Key, Array], tuple[Array, Array]]
"""`proposal(key, z)` draws z' and returns it with log q(z|z') - log q(z'|z)."""


class Chain(NamedTuple):
    """Samples of a Markov chain after the warm-up.

    Attributes:
      samples: consecutive states, `[T, L]`.
      acceptance_rate: mean acceptance probability, a scalar; 1 for Gibbs.
      num_divergences: number of steps with a divergent trajectory, a scalar. If it is
        above 0, a Hamiltonian chain misses a region too narrow for its step size. 0 for
        samplers without trajectories.
    """

    samples: Array
    acceptance_rate: Array
    num_divergences: Array


def random_walk(scale: float | Array) -> Proposal:
    """Symmetric Gaussian proposal.

        z' = z + scale * eps with eps ~ N(0, I)

    Args:
      scale: a number, or one per unit, `[L]`.

    Returns:
      A proposal for `metropolis_hastings`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax.mcmc import random_walk
      >>> z, log_ratio = random_walk(0.5)(jax.random.key(0), jnp.zeros(3))
      >>> print(z.shape, log_ratio)
      (3,) 0.0
    """

    def propose(key: Key, z: Array) -> tuple[Array, Array]:
        noise = jax.random.normal(key, z.shape, z.dtype)
        return z + scale * noise, jnp.zeros((), z.dtype)

    return propose


def metropolis_hastings(
    log_density: LogDensity,
    initial: Array,
    key: Key,
    *,
    num_samples: int,
    num_warmup: int = 0,
    proposal: Proposal,
) -> Chain:
    """Metropolis-Hastings sampler.

    A proposal z' ~ q(z'|z) is accepted with probability

        a = min(1, (p(z') q(z|z')) / (p(z) q(z'|z)))

    (Hastings 1970).

    Args:
      log_density: log-density of the state `[L]`.
      initial: initial state, `[L]`.
      key: PRNG key; step t uses `fold_in(key, t)`.
      num_samples: number T of samples.
      num_warmup: number of warm-up steps, which are discarded.
      proposal: proposal distribution, such as `random_walk(scale)`.

    Returns:
      `Chain`.

    Raises:
      ValueError: `num_samples` is below 1 or `num_warmup` below 0.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax.mcmc import metropolis_hastings, random_walk
      >>> log_density, start = lambda z: -0.5 * jnp.sum(z**2), jnp.zeros(2)
      >>> options = {"num_samples": 10, "proposal": random_walk(1.0)}
      >>> chain = metropolis_hastings(log_density, start, jax.random.key(0), **options)
      >>> chain.samples.shape
      (10, 2)
    """

    def target(z: Array) -> Array:
        # States of NaN density are never accepted, and left if the chain starts there.
        value = log_density(z)
        return jnp.where(jnp.isnan(value), -jnp.inf, value)

    def step(carry: tuple[Array, Array], key: Key):
        z, log_p = carry
        proposal_key, accept_key = jax.random.split(key)
        candidate, log_ratio = proposal(proposal_key, z)
        candidate_log_p = target(candidate)
        gain = candidate_log_p - log_p + log_ratio
        probability = jnp.exp(jnp.minimum(gain, 0))
        accepted = jax.random.uniform(accept_key, dtype=z.dtype) < probability
        z = jnp.where(accepted, candidate, z)
        log_p = jnp.where(accepted, candidate_log_p, log_p)
        return (z, log_p), (z, jnp.nan_to_num(probability))

    start = (initial, target(initial))
    samples, probability = run(step, start, key, num_samples, num_warmup)
    return Chain(samples, jnp.mean(probability), jnp.zeros((), int))


def gibbs(
    conditional: Conditional,
    initial: Array,
    key: Key,
    *,
    num_samples: int,
    num_warmup: int = 0,
) -> Chain:
    """Gibbs sampler: draws each coordinate given the others (Geman & Geman 1984).

    Args:
      conditional: draws a coordinate given the others: `bit_conditional`,
        `gaussian_conditional`, or a custom function.
      initial: initial state, `[L]`.
      key: PRNG key; sweep t uses `fold_in(key, t)`.
      num_samples: number T of samples, each after a sweep over all coordinates.
      num_warmup: number of warm-up sweeps, which are discarded.

    Returns:
      `Chain` with an acceptance rate of 1.

    Raises:
      ValueError: `num_samples` is below 1 or `num_warmup` below 0.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax.mcmc import gaussian_conditional, gibbs
      >>> conditional = gaussian_conditional(jnp.zeros(2), jnp.eye(2))
      >>> chain = gibbs(conditional, jnp.zeros(2), jax.random.key(0), num_samples=10)
      >>> chain.samples.shape
      (10, 2)
    """

    def sweep(z: Array, key: Key) -> tuple[Array, Array]:
        def draw(index: Array, z: Array) -> Array:
            return z.at[index].set(
                conditional(jax.random.fold_in(key, index), z, index)
            )

        z = jax.lax.fori_loop(0, z.shape[0], draw, z)
        return z, z

    samples = run(sweep, initial, key, num_samples, num_warmup)
    return Chain(samples, jnp.ones((), samples.dtype), jnp.zeros((), int))


def bit_conditional(log_density: LogDensity) -> Conditional:
    """Exact conditional of a bit given the others.

        p(z_i = 1|rest) = sigmoid(log p(z_i = 1, rest) - log p(z_i = 0, rest))

    Args:
      log_density: log-density of zeros and ones `[L]`.

    Returns:
      A conditional for `gibbs`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax.mcmc import bit_conditional
      >>> conditional = bit_conditional(lambda z: 100.0 * z[1])
      >>> print(conditional(jax.random.key(0), jnp.zeros(3), 1))
      1.0
    """

    def conditional(key: Key, z: Array, index: Array) -> Array:
        one, zero = (log_density(z.at[index].set(bit)) for bit in (1, 0))
        bit = jax.random.bernoulli(key, jax.nn.sigmoid(one - zero))
        return bit.astype(z.dtype)

    return conditional


def gaussian_conditional(mean: Array, covariance: Array) -> Conditional:
    """Exact conditional of a coordinate of N(mean, covariance) given the others.

        z_i ~ N(mean_i - 1 / P_ii sum_(j != i) P_ij (z_j - mean_j), 1 / P_ii)

    with the precision matrix P (Bishop 2006, eq. 2.96 and 2.97).

    Args:
      mean: mean, `[L]`.
      covariance: covariance matrix, `[L, L]`.

    Returns:
      A conditional for `gibbs`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax.mcmc import gaussian_conditional
      >>> conditional = gaussian_conditional(jnp.zeros(2), jnp.eye(2))
      >>> conditional(jax.random.key(0), jnp.zeros(2), 1).shape
      ()
    """
    precision = jnp.linalg.inv(covariance)

    def conditional(key: Key, z: Array, index: Array) -> Array:
        variance = 1 / precision[index, index]
        # The sum over all j includes the coordinate itself, which cancels z_i.
        shift = variance * jnp.dot(precision[index], z - mean)
        noise = jax.random.normal(key, dtype=z.dtype)
        return z[index] - shift + jnp.sqrt(variance) * noise

    return conditional


def run(step: Callable, start, key: Key, num_samples: int, num_warmup: int):
    """Stack the outputs of `step(carry, fold_in(key, t))` after the warm-up."""
    require_at_least("num_samples", num_samples)
    require_at_least("num_warmup", num_warmup, 0)

    def numbered(carry, number: Array):
        return step(carry, jax.random.fold_in(key, number))

    start = jax.lax.fori_loop(
        0, num_warmup, lambda t, carry: numbered(carry, t)[0], start
    )
    numbers = num_warmup + jnp.arange(num_samples)
    return jax.lax.scan(numbered, start, numbers)[1]
