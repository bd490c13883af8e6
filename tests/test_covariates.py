"""Covariates: a linear-Gaussian model of x given c, whose log p(x|c) is closed form.

With x = W z + A c + b + noise, x given c is N(b + A c, W W^T + s^2 I).
"""

import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

import vae_jax
from vae_jax import (
    MLP,
    Conditions,
    ConvolutionalDecoder,
    ConvolutionalEncoder,
    CovariateGaussianPrior,
    Gaussian,
    Labelled,
    Linear,
    ModelSpec,
    VampPrior,
    exact,
)
from vae_jax.model import log_prior

RNG = np.random.default_rng(0)
KEY = jax.random.key(5)
SPEC = ModelSpec(
    Linear(),
    Linear(),
    likelihood=Gaussian(learned_variance=True),
    latent_dim=1,
    data_shape=(4,),
    num_covariates=2,
)
W, A = RNG.normal(size=(1, 4)), RNG.normal(size=(2, 4))
SHIFT, VARIANCE = RNG.normal(size=4), 0.3
C = RNG.normal(size=(400, 2)).astype(np.float32)
NOISE = np.sqrt(VARIANCE) * RNG.normal(size=(400, 4))
X = (RNG.normal(size=(400, 1)) @ W + C @ A + SHIFT + NOISE).astype(np.float32)
GIVEN = Conditions(covariates=C)


def densities(w, a, shift, variance):
    """SciPy's log p(x|c) of every example."""
    covariance = w.T @ w + variance * np.eye(4)
    return scipy.stats.multivariate_normal(cov=covariance).logpdf(X - C @ a - shift)


def exact_model():
    """The model with these parameters, and the exact posterior as encoder."""
    params = vae_jax.init(SPEC, jax.random.key(0))
    decoder = {"kernel": np.concatenate([W, A]), "bias": SHIFT}
    precision = (W @ W.T).item() + VARIANCE
    to_mean = W.T / precision
    encoder = {
        "kernel": np.concatenate([to_mean, -A @ to_mean]) * [1, 0],
        "bias": np.array([-(SHIFT @ to_mean).item(), np.log(VARIANCE / precision)]),
    }
    # The families bound what the networks say; the bound's inverse undoes that.
    encoder["bias"][1] = vae_jax.families.unbound_log_var(encoder["bias"][1])
    log_var = vae_jax.families.unbound_log_var(jnp.log(VARIANCE))
    known = params.replace(
        encoder={"output": encoder},
        decoder={"output": decoder},
        likelihood={"log_var": log_var},
    )
    same = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), known)
    assert jax.tree.structure(same) == jax.tree.structure(params)
    return same


@pytest.mark.long
def test_bounds_are_the_closed_form():
    """With the exact posterior every bound is log p(x|c), at every sample."""
    params = exact_model()
    expected = densities(W, A, SHIFT, VARIANCE)
    found = vae_jax.log_evidence(params, X, KEY, num_samples=5, labels=GIVEN)
    np.testing.assert_allclose(found.estimate, expected, atol=1e-3)
    terms = vae_jax.evaluate(params, X, KEY, num_samples=500, labels=GIVEN)
    assert np.mean(terms.elbo) == pytest.approx(np.mean(expected), abs=0.02)
    bound = vae_jax.importance_weighted_bound(
        params, X, KEY, num_samples=3, labels=GIVEN
    )
    assert float(bound) == pytest.approx(np.mean(expected), abs=1e-3)
    # Of other covariates it is another density: none of them is left out.
    other = Conditions(covariates=C[::-1].copy())
    assert not np.allclose(
        vae_jax.elbo(params, X, KEY, labels=other), np.mean(expected), atol=1
    )


def test_draws_have_the_moments_of_the_covariates_that_are_given():
    params = exact_model()
    c = np.array([1.0, -2.0], np.float32)
    many = Conditions(covariates=np.tile(c, (20_000, 1)))
    x = vae_jax.generate(params, KEY, num_samples=20_000, sample=True, labels=many)
    covariance = W.T @ W + VARIANCE * np.eye(4)
    error = np.sqrt(np.diag(covariance) / 20_000)
    assert (np.abs(x.mean(axis=0) - (SHIFT + c @ A)) < 5 * error).all()
    error = np.sqrt(np.add.outer(*[np.diag(covariance)] * 2) ** 2 / 20_000)
    assert (np.abs(np.cov(x.T) - covariance) < 5 * error).all()


@pytest.mark.long
def test_training_reaches_regression_and_ppca():
    """Least squares on c, then PPCA of the residuals, have the greatest likelihood."""
    design = np.concatenate([C, np.ones((400, 1))], axis=1).astype(float)
    solution, *_ = np.linalg.lstsq(design, X.astype(float), rcond=None)
    residual = X - design @ solution
    values, vectors = np.linalg.eigh(residual.T @ residual / 400)
    noise = values[:-1].mean()
    w = np.sqrt(values[-1] - noise) * vectors[:, -1:].T
    best = densities(w, solution[:2], solution[2], noise).mean()
    params = vae_jax.init(SPEC, jax.random.key(1), x=X)
    params, _ = vae_jax.fit(
        params,
        Labelled(X, GIVEN),
        jax.random.key(2),
        num_epochs=1500,
        batch_size=400,
        optimizer=optax.adam(optax.cosine_decay_schedule(0.03, 1500)),
    )
    found = vae_jax.log_evidence(params, X, KEY, num_samples=20, labels=GIVEN)
    assert np.mean(found.estimate) == pytest.approx(best, abs=0.02)
    # Without the covariates' share the model would be far off.
    assert best > densities(w, 0 * solution[:2], solution[2], noise).mean() + 1


