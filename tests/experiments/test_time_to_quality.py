"""Time to a test ELBO: everyone trains the same model, and stops at the target.

No speed is asserted, because it depends on the machine.
"""

import importlib.util
import json

import jax
import numpy as np
import pytest

import vae_jax
from experiments.throughput import __main__ as throughput
from experiments.throughput import pytorch, time_to_quality
from experiments.throughput.contestants import NUMPYRO, OURS, Training, plain_weights
from experiments.throughput.time_to_quality import Course, Courses
from vae_jax import data


@pytest.fixture(scope="module")
def found():
    with pytest.MonkeyPatch.context() as patch:
        # They take a minute to compile.
        patch.setattr(pytorch, "TORCH", "no_such_library")
        return time_to_quality.measure(
            data.load("digits"), batch_size=128, seed=0, target=0.0, most_epochs=2
        )


def assert_same_model(found, name):
    elbos = {course.name: course.test_elbo for course in found.courses}
    # Noise alone moves an epoch's ELBO by .05 (constant) and .15 (schedule, the second
    # epoch); the schedule moves the first one by more than a nat.
    constant, scheduled = (
        elbos[f"{name}, {rate}"] for rate in ("constant", "schedule")
    )
    np.testing.assert_allclose(constant, elbos[f"{OURS}, constant"], atol=0.3)
    np.testing.assert_allclose(scheduled[1], elbos[f"{OURS}, schedule"][1], atol=0.9)
    assert abs(constant[0] - scheduled[0]) > 0.8


@pytest.mark.long
def test_a_schedule_trains_unlike_a_constant_rate(found):
    assert_same_model(found, OURS)


@pytest.mark.skipif(
    not importlib.util.find_spec("numpyro"), reason="NumPyro is not installed"
)
def test_everyone_trains_the_same_model(found):
    assert_same_model(found, NUMPYRO)


def test_a_target_that_is_not_reached_is_said(found):
    assert not any(course.reached for course in found.courses)
    assert all(len(course.seconds) == 2 for course in found.courses)
    shown = time_to_quality.table(found)
    assert shown.count("not reached") == len(found.courses)


def test_a_training_ends_with_its_schedule():
    epochs = {
        name.rpartition(" ")[2]: entrant.most_epochs
        for name, entrant in time_to_quality.entrants(3).items()
    }
    assert epochs == {"constant": 40, "schedule": 7}
    rate = time_to_quality.schedule(3)
    assert float(rate(6 * 3)) > 0 and float(rate(7 * 3)) == 0


def test_an_entrant_is_stopped_at_its_own_end(monkeypatch):
    def prepare(workload):
        weights = plain_weights(workload.params)
        return Training(lambda state, batches: (state, batches), weights, lambda w: w)

    entrant = time_to_quality.Entrant(prepare, most_epochs=1)
    monkeypatch.setattr(time_to_quality, "entrants", lambda steps: {"tests": entrant})
    found = time_to_quality.measure(
        data.load("digits"), batch_size=512, seed=0, target=0.0, most_epochs=3
    )
    (course,) = found.courses
    assert len(course.seconds) == 1 and not course.reached


def test_training_stops_after_the_first_epoch_at_the_target():
    elbos = iter([-3.0, -2.0, -1.0, 0.0])
    course = time_to_quality.train(
        "tests",
        Training(lambda state, batches: (state, batches), None, lambda state: state),
        lambda number: np.zeros((1, 2), int),
        lambda weights: next(elbos),
        target=-1.0,
    )
    assert course.test_elbo == [-3.0, -2.0, -1.0] and course.reached
    assert np.all(np.diff(course.seconds) >= 0)


def test_the_ratio_is_of_the_seconds_to_the_target(tmp_path):
    courses = (
        Course(f"{OURS}, schedule", [1.0, 2.0], [-3.0, -1.0], True),
        Course("theirs", [2.0, 4.0, 6.0], [-4.0, -2.0, -1.0], True),
        Course("never", [2.0], [-9.0], False),
    )
    found = Courses(courses, -1.0)
    lines = time_to_quality.table(found).splitlines()
    assert "3.00" in lines[2] and "not reached" in lines[3]
    time_to_quality.save(found, {"device": "cpu"}, tmp_path)
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["courses"][1]["seconds"] == [2.0, 4.0, 6.0]
    assert (tmp_path / "figures" / "time_to_quality.png").exists()


def test_weights_go_to_and_fro():
    params = vae_jax.init(vae_jax.ModelSpec(), jax.random.key(0))
    back = time_to_quality.with_weights(params, plain_weights(params))
    jax.tree.map(np.testing.assert_array_equal, params, back)


@pytest.mark.parametrize("flag", ["--steps=3", "--dataset=mnist", "--repeats=2"])
def test_flags_without_effect_are_refused(flag, capsys):
    with pytest.raises(SystemExit) as stop:
        throughput.main(["--workload=time_to_quality", flag])
    assert stop.value.code == 2
    assert "not for workload time_to_quality" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(
    not importlib.util.find_spec("torch"), reason="PyTorch is not installed"
)
def test_pytorch_follows_the_schedule():
    found = time_to_quality.measure(
        data.load("digits"), batch_size=128, seed=0, target=0.0, most_epochs=2
    )
    for name in (pytorch.EAGER, pytorch.COMPILED):
        assert_same_model(found, name)
