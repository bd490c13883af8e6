"""Correlated posteriors, mixtures, stochastic layers and labels, by other means."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from sklearn.mixture import GaussianMixture
from specs import covariance_of, random_params

import vae_jax
from vae_jax import (
    MLP,
    ClassConditionalPrior,
    ConvolutionalDecoder,
    ConvolutionalEncoder,
    DiagonalGaussianPrior,
    FullCovarianceGaussian,
    FullGaussian,
    GatedMLP,
    HierarchicalGaussian,
    HierarchicalGaussianPrior,
    Householder,
    Labelled,
    Linear,
    LowRankGaussian,
    MixtureOfGaussians,
    ModelSpec,
    StandardNormal,
    StochasticLayer,
    bijectors,
    decode,
    elbo,
    elbo_objective,
    elbo_terms,
    encode,
    evaluate,
    generate,
    init,
    init_state,
    interpolate,
    log_evidence,
    log_prior,
    reconstruct,
    train_step,
)
from vae_jax.distributions import closed_form_kl
from vae_jax.families import HouseholderDistribution
from vae_jax.hierarchical import conditional_gaussian
from vae_jax.model import at_labels, draw_prior
from vae_jax.networks import concatenate_labels

RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


# Posteriors with correlations


def covariance_of_posterior(posterior, b):
    if isinstance(posterior, HouseholderDistribution):
        factor = bijectors.reflect(np.eye(3)[:, None], posterior.reflections)[:, b].T
        factor = factor * np.exp(posterior.log_var[b] / 2)
        return np.float64(factor) @ np.float64(factor).T
    if hasattr(posterior, "scale_tril"):
        factor = np.asarray(posterior.scale_tril[b], np.float64)
        return factor @ factor.T
    factor = np.asarray(posterior.factor[b], np.float64)
    return factor @ factor.T + np.diag(np.exp(np.float64(posterior.log_var[b])))


@pytest.mark.long
@pytest.mark.parametrize(
    "family",
    [
        pytest.param(FullGaussian(), marks=pytest.mark.slow),
        LowRankGaussian(2),
        Householder(2),
    ],
    ids=repr,
)
def test_correlated_posteriors_are_scipys(family, key, assert_mean):
    posterior = family.build({}, normal(2, family.num_outputs(3)))
    z, log_q = jax.jit(lambda: posterior.sample_and_log_prob(key, 5000))()
    log_prob = jax.jit(posterior.log_prob)(z)
    np.testing.assert_allclose(log_prob, log_q, rtol=1e-3, atol=1e-3)
    prior = {"mean": normal(3), "log_var": normal(3)}
    for b in range(2):
        covariance = covariance_of_posterior(posterior, b)
        oracle = scipy.stats.multivariate_normal(posterior.mean[b], covariance)
        expected = oracle.logpdf(np.float64(z[:, b]))
        np.testing.assert_allclose(log_q[:, b], expected, rtol=1e-3, atol=1e-3)
        centred = np.asarray(z[:, b]) - posterior.mean[b]
        assert_mean(centred[:, :, None] * centred[:, None, :], covariance)
        for kind, own in ((StandardNormal, {}), (DiagonalGaussianPrior, prior)):
            built = kind().build(own, latent_dim=3, encode=None)
            closed_form = closed_form_kl(type(posterior), type(built))
            mean = own.get("mean", np.zeros(3))
            variance = np.exp(np.float64(own.get("log_var", np.zeros(3))))
            shift = posterior.mean[b] - mean
            expected = 0.5 * (
                np.sum(np.diag(covariance) / variance)
                + np.sum(shift**2 / variance)
                - 3
                + np.sum(np.log(variance))
                - np.linalg.slogdet(covariance)[1]
            )
            found = float(closed_form(posterior, built)[b])
            assert found == pytest.approx(float(expected), rel=1e-4)


def test_a_turned_gaussian_is_as_far_from_the_standard_normal(key, assert_mean):
    posterior = HouseholderDistribution(normal(2, 3), normal(2, 3), normal(2, 2, 3))
    z, log_q = jax.jit(lambda: posterior.sample_and_log_prob(key, 20_000))()
    prior = StandardNormal().build({}, latent_dim=3, encode=None)
    closed_form = closed_form_kl(type(posterior), type(prior))
    assert_mean(log_q - prior.log_prob(z), closed_form(posterior, prior))


@pytest.mark.slow
def test_a_mixture_with_correlations_is_scikit_learns(assert_mean):
    prior = MixtureOfGaussians(3, full_covariance=True)
    shapes = {"logits": (3,), "mean": (3, 2), "log_var": (3, 2), "below": (3, 1)}
    own = {name: normal(*shape) for name, shape in shapes.items()}
    factors = [
        np.linalg.cholesky(covariance_of(*each))
        for each in zip(own["log_var"], own["below"], strict=True)
    ]
    oracle = GaussianMixture(3, covariance_type="full")
    oracle.weights_ = np.asarray(jax.nn.softmax(own["logits"]), float)
    oracle.weights_ /= oracle.weights_.sum()
    oracle.means_ = np.asarray(own["mean"], float)
    oracle.precisions_cholesky_ = np.array([np.linalg.inv(f).T for f in factors])
    z = normal(4, 5, 2)
    mixture = prior.build(own, latent_dim=2, encode=None)
    found = jax.jit(mixture.log_prob)(z)
    expected = oracle.score_samples(np.float64(z).reshape(-1, 2)).reshape(4, 5)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    draws = mixture.sample(jax.random.key(0), 20_000)[:, 0]
    assert_mean(draws, oracle.weights_ @ oracle.means_)
    seconds = [
        f @ f.T + np.outer(m, m) for f, m in zip(factors, oracle.means_, strict=True)
    ]
    products = np.asarray(draws)[:, :, None] * np.asarray(draws)[:, None, :]
    assert_mean(products, np.tensordot(oracle.weights_, seconds, 1))


def test_a_full_covariance_likelihood_reads_mean_variances_and_the_rest():
    family = FullCovarianceGaussian()
    outputs, x = normal(1, 2, 9), normal(2, 3)
    likelihood = family.build({}, outputs)
    for b, row in enumerate(np.asarray(outputs[0], float)):
        precision = covariance_of(-row[3:6], row[6:])
        oracle = scipy.stats.multivariate_normal(row[:3], np.linalg.inv(precision))
        found = likelihood.log_prob(x)[0, b]
        assert found == pytest.approx(oracle.logpdf(x[b]), rel=1e-4)
    started = family.build({}, family.output_bias(jnp.array([0.1, 0.2, 0.3])))
    np.testing.assert_allclose(started.mean, [0.1, 0.2, 0.3])
    np.testing.assert_array_equal(started.precision_tril, np.eye(3))


def test_a_gated_layer_is_a_product_of_two_maps():
    module = GatedMLP((4, 2))
    x = normal(3, 5)
    weights = jax.jit(module.init)(jax.random.key(0), x)
    h = np.asarray(x, float)
    layers = [weights["params"][f"Dense_{i}"] for i in range(4)]
    for value, gate in (layers[:2], layers[2:]):
        linear = [h @ np.asarray(w["kernel"]) + w["bias"] for w in (value, gate)]
        h = linear[0] / (1 + np.exp(-np.asarray(linear[1])))
    np.testing.assert_allclose(module.apply(weights, x), h, rtol=1e-4, atol=1e-6)


# Stochastic layers

LAYERS = (
    StochasticLayer(3, encoder=Linear(), decoder=Linear()),
    StochasticLayer(2, encoder=Linear(), decoder=Linear()),
)
LADDER = ModelSpec(
    encoder=Linear(),
    decoder=Linear(),
    posterior=HierarchicalGaussian(LAYERS),
    prior=HierarchicalGaussianPrior(LAYERS),
    latent_dim=4,
    data_shape=(5,),
)


@pytest.fixture(scope="module")
def ladder():
    return jax.tree.map(jnp.asarray, random_params(LADDER))


def linear_gaussian_of(weights, inputs):
    out = np.asarray(inputs) @ weights["output"]["kernel"] + weights["output"]["bias"]
    mean, raw = np.split(np.asarray(out), 2, axis=-1)
    return scipy.stats.norm(mean, np.exp(10 * np.tanh(raw / 20)))


@pytest.mark.long
def test_the_density_of_layers_is_the_product_of_their_densities(ladder, key):
    x = normal(6, 5)
    posterior = encode(ladder, x)
    (z1, z2, z3), log_q = posterior.sample_and_log_prob(key, 2)
    assert [z.shape for z in (z1, z2, z3)] == [(2, 6, 4), (2, 6, 3), (2, 6, 2)]
    expected = (
        linear_gaussian_of(ladder.encoder, x).logpdf(z1).sum(-1)
        + linear_gaussian_of(ladder.posterior["layer_2"], z1).logpdf(z2).sum(-1)
        + linear_gaussian_of(ladder.posterior["layer_3"], z2).logpdf(z3).sum(-1)
    )
    np.testing.assert_allclose(log_q, expected, rtol=1e-4)
    np.testing.assert_allclose(posterior.log_prob((z1, z2, z3)), expected, rtol=1e-4)
    expected = (
        scipy.stats.norm.logpdf(z3).sum(-1)
        + linear_gaussian_of(ladder.prior["layer_2"], z3).logpdf(z2).sum(-1)
        + linear_gaussian_of(ladder.prior["layer_1"], z2).logpdf(z1).sum(-1)
    )
    np.testing.assert_allclose(log_prior(ladder, (z1, z2, z3)), expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("z", "came"),
    [
        (jnp.zeros((3, 6, 4)), r"an array \[3, 6, 4\]"),
        (jnp.zeros((3, 6, 3)), r"an array \[3, 6, 3\]"),
        ((jnp.zeros((2, 6, 4)), jnp.zeros((2, 6, 3))), r"shapes \[\(2, 6, 4\), "),
        (tuple(jnp.zeros((2, 6, n)) for n in (2, 3, 4)), r"shapes \[\(2, 6, 2\), "),
        (tuple(jnp.zeros((2, 6, n)) for n in (4, 3, 1)), r"shapes \[\(2, 6, 4\), "),
    ],
    ids=["three samples", "three samples of one layer", "two", "upside down", "size"],
)
def test_a_density_of_layers_asks_for_all_of_them(z, came, ladder):
    message = rf"tuple of 3 stochastic layers with last axes \(4, 3, 2\).*got {came}"
    with pytest.raises(ValueError, match=message):
        log_prior(ladder, z)
    with pytest.raises(ValueError, match=message):
        encode(ladder, jnp.zeros((6, 5))).log_prob(z)


def test_a_density_of_one_layer_asks_for_its_units(conditional):
    params, _ = conditional
    plain = random_params(ModelSpec(MLP((4,)), MLP((4,)), data_shape=(5,)))
    for z, came in (
        (jnp.zeros((2, 4, 3)), r"\[2, 4, 3\]"),
        ((jnp.zeros((2, 4, 20)),), "a tuple of 1"),
    ):
        with pytest.raises(ValueError, match=rf"latent_dim.*20\], got {came}"):
            log_prior(plain, z)
    with pytest.raises(ValueError, match=r"latent_dim.*2\], got \[2, 4, 1\]"):
        log_prior(params, jnp.zeros((2, 4, 1)), labels=LABELS)


def test_draws_of_layers_come_from_the_top_down(ladder, assert_mean):
    """With constant variances the lowest layer is a Gaussian of known covariance."""
    own = jax.tree.map(lambda leaf: leaf, ladder.prior)
    matrices, noises = [], []
    for name, dim in (("layer_2", 3), ("layer_1", 4)):
        kernel = own[name]["output"]["kernel"].at[:, dim:].set(0)
        own[name] = {"output": {**own[name]["output"], "kernel": kernel}}
        raw = np.asarray(own[name]["output"]["bias"][dim:])
        matrices.append(np.asarray(kernel[:, :dim]).T)
        noises.append(np.diag(np.exp(20 * np.tanh(raw / 20))))
    prior = LADDER.prior.build(own, latent_dim=4, encode=None)
    z1, z2, z3 = (z[:, 0] for z in prior.sample(jax.random.key(0), 20_000))
    assert (z2.shape, z3.shape) == ((20_000, 3), (20_000, 2))
    covariance = np.eye(2)
    for matrix, noise in zip(matrices, noises, strict=True):
        covariance = matrix @ covariance @ matrix.T + noise
    centred = np.asarray(z1) - np.mean(np.asarray(z1), axis=0)
    assert_mean(centred[:, :, None] * centred[:, None, :], covariance)


@pytest.mark.slow
def test_each_example_may_have_layers_of_its_own(ladder, key):
    posterior = encode(ladder, normal(2, 5))
    own = jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf, (2, *leaf.shape[1:])), posterior
    )
    z, log_q = posterior.sample_and_log_prob(key, 3)
    again, log_q_again = own.sample_and_log_prob(key, 3)
    np.testing.assert_allclose(log_q, log_q_again, rtol=1e-4)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3), z, again)


def test_a_conditional_gaussian_splits_its_network(ladder):
    below = conditional_gaussian(
        Linear(), ladder.prior["layer_1"], normal(2, 6, 3), latent_dim=4
    )
    assert below.mean.shape == below.log_var.shape == (2, 6, 4)


def test_layers_that_do_not_agree_are_refused():
    with pytest.raises(ValueError, match="same stochastic layers"):
        ModelSpec(posterior=HierarchicalGaussian(LAYERS))
    with pytest.raises(ValueError, match="same stochastic layers"):
        ModelSpec(
            posterior=HierarchicalGaussian(LAYERS),
            prior=HierarchicalGaussianPrior(LAYERS[:1]),
        )


# Labels

CONDITIONAL = ModelSpec(
    encoder=MLP((4,)),
    decoder=MLP((4,)),
    prior=ClassConditionalPrior(3),
    latent_dim=2,
    data_shape=(5,),
    num_classes=3,
)
LABELS = jnp.array([0, 2, 1, 2])


@pytest.fixture(scope="module")
def conditional():
    params = jax.tree.map(jnp.asarray, random_params(CONDITIONAL))
    x = jnp.asarray(RNG.integers(0, 2, (4, 5)), jnp.float32)
    return params, x


@pytest.mark.long
def test_labels_reach_encoder_decoder_and_prior(conditional, key):
    params, x = conditional

    @jax.jit
    def figures(x, labels):
        posterior = encode(params, x, labels=labels)
        z, log_q = posterior.sample_and_log_prob(key, 2)
        return {
            "posterior": posterior.mean,
            "likelihood": decode(params, z, labels=labels).mean,
            "prior": log_prior(params, z, labels=labels),
            "terms": elbo_terms(params, x, key, num_samples=2, labels=labels),
            "by_hand": elbo_terms(
                params, x, key, num_samples=2, labels=labels, kl="monte_carlo"
            ),
            "log_q": log_q,
            "elbo": elbo(params, x, key, num_samples=2, labels=labels),
            "reconstruct": reconstruct(params, x, key, labels=labels),
            "interpolate": interpolate(params, x, x, num_steps=2, labels=labels),
            "generate": generate(params, key, num_samples=4, labels=labels),
            "evaluate": evaluate(params, x, key, labels=labels).elbo,
            "evidence": log_evidence(
                params, x, key, num_samples=4, labels=labels
            ).estimate,
        }, z

    found, z = figures(x, LABELS)
    encoder = params.encoder["network"]["Dense_0"], params.encoder["output"]
    h = np.concatenate([x, np.eye(3)[LABELS]], axis=1)
    hidden = np.maximum(h @ encoder[0]["kernel"] + encoder[0]["bias"], 0)
    outputs = hidden @ encoder[1]["kernel"] + encoder[1]["bias"]
    np.testing.assert_allclose(found["posterior"], outputs[:, :2], rtol=1e-4, atol=1e-6)
    own = jax.tree.map(lambda leaf: np.asarray(leaf)[LABELS], params.prior)
    oracle = scipy.stats.norm(own["mean"], np.exp(own["log_var"] / 2))
    np.testing.assert_allclose(found["prior"], oracle.logpdf(z).sum(-1), rtol=1e-4)
    expected = np.mean(found["log_q"] - found["prior"], axis=0)
    np.testing.assert_allclose(found["by_hand"].kl_divergence, expected, rtol=1e-3)
    one_hot, _ = figures(x, jax.nn.one_hot(LABELS, 3))
    other, _ = figures(x, (LABELS + 1) % 3)
    for name, value in found.items():
        first, same, changed = (
            np.asarray(jax.tree.leaves(tree)[0])
            for tree in (value, one_hot[name], other[name])
        )
        # Two programs, which need not round alike.
        np.testing.assert_allclose(first, same, rtol=1e-6)
        assert not np.allclose(first, changed), name


def test_a_class_is_drawn_around_its_own_mean(conditional, assert_mean):
    params, _ = conditional
    labels = jnp.full(5000, 2)
    at_class = at_labels(params, labels)
    draws = draw_prior(at_class, jax.random.key(0), num_samples=5000)
    with pytest.raises(ValueError, match="one for each of 4999 samples, got 5000"):
        draw_prior(at_class, jax.random.key(0), num_samples=4999)
    assert_mean(draws, params.prior["mean"][2])


def test_labels_are_channels_of_an_image():
    images, labels = normal(2, 12), jnp.eye(3)[:2]
    found = concatenate_labels(images, labels, (2, 3, 2)).reshape(2, 2, 3, 5)
    np.testing.assert_array_equal(found[..., :2], images.reshape(2, 2, 3, 2))
    second = np.broadcast_to([0, 1, 0], (2, 3, 3))
    np.testing.assert_array_equal(found[1, :, :, 2:], second)


def test_a_convolutional_model_takes_labels(key):
    spec = ModelSpec(
        encoder=ConvolutionalEncoder((2,), hidden_dim=3),
        decoder=ConvolutionalDecoder((2,)),
        latent_dim=2,
        data_shape=(4, 4),
        num_classes=3,
    )
    params = jax.eval_shape(lambda key: init(spec, key), key)
    kernel = params.encoder["network"]["Conv_0"]["kernel"]
    assert kernel.shape == (3, 3, 1 + 3, 2)
    x = jnp.zeros((4, 16))
    found = jax.eval_shape(
        lambda params: elbo_terms(params, x, key, labels=LABELS), params
    )
    assert found.elbo.shape == (4,)


def test_a_step_trains_on_labelled_examples(conditional, key):
    params, x = conditional
    adam = optax.adam(0.1)
    state = init_state(params, key, optimizer=adam)
    step = functools.partial(train_step, objective=elbo_objective(), optimizer=adam)
    after, metrics = jax.jit(step)(state, Labelled(x, LABELS))
    assert np.isfinite(metrics["elbo"])
    moved = np.any(after.params.prior["mean"] != params.prior["mean"], axis=1)
    np.testing.assert_array_equal(moved, [True, True, True])


def test_labels_that_lack_or_are_too_many_are_refused(conditional, key):
    params, x = conditional
    with pytest.raises(ValueError, match="num_classes=3 needs labels"):
        elbo(params, x, key)
    plain = random_params(ModelSpec(MLP((4,)), MLP((4,)), data_shape=(5,)))
    with pytest.raises(ValueError, match="labels were given to a model without"):
        elbo(plain, x, key, labels=LABELS)
    with pytest.raises(ValueError, match=r"labels must be .* got float32\[4, 2\]"):
        elbo(params, x, key, labels=jnp.ones((4, 2)))
    with pytest.raises(ValueError, match="has 3 classes, and num_classes is 4"):
        ModelSpec(prior=ClassConditionalPrior(3), num_classes=4)
    with pytest.raises(ValueError, match="num_classes must hold positive"):
        ModelSpec(num_classes=-1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: vae_jax.Categorical(1), "num_levels must be at least 2, got 1"),
        (lambda: vae_jax.DiscretizedLogistic(1), "num_levels must be at least 2"),
        (lambda: vae_jax.DiscretizedLogistic(2, 0), "num_components must be at least"),
        (lambda: vae_jax.Nominal(2.5), "num_categories must be an integer, got 2.5"),
        (lambda: vae_jax.LowRankGaussian(0), "rank must be at least 1, got 0"),
        (lambda: vae_jax.MixtureOfGaussians(0), "num_components must be at least 1"),
        (lambda: vae_jax.VampPrior(0), "num_pseudo_inputs must be at least 1"),
        (
            lambda: vae_jax.Standardized(vae_jax.Standardized(vae_jax.Gaussian())),
            "is standardized already",
        ),
    ],
)
def test_a_family_that_is_none_is_refused(make, message):
    """One level has log p = 0 at every x; two shifts would share their names."""
    with pytest.raises(ValueError, match=message):
        make()
