"""Diagnostics of a model, against closed forms and brute force."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from specs import random_params

from vae_jax import (
    MLP,
    DiagonalGaussian,
    FactorizedBernoulli,
    FactorizedBernoulliPrior,
    HierarchicalGaussian,
    HierarchicalGaussianPrior,
    Householder,
    InverseAutoregressive,
    Linear,
    ModelSpec,
    Planar,
    PointMass,
    StochasticLayer,
    active_units,
    aggregate_posterior,
    encode,
    evaluate,
    inference_gap,
    kl_per_unit,
    reparameterize,
)


def params_of(**choices):
    spec = ModelSpec(
        encoder=MLP((4,)), decoder=MLP((4,)), latent_dim=2, data_shape=(3,), **choices
    )
    return jax.tree.map(jnp.asarray, random_params(spec))


X = np.random.default_rng(0).integers(0, 2, (6, 3)).astype(np.float32)


def test_active_units_of_a_linear_model_are_those_of_its_posterior(linear_gaussian):
    """Var_x of the exact mean is gain C gain', 1 - var on average: 1 - s^2/lambda."""
    rng = np.random.default_rng(1)
    model = linear_gaussian
    x = rng.multivariate_normal(model.bias, model.covariance, size=200_000)
    found = active_units(model.params, jnp.asarray(x), threshold=0.7)
    np.testing.assert_allclose(found.variance, 1 - model.posterior_var, rtol=0.02)
    np.testing.assert_array_equal(found.active, 1 - model.posterior_var > 0.7)
    assert found.count == np.sum(1 - model.posterior_var > 0.7) == 1


@jax.jit
def active_in_repeats(params):
    """From 5 samples, 400 times."""
    run = functools.partial(active_units, params, X, num_samples=5)
    return jax.vmap(run)(jax.random.split(jax.random.key(3), 400))


def assert_honest(found, expected, assert_mean):
    """Right in expectation, and as far off as the standard error says."""
    assert_mean(found.variance, expected)
    spread = np.std(np.float64(found.variance), axis=0)
    error = np.sqrt(np.mean(np.square(np.float64(found.standard_error)), axis=0))
    np.testing.assert_allclose(error, spread, rtol=0.3)


@pytest.mark.long
@pytest.mark.parametrize("latent_dim", [1, 2])
def test_active_units_of_layers_are_those_of_quadrature(latent_dim, assert_mean):
    """The mean of the upper layer is not the one at the mean of the lower layer."""
    params = layered(latent_dim)
    *_, expected = integrals_of_layers(params)
    shown = np.var(np.concatenate(encode(params, X).mean, axis=1), axis=0)
    assert not 0.5 < shown[-1] / expected[-1] < 2
    assert_honest(active_in_repeats(params), expected, assert_mean)


@pytest.mark.parametrize(
    "posterior", [Planar(2), InverseAutoregressive(2, hidden_dim=4, context_dim=2)]
)
def test_active_units_of_flows_are_those_of_many_samples(posterior, assert_mean):
    params = params_of(posterior=posterior)
    # Steep, for a mean that is not where the flow takes the mean of its start.
    params = params.replace(
        encoder=jax.tree.map(lambda leaf: 3 * leaf, params.encoder),
        posterior=jax.tree.map(lambda leaf: 3 * leaf, params.posterior),
    )
    draw = jax.jit(functools.partial(reparameterize, num_samples=100_000))
    z = np.float64(draw(encode(params, X), jax.random.key(5)))
    found = active_in_repeats(params)
    assert_honest(found, np.var(z.mean(axis=0), axis=0), assert_mean)


def test_units_that_say_nothing_are_not_active(assert_mean):
    """The noise of a mean of a few samples varies with x as a signal would."""
    params = params_of(posterior=Planar(2))
    output = params.encoder["output"]
    kernel = jnp.zeros_like(output["kernel"])
    params = params.replace(
        encoder=params.encoder | {"output": output | {"kernel": kernel}}
    )
    found = active_in_repeats(params)
    assert_honest(found, 0.0, assert_mean)
    many = jax.jit(functools.partial(active_units, num_samples=5000))
    assert many(params, X, jax.random.key(0)).count == 0


