"""Training: one step by hand, and an epoch as one program that can be cut anywhere."""

import functools
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from specs import SPECS, example_data, random_params

from vae_jax import (
    DiagonalGaussianPrior,
    Epoch,
    FactorizedBernoulli,
    FactorizedBernoulliPrior,
    elbo,
    elbo_objective,
    elbo_terms,
    empty_history,
    importance_weighted_objective,
    init,
    init_state,
    jit_step,
    maximum_mean_discrepancy,
    shuffled_epoch,
    total_correlation,
    train_epoch,
    train_step,
    trainable,
)
from vae_jax.distributions import DiagonalGaussianDistribution
from vae_jax.estimators import doubly_reparameterized, leave_one_out, log_mean_exp
from vae_jax.types import Family

SPEC = dict(SPECS)["linear-gaussian"]
PARAMS = random_params(SPEC)
BATCH = example_data(SPEC)
ROOT = jax.random.key(7)
NOISE = jax.random.split(ROOT, 4)[1]  # of the steps, by name a child of the root


def assert_same_bits(one, other):
    """Of two trees of arrays; nan equals nan."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)


def on_device(tree):
    """A copy, as a donated argument is gone after the call."""
    return jax.tree.map(jnp.array, tree)


@functools.partial(jax.jit, static_argnums=0, static_argnames="average")
def start(optimizer, seed=7, average=True):
    """The state before the first step; the root key is `ROOT` where seed is 7."""
    return init_state(
        PARAMS, jax.random.key(seed), optimizer=optimizer, average=average
    )


# Every spec


def test_a_step_moves_what_is_trained_and_leaves_settings_alone(spec, key):
    """Though settings have a gradient, and weight decay needs none."""
    decaying = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(1e-2))

    def objective(params, x, key, step):
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(params)), {}

    @jax.jit
    def step(params, key, batch):
        state = init_state(params, key, optimizer=decaying)
        return train_step(state, batch, objective=objective, optimizer=decaying)

    params = random_params(spec)
    after, _ = step(params, key, example_data(spec))

    def check(moves, old, new):
        expected = old + 1e-2 * (1 - 0.1 * old) if moves else old
        np.testing.assert_allclose(new, expected, rtol=0 if not moves else 1e-5)
        assert new.dtype == old.dtype

    jax.tree.map(check, trainable(params), params, after.params)


# One step after another, by hand


SCHEDULE = optax.linear_schedule(0.0, 2.0, 4)
ADAM = optax.adam(1e-2)
DECAY = 0.9
NUM_STEPS = 4


@pytest.fixture(scope="module")
def run():
    """States, metrics and the number of traces of four steps."""
    traces = []

    @jax.jit
    def step(state, batch):
        traces.append(None)
        return train_step(
            state,
            batch,
            objective=elbo_objective(beta=SCHEDULE),
            optimizer=ADAM,
            average_decay=DECAY,
        )

    states, metrics = [start(ADAM)], []
    for _ in range(NUM_STEPS):
        state, figures = step(states[-1], BATCH)
        states.append(state)
        metrics.append(figures)
    return states, metrics, len(traces)


@pytest.fixture(scope="module")
def by_hand():
    """The same by optax from the gradient of minus the ELBO, with step t's noise."""

    @jax.jit
    def step(params, opt_state, t):
        counter = jax.random.fold_in(jax.random.fold_in(NOISE, t), 0)
        _, key = jax.random.split(counter)
        beta = t * 2 / 4
        terms = elbo_terms(params, BATCH, key, beta=beta)
        gradients = jax.grad(lambda p: -elbo(p, BATCH, key, beta=beta))(params)
        updates, opt_state = ADAM.update(gradients, opt_state, params)
        after = optax.apply_updates(params, updates)
        return after.replace(likelihood=params.likelihood), opt_state, terms

    params, opt_state, found = PARAMS, jax.jit(ADAM.init)(PARAMS), []
    for t in range(NUM_STEPS):
        params, opt_state, terms = step(params, opt_state, t)
        found.append((params, terms))
    return found


