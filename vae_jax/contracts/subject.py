"""The model under check, and perturbations of its parameters."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax import networks
from vae_jax.distributions import closed_form_kl
from vae_jax.model import (
    at_labels,
    build_prior,
    decode,
    decoder_outputs,
    encode,
    encoder_outputs,
    log_prior,
    trainable,
)
from vae_jax.spec import Params
from vae_jax.types import Array, Key, Labels, Posterior, PyTree

LARGEST_OUTPUT = 2.0
NUM_PILOT_DRAWS = 16
FAMILIES = ("posterior", "prior", "likelihood")


class Outcome(NamedTuple):
    """Verdict of a line without its name; see `report.Line`."""

    passed: bool | None
    figure: str = ""
    detail: str = ""


@dataclass(frozen=True)
class Subject:
    """The model under check, and the examples to check it with.

    Attributes:
      params: parameters as given.
      moved: parameters with perturbed biases and families, and with network outputs of
        moderate size.
      x: observations, `[B, D]`.
      labels: labels of a conditional model, or None.
      num_samples: number N of samples per expectation.
    """

    params: Params
    moved: Params
    x: Array
    labels: Labels
    num_samples: int

    @property
    def batch(self) -> int:
        """Number B of examples."""
        return self.x.shape[0]

    @property
    def few(self) -> int:
        """A number of samples other than B, so that swapped axes are detected."""
        return self.batch + 1

    @property
    def epsilon(self) -> float:
        """Relative rounding error of the model's dtype."""
        return float(jnp.finfo(self.x.dtype).eps)

    def posterior(self) -> Posterior:
        """Posterior q(z|x) of the perturbed model."""
        return encode(self.moved, self.x, labels=self.labels)

    def repeated(self, count: int) -> "Subject":
        """Repeat the examples `count` times, `[count * B]`."""

        def tile(leaf: Array) -> Array:
            return jnp.tile(leaf, (count, *[1] * (leaf.ndim - 1)))

        x, labels = jax.tree.map(tile, (self.x, self.labels))
        return replace(self, x=x, labels=labels)


def why_without_density(posterior: Posterior) -> str | None:
    """Return why a line about log q does not apply, or None if it does."""
    if posterior.has_density:
        return None
    return f"{type(posterior).__name__} has no density"


def is_discrete(posterior: Posterior) -> bool:
    """Whether the samples carry no gradient."""
    return not posterior.is_reparameterizable


def kl_of(params: Params, posterior: Posterior, labels: Labels) -> Array | None:
    """Registered closed-form KL(q(z|x) || p(z)), `[B]`, or None."""
    prior = build_prior(at_labels(params, labels))
    closed_form = closed_form_kl(type(posterior), type(prior))
    return None if closed_form is None else closed_form(posterior, prior)


def terms(
    params: Params, x: Array, key: Key, labels: Labels, *, num_samples: int
) -> dict[str, Array]:
    """Terms of the ELBO, `[B]` each, as far as the posterior supports them.

    No gradient estimator is involved, so discrete latents are supported.
    """
    posterior = encode(params, x, labels=labels)
    z, log_q = posterior.sample_and_log_prob(key, num_samples)
    log_likelihood = decode(params, z, labels=labels).log_prob(x)
    found = {"log p(x|z)": jnp.mean(log_likelihood, axis=0)}
    divergence = kl_of(params, posterior, labels)
    if divergence is not None:
        found["the registered KL"] = divergence
    if posterior.has_density:
        ratio = log_q - log_prior(params, z, labels=labels)
        found["log q(z|x) - log p(z)"] = jnp.mean(ratio, axis=0)
    return found


def random_of(key: Key) -> np.random.Generator:
    """NumPy generator seeded by a key, which avoids compiling JAX programs."""
    return np.random.default_rng(np.asarray(jax.random.key_data(key)))


def normal_like(tree: PyTree, rng: np.random.Generator) -> PyTree:
    """Normal numbers like the arrays of a tree, scaled by 1 / sqrt(fan-in)."""

    def draw(leaf: Array) -> np.ndarray:
        fan_in = max(1, np.prod(leaf.shape[:-1])) if leaf.ndim > 1 else 1
        return (rng.normal(size=leaf.shape) / np.sqrt(fan_in)).astype(leaf.dtype)

    return jax.tree.map(draw, tree)


def direction(
    params: Params, key: Key, parts: tuple[str, ...], *, whole: bool = False
) -> Params:
    """Random direction in some of the parameters, zero in the others.

    Settings that are not trained are excluded, since their values may be restricted.
    For a network, only the output bias is included unless `whole`: this changes every
    output and nothing else.
    """
    changes, rng = {}, random_of(key)
    zero = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), params)
    for part in parts:
        changes[part] = normal_like(getattr(params, part), rng)
        if not whole and part not in FAMILIES:
            bias = networks.output_bias(changes[part])
            changes[part] = networks.with_output_bias(getattr(zero, part), bias)
    drawn = zero.replace(**changes)
    return jax.tree.map(lambda leaf, free: leaf * free, drawn, trainable(params))


def along(tree: PyTree, towards: PyTree, size: float) -> PyTree:
    """Return `tree + size * towards`."""

    def move(leaf: Array, step: Array) -> Array:
        moved = np.asarray(leaf) + size * np.asarray(step)
        return jnp.asarray(moved.astype(leaf.dtype))

    return jax.tree.map(move, tree, towards)


def with_ordinary_outputs(params: Params, x: Array, key: Key, labels: Labels) -> Params:
    """Scale down the output layers of a model if their outputs are large.

    The weights may have any size and the data any unit. At extreme outputs (a variance
    of exp(-20), a bit that is never drawn), errors of a family cannot be distinguished
    from rounding or chance.
    """

    def scaled(weights: PyTree, outputs: Array) -> PyTree:
        largest = float(jnp.max(jnp.abs(outputs)))
        if not LARGEST_OUTPUT < largest < np.inf:
            return weights
        return networks.with_scaled_outputs(weights, LARGEST_OUTPUT / largest)

    outputs = encoder_outputs(params, x, labels=labels)
    params = params.replace(encoder=scaled(params.encoder, outputs))
    z, _ = encode(params, x, labels=labels).sample_and_log_prob(key, NUM_PILOT_DRAWS)
    outputs = decoder_outputs(params, z, labels=labels)
    return params.replace(decoder=scaled(params.decoder, outputs))
