"""Adapters for networks of other frameworks: Flax NNX, Equinox, plain functions.

An adapter is a Linen module. It holds a constructor and its arguments, or a pair of
functions, so that a spec hashes and a checkpoint can rebuild it, and keeps the weights
of the other framework as one of its parameters. Output layer, checkpoints, sweeps and
`check` then treat it like any other network.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vae_jax.dependence import outputs_that_use_it
from vae_jax.extras import import_extra
from vae_jax.leaf_names import leaf_name, named_leaves
from vae_jax.types import Array, Key, PyTree

# Names by which a constructor may ask for the number of inputs.
_INPUT_SIZES = ("in_features", "in_size")
_COUPLES = (
    "normalisation over a batch couples its examples, so that a bound of one example "
    "does not exist; use one over features (LayerNorm, GroupNorm, RMSNorm)"
)


class _Adapter(nn.Module):
    """A network that another framework constructs.

    Attributes:
      constructor: a class or a function with an import path.
      arguments: pairs of the names and values of its arguments.
    """

    constructor: Callable[..., Any]
    arguments: tuple[tuple[str, Any], ...] = ()

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Map `[B, D]` to features."""
        construct = self._construct(inputs.shape[-1])
        weights = self.param("weights", partial(self._initial, construct))
        key = self.make_rng("dropout") if self.has_rng("dropout") else None
        return self._apply(construct, weights, inputs, key)

    def _construct(self, num_inputs: int) -> Callable[..., Any]:
        """The constructor with its arguments, and the number of inputs if asked for."""
        arguments = dict(self.arguments)
        # The metaclasses of both frameworks hide the signature of a class.
        is_class = isinstance(self.constructor, type)
        called = self.constructor.__init__ if is_class else self.constructor
        accepted = inspect.signature(called).parameters
        for name in _INPUT_SIZES:
            if name in accepted and name not in arguments:
                arguments[name] = num_inputs

        def construct(**random: Any) -> Any:
            try:
                return self.constructor(**arguments, **random)
            except TypeError as error:
                shown = getattr(self.constructor, "__qualname__", self.constructor)
                raise ValueError(f"network {shown}: {error}") from error

        return construct

    def _initial(self, construct: Callable[..., Any], key: Key) -> dict[str, Array]:
        raise NotImplementedError

    def _apply(
        self,
        construct: Callable[..., Any],
        weights: dict[str, Array],
        inputs: Array,
        key: Key | None,
    ) -> Array:
        raise NotImplementedError


class NNXNetwork(_Adapter):
    """A network of Flax NNX; made by `nnx_network`."""

    def _initial(self, construct: Callable[..., Any], key: Key) -> dict[str, Array]:
        return named_leaves(_nnx_weights(construct, key))

    def _apply(
        self,
        construct: Callable[..., Any],
        weights: dict[str, Array],
        inputs: Array,
        key: Key | None,
    ) -> Array:
        from flax import nnx

        abstract = nnx.eval_shape(lambda: construct(rngs=nnx.Rngs(0)))
        graph, parameters, random, others = nnx.split(
            abstract, nnx.Param, nnx.RngState, ...
        )
        kinds = {type(leaf).__name__ for _, leaf in nnx.to_flat_state(others)}
        if kinds:
            raise ValueError(
                f"network {self.constructor.__qualname__} keeps state besides its "
                f"weights ({', '.join(sorted(kinds))}): {_COUPLES}"
            )
        nnx.replace_by_pure_dict(
            parameters, _like(nnx.to_pure_dict(parameters), weights)
        )

        def features(root: Key) -> Array:
            # Copies: NNX refuses Variables of a program outside of the traced one.
            own = jax.tree.map(lambda leaf: leaf, parameters)
            network = nnx.merge(graph, own, _filled(random, root))
            if key is None:
                network.eval()
            else:
                network.train()
            return network(inputs)

        if key is not None:
            return features(key)
        # A module needs generators, even where it has no use for them.
        unused = jax.random.key(0)
        if jax.tree.leaves(random) and any(outputs_that_use_it(features, unused)):
            raise ValueError(
                f"network {self.constructor.__qualname__} draws random numbers in "
                "evaluation too: draw them with nnx.Dropout, which eval() turns off"
            )
        return features(unused)