@pytest.mark.long
def test_a_prior_of_covariates_and_labels_has_the_closed_form():
    """p(x|c) = N(s + W mean(c), W diag(var(c)) W^T + noise), c with the labels."""
    prior = CovariateGaussianPrior(2, num_classes=3)
    spec = dataclasses.replace(SPEC, prior=prior, num_classes=3)
    params = vae_jax.init(spec, KEY)
    to_mean, to_log_var = 0.3 * RNG.normal(size=(2, 5, 1))
    wide = {"kernel": jnp.zeros((9, 2)), "bias": jnp.array([0.3, 2.0])}
    decoder = {"kernel": np.concatenate([W, np.zeros((5, 4))]), "bias": SHIFT}
    log_var = vae_jax.families.unbound_log_var(jnp.log(VARIANCE))
    params = params.replace(
        encoder={"output": wide},
        decoder={"output": jax.tree.map(jnp.float32, decoder)},
        likelihood={"log_var": jnp.float32(log_var)},
        prior={
            "mean": {"kernel": jnp.float32(to_mean), "bias": jnp.full(1, 0.3)},
            "log_var": {"kernel": jnp.float32(to_log_var), "bias": jnp.full(1, -0.2)},
        },
    )
    labels = np.arange(400) % 3
    given = Conditions(labels, covariates=C)
    c = np.concatenate([np.eye(3)[labels], C], axis=1)
    mean, variance = (c @ to_mean + 0.3)[:, 0], np.exp(c @ to_log_var - 0.2)[:, 0]
    z = RNG.normal(size=(2, 400, 1)).astype(np.float32)
    expected = scipy.stats.norm(mean, np.sqrt(variance)).logpdf(z[..., 0])
    found = log_prior(params, z, labels=given)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)

    x = vae_jax.generate(params, KEY, num_samples=400, sample=True, labels=given)
    expected = [
        scipy.stats.multivariate_normal(
            SHIFT + m * W[0], v * W.T @ W + VARIANCE * np.eye(4)
        ).logpdf(row)
        for row, m, v in zip(np.asarray(x), mean, variance, strict=True)
    ]
    closed = vae_jax.log_evidence(params, x, KEY, num_samples=20_000, labels=given)
    assert np.mean(closed.estimate) == pytest.approx(np.mean(expected), abs=0.05)
    # The draws are of this density: minus its entropy is the mean of log p.
    entropy = [
        0.5
        * (
            4 * np.log(2 * np.pi * np.e)
            + np.linalg.slogdet(v * W.T @ W + VARIANCE * np.eye(4))[1]
        )
        for v in variance
    ]
    error = np.sqrt(2 / 400)
    assert abs(np.mean(expected) + np.mean(entropy)) < 4 * error


@pytest.mark.long
def test_codes_follow_covariates_and_the_parameters_of_the_prior_are_trained():
    """Of x = z + noise with z = 2 c + e / 2 the prior's slope and scale are found."""
    c = RNG.normal(size=(400, 1)).astype(np.float32)
    z = 2 * c + 0.5 * RNG.normal(size=c.shape)
    x = np.float32(z + 0.1 * RNG.normal(size=(400, 3)))
    spec = ModelSpec(
        Linear(),
        Linear(),
        prior=CovariateGaussianPrior(1),
        likelihood=Gaussian(learned_variance=True),
        latent_dim=1,
        data_shape=(3,),
        num_covariates=1,
    )
    given = Conditions(covariates=c)
    params = vae_jax.init(spec, KEY, x=x)
    trained, _ = vae_jax.fit(
        params,
        Labelled(x, given),
        KEY,
        num_epochs=1500,
        batch_size=400,
        optimizer=optax.adam(optax.cosine_decay_schedule(0.03, 1500)),
    )
    rows = x.astype(float)
    design = np.concatenate([c, np.ones_like(c)], axis=1)
    residual = rows - design @ np.linalg.lstsq(design, rows, rcond=None)[0]
    covariance = residual.T @ residual / 400
    best = scipy.stats.multivariate_normal(cov=covariance).logpdf(residual).mean()
    found = vae_jax.log_evidence(trained, x, KEY, num_samples=50, labels=given)
    assert np.mean(found.estimate) == pytest.approx(best, abs=0.03)
    assert np.abs(trained.prior["mean"]["kernel"]) > 0.1


