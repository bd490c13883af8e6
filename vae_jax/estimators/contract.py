"""Shared parts of the estimators: samples, scores, surrogates, validation.

The value of an estimate is the Monte Carlo estimate from the samples, or a sum over
fixed points. The integrand is called with latents whose gradient is stopped, so the
value carries only the gradient with respect to everything else in the integrand (a
decoder's weights, and log q if it is used). A surrogate, whose value is 0, adds the
gradient with respect to the distribution.
"""

import operator
from collections.abc import Callable
from typing import Any, TypeVar

import chex
import jax
import jax.numpy as jnp

from vae_jax.dependence import outputs_that_use_it
from vae_jax.distributions import DiagonalGaussianDistribution
from vae_jax.estimators.reductions import Reduction, sample_mean
from vae_jax.options import require_at_least, require_scalar, require_value
from vae_jax.types import Array, Key, Latents, Posterior, PyTree

Wanted = TypeVar("Wanted", bound=Posterior)

Integrand = Callable[[Latents, Array], PyTree]
"""f(z, log_q): maps latents `[S, B, L]` and their log q `[S, B]` to `[S, B]` or a tree.

With `has_aux` it returns a pair, as for `jax.value_and_grad`. The second tree, also of
arrays `[S, B]`, is averaged over the same samples and carries no gradient.
"""


def value_only(
    integrand: Integrand,
    posterior: Posterior,
    key: Key,
    *,
    num_samples: int = 1,
    reduction: Reduction = sample_mean,
    has_aux: bool = False,
) -> PyTree:
    """Plain Monte Carlo estimate of E_q[f(z)] without a gradient, for evaluation.

    Args:
      integrand: f, called with latents `[S, B, L]` and their log q `[S, B]`; returns
        `[S, B]` or a pytree of such.
      posterior: q, a batch of B distributions of any kind.
      key: PRNG key, consumed once.
      num_samples: number S of samples.
      reduction: reduction of `[S, B]` to `[B]`.
      has_aux: whether f also returns auxiliary outputs (`types.Estimator`).

    Returns:
      The estimates, `[B]` for each `[S, B]`.

    Raises:
      ValueError: `num_samples` is below 1.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax.estimators import value_only
      >>> from vae_jax.distributions import BernoulliDistribution
      >>> q = BernoulliDistribution(jnp.zeros((2, 3)))
      >>> value_only(lambda z, _: z.sum(-1), q, jax.random.key(0)).shape
      (2,)
    """
    require_at_least("num_samples", num_samples)
    draws = posterior.sample_and_log_prob(key, num_samples)
    values, aux = values_of(integrand, *draws, has_aux)
    values = jax.lax.stop_gradient(jax.tree.map(reduction, values))
    return with_auxiliary(values, aux, has_aux)


def with_surrogate(value: Array, surrogate: Array) -> Array:
    """Return the exact value with the surrogate's gradient added to its own."""
    chex.assert_equal_shape([value, surrogate])
    return value + (surrogate - jax.lax.stop_gradient(surrogate))


def constant_draws(
    posterior: Posterior, key: Key, num_samples: int, estimator: str
) -> tuple[Latents, Array]:
    """Draw latents `[S, B, L]` without a gradient, and their log q `[S, B]` with one.

    Raises:
      ValueError: `num_samples` is below 1, or q has no density at a given point.
    """
    require_at_least("num_samples", num_samples)
    require_log_prob(posterior, estimator)
    z, _ = jax.lax.stop_gradient(posterior).sample_and_log_prob(key, num_samples)
    return jax.lax.stop_gradient(z), posterior.log_prob(jax.lax.stop_gradient(z))


def values_of(
    integrand: Integrand, z: Latents, log_q: Array, has_aux: bool
) -> tuple[PyTree, PyTree]:
    """Values and auxiliary outputs (None without `has_aux`) of the integrand.

    Each must be `[S, B]`: a stray axis would broadcast silently.
    """
    values, aux = integrand(z, log_q) if has_aux else (integrand(z, log_q), None)
    for leaf in jax.tree.leaves((values, aux)):
        chex.assert_equal_shape([leaf, log_q])
    return values, aux


