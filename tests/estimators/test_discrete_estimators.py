"""Estimators for bits, against closed forms, enumeration and NumPyro."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats

from vae_jax import (
    Bernoulli,
    FactorizedBernoulli,
    FactorizedBernoulliPrior,
    Linear,
    ModelSpec,
    elbo,
    importance_weighted_bound,
    init,
)
from vae_jax.distributions import BernoulliDistribution
from vae_jax.estimators import (
    arm,
    disarm,
    exact_enumeration,
    gumbel_softmax,
    leave_one_out,
    log_mean_exp,
    mean_baseline,
    optimal_baseline,
    rebar,
    score_function,
    straight_through,
)

P = functools.partial

# One bit: means and variances in closed form

LOGITS = np.array([-3.1, -1.2, -0.3, 0.1, 0.4, 1.7, 2.6])
# (f(0), f(1)) with both signs of the difference.
VALUES = np.array([[0.7, 1.9], [1.3, -0.4]])
NUM_DRAWS = 50_000


def line(b, f0, f1):
    return f0 + (f1 - f0) * b


def parabola(b, f0, f1):
    return f0 + (f1 - f0) * b**2


@functools.cache
def one_bit_program(estimator, integrand):
    """Values and gradients of independent examples, `[draws, logits]`."""

    @jax.jit
    def program(logits, f0, f1):
        def total(logits):
            def f(b, log_q):
                return integrand(b[..., 0], f0, f1)

            q = BernoulliDistribution(logits.reshape(-1, 1))
            values = estimator(f, q, jax.random.key(0))
            return jnp.sum(values), values

        gradient, values = jax.grad(total, has_aux=True)(logits)
        return values.reshape(logits.shape), gradient

    return program


def one_bit(estimator, f0, f1, integrand=line, logits=LOGITS, num_draws=NUM_DRAWS):
    batch = np.broadcast_to(np.float32(logits), (num_draws, len(logits)))
    program = one_bit_program(estimator, integrand)
    return jax.tree.map(np.float64, program(batch, np.float32(f0), np.float32(f1)))


def score_function_variance(p, f0, f1):
    second = p * (1 - p) * ((1 - p) * f1**2 + p * f0**2)
    return second - (p * (1 - p) * (f1 - f0)) ** 2


def pair_variance(p, f0, f1):
    difference = f1 - f0
    return p * (1 - p) * difference**2 / 2 - (p * (1 - p) * difference) ** 2


def arm_variance(p, f0, f1):
    r, difference = np.minimum(p, 1 - p), f1 - f0
    second = 2 / 3 * difference**2 * (1 / 8 - (1 / 2 - r) ** 3)
    return second - (p * (1 - p) * difference) ** 2


def disarm_variance(p, f0, f1):
    r, difference = np.minimum(p, 1 - p), f1 - f0
    second = r * (1 - r) ** 2 * difference**2 / 2
    return second - (p * (1 - p) * difference) ** 2


def divided(variance, count):
    return lambda *arguments: variance(*arguments) / count


ARM_TWICE = P(arm, num_samples=2)
PAIRS = {
    "score_function": (score_function, score_function_variance),
    "rebar at scale 0": (P(rebar, scale=0.0), score_function_variance),
    "leave_one_out": (leave_one_out, pair_variance),
    "arm of 2": (ARM_TWICE, divided(arm_variance, 2)),
    "disarm": (disarm, disarm_variance),
}


@pytest.mark.parametrize("name", PAIRS)
def test_mean_and_variance_of_one_bit_are_the_closed_forms(name, assert_mean):
    estimator, variance = PAIRS[name]
    p = scipy.special.expit(LOGITS)
    for f0, f1 in VALUES:
        values, gradient = one_bit(estimator, f0, f1)
        expected = p * (1 - p) * (f1 - f0)
        assert_mean(values, f0 + (f1 - f0) * p)
        assert_mean(gradient, expected)
        assert_mean((gradient - expected) ** 2, variance(p, f0, f1))


def test_disarm_has_the_least_variance_of_the_pairs():
    f0, f1 = VALUES[1]
    draws = {e: one_bit(e, f0, f1)[1] for e in (ARM_TWICE, disarm, leave_one_out)}
    variance = {estimator: draw.var(axis=0) for estimator, draw in draws.items()}
    assert np.all(variance[disarm] < 1.02 * 2 * variance[ARM_TWICE])
    assert np.all(variance[disarm] < 1.02 * variance[leave_one_out])
    near_half = 3
    assert variance[disarm][near_half] < variance[ARM_TWICE][near_half]


def test_disarm_has_no_variance_for_a_fair_coin():
    f0, f1 = VALUES[1]
    _, gradient = one_bit(disarm, f0, f1, logits=np.zeros(7))
    np.testing.assert_allclose(gradient, (f1 - f0) / 4, rtol=1e-6)


@pytest.mark.parametrize("scale", [0.4, 2.3])
@pytest.mark.parametrize("temperature", [0.2, 3.0])
def test_rebar_is_unbiased_at_every_temperature_and_scale(
    rebar_draws, temperature, scale, assert_mean
):
    p = scipy.special.expit(LOGITS)
    gradient = rebar_draws(temperature, scale)
    assert_mean(gradient, p * (1 - p) * REBAR_SLOPE)


REBAR_SLOPE, REBAR_OFFSET = 1.2, 2.0


@pytest.fixture(scope="module")
def rebar_draws():
    @jax.jit
    def program(logits, temperature, scale):
        def total(logits):
            def f(b, log_q):
                return REBAR_OFFSET + REBAR_SLOPE * b[..., 0] ** 2

            q = BernoulliDistribution(logits.reshape(-1, 1))
            options = {"temperature": temperature, "scale": scale}
            return jnp.sum(rebar(f, q, jax.random.key(0), **options))

        return jax.grad(total)(logits)

    batch = np.broadcast_to(np.float32(LOGITS), (NUM_DRAWS, len(LOGITS)))
    return lambda temperature, scale: np.float64(
        program(batch, np.float32(temperature), np.float32(scale))
    )


def test_the_control_of_rebar_takes_away_most_of_the_variance(rebar_draws):
    plain, controlled = (rebar_draws(0.7, scale).var(axis=0) for scale in (0.0, 1.0))
    assert np.all(controlled < plain / 3)


# Relaxations: the gradient of the relaxed expectation, which is biased


def relaxed_gradient(logit, temperature, slope):
    """E[slope(s, b) ds/dl] for s = sigmoid((l + logit u) / t), by quadrature."""

    def integrand(noise):
        z = (logit + noise) / temperature
        s = scipy.special.expit(z)
        density = scipy.stats.logistic.pdf(noise)
        return density * slope(s, float(z > 0)) * s * (1 - s) / temperature

    points = scipy.integrate.quad(integrand, -40, -logit, limit=200)[0]
    return points + scipy.integrate.quad(integrand, -logit, 40, limit=200)[0]


RELAXED = {
    "soft": (gumbel_softmax, 0.5, lambda s, b: 2 * s),
    "hot": (P(gumbel_softmax, temperature=2.0), 2.0, lambda s, b: 2 * s),
    "hard": (P(gumbel_softmax, hard=True), 0.5, lambda s, b: 2 * b),
}


@pytest.mark.parametrize("name", RELAXED)
def test_gumbel_softmax_is_the_gradient_of_its_relaxation(name, assert_mean):
    estimator, temperature, slope = RELAXED[name]
    values, gradient = one_bit(estimator, 0.5, 1.5, parabola)
    expected = [relaxed_gradient(logit, temperature, slope) for logit in LOGITS]
    assert_mean(gradient, expected)
    assert set(np.unique(values)) == {0.5, 1.5}
    assert_mean(values, 0.5 + scipy.special.expit(LOGITS))


def test_the_bias_of_gumbel_softmax_shrinks_with_the_temperature():
    index = 1
    p = scipy.special.expit(LOGITS[index])
    cold, hot = (
        one_bit(RELAXED[name][0], 0.5, 1.5, parabola)[1][:, index]
        for name in ("soft", "hot")
    )
    biases = [abs(draws.mean() - p * (1 - p)) for draws in (cold, hot)]
    assert 5 * cold.std() / np.sqrt(NUM_DRAWS) < biases[0] < biases[1] / 2
    assert cold.var() > hot.var()


def test_straight_through_is_exact_for_a_line_and_biased_for_a_parabola(assert_mean):
    p = scipy.special.expit(LOGITS)
    _, gradient = one_bit(straight_through, 0.5, 1.5)
    expected = np.broadcast_to(p * (1 - p), gradient.shape)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)
    values, gradient = one_bit(straight_through, 0.5, 1.5, parabola)
    assert_mean(gradient, 2 * p * p * (1 - p))
    assert set(np.unique(values)) == {0.5, 1.5}


# Three bits coupled by the integrand, against an explicit sum over eight states

BENDS = np.array([[0.4, -1.1, 0.6], [0.0, 0.3, 0.9], [0.0, 0.0, -0.5]])
THREE = np.array([[0.3, -1.4, 0.8], [-0.6, 1.1, 2.0]])
THETAS = np.array([1.4, -0.7])
HALF = 20_000
UNBIASED = {
    "score_function": P(score_function, num_samples=2),
    "mean_baseline": mean_baseline,
    "leave_one_out": P(leave_one_out, num_samples=3),
    "optimal_baseline": P(optimal_baseline, num_baseline_samples=3),
    "rebar": P(rebar, temperature=1.5, scale=1.3, num_samples=2),
    "arm": P(arm, num_samples=2),
    "disarm": disarm,
}


def coupled(b, xp):
    return xp.sin(
        1.3 * xp.sum((b @ xp.asarray(BENDS, b.dtype)) * b, axis=-1) + b[..., 0]
    )


@functools.cache
def three_bits(estimator, num_repeats):
    """Values and gradients for a batch of two examples, each repeated `num_repeats`."""

    @jax.jit
    def program(logits, theta, first_half):
        def estimate(logits, theta):
            def integrand(b, log_q):
                return {
                    "f": theta * (coupled(b, jnp) + 0.3 * log_q),
                    "huge": 1e8 * b[..., 0],
                    "b": b[..., 0],
                }

            return estimator(
                integrand, BernoulliDistribution(logits), jax.random.key(0)
            )

        values, pull_back = jax.vjp(estimate, logits, theta)
        nothing = jax.tree.map(jnp.zeros_like, values)
        return {
            "values": values,
            "gradients": pull_back({**nothing, "f": jnp.ones_like(theta)}),
            "first half's": pull_back({**nothing, "f": first_half}),
        }

    logits = np.repeat(np.float32(THREE), num_repeats, axis=0)
    theta = np.repeat(np.float32(THETAS), num_repeats)
    first_half = np.repeat(np.float32([1, 0]), num_repeats)
    return jax.tree.map(np.asarray, program(logits, theta, first_half))


@pytest.fixture(scope="module")
def by_hand():
    """E f and its gradients with respect to the logits and theta."""
    states = np.array(list(itertools.product([0.0, 1.0], repeat=3)))
    found = []
    for logits, theta in zip(THREE, THETAS, strict=True):
        p = scipy.special.expit(logits)
        q = np.prod(np.where(states == 1, p, 1 - p), axis=-1)
        plain = coupled(states, np) + 0.3 * np.log(q)
        weighted = q * theta * plain
        found.append((weighted.sum(), weighted @ (states - p), q @ plain))
    return found


def test_enumeration_is_the_sum_over_all_states(by_hand):
    found = three_bits(exact_enumeration, 1)
    actual = found["values"]["f"], *found["gradients"]
    for leaf, expected in zip(actual, zip(*by_hand, strict=True), strict=True):
        np.testing.assert_allclose(leaf, expected, rtol=1e-5, atol=1e-6)
    assert not found["first half's"][0][1].any() and found["first half's"][0][0].all()


@pytest.mark.parametrize("name", UNBIASED)
def test_every_unbiased_estimator_agrees_with_enumeration(name, by_hand, assert_mean):
    found = three_bits(UNBIASED[name], HALF)
    actual = found["values"]["f"], *found["gradients"]
    for half, expected in zip((slice(HALF), slice(HALF, None)), by_hand, strict=True):
        for leaf, expectation in zip(actual, expected, strict=True):
            assert_mean(leaf[half], expectation)


BIASED = {
    "gumbel_softmax": gumbel_softmax,
    "straight_through": straight_through,
}


@pytest.mark.parametrize("name", [*UNBIASED, *BIASED])
def test_values_are_plain_and_gradients_stay_with_their_example(name):
    """The value of 1e8 b is exact, and so is the gradient by theta, linear in f."""
    found = three_bits({**UNBIASED, **BIASED}[name], HALF)
    values = found["values"]
    if name == "leave_one_out":
        np.testing.assert_allclose(values["huge"], 1e8 * values["b"], rtol=1e-6)
    else:
        np.testing.assert_array_equal(values["huge"], np.float32(1e8) * values["b"])
    theta = np.repeat(THETAS, HALF)
    by_logits, by_theta = found["gradients"]
    np.testing.assert_allclose(theta * by_theta, values["f"], rtol=1e-5, atol=1e-6)
    alone, _ = found["first half's"]
    assert not alone[HALF:].any()
    np.testing.assert_allclose(alone[:HALF], by_logits[:HALF], rtol=1e-5, atol=1e-6)


def test_too_many_bits_are_not_enumerated(key):
    def estimate(logits):
        q = BernoulliDistribution(logits)
        return exact_enumeration(lambda z, _: z.sum(axis=-1), q, key)

    assert jax.eval_shape(estimate, jnp.zeros((2, 12))).shape == (2,)
    with pytest.raises(ValueError, match=r"13 has 2\^13 states; at most 12 bits"):
        jax.eval_shape(estimate, jnp.zeros((2, 13)))


# Bounds with several samples


def test_the_gradient_of_a_bound_over_bits_is_the_sum_over_pairs_of_states(assert_mean):
    """Log mean of two weights of one bit, by an explicit sum over four outcomes."""
    logits, log_p = np.array([-0.7, 1.2]), np.array([-2.0, -0.5])

    def bound(logit):
        p = scipy.special.expit(logit)
        q = np.array([1 - p, p])
        log_w = log_p - np.log(q)
        pairs = np.logaddexp(log_w[:, None], log_w) - np.log(2)
        return q @ pairs @ q

    expected = [(bound(logit + 1e-5) - bound(logit - 1e-5)) / 2e-5 for logit in logits]
    for estimator in (score_function, leave_one_out):

        def total(logits, estimator=estimator):
            def log_w(b, log_q):
                return log_p[0] + (log_p[1] - log_p[0]) * b[..., 0] - log_q

            q = BernoulliDistribution(logits.reshape(-1, 1))
            options = {"num_samples": 2, "reduction": log_mean_exp}
            bounds = estimator(log_w, q, jax.random.key(3), **options)
            return jnp.sum(bounds), bounds

        batch = np.broadcast_to(np.float32(logits), (NUM_DRAWS, 2))
        program = jax.jit(jax.grad(total, has_aux=True))
        gradient, bounds = program(batch)
        assert_mean(gradient, expected)
        assert_mean(bounds.reshape(-1, 2), [bound(logit) for logit in logits])


# Models with discrete latents


BITS = ModelSpec(
    encoder=Linear(),
    decoder=Linear(),
    posterior=FactorizedBernoulli(),
    prior=FactorizedBernoulliPrior(),
    likelihood=Bernoulli(),
    latent_dim=3,
    data_shape=(4,),
)


@pytest.fixture(scope="module")
def bits_model():
    rng = np.random.default_rng(2)
    fresh = jax.eval_shape(P(init, BITS), jax.random.key(0))
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), fresh
    )
    return params, jnp.asarray(rng.integers(0, 2, (2, 4)), jnp.float32)


def expected_gradient(params, x, bound):
    """Value and gradient of the mean over x of the ELBO, by central differences."""
    states = np.array(list(itertools.product([0.0, 1.0], repeat=3)))
    leaves, structure = jax.tree.flatten(jax.tree.map(np.float64, params))

    def layer(weights, inputs):
        return inputs @ weights["output"]["kernel"] + weights["output"]["bias"]

    def log_prob(bits, logits):
        return -np.logaddexp(0, np.where(bits == 1, -logits, logits)).sum(axis=-1)

    def value(leaves):
        p = structure.unflatten(leaves)
        log_q = log_prob(states[:, None], layer(p.encoder, np.float64(x)))
        log_p = log_prob(states, p.prior["logits"])[:, None]
        log_likelihood = log_prob(np.float64(x), layer(p.decoder, states)[:, None])
        return np.mean(np.sum(np.exp(log_q) * (log_likelihood + log_p - log_q), 0))

    def slopes(index):
        found = np.empty_like(leaves[index])
        for place in np.ndindex(found.shape):
            up, down = ([leaf.copy() for leaf in leaves] for _ in range(2))
            up[index][place] += 1e-5
            down[index][place] -= 1e-5
            found[place] = (value(up) - value(down)) / 2e-5
        return found

    gradient = structure.unflatten([slopes(i) for i in range(len(leaves))])
    return value(leaves), gradient


ON_MODELS = {
    "leave_one_out": leave_one_out,
    "disarm": disarm,
}


@pytest.mark.parametrize("kl", ["analytic", "monte_carlo"])
def test_the_elbo_of_bits_is_exact_by_enumeration(bits_model, kl):
    params, x = bits_model
    value, gradient = expected_gradient(params, x, elbo)
    objective = P(elbo, kl=kl, estimator=exact_enumeration)
    program = jax.jit(jax.value_and_grad(objective))
    actual, slopes = program(params, x, jax.random.key(0))
    np.testing.assert_allclose(actual, value, rtol=1e-5)
    for leaf, expected in zip(
        jax.tree.leaves(slopes), jax.tree.leaves(gradient), strict=True
    ):
        np.testing.assert_allclose(leaf, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ON_MODELS)
def test_the_elbo_of_bits_has_the_gradient_by_enumeration(
    bits_model, name, assert_mean
):
    params, x = bits_model
    _, gradient = expected_gradient(params, x, elbo)
    options = {"num_samples": 2} if name == "leave_one_out" else {}
    objective = P(elbo, estimator=ON_MODELS[name], kl="monte_carlo", **options)
    keys = jax.random.split(jax.random.key(1), 10_000)
    draws = jax.jit(jax.vmap(lambda key: jax.grad(objective)(params, x, key)))(keys)
    for leaf, expected in zip(
        jax.tree.leaves(draws), jax.tree.leaves(gradient), strict=True
    ):
        assert_mean(leaf, expected)


def test_the_default_estimator_refuses_bits_and_says_what_to_use(bits_model, key):
    params, x = bits_model
    message = "discrete: use leave_one_out, disarm"
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(elbo, params, x, key)
    bound = P(importance_weighted_bound, num_samples=2)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(bound, params, x, key)
    vimco = P(bound, estimator=leave_one_out)
    assert jax.eval_shape(vimco, params, x, key).shape == ()


# An independent implementation


def test_numpyros_surrogate_is_the_score_function_with_log_q_constant(assert_mean):
    """TraceGraph_ELBO with one multivariate site and one particle uses no baseline.

    It omits the gradient of log q in the cost, whose expectation is 0, so it equals
    `score_function` of log p - stop_gradient(log q). Without stop_gradient, log q
    contributes minus one score, which equals NumPyro's estimator with a baseline of 1.
    """
    numpyro = pytest.importorskip("numpyro")
    dist = pytest.importorskip("numpyro.distributions")
    prior, slopes, bias, observed = (
        np.float32([0.3, -0.8]),
        np.float32([1.5, -2.0]),
        np.float32(0.4),
        np.float32(0.9),
    )
    logits = np.float32([0.9, -1.3])

    def model():
        z = numpyro.sample("z", dist.Bernoulli(logits=prior).to_event(1))
        numpyro.sample("x", dist.Normal(bias + z @ slopes, 1.0), obs=observed)

    def guide():
        parameter = numpyro.param("logits", logits)
        numpyro.sample("z", dist.Bernoulli(logits=parameter).to_event(1))

    loss = numpyro.infer.TraceGraph_ELBO().loss

    def log_joint(z):
        log_p = (z * prior - jax.nn.softplus(prior)).sum(axis=-1)
        return log_p + jax.scipy.stats.norm.logpdf(observed, bias + z @ slopes)

    def ours(logits, key, constant):
        def f(z, log_q):
            return log_joint(z) - (jax.lax.stop_gradient(log_q) if constant else log_q)

        return score_function(f, BernoulliDistribution(logits[None]), key)[0]

    @jax.jit
    @jax.vmap
    def draws(key):
        theirs = jax.value_and_grad(
            lambda logits: -loss(key, {"logits": logits}, model, guide)
        )(logits)
        constant, full = (
            jax.value_and_grad(P(ours, key=key, constant=constant))(logits)
            for constant in (True, False)
        )
        return theirs, constant, full

    found = draws(jax.random.split(jax.random.key(0), 20_000))
    (their_value, theirs), (value, constant), (_, full) = jax.tree.map(
        np.float64, found
    )
    states = np.array(list(itertools.product([0.0, 1.0], repeat=2)))
    p = scipy.special.expit(np.float64(logits))
    q = np.prod(np.where(states == 1, p, 1 - p), axis=-1)
    prior_p = scipy.special.expit(np.float64(prior))
    log_p = np.log(np.where(states == 1, prior_p, 1 - prior_p)).sum(axis=-1)
    log_p = log_p + scipy.stats.norm.logpdf(observed, bias + states @ slopes)
    f, score = log_p - np.log(q), states - p
    expected = (q * f) @ score
    for draw in (their_value, value):
        assert_mean(draw, q @ f)
    for draw, weight in ((theirs, f), (constant, f), (full, f - 1)):
        assert_mean(draw, expected)
        variance = q @ (weight[:, None] * score) ** 2 - expected**2
        assert_mean((draw - expected) ** 2, variance)


@pytest.mark.parametrize("estimator", [gumbel_softmax, rebar])
@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_a_temperature_that_is_not_positive_is_refused(estimator, temperature, key):
    posterior = BernoulliDistribution(jnp.zeros((1, 2)))
    with pytest.raises(ValueError, match="temperature must be positive"):
        estimator(lambda z, _: z.sum(-1), posterior, key, temperature=temperature)


@pytest.mark.parametrize("estimator", [arm, disarm, rebar])
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_a_gradient_in_16_bits_is_unbiased(estimator, dtype, assert_mean):
    """Of a probability below the distance of two uniform numbers in 16 bits."""
    logits = jnp.full((1, 1), -8.0, dtype)

    def gradient(key):
        def mean(logits):
            posterior = BernoulliDistribution(logits)
            values = estimator(lambda b, _: b.sum(-1), posterior, key, num_samples=1)
            return values.sum()

        return jax.grad(mean)(logits)

    found = jax.jit(jax.vmap(gradient))(jax.random.split(jax.random.key(3), 400_000))
    assert found.dtype == dtype
    p = scipy.special.expit(-8.0)
    assert_mean(np.float32(found), p * (1 - p))
