"""Pathwise estimators, which differentiate through the samples.

They require samples differentiable in the parameters of q and an integrand
differentiable in the samples. They differ in the score term of the gradient of
E_q[f(z, log q(z))] with respect to q's parameters: `reparameterization` keeps it,
`path_derivative` drops it, and `doubly_reparameterized` reparameterizes it a second
time, for multi-sample bounds.
"""

from collections.abc import Callable
from functools import reduce
from operator import add

import jax

from vae_jax.dependence import outputs_that_use_it
from vae_jax.estimators.contract import (
    Integrand,
    Reduction,
    along_path,
    at_frozen,
    latent_gradients,
    reduction_gradient,
    require_derivative,
    require_differentiable_samples,
    require_log_prob,
    require_mean,
    sample_mean,
    values_of,
    with_auxiliary,
    with_surrogate,
)
from vae_jax.estimators.reductions import log_mean_exp
from vae_jax.options import require_at_least
from vae_jax.types import Array, Key, Latents, Posterior, PyTree


def reparameterization(
    integrand: Integrand,
    posterior: Posterior,
    key: Key,
    *,
    num_samples: int = 1,
    reduction: Reduction = sample_mean,
    has_aux: bool = False,
) -> PyTree:
    """Pathwise estimate of E_q[f(z)]: the gradient flows through the samples.

        d/d phi E_q[f(z)] = E_eps[d/d phi f(g_phi(eps))]

    with z = g_phi(eps) and noise eps whose distribution does not depend on phi (Kingma
    & Welling 2014, section 2.4). Unbiased if f is differentiable. Cost: one evaluation
    of f and of its derivative per sample. It is the default choice where applicable,
    but not always the estimator of lowest variance; f(z) = cos(k z) with a large k is a
    counter-example.

    Args:
      integrand: f, called with latents `[S, B, L]` and their log q `[S, B]`; returns
        `[S, B]` or a pytree of such arrays.
      posterior: q, a batch of B distributions.
      key: PRNG key, consumed once.
      num_samples: number S of samples.
      reduction: reduction of `[S, B]` to `[B]`: the mean, or `log_mean_exp` for a
        bound.
      has_aux: whether f also returns auxiliary outputs (`types.Estimator`).

    Returns:
      The estimates, `[B]` for each `[S, B]`.

    Raises:
      ValueError: `num_samples` is below 1; the samples are discrete; or the integrand
        uses its samples only through piecewise constant functions, whose derivative is
        zero.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax.estimators import reparameterization
      >>> from vae_jax.distributions import DiagonalGaussianDistribution
      >>> def mean_square(mean):
      ...     q = DiagonalGaussianDistribution(mean, jnp.full((1, 1), -20.0))
      ...     square = lambda z, log_q: jnp.sum(z**2, axis=-1)
      ...     return reparameterization(square, q, jax.random.key(0))[0]
      >>> print(jax.grad(mean_square)(jnp.ones((1, 1))).round(3))
      [[2.]]
    """
    require_at_least("num_samples", num_samples)
    require_differentiable_samples(posterior, "reparameterization")
    z, log_q = posterior.sample_and_log_prob(key, num_samples)
    require_derivative(
        lambda z: values_of(integrand, z, log_q, has_aux)[0], z, "reparameterization"
    )
    values, aux = values_of(integrand, z, log_q, has_aux)
    return with_auxiliary(jax.tree.map(reduction, values), aux, has_aux)


