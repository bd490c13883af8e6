"""Training throughput: this library against hand-written JAX and NumPyro, on one work.

    python -m experiments.throughput

Workload a: a multilayer perceptron 784-400-(20+20)-400-784, ReLU, Bernoulli on grey
pixels, the ELBO with one sample and the analytic KL, Adam at 1e-3, batches of 128 out
of 60,000 images that lie on the device as uint8. Contestants take turns, each round in
another order, because a machine's speed drifts by more than they differ: read the
ratios. A round is a freshly shuffled epoch cut short after `steps` batches, the same
batches for everyone. Pixels are random by default, which costs the same as digits.

NumPyro comes with `pip install -e ".[bench]"`; without it its row is left out.
"""

import datetime
import importlib.util
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from matplotlib.figure import Figure
from tqdm import tqdm

import vae_jax
from vae_jax.types import Array, Key, PyTree

LEARNING_RATE = 1e-3
OURS = "vae_jax"
INSTALL_NUMPYRO = (
    'NumPyro is not installed, its row is left out: pip install -e ".[bench]"'
)


@dataclass(frozen=True)
class Config:
    """What to measure; see the fields."""

    workload: Literal["a"] = "a"
    """Which work: a is the MLP of 400 units with one-sample ELBO."""
    repeats: int = 7
    """Rounds; in each, every contestant runs once."""
    steps: int = 200
    """Training steps of one contestant in one round; an epoch at most."""
    batch_size: int = 128
    """Images in a batch."""
    num_examples: int = 60_000
    """Images in the data set."""
    dataset: Literal["synthetic", "mnist"] = "synthetic"
    """Random pixels of MNIST's shape, or MNIST itself."""
    data_dir: str = "data"
    """Where MNIST lies or is put."""
    seed: int = 0
    """Of the pixels, the initial weights, the noise and the order of the images."""
    run_dir: str = "runs/throughput"
    """Where results.json and figures/throughput.png go."""


class Workload(NamedTuple):
    """What all contestants are given: the same data, the same initial weights.

    Attributes:
      params: initial parameters; their spec is the model.
      data: the images on the device, uint8 `[n, D]`.
      num_levels: grey levels; a model sees value / (num_levels - 1).
      key: root of the training noise.
    """

    params: vae_jax.Params
    data: Array
    num_levels: int
    key: Key


Run = Callable[[Array], Array]
"""Trains on batches of indices `[T, B]`, one step each, going on where the last call
stopped; returns the loss before each step, `[T]`, nats per image."""


class Contestant(NamedTuple):
    """A way to do the work.

    Attributes:
      name: for the table.
      prepare: builds what it needs (not the caller's arrays: it may donate them).
    """

    name: str
    prepare: Callable[[Workload], Run]


class Row(NamedTuple):
    """Figures of one contestant; (median, least, greatest) over the rounds.

    Attributes:
      name: the contestant.
      images_per_second: images trained on in a second.
      ratio: this library's images per second over the contestant's, round by round.
      seconds_to_first_step: building and compiling.
    """

    name: str
    images_per_second: tuple[float, float, float]
    ratio: tuple[float, float, float]
    seconds_to_first_step: float


class Results(NamedTuple):
    """The table, what it was measured on, and what to know when reading it."""

    rows: tuple[Row, ...]
    environment: dict[str, Any]
    remarks: tuple[str, ...]


def prepare_vae_jax(workload: Workload) -> Run:
    """This library, put together as in `experiments.mnist`."""
    adam = optax.adam(LEARNING_RATE)
    step = partial(
        vae_jax.train_step,
        objective=vae_jax.elbo_objective(),
        optimizer=adam,
        preprocess=lambda batch, key: batch / (workload.num_levels - 1),
    )
    params = jax.tree.map(jnp.copy, workload.params)
    state = vae_jax.init_state(params, jnp.copy(workload.key), optimizer=adam)
    train = vae_jax.jit_step(partial(vae_jax.train_epoch, step=step))

    def run(batches: Array) -> Array:
        nonlocal state
        epoch = vae_jax.Epoch(batches, rest=batches[0, :0])
        history = vae_jax.empty_history(step, state, epoch, workload.data)
        state, history = train(state, epoch, workload.data, history, len(batches))
        return -history["objective"]

    return run