def test_a_mean_that_is_a_point_to_show_needs_a_key():
    planar = params_of(posterior=Planar(2))
    with pytest.raises(
        ValueError, match="needs a key: the mean of a PlanarDistribution"
    ):
        active_units(planar, X)
    with pytest.raises(ValueError, match="num_samples must be at least 2, got 1"):
        active_units(planar, X, jax.random.key(0), num_samples=1)
    for posterior in (DiagonalGaussian(), Householder(2), PointMass()):
        params = params_of(posterior=posterior)
        found = active_units(params, X)
        expected = np.var(encode(params, X).mean, axis=0)
        np.testing.assert_allclose(found.variance, expected, rtol=1e-5)
        np.testing.assert_array_equal(found.standard_error, 0)


@pytest.mark.parametrize("discrete", [False, True])
def test_the_kls_of_the_units_are_those_of_scipy_and_sum_to_the_term(discrete):
    choices = (
        {"posterior": FactorizedBernoulli(), "prior": FactorizedBernoulliPrior()}
        if discrete
        else {}
    )
    params = params_of(**choices)
    found = kl_per_unit(params, X)
    posterior = encode(params, X)
    if discrete:
        q = np.asarray(posterior.mean, float)
        p = 1 / (1 + np.exp(-np.asarray(params.prior["logits"], float)))
        each = scipy.stats.entropy(
            np.stack([q, 1 - q]),
            np.broadcast_to(np.stack([p, 1 - p])[:, None], (2, 6, 2)),
        )
    else:
        var, mean = np.exp(posterior.log_var), posterior.mean
        each = 0.5 * (var + mean**2 - 1 - np.log(var))
    np.testing.assert_allclose(found, each.mean(axis=0), rtol=1e-5)
    whole = evaluate(params, X, jax.random.key(0)).kl_divergence
    np.testing.assert_allclose(np.sum(found), np.mean(whole), rtol=1e-5)


def test_the_aggregate_posterior_is_that_of_quadrature(assert_mean):
    """Two latents that the mixture of six Gaussians is integrated over on a grid."""
    params = params_of()
    posterior = encode(params, X)
    mean, scale = (
        np.asarray(posterior.mean),
        np.exp(0.5 * np.asarray(posterior.log_var)),
    )
    axis = np.linspace(-7, 7, 701)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1)
    densities = np.prod(
        scipy.stats.norm(mean[:, None, None], scale[:, None, None]).pdf(grid), axis=-1
    )
    mixture, cell = densities.mean(axis=0), (axis[1] - axis[0]) ** 2
    prior = np.prod(scipy.stats.norm.pdf(grid), axis=-1)
    log = lambda values: np.log(np.maximum(values, 1e-300))  # noqa: E731
    information = np.mean(
        np.sum(densities * (log(densities) - log(mixture)), axis=(1, 2)) * cell
    )
    to_prior = np.sum(mixture * (log(mixture) - log(prior))) * cell
    keys = jax.random.split(jax.random.key(1), 3000)
    run = jax.jit(jax.vmap(lambda key: aggregate_posterior(params, X, key)))
    found = run(keys)
    assert_mean(found.mutual_information, information)
    assert_mean(found.kl_to_prior, to_prior)
    np.testing.assert_allclose(found.upper_bound, np.log(6), rtol=1e-6)
    np.testing.assert_allclose(
        found.rate, found.mutual_information + found.kl_to_prior, rtol=1e-4, atol=1e-5
    )
    whole = evaluate(params, X, jax.random.key(0)).kl_divergence
    assert_mean(found.rate, np.mean(whole))


def layer(latent_dim):
    encoder = MLP((3,), activation=jnp.tanh)
    return StochasticLayer(latent_dim, encoder=encoder, decoder=Linear())


def layered(latent_dim):
    """A model of two stochastic layers, of which the upper one has a single unit."""
    above = (layer(1),)
    spec = ModelSpec(
        encoder=Linear(),
        decoder=Linear(),
        posterior=HierarchicalGaussian(above),
        prior=HierarchicalGaussianPrior(above),
        latent_dim=latent_dim,
        data_shape=(3,),
    )
    params = random_params(spec)
    upper = params.posterior["layer_2"]
    # Steep, so that the mean of a layer is not the one at the mean of the layer below.
    upper = upper | {"network": jax.tree.map(lambda leaf: 3 * leaf, upper["network"])}
    wide = jax.tree.map(lambda leaf: leaf / 4, params.prior)
    params = params.replace(posterior={"layer_2": upper}, prior=wide)
    return jax.tree.map(jnp.asarray, params)


