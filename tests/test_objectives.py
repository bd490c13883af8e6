"""The bounds: properties of every spec, and a model whose log p(x) is known."""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from specs import SPECS, example_data, random_params

from vae_jax import (
    MLP,
    Bernoulli,
    DiagonalGaussian,
    DiagonalGaussianPrior,
    ModelSpec,
    Params,
    PointMass,
    StandardNormal,
    decode,
    elbo,
    elbo_terms,
    encode,
    generate,
    importance_weighted_bound,
    init,
    log_prior,
    log_weight,
    reparameterization,
    trainable,
)
from vae_jax.distributions import DiagonalGaussianDistribution, closed_form_kl
from vae_jax.model import build_prior
from vae_jax.types import Prior

terms_of = jax.jit(functools.partial(elbo_terms, num_samples=2))


FACTORIZED = [
    name
    for name, spec in SPECS
    if isinstance(spec.posterior, DiagonalGaussian | PointMass)
    and isinstance(spec.prior, StandardNormal | DiagonalGaussianPrior)
]


# Every spec


@functools.cache
def figures(spec):
    """All that the generic properties look at, from one compiled program a spec."""

    @jax.jit
    def program(params, half, x, key, betas):
        def value(params, beta):
            terms = elbo_terms(params, x, key, beta=beta, num_samples=2)
            return jnp.mean(terms.elbo), terms

        def scalar(params, beta):
            return elbo(params, x, key, beta=beta, num_samples=2)

        sweep = jax.vmap(jax.vmap(scalar, (None, 0)), (0, None))
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), params, half)
        (mean, terms), gradient = jax.value_and_grad(value, has_aux=True)(params, 1.0)
        posterior = encode(params, x)
        z, log_q = posterior.sample_and_log_prob(key, 2)
        return {
            "mean": mean,
            "elbo": elbo(params, x, key, num_samples=2),
            "terms": terms,
            "gradient": gradient,
            "swept": sweep(stacked, betas),
            "loop": [scalar(params, betas[1]), scalar(half, betas[0])],
            "posterior": posterior,
            "z": z,
            "log_q": log_q,
            "log_likelihood": decode(params, z).log_prob(x),
            "log_prior": log_prior(params, z),
            "prior": build_prior(params),
        }

    params, x = random_params(spec), example_data(spec)
    half = jax.tree.map(lambda leaf: leaf / 2, params)
    return program(params, half, x, jax.random.key(2), np.float32([0.0, 4.0]))


@pytest.mark.long
def test_elbo_is_a_finite_scalar_and_the_mean_of_its_terms(spec):
    found = figures(spec)
    assert found["elbo"].shape == () and jnp.isfinite(found["elbo"])
    np.testing.assert_allclose(found["elbo"], found["mean"], rtol=1e-6)
    terms = found["terms"]
    assert all(leaf.shape == (4,) for leaf in terms)
    difference = np.subtract(terms.log_likelihood, terms.kl_divergence)
    np.testing.assert_allclose(terms.elbo, difference, rtol=1e-6)
    if closed_form_kl(type(found["posterior"]), type(found["prior"])):
        assert np.all(np.asarray(terms.kl_divergence) >= 0)


def test_the_gradient_is_finite_and_reaches_every_leaf_but_settings(spec):
    gradient = figures(spec)["gradient"]
    trains = jax.tree.leaves(trainable(gradient))
    for (path, leaf), wanted in zip(
        jax.tree.leaves_with_path(gradient), trains, strict=True
    ):
        assert np.all(np.isfinite(leaf)), path
        assert np.any(leaf) == wanted, jax.tree_util.keystr(path)


