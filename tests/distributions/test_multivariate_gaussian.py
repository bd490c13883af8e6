"""Correlated Gaussians against SciPy and NumPy: values, gradients, edge cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from vae_jax.distributions import multivariate_gaussian as mvg

RNG = np.random.default_rng(0)
MEAN = RNG.normal(size=(2, 3))
TRIL = np.tril(RNG.normal(size=(2, 3, 3)), -1) + np.einsum(
    "bl,lm->blm", np.exp(0.5 * RNG.normal(size=(2, 3))), np.eye(3)
)
COVARIANCE = TRIL @ TRIL.mT
X = RNG.normal(size=(4, 2, 3))


def scipys(x=X, covariance=COVARIANCE):
    return np.stack(
        [
            scipy.stats.multivariate_normal(MEAN[b], covariance[b]).logpdf(x[:, b])
            for b in range(2)
        ],
        axis=1,
    )


@pytest.mark.usefixtures("x64")
def test_a_full_covariance_is_scipys_and_so_is_its_gradient():
    found = mvg.full_log_prob(jnp.asarray(X), MEAN, TRIL)
    np.testing.assert_allclose(found, scipys(), rtol=1e-12)
    gradient = jax.grad(lambda x: mvg.full_log_prob(x, MEAN, TRIL).sum())(jnp.array(X))
    expected = -np.linalg.solve(COVARIANCE, (X - MEAN)[..., None])[..., 0]
    np.testing.assert_allclose(gradient, expected, rtol=1e-10)


@pytest.mark.usefixtures("x64")
def test_what_has_one_batch_entry_serves_all():
    found = mvg.full_log_prob(jnp.asarray(X), MEAN[:1], TRIL[:1])
    one_by_one = mvg.full_log_prob(jnp.asarray(X[2, 1]), MEAN[0], TRIL[0])
    assert found.shape == (4, 2)
    np.testing.assert_allclose(found[2, 1], one_by_one, rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_entropy_and_divergence_are_the_formulas_with_inverses():
    entropy = [
        scipy.stats.multivariate_normal(cov=matrix).entropy() for matrix in COVARIANCE
    ]
    np.testing.assert_allclose(mvg.full_entropy(jnp.asarray(TRIL)), entropy, rtol=1e-12)
    found = mvg.full_kl_divergence(*map(jnp.asarray, (MEAN, TRIL, MEAN[0], TRIL[0])))
    inverse = np.linalg.inv(COVARIANCE[0])
    shift = MEAN - MEAN[0]
    trace = np.trace(inverse @ COVARIANCE, axis1=-2, axis2=-1)
    squares = np.einsum("bl,lm,bm->b", shift, inverse, shift)
    log_ratio = np.log(np.linalg.det(COVARIANCE[0]) / np.linalg.det(COVARIANCE))
    expected = 0.5 * (trace + squares - 3 + log_ratio)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)
    assert abs(found[0]) < 1e-12 < found[1]


@pytest.mark.usefixtures("x64")
def test_a_precision_factor_is_the_inverse_covariance(assert_mean):
    inverse = np.linalg.inv(COVARIANCE)
    found = mvg.precision_log_prob(jnp.asarray(X), MEAN, TRIL)
    np.testing.assert_allclose(found, scipys(covariance=inverse), rtol=1e-10)
    shape = (20_000, 2, 3)
    draws = mvg.precision_sample(
        jnp.broadcast_to(MEAN, shape),
        jnp.broadcast_to(TRIL, (*shape, 3)),
        jax.random.key(0),
    )
    centred = np.asarray(draws) - MEAN
    assert_mean(centred, 0.0)
    assert_mean(centred[..., :, None] * centred[..., None, :], inverse)


LOG_VAR = RNG.normal(size=(2, 3))
FACTOR = RNG.normal(size=(2, 3, 2))
LOW_RANK = FACTOR @ FACTOR.mT + np.einsum("bl,lm->blm", np.exp(LOG_VAR), np.eye(3))


@pytest.mark.usefixtures("x64")
def test_low_rank_plus_diagonal_is_scipys_of_the_whole_matrix():
    found = mvg.low_rank_log_prob(jnp.asarray(X), MEAN, LOG_VAR, FACTOR)
    np.testing.assert_allclose(found, scipys(covariance=LOW_RANK), rtol=1e-10)
    log_det = mvg.low_rank_log_det(jnp.asarray(LOG_VAR), FACTOR)
    np.testing.assert_allclose(log_det, np.linalg.slogdet(LOW_RANK)[1], rtol=1e-10)


def test_samples_have_their_covariances(assert_mean):
    key = jax.random.key(1)
    full = mvg.full_sample(jnp.asarray(MEAN), TRIL, key, num_samples=20_000)
    low = mvg.low_rank_sample(
        jnp.asarray(MEAN), LOG_VAR, FACTOR, key, num_samples=20_000
    )
    for draws, covariance in ((full, COVARIANCE), (low, LOW_RANK)):
        centred = np.asarray(draws) - MEAN
        assert_mean(centred, 0.0)
        assert_mean(centred[..., :, None] * centred[..., None, :], covariance)


def test_a_covariance_gives_its_factor():
    found = mvg.cholesky_factor(jnp.asarray(COVARIANCE, jnp.float32))
    np.testing.assert_allclose(found, TRIL, rtol=1e-4, atol=1e-5)


def test_a_covariance_without_density_is_refused():
    """A singular covariance: z = (eps, eps, eps) lies on a line in three dimensions."""
    line = jnp.ones((3, 1))
    for singular in (line @ line.T, jnp.diag(jnp.array([1.0, 0.0])), -jnp.eye(2)):
        with pytest.raises(ValueError, match="positive definite, got one with the eig"):
            mvg.cholesky_factor(singular)
    thin = jnp.asarray(RNG.normal(size=(6, 2)), jnp.float32)
    with pytest.raises(ValueError, match="has no density"):
        mvg.cholesky_factor(thin @ thin.T)
    with pytest.raises(ValueError, match="positive definite"):
        mvg.cholesky_factor(jnp.full((2, 2), jnp.nan))


def test_what_is_no_covariance_or_has_no_values_is_refused():
    with pytest.raises(ValueError, match="must be symmetric"):
        mvg.cholesky_factor(jnp.array([[1.0, 0.5], [0.0, 1.0]]))
    with pytest.raises(ValueError, match="must have values"):
        jax.eval_shape(mvg.cholesky_factor, jnp.eye(2))


def test_a_triangle_is_filled_row_by_row_and_knows_its_size():
    below = np.arange(1.0, 7.0)
    found = mvg.lower_triangular(jnp.full(4, 9.0), jnp.asarray(below))
    expected = np.diag(np.full(4, 9.0))
    expected[np.tril_indices(4, -1)] = below
    np.testing.assert_array_equal(found, expected)
    assert [mvg.dimension_of(2 * n + n * (n - 1) // 2) for n in range(1, 90)] == list(
        range(1, 90)
    )
