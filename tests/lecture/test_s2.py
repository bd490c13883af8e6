"""Notes S2, autoencoders, information, collapse: one test per row and correction."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from lecture_examples import (
    BIAS,
    COVARIANCE,
    LETTERS,
    Q_MEAN,
    UNIFORM,
    X,
    arbitrary_q,
    numpy_kl,
    topic,
)
from sklearn.decomposition import PCA

import vae_jax
from experiments.lecture import mixtures
from vae_jax import (
    MLP,
    Gaussian,
    ModelSpec,
    PointMass,
    elbo_terms,
    exact,
)
from vae_jax.distributions import (
    DiagonalGaussianDistribution,
    discrete,
    gaussian,
    multivariate_gaussian,
)


def test_S2_10_information_and_entropy(double):
    assert discrete.information(jnp.array(1 / 8)) == pytest.approx(3 * math.log(2))
    assert discrete.information(jnp.array(0.0)) == math.inf
    expected = scipy.stats.entropy(LETTERS)
    assert discrete.entropy(jnp.asarray(LETTERS)) == pytest.approx(expected)
    assert discrete.entropy(jnp.array([0.0, 1.0])) == 0
    # Entropies of independent variables add.
    pair = jnp.outer(jnp.asarray(LETTERS), jnp.ones(4) / 4).reshape(-1)
    assert discrete.entropy(pair) == pytest.approx(expected + math.log(4))
    log_var = jnp.log(jnp.array([0.49]))
    differential = scipy.stats.norm(1, 0.7).entropy()
    assert gaussian.diagonal_entropy(log_var) == pytest.approx(differential)


def test_S2_11_both_directions_differ(double):
    p, q = jnp.asarray(LETTERS), jnp.asarray(UNIFORM)
    assert discrete.kl_divergence(p, q) == pytest.approx(numpy_kl(LETTERS, UNIFORM))
    assert discrete.kl_divergence(q, p) == pytest.approx(numpy_kl(UNIFORM, LETTERS))
    assert abs(discrete.kl_divergence(p, q) - discrete.kl_divergence(q, p)) > 0.02
    # The same for densities, N(0, 1) and N(0, 4), by quadrature.
    narrow, wide = scipy.stats.norm(0, 1), scipy.stats.norm(0, 2)
    for first, second, log_vars in (
        (narrow, wide, (0.0, math.log(4))),
        (wide, narrow, (math.log(4), 0.0)),
    ):
        integral, _ = scipy.integrate.quad(
            lambda x, a=first, b=second: a.pdf(x) * (a.logpdf(x) - b.logpdf(x)), -30, 30
        )
        zero = jnp.zeros(1)
        ours = gaussian.diagonal_kl_divergence(
            zero, zero + log_vars[0], zero, zero + log_vars[1]
        )
        assert ours == pytest.approx(integral)


def test_S2_12_kl_is_never_negative(double):
    p, q = map(jnp.asarray, np.random.default_rng(0).dirichlet(np.ones(4), (2, 2000)))
    assert discrete.kl_divergence(p, q).min() > 0
    assert jnp.abs(discrete.kl_divergence(p, p)).max() == 0
    # An outcome of probability 0 in one of them: finite one way, infinite the other.
    some, all_of_them = jnp.array([0.5, 0.5, 0.0]), jnp.asarray(UNIFORM)
    assert discrete.kl_divergence(some, all_of_them) == pytest.approx(math.log(1.5))
    assert discrete.kl_divergence(all_of_them, some) == math.inf
    gradient = jax.grad(discrete.kl_divergence)(some, all_of_them)
    assert jnp.isfinite(gradient).all()


def test_S2_14_kl_to_the_standard_normal(double):
    for mean, deviation in ((0.0, 1.0), (1.0, 0.5), (-2.0, 3.0)):
        q = scipy.stats.norm(mean, deviation)
        integral, _ = scipy.integrate.quad(
            lambda x, q=q: q.pdf(x) * (q.logpdf(x) - scipy.stats.norm.logpdf(x)),
            mean - 12 * deviation,
            mean + 12 * deviation,
        )
        log_var = jnp.array([2 * math.log(deviation)])
        ours = gaussian.diagonal_kl_to_standard_normal(jnp.array([mean]), log_var)
        assert ours == pytest.approx(integral, abs=1e-9)


def test_S2_L276_the_entropy_is_an_integral_over_x():
    """- int p log p dp, as printed, is no entropy: it is the same for every density."""
    printed, _ = scipy.integrate.quad(lambda p: -p * math.log(p), 0, 1)
    for deviation in (0.5, 2.0):
        density = scipy.stats.norm(0, deviation)
        right, _ = scipy.integrate.quad(
            lambda x, d=density: -d.pdf(x) * d.logpdf(x), -20, 20
        )
        log_var = jnp.array([2 * math.log(deviation)])
        assert gaussian.diagonal_entropy(log_var) == pytest.approx(right, rel=1e-5)
        assert abs(printed - right) > 0.1


def test_S2_L290_the_garbled_entropy_is_the_same_integral(double):
    """The intended formula is the integral over x, here on a grid."""
    x = np.linspace(-10, 10, 4001)
    p = scipy.stats.norm.pdf(x)
    step = x[1] - x[0]
    cells = jnp.asarray(p * step)
    # The entropy of the cells is the differential entropy minus log of their width.
    ours = discrete.entropy(cells) + math.log(step)
    assert ours == pytest.approx(float(gaussian.diagonal_entropy(jnp.zeros(1))))


def test_S2_L298_the_directions_fit_differently(double):
    """The choice matters: of two Gaussians, each direction prefers a different one."""
    information = topic("information")
    weights, means, deviation = information.MIXTURE
    mean = weights @ means
    spread = math.sqrt(weights @ (means - mean) ** 2 + deviation**2)
    covering, mode = (
        jnp.asarray(q / q.sum())
        for q in (
            scipy.stats.norm.pdf(information.GRID, mean, spread),
            scipy.stats.norm.pdf(information.GRID, means[0], deviation),
        )
    )
    p = information.mixture_cells()
    forward, backward = (
        [discrete.kl_divergence(*pair(q)) for q in (covering, mode)]
        for pair in (lambda q: (p, q), lambda q: (q, p))
    )
    assert forward[0] < forward[1] - 1
    assert backward[1] < backward[0] - 0.5


def test_S2_L313_the_sign_of_the_lemma():
    """With sum Q = 1/2 over the support of P, the printed bound is not the lemma's."""
    p, q = np.array([0.5, 0.5]), np.array([0.25, 0.25])  # half of q lies elsewhere
    left = -np.sum(p * np.log(q / p))
    printed, right = math.log(q.sum()), -math.log(q.sum())
    assert left == pytest.approx(right)
    assert printed < 0 < right  # true, but does not prove KL >= 0
    ours = discrete.kl_divergence(
        jnp.array([0.5, 0.5, 0.0]), jnp.array([0.25, 0.25, 0.5])
    )
    assert ours == pytest.approx(right, rel=1e-6)


