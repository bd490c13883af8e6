"""`python -m experiments.mnist` as its users meet it: runs, resumes, refusals."""

import dataclasses
import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vae_jax
from experiments import (
    choices,
    datasets,
    defaults,
    evaluation,
    evaluation_data,
    figures,
    mnist,
    sweep,
)
from experiments.mnist import Config, check
from experiments.runner import run_folder, training
from experiments.runner.checkpoints import fail_not_finite
from experiments.runner.command_line import CommandFailed, parse
from vae_jax import checkpoint, data
from vae_jax.distributions import closed_form_kl
from vae_jax.model import at_labels, build_prior

ROOT = Path(__file__).parents[2]
TINY = Config(
    dataset="digits",
    likelihood="bernoulli",
    epochs=2,
    # One that falls depends on the epochs: the run could not go on to others.
    schedule="constant",
    beta_warmup_epochs=0.0,
    hidden_dims=(16,),
    latent_dim=2,
    evaluation_samples=0,
)


@pytest.fixture
def no_pictures(monkeypatch):
    """Drawing takes seconds and has tests of its own."""
    monkeypatch.setattr(figures, "draw_all", lambda *args, **kwargs: [])


def run_tiny(folder, **changes):
    return mnist.run(dataclasses.replace(TINY, run_dir=str(folder), **changes))