def test_elbo_is_the_composition_of_the_models_steps(spec):
    found = figures(spec)
    assert found["log_likelihood"].shape == (2, 4)
    expected = np.mean(found["log_likelihood"], axis=0)
    np.testing.assert_allclose(
        found["terms"].log_likelihood, expected, rtol=1e-5, atol=1e-6
    )
    if closed_form_kl(type(found["posterior"]), type(found["prior"])) is None:
        expected = np.mean(found["log_q"] - found["log_prior"], axis=0)
        np.testing.assert_allclose(
            found["terms"].kl_divergence, expected, rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("name", FACTORIZED)
def test_prior_and_kl_of_factorized_models_are_scipys(name):
    spec = dict(SPECS)[name]
    found = figures(spec)
    prior = random_params(spec).prior or {"mean": 0.0, "log_var": 0.0}
    scale = np.exp(prior["log_var"] / 2)
    log_p = scipy.stats.norm(prior["mean"], scale).logpdf(found["z"]).sum(axis=-1)
    np.testing.assert_allclose(found["log_prior"], log_p, rtol=1e-5)
    posterior = found["posterior"]
    if posterior.has_density:
        log_ratio = posterior.log_var - prior["log_var"]
        squares = np.square((posterior.mean - prior["mean"]) / scale)
        terms = np.exp(log_ratio) + squares - 1 - log_ratio
        expected = 0.5 * np.sum(terms, axis=-1)
        np.testing.assert_allclose(found["terms"].kl_divergence, expected, rtol=1e-4)
    else:
        np.testing.assert_array_equal(found["terms"].kl_divergence, np.zeros(4))


def test_vmap_over_models_and_betas_is_the_loop_over_them(spec):
    found = figures(spec)
    assert found["swept"].shape == (2, 2)
    swept = found["swept"][0, 1], found["swept"][1, 0]
    np.testing.assert_allclose(swept, found["loop"], rtol=1e-5)


def test_jit_changes_nothing(key):
    spec = dict(SPECS)["linear-gaussian"]
    params = jax.tree.map(jnp.asarray, random_params(spec))
    plain = elbo(params, jnp.asarray(example_data(spec)), key, num_samples=2)
    np.testing.assert_allclose(plain, figures(spec)["elbo"], rtol=1e-5)


def in_dtype(spec, dtype):
    cast = functools.partial(np.asarray, dtype=dtype)
    return jax.tree.map(cast, (random_params(spec), example_data(spec)))


@pytest.mark.long
def test_float64_stays_float64_throughout(spec, key, x64):
    """No intermediate falls back to float32, where digits would be lost unseen."""
    functions = [jax.value_and_grad(elbo)]
    if spec.posterior != PointMass():
        functions.append(functools.partial(importance_weighted_bound, num_samples=2))
        functions.append(functools.partial(elbo, kl="monte_carlo"))
    for function in functions:
        program = jax.make_jaxpr(function)(*in_dtype(spec, np.float64), key)
        assert {aval.dtype for aval in program.out_avals} == {jnp.dtype("float64")}
        assert "f32[" not in str(program)


@pytest.mark.long
def test_float32_stays_float32_in_64_bit_mode(spec, key, x64):
    function = jax.value_and_grad(elbo_terms_sum)
    outputs = jax.eval_shape(function, *in_dtype(spec, np.float32), key)
    assert {leaf.dtype for leaf in jax.tree.leaves(outputs)} == {jnp.dtype("float32")}


def elbo_terms_sum(params, x, key):
    return sum(jnp.sum(term) for term in elbo_terms(params, x, key))


# Gradients and values


OBJECTIVES = {
    "elbo": functools.partial(elbo, num_samples=2, beta=0.7),
    "importance_weighted": functools.partial(importance_weighted_bound, num_samples=2),
}


@pytest.mark.long
@pytest.mark.parametrize("name", ["mlp-bernoulli", "deep-mlp-learned-variance-prime"])
def test_gradients_are_the_finite_differences(name, key, x64):
    """Along a random direction, with the noise held fixed, in float64."""
    rng = np.random.default_rng(0)
    params, x = in_dtype(dict(SPECS)[name], np.float64)
    direction = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), params)

    @jax.jit
    def values_and_slopes(step):
        moved = jax.tree.map(lambda p, d: p + step * d, params, direction)
        found = {}
        for name, objective in OBJECTIVES.items():
            value, gradient = jax.value_and_grad(objective)(moved, x, key)
            slopes = jax.tree.leaves(jax.tree.map(jnp.vdot, gradient, direction))
            found[name] = value, sum(slopes)
        return found

    up, here, down = (values_and_slopes(step) for step in (1e-6, 0.0, -1e-6))
    for name in OBJECTIVES:
        expected = (up[name][0] - down[name][0]) / 2e-6
        np.testing.assert_allclose(here[name][1], expected, rtol=1e-6, err_msg=name)


