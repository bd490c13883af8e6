"""Invertible maps of latents with their log-determinants, and autoregressive networks.

Each step maps latents `[S, B, L]` to z' and returns its log-determinant `[S, B]` in
nats, by which the density changes (Rezende & Mohamed 2015, eq. 5):

    log q(z') = log q(z) - log_det
    log_det = log |det(d/d z z')|
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax.distributions.multivariate_gaussian import lower_triangular, times
from vae_jax.types import Array, Key, PyTree

# Minimum distance of a step from singularity; float32 still resolves its determinant.
MARGIN = 1e-3
TINY = 1e-12


def planar(
    z: Array, direction: Array, normal: Array, offset: Array
) -> tuple[Array, Array]:
    """Planar step (Rezende & Mohamed 2015, eq. 10).

        z' = z + u tanh(w^T z + b)
        log_det = log(1 + (1 - tanh(w^T z + b)^2) w^T u)

    The step is invertible if w^T u > -1. As in appendix A.1 of the paper, the component
    of u along w is changed such that w^T u becomes softplus(w^T u + c) - softplus(c),
    which exceeds -1 by at least 0.001. Unlike the version in the paper (c = 0), this
    maps 0 to 0: the step is the identity for u = 0 and stays bounded for w = 0.

    Args:
      z: latents, `[S, B, L]`.
      direction: u, `[B, L]`.
      normal: w, `[B, L]`.
      offset: b, `[B]`.

    Returns:
      Latents `[S, B, L]`, and the log-determinant `[S, B]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.bijectors import planar
      >>> moved, log_det = planar(*jnp.ones((3, 1, 1, 2)), jnp.zeros(1))
      >>> moved.shape, log_det.shape
      ((1, 1, 2), (1, 1))
    """
    wanted = jnp.sum(normal * direction, axis=-1)
    change = _above_minus_one(wanted) - wanted
    squares = jnp.sum(jnp.square(normal), axis=-1)
    # For negligible w, u is left unchanged.
    share = squares / (squares + TINY)
    along = share * _above_minus_one(wanted) + (1 - share) * wanted
    direction = direction + (change / (squares + TINY))[..., None] * normal
    preactivation = jnp.einsum("...l,...l->...", normal, z) + offset
    moved = z + direction * jnp.tanh(preactivation)[..., None]
    return moved, jnp.log1p(_tanh_slope(preactivation) * along)


def _tanh_slope(value: Array) -> Array:
    """1 - tanh(v)^2, computed without cancellation."""
    return 4 * jax.nn.sigmoid(2 * value) * jax.nn.sigmoid(-2 * value)


def _above_minus_one(value: Array) -> Array:
    """softplus(v + c) - softplus(c) with softplus(c) = 1 - MARGIN, accurate near 0."""
    share = -math.expm1(MARGIN - 1)
    small = jnp.log1p(share * jnp.expm1(jnp.minimum(value, 20.0)))
    return small + jnp.maximum(value - 20.0, 0.0)


def reflect(z: Array, vectors: Array) -> Array:
    """Apply Householder reflections in sequence.

        z' = z - 2 (v v^T z) / |v|^2

    for each vector v in turn. The map is orthogonal, with determinant 1 or -1. Its
    inverse applies the reflections in reverse order.

    Args:
      z: latents, `[S, B, L]`.
      vectors: v, `[B, H, L]`; a zero vector is the identity.

    Returns:
      Latents `[S, B, L]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.bijectors import reflect
      >>> print(reflect(jnp.array([[[3.0, 4.0]]]), jnp.array([[[1.0, 0.0]]])))
      [[[-3.  4.]]]
    """
    for index in range(vectors.shape[-2]):
        vector = vectors[..., index, :]
        squares = jnp.sum(jnp.square(vector), axis=-1, keepdims=True)
        # If the norm is 0, so is the vector.
        squares = jnp.where(squares > 0, squares, 1)
        # A matrix product: with a sum of products, XLA's CPU compiler (jaxlib 0.10.2)
        # returns wrong values for a chain of steps of many samples.
        along = jnp.einsum("...l,...l->...", vector, z, precision="highest")[..., None]
        z = z - 2 * vector * along / squares
    return z


def sylvester(
    z: Array,
    reflections: Array,
    outer: tuple[Array, Array],
    inner: tuple[Array, Array],
    offset: Array,
) -> tuple[Array, Array]:
    """Sylvester step, with Q orthogonal, and R and R_2 triangular.

        z' = z + Q R tanh(R_2 Q' z + b)
        log_det = sum_l log(1 + slope_l R_ll R_2_ll)

    Van den Berg, Hasenclever, Tomczak & Welling 2018, eq. 13, with Q a product of
    Householder reflections. The log-determinant is that of a triangular matrix, with
    the slopes 1 - tanh^2 of the units. The step is invertible if R_ll R_2_ll > -1,
    which is ensured by bounding the diagonals with a tanh.

    Args:
      z: latents, `[S, B, L]`.
      reflections: vectors of the reflections in Q, `[B, H, L]`.
      outer: diagonal of R before the tanh, `[B, L]`, and the other entries of R,
        `[B, L (L - 1) / 2]`.
      inner: the same for R_2.
      offset: b, `[B, L]`.

    Returns:
      Latents `[S, B, L]`, and the log-determinant `[S, B]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.bijectors import sylvester
      >>> half = (jnp.ones((1, 2)), jnp.ones((1, 1)))
      >>> z, vectors, offset = jnp.ones((3, 1, 2)), jnp.ones((1, 1, 2)), jnp.ones(2)
      >>> moved, log_det = sylvester(z, vectors, half, half, offset)
      >>> moved.shape, log_det.shape
      ((3, 1, 2), (3, 1))
    """
    bound = math.sqrt(1 - MARGIN)
    diagonals = [bound * jnp.tanh(diagonal) for diagonal, _ in (outer, inner)]
    upper, upper_inner = (
        lower_triangular(diagonal, entries).mT
        for diagonal, (_, entries) in zip(diagonals, (outer, inner), strict=True)
    )
    rotated = reflect(z, vectors=reflections[..., ::-1, :])
    preactivation = times(upper_inner, rotated) + offset
    change = _tanh_slope(preactivation) * diagonals[0] * diagonals[1]
    moved = z + reflect(times(upper, jnp.tanh(preactivation)), reflections)
    return moved, jnp.sum(jnp.log1p(change), axis=-1)


def init_autoregressive(
    key: Key, *, latent_dim: int, hidden_dim: int, context_dim: int = 0
) -> dict[str, PyTree]:
    """Initialise the weights of an `autoregressive` network with one hidden layer.

    Args:
      key: PRNG key, consumed once.
      latent_dim: number L of latents.
      hidden_dim: width of the hidden layer.
      context_dim: number C of context inputs besides the latents.

    Returns:
      A dictionary of arrays.

    Example:
      See `autoregressive`.
    """
    shapes = {
        "hidden": (latent_dim, hidden_dim),
        "output": (hidden_dim, 2 * latent_dim),
    }
    if context_dim:
        shapes["hidden_context"] = (context_dim, hidden_dim)
        shapes["output_context"] = (context_dim, 2 * latent_dim)
    keys = jax.random.split(key, len(shapes))
    weights = {
        name: jax.random.normal(own, shape)
        # Small outputs, so that a flow starts near the identity.
        * (0.1 if name.startswith("output") else 1.0)
        / math.sqrt(shape[0])
        for own, (name, shape) in zip(keys, shapes.items(), strict=True)
    }
    return weights | {
        "hidden_bias": jnp.zeros(hidden_dim),
        "output_bias": jnp.zeros(2 * latent_dim),
    }


def autoregressive(
    weights: PyTree, z: Array, context: Array | None = None
) -> tuple[Array, Array]:
    """Masked autoregressive network with two outputs per latent.

    The outputs for a latent depend only on the latents before it. The network has one
    hidden layer, in which a unit of degree d is connected to latents up to d and to
    outputs above d (Germain, Gregor, Murray & Larochelle 2015). The context is
    connected to every output.

    Args:
      weights: weights from `init_autoregressive`.
      z: latents, `[..., L]`.
      context: `[..., C]`, broadcasting with the latents; None if C is 0.

    Returns:
      Two arrays `[..., L]`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax.bijectors import autoregressive, init_autoregressive
      >>> weights = init_autoregressive(jax.random.key(0), latent_dim=3, hidden_dim=8)
      >>> first, _ = autoregressive(weights, jnp.ones(3))
      >>> again, _ = autoregressive(weights, jnp.array([1.0, 1.0, 7.0]))
      >>> print(first == again)  # the last latent has no say
      [ True  True  True]
    """
    latent_dim, hidden_dim = weights["hidden"].shape
    degree = np.arange(latent_dim) + 1
    hidden_degree = np.arange(hidden_dim) % max(latent_dim - 1, 1) + 1
    seen = degree[:, None] <= hidden_degree
    sees = np.tile(hidden_degree[:, None] < degree, 2)
    hidden = z @ (weights["hidden"] * seen) + weights["hidden_bias"]
    if context is not None:
        hidden = hidden + context @ weights["hidden_context"]
    outputs = jax.nn.elu(hidden) @ (weights["output"] * sees) + weights["output_bias"]
    if context is not None:
        outputs = outputs + context @ weights["output_context"]
    first, second = jnp.split(outputs, 2, axis=-1)
    return first, second


def with_shared_weights(
    function: Callable[..., Any], weights: PyTree, z: Array, *others: Array
) -> Any:
    """Call `function(weights, z, *others)` with shared or per-example weights.

    Weights shared by all examples have a leading axis of size 1, per-example weights
    one of size B.

    Args:
      function: maps weights without the leading axis, latents `[S, B, L]` or `[S, L]`,
        and further arguments to arrays with the leading axes of the latents.
      weights: a tree of arrays `[1, ...]` or `[B, ...]`.
      z: latents, `[S, B, L]`.
      *others: further arguments, arrays `[B, ...]`.

    Returns:
      The result of the function, `[S, B, ...]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.bijectors import with_shared_weights
      >>> each = jnp.arange(2.0)[:, None]  # a weight for each of two examples
      >>> print(with_shared_weights(jnp.multiply, each, jnp.ones((1, 2, 1)))[0, :, 0])
      [0. 1.]
    """
    if all(leaf.shape[0] == 1 for leaf in jax.tree.leaves(weights)):
        return function(jax.tree.map(lambda leaf: leaf[0], weights), z, *others)
    axes = (0, 1, *(0 for _ in others))
    return jax.vmap(function, in_axes=axes, out_axes=1)(weights, z, *others)
