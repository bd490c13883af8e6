"""Families: maps from network outputs to distributions.

A family (hashable, part of the spec) declares how many outputs it needs from an encoder
or a decoder and builds a distribution (a pytree of arrays) from them: `types.Family`.
Used as p(x|z), each is a normalised density or probability of x that keeps its
constants, so that values in nats are comparable across models.
"""

from vae_jax.families.bernoulli import (
    Bernoulli,
    ContinuousBernoulli,
    FactorizedBernoulli,
)
from vae_jax.families.bounds import (
    LOG_VAR_BOUND,
    bound_covariance,
    bound_factor,
    bound_log_var,
    unbound_covariance,
    unbound_log_var,
)
from vae_jax.families.columns import Columns
from vae_jax.families.counts import (
    Multinomial,
    NegativeBinomial,
    Poisson,
    ZeroInflatedNegativeBinomial,
)
from vae_jax.families.exposure import Exposed
from vae_jax.families.flows import (
    Householder,
    HouseholderDistribution,
    InverseAutoregressive,
    InverseAutoregressiveDistribution,
    Planar,
    PlanarDistribution,
    Sylvester,
    SylvesterDistribution,
)
from vae_jax.families.fractions import Beta
from vae_jax.families.gaussian import (
    DiagonalGaussian,
    FullCovarianceGaussian,
    FullGaussian,
    Gaussian,
    LowRankGaussian,
    PerPixelGaussian,
)
from vae_jax.families.levels import Categorical, DiscretizedLogistic
from vae_jax.families.missing import Masked
from vae_jax.families.ordinal import Ordinal
from vae_jax.families.point_mass import PointMass
from vae_jax.families.positive import Gamma, LogNormal
from vae_jax.families.robust import Laplace, StudentT
from vae_jax.families.tables import Nominal, Standardized

__all__ = [
    "LOG_VAR_BOUND",
    "Bernoulli",
    "Beta",
    "Categorical",
    "Columns",
    "ContinuousBernoulli",
    "DiagonalGaussian",
    "DiscretizedLogistic",
    "FactorizedBernoulli",
    "FullCovarianceGaussian",
    "FullGaussian",
    "Exposed",
    "Gamma",
    "Gaussian",
    "Householder",
    "HouseholderDistribution",
    "InverseAutoregressive",
    "InverseAutoregressiveDistribution",
    "Laplace",
    "LogNormal",
    "LowRankGaussian",
    "Masked",
    "Multinomial",
    "NegativeBinomial",
    "Nominal",
    "Ordinal",
    "PerPixelGaussian",
    "Planar",
    "PlanarDistribution",
    "PointMass",
    "Poisson",
    "Standardized",
    "StudentT",
    "Sylvester",
    "SylvesterDistribution",
    "ZeroInflatedNegativeBinomial",
    "bound_covariance",
    "bound_factor",
    "bound_log_var",
    "unbound_covariance",
    "unbound_log_var",
]
