"""Samples of the posterior p(z|x) by annealed importance sampling."""

import jax
import jax.numpy as jnp

from vae_jax.annealing.evidence import check_arguments
from vae_jax.annealing.path import (
    Settings,
    adapt_step_sizes,
    anneal,
    sample_prior,
    split,
)
from vae_jax.evaluation import evaluation_keys, example_keys
from vae_jax.options import require_at_least
from vae_jax.spec import Params
from vae_jax.types import Array, Key


def annealed_posterior_samples(
    params: Params,
    x: Array,
    key: Key,
    *,
    num_samples: int,
    num_chains: int = 4,
    num_temperatures: int = 500,
    num_leapfrog: int = 10,
    initial_step_size: float | Array = 0.3,
    first: int | Array = 0,
) -> Array:
    """Draw independent samples of p(z|x) of every example by annealing.

    For each sample, C chains are annealed from the prior to the posterior, and chain c
    is taken with a probability proportional to its weight,

        P(c) = w_c / (sum_k w_k)

    (sampling importance resampling, Rubin 1988, of the chains of Neal 2001). Exact for
    many chains or many temperatures.

    Args:
      params: see `annealed_log_evidence`.
      x: observations, `[B, D]`.
      key: root key of an evaluation; example i uses
        `fold_in(evaluation_keys(key).annealed_samples, first + i)`.
      num_samples: number S of samples per example.
      num_chains: number C of chains per sample.
      num_temperatures: number K of steps from the prior to the posterior.
      num_leapfrog: number of leapfrog steps in each of the K - 1 Hamiltonian steps.
      initial_step_size: initial step size of the pilot run, at the prior.
      first: index of the first example, if `x` is part of a data set.

    Returns:
      Latents, `[S, B, L]`.

    Raises:
      ValueError: see `annealed_log_evidence`; also if `num_samples` is below 1.

    Example:
      >>> import functools, jax, jax.numpy as jnp
      >>> from vae_jax import ModelSpec, init
      >>> from vae_jax.annealing import annealed_posterior_samples
      >>> params = init(ModelSpec(latent_dim=2, data_shape=(5,)), jax.random.key(0))
      >>> sample = functools.partial(annealed_posterior_samples, num_samples=7)
      >>> jax.eval_shape(sample, params, jnp.zeros((3, 5)), jax.random.key(1)).shape
      (7, 3, 2)
    """
    require_at_least("num_samples", num_samples)
    settings = Settings(num_chains, num_temperatures, num_leapfrog, initial_step_size)
    x = check_arguments(params, x, settings)
    root = evaluation_keys(key).annealed_samples
    pilot_keys, start_keys, chain_keys, choice_keys = split(
        example_keys(root, len(x), first=first), 4
    )
    path = adapt_step_sizes(params, x, pilot_keys, settings)
    z = sample_prior(params, start_keys, num_samples * num_chains)
    chains = anneal(params, x, path, z, chain_keys)

    def choose(z: Array, log_weights: Array, key: Key) -> Array:
        groups = log_weights.reshape(num_samples, num_chains)
        chosen = jax.random.categorical(key, groups)
        return z.reshape(num_samples, num_chains, -1)[jnp.arange(num_samples), chosen]

    return jax.vmap(choose, in_axes=(1, 1, 0), out_axes=1)(
        chains.z, chains.log_weights, choice_keys
    )
