"""Exact models, against SciPy, scikit-learn and the ELBO that they bound."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
from sklearn.decomposition import PCA
from specs import covariance_of, random_params

from vae_jax import (
    MLP,
    FactorizedBernoulli,
    FactorizedBernoulliPrior,
    Gaussian,
    Linear,
    MixtureOfGaussians,
    ModelSpec,
    StandardNormal,
    data,
    decode,
    elbo_terms,
    exact,
    init,
    log_evidence,
    replace_networks,
)
from vae_jax.distributions import BernoulliDistribution
from vae_jax.training_objectives import elbo_objective

RNG = np.random.default_rng(8)
WEIGHTS = RNG.normal(size=(6, 3))
BIAS = RNG.normal(size=6)
NOISE_VAR = 0.4
COVARIANCE = WEIGHTS @ WEIGHTS.T + NOISE_VAR * np.eye(6)
X = scipy.stats.multivariate_normal(BIAS, COVARIANCE).rvs(5, random_state=RNG)


@pytest.fixture
def model(x64):
    return exact.LinearGaussian(*map(jnp.asarray, (WEIGHTS, BIAS, NOISE_VAR)))


@pytest.mark.long
def test_linear_evidence_is_scipys(model):
    expected = scipy.stats.multivariate_normal(BIAS, COVARIANCE).logpdf(X)
    np.testing.assert_allclose(exact.log_evidence(model, X), expected, rtol=1e-10)


def test_linear_posterior_is_that_of_conditioning_a_joint_gaussian(model):
    mean, covariance = exact.posterior(model, X)
    gain = np.linalg.solve(COVARIANCE, WEIGHTS).T
    np.testing.assert_allclose(mean, (X - BIAS) @ gain.T, rtol=1e-9)
    np.testing.assert_allclose(covariance, np.eye(3) - gain @ WEIGHTS, rtol=1e-9)


@pytest.mark.parametrize("full_covariance", [False, True])
def test_the_evidence_under_a_mixture_prior_is_a_mixture(full_covariance, x64):
    """Every covariance a dense 6 x 6 matrix, handed to SciPy."""
    spec = ModelSpec(
        encoder=Linear(),
        decoder=Linear(),
        prior=MixtureOfGaussians(4, full_covariance),
        likelihood=Gaussian(),
        latent_dim=3,
        data_shape=(6,),
    )
    params = random_params(spec)
    prior, output = params.prior, params.decoder["output"]
    weights = np.asarray(output["kernel"]).T
    noise = np.exp(np.float64(params.likelihood["log_var"])) * np.eye(6)
    each = []
    for k in range(4):
        log_var = np.float64(prior["log_var"][k])
        own = np.diag(np.exp(20 * np.tanh(log_var / 20)))
        if full_covariance:
            own = covariance_of(log_var, prior["below"][k])
        mean = weights @ np.asarray(prior["mean"][k]) + np.asarray(output["bias"])
        covariance = weights @ own @ weights.T + noise
        each.append(scipy.stats.multivariate_normal(mean, covariance).logpdf(X))
    log_weights = scipy.special.log_softmax(prior["logits"])
    expected = scipy.special.logsumexp(np.stack(each) + log_weights[:, None], axis=0)
    found = jax.jit(exact.mixture_log_evidence)(params, X)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.long
def test_importance_sampling_finds_the_evidence_under_a_mixture_prior(key):
    """From the encoder's q, through prior, decoder and likelihood as a user has it."""
    spec = ModelSpec(
        encoder=Linear(),
        decoder=Linear(),
        prior=MixtureOfGaussians(3),
        likelihood=Gaussian(),
        latent_dim=2,
        data_shape=(6,),
    )
    params = random_params(spec)
    noise = 0.5 * np.random.default_rng(0).normal(size=(5, 6))
    x = params.decoder["output"]["bias"] + jnp.asarray(noise, jnp.float32)
    found = jax.jit(functools.partial(log_evidence, num_samples=20_000))(params, x, key)
    assert found.effective_sample_size.min() > 100
    off = (found.estimate - exact.mixture_log_evidence(params, x)) / (
        found.standard_error
    )
    assert np.abs(off).max() < 5


