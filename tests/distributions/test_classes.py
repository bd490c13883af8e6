"""Every distribution is a pytree that fulfils the contract of `types.Distribution`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vae_jax import AutoregressiveFlow
from vae_jax.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    ContinuousBernoulliDistribution,
    DiagonalGaussianDistribution,
    DiscretizedLogisticDistribution,
    FullGaussianDistribution,
    LowRankGaussianDistribution,
    MixtureDistribution,
    PointMassDistribution,
    PrecisionGaussianDistribution,
)
from vae_jax.families import Householder, InverseAutoregressive, Planar, Sylvester
from vae_jax.types import Distribution

RNG = np.random.default_rng(0)


def normal(*shape, scale=1.0):
    return jnp.asarray(scale * RNG.normal(size=shape), jnp.float32)


def of_family(family):
    params = family.init(jax.random.key(0), dim=3)
    return family.build(params, normal(2, family.num_outputs(3)))


def flow_prior():
    prior = AutoregressiveFlow(2, 4)
    params = prior.init(jax.random.key(0), latent_dim=3, data_shape=(5,))
    moved = jax.tree.map(lambda leaf: normal(*leaf.shape, scale=0.5), params)
    return prior.build(moved, latent_dim=3, encode=None)


FACTOR = jnp.tril(normal(2, 3, 3, scale=0.3)) + 1.5 * jnp.eye(3)
GAUSSIAN = DiagonalGaussianDistribution(normal(2, 3), normal(2, 3))
CASES = {
    "diagonal": GAUSSIAN,
    "one variance": DiagonalGaussianDistribution(normal(2, 3), jnp.float32(-0.7)),
    "full": FullGaussianDistribution(normal(2, 3), normal(2, 3), normal(2, 3)),
    "low rank": LowRankGaussianDistribution(*normal(2, 2, 3), normal(2, 3, 2)),
    "precision": PrecisionGaussianDistribution(normal(2, 3), FACTOR),
    "bits": BernoulliDistribution(normal(2, 3)),
    "grey": ContinuousBernoulliDistribution(normal(2, 3, scale=3)),
    "categories": CategoricalDistribution(normal(2, 3, 5)),
    "levels": DiscretizedLogisticDistribution(
        normal(2, 3, 2), normal(2, 3, 2, scale=0.3) + 0.5, normal(2, 3, 2) - 2, 9
    ),
    "point": PointMassDistribution(normal(2, 3)),
    "mixture": MixtureDistribution(jnp.log(jnp.float32([0.3, 0.7])), GAUSSIAN),
    "planar": of_family(Planar(2)),
    "householder": of_family(Householder(2)),
    "sylvester": of_family(Sylvester(1, 2)),
    "inverse autoregressive": of_family(InverseAutoregressive(1, 4, 2)),
    "flow prior": flow_prior(),
}
BATCH = {"mixture": 1, "flow prior": 1}
COUNT = 4000


@pytest.fixture(scope="module", params=CASES)
def drawn(request):
    distribution, key = CASES[request.param], jax.random.key(1)
    batch = BATCH.get(request.param, 2)

    @jax.jit
    def program(distribution, key):
        value, log_p = distribution.sample_and_log_prob(key, COUNT)
        alone = distribution.sample(key, COUNT)
        again = distribution.log_prob(value) if distribution.has_log_prob else log_p
        entropy = distribution.entropy() if distribution.has_entropy else None
        return value, log_p, alone, again, entropy, distribution.mean

    return distribution, batch, program(distribution, key)


@pytest.mark.long
def test_draws_prepend_an_axis_and_come_with_their_density(drawn):
    _, batch, (value, log_p, alone, again, _, mean) = drawn
    assert value.shape == alone.shape == (COUNT, batch, 3)
    assert log_p.shape == again.shape == (COUNT, batch) and mean.shape == (batch, 3)
    np.testing.assert_allclose(alone, value, rtol=1e-6)
    np.testing.assert_allclose(again, log_p, rtol=1e-3, atol=1e-3)


def test_an_exact_mean_is_that_of_the_draws(drawn, assert_mean):
    distribution, _, (value, *_, mean) = drawn
    if not distribution.has_density:
        np.testing.assert_array_equal(value, np.broadcast_to(mean, value.shape))
    elif distribution.mean_is_exact:
        assert_mean(value, mean)


def test_an_entropy_is_the_mean_of_minus_log_p(drawn, assert_mean):
    distribution, _, (_, log_p, *_, entropy, _) = drawn
    if distribution.has_entropy:
        assert_mean(-log_p, entropy)


@pytest.mark.long
def test_the_gradient_flows_through_the_draws_where_it_is_declared(drawn):
    distribution, *_ = drawn

    @jax.jit
    @jax.grad
    def gradient(distribution):
        return jnp.sum(distribution.sample(jax.random.key(2), 3))

    moves = any(np.any(leaf) for leaf in jax.tree.leaves(gradient(distribution)))
    if distribution.is_reparameterizable:
        assert moves
    # In a mixture only the choice of component has no gradient.
    elif not isinstance(distribution, MixtureDistribution):
        assert not moves


@pytest.mark.long
def test_noise_is_mapped_to_draws_and_back_where_it_is_declared(drawn):
    distribution, *_ = drawn
    if distribution.maps_noise:
        noise = normal(4, 1, 3)
        found = distribution.to_noise(distribution.from_noise(noise))
        np.testing.assert_allclose(
            found, np.broadcast_to(noise, found.shape), rtol=1e-3, atol=1e-4
        )


def test_values_outside_of_the_support_are_refused_or_nan():
    # Real-valued distributions give NaN for NaN and do not raise.
    assert np.all(np.isnan(CASES["diagonal"].log_prob(jnp.full((2, 3), np.nan))))
    for name, outside in {"bits": 2.0, "grey": -0.1}.items():
        value = jnp.full((2, 3), outside)
        with pytest.raises(ValueError, match="x must"):
            CASES[name].log_prob(value)
        assert np.all(np.isnan(jax.jit(CASES[name].log_prob)(value)))


def test_what_a_distribution_does_not_declare_says_so():
    class OnlyDraws(Distribution):
        def sample(self, key, num_samples):
            return jnp.zeros((num_samples, 1, 2))

    for call in (lambda: OnlyDraws().log_prob(0.0), lambda: OnlyDraws().entropy()):
        with pytest.raises(NotImplementedError, match="OnlyDraws has no"):
            call()
