"""Families of q(z|x): point mass, Gaussians, flows, bits.

A family (in the spec, hashable) says how many numbers it wants from the encoder and
builds of them a posterior (a pytree of arrays). `types.PosteriorFamily` and
`types.Posterior` are the two contracts.
"""

from vae_jax.posteriors.bounds import (
    LOG_VAR_BOUND,
    bound_covariance,
    bound_factor,
    bound_log_var,
    unbound_covariance,
    unbound_log_var,
)
from vae_jax.posteriors.discrete import (
    MAX_ENUMERABLE_BITS,
    BernoulliPosterior,
    FactorizedBernoulli,
)
from vae_jax.posteriors.flows import (
    Householder,
    HouseholderPosterior,
    InverseAutoregressive,
    InverseAutoregressivePosterior,
    Planar,
    PlanarPosterior,
    Sylvester,
    SylvesterPosterior,
)
from vae_jax.posteriors.gaussian import (
    DiagonalGaussian,
    DiagonalGaussianPosterior,
    FullGaussian,
    FullGaussianPosterior,
    LowRankGaussian,
    LowRankGaussianPosterior,
)
from vae_jax.posteriors.point_mass import PointMass, PointMassPosterior

__all__ = [
    "LOG_VAR_BOUND",
    "MAX_ENUMERABLE_BITS",
    "BernoulliPosterior",
    "DiagonalGaussian",
    "DiagonalGaussianPosterior",
    "FactorizedBernoulli",
    "FullGaussian",
    "FullGaussianPosterior",
    "Householder",
    "HouseholderPosterior",
    "InverseAutoregressive",
    "InverseAutoregressivePosterior",
    "LowRankGaussian",
    "LowRankGaussianPosterior",
    "Planar",
    "PlanarPosterior",
    "PointMass",
    "PointMassPosterior",
    "Sylvester",
    "SylvesterPosterior",
    "bound_covariance",
    "bound_factor",
    "bound_log_var",
    "unbound_covariance",
    "unbound_log_var",
]
