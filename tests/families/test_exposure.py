"""Counts with exposures: SciPy's densities of means that are exposure times rate."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

import vae_jax
from vae_jax import (
    MLP,
    Columns,
    Conditions,
    Exposed,
    Gaussian,
    Masked,
    ModelSpec,
    Multinomial,
    NegativeBinomial,
    Poisson,
    ZeroInflatedNegativeBinomial,
    load_run,
    save_run,
)
from vae_jax.calibration import simulation_ranks
from vae_jax.families import bound_log_var

RNG = np.random.default_rng(0)
EXPOSURE = np.array([0.5, 3.0, 200.0, 7.0], np.float32)
X = RNG.poisson(EXPOSURE[:, None] * [0.2, 1.0, 2.0, 0.0, 4.0]).astype(np.float32)
GIVEN = Conditions(exposure=EXPOSURE)
KEY = jax.random.key(3)
BASES = {
    "poisson": Poisson(),
    "negative_binomial": NegativeBinomial(),
    "decoder": NegativeBinomial("decoder"),
    "zero_inflated": ZeroInflatedNegativeBinomial("shared"),
}
bases = pytest.mark.parametrize(
    "base", [pytest.param(b, id=n) for n, b in BASES.items()]
)


def model(base):
    spec = ModelSpec(
        MLP((4,)), MLP((4,)), likelihood=base, latent_dim=2, data_shape=(5,)
    )
    params = vae_jax.init(spec, jax.random.key(0))
    output = params.decoder["output"]
    bias = 0.5 * jax.random.normal(jax.random.key(1), output["bias"].shape)
    output = {"kernel": 0.3 * output["kernel"], "bias": bias}
    return params.replace(decoder=params.decoder | {"output": output})


def silent(base):
    """A model whose decoder does not look at z."""
    params = model(base)
    kernel = params.decoder["output"]["kernel"]
    output = params.decoder["output"] | {"kernel": jnp.zeros_like(kernel)}
    return params.replace(decoder=params.decoder | {"output": output})


@pytest.fixture(params=BASES.values(), ids=BASES.keys())
def params(request):
    return model(Exposed(request.param))


def scipys(likelihood, x):
    """SciPy's log-probability of a built distribution, from its rates."""
    if hasattr(likelihood, "logits"):
        p = 1 / (1 + np.exp(-np.asarray(likelihood.logits, np.float64)))
        counted = scipys(likelihood.counted, x)
        return np.log(np.where(x == 0, p, 0) + (1 - p) * np.exp(counted))
    mean = np.asarray(likelihood.mean, np.float64)
    if not hasattr(likelihood, "inverse_dispersion"):
        return scipy.stats.poisson.logpmf(x, mean)
    r = np.asarray(likelihood.inverse_dispersion, np.float64)
    return scipy.stats.nbinom.logpmf(x, r, r / (r + mean))


@pytest.mark.long
def test_means_are_the_exposure_times_the_rates(params):
    z = jax.random.normal(KEY, (3, 4, 2))
    base = params.replace(
        spec=ModelSpec(
            params.spec.encoder,
            params.spec.decoder,
            likelihood=params.spec.likelihood.base,
            latent_dim=2,
            data_shape=(5,),
        )
    )
    rates = vae_jax.decode(base, z)
    found = vae_jax.decode(params, z, labels=GIVEN)
    np.testing.assert_allclose(found.mean, rates.mean * EXPOSURE[:, None], rtol=1e-6)
    scaled = jax.tree.map(lambda leaf: leaf, rates)
    counted = getattr(scaled, "counted", scaled)
    object.__setattr__(counted, "mean", counted.mean * EXPOSURE[:, None])
    expected = scipys(scaled, X).sum(axis=-1)
    np.testing.assert_allclose(found.log_prob(X), expected, rtol=1e-5, atol=1e-3)


@pytest.mark.long
def test_evidence_is_that_of_scipys_densities():
    """One latent without an influence: log p(x) is the likelihood's, in closed form."""
    params = silent(Exposed(NegativeBinomial()))
    expected = scipys(vae_jax.decode(params, jnp.zeros((4, 2)), labels=GIVEN), X).sum(
        -1
    )
    found = vae_jax.log_evidence(params, X, KEY, num_samples=2000, labels=GIVEN)
    error = 5 * np.asarray(found.standard_error) + 1e-4 * np.abs(expected)
    assert (np.abs(found.estimate - expected) < error).all()
    terms = vae_jax.evaluate(params, X, KEY, labels=GIVEN)
    np.testing.assert_allclose(terms.log_likelihood, expected, rtol=1e-5)
    value = vae_jax.elbo(params, X, KEY, labels=GIVEN)
    np.testing.assert_allclose(
        value, np.mean(expected - np.asarray(terms.kl_divergence)), rtol=1e-5
    )


