"""Executors: one device or eight virtual ones, the same training.

`vmap` with a named axis is the oracle on one device: with `out_axes=None` it even
refuses to trace a state that differs between devices.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from specs import SPECS, random_params

from vae_jax import (
    capacity,
    elbo,
    elbo_objective,
    empty_history,
    encode,
    free_bits,
    init_state,
    jit_step,
    maximum_mean_discrepancy,
    pmap_step,
    run_keys,
    shard_batch,
    shard_epoch,
    shard_map_step,
    shuffled_epoch,
    total_correlation,
    train_epoch,
    train_step,
)
from vae_jax.parallel import AXIS

SPEC = dict(SPECS)["linear-gaussian"]
NOISELESS = dict(SPECS)["users-own-autoencoder"]  # No noise: gradients compare exactly.
EXECUTORS = {"pmap": pmap_step, "shard_map": shard_map_step}
executors = pytest.mark.parametrize("executor", EXECUTORS.values(), ids=EXECUTORS)


def devices(count):
    return jax.devices("cpu")[:count]


def data(spec, count):
    rng = np.random.default_rng(0)
    return rng.integers(0, 2, (count, spec.data_dim)).astype(np.float32)


ADAM, SGD = optax.adam(1e-2), optax.sgd(0.1)


@functools.partial(jax.jit, static_argnums=(0, 1))
def start(spec, optimizer):
    """A fresh state, as a donated one is gone."""
    return init_state(
        random_params(spec), jax.random.key(7), optimizer=optimizer, average=True
    )


def step_with(optimizer):
    return functools.partial(
        train_step, objective=elbo_objective(), optimizer=optimizer
    )


def assert_close(one, other, rtol=1e-5):
    check = functools.partial(np.testing.assert_allclose, rtol=rtol, atol=1e-6)
    jax.tree.map(check, one, other)


def vmap_step(step):
    mapped = jax.vmap(
        functools.partial(step, axis_name=AXIS),
        axis_name=AXIS,
        in_axes=(None, 0),
        out_axes=None,
    )
    return jax.jit(mapped)


def three_steps(take):
    state, batch = start(SPEC, ADAM), shard_batch(data(SPEC, 8), 4)
    for _ in range(3):
        state, metrics = take(state, batch)
    return state, metrics


@pytest.fixture(scope="module")
def oracle():
    return three_steps(vmap_step(step_with(ADAM)))


@pytest.mark.long
@executors
def test_three_adam_steps_are_those_of_vmap(executor, oracle):
    state, metrics = three_steps(executor(step_with(ADAM), devices=devices(4)))
    expected, expected_metrics = oracle
    assert_close((state.params, state.average), (expected.params, expected.average))
    assert_close(metrics, expected_metrics)
    # Replicated and unstacked: it looks the same for any number of devices.
    for leaf, twin in zip(
        jax.tree.leaves((state, metrics)), jax.tree.leaves(oracle), strict=True
    ):
        assert leaf.shape == twin.shape and leaf.dtype == twin.dtype
        assert leaf.sharding.is_fully_replicated and len(leaf.devices()) == 4


def test_each_device_draws_noise_of_its_own():
    """Four devices with the same examples are not one device with them."""
    x = np.repeat(data(SPEC, 1), 4, axis=0)[:, None]

    def noise(params, x, key, step, *, axis_name):
        value = jnp.sum(params.encoder["output"]["bias"])
        return value, {"square": jax.random.normal(key) ** 2}

    def step(state, batch, axis_name):
        return train_step(
            state, batch, objective=noise, optimizer=SGD, axis_name=axis_name
        )

    _, metrics = vmap_step(step)(start(SPEC, SGD), x)
    root = jax.random.fold_in(run_keys(jax.random.key(7)).noise, 0)
    squares = []
    for device in range(4):
        _, objective_key = jax.random.split(jax.random.fold_in(root, device))
        squares.append(jax.random.normal(objective_key) ** 2)
    assert len(set(map(float, squares))) == 4
    assert float(metrics["square"]) == pytest.approx(float(np.mean(squares)), rel=1e-6)


@pytest.fixture(scope="module")
def full_batch():
    """Parameters and metrics after one step along the gradient of all examples."""
    take = jit_step(step_with(SGD))
    after, metrics = take(start(NOISELESS, SGD), data(NOISELESS, 8))
    return after.params, metrics


@executors
@pytest.mark.parametrize("count", [2, 8])
def test_the_gradient_is_that_of_the_full_batch(executor, count, full_batch):
    """Not N times too large, and not one device's own."""
    take = executor(step_with(SGD), devices=devices(count))
    batch = shard_batch(data(NOISELESS, 8), count)
    after, metrics = take(start(NOISELESS, SGD), batch)
    assert_close((after.params, metrics), full_batch)


