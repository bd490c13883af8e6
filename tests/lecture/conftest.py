"""Models shared by the tests of several sets of notes."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lecture_examples import (
    BIAS,
    NOISE_VAR,
    Q_LOG_VAR,
    Q_MEAN,
    WEIGHTS,
    X,
    linear_spec,
    model_of_weights,
)

import vae_jax
from experiments.lecture import evidence
from vae_jax import (
    PointMass,
    elbo_terms,
    estimators,
    exact,
)
from vae_jax.distributions import (
    DiagonalGaussianDistribution,
    gaussian,
)
from vae_jax.estimators import sigma_points as without_noise


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def known():
    """The library's values for an arbitrary q, from one compiled program, as NumPy."""

    @jax.jit
    def measure(x, mean, log_var):
        model = model_of_weights()
        params = exact.linear_vae(model)
        q = DiagonalGaussianDistribution(mean, log_var)
        key = jax.random.key(0)
        options = {"posterior": q, "estimator": without_noise}
        terms = elbo_terms(params, x, key, **options)
        sampled = elbo_terms(params, x, key, kl="monte_carlo", **options)
        posterior = exact.posterior(model, x)

        def mean_of(f):
            return without_noise(lambda z, _: f(z), q, key)

        return {
            "elbo": terms.elbo,
            "sgvb_a": sampled.elbo,
            "log_likelihood": terms.log_likelihood,
            "kl": terms.kl_divergence,
            "entropy": gaussian.diagonal_entropy(log_var),
            "log_joint": mean_of(lambda z: vae_jax.log_joint(params, x, z)),
            "log_prior": mean_of(lambda z: vae_jax.log_prior(params, z)),
            "log_evidence": exact.log_evidence(model, x),
            "gap": evidence.gap_to_posterior(model, x, q),
            "posterior_mean": posterior[0],
            "posterior_covariance": posterior[1],
        }

    with jax.enable_x64(True):
        found = measure(*map(jnp.asarray, (X, Q_MEAN, Q_LOG_VAR)))
        return {name: np.asarray(value) for name, value in found.items()}


@pytest.fixture(scope="session")
def plane():
    """The library's E log p(x|z) and KL on a grid of q(z) = N(m, s^2), for one x.

    The model is x|z ~ N(2 z, 1/2) at x = 3. Its posterior N(4/3, 1/9) and N(0, 1) lie
    on the grid.
    """
    means = np.linspace(0, 8 / 3, 31)
    scales = 3.0 ** (np.arange(-24, 7) / 6)
    m, s = (part.reshape(-1, 1) for part in np.meshgrid(means, scales, indexing="ij"))

    @jax.jit
    def measure(m, s):
        model = exact.LinearGaussian(
            jnp.full((1, 1), 2.0), jnp.zeros(1), jnp.asarray(0.5)
        )
        q = DiagonalGaussianDistribution(m, 2 * jnp.log(s))
        x = jnp.full_like(m, 3.0)
        options = {"posterior": q, "estimator": without_noise}
        return elbo_terms(exact.linear_vae(model), x, jax.random.key(0), **options)

    with jax.enable_x64(True):
        terms = jax.device_get(measure(jnp.asarray(m), jnp.asarray(s)))
    shape = (len(means), len(scales))
    return (
        means,
        scales,
        terms.log_likelihood.reshape(shape),
        terms.kl_divergence.reshape(shape),
    )


@pytest.fixture(scope="session")
def autoencoder():
    init = jax.jit(partial(vae_jax.init, linear_spec(posterior=PointMass())))
    return init(jax.random.key(0))


@pytest.fixture(scope="session")
def linear_vae():
    """The linear-Gaussian model with its best encoder, in single precision."""
    return exact.linear_vae(
        exact.LinearGaussian(
            *(jnp.asarray(a, jnp.float32) for a in (WEIGHTS, BIAS, NOISE_VAR))
        )
    )


@pytest.fixture(scope="session")
def gradients():
    """20,000 draws of d/dmu E (z + 3)^2 at q = N(1, 1.5^2) by two estimators."""

    def draws(name):
        def value(mean, key):
            q = DiagonalGaussianDistribution(
                mean[None, None], jnp.full((1, 1), 2 * math.log(1.5))
            )
            integrand = lambda z, _: (z[..., 0] + 3) ** 2  # noqa: E731
            return getattr(estimators, name)(integrand, q, key, num_samples=1)[0]

        many = jax.random.split(jax.random.key(0), 20_000)
        return jax.jit(jax.vmap(jax.grad(value), in_axes=(None, 0)))(
            jnp.asarray(1.0), many
        )

    return {
        name: np.asarray(draws(name))
        for name in ("score_function", "reparameterization")
    }


@pytest.fixture(scope="session")
def collapsed(linear_vae):
    """The same model with an encoder and a decoder that ignore their inputs."""
    nothing = partial(jax.tree.map, jnp.zeros_like)
    decoder = linear_vae.decoder["output"]
    decoder = {"output": decoder | {"kernel": jnp.zeros_like(decoder["kernel"])}}
    return linear_vae.replace(encoder=nothing(linear_vae.encoder), decoder=decoder)
