"""`experiments.collapse_grid`: its networks, its table, its errors."""

from pathlib import Path

import pytest

from experiments import collapse_grid, mnist
from experiments.collapse_grid import NETWORKS, Config
from experiments.runner.command_line import CommandFailed
from vae_jax import data


@pytest.fixture
def runs(monkeypatch):
    """Record the configurations that are run; those with 128 latents collapse."""
    seen = []

    def run(config):
        mnist.check(config)
        seen.append(config)
        units = 0 if config.latent_dim == 128 else config.latent_dim
        return {"test_elbo": -100.0, "test_kl_divergence": 2.5, "active_units": units}

    load = data.load

    def load_all_but_one(name, **options):
        if name == "fashion_mnist":
            raise data.DataUnavailable(name, "offline", [Path("a/b.gz")])
        return load("digits" if name == "mnist" else name, **options)

    monkeypatch.setattr(mnist, "run", run)
    monkeypatch.setattr(data, "load", load_all_but_one)
    return seen


def test_the_grid_has_the_networks_that_it_promises():
    assert 2 * len(NETWORKS) >= 24
    assert {len(network.hidden_dims) for network in NETWORKS} == {1, 2, 3}
    assert {network.network for network in NETWORKS} == {"mlp", "gated", "conv"}
    assert {network.activation for network in NETWORKS} == {"relu", "tanh"}
    widths = [width for network in NETWORKS for width in network.hidden_dims]
    assert (min(widths), max(widths)) == (100, 512)
    latents = [network.latent_dim for network in NETWORKS]
    assert (min(latents), max(latents)) == (2, 128)
    assert len({network.name for network in NETWORKS}) == len(NETWORKS)


def test_every_network_is_trained_and_a_collapsed_one_is_an_error(
    runs, tmp_path, capsys
):
    with pytest.raises(CommandFailed, match="16 of 36 networks collapsed"):
        collapse_grid.run(Config(run_dir=str(tmp_path), steps=900))
    assert len(runs) == len({config.run_dir for config in runs}) == 36
    # The defaults are used; 900 steps at 12 per epoch are 75 epochs.
    assert {(config.beta_warmup_epochs, config.epochs) for config in runs} == {
        (None, 75)
    }
    table = (tmp_path / "table.md").read_text().splitlines()
    assert "| mnist | mlp | 200-200 | relu | 50 | -100.00 | 2.50 | 50 | no |" in table
    assert "| digits | gated | 100-100-100 | gates | 128 | -100.00 | 2.50 | 0 |" in (
        "\n".join(table)
    )
    assert sum("**yes**" in line for line in table) == 16
    printed = capsys.readouterr().out
    assert "without fashion_mnist" in printed and "16 of 36 collapsed" in printed


def test_a_grid_without_data_is_refused(runs, tmp_path):
    config = Config(run_dir=str(tmp_path), datasets=("fashion_mnist",))
    with pytest.raises(ValueError, match="none of --datasets fashion_mnist"):
        collapse_grid.run(config)
    with pytest.raises(ValueError, match="--steps must be at least 1, got 0"):
        collapse_grid.run(Config(run_dir=str(tmp_path), steps=0))
    assert not runs
