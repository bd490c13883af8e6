"""Simulation-based calibration: tests of draws against the exact posterior p(z|x).

If z0 ~ p(z) and x ~ p(x|z0), then z0 is a draw of p(z|x). Its rank among S draws of the
exact posterior, by any quantity, is therefore uniform on 0, ..., S (Talts, Betancourt,
Simpson, Vehtari & Gelman 2018, theorem 1). Ranks concentrate in the middle if the draws
are overdispersed, and at the ends if they are underdispersed.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax.annealing import annealed_posterior_samples
from vae_jax.distributions.support import known_values
from vae_jax.evaluation import map_examples
from vae_jax.mcmc import Chain, nuts, posterior_samples
from vae_jax.model import at_labels, decode, draw_prior, dtype_of, encode
from vae_jax.objectives import log_joint
from vae_jax.options import require_at_least
from vae_jax.spec import Params
from vae_jax.types import Array, Key, Latents

Sampler = Callable[[Params, Array, Key, int], Latents]
"""`f(params, x, key, num_draws)`: draws `[S, 1, L]` of p(z|x) for `x` `[1, D]`."""


class RankTest(NamedTuple):
    """Test of the hypothesis that ranks are uniform, for each quantity separately.

    Attributes:
      p_value: probability of a deviation at least as large if the ranks are uniform,
        `[Q]`.
      deviation: ECDF of the ranks minus that of the uniform distribution, `[S, Q]`;
        row k is at rank k.
      band: half-width of the simultaneous band of the deviation, `[S]`. Under the
        hypothesis, a quantity leaves the band at one or more ranks with probability
        1 - coverage.
    """

    p_value: Array
    deviation: Array
    band: Array


def encoder_draws(params: Params, x: Array, key: Key, num_draws: int) -> Latents:
    """Draw from the encoder's q(z|x); a `Sampler`.

    Args:
      params: model parameters.
      x: one observation, `[1, D]`.
      key: PRNG key, consumed once.
      num_draws: number S of draws.

    Returns:
      Latents, `[S, 1, L]`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax import ModelSpec, init
      >>> from vae_jax.calibration import encoder_draws
      >>> params = init(ModelSpec(), jax.random.key(0))
      >>> encoder_draws(params, jnp.zeros((1, 784)), jax.random.key(1), 3).shape
      (3, 1, 20)
    """
    return encode(params, x).sample(key, num_draws)


def chain_draws(
    *,
    num_warmup: int = 500,
    thinning: int = 10,
    sampler: Callable[..., Chain] = nuts,
) -> Sampler:
    """Return a `Sampler` that runs one Markov chain, started at a draw of q(z|x).

    Args:
      num_warmup: number of warmup steps.
      thinning: steps between draws. Ranks are uniform for independent draws only:
        choose it above the autocorrelation time, T / `effective_sample_size`.
      sampler: MCMC algorithm, as for `mcmc.posterior_samples`.

    Returns:
      The sampler.

    Raises:
      ValueError: `thinning` below 1. The sampler raises the errors of
        `mcmc.posterior_samples`.

    Example:
      >>> from vae_jax.calibration import chain_draws
      >>> callable(chain_draws(num_warmup=100, thinning=5))
      True
    """
    require_at_least("thinning", thinning)

    def draws(params: Params, x: Array, key: Key, num_draws: int) -> Array:
        chains = posterior_samples(
            params,
            x,
            key,
            num_chains=1,
            num_samples=num_draws * thinning,
            num_warmup=num_warmup,
            sampler=sampler,
        )
        return chains.samples[thinning - 1 :: thinning, 0]

    return draws


def annealed_draws(
    *, num_chains: int = 4, num_temperatures: int = 100, num_leapfrog: int = 10
) -> Sampler:
    """Return a `Sampler` that uses annealed importance sampling.

    See `annealed_posterior_samples`.

    Args:
      num_chains: chains per draw, one of which is resampled by its weight.
      num_temperatures: as for `annealed_log_evidence`.
      num_leapfrog: as for `annealed_log_evidence`.

    Returns:
      The sampler.

    Example:
      >>> from vae_jax.calibration import annealed_draws
      >>> callable(annealed_draws(num_temperatures=50))
      True
    """
    options = {"num_temperatures": num_temperatures, "num_leapfrog": num_leapfrog}

    def draws(params: Params, x: Array, key: Key, num_draws: int) -> Array:
        return annealed_posterior_samples(
            params, x, key, num_samples=num_draws, num_chains=num_chains, **options
        )

    return draws


def simulation_ranks(
    params: Params,
    key: Key,
    *,
    num_simulations: int = 1000,
    num_draws: int = 99,
    sampler: Sampler = encoder_draws,
    simulations_at_once: int = 50,
) -> Array:
    """Simulate observations and rank their true z among draws of p(z|x).

    Args:
      params: parameters of an unconditional model.
      key: PRNG key, consumed once.
      num_simulations: number n of observations x ~ p(x|z0), z0 ~ p(z).
      num_draws: number S of draws of p(z|x) per observation.
      sampler: source of the draws: `encoder_draws`, `chain_draws()`,
        `annealed_draws()`, or any `Sampler`.
      simulations_at_once: number of simulations to compute in parallel.

    Returns:
      Integers in 0, ..., S, `[n, Q]`: a column for each latent (concatenated for
      several stochastic layers), and last the rank by log p(x, z), which also detects
      errors that the marginals do not show (Modrak et al. 2023, section 4). Ties, as
      between discrete latents, are broken at random, which keeps the ranks uniform.

    Raises:
      ValueError: a number below 1; a conditional model; draws of another shape.

    Example:
      >>> import jax
      >>> from vae_jax import ModelSpec, init
      >>> from vae_jax.calibration import simulation_ranks
      >>> params = init(ModelSpec(latent_dim=2, data_shape=(5,)), jax.random.key(0))
      >>> ranks = simulation_ranks(params, jax.random.key(1), num_simulations=10)
      >>> ranks.shape
      (10, 3)
    """
    require_at_least("num_simulations", num_simulations)
    require_at_least("num_draws", num_draws)
    if params.spec.is_conditional:
        raise ValueError(
            "simulation_ranks needs a model without labels, covariates and exposures, "
            f"got num_classes={params.spec.num_classes}, num_covariates="
            f"{params.spec.num_covariates} and {params.spec.likelihood!r}"
        )
    prior_key, likelihood_key, sampler_key = jax.random.split(key, 3)
    params_at = at_labels(params, None)
    z0 = draw_prior(params_at, prior_key, num_samples=num_simulations)
    dtype = dtype_of(params)
    z0 = jax.tree.map(lambda leaf: leaf.astype(dtype), z0)
    x = decode(params, z0).sample(likelihood_key, 1)[0]

    def ranks(x: Array, z0: Latents, key: Key) -> Array:
        draw_key, tie_key = jax.random.split(key)
        z = sampler(params, x, draw_key, num_draws)
        # Equal latents must have log-densities that are equal to the bit: a product of
        # matrices is rounded by the size of its batch, so all are taken in one.
        both = jax.tree.map(lambda one, more: jnp.concatenate([one[None], more]), z0, z)
        true, drawn = jnp.split(_quantities(params, x, both), [1])
        if len(drawn) != num_draws:
            raise ValueError(
                f"sampler must return draws [{num_draws}, 1, L], got {len(drawn)}"
            )
        below = jnp.sum(drawn < true, axis=0)
        tied = jnp.sum(drawn == true, axis=0)
        return below + jax.random.randint(tie_key, tied.shape, 0, tied + 1)

    return map_examples(
        ranks, (x, z0), sampler_key, examples_at_once=simulations_at_once
    )


def _quantities(params: Params, x: Array, z: Latents) -> Array:
    """Latents and log p(x, z) of one observation, `[S, Q]`."""
    layers = [leaf[:, 0] for leaf in jax.tree.leaves(z)]
    return jnp.concatenate([*layers, log_joint(params, x, z)], axis=-1)


def rank_test(
    ranks: Array,
    key: Key,
    *,
    num_draws: int,
    coverage: float = 0.95,
    num_references: int = 10_000,
) -> RankTest:
    """Test whether ranks are uniform on 0, ..., S, with simultaneous bands.

        statistic = max_k |F(k) - u_k| / sqrt(u_k (1 - u_k) / n)
        u_k = (k + 1) / (S + 1)

    The statistic is the largest deviation of the ECDF F of the ranks from that of the
    uniform distribution, in units of its standard error, over ranks k below S. Its null
    distribution is simulated (as in Saeilynoja, Buerkner & Vehtari 2022, who use
    binomial quantiles instead of standard errors).

    Args:
      ranks: integers in 0, ..., S, `[n, Q]`, from `simulation_ranks`.
      key: PRNG key of the simulated reference, consumed once.
      num_draws: number S of draws.
      coverage: coverage probability of the band, for one quantity.
      num_references: number R of simulated sets of n ranks; the smallest possible
        p-value is 1 / (R + 1).

    Returns:
      `RankTest`. The p-value of a joint test of Q quantities is the smallest p-value
      times Q (Bonferroni).

    Raises:
      ValueError: ranks that are not integers `[n, Q]` from 0 to `num_draws`, a number
        below 1, or a coverage outside (0, 1).

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax.calibration import rank_test
      >>> narrow = jnp.array([[0], [9]] * 50)  # all at the ends
      >>> found = rank_test(narrow, jax.random.key(0), num_draws=9)
      >>> bool(found.p_value[0] < 0.01)
      True
    """
    require_at_least("num_draws", num_draws)
    require_at_least("num_references", num_references)
    if ranks.ndim != 2 or not jnp.issubdtype(ranks.dtype, jnp.integer):
        raise ValueError(
            f"ranks must be integers [n, Q], got {ranks.dtype}{list(ranks.shape)}"
        )
    known = known_values(ranks)
    if known is not None and not np.all((known >= 0) & (known <= num_draws)):
        raise ValueError(
            f"ranks must be from 0 to num_draws={num_draws}, got values from "
            f"{known.min()} to {known.max()}"
        )
    if not 0 < coverage < 1:
        raise ValueError(f"coverage must be in (0, 1), got {coverage}")
    count = ranks.shape[0]
    uniform = jnp.arange(1, num_draws + 1) / (num_draws + 1)
    error = jnp.sqrt(uniform * (1 - uniform) / count)
    deviation = partial(_deviation, uniform=uniform)

    def statistic(ranks: Array) -> Array:
        return jnp.max(jnp.abs(deviation(ranks)) / error)

    def reference(key: Key) -> Array:
        return statistic(jax.random.randint(key, (count,), 0, num_draws + 1))

    keys = jax.random.split(key, num_references)
    references = jax.lax.map(reference, keys, batch_size=min(100, num_references))
    found = jax.vmap(statistic, in_axes=1)(ranks)
    larger = jnp.sum(references >= found[:, None] - 1e-6, axis=-1)
    return RankTest(
        p_value=(1 + larger) / (1 + num_references),
        deviation=jax.vmap(deviation, in_axes=1, out_axes=1)(ranks),
        band=jnp.quantile(references, coverage) * error,
    )


def _deviation(ranks: Array, uniform: Array) -> Array:
    """ECDF of ranks `[n]` at 0, ..., S - 1, minus the uniform one, `[S]`."""
    counts = jnp.bincount(ranks, length=len(uniform) + 1)
    return jnp.cumsum(counts)[:-1] / len(ranks) - uniform