def analytic_elbo(params, x):
    """Of a linear VAE: the expectation of the quadratic likelihood in closed form."""
    kernel, bias = (np.asarray(params.encoder["output"][n]) for n in ("kernel", "bias"))
    outputs = x @ kernel + bias
    mean, raw = np.split(outputs, 2, axis=-1)
    var = np.exp(20 * np.tanh(raw / 20))
    decoder = params.decoder["output"]
    weights, noise = (
        np.asarray(decoder["kernel"]).T,
        np.exp(params.likelihood["log_var"]),
    )
    residual = x - mean @ weights.T - np.asarray(decoder["bias"])
    spread = var @ np.square(weights).sum(axis=0)
    squares = np.square(residual).sum(-1) + spread
    log_likelihood = -0.5 * (squares / noise + 6 * np.log(2 * np.pi * noise))
    return log_likelihood - 0.5 * np.sum(var + mean**2 - 1 - np.log(var), axis=-1)


def test_the_gap_of_the_best_diagonal_q_is_the_closed_form_for_every_x(model):
    params = exact.linear_vae(model)
    gap = np.asarray(exact.log_evidence(model, X)) - analytic_elbo(params, X)
    assert exact.diagonal_gap(model) > 0.1
    np.testing.assert_allclose(gap, exact.diagonal_gap(model), rtol=1e-9)


def test_no_other_diagonal_q_is_better(model):
    params = exact.linear_vae(model)
    best = analytic_elbo(params, X)
    for shift in np.eye(6):  # Of the mean and the log-variance of each unit.
        encoder = params.encoder["output"]
        changed = encoder | {"bias": encoder["bias"] + 0.1 * shift}
        other = analytic_elbo(params.replace(encoder={"output": changed}), X)
        assert np.all(other < best)


def test_the_linear_vae_is_read_back(model):
    again = exact.linear_gaussian(exact.linear_vae(model))
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-12), again, model
    )


@pytest.mark.long
def test_maximum_likelihood_is_scikit_learns_probabilistic_pca(x64):
    data = RNG.normal(size=(200, 6)) @ np.diag([3, 2, 1.5, 1, 0.7, 0.5])
    model = exact.maximum_likelihood(jnp.asarray(data), latent_dim=2)
    pca = PCA(n_components=2).fit(data)
    # scikit-learn divides by n - 1, the likelihood's maximum by n.
    share = (len(data) - 1) / len(data)
    covariance = model.weights @ model.weights.T + model.noise_var * np.eye(6)
    np.testing.assert_allclose(covariance, pca.get_covariance() * share, rtol=1e-8)
    np.testing.assert_allclose(model.noise_var, pca.noise_variance_ * share, rtol=1e-8)
    np.testing.assert_allclose(exact.diagonal_gap(model), 0, atol=1e-12)
    values = np.linalg.eigvalsh(np.cov(data.T, bias=True))[::-1]
    per_datum = -0.5 * (
        6 * np.log(2 * np.pi)
        + np.log(values[:2]).sum()
        + 4 * np.log(values[2:].mean())
        + 6
    )
    found = np.mean(exact.log_evidence(model, jnp.asarray(data)))
    np.testing.assert_allclose(found, per_datum, rtol=1e-10)


DIGITS = data.load("digits")
DIGITS = data.to_unit_interval(jnp.asarray(DIGITS.train), DIGITS.num_levels)


@pytest.mark.parametrize("latent_dim", [40, 60])
def test_maximum_likelihood_knows_a_noise_that_is_nearly_nothing(latent_dim):
    """Digits vary in 61 of 64 directions, by standard deviations from 0.8 to 0.0014."""
    model = exact.maximum_likelihood(DIGITS, latent_dim=latent_dim)
    images = np.float64(DIGITS)
    values = np.linalg.eigvalsh(np.cov(images.T, bias=True))[: 64 - latent_dim]
    np.testing.assert_allclose(model.noise_var, values.mean(), rtol=1e-4)
    weights = np.float64(model.weights)
    covariance = weights @ weights.T + np.float64(model.noise_var) * np.eye(64)
    expected = scipy.stats.multivariate_normal(np.float64(model.bias), covariance)
    found = exact.log_evidence(model, DIGITS[:5])
    np.testing.assert_allclose(found, expected.logpdf(images[:5]), atol=1e-2)


@pytest.mark.parametrize(
    ("x", "latent_dim", "rank"),
    [(DIGITS, 61, 61), (DIGITS, 63, 61), (DIGITS[:5], 4, 4)],
)
def test_maximum_likelihood_without_a_noise_is_refused(x, latent_dim, rank):
    fit = functools.partial(exact.maximum_likelihood, latent_dim=latent_dim)
    message = f"latent_dim must be below {rank}, the number .* got {latent_dim}"
    with pytest.raises(ValueError, match=message):
        fit(x)
    # Values are not known while tracing.
    assert np.isnan(jax.jit(fit)(x).noise_var)