def test_steps_are_adams_on_minus_the_elbo_with_noise_from_the_counter(run, by_hand):
    states, _, _ = run
    for state, (params, _) in zip(states[1:], by_hand, strict=True):
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
            state.params,
            params,
        )
    assert [int(state.step) for state in states] == [0, 1, 2, 3, 4]


def test_the_objective_follows_the_schedule_of_beta(run, by_hand):
    _, metrics, _ = run
    for t, (figures, (_, terms)) in enumerate(zip(metrics, by_hand, strict=True)):
        beta = t * 2 / 4
        expected = np.mean(terms.log_likelihood - beta * terms.kl_divergence)
        np.testing.assert_allclose(figures["objective"], expected, rtol=1e-5)


def test_the_metrics_are_batch_means_and_the_elbo_is_at_beta_one(run, by_hand):
    _, metrics, _ = run
    for figures, (_, terms) in zip(metrics, by_hand, strict=True):
        assert set(figures) == {"objective", "elbo", "log_likelihood", "kl_divergence"}
        for name in ("log_likelihood", "kl_divergence"):
            expected = np.mean(getattr(terms, name))
            np.testing.assert_allclose(figures[name], expected, rtol=1e-5)
        expected = figures["log_likelihood"] - figures["kl_divergence"]
        np.testing.assert_allclose(figures["elbo"], expected, rtol=1e-6)


def test_the_average_is_of_the_parameters_since_step_0(run):
    """Weights (1 - d) d^(t - s) / (1 - d^t): they sum to 1, the initial ones aside."""
    states, _, _ = run
    for t in range(1, len(states)):
        weights = (1 - DECAY) * DECAY ** np.arange(t)[::-1] / (1 - DECAY**t)
        assert weights.sum() == pytest.approx(1)
        trained = [state.params for state in states[1 : t + 1]]
        expected = jax.tree.map(
            lambda *leaves, weights=weights: np.tensordot(weights, leaves, 1), *trained
        )
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
            states[t].average,
            expected,
        )
        assert states[t].evaluation_params is states[t].average


def test_many_steps_are_traced_once(run):
    assert run[2] == 1


def test_without_an_average_the_parameters_are_evaluated():
    state = init_state(PARAMS, ROOT, optimizer=ADAM)
    assert state.average is None and state.evaluation_params is state.params
    assert state.step == 0 and state.step.dtype == jnp.int32


# Objectives


def test_the_objective_hands_its_options_on():
    def value(**options):
        return lambda key: elbo_objective(**options)(PARAMS, BATCH, key, 0)[0]

    options = {"beta": 3.0, "num_samples": 2, "kl": "monte_carlo"}
    actual = jax.jit(value(**options))(ROOT)
    expected = jax.jit(lambda key: elbo(PARAMS, BATCH, key, **options))(ROOT)
    assert float(actual) == pytest.approx(float(expected), rel=1e-6)
    with pytest.raises(ValueError, match="num_samples"):
        value(num_samples=0)(ROOT)
    with pytest.raises(TypeError, match="bata"):
        value(bata=1.0)(ROOT)


@pytest.mark.long
def test_the_objective_of_a_bound_keeps_the_guards_of_the_bound():
    def value(params, **options):
        objective = importance_weighted_objective(**options)
        return objective(params, BATCH, ROOT, 0)[0]

    with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
        value(PARAMS, num_samples=0)
    with pytest.raises(TypeError, match="reducton"):
        value(PARAMS, num_samples=4, reducton=log_mean_exp)
    bits = replace(
        PARAMS.spec, posterior=FactorizedBernoulli(), prior=FactorizedBernoulliPrior()
    )
    with pytest.raises(ValueError, match="are discrete: use leave_one_out"):
        value(init(bits, ROOT), num_samples=4)
    unbiased = value(init(bits, ROOT), num_samples=4, estimator=leave_one_out)
    assert jnp.isfinite(unbiased)


def test_beta_can_be_traced():
    """So that a sweep over beta is a `vmap`, in training as in evaluation."""

    def value(beta):
        objective = elbo_objective(beta=beta)
        return objective(PARAMS, BATCH, ROOT, 0)[0]

    assert jax.eval_shape(jax.vmap(value), jnp.ones(3)).shape == (3,)


