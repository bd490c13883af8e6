"""Parts that the estimators share: draws, scores, surrogates, refusals.

An estimate's value is the plain Monte Carlo estimate and its gradient a choice. The
integrand is called with latents whose gradient is cut, so the value brings the
gradient of what the integrand holds besides them (a decoder's weights, and log q
where it is used); a surrogate, 0 in value, brings that of the distribution.
"""

import operator
from collections.abc import Callable
from typing import Any, TypeVar

import chex
import jax
import jax.numpy as jnp
from jax.extend.core import Var

from vae_jax.distributions import DiagonalGaussianDistribution
from vae_jax.estimators.reductions import Reduction, sample_mean
from vae_jax.options import require_value
from vae_jax.types import Array, Key, Latents, Posterior, PyTree

Wanted = TypeVar("Wanted", bound=Posterior)

Integrand = Callable[[Latents, Array], PyTree]
"""f(z, log_q): latents `[S, B, L]`, their log q `[S, B]`, to `[S, B]` or a tree.

With `has_aux` it returns a pair, as for `jax.value_and_grad`: the second tree, of
arrays `[S, B]` too, is estimated from the same draws as constants.
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
    """The plain Monte Carlo estimate of E_q[f(z)], a constant: for evaluation.

    Args:
      integrand: f, called with latents `[S, B, L]` and their log q `[S, B]`; returns
        `[S, B]` or a pytree of such.
      posterior: q, a batch of B distributions of any kind.
      key: PRNG key, consumed once.
      num_samples: samples S.
      reduction: from `[S, B]` to `[B]`.
      has_aux: whether f returns auxiliary outputs too (`types.Estimator`).

    Returns:
      The estimates, `[B]` for each `[S, B]`.

    Raises:
      ValueError: `num_samples` below 1.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax.estimators import value_only
      >>> from vae_jax.distributions import BernoulliDistribution
      >>> q = BernoulliDistribution(jnp.zeros((2, 3)))
      >>> value_only(lambda z, _: z.sum(-1), q, jax.random.key(0)).shape
      (2,)
    """
    check_num_samples(num_samples)
    draws = posterior.sample_and_log_prob(key, num_samples)
    values, aux = values_of(integrand, *draws, has_aux)
    values = jax.lax.stop_gradient(jax.tree.map(reduction, values))
    return with_auxiliary(values, aux, has_aux)


def with_surrogate(value: Array, surrogate: Array) -> Array:
    """The value, exactly, with the surrogate's gradient added to its own."""
    chex.assert_equal_shape([value, surrogate])
    return value + (surrogate - jax.lax.stop_gradient(surrogate))


def constant_draws(
    posterior: Posterior, key: Key, num_samples: int, estimator: str
) -> tuple[Latents, Array]:
    """Latents `[S, B, L]` without a gradient, their log q `[S, B]` with one.

    Raises:
      ValueError: `num_samples` below 1, or q has no density at a given point.
    """
    check_num_samples(num_samples)
    require_log_prob(posterior, estimator)
    z, _ = jax.lax.stop_gradient(posterior).sample_and_log_prob(key, num_samples)
    return jax.lax.stop_gradient(z), posterior.log_prob(jax.lax.stop_gradient(z))


def values_of(
    integrand: Integrand, z: Latents, log_q: Array, has_aux: bool
) -> tuple[PyTree, PyTree]:
    """Values and auxiliary outputs of the integrand; None in place of the latter.

    Each must be `[S, B]`: a stray axis would broadcast silently.
    """
    values, aux = integrand(z, log_q) if has_aux else (integrand(z, log_q), None)
    for leaf in jax.tree.leaves((values, aux)):
        chex.assert_equal_shape([leaf, log_q])
    return values, aux


def with_auxiliary(
    estimates: PyTree, aux: PyTree, has_aux: bool, mean: Reduction = sample_mean
) -> PyTree:
    """The estimates alone, or beside those of the auxiliary outputs, constants."""
    if not has_aux:
        return estimates
    return estimates, jax.lax.stop_gradient(jax.tree.map(mean, aux))


def at_frozen(
    integrand: Integrand, posterior: Posterior, has_aux: bool = False
) -> Callable[[Latents], tuple[PyTree, PyTree]]:
    """`values_of` as a function of z alone, the distribution held constant."""
    frozen = jax.lax.stop_gradient(posterior)
    return lambda z: values_of(integrand, z, frozen.log_prob(z), has_aux)