@pytest.mark.parametrize("noise_var", [0.0, -1e-9])
def test_a_noise_that_is_not_positive_is_refused(noise_var):
    model = exact.LinearGaussian(jnp.eye(3)[:, :2], jnp.zeros(3), jnp.array(noise_var))
    x = jnp.ones((1, 3))
    for function in (
        exact.linear_vae,
        exact.diagonal_gap,
        lambda model: exact.log_evidence(model, x),
        lambda model: exact.posterior(model, x),
        lambda model: exact.live_units(x, noise_var=model.noise_var),
    ):
        with pytest.raises(ValueError, match="noise_var must be positive, got"):
            function(model)
    mean, covariance = jax.jit(exact.posterior)(model, x)
    assert np.isnan(mean).all() and np.isnan(covariance).all()


def test_a_posterior_narrower_than_an_encoder_can_say_is_refused():
    model = exact.LinearGaussian(jnp.eye(3)[:, :1], jnp.zeros(3), jnp.array(1e-10))
    with pytest.raises(ValueError, match="log-variances of q must be between -20 and"):
        exact.linear_vae(model)


@jax.jit
def ascend(params, data, beta):
    """Plain gradient ascent on the beta-ELBO, the noise variance fixed."""
    objective = elbo_objective(beta=beta, num_samples=1)

    def step(number, params):
        key = jax.random.fold_in(jax.random.key(0), number)
        batch = data[jax.random.randint(key, (100,), 0, len(data))]
        gradient = jax.grad(lambda p: objective(p, batch, key, number)[0])(params)
        rate = 0.03 * (1 - number / 6000)
        stepped = jax.tree.map(lambda p, g: p + rate * g, params, gradient)
        return stepped.replace(likelihood=params.likelihood)

    return jax.lax.fori_loop(0, 6000, step, params)


@pytest.mark.long
@pytest.mark.parametrize(
    ("beta", "expected"),
    [
        pytest.param(0.5, 2, marks=pytest.mark.slow),
        pytest.param(1.0, 2, marks=pytest.mark.slow),
        (3.0, 1),
        pytest.param(9.0, 0, marks=pytest.mark.slow),
    ],
)
def test_training_kills_the_units_that_the_eigenvalues_say(beta, expected, x64):
    """Eigenvalues 4, 1, 0.1 against beta times the noise variance 0.5."""
    data = np.random.default_rng(1).normal(size=(2000, 3))
    data -= data.mean(axis=0)
    data = data @ np.linalg.inv(np.linalg.cholesky(np.cov(data.T, bias=True))).T
    data = jnp.asarray(data * np.sqrt([4, 1, 0.1]))
    assert exact.live_units(data, noise_var=0.5, beta=beta) == expected
    spec = ModelSpec(
        encoder=Linear(),
        decoder=Linear(),
        likelihood=Gaussian(),
        latent_dim=3,
        data_shape=(3,),
    )
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), random_params(spec))
    params = params.replace(likelihood={"log_var": jnp.log(0.5)})
    encoder = ascend(params, data, beta).encoder["output"]
    variance = np.var(np.asarray(data) @ np.asarray(encoder["kernel"])[:, :3], axis=0)
    assert np.sum(variance > 0.05) == expected, variance


def small_spec(latent_dim, **choices):
    return ModelSpec(
        encoder=MLP((4,)),
        decoder=MLP((4,)),
        latent_dim=latent_dim,
        data_shape=(3,),
        **choices,
    )


def test_quadrature_in_one_dimension_is_scipys():
    params = random_params(small_spec(1))
    x = np.array([[1.0, 0, 1], [0, 0, 1]], np.float32)
    found = jax.jit(exact.quadrature_log_evidence)(params, x)
    means = jax.jit(lambda z: decode(params, z).mean)

    def joint(z, row):
        p = np.asarray(means(jnp.full((1, 1), z, jnp.float32)), float)[0]
        return np.prod(np.where(row == 1, p, 1 - p)) * scipy.stats.norm.pdf(z)

    for number, row in enumerate(x):
        value, _ = scipy.integrate.quad(joint, -8, 8, args=(row,), epsabs=1e-6)
        np.testing.assert_allclose(found.estimate[number], np.log(value), atol=1e-4)
    assert np.all(found.error < 1e-4)