def test_S2_L317_approximately_is_not_distributed_as():
    """q(z|x) approximates p(z|x), with a small KL; no sampling is involved."""
    p, q = jnp.array([0.5, 0.5]), jnp.array([0.51, 0.49])
    assert 0 < discrete.kl_divergence(q, p) < 1e-3


def test_S2_1_the_loss_is_a_squared_error(autoencoder):
    x = jnp.asarray(X, jnp.float32)
    half = autoencoder.replace(likelihood={"log_var": jnp.log(0.5)})
    rebuilt = vae_jax.reconstruct(half, x, jax.random.key(0))
    squared = np.square(X - rebuilt).sum(axis=1)
    terms = elbo_terms(half, x, jax.random.key(0))
    np.testing.assert_allclose(
        -terms.elbo - 1.5 * math.log(math.pi), squared, rtol=1e-4
    )


def test_S2_2_a_bottleneck_keeps_few_numbers(autoencoder):
    """Reconstructions lie in an affine subspace with the dimension of the code."""
    x = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    code = vae_jax.encode(autoencoder, x).mean
    rebuilt = vae_jax.decode(autoencoder, code).mean
    assert code.shape == (50, 2)
    assert np.linalg.matrix_rank(rebuilt - rebuilt.mean(axis=0), tol=1e-4) == 2


