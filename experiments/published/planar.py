"""Rezende & Mohamed 2015: one layer of 40 latents, static MNIST, planar flows.

    python -m experiments.published.planar

The paper has maxout units. Two cells have ReLUs; two have gated units, which like
maxout units learn their nonlinearity, and five times as many steps.
"""

from typing import Any

from experiments.mnist import Config
from experiments.published.tables import Cell, Table, main

_NETWORK: dict[str, Any] = {
    "dataset": "binarized_mnist",
    "likelihood": "bernoulli",
    "hidden_dims": (400, 400),
    "latent_dim": 40,
    "batch_size": 100,
    "epochs": 100,
    "evaluation_samples": 200,
    "beta_warmup_epochs": 10.0,
    "schedule": "cosine",
    "warmup_steps": 500,
    "learning_rate": 1e-3,
}
_FLOWS: dict[str, Any] = {"posterior": "planar", "num_flow_steps": 10}
_GATED: dict[str, Any] = {
    "network": "gated",
    "hidden_dims": (300, 300),
    "batch_size": 20,
    "learning_rate": 5e-4,
}
_OURS = (
    "{units}, not of maxout units; Adam at {rate} with a cosine schedule, not RMSprop; "
    "beta rises over 10 epochs, not over 10,000 steps from .01; initial weights of "
    "vae_jax; the epoch is chosen on the validation images"
)
_RELUS = _OURS.format(units="two layers of 400 ReLUs", rate="1e-3")
_GATES = "batches of 20, not 100; " + _OURS.format(
    units="two layers of 300 gated units", rate="5e-4"
)
# 500,000 steps of 100.
_PAPER_PASSES = 1000


def _cell(name: str, published: float, deviations: str, **flags: Any) -> Cell:
    return Cell(
        name,
        {"log_evidence": published},
        Config(**(_NETWORK | flags)),
        _PAPER_PASSES,
        deviations,
        which="best",
    )


TABLE = Table(
    "planar",
    "Planar flows, 40 latents, static MNIST, 200 importance samples",
    "Rezende & Mohamed 2015, arXiv:1505.05770, figure 4, as quoted elsewhere; that of "
    "10 flows is from memory",
    (
        _cell("diagonal", -89.9, _RELUS),
        _cell("flows_10", -87.5, _RELUS, **_FLOWS),
        _cell("diagonal_gated", -89.9, _GATES, **_GATED),
        _cell("flows_10_gated", -87.5, _GATES, **_GATED, **_FLOWS),
    ),
)

if __name__ == "__main__":
    main(TABLE)
