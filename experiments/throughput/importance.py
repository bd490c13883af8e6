"""The contestants of `experiments.throughput --workload=b1` and `b50`: ways to train.

All raise the importance-weighted bound of the same number of samples, on bits that
are drawn afresh at every step.
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
    """This library's bound, its ELBO logged beside it."""
    return library_run(
        workload,
        vae_jax.importance_weighted_objective(num_samples=workload.num_samples),
        lambda x, key: data.binarize(
            data.to_unit_interval(x, workload.num_levels), key
        ),
    )


def bound_loss(workload: Workload) -> Loss:
    """Minus the bound, by hand: the encoder runs once, all samples at once."""
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
    """The same step written by hand, a round one scan."""
    return scan_run(workload, bound_loss(workload))


def prepare_loop(workload: Workload) -> Run:
    """The same step, compiled alone, batches from the host."""
    return loop_run(workload, bound_loss(workload))


def prepare_numpyro(workload: Workload) -> Run:
    """NumPyro's SVI with `RenyiELBO` of order 0, which is the bound."""
    from numpyro import infer

    elbo = infer.RenyiELBO(alpha=0, num_particles=workload.num_samples)
    return svi_run(
        workload, elbo, lambda x, key: jax.random.bernoulli(key, x).astype(x.dtype)
    )


def contestants() -> list[Contestant]:
    """All that are installed, this library first, the machine's limit at the end."""
    return installed(
        Contestant(OURS, prepare_vae_jax),
        Contestant(SCAN, prepare_scan),
        Contestant(LOOP, prepare_loop),
        Contestant(NUMPYRO, prepare_numpyro, "numpyro"),
        *pytorch.training_contestants(pytorch.bound_loss, loader=False),
        *limit.contestants(),
    )
