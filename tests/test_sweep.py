"""Many models in one program: each is the model that trains alone."""

import dataclasses
import functools
import json
import signal
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from specs import SPECS, random_params

import vae_jax
from experiments import (
    choices,
    evaluate,
    figures,
    mnist,
    sweep,
    sweep_chunks,
    sweep_report,
)
from experiments.runner import training
from experiments.runner.command_line import CommandFailed, Interrupted
from vae_jax import checkpoint

SPEC = dict(SPECS)["mlp-bernoulli"]
SETTINGS = {
    "beta": jnp.array([0.1, 1.0, 4.0, 1.0]),
    "learning_rate": jnp.array([1e-2, 1e-2, 3e-3, 1e-3]),
}
TINY = sweep.Config(
    dataset="digits",
    likelihood="bernoulli",
    epochs=2,
    hidden_dims=(16,),
    latent_dim=2,
    beta=(0.5, 2.0),
    num_seeds=2,
)


def step(state, batch, setting):
    return vae_jax.train_step(
        state,
        batch,
        objective=vae_jax.elbo_objective(beta=setting["beta"]),
        optimizer=optax.adam(setting["learning_rate"]),
    )


def data():
    rng = np.random.default_rng(0)
    return rng.integers(0, 2, (11, SPEC.data_dim)).astype(np.float32)


def state_of(seed):
    params = jax.tree.map(lambda leaf: leaf * (1 + seed / 10), random_params(SPEC))
    optimizer = optax.adam(1e-2)
    return vae_jax.init_state(
        params, jax.random.key(seed), optimizer=optimizer, average=True
    )


def order_of(seed):
    return vae_jax.shuffled_epoch(
        jax.random.key(seed), 0, num_examples=11, batch_size=4
    )


@functools.cache
def run_of(num_devices):
    return vae_jax.jit_sweep(step, devices=jax.devices()[:num_devices])


def start_together(settings):
    count = len(settings["beta"])
    states = vae_jax.stack_states([state_of(seed) for seed in range(count)])
    orders = [order_of(seed) for seed in range(count)]
    epochs = jax.tree.map(lambda *leaves: jnp.stack(leaves), *orders)
    history = vae_jax.empty_sweep_history(step, states, epochs, data(), settings)
    return states, epochs, history


def train_together(settings, num_devices=1, stops=(3,)):
    states, epochs, history = start_together(settings)
    for stop in stops:
        states, history = run_of(num_devices)(
            states, epochs, data(), history, stop, settings
        )
    return states, history


@functools.cache
def run_alone():
    def run(state, epoch, data, history, stop, setting):
        own = functools.partial(step, setting=setting)
        return vae_jax.train_epoch(state, epoch, data, history, stop, step=own)

    return jax.jit(run)


def train_alone(seed):
    setting, epoch = vae_jax.select(SETTINGS, seed), order_of(seed)
    own = functools.partial(step, setting=setting)
    state = state_of(seed)
    history = vae_jax.empty_history(own, state, epoch, data())
    return run_alone()(state, epoch, data(), history, 3, setting)


def assert_close(one, other, rtol=1e-5):
    def check(one, other):
        if jax.dtypes.issubdtype(one.dtype, jax.dtypes.prng_key):
            one, other = jax.random.key_data(one), jax.random.key_data(other)
        atol = 1e-6 if rtol else 0
        np.testing.assert_allclose(one, other, rtol=rtol, atol=atol)

    jax.tree.map(check, one, other)


@pytest.mark.long
@pytest.mark.parametrize("num_devices", [1, 4])
def test_each_model_is_the_one_that_trains_alone(num_devices):
    states, history = train_together(SETTINGS, num_devices)
    assert history["elbo"].shape == (3, 4)
    for seed in range(4):
        state, alone = train_alone(seed)
        assert_close(vae_jax.select(states, seed), state)
        own = {name: values[:, seed] for name, values in history.items()}
        assert_close(own, alone)