# An objective without networks, for all that is not about them


SGD = optax.sgd(1.0)


def probe(params, x, key, step):
    """Reports what it is given, and has a gradient of one for every bias."""
    value = jnp.sum(params.encoder["output"]["bias"])
    noise = jax.random.uniform(key)
    return value, {"examples": jnp.sum(x), "noise": noise, "step": jnp.float32(step)}


def probing_step(**options):
    return functools.partial(train_step, objective=probe, optimizer=SGD, **options)


def probing_state():
    return start(SGD, average=False)


def run_epoch(step, state, epoch, data, stops=(10**6,)):
    history = empty_history(step, state, epoch, data)
    take = jax.jit(functools.partial(train_epoch, step=step))
    for stop in stops:
        state, history = take(state, epoch, data, history, stop)
    return state, history


def test_step_t_has_the_noise_of_its_number_and_preprocessing_its_own():
    def preprocess(batch, key):
        return batch * 0 + jax.random.uniform(key)

    state, step = probing_state(), jax.jit(probing_step(preprocess=preprocess))
    for t in range(3):
        state, metrics = step(state, jnp.ones(1))
        counter = jax.random.fold_in(jax.random.fold_in(NOISE, t), 0)
        data_key, objective_key = jax.random.split(counter)
        assert metrics["examples"] == jax.random.uniform(data_key)
        assert metrics["noise"] == jax.random.uniform(objective_key)
        assert metrics["step"] == t
    assert_same_bits(state.key, NOISE)


def test_the_step_ascends():
    after, _ = probing_step()(probing_state(), jnp.ones(1))
    before = PARAMS.encoder["output"]["bias"]
    np.testing.assert_allclose(after.params.encoder["output"]["bias"], before + 1)


def test_a_donated_state_keeps_its_average():
    """The average starts as a copy: one buffer cannot be given away twice."""
    state = init_state(PARAMS, ROOT, optimizer=SGD, average=True)
    step = jit_step(probing_step(average_decay=0.5))
    for _ in range(2):
        state, _ = step(state, jnp.ones(1))
    before = PARAMS.encoder["output"]["bias"]
    after, average = (
        tree.encoder["output"]["bias"] for tree in (state.params, state.average)
    )
    np.testing.assert_allclose(after, before + 2, rtol=1e-6)
    expected = before + (0.25 * 1 + 0.5 * 2) / 0.75
    np.testing.assert_allclose(average, expected, rtol=1e-6)


def test_the_average_of_300_steps_is_of_trained_parameters():
    """At a decay of 0.999 an average that starts at the initial ones stays there."""

    @jax.jit
    def walk(state):
        step = probing_step(average_decay=0.999)
        return jax.lax.fori_loop(0, 300, lambda _, s: step(s, jnp.ones(1))[0], state)

    before = PARAMS.encoder["output"]["bias"]
    state = walk(init_state(PARAMS, ROOT, optimizer=SGD, average=True))
    steps = np.arange(1, 301)
    weights = 0.999 ** (300 - steps)
    expected = before + np.sum(weights * steps) / np.sum(weights)
    np.testing.assert_allclose(
        state.average.encoder["output"]["bias"], expected, rtol=1e-4
    )


@pytest.mark.parametrize("decay", [-0.1, 1.0, np.nan])
def test_a_decay_of_no_average_is_refused(decay):
    with pytest.raises(
        ValueError, match=rf"average_decay must be in \[0, 1\).*{decay}"
    ):
        probing_step(average_decay=decay)(start(SGD), jnp.ones(1))


def doubled():
    """An optimizer whose state begins at the parameters themselves."""
    return optax.GradientTransformation(
        lambda params: params, lambda updates, state, params: (updates, params)
    )