@pytest.mark.long
def test_quadrature_in_two_dimensions_is_the_linear_evidence(linear_gaussian):
    found = exact.quadrature_log_evidence(
        linear_gaussian.params, linear_gaussian.x, num_points=200
    )
    np.testing.assert_allclose(
        found.estimate, linear_gaussian.log_evidence, rtol=1e-6, atol=1e-6
    )


def test_the_posterior_on_a_grid_is_the_linear_one(linear_gaussian):
    model = exact.linear_gaussian(linear_gaussian.params)
    mean, covariance = exact.posterior(model, linear_gaussian.x)
    found = exact.quadrature_posterior(
        linear_gaussian.params, linear_gaussian.x, num_points=200
    )
    np.testing.assert_allclose(found[0], mean, rtol=1e-5, atol=1e-6)
    variances = np.broadcast_to(np.diag(covariance), mean.shape)
    np.testing.assert_allclose(found[1], variances, rtol=1e-5)


@functools.partial(jax.jit, static_argnames="latent_dim")
def on_a_grid(x, latent_dim):
    """Log p(x) and its quadrature where p(z|x) lies at 0.93 x and is 0.27 wide."""
    weights = 2 * jnp.eye(3)[:, :latent_dim]
    model = exact.LinearGaussian(weights, jnp.zeros(3), jnp.array(0.3))
    x = x @ weights.T
    vae = exact.linear_vae(model)
    found = exact.quadrature_log_evidence(vae, x)
    moments = exact.quadrature_posterior(vae, x)
    return exact.log_evidence(model, x), found, moments


@pytest.mark.parametrize("latent_dim", [1, 2])
def test_the_error_of_quadrature_holds_the_mass_beyond_the_grid(latent_dim):
    x = jnp.array([3.0, 6.0, 7.0, 12.0, -12.0])[:, None] * jnp.ones(latent_dim)
    expected, found, (mean, variance) = on_a_grid(x, latent_dim)
    missed = np.asarray(expected - found.estimate)
    assert missed[0] < 1e-4 and np.all(missed[1:] > 0.04) and np.all(missed[3:] > 100)
    assert found.error[0] < 1e-4 and np.all(found.error >= missed - 1e-4)
    np.testing.assert_allclose(found.error[1:], missed[1:], rtol=0.4)
    wrong = np.asarray(found.error > 0.1)
    assert wrong[2:].all() and not wrong[0]
    np.testing.assert_array_equal(np.isnan(mean).all(axis=1), wrong)
    np.testing.assert_array_equal(np.isnan(variance).all(axis=1), wrong)


def test_one_pixel_has_one_direction():
    column = jnp.array([[1.0], [2.0], [4.0]])  # of variance 14 / 9
    assert exact.live_units(column, noise_var=1.5) == 1
    assert exact.live_units(column, noise_var=1.6) == 0


def test_a_likelihood_that_rises_again_beyond_the_grid_is_no_error():
    """A parabola through the last points of the grid rises without end."""

    def logits(z):
        return 3 - jnp.square(z) / 4 + 10 * jax.nn.relu(jnp.abs(z) - 5.9)

    def bits(z):
        return BernoulliDistribution(jnp.broadcast_to(logits(z), (*z.shape[:-1], 50)))

    spec = ModelSpec(latent_dim=1, data_shape=(50,))
    params = init(spec, jax.random.key(0))
    params = replace_networks(params, likelihood=bits)
    found = exact.quadrature_log_evidence(params, jnp.ones((1, 50)))

    def joint(z):
        return np.exp(50 * scipy.special.log_expit(logits(z)) - z**2 / 2)

    known = scipy.integrate.quad(joint, -20, 20, points=[-5.9, 5.9], limit=500)[0]
    known = np.log(known) - 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(found.estimate, known, rtol=1e-5)
    assert np.all(found.error < 1e-4)
    assert np.isfinite(exact.quadrature_posterior(params, jnp.ones((1, 50)))[0]).all()


@pytest.mark.long
def test_a_grid_that_is_too_coarse_says_so(linear_gaussian):
    found = exact.quadrature_log_evidence(
        linear_gaussian.params, linear_gaussian.x, num_points=8
    )
    assert np.all(found.error > 1e-3)


