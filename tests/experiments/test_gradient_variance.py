"""`python -m experiments.gradient_variance` on small problems."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.gradient_variance import __main__ as gradient_variance
from experiments.gradient_variance import (
    exact,
    logistic_regression,
    signal_to_noise,
    vae,
)
from experiments.gradient_variance.__main__ import Config
from experiments.runner import flags
from vae_jax import data, encode, init
from vae_jax.estimators import Moments

RNG = np.random.default_rng(11)
SETTING = {
    "mu": float(RNG.normal()),
    "sigma": float(RNG.uniform(0.5, 1.5)),
    "k": float(RNG.uniform(0.3, 1.5)),
    "logit": float(RNG.normal()),
}


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


def assert_pictures(folder, *names):
    for name in names:
        assert (folder / "figures" / f"{name}.png").read_bytes()[1:4] == b"PNG"


# Each estimator takes seconds to compile; a slow test covers all of them.
QUICK = """
    reparameterization score_function leave_one_out straight_through
"""


@pytest.fixture(scope="module")
def exact_part(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exact")
    config = Config(
        part="exact", **SETTING, num_samples=3, num_draws=40_000, run_dir=str(folder)
    )
    with pytest.MonkeyPatch.context() as patch:
        for name in ("gaussian_cases", "bernoulli_cases"):
            patch.setattr(exact, name, quick(getattr(exact, name)))
        curves = ("reparameterization", "score_function")
        patch.setattr(gradient_variance, "CURVE_ESTIMATORS", curves)
        gradient_variance.run(config)
    return folder, results_of(folder)["rows"]


def quick(cases):
    def chosen(*arguments, **options):
        found = cases(*arguments, **options)
        return [case for case in found if case.estimator in QUICK.split()]

    return chosen


@pytest.mark.long
def test_exact_rows_are_within_five_standard_errors(exact_part):
    folder, rows = exact_part
    assert exact.largest_z(rows) < 5
    assert sum(row["exact_variance"] is not None for row in rows) == 28
    assert_pictures(folder, "variance_against_k")


def test_exact_rows_have_what_others_read(exact_part):
    _, rows = exact_part
    found = {(row["estimator"], row["integrand"], row["parameter"]) for row in rows}
    for integrand in ("quadratic", "exponential", "cos"):
        for estimator in ("score_function", "reparameterization", "leave_one_out"):
            for parameter in ("mu", "sigma"):
                assert (estimator, integrand, parameter) in found
    mu, sigma, k = (SETTING[name] for name in ("mu", "sigma", "k"))
    row = next(
        row
        for row in rows
        if (row["estimator"], row["integrand"], row["parameter"])
        == ("reparameterization", "quadratic", "mu")
    )
    assert row["exact_mean"] == pytest.approx(2 * (mu - k))
    assert row["exact_variance"] == pytest.approx(4 * sigma**2 / 3)
    assert abs(row["variance"] - 4 * sigma**2 / 3) < 5 * row["variance_standard_error"]


def test_a_biased_estimator_shows_in_its_row(exact_part):
    _, rows = exact_part
    scores = [abs(row["mean_z"]) for row in rows if not row["unbiased"]]
    assert max(scores) > 5


def test_an_infinite_variance_is_left_out_with_a_note(tmp_path, monkeypatch):
    def measure(case, key, *, num_draws):
        return Moments(*[dict.fromkeys(case.parameters, 1.0)] * len(Moments._fields))

    monkeypatch.setattr(exact, "measure", measure)
    monkeypatch.setitem(gradient_variance.CURVE_K, "quadratic", np.ones(1))
    config = Config(part="exact", k=-3.0)
    rows, lines = gradient_variance.run_exact(config, tmp_path, lambda text: None)
    assert "exponential under the Gaussian is left out: k of exp" in "\n".join(lines)
    left = {row["integrand"] for row in rows if row["distribution"] == "gaussian"}
    assert left == {"quadratic", "cos", "elbo"}


@pytest.mark.slow
def test_a_million_draws_of_every_row(tmp_path):
    for seed in (1, 2):
        rng = np.random.default_rng(seed)
        setting = {
            "mu": float(rng.normal()),
            "sigma": float(rng.uniform(0.5, 2)),
            "k": float(rng.uniform(0.2, 2)),
            "logit": float(rng.normal()),
        }
        config = Config(part="exact", **setting, seed=seed, run_dir=str(tmp_path))
        rows = gradient_variance.run(config)["rows"]
        assert exact.largest_z(rows) < 5
        assert sum(row["exact_variance"] is not None for row in rows) >= 70


def test_parts_that_earlier_commands_measured_stay(tmp_path, monkeypatch):
    def measured(name):
        return lambda config, *rest: ([{"part": name, "seed": config.seed}], [name])

    for name in ("exact", "snr"):
        monkeypatch.setattr(gradient_variance, f"run_{name}", measured(name))
    for seed, part in enumerate(("exact", "snr", "snr")):
        gradient_variance.run(Config(part=part, seed=seed, run_dir=str(tmp_path)))
    results = results_of(tmp_path)
    assert [(row["part"], row["seed"]) for row in results["rows"]] == [
        ("exact", 0),
        ("snr", 2),
    ]
    assert results["configs"]["exact"]["seed"] == 0
    assert results["configs"]["snr"]["mu"] == 1.0


@pytest.mark.slow
def test_signal_to_noise_has_the_published_slopes(tmp_path, monkeypatch, capsys):
    """Rainforth et al. 2018: +1/2 and -1/2; Tucker et al. 2019: +1/2."""
    monkeypatch.setattr(signal_to_noise, "SAMPLE_COUNTS", (16, 256))
    config = Config(part="snr", snr_draws=300, run_dir=str(tmp_path))
    rows = gradient_variance.run(config)["rows"]
    for group, slope in signal_to_noise.slopes(rows).items():
        expected = signal_to_noise.EXPECTED_SLOPES[group]
        assert slope == pytest.approx(expected, abs=0.1), group
    assert "inference" in capsys.readouterr().out
    assert_pictures(tmp_path, "signal_to_noise")


def test_the_toy_is_at_its_optimum_but_for_the_perturbation(monkeypatch):
    """q has the mean of the exact posterior N((x + mu) / 2, I / 2)."""
    monkeypatch.setattr(signal_to_noise, "PERTURBATION", 0.0)
    toy, x = signal_to_noise.make_toy(jax.random.key(3))
    posterior = encode(signal_to_noise.as_params(toy), x)
    np.testing.assert_allclose(posterior.mean, (x + toy.mu) / 2, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.exp(posterior.log_var), 2 / 3, rtol=1e-5)


@pytest.mark.slow
def test_logistic_regression_is_fitted_and_measured(tmp_path, monkeypatch, capsys):
    chosen = {
        name: logistic_regression.ESTIMATORS[name]
        for name in ("reparameterization", "leave_one_out")
    }
    monkeypatch.setattr(logistic_regression, "MEASURED", chosen)
    chosen = {"reparameterization": chosen["reparameterization"]}
    monkeypatch.setattr(logistic_regression, "ESTIMATORS", chosen)
    monkeypatch.setattr(logistic_regression, "VARIANCE_DRAWS", 50)
    config = Config(part="logistic", logistic_steps=300, run_dir=str(tmp_path))
    rows = gradient_variance.run(config)["rows"]
    variance = {
        row["estimator"]: row["variance"]
        for row in rows
        if (row["stage"], row["parameter"]) == ("end", "mean")
    }
    assert variance["leave_one_out"] > 5 * variance["reparameterization"]
    line = next(
        line
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("reparameterization")
    )
    elbo, accuracy = map(float, line.split()[1:3])
    assert -1000 < elbo < -60  # Training starts near -1250.
    assert accuracy > 0.9
    assert_pictures(tmp_path, "logistic_regression")


@pytest.fixture(scope="module")
def vae_part(tmp_path_factory):
    """Results of part vae with two estimators of each model."""
    folder = tmp_path_factory.mktemp("vae")
    with pytest.MonkeyPatch.context() as patch:
        for name, kept in (
            ("gaussian_model", ("reparameterization", "score_function")),
            ("bits_model", ("exact_enumeration", "disarm")),
        ):
            patch.setattr(vae, name, only(getattr(vae, name), kept))
        config = Config(
            part="vae",
            dataset="synthetic",
            epochs=1,
            latent_dim=3,
            num_bits=3,
            hidden_dim=8,
            batch_size=2,
            sample_counts=(2,),
            vae_draws=200,
            run_dir=str(folder),
        )
        with pytest.MonkeyPatch.context() as output:
            lines = []
            output.setattr("builtins.print", lambda *text, **_: lines.extend(text))
            gradient_variance.run(config)
    return folder, results_of(folder)["rows"], "\n".join(lines)


@pytest.mark.slow
def test_a_row_holds_the_variance_its_cost_and_the_agreement_of_the_means():
    model = only(vae.gaussian_model, ("reparameterization", "score_function"))(
        (4,), 2, 4
    )
    params = init(model.spec, jax.random.key(0))
    rows = vae.measure(
        model,
        dict.fromkeys(vae.STAGES, params),
        jnp.ones((2, 4)),
        sample_counts=(2,),
        num_draws=200,
        key=jax.random.key(1),
    )
    assert len(rows) == 6
    assert vae.variance_ratio(rows) > 3
    for row in rows:
        assert abs(row["mean_z"]) < 5
        product = row["variance"] * row["seconds_per_draw"]
        assert row["cost_adjusted_variance"] == pytest.approx(product, rel=1e-5)


def only(make, kept):
    def model(*sizes):
        whole = make(*sizes)
        entries = tuple(
            entry
            for entry in whole.entries
            if entry.estimator in kept and entry.objective == "ELBO"
        )
        first = next(iter(whole.trained_with.items()))
        return whole._replace(entries=entries, trained_with=dict([first]))

    return model


@pytest.mark.slow
def test_a_vae_is_measured_at_three_stages(vae_part):
    folder, rows, _ = vae_part
    assert {row["stage"] for row in rows} == set(vae.STAGES)
    assert len(rows) == 12
    assert max(abs(row["mean_z"]) for row in rows) < 5
    for row in rows:
        exactly = row["estimator"] == "exact_enumeration"
        assert (row["variance"] > 0) != exactly
        assert row["cost_adjusted_variance"] == pytest.approx(
            row["variance"] * row["seconds_per_draw"], rel=1e-5
        )
    assert_pictures(folder, "training_curves", "vae_bits_elbo")


@pytest.mark.slow
def test_the_last_line_has_the_ratio_of_the_variances(vae_part):
    _, rows, printed = vae_part
    variances = {
        row["estimator"]: row["variance"]
        for row in rows
        if row["stage"] == "end" and row["model"] == "Gaussian latents"
    }
    ratio = variances["score_function"] / variances["reparameterization"]
    assert ratio > 10
    last = printed.strip().splitlines()[-1]
    assert float(last.split()[-1]) == pytest.approx(ratio, rel=1e-4)


@pytest.mark.slow
def test_estimators_train_from_the_same_start_on_the_same_data():
    dataset = data.load("synthetic")
    model = vae.gaussian_model(dataset.data_shape, 2, 4)
    stages = [
        vae.train(model, estimator, dataset, epochs=1, seed=0).stages
        for estimator in list(model.trained_with.values())[:2]
    ]
    for other in stages[1:]:
        jax.tree.map(
            np.testing.assert_array_equal,
            stages[0]["initialisation"],
            other["initialisation"],
        )
        assert not np.array_equal(
            stages[0]["end"].encoder["output"]["bias"],
            other["end"].encoder["output"]["bias"],
        )


BAD = {
    "sigma": (0.0, "--sigma must be positive and finite, got 0.0"),
    "num_samples": (0, "--num_samples must be at least 1, got 0"),
    "num_draws": (1, "--num_draws must be at least 2, got 1"),
    "mu": (float("nan"), "--mu must be finite, got nan"),
    "num_bits": (13, "--num_bits must be at most 12, got 13"),
    "sample_counts": ((), "--sample_counts must be one or more positive numbers, got"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_values_are_refused_by_name(name):
    value, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        flags.check(Config(**{name: value}))


def test_flags_of_another_part_are_refused(tmp_path):
    config = Config(part="snr", num_draws=10, run_dir=str(tmp_path / "new"))
    message = "num_draws 10 has no effect: only --part=all or exact uses it, got snr"
    with pytest.raises(ValueError, match=message):
        gradient_variance.run(config)
    assert not (tmp_path / "new").exists()
    shared = {"part", "seed", "run_dir"}
    assert (
        gradient_variance.USED_BY.keys() | shared == Config.__dataclass_fields__.keys()
    )


@pytest.mark.parametrize("arguments", [["--part=all", "--sigma=-1"], ["--nonsense=3"]])
def test_a_bad_command_is_one_line_and_exit_code_2(arguments, capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        gradient_variance.main([*arguments, f"--run_dir={tmp_path / 'run'}"])
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and "\n" not in error
    assert not (tmp_path / "run").exists()