@pytest.mark.long
def test_draws_take_the_exposure_that_is_given():
    params = model(Exposed(BASES["zero_inflated"]))
    many = Conditions(exposure=np.repeat(EXPOSURE[1:3], 4000))
    draws, means = (
        np.asarray(
            vae_jax.generate(params, KEY, num_samples=8000, sample=sample, labels=many)
        ).reshape(2, 4000, 5)
        for sample in (True, False)
    )
    error = draws.std(axis=1) / np.sqrt(4000)
    assert (np.abs(draws.mean(axis=1) - means.mean(axis=1)) < 5 * error + 1e-3).all()
    rebuilt = vae_jax.reconstruct(params, X, KEY, labels=GIVEN)
    doubled = Conditions(exposure=2 * EXPOSURE)
    np.testing.assert_allclose(
        vae_jax.reconstruct(params, X, KEY, labels=doubled), 2 * rebuilt, rtol=1e-5
    )
    params = silent(Exposed(Poisson()))
    checked = vae_jax.posterior_predictive(
        params, X, KEY, num_replications=400, labels=GIVEN
    )
    mean = vae_jax.decode(params, jnp.zeros((4, 2)), labels=GIVEN).mean.mean(axis=0)
    # The mean of 4 x 400 Poisson counts has the variance of their mean over that.
    error = 5 * np.sqrt(mean / 1600)
    assert (np.abs(checked["mean"].mean - mean) < error).all()


@bases
def test_a_model_starts_at_the_rates_of_the_data(base):
    exposure = RNG.uniform(1, 1000, 400).astype(np.float32)
    rates = np.array([1e-3, 0.02, 0.5, 1.0, 3.0])
    x = RNG.poisson(exposure[:, None] * rates).astype(np.float32)
    spec = model(Exposed(base)).spec
    given = Conditions(exposure=exposure)
    params = vae_jax.init(spec, jax.random.key(0), x=x, labels=given)
    bias = params.decoder["output"]["bias"]
    started = spec.likelihood.build(
        params.likelihood | {"exposure": jnp.ones(1)}, bias[None]
    )
    expected = (x / exposure[:, None]).mean(axis=0)
    np.testing.assert_allclose(started.mean[0], expected, rtol=1e-3)
    assert jax.tree.structure(params) == jax.tree.structure(model(Exposed(base)))


@pytest.mark.parametrize("r", [2.0, np.inf])
def test_dispersion_starts_at_that_of_the_counts_and_not_of_their_exposures(r):
    """Scaled to one exposure, even Poisson counts vary more than their mean."""
    rng = np.random.default_rng(5)
    exposure = rng.uniform(1, 100, 20_000).astype(np.float32)
    mean = exposure[:, None] * [0.02, 0.5]
    gamma = rng.gamma(r, 1 / r, mean.shape) if r < np.inf else 1.0
    x = rng.poisson(mean * gamma).astype(np.float32)
    given = Conditions(exposure=exposure)
    spec = ModelSpec(
        likelihood=Exposed(NegativeBinomial()), latent_dim=1, data_shape=(2,)
    )
    params = vae_jax.init(spec, jax.random.key(0), x=x, labels=given)
    own = params.likelihood | {"exposure": jnp.ones(1)}
    outputs = params.decoder["output"]["bias"][None]
    started = spec.likelihood.build(own, outputs).inverse_dispersion
    if r < np.inf:
        np.testing.assert_allclose(started, r, rtol=0.15)
    else:
        assert (np.asarray(started) > 20).all()


@pytest.mark.long
def test_training_finds_the_rates_and_a_run_keeps_them(tmp_path):
    """Of data without structure: the maximum-likelihood rate is sum x / sum e."""
    exposure = RNG.uniform(1, 20, 200).astype(np.float32)
    x = RNG.poisson(exposure[:, None] * [0.5, 2.0]).astype(np.float32)
    spec = ModelSpec(
        MLP((4,)),
        vae_jax.Linear(),
        likelihood=Exposed(Poisson()),
        latent_dim=1,
        data_shape=(2,),
    )
    given = Conditions(exposure=exposure)
    params = vae_jax.init(spec, jax.random.key(0), x=x, labels=given)
    params, _ = vae_jax.fit(
        params,
        vae_jax.Labelled(x, given),
        jax.random.key(1),
        num_epochs=600,
        batch_size=200,
        optimizer=optax.adam(0.01),
    )
    save_run(tmp_path / "run", params)
    params = load_run(tmp_path / "run")
    assert params.spec == spec
    ones = Conditions(exposure=np.ones(500))
    rates = vae_jax.generate(params, KEY, num_samples=500, labels=ones).mean(axis=0)
    np.testing.assert_allclose(rates, x.sum(0) / exposure.sum(), rtol=0.05)


