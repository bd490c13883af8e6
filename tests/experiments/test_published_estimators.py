"""Comparisons of estimators: paired seeds, and figures of the bits themselves."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import vae_jax
from experiments import figures, sweep
from experiments.evaluation import evaluation_keys
from experiments.published import estimators
from experiments.published.estimators import ARMS, Arm
from experiments.published.tables import FOLDER
from vae_jax import data

RECORDS = sorted((FOLDER / "results").glob("estimators-*.json"))
TINY = {
    name: Arm(
        arm.group,
        arm.against,
        {
            **arm.flags,
            "dataset": "digits",
            "likelihood": "bernoulli",
            "latent_dim": 4,
            "batch_size": 128,
            "epochs": 1,
            "warmup_steps": 2,
            "num_seeds": 2,
        },
    )
    for name, arm in ARMS.items()
    if name in ("disarm", "gumbel_softmax", "disarm_batches_of_240")
}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("estimators")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "draw_all", lambda *args, **kwargs: [])
        config = estimators.Config(
            run_dir=str(folder), results_dir=str(folder / "results")
        )
        return folder, estimators.run(config, arms=TINY)


def test_every_arm_is_a_sweep_that_can_be():
    for arm in ARMS.values():
        sweep.check(sweep.Config(**arm.flags))
        assert arm.against is None or ARMS[arm.against].against is None


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_a_record_is_of_the_arm_as_it_stands(path):
    found = json.loads(path.read_text())
    arm = ARMS[path.stem.removeprefix("estimators-")]
    given = json.loads(json.dumps(dataclasses.asdict(sweep.Config(**arm.flags))))
    assert {name: given[name] for name in found["flags"]} == found["flags"]
    seeds = list(range(arm.flags["num_seeds"]))
    assert [model["seed"] for model in found["models"]] == seeds


@pytest.mark.long
def test_figures_are_of_bits_also_where_training_relaxes_them(recorded):
    folder, records = recorded
    digits, keys = data.load("digits"), evaluation_keys()
    x = data.binarize(digits.train / 16, keys.train_data)
    for name, found in zip(TINY, records, strict=True):
        written = folder / "results" / f"estimators-{name}.json"
        assert json.loads(written.read_text()) == json.loads(json.dumps(found))
        for index, model in enumerate(found["models"]):
            params = vae_jax.load_run(
                folder / f"estimators-{name}", model=index, trust=[estimators.__name__]
            )
            elbo = np.asarray(jax.jit(vae_jax.evaluate)(params, x, keys.noise).elbo)
            assert model["seed"] == index
            assert model["train_elbo"] == pytest.approx(elbo.mean(dtype=float), 1e-6)


def test_the_page_shows_differences_of_pairs(recorded):
    folder, records = recorded
    text = estimators.section(folder / "results", TINY)
    one, two = (
        [model["train_elbo"] for model in found["models"]] for found in records[:2]
    )
    pairs = np.subtract(two, one)
    mean, error = pairs.mean(), pairs.std(ddof=1) / 2**0.5
    assert f"| {mean:+.2f} ± {error:.2f} |" in text
    absent = estimators.section(folder / "nothing", TINY)
    assert absent.count("not yet measured") == len(TINY)


def test_records_of_other_seeds_are_no_pairs(recorded):
    _, (one, two, _) = recorded
    with pytest.raises(ValueError, match=r"seeds \[1, 0\] and \[0, 1\] are no pairs"):
        estimators.difference(
            {"models": two["models"][::-1]}, {"models": one["models"]}, "test_elbo"
        )


def test_a_name_that_is_no_arm_is_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        estimators.main(["--arms", "reinforce"])
    assert stop.value.code == 2
    assert "--arms must be some of disarm, leave_one_out" in capsys.readouterr().err
