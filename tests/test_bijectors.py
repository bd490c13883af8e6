"""Flows against numerical Jacobians, quadrature and matrices written out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from vae_jax import (
    AutoregressiveFlow,
    Householder,
    InverseAutoregressive,
    ModelSpec,
    Planar,
    Sylvester,
    bijectors,
    elbo_terms,
    fit_posterior,
    init,
)
from vae_jax.distributions import gaussian

FAMILIES = [
    Planar(num_steps=3),
    Householder(num_steps=2),
    Sylvester(num_steps=2, num_reflections=2),
    InverseAutoregressive(num_steps=2, hidden_dim=5, context_dim=3),
]
families = pytest.mark.parametrize("family", FAMILIES, ids=lambda f: type(f).__name__)


def normal(seed, *shape, scale=1.0):
    values = scale * np.random.default_rng(seed).normal(size=shape)
    return jnp.asarray(values)


def built(family, latent_dim=3, batch=2, scale=1.0):
    own = family.init(jax.random.key(0), dim=latent_dim)
    own = jax.tree.map(lambda leaf: normal(3, *leaf.shape), own)
    outputs = normal(1, batch, family.num_outputs(latent_dim), scale=scale)
    return family.build(own, outputs)


@pytest.mark.long
@pytest.mark.usefixtures("x64")
@families
def test_log_q_is_that_of_the_start_less_the_jacobian(family, key):
    posterior = built(family)
    z, log_q = posterior.sample_and_log_prob(key, 2)
    start = gaussian.diagonal_sample(
        posterior.start, posterior.log_var, key, num_samples=2
    )

    @jax.jit
    def jacobians(start):
        def move(each):
            return posterior.move(each.reshape(2, 2, 3))[0].ravel()

        return move(start), jax.jacfwd(move)(start)

    moved, jacobian = jacobians(start.ravel())
    np.testing.assert_allclose(moved.reshape(z.shape), z, rtol=1e-12)
    for index in range(4):
        block = jacobian[3 * index : 3 * index + 3, 3 * index : 3 * index + 3]
        s, b = divmod(index, 2)
        scale = np.exp(0.5 * posterior.log_var[b])
        log_start = scipy.stats.norm(posterior.start[b], scale).logpdf(start[s, b])
        expected = log_start.sum() - np.linalg.slogdet(block)[1]
        assert log_q[s, b] == pytest.approx(expected, rel=1e-9)


@pytest.mark.long
@families
def test_flows_stay_finite_whatever_the_encoder_says(family, key):
    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def total(outputs):
        own = family.init(jax.random.key(0), dim=3)
        z, log_q = family.build(own, outputs).sample_and_log_prob(key, 2)
        return 1e-9 * jnp.sum(z) + jnp.sum(log_q), (z, log_q)

    size = family.num_outputs(3)
    for scale in (0.0, 1e-20, 1e3, -1e3):
        direction = np.random.default_rng(0).normal(size=(2, size)).astype("f")
        for outputs in (scale * direction, np.full((2, size), scale, "f")):
            gradient, (z, log_q) = total(outputs)
            for leaf in (gradient, z, log_q):
                assert np.all(np.isfinite(leaf)), (scale, leaf)


@pytest.mark.long
@pytest.mark.parametrize(
    "family",
    [
        pytest.param(
            family, marks=[] if isinstance(family, Householder) else pytest.mark.slow
        )
        for family in FAMILIES
    ],
    ids=lambda f: type(f).__name__,
)
def test_many_samples_compiled_are_those_of_one_operation_at_a_time(family, key):
    """A compiler's fusions may go wrong where arrays are large enough for threads."""
    posterior = jax.tree.map(jnp.float32, built(family))
    z, log_q = jax.jit(lambda q: q.sample_and_log_prob(key, 20_000))(posterior)
    start = gaussian.diagonal_sample(
        posterior.start, posterior.log_var, key, num_samples=20_000
    )
    with jax.disable_jit():
        few, log_det = posterior.move(start[::1000])
    np.testing.assert_allclose(z[::1000], few, rtol=1e-3, atol=1e-3)
    log_start = gaussian.diagonal_log_prob(start, posterior.start, posterior.log_var)
    np.testing.assert_allclose(
        log_q[::1000], log_start[::1000] - log_det, rtol=1e-3, atol=1e-3
    )


@pytest.mark.long
def test_a_planar_step_of_direction_zero_is_the_identity():
    z = normal(0, 4, 2, 3)
    moved, log_det = bijectors.planar(
        z, jnp.zeros((2, 3)), normal(1, 2, 3), normal(2, 2)
    )
    np.testing.assert_array_equal(moved, z)
    np.testing.assert_array_equal(log_det, np.zeros((4, 2)))


def test_a_planar_step_can_be_undone_however_it_is_aimed():
    """w' u stays above -1: along w the step never turns back."""
    direction, normal_ = normal(0, 50, 3, scale=5.0), normal(1, 50, 3, scale=5.0)
    z = np.linspace(-4, 4, 400)[:, None, None] * np.asarray(normal_)
    moved, _ = jax.jit(bijectors.planar)(z, direction, normal_, normal(2, 50))
    along = np.sum(np.asarray(moved) * normal_, axis=-1)
    assert np.all(np.diff(along, axis=0) > 0)