def latent_gradients(
    function: Callable[[Latents], tuple[PyTree, PyTree]],
    z: Latents,
    coefficients: Callable[[Array], Array],
) -> tuple[PyTree, PyTree, PyTree]:
    """f(z), and for each leaf of it the gradient of sum_s c_s f(z_s) by z, constant.

    Args:
      function: from `[S, B, L]` to `[S, B]` or a tree of such, and auxiliary outputs.
      z: latents, `[S, B, L]`.
      coefficients: c as a function of a leaf's values, `[S, B]` to `[S, B]`.

    Returns:
      The values, which are differentiable in what the function holds; a list with
      one tree like `z` for each leaf of the values; and the auxiliary outputs.
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
    """Sum over samples and latents of constant gradient times path, `[B]`."""
    products = jax.tree.map(
        lambda gradient, z: jnp.sum(gradient * z, axis=(0, -1)), gradients, path
    )
    return jax.tree.reduce(operator.add, products)


def along_parameters(gradients: PyTree, posterior: Posterior) -> Array:
    """Sum of constant gradient times parameter of the distribution, `[B]`.

    The gradients have the batch axis also where the examples share a parameter.
    """
    products = jax.tree.map(
        lambda gradient, leaf: jnp.sum(
            jax.lax.stop_gradient(gradient) * leaf, axis=tuple(range(1, leaf.ndim))
        ),
        gradients,
        posterior,
    )
    return jax.tree.reduce(operator.add, products)


def each_its_own(posterior: Posterior, batch_size: int) -> Posterior:
    """The posterior with a copy for each example of what they share, `[B, ...]`."""
    return jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf, (batch_size, *leaf.shape[1:])), posterior
    )


def scores(posterior: Posterior, z: Latents) -> PyTree:
    """D log q(z_s) / d parameter of every sample: the posterior's leaves, `[S, B, ..]`.

    They are constants. What the examples share (leaves `[1, ...]`) is copied for each
    of them first: its score is that of the example, not the sum over the batch.
    """
    batch_size = jax.tree.leaves(z)[0].shape[1]
    frozen = each_its_own(jax.lax.stop_gradient(posterior), batch_size)

    def score(z: Latents) -> Posterior:
        alone = jax.tree.map(lambda leaf: leaf[None], z)
        return jax.grad(lambda q: jnp.sum(q.log_prob(alone)))(frozen)

    return jax.lax.stop_gradient(jax.vmap(score)(z))


def beside(values: Array, score: Array) -> Array:
    """Values `[S, B]`, as constants, in a shape to multiply a score `[S, B, ...]`."""
    values = jax.lax.stop_gradient(values)
    return values.reshape(values.shape + (1,) * (score.ndim - 2))


def nonzero(denominator: Array) -> Array:
    """A denominator, 1 where it is 0: what it divides is 0 there as well."""
    return jnp.where(denominator == 0, 1, denominator)


def reduction_gradient(reduction: Reduction) -> Callable[[Array], Array]:
    """D R / d v_s as a function of the values: 1/S for a mean, weights for a bound."""
    return lambda values: jax.lax.stop_gradient(
        jax.grad(lambda values: jnp.sum(reduction(values)))(values)
    )


def check_num_samples(
    num_samples: int, *, minimum: int = 1, name: str = "num_samples", why: str = ""
) -> None:
    """Refuses fewer samples than an estimator can work with."""
    if num_samples < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {num_samples}{why}")


def check_temperature(temperature: float | Array) -> None:
    """Refuses a temperature that is not positive, unless it is traced."""
    require_value("temperature", temperature, lambda known: known > 0, "positive")


def require_mean(reduction: Reduction, estimator: str, instead: str) -> None:
    """Refuses a bound of several samples where only an expectation will do."""
    if reduction is not sample_mean:
        raise ValueError(
            f"{estimator} estimates a plain expectation, not a bound that several "
            f"samples share (reduction {_name(reduction)}): use {instead}"
        )


def require_log_prob(posterior: Posterior, estimator: str) -> None:
    """Refuses a distribution whose density is not known, or known to be singular."""
    if not posterior.has_log_prob:
        raise ValueError(
            f"{estimator} needs log q(z) at a given z, and {_name(type(posterior))} "
            "has no log_prob"
        )
    if _is_singular(posterior):
        raise ValueError(
            f"{estimator} needs the density of q, and a covariance with a variance of "
            "0 or one that is not finite has none: check log_var"
        )


def _is_singular(posterior: Posterior) -> bool:
    """Where it can be known: not while it is compiled."""
    if not isinstance(posterior, DiagonalGaussianDistribution):
        return False
    try:
        return bool(jnp.any(~jnp.isfinite(posterior.log_var)))
    except jax.errors.ConcretizationTypeError:
        return False


def require_differentiable_samples(posterior: Posterior, estimator: str) -> None:
    """Refuses a discrete distribution."""
    if not posterior.is_reparameterizable:
        raise ValueError(
            f"{estimator} differentiates through the samples, and those of "
            f"{_name(type(posterior))} are discrete: use leave_one_out, disarm or "
            "another estimator for discrete latents"
        )


def require_type(posterior: Posterior, wanted: type[Wanted], estimator: str) -> Wanted:
    """The posterior. Another class is refused, a subclass too, by its density."""
    if not isinstance(posterior, wanted) or type(posterior) is not wanted:
        raise ValueError(
            f"{estimator} is known for {_name(wanted)} only, got "
            f"{_name(type(posterior))}"
        )
    return posterior


def require_derivative(
    function: Callable[[Latents], PyTree], z: Latents, estimator: str
) -> None:
    """Refuses an integrand that uses its samples and has no derivative by them.

    Known while tracing, and free in a compiled program: rounding, comparisons and
    integers have derivatives that JAX knows to be zero. One that does not use its
    samples passes, as its derivative is rightly zero.

    Args:
      function: the integrand, of latents alone.
      z: an example; its shape counts, not its values.
      estimator: who asks, for the message.

    Raises:
      ValueError: some part of it has no derivative.
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


def outputs_that_use_it(
    function: Callable[[Latents], PyTree], argument: PyTree
) -> list[bool]:
    """Whether each output depends on the argument, as far as the jaxpr tells."""
    jaxpr = jax.make_jaxpr(function)(argument).jaxpr
    reached = set(jaxpr.invars)
    for equation in jaxpr.eqns:
        if reached.intersection(v for v in equation.invars if isinstance(v, Var)):
            reached.update(equation.outvars)
    return [isinstance(v, Var) and v in reached for v in jaxpr.outvars]


def _name(thing: Any) -> str:
    return getattr(thing, "__name__", repr(thing))
