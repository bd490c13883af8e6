"""Posterior predictive checks against what is known of the replications."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from vae_jax import (
    Columns,
    Gaussian,
    Linear,
    Masked,
    ModelSpec,
    Multinomial,
    NegativeBinomial,
    Poisson,
    decode,
    init,
    posterior_predictive,
)
from vae_jax.predictive import statistics

LINEAR = {"encoder": Linear(), "decoder": Linear(), "latent_dim": 2}
RNG = np.random.default_rng(0)
COUNTS = RNG.negative_binomial([0.5, 2, 8], [0.2, 0.3, 0.6], size=(400, 3))
COUNTS = COUNTS.astype(np.float32)


@functools.cache
def checked(likelihood, missing=False):
    """A check of a model that does not use z, at the moments of the data."""
    spec = ModelSpec(likelihood=likelihood, data_shape=(3,), **LINEAR)
    params = jax.jit(lambda x: init(spec, jax.random.key(0), x=x))(COUNTS)
    output = params.decoder["output"]
    decoder = {"output": output | {"kernel": 0 * output["kernel"]}}
    params = params.replace(decoder=decoder)
    x = np.where(np.arange(400)[:, None] < 100, np.nan, COUNTS) if missing else COUNTS
    run = jax.jit(posterior_predictive, static_argnames="num_replications")
    return run(
        params, jnp.float32(x), jax.random.key(1), num_replications=400, level=0.95
    )


@pytest.mark.long
def test_the_interval_of_zeros_is_the_binomials():
    found = checked(Poisson())["zeros"]
    np.testing.assert_allclose(found.observed, (COUNTS == 0).mean(0), rtol=1e-6)
    zero = np.exp(-COUNTS.mean(0))
    # A quantile of 400 draws is that of a share within 5 standard errors of the count.
    for end, share in ((found.lower, 0.025), (found.upper, 0.975)):
        off = 5 * np.sqrt(share * (1 - share) / 400)
        low = scipy.stats.binom.ppf(max(share - off, 1e-9), 400, zero) / 400
        high = scipy.stats.binom.ppf(min(share + off, 1 - 1e-9), 400, zero) / 400
        assert ((low - 1e-6 <= end) & (end <= high + 1e-6)).all()
    error = np.sqrt(zero * (1 - zero) / 400 / 400)
    assert (abs(np.asarray(found.mean) - zero) < 5 * error + 1e-4).all()


@pytest.mark.long
def test_overdispersed_counts_are_no_poisson_and_a_negative_binomial():
    poisson, negative_binomial = checked(Poisson()), checked(NegativeBinomial())
    for name in ("zeros", "variance", "dispersion"):
        assert not poisson[name].inside[:2].any()
        assert negative_binomial[name].inside.all()
    assert not poisson["zeros_of_all"].inside
    assert negative_binomial["zeros_of_all"].inside
    # Both have the mean.
    assert poisson["mean"].inside.all() and negative_binomial["mean"].inside.all()


@pytest.mark.long
def test_replications_of_a_multinomial_have_the_totals_of_the_data():
    """Its log p(x) is conditional on them, however much they vary."""
    shares = np.array([0.1, 0.2, 0.7])
    totals = RNG.integers(20, 400, 300)
    x = RNG.multinomial(totals, shares).astype(np.float32)
    spec = ModelSpec(likelihood=Multinomial(), data_shape=(3,), **LINEAR)
    params = init(spec, jax.random.key(0), x=x)
    output = params.decoder["output"]
    output = {"kernel": 0 * output["kernel"], "bias": jnp.log(jnp.float32(shares))}
    params = params.replace(decoder=params.decoder | {"output": output})
    run = jax.jit(posterior_predictive, static_argnames="num_replications")
    found = run(params, x, jax.random.key(1), num_replications=400, level=0.99)
    again = RNG.multinomial(totals, shares, (400, 300))
    for name, values in (("variance", again.var(axis=1)), ("mean", again.mean(axis=1))):
        check = found[name]
        assert check.inside.all()
        error = values.std(axis=0) * np.sqrt(2 / 400)
        assert (abs(check.mean - values.mean(axis=0)) < 5 * error).all()


@pytest.mark.long
def test_parts_of_a_product_have_the_totals_of_their_own_columns():
    x = RNG.poisson(30, (50, 4)).astype(np.float32)
    likelihood = Columns(((Gaussian(), (1,)), (Multinomial(), (3, 0, 2))))
    spec = ModelSpec(likelihood=likelihood, data_shape=(4,), **LINEAR)
    params = init(spec, jax.random.key(0), x=x)
    p = decode(params, jnp.zeros((1, 50, 2))).given_totals(jnp.asarray(x))
    (drawn,) = p.sample(jax.random.key(1), 1)[0]
    counts = drawn[:, [3, 0, 2]]
    np.testing.assert_array_equal(counts.sum(-1), x[:, [3, 0, 2]].sum(-1))
    assert (counts != x[:, [3, 0, 2]]).any()


@pytest.mark.long
def test_statistics_are_of_float32_whatever_the_data_are():
    """The sum of a column of these exceeds what float16 holds."""
    x = RNG.poisson(1500, (200, 3)).astype(np.float16)
    spec = ModelSpec(likelihood=Poisson(), data_shape=(3,), **LINEAR)
    params = init(spec, jax.random.key(0), x=np.float32(x))
    one, other = (
        posterior_predictive(params, given, jax.random.key(1), num_replications=20)
        for given in (x, np.float32(x))
    )
    np.testing.assert_allclose(one["mean"].observed, np.float64(x).mean(0), rtol=1e-5)
    np.testing.assert_array_equal(one["mean"].inside, other["mean"].inside)
    bits = ModelSpec(data_shape=(3,), **LINEAR)
    params = init(bits, jax.random.key(0))
    found = posterior_predictive(
        params, x > 1500, jax.random.key(1), num_replications=9
    )
    np.testing.assert_allclose(found["mean"].observed, (x > 1500).mean(0), rtol=1e-6)


@pytest.mark.long
def test_what_is_missing_is_missing_from_replications_too():
    found = checked(Masked(Poisson()), missing=True)
    whole = COUNTS[100:]
    np.testing.assert_allclose(found["mean"].observed, whole.mean(0), rtol=1e-5)
    # Of three quarters of the rows the interval is wider.
    width = [
        np.asarray(check["mean"].upper - check["mean"].lower)
        for check in (found, checked(Poisson()))
    ]
    np.testing.assert_allclose(width[0] / width[1], np.sqrt(4 / 3), rtol=0.25)


@pytest.mark.long
def test_a_replication_without_counts_has_no_dispersion_and_is_left_out():
    x = jnp.zeros((8, 3)).at[0].set(1)
    spec = ModelSpec(likelihood=Poisson(), data_shape=(3,), **LINEAR)
    params = init(spec, jax.random.key(0), x=x)
    output = params.decoder["output"]
    # A rate of 1 in 8 rows, but for the last column, which never has a count.
    output = {
        "kernel": 0 * output["kernel"],
        "bias": jnp.log(jnp.array([0.125, 0.125, 1e-30])),
    }
    params = params.replace(decoder={"output": output})
    observed = x.at[0, 1].set(0)
    found = posterior_predictive(
        params, observed, jax.random.key(1), num_replications=400
    )["dispersion"]
    # Given their total T, counts are multinomial: E[variance] = T (1 - 1/n) / n, which
    # over the mean, T / n, is 1 - 1/n. A total of 0, of probability 1/e, has neither.
    np.testing.assert_allclose(found.mean[:2], 1 - 1 / 8, atol=0.1)
    assert np.isnan(found.mean[2]) and np.isnan(found.lower[2])
    assert (found.lower[:2] < 7 / 8).all() and (found.upper[:2] > 7 / 8).all()
    assert np.isnan(found.observed).tolist() == [False, True, False]
    assert found.inside.tolist() == [True, True, True]


def test_statistics_are_numpys():
    x = np.where(RNG.random((50, 4)) < 0.2, np.nan, RNG.poisson(2, (50, 4)))
    found = statistics(jnp.float32(x))
    np.testing.assert_allclose(found["mean"], np.nanmean(x, 0), rtol=1e-6)
    np.testing.assert_allclose(found["variance"], np.nanvar(x, 0), rtol=1e-5)
    np.testing.assert_allclose(
        found["dispersion"], np.nanvar(x, 0) / np.nanmean(x, 0), rtol=1e-5
    )
    zeros = (x == 0).sum(0) / (~np.isnan(x)).sum(0)
    np.testing.assert_allclose(found["zeros"], zeros, rtol=1e-6)
    assert float(found["zeros_of_all"]) == pytest.approx(
        np.nanmean(x[~np.isnan(x)] == 0)
    )
    for q in (0.1, 0.5, 0.9):
        known = np.nanquantile(x, q, axis=0)
        np.testing.assert_allclose(found[f"quantile_{q}"], known, rtol=1e-5)


def test_integers_are_refused():
    """As everywhere: grey levels in 8 bits are no fractions."""
    params = init(ModelSpec(data_shape=(3,), **LINEAR), jax.random.key(0))
    with pytest.raises(ValueError, match="floating or boolean, got uint8"):
        posterior_predictive(params, np.ones((4, 3), np.uint8), jax.random.key(1))


def test_numbers_out_of_range_are_refused():
    spec = ModelSpec(likelihood=Gaussian(), data_shape=(3,), **LINEAR)
    params, key = init(spec, jax.random.key(0)), jax.random.key(1)
    x = jnp.zeros((2, 3))
    with pytest.raises(ValueError, match="num_replications must be at least 1, got 0"):
        posterior_predictive(params, x, key, num_replications=0)
    for level in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match="level must be between 0 and 1"):
            posterior_predictive(params, x, key, level=level)
    with pytest.raises(ValueError, match="x must be finite"):
        posterior_predictive(params, x * jnp.nan, key)
