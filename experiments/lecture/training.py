"""Short training runs for the lecture topics, each compiled as one program."""

from collections.abc import Callable

import jax
import optax

import vae_jax
from vae_jax import Params, data
from vae_jax.training import Preprocess
from vae_jax.types import Array, Key, Objective, PyTree

BATCH_SIZE = 128


def epochs_for(num_steps: int, num_examples: int) -> int:
    """Number of whole epochs closest to a number of steps, at least one.

    Args:
      num_steps: desired number of training steps.
      num_examples: size of the data set.

    Returns:
      Number of epochs.
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
    """Train with Adam. Works under `jit` and `vmap`.

    Args:
      params: initial parameters.
      x: training data, `[n, D]`.
      key: PRNG key, consumed once.
      num_epochs: passes over the data.
      objective: objective to maximise; by default the ELBO.
      preprocess: applied to every batch; by default pixels are binarized anew at
        random.
      learning_rate: learning rate of Adam.

    Returns:
      The trained parameters, and the mean metrics of each epoch, `[num_epochs]`.
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
    """Minimise a deterministic loss with L-BFGS.

    Args:
      loss: function from a pytree to a scalar.
      start: initial pytree.
      num_steps: number of L-BFGS steps.

    Returns:
      The final pytree.
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
