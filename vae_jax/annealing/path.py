"""Annealing path from the prior to the posterior, and the chains that follow it."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from vae_jax.model import decode, draw_prior, dtype_of, log_prior
from vae_jax.options import require_at_least, require_value
from vae_jax.spec import Params
from vae_jax.types import Array, Key

# Optimal acceptance rate of Hamiltonian Monte Carlo (Neal 2011, 5.4.4).
TARGET_ACCEPTANCE = 0.65
ADAPTATION_RATE = 0.3
# A trajectory of fixed length may be a full period of a Gaussian, back to its start.
STEP_SIZE_JITTER = 0.2
PILOT_CHAINS = 4


class Settings(NamedTuple):
    """Annealing settings."""

    num_chains: int
    num_temperatures: int
    num_leapfrog: int
    initial_step_size: float | Array


class Point(NamedTuple):
    """State of the chains, with its density and gradient at some temperature."""

    z: Array  # [C, B, L]
    log_likelihood: Array  # [C, B]
    log_density: Array  # [C, B]
    gradient: Array  # [C, B, L], of log_density


Move = Callable[[Array, Key, Array, Array], tuple[Point, Array]]


class Path(NamedTuple):
    """Transition of all chains, with temperatures and step sizes."""

    move: Move
    temperatures: Array  # [K + 1]
    step_sizes: Array  # [K - 1, B], at the temperatures between the ends

    def reversed(self) -> "Path":
        """Return the path in reverse, from the posterior to the prior."""
        return Path(self.move, self.temperatures[::-1], self.step_sizes[::-1])


def sigmoid_schedule(num_temperatures: int, *, sharpness: float = 4.0) -> Array:
    """Inverse temperatures from 0 to 1, most closely spaced at both ends.

        t_k = (s_k - s_0) / (s_K - s_0)
        s_k = sigmoid(sharpness * (2 k / K - 1))

    for k = 0, ..., K (Wu, Burda, Salakhutdinov & Grosse 2017, section 5).

    Args:
      num_temperatures: number K of steps from the prior to the posterior.
      sharpness: slope of the sigmoid (delta in the paper); larger values concentrate
        the temperatures at the ends.

    Returns:
      `[K + 1]`.

    Raises:
      ValueError: `num_temperatures` is below 1, or `sharpness` is not positive.

    Example:
      >>> from vae_jax.annealing import sigmoid_schedule
      >>> print(sigmoid_schedule(4)[:3].round(3))
      [0.    0.105 0.5  ]
    """
    require_at_least("num_temperatures", num_temperatures)
    require_value("sharpness", sharpness, lambda v: v > 0, "positive")
    curve = jax.nn.sigmoid(sharpness * jnp.linspace(-1, 1, num_temperatures + 1))
    return (curve - curve[0]) / (curve[-1] - curve[0])


def adapt_step_sizes(params: Params, x: Array, keys: Key, settings: Settings) -> Path:
    """Build the path, with step sizes adapted to each example in a pilot run."""
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


class Annealed(NamedTuple):
    """Chains at the end of a path.

    Attributes:
      z: latents, `[C, B, L]`.
      log_weights: log importance weights of the chains, `[C, B]`.
      acceptance_rate: mean over chains and temperatures, `[B]`.
    """

    z: Array
    log_weights: Array
    acceptance_rate: Array


def anneal(params: Params, x: Array, path: Path, z: Array, keys: Key) -> Annealed:
    """Run chains from z, `[C, B, L]`.

    The weight of a temperature is added before the move at it. There is no move at the
    last temperature.
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
    (z, log_likelihood, log_w, accepted), _ = jax.lax.scan(step, start, inputs)
    log_weights = log_w + increments[-1] * log_likelihood
    return Annealed(z, log_weights, accepted / num_moves)


def _transition(
    params: Params,
    x: Array,
    num_leapfrog: int,
    z: Array,
    keys: Key,
    temperature: Array,
    step_size: Array,
) -> tuple[Point, Array]:
    """Take a Hamiltonian step of all chains; return acceptance rates `[B]` as well."""

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
    # A diverged trajectory has a NaN gain and is rejected.
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
        # Each density depends on its own z only: the gradient of the sum is per chain.
        return jnp.sum(log_density), (log_likelihood, log_density)

    (_, values), gradient = jax.value_and_grad(total, has_aux=True)(z)
    return Point(z, *values, gradient=gradient)


def sample_prior(params: Params, keys: Key, num_samples: int) -> Array:
    """Draw from the prior, `[S, B, L]`, with one key for each of B examples."""

    def draw(key: Key) -> Array:
        return draw_prior(params, key, num_samples=num_samples)

    z = jax.vmap(draw, out_axes=1)(keys)
    return jax.tree.map(lambda leaf: leaf.astype(dtype_of(params)), z)


def _fold_in(keys: Key, number: Array) -> Key:
    """Fold a number into the key of every example, `[B]`."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, number)


def split(keys: Key, num: int) -> Key:
    """Split the key of every example, `[num, B]`."""
    return jax.vmap(partial(jax.random.split, num=num), out_axes=1)(keys)
