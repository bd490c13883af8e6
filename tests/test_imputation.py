"""Missing values: evidence and imputation against the Gaussian's closed form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from vae_jax import (
    Bernoulli,
    Beta,
    Categorical,
    Columns,
    DiscretizedLogistic,
    FullCovarianceGaussian,
    Gaussian,
    Laplace,
    Linear,
    LogNormal,
    Masked,
    ModelSpec,
    Multinomial,
    NegativeBinomial,
    Nominal,
    Poisson,
    Standardized,
    decode,
    elbo,
    elbo_terms,
    encode,
    evaluate,
    exact,
    impute,
    init,
    log_evidence,
)
from vae_jax.distributions.support import COUNTS, FRACTIONS, POSITIVE, MaskedSupport
from vae_jax.families.missing import fill_by_quantiles

LINEAR = {"encoder": Linear(), "decoder": Linear(), "latent_dim": 2}
RNG = np.random.default_rng(0)
WEIGHTS = np.array([[1.0, 0.2], [-0.7, 0.5], [0.3, 1.1], [0.9, -0.4], [0.1, 0.8]])
BIAS = np.array([100.0, -3, 0.5, 7, 2])
SCALE = np.array([10.0, 0.1, 1, 3, 2])
NOISE = 0.25
COVARIANCE = SCALE[:, None] * (WEIGHTS @ WEIGHTS.T + NOISE * np.eye(5)) * SCALE
X = RNG.multivariate_normal(BIAS, COVARIANCE, size=6).astype(np.float32)
HOLES = np.array(
    [
        [0, 0, 0, 0, 0],
        [1, 0, 0, 0, 0],
        [0, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [0, 0, 0, 1, 1],
        [1, 1, 1, 1, 1],
    ],
    bool,
)
MISSING = np.where(HOLES, np.nan, X).astype(np.float32)


@functools.cache
def linear_vae():
    """The linear model of these moments, in units of its own, with a q as the prior."""
    model = exact.LinearGaussian(jnp.float32(WEIGHTS), jnp.zeros(5), jnp.float32(NOISE))
    params = exact.linear_vae(model)
    spec = ModelSpec(
        encoder=Linear(),
        decoder=Linear(),
        likelihood=Masked(Standardized(Gaussian())),
        latent_dim=2,
        data_shape=(5,),
    )
    own = params.likelihood | {
        "shift": jnp.float32(BIAS),
        "log_scale": jnp.log(jnp.float32(SCALE)),
    }
    encoder = jax.tree.map(jnp.zeros_like, params.encoder)
    return params.__class__(encoder, params.decoder, {}, {}, own, spec)


def conditional(row):
    """Mean and covariance of what is missing, and log-density of what is not."""
    hidden = np.isnan(row)
    seen = ~hidden
    block = COVARIANCE[np.ix_(seen, seen)]
    gain = COVARIANCE[np.ix_(hidden, seen)] @ np.linalg.inv(block)
    mean = BIAS[hidden] + gain @ (row - BIAS)[seen]
    spread = (
        COVARIANCE[np.ix_(hidden, hidden)] - gain @ COVARIANCE[np.ix_(seen, hidden)]
    )
    log_p = 0.0
    if seen.any():
        log_p = scipy.stats.multivariate_normal.logpdf(row[seen], BIAS[seen], block)
    return mean, spread, log_p


@pytest.mark.long
def test_evidence_is_that_of_what_is_observed():
    evidence = jax.jit(log_evidence, static_argnames=("num_samples", "chunk_size"))
    found = evidence(
        linear_vae(), jnp.asarray(MISSING), jax.random.key(0), num_samples=20000
    )
    known = np.array([conditional(row)[2] for row in np.float64(MISSING)])
    error = np.maximum(found.standard_error, 1e-5)
    assert (abs(np.asarray(found.estimate) - known) < 5 * error).all()
    assert (np.asarray(found.standard_error) < 0.1).all()


@functools.cache
def imputed():
    run = jax.jit(impute, static_argnames=("num_samples", "num_draws", "chunk_size"))
    return run(
        linear_vae(),
        jnp.asarray(MISSING),
        jax.random.key(1),
        num_samples=5000,
        num_draws=500,
        chunk_size=30000,
    )


@pytest.mark.long
def test_imputed_means_are_the_conditional_means():
    found = imputed()
    np.testing.assert_array_equal(np.asarray(found.mean)[~HOLES], X[~HOLES])
    for row, mean, size in zip(
        np.float64(MISSING), found.mean, found.effective_sample_size, strict=True
    ):
        known, spread, _ = conditional(row)
        hidden = np.isnan(row)
        # Of a mean of that many draws, and float32.
        error = np.sqrt(np.diag(spread) / float(size)) + 1e-4 * SCALE[hidden]
        assert (abs(np.asarray(mean)[hidden] - known) < 5 * error).all()
    assert (np.asarray(found.effective_sample_size) <= 5001).all()
    assert float(found.effective_sample_size[5]) == pytest.approx(5000, rel=1e-3)
    assert float(found.pareto_k[5]) < 0.1


def test_multiple_imputations_have_the_conditional_covariance():
    found = imputed()
    draws = np.asarray(found.draws, np.float64)
    assert draws.shape == (500, 6, 5)
    assert (draws[:, ~HOLES] == X[~HOLES]).all()
    for number, row in enumerate(np.float64(MISSING)):
        known, spread, _ = conditional(row)
        hidden = np.isnan(row)
        here = draws[:, number][:, hidden]
        # Draws share latents: count only those that are independent.
        size = min(500, float(found.effective_sample_size[number]) / 2)
        deviation = np.sqrt(np.diag(spread))
        assert (abs(here.mean(0) - known) < 5 * deviation / np.sqrt(size)).all()
        ratio = here.std(0) / deviation
        assert (abs(ratio - 1) < 5 / np.sqrt(2 * size)).all()


def test_the_elbo_and_its_gradient_are_those_of_the_observed_columns():
    """As a model has them that never had the others."""
    params = linear_vae()
    x = jnp.asarray(MISSING[2:3])
    seen = np.flatnonzero(~np.isnan(MISSING[2]))
    spec = ModelSpec(
        likelihood=Standardized(Gaussian()), data_shape=(len(seen),), **LINEAR
    )
    output = params.decoder["output"]
    fewer = params.__class__(
        {"output": {"kernel": jnp.zeros((3, 4)), "bias": jnp.zeros(4)}},
        {"output": {"kernel": output["kernel"][:, seen], "bias": output["bias"][seen]}},
        {},
        {},
        {
            "log_var": params.likelihood["log_var"],
            "shift": params.likelihood["shift"][seen],
            "log_scale": params.likelihood["log_scale"][seen],
        },
        spec,
    )

    def value(params, x):
        return elbo_terms(params, x, jax.random.key(3), num_samples=4).elbo.sum()

    both = jax.jit(jax.value_and_grad(value))
    masked, of_all = both(params, x)
    alone, of_seen = both(fewer, x[:, seen])
    assert float(masked) == pytest.approx(float(alone), rel=1e-5)
    kernel = np.asarray(of_all.decoder["output"]["kernel"])
    np.testing.assert_allclose(
        kernel[:, seen], of_seen.decoder["output"]["kernel"], rtol=1e-4
    )
    assert (np.delete(kernel, seen, axis=1) == 0).all()
    finite = [np.isfinite(leaf).all() for leaf in jax.tree.leaves(of_all)]
    assert all(finite)


MIXED = Columns(
    (
        (Standardized(Gaussian(True)), (0,)),
        (NegativeBinomial(), (1,)),
        (Nominal(3), (2,)),
        (LogNormal(), (3,)),
        (Bernoulli(), (4,)),
        (Standardized(Laplace()), (5,)),
    )
)
TABLE = np.stack(
    [
        RNG.normal(50, 5, 80),
        RNG.poisson(3, 80),
        RNG.integers(0, 3, 80),
        np.exp(RNG.normal(size=80)),
        RNG.integers(0, 2, 80),
        RNG.laplace(size=80),
    ],
    axis=1,
).astype(np.float32)


@pytest.mark.long
def test_a_mixed_table_with_holes():
    x = np.where(RNG.random(TABLE.shape) < 0.3, np.nan, TABLE).astype(np.float32)
    spec = ModelSpec(
        likelihood=Masked(MIXED, shows_mask=True), data_shape=(6,), **LINEAR
    )
    params = jax.jit(lambda x: init(spec, jax.random.key(0), x=x))(x)
    assert float(params.likelihood["shift_0"][0]) == pytest.approx(
        np.nanmean(x[:, 0]), rel=0.01
    )
    # Eight inputs, as three categories are three; and the mask.
    assert params.encoder["output"]["kernel"].shape[0] == 8 + 6
    terms = jax.jit(evaluate)(params, jnp.asarray(x), jax.random.key(1))
    assert np.isfinite(terms.elbo).all()
    run = jax.jit(impute, static_argnames=("num_samples", "num_draws"))
    found = run(params, jnp.asarray(x[:5]), jax.random.key(2), num_samples=50)
    holes = np.isnan(x[:5])
    # Categories have no mean.
    assert (np.isnan(found.mean) == (holes & (np.arange(6) == 2))).all()
    MIXED.support.require(np.asarray(found.draws[0]))


def test_the_encoder_sees_zeros_and_the_mask():
    x = jnp.array([[jnp.nan, 4.0], [1.0, jnp.nan]])
    plain = Masked(Poisson()).encoder_inputs({}, x)
    np.testing.assert_allclose(plain, [[0, np.log(5)], [np.log(2), 0]], rtol=1e-6)
    seen = Masked(Nominal(2), shows_mask=True).encoder_inputs({}, x[:1] - 3)
    assert seen.tolist() == [[0, 0, 0, 1, 0, 1]]


def test_missing_values_are_filled_by_quantiles_of_the_observed():
    x = np.array([[3.0, 5], [np.nan, 8], [1, np.nan], [np.nan, np.nan], [np.nan, 6]])
    filled = np.asarray(fill_by_quantiles(jnp.float32(x)))
    assert filled[:, 0].tolist() == [3, 1, 1, 3, 3]
    assert filled[:, 1].tolist() == [5, 8, 5, 8, 6]


@pytest.mark.parametrize("share", [0.05, 0.3, 0.8])
def test_standardization_is_that_of_the_observed_values_of_sorted_rows(share):
    rng = np.random.default_rng(0)
    x = np.sort(rng.gamma(2.0, 3.0, size=(400, 3)), axis=0)
    x[rng.random(x.shape) < share] = np.nan
    likelihood = Masked(Standardized(Gaussian()))
    spec = ModelSpec(latent_dim=2, data_shape=(3,), likelihood=likelihood)
    found = init(spec, jax.random.key(0), x=jnp.float32(x)).likelihood
    deviation = np.nanstd(x, axis=0)
    error = (np.asarray(found["shift"]) - np.nanmean(x, axis=0)) / deviation
    np.testing.assert_allclose(error, 0, atol=0.02)
    np.testing.assert_allclose(np.exp(found["log_scale"]), deviation, rtol=0.03)


@pytest.mark.long
@pytest.mark.parametrize(
    "base",
    [
        Bernoulli(),
        Categorical(3),
        DiscretizedLogistic(3),
        Standardized(Gaussian(learned_variance=True, per_dimension=True)),
        NegativeBinomial(),
        LogNormal(),
        Beta(),
        MIXED,
    ],
    ids=lambda base: type(base).__name__,
)
def test_a_column_without_a_value_does_not_touch_the_others(base):
    """Nor does what it starts at: at z = 0, where an output is its bias alone."""
    dim = 6
    x = TABLE if base is MIXED else np.full((80, dim), base.support.filler(dim))
    x = x.astype(np.float32)
    empty = x.copy()
    empty[:, 3] = np.nan
    spec = ModelSpec(likelihood=Masked(base), data_shape=(dim,), **LINEAR)
    first, second = (init(spec, jax.random.key(0), x=x) for x in (x, empty))
    value, gradient = jax.jit(jax.value_and_grad(elbo))(
        second, jnp.asarray(empty[:5]), jax.random.key(1)
    )
    assert np.isfinite(value)
    for leaf in jax.tree.leaves((second, gradient)):
        assert np.isfinite(leaf).all()
    terms = [
        decode(params, jnp.zeros((1, 1, 2))).log_prob_per_dimension(x[:5])
        for params in (first, second)
    ]
    others = np.arange(dim) != 3
    np.testing.assert_allclose(
        terms[0][..., others], terms[1][..., others], rtol=1e-5, atol=1e-5
    )


@pytest.mark.long
@pytest.mark.parametrize("base", [COUNTS, POSITIVE, FRACTIONS, MIXED.support])
def test_a_filler_is_inside_and_nan_is_a_value(base):
    dim = 6
    filler = base.filler(dim)
    base.require(filler[None].astype(np.float32))
    support = MaskedSupport(base)
    x = np.float32(np.where(np.arange(dim) % 2, np.nan, filler))[None]
    support.require(x)
    assert support.contains(x).all() and support.contains(jnp.asarray(x)).all()
    bad = np.float32(np.full((1, dim), -np.inf))
    with pytest.raises(ValueError, match="must be finite"):
        support.require(bad)
    assert not np.isnan(support.nan_outside(jnp.asarray(bad))).any()


@pytest.mark.long
def test_what_cannot_be_masked_is_refused():
    for base in (FullCovarianceGaussian(), Multinomial()):
        spec = ModelSpec(likelihood=Masked(base), data_shape=(3,), **LINEAR)
        params = init(spec, jax.random.key(0))
        with pytest.raises(ValueError, match="of independent dimensions, got"):
            decode(params, jnp.zeros((1, 1, 2)))
    spec = ModelSpec(likelihood=Poisson(), data_shape=(2,), **LINEAR)
    params = init(spec, jax.random.key(0))
    x = jnp.array([[1.0, jnp.nan]])
    with pytest.raises(ValueError, match="x must be finite"):
        impute(params, x, jax.random.key(0))
    masked = params.__class__(
        params.encoder,
        params.decoder,
        {},
        {},
        {},
        ModelSpec(likelihood=Masked(Poisson()), data_shape=(2,), **LINEAR),
    )
    for name in ("num_samples", "num_draws", "chunk_size"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            impute(masked, x, jax.random.key(0), **{name: 0})
    with pytest.raises(ValueError, match="whole numbers"):
        impute(masked, x - 0.5, jax.random.key(0))
    assert encode(masked, x).mean.shape == (1, 2)
