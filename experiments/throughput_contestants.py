"""The contestants of `experiments.throughput`: ways to train one model.

Each is a function of a `Workload` that sets everything up and returns a function of a
round's batches. All do the same work: equal initial weights, the same batches in the
same order, the ELBO with one reparameterized sample and the KL in closed form, Adam.
Only the noise differs.
"""

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

import vae_jax
from vae_jax import data
from vae_jax.types import Array, Key, PyTree

LEARNING_RATE = 1e-3
OURS = "vae_jax"
SCAN = "hand-written scan"
NUMPYRO = "NumPyro SVI"


class Workload(NamedTuple):
    """What every contestant is given: the same data, the same initial weights.

    Attributes:
      params: initial parameters; their spec is the model.
      images: the data on the device, uint8 `[n, D]`.
      num_levels: grey levels; a model sees value / (num_levels - 1).
      batch_shape: steps of a round and images of a step, (T, B).
      key: root of the training noise.
    """

    params: vae_jax.Params
    images: Array
    num_levels: int
    batch_shape: tuple[int, int]
    key: Key


Run = Callable[[Array], Array]
"""Takes a round's batches, indices `[T, B]`, a step each, from where the last call
stopped; returns the loss before every step, `[T]`, in nats per image."""


class Contestant(NamedTuple):
    """One way to do the work.

    Attributes:
      name: for the table.
      prepare: sets it up; the arrays it is given are not its own to donate.
    """

    name: str
    prepare: Callable[[Workload], Run]


def prepare_vae_jax(workload: Workload) -> Run:
    """This library, put together as in `experiments.mnist`."""
    adam = optax.adam(LEARNING_RATE)
    step = partial(
        vae_jax.train_step,
        objective=vae_jax.elbo_objective(),
        optimizer=adam,
        preprocess=lambda x, key: data.to_unit_interval(x, workload.num_levels),
    )
    params, key = jax.tree.map(jnp.copy, (workload.params, workload.key))
    state = vae_jax.init_state(params, key, optimizer=adam)
    nothing = jnp.zeros(0, jnp.int32)
    epoch = vae_jax.Epoch(jnp.zeros(workload.batch_shape, jnp.int32), rest=nothing)
    empty = vae_jax.empty_history(step, state, epoch, workload.images)
    train = vae_jax.jit_step(partial(vae_jax.train_epoch, step=step))

    def run(batches: Array) -> Array:
        nonlocal state
        epoch = vae_jax.Epoch(batches, rest=nothing)
        state, history = train(state, epoch, workload.images, empty, len(batches))
        return -history["objective"]

    return run


def plain_weights(params: vae_jax.Params) -> dict[str, list[dict[str, Array]]]:
    """Copies of the weights of two MLPs as lists of layers: kernel and bias."""
    networks = {"encoder": params.encoder, "decoder": params.decoder}
    layers = {
        name: [*tree["network"].values(), tree["output"]]
        for name, tree in networks.items()
    }
    return jax.tree.map(jnp.copy, layers)


def perceptron(layers: list[dict[str, Array]], inputs: Array) -> Array:
    """An MLP with ReLU between its layers."""
    for layer in layers[:-1]:
        inputs = jax.nn.relu(inputs @ layer["kernel"] + layer["bias"])
    return inputs @ layers[-1]["kernel"] + layers[-1]["bias"]


