"""Counts from the command to the evaluation."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

import vae_jax
from experiments import evaluate, mnist, sweep

PBMC = Path(__file__).resolve().parents[3] / "shared/data/pbmc_counts"
SMALL = {
    "epochs": 2,
    "hidden_dims": (8,),
    "latent_dim": 2,
    "evaluation_samples": 20,
    "batch_size": 50,
}


@pytest.fixture
def counts(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.poisson(np.exp(rng.normal(1, 1, size=(120, 1)) + np.zeros(6)))
    np.savez(tmp_path / "cells.npz", x=x.astype(np.uint16))
    return str(tmp_path / "cells.npz")


def test_counts_train_and_are_evaluated(counts, tmp_path, capsys):
    folder = tmp_path / "run"
    config = mnist.Config(
        dataset=counts, likelihood="auto", run_dir=str(folder), **SMALL
    )
    results = mnist.run(config)
    printed = capsys.readouterr().out
    assert "uint16 data are counts" in printed
    assert "6, counts, negative_binomial likelihood" in printed
    chosen = json.loads((folder / "config.json").read_text())
    assert (chosen["likelihood"], chosen["binarization"]) == (
        "negative_binomial",
        "none",
    )
    # A log-probability, whatever the units.
    assert np.isfinite(results["test_elbo"]) and results["test_elbo"] < 0
    names = {path.stem for path in (folder / "figures").iterdir()}
    assert names == {"training_curves", "latent_scatter"}
    params = vae_jax.load_run(folder)
    assert params.spec.likelihood == vae_jax.NegativeBinomial()
    found = evaluate.run(
        evaluate.Config(
            str(folder),
            evaluation_samples=20,
            num_annealed=0,
            num_simulated=0,
            num_gap=2,
            gap_steps=2,
            fitted_components=2,
        )
    )
    assert found["elbo"] == pytest.approx(results["test_elbo"], abs=1e-4)
    names = {path.stem for path in (folder / "figures").iterdir()}
    assert names == {"training_curves", "latent_scatter", "diagnostics"}
    # The same command finds the run complete.
    again = mnist.run(dataclasses.replace(config, likelihood="negative_binomial"))
    assert again["test_elbo"] == results["test_elbo"]


def test_a_sweep_of_counts(counts, tmp_path):
    small = SMALL | {"evaluation_samples": 0, "dataset": counts, "likelihood": "auto"}
    folder = str(tmp_path / "sweep")
    results = sweep.run(sweep.Config(run_dir=folder, beta=(0.5, 1.0), **small))
    assert all(np.isfinite(model["test_elbo"]) for model in results["models"])
    params = vae_jax.load_run(folder, model=1)
    assert params.spec.likelihood == vae_jax.NegativeBinomial()


@pytest.mark.slow
@pytest.mark.skipif(not PBMC.is_dir(), reason="no ../shared/data/pbmc_counts")
def test_real_counts_vary_more_than_poisson(tmp_path):
    """Held-out log p(x) of cells: overdispersed counts against Poisson ones."""
    found = {}
    for name in ("poisson", "negative_binomial"):
        found[name] = mnist.run(
            mnist.Config(
                dataset=str(PBMC / "pbmc_10k_top1000.npz"),
                likelihood=name,
                run_dir=str(tmp_path / name),
                epochs=60,
                hidden_dims=(64,),
                latent_dim=10,
                evaluation_samples=200,
            )
        )["importance_weighted_log_likelihood"]
    assert found["negative_binomial"] > found["poisson"] + 20
