"""Optimizers and schedules against their formulas, other code, and refusals."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vae_jax
from experiments import choices, figures, mnist, optimizers, sweep
from experiments.defaults import resolve
from experiments.mnist import Config
from vae_jax import data

TINY = Config(
    dataset="digits",
    likelihood="bernoulli",
    hidden_dims=(16,),
    latent_dim=2,
    evaluation_samples=0,
    epochs=2,
    schedule="constant",
    learning_rate=1e-3,
)


@pytest.fixture
def no_pictures(monkeypatch):
    monkeypatch.setattr(figures, "draw_all", lambda *args, **kwargs: [])
    monkeypatch.setattr(sweep.sweep_report, "draw_all", lambda *args: None)


def rates(schedule, num_steps, warmup_steps=0):
    made = optimizers.Recipe("adam", schedule, warmup_steps, num_steps, 0.0, None)
    return np.asarray(jax.vmap(made.relative_rate)(jnp.arange(num_steps)))


@pytest.mark.parametrize(
    ("schedule", "formula"),
    [
        ("constant", lambda t: np.ones_like(t)),
        ("cosine", lambda t: (1 + np.cos(np.pi * t)) / 2),
        ("linear", lambda t: 1 - t),
        ("exponential", lambda t: 0.01**t),
    ],
)
def test_a_schedule_is_its_formula(schedule, formula):
    np.testing.assert_allclose(
        rates(schedule, 80), formula(np.arange(80) / 80), atol=1e-6
    )
    risen = np.concatenate([np.arange(20) / 20, formula(np.arange(60) / 60)])
    np.testing.assert_allclose(rates(schedule, 80, 20), risen, atol=1e-6)


def test_cosine_with_warmup_is_that_of_optax():
    theirs = optax.warmup_cosine_decay_schedule(0.0, 1.0, 20, 80)
    ours = rates("cosine", 80, 20)
    np.testing.assert_allclose(ours, [theirs(step) for step in range(80)], atol=1e-6)


def test_burda_has_3_to_the_i_passes_at_10_to_the_minus_i_over_7():
    """The loop of the authors' experiment.py, two steps a pass."""
    theirs = [10 ** (-i / 7) for i in range(8) for _ in range(2 * 3**i)]
    np.testing.assert_allclose(rates("burda", 2 * 3280), theirs, rtol=1e-6)
    # In a run that is too short for all of the stages a step falls into a later one.
    short = [theirs[2 * 3280 * step // 100] for step in range(100)]
    np.testing.assert_allclose(rates("burda", 100), short, rtol=1e-6)


def stepped(config, gradients, *, num_steps=1):
    made = optimizers.recipe(resolve(config, data.load("digits")), num_examples=1437)
    optimizer = made.at_rate(config.learning_rate)
    params = jax.tree.map(jnp.ones_like, gradients)
    state = optimizer.init(params)
    for _ in range(num_steps):
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    return jax.tree.map(np.asarray, params)


def test_each_optimizer_takes_the_step_of_its_paper():
    g, rate = {"w": jnp.array([3.0, -4.0])}, 0.1
    config = dataclasses.replace(TINY, learning_rate=rate)
    steps = {
        "sgd": 1 - rate * np.array([3.0, -4.0]),
        # After one step both moments of Adam are the gradient's own.
        "adam": 1 - rate * np.array([1.0, -1.0]),
        "adamw": 1 - rate * np.array([1.0, -1.0]) - rate * 0.01,
        "rmsprop": 1 - rate * np.array([1.0, -1.0]) / math.sqrt(0.1),
        "optax:sgd(momentum=0.9)": 1 - rate * np.array([3.0, -4.0]),
    }
    for name, expected in steps.items():
        found = stepped(dataclasses.replace(config, optimizer=name), g)["w"]
        np.testing.assert_allclose(found, expected, rtol=1e-5, err_msg=name)
    decayed = dataclasses.replace(config, optimizer="adamw", weight_decay=0.5)
    np.testing.assert_allclose(stepped(decayed, g)["w"], [0.85, 1.05], rtol=1e-5)


def test_the_gradient_is_clipped_by_its_whole_norm():
    gradients = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    config = dataclasses.replace(TINY, optimizer="sgd", learning_rate=1.0)
    for norm, share in ((1.0, 0.2), (10.0, 1.0), (None, 1.0)):
        found = stepped(dataclasses.replace(config, clip_norm=norm), gradients)
        np.testing.assert_allclose(found["a"], 1 - 3 * share, rtol=1e-6)
        np.testing.assert_allclose(found["b"], 1 - 4 * share, rtol=1e-6)


def test_an_optimizer_of_ones_own_is_given_the_schedule():
    """Plain descent: the weight has moved by the rates, summed over the steps."""
    config = dataclasses.replace(
        TINY, optimizer="optax:sgd", schedule="linear", warmup_steps=6
    )
    found = stepped(config, {"w": jnp.ones(1)}, num_steps=12)["w"]
    total = config.learning_rate * rates("linear", 24, 6)[:12].sum()
    assert 1 - found[0] == pytest.approx(total, rel=1e-3)


@pytest.mark.long
def test_weight_decay_takes_its_share_of_weights_and_none_of_settings():
    digits = data.load("digits")

    def after_a_step(**changes):
        config = dataclasses.replace(TINY, likelihood="gaussian", variance=0.25)
        config = resolve(dataclasses.replace(config, **changes), digits)
        state = mnist.initial_state(config, choices.model_spec(config, digits), digits)
        moved, _ = mnist.training_step(
            state,
            jnp.asarray(digits.train[:8]),
            choices.settings(config),
            config=config,
            dataset=digits,
        )
        return state.params, moved.params

    _, plain = after_a_step()
    before, decayed = after_a_step(optimizer="adamw", weight_decay=10.0)
    assert float(decayed.likelihood["log_var"]) == np.float32(math.log(0.25))
    for name in ("encoder", "decoder"):
        jax.tree.map(
            lambda old, free, found: np.testing.assert_allclose(
                found, free - TINY.learning_rate * 10.0 * old, atol=1e-6
            ),
            *(getattr(params, name) for params in (before, plain, decayed)),
        )


RECIPE = {
    "optimizer": "optax:adam(b2=0.99)",
    "schedule": "cosine",
    "warmup_steps": 4,
    "clip_norm": 100.0,
}


@pytest.mark.long
def test_a_model_of_a_sweep_is_its_own_run(tmp_path, no_pictures):
    config = sweep.Config(
        dataset="digits",
        likelihood="bernoulli",
        hidden_dims=(16,),
        latent_dim=2,
        epochs=2,
        beta=(1.0,),
        learning_rate=(1e-3, 5e-3),
        run_dir=str(tmp_path / "sweep"),
        **RECIPE,
    )
    models = sweep.run(config)["models"]
    for number, rate in enumerate(config.learning_rate):
        folder = str(tmp_path / str(number))
        single = mnist.run(
            dataclasses.replace(TINY, learning_rate=rate, run_dir=folder, **RECIPE)
        )
        assert models[number]["test_elbo"] == (
            pytest.approx(single["test_elbo"], abs=1e-3)
        )
    assert models[0]["test_elbo"] != models[1]["test_elbo"]


@pytest.mark.long
def test_a_run_that_was_planned_longer_goes_on_to_the_bit(tmp_path, no_pictures):
    """And one whose schedule has ended is another run."""
    whole, parts = str(tmp_path / "whole"), str(tmp_path / "parts")
    recipe = RECIPE | {"beta_warmup_epochs": 0.5}
    config = dataclasses.replace(TINY, run_dir=parts, **recipe)
    mnist.run(dataclasses.replace(config, epochs=1, schedule_epochs=2))
    mnist.run(config)
    assert json.loads((tmp_path / "parts/config.json").read_text())["schedule"] == (
        "cosine"
    )
    mnist.run(dataclasses.replace(config, run_dir=whole))
    jax.tree.map(
        np.testing.assert_array_equal, vae_jax.load_run(whole), vae_jax.load_run(parts)
    )
    with pytest.raises(ValueError, match="schedule_epochs 2 there, 3 here"):
        mnist.run(dataclasses.replace(config, epochs=3))


def test_schedules_of_beta_and_capacity_are_of_one_length_too():
    digits = data.load("digits")
    for changes in ({"beta_cycles": 2}, {"capacity": 3.0}, {"schedule": "linear"}):
        config = dataclasses.replace(TINY, **changes)
        assert resolve(config, digits).schedule_epochs == 2
        longer = dataclasses.replace(config, schedule_epochs=5)
        assert resolve(longer, digits).schedule_epochs == 5
    assert resolve(TINY, digits).schedule_epochs is None
    planned = dataclasses.replace(TINY, beta_cycles=2, schedule_epochs=5)
    planned = resolve(planned, digits)
    objective = choices.objective(
        planned, choices.settings(planned), steps_per_epoch=12
    )
    assert objective.beta.period == 30


def test_the_default_is_a_schedule_that_suits_the_run():
    digits = data.load("digits")

    def resolved(**changes):
        config = resolve(Config(dataset="digits", **changes), digits)
        return config.schedule, config.warmup_steps, config.learning_rate

    assert resolved(epochs=200) == ("cosine", 200, 0.005)
    assert resolved(epochs=10) == ("cosine", 12, 0.005)
    # A part of a longer run rises like the whole.
    assert resolved(epochs=10, schedule_epochs=200) == ("cosine", 200, 0.005)
    assert resolved(schedule="constant") == ("constant", 0, 0.001)
    assert resolved(optimizer="rmsprop", epochs=200) == ("cosine", 200, 0.001)
    assert resolved(learning_rate=0.1, warmup_steps=0) == ("cosine", 0, 0.1)
    plain = sweep.Config(dataset="digits", beta=(1.0,), epochs=200)
    (single,) = sweep.grid(plain)
    assert resolve(single, digits).learning_rate == 0.005


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"warmup_steps": 24}, "--warmup_steps must be below the 24 steps"),
        (
            {"schedule": "cosine", "schedule_epochs": 1},
            "--schedule_epochs must be at least --epochs 2, got 1",
        ),
        (
            {"optimizer": "optax:adam(0.1)"},
            "rate by --learning_rate, and give other",
        ),
        (
            {"optimizer": "optax:adam(learning_rate=0.1)"},
            "rate by --learning_rate",
        ),
        ({"optimizer": "optax:adam(b3=1)"}, "unexpected keyword argument 'b3'"),
        ({"optimizer": "optax:lbfgs"}, "gradients, state and parameters alone"),
        ({"optimizer": "optax:constant_schedule"}, r"called as optimizer\(learning_"),
        ({"optimizer": "builtins:dict"}, "fails: 'dict' object is not callable"),
        ({"optimizer": "collections:namedtuple"}, "is called as optimizer"),
        ({"optimizer": "nadam"}, "--optimizer must be one of adam, adamw"),
        ({"weight_decay": 0.1}, "--weight_decay 0.1 has no effect"),
        ({"clip_norm": 0.0}, "--clip_norm must be positive and finite, got 0.0"),
        ({"clip_norm": math.nan}, "--clip_norm must be positive and finite, got nan"),
        ({"warmup_steps": -1}, "--warmup_steps must be at least 0, got -1"),
    ],
)
def test_what_no_run_can_have_is_refused_before_it_begins(tmp_path, changes, message):
    folder = tmp_path / "run"
    config = dataclasses.replace(TINY, run_dir=str(folder), **changes)
    with pytest.raises(ValueError, match=message):
        mnist.run(config)
    assert not folder.exists()


