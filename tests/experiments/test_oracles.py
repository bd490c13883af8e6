"""`python -m experiments.oracles`: rows, initial posteriors, parts on small data."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.oracles import __main__ as oracles
from experiments.oracles import families, linear, pictures
from experiments.runner.report import Check, mean_check, row, table
from vae_jax.distributions import DiagonalGaussianDistribution, closed_form_kl


def test_a_row_is_right_when_it_is_near_enough():
    assert row("a", 1.04, exact=1.0, within=0.05).ok
    assert not row("a", 1.06, exact=1.0, within=0.05).ok
    assert not row("a", math.nan, exact=1.0, within=0.05).ok
    mean = mean_check("b", [1.0, 2.0, 3.0])
    assert mean.measured == 2 and mean.error == pytest.approx(1 / np.sqrt(3))
    lines = table([Check("", "far off", 2.0, 1.0, 0.5, error=0.1), mean]).splitlines()
    assert lines[0].split() == ["what", "measured", "exact", "within", "ok"]
    expected = ["far", "off", "2.000", "+-", "0.100", "=", "1", "0.5", "NO"]
    assert lines[1].split() == expected
    assert lines[2].split() == ["b", "2.000", "+-", "0.577"]


def test_a_result_agrees_when_every_row_with_an_exact_value_does():
    rows = [row("a", 1.0, exact=1.0, within=0.1), row("b", 2.0)]
    results = {"dataset": "x", "part": [oracles.as_json(one) for one in rows]}
    assert oracles.agrees(results)
    wrong = oracles.as_json(row("c", 1.0, exact=2.0, within=0.1))
    assert not oracles.agrees(results | {"other": [wrong]})


def test_every_family_starts_at_the_diagonal_gaussian(key):
    rng = np.random.default_rng(0)
    q = DiagonalGaussianDistribution(
        *(jnp.asarray(rng.normal(size=(3, 4)), jnp.float32) for _ in range(2))
    )
    starts = families.starts(q, key)
    z = jnp.asarray(rng.normal(size=(5, 3, 4)), jnp.float32)
    for name, start in starts.items():
        found = jax.jit(start.log_prob)(z)
        # The low-rank factor starts at 0.01, because its gradient is 0 at 0.
        tolerance = 0.1 if name.startswith("low") else 1e-3
        np.testing.assert_allclose(found, q.log_prob(z), atol=tolerance)
        assert closed_form_kl(type(start), DiagonalGaussianDistribution) is not None


@pytest.fixture(scope="module")
def plain_data():
    """Three strong directions in eight dimensions, and weak noise in the others."""
    rng = np.random.default_rng(1)
    spread = np.array([2.0, 1.2, 0.8, 0.15, 0.1, 0.05, 0.05, 0.05])
    turn = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    x = rng.normal(size=(1000, 8)) * spread @ turn
    return jnp.asarray(x, jnp.float32)


@pytest.mark.slow
def test_a_linear_vae_reaches_its_optimum_and_keeps_the_right_units(
    plain_data, monkeypatch, key
):
    monkeypatch.setattr(linear, "LATENT_DIM", 3)
    rows = linear.evidence_rows(plain_data, plain_data, key, 3000)
    assert rows[0].ok and rows[1].ok and abs(rows[2].measured) < 0.1
    rows = linear.live_rows(plain_data, key, 1500)
    assert all(row.ok for row in rows if not math.isnan(row.exact))
    assert [rows[0].measured, rows[-3].measured] == [3, 2]


@pytest.mark.slow
def test_the_parts_agree_with_exact_answers_on_digits(tmp_path, capsys):
    config = oracles.Config(
        dataset="digits", part="plane", epochs=30, num_images=20, run_dir=str(tmp_path)
    )
    results = oracles.run(config)
    assert oracles.agrees(results), capsys.readouterr().out
    assert json.loads((tmp_path / "results.json").read_text())["dataset"] == "digits"
    assert (tmp_path / "plane.png").exists()
    rows = [row(found["name"], found["measured"]) for found in results["plane"]]
    drawn = [one.what.strip() for one in rows if pictures.selected("plane", one)]
    assert len(drawn) == 5 and drawn[0].startswith("samples of the encoder's q")


def test_parts_of_one_folder_are_of_one_data_set_with_their_flags(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(pictures, "draw", lambda *args: None)
    part = [row("a figure", 1.0)]
    for name in ("linear", "plane"):
        monkeypatch.setitem(oracles.PARTS, name, lambda *args: part)
    folder = {"run_dir": str(tmp_path), "dataset": "digits"}
    oracles.run(oracles.Config(part="linear", linear_steps=20, **folder))
    results = oracles.run(oracles.Config(part="plane", **folder))
    steps = {name: flags["linear_steps"] for name, flags in results["configs"].items()}
    assert steps == {"linear": 20, "plane": 18_000}
    with pytest.raises(ValueError, match="holds results of digits, got --dataset=synt"):
        oracles.run(oracles.Config(**folder | {"dataset": "synthetic"}))


def test_flags_of_another_part_are_refused(tmp_path):
    config = oracles.Config(part="linear", num_images=3, run_dir=str(tmp_path / "new"))
    message = "--num_images 3 has no effect: only --part=all or plane or families"
    with pytest.raises(ValueError, match=message):
        oracles.run(config)
    assert not (tmp_path / "new").exists()


def test_bad_input_is_one_line_and_exit_code_2(capsys):
    with pytest.raises(SystemExit) as stop:
        oracles.main(["--num_images=1"])
    assert stop.value.code == 2
    assert "--num_images must be at least 2, got 1" in capsys.readouterr().err