def with_auxiliary(
    estimates: PyTree, aux: PyTree, has_aux: bool, mean: Reduction = sample_mean
) -> PyTree:
    """Return the estimates, paired with the auxiliary means if `has_aux`."""
    if not has_aux:
        return estimates
    return estimates, jax.lax.stop_gradient(jax.tree.map(mean, aux))


def at_frozen(
    integrand: Integrand, posterior: Posterior, has_aux: bool = False
) -> Callable[[Latents], tuple[PyTree, PyTree]]:
    """`values_of` as a function of z only, with the distribution held constant."""
    frozen = jax.lax.stop_gradient(posterior)
    return lambda z: values_of(integrand, z, frozen.log_prob(z), has_aux)


def latent_gradients(
    function: Callable[[Latents], tuple[PyTree, PyTree]],
    z: Latents,
    coefficients: Callable[[Array], Array],
) -> tuple[PyTree, PyTree, PyTree]:
    """f(z), and the gradient of sum_s c_s f(z_s) with respect to z for each leaf of f.

    Args:
      function: maps `[S, B, L]` to `[S, B]` or a tree of such arrays, and auxiliary
        outputs.
      z: latents, `[S, B, L]`.
      coefficients: c as a function of a leaf's values, `[S, B]` to `[S, B]`.

    Returns:
      The values, differentiable with respect to the parameters of the function; a list
      of constant gradients, one tree like `z` for each leaf of the values; and the
      auxiliary outputs.
    """
    values, pull_back, aux = jax.vjp(function, jax.lax.stop_gradient(z), has_aux=True)
    leaves, structure = jax.tree.flatten(values)
    gradients = []
    for index, leaf in enumerate(leaves):
        cotangents = [jnp.zeros_like(other) for other in leaves]
        cotangents[index] = coefficients(leaf)
        gradients.append(pull_back(jax.tree.unflatten(structure, cotangents))[0])
    return values, jax.lax.stop_gradient(gradients), aux


def along_path(gradients: PyTree, path: Latents) -> Array:
    """Inner product of constant gradients with the samples, `[B]`."""
    products = jax.tree.map(
        lambda gradient, z: jnp.sum(gradient * z, axis=(0, -1)), gradients, path
    )
    return jax.tree.reduce(operator.add, products)


def along_parameters(gradients: PyTree, posterior: Posterior) -> Array:
    """Inner product of constant gradients and parameters of the distribution, `[B]`.

    The gradients have a batch axis even for parameters shared by all examples.
    """
    products = jax.tree.map(
        lambda gradient, leaf: jnp.sum(
            jax.lax.stop_gradient(gradient) * leaf, axis=tuple(range(1, leaf.ndim))
        ),
        gradients,
        posterior,
    )
    return jax.tree.reduce(operator.add, products)


def broadcast_to_batch(posterior: Posterior, batch_size: int) -> Posterior:
    """Broadcast shared parameters of a posterior to every example, `[B, ...]`."""
    return jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf, (batch_size, *leaf.shape[1:])), posterior
    )


def scores(posterior: Posterior, z: Latents) -> PyTree:
    """Scores d log q(z_s) / d parameter of every sample, a posterior of `[S, B, ...]`.

    The scores are constants. Shared parameters (leaves `[1, ...]`) are copied for each
    example first, so that their score is per example rather than summed over the batch.
    """
    batch_size = jax.tree.leaves(z)[0].shape[1]
    frozen = broadcast_to_batch(jax.lax.stop_gradient(posterior), batch_size)

    def score(z: Latents) -> Posterior:
        alone = jax.tree.map(lambda leaf: leaf[None], z)
        return jax.grad(lambda q: jnp.sum(q.log_prob(alone)))(frozen)

    return jax.lax.stop_gradient(jax.vmap(score)(z))


def expand_to_score(values: Array, score: Array) -> Array:
    """Expand constant values `[S, B]` to broadcast with a score `[S, B, ...]`."""
    values = jax.lax.stop_gradient(values)
    return values.reshape(values.shape + (1,) * (score.ndim - 2))