def test_a_history_is_of_batches_as_large_as_those_of_the_epoch():
    """Distances between the examples of a batch need two."""

    def apart(state, batch, setting):
        penalty = vae_jax.MaximumMeanDiscrepancy(setting["weight"])
        objective = vae_jax.ELBO(penalty=penalty)
        return vae_jax.train_step(
            state, batch, objective=objective, optimizer=optax.adam(1e-2)
        )

    settings = {"weight": jnp.array([1.0, 2.0])}
    states = vae_jax.stack_states([state_of(0), state_of(1)])
    epochs = jax.tree.map(lambda *leaves: jnp.stack(leaves), order_of(0), order_of(1))
    history = vae_jax.empty_sweep_history(apart, states, epochs, data(), settings)
    assert history["elbo"].shape == (3, 2)


@pytest.mark.long
def test_an_epoch_in_pieces_is_the_epoch_to_the_bit():
    whole, whole_history = train_together(SETTINGS)
    pieces, history = train_together(SETTINGS, stops=(1, 2, 3))
    assert_close((pieces, history), (whole, whole_history), rtol=0)


@pytest.mark.expects_nan
def test_a_model_that_turns_non_finite_stays_alone_with_it():
    rates = SETTINGS["learning_rate"].at[1].set(1e38)
    states, history = train_together(SETTINGS | {"learning_rate": rates})
    healthy, healthy_history = train_together(SETTINGS)
    others = np.array([0, 2, 3])
    assert not np.isfinite(history["elbo"][-1, 1])
    assert_close(
        vae_jax.select(states, others), vae_jax.select(healthy, others), rtol=0
    )
    np.testing.assert_array_equal(
        history["elbo"][:, others], healthy_history["elbo"][:, others]
    )


def test_a_model_taken_out_of_a_running_sweep_stays_alive():
    """The sweep's state is donated; what was handed in and taken out is not."""
    alone = [state_of(seed) for seed in range(4)]
    states = vae_jax.stack_states(alone)
    orders = [order_of(seed) for seed in range(4)]
    epochs = jax.tree.map(lambda *leaves: jnp.stack(leaves), *orders)
    history = vae_jax.empty_sweep_history(step, states, epochs, data(), SETTINGS)
    taken = vae_jax.select(states, 1)
    run_of(1)(states, epochs, data(), history, 1, SETTINGS)
    assert int(taken.step) == int(alone[0].step) == 0
    assert_close(taken, alone[1], rtol=0)


@pytest.mark.long
def test_a_sweep_is_on_the_device_it_is_given():
    device = jax.devices()[2]
    run = vae_jax.jit_sweep(step, devices=[device])
    states = vae_jax.stack_states([state_of(0)])
    epochs = jax.tree.map(lambda leaf: leaf[None], order_of(0))
    settings = {name: values[:1] for name, values in SETTINGS.items()}
    history = vae_jax.empty_sweep_history(step, states, epochs, data(), settings)
    states, history = run(states, epochs, data(), history, 0, settings)
    places = {leaf.device for leaf in jax.tree.leaves((states, history))}
    assert places == {device}


def test_a_sweep_of_seeds_alone_needs_no_settings():
    def plain(state, batch, setting):
        return step(state, batch, {"beta": 1.0, "learning_rate": 1e-2})

    states = vae_jax.stack_states([state_of(0), state_of(1)])
    epochs = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), order_of(0))
    history = vae_jax.empty_sweep_history(plain, states, epochs, data(), {})
    shape = jax.eval_shape(
        vae_jax.jit_sweep(plain), states, epochs, data(), history, 1, {}
    )[1]["elbo"].shape
    assert history["elbo"].shape == shape == (3, 2)


def test_models_that_do_not_divide_among_devices_are_refused():
    three = jax.tree.map(lambda leaf: leaf[:3], SETTINGS)
    with pytest.raises(ValueError, match="3 models do not divide among 4 devices"):
        train_together(three, num_devices=4)