# Penalties of the batch as a whole

ENCODER_ALONE = dict(SPECS)["mlp-bernoulli"]


def of_the_batch(params, posterior, kl_divergence, key, step, *, axis_name=None):
    """Two penalties that are nonlinear in the batch, one's own as a user writes it."""
    arguments = (params, posterior, kl_divergence, key, step)
    penalties = free_bits(0.36), capacity(1.12)
    return sum(penalty(*arguments, axis_name=axis_name) for penalty in penalties)


def penalized(penalty):
    """A step whose noise reaches neither the encoder's gradient nor the value."""

    def step(state, batch, axis_name=None):
        output = state.params.decoder["output"]
        decoder = {
            **state.params.decoder,
            "output": jax.tree.map(jnp.zeros_like, output),
        }
        return train_step(
            dataclasses.replace(state, params=state.params.replace(decoder=decoder)),
            batch,
            objective=elbo_objective(penalty=penalty),
            optimizer=SGD,
            axis_name=axis_name,
        )

    return step


@pytest.fixture(scope="module")
def penalized_alone():
    x = data(ENCODER_ALONE, 8)
    posterior = encode(random_params(ENCODER_ALONE), x)
    kls = 0.5 * (jnp.exp(posterior.log_var) + posterior.mean**2 - 1 - posterior.log_var)
    of_devices = kls.reshape(4, 2, 3).mean(axis=1)
    # The mean of what each device would charge is another number.
    assert (
        np.ptp(np.maximum(of_devices, 0.36).mean(axis=0) - of_devices.mean(axis=0))
        > 0.01
    )
    assert of_devices.sum(axis=1).min() < 1.12 < of_devices.sum(axis=1).max()
    return jit_step(penalized(of_the_batch))(start(ENCODER_ALONE, SGD), x)


@pytest.mark.long
@pytest.mark.parametrize("name", ["vmap", *EXECUTORS])
def test_a_penalty_of_the_batch_is_that_of_one_device(name, penalized_alone):
    step = penalized(of_the_batch)
    take = (
        vmap_step(step) if name == "vmap" else EXECUTORS[name](step, devices=devices(4))
    )
    batch = shard_batch(data(ENCODER_ALONE, 8), 4)
    after, metrics = take(start(ENCODER_ALONE, SGD), batch)
    expected, expected_metrics = penalized_alone
    assert_close(
        (after.params.encoder, metrics), (expected.params.encoder, expected_metrics)
    )
    before = random_params(ENCODER_ALONE).encoder["output"]["bias"]
    assert np.abs(expected.params.encoder["output"]["bias"] - before).max() > 1e-3


@pytest.mark.parametrize(
    "penalty", [total_correlation(2.0), maximum_mean_discrepancy(1.0)]
)
def test_a_penalty_that_compares_examples_needs_one_device(penalty):
    step, x = penalized(penalty), data(SPEC, 8)
    with pytest.raises(
        ValueError, match=r"(total_corr|maximum_mean_)\w+ compares .* 4"
    ):
        jax.eval_shape(vmap_step(step), start(SPEC, SGD), shard_batch(x, 4))
    jax.eval_shape(vmap_step(step), start(SPEC, SGD), x[None])


def test_what_knows_nothing_of_devices_is_refused():
    """It could be nonlinear in the batch, and nothing would show it."""

    def largest(params, posterior, kl_divergence, key, step):
        return jnp.max(kl_divergence)

    def objective(params, x, key, step):
        return elbo(params, x, key), {}

    batch = shard_batch(data(SPEC, 8), 4)
    with pytest.raises(ValueError, match="penalty .*largest must take .* axis_name"):
        jax.eval_shape(vmap_step(penalized(largest)), start(SPEC, SGD), batch)
    step = functools.partial(train_step, objective=objective, optimizer=SGD)
    with pytest.raises(
        ValueError, match="objective .*objective must take .* axis_name"
    ):
        jax.eval_shape(vmap_step(step), start(SPEC, SGD), batch)
    jax.eval_shape(step, start(SPEC, SGD), batch[0])


@pytest.fixture(scope="module")
def one_device():
    return jit_step(step_with(SGD))(start(SPEC, SGD), data(SPEC, 8))


