"""Densities on plain arrays: `log_prob`, `sample`, `kl_divergence`, `entropy`.

Every function sums over the data or latent dimensions, works under `jit`, `grad` and
`vmap`, and computes in the dtype of its inputs. All figures are in nats.
"""

from vae_jax.distributions import (
    bernoulli,
    categorical,
    continuous_bernoulli,
    discrete,
    discretized_logistic,
    gaussian,
    multivariate_gaussian,
)

__all__ = [
    "bernoulli",
    "categorical",
    "continuous_bernoulli",
    "discrete",
    "discretized_logistic",
    "gaussian",
    "multivariate_gaussian",
]