@pytest.fixture(scope="module")
def tied():
    """Centered data in five dimensions and W of a tied autoencoder with two latents."""
    draws = np.random.default_rng(1)
    x = draws.normal(size=(200, 5)) * np.array([3.0, 2.0, 1.0, 0.5, 0.2])
    x = (x - x.mean(axis=0)) @ scipy.stats.ortho_group.rvs(5, random_state=0)
    module = topic("autoencoders")
    with jax.enable_x64(True):
        weights = module.tied_weights(x, jax.random.key(0), latent_dim=2, num_steps=60)
    return x, np.asarray(weights)


def test_S2_3_a_linear_autoencoder_finds_the_plane_of_pca(tied):
    x, weights = tied
    pca = PCA(2).fit(x)
    projector = pca.components_.T @ pca.components_
    np.testing.assert_allclose(weights @ weights.T, projector, atol=1e-6)
    rebuilt = pca.inverse_transform(pca.transform(x))
    np.testing.assert_allclose(x @ weights @ weights.T, rebuilt, atol=1e-5)


@pytest.fixture(scope="module")
def deep():
    """Squared errors with one latent: deep on an arc, PCA on it, deep on six points."""
    training = topic("training")
    spec = ModelSpec(
        encoder=MLP((32,)),
        decoder=MLP((32,)),
        posterior=PointMass(),
        likelihood=Gaussian(),
        latent_dim=1,
        data_shape=(2,),
    )
    angle = np.linspace(0, 5, 96)  # Most of a circle, parameterized by one number.
    circle = jnp.asarray(np.stack([np.cos(angle), np.sin(angle)], axis=1), jnp.float32)
    # Each point is repeated 16 times, so that one program serves both.
    few = jnp.tile(circle[::16] * jnp.array([[1.0, 0.6]]), (16, 1))

    @jax.jit
    def train(key, x):
        params = vae_jax.init(spec, key)
        params, _ = training.fit(
            params, x, key, num_epochs=800, preprocess=None, learning_rate=1e-2
        )
        rebuilt = vae_jax.decode(params, vae_jax.encode(params, x).mean).mean
        return jnp.mean(jnp.sum(jnp.square(x - rebuilt), axis=-1))

    pca = PCA(1).fit(circle)
    linear = np.square(circle - pca.inverse_transform(pca.transform(circle))).sum(
        axis=1
    )
    key = jax.random.key(2)
    return float(train(key, circle)), float(linear.mean()), float(train(key, few))


@pytest.mark.slow
def test_S2_4_a_deep_autoencoder_beats_the_plane(deep):
    curved, linear, _ = deep
    assert curved < 0.2 * linear


@pytest.mark.slow
def test_S2_5_denoising_super_resolution_inpainting():
    applications = topic("applications")
    x = jnp.asarray(np.random.default_rng(0).uniform(0, 1, (5, 64)), jnp.float32)
    key = jax.random.key(0)
    noisy, coarse, covered = (f(x, key, (8, 8)) for f in applications.DAMAGES)
    assert 0.1 < jnp.abs(noisy - x).mean() < 0.5
    blocks = coarse.reshape(5, 4, 2, 4, 2)
    np.testing.assert_allclose(blocks.std(axis=(2, 4)), 0, atol=1e-6)
    np.testing.assert_allclose(
        blocks.mean(axis=(2, 4)), x.reshape(5, 4, 2, 4, 2).mean((2, 4)), rtol=1e-5
    )
    assert (covered[:, 32:] == 0).all() and (covered[:, :32] == x[:, :32]).all()
    assert applications.psnr(x + 0.1, x) == pytest.approx(20, abs=1e-3)


@pytest.mark.slow
def test_S2_6_a_small_data_set_is_learnt_by_heart(deep):
    assert deep[2] < 5e-3


