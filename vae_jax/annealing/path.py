"""The way from the prior to the posterior, and the chains that follow it."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from vae_jax.model import decode, draw_prior, log_prior
from vae_jax.spec import Params
from vae_jax.types import Array, Key

# The best acceptance rate of Hamiltonian Monte Carlo is near 0.65 (Neal 2011, 5.4.4).
TARGET_ACCEPTANCE = 0.65
ADAPTATION_RATE = 0.3
# A step of fixed length can lead a Gaussian round a whole period, back to its start.
STEP_SIZE_JITTER = 0.2
PILOT_CHAINS = 4


class Settings(NamedTuple):
    """How long the way is, and how many chains take it."""

    num_chains: int
    num_temperatures: int
    num_leapfrog: int
    initial_step_size: float | Array


class Point(NamedTuple):
    """Where the chains are, and what their density is there at some temperature."""

    z: Array  # [C, B, L]
    log_likelihood: Array  # [C, B]
    log_density: Array  # [C, B]
    gradient: Array  # [C, B, L], of log_density


Move = Callable[[Array, Key, Array, Array], tuple[Point, Array]]


class Path(NamedTuple):
    """A move of all chains, and the temperatures and step sizes of its moves."""

    move: Move
    temperatures: Array  # [K + 1]
    step_sizes: Array  # [K - 1, B], at the temperatures between the ends

    def reversed(self) -> "Path":
        """The way back."""
        return Path(self.move, self.temperatures[::-1], self.step_sizes[::-1])


def sigmoid_schedule(num_temperatures: int, *, sharpness: float = 4.0) -> Array:
    """Inverse temperatures from 0 to 1, closest together at both ends.

    sigmoid(sharpness (2 k / K - 1)) for k = 0..K, moved and scaled so that it starts at
    0 and ends at 1 (Wu, Burda, Salakhutdinov & Grosse 2017, section 5).

    Args:
      num_temperatures: K, steps from the prior to the posterior.
      sharpness: how much closer the ends are than the middle; their delta.

    Returns:
      `[K + 1]`.

    Example:
      >>> from vae_jax.annealing import sigmoid_schedule
      >>> print(sigmoid_schedule(4)[:3].round(3))
      [0.    0.105 0.5  ]
    """
    curve = jax.nn.sigmoid(sharpness * jnp.linspace(-1, 1, num_temperatures + 1))
    return (curve - curve[0]) / (curve[-1] - curve[0])


def lay_path(params: Params, x: Array, keys: Key, settings: Settings) -> Path:
    """Temperatures, and the step sizes that a pilot run finds for each image."""
    move = partial(_transition, params, x, settings.num_leapfrog)
    start_keys, chain_keys = split(keys, 2)

    def step(carry: tuple[Array, Array], inputs: tuple[Array, Array]):
        z, log_step = carry
        number, temperature = inputs
        keys = _fold_in(chain_keys, number)
        point, acceptance = move(z, keys, temperature, jnp.exp(log_step))
        log_step = log_step + ADAPTATION_RATE * (acceptance - TARGET_ACCEPTANCE)
        return (point.z, log_step), jnp.exp(log_step)

    temperatures = sigmoid_schedule(settings.num_temperatures).astype(x.dtype)
    inner = temperatures[1:-1]
    z = sample_prior(params, start_keys, PILOT_CHAINS)
    log_step = jnp.full(len(x), jnp.log(settings.initial_step_size), x.dtype)
    inputs = (jnp.arange(len(inner)), inner)
    _, step_sizes = jax.lax.scan(step, (z, log_step), inputs)
    return Path(move, temperatures, step_sizes)


def follow(
    params: Params, x: Array, path: Path, z: Array, keys: Key
) -> tuple[Array, Array]:
    """Log-weights `[C, B]` of chains that start at z, and their acceptance, `[B]`.

    A weight is due before the move at its temperature; after the last there is none.
    """

    def step(carry: tuple[Array, ...], inputs: tuple[Array, ...]):
        z, log_likelihood, log_w, accepted = carry
        number, increment, temperature, step_size = inputs
        log_w = log_w + increment * log_likelihood
        point, acceptance = path.move(z, _fold_in(keys, number), temperature, step_size)
        return (point.z, point.log_likelihood, log_w, accepted + acceptance), None

    increments, num_moves = jnp.diff(path.temperatures), len(path.step_sizes)
    log_likelihood = decode(params, z).log_prob(x)
    nothing = (jnp.zeros_like(log_likelihood), jnp.zeros_like(path.step_sizes[0]))
    inputs = (
        jnp.arange(num_moves),
        increments[:-1],
        path.temperatures[1:-1],
        path.step_sizes,
    )
    start = (z, log_likelihood, *nothing)
    (_, log_likelihood, log_w, accepted), _ = jax.lax.scan(step, start, inputs)
    return log_w + increments[-1] * log_likelihood, accepted / num_moves


def _transition(
    params: Params,
    x: Array,
    num_leapfrog: int,
    z: Array,
    keys: Key,
    temperature: Array,
    step_size: Array,
) -> tuple[Point, Array]:
    """A Hamiltonian step of all chains; step sizes and acceptance rates are `[B]`."""

    def draw(key: Key) -> tuple[Array, Array]:
        normal_key, uniform_key = jax.random.split(key)
        normal = jax.random.normal(normal_key, z.shape[::2], z.dtype)
        return normal, jax.random.uniform(uniform_key, (z.shape[0], 2), z.dtype)

    def leapfrog(_: int, carry: tuple[Point, Array]) -> tuple[Point, Array]:
        point, momentum = carry
        momentum = momentum + 0.5 * step_size * point.gradient
        point = _evaluate(params, x, point.z + step_size * momentum, temperature)
        return point, momentum + 0.5 * step_size * point.gradient

    momentum, uniform = jax.vmap(draw, out_axes=1)(keys)
    jitter = STEP_SIZE_JITTER * (2 * uniform[..., 1:] - 1)
    step_size = step_size[:, None] * (1 + jitter)
    start = _evaluate(params, x, z, temperature)
    end, end_momentum = jax.lax.fori_loop(0, num_leapfrog, leapfrog, (start, momentum))
    kinetic = 0.5 * jnp.sum(jnp.square(end_momentum) - jnp.square(momentum), axis=-1)
    gain = end.log_density - start.log_density - kinetic
    # A trajectory that left all bounds ends in nan, and is refused.
    probability = jnp.exp(jnp.where(jnp.isnan(gain), -jnp.inf, jnp.minimum(gain, 0)))
    accepted = uniform[..., 0] < probability
    chosen = jax.tree.map(
        lambda new, old: jnp.where(
            accepted[(...,) + (None,) * (new.ndim - 2)], new, old
        ),
        end,
        start,
    )
    return chosen, jnp.mean(probability, axis=0)


def _evaluate(params: Params, x: Array, z: Array, temperature: Array) -> Point:
    """Log p(z) p(x|z)^t of all chains at z `[C, B, L]`, with its gradient."""

    def total(z: Array) -> tuple[Array, tuple[Array, Array]]:
        log_likelihood = decode(params, z).log_prob(x)
        log_density = log_prior(params, z) + temperature * log_likelihood
        chex.assert_shape([log_likelihood, log_density], z.shape[:-1])
        # Each density is of its own z alone: the sum has all their gradients.
        return jnp.sum(log_density), (log_likelihood, log_density)

    (_, values), gradient = jax.value_and_grad(total, has_aux=True)(z)
    return Point(z, *values, gradient=gradient)


def sample_prior(params: Params, keys: Key, num_samples: int) -> Array:
    """`[S, B, L]`, from a key for each of B."""

    def draw(key: Key) -> Array:
        return draw_prior(params, key, num_samples=num_samples)

    z = jax.vmap(draw, out_axes=1)(keys)
    return jax.tree.map(lambda leaf: leaf.astype(dtype_of(params)), z)


def _fold_in(keys: Key, number: Array) -> Key:
    """A child of every image's key, `[B]`."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, number)


def split(keys: Key, num: int) -> Key:
    """Children of every image's key, `[num, B]`."""
    return jax.vmap(partial(jax.random.split, num=num), out_axes=1)(keys)


def dtype_of(params: Params) -> Any:
    """Of the decoder's weights."""
    return jax.tree.leaves(params.decoder)[0].dtype
