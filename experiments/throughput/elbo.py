"""Contestants of `experiments.throughput --workload=a`: training one model.

All maximise the ELBO with one reparameterized sample and the closed-form KL.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import vae_jax
from experiments.throughput import limit, pytorch
from experiments.throughput.contestants import (
    LOOP,
    NUMPYRO,
    OURS,
    SCAN,
    Contestant,
    Loss,
    Run,
    Workload,
    activation_of,
    bernoulli_log_prob,
    installed,
    library_run,
    loop_run,
    perceptron,
    scan_run,
    svi_run,
)
from vae_jax import data
from vae_jax.types import Array, Key, PyTree


def prepare_vae_jax(workload: Workload) -> Run:
    """Prepare this library's ELBO."""
    return library_run(
        workload,
        vae_jax.elbo_objective(),
        lambda x, key: data.to_unit_interval(x, workload.num_levels),
    )


def elbo_loss(
    workload: Workload,
    *,
    log_prob: Callable[[Array, Array], Array] = bernoulli_log_prob,
    noise: bool = True,
    dtype: Any = jnp.float32,
) -> Loss:
    """Make the negative ELBO, written by hand.

    Args:
      workload: the workload.
      log_prob: log-probability of pixels given logits, both `[B, D]`, summed over D.
      noise: whether to sample z; otherwise its mean is used.
      dtype: dtype of the networks.

    Returns:
      The loss.
    """
    activation = activation_of(workload)

    def loss(weights: PyTree, x: Array, key: Key) -> Array:
        weights, inputs = jax.tree.map(lambda leaf: leaf.astype(dtype), (weights, x))
        outputs = perceptron(weights["encoder"], inputs, activation)
        mean, log_var = jnp.split(outputs, 2, axis=-1)
        draw = jax.random.normal(key, mean.shape, dtype) if noise else 0
        z = mean + jnp.exp(log_var / 2) * draw
        logits = perceptron(weights["decoder"], z, activation).astype(jnp.float32)
        kl = jnp.sum(mean**2 + jnp.exp(log_var) - log_var - 1, axis=-1) / 2
        return jnp.mean(kl - log_prob(x, logits))

    return loss


def prepare_scan(workload: Workload) -> Run:
    """Prepare the same step written by hand, with one scan per round."""
    return scan_run(workload, elbo_loss(workload))


def prepare_loop(workload: Workload) -> Run:
    """Prepare the same step as in flax's examples: compiled alone, host batches."""
    return loop_run(workload, elbo_loss(workload))


def prepare_numpyro(workload: Workload) -> Run:
    """Prepare NumPyro's SVI with `TraceMeanField_ELBO`.

    It uses the closed-form KL, as the other contestants do; `Trace_ELBO` would estimate
    the KL from samples.
    """
    from numpyro import infer

    return svi_run(workload, infer.TraceMeanField_ELBO(), lambda x, key: x)


def contestants() -> list[Contestant]:
    """Installed contestants: this library first, the limit of the hardware last."""
    return installed(
        Contestant(OURS, prepare_vae_jax),
        Contestant(SCAN, prepare_scan),
        Contestant(LOOP, prepare_loop),
        Contestant(NUMPYRO, prepare_numpyro, "numpyro"),
        *pytorch.training_contestants(pytorch.elbo_loss, loader=True),
        *limit.contestants(),
    )