def test_only_states_of_one_kind_and_step_are_stacked():
    state = state_of(0)
    with pytest.raises(ValueError, match="at least one"):
        vae_jax.stack_states([])
    later = vae_jax.TrainState(
        state.params, state.opt_state, state.step + 1, state.key, state.average
    )
    with pytest.raises(ValueError, match=r"one step, got \[0, 1\]"):
        vae_jax.stack_states([state, later])
    without = vae_jax.TrainState(
        state.params, state.opt_state, state.step, state.key, None
    )
    with pytest.raises(ValueError, match="2 structures"):
        vae_jax.stack_states([state, without])


def test_a_model_is_selected_by_its_number():
    states = vae_jax.stack_states([state_of(0), state_of(1)])
    one = vae_jax.select(states, 1)
    assert_close(one, state_of(1), rtol=0)
    assert one.params.spec == SPEC
    for index in (2, np.int64(-3), jnp.array([0, 99])):
        with pytest.raises(IndexError, match="a model of 2, got"):
            vae_jax.select(states, index)
    traced = jax.jit(vae_jax.select)(states.params, 1)
    assert_close(traced, one.params, rtol=0)


def test_a_checkpoint_of_many_gives_each(tmp_path):
    states = vae_jax.stack_states([state_of(seed) for seed in range(3)])
    extra = {"elbo": jnp.zeros((1, 3))}
    checkpoint.save(tmp_path / "checkpoints" / "7", states, spec=SPEC, extra=extra)
    found = vae_jax.load_run(tmp_path, model=2)
    assert_close(found, state_of(2).average, rtol=0)
    for model in (None, 3, -1):
        with pytest.raises(ValueError, match=f"holds 3 models: .* 0 to 2, got {model}"):
            vae_jax.load_run(tmp_path, model=model)
    checkpoint.save(tmp_path / "one" / "checkpoints" / "7", state_of(0), spec=SPEC)
    with pytest.raises(ValueError, match="model is 0, but .* a single one"):
        vae_jax.load_run(tmp_path / "one", model=0)


@pytest.fixture
def no_pictures(monkeypatch):
    monkeypatch.setattr(sweep_report, "draw_all", lambda *args: None)
    monkeypatch.setattr(figures, "draw_all", lambda *args, **kwargs: [])


def run_tiny(folder, **changes):
    return sweep.run(dataclasses.replace(TINY, run_dir=str(folder), **changes))


def measures_of(results):
    return {
        name: [model[name] for model in results["models"]]
        for name in ("test_elbo", "rate", "distortion", "active_units")
    }


@pytest.mark.long
def test_a_sweep_is_its_single_runs(tmp_path, no_pictures):
    options = {"beta_warmup_epochs": (0.0, 0.5), "evaluation_samples": 3}
    results = run_tiny(tmp_path / "sweep", **options)
    singles = sweep.grid(dataclasses.replace(TINY, **options))
    assert len(results["models"]) == len(singles) == 8
    # Half an epoch of warm-up, the second seed.
    single = dataclasses.replace(singles[3], run_dir=str(tmp_path / "alone"))
    alone, row = mnist.run(single), results["models"][3]
    assert (row["beta_warmup_epochs"], row["seed"]) == (0.5, 1)
    figures = (
        alone["test_elbo"],
        alone["test_kl_divergence"],
        -alone["test_log_likelihood"],
        alone["importance_weighted_log_likelihood"],
    )
    found = [row[name] for name in ("test_elbo", "rate", "distortion", "log_evidence")]
    np.testing.assert_allclose(found, figures, rtol=1e-4)
    assert_close(
        vae_jax.load_run(tmp_path / "sweep", model=3),
        vae_jax.load_run(tmp_path / "alone"),
        rtol=1e-3,
    )