def test_the_whole_elbo_and_its_terms_are_numpys(key):
    """The reference architecture in NumPy and SciPy, given the same noise."""
    spec = dict(SPECS)["mlp-bernoulli"]
    params, x = random_params(spec), example_data(spec)
    terms = terms_of(params, x, key, beta=3.0)

    def network(weights, inputs):
        layer = weights["network"]["Dense_0"]
        hidden = np.maximum(inputs @ layer["kernel"] + layer["bias"], 0)
        return hidden @ weights["output"]["kernel"] + weights["output"]["bias"]

    mean, raw = np.split(network(params.encoder, x), 2, axis=-1)
    variance = np.exp(20 * np.tanh(raw / 20))
    noise = np.asarray(jax.random.normal(key, (2, 4, 3)))
    logits = network(params.decoder, mean + np.sqrt(variance) * noise)
    log_likelihood = scipy.stats.bernoulli.logpmf(x, scipy.special.expit(logits))
    log_likelihood = log_likelihood.sum(axis=-1).mean(axis=0)
    kl = 0.5 * np.sum(variance + mean**2 - 1 - np.log(variance), axis=-1)
    np.testing.assert_allclose(terms.log_likelihood, log_likelihood, rtol=1e-4)
    np.testing.assert_allclose(terms.kl_divergence, kl, rtol=1e-4)
    np.testing.assert_allclose(terms.elbo, log_likelihood - 3 * kl, rtol=1e-4)


# The linear-Gaussian model, whose log p(x) is known


NUM_KEYS = 2000


@jax.jit
def linear_gaussian_draws(params, x):
    """Every bound on every example under many keys, the same noise for all."""

    def one(key):
        draws = encode(params, x).sample_and_log_prob(key, 8)
        return {
            "monte_carlo": elbo_terms(params, x, key, kl="monte_carlo"),
            "analytic": elbo_terms(params, x, key, kl="analytic"),
            "bound_1": importance_weighted_bound(params, x, key, num_samples=1),
            "bound_8": importance_weighted_bound(params, x, key, num_samples=8),
            "log_w": log_weight(params, x, *draws),
        }

    return jax.vmap(one)(jax.random.split(jax.random.key(0), NUM_KEYS))


SHIFT, RATIO = np.array([0.3, -0.2]), np.array([1.4, 0.6])


@pytest.fixture
def perturbed(linear_gaussian):
    """What is drawn under a q that is not the posterior, and KL(q || p(z|x))."""
    terms = SHIFT**2 / linear_gaussian.posterior_var + RATIO - 1 - np.log(RATIO)
    params = linear_gaussian.with_encoder(SHIFT, RATIO)
    draws = linear_gaussian_draws(params, linear_gaussian.x)
    return jax.tree.map(np.asarray, draws), 0.5 * terms.sum()


def test_at_the_exact_posterior_every_sample_gives_log_p(linear_gaussian):
    """Zero variance: the log-weight of any z is log p(x)."""
    case = linear_gaussian
    draws = linear_gaussian_draws(case.params, case.x)
    everywhere = np.broadcast_to(case.log_evidence, (NUM_KEYS, 6))
    np.testing.assert_allclose(draws["monte_carlo"].elbo, everywhere, rtol=1e-10)
    for name in ("bound_1", "bound_8"):
        np.testing.assert_allclose(draws[name], case.log_evidence.mean(), rtol=1e-10)


@pytest.mark.parametrize("kl", ["analytic", "monte_carlo"])
def test_the_gap_is_the_divergence_from_the_posterior(
    linear_gaussian, perturbed, kl, assert_mean
):
    draws, gap = perturbed
    assert_mean(draws[kl].elbo, linear_gaussian.log_evidence - gap)


def test_the_two_forms_of_the_divergence_agree_in_expectation(perturbed, assert_mean):
    draws, _ = perturbed
    exact = draws["analytic"].kl_divergence
    assert np.ptp(exact, axis=0).max() == 0
    assert_mean(draws["monte_carlo"].kl_divergence, exact[0])


def test_a_bound_of_one_sample_is_the_elbo(perturbed):
    draws, _ = perturbed
    elbos = draws["monte_carlo"].elbo.mean(axis=1)
    np.testing.assert_allclose(draws["bound_1"], elbos, rtol=1e-12)


def test_the_bound_averages_weights_and_not_their_logarithms(perturbed):
    draws, _ = perturbed
    expected = scipy.special.logsumexp(draws["log_w"], axis=1) - np.log(8)
    np.testing.assert_allclose(draws["bound_8"], expected.mean(axis=1), rtol=1e-12)


def test_the_mean_weight_is_unbiased_for_the_evidence(
    linear_gaussian, perturbed, assert_mean
):
    draws, _ = perturbed
    weights = np.exp(draws["log_w"] - linear_gaussian.log_evidence)
    assert_mean(weights.mean(axis=1), 1.0)


