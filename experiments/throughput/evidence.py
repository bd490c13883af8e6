"""Contestants of `experiments.throughput --workload=c`: log evidence of images.

All draw the same number of importance samples per image from the same encoder and
weight them with the same decoder. Only the noise differs. They process one image at a
time: samples of many images at once would need much memory and be no faster.
"""

import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp

import vae_jax
from experiments.evaluation import latents_at_once
from experiments.throughput import pytorch
from experiments.throughput.contestants import (
    NUMPYRO,
    OURS,
    SCAN,
    Contestant,
    Workload,
    activation_of,
    bernoulli_log_prob,
    installed,
    model_and_guide,
    perceptron,
    plain_weights,
)
from vae_jax.types import Array, Key, PyTree

# Chunk size of the hand-written scan, the fastest of several tried on two cores.
CHUNK_SIZE = 250


def prepare_vae_jax(workload: Workload) -> partial:
    """Prepare this library's estimates, with errors and effective sample sizes."""

    @jax.jit
    def run(params: vae_jax.Params, images: Array, key: Key, batches: Array):
        x = _bits(images, batches)
        return vae_jax.log_evidence(
            params,
            x,
            key,
            num_samples=workload.num_samples,
            chunk_size=latents_at_once(),
        )

    return partial(run, workload.params, workload.images, workload.key)


def prepare_scan(workload: Workload) -> partial:
    """Prepare the estimates alone, written by hand, with samples in chunks."""
    activation = activation_of(workload)
    # Only whole chunks, so that no masking is needed.
    chunk_size = math.gcd(workload.num_samples, CHUNK_SIZE)

    def evidence(weights: PyTree, x: Array, key: Key) -> Array:
        outputs = perceptron(weights["encoder"], x[None], activation)
        mean, log_var = jnp.split(outputs, 2, axis=-1)

        def add_chunk(log_sum: Array, key: Key) -> tuple[Array, None]:
            noise = jax.random.normal(key, (chunk_size, mean.shape[-1]))
            z = mean + jnp.exp(log_var / 2) * noise
            logits = perceptron(weights["decoder"], z, activation)
            # The constants of prior and posterior cancel.
            log_ratio = jnp.sum(noise**2 + log_var - z**2, axis=-1) / 2
            log_w = bernoulli_log_prob(x, logits) + log_ratio
            return jnp.logaddexp(log_sum, jax.nn.logsumexp(log_w)), None

        keys = jax.random.split(key, workload.num_samples // chunk_size)
        log_sum, _ = jax.lax.scan(add_chunk, jnp.asarray(-jnp.inf), keys)
        return log_sum - jnp.log(workload.num_samples)

    @jax.jit
    def run(weights: PyTree, images: Array, key: Key, batches: Array) -> Array:
        x = _bits(images, batches)
        keys = jax.random.split(key, len(x))
        return jax.lax.map(lambda image: evidence(weights, *image), (x, keys))

    return partial(run, plain_weights(workload.params), workload.images, workload.key)


def prepare_numpyro(workload: Workload) -> partial:
    """Prepare the estimates alone, with NumPyro's `RenyiELBO` of order 0.

    All samples of an image are drawn at once; chunks would be slower.
    """
    from numpyro import infer

    model, guide = model_and_guide(workload)
    bound = infer.RenyiELBO(alpha=0, num_particles=workload.num_samples)

    @jax.jit
    def run(weights: PyTree, images: Array, key: Key, batches: Array) -> Array:
        x = _bits(images, batches)
        keys = jax.random.split(key, len(x))
        return jax.lax.map(
            lambda image: -bound.loss(image[1], weights, model, guide, image[0][None]),
            (x, keys),
        )

    return partial(run, plain_weights(workload.params), workload.images, workload.key)


def _bits(images: Array, batches: Array) -> Array:
    return images[batches.ravel()].astype(jnp.float32)


def contestants() -> list[Contestant]:
    """Installed contestants, this library first."""
    return installed(
        Contestant(OURS, prepare_vae_jax),
        Contestant(SCAN, prepare_scan),
        Contestant(NUMPYRO, prepare_numpyro, "numpyro"),
        Contestant(
            pytorch.EAGER,
            pytorch.evidence_run,
            pytorch.TORCH,
        ),
    )


def temporary_bytes(
    entrants: Sequence[Contestant], workload: Workload
) -> dict[str, dict[int, int]]:
    """Temporary memory of the compiled programs, without arguments and results.

    Returns:
      Bytes by contestant, then by number of samples: a fifth, once and four times the
      workload's.
    """
    samples = workload.num_samples
    counts = sorted({max(1, samples // 5), samples, 4 * samples})
    batches = jax.ShapeDtypeStruct(workload.batch_shape, jnp.int32)

    def size(entrant: Contestant, count: int) -> int:
        run = entrant.prepare(workload._replace(num_samples=count))
        program = run.func.lower(*run.args, batches).compile()
        return program.memory_analysis().temp_size_in_bytes

    return {
        entrant.name: {count: size(entrant, count) for count in counts}
        for entrant in entrants
        if entrant.needs != pytorch.TORCH
    }
