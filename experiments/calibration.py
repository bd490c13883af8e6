"""Simulation-based calibration of a trained model's q(z|x): figures, row, picture."""

from functools import partial
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

import vae_jax
from experiments.style import styled
from vae_jax.calibration import rank_test, simulation_ranks
from vae_jax.types import Key

NUM_DRAWS = 99


def calibration_figures(
    params: vae_jax.Params, key: Key, *, num_simulated: int
) -> dict[str, Any] | None:
    """Ranks of simulated latents among draws of q(z|x), tested for uniformity.

    Args:
      params: model parameters.
      key: PRNG key, consumed once.
      num_simulated: simulated observations; 0 for none.

    Returns:
      Figures by quantity, the latents and last log p(x, z), and of all together; None
      for none, and for a model with labels.
    """
    if not num_simulated or params.spec.is_conditional:
        return None
    ranks_key, test_key = jax.random.split(key)
    ranks = jax.jit(
        partial(simulation_ranks, num_simulations=num_simulated, num_draws=NUM_DRAWS)
    )(params, ranks_key)
    found = jax.jit(partial(rank_test, num_draws=NUM_DRAWS))(ranks, test_key)
    deviation = np.abs(np.asarray(found.deviation))
    rank, _ = np.unravel_index(deviation.argmax(), deviation.shape)
    return {
        "num_simulated": num_simulated,
        "num_draws": NUM_DRAWS,
        # Bonferroni: that none of the quantities deviates.
        "p_value": min(1.0, float(found.p_value.min()) * ranks.shape[1]),
        "largest_deviation": float(deviation.max()),
        "band_there": float(found.band[rank]),
        "p_values": np.asarray(found.p_value).tolist(),
        "deviation": np.asarray(found.deviation).T.tolist(),
        "band": np.asarray(found.band).tolist(),
    }


def row(figures: dict[str, Any]) -> tuple[str, str]:
    """The row of a table: how far q(z|x) is from calibrated.

    Args:
      figures: of `calibration_figures`.

    Returns:
      Label and text.
    """
    label = f"calibration of q(z|x), {figures['num_simulated']} simulated"
    text = (
        f"ranks deviate by up to {figures['largest_deviation']:.3f} (95% band "
        f"{figures['band_there']:.3f}), p = {figures['p_value']:.2g}"
    )
    return label, text


@styled()
def draw(figures: dict[str, Any]) -> Figure:
    """Deviation of the ranks from uniform ones, with its simultaneous band.

    Args:
      figures: of `calibration_figures`.

    Returns:
      The picture. Below 0 at first and above it later: draws are too wide; the other
      way round: too narrow.
    """
    figure = Figure((7, 4.2))
    axes = figure.subplots()
    *latents, joint = np.array(figures["deviation"])
    rank = np.arange(len(joint)) / figures["num_draws"]
    band = np.array(figures["band"])
    axes.fill_between(rank, -band, band, color="0.85", label="95% band")
    for number, values in enumerate(latents):
        axes.plot(
            rank,
            values,
            color="C0",
            alpha=0.6,
            linewidth=1,
            label=None if number else "each latent",
        )
    axes.plot(rank, joint, color="C3", label="log p(x, z)")
    axes.axhline(0, color="0.5", linewidth=1)
    axes.set(
        title=f"calibration of q(z|x), {figures['num_simulated']} simulated",
        xlabel=f"rank of the true z among {figures['num_draws']} draws, as a share",
        ylabel="ECDF minus uniform",
    )
    axes.legend()
    return figure