def rows_of(folder):
    """Rows of metrics.jsonl, without what a clock put there."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    for row in rows:
        row.pop("images_per_second")
    return rows


def figures_of(results):
    return {
        name: value
        for name, value in results.items()
        if name.startswith(("test_", "importance_", "step"))
    }


def assert_same_run(folder, other):
    """Same parameters to the bit, same metrics, each epoch and split once."""
    params, twin = vae_jax.load_run(folder), vae_jax.load_run(other)
    jax.tree.map(np.testing.assert_array_equal, params, twin)
    assert rows_of(folder) == rows_of(other)
    labels = [(row["epoch"], row["split"]) for row in rows_of(folder)]
    assert len(set(labels)) == len(labels)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run with everything in it: four epochs, pictures, importance samples."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    results = run_tiny(folder, epochs=4, checkpoint_every=1, evaluation_samples=50)
    return folder, results


@pytest.mark.long
def test_traversals_are_of_the_units_that_vary_on_the_test_set(tmp_path, monkeypatch):
    draw, given = figures.draw_traversals, []
    monkeypatch.setattr(
        figures, "draw_traversals", lambda *args: given.append(args[3]) or draw(*args)
    )
    run_tiny(tmp_path)
    _, found = evaluation_data.of_run(tmp_path)
    # The mean of this posterior is exact, and needs no noise.
    known = vae_jax.active_units(
        vae_jax.load_run(tmp_path), found.test, jax.random.key(9)
    )
    np.testing.assert_allclose(given, [known.variance], rtol=1e-5)


@pytest.mark.long
def test_a_run_leaves_all_its_files(finished):
    folder, results = finished
    assert json.loads((folder / "results.json").read_text()) == results
    config = json.loads((folder / "config.json").read_text())
    assert config["dataset"] == "digits" and config["epochs"] == 4
    pictures = {path.stem for path in (folder / "figures").iterdir()}
    assert pictures >= {
        "training_curves",
        "reconstructions",
        "samples",
        "interpolations",
        "traversals",
        "manifold",
        "latent_scatter",
    }
    events = b"".join(path.read_bytes() for path in (folder / "tensorboard").iterdir())
    for tag in (b"elbo/train", b"elbo/test", b"kl_divergence/test"):
        assert tag in events
    assert len(checkpoint.steps(folder / "checkpoints")) == 2
    assert [(row["epoch"], row["split"]) for row in rows_of(folder)] == [
        (epoch, split) for epoch in (1, 2, 3, 4) for split in ("train", "test")
    ]


def test_results_hold_what_is_promised(finished):
    _, results = finished
    assert results["dataset"] == "digits" and results["binarization"] == "dynamic"
    assert results["likelihood"] == "bernoulli"
    assert results["test_elbo"] == pytest.approx(
        results["test_log_likelihood"] - results["test_kl_divergence"], abs=1e-4
    )
    assert results["importance_weighted_num_samples"] == 50
    assert results["importance_weighted_log_likelihood"] > results["test_elbo"]
    assert 0 < results["importance_weighted_standard_error"] < 1
    assert 0 <= results["importance_weighted_high_pareto_k"] <= 1
    assert results["images_per_second"] > 0 and results["seconds"] > 0
    assert 0 < results["seconds_to_first_step"] < results["seconds"]
    assert results["jax_version"] == jax.__version__
    assert results["step"] == 4 * 12 and "cpu" in results["device"].lower()


def test_figures_come_from_the_loaded_run(finished):
    folder, results = finished
    keys = evaluation.evaluation_keys()
    digits = data.binarize_dataset(data.load("digits"), keys.data, method="dynamic")
    x = data.to_unit_interval(jnp.asarray(digits.test), digits.num_levels)
    found = evaluation.elbo_figures(vae_jax.load_run(folder), x)
    assert found["elbo"] == results["test_elbo"]


def test_a_complete_run_is_verified_and_reported(finished, capsys, no_pictures):
    folder, results = finished
    before = sorted(folder.rglob("*"))
    again = run_tiny(folder, epochs=4, checkpoint_every=1, evaluation_samples=50)
    assert again == results
    printed = capsys.readouterr().out
    assert "complete: checkpoint 48 verified" in printed
    # Not of this command, nor of those before the last that trained.
    assert re.search(rf"time of the last process +{results['seconds']:.1f} s", printed)
    first = results["seconds_to_first_step"]
    assert re.search(rf"  its first step after +{first:.1f} s", printed)
    assert sorted(folder.rglob("*")) == before


def test_the_same_command_gives_the_same_figures(finished, tmp_path, no_pictures):
    folder, results = finished
    again = run_tiny(tmp_path, epochs=4, evaluation_samples=50)
    assert figures_of(again) == figures_of(results)
    assert_same_run(folder, tmp_path)


@pytest.mark.long
def test_twice_n_epochs_are_n_and_n_more(finished, tmp_path, no_pictures):
    folder, _ = finished
    run_tiny(tmp_path, epochs=2)
    run_tiny(tmp_path, epochs=4)
    assert_same_run(folder, tmp_path)


@pytest.mark.long
def test_a_signal_within_an_epoch_loses_nothing(
    finished, tmp_path, monkeypatch, capsys, no_pictures
):
    folder, _ = finished
    # Pieces of one step, and a signal after the 17th: in the middle of epoch 2.
    monkeypatch.setattr(training, "SECONDS_PER_PIECE", 0.0)
    show = training.Run._show

    def interrupt(run, step, *figures):
        show(run, step, *figures)
        if step == 17:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(training.Run, "_show", interrupt)
    arguments = ["--dataset=digits", "--likelihood=bernoulli", "--epochs=4"]
    arguments += ["--hidden_dims", "16"]
    arguments += ["--latent_dim=2", "--evaluation_samples=0", f"--run_dir={tmp_path}"]
    arguments += ["--beta_warmup_epochs=0", "--schedule=constant"]
    with pytest.raises(SystemExit) as stop:
        mnist.main(arguments)
    assert stop.value.code == 128 + signal.SIGTERM == 143
    assert "interrupted: saved at step 17;" in capsys.readouterr().err
    assert checkpoint.steps(tmp_path / "checkpoints")[-1] == 17
    monkeypatch.setattr(training.Run, "_show", show)
    run_tiny(tmp_path, epochs=4)
    assert_same_run(folder, tmp_path)


def flip_a_bit(folder):
    largest = max(folder.rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(bytes(content))


def test_a_corrupt_checkpoint_is_skipped(finished, tmp_path, capsys, no_pictures):
    folder, results = finished
    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    newest, before = checkpoint.steps(copy / "checkpoints")[:-3:-1]
    flip_a_bit(copy / "checkpoints" / str(newest))
    again = run_tiny(copy, epochs=4, checkpoint_every=1, evaluation_samples=50)
    message = rf"corrupt checkpoint {newest}: .*sha256.*; going on from {before}\b"
    assert re.search(message, capsys.readouterr().err)
    assert figures_of(again) == figures_of(results)
    assert_same_run(folder, copy)


def test_all_checkpoints_corrupt_starts_over(finished, tmp_path, capsys, no_pictures):
    folder, results = finished
    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    for step in checkpoint.steps(copy / "checkpoints"):
        flip_a_bit(copy / "checkpoints" / str(step))
    again = run_tiny(copy, epochs=4, checkpoint_every=1, evaluation_samples=50)
    assert "going on from 0" in capsys.readouterr().err
    assert figures_of(again) == figures_of(results)


def test_another_configuration_is_refused_by_field(finished):
    folder, _ = finished
    before = (folder / "config.json").read_text()
    with pytest.raises(ValueError, match=r"beta 1.0 there, 2.0 here") as refusal:
        run_tiny(folder, epochs=4, beta=2.0, seed=1)
    assert "seed 0 there, 1 here" in str(refusal.value)
    assert "latent_dim" not in str(refusal.value)
    with pytest.raises(ValueError, match=r"epochs 4 there, 3 here"):
        run_tiny(folder, epochs=3)
    assert (folder / "config.json").read_text() == before


def test_overwrite_starts_anew_and_spares_other_files(tmp_path, no_pictures):
    run_tiny(tmp_path, epochs=1)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "evaluation.json").write_text("{}")
    (tmp_path / "model-1").mkdir()
    (tmp_path / "model-1" / "evaluation.json").write_text("{}")
    before = rows_of(tmp_path)
    run_tiny(tmp_path, epochs=1, seed=1, overwrite=True)
    assert len(rows_of(tmp_path)) == 2 and rows_of(tmp_path) != before
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert not list(tmp_path.glob("**/evaluation.json"))


def test_a_folder_that_is_no_run_is_left_alone(tmp_path):
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "mine.png").write_text("mine")
    with pytest.raises(ValueError, match="not empty and holds no config.json"):
        run_tiny(tmp_path, overwrite=True)
    assert (tmp_path / "figures" / "mine.png").read_text() == "mine"


def test_a_folder_in_use_is_refused(tmp_path):
    with (
        run_folder.locked(tmp_path),
        pytest.raises(ValueError, match="a live process is training in it"),
    ):
        run_tiny(tmp_path)


@pytest.mark.long
def test_devices_share_a_batch_and_may_change(finished, tmp_path, capsys, no_pictures):
    folder, _ = finished
    results = run_tiny(tmp_path, num_devices=2, epochs=1)
    assert results["device"].startswith("2 x")
    run_tiny(tmp_path, num_devices=1, epochs=2)
    assert "num_devices 2; going on with 1 is sound, but not bit-exact" in (
        capsys.readouterr().out
    )
    for row, single in zip(rows_of(tmp_path), rows_of(folder), strict=False):
        assert row["elbo"] == pytest.approx(single["elbo"], abs=0.5)


def test_a_loss_that_is_not_finite_at_once_is_one_of_the_data(tmp_path):
    with pytest.raises(CommandFailed, match="at step 0 .*look at the scale of the da"):
        fail_not_finite(tmp_path, 0)


@pytest.mark.long
def test_one_test_example_does_not_show_a_collapse(tmp_path, capsys, no_pictures):
    rng = np.random.default_rng(0)
    lines = ["a,b", *(f"{a:.3f},{b:.3f}" for a, b in rng.normal(size=(10, 2)))]
    (tmp_path / "ten.csv").write_text("\n".join(lines))
    results = run_tiny(
        tmp_path / "run", dataset=str(tmp_path / "ten.csv"), likelihood="auto"
    )
    assert results["active_units"] is None
    told = capsys.readouterr()
    assert re.search(r"active units +- of 2\n", told.out)
    assert "collapse" not in told.out + told.err


@pytest.mark.long
def test_a_longer_run_of_a_constant_rate_says_how_to_go_on(tmp_path, no_pictures):
    """The default warm-up of beta is half of a short run."""
    run_tiny(tmp_path, beta_warmup_epochs=None)
    longer = {"epochs": 3, "beta_warmup_epochs": None}
    with pytest.raises(ValueError, match=r"\(--beta_warmup_epochs=1.0 goes on with"):
        run_tiny(tmp_path, **longer)
    results = run_tiny(tmp_path, **longer | {"beta_warmup_epochs": 1.0})
    assert results["epochs"] == 3


@pytest.mark.long
def test_a_bad_loss_stops_the_run(tmp_path, monkeypatch, capsys, no_pictures):
    elbo_objective = vae_jax.ELBO

    def breaks_at_20(**options):
        objective = elbo_objective(**options)

        def broken(params, x, key, step):
            value, metrics = objective(params, x, key, step)
            return jnp.where(step == 20, jnp.nan, value), metrics

        return broken

    monkeypatch.setattr(vae_jax, "ELBO", breaks_at_20)
    arguments = [f"--run_dir={tmp_path}", "--dataset=digits", "--epochs=4"]
    with pytest.raises(SystemExit) as stop:
        mnist.main([*arguments, "--hidden_dims", "16", "--checkpoint_every=1"])
    assert stop.value.code == 1
    message = (
        r"error: the loss is not finite at step 20 .*checkpoint 12 is the last.*\n"
    )
    assert re.fullmatch(message, capsys.readouterr().err)
    assert checkpoint.steps(tmp_path / "checkpoints") == [12]
    checkpoint.verify(tmp_path / "checkpoints" / "12")


@pytest.mark.long
@pytest.mark.parametrize(
    "changes",
    [
        {
            "posterior": "point",
            "binarization": "none",
            "likelihood": "continuous_bernoulli",
        },
        {"likelihood": "gaussian", "variance": 0.1, "beta_warmup_epochs": 0.5},
        {
            "likelihood": "gaussian_learned",
            "network": "linear",
            "hidden_dims": (400,),
            "prior": "vamp",
            "num_components": 4,
        },
        pytest.param(
            {"likelihood": "gaussian_per_pixel", "prior": "mixture"},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {
                "binarization": "fixed",
                "num_samples": 3,
                "batch_size": 5000,
                "capacity": 2.0,
            },
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {
                "binarization": "threshold",
                "ema_decay": 0.9,
                "free_bits": 0.3,
                "beta_cycles": 2,
            },
            marks=pytest.mark.slow,
        ),
        *(
            pytest.param(changes, marks=pytest.mark.slow)
            for changes in (
                {"network": "conv"},
                {"posterior": "iaf", "prior": "flow", "objective": "iwae"},
                {"network": "residual", "conditional": True},
                {"network": "gated", "posterior": "full", "prior": "vamp"},
                {"posterior": "low_rank", "likelihood": "gaussian_full"},
                {"posterior": "householder", "likelihood": "discretized_logistic"},
                {"posterior": "sylvester", "likelihood": "categorical"},
                {"posterior": "planar", "objective": "miwae", "num_samples": 4},
                {"objective": "ciwae", "num_samples": 3, "conditional": True},
                {"objective": "piwae", "num_samples": 4, "num_groups": 2},
                {"objective": "renyi", "num_samples": 3, "upper_latent_dims": (2,)},
                {"objective": "beta_tc", "tc_weight": 2.0},
                {"objective": "mmd", "posterior": "point"},
            )
        ),
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_every_choice_trains(changes, tmp_path, no_pictures):
    results = run_tiny(tmp_path, epochs=2, evaluation_samples=5, **changes)
    rows = [row for row in rows_of(tmp_path) if row["split"] == "train"]
    assert rows[1]["elbo"] > rows[0]["elbo"]
    point = changes.get("posterior") == "point"
    assert np.isfinite(results["test_elbo"])
    assert (results["importance_weighted_log_likelihood"] is None) == point
    assert (results["test_kl_divergence"] == 0) == point
    if "variance" in changes:
        log_var = vae_jax.load_run(tmp_path).likelihood["log_var"]
        assert float(log_var) == pytest.approx(np.log(0.1), rel=1e-6)


CHOICES = {
    "posterior": {
        "point": "PointMass",
        "diagonal": "DiagonalGaussian",
        "full": "FullGaussian",
        "low_rank": "LowRankGaussian",
        "householder": "Householder",
        "sylvester": "Sylvester",
        "planar": "Planar",
        "iaf": "InverseAutoregressive",
        "bernoulli": "Bernoulli",
    },
    "prior": {
        "auto": "StandardNormal",
        "standard": "StandardNormal",
        "mixture": "MixtureOfGaussians",
        "vamp": "VampPrior",
        "flow": "AutoregressiveFlow",
        "bernoulli": "FactorizedBernoulliPrior",
    },
    "likelihood": {
        "auto": "DiscretizedLogistic",
        "bernoulli": "Bernoulli",
        "gaussian": "Gaussian",
        "gaussian_learned": "Gaussian",
        "gaussian_per_dimension": "Gaussian",
        "gaussian_per_pixel": "DiagonalGaussian",
        "gaussian_full": "FullCovarianceGaussian",
        "discretized_logistic": "DiscretizedLogistic",
        "categorical": "Categorical",
        "continuous_bernoulli": "ContinuousBernoulli",
        "student_t": "StudentT",
        "laplace": "Laplace",
        "log_normal": "LogNormal",
        "gamma": "Gamma",
        "beta": "Beta",
        "multinomial": "Multinomial",
        "poisson": "Poisson",
        "negative_binomial": "NegativeBinomial",
        "negative_binomial_shared": "NegativeBinomial",
        "negative_binomial_decoder": "NegativeBinomial",
        "zero_inflated_negative_binomial": "ZeroInflatedNegativeBinomial",
        "zero_inflated_negative_binomial_shared": "ZeroInflatedNegativeBinomial",
        "zero_inflated_negative_binomial_decoder": "ZeroInflatedNegativeBinomial",
    },
    "network": {
        "linear": "Linear",
        "mlp": "MLP",
        "gated": "GatedMLP",
        "conv": "ConvolutionalEncoder",
        "residual": "ConvolutionalEncoder",
    },
}


@pytest.mark.parametrize("flag", CHOICES)
def test_every_name_leads_to_its_class(flag):
    digits = data.load("digits")
    assert set(choices.NAMES[flag]) - {"columns", "ordinal"} == set(CHOICES[flag])
    for name, expected in CHOICES[flag].items():
        given = {"posterior": "bernoulli"} if name == "bernoulli" else {}
        given = {} if flag == "likelihood" else given
        config = dataclasses.replace(TINY, **given | {flag: name})
        if name == "auto":
            config = defaults.resolve(config, digits)
        spec = choices.model_spec(config, digits)
        made = spec.encoder if flag == "network" else getattr(spec, flag)
        assert type(made).__name__ == expected
        if name in ("discretized_logistic", "categorical"):
            assert made.num_levels == 17
        if expected.endswith("NegativeBinomial"):
            whose = name.rpartition("_")[2]
            assert made.dispersion == whose.replace("binomial", "dimension")


def test_labels_and_layers_lead_to_their_priors():
    digits = data.load("digits")
    conditional = dataclasses.replace(TINY, conditional=True)
    spec = choices.model_spec(conditional, digits, num_classes=10)
    assert spec.num_classes == spec.prior.num_classes == 10
    layered = dataclasses.replace(TINY, upper_latent_dims=(5, 3))
    spec = choices.model_spec(layered, digits)
    assert [layer.latent_dim for layer in spec.posterior.layers] == [5, 3]
    assert spec.prior.layers == spec.posterior.layers


def test_a_conditional_model_needs_labels_and_levels_need_levels(tmp_path):
    np.savez(tmp_path / "mine.npz", x=np.random.default_rng(0).uniform(size=(40, 5)))
    mine = {"dataset": str(tmp_path / "mine.npz")}
    with pytest.raises(ValueError, match="--conditional needs labels"):
        run_tiny(tmp_path / "run", conditional=True, **mine)
    with pytest.raises(ValueError, match="categorical is about levels"):
        run_tiny(tmp_path / "run", likelihood="categorical", **mine)


def test_negative_labels_and_levels_of_a_file_are_told_apart(tmp_path):
    x, y = np.arange(40, dtype=np.uint8).reshape(20, 2), np.arange(20) % 3 - 1
    config = Config(dataset=str(tmp_path / "mine.npz"), conditional=True)

    def load(**arrays):
        np.savez(config.dataset, x=x, y=y, **arrays)
        return data.load(config.dataset)

    with pytest.raises(ValueError, match="--conditional needs .* from 0 on, got -1"):
        datasets.num_classes(load(), conditional=True)
    digests = [
        datasets.digest(dataset, config.dataset, labelled=True)
        for dataset in (load(), load(num_levels=256), load(num_levels=40))
    ]
    assert digests[0] == digests[1] != digests[2]


def test_a_density_of_black_and_white_pixels_is_said_to_be_one():
    digits, names = data.load("digits"), (vae_jax.ContinuousBernoulli(), "none")
    (warning,) = datasets.warnings(digits, *names)
    assert "is a density, of at most 256 each" in warning
    assert datasets.warnings(digits._replace(num_levels=None), *names) == []


@pytest.mark.parametrize(
    "name, changes, likelihood, binarization, epochs",
    [
        ("digits", {}, "discretized_logistic", "none", 100),
        ("digits", {"likelihood": "bernoulli"}, "bernoulli", "dynamic", 666),
        ("digits", {"binarization": "fixed"}, "bernoulli", "fixed", 100),
        ("digits", {"binarization": "dynamic"}, "bernoulli", "dynamic", 666),
        ("mnist", {}, "bernoulli", "dynamic", 666),
        ("mnist", {"binarization": "none"}, "discretized_logistic", "none", 100),
        ("mnist", {"likelihood": "gaussian"}, "gaussian", "none", 100),
    ],
)
def test_the_default_likelihood_suits_the_data(
    name, changes, likelihood, binarization, epochs
):
    dataset = data.load("digits")._replace(name=name)
    resolved = defaults.resolve(Config(dataset=name, **changes), dataset)
    assert resolved.likelihood == likelihood
    assert resolved.binarization == binarization
    assert resolved.epochs == epochs == resolved.schedule_epochs


def test_data_that_are_bits_are_not_drawn_again():
    """Draws from them would be the data, at the cost of a sixth of a step."""
    grey = data.load("digits")
    bits = data.binarize_dataset(grey, jax.random.key(0), method="threshold")
    for given, expected in ((bits, "none"), (grey, "dynamic")):
        config = Config(dataset="digits", likelihood="bernoulli")
        assert defaults.resolve(config, given).binarization == expected
    x = data.to_unit_interval(jnp.asarray(bits.train), bits.num_levels)
    np.testing.assert_array_equal(data.binarize(x, jax.random.key(1)), x)


def test_a_run_of_bits_goes_on_by_the_command_that_began_it(
    finished, capsys, no_pictures
):
    """Which had no --likelihood, and bits were its default."""
    folder, results = finished
    given = {"epochs": 4, "checkpoint_every": 1, "evaluation_samples": 50}
    assert run_tiny(folder, likelihood="auto", **given) == results
    printed = capsys.readouterr().out
    note = f"{folder} holds a run with --likelihood=bernoulli, the default of earlier"
    assert f"NOTE: {note}" in printed and "going on with it" in printed
    assert "complete: checkpoint 48 verified" in printed
    assert re.search(r"\nlikelihood +bernoulli, dynamic binarization\n", printed)
    run_tiny(folder, **given)
    assert "NOTE" not in capsys.readouterr().out
    with pytest.raises(ValueError, match="likelihood 'bernoulli' there, 'categorical'"):
        run_tiny(folder, likelihood="categorical", **given)


@pytest.mark.parametrize("command", [mnist, sweep], ids=lambda m: m.__name__)
def test_a_run_of_bits_is_found_where_it_is_the_default(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    digits, name = data.load("digits"), command.__name__.rpartition(".")[2]
    resolve, beta = {
        "mnist": (defaults.resolve, 1.0),
        "sweep": (sweep.resolved, (1.0, 2.0)),
    }[name]
    plain = command.Config(dataset="digits", beta=beta)

    def found(**changes):
        config = dataclasses.replace(plain, **changes)
        return defaults.with_former_likelihood(config, digits, name, resolve)

    bits = resolve(dataclasses.replace(plain, likelihood="bernoulli"), digits)
    folder = run_folder.default_folder(name, bits)
    assert found() == (plain, [])
    folder.mkdir(parents=True)
    run_folder.write_signed(folder / "config.json", dataclasses.asdict(bits))
    config, (note,) = found()
    assert config.likelihood == "auto"
    assert note.startswith(str(folder)) and "give that flag" in note
    config, (note,) = found(run_dir=str(folder))
    assert config.likelihood == "bernoulli" and "going on" in note
    for other in ({"overwrite": True}, {"likelihood": "bernoulli"}):
        assert found(run_dir=str(folder), **other)[1] == []
    levels = dataclasses.asdict(bits) | {"likelihood": "my_parts:Own"}
    run_folder.write_signed(folder / "config.json", levels)
    config, notes = found(run_dir=str(folder))
    assert config.likelihood == "auto" and notes == []


def warmup_steps(**changes):
    """What the warm-up comes to on so many batches of 128, in steps."""
    num_batches = changes.pop("num_batches", 469)
    changes = {"epochs": 20} | changes
    train = np.zeros((128 * num_batches, 1), np.uint8)
    dataset = data.load("digits")._replace(train=train)
    resolved = defaults.resolve(Config(dataset="digits", **changes), dataset)
    return resolved.beta_warmup_epochs * num_batches


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({}, 400),
        ({"epochs": 2}, 400),
        ({"epochs": 1}, 469 / 2),
        ({"num_batches": 12, "epochs": None}, 400),
        ({"num_batches": 12, "epochs": 666}, 400),
        ({"num_batches": 12, "epochs": 5}, 30),
        ({"num_batches": 1, "epochs": 1}, 0.5),
        ({"beta_warmup_epochs": 0.0}, 0),
        ({"beta_warmup_epochs": 3.0}, 3 * 469),
        ({"objective": "beta_tc"}, 400),
        ({"free_bits": 0.1, "beta": 4.0}, 400),
        ({"objective": "iwae"}, 0),
        ({"objective": "mmd"}, 0),
        ({"posterior": "point"}, 0),
        ({"beta_cycles": 2}, 0),
        ({"capacity": 10.0}, 0),
    ],
    ids=str,
)
def test_beta_rises_over_400_steps_unless_told_otherwise(changes, expected):
    assert warmup_steps(**changes) == pytest.approx(expected)


def test_a_longer_run_has_the_same_warmup_and_folder():
    def resolved(epochs):
        config = dataclasses.replace(TINY, epochs=epochs, beta_warmup_epochs=None)
        return defaults.resolve(config, data.load("digits"))

    longer, longest = resolved(70), resolved(700)
    assert longer.beta_warmup_epochs == longest.beta_warmup_epochs == 400 / 12
    folders = {
        run_folder.default_folder("mnist", config) for config in (longer, longest)
    }
    assert len(folders) == 1


@pytest.mark.parametrize("network", ["mlp", "conv", "residual"])
def test_the_activation_is_that_of_encoder_and_decoder(network):
    config = dataclasses.replace(TINY, network=network, activation="tanh")
    spec = choices.model_spec(config, data.load("digits"))
    assert spec.encoder.activation is spec.decoder.activation is jnp.tanh
    config = dataclasses.replace(config, activation="relu")
    assert choices.model_spec(config, data.load("digits")).encoder.activation is (
        jax.nn.relu
    )


IGNORED = {
    # flag: a value, where it has no effect, where it has
    "activation": ("tanh", {"network": "gated"}, {}),
    "hidden_dims": ((50,), {"network": "linear"}, {"network": "conv"}),
    "rank": (3, {}, {"posterior": "low_rank"}),
    "num_flow_steps": (3, {"posterior": "full"}, {"prior": "flow"}),
    "num_components": (3, {"prior": "flow"}, {"prior": "mixture"}),
    "variance": (0.1, {"likelihood": "gaussian_learned"}, {"likelihood": "gaussian"}),
    "free_bits_per": ("example", {"capacity": 1.0}, {"free_bits": 0.1}),
    "num_samples": (4, {"posterior": "point"}, {"objective": "iwae"}),
    "schedule_epochs": (30, {"schedule": "constant"}, {}),
    "weight_decay": (0.1, {"optimizer": "rmsprop"}, {"optimizer": "adamw"}),
    "num_groups": (2, {"num_samples": 4}, {"objective": "piwae", "num_samples": 4}),
    "elbo_share": (0.1, {"objective": "iwae"}, {"objective": "ciwae"}),
    "renyi_alpha": (2.0, {"objective": "iwae"}, {"objective": "renyi"}),
    "tc_weight": (2.0, {"objective": "mmd"}, {"objective": "beta_tc"}),
    "mmd_weight": (2.0, {"objective": "beta_tc"}, {"objective": "mmd"}),
    "upper_latent_dims": ((3,), {"posterior": "full"}, {}),
    "beta": (2.0, {"posterior": "point"}, {"posterior": "point", "objective": "mmd"}),
    "beta_warmup_epochs": (2.0, {"objective": "iwae"}, {"objective": "beta_tc"}),
    "beta_cycles": (2, {"objective": "iwae"}, {}),
    "free_bits": (1.0, {"objective": "mmd"}, {}),
    "capacity": (1.0, {"posterior": "point"}, {}),
    "estimator": ("leave_one_out", {"objective": "vae_jax:ELBO"}, {"num_samples": 2}),
    "kl": ("monte_carlo", {"free_bits": 0.1}, {"capacity": 1.0}),
}


@pytest.mark.parametrize("flag", IGNORED)
def test_a_flag_without_effect_is_refused(flag):
    value, unused, used = IGNORED[flag]
    given = {flag: value}
    mnist.check(Config(**given | used))
    mnist.check(Config(**unused))
    shown = re.escape(str(value))
    with pytest.raises(
        ValueError, match=f"--{flag} {shown} has no effect: only .* uses"
    ):
        mnist.check(Config(**given | unused))


def test_a_warmup_of_no_epochs_goes_with_every_objective():
    """A script that switches it off need not know the objective."""
    mnist.check(Config(objective="iwae", beta_warmup_epochs=0.0))


def test_every_choice_of_a_refused_flag_is_tried():
    assert set(IGNORED) == set(defaults.USED_BY)


def test_a_learned_variance_starts_at_the_datas():
    digits = data.load("digits")
    config = dataclasses.replace(TINY, likelihood="gaussian_learned")
    config = defaults.resolve(config, digits)
    state = mnist.initial_state(config, choices.model_spec(config, digits), digits)
    raw = float(state.params.likelihood["log_var"])
    variance = (digits.train / 16).var(axis=0).mean()
    assert np.exp(20 * np.tanh(raw / 20)) == pytest.approx(variance, rel=1e-4)


COLLAPSING = {"beta": 1e4, "learning_rate": 1e-2, "epochs": 8}


@pytest.mark.long
def test_a_collapsed_model_is_warned_of_early_and_at_the_end(
    tmp_path, monkeypatch, capsys, no_pictures
):
    monkeypatch.setattr(training, "STEPS_BEFORE_JUDGING", 60)
    results = run_tiny(tmp_path, **COLLAPSING)
    assert results["active_units"] == 0 and results["num_units"] == 2
    assert json.loads((tmp_path / "results.json").read_text())["active_units"] == 0
    printed = capsys.readouterr()
    warning = (
        "warning: posterior collapse: the model has no active unit on held-out data"
    )
    assert printed.err.count(warning) == 1
    assert printed.out.count(warning) == 1
    assert re.search(r"active units +0 of 2\n", printed.out)
    assert "a smaller --beta" in printed.out
    # A run that is complete says it again.
    assert run_tiny(tmp_path, **COLLAPSING) == results
    assert warning in capsys.readouterr().out


def test_a_model_that_is_alive_is_not_warned_of(finished, capsys, no_pictures):
    folder, results = finished
    assert results["active_units"] == results["num_units"] == 2
    run_tiny(folder, epochs=4, checkpoint_every=1, evaluation_samples=50)
    assert "collapse" not in capsys.readouterr().out


@pytest.mark.long
def test_the_defaults_train_a_deep_network(tmp_path, no_pictures):
    """It ended at KL 0, the ELBO of independent pixels: -26.8 nats."""
    results = run_tiny(
        tmp_path,
        beta_warmup_epochs=None,
        hidden_dims=(64, 64, 64),
        latent_dim=32,
        epochs=20,
    )
    assert results["active_units"] > 5
    assert results["test_kl_divergence"] > 1


def test_warmup_raises_beta(tmp_path, monkeypatch):
    class Stop(Exception):
        pass

    def look(*, beta, **options):
        with jax.ensure_compile_time_eval():
            assert [float(beta(step)) for step in (0, 12, 24, 99)] == [0, 2.5, 5, 5]
        raise Stop

    monkeypatch.setattr(vae_jax, "ELBO", look)
    with pytest.raises(Stop):
        run_tiny(tmp_path, beta=5.0, beta_warmup_epochs=2.0)


@pytest.mark.long
def test_a_file_of_the_users_own(tmp_path, capsys, no_pictures):
    x = np.random.default_rng(0).uniform(size=(60, 37)).astype(np.float32)
    np.savez(tmp_path / "mine.npz", x=x)
    results = run_tiny(
        tmp_path / "run",
        dataset=str(tmp_path / "mine.npz"),
        likelihood="gaussian_learned",
        latent_dim=1,
        evaluation_samples=10,
    )
    assert results["dataset"] == str(tmp_path / "mine.npz")
    assert "mine" in capsys.readouterr().out
    np.savez(tmp_path / "mine.npz", x=x[::-1])
    with pytest.raises(ValueError, match="the data of .*mine.npz have changed"):
        run_tiny(
            tmp_path / "run",
            dataset=str(tmp_path / "mine.npz"),
            likelihood="gaussian_learned",
            latent_dim=1,
        )


def test_default_folder_depends_on_what_is_trained():
    def name(**changes):
        return run_folder.default_folder("mnist", dataclasses.replace(TINY, **changes))

    assert name() == name(epochs=5, data_dir="x", overwrite=True, num_devices=2)
    assert len({name(), name(beta=2.0), name(seed=1), name(latent_dim=3)}) == 4
    assert name().parts[:2] == ("runs", "mnist") and "digits" in name().name
    # The name of the folder before tables had columns and missing values.
    plain = Config(dataset="digits", likelihood="bernoulli", epochs=2)
    assert run_folder.default_folder("mnist", plain).name == "digits-805150d6"
    of_tables = {name(missing="mask"), name(missing="mask_seen"), name(columns="[]")}
    assert len(of_tables | {name()}) == 4


def write_gz(folder, content):
    folder.mkdir()
    for name in (
        "train-images-idx3-ubyte.gz",
        "train-labels-idx1-ubyte.gz",
        "t10k-images-idx3-ubyte.gz",
        "t10k-labels-idx1-ubyte.gz",
    ):
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def bad(tmp_path):
    """A folder of things that no run should take."""
    generator = np.random.default_rng(0)
    x = generator.uniform(size=(20, 6))
    np.savez(tmp_path / "width.npz", x=x, x_test=x[:, :5])
    np.savez(tmp_path / "nan.npz", x=np.where(x > 0.9, np.nan, x))
    np.savez(tmp_path / "range.npz", x=x * 2)
    np.savez(tmp_path / "negative.npz", x=-x)
    np.savez(tmp_path / "empty.npz", x=x[:0])
    np.savez(tmp_path / "nokey.npz", images=x)
    np.savez(tmp_path / "integers.npz", x=np.arange(40).reshape(20, 2))
    (tmp_path / "ragged.csv").write_text("a,b\n1.5,2\n2.5\n")
    (tmp_path / "mixed.csv").write_text("a,b\n1.5,x\n2.5,y\n3.7,z\n")
    (tmp_path / "schema.json").write_text('{"c": "real"}')
    np.save(tmp_path / "lowest.npy", np.array([[1, 2], [0, 7], [3, -1], [1, 1]]))
    np.save(tmp_path / "ok.npy", x.astype(np.float32))
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "file").write_text("a file where a folder should be")
    write_gz(tmp_path / "truncated", gzip.compress(bytes(1000))[:-9])
    write_gz(tmp_path / "wrong", gzip.compress(bytes(1000)))
    return tmp_path


BAD_INPUT = {
    "unknown data set": (["--dataset=nmist"], "nmist"),
    "missing file": (["--dataset={bad}/none.npz"], "none.npz"),
    "truncated gz": (["--dataset=mnist", "--data_dir={bad}/truncated"], "sha256"),
    "wrong checksum": (["--dataset=mnist", "--data_dir={bad}/wrong"], "sha256"),
    "wrong width": (["--dataset={bad}/width.npz"], "x_test"),
    "nan": (["--dataset={bad}/nan.npz"], "NaN|nan|finite"),
    "above one": (
        ["--dataset={bad}/range.npz", "--likelihood=bernoulli"],
        "likelihood=bernoulli does not suit .* are reals: choose auto, or gaussian,",
    ),
    "below zero": (
        ["--dataset={bad}/negative.npz", "--likelihood=bernoulli"],
        "the data, which are reals",
    ),
    "ragged table": (["--dataset={bad}/ragged.csv"], "ragged.csv.*: line 3 has 1 val"),
    "columns of several kinds": (
        ["--dataset={bad}/mixed.csv", "--likelihood=gaussian"],
        "gaussian does not suit the data, which are columns of several .* or columns",
    ),
    "unknown column": (
        ["--dataset={bad}/mixed.csv", "--columns={bad}/schema.json"],
        "column 'c' is given and not in the table, which has a, b",
    ),
    "no schema": (["--dataset={bad}/mixed.csv", "--columns=nowhere"], "nowhere"),
    "columns of pixels": (["--likelihood=columns"], "columns needs a table, and the"),
    "ordinal pixels": (["--likelihood=ordinal"], "ordinal is of a table's columns"),
    "zeros of a density": (
        ["--likelihood=gamma", "--binarization=none"],
        "the test set must lie in .*1.17549e-38, inf",
    ),
    "columns of digits": (["--columns={bad}/schema.json"], "columns are of a file"),
    "binarized table": (
        ["--dataset={bad}/mixed.csv", "--likelihood=auto", "--binarization=fixed"],
        "are mixed, no grey levels",
    ),
    "empty array": (["--dataset={bad}/empty.npz"], "empty|at least"),
    "npz without x": (["--dataset={bad}/nokey.npz"], "images"),
    "counts without their likelihood": (
        ["--dataset={bad}/integers.npz", "--likelihood=bernoulli"],
        "likelihood=bernoulli does not suit .* are counts: choose auto, or poisson",
    ),
    "binarized counts": (
        ["--likelihood=poisson", "--binarization=dynamic"],
        "are counts, no grey levels: binarization must be 'none'",
    ),
    "fractions for counts": (
        ["--dataset={bad}/ok.npy", "--likelihood=poisson"],
        "x must hold counts, .* got 0.63696.* in row 0, column 0",
    ),
    "negative counts": (
        ["--dataset={bad}/lowest.npy", "--likelihood=auto"],
        "x must hold counts, .* got -1 in row 2, column 1",
    ),
    "pseudo-inputs of counts": (
        ["--likelihood=auto", "--prior=vamp", "--dataset={bad}/integers.npz"],
        "--prior=vamp has pseudo-inputs in",
    ),
    "no npz": (["--dataset={bad}/text.npz"], "text.npz"),
    "negative beta": (["--beta=-1"], "beta.*-1"),
    "beta nan": (["--beta=nan"], "beta.*nan"),
    "learning rate nan": (["--learning_rate=nan"], "learning_rate.*nan"),
    "learning rate zero": (["--learning_rate=0"], "learning_rate.*0"),
    "zero batch": (["--batch_size=0"], "batch_size.*0"),
    "zero epochs": (["--epochs=0"], "epochs.*0"),
    "zero latent": (["--latent_dim=0"], "latent_dim.*0"),
    "zero samples": (["--num_samples=0"], "num_samples.*0"),
    "zero hidden": (["--hidden_dims", "0"], "hidden_dims.*0"),
    "no hidden": (["--hidden_dims", "--network=conv"], "hidden_dims"),
    "zero checkpoint": (["--checkpoint_every=0"], "checkpoint_every.*0"),
    "negative evaluation": (["--evaluation_samples=-1"], "evaluation_samples.*-1"),
    "groups": (
        ["--objective=piwae", "--num_samples=5", "--num_groups=2"],
        "num_groups must divide num_samples 5, got 2",
    ),
    "beta of a bound": (
        ["--objective=iwae", "--beta=2"],
        "--beta 2.0 has no effect: only --objective=elbo or beta_tc with --post",
    ),
    "warm-up of a bound": (
        ["--objective=iwae", "--beta_warmup_epochs=2"],
        "--beta_warmup_epochs 2.0 has no effect",
    ),
    "cycles of a bound": (
        ["--objective=renyi", "--beta_cycles=2"],
        "--beta_cycles 2 has no effect",
    ),
    "free bits of a bound": (
        ["--objective=iwae", "--free_bits=1"],
        "--free_bits 1.0 has no effect: only --objective=elbo",
    ),
    "capacity of a bound": (
        ["--objective=iwae", "--capacity=0"],
        "--capacity 0.0 has no effect: only --objective=elbo",
    ),
    "units of a full q": (
        ["--objective=beta_tc", "--posterior=full"],
        "factorized posterior|product over units|of a unit",
    ),
    "vamp of a flow": (["--prior=vamp", "--posterior=planar"], "none at a given z"),
    "vamp with labels": (["--prior=vamp", "--conditional"], "without labels"),
    "layers of a flow": (
        ["--upper_latent_dims", "3", "--posterior=iaf"],
        "--upper_latent_dims .3,. has no effect: only --posterior=diagonal",
    ),
    "layers of a mixture": (
        ["--upper_latent_dims", "3", "--prior=mixture"],
        "must have the same stochastic layers",
    ),
    "share": (["--elbo_share=2"], "--elbo_share must be at most 1"),
    "variance of a likelihood that learns it": (
        ["--likelihood=gaussian_learned", "--variance=0.1"],
        "--variance 0.1 has no effect: only --likelihood=gaussian uses it",
    ),
    "beta of a point": (["--posterior=point", "--beta=2"], "--beta 2.0 has no effect"),
    "layers of a convolution": (
        ["--network=conv", "--hidden_dims", "9", "8"],
        "one dense layer: --hidden_dims must be one width",
    ),
    "bound of a point": (
        ["--posterior=point", "--objective=iwae"],
        "needs the density",
    ),
    "negative free bits": (["--free_bits=-1"], "free_bits.*-1"),
    "two schedules": (
        ["--beta_cycles=2", "--beta_warmup_epochs=1"],
        "beta_warmup_epochs 1.0 and --beta_cycles 2 exclude",
    ),
    "two penalties": (
        ["--free_bits=1", "--capacity=5"],
        "free_bits 1.0 and",
    ),
    "penalty without KL": (["--posterior=point", "--free_bits=1"], "has no effect"),
    "vamp without density": (["--posterior=point", "--prior=vamp"], "mixture of"),
    "units without a KL": (
        ["--prior=mixture", "--free_bits=1"],
        "KL of a unit is known for factorized .* MixtureDistribution: choose a diag",
    ),
    "examples without a KL": (
        ["--prior=vamp", "--free_bits=1", "--free_bits_per=example"],
        "free bits of each example need a closed-form KL, and .* VampPrior",
    ),
    "layers without a KL": (
        ["--upper_latent_dims", "2", "--free_bits=1", "--free_bits_per=example"],
        "free bits of each example need a closed-form KL, and .* Hierarchical",
    ),
    "pairs on two devices": (
        ["--objective=mmd", "--num_devices=2"],
        "--objective=mmd compares .* --num_devices=1, got 2",
    ),
    "beta below its value": (
        ["--beta_warmup_epochs=100", "--epochs=4"],
        "--beta_warmup_epochs must be at most the 4 epochs .* got 100: .* end at 0.04",
    ),
    "cycles of one step": (
        ["--beta_cycles=400", "--epochs=4"],
        "--beta_cycles must be at most 24, half of the steps of the run, got 400",
    ),
    "negative warm-up": (["--beta_warmup_epochs=-1"], "beta_warmup_epochs.*-1"),
    "decay of one": (["--ema_decay=1"], "ema_decay.*1"),
    "variance": (["--likelihood=gaussian", "--variance=0"], "variance.*0"),
    "word for a number": (["--beta=strong"], "beta.*strong"),
    "fraction of a batch": (["--batch_size=1.5"], "batch.size.*1.5"),
    "unknown flag": (["--bta=1"], "bta"),
    "abbreviated flag": (["--late=2"], "late"),
    "unknown choice": (
        ["--network=transformer"],
        "--network must be one of linear, .* or module:Class .* got transformer",
    ),
    "unknown posterior": (["--posterior=full_moon"], "full_moon"),
    "unknown estimator": (["--estimator=magic"], "--estimator must be one of .* magic"),
    "no such module": (
        ["--prior=no_such:Prior"],
        "no_such:Prior cannot be imported",
    ),
    "a file for its module": (
        ["--prior=no_such.py:Prior"],
        "cannot be imported: .* .name the module without .py.",
    ),
    "no such class": (
        ["--prior=vae_jax:Prior"],
        "vae_jax:Prior cannot be imported",
    ),
    "no class": (["--prior=vae_jax:model"], "must name a class or a function"),
    "no literal": (
        ["--posterior=vae_jax:LowRankGaussian(rank=len(__import__('os').environ))"],
        "arguments must be Python literals",
    ),
    "two calls": (["--posterior=vae_jax:Planar(2)(3)"], "arguments must be Python lit"),
    "wrong arguments": (
        ["--posterior=vae_jax:Planar(steps=2)"],
        "--posterior=vae_jax:Planar.*unexpected keyword argument 'steps'",
    ),
    "wrong kind": (["--posterior=vae_jax:MLP((3,))"], "posterior .*subclass .*Family"),
    "pathwise gradient of bits": (
        ["--posterior=bernoulli"],
        "use leave_one_out, disarm",
    ),
    "bits and a density": (
        ["--posterior=bernoulli", "--prior=standard", "--estimator=disarm"],
        "must have latents of the same kind",
    ),
    "bits without bits": (
        ["--estimator=disarm"],
        "disarm requires a BernoulliDistribution",
    ),
    "estimator of one's own objective": (
        ["--objective=vae_jax:ELBO", "--estimator=disarm"],
        "--estimator disarm has no effect",
    ),
    "too many devices": (["--num_devices=999"], "999"),
    "no device": (["--num_devices=0"], "num_devices.*0"),
    "uneven batch": (["--num_devices=3", "--batch_size=128"], "128.*3"),
    "convolution of no image": (
        ["--dataset={bad}/ok.npy", "--network=conv"],
        "convolutional network needs data_shape",
    ),
    "folder under a file": (["--run_dir={bad}/file/run"], "file/run"),
}


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input(name, bad, tmp_path, capsys):
    arguments, message = BAD_INPUT[name]
    arguments = [argument.format(bad=bad) for argument in arguments]
    folder = tmp_path / "run_that_must_not_be"
    for flag, value in (("--dataset", "digits"), ("--run_dir", folder)):
        if not any(argument.startswith(flag) for argument in arguments):
            arguments.append(f"{flag}={value}")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as stop:
        mnist.main(arguments)
    printed = capsys.readouterr().err
    assert stop.value.code == 2
    assert printed.count("\n") == 1 and printed.startswith("error: ")
    assert re.search(message, printed), printed
    assert sorted(tmp_path.rglob("*")) == before


def trace_objective(config, spec):
    """On shapes alone, as a run does before it writes anything."""
    objective = choices.objective(config, choices.settings(config), steps_per_epoch=9)

    def value(key):
        x = jnp.zeros((2, spec.data_dim))
        batch = vae_jax.Labelled(x, jnp.zeros(2, int)) if spec.num_classes else x
        return objective(vae_jax.init(spec, key), batch, key, 0)

    jax.eval_shape(value, jax.random.key(0))


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("posterior", choices.POSTERIORS)
def test_free_bits_are_accepted_where_the_kl_has_a_closed_form(posterior, conditional):
    """The command agrees with the registry, and per unit with what is a product."""
    config = Config(
        posterior=posterior,
        conditional=conditional,
        latent_dim=3,
        hidden_dims=(2,),
        epochs=1,
        beta_warmup_epochs=0.0,
        estimator="leave_one_out" if posterior == "bernoulli" else "reparameterization",
        num_samples=2,
    )
    digits, classes = data.load("digits"), 10 * conditional
    spec = choices.model_spec(config, digits, num_classes=classes)

    def pair_of(key):
        labels = jnp.zeros(1, int) if conditional else None
        params = vae_jax.init(spec, key)
        q = vae_jax.encode(params, jnp.zeros((1, 64)), labels=labels)
        return q, build_prior(at_labels(params, labels))

    pair = jax.eval_shape(pair_of, jax.random.key(0))
    known = closed_form_kl(*map(type, pair)) is not None
    product = posterior in ("diagonal", "bernoulli")
    for per, accepted in (("example", known), ("unit", product)):
        asked = dataclasses.replace(config, free_bits=0.1, free_bits_per=per)
        if accepted:
            trace_objective(asked, spec)
        else:
            with pytest.raises(ValueError, match="closed-form"):
                trace_objective(asked, spec)


def test_both_spellings_of_flags(tmp_path):
    hyphens = parse(Config, ["--data-dir", "x", "--latent-dim=3"], command="c")
    underscores = parse(Config, ["--data_dir=x", "--latent_dim", "3"], command="c")
    assert hyphens == underscores == Config(data_dir="x", latent_dim=3)


def test_help_explains_every_flag(capsys):
    with pytest.raises(SystemExit) as stop:
        mnist.main(["--help"])
    assert stop.value.code == 0
    printed = " ".join(capsys.readouterr().out.split())
    for entry in dataclasses.fields(Config):
        assert f"--{entry.name}" in printed
    assert len(re.findall(r"\(default: ", printed)) >= len(dataclasses.fields(Config))


# In processes of their own.

ENDLESS = [
    *("--dataset=digits", "--epochs=300", "--hidden_dims", "16", "--latent_dim=2"),
    "--likelihood=bernoulli",
    *("--checkpoint_every=20", "--evaluation_samples=5"),
]


def start(folder, arguments):
    command = [sys.executable, "-m", "experiments.mnist", f"--run_dir={folder}"]
    # One device, as a user has it; to compile quickly is enough here as well.
    flags = " ".join(
        flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag
    )
    return subprocess.Popen(
        [*command, *arguments],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": flags},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_epochs(process, folder, epochs):
    """Until metrics.jsonl has grown to so many epochs."""
    path, deadline = folder / "metrics.jsonl", time.monotonic() + 120
    while not path.exists() or path.read_text().count("\n") < 2 * epochs:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
def test_an_interrupted_process_says_so_and_goes_on(tmp_path):
    process = start(tmp_path / "run", ENDLESS)
    wait_for_epochs(process, tmp_path / "run", 30)
    process.send_signal(signal.SIGINT)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 130, printed
    assert re.search(r"^interrupted: saved at step \d+;", printed, re.M)
    again = start(tmp_path / "run", ENDLESS)
    _, printed = again.communicate(timeout=120)
    assert again.returncode == 0, printed
    steps = [row["step"] for row in rows_of(tmp_path / "run")]
    assert steps == sorted(steps) and steps[-1] == 300 * 12


@pytest.mark.long
def test_a_killed_process_resumes_exactly(tmp_path):
    """SIGKILL, then to the end, as if nothing had been."""
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    whole = start(straight, ENDLESS)
    process = start(broken, ENDLESS)
    wait_for_epochs(process, broken, 30)
    process.send_signal(signal.SIGKILL)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == -9, printed
    assert checkpoint.steps(broken / "checkpoints")[-1] < 300 * 12
    last = start(broken, ENDLESS)
    for process in (whole, last):
        printed = process.communicate(timeout=120)[1]
        assert process.returncode == 0, printed
    assert_same_run(straight, broken)
    results = [
        figures_of(json.loads((folder / "results.json").read_text()))
        for folder in (straight, broken)
    ]
    assert results[0] == results[1]


def test_no_run_has_the_root_of_the_evaluation():
    """JAX's seeds have 32 bits: a larger one is another in disguise."""
    check(Config(seed=2**32 - 2))
    for seed in (2**32 - 1, 2**32):
        with pytest.raises(ValueError, match=f"--seed must be below .*{seed}"):
            check(Config(seed=seed))
