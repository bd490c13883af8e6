"""Families of tables: standardized, categories, products, against other libraries."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from sklearn.datasets import load_wine
from sklearn.decomposition import PCA

from vae_jax import (
    Bernoulli,
    Beta,
    Columns,
    ContinuousBernoulli,
    FullCovarianceGaussian,
    Gamma,
    Gaussian,
    Laplace,
    Linear,
    LogNormal,
    Masked,
    ModelSpec,
    Multinomial,
    Nominal,
    Ordinal,
    PerPixelGaussian,
    Poisson,
    Standardized,
    StudentT,
    decode,
    encode,
    exact,
    fit,
    generate,
    init,
    log_evidence,
    reconstruct,
    trainable,
)
from vae_jax.distributions import LogNormalDistribution, NominalDistribution
from vae_jax.distributions.support import COUNTS, REAL, ColumnSupport
from vae_jax.families import bound_log_var
from vae_jax.families.tables import moments

LINEAR = {"encoder": Linear(), "decoder": Linear(), "latent_dim": 2}
WINE = load_wine().data


def started(likelihood, x):
    """Parameters that start at data, and p(x|z) at z = 0."""
    spec = ModelSpec(likelihood=likelihood, data_shape=(x.shape[1],), **LINEAR)
    params = jax.jit(lambda x: init(spec, jax.random.key(0), x=x))(jnp.float32(x))
    return params, jax.jit(decode)(params, jnp.zeros((1, 1, 2)))


@functools.cache
def ppca_vae():
    """The linear VAE of scikit-learn's PPCA of standardized wine, in units of wine."""
    shift, scale = WINE.mean(0), WINE.std(0)
    pca = PCA(3).fit((WINE - shift) / scale)
    weights = pca.components_.T * np.sqrt(pca.explained_variance_ - pca.noise_variance_)
    model = exact.LinearGaussian(
        jnp.float32(weights), jnp.zeros(13), jnp.float32(pca.noise_variance_)
    )
    params = exact.linear_vae(model)
    spec = ModelSpec(
        encoder=params.spec.encoder,
        decoder=params.spec.decoder,
        likelihood=Standardized(params.spec.likelihood),
        latent_dim=3,
        data_shape=(13,),
    )
    start = jax.jit(lambda x: init(spec, jax.random.key(0), x=x))(jnp.float32(WINE))
    start = start.likelihood
    np.testing.assert_allclose(start["shift"], shift, rtol=1e-5)
    np.testing.assert_allclose(np.exp(start["log_scale"]), scale, rtol=1e-5)
    likelihood = start | {"log_var": params.likelihood["log_var"]}
    known = pca.score_samples((WINE - shift) / scale) - np.log(scale).sum()
    return params.__class__(
        params.encoder, params.decoder, {}, {}, likelihood, spec
    ), known


@pytest.mark.long
def test_a_linear_vae_has_ppcas_evidence_in_the_units_of_the_data():
    """Its q is exact, so one sample gives log p(x) itself."""
    params, known = ppca_vae()
    evidence = jax.jit(log_evidence, static_argnames="num_samples")
    found = evidence(params, jnp.float32(WINE), jax.random.key(0), num_samples=2)
    np.testing.assert_allclose(found.estimate, known, atol=1e-3)


@pytest.mark.long
def test_a_linear_vae_trains_to_ppcas_evidence_in_the_units_of_the_data():
    """Of maximum likelihood, so that a mistake in the log-Jacobian would show too."""
    _, known = ppca_vae()
    spec = ModelSpec(
        Linear(),
        Linear(),
        likelihood=Standardized(Gaussian(learned_variance=True)),
        latent_dim=3,
        data_shape=(WINE.shape[1],),
    )
    params = init(spec, jax.random.key(0), x=jnp.float32(WINE))
    trained, _ = fit(
        params,
        jnp.float32(WINE),
        jax.random.key(1),
        num_epochs=3000,
        batch_size=len(WINE),
        optimizer=optax.adam(optax.cosine_decay_schedule(0.02, 3000)),
    )
    evidence = jax.jit(log_evidence, static_argnames="num_samples")
    found = evidence(trained, jnp.float32(WINE), jax.random.key(2), num_samples=200)
    assert np.mean(found.estimate) == pytest.approx(np.mean(known), abs=0.1)


