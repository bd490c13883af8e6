"""Markov chain Monte Carlo samplers for a posterior p(z|x), given by its log-density.

A sampler runs a single chain. `log_density` maps the state `[L]` to a scalar, and
`vmap` extends the sampler to several chains and examples. `posterior_samples` does this
for a model; for a single example:

    sampler = partial(nuts, posterior_log_density(params, x), num_samples=1000)
    chains = jax.vmap(sampler)(starts, keys)

All samplers are called as
`sampler(log_density, initial, key, *, num_samples, num_warmup)` and discard the
warm-up. `gibbs` takes a conditional instead of a density. Metropolis-Hastings and Gibbs
are implemented here. Hamiltonian Monte Carlo and the No-U-Turn sampler are from
blackjax, with step size and scales of the units adapted during the warm-up (window
adaptation, as in Stan).
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