def no_optimizer(learning_rate):
    return learning_rate


def test_a_function_that_makes_no_optimizer_is_refused():
    config = dataclasses.replace(TINY, optimizer=f"{__name__}:no_optimizer")
    with pytest.raises(ValueError, match="must return an optax.GradientTransformation"):
        mnist.check(config)


def injected(learning_rate):
    """Adam that keeps its rate in its state."""
    return optax.inject_hyperparams(optax.adam)(learning_rate=learning_rate)


def test_an_optimizer_that_keeps_its_rate_trains_at_it():
    digits = data.load("digits")
    states = []
    for rate in (1e-4, 1e-2):
        own = f"{__name__}:injected"
        config = dataclasses.replace(TINY, optimizer=own, learning_rate=rate)
        config = resolve(config, digits)
        spec = choices.model_spec(config, digits)
        states.append(mnist.initial_state(config, spec, digits))
    for state, rate in zip(states, (1e-4, 1e-2), strict=True):
        kept = [
            float(leaf) for leaf in jax.tree.leaves(state.opt_state) if leaf.size == 1
        ]
        assert np.isclose(kept, rate).any(), kept


def test_the_warmup_of_beta_is_that_of_the_planned_length():
    """A first part of a run has the warm-up of the whole."""
    digits = data.load("digits")
    config = dataclasses.replace(TINY, schedule="cosine", batch_size=512)
    whole = dataclasses.replace(config, epochs=40)
    part = dataclasses.replace(config, epochs=4, schedule_epochs=40)
    found = [resolve(each, digits).beta_warmup_epochs for each in (whole, part)]
    assert found[0] == found[1] == 20