def plain_weights(params: vae_jax.Params) -> dict[str, list[dict[str, Array]]]:
    """Copies of a pair of MLPs as lists of layers, each a kernel and a bias."""
    networks = {"encoder": params.encoder, "decoder": params.decoder}
    layers = {
        name: [*tree["network"].values(), tree["output"]]
        for name, tree in networks.items()
    }
    return jax.tree.map(jnp.copy, layers)


def perceptron(layers: list[dict[str, Array]], inputs: Array) -> Array:
    """A multilayer perceptron with ReLU between its layers."""
    for layer in layers[:-1]:
        inputs = jax.nn.relu(inputs @ layer["kernel"] + layer["bias"])
    return inputs @ layers[-1]["kernel"] + layers[-1]["bias"]


def prepare_scan(workload: Workload) -> Run:
    """The same step in plain JAX and optax, the steps of a round one scan."""
    adam = optax.adam(LEARNING_RATE)
    weights = plain_weights(workload.params)
    state = (weights, adam.init(weights), jnp.copy(workload.key))

    def loss(weights: PyTree, x: Array, key: Key) -> Array:
        outputs = perceptron(weights["encoder"], x)
        mean, log_var = jnp.split(outputs, 2, axis=-1)
        noise = jax.random.normal(key, mean.shape)
        z = mean + jnp.exp(0.5 * log_var) * noise
        logits = perceptron(weights["decoder"], z)
        log_likelihood = jnp.sum(x * logits - jax.nn.softplus(logits), axis=-1)
        kl = 0.5 * jnp.sum(mean**2 + jnp.exp(log_var) - log_var - 1, axis=-1)
        return jnp.mean(kl - log_likelihood)

    @partial(jax.jit, donate_argnums=0)
    def train(state: PyTree, batches: Array, data: Array) -> tuple[PyTree, Array]:
        def step(state: PyTree, indices: Array) -> tuple[PyTree, Array]:
            weights, opt_state, key = state
            key, step_key = jax.random.split(key)
            x = data[indices] / (workload.num_levels - 1)
            value, gradients = jax.value_and_grad(loss)(weights, x, step_key)
            updates, opt_state = adam.update(gradients, opt_state)
            return (optax.apply_updates(weights, updates), opt_state, key), value

        return jax.lax.scan(step, state, batches)

    def run(batches: Array) -> Array:
        nonlocal state
        state, losses = train(state, batches, workload.data)
        return losses

    return run


def prepare_numpyro(workload: Workload) -> Run:
    """NumPyro's SVI with `TraceMeanField_ELBO`, the steps of a round one scan.

    Its `Trace_ELBO` estimates the KL from samples; of the two this one takes it in
    closed form, as the others do. Its loss is the sum over a batch.
    """
    import numpyro
    from numpyro import distributions, infer

    def model(x: Array, weights: PyTree) -> None:
        layers = numpyro.param("decoder", weights["decoder"])
        with numpyro.plate("images", x.shape[0]):
            prior = distributions.Normal(jnp.zeros(latent_dim), 1).to_event(1)
            logits = perceptron(layers, numpyro.sample("z", prior))
            pixels = distributions.Bernoulli(logits=logits, validate_args=False)
            numpyro.sample("x", pixels.to_event(1), obs=x)

    def guide(x: Array, weights: PyTree) -> None:
        layers = numpyro.param("encoder", weights["encoder"])
        mean, log_var = jnp.split(perceptron(layers, x), 2, axis=-1)
        with numpyro.plate("images", x.shape[0]):
            posterior = distributions.Normal(mean, jnp.exp(0.5 * log_var))
            numpyro.sample("z", posterior.to_event(1))

    latent_dim = workload.params.spec.latent_dim
    weights = plain_weights(workload.params)
    adam = numpyro.optim.Adam(LEARNING_RATE)
    svi = infer.SVI(model, guide, adam, infer.TraceMeanField_ELBO())
    images = jnp.zeros((1, workload.data.shape[1]))
    state = svi.init(jnp.copy(workload.key), images, weights)

    @partial(jax.jit, donate_argnums=0)
    def train(state: PyTree, batches: Array, data: Array) -> tuple[PyTree, Array]:
        def step(state: PyTree, indices: Array) -> tuple[PyTree, Array]:
            x = data[indices] / (workload.num_levels - 1)
            state, value = svi.update(state, x, weights)
            return state, value / len(indices)

        return jax.lax.scan(step, state, batches)

    def run(batches: Array) -> Array:
        nonlocal state
        state, losses = train(state, batches, workload.data)
        return losses

    return run
