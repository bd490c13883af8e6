"""Functions of a script's own in the place of a model's networks.

`encode` and `decode` call what `Params` holds: the weights of a network of the spec, or
an `External` function that makes the distribution itself. Everything that is built on
these two, from the ELBO to annealing, then takes it.
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
    """A function of a script's own, in `Params.encoder` or `Params.decoder`.

    Attributes:
      weights: arrays of the function, where it is a pytree; None for other leaves.
      constants: the other leaves, static; None for arrays. A plain function is one.
      structure: of the pytree.
      role: `posterior` or `likelihood`, for messages.
    """

    weights: tuple[Array | None, ...]
    constants: tuple[Any, ...]
    structure: Any
    role: str

    def __call__(self, inputs: Array, conditions: Conditions | None) -> Any:
        """Call the function, with `labels` where the model has some."""
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
    """The model with q(z|x) or p(x|z) made by functions of a script's own.

    For networks that were trained or written elsewhere. Everything that takes `params`
    then takes them: bounds, `log_evidence`, annealing, MCMC, calibration, `generate`,
    `fit`. The spec's families still say what x and z are (`support`, `latent_space`)
    and need not be those of the distributions; its prior stays. The functions do their
    own scaling of x, do not draw, and have no checkpoint (`save_run`).

    Where `num_classes` or `num_covariates` is set, they are given
    `labels=Conditions(...)` as well, its labels as weights of the classes `[B, C]`, and
    `likelihood` the exposure too, where the spec's takes one.

    Args:
      params: model parameters.
      posterior: function from x, `[B, D]`, to q(z|x) with arrays `[B, ...]`; None keeps
        the encoder.
      likelihood: function from z, `[..., L]`, usually `[S, B, L]`, to p(x|z) with
        arrays `[..., D]`; None keeps the decoder. With several stochastic layers z is
        that of the layer nearest the data.

      Each is a plain function, or a callable pytree whose arrays are weights for
      `jax.grad` and `fit`, such as `jax.tree_util.Partial(function, weights)`.
      Arrays of a closure are constants.

    Returns:
      `Params` of the same spec.

    Raises:
      ValueError: no function. When it is called: what it returns is no `Distribution`,
        or one of another shape, or q(z|x) is discrete in a model of real latents.

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


def require_posterior(spec: ModelSpec, built: Distribution, batch: int) -> None:
    """Raise ValueError for q(z|x) of other shapes, or of bits for real latents.

    Args:
      spec: of the model.
      built: what the function made of `batch` examples.
      batch: B.

    Raises:
      ValueError: names the shape that came and the one expected.
    """
    size = spec.latent_dim if spec.posterior.layers is None else None
    _require_mean("posterior", built, (batch,), size)
    for leaf in jax.tree.leaves(built):
        # A `[L]` of all examples would pass for a `[B]` where both are as large.
        if leaf.ndim < 2 or leaf.shape[0] not in (1, batch):
            raise ValueError(
                f"posterior must return q(z|x) with arrays [{batch}, ...] or [1, ...] "
                f"of {batch} examples, got one of {list(leaf.shape)}"
            )
    if spec.posterior.latent_space == "real" and built.is_enumerable:
        raise ValueError(
            f"posterior returned {type(built).__name__}, whose latents are discrete, "
            f"and those of the model are real ({spec.posterior!r}): choose a spec of "
            "discrete latents, such as posterior=FactorizedBernoulli()"
        )


def require_likelihood(spec: ModelSpec, built: Distribution, z: Array) -> None:
    """Raise ValueError for p(x|z) of another shape than `[..., D]`.

    Args:
      spec: of the model.
      built: what the function made of `z`.
      z: latents, `[..., L]`.

    Raises:
      ValueError: names the shape that came and the one expected.
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