def path_derivative(
    integrand: Integrand,
    posterior: Posterior,
    key: Key,
    *,
    num_samples: int = 1,
    reduction: Reduction = sample_mean,
    has_aux: bool = False,
    allow_biased: bool = False,
) -> PyTree:
    """Pathwise estimate without the score term ("sticking the landing").

    For f(z) = log p(x, z) - log q_phi(z) with z = g_phi(eps), the total derivative

        d/d phi f(z) = d/d z [log p(x, z) - log q_phi(z)] * d/d phi z - s(z)

    includes the score s(z) = d/d phi log q_phi(z) at fixed z, whose expectation is 0.
    Dropping it gives a gradient of zero variance if q is the true posterior (Roeder, Wu
    & Duvenaud 2017). Unbiased for the mean. For a multi-sample bound the expectation of
    the term is not 0, and the gradient is biased: use `doubly_reparameterized`. Cost:
    that of `reparameterization`.

    Args:
      integrand: f, which must use its log q (`kl="monte_carlo"` for the ELBO).
      posterior: q, a batch of B distributions.
      key: PRNG key, consumed once.
      num_samples: number S of samples.
      reduction: reduction of `[S, B]` to `[B]`; must be the mean unless S is 1 or
        `allow_biased` is set.
      has_aux: whether f also returns auxiliary outputs (`types.Estimator`).
      allow_biased: whether to accept other reductions, whose gradient is biased.

    Returns:
      The estimates, `[B]` for each `[S, B]`.

    Raises:
      ValueError: see `reparameterization`; also if q has no density, the integrand does
        not use log q (the estimator then equals `reparameterization`), or several
        samples are reduced by anything but the mean without `allow_biased`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax.estimators import path_derivative
      >>> from vae_jax.distributions import DiagonalGaussianDistribution
      >>> def elbo(mean):  # of the target N(0, 1): q is right, so the noise is gone
      ...     q = DiagonalGaussianDistribution(mean, jnp.zeros((1, 1)))
      ...     f = lambda z, log_q: -0.5 * jnp.sum(z**2, axis=-1) - log_q
      ...     return path_derivative(f, q, jax.random.key(0))[0]
      >>> print(jax.grad(elbo)(jnp.zeros((1, 1))))
      [[0.]]
    """
    name = "path_derivative"
    if num_samples > 1 and not allow_biased:
        require_mean(
            reduction, name, "doubly_reparameterized, or allow_biased=True for a bias"
        )
    z = _differentiable_draws(integrand, posterior, key, num_samples, has_aux, name)
    values, aux = at_frozen(integrand, posterior, has_aux)(z)
    return with_auxiliary(jax.tree.map(reduction, values), aux, has_aux)


# Weights of the paths as a function of the reduction's gradient: with v = log w and
# R_s = d R / d v_s, reparameterizing the score term again leaves R_s - R_ss.
_PATH_WEIGHTS: dict[Reduction, Callable[[Array], Array]] = {
    sample_mean: lambda first: first,
    log_mean_exp: lambda first: first**2,
}


