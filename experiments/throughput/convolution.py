"""Contestants of `experiments.throughput --workload=conv`: convolutional networks.

On CPUs, XLA lowers convolutions to its fast kernels only outside of loops, so the
comparison is with a separately compiled step.
"""

import jax
import jax.numpy as jnp

from experiments.throughput.contestants import (
    LOOP,
    OURS,
    Contestant,
    Loss,
    Run,
    Workload,
    bernoulli_log_prob,
    loop_run,
)
from experiments.throughput.elbo import prepare_vae_jax
from vae_jax.types import Array, Key, PyTree

_AXES = ("NHWC", "HWIO", "NHWC")


def elbo_loss(workload: Workload) -> Loss:
    """Make the negative ELBO of the convolutional networks, with XLA's convolutions.

    Args:
      workload: the workload.

    Returns:
      The loss.
    """
    height, width = workload.params.spec.data_shape

    def encode(layers: list[dict[str, Array]], x: Array) -> Array:
        *convolutions, dense, output = layers
        images = x.reshape(-1, height, width, 1)
        for layer in convolutions:
            images = jax.lax.conv_general_dilated(
                images, layer["kernel"], (2, 2), "SAME", dimension_numbers=_AXES
            )
            images = jax.nn.relu(images + layer["bias"])
        flat = images.reshape(len(images), -1)
        features = jax.nn.relu(flat @ dense["kernel"] + dense["bias"])
        return features @ output["kernel"] + output["bias"]

    def decode(layers: list[dict[str, Array]], z: Array) -> Array:
        *convolutions, dense, output = layers
        images = jax.nn.relu(z @ dense["kernel"] + dense["bias"])
        channels = convolutions[0]["kernel"].shape[-2]
        images = images.reshape(-1, height // 4, width // 4, channels)
        for layer in convolutions:
            images = jax.lax.conv_transpose(
                images, layer["kernel"], (2, 2), "SAME", dimension_numbers=_AXES
            )
            images = jax.nn.relu(images + layer["bias"])
        logits = images @ output["kernel"] + output["bias"]
        return logits.reshape(len(z), -1)

    def loss(weights: PyTree, x: Array, key: Key) -> Array:
        mean, log_var = jnp.split(encode(weights["encoder"], x), 2, axis=-1)
        z = mean + jnp.exp(log_var / 2) * jax.random.normal(key, mean.shape)
        logits = decode(weights["decoder"], z)
        kl = jnp.sum(mean**2 + jnp.exp(log_var) - log_var - 1, axis=-1) / 2
        return jnp.mean(kl - bernoulli_log_prob(x, logits))

    return loss


def prepare_loop(workload: Workload) -> Run:
    """Prepare the same step written by hand, compiled alone, batches from the host."""
    return loop_run(workload, elbo_loss(workload))


def contestants() -> list[Contestant]:
    """This library and the hand-written step."""
    return [Contestant(OURS, prepare_vae_jax), Contestant(LOOP, prepare_loop)]
