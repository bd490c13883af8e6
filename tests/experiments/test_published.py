"""Published tables: the page holds what the records hold, and they what was run."""

import dataclasses
import itertools
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import vae_jax
from experiments import figures, mnist
from experiments.evaluation import evaluation_keys
from experiments.published import __main__ as page
from experiments.published import estimators, miwae, tables
from experiments.published.tables import FOLDER, Cell, Table
from vae_jax import data

CELLS = {
    f"{table.name}-{cell.name}": (table, cell)
    for table in page.tables()
    for cell in table.cells
}
RECORDS = sorted(
    path for path in (FOLDER / "results").glob("*.json") if path.stem in CELLS
)


def test_the_page_is_made_of_the_records():
    stems = {path.stem for path in (FOLDER / "results").iterdir()}
    arms = {f"estimators-{name}" for name in estimators.ARMS}
    assert stems <= CELLS.keys() | arms | {"miwae"}
    assert (FOLDER / "README.md").read_text() == page.page(FOLDER / "results")


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_a_record_is_of_the_cell_as_it_stands(path):
    found = json.loads(path.read_text())
    table, cell = CELLS[path.stem]
    assert found["command"] == table.command(cell)
    assert found["published"] == dict(cell.published)
    assert found["which"] == cell.which and found["deviations"] == cell.deviations
    config = json.loads(json.dumps(dataclasses.asdict(cell.config)))
    # A flag that came later stands at its default.
    assert {name: config[name] for name in found["config"]} == found["config"]
    later = {name: config[name] for name in config.keys() - found["config"].keys()}
    defaults = json.loads(json.dumps(dataclasses.asdict(mnist.Config())))
    assert later == {name: defaults[name] for name in later}


def test_every_cell_is_a_run_that_can_be(tmp_path):
    assert len(CELLS) == 32
    for _, cell in CELLS.values():
        mnist.check(cell.config)
        assert set(cell.published) <= set(tables.FIGURES)
        assert all(-110 < value < -80 for value in cell.published.values())
        # An epoch can be the best only where there are validation data.
        assert cell.which == "last" or cell.config.dataset == "binarized_mnist"


TINY = Table(
    "tiny",
    "Two epochs of digits",
    "nobody",
    (
        Cell(
            "best",
            {"test_elbo": -30.0, "log_evidence": -29.0},
            mnist.Config(
                dataset="digits",
                likelihood="bernoulli",
                validation=29,
                epochs=2,
                hidden_dims=(8,),
                latent_dim=2,
                evaluation_samples=5,
            ),
            8.0,
            "all",
            which="best",
        ),
    ),
)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "draw_all", lambda *args, **kwargs: [])
        config = tables.Config(run_dir=str(folder), results_dir=str(folder / "results"))
        (found,) = tables.run(config, table=TINY)
    return folder, found


@pytest.mark.long
def test_a_cell_is_run_and_recorded(recorded):
    folder, found = recorded
    written = json.loads((folder / "results" / "tiny-best.json").read_text())
    assert written == json.loads(json.dumps(found))
    results = json.loads((folder / "tiny-best" / "results.json").read_text())
    digits = data.hold_out(data.load("digits"), 29)
    keys = evaluation_keys()
    test = data.binarize_dataset(digits, keys.data, method="dynamic").test / 16
    params = vae_jax.load_run(folder / "tiny-best", which="best")
    elbos = np.asarray(jax.jit(vae_jax.evaluate)(params, test, keys.noise).elbo)
    elbo = found["found"]["test_elbo"]
    assert elbo["mean"] == pytest.approx(np.mean(elbos, dtype=float), rel=1e-6)
    assert elbo["mean"] == pytest.approx(results["best_test_elbo"], rel=1e-6)
    assert elbo["standard_error"] == pytest.approx(elbos.std(ddof=1) / 360**0.5, 1e-5)
    evidence = found["found"]["log_evidence"]
    name = "best_importance_weighted_log_likelihood"
    assert evidence["mean"] == results[name]
    assert found["passes"] == 2 and found["paper_passes"] == 8
    assert 0 < found["training_minutes"] < results["seconds"] / 60
    printed = tables.shown(found)
    assert f"{elbo['mean'] + 30:+.2f} nats" in printed and "0.25 of the" in printed


