"""The output layer of a network, and the network as a pure function of its weights."""

import contextlib
import inspect
import math
from collections.abc import Iterator
from typing import Any, TypeGuard

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp

from vae_jax.dependence import outputs_that_use_it
from vae_jax.networks.linen import image_shape
from vae_jax.types import AnyArray, Array, Key, Network, PyTree

_DROPOUT = "dropout"


class _WithOutputLayer(nn.Module):
    """A network followed by a dense map of its last axis to `num_outputs` in total."""

    network: Network
    num_outputs: int
    data_dim: int

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        draws = self.has_rng(_DROPOUT)
        features = self.network(inputs, **_mode(self.network, draws))
        positions = math.prod(features.shape[1:-1])
        if self.num_outputs % positions or self.data_dim % positions:
            raise ValueError(
                f"network {type(self.network).__name__} gives features at {positions} "
                f"positions, which must divide both {self.num_outputs} outputs and "
                f"{self.data_dim} data dimensions evenly"
            )
        outputs = nn.Dense(self.num_outputs // positions, name="output")(features)
        if positions == 1:
            return outputs
        # Reorder from positions first to parameters first: [P, D] flattened.
        channels = self.data_dim // positions
        outputs = outputs.reshape(outputs.shape[0], positions, -1, channels)
        return outputs.swapaxes(1, 2).reshape(outputs.shape[0], -1)


def _mode(network: Network, draws: bool) -> dict[str, bool]:
    """Arguments by which a Linen module asks whether it may draw random numbers."""
    accepted = inspect.signature(type(network).__call__).parameters
    modes = {"deterministic": not draws, "train": draws, "training": draws}
    return {name: mode for name, mode in modes.items() if name in accepted}


def with_output_layer(
    network: Network, num_outputs: int, data_shape: tuple[int, ...]
) -> nn.Module:
    """Add the output layer to a network of a spec.

    Args:
      network: a Linen module that follows `types.Network`.
      num_outputs: number of outputs per example.
      data_shape: shape of one example; passed to a network that has a field of that
        name with value None.

    Returns:
      A Linen module from `[B, ...]` to `[B, num_outputs]`.
    """
    if reads_images(network):
        network = network.clone(data_shape=data_shape)
    return _WithOutputLayer(network, num_outputs, math.prod(data_shape))


def reads_images(network: Network) -> TypeGuard[nn.Module]:
    """Whether a network takes `data_shape` from the spec, and thus reads images."""
    return getattr(network, "data_shape", ()) is None


def concatenate_labels(
    inputs: Array, labels: AnyArray, data_shape: tuple[int, ...] | None
) -> Array:
    """Concatenate labels to a network's inputs, or append them as image channels.

    Args:
      inputs: `[..., D]`.
      labels: `[..., C]`, broadcasting with the inputs.
      data_shape: height, width and channels of image inputs, to which the labels are
        appended as constant channels; None for other inputs.

    Returns:
      `[..., D + C]`, or `[..., D + height * width * C]`.
    """
    if data_shape is None:
        labels = jnp.broadcast_to(labels, (*inputs.shape[:-1], labels.shape[-1]))
        return jnp.concatenate([inputs, labels.astype(inputs.dtype)], axis=-1)
    height, width, channels = image_shape(data_shape)
    leading = inputs.shape[:-1]
    images = inputs.reshape(*leading, height * width, channels)
    return concatenate_labels(images, labels[..., None, :], None).reshape(*leading, -1)


def with_channels(data_shape: tuple[int, ...], num_classes: int) -> tuple[int, ...]:
    """Shape of an image with the labels as further channels."""
    height, width, channels = image_shape(data_shape)
    return (height, width, channels + num_classes)


def init(module: nn.Module, key: Key, inputs: Array) -> PyTree:
    """Initialise the weights of a network with its output layer.

    Args:
      module: module returned by `with_output_layer`.
      key: PRNG key, consumed once.
      inputs: an example batch; only its shape and dtype matter.

    Returns:
      A dictionary of arrays.

    Raises:
      ValueError: the module has state other than weights (batch statistics), which is
        not supported.
    """
    with _named_errors(module):
        variables = module.init(key, inputs)
    others = sorted(set(variables) - {"params"})
    if others:
        raise ValueError(
            f"network {module.network} has collections {others} besides its "
            "weights; only networks without other state are supported: "
            "batch normalisation couples the examples of a batch, so that a bound of "
            "one example does not exist (use LayerNorm or GroupNorm)"
        )
    return variables.get("params", {})


def apply(
    module: nn.Module,
    weights: PyTree,
    inputs: Array,
    *,
    dtype: str | None = None,
    key: Key | None = None,
) -> Array:
    """Apply a network with its output layer, for any number of leading axes.

    Args:
      module: module returned by `with_output_layer`.
      weights: weights returned by `init`.
      inputs: `[..., D]` or `[..., L]`.
      dtype: dtype of the computation; that of weights and inputs if None.
      key: PRNG key of dropout; None makes the network deterministic.

    Returns:
      Outputs, `[..., num_outputs]`, in the dtype of weights and inputs.

    Raises:
      ValueError: the network draws random numbers without a key.
    """
    flat = inputs.reshape(-1, inputs.shape[-1])
    rngs = None if key is None else {_DROPOUT: key}
    own = jnp.result_type(flat, *jax.tree.leaves(weights))
    if dtype is not None:
        weights, flat = jax.tree.map(lambda leaf: leaf.astype(dtype), (weights, flat))
    with _named_errors(module):
        outputs: Any = module.apply({"params": weights}, flat, rngs=rngs)
    if dtype is not None:
        outputs = outputs.astype(own)
    return outputs.reshape(*inputs.shape[:-1], -1)


@contextlib.contextmanager
def _named_errors(module: nn.Module) -> Iterator[None]:
    """Turn flax's report of a missing key into one line."""
    try:
        yield
    except flax.errors.InvalidRngError as error:
        raise ValueError(
            f"network {type(module.network).__name__} draws random numbers in "
            "evaluation too: let its __call__ take deterministic and give it to "
            "nn.Dropout"
        ) from error


def draws_random_numbers(module: nn.Module, weights: PyTree, inputs: Array) -> bool:
    """Whether a network with its output layer uses the key it is given in training.

    Args:
      module: module returned by `with_output_layer`.
      weights: weights returned by `init`.
      inputs: an example batch; only its shape matters.

    Returns:
      Whether its outputs, as a jaxpr, depend on the key.
    """

    def outputs(key: Key) -> Array:
        return apply(module, weights, inputs, key=key)

    return any(outputs_that_use_it(outputs, jax.random.key(0)))


def output_bias(weights: PyTree) -> Array:
    """Bias of the output layer, shared by all positions of an image."""
    return weights["output"]["bias"]


def with_output_bias(weights: PyTree, bias: AnyArray) -> PyTree:
    """Replace the bias of the output layer by one of the same shape."""
    bias = bias.astype(output_bias(weights).dtype)
    return weights | {"output": weights["output"] | {"bias": bias}}


def with_scaled_outputs(weights: PyTree, factor: float | Array) -> PyTree:
    """Scale the output layer, which multiplies the network's outputs by a factor."""
    output = {
        name: (factor * leaf).astype(leaf.dtype)
        for name, leaf in weights["output"].items()
    }
    return weights | {"output": output}


def is_linen(value: Any) -> bool:
    """Whether a value is a Linen module, which has additional fields of Linen."""
    return isinstance(value, nn.Module)