def _nnx_weights(construct: Callable[..., Any], key: Key) -> PyTree:
    from flax import nnx

    return nnx.to_pure_dict(nnx.state(construct(rngs=nnx.Rngs(key)), nnx.Param))


def _filled(random: Any, key: Key) -> Any:
    """The state of NNX's generators: a key of its own for each, all counts 0."""
    leaves, structure = jax.tree.flatten(random)
    filled = [
        jax.random.fold_in(key, number)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        else jnp.zeros(leaf.shape, leaf.dtype)
        for number, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, filled)


def nnx_network(constructor: Callable[..., Any], **arguments: Any) -> NNXNetwork:
    """A Flax NNX module as the network of a spec.

    The module maps a batch `[B, D]` to features. Its constructor is called with the
    arguments, with `rngs`, and, if it has a parameter `in_features` that is not among
    the arguments, with the number of inputs. In training (`Params.network_key`) it is
    called after `train()`, so that `nnx.Dropout` draws; else after `eval()`.

    Args:
      constructor: a subclass of `flax.nnx.Module`, or a function that returns one.
      arguments: what it takes by keyword; hashable.

    Returns:
      A network for `ModelSpec`.

    Raises:
      ValueError: when the model is initialised: the constructor does not take the
        arguments, or the module keeps state (`nnx.BatchNorm`) or draws random numbers
        after `eval()`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> from vae_jax import ModelSpec, encode, init, nnx_network
      >>> class Tanh(nnx.Module):
      ...     def __init__(self, in_features, width, *, rngs):
      ...         self.hidden = nnx.Linear(in_features, width, rngs=rngs)
      ...     def __call__(self, inputs):
      ...         return jnp.tanh(self.hidden(inputs))
      >>> spec = ModelSpec(encoder=nnx_network(Tanh, width=50), latent_dim=2)
      >>> params = init(spec, jax.random.key(0))
      >>> encode(params, jnp.zeros((8, 784))).mean.shape
      (8, 2)
    """
    return NNXNetwork(constructor, tuple(sorted(arguments.items())))


class EquinoxNetwork(_Adapter):
    """A network of Equinox; made by `equinox_network`."""

    def _initial(self, construct: Callable[..., Any], key: Key) -> dict[str, Array]:
        network = construct(key=key)
        arrays = {
            name: leaf
            for name, leaf in named_leaves(network).items()
            if hasattr(leaf, "dtype")
        }
        self._require_stateless(network, arrays)
        return arrays

    def _require_stateless(self, network: Any, arrays: dict[str, Array]) -> None:
        equinox = import_extra("equinox", extra="equinox")
        name = getattr(self.constructor, "__qualname__", self.constructor)

        def is_state(node: Any) -> bool:
            return isinstance(node, equinox.nn.StateIndex)

        if any(map(is_state, jax.tree.leaves(network, is_leaf=is_state))):
            raise ValueError(
                f"network {name} keeps state besides its weights: {_COUPLES}"
            )
        fixed = [
            path
            for path, leaf in arrays.items()
            if not jnp.issubdtype(leaf.dtype, jnp.floating)
        ]
        if fixed:
            raise ValueError(
                f"network {name} holds arrays that are no floating-point weights "
                f"({', '.join(fixed)}): make them tuples, or compute them where they "
                "are used"
            )

    def _apply(
        self,
        construct: Callable[..., Any],
        weights: dict[str, Array],
        inputs: Array,
        key: Key | None,
    ) -> Array:
        equinox = import_extra("equinox", extra="equinox")
        abstract = equinox.filter_eval_shape(lambda: construct(key=jax.random.key(0)))
        network = equinox.nn.inference_mode(_like(abstract, weights), key is None)
        if "key" not in inspect.signature(type(network).__call__).parameters:
            return jax.vmap(network)(inputs)
        if key is None:
            return jax.vmap(partial(network, key=None))(inputs)
        keys = jax.random.split(key, inputs.shape[0])
        return jax.vmap(lambda x, key: network(x, key=key))(inputs, keys)