@pytest.mark.long
def test_turns_change_nothing_and_go_on_within_an_epoch():
    """The last turn is short of models; two turns begin where the first did."""
    train, compiled = sweep_chunks.in_chunks(run_of(1), data(), SETTINGS)
    even = sweep_chunks.Chunks.of(4, at_once=3, num_devices=1, reason="")
    assert even.indices.tolist() == [[0, 1], [2, 3]]
    chunks = sweep_chunks.Chunks(np.array([[0, 1, 2], [3, 3, 3]]), reason="")
    states, epochs, history = start_together(SETTINGS)
    program = compiled(chunks.indices[0], states, epochs, history)
    for stop in (2, 3):
        states, history = train(program, chunks, states, epochs, history, stop)
        assert states.step == stop
    together, expected = train_together(SETTINGS)
    assert_close(states, together)
    assert_close(history, expected)


@pytest.mark.slow
def test_chunks_change_nothing(tmp_path, no_pictures, monkeypatch):
    """Also where the last turn is short of models, and on other devices."""
    whole = run_tiny(tmp_path / "whole", num_seeds=3)
    assert whole["models_at_once"] == 6
    chunks = run_tiny(tmp_path / "chunks", num_seeds=3, models_at_once=4, num_devices=4)
    assert chunks["models_at_once"] == 4
    for name in ("test_elbo", "rate", "distortion"):
        np.testing.assert_allclose(
            measures_of(chunks)[name], measures_of(whole)[name], rtol=1e-4
        )


