"""Contestants of `experiments.throughput --workload=gradients`: drawing gradients.

All draw the same gradients: the score-function gradient of E (x + 3)^2 under a Gaussian
with respect to its mean and log-variance, draw i with `fold_in(key, i)`. They return
the sum over a round.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from experiments.throughput.contestants import OURS, Contestant
from vae_jax.distributions import DiagonalGaussianDistribution
from vae_jax.estimators import score_function
from vae_jax.types import Array, Key

LOOP = "Python loop"


def draw(key: Key, index: Array) -> Array:
    """Draw one gradient with respect to mean and log-variance, `[2]`."""

    def value(parameters: Array) -> Array:
        posterior = DiagonalGaussianDistribution(*parameters.reshape(2, 1, 1))
        square = lambda z, log_q: jnp.square(z[..., 0] + 3)  # noqa: E731
        return score_function(square, posterior, jax.random.fold_in(key, index))[0]

    return jax.grad(value)(jnp.array([1.0, 0.8]))


def prepare_vmap(key: Key) -> Callable[[Array], Array]:
    """Prepare draws as in `gradient_moments`: `vmap` in a chunk, scan over chunks."""

    @jax.jit
    def run(indices: Array) -> Array:
        def add_chunk(total: Array, chunk: Array) -> tuple[Array, None]:
            draws = jax.vmap(draw, (None, 0))(key, chunk)
            return total + jnp.sum(draws, axis=0), None

        return jax.lax.scan(add_chunk, jnp.zeros(2), indices)[0]

    return run


def prepare_loop(key: Key) -> Callable[[Array], Array]:
    """Prepare a compiled draw called from Python, without waiting between calls."""
    compiled = jax.jit(lambda index, total: total + draw(key, index))

    def run(indices: Array) -> Array:
        total = jnp.zeros(2)
        for index in jax.device_get(indices).ravel():
            total = compiled(index, total)
        return total

    return run


def contestants() -> list[Contestant]:
    """Both contestants, this library first."""
    return [Contestant(OURS, prepare_vmap), Contestant(LOOP, prepare_loop)]
