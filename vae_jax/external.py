"""Replace the networks of a model by user-defined functions.

`Params` contains either the weights of a network of the spec or an `External` function
that returns the distribution itself. `encode` and `decode` support both, and so does
everything that builds on them, from the ELBO to annealing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax.spec import ModelSpec, Params
from vae_jax.types import Array, Conditions, Distribution


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("weights",),
    meta_fields=("constants", "structure", "role"),
)
@dataclass(frozen=True)
class External:
    """A user-defined function in `Params.encoder` or `Params.decoder`.

    Attributes:
      weights: leaves of the function, as a pytree, that are arrays; None for others.
      constants: the other leaves, which are static; None for arrays. A plain function
        is a single constant.
      structure: structure of the pytree.
      role: `posterior` or `likelihood`, for messages.
    """

    weights: tuple[Array | None, ...]
    constants: tuple[Any, ...]
    structure: Any
    role: str

    def __call__(self, inputs: Array, conditions: Conditions | None) -> Any:
        """Call the function, with `labels=conditions` unless they are None."""
        leaves = [
            constant if weight is None else weight
            for weight, constant in zip(self.weights, self.constants, strict=True)
        ]
        function = jax.tree.unflatten(self.structure, leaves)
        if conditions is None:
            return function(inputs)
        return function(inputs, labels=conditions)


def _external(function: Callable[..., Any], role: str) -> External:
    leaves, structure = jax.tree.flatten(function)
    is_array = [isinstance(leaf, jax.Array | np.ndarray) for leaf in leaves]
    pairs = list(zip(leaves, is_array, strict=True))
    return External(
        weights=tuple(jnp.asarray(leaf) if kept else None for leaf, kept in pairs),
        constants=tuple(None if kept else leaf for leaf, kept in pairs),
        structure=structure,
        role=role,
    )


def replace_networks(
    params: Params,
    *,
    posterior: Callable[..., Distribution] | None = None,
    likelihood: Callable[..., Distribution] | None = None,
) -> Params:
    """Replace the encoder or decoder by functions that return q(z|x) or p(x|z).

    Use it for networks that were trained or defined elsewhere. The result is valid in
    bounds, `log_evidence`, annealing, MCMC, calibration, `generate` and `fit`. The
    families of the spec still define the spaces of x and z (`support`, `latent_space`),
    but the distributions may be of other families; the prior is unchanged. The
    functions scale x themselves, receive no PRNG key, and can neither be saved in a
    checkpoint (`save_run`) nor tested by `check`.

    If `num_classes` or `num_covariates` is set, the functions also receive
    `labels=Conditions(...)`, with the labels as class weights `[B, C]`; `likelihood`
    also receives the exposure, if the likelihood of the spec takes one. For data with
    missing values (`Masked`), `likelihood` must return a distribution that accepts NaN,
    such as `MaskedDistribution`.

    A function may also be a callable pytree, such as
    `jax.tree_util.Partial(function, weights)`, whose arrays are weights for `jax.grad`
    and `fit`; arrays in a closure are constants.

    Args:
      params: model parameters.
      posterior: function from x, `[B, D]`, to q(z|x) with arrays `[B, ...]`; None keeps
        the encoder.
      likelihood: function from z, `[..., L]`, usually `[S, B, L]`, to p(x|z) with
        arrays `[..., D]`; None keeps the decoder. With several stochastic layers, z is
        that of the layer nearest the data.

    Returns:
      `Params` of the same spec.

    Raises:
      ValueError: an argument is not callable. When a function is called: it does not
        return a `Distribution` of the expected shape, or q(z|x) is discrete in a model
        with real latents.

    Example:
      >>> import jax, jax.numpy as jnp, vae_jax
      >>> from vae_jax.distributions import DiagonalGaussianDistribution
      >>> params = vae_jax.init(vae_jax.ModelSpec(latent_dim=2), jax.random.key(0))
      >>> def posterior(weights, x):
      ...     mean = x @ weights
      ...     return DiagonalGaussianDistribution(mean, jnp.zeros_like(mean))
      >>> own = jax.tree_util.Partial(posterior, jnp.full((784, 2), 2.0**-9))
      >>> params = vae_jax.replace_networks(params, posterior=own)
      >>> print(vae_jax.encode(params, jnp.ones((1, 784))).mean)
      [[1.53125 1.53125]]
    """
    given = {"posterior": posterior, "likelihood": likelihood}
    for role, function in given.items():
        if function is not None and not callable(function):
            raise ValueError(
                f"{role} must be a function, got {type(function).__name__}: elbo_terms "
                "and log_evidence take a distribution of one batch, as posterior="
            )
    fields = {"posterior": "encoder", "likelihood": "decoder"}
    changes = {
        fields[role]: _external(function, role)
        for role, function in given.items()
        if function is not None
    }
    return params.replace(**changes)


def external_of(params: Params) -> External | None:
    """The first function of `replace_networks` in a model; None if there is none."""
    networks = (params.encoder, params.decoder)
    return next((one for one in networks if isinstance(one, External)), None)


def require_posterior(spec: ModelSpec, built: Distribution, batch: int) -> None:
    """Raise ValueError if q(z|x) has other shapes, or is discrete for real latents.

    Args:
      spec: spec of the model.
      built: result of the function for `batch` examples.
      batch: number B of examples.

    Raises:
      ValueError: invalid q(z|x); the message states the actual and expected shape.
    """
    size = spec.latent_dim if spec.posterior.layers is None else None
    _require_mean("posterior", built, (batch,), size)
    for leaf in jax.tree.leaves(built):
        # Require a batch axis: if L = B, an array `[L]` would be mistaken for `[B]`.
        if leaf.ndim < 2 or leaf.shape[0] not in (1, batch):
            raise ValueError(
                f"posterior must return q(z|x) with arrays [{batch}, ...] or [1, ...] "
                f"of {batch} examples, got one of {list(leaf.shape)}"
            )
    if spec.posterior.latent_space == "real" and built.is_enumerable:
        raise ValueError(
            f"posterior returned {type(built).__name__}, whose latents are discrete, "
            f"but those of the model are real ({spec.posterior!r}): choose a spec with "
            "discrete latents, such as posterior=FactorizedBernoulli()"
        )


def require_likelihood(spec: ModelSpec, built: Distribution, z: Array) -> None:
    """Raise ValueError if p(x|z) has another shape than `[..., D]`.

    Args:
      spec: spec of the model.
      built: result of the function for `z`.
      z: latents, `[..., L]`.

    Raises:
      ValueError: invalid p(x|z); the message states the actual and expected shape.
    """
    _require_mean("likelihood", built, z.shape[:-1], spec.data_dim)


def _require_mean(
    role: str, built: Distribution, leading: tuple[int, ...], size: int | None
) -> None:
    for leaf in jax.tree.leaves(jax.eval_shape(lambda: built.mean)):
        if leaf.shape[:-1] != leading or size not in (None, leaf.shape[-1]):
            expected = [*leading, "L" if size is None else size]
            raise ValueError(
                f"{role} must return a distribution whose mean is {expected}, got "
                f"{type(built).__name__} with {list(leaf.shape)}"
            )
