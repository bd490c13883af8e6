"""Markov chain samples of the posterior p(z|x) of a model."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from vae_jax.annealing import require_continuous_latents
from vae_jax.evaluation import evaluation_keys, example_keys
from vae_jax.mcmc.chains import Chain, LogDensity
from vae_jax.mcmc.convergence import effective_sample_size, r_hat
from vae_jax.mcmc.hamiltonian import hmc, nuts
from vae_jax.model import as_float, check_observations, dtype_of, encode
from vae_jax.objectives import log_joint
from vae_jax.options import require_at_least
from vae_jax.spec import Params
from vae_jax.types import Array, Key


class PosteriorSamples(NamedTuple):
    """Samples of p(z|x) for each example, with convergence diagnostics.

    Attributes:
      samples: latents, `[T, C, B, L]`; `samples[t]` can be passed to `decode`.
      acceptance_rate: acceptance rate of each chain, `[C, B]`.
      r_hat: r-hat of each unit, `[B, L]`; near 1 if the chains agree (`r_hat`).
      effective_sample_size: effective sample size of each unit over all chains,
        `[B, L]`.
      num_divergences: number of divergences of each chain, `[C, B]`; should be 0
        (`Chain`).
    """

    samples: Array
    acceptance_rate: Array
    r_hat: Array
    effective_sample_size: Array
    num_divergences: Array


def posterior_log_density(params: Params, x: Array) -> LogDensity:
    """Log p(x|z) + log p(z) of one observation in nats, as a function of z `[L]`.

    Args:
      params: model parameters.
      x: one observation, `[D]`.

    Returns:
      The log-density of p(z|x) up to the constant log p(x).

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax import ModelSpec, init
      >>> from vae_jax.mcmc import posterior_log_density
      >>> params = init(ModelSpec(), jax.random.key(0))
      >>> posterior_log_density(params, jnp.zeros(784))(jnp.zeros(20)).shape
      ()
    """
    chex.assert_rank(x, 1)
    return lambda z: log_joint(params, x[None], z[None, None])[0, 0]


def posterior_samples(
    params: Params,
    x: Array,
    key: Key,
    *,
    num_chains: int = 4,
    num_samples: int = 500,
    num_warmup: int = 500,
    sampler: Callable[..., Chain] = nuts,
    first: int | Array = 0,
) -> PosteriorSamples:
    """Draw samples of the true posterior p(z|x) of every example with Markov chains.

    The chains start at samples of the encoder's q(z|x). If q misses a mode, all chains
    may miss it, which `r_hat` does not detect.

    Args:
      params: model parameters.
      x: observations, `[B, D]`.
      key: root key of an evaluation; example i uses
        `fold_in(evaluation_keys(key).chains, first + i)`.
      num_chains: number C of chains per example.
      num_samples: number T of samples per chain, after the warm-up.
      num_warmup: number of warm-up steps.
      sampler: sampler of one chain: `nuts`, `hmc`,
        `partial(metropolis_hastings, proposal=...)` or, for binary latents, a function
        that calls `gibbs` with `bit_conditional(log_density)`.
      first: index of the first example, if `x` is part of a data set.

    Returns:
      `PosteriorSamples`.

    Raises:
      ValueError: `num_chains` is below 1 or `num_samples` below 4; with `nuts` or
        `hmc`, the latents are discrete or a tuple, or the model is conditional; or the
        sampler raises it.

    Example:
      >>> import functools, jax, jax.numpy as jnp
      >>> from vae_jax import ModelSpec, init, mcmc
      >>> params = init(ModelSpec(latent_dim=2, data_shape=(5,)), jax.random.key(0))
      >>> walk = mcmc.random_walk(0.5)
      >>> sampler = functools.partial(mcmc.metropolis_hastings, proposal=walk)
      >>> sample = functools.partial(mcmc.posterior_samples, sampler=sampler)
      >>> found = jax.eval_shape(sample, params, jnp.zeros((3, 5)), jax.random.key(1))
      >>> found.samples.shape
      (500, 4, 3, 2)
    """
    require_at_least("num_chains", num_chains)
    # Unwrap a `partial` of a sampler.
    if getattr(sampler, "func", sampler) in (nuts, hmc):
        require_continuous_latents(params, "a sampler that follows gradients")
    x = as_float(x, dtype_of(params))
    check_observations(params, x)

    def sample(x: Array, key: Key) -> Chain:
        start_key, chains_key = jax.random.split(key)
        posterior = encode(params, x[None])
        starts, _ = posterior.sample_and_log_prob(start_key, num_chains)
        if isinstance(starts, tuple):
            raise ValueError(
                f"posterior_samples takes one layer of latents, got {len(starts)} of "
                f"{params.spec.posterior}"
            )
        chex.assert_rank(starts, 3)
        one = partial(
            sampler,
            posterior_log_density(params, x),
            num_samples=num_samples,
            num_warmup=num_warmup,
        )
        return jax.vmap(one)(starts[:, 0], jax.random.split(chains_key, num_chains))

    keys = example_keys(evaluation_keys(key).chains, x.shape[0], first=first)
    chains = jax.vmap(sample)(x, keys)
    samples = jnp.moveaxis(chains.samples, (0, 1, 2), (2, 1, 0))
    return PosteriorSamples(
        samples=samples,
        acceptance_rate=chains.acceptance_rate.T,
        r_hat=r_hat(samples),
        effective_sample_size=effective_sample_size(samples),
        num_divergences=chains.num_divergences.T,
    )