def nonzero(denominator: Array) -> Array:
    """Replace zeros of a denominator by 1, for numerators that are 0 there as well."""
    return jnp.where(denominator == 0, 1, denominator)


def reduction_gradient(reduction: Reduction) -> Callable[[Array], Array]:
    """Gradient d/d v_s R(v) as a function of v: 1/S for a mean, weights for a bound."""
    return lambda values: jax.lax.stop_gradient(
        jax.grad(lambda values: jnp.sum(reduction(values)))(values)
    )


def check_temperature(temperature: float | Array) -> None:
    """Raise ValueError if a concrete temperature is not positive."""
    require_scalar("temperature", temperature)
    require_value("temperature", temperature, lambda known: known > 0, "positive")


def require_mean(reduction: Reduction, estimator: str, instead: str) -> None:
    """Raise ValueError if the reduction is not the mean."""
    if reduction is not sample_mean:
        raise ValueError(
            f"{estimator} estimates a plain expectation, not a multi-sample bound "
            f"(reduction {_name(reduction)}): use {instead}"
        )


def require_log_prob(posterior: Posterior, estimator: str) -> None:
    """Raise ValueError if a distribution has no density, or a singular covariance."""
    if not posterior.has_log_prob:
        raise ValueError(
            f"{estimator} needs log q(z) at a given z, but {_name(type(posterior))} "
            "has no log_prob: use reparameterization, or another posterior"
        )
    if _is_singular(posterior):
        raise ValueError(
            f"{estimator} needs the density of q, but a covariance with a variance of "
            "0 or a non-finite variance has none: check log_var"
        )


def _is_singular(posterior: Posterior) -> bool:
    """Return whether a diagonal covariance is singular; False if it is traced."""
    if not isinstance(posterior, DiagonalGaussianDistribution):
        return False
    try:
        return bool(jnp.any(~jnp.isfinite(posterior.log_var)))
    except jax.errors.ConcretizationTypeError:
        return False


def require_differentiable_samples(posterior: Posterior, estimator: str) -> None:
    """Raise ValueError if the samples are discrete."""
    if not posterior.is_reparameterizable:
        raise ValueError(
            f"{estimator} differentiates through the samples, and those of "
            f"{_name(type(posterior))} are discrete: use leave_one_out, disarm or "
            "another estimator for discrete latents"
        )


def require_type(posterior: Posterior, wanted: type[Wanted], estimator: str) -> Wanted:
    """Return the posterior; raise ValueError if its class is not exactly `wanted`.

    Subclasses are rejected because they may have a different density.
    """
    if not isinstance(posterior, wanted) or type(posterior) is not wanted:
        raise ValueError(
            f"{estimator} requires a {_name(wanted)}, got a "
            f"{_name(type(posterior))}: choose another estimator or posterior"
        )
    return posterior


def require_derivative(
    function: Callable[[Latents], PyTree], z: Latents, estimator: str
) -> None:
    """Raise ValueError if the integrand uses z but its derivative is identically zero.

    The check happens during tracing and costs nothing in a compiled program: JAX
    replaces the derivatives of rounding, comparisons and integers by symbolic zeros. An
    integrand that does not use z passes, since its derivative is correctly zero.

    Args:
      function: the integrand as a function of latents only.
      z: example latents; only the shapes and dtypes matter.
      estimator: name of the estimator, for the message.

    Raises:
      ValueError: an output uses z but has no derivative.
    """

    def derivative(direction: Latents) -> PyTree:
        return jax.jvp(function, (z,), (direction,))[1]

    smooth = outputs_that_use_it(derivative, z)
    if all(smooth):
        return
    pairs = zip(outputs_that_use_it(function, z), smooth, strict=True)
    if any(used and not differentiable for used, differentiable in pairs):
        raise ValueError(
            f"{estimator} differentiates the integrand by z, which it uses in steps "
            "only (a comparison, rounding, an integer): its derivative is 0 and the "
            "gradient would be wrong; use score_function"
        )


def _name(thing: Any) -> str:
    return getattr(thing, "__name__", repr(thing))