@pytest.mark.long
@pytest.mark.usefixtures("x64")
def test_reflections_make_a_gaussian_with_the_turned_covariance(key):
    posterior = built(Householder(num_steps=2))
    z, log_q = posterior.sample_and_log_prob(key, 3)
    for b in range(2):
        turn = np.eye(3)
        for v in np.asarray(posterior.reflections[b]):
            turn = (np.eye(3) - 2 * np.outer(v, v) / (v @ v)) @ turn
        covariance = turn @ np.diag(np.exp(posterior.log_var[b])) @ turn.T
        oracle = scipy.stats.multivariate_normal(turn @ posterior.start[b], covariance)
        np.testing.assert_allclose(log_q[:, b], oracle.logpdf(z[:, b]), rtol=1e-9)
        np.testing.assert_allclose(posterior.mean[b], oracle.mean, rtol=1e-9)
    np.testing.assert_allclose(posterior.log_prob(z), log_q, rtol=1e-10)


@pytest.mark.long
def test_an_output_depends_on_the_latents_before_it_and_on_the_context():
    weights = bijectors.init_autoregressive(
        jax.random.key(0), latent_dim=4, hidden_dim=11, context_dim=2
    )
    z, context = normal(0, 4), normal(1, 2)
    jacobians = jax.jit(jax.jacfwd(bijectors.autoregressive, argnums=(1, 2)))
    before = np.tril(np.ones((4, 4)), -1) > 0
    for by_z, by_context in jacobians(weights, z, context):
        np.testing.assert_array_equal(np.asarray(by_z) != 0, before)
        assert np.all(by_context != 0)


@pytest.mark.long
def test_weights_of_one_and_of_each_example_agree():
    one = bijectors.init_autoregressive(jax.random.key(0), latent_dim=3, hidden_dim=4)
    z = normal(0, 5, 2, 3)
    shared = jax.tree.map(lambda leaf: leaf[None], one)
    each = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), one)
    apply = jax.jit(
        functools.partial(bijectors.with_shared_weights, bijectors.autoregressive)
    )
    found, again = apply(shared, z), apply(each, z)
    for left, right in zip(found, again, strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-6)


FLOW_PRIOR = AutoregressiveFlow(num_steps=2, hidden_dim=6)


def flow_prior():
    own = jax.eval_shape(
        lambda key: FLOW_PRIOR.init(key, latent_dim=2, data_shape=(5,)),
        jax.random.key(0),
    )
    own = jax.tree.map(lambda leaf: normal(5, *leaf.shape, scale=0.4), own)
    return FLOW_PRIOR.build(own, latent_dim=2, encode=None)


@pytest.fixture(scope="module")
def flow_prior_moments():
    """Mass and mean of the prior by a grid."""
    axis = np.linspace(-14, 14, 400)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(1, -1, 2).astype("f")
    log_p = jax.jit(flow_prior().log_prob)(grid)
    mass = np.exp(np.float64(log_p[0])) * (axis[1] - axis[0]) ** 2
    return mass.sum(), mass @ grid[0], mass @ grid[0] ** 2


def test_a_flow_prior_is_a_density(flow_prior_moments):
    assert flow_prior_moments[0] == pytest.approx(1, abs=1e-3)


@pytest.mark.long
def test_draws_of_a_flow_prior_have_the_moments_of_its_density(
    flow_prior_moments, assert_mean
):
    draws = flow_prior().sample(jax.random.key(6), 20_000)[:, 0]
    _, mean, square = flow_prior_moments
    assert np.abs(mean).max() > 0.1 and np.abs(square - 1).max() > 0.1
    assert_mean(draws, mean)
    assert_mean(np.asarray(draws) ** 2, square)


@pytest.mark.long
def test_a_flow_prior_maps_noise_to_samples_and_back(key):
    prior = flow_prior()
    assert prior.maps_noise
    noise = jax.random.normal(key, (5, 1, 2))
    z = prior.from_noise(noise)
    np.testing.assert_allclose(prior.to_noise(z), noise, atol=1e-4)
    np.testing.assert_array_equal(z, prior.sample(key, 5))
    np.testing.assert_array_equal(prior.mean, prior.from_noise(jnp.zeros((1, 2))))


@pytest.mark.slow
def test_a_flow_is_fitted_to_each_example_with_weights_of_its_own(key):
    """What q reaches with one step of each kind, against the shared weights."""
    family = InverseAutoregressive(num_steps=1, hidden_dim=4, context_dim=2)
    spec = ModelSpec(posterior=family, latent_dim=2, data_shape=(5,))
    x = (normal(0, 3, 5) > 0).astype(jnp.float32)

    @jax.jit
    def before_and_after(key):
        params = init(spec, key)
        fitted = fit_posterior(params, x, key, num_steps=100).posterior
        terms = functools.partial(elbo_terms, params, x, key, num_samples=200)
        return fitted, terms().elbo, terms(posterior=fitted).elbo

    fitted, before, after = before_and_after(key)
    assert {leaf.shape[0] for leaf in jax.tree.leaves(fitted)} == {3}
    kernels = fitted.steps[0]["output_context"]
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-3
    assert np.all(after > before)
