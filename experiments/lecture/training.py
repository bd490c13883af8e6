"""Training as the topics need it: short runs, whole in one program."""

from collections.abc import Callable

import jax
import optax

import vae_jax
from vae_jax import Params, data
from vae_jax.training import Preprocess
from vae_jax.types import Array, Key, Objective, PyTree

BATCH_SIZE = 128


def epochs_for(num_steps: int, num_examples: int) -> int:
    """Whole epochs that come nearest to a number of steps, at least one.

    Args:
      num_steps: wanted.
      num_examples: of the data set.

    Returns:
      How many epochs.
    """
    return max(1, round(num_steps * BATCH_SIZE / num_examples))


def fit(
    params: Params,
    x: Array,
    key: Key,
    *,
    num_epochs: int,
    objective: Objective | None = None,
    preprocess: Preprocess | None = data.binarize,
    learning_rate: float = 1e-3,
) -> tuple[Params, dict[str, Array]]:
    """Trains with Adam; a function to compile, and to map over models.

    Args:
      params: at the start.
      x: training data, `[n, D]`.
      key: PRNG key, consumed once.
      num_epochs: passes over the data.
      objective: to maximise; by default the ELBO.
      preprocess: of every batch; by default pixels are drawn afresh.
      learning_rate: of Adam.

    Returns:
      The trained parameters, and the mean figures of each epoch, `[num_epochs]`.
    """
    fitted = vae_jax.fit(
        params,
        x,
        key,
        num_epochs=num_epochs,
        objective=objective,
        optimizer=optax.adam(learning_rate),
        batch_size=BATCH_SIZE,
        preprocess=preprocess,
    )
    return fitted.params, fitted.history


def minimize(
    loss: Callable[[PyTree], Array], start: PyTree, *, num_steps: int
) -> PyTree:
    """The minimum of a loss without noise, by L-BFGS.

    Args:
      loss: of a pytree, a scalar.
      start: where to begin.
      num_steps: of L-BFGS.

    Returns:
      The pytree at the end.
    """
    optimizer = optax.lbfgs(memory_size=50)
    value_and_grad = optax.value_and_grad_from_state(loss)

    def step(_, carry):
        point, state = carry
        value, gradient = value_and_grad(point, state=state)
        updates, state = optimizer.update(
            gradient, state, point, value=value, grad=gradient, value_fn=loss
        )
        return optax.apply_updates(point, updates), state

    run = jax.jit(lambda carry: jax.lax.fori_loop(0, num_steps, step, carry)[0])
    return run((start, optimizer.init(start)))