def test_enumeration_is_a_mixture_summed_by_hand():
    spec = small_spec(
        3, posterior=FactorizedBernoulli(), prior=FactorizedBernoulliPrior()
    )
    params = random_params(spec)
    x = np.array([[1.0, 0, 1], [0, 0, 1]], np.float32)
    states = np.array(np.meshgrid(*[[0, 1]] * 3)).reshape(3, -1).T.astype(np.float32)
    p_z = scipy.special.expit(params.prior["logits"])
    prior = np.prod(np.where(states == 1, p_z, 1 - p_z), axis=-1)
    p_x = np.asarray(decode(params, jnp.asarray(states)).mean, float)
    likelihood = np.prod(np.where(x[:, None] == 1, p_x, 1 - p_x), axis=-1)
    found = jax.jit(functools.partial(exact.enumeration_log_evidence, chunk_size=3))(
        params, x
    )
    np.testing.assert_allclose(found, np.log(likelihood @ prior), rtol=1e-5)


def test_the_elbo_is_below_the_evidence_by_the_kl_to_the_true_posterior(
    linear_gaussian, assert_mean
):
    """log p(x) = ELBO + KL(q || p(z|x)), with a q that is shifted and too wide."""
    shift, ratio = np.array([0.3, -0.2]), 1.7
    params = linear_gaussian.with_encoder(shift, ratio)
    keys = jax.random.split(jax.random.key(0), 4000)
    run = jax.jit(jax.vmap(lambda key: elbo_terms(params, linear_gaussian.x, key).elbo))
    var = linear_gaussian.posterior_var
    divergence = 0.5 * np.sum(shift**2 / var + ratio - 1 - np.log(ratio))
    assert_mean(run(keys), linear_gaussian.log_evidence - divergence)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: exact.linear_gaussian(p), "for the decoder Linear, got MLP"),
        (
            lambda p: exact.linear_gaussian(
                random_params(
                    ModelSpec(
                        Linear(),
                        Linear(),
                        likelihood=Gaussian(),
                        data_shape=(5,),
                        num_classes=3,
                    )
                )
            ),
            "got one of num_classes=3 and num_covariates=0",
        ),
        (
            lambda p: exact.mixture_log_evidence(p, np.zeros((1, 3))),
            "for the prior MixtureOfGaussians, got StandardNormal",
        ),
        (
            lambda p: exact.quadrature_log_evidence(p, np.zeros((1, 3))),
            "serves 1 or 2 latents, got 3",
        ),
        (
            lambda p: exact.quadrature_posterior(p, np.zeros((1, 3))),
            "serves 1 or 2 latents, got 3",
        ),
        (
            lambda p: exact.enumeration_log_evidence(p, np.zeros((1, 3))),
            "needs a discrete prior, got StandardNormal",
        ),
        (
            lambda p: exact.maximum_likelihood(np.zeros((4, 3)), latent_dim=3),
            "latent_dim must be between 1 and 2, got 3",
        ),
        (
            lambda p: exact.quadrature_log_evidence(
                random_params(small_spec(2)), np.zeros((1, 3)), num_points=3
            ),
            "num_points must be at least 4, got 3",
        ),
        (
            lambda p: exact.quadrature_log_evidence(
                random_params(
                    small_spec(
                        2,
                        posterior=FactorizedBernoulli(),
                        prior=FactorizedBernoulliPrior(),
                    )
                ),
                np.zeros((1, 3)),
            ),
            "quadrature needs real latents.* use enumeration_log_evidence",
        ),
    ],
)
def test_what_has_no_exact_answer_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(random_params(small_spec(3)))


class NormalAtThree(StandardNormal):
    def build(self, prior_params, **options):
        normal = super().build(prior_params, **options)
        return dataclasses.replace(normal, mean=normal.mean + 3)


class MixtureAtThree(MixtureOfGaussians):
    def build(self, prior_params, **options):
        moved = prior_params | {"mean": prior_params["mean"] + 3}
        return super().build(moved, **options)


class DoubledGaussian(Gaussian):
    def build(self, params, outputs):
        return super().build(params, 2 * outputs)


@pytest.mark.parametrize(
    "changes, answer",
    [
        ({"prior": NormalAtThree()}, exact.linear_gaussian),
        ({"likelihood": DoubledGaussian()}, exact.linear_gaussian),
        (
            {"prior": MixtureAtThree(2)},
            lambda params: exact.mixture_log_evidence(params, np.zeros((1, 5))),
        ),
    ],
    ids=["prior", "likelihood", "mixture"],
)
def test_a_subclass_with_another_density_has_no_exact_answer(changes, answer):
    options = {"likelihood": Gaussian(), "latent_dim": 2, "data_shape": (5,)}
    spec = ModelSpec(Linear(), Linear(), **(options | changes))
    with pytest.raises(ValueError, match="this exact answer is for the"):
        answer(random_params(spec))