def test_the_page_shows_a_record_and_its_absence(recorded, monkeypatch):
    folder, found = recorded
    monkeypatch.setattr(page, "tables", lambda: [TINY])
    text = page.page(folder / "results")
    elbo = found["found"]["test_elbo"]
    row = f"| `best` | test ELBO | -30.00 | {elbo['mean']:.2f} ± "
    assert row in text and f"| {elbo['mean'] + 30:+.2f} | 2 of 8 | 0.25 |" in text
    assert (
        "`python -m experiments.published.tiny --cells best`. Deviations: all." in text
    )
    assert "log p(x) is a lower bound" in text
    absent = page.page(folder / "nothing").split("##")[1]
    assert absent.count("not yet measured") == 2 and "±" not in absent


def test_figures_of_another_model_are_refused(recorded):
    folder, _ = recorded
    cell = TINY.cells[0]
    config = dataclasses.replace(cell.config, run_dir=str(folder / "tiny-best"))
    results = json.loads((folder / "tiny-best" / "results.json").read_text())
    results["best_test_elbo"] += 0.01
    with pytest.raises(ValueError, match="results.json says .*: start it anew"):
        tables.record(TINY, cell, config, results)
    del results["best_test_elbo"]
    with pytest.raises(ValueError, match="no figures of the best epoch"):
        tables.record(TINY, cell, config, results)


def test_a_name_that_is_no_cell_is_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        tables.main(TINY, ["--cells", "worst"])
    assert stop.value.code == 2
    assert "--cells must be some of best, got worst" in capsys.readouterr().err


def test_the_mask_is_the_notebooks():
    """Half of the values, each removed once, by the global generator's stream."""
    x = miwae.standardized_rows()
    np.testing.assert_allclose(x.mean(axis=0), 0, atol=1e-9)
    np.testing.assert_allclose(x.var(axis=0), 1, atol=1e-9)
    missing = np.isnan(miwae.with_missing(x, 0.5, 1234))
    np.random.seed(1234)
    chosen = np.random.choice(x.size, x.size // 2, replace=False)
    np.testing.assert_array_equal(np.flatnonzero(missing), np.sort(chosen))


def test_errors_are_of_the_removed_values_alone():
    x, missing = np.array([[1.0, 2.0]]), np.array([[True, False]])
    assert miwae.squared_error(np.array([[4.0, 9.0]]), x, missing) == 9.0


def test_the_weight_decay_is_chosen_without_the_removed_values(monkeypatch):
    """Each observed value is hidden once for a weight decay, and predicted then."""
    seen = []

    def imputed(tables, key, weight_decay, *, config):
        seen.extend(np.isnan(tables))
        return SimpleNamespace(mean=np.where(np.isnan(tables), 3.0, 1e6))

    monkeypatch.setattr(miwae, "imputed", imputed)
    rows = miwae.with_missing(np.ones((200, 5)), 0.5, 0)
    found = miwae.errors_by_weight_decay(rows, miwae.Config(epochs=1))
    # Removed values are NaN: a single one would make the mean NaN.
    assert found == {str(decay): 4.0 for decay in miwae.WEIGHT_DECAYS}
    hidden = np.sum(seen, axis=0)[~np.isnan(rows)]
    np.testing.assert_array_equal(hidden, len(miwae.WEIGHT_DECAYS))
    assert all(unseen[np.isnan(rows)].all() for unseen in seen)


@pytest.mark.long
def test_models_of_an_ensemble_differ_by_their_random_numbers_alone():
    """Each fills in the same gaps, by a model of its own; observed values stay."""
    config = miwae.Config(epochs=1, imputation_samples=20)
    rows = miwae.with_missing(miwae.standardized_rows()[:70, :4], 0.5, 0)
    copies = np.broadcast_to(rows, (3, *rows.shape))
    found = miwae.imputed(copies, jax.random.key(0), 0.1, config=config).mean
    missing = np.isnan(rows)
    np.testing.assert_allclose(
        found[:, ~missing], copies[:, ~missing].astype(np.float32), rtol=1e-6
    )
    for one, other in itertools.combinations(np.asarray(found), 2):
        assert np.all(one[missing] != other[missing])


def test_the_record_of_imputation_is_of_the_whole_experiment():
    path = FOLDER / "results" / "miwae.json"
    if not path.exists():
        pytest.skip("not yet measured")
    found = json.loads(path.read_text())
    assert (found["epochs"], found["missing"]) == (1000, 0.5)
    errors = found["errors_by_weight_decay"]
    assert errors[str(found["weight_decay"])] == min(errors.values())
    # Columns have variance 1: the mean of what is left imputes at about that.
    assert 0.8 < found["errors"]["mean"] < 1.3