def test_S2_7_an_autoencoder_has_no_density_to_draw_from(autoencoder):
    x = jnp.asarray(X, jnp.float32)
    for refused in (
        lambda: vae_jax.log_evidence(autoencoder, x, jax.random.key(0)),
        lambda: vae_jax.aggregate_posterior(autoencoder, x, jax.random.key(0)),
    ):
        with pytest.raises(ValueError, match="has none"):
            refused()
    # Nothing constrains the codes to be near N(0, I).
    far = jnp.abs(vae_jax.encode(autoencoder, 100 * x).mean)
    assert far.max() > 20
    assert (
        elbo_terms(autoencoder, 100 * x, jax.random.key(0)).kl_divergence == 0
    ).all()


FOUR = np.array(
    [
        [0.0, 1.0, 2.0, 0.5, 1.0],
        [1.0, 0.0, 0.0, 1.0, 0.0],
        [2.0, 2.0, 1.0, 0.0, 0.0],
        [0.0, 0.0, 1.0, 1.0, 3.0],
    ]
)


def test_S2_8_a_gaussian_from_four_points():
    mean, factor = mixtures.fit_to_four(FOUR)
    np.testing.assert_allclose(mean, FOUR.mean(axis=0))
    np.testing.assert_allclose(factor @ factor.T, np.cov(FOUR.T, bias=True))
    draws = mixtures.draw_from_four(FOUR, jax.random.key(0), 4000)
    assert np.linalg.matrix_rank(draws - mean, tol=1e-3) == 3
    np.testing.assert_allclose(np.cov(draws.T), factor @ factor.T, atol=0.15)


def test_S2_9_generation_from_the_prior(linear_vae):
    generate = jax.jit(partial(vae_jax.generate, num_samples=40_000, sample=True))
    x = np.asarray(generate(linear_vae, jax.random.key(0)))
    bound = 5 * math.sqrt(2 / 40_000) * COVARIANCE.max()
    np.testing.assert_allclose(x.mean(axis=0), BIAS, atol=bound)
    np.testing.assert_allclose(np.cov(x.T), COVARIANCE, atol=bound)


def test_S2_13_the_identity_for_a_discrete_latent():
    """log P(X) = KL + L for an arbitrary Q, by explicit sums."""
    q, joint, posterior, evidence_of_x = arbitrary_q()
    bound = q @ np.log(joint / q)
    divergence = discrete.kl_divergence(jnp.asarray(q), jnp.asarray(posterior))
    assert bound + divergence == pytest.approx(math.log(evidence_of_x), rel=1e-5)
    bayes, log_evidence = discrete.posterior(
        *map(jnp.log, (joint / 0.5, np.full(2, 0.5)))
    )
    np.testing.assert_allclose(bayes, posterior, rtol=1e-5)
    assert log_evidence == pytest.approx(math.log(evidence_of_x), rel=1e-5)


def test_S2_15_squared_error_plus_kl(linear_vae):
    half = linear_vae.replace(likelihood={"log_var": jnp.log(0.5)})
    x, key = jnp.asarray(X, jnp.float32), jax.random.key(1)
    q = vae_jax.encode(half, x)
    rebuilt = vae_jax.decode(half, vae_jax.reparameterize(q, key)).mean[0]
    squared = np.square(X - rebuilt).sum(axis=1)
    kl = 0.5 * (-q.log_var + q.mean**2 + jnp.exp(q.log_var) - 1).sum(axis=1)
    ours = -elbo_terms(half, x, key).elbo
    np.testing.assert_allclose(ours, squared + kl + 1.5 * math.log(math.pi), rtol=1e-4)


@pytest.mark.slow
def test_S2_16_collapse_is_independence(collapsed):
    x = jnp.asarray(X, jnp.float32)
    information = vae_jax.aggregate_posterior(collapsed, x, jax.random.key(0))
    assert information.mutual_information == pytest.approx(0, abs=1e-5)
    assert vae_jax.active_units(collapsed, x).count == 0
    assert jnp.abs(vae_jax.kl_per_unit(collapsed, x)).max() == 0
    # The optimum collapses units whose eigenvalue is below beta * noise_var.
    data = np.random.default_rng(0).normal(size=(500, 3)) * np.array([2.0, 1.0, 0.2])
    eigenvalues = np.linalg.eigvalsh(np.cov(data.T, bias=True))
    for beta in (1.0, 5.0, 20.0):
        ours = exact.live_units(data, noise_var=0.5, beta=beta)
        assert ours == (eigenvalues > 0.5 * beta).sum()


