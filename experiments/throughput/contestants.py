"""Building blocks of the contestants of `experiments.throughput`.

A contestant is a function of a `Workload` that sets everything up and returns a
function of a round's batches. All do the same work: the same initial weights, the same
batches in the same order, Adam. Only the noise differs.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import vae_jax
from vae_jax.types import Array, Key, Objective, PyTree

LEARNING_RATE = 1e-3
OURS = "vae_jax"
SCAN = "hand-written scan"
LOOP = "step by step"
NUMPYRO = "NumPyro"


class Workload(NamedTuple):
    """Input of every contestant: data, initial weights, sizes.

    Attributes:
      params: initial parameters; their spec is the model.
      images: data on the device, uint8 `[n, D]`.
      num_levels: number of grey levels; the model input is value / (num_levels - 1).
      batch_shape: steps per round and images per step, (T, B).
      key: root key of the noise.
      num_samples: posterior samples per image.
    """

    params: vae_jax.Params
    images: Array
    num_levels: int
    batch_shape: tuple[int, int]
    key: Key
    num_samples: int = 1


Run = Callable[[Array], Any]
"""Function of a round's batches, indices `[T, B]`, that continues from the last call.
Training returns the loss before every step, `[T]`, in nats per image."""
Preprocess = Callable[[Array, Key], Array]


@dataclass
class Training:
    """A run of training, a `Run` whose weights can be asked for.

    Attributes:
      train: `f(state, batches) -> (state, losses)`.
      state: after the last call.
      weights_of: weights in that state, as in `plain_weights`.
    """

    train: Callable[[Any, Array], tuple[Any, Any]]
    state: Any
    weights_of: Callable[[Any], PyTree]

    def __call__(self, batches: Array) -> Any:
        """Train on the batches; return the losses before every step."""
        self.state, losses = self.train(self.state, batches)
        return losses

    def weights(self) -> PyTree:
        """Weights after the last call."""
        return self.weights_of(self.state)


class Contestant(NamedTuple):
    """Implementation of a workload.

    Attributes:
      name: name in the table.
      prepare: sets up a workload; it must not donate the arrays it is given.
      needs: additional library required, if any.
    """

    name: str
    prepare: Callable[..., Any]
    needs: str | None = None


def installed(*entrants: Contestant) -> list[Contestant]:
    """Return the contestants whose library is installed, and import the libraries."""
    found = []
    for entrant in entrants:
        if entrant.needs and not importlib.util.find_spec(entrant.needs):
            continue
        if entrant.needs:
            # Import now, so that the import is not timed.
            importlib.import_module(entrant.needs)
        found.append(entrant)
    return found


Rate = float | Callable[[Any], Any]
"""Learning rate, or a schedule: a function of the step."""


def library_run(
    workload: Workload,
    objective: Objective,
    draw: Preprocess,
    rate: Rate = LEARNING_RATE,
) -> Training:
    """Set up this library's training as in `experiments.mnist`."""
    adam = optax.adam(rate)
    step = partial(
        vae_jax.train_step, objective=objective, optimizer=adam, preprocess=draw
    )
    state = vae_jax.init_state(workload.params, workload.key, optimizer=adam)
    nothing = jnp.zeros(0, jnp.int32)
    epoch = vae_jax.Epoch(jnp.zeros(workload.batch_shape, jnp.int32), rest=nothing)
    empty = vae_jax.empty_history(step, state, epoch, workload.images)
    train_epoch = vae_jax.jit_step(partial(vae_jax.train_epoch, step=step))

    def train(state: Any, batches: Array) -> tuple[Any, Array]:
        epoch = vae_jax.Epoch(batches, rest=nothing)
        state, history = train_epoch(state, epoch, workload.images, empty, len(batches))
        return state, -history["objective"]

    return Training(train, state, lambda state: plain_weights(state.params))


def plain_weights(params: vae_jax.Params) -> dict[str, list[dict[str, Array]]]:
    """Copy the weights of both MLPs into lists of layers with kernel and bias."""
    networks = {"encoder": params.encoder, "decoder": params.decoder}
    layers = {
        name: [*tree["network"].values(), tree["output"]]
        for name, tree in networks.items()
    }
    return jax.tree.map(jnp.copy, layers)


def perceptron(
    layers: list[dict[str, Array]], inputs: Array, activation: Callable
) -> Array:
    """Apply an MLP with an activation between its layers."""
    for layer in layers[:-1]:
        inputs = activation(inputs @ layer["kernel"] + layer["bias"])
    return inputs @ layers[-1]["kernel"] + layers[-1]["bias"]


def bernoulli_log_prob(x: Array, logits: Array) -> Array:
    """Log p(x|z) summed over pixels."""
    # Equivalent to jax.nn.softplus, with which a step is 4% slower on a CPU.
    tail = jnp.log1p(jnp.exp(-jnp.abs(logits)))
    return jnp.sum(x * logits - jnp.maximum(logits, 0) - tail, axis=-1)


Loss = Callable[[PyTree, Array, Key], Array]
"""Loss of weights, images `[B, D]` in [0, 1] and a key: mean over images, in nats."""


