"""Families of p(z), fixed or learned, and closed-form KLs of pairs with a posterior."""

from vae_jax.priors.autoregressive import AutoregressiveFlow
from vae_jax.priors.closed_form import closed_form_kl, register_kl, unit_kl
from vae_jax.priors.factorized import (
    ClassConditionalPrior,
    DiagonalGaussianPrior,
    FactorizedBernoulliPrior,
    LearnedPrior,
    StandardNormal,
)
from vae_jax.priors.mixtures import MixtureOfGaussians, VampPrior

__all__ = [
    "AutoregressiveFlow",
    "ClassConditionalPrior",
    "DiagonalGaussianPrior",
    "FactorizedBernoulliPrior",
    "LearnedPrior",
    "MixtureOfGaussians",
    "StandardNormal",
    "VampPrior",
    "closed_form_kl",
    "register_kl",
    "unit_kl",
]