@pytest.mark.long
def test_missing_counts_have_exposures_too():
    params = model(Masked(Exposed(NegativeBinomial())))
    x = np.where(np.eye(4, 5) == 1, np.nan, X)
    z = jax.random.normal(KEY, (4, 2))
    likelihood = vae_jax.decode(params, z, labels=GIVEN)
    expected = np.nansum(np.where(np.isnan(x), np.nan, scipys(likelihood.base, X)), -1)
    np.testing.assert_allclose(likelihood.log_prob(x), expected, rtol=1e-5, atol=1e-3)
    filled = vae_jax.impute(params, x, KEY, num_samples=50, labels=GIVEN)
    assert np.isfinite(filled.mean).all()


def test_missing_counts_start_at_the_rates_of_those_observed():
    rng = np.random.default_rng(0)
    exposure = (5 * np.exp(rng.normal(0, 1.2, 3000))).astype(np.float32)
    x = rng.poisson(3 * exposure[:, None] * np.ones(3)).astype(np.float32)
    x[rng.random((3000, 3)) < [0, 0.5, 0.9]] = np.nan
    spec = ModelSpec(likelihood=Masked(Exposed(Poisson())), data_shape=(3,))
    given = Conditions(exposure=exposure)
    params = vae_jax.init(spec, KEY, x=x, labels=given)
    rates = np.exp(bound_log_var(params.decoder["output"]["bias"]))
    np.testing.assert_allclose(rates, 3, rtol=0.05)


@pytest.mark.parametrize(
    "given, expected",
    [
        (None, "needs exposures: give labels=Conditions"),
        (Conditions(), "needs exposures"),
        (Conditions(exposure=EXPOSURE[:3]), r"positive and finite, .* \[3\] for 4"),
        (Conditions(exposure=EXPOSURE[:, None]), r"one for each example, .* \[4, 1\]"),
        (Conditions(exposure=EXPOSURE * [1, 0, 1, 1]), "must be positive .* got 0"),
        (Conditions(exposure=EXPOSURE * [1, -1, 1, 1]), "must be positive .* got -3"),
        (Conditions(exposure=EXPOSURE + np.inf), "must be positive .* got inf"),
        (Conditions(exposure=EXPOSURE * np.nan), "must be positive .* got nan"),
        (Conditions(exposure=np.full(4, 1e-50)), "must be positive .* got 1e-50"),
        (Conditions(exposure=np.full(4, 1e39)), r"must be positive .* got 1e\+39"),
    ],
)
def test_exposures_that_are_none(given, expected):
    params = model(Exposed(Poisson()))
    for function in (
        lambda: vae_jax.elbo(params, X, KEY, labels=given),
        lambda: vae_jax.generate(params, KEY, num_samples=4, labels=given),
        lambda: vae_jax.reconstruct(params, X, KEY, labels=given),
        lambda: vae_jax.init(params.spec, KEY, x=X, labels=given),
        lambda: vae_jax.log_evidence(params, X, KEY, num_samples=5, labels=given),
        lambda: vae_jax.posterior_predictive(params, X, KEY, labels=given),
    ):
        with pytest.raises(ValueError, match=expected):
            function()


@pytest.mark.expects_nan
def test_a_traced_exposure_that_is_none_is_nan():
    params = model(Exposed(Poisson()))

    @jax.jit
    def bound(exposure):
        return vae_jax.elbo_terms(
            params, X, KEY, labels=Conditions(exposure=exposure)
        ).elbo

    found = bound(EXPOSURE * np.array([1, 0, 1, -1], np.float32))
    assert np.isnan(found).tolist() == [False, True, False, True]


def test_an_exposure_that_nothing_takes_is_refused():
    for base in (Poisson(), Gaussian()):
        params = model(base)
        with pytest.raises(ValueError, match="takes none: choose Exposed"):
            vae_jax.elbo(params, X, KEY, labels=GIVEN)
    for base in (Gaussian(), Multinomial(), Exposed(Poisson()), Masked(Poisson())):
        with pytest.raises(ValueError, match="must be a family of counts with means"):
            Exposed(base)
    with pytest.raises(ValueError, match="parts must take no exposure"):
        Columns(((Exposed(Poisson()), (0,)),))


def test_what_takes_no_labels_refuses_a_model_with_exposures():
    params = model(Exposed(Poisson()))
    with pytest.raises(ValueError, match="unconditional model, .* Exposed"):
        vae_jax.annealed_log_evidence(params, X, KEY)
    with pytest.raises(ValueError, match="needs a model without labels, .* Exposed"):
        simulation_ranks(params, KEY, num_simulations=5)


@pytest.mark.slow
def test_the_contracts_hold():
    params = model(Exposed(NegativeBinomial()))
    assert vae_jax.check(params, X, KEY, labels=GIVEN)