def normal_of(weights, inputs):
    """The diagonal Gaussian that a network makes of its inputs, by NumPy."""
    for dense in weights.get("network", {}).values():
        inputs = np.tanh(inputs @ np.float64(dense["kernel"]) + dense["bias"])
    output = weights["output"]
    outputs = inputs @ np.float64(output["kernel"]) + output["bias"]
    mean, raw = np.split(outputs, 2, axis=-1)
    return scipy.stats.norm(mean, np.exp(10 * np.tanh(raw / 20)))


def integrals_of_layers(params):
    """I(x; z), KL(q(z) || p(z)) and Var_x(E[z_j|x]) by the rectangle rule, float64.

    The grid has the axes of the lower layer's units, then that of the upper one.
    """
    size = params.spec.latent_dim
    lower = np.linspace(-9, 9, 121 if size == 2 else 361)
    upper = np.linspace(-9, 9, 181)
    below = np.stack(np.meshgrid(*[lower] * size, indexing="ij"), -1).reshape(-1, size)
    cell = (lower[1] - lower[0]) ** size * (upper[1] - upper[0])
    log_first = normal_of(params.encoder, X).logpdf(below[:, None]).sum(-1).T
    log_second = normal_of(params.posterior["layer_2"], below).logpdf(upper)
    log_q = log_first[..., None] + log_second  # [B, lower, upper]
    log_mixture = scipy.special.logsumexp(log_q, axis=0) - np.log(len(X))
    given = normal_of(params.prior["layer_1"], upper[:, None])
    log_p = given.logpdf(below[:, None]).sum(-1) + scipy.stats.norm.logpdf(upper)
    q, mixture = np.exp(log_q) * cell, np.exp(log_mixture) * cell
    np.testing.assert_allclose(q.sum(axis=(1, 2)), 1, atol=1e-6)
    information = np.sum(q * (log_q - log_mixture)) / len(X)
    to_prior = np.sum(mixture * (log_mixture - log_p))
    means = [q.sum(axis=2) @ below, q.sum(axis=1) @ upper[:, None]]
    return information, to_prior, np.var(np.concatenate(means, axis=1), axis=0)


@pytest.mark.long
@pytest.mark.parametrize("latent_dim", [1, 2], ids=["equal", "unequal"])
def test_the_aggregate_posterior_is_that_of_all_layers(latent_dim, assert_mean):
    """Equal sizes would broadcast where one layer is taken for all of them."""
    params = layered(latent_dim)
    information, to_prior, _ = integrals_of_layers(params)
    keys = jax.random.split(jax.random.key(1), 3000)
    found = jax.jit(jax.vmap(lambda key: aggregate_posterior(params, X, key)))(keys)
    assert_mean(found.mutual_information, information)
    assert_mean(found.kl_to_prior, to_prior)
    whole = evaluate(params, X, jax.random.key(0), num_samples=1000).kl_divergence
    assert_mean(found.rate, np.mean(whole))


def test_one_example_has_no_standard_error():
    found = aggregate_posterior(layered(1), X[:1], jax.random.key(0))
    assert found.mutual_information == pytest.approx(0, abs=1e-5)
    assert found.upper_bound == 0
    assert np.isinf(found.mutual_information_standard_error)
    assert np.isinf(found.kl_to_prior_standard_error)


def test_distinct_codes_show_all_the_information_there_is(linear_gaussian):
    """Far apart and narrow: each z tells its x, and log B is reached."""
    x = jnp.asarray(linear_gaussian.x)
    params = linear_gaussian.with_encoder(0.0, 1e-6)
    found = aggregate_posterior(params, x, jax.random.key(0))
    np.testing.assert_allclose(found.mutual_information, np.log(len(x)), rtol=1e-6)


@pytest.mark.parametrize("function", [kl_per_unit, aggregate_posterior, inference_gap])
def test_an_autoencoder_has_none_of_it(function):
    params = params_of(posterior=PointMass())
    key = () if function is kl_per_unit else (jax.random.key(0),)
    with pytest.raises(ValueError, match="density|factorized"):
        function(params, X, *key)