def test_a_donated_state_leaves_parameters_and_key_to_the_caller():
    params, key = on_device(PARAMS), jax.random.key(7)
    state = init_state(params, key, optimizer=doubled(), average=True)
    step = jit_step(functools.partial(train_step, objective=probe, optimizer=doubled()))
    step(state, jnp.ones(1))
    # Where JAX looks for nan it keeps the arguments, to run the program again.
    assert state.step.is_deleted() != jax.config.jax_debug_nans
    assert_same_bits(params, on_device(PARAMS))
    assert_same_bits(key, ROOT)


SIZES = {
    "rest": (10, 4, (4, 4, 2)),
    "no_rest": (8, 4, (4, 4)),
    "batch_over_n": (3, 5, (3,)),
}


@pytest.mark.parametrize(
    ("num_examples", "batch_size", "batch_sizes"), SIZES.values(), ids=SIZES
)
def test_every_example_is_used_once_an_epoch(num_examples, batch_size, batch_sizes):
    """Example i is 2^i, so a sum says which examples it is of."""
    data = 2.0 ** np.arange(num_examples, dtype=np.float32)
    epoch = shuffled_epoch(
        jax.random.key(1), 0, num_examples=num_examples, batch_size=batch_size
    )
    assert epoch.batch_sizes == batch_sizes
    state, history = run_epoch(probing_step(), probing_state(), epoch, data)
    used = [int(total) for total in history["examples"]]
    assert tuple(total.bit_count() for total in used) == batch_sizes
    assert sum(used) == 2**num_examples - 1
    assert state.step == len(batch_sizes)
    np.testing.assert_array_equal(history["step"], np.arange(len(batch_sizes)))


@pytest.mark.parametrize(
    ("batch_size", "batch_sizes"), [(8, (8,)), (1, (1,) * 8), (5, (5, 3)), (9, (8,))]
)
def test_batch_sizes_add_up(batch_size, batch_sizes):
    epoch = shuffled_epoch(jax.random.key(1), 0, num_examples=8, batch_size=batch_size)
    assert epoch.batch_sizes == batch_sizes


def test_an_epochs_order_follows_from_key_and_number():
    def order(seed, number):
        epoch = shuffled_epoch(
            jax.random.key(seed), number, num_examples=50, batch_size=8
        )
        assert epoch.batches.shape == (6, 8) and epoch.rest.shape == (2,)
        return np.concatenate([epoch.batches.ravel(), epoch.rest])

    first = order(0, 0)
    np.testing.assert_array_equal(np.sort(first), np.arange(50))
    np.testing.assert_array_equal(first, order(0, 0))
    for other in (order(0, 1), order(1, 0), np.arange(50)):
        assert np.mean(first == other) < 0.5


# A whole epoch of a real model


DATA = np.random.default_rng(0).normal(size=(10, 5)).astype(np.float32)


@pytest.fixture(scope="module")
def epoch_run():
    """Runs epochs of a model through one compiled program, and counts its traces."""
    step = functools.partial(train_step, objective=elbo_objective(), optimizer=ADAM)
    traces = []

    @jax.jit
    def take(*arguments):
        traces.append(None)
        return train_epoch(*arguments, step=step)

    def run(stops, seed=7, num_epochs=1):
        state = start(ADAM, seed)
        for number in range(num_epochs):
            epoch = shuffled_epoch(
                jax.random.key(1), number, num_examples=10, batch_size=4
            )
            history = empty_history(step, state, epoch, DATA)
            for stop in stops:
                state, history = take(state, epoch, DATA, history, stop)
        return state, history

    return run, traces


@pytest.mark.parametrize("stops", [(1, 2, 3), (2, 9), (0, 1, 1, 3), (3, 0)], ids=str)
def test_an_epoch_in_pieces_is_the_epoch_whole_to_the_bit(epoch_run, stops):
    run, _ = epoch_run
    assert_same_bits(run(stops), run((10**6,)))


def test_epochs_follow_one_another(epoch_run):
    run, _ = epoch_run
    state, history = run((2, 3), num_epochs=2)
    assert state.step == 6
    assert_same_bits((state, history), run((3,), num_epochs=2))
    assert np.any(history["elbo"] != run((3,))[1]["elbo"])


