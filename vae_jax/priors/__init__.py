"""Priors p(z), fixed or learned (`types.Prior`)."""

from vae_jax.priors.autoregressive import AutoregressiveFlow
from vae_jax.priors.factorized import (
    ClassConditionalPrior,
    CovariateGaussianPrior,
    DiagonalGaussianPrior,
    FactorizedBernoulliPrior,
    StandardNormal,
)
from vae_jax.priors.mixtures import MixtureOfGaussians, VampPrior

__all__ = [
    "AutoregressiveFlow",
    "ClassConditionalPrior",
    "CovariateGaussianPrior",
    "DiagonalGaussianPrior",
    "FactorizedBernoulliPrior",
    "MixtureOfGaussians",
    "StandardNormal",
    "VampPrior",
]
