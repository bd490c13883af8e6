"""L-BFGS minimisation of a smooth, deterministic function (Nocedal & Wright 2006).

Every step takes one evaluation of value and gradient. A trial point is either accepted,
or the next trial uses a step at most half as long. There is no inner loop, so under
`vmap` no example waits for the line search of another.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vae_jax.types import Array

MEMORY = 10
# Armijo condition: required decrease as a fraction of that of the tangent.
SUFFICIENT_DECREASE = 1e-4


class Minimum(NamedTuple):
    """Result of `minimize`.

    Attributes:
      point: lowest point found, `[d]`.
      value: value of the function at `point`, a scalar.
      start_value: value of the function at the start, a scalar.
      num_accepted: number of accepted trial points, a scalar.
    """

    point: Array
    value: Array
    start_value: Array
    num_accepted: Array


class _Curvature(NamedTuple):
    """Most recent accepted steps, newest first; unused rows are zero."""

    steps: Array  # [MEMORY, d]
    changes: Array  # [MEMORY, d], of the gradient
    inverses: Array  # [MEMORY], 1 / (step . change)
    scale: Array  # of the initial inverse Hessian


class _State(NamedTuple):
    point: Array
    value: Array
    gradient: Array
    direction: Array
    step_size: Array
    curvature: _Curvature
    num_accepted: Array


def minimize(
    function: Callable[[Array], Array], start: Array, *, num_evaluations: int
) -> Minimum:
    """Minimise a function with L-BFGS.

    The first trial step has a length of at most 1. Points whose value or gradient is
    not finite are rejected.

    Args:
      function: maps a point `[d]` to a scalar; deterministic and differentiable.
      start: initial point, `[d]`.
      num_evaluations: number of evaluations of value and gradient, in addition to the
        one at the start.

    Returns:
      `Minimum`; the start if no trial point was accepted.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.quasi_newton import minimize
      >>> scale = jnp.array([1.0, 1e4])
      >>> bowl = lambda z: 0.5 * jnp.sum(scale * jnp.square(z - 3))
      >>> point = minimize(bowl, jnp.zeros(2), num_evaluations=30).point
      >>> print([f"{one:.3f}" for one in point])
      ['3.000', '3.000']
    """
    value_and_gradient = jax.value_and_grad(function)
    value, gradient = value_and_gradient(start)
    zeros = jnp.zeros((MEMORY, *start.shape), start.dtype)
    one = jnp.ones((), start.dtype)
    curvature = _Curvature(zeros, zeros, zeros[:, 0], one)
    direction = -gradient / jnp.maximum(jnp.linalg.norm(gradient), 1)
    none = jnp.zeros((), int)
    state = _State(start, value, gradient, direction, one, curvature, none)

    def step(_: int, state: _State) -> _State:
        trial = state.point + state.step_size * state.direction
        return _advance(state, trial, *value_and_gradient(trial))

    end = jax.lax.fori_loop(0, num_evaluations, step, state)
    return Minimum(end.point, end.value, value, end.num_accepted)


def _advance(state: _State, trial: Array, value: Array, gradient: Array) -> _State:
    """Accept a trial point, or shorten the step."""
    slope = jnp.vdot(state.direction, state.gradient)
    tangent = state.step_size * slope
    finite = jnp.isfinite(value) & jnp.all(jnp.isfinite(gradient))
    rounding = 4 * jnp.finfo(value.dtype).eps * jnp.abs(state.value)
    low_enough = value <= state.value + SUFFICIENT_DECREASE * tangent + rounding
    accepted = finite & low_enough

    move, change = trial - state.point, gradient - state.gradient
    curvature = _remember(state.curvature, accepted, move, change)
    direction = _direction(curvature, gradient)
    downhill = jnp.vdot(direction, gradient) < 0
    direction = jnp.where(downhill, direction, -curvature.scale * gradient)

    # The minimum of the parabola through value, slope and trial.
    excess = jnp.where(finite, value - state.value - tangent, 1)
    shorter = -0.5 * tangent / jnp.where(excess > 0, excess, 1) * state.step_size
    shorter = jnp.clip(shorter, 0.1 * state.step_size, 0.5 * state.step_size)
    shorter = jnp.where(finite, shorter, 0.1 * state.step_size)

    def choose(new: Array, old: Array) -> Array:
        return jnp.where(accepted, new, old)

    return _State(
        point=choose(trial, state.point),
        value=choose(value, state.value),
        gradient=choose(gradient, state.gradient),
        direction=choose(direction, state.direction),
        step_size=choose(jnp.ones_like(shorter), shorter),
        curvature=curvature,
        num_accepted=state.num_accepted + accepted,
    )


def _remember(
    curvature: _Curvature, accepted: Array, step: Array, change: Array
) -> _Curvature:
    """Add an accepted step with positive curvature to the memory."""
    along = jnp.vdot(step, change)
    squared = jnp.vdot(change, change)
    lengths = jnp.sqrt(jnp.vdot(step, step) * squared)
    used = accepted & (along > 1e-6 * lengths)
    along, squared = jnp.where(used, along, 1), jnp.where(used, squared, 1)

    def push(rows: Array, row: Array) -> Array:
        return jnp.where(used, jnp.concatenate([row[None], rows[:-1]]), rows)

    return _Curvature(
        steps=push(curvature.steps, step),
        changes=push(curvature.changes, change),
        inverses=push(curvature.inverses, 1 / along),
        scale=jnp.where(used, along / squared, curvature.scale),
    )


def _direction(curvature: _Curvature, gradient: Array) -> Array:
    """-H gradient by the two-loop recursion (Nocedal & Wright 2006, algorithm 7.4)."""

    def newest_to_oldest(vector: Array, row: tuple[Array, Array, Array]):
        step, change, inverse = row
        weight = inverse * jnp.vdot(step, vector)
        return vector - weight * change, weight

    def oldest_to_newest(vector: Array, row: tuple[tuple[Array, ...], Array]):
        (step, change, inverse), weight = row
        return vector + (weight - inverse * jnp.vdot(change, vector)) * step, None

    rows = (curvature.steps, curvature.changes, curvature.inverses)
    vector, weights = jax.lax.scan(newest_to_oldest, gradient, rows)
    vector = curvature.scale * vector
    vector, _ = jax.lax.scan(oldest_to_newest, vector, (rows, weights), reverse=True)
    return -vector