def test_the_same_key_gives_the_same_bits_and_another_key_others(epoch_run):
    run, _ = epoch_run
    assert_same_bits(run((3,)), run((3,)))
    (one, figures), (other, others) = run((3,)), run((3,), seed=8)
    assert not np.any(figures["elbo"] == others["elbo"])
    for subtree in ("encoder", "decoder"):
        kernels = [getattr(s.params, subtree)["output"]["kernel"] for s in (one, other)]
        assert np.any(kernels[0] != kernels[1])


def test_a_stopped_epoch_leaves_room_in_the_history(epoch_run):
    run, _ = epoch_run
    state, history = run((0,))
    assert state.step == 0
    assert_same_bits(state.params, on_device(PARAMS))
    assert all(
        np.isneginf(figures).tolist() == [True] * 3 for figures in history.values()
    )
    state, history = run((2,))
    assert state.step == 2
    for figures in history.values():
        assert np.isneginf(figures).tolist() == [False, False, True]


def test_an_epoch_runs_where_nans_are_looked_for():
    """`jax_debug_nans` stops at the nan that it is asked for, and at no other."""
    epoch = shuffled_epoch(ROOT, 0, num_examples=3, batch_size=2)
    with jax.debug_nans(True):
        state, history = run_epoch(
            probing_step(), probing_state(), epoch, jnp.ones(3), stops=(1,)
        )
        assert state.step == 1 and np.isneginf(history["examples"][1])
        with pytest.raises(FloatingPointError, match="nan"):
            run_epoch(probing_step(), probing_state(), epoch, jnp.full(3, jnp.nan))


# An epoch and data that do not belong together


def test_indices_of_examples_that_there_are_not_are_refused():
    state, step = probing_state(), probing_step()
    epoch = shuffled_epoch(ROOT, 0, num_examples=10, batch_size=4)
    message = "indices of the 8 examples, got 0 to 9: give shuffled_epoch"
    with pytest.raises(ValueError, match=message):
        empty_history(step, state, epoch, jnp.ones(8))
    history = empty_history(step, state, epoch, jnp.ones(10))
    with pytest.raises(ValueError, match=message):
        train_epoch(state, epoch, jnp.ones(8), history, 3, step=step)
    wrapped = epoch._replace(rest=-epoch.rest)
    with pytest.raises(ValueError, match="got -"):
        empty_history(step, state, wrapped, jnp.ones(10))


@pytest.mark.expects_nan
def test_traced_indices_of_examples_that_there_are_not_give_nan():
    """JAX would take the last example, or count from the end, silently."""
    state = probing_state()
    epoch = Epoch(np.array([[0, 1], [3, 4], [-1, 2]]), np.array([2]))
    history = {"examples": jnp.zeros(4), "noise": jnp.zeros(4)}
    take = jax.jit(functools.partial(train_epoch, step=probing_step()))
    _, history = take(state, epoch, jnp.ones(4), history, 4)
    np.testing.assert_array_equal(history["examples"], [2, np.nan, np.nan, 1])
    assert np.isnan(history["noise"]).tolist() == [False, True, True, False]


def test_an_epoch_of_other_batches_is_not_begun_in_its_middle():
    """After 2 epochs of 3 steps, one of 5: 6 % 5 would leave out its first batch."""
    data = 2.0 ** np.arange(10, dtype=np.float32)
    state = probing_state()
    for number in range(2):
        epoch = shuffled_epoch(ROOT, number, num_examples=10, batch_size=4)
        state, old = run_epoch(probing_step(), state, epoch, data)
    epoch = shuffled_epoch(ROOT, 2, num_examples=10, batch_size=2)
    message = "multiple of the 5 steps of an epoch, got 6.*first_step"
    with pytest.raises(ValueError, match=message):
        empty_history(probing_step(), state, epoch, data)
    take = jax.jit(functools.partial(train_epoch, step=probing_step()))
    with pytest.raises(ValueError, match="each of the epoch's 5 steps, got 3 of"):
        take(state, epoch, data, old, 5)
    history = empty_history(probing_step(), state, epoch, data, first_step=6)
    for stop in (2, 5):
        state, history = take(state, epoch, data, history, stop, first_step=6)
    assert state.step == 11
    assert sum(int(total) for total in history["examples"]) == 2**10 - 1