@pytest.mark.slow
def test_a_model_of_a_sweep_is_evaluated_by_its_number(tmp_path, no_pictures, capsys):
    results = run_tiny(tmp_path, epochs=1, num_seeds=1)
    options = {"num_gap": 2, "gap_steps": 2, "num_annealed": 0, "evaluation_samples": 2}
    found = evaluate.run(
        evaluate.Config(str(tmp_path), model=1, fitted_components=0, **options)
    )
    assert found["elbo"] == pytest.approx(results["models"][1]["test_elbo"])
    assert "beta 2," in capsys.readouterr().out
    assert (tmp_path / "model-1" / "evaluation.json").exists()
    for model, message in (
        (None, "--model must name one of the sweep's models: it had no validation"),
        (2, "--model must be one of the sweep's 0 to 1, got 2"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate.run(evaluate.Config(str(tmp_path), model=model))


def test_as_many_models_at_once_as_there_is_memory_for():
    class Program:
        def __init__(self, size):
            self.size = size

        def memory_analysis(self):
            return SimpleNamespace(
                temp_size_in_bytes=100 * self.size,
                argument_size_in_bytes=50 * self.size,
                output_size_in_bytes=50 * self.size,
                alias_size_in_bytes=50 * self.size,
            )

    compiled = []

    def compile_these(indices):
        compiled.append(len(indices))
        return Program(len(indices))

    def chosen(free, num_models=12, **changes):
        options = {"at_once": None, "num_devices": 1, "state_bytes": 0} | changes
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sweep_chunks, "free_bytes", lambda: free)
            chunks, _ = sweep_chunks.compile_chunks(
                compile_these, num_models, **options
            )
        return chunks

    # Each takes 150 bytes, and 0.8 of what is free may be used.
    assert chosen(2250).indices.tolist() == [list(range(12))]
    tight = chosen(2249)
    assert tight.indices.tolist() == [list(range(6)), list(range(6, 12))]
    assert "6 at once: 12 would need" in tight.reason
    assert chosen(0).indices.shape == (12, 1)
    assert chosen(0, num_devices=4).indices.shape == (3, 4)
    # Two turns would do, if the state of all were not held beside them.
    assert chosen(2249, state_bytes=1000).indices.shape == (4, 3)
    assert chosen(2250, state_bytes=1000).indices.shape == (1, 12)
    asked = chosen(0, num_models=7, at_once=3)
    assert asked.indices.tolist() == [[0, 1, 2], [3, 4, 5], [6, 6, 6]]
    assert sweep_chunks.free_bytes() > 2**20


@pytest.mark.long
def test_an_interrupted_sweep_goes_on_exactly(tmp_path, no_pictures, monkeypatch):
    whole = run_tiny(tmp_path / "whole")
    show = training.Run._show

    def interrupt(run, step, *figures):
        show(run, step, *figures)
        if step == 2:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(training.Run, "_show", interrupt)
    # A step a piece, so that the signal comes in the middle of an epoch.
    monkeypatch.setattr(training, "SECONDS_PER_PIECE", 0.0)
    with pytest.raises(Interrupted):
        run_tiny(tmp_path / "parts")
    assert checkpoint.steps(tmp_path / "parts" / "checkpoints") == [2]
    monkeypatch.setattr(training.Run, "_show", show)
    parts = run_tiny(tmp_path / "parts")
    assert measures_of(parts) == measures_of(whole)


@pytest.mark.long
def test_a_model_of_finite_weights_and_no_elbo_is_not_the_best(
    tmp_path, no_pictures, capsys
):
    results = run_tiny(tmp_path, num_seeds=1, learning_rate=(1e9, 1e-3), epochs=1)
    params = [vae_jax.load_run(tmp_path, model=model) for model in range(4)]
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    assert [model["finite"] for model in results["models"]] == [False, True] * 2
    assert results["best_model"] is None  # There are no validation data.
    assert [row["num_finite"] for row in results["settings"]] == [0, 1] * 2
    assert "WARNING: model 0, beta 0.5" in capsys.readouterr().out


@pytest.mark.long
def test_a_model_that_fails_is_reported_and_the_others_go_on(
    tmp_path, no_pictures, capsys
):
    results = run_tiny(tmp_path, num_seeds=1, learning_rate=(1e-3, 1e30))
    assert [model["finite"] for model in results["models"]] == [True, False] * 2
    assert [bad["model"] for bad in results["not_finite"]] == [1, 3]
    assert results["not_finite"][0]["epoch"] == 1
    assert (
        json.loads((tmp_path / "results.json").read_text())["models"][1]["test_elbo"]
        is None
    )
    printed = capsys.readouterr().out
    assert "WARNING: model 1, beta 0.5, learning_rate 1e+30, seed 0, is not" in printed
    with pytest.raises(CommandFailed, match="not finite at step"):
        run_tiny(tmp_path / "all", num_seeds=1, learning_rate=(1e30, 1e31))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"free_bits": ()}, "--free_bits must have one value or more"),
        ({"beta": (1.0, 1.0)}, "--beta must name each value once"),
        ({"beta": (1.0, -1.0)}, "--beta must be at least 0, got -1"),
        ({"num_seeds": 0}, "--num_seeds must be at least 1, got 0"),
        ({"models_at_once": 0}, "--models_at_once must be at least 1, got 0"),
        ({"num_devices": 99}, "--num_devices is 99, but there are 8"),
        ({"binarization": "fixed"}, "--num_seeds must be 1"),
        ({"free_bits": (0.1,), "capacity": (1.0,)}, "exclude one another"),
        ({"free_bits": (0.0, 0.1), "capacity": (0.0,)}, "exclude one another"),
        ({"tc_weight": (1.0, 2.0)}, "only --objective=beta_tc uses it, got elbo"),
        (
            {"free_bits_per": "example"},
            "only --free_bits other than 0.0 uses it, got 0.0",
        ),
        ({"rank": 3}, "only --posterior=low_rank uses it, got diagonal"),
        ({"variance": (1.0, 2.0)}, "only --likelihood=gaussian uses it, got bernoulli"),
        ({"num_processes": 2}, "one process: --num_processes"),
    ],
)
def test_what_no_sweep_can_have_is_refused(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run_tiny(tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_without_values_of_beta_there_are_the_usual_ones_or_1_for_a_bound():
    plain = sweep.with_betas(sweep.Config())
    assert plain.beta == (0.1, 0.3, 1.0, 3.0, 10.0)
    bound = sweep.with_betas(sweep.Config(objective="iwae", num_samples=5))
    assert [single.beta for single in sweep.grid(bound)] == [1.0]
    sweep.check(bound)


@pytest.mark.parametrize("per", ["unit", "example"])
def test_no_free_bits_leave_every_kl_alone(per):
    """Beside a model with free bits, one without is still its single run."""
    nats = choices.settings(mnist.Config())["free_bits"]
    spec = vae_jax.ModelSpec(vae_jax.MLP((4,)), vae_jax.MLP((4,)), data_shape=(5,))
    params = random_params(spec)
    none = vae_jax.elbo_objective(penalty=vae_jax.free_bits(nats, per=per))
    x, key = jnp.ones((3, 5)), jax.random.key(1)
    value, metrics = jax.jit(none)(params, x, key, 0)
    assert float(value) == pytest.approx(float(metrics["elbo"]), rel=1e-6)
    assert choices.settings(mnist.Config(free_bits=0.5))["free_bits"] == 0.5


def example_results():
    rows = [
        {"beta": beta, "seed": seed, "finite": beta < 4}
        | {"test_elbo": -beta - seed, "rate": 1.0 + seed, "distortion": beta}
        | {"active_units": 2, "log_evidence": None, "validation_elbo": -2.0 - beta}
        for beta in (0.5, 1.0, 4.0)
        for seed in (0, 1)
    ]
    return {
        "dataset": "digits",
        "swept": ["beta"],
        "models": rows,
        "settings": sweep_report.over_seeds(rows, ["beta"]),
        "not_finite": [{"model": 4, "epoch": 3}],
        "images_per_second": 1234.0,
    }


def test_settings_are_means_over_seeds_with_standard_errors():
    half, one, four = example_results()["settings"]
    assert half["test_elbo"] == {"mean": -1.0, "standard_error": 0.5}
    assert one["rate"]["mean"] == 1.5
    assert four["num_finite"] == 0 and four["test_elbo"]["mean"] is None


def test_the_table_names_the_best_first():
    results = example_results() | {"collapsed": [1]}
    lines = sweep_report.table(results, "folder", remedies="less").splitlines()
    assert lines[1].split()[4:7] == ["-1.00", "+-", "0.50"]
    assert [line.split()[0] for line in lines[1:4]] == ["0.5", "1", "4"]
    best = "best validation ELBO: model 0, beta 0.5, seed 0; its test ELBO -0.50"
    assert best in lines
    assert "WARNING: model 4, beta 4, seed 0, is not finite since epoch 3" in lines
    (collapse,) = (line for line in lines if "posterior collapse" in line)
    assert "of the models, model 1, beta 0.5" in collapse
    assert collapse.endswith("start anew with less")
    results["not_finite"][0]["epoch"] = None
    table = sweep_report.table(results, "folder", remedies="less")
    assert "model 4, beta 4, seed 0, is not finite at the end\n" in table


def test_without_validation_data_the_order_is_that_of_the_flags():
    results = example_results() | {"collapsed": []}
    models = [row | {"validation_elbo": None} for row in results["models"][::-1]]
    results |= {"models": models, "settings": sweep_report.over_seeds(models, ["beta"])}
    lines = sweep_report.table(results, "folder", remedies="less").splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["4", "1", "0.5"]
    assert not [line for line in lines if line.startswith("best")]
    assert "no model is chosen, and none on the test set" in "".join(lines)


def test_the_figures_of_a_sweep_show_each_setting(tmp_path):
    results = example_results()
    metrics = [
        {"epoch": epoch, "split": "test", "elbo": [-2.0, -1.0, -3.0, -1.5, None, -4.0]}
        for epoch in (1, 2, 3)
    ]
    sweep_report.draw_all(tmp_path, results, metrics)
    assert {path.name for path in tmp_path.iterdir()} == {
        "rate_distortion.png",
        "training_curves.png",
    }
    axes = sweep_report.draw_rate_distortion(results).axes[0]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["beta 0.5", "beta 1"]
    curves = sweep_report.draw_training_curves(results, metrics).axes[0].lines
    assert len(curves) == 6
    np.testing.assert_array_equal(curves[2].get_ydata(), [-3, -3, -3])
