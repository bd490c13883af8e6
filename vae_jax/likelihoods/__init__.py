"""Families of p(x|z): Bernoulli, Gaussian, and for values of evenly spaced levels.

Each is a normalised density or probability of x, its constant kept, so that
figures in nats compare across models. `types.LikelihoodFamily` is the contract.
"""

from vae_jax.likelihoods.bernoulli import (
    Bernoulli,
    BernoulliLikelihood,
    ContinuousBernoulli,
    ContinuousBernoulliLikelihood,
)
from vae_jax.likelihoods.gaussian import (
    FullCovarianceGaussian,
    FullCovarianceGaussianLikelihood,
    Gaussian,
    GaussianLikelihood,
    PerPixelGaussian,
)
from vae_jax.likelihoods.levels import (
    Categorical,
    CategoricalLikelihood,
    DiscretizedLogistic,
    DiscretizedLogisticLikelihood,
)

__all__ = [
    "Bernoulli",
    "BernoulliLikelihood",
    "Categorical",
    "CategoricalLikelihood",
    "ContinuousBernoulli",
    "ContinuousBernoulliLikelihood",
    "DiscretizedLogistic",
    "DiscretizedLogisticLikelihood",
    "FullCovarianceGaussian",
    "FullCovarianceGaussianLikelihood",
    "Gaussian",
    "GaussianLikelihood",
    "PerPixelGaussian",
]
