"""Samplers of a posterior p(z|x) that need no q: Markov chains on a log-density.

One convention serves all: a sampler moves one chain, `log_density` takes its state
`[L]` to a scalar, and `vmap` makes of it many chains, many images, or both.
`posterior_samples` does so for a model; for one image by hand it is

    sampler = partial(nuts, posterior_log_density(params, x), num_samples=1000)
    chains = jax.vmap(sampler)(starts, keys)

All are called as `sampler(log_density, initial, key, *, num_samples, num_warmup)` and
drop what they do in the warm-up; `gibbs` takes a conditional where the others take a
density. Metropolis-Hastings and Gibbs are written out; Hamiltonian Monte Carlo and the
No-U-Turn sampler are blackjax's, with the step size and the scales of the units adapted
in the warm-up (Stan's windows).
"""

from vae_jax.mcmc.chains import (
    Chain,
    Conditional,
    LogDensity,
    Proposal,
    bit_conditional,
    gaussian_conditional,
    gibbs,
    metropolis_hastings,
    random_walk,
)
from vae_jax.mcmc.convergence import effective_sample_size, r_hat
from vae_jax.mcmc.hamiltonian import hmc, nuts
from vae_jax.mcmc.posterior import (
    PosteriorSamples,
    posterior_log_density,
    posterior_samples,
)

__all__ = [
    "Chain",
    "Conditional",
    "LogDensity",
    "PosteriorSamples",
    "Proposal",
    "bit_conditional",
    "effective_sample_size",
    "gaussian_conditional",
    "gibbs",
    "hmc",
    "metropolis_hastings",
    "nuts",
    "posterior_log_density",
    "posterior_samples",
    "r_hat",
    "random_walk",
]