def prepare_scan(workload: Workload) -> Run:
    """The same step in plain JAX and optax, a round one scan."""
    adam = optax.adam(LEARNING_RATE)
    weights = plain_weights(workload.params)
    state = (weights, adam.init(weights), jnp.copy(workload.key))

    def loss(weights: PyTree, x: Array, key: Key) -> Array:
        mean, log_var = jnp.split(perceptron(weights["encoder"], x), 2, axis=-1)
        noise = jax.random.normal(key, mean.shape)
        logits = perceptron(weights["decoder"], mean + jnp.exp(log_var / 2) * noise)
        # jax.nn.softplus does the same and makes a step 4% slower on a CPU.
        tail = jnp.log1p(jnp.exp(-jnp.abs(logits)))
        log_likelihood = jnp.sum(x * logits - jnp.maximum(logits, 0) - tail, axis=-1)
        kl = jnp.sum(mean**2 + jnp.exp(log_var) - log_var - 1, axis=-1) / 2
        return jnp.mean(kl - log_likelihood)

    @partial(jax.jit, donate_argnums=0)
    def train(state: PyTree, batches: Array, images: Array) -> tuple[PyTree, Array]:
        def step(state: PyTree, indices: Array) -> tuple[PyTree, Array]:
            weights, opt_state, key = state
            key, step_key = jax.random.split(key)
            x = images[indices] / (workload.num_levels - 1)
            value, gradients = jax.value_and_grad(loss)(weights, x, step_key)
            updates, opt_state = adam.update(gradients, opt_state)
            return (optax.apply_updates(weights, updates), opt_state, key), value

        return jax.lax.scan(step, state, batches)

    return _keep_state(train, state, workload.images)


def prepare_numpyro(workload: Workload) -> Run:
    """NumPyro's SVI with `TraceMeanField_ELBO`, a round one scan.

    The other choice, `Trace_ELBO`, estimates the KL from samples; this one takes it
    in closed form, as the other contestants do. Its loss is summed over the batch.
    """
    import numpyro
    from numpyro import distributions, infer

    weights = plain_weights(workload.params)
    latent_dim = workload.params.spec.latent_dim
    batch_size = workload.batch_shape[1]

    def model(x: Array) -> None:
        layers = numpyro.param("decoder", weights["decoder"])
        with numpyro.plate("batch", batch_size):
            prior = distributions.Normal(jnp.zeros(latent_dim), 1)
            logits = perceptron(layers, numpyro.sample("z", prior.to_event(1)))
            # Grey pixels are outside the support, which it would check.
            pixels = distributions.Bernoulli(logits=logits, validate_args=False)
            numpyro.sample("x", pixels.to_event(1), obs=x)

    def guide(x: Array) -> None:
        layers = numpyro.param("encoder", weights["encoder"])
        mean, log_var = jnp.split(perceptron(layers, x), 2, axis=-1)
        with numpyro.plate("batch", batch_size):
            posterior = distributions.Normal(mean, jnp.exp(log_var / 2))
            numpyro.sample("z", posterior.to_event(1))

    adam = numpyro.optim.Adam(LEARNING_RATE)
    svi = infer.SVI(model, guide, adam, infer.TraceMeanField_ELBO())
    blank = jnp.zeros((batch_size, workload.images.shape[1]))
    # Copies: it will donate them, and the model holds on to the weights.
    state = jax.tree.map(jnp.copy, svi.init(workload.key, blank))

    @partial(jax.jit, donate_argnums=0)
    def train(state: PyTree, batches: Array, images: Array) -> tuple[PyTree, Array]:
        def step(state: PyTree, indices: Array) -> tuple[PyTree, Array]:
            x = images[indices] / (workload.num_levels - 1)
            state, value = svi.update(state, x)
            return state, value / batch_size

        return jax.lax.scan(step, state, batches)

    return _keep_state(train, state, workload.images)


def _keep_state(train: Callable, state: PyTree, images: Array) -> Run:
    """Feeds the state that a round ends with to the next."""

    def run(batches: Array) -> Array:
        nonlocal state
        state, losses = train(state, batches, images)
        return losses

    return run


def contestants() -> list[Contestant]:
    """All that are installed, this library first."""
    found = [Contestant(OURS, prepare_vae_jax), Contestant(SCAN, prepare_scan)]
    if importlib.util.find_spec("numpyro"):
        # Here and not in `prepare_numpyro`, where the clock would count it.
        importlib.import_module("numpyro")
        found.append(Contestant(NUMPYRO, prepare_numpyro))
    return found