def test_draws_and_reconstructions_are_in_the_units_of_the_data():
    params, _ = ppca_vae()
    drawn = generate(params, jax.random.key(1), num_samples=4000, sample=True)
    model = PCA(3).fit((WINE - WINE.mean(0)) / WINE.std(0))
    deviation = np.sqrt(np.diag(model.get_covariance())) * WINE.std(0)
    error = deviation / np.sqrt(4000)
    assert (abs(np.asarray(drawn).mean(0) - WINE.mean(0)) < 5 * error).all()
    off = abs(np.asarray(drawn).std(0) - deviation)
    assert (off < 5 * error / np.sqrt(2)).all()
    shown = reconstruct(params, jnp.float32(WINE), jax.random.key(2))
    spread = (np.asarray(shown) - WINE).std(0) / WINE.std(0)
    assert (spread < 1).all() and spread.mean() < 0.75


def test_shift_and_scale_are_settings_that_training_leaves_alone():
    params, _ = ppca_vae()
    mask = trainable(params).likelihood
    assert mask == {"log_var": False, "shift": False, "log_scale": False}


@pytest.mark.parametrize(
    "base",
    [
        Gaussian(True),
        Gaussian(True, per_dimension=True),
        PerPixelGaussian(),
        FullCovarianceGaussian(),
    ],
)
def test_a_start_at_data_of_any_units_is_their_gaussian(base):
    """At z = 0 the model is a Gaussian of the data's moments in each dimension."""
    x = np.random.default_rng(0).normal(size=(500, 3)) * [1e-5, 1, 1e6] + [3e-5, 0, 4e6]
    params, p = started(Standardized(base), x)
    known = scipy.stats.norm.logpdf(x, x.mean(0), x.std(0)).sum(-1)
    np.testing.assert_allclose(p.log_prob(jnp.float32(x))[0], known, atol=2e-3)
    np.testing.assert_allclose(p.mean[0, 0], x.mean(0), rtol=1e-4)
    seen = jax.jit(encode)(params, jnp.float32(x)).mean
    np.testing.assert_allclose(np.asarray(seen).mean(0), 0, atol=1e-3)


@pytest.mark.long
def test_columns_that_float32_rounds_off_are_refused():
    rng = np.random.default_rng(8)
    x = np.column_stack([rng.normal(size=50), 1e6 + rng.normal(size=50)])
    spec = ModelSpec(
        likelihood=Standardized(Gaussian(learned_variance=True)),
        data_shape=(2,),
        **LINEAR,
    )
    message = r"x varies by (0\.\d+|1\.\d+) about (999999|1000000)\S* in column 1"
    for given in (x, x.astype(np.float32), jnp.asarray(x)):
        with pytest.raises(ValueError, match=message):
            init(spec, jax.random.key(0), x=given)
    with jax.enable_x64(True):
        init(spec, jax.random.key(0), x=x, dtype=jnp.float64)
    # Float32 has these whole numbers.
    x[:, 1] = 1e6 + rng.poisson(3, size=50)
    x[0, 1] = np.nan
    spec = dataclasses.replace(spec, likelihood=Masked(spec.likelihood))
    params = init(spec, jax.random.key(0), x=x)
    scale = np.exp(params.likelihood["log_scale"][1])
    assert scale == pytest.approx(np.nanstd(x[:, 1]), rel=0.05)


def test_a_constant_column_has_scale_1_whatever_the_constant():
    constants = np.float32([0.1, 3.0, 1e-30, -7e8])
    x = np.tile(constants, (1001, 1))
    for found in (moments(x), jax.jit(moments)(x)):
        np.testing.assert_array_equal(found["shift"], constants)
        np.testing.assert_array_equal(found["log_scale"], 0)