def test_the_bound_rises_with_its_samples_and_stays_below_log_p(
    linear_gaussian, perturbed
):
    draws, _ = perturbed
    bounds = [
        scipy.special.logsumexp(draws["log_w"][:, :count], axis=1) - np.log(count)
        for count in (1, 2, 4, 8)
    ]
    bounds = np.stack(bounds).mean(axis=2)
    rises = np.diff(bounds, axis=0)
    slack = linear_gaussian.log_evidence.mean() - bounds[-1]
    for samples in (*rises, slack):
        assert samples.mean() > 5 * samples.std() / np.sqrt(NUM_KEYS)


# Options


@pytest.fixture
def small():
    """Four equal examples."""
    params = random_params(dict(SPECS)["mlp-bernoulli"])
    return params, np.ones((4, 16), np.float32), jax.random.key(0)


def test_beta_weighs_the_divergence_alone(small):
    one, four = (terms_of(*small, beta=beta) for beta in (1.0, 4.0))
    np.testing.assert_array_equal(one.log_likelihood, four.log_likelihood)
    np.testing.assert_array_equal(one.kl_divergence, four.kl_divergence)
    difference = np.subtract(one.elbo, four.elbo)
    np.testing.assert_allclose(difference, 3 * one.kl_divergence, rtol=1e-4)


def test_the_same_key_gives_the_same_bits_and_another_key_others(small):
    params, x, key = small
    first, again = (terms_of(params, x, key, beta=1.0) for _ in range(2))
    np.testing.assert_array_equal(first.elbo, again.elbo)
    other = terms_of(params, x, jax.random.key(1), beta=1.0)
    assert not np.any(np.equal(first.log_likelihood, other.log_likelihood))
    np.testing.assert_array_equal(first.kl_divergence, other.kl_divergence)


def test_every_example_has_noise_of_its_own(small):
    params, x, key = small
    values = terms_of(
        params, x, key, beta=1.0
    ).log_likelihood  # All four examples are equal.
    assert len(np.unique(values)) == 4


def test_the_estimator_can_be_exchanged(small):
    """It is called once, with the integrand of all terms that need samples."""
    calls = []

    def estimator(integrand, posterior, key, *, num_samples, **options):
        calls.append((num_samples, sorted(options)))
        estimates = reparameterization(
            integrand, posterior, key, num_samples=num_samples, **options
        )
        return jax.tree.map(lambda estimate: estimate + 1000, estimates)

    def shift(function, **options):
        options = {"num_samples": 2} | options
        other = jax.eval_shape(
            functools.partial(function, estimator=estimator, **options), *small
        )
        assert jax.tree.leaves(other)

    shift(elbo)
    shift(elbo, kl="monte_carlo")
    shift(importance_weighted_bound)
    assert calls == [(2, []), (2, []), (2, ["has_aux", "reduction"])]
    moved = jax.jit(functools.partial(elbo_terms, estimator=estimator, num_samples=2))
    expected = np.add(terms_of(*small, beta=1.0).log_likelihood, 1000)
    np.testing.assert_allclose(moved(*small).log_likelihood, expected, rtol=1e-6)


def test_an_estimate_of_the_wrong_shape_does_not_broadcast(small):
    def estimator(integrand, posterior, key, *, num_samples):
        z, log_q = posterior.sample_and_log_prob(key, num_samples)
        return {name: v[0][:, None] for name, v in integrand(z, log_q).items()}

    with pytest.raises(AssertionError):
        jax.eval_shape(functools.partial(elbo, estimator=estimator), *small)


@pytest.mark.parametrize("num_samples", [0, -1])
@pytest.mark.parametrize(
    "function", [elbo, elbo_terms, importance_weighted_bound], ids=lambda f: f.__name__
)
def test_fewer_than_one_sample_is_refused(function, num_samples, small):
    with pytest.raises(ValueError, match=f"num_samples .* got {num_samples}"):
        function(*small, num_samples=num_samples)


def test_an_unknown_form_of_the_divergence_is_refused(small):
    with pytest.raises(ValueError, match="kl must be one of auto.*'exact'"):
        elbo(*small, kl="exact")


def test_integers_are_refused_and_booleans_taken(small):
    params, x, key = small
    draws = jnp.zeros((1, 4, 3)), jnp.zeros((1, 4))
    for call in (
        lambda x: elbo(params, x, key),
        lambda x: importance_weighted_bound(params, x, key, num_samples=2),
        lambda x: log_weight(params, x, *draws),
    ):
        assert jax.eval_shape(call, x > 0.5).dtype == jnp.float32
        with pytest.raises(ValueError, match="x must be floating or boolean, got int"):
            jax.eval_shape(call, x.astype(int))


