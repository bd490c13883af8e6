"""Contestants of `experiments.throughput --workload=b1` and `b50`: training.

All maximise the importance-weighted bound with the same number of samples, on pixels
binarized anew at every step.
"""

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
    """Prepare this library's bound, which also logs the ELBO."""
    return library_run(
        workload,
        vae_jax.importance_weighted_objective(num_samples=workload.num_samples),
        lambda x, key: data.binarize(
            data.to_unit_interval(x, workload.num_levels), key
        ),
    )


def bound_loss(workload: Workload) -> Loss:
    """Make the negative bound, written by hand, with all samples decoded at once."""
    activation = activation_of(workload)

    def loss(weights: PyTree, grey: Array, key: Key) -> Array:
        data_key, noise_key = jax.random.split(key)
        x = jax.random.bernoulli(data_key, grey).astype(jnp.float32)
        outputs = perceptron(weights["encoder"], x, activation)
        mean, log_var = jnp.split(outputs, 2, axis=-1)
        noise = jax.random.normal(noise_key, (workload.num_samples, *mean.shape))
        z = mean + jnp.exp(log_var / 2) * noise
        logits = perceptron(weights["decoder"], z, activation)
        # The constants of prior and posterior cancel.
        log_ratio = jnp.sum(noise**2 + log_var - z**2, axis=-1) / 2
        log_w = bernoulli_log_prob(x, logits) + log_ratio
        bound = jax.nn.logsumexp(log_w, axis=0) - jnp.log(workload.num_samples)
        return -jnp.mean(bound)

    return loss


def prepare_scan(workload: Workload) -> Run:
    """Prepare the same step written by hand, with one scan per round."""
    return scan_run(workload, bound_loss(workload))


def prepare_loop(workload: Workload) -> Run:
    """Prepare the same step, compiled alone, with batches from the host."""
    return loop_run(workload, bound_loss(workload))


def prepare_numpyro(workload: Workload) -> Run:
    """Prepare NumPyro's SVI with `RenyiELBO` of order 0, which is the same bound."""
    from numpyro import infer

    elbo = infer.RenyiELBO(alpha=0, num_particles=workload.num_samples)
    return svi_run(
        workload, elbo, lambda x, key: jax.random.bernoulli(key, x).astype(x.dtype)
    )


def contestants() -> list[Contestant]:
    """Installed contestants: this library first, the limit of the hardware last."""
    return installed(
        Contestant(OURS, prepare_vae_jax),
        Contestant(SCAN, prepare_scan),
        Contestant(LOOP, prepare_loop),
        Contestant(NUMPYRO, prepare_numpyro, "numpyro"),
        *pytorch.training_contestants(pytorch.bound_loss, loader=False),
        *limit.contestants(),
    )