def doubly_reparameterized(
    integrand: Integrand,
    posterior: Posterior,
    key: Key,
    *,
    num_samples: int = 1,
    reduction: Reduction = sample_mean,
    has_aux: bool = False,
    prior: Posterior | None = None,
) -> PyTree:
    """Doubly reparameterized gradient (DReG) of an importance-weighted bound.

    The gradient with respect to q's parameters is

        g_phi = sum_s a_s^2 d/d z_s [log w_s] * d/d phi z_s
        a_s = w_s / (sum_t w_t)

    with the weights w_s = p(x, z_s) / q(z_s|x) (Tucker, Lawson, Gu & Maddison 2019). It
    is unbiased, and its signal-to-noise ratio increases with S, whereas that of the
    plain gradient decreases (Rainforth et al. 2018). For the mean, it equals
    `path_derivative`. Parameters inside the integrand receive their usual gradient.
    Cost: one more backward pass than `reparameterization`.

    With `prior`, the prior's parameters theta receive the generalised form (Bauer &
    Mnih 2021)

        g_theta = sum_s [a_s d/d z_s log p(x|z_s) - a_s^2 d/d z_s log w_s] * d/d theta T

    where T maps noise to the prior's samples and is evaluated at the noise of z_s.

    Args:
      integrand: log w, which must use its log q.
      posterior: q, a batch of B distributions.
      key: PRNG key, consumed once.
      num_samples: number S of samples.
      reduction: `log_mean_exp`, or the mean.
      has_aux: whether f also returns auxiliary outputs (`types.Estimator`).
      prior: learned p(z) with `from_noise`, `to_noise` and `log_prob`; for a
        conditional model, the prior at the examples' labels. The integrand must hold
        its parameters constant, or their gradient is counted twice; see the last
        example.

    Returns:
      The estimates, `[B]` for each `[S, B]`.

    Raises:
      ValueError: see `path_derivative`; also if `reduction` is neither of the two, or
        the prior cannot map samples to noise.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax.estimators import doubly_reparameterized, log_mean_exp
      >>> from vae_jax.distributions import DiagonalGaussianDistribution
      >>> q = DiagonalGaussianDistribution(jnp.zeros((2, 1)), jnp.zeros((2, 1)))
      >>> log_weight = lambda z, log_q: -0.5 * (z[..., 0] - 1) ** 2 - log_q
      >>> doubly_reparameterized(
      ...     log_weight,
      ...     q,
      ...     jax.random.key(0),
      ...     num_samples=8,
      ...     reduction=log_mean_exp,
      ... ).shape
      (2,)

      Of a model, with the generalised form for its prior:

      >>> from functools import partial
      >>> import vae_jax
      >>> from vae_jax.model import at_labels, build_prior
      >>> def bound(params, x, key, labels=None):
      ...     prior = build_prior(at_labels(params, labels))
      ...     return vae_jax.importance_weighted_bound(
      ...         params.replace(prior=jax.lax.stop_gradient(params.prior)),
      ...         x,
      ...         key,
      ...         num_samples=8,
      ...         estimator=partial(doubly_reparameterized, prior=prior),
      ...         labels=labels,
      ...     )
      >>> spec = vae_jax.ModelSpec(
      ...     prior=vae_jax.ClassConditionalPrior(2), num_classes=2, data_shape=(5,)
      ... )
      >>> params = vae_jax.init(spec, jax.random.key(1))
      >>> x, labels = jnp.zeros((1, 5)), jnp.array([1])
      >>> gradient = jax.jit(jax.grad(bound))
      >>> found = gradient(params, x, jax.random.key(2), labels).prior["mean"]
      >>> print(jnp.any(found != 0, axis=1))  # the class of the example alone
      [False  True]
    """
    name = "doubly_reparameterized"
    if reduction not in _PATH_WEIGHTS:
        raise ValueError(f"{name} requires the reduction sample_mean or log_mean_exp")
    if prior is not None and not prior.maps_noise:
        raise ValueError(
            f"{name} with a prior needs its from_noise and to_noise, and "
            f"{type(prior).__name__} has none"
        )
    z = _differentiable_draws(integrand, posterior, key, num_samples, has_aux, name)
    first = reduction_gradient(reduction)
    path_weights = _PATH_WEIGHTS[reduction]
    function = at_frozen(integrand, posterior, has_aux)
    values, gradients, aux = latent_gradients(
        function, z, lambda v: path_weights(first(v))
    )
    paths = [(gradients, z)]
    if prior is not None:
        frozen = jax.lax.stop_gradient((z, posterior, prior))
        _, score, _ = latent_gradients(
            function, z, lambda v: first(v) - path_weights(first(v))
        )
        ratio = [
            _ratio_gradient(*frozen, first(leaf)) for leaf in jax.tree.leaves(values)
        ]
        noise = frozen[2].to_noise(frozen[0])
        paths += [(score, prior.from_noise(noise)), (ratio, prior.from_noise(noise))]
    leaves, structure = jax.tree.flatten(values)
    estimates = [
        with_surrogate(
            reduction(leaf),
            reduce(add, (along_path(each[index], path) for each, path in paths)),
        )
        for index, leaf in enumerate(leaves)
    ]
    return with_auxiliary(jax.tree.unflatten(structure, estimates), aux, has_aux)


def _ratio_gradient(
    z: Array, posterior: Posterior, prior: Posterior, weights: Array
) -> Array:
    """Weighted gradient of log(q(z) / p(z)) with respect to z, `[S, B, L]`."""

    def log_ratio(z: Array) -> tuple[Array, None]:
        return posterior.log_prob(z) - prior.log_prob(z), None

    return latent_gradients(log_ratio, z, lambda _: weights)[1][0]


def _differentiable_draws(
    integrand: Integrand,
    posterior: Posterior,
    key: Key,
    num_samples: int,
    has_aux: bool,
    name: str,
) -> Latents:
    """Draw samples after checking that the estimator applies."""
    require_at_least("num_samples", num_samples)
    require_differentiable_samples(posterior, name)
    require_log_prob(posterior, name)
    z, log_q = posterior.sample_and_log_prob(key, num_samples)

    def values(z: Latents, log_q: Array) -> PyTree:
        return values_of(integrand, z, log_q, has_aux)[0]

    require_derivative(lambda z: values(z, log_q), z, name)
    if not any(outputs_that_use_it(lambda log_q: values(z, log_q), log_q)):
        raise ValueError(
            f"{name} requires an integrand that uses log q: pass kl='monte_carlo' to "
            "the ELBO (--kl=monte_carlo), or use reparameterization"
        )
    return z
