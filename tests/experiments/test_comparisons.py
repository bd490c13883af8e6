"""The comparisons on tables and counts: folds, baselines, records and the page."""

import importlib.util
import json

import jax
import numpy as np
import pytest
import scipy.stats
from sklearn.decomposition import PCA
from sklearn.naive_bayes import CategoricalNB

import vae_jax
from experiments.comparisons import __main__ as page
from experiments.comparisons import (
    baselines,
    counts,
    mixed,
    protocol,
    scvi_tools,
    tables,
)
from experiments.comparisons.protocol import FOLDER, Held, Rows
from experiments.published import __main__ as published
from vae_jax import data

RNG = np.random.default_rng(0)
SHORT = {"folds": 2, "epochs": 2, "num_samples": 20}


def rows_of(x, *, num_test=40):
    rest, test = x[num_test:], x[:num_test]
    key = jax.random.key(0)
    return Rows(rest[len(rest) // 5 :], rest[: len(rest) // 5], test, key)


def correlated(n=300, dim=4, latents=2):
    loadings = RNG.normal(size=(latents, dim)) * [1, 10, 100, 0.1]
    noise = RNG.normal(size=(n, dim)) * [0.3, 3, 30, 0.03]
    return RNG.normal(size=(n, latents)) @ loadings + noise + [5, -2, 0, 1]


@pytest.mark.parametrize(("num_rows", "folds"), [(25, 5), (178, 5), (31, 3)])
def test_every_row_is_held_out_once_and_trains_nothing_that_it_judges(num_rows, folds):
    x, config = np.arange(num_rows)[:, None], protocol.Config(folds=folds)
    found = protocol.folds(x, config)
    held_out = np.concatenate([rows.test for rows in found])
    assert sorted(held_out[:, 0]) == list(range(num_rows))
    for rows in found:
        every = np.concatenate([rows.known, rows.test])
        assert sorted(every[:, 0]) == list(range(num_rows))
        assert len(rows.validation) == (num_rows - len(rows.test)) // 5
    keys = {tuple(jax.random.key_data(rows.key).tolist()) for rows in found}
    assert len(keys) == folds
    with pytest.raises(ValueError, match=f"--folds {folds} needs {5 * folds} rows"):
        protocol.folds(x[: 5 * folds - 1], config)


def test_a_refit_takes_as_many_steps():
    rows = rows_of(np.zeros((140, 1)))  # 80 to train on, 100 in all.
    config = protocol.Config(batch_size=32)
    assert protocol.refit_epochs(8, rows, config) == 6  # 24 steps of 3, then of 4.
    assert protocol.refit_epochs(1, rows, protocol.Config(batch_size=1)) == 1


def test_a_record_names_the_flags_that_differ_and_no_folder():
    config = counts.Config(counts="/some/where/x.npz", latent_dim=3, folds=2)
    found = counts.provenance(config, "command")
    assert found["command"] == "command --counts=x.npz --folds=2 --latent_dim=3"
    assert "where" not in json.dumps(found) and "results_dir" not in found["config"]
    plain = protocol.provenance(tables.Config(tables=("wine",)), "command")
    assert plain["command"] == "command"


def test_densities_are_those_of_the_units_of_the_data(monkeypatch):
    """Of standardized columns they are off by the log of 300,000."""
    monkeypatch.setattr(baselines, "MAX_COMPONENTS", 2)
    x = correlated()
    rows = rows_of(x)
    normal = scipy.stats.multivariate_normal
    moments = x[40:].mean(axis=0), np.cov(x[40:].T, bias=True)
    expected = normal(*moments).logpdf(rows.test)
    np.testing.assert_allclose(baselines.gaussian(rows).log_p, expected, rtol=1e-9)

    found = baselines.ppca(rows)
    shift, scale = x[40:].mean(axis=0), x[40:].std(axis=0)
    number = int(found.choice.split()[0])
    covariance = PCA(number).fit((x[40:] - shift) / scale).get_covariance()
    expected = normal(shift, covariance * np.outer(scale, scale)).logpdf(rows.test)
    np.testing.assert_allclose(found.log_p, expected, rtol=1e-9)
    # Data of a rotated Gaussian: one component is enough, and it is the Gaussian.
    mixture = baselines.mixture(rows)
    assert mixture.log_p.mean() == pytest.approx(expected.mean(), abs=0.2)


def test_a_mixture_finds_two_clusters_of_which_a_gaussian_knows_nothing(monkeypatch):
    monkeypatch.setattr(baselines, "MAX_COMPONENTS", 3)
    x = RNG.normal(size=(400, 2)) + 8 * RNG.integers(2, size=(400, 1))
    rows = rows_of(x)
    mixture, gaussian = baselines.mixture(rows), baselines.gaussian(rows)
    assert int(mixture.choice.split()[0]) >= 2
    assert mixture.log_p.mean() > gaussian.log_p.mean() + 0.5


def test_the_negative_binomial_is_of_maximum_likelihood():
    x = RNG.negative_binomial(3.0, 0.2, size=2000).astype(float)
    log_prob = mixed.negative_binomial(x)

    def total(parameters):
        r, mean = np.exp(parameters)
        return -scipy.stats.nbinom(r, r / (r + mean)).logpmf(x).sum()

    best = scipy.optimize.minimize(total, [0.0, 2.0], method="Nelder-Mead")
    assert log_prob(x).sum() == pytest.approx(-best.fun, abs=1e-2)


def test_a_class_given_its_columns_is_naive_bayes():
    kinds = [
        data.Column("class", "categorical", ("a", "b", "c")),
        data.Column("u", "categorical", ("p", "q")),
        data.Column("v", "binary", ("no", "yes")),
    ]
    x = np.stack([RNG.integers(size, size=500) for size in (3, 2, 2)], 1).astype(float)
    x[:, 1] = np.where(x[:, 0] == 2, 1.0, x[:, 1])
    rows = rows_of(x, num_test=100)
    found = mixed.independent_given(rows, kinds, "class").log_p
    known = rows.known.astype(int)
    model = CategoricalNB(alpha=0.5, min_categories=2).fit(known[:, 1:], known[:, 0])
    joint = model.predict_joint_log_proba(rows.test[:, 1:].astype(int))
    codes = rows.test[:, 0].astype(int)
    # The prior over classes has half an observation more here.
    shares = np.log((np.bincount(known[:, 0]) + 0.5) / (len(known) + 1.5))
    expected = joint[np.arange(100), codes] - model.class_log_prior_[codes]
    np.testing.assert_allclose(found, expected + shares[codes], rtol=1e-6)
    alone = mixed.independent(rows, kinds).log_p
    assert found.mean() > alone.mean() + 0.02


def test_differences_are_of_paired_rows():
    """Rows differ by far more than the two models do on each."""
    log_p = RNG.normal(scale=100, size=200)
    held = {
        "a": [Held(log_p[:120], "x", 0.5), Held(log_p[120:], "y", 0.0)],
        "b": [Held(log_p[:120] - 1), Held(log_p[120:] - 2)],
    }
    found = protocol.summary(held, "a")
    assert found["a"]["high_pareto_k"] == pytest.approx(0.3)
    assert found["b"]["high_pareto_k"] is None
    less = found["b"]["reference_less_this"]
    differences = np.repeat([1.0, 2.0], [120, 80])
    assert less["mean"] == pytest.approx(1.4)
    error = differences.std(ddof=1) / np.sqrt(200)
    assert less["standard_error"] == pytest.approx(error, rel=1e-6)
    bad = held | {"b": [Held(np.full(200, -np.inf))]}
    with pytest.raises(ValueError, match="of b must be finite"):
        protocol.summary(bad, "a")


def test_the_tables_are_as_their_notes_say():
    loaded = {
        name: load(protocol.Config()) for name, (_, load) in tables.TABLES.items()
    }
    shapes = {name: table.x.shape for name, table in loaded.items()}
    assert shapes == {
        "wine": (178, 13),
        "breast_cancer": (556, 30),
        "diabetes": (442, 8),
        "digits": (1797, 64),
        "mixed": (178, 14),
    }
    assert (loaded["breast_cancer"].x > 0).all()


def test_the_page_is_that_of_the_records():
    written = (FOLDER / "README.md").read_text()
    assert written == page.page(FOLDER / "results")


@pytest.mark.parametrize("command", [page, published])
def test_a_question_for_help_writes_no_page(command, monkeypatch, capsys):
    def unwanted(folder):
        raise AssertionError("a page is made")

    monkeypatch.setattr(command, "page", unwanted)
    for argument, code in (("--help", 0), ("--hlep", 2)):
        with pytest.raises(SystemExit) as stop:
            command.main([argument])
        assert stop.value.code == code
    assert "Write the page" in capsys.readouterr().out


def test_what_has_no_record_is_said_to_be_not_yet_measured(tmp_path):
    assert page.page(tmp_path).lower().count("not yet measured") == 7


@pytest.mark.slow
def test_a_table_is_compared_and_recorded(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tables, "LATENTS", (2,))
    config = tables.Config(tables=("mixed",), results_dir=str(tmp_path), **SHORT)
    tables.run(config)
    record = json.loads((tmp_path / "tables-mixed.json").read_text())
    assert record["config"]["folds"] == 2 and record["columns"] == 14
    assert set(record["models"]) == {
        "VAE",
        "independent columns",
        "independent given the cultivar",
    }
    assert len(record["models"]["VAE"]["fold_means"]) == 2
    assert "independent columns" in capsys.readouterr().out
    assert "178 rows of 14 columns" in page.page(tmp_path)


@pytest.mark.slow
def test_likelihoods_of_counts_are_compared_and_recorded(tmp_path, capsys):
    """Of overdispersed counts: after two epochs already Poisson is far behind."""
    rate = RNG.gamma(0.5, 2.0, size=(60, 7)) * 10
    np.savez(tmp_path / "cells.npz", x=RNG.poisson(rate).astype(np.uint16) + 1)
    config = counts.Config(
        counts=str(tmp_path / "cells.npz"), results_dir=str(tmp_path), **SHORT
    )
    counts.run(config)
    record = json.loads((tmp_path / "counts.json").read_text())
    mean = {name: found["log_p"]["mean"] for name, found in record["models"].items()}
    assert mean["Poisson"] < mean["negative binomial"] - 3
    assert record["command"].endswith("--counts=cells.npz")
    assert "negative binomial" in capsys.readouterr().out
    assert "60 cells" in page.page(tmp_path)


def test_a_row_without_counts_has_no_exposure(tmp_path):
    x = np.ones((30, 3), np.uint16)
    x[-1] = 0
    np.savez(tmp_path / "x.npz", x=x)
    with pytest.raises(ValueError, match="1 of 30 rows have no count"):
        counts.load(str(tmp_path / "x.npz"))
    np.savez(tmp_path / "x.npz", x=x[:-1].astype(np.float32))
    assert counts.load(str(tmp_path / "x.npz")).dtype.kind == "i"


@pytest.mark.long
def test_the_optimizer_moves_a_likelihoods_own_numbers_faster():
    spec = counts.spec(counts.LIKELIHOODS["negative binomial"], 3, 1)
    x = jax.numpy.ones((4, 3))
    given = counts.with_row_totals(x)
    params = vae_jax.init(spec, jax.random.key(0), x=x, labels=given)
    config = protocol.Config(learning_rate=1e-3, likelihood_learning_rate=0.02)
    optimizer = protocol.optimizer(config)
    ones = jax.tree.map(jax.numpy.ones_like, params)
    step, _ = optimizer.update(ones, optimizer.init(params), params)
    for leaf in jax.tree.leaves(step.likelihood):
        np.testing.assert_allclose(leaf, -0.02, rtol=1e-4)
    for leaf in jax.tree.leaves((step.encoder, step.decoder)):
        np.testing.assert_allclose(leaf, -1e-3, rtol=1e-4)


def test_a_model_of_scvi_tools_is_the_same_model():
    """Its bound and its log p(x), by its own code and by ours."""
    pytest.importorskip("scvi", reason="scvi-tools is not installed")
    x = RNG.poisson(RNG.gamma(2.0, 1.0, size=(30, 6))) + 1
    config = scvi_tools.Config(counts="", latent_dim=2)
    model = scvi_tools._model(x, config)
    scvi_tools._fit(model, config, 20, train_size=1.0)
    model.module.eval()
    params = scvi_tools.as_params(model, 6, 2)
    known = jax.numpy.float32(x)
    given = counts.with_row_totals(known)
    key = jax.random.key(0)
    ours = vae_jax.evaluate(params, known, key, num_samples=2000, labels=given)
    theirs = [float(model.get_elbo()) for _ in range(200)]
    error = np.std(theirs) / np.sqrt(200)
    assert abs(ours.elbo.mean() - np.mean(theirs)) < 5 * error + 0.01
    found = vae_jax.log_evidence(params, known, key, num_samples=5000, labels=given)
    expected = model.get_marginal_ll(n_mc_samples=5000, return_mean=False)
    np.testing.assert_allclose(found.estimate, np.asarray(expected), atol=0.1)


@pytest.mark.skipif(
    importlib.util.find_spec("scvi") is not None, reason="scvi-tools is installed"
)
def test_scvi_tools_is_asked_for(tmp_path):
    with pytest.raises(ValueError, match="pip install 'scvi-tools"):
        scvi_tools.run(scvi_tools.Config(counts=str(tmp_path / "x.npz")))