# Families with and without densities and closed forms


AUTOENCODER = ModelSpec(
    encoder=MLP((4,)),
    decoder=MLP((4,)),
    posterior=PointMass(),
    latent_dim=2,
    data_shape=(3,),
)


def abstract(spec):
    """Parameters of a spec without arrays, enough for what happens at tracing."""
    params = jax.eval_shape(functools.partial(init, spec), jax.random.key(0))
    return params, jnp.ones((4, spec.data_dim)), jax.random.key(0)


@pytest.mark.parametrize(
    ("purpose", "function"),
    [
        ("a Monte Carlo KL", functools.partial(elbo, kl="monte_carlo")),
        (
            "an importance-weighted bound",
            functools.partial(importance_weighted_bound, num_samples=2),
        ),
    ],
    ids=["monte_carlo", "importance_weighted"],
)
def test_what_needs_a_density_refuses_a_point_mass(purpose, function):
    message = rf"{purpose} needs the density of q\(z\|x\).*PointMassDistribution"
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(function, *abstract(AUTOENCODER))


@dataclass(frozen=True)
class Wide(Prior):
    """A user's prior, N(0, s^2 I) with a setting, in the user's own file."""

    hyperparameters = ("log_var",)
    latent_space = "real"

    def init(self, key, *, latent_dim, data_shape):
        return {"log_var": jnp.ones(())}

    def build(self, prior_params, *, latent_dim, encode):
        zero = jnp.zeros((1, latent_dim))
        return WideNormal(zero, zero + prior_params["log_var"])


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class WideNormal(DiagonalGaussianDistribution):
    """A distribution of the user's own, with no registered KL."""

    mean: jax.Array
    log_var: jax.Array


@dataclass(frozen=True)
class PullToData(Prior):
    """A prior whose density needs the encoder, as a VampPrior's does."""

    latent_space = "real"

    def init(self, key, *, latent_dim, data_shape):
        return {"points": jnp.ones((2, *data_shape))}

    def build(self, prior_params, *, latent_dim, encode):
        centre = encode(prior_params["points"]).mean.mean(axis=0)[None]
        return DiagonalGaussianDistribution(centre, jnp.zeros_like(centre))


def user_spec(prior):
    return ModelSpec(
        encoder=MLP((4,)),
        decoder=MLP((4,)),
        prior=prior,
        latent_dim=2,
        data_shape=(3,),
    )


def test_a_users_prior_has_its_divergence_estimated(key, assert_mean):
    """KL(q || N(0, s^2 I)) in closed form, by hand, is its expectation."""
    spec = user_spec(Wide())
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32),
        abstract(spec)[0],
    )
    assert trainable(params).prior == {"log_var": False}
    x = np.ones((5000, 3), np.float32)
    posterior = jax.jit(encode)(params, x[:1])
    variance = np.exp(params.prior["log_var"])
    ratio = np.exp(posterior.log_var) / variance
    squares = np.asarray(posterior.mean) ** 2 / variance
    expected = 0.5 * np.sum(ratio + squares - 1 - np.log(ratio))
    assert_mean(terms_of(params, x, key).kl_divergence, expected)


def test_analytic_is_refused_where_no_closed_form_is_registered():
    message = "DiagonalGaussianDistribution and WideNormal"
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(
            functools.partial(elbo, kl="analytic"), *abstract(user_spec(Wide()))
        )


def test_a_prior_that_needs_the_encoder_is_handed_it():
    params, x, key = abstract(user_spec(PullToData()))
    gradient = jax.eval_shape(jax.grad(elbo), params, x, key)
    assert gradient.prior["points"].shape == (2, 3)
    draw = functools.partial(generate, num_samples=5)
    assert jax.eval_shape(draw, params, key).shape == (5, 3)


def test_the_defaults_have_a_closed_form():
    """So a Monte Carlo KL is a choice: `auto` gives no variance to the KL."""
    spec = ModelSpec()
    assert isinstance(spec.posterior, DiagonalGaussian)
    assert isinstance(spec.prior, StandardNormal)
    assert isinstance(spec.likelihood, Bernoulli)
    assert isinstance(abstract(spec)[0], Params)
    program = functools.partial(elbo, kl="analytic")
    assert jax.eval_shape(program, *abstract(spec)).shape == ()
