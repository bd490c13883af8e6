"""Where a step's time goes: `experiments.throughput --workload=anatomy`.

The hand-written scan of workload a, with one part left out or done in another way at a
time, in turns with the whole. A part that is left out makes another loss: these rows
time a step and train nothing of use. The ratio of a row is this library's speed over
its own, so a row at 0.9 gains a tenth.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.throughput_contestants import (
    LEARNING_RATE,
    OURS,
    SCAN,
    Contestant,
    Run,
    Workload,
    bernoulli_log_prob,
    perceptron,
    plain_weights,
)
from experiments.throughput_elbo import prepare_scan, prepare_vae_jax
from experiments.throughput_limit import contestants as limit
from vae_jax.types import Array, Key, PyTree


@jax.custom_vjp
def closed_gradient_log_prob(x: Array, logits: Array) -> Array:
    """Log p(x|z), its gradient by the logits x - sigmoid(logits) written by hand."""
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
    """No density: what is left of log p(x|z) without exp and log1p."""
    return jnp.sum(x * logits, axis=-1)


def step_run(
    workload: Workload,
    *,
    log_prob: Callable[[Array, Array], Array] = bernoulli_log_prob,
    noise: bool = True,
    gather: str = "step",
    optimizer: Callable[[float], Any] = optax.adam,
    dtype: Any = jnp.float32,
    unroll: int = 1,
) -> Run:
    """The scan of `throughput_elbo.prepare_scan`, with a choice for each of its parts.

    Args:
      workload: the work.
      log_prob: of the pixels.
      noise: draw z; else take the mean.
      gather: rows at every `step`, once an `epoch`, or `none`: always the first ones.
      optimizer: of optax.
      dtype: of the products.
      unroll: steps of the loop's body.

    Returns:
      The run.
    """
    activation = workload.params.spec.encoder.activation
    update = optimizer(LEARNING_RATE)
    weights = plain_weights(workload.params)
    state = (weights, update.init(weights), jnp.copy(workload.key))

    def loss(weights: PyTree, x: Array, key: Key) -> Array:
        weights, inputs = jax.tree.map(lambda leaf: leaf.astype(dtype), (weights, x))
        outputs = perceptron(weights["encoder"], inputs, activation)
        mean, log_var = jnp.split(outputs, 2, axis=-1)
        draw = jax.random.normal(key, mean.shape, dtype) if noise else 0
        z = mean + jnp.exp(log_var / 2) * draw
        logits = perceptron(weights["decoder"], z, activation).astype(jnp.float32)
        kl = jnp.sum(mean**2 + jnp.exp(log_var) - log_var - 1, axis=-1) / 2
        return jnp.mean(kl - log_prob(x, logits))

    @partial(jax.jit, donate_argnums=0)
    def train(state: PyTree, batches: Array, images: Array) -> tuple[PyTree, Array]:
        size = batches.shape[1]
        ordered = images[batches] if gather == "epoch" else batches

        def step(state: PyTree, batch: Array) -> tuple[PyTree, Array]:
            weights, opt_state, key = state
            key, step_key = jax.random.split(key)
            rows = {"step": lambda: images[batch], "epoch": lambda: batch}
            x = rows.get(gather, lambda: images[:size])() / (workload.num_levels - 1)
            value, gradients = jax.value_and_grad(loss)(weights, x, step_key)
            updates, opt_state = update.update(gradients, opt_state)
            return (optax.apply_updates(weights, updates), opt_state, key), value

        return jax.lax.scan(step, state, ordered, unroll=unroll)

    def run(batches: Array) -> Array:
        nonlocal state
        state, losses = train(state, batches, workload.images)
        return losses

    return run


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
}


def contestants() -> list[Contestant]:
    """This library, the whole step, its variants, and the limit."""
    return [
        Contestant(OURS, prepare_vae_jax),
        Contestant(SCAN, prepare_scan),
        *(
            Contestant(name, partial(step_run, **options))
            for name, options in VARIANTS.items()
        ),
        *limit(),
    ]
