"""Hardware limit of a training step: its matrix products alone and Adam alone.

Both are measured in the same run at the shapes of the step. Everything else in a step
(elementwise functions, random numbers, gathering batches, dispatch) adds to them. Each
layer has three products, one forward and two backward, except the encoder's first: its
inputs need no gradient.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from experiments.throughput.contestants import (
    LEARNING_RATE,
    Contestant,
    Run,
    Workload,
    plain_weights,
)
from vae_jax.types import Array, PyTree

PRODUCTS, ADAM = "products alone", "Adam alone"


def product_shapes(workload: Workload) -> list[tuple[int, int, int]]:
    """Shapes (rows, inner, outputs) of every matrix product of a step."""
    weights = plain_weights(workload.params)
    rows = {"encoder": workload.batch_shape[1]}
    rows["decoder"] = rows["encoder"] * workload.num_samples
    shapes = []
    for network, layers in weights.items():
        for number, layer in enumerate(layers):
            inputs, outputs = layer["kernel"].shape
            count = rows[network]
            shapes += [(count, inputs, outputs), (inputs, count, outputs)]
            if network == "decoder" or number > 0:
                shapes.append((count, outputs, inputs))
    return shapes


def operations(workload: Workload) -> int:
    """Floating-point operations of the matrix products of a step."""
    return sum(2 * rows * inner * out for rows, inner, out in product_shapes(workload))


def prepare_products(workload: Workload) -> Run:
    """Prepare the matrix products of a round, step by step."""
    pairs = [
        (jnp.ones((rows, inner)), jnp.ones((inner, outputs)))
        for rows, inner, outputs in product_shapes(workload)
    ]

    @jax.jit
    def run(batches: Array, pairs: Sequence[tuple[Array, Array]]) -> Array:
        def step(total: Array, _: Array) -> tuple[Array, None]:
            # Depend on the previous step, so that the products stay in the loop.
            products = [(left + total) @ right for left, right in pairs]
            products = jax.lax.optimization_barrier(products)
            return total + 1e-30 * sum(product[0, 0] for product in products), None

        return jax.lax.scan(step, jnp.zeros(()), batches)[0]

    return lambda batches: run(batches, pairs)


def prepare_adam(workload: Workload) -> Run:
    """Prepare the Adam updates of a round, with fixed gradients."""
    adam = optax.adam(LEARNING_RATE)
    weights = plain_weights(workload.params)
    state = (weights, adam.init(weights))

    @jax.jit
    def run(state: PyTree, gradients: PyTree, batches: Array) -> PyTree:
        def step(state: PyTree, _: Array) -> tuple[PyTree, None]:
            weights, opt_state = state
            updates, opt_state = adam.update(gradients, opt_state)
            return (optax.apply_updates(weights, updates), opt_state), None

        return jax.lax.scan(step, state, batches)[0]

    return lambda batches: run(state, weights, batches)


def contestants() -> list[Contestant]:
    """Both parts of the limit."""
    return [Contestant(PRODUCTS, prepare_products), Contestant(ADAM, prepare_adam)]
