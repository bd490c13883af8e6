"""What a class of the user's own must define and declare, and what refuses it."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vae_jax
from vae_jax import (
    ELBO,
    MLP,
    Cyclic,
    FreeBits,
    MixtureOfGaussians,
    ModelSpec,
    StandardNormal,
    register_kl,
)
from vae_jax.distributions import (
    DiagonalGaussianDistribution,
    FullGaussianDistribution,
    MixtureDistribution,
    closed_form_kl,
)
from vae_jax.estimators import Combined, Renyi, sigma_points
from vae_jax.estimators.contract import check_temperature
from vae_jax.types import Distribution, Prior

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


def test_a_model_that_diverged_is_nan_with_and_without_jit(key):
    """Eagerly the data were blamed for what the model drew."""
    spec = replace(SMALL, prior=MixtureOfGaussians(3))
    params = vae_jax.init(spec, key)
    lost = params.replace(encoder=jax.tree.map(lambda w: w * jnp.nan, params.encoder))
    for function in (vae_jax.elbo, jax.jit(vae_jax.elbo)):
        assert jnp.isnan(function(lost, jnp.zeros((3, 5)), key))


@pytest.mark.parametrize(
    "pair",
    [
        (DiagonalGaussianDistribution, StandardNormal),
        (vae_jax.DiagonalGaussian, DiagonalGaussianDistribution),
        (object, DiagonalGaussianDistribution),
        (DiagonalGaussianDistribution, 3),
    ],
)
def test_a_closed_form_is_of_two_classes_of_distributions(pair):
    with pytest.raises(ValueError, match="_type must be a subclass of .*Distribution"):
        register_kl(*pair)


def test_free_bits_take_one_allowance_also_where_settings_are_stacked(key):
    both = jax.tree.map(lambda *nats: jnp.stack(nats), FreeBits(0.1), FreeBits(0.2))
    params = vae_jax.init(SMALL, key)
    with pytest.raises(ValueError, match="nats must be a number"):
        ELBO(penalty=both)(params, jnp.zeros((3, 5)), key, 0)


def test_a_prior_declares_the_values_of_its_latents():
    class Undeclared(StandardNormal):
        latent_space = None

    with pytest.raises(
        ValueError, match="prior .* must declare .*latent_space = 'real'"
    ):
        replace(SMALL, prior=Undeclared())


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_a_full_covariance_takes_a_variance_that_the_units_share(shape, key):
    q = FullGaussianDistribution(*jax.random.normal(key, (3, 2, 3)))
    shared, each = (
        DiagonalGaussianDistribution(jnp.zeros((1, 3)), jnp.full(of, -1.0))
        for of in (shape, (1, 3))
    )
    kl = closed_form_kl(type(q), type(each))
    np.testing.assert_allclose(kl(q, shared), kl(q, each), rtol=1e-6)


class Shifted(DiagonalGaussianDistribution):
    """Another density than its parent's."""

    def log_prob(self, value):
        return super().log_prob(value - 3)


class Redeclared(Shifted):
    has_entropy = True


def test_a_class_with_another_density_does_not_inherit_what_needed_it(key):
    assert not (Shifted.has_entropy or Shifted.mean_is_exact or Shifted.maps_noise)
    assert Redeclared.has_entropy and not Redeclared.maps_noise
    assert DiagonalGaussianDistribution.maps_noise
    with pytest.raises(ValueError, match="sigma_points requires .* got a Shifted"):
        sigma_points(lambda z, _: z.sum(-1), Shifted(*jnp.zeros((2, 1, 2))), key)


def test_a_class_without_a_density_has_no_log_prob():
    with pytest.raises(TypeError, match="has_log_prob = False, too"):

        class Mass(Distribution):
            has_density = False


def test_a_class_without_draws_says_so(key):
    class Nothing(Distribution): ...

    for draw in (Nothing().sample, Nothing().sample_and_log_prob):
        with pytest.raises(NotImplementedError, match="Nothing has neither sample nor"):
            draw(key, 1)