def plain_step(
    workload: Workload, loss: Loss, optimizer: Callable[[float], Any] = optax.adam
) -> tuple[PyTree, Callable[[PyTree, Array], tuple[PyTree, Array]]]:
    """Initial state, and a step on grey images `[B, D]`, in plain JAX and optax."""
    update = optimizer(LEARNING_RATE)
    weights = plain_weights(workload.params)

    def step(state: PyTree, grey: Array) -> tuple[PyTree, Array]:
        weights, opt_state, key = state
        key, step_key = jax.random.split(key)
        x = grey / (workload.num_levels - 1)
        value, gradients = jax.value_and_grad(loss)(weights, x, step_key)
        updates, opt_state = update.update(gradients, opt_state)
        return (optax.apply_updates(weights, updates), opt_state, key), value

    return (weights, update.init(weights), jnp.copy(workload.key)), step


def scan_run(
    workload: Workload,
    loss: Loss,
    *,
    optimizer: Callable[[float], Any] = optax.adam,
    gather: Literal["step", "epoch", "none"] = "step",
    unroll: int = 1,
    compiler_options: dict[str, Any] | None = None,
) -> Training:
    """Set up plain JAX and optax with one scan per round.

    Args:
      workload: the workload.
      loss: loss to minimise.
      optimizer: optax optimizer, a function of the learning rate.
      gather: when to gather the images: at every `step`, for the whole round at once
        (`epoch`), or never (`none`), always using the first images.
      unroll: number of steps per loop iteration.
      compiler_options: XLA flags for this program only.

    Returns:
      The run.
    """
    state, step = plain_step(workload, loss, optimizer)

    @partial(jax.jit, donate_argnums=0, compiler_options=compiler_options)
    def train(state: PyTree, batches: Array, images: Array) -> tuple[PyTree, Array]:
        rows = {
            "step": lambda indices: images[indices],
            "epoch": lambda batch: batch,
            "none": lambda indices: images[: len(indices)],
        }[gather]
        ordered = images[batches] if gather == "epoch" else batches
        return jax.lax.scan(
            lambda state, batch: step(state, rows(batch)), state, ordered, unroll=unroll
        )

    images = workload.images
    return Training(
        lambda state, batches: train(state, batches, images),
        state,
        lambda state: state[0],
    )


def loop_run(workload: Workload, loss: Loss) -> Run:
    """Set up a Python loop over a compiled step that takes NumPy batches."""
    state, step = plain_step(workload, loss)
    compiled = jax.jit(step, donate_argnums=0)
    images = np.asarray(workload.images, np.float32)

    def run(batches: Array) -> list[Array]:
        nonlocal state
        losses = []
        for indices in np.asarray(batches):
            state, value = compiled(state, images[indices])
            losses.append(value)
        return losses

    return run


def activation_of(workload: Workload) -> Callable[[Array], Array]:
    """Activation of a workload whose networks are MLPs."""
    encoder = workload.params.spec.encoder
    if not isinstance(encoder, vae_jax.MLP):
        raise ValueError(f"the workload's encoder must be an MLP, got {encoder}")
    return encoder.activation


def model_and_guide(workload: Workload) -> tuple[Callable, Callable]:
    """Write the model of a batch `[B, D]` and its posterior as NumPyro programs."""
    import numpyro
    from numpyro import distributions

    weights = plain_weights(workload.params)
    activation = activation_of(workload)
    latent_dim = workload.params.spec.latent_dim

    def model(x: Array) -> None:
        # NumPyro accepts pytrees but annotates arrays.
        own: Any = weights["decoder"]
        layers: Any = numpyro.param("decoder", own)
        with numpyro.plate("batch", len(x)):
            prior = distributions.Normal(jnp.zeros(latent_dim), 1)
            z = jnp.asarray(numpyro.sample("z", prior.to_event(1)))
            logits = perceptron(layers, z, activation)
            # Grey pixels are outside the support, so validation is disabled.
            pixels = distributions.Bernoulli(logits=logits, validate_args=False)
            numpyro.sample("x", pixels.to_event(1), obs=x)

    def guide(x: Array) -> None:
        # NumPyro accepts pytrees but annotates arrays.
        own: Any = weights["encoder"]
        layers: Any = numpyro.param("encoder", own)
        mean, log_var = jnp.split(perceptron(layers, x, activation), 2, axis=-1)
        with numpyro.plate("batch", len(x)):
            posterior = distributions.Normal(mean, jnp.exp(log_var / 2))
            numpyro.sample("z", posterior.to_event(1))

    return model, guide


def svi_run(
    workload: Workload, elbo: Any, draw: Preprocess, rate: Rate = LEARNING_RATE
) -> Training:
    """Set up NumPyro's SVI with one scan per round.

    NumPyro's loss is a sum over the batch, so it is divided by the batch size.
    """
    import numpyro
    from numpyro import infer

    batch_size = workload.batch_shape[1]
    init_key, data_key = jax.random.split(workload.key)
    adam = numpyro.optim.Adam(rate)
    svi = infer.SVI(*model_and_guide(workload), adam, elbo)
    blank = jnp.zeros((batch_size, workload.images.shape[1]))
    # Copy, because the state is donated and the model keeps a reference to the weights.
    state = jax.tree.map(jnp.copy, svi.init(init_key, blank))

    @partial(jax.jit, donate_argnums=0)
    def train(state: PyTree, batches: Array, images: Array) -> tuple[PyTree, Array]:
        def step(state: PyTree, indices: Array) -> tuple[PyTree, Array]:
            number = state.optim_state[0]
            x = images[indices] / (workload.num_levels - 1)
            x = draw(x, jax.random.fold_in(data_key, number))
            state, value = svi.update(state, x)
            return state, value / batch_size

        return jax.lax.scan(step, state, batches)

    images = workload.images
    return Training(
        lambda state, batches: train(state, batches, images), state, svi.get_params
    )
