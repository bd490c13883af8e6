"""Log-probabilities of each dimension: the terms of their sum."""

import jax.numpy as jnp
import numpy as np
import pytest

from vae_jax import distributions as d

RNG = np.random.default_rng(0)
A, B = jnp.float32(RNG.normal(size=(2, 5, 3)))
COUNTS = jnp.float32(RNG.poisson(2, size=(5, 3)))
CODES = jnp.float32(RNG.integers(0, 3, size=(5, 3)))
THRESHOLDS = jnp.cumsum(jnp.exp(jnp.float32(RNG.normal(size=(3, 2)))), axis=-1)
CASES = {
    "gaussian": (d.DiagonalGaussianDistribution(A, B[0]), B),
    "shared gaussian": (d.DiagonalGaussianDistribution(A, B[0, 0]), B),
    "bernoulli": (d.BernoulliDistribution(A), CODES % 2),
    "poisson": (d.PoissonDistribution(jnp.exp(A)), COUNTS),
    "negative binomial": (
        d.NegativeBinomialDistribution(jnp.exp(A), jnp.exp(B[0])),
        COUNTS,
    ),
    "zeros": (
        d.ZeroInflatedNegativeBinomialDistribution(
            B, d.NegativeBinomialDistribution(jnp.exp(A), jnp.exp(B[0]))
        ),
        COUNTS,
    ),
    "student t": (d.StudentTDistribution(A, B[0], jnp.exp(B[1])), B),
    "laplace": (d.LaplaceDistribution(A, B[0]), B),
    "log normal": (d.LogNormalDistribution(A, B[0]), jnp.exp(B)),
    "gamma": (d.GammaDistribution(A, jnp.exp(B[0])), jnp.exp(B)),
    "beta": (d.BetaDistribution(A, jnp.exp(B[0])), 1 / (1 + jnp.exp(B))),
    "nominal": (d.NominalDistribution(jnp.stack([A, B, A * B], axis=-1)), CODES),
    "levels": (d.CategoricalDistribution(jnp.stack([A, B, A * B], axis=-1)), CODES / 2),
    "logistics": (
        d.DiscretizedLogisticDistribution(
            *(jnp.stack([part, -part], axis=-1) for part in (A, B, A * B)), 3
        ),
        CODES / 2,
    ),
    "grey": (d.ContinuousBernoulliDistribution(A), 1 / (1 + jnp.exp(B))),
    "ordinal": (d.OrdinalDistribution(A, THRESHOLDS), CODES),
}
CASES["affine"] = (d.AffineDistribution(CASES["laplace"][0], B[1], B[2]), A)
CASES["product"] = (
    d.ProductDistribution(
        (CASES["laplace"][0], CASES["poisson"][0]), ((0, 4, 2), (5, 1, 3))
    ),
    jnp.concatenate([B, COUNTS], axis=-1)[:, np.argsort([0, 4, 2, 5, 1, 3])],
)


@pytest.mark.parametrize("name", CASES)
def test_the_terms_are_those_of_the_sum(name):
    distribution, x = CASES[name]
    assert distribution.factorizes
    each = distribution.log_prob_per_dimension(x)
    assert each.shape == x.shape
    np.testing.assert_allclose(each.sum(-1), distribution.log_prob(x), rtol=1e-5)
    # Each is of its own dimension.
    moved = distribution.log_prob_per_dimension(x.at[:, 1].set(x[::-1, 1]))
    differs = np.any(np.asarray(each) != np.asarray(moved), axis=0)
    assert differs.tolist() == [number == 1 for number in range(x.shape[1])]


def test_dimensions_that_depend_on_one_another_have_no_terms():
    shares = d.MultinomialDistribution(A, jnp.float32(5))
    assert not shares.factorizes
    with pytest.raises(NotImplementedError, match="MultinomialDistribution has no log"):
        shares.log_prob_per_dimension(COUNTS)