def test_an_epoch_is_the_steps_one_by_one(epoch_run):
    run, _ = epoch_run
    step = jax.jit(
        functools.partial(train_step, objective=elbo_objective(), optimizer=ADAM)
    )
    state = start(ADAM)
    epoch = shuffled_epoch(jax.random.key(1), 0, num_examples=10, batch_size=4)
    elbos = []
    for indices in np.asarray(epoch.batches):
        state, metrics = step(state, DATA[indices])
        elbos.append(metrics["elbo"])
    part, history = run((2,))
    np.testing.assert_allclose(history["elbo"][:2], np.stack(elbos), rtol=1e-5)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
        (part.params, part.average),
        (state.params, state.average),
    )


def test_pieces_of_any_length_and_all_epochs_are_one_trace(epoch_run):
    run, traces = epoch_run
    run((1, 2, 3), num_epochs=2)
    run((0, 10**6))
    assert len(traces) == 1


# Settings: leaves that nobody trains


@dataclass(frozen=True)
class ScaledGaussian(Family):
    """q(z|x) = N(s mean, 1) with a setting s, as a user writes a family."""

    hyperparameters = ("scale",)

    latent_space = "real"

    def num_outputs(self, dim):
        return dim

    def init(self, key, *, dim):
        return {"scale": jnp.full((), 0.5)}

    def build(self, params, outputs):
        mean = params["scale"] * outputs
        return DiagonalGaussianDistribution(mean, jnp.zeros_like(mean))


@dataclass(frozen=True)
class Wide(DiagonalGaussianPrior):
    """p(z) = N(mean, exp(log_var) I): the variance a setting, the mean learned."""

    hyperparameters = ("log_var",)


SETTINGS = replace(SPEC, posterior=ScaledGaussian(), prior=Wide())
SETTING_NAMES = {"posterior": "scale", "prior": "log_var", "likelihood": "log_var"}
OBJECTIVES = {
    "elbo": elbo_objective(),
    "MMD": elbo_objective(penalty=maximum_mean_discrepancy(1.0)),
    "total correlation": elbo_objective(penalty=total_correlation(2.0)),
    "DReG": importance_weighted_objective(
        num_samples=3, estimator=doubly_reparameterized
    ),
}


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_no_gradient_reaches_a_setting(objective):
    """Though the value depends on it, as finite differences show."""
    params = on_device(random_params(SETTINGS))

    @jax.jit
    @jax.value_and_grad
    def differentiate(params):
        return objective(params, BATCH, ROOT, 0)[0]

    value, gradient = differentiate(params)
    for part, name in SETTING_NAMES.items():
        own = getattr(params, part)
        moved = params.replace(**{part: own | {name: own[name] + 0.5}})
        assert differentiate(moved)[0] != value
        np.testing.assert_array_equal(getattr(gradient, part)[name], 0)
    assert np.all(np.asarray(gradient.prior["mean"]) != 0)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_a_loop_of_ones_own_leaves_settings_alone(decay):
    """optax alone, as README shows it: weight decay needs `optax.masked`."""
    optimizer = optax.adam(1e-2)
    if decay:
        optimizer = optax.masked(optax.adamw(1e-2, weight_decay=decay), trainable)
    params = on_device(random_params(SETTINGS))

    @jax.jit
    def step(number, carry):
        params, opt_state = carry
        key = jax.random.fold_in(ROOT, number)
        gradients = jax.grad(lambda p: -elbo(p, BATCH, key))(params)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    carry = (params, optimizer.init(params))
    after, _ = jax.lax.fori_loop(0, 100, step, carry)
    for part, name in SETTING_NAMES.items():
        np.testing.assert_array_equal(
            getattr(after, part)[name], getattr(params, part)[name]
        )
    moved = after.decoder["output"]["bias"] - params.decoder["output"]["bias"]
    assert np.all(np.abs(moved) > 0.01)
