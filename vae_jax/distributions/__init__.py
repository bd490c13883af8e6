"""Distributions as pytrees, and densities and divergences on plain arrays.

Each file defines a distribution as functions of arrays (`log_prob`, `sample`,
`kl_divergence`, `entropy`) and a class that calls them (`types.Distribution`). All
functions sum over the data or latent dimensions, work under `jit`, `grad` and `vmap`,
and compute in the dtype of their inputs. All values are in nats.
"""

from vae_jax.distributions import (
    bernoulli,
    beta,
    categorical,
    continuous_bernoulli,
    discrete,
    discretized_logistic,
    gamma,
    gaussian,
    laplace,
    log_normal,
    multinomial,
    multivariate_gaussian,
    negative_binomial,
    ordinal,
    poisson,
    student_t,
)
from vae_jax.distributions.affine import AffineDistribution
from vae_jax.distributions.bernoulli import MAX_ENUMERABLE_BITS, BernoulliDistribution
from vae_jax.distributions.beta import BetaDistribution
from vae_jax.distributions.categorical import CategoricalDistribution
from vae_jax.distributions.continuous_bernoulli import ContinuousBernoulliDistribution
from vae_jax.distributions.discretized_logistic import DiscretizedLogisticDistribution
from vae_jax.distributions.divergence import closed_form_kl, register_kl, unit_kl
from vae_jax.distributions.gamma import GammaDistribution
from vae_jax.distributions.gaussian import DiagonalGaussianDistribution
from vae_jax.distributions.laplace import LaplaceDistribution
from vae_jax.distributions.log_normal import LogNormalDistribution
from vae_jax.distributions.masked import MaskedDistribution
from vae_jax.distributions.mixture import MixtureDistribution
from vae_jax.distributions.multinomial import MultinomialDistribution
from vae_jax.distributions.multivariate_gaussian import (
    FullGaussianDistribution,
    LowRankGaussianDistribution,
    PrecisionGaussianDistribution,
)
from vae_jax.distributions.negative_binomial import (
    NegativeBinomialDistribution,
    ZeroInflatedNegativeBinomialDistribution,
)
from vae_jax.distributions.nominal import NominalDistribution
from vae_jax.distributions.ordinal import OrdinalDistribution
from vae_jax.distributions.point_mass import PointMassDistribution
from vae_jax.distributions.poisson import PoissonDistribution
from vae_jax.distributions.product import ProductDistribution
from vae_jax.distributions.student_t import StudentTDistribution

__all__ = [
    "MAX_ENUMERABLE_BITS",
    "AffineDistribution",
    "BernoulliDistribution",
    "BetaDistribution",
    "CategoricalDistribution",
    "ContinuousBernoulliDistribution",
    "DiagonalGaussianDistribution",
    "DiscretizedLogisticDistribution",
    "FullGaussianDistribution",
    "GammaDistribution",
    "LaplaceDistribution",
    "LogNormalDistribution",
    "LowRankGaussianDistribution",
    "MaskedDistribution",
    "MixtureDistribution",
    "MultinomialDistribution",
    "NegativeBinomialDistribution",
    "NominalDistribution",
    "OrdinalDistribution",
    "PointMassDistribution",
    "PoissonDistribution",
    "PrecisionGaussianDistribution",
    "ProductDistribution",
    "StudentTDistribution",
    "ZeroInflatedNegativeBinomialDistribution",
    "bernoulli",
    "beta",
    "categorical",
    "closed_form_kl",
    "continuous_bernoulli",
    "discrete",
    "discretized_logistic",
    "gamma",
    "gaussian",
    "laplace",
    "log_normal",
    "multinomial",
    "multivariate_gaussian",
    "negative_binomial",
    "ordinal",
    "poisson",
    "register_kl",
    "student_t",
    "unit_kl",
]