def test_a_prior_of_other_covariates_is_refused():
    with pytest.raises(ValueError, match="has 3 covariates, and num_covariates is 2"):
        dataclasses.replace(SPEC, prior=CovariateGaussianPrior(3))
    with pytest.raises(ValueError, match="has 0 classes, and num_classes is 2"):
        dataclasses.replace(SPEC, prior=CovariateGaussianPrior(2), num_classes=2)

    class Deaf(vae_jax.StandardNormal):
        num_covariates = 2

    with pytest.raises(ValueError, match="declares num_covariates, which nothing"):
        dataclasses.replace(SPEC, prior=Deaf())
    spec = dataclasses.replace(SPEC, prior=CovariateGaussianPrior(2))
    params = vae_jax.init(spec, KEY)
    with pytest.raises(ValueError, match="num_covariates=2 needs covariates"):
        log_prior(params, jnp.zeros((1, 1, 1)))


@pytest.mark.long
@pytest.mark.parametrize("images", [False, True])
def test_labels_are_covariates_that_are_indicators(images):
    networks = (ConvolutionalEncoder(), ConvolutionalDecoder())
    sizes = {"latent_dim": 2, "data_shape": (4, 4)}
    spec = ModelSpec(*networks if images else (MLP((4,)), MLP((4,))), **sizes)
    by_labels, by_covariates = (
        vae_jax.init(dataclasses.replace(spec, **{name: 3}), KEY)
        for name in ("num_classes", "num_covariates")
    )
    x = RNG.integers(0, 2, (5, 16)).astype(np.float32)
    labels = np.array([0, 2, 1, 1, 0])
    one_hot = Conditions(covariates=np.eye(3, dtype=np.float32)[labels])
    np.testing.assert_array_equal(
        vae_jax.elbo(by_labels, x, KEY, labels=labels),
        vae_jax.elbo(by_covariates, x, KEY, labels=one_hot),
    )


def test_both_and_a_saved_run(tmp_path):
    spec = dataclasses.replace(SPEC, num_classes=3)
    params = vae_jax.init(spec, KEY, x=X)
    given = Conditions(np.arange(400) % 3, covariates=C)
    assert params.decoder["output"]["kernel"].shape == (1 + 3 + 2, 4)
    vae_jax.save_run(tmp_path / "run", params)
    loaded = vae_jax.load_run(os.fspath(tmp_path / "run"))
    assert loaded.spec == spec
    np.testing.assert_array_equal(
        *(vae_jax.elbo(one, X, KEY, labels=given) for one in (params, loaded))
    )
    with pytest.raises(ValueError, match="num_classes=3 needs labels"):
        vae_jax.encode(params, X, labels=GIVEN)
    with pytest.raises(ValueError, match="num_covariates=2 needs covariates"):
        vae_jax.encode(params, X, labels=given.labels)


@pytest.mark.parametrize(
    "given, expected",
    [
        (None, r"needs covariates: give labels=Conditions.*, \[B, 2\]"),
        (Conditions(covariates=C[:3]), r"got \[3, 2\] for 400 examples"),
        (Conditions(covariates=C[:, :1]), r"finite numbers, \[B, 2\], got \[400, 1\]"),
        (Conditions(covariates=C[:, 0]), r"got \[400\]"),
        (Conditions(covariates=C + np.nan), "finite numbers, .* got nan"),
        (Conditions(covariates=C + np.inf), "finite numbers, .* got inf"),
        (Conditions(covariates=C, exposure=C[:, 0]), "takes none: choose Exposed"),
    ],
)
def test_covariates_that_are_none(given, expected):
    params = vae_jax.init(SPEC, KEY)
    for function in (vae_jax.elbo, vae_jax.reconstruct, vae_jax.evaluate):
        with pytest.raises(ValueError, match=expected):
            function(params, X, KEY, labels=given)
    if given is None or given.exposure is None:
        with pytest.raises(ValueError, match=expected):
            vae_jax.decode(params, jnp.zeros((400, 1)), labels=given)


def test_covariates_that_nothing_takes_are_refused():
    with pytest.raises(ValueError, match="num_covariates must hold positive integers"):
        dataclasses.replace(SPEC, num_covariates=-1)
    with pytest.raises(ValueError, match="encodes without labels, .* num_covariates 2"):
        ModelSpec(prior=VampPrior(3), num_covariates=2)
    params = vae_jax.init(dataclasses.replace(SPEC, num_covariates=0), KEY)
    with pytest.raises(ValueError, match="without any: set num_covariates"):
        vae_jax.elbo(params, X, KEY, labels=GIVEN)
    with pytest.raises(ValueError, match="num_covariates=2"):
        exact.linear_gaussian(vae_jax.init(SPEC, KEY))


@pytest.mark.expects_nan
def test_a_traced_covariate_that_is_none_is_nan():
    params = vae_jax.init(SPEC, KEY)

    @jax.jit
    def bound(c):
        given = Conditions(covariates=c)
        return vae_jax.elbo_terms(params, X[:3], KEY, labels=given).elbo

    c = C[:3].copy()
    c[1, 0] = np.inf
    assert np.isnan(bound(c)).tolist() == [False, True, False]
