"""Distributions as pytrees, and densities and divergences on plain arrays.

A file holds the functions on arrays of a distribution (`log_prob`, `sample`,
`kl_divergence`, `entropy`) and the class that calls them (`types.Distribution`).
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
    negative_binomial,
    poisson,
)
from vae_jax.distributions.bernoulli import MAX_ENUMERABLE_BITS, BernoulliDistribution
from vae_jax.distributions.categorical import CategoricalDistribution
from vae_jax.distributions.continuous_bernoulli import ContinuousBernoulliDistribution
from vae_jax.distributions.discretized_logistic import DiscretizedLogisticDistribution
from vae_jax.distributions.divergence import closed_form_kl, register_kl, unit_kl
from vae_jax.distributions.gaussian import DiagonalGaussianDistribution
from vae_jax.distributions.mixture import MixtureDistribution
from vae_jax.distributions.multivariate_gaussian import (
    FullGaussianDistribution,
    LowRankGaussianDistribution,
    PrecisionGaussianDistribution,
)
from vae_jax.distributions.negative_binomial import (
    NegativeBinomialDistribution,
    ZeroInflatedNegativeBinomialDistribution,
)
from vae_jax.distributions.point_mass import PointMassDistribution
from vae_jax.distributions.poisson import PoissonDistribution

__all__ = [
    "MAX_ENUMERABLE_BITS",
    "BernoulliDistribution",
    "CategoricalDistribution",
    "ContinuousBernoulliDistribution",
    "DiagonalGaussianDistribution",
    "DiscretizedLogisticDistribution",
    "FullGaussianDistribution",
    "LowRankGaussianDistribution",
    "MixtureDistribution",
    "NegativeBinomialDistribution",
    "PointMassDistribution",
    "PoissonDistribution",
    "PrecisionGaussianDistribution",
    "ZeroInflatedNegativeBinomialDistribution",
    "bernoulli",
    "categorical",
    "closed_form_kl",
    "continuous_bernoulli",
    "discrete",
    "discretized_logistic",
    "gaussian",
    "multivariate_gaussian",
    "negative_binomial",
    "poisson",
    "register_kl",
    "unit_kl",
]