@pytest.mark.parametrize("scale", [1e-30, 1e-25, 1.0, 1e25, 1e36])
def test_the_scale_of_a_column_may_be_of_any_unit(scale):
    x = np.random.default_rng(0).normal(size=(1001, 1))
    found = jax.jit(moments)(np.float32(scale * x))
    expected = np.log(scale) + np.log(x.std(axis=0))
    np.testing.assert_allclose(found["log_scale"], expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("x", [1e-30, 1e-3, 1.0, 7.5, 1e30])
@pytest.mark.parametrize(
    "log_median, log_var", [(0.0, 0.0), (-60.0, 3.0), (50.0, -2.0)]
)
def test_log_normal_is_scipys(x, log_median, log_var):
    p = LogNormalDistribution(jnp.array([log_median]), jnp.array([log_var]))
    known = scipy.stats.lognorm.logpdf(
        float(np.float32(x)), np.exp(log_var / 2), scale=np.exp(log_median)
    )
    assert float(p.log_prob(jnp.array([x]))) == pytest.approx(known, rel=1e-5, abs=1e-3)


def test_log_normal_mean_and_draws(assert_mean, key):
    p = LogNormalDistribution(jnp.array([1.0, 2.0]), jnp.array([-1.0, -3.0]))
    draws = p.sample(key, 20000)
    assert_mean(draws, p.mean)
    assert_mean(np.log(draws), [1.0, 2.0])


def test_log_normal_starts_at_the_data_and_refuses_zeros():
    rng = np.random.default_rng(1)
    x = np.exp(rng.normal(size=(800, 2)) * [0.5, 3] + [-8, 5])
    _, p = started(LogNormal(), x)
    logs = np.log(x)
    known = scipy.stats.norm.logpdf(logs, logs.mean(0), logs.std(0)) - logs
    np.testing.assert_allclose(p.log_prob(jnp.float32(x))[0], known.sum(-1), atol=2e-3)
    with pytest.raises(ValueError, match=r"must lie in \[1.1.*e-38, inf\], got .* 0 "):
        p.log_prob(jnp.zeros((1, 2)))
    outside = jax.jit(p.log_prob)(jnp.array([[0.0, 1.0], [-1.0, 1.0]]))
    assert np.isnan(outside).all()


def test_nominal_is_a_table_of_probabilities():
    logits = jnp.log(jnp.array([[0.2, 0.5, 0.3], [0.1, 0.1, 0.8]]))
    p = NominalDistribution(logits)
    found = [
        float(p.log_prob(jnp.array([a, b]))) for a in (0.0, 1, 2) for b in (0.0, 1, 2)
    ]
    known = np.log(np.outer([0.2, 0.5, 0.3], [0.1, 0.1, 0.8])).ravel()
    np.testing.assert_allclose(found, known, rtol=1e-5)
    assert p.mean.tolist() == [1, 2] and not p.mean_is_exact
    draws = np.asarray(p.sample(jax.random.key(0), 10000))
    shares = np.stack([(draws == code).mean(0) for code in range(3)], axis=1)
    np.testing.assert_allclose(shares, np.exp(logits), atol=5 * 0.5 / 100)
    for value in (3.0, -1.0, 0.5):
        with pytest.raises(ValueError, match="must"):
            p.log_prob(jnp.array([value, 0.0]))
        assert np.isnan(jax.jit(p.log_prob)(jnp.array([value, 0.0])))


def test_categories_start_at_their_shares_and_are_seen_as_indicators():
    x = np.repeat([[0.0, 2.0], [1.0, 0.0]], [300, 100], axis=0)
    params, p = started(Nominal(3), x)
    probabilities = jax.nn.softmax(p.logits[0, 0])
    known = [[0.75, 0.25, 0], [0.25, 0, 0.75]]
    np.testing.assert_allclose(probabilities, known, atol=0.002)
    assert params.encoder["output"]["kernel"].shape == (6, 4)
    seen = Nominal(3).encoder_inputs({}, jnp.array([[0.0, 2.0]]))
    assert seen.tolist() == [[1, 0, 0, 0, 0, 1]]


PARTS = (
    (Standardized(Gaussian()), (3, 0)),
    (Poisson(), (1,)),
    (Nominal(3), (4,)),
    (Bernoulli(), (2,)),
)


@pytest.mark.long
def test_a_product_is_the_sum_of_its_columns_in_their_order():
    x = np.array([[5.0, 3, 1, 200, 2], [7.0, 1, 0, 100, 0], [6.0, 2, 1, 150, 2]])
    _, p = started(Columns(PARTS), x)
    real = scipy.stats.norm.logpdf(
        x[:, [0, 3]], x[:, [0, 3]].mean(0), x[:, [0, 3]].std(0)
    )
    known = real.sum(-1) + scipy.stats.poisson.logpmf(x[:, 1], 2)
    shares = (np.array([1, 0, 2]) + 0.5) / 4.5
    known += np.log(shares)[x[:, 4].astype(int)]
    known += scipy.stats.bernoulli.logpmf(x[:, 2], 2 / 3)
    np.testing.assert_allclose(p.log_prob(jnp.float32(x))[0], known, atol=1e-4)
    assert not p.mean_is_exact
    np.testing.assert_allclose(p.mean[0, 0], [6, 2, 2 / 3, 150, 2], rtol=1e-5)
    draw = jax.jit(lambda p, key: p.sample(key, 4000))
    draws = np.asarray(draw(p, jax.random.key(0)))[:, 0, 0]
    assert set(np.unique(draws[:, 2])) == {0, 1}
    assert set(np.unique(draws[:, 4])) <= {0, 1, 2}
    for column, mean in ((0, 6), (1, 2), (3, 150)):
        error = draws[:, column].std() / np.sqrt(4000)
        assert abs(draws[:, column].mean() - mean) < 5 * error


def test_a_product_refuses_values_by_their_column():
    support = Columns(PARTS).support
    assert support == ColumnSupport(tuple((f.support, at) for f, at in PARTS))
    good = np.array([[0.5, 3, 1, -9, 2]])
    support.require(good)
    for column, value in ((1, 0.5), (2, 2.0), (4, 3.0), (0, np.nan)):
        bad = good.copy()
        bad[0, column] = value
        with pytest.raises(ValueError, match=f"x, column {column},"):
            support.require(bad)
        inside = support.contains(jnp.asarray(bad))[0].tolist()
        assert inside == [number != column for number in range(5)]
        assert np.isnan(support.nan_outside(jnp.asarray(bad)))[0, column]
    # Between the smallest and the largest, as means are.
    support.interval.require(np.array([[0.5, 2.5, 0.4, 0.0, 1.5]]))


@pytest.mark.parametrize(
    "build, expected",
    [
        (lambda: Columns(()), "name every column from 0 on once, got"),
        (lambda: Columns(((Poisson(), (0, 2)),)), r"once, got \[0, 2\]"),
        (lambda: Columns(((Poisson(), (0, 0)),)), r"once, got \[0, 0\]"),
        (lambda: Nominal(1), "num_categories must be at least 2, got 1"),
        (lambda: Standardized(Poisson()), "all real numbers, got Poisson"),
        (lambda: Standardized(ContinuousBernoulli()), "all real numbers, got Cont"),
        (lambda: Columns(PARTS).num_outputs(6), "of 5 columns, and the data have 6"),
        (
            lambda: exact.linear_gaussian(
                init(
                    ModelSpec(
                        likelihood=Gaussian(True, per_dimension=True),
                        data_shape=(3,),
                        **LINEAR,
                    ),
                    jax.random.key(0),
                )
            ),
            "for one noise variance",
        ),
    ],
)
def test_what_makes_no_table_is_refused(build, expected):
    with pytest.raises(ValueError, match=expected):
        build()


def test_supports_are_named():
    assert Standardized(Gaussian()).support == REAL
    assert Poisson().support == COUNTS


@pytest.mark.parametrize("base", [Laplace(), StudentT()])
def test_robust_families_start_at_mean_and_variance(base):
    x = np.random.default_rng(0).normal(size=(400, 2)) * [3, 100] + [5, -7]
    _, p = started(Standardized(base), x)
    np.testing.assert_allclose(p.mean[0, 0], x.mean(0), rtol=1e-4)
    scale = np.exp(p.base.log_scale)
    variance = 2 * scale**2
    if isinstance(base, StudentT):
        np.testing.assert_allclose(p.base.freedom, 5, rtol=1e-3)
        variance = scale**2 * 5 / 3
    np.testing.assert_allclose(variance, 1, rtol=1e-4)


def test_gamma_and_beta_start_at_mean_and_variance():
    rng = np.random.default_rng(0)
    x = rng.gamma([0.7, 30], [100, 1e-3], size=(900, 2))
    _, p = started(Gamma(), x)
    np.testing.assert_allclose(p.mean[0, 0], x.mean(0), rtol=1e-4)
    variance = x.mean(0) ** 2 / p.concentration
    np.testing.assert_allclose(variance, x.var(0), rtol=1e-3)
    x = rng.beta([0.7, 30], [2, 90], size=(900, 2))
    _, p = started(Beta(), x)
    np.testing.assert_allclose(p.mean[0, 0], x.mean(0), rtol=1e-4)
    variance = x.mean(0) * (1 - x.mean(0)) / (p.concentration + 1)
    np.testing.assert_allclose(variance, x.var(0), rtol=1e-3)


@pytest.mark.long
def test_ordered_categories_start_at_their_shares():
    x = np.repeat([[0, 2], [1, 0], [2, 2]], [300, 150, 50], axis=0)
    params, p = started(Ordinal(3), x)
    found = [np.exp(p.log_prob(jnp.float32([code, 2.0]))[0, 0]) for code in range(3)]
    np.testing.assert_allclose(found, [0.42, 0.21, 0.07], atol=2e-3)
    assert Ordinal(3).encoder_inputs({}, jnp.array([[0.0, 1, 2]])).tolist() == [
        [0, 0.5, 1]
    ]
    _, two = started(Ordinal(2), x[:, :1] > 0)
    assert np.exp(two.log_prob(jnp.ones((1, 1)))[0, 0]) == pytest.approx(0.4, abs=2e-3)


def test_a_category_that_training_makes_rarer_than_float32_can_add_stays_finite():
    """A gap of 4e-9 is lost in the sum of the thresholds, and with it the category."""
    family, x = Ordinal(3), jnp.array([[0.0], [1.0], [2.0]])

    def log_probs(log_gap):
        own = {"first_threshold": jnp.ones(1), "log_gaps": jnp.reshape(log_gap, (1, 1))}
        return family.build(own, jnp.zeros((3, 1))).log_prob(x)

    found, slopes = log_probs(-24.0), jax.jacobian(log_probs)(-24.0)
    gap = np.exp(20 * np.tanh(-1.2))
    density = scipy.stats.logistic.logpdf(1.0)
    np.testing.assert_allclose(found[1], density + np.log(gap), rtol=1e-5)
    # The density is constant over such a gap, so log p(1) rises with its log.
    np.testing.assert_allclose(slopes, [0, 1 - np.tanh(1.2) ** 2, 0], atol=1e-5)


@pytest.mark.parametrize("codes", [(0, 2), (0, 0), (2, 2)])
def test_ordered_categories_that_millions_of_rows_lack_start_finite(codes):
    """Shares of half an example of 4e6, of which a difference of float32 is 0."""
    x = jnp.repeat(jnp.float32(codes)[:, None], 2_000_000, axis=0)
    counts = np.array([2_000_000 * codes.count(code) + 0.5 for code in range(3)])
    first = np.log(counts[0] / (counts[1] + counts[2]))
    second = np.log((counts[0] + counts[1]) / counts[2])
    params = Ordinal(3).init(jax.random.key(0), dim=1)
    found, _ = Ordinal(3).start_at_data(params, x)
    np.testing.assert_allclose(found["first_threshold"], [first], rtol=1e-5, atol=1e-5)
    known = np.log(second - first)
    log_gap = bound_log_var(found["log_gaps"])
    np.testing.assert_allclose(log_gap, [[known]], rtol=1e-4, atol=1e-3)


@pytest.mark.long
def test_shares_of_counts_start_at_the_data_and_the_mean_has_their_total():
    x = np.random.default_rng(0).poisson([30, 7, 0], size=(500, 3))
    params, p = started(Multinomial(), x)
    np.testing.assert_allclose(p.mean[0, 0], x.mean(0), rtol=1e-3, atol=2e-3)
    assert trainable(params).likelihood == {"log_total": False}
    total = x.sum(-1)
    shares = np.maximum(x.mean(0), 1e-3)
    known = scipy.stats.multinomial.logpmf(x, total, shares / shares.sum())
    np.testing.assert_allclose(p.log_prob(jnp.float32(x))[0], known, atol=1e-3)
