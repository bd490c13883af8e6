"""What a class of the user's own must define and declare, and what refuses it."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vae_jax
from vae_jax import MLP, Cyclic, ModelSpec, StandardNormal
from vae_jax.distributions import DiagonalGaussianDistribution, MixtureDistribution
from vae_jax.estimators import Combined, Renyi
from vae_jax.estimators.contract import check_temperature
from vae_jax.types import Prior

SMALL = ModelSpec(MLP((4,)), MLP((4,)), data_shape=(5,), latent_dim=2)


def test_a_prior_defines_given_and_declares_it_or_neither():
    """Undeclared, every draw came from the parameters of the first label."""
    with pytest.raises(TypeError, match="declare depends_on_labels = True"):

        class Undeclared(Prior):
            def given(self, prior_params, labels):
                return prior_params

    with pytest.raises(TypeError, match="depends_on_labels.*define given"):

        class Unsupplied(Prior):
            depends_on_labels = True


@pytest.mark.parametrize("name", ["log_prob", "sample", "sample_and_log_prob"])
def test_a_prior_defines_no_methods_of_a_distribution(name):
    with pytest.raises(TypeError, match=f"defines {name}.*build must return"):
        type("Mine", (StandardNormal,), {name: lambda self, *args: None})


@dataclass(frozen=True)
class Built(Prior):
    """Standard normals with arrays of any shape."""

    shape: tuple[int, ...]
    latent_space = "real"

    def build(self, prior_params, *, latent_dim, encode):
        return DiagonalGaussianDistribution(*jnp.zeros((2, *self.shape)))


@pytest.mark.parametrize("shape", [(4,), (4, 4), (1, 3), (1, 1, 4)])
def test_draws_of_a_prior_of_another_batch_or_size_are_refused(shape):
    """Arrays `[L]` gave as many draws as there were latents, all of one axis."""
    spec = replace(SMALL, prior=Built(shape), latent_dim=4)
    params = vae_jax.init(spec, jax.random.key(0))
    with pytest.raises(ValueError, match=r"must build a distribution.*\[1, 4\]"):
        vae_jax.generate(params, jax.random.key(1), num_samples=4)


@pytest.mark.parametrize(
    "log_var", [jnp.array([0.0, 10.0]), jnp.zeros(()), -jnp.ones(3)]
)
def test_a_mixture_asks_for_components_with_an_axis(log_var, key):
    """Its index of components picked units where the array led with them."""
    components = DiagonalGaussianDistribution(jnp.zeros((3, 2)), log_var)
    mixture = MixtureDistribution(jnp.zeros(3) - jnp.log(3.0), components)
    with pytest.raises(ValueError, match=r"components.log_var must lead with the axis"):
        mixture.sample(key, 2)


def test_a_mixture_takes_what_its_components_share(key):
    components = DiagonalGaussianDistribution(jnp.zeros((3, 2)), jnp.zeros((1, 2)))
    mixture = MixtureDistribution(jnp.zeros(3) - jnp.log(3.0), components)
    assert mixture.sample(key, 2).shape == (2, 1, 2)


NUMBERS = [float, np.float32, jnp.float32]


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize(
    "choose, value, message",
    [
        (
            lambda v: Cyclic(1.0, period=9, rising_share=v),
            2.0,
            r"rising_share.*\(0, 1\]",
        ),
        (Combined, -0.5, "weight must be between 0 and 1"),
        (Renyi, jnp.inf, "alpha must be finite"),
        (check_temperature, 0.0, "temperature must be positive"),
    ],
)
def test_a_known_number_is_checked_whatever_its_type(choose, value, message, number):
    with pytest.raises(ValueError, match=message):
        choose(number(value))


def test_of_a_traced_share_outside_a_cycle_is_nan():
    rise = jax.jit(lambda share: Cyclic(1.0, period=4, rising_share=share)(1))
    assert jnp.isnan(rise(2.0)) and rise(0.5) == 0.5
