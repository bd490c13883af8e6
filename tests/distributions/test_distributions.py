"""Densities, divergences and entropies against SciPy and numerical quadrature."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats

from vae_jax.distributions import bernoulli, categorical, gaussian

SHAPES = {"0d": (3,), "1d": (4, 3), "2d": (2, 4, 3)}
shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
GRID = np.linspace(-40.0, 40.0, 16_001)


log_prob = jax.jit(gaussian.diagonal_log_prob)
sample = jax.jit(gaussian.diagonal_sample, static_argnames="num_samples")
kl_divergence = jax.jit(gaussian.diagonal_kl_divergence)
kl_to_standard_normal = jax.jit(gaussian.diagonal_kl_to_standard_normal)
bernoulli_log_prob = jax.jit(bernoulli.log_prob)
bernoulli_value_and_grad = jax.jit(jax.vmap(jax.value_and_grad(bernoulli.log_prob, 1)))


def normals(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def central_difference(function, point, step=1e-5):
    gradient = np.zeros_like(point)
    for i in np.ndindex(point.shape):
        shift = np.zeros_like(point)
        shift[i] = step
        difference = function(point + shift) - function(point - shift)
        gradient[i] = difference / (2 * step)
    return gradient


# Gaussian


@shapes
def test_gaussian_log_prob_is_scipys(shape):
    value, mean, log_var = normals(0, shape, shape, shape)
    expected = scipy.stats.norm.logpdf(value, mean, np.exp(log_var / 2)).sum(-1)
    actual = log_prob(value, mean, log_var)
    assert actual.shape == shape[:-1] and actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_gaussian_log_prob_in_float64(x64):
    value, mean, log_var = np.random.default_rng(0).normal(size=(3, 4, 3))
    expected = scipy.stats.norm.logpdf(value, mean, np.exp(log_var / 2)).sum(-1)
    actual = log_prob(value, mean, log_var)
    assert actual.dtype == jnp.float64
    np.testing.assert_allclose(actual, expected, rtol=1e-13)


@pytest.mark.parametrize("log_var", [-2.0, 0.0, 1.5])
def test_gaussian_density_integrates_to_one(log_var):
    density = np.exp(log_prob(GRID[:, None], 0.7, log_var))
    assert scipy.integrate.simpson(density, x=GRID) == pytest.approx(1, abs=1e-5)


def test_gaussian_log_prob_gradients_are_the_textbooks():
    value, mean, log_var = normals(1, (3,), (3,), (3,))
    gradients = jax.jit(jax.grad(gaussian.diagonal_log_prob, argnums=(0, 1, 2)))(
        value, mean, log_var
    )
    scaled = (value - mean) / np.exp(log_var)
    np.testing.assert_allclose(gradients[0], -scaled, rtol=1e-5)
    np.testing.assert_allclose(gradients[1], scaled, rtol=1e-5)
    expected = 0.5 * (scaled * (value - mean) - 1)
    np.testing.assert_allclose(gradients[2], expected, rtol=1e-5, atol=1e-6)


def quadrature_kl(mean_0, log_var_0, mean_1, log_var_1):
    """KL of two diagonal Gaussians, by quadrature in each dimension."""
    total = 0.0
    for m0, v0, m1, v1 in zip(mean_0, log_var_0, mean_1, log_var_1, strict=True):
        log_q = scipy.stats.norm.logpdf(GRID, m0, np.exp(v0 / 2))
        log_p = scipy.stats.norm.logpdf(GRID, m1, np.exp(v1 / 2))
        total += scipy.integrate.simpson(np.exp(log_q) * (log_q - log_p), x=GRID)
    return total


def test_gaussian_kl_and_its_gradient_are_the_quadratures(x64):
    point = np.random.default_rng(2).normal(size=(4, 3))
    value, gradient = jax.jit(
        jax.value_and_grad(lambda point: gaussian.diagonal_kl_divergence(*point))
    )(point)
    assert value == pytest.approx(quadrature_kl(*point), rel=1e-9)
    expected = central_difference(lambda point: quadrature_kl(*point), point)
    np.testing.assert_allclose(gradient, expected, atol=1e-8)


def test_gaussian_kl_to_standard_normal_and_its_gradient_are_the_quadratures(x64):
    def to_standard(point):
        return quadrature_kl(*point, np.zeros(3), np.zeros(3))

    point = np.random.default_rng(3).normal(size=(2, 3))
    value, gradient = jax.jit(
        jax.value_and_grad(
            lambda point: gaussian.diagonal_kl_to_standard_normal(*point)
        )
    )(point)
    assert value == pytest.approx(to_standard(point), rel=1e-9)
    expected = central_difference(to_standard, point)
    np.testing.assert_allclose(gradient, expected, atol=1e-8)


@shapes
def test_gaussian_kl_shapes_and_the_special_case(shape):
    mean, log_var = normals(4, shape, shape)
    special = kl_to_standard_normal(mean, log_var)
    general = kl_divergence(mean, log_var, 0.0, 0.0)
    assert special.shape == shape[:-1]
    np.testing.assert_allclose(special, general, rtol=1e-6)


def test_gaussian_kl_is_zero_to_itself_and_never_negative():
    """Also for float32 arguments that differ only in the last digits."""
    mean, log_var = normals(5, (10_000, 1), (10_000, 1))
    itself = kl_divergence(mean, log_var, mean, log_var)
    np.testing.assert_array_equal(itself, 0.0)
    for scale in np.float32([1e-6, 1e-4, 1e-2, 1.0]):
        close = kl_divergence(mean, log_var, mean, log_var * (1 + scale))
        assert np.all(np.asarray(close) >= 0)
        close = kl_to_standard_normal(np.zeros_like(mean), log_var * scale)
        assert np.all(np.asarray(close) >= 0)


def test_gaussian_kl_keeps_its_digits_between_nearly_equal_variances():
    """At r = 1e-3, exp(r) - 1 - r loses all digits in float32; expm1 keeps three."""
    log_var = np.full((1,), 1e-3, np.float32)
    actual = kl_to_standard_normal(np.zeros_like(log_var), log_var)
    assert actual == pytest.approx(0.5 * (np.expm1(1e-3) - 1e-3), rel=1e-3)


def test_gaussian_kl_is_not_the_formula_with_log_var_for_exp_log_var():
    """With log_var for exp(log_var), a misprint, it would be -1/2 per unit at 0."""
    zero, log_var = np.zeros(3, np.float32), np.float32([-1.0, 0.0, 2.0])
    assert kl_to_standard_normal(zero, zero) == 0
    gradient = jax.grad(kl_to_standard_normal, argnums=1)(zero, log_var)
    np.testing.assert_allclose(gradient, np.expm1(log_var) / 2, rtol=1e-6)


@shapes
def test_gaussian_entropy_is_scipys(shape):
    (log_var,) = normals(6, shape)
    expected = scipy.stats.norm.entropy(scale=np.exp(log_var / 2)).sum(-1)
    actual = jax.jit(gaussian.diagonal_entropy)(log_var)
    assert actual.shape == shape[:-1]
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_gaussian_samples_have_the_moments(key, assert_mean):
    mean, log_var = normals(7, (4, 3), (4, 3))
    z = np.asarray(sample(mean, log_var, key, num_samples=10_000))
    assert z.shape == (10_000, 4, 3) and z.dtype == np.float32
    assert_mean(z, mean)
    assert_mean((z - mean) ** 2, np.exp(log_var))
    # The noise is independent over samples, examples and dimensions.
    noise = ((z - mean) / np.exp(log_var / 2)).reshape(10_000, -1)
    assert_mean(noise * np.roll(noise, 1, axis=1), 0.0)
    assert_mean((noise[1:] * noise[:-1]), 0.0)


def test_gaussian_samples_are_reparameterized(key):
    mean, log_var = normals(8, (3,), (3,))

    def draw(mean, log_var):
        z = gaussian.diagonal_sample(mean, log_var, key, num_samples=2)
        return z, z

    (by_mean, by_log_var), z = jax.jit(jax.jacobian(draw, (0, 1), has_aux=True))(
        mean, log_var
    )
    eye = np.broadcast_to(np.eye(3), (2, 3, 3))
    np.testing.assert_allclose(by_mean, eye, rtol=1e-6)
    np.testing.assert_allclose(by_log_var, (z - mean)[..., None] * eye / 2, rtol=1e-5)


def test_gaussian_shapes_that_would_broadcast_are_refused(key):
    mean, log_var = jnp.zeros((4, 1)), jnp.zeros(4)
    with pytest.raises(AssertionError):
        gaussian.diagonal_sample(mean, log_var, key)
    with pytest.raises(AssertionError):
        gaussian.diagonal_kl_to_standard_normal(mean, log_var)


# Bernoulli


@shapes
def test_bernoulli_log_prob_is_scipys(shape):
    (logits,) = normals(10, shape)
    x = np.random.default_rng(11).integers(0, 2, shape)
    expected = scipy.stats.bernoulli.logpmf(x, scipy.special.expit(logits)).sum(-1)
    for outcomes in (x.astype(np.float32), x, x.astype(bool)):
        actual = bernoulli_log_prob(outcomes, logits)
        assert actual.shape == shape[:-1] and actual.dtype == jnp.float32
        np.testing.assert_allclose(actual, expected, rtol=1e-5)


def reference_log_prob(x, logits):
    """Float64 reference: log p = -log(1 + exp(-l)), log(1 - p) = -log(1 + exp(l))."""
    logits = np.float64(logits)
    return -x * np.logaddexp(0, -logits) - (1 - x) * np.logaddexp(0, logits)


@pytest.mark.parametrize("x", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("magnitude", [0.0, 1e-3, 1.0, 20.0, 50.0, 80.0, 104.0, 1e3])
def test_bernoulli_log_prob_is_exact_to_rounding_in_float32(x, magnitude):
    """log(1 - sigmoid(-20)) is -2.06e-9, where 1 - sigmoid(-20) rounds to 1."""
    logits = np.float32([[magnitude], [-magnitude]])
    x = np.full_like(logits, x)
    value, gradient = bernoulli_value_and_grad(x, logits)
    # Below the smallest normal number, 1.2e-38, float32 loses precision.
    expected = reference_log_prob(x, logits)[:, 0]
    np.testing.assert_allclose(value, expected, rtol=3e-7, atol=1.2e-38)
    probability = scipy.special.expit(np.float64(logits))
    np.testing.assert_allclose(gradient, x - probability, rtol=3e-7, atol=1e-7)


@pytest.mark.parametrize("jacobian", [jax.jacfwd, jax.jacrev], ids=["fwd", "rev"])
def test_bernoulli_derivatives_of_every_order_and_mode(jacobian):
    """x - p by the logit, l by the outcome, -p (1 - p) by the logit twice."""
    x = np.float32([0.0, 0.3, 1.0] * 6)[:, None]
    logits = np.repeat(np.float32([-1e3, -20.0, 0.0, 1.5, 20.0, 1e3]), 3)[:, None]

    @jax.jit
    @jax.vmap
    def derivatives(x, logits):
        first = jacobian(bernoulli.log_prob, argnums=(0, 1))
        return first(x, logits), jacobian(first, argnums=1)(x, logits)

    (by_x, by_logits), (mixed, twice) = derivatives(x, logits)
    probability = scipy.special.expit(np.float64(logits))
    rest = scipy.special.expit(-np.float64(logits))
    np.testing.assert_allclose(by_logits, x - probability, rtol=3e-7, atol=1e-7)
    np.testing.assert_allclose(by_x, logits, rtol=3e-7)
    np.testing.assert_allclose(mixed, np.ones((18, 1, 1)), rtol=3e-7)
    np.testing.assert_allclose(twice[..., 0], -probability * rest, atol=1e-7)


def test_bernoulli_broadcasts_outcomes_over_samples():
    x = np.random.default_rng(12).integers(0, 2, (4, 5)).astype(np.float32)
    (logits,) = normals(13, (3, 4, 5))
    actual = bernoulli_log_prob(x, logits)
    assert actual.shape == (3, 4)
    one_by_one = [bernoulli_log_prob(x, sample) for sample in logits]
    np.testing.assert_allclose(actual, one_by_one, rtol=1e-6)


def test_bernoulli_log_prob_in_float64(x64):
    x, logits = np.random.default_rng(14).normal(size=(2, 4, 3))
    actual = bernoulli_log_prob(scipy.special.expit(x), logits)
    assert actual.dtype == jnp.float64
    expected = reference_log_prob(scipy.special.expit(x), logits).sum(-1)
    np.testing.assert_allclose(actual, expected, rtol=1e-13)


def exact_kl(logits_0, logits_1):
    p, q = scipy.special.expit(logits_0), scipy.special.expit(logits_1)
    terms = scipy.special.rel_entr(p, q) + scipy.special.rel_entr(1 - p, 1 - q)
    return np.sum(terms, axis=-1)


@shapes
def test_bernoulli_kl_is_scipys(shape):
    logits = normals(15, shape, shape)
    actual = jax.jit(bernoulli.kl_divergence)(*logits)
    assert actual.shape == shape[:-1]
    np.testing.assert_allclose(actual, exact_kl(*logits), rtol=1e-4)


def test_bernoulli_kl_gradient_is_the_finite_difference(x64):
    point = np.random.default_rng(16).normal(size=(2, 3))
    gradient = jax.grad(jax.jit(lambda point: bernoulli.kl_divergence(*point)))(point)
    expected = central_difference(lambda point: exact_kl(*point), point)
    np.testing.assert_allclose(gradient, expected, atol=1e-9)


def test_bernoulli_kl_is_zero_to_itself_and_finite_where_saturated():
    logits = np.float32([[-1e3], [-20.0], [0.0], [3.0], [1e3]])
    value_and_grad = jax.value_and_grad(bernoulli.kl_divergence, argnums=(0, 1))
    value_and_grad = jax.jit(jax.vmap(value_and_grad))
    np.testing.assert_array_equal(value_and_grad(logits, logits)[0], 0.0)
    value, gradients = value_and_grad(logits, -logits)
    expected = [1e3, 20, 0, 3 * np.tanh(1.5), 1e3]
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert np.all(np.isfinite(gradients))


@pytest.mark.parametrize(
    "of_logits, outcomes, probability",
    [
        (bernoulli, (), scipy.special.expit),
        (categorical, (5,), partial(scipy.special.softmax, axis=-1)),
    ],
    ids=["bernoulli", "categorical"],
)
def test_kl_of_nearly_equal_logits_is_never_negative(of_logits, outcomes, probability):
    """It is not clipped either: the gradient is q - p even if the value rounds to 0."""
    logits, steps = normals(16, *[(10_000, 1, *outcomes)] * 2)
    divergence = jax.jit(jax.vmap(jax.value_and_grad(of_logits.kl_divergence, 1)))
    for size in np.float32([1e-7, 1e-6, 1e-4]):
        near = logits + size * steps
        value, gradient = divergence(logits, near)
        assert np.all(np.asarray(value) >= 0)
        p, q = (probability(np.float64(each)) for each in (logits, near))
        np.testing.assert_allclose(gradient, q - p, atol=3e-7)


@shapes
def test_bernoulli_entropy_is_scipys(shape):
    (logits,) = normals(17, shape)
    expected = scipy.stats.bernoulli.entropy(scipy.special.expit(logits)).sum(-1)
    actual = jax.jit(bernoulli.entropy)(logits)
    assert actual.shape == shape[:-1]
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_bernoulli_entropy_keeps_its_digits_where_saturated():
    """In float32 p or 1 - p rounds to 1, but the entropy keeps its digits."""
    logits = np.float32([[-1e3], [-50.0], [-20.0], [0.0], [20.0], [50.0], [1e3]])
    rare = scipy.special.expit(-np.abs(np.float64(logits)))
    expected = scipy.special.entr(rare) - (1 - rare) * np.log1p(-rare)
    entropy, gradient = jax.jit(jax.vmap(jax.value_and_grad(bernoulli.entropy)))(logits)
    np.testing.assert_allclose(entropy, expected[:, 0], rtol=1e-6)
    np.testing.assert_allclose(gradient, -logits * rare * (1 - rare), rtol=1e-5)


def test_bernoulli_samples_have_the_mean(key, assert_mean):
    logits = np.float32([-2.0, 0.0, 1.0, 2.0])
    draws = jax.jit(bernoulli.sample)(np.broadcast_to(logits, (20_000, 4)), key)
    assert draws.dtype == jnp.float32
    assert set(np.unique(draws)) == {0.0, 1.0}
    assert_mean(draws, scipy.special.expit(logits))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_bernoulli_samples_in_16_bits_have_the_mean(key, assert_mean, dtype):
    """Of a probability below the distance of two uniform numbers in 16 bits."""
    logits = jnp.full((200_000, 1), -8.0, dtype)
    draws = bernoulli.sample(logits, key)
    assert draws.dtype == dtype
    assert_mean(draws, scipy.special.expit(-8.0))