@executors
def test_one_device_is_jit_with_the_same_noise(executor, one_device):
    """To the last digit or so: the compiler may fuse the two programs differently."""
    take = executor(step_with(SGD), devices=devices(1))
    after, metrics = take(start(SPEC, SGD), shard_batch(data(SPEC, 8), 1))
    expected, expected_metrics = one_device
    check = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7)
    jax.tree.map(check, after.params, expected.params)
    jax.tree.map(check, metrics, expected_metrics)


@executors
def test_a_program_is_compiled_once(executor):
    """Though state and history come in on one device and go out on all of them."""
    compiled = []

    def listen(event, duration, **details):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    def step(state, batch, history, axis_name):
        state = state + jax.lax.pmean(jnp.sum(batch), axis_name)
        return state, history.at[0].add(state)

    take = executor(step, devices=devices(2))
    batch, history = jnp.ones((2, 3)), jnp.zeros(2)
    state, history = take(jnp.zeros(()), batch, history)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for _ in range(3):
            state, history = take(state, batch, history)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert state == 12 and history[0] == 3 + 6 + 9 + 12
    assert not compiled


@pytest.fixture(scope="module")
def epochs():
    """A whole epoch on one device, and in two pieces on two under both executors."""
    x = data(NOISELESS, 11)
    epoch = shuffled_epoch(jax.random.key(1), 0, num_examples=11, batch_size=4)

    step = step_with(ADAM)

    def run(compiled, order):
        state = start(NOISELESS, ADAM)
        history = empty_history(step, state, epoch, x)
        for stop in (1, 3):
            state, history = compiled(state, order, x, history, stop)
        return state, history

    whole = functools.partial(train_epoch, step=step)
    sharded = shard_epoch(epoch, 2)
    found = {
        name: run(executor(whole, devices=devices(2)), sharded)
        for name, executor in EXECUTORS.items()
    }
    return found | {"jit": run(jit_step(whole), epoch)}


@pytest.mark.long
@pytest.mark.parametrize("name", EXECUTORS)
def test_a_whole_epoch_is_that_of_one_device(name, epochs):
    """Without noise. The rest of 3 examples goes whole to each device."""
    (state, history), (expected, expected_history) = epochs[name], epochs["jit"]
    assert state.step == 3
    assert_close((state.params, state.average), (expected.params, expected.average))
    assert_close(history, expected_history)
    for leaf in jax.tree.leaves((state, history)):
        assert leaf.sharding.is_fully_replicated and len(leaf.devices()) == 2


def test_all_local_devices_are_the_default():
    def count(state, batch, axis_name):
        return state + jax.lax.psum(batch.sum(), axis_name)

    total = jax.local_device_count()
    for executor in EXECUTORS.values():
        assert executor(count)(jnp.zeros(()), jnp.ones((total, 1))) == total


# Cutting


def test_a_batch_is_cut_in_order():
    batch = {"x": jnp.arange(24).reshape(8, 3), "labels": jnp.arange(8)}
    cut = shard_batch(batch, 4)
    assert cut["x"].shape == (4, 2, 3) and cut["labels"].shape == (4, 2)
    np.testing.assert_array_equal(cut["labels"].ravel(), np.arange(8))
    np.testing.assert_array_equal(cut["x"].reshape(8, 3), batch["x"])


@pytest.mark.parametrize("count", [3, 5, 16])
def test_a_batch_that_does_not_divide_is_refused(count):
    with pytest.raises(ValueError, match=f"batch of 8 does not .* {count} devices"):
        shard_batch(jnp.zeros((8, 3)), count)


@pytest.mark.parametrize("num_examples", [11, 8, 3], ids=["rest", "full", "only_rest"])
def test_an_epoch_is_cut_batch_by_batch(num_examples):
    epoch = shuffled_epoch(
        jax.random.key(0), 0, num_examples=num_examples, batch_size=4
    )
    cut = shard_epoch(epoch, 2)
    num_batches = num_examples // 4
    assert cut.batches.shape == (2, num_batches, 2)
    assert cut.batch_sizes == (2,) * num_batches + ((3,) if num_examples % 4 else ())
    for t in range(num_batches):
        np.testing.assert_array_equal(cut.batches[:, t].ravel(), epoch.batches[t])
    for device in range(2):
        np.testing.assert_array_equal(cut.rest[device], epoch.rest)


def test_an_epoch_whose_batches_do_not_divide_is_refused():
    epoch = shuffled_epoch(jax.random.key(0), 0, num_examples=8, batch_size=4)
    with pytest.raises(ValueError, match="batch of 4 does not divide among 3 devices"):
        shard_epoch(epoch, 3)