def test_S2_17_reparameterization_has_the_law_of_z():
    q = DiagonalGaussianDistribution(jnp.array([[2.0]]), jnp.log(jnp.array([[0.49]])))
    z = np.asarray(
        vae_jax.reparameterize(q, jax.random.key(0), num_samples=4000)
    ).ravel()
    assert scipy.stats.kstest(z, scipy.stats.norm(2.0, 0.7).cdf).pvalue > 1e-4


def test_S2_L29_the_plane_but_not_the_axes(tied):
    x, weights = tied
    axes = PCA(2).fit(x).components_.T
    np.testing.assert_allclose(weights @ weights.T, axes @ axes.T, atol=1e-6)
    assert np.abs(axes.T @ weights).max(axis=1).min() < 0.99
    turn = axes.T @ weights  # W = U Q
    np.testing.assert_allclose(turn @ turn.T, np.eye(2), atol=1e-6)


def test_S2_L47_w_transposed_w_is_the_identity(tied):
    _, weights = tied
    np.testing.assert_allclose(weights.T @ weights, np.eye(2), atol=1e-6)
    product = weights @ weights.T
    np.testing.assert_allclose(product @ product, product, atol=1e-6)
    assert np.linalg.norm(product - np.eye(5)) == pytest.approx(math.sqrt(3), abs=1e-5)


def test_S2_L131_four_points_have_a_singular_covariance():
    mean, factor = mixtures.fit_to_four(FOUR)
    covariance = factor @ factor.T
    assert np.linalg.matrix_rank(covariance) == 3 < len(mean)
    with pytest.raises(ValueError, match="no density"):
        multivariate_gaussian.cholesky_factor(jnp.asarray(covariance))
    multivariate_gaussian.cholesky_factor(jnp.asarray(covariance + 0.01 * np.eye(5)))


def test_S2_L157_a_minus_for_the_equals():
    """X_i = mu would be a boolean; X_i - mu gives the covariance."""
    mean, factor = mixtures.fit_to_four(FOUR)
    printed = sum(np.outer(x == mean, x - mean) for x in FOUR) / 4
    right = sum(np.outer(x - mean, x - mean) for x in FOUR) / 4
    np.testing.assert_allclose(factor @ factor.T, right)
    assert np.abs(printed - right).max() > 0.1


def test_S2_L368_the_weight_of_the_squared_error(linear_vae):
    """Variance 1/2 gives weight 1 and variance 1 gives 1/2, each with a constant."""
    x = jnp.asarray(X, jnp.float32)
    z = jnp.asarray(Q_MEAN, jnp.float32)[None]
    for variance, weight in ((0.5, 1.0), (1.0, 0.5)):
        params = linear_vae.replace(likelihood={"log_var": jnp.log(variance)})
        likelihood = vae_jax.decode(params, z)
        squared = np.square(X - likelihood.mean[0]).sum(axis=1)
        constant = 1.5 * math.log(2 * math.pi * variance)
        ours = -likelihood.log_prob(x)[0]
        np.testing.assert_allclose(ours, weight * squared + constant, rtol=1e-4)
        assert (np.abs(ours - squared) > 0.1).any()


def test_S2_L378_collapse_is_of_q_for_all_x(collapsed):
    """q(z|x) = p(z) must hold for all x, not for one, before z is uninformative."""
    some = DiagonalGaussianDistribution(jnp.array([[0.0], [1.0]]), jnp.zeros((2, 1)))
    kls = gaussian.diagonal_kl_to_standard_normal(some.mean, some.log_var)
    assert kls[0] == 0 and kls[1] > 0
    assert jnp.var(some.mean) > vae_jax.diagnostics.ACTIVE_VARIANCE
    q = vae_jax.encode(collapsed, jnp.asarray(X, jnp.float32))
    assert (q.mean == 0).all() and (q.log_var == 0).all()