def equinox_network(
    constructor: Callable[..., Any], **arguments: Any
) -> EquinoxNetwork:
    """An Equinox module as the network of a spec.

    The module maps one example `[D]` to features `[H]`, as is usual there, and is
    mapped over the batch. Its constructor is called with the arguments, with `key`,
    and, if it has a parameter `in_size` or `in_features` that is not among the
    arguments, with the number of inputs. In training (`Params.network_key`) it is
    called with a key for each example, if it takes one; else in inference mode.

    Args:
      constructor: a subclass of `equinox.Module`, or a function that returns one.
      arguments: what it takes by keyword; hashable.

    Returns:
      A network for `ModelSpec`.

    Raises:
      ValueError: when the model is initialised: the constructor does not take the
        arguments, or the module keeps state (`equinox.nn.BatchNorm`).

    Example:
      >>> import equinox, jax, jax.numpy as jnp
      >>> from vae_jax import ModelSpec, encode, equinox_network, init
      >>> mlp = equinox_network(equinox.nn.MLP, out_size=30, width_size=50, depth=1)
      >>> params = init(ModelSpec(encoder=mlp, latent_dim=2), jax.random.key(0))
      >>> encode(params, jnp.zeros((8, 784))).mean.shape
      (8, 2)
    """
    return EquinoxNetwork(constructor, tuple(sorted(arguments.items())))


class FunctionNetwork(nn.Module):
    """A network of two plain functions.

    Attributes:
      initial_weights: `f(key, num_inputs)`, a pytree of floating-point arrays.
      features: `f(weights, inputs)`, from `[B, D]` to features; if it has a parameter
        `key`, it is given one in training (`Params.network_key`), and None else.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax import FunctionNetwork, ModelSpec, encode, init
      >>> def initial(key, num_inputs):
      ...     return {"kernel": jax.random.normal(key, (num_inputs, 50)) / 28}
      >>> def features(weights, inputs):
      ...     return jnp.tanh(inputs @ weights["kernel"])
      >>> spec = ModelSpec(encoder=FunctionNetwork(initial, features), latent_dim=2)
      >>> encode(init(spec, jax.random.key(0)), jnp.zeros((8, 784))).mean.shape
      (8, 2)
    """

    initial_weights: Callable[[Key, int], PyTree]
    features: Callable[..., Array]

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Map `[B, D]` to features."""
        weights = self.param("weights", self.initial_weights, inputs.shape[-1])
        if "key" not in inspect.signature(self.features).parameters:
            return self.features(weights, inputs)
        key = self.make_rng("dropout") if self.has_rng("dropout") else None
        return self.features(weights, inputs, key=key)


def adapted(constructor: Callable[..., Any]) -> Callable[..., Any]:
    """Constructor of the network of a class, its adapter if it is not a Linen module.

    Args:
      constructor: a class of any framework, or a function.

    Returns:
      `nnx_network` or `equinox_network` of a class of these frameworks; anything else
      unchanged.

    Example:
      >>> import equinox
      >>> from vae_jax.networks import adapted
      >>> adapted(equinox.nn.MLP)(width_size=50, out_size=30, depth=1).constructor
      <class 'equinox.nn._mlp.MLP'>
    """
    # By name: neither framework is imported before a class of it is seen.
    bases = getattr(constructor, "__mro__", ())
    modules = {base.__module__ for base in bases if base.__name__ == "Module"}
    if any(module.startswith("flax.nnx.") for module in modules):
        return partial(nnx_network, constructor)
    if any(module.startswith("equinox.") for module in modules):
        return partial(equinox_network, constructor)
    return constructor


def _like(tree: PyTree, weights: dict[str, Array]) -> PyTree:
    """A tree with the leaves of these names replaced."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: weights.get(leaf_name(path), leaf), tree
    )
