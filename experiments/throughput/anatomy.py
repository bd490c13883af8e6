"""Breakdown of a step's time: `experiments.throughput --workload=anatomy`.

Times the hand-written scan of workload a with one part at a time omitted or replaced,
in turns with the complete step. Omitting a part changes the loss, so those rows measure
time only and train nothing useful. The ratio of a row is this library's speed over that
of the variant: at 0.9 the variant saves a tenth of the time.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.throughput.contestants import (
    OURS,
    SCAN,
    Contestant,
    Run,
    Workload,
    bernoulli_log_prob,
    scan_run,
)
from experiments.throughput.elbo import elbo_loss, prepare_scan, prepare_vae_jax
from experiments.throughput.limit import contestants as limit
from vae_jax.types import Array


@jax.custom_vjp
def closed_gradient_log_prob(x: Array, logits: Array) -> Array:
    """Log p(x|z) with a hand-written gradient, x - sigmoid(logits)."""
    return bernoulli_log_prob(x, logits)


def _forward(x: Array, logits: Array):
    return bernoulli_log_prob(x, logits), (x, logits)


def _backward(saved, cotangent: Array):
    x, logits = saved
    gradient = cotangent[..., None] * (x - jax.nn.sigmoid(logits))
    return jnp.zeros_like(x), gradient


closed_gradient_log_prob.defvjp(_forward, _backward)


def softplus_log_prob(x: Array, logits: Array) -> Array:
    """Log p(x|z) with JAX's softplus."""
    return jnp.sum(x * logits - jax.nn.softplus(logits), axis=-1)


def linear_log_prob(x: Array, logits: Array) -> Array:
    """Log p(x|z) without its exp and log1p terms; not a density."""
    return jnp.sum(x * logits, axis=-1)


VARIANTS = {
    "no noise": {"noise": False},
    "no exp, no log1p": {"log_prob": linear_log_prob},
    "no rows gathered": {"gather": "none"},
    "SGD, not Adam": {"optimizer": optax.sgd},
    "jax.nn.softplus": {"log_prob": softplus_log_prob},
    "own gradient": {"log_prob": closed_gradient_log_prob},
    "gathered once": {"gather": "epoch"},
    "unrolled 4 times": {"unroll": 4},
    "bfloat16": {"dtype": jnp.bfloat16},
    **{
        name: {"compiler_options": {flag: setting}}
        for name, flag, setting in (
            ("512-bit vectors", "xla_cpu_prefer_vector_width", 512),
            ("fast math", "xla_cpu_enable_fast_math", True),
            ("parts at once", "xla_cpu_enable_concurrency_optimized_scheduler", True),
        )
    },
}
OF_THE_LOSS = ("log_prob", "noise", "dtype")


def prepare_variant(workload: Workload, **options: Any) -> Run:
    """Prepare the scan with options of `elbo_loss` and `scan_run`."""
    of_loss = {name: options.pop(name) for name in OF_THE_LOSS if name in options}
    return scan_run(workload, elbo_loss(workload, **of_loss), **options)


def contestants() -> list[Contestant]:
    """This library, the complete step, its variants, and the limit."""
    return [
        Contestant(OURS, prepare_vae_jax),
        Contestant(SCAN, prepare_scan),
        *(
            Contestant(name, partial(prepare_variant, **options))
            for name, options in VARIANTS.items()
        ),
        *limit(),
    ]
