"""The evidence lower bound and the importance-weighted bound, in nats.

    log p(x) = E_q[log p(x|z)] - KL(q(z|x) || p(z)) + KL(q(z|x) || p(z|x))

(Kingma & Welling 2014, eq. 1 and 3). The first two terms are the ELBO. The third is
non-negative, so the ELBO is a lower bound, tight when q(z|x) is the true posterior.
Maximising it over the encoder alone
closes the gap; maximising it over the decoder raises the bound, though not
necessarily log p(x), at every step. All quantities are summed over data and latent
dimensions and averaged over the batch. They are maximised.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from vae_jax.distributions import closed_form_kl
from vae_jax.estimators import Grouped, log_mean_exp, reparameterization
from vae_jax.estimators.contract import with_surrogate
from vae_jax.estimators.reductions import Reduction
from vae_jax.model import (
    as_float,
    at_labels,
    build_prior,
    decode,
    dtype_of,
    encode,
    log_prior,
)
from vae_jax.options import require_at_least, require_scalar
from vae_jax.spec import Params
from vae_jax.types import (
    Array,
    Distribution,
    Estimator,
    Key,
    Labels,
    Latents,
    Posterior,
)

KL_CHOICES = ("auto", "analytic", "monte_carlo")


class ELBOTerms(NamedTuple):
    """Per-example ELBO and its two terms, in nats.

    Attributes:
      elbo: log_likelihood - beta * kl_divergence, `[B]`.
      log_likelihood: estimate of E_q(z|x)[log p(x|z)], `[B]`.
      kl_divergence: KL(q(z|x) || p(z)) or its estimate, without beta, `[B]`.
    """

    elbo: Array
    log_likelihood: Array
    kl_divergence: Array


class ImportanceWeightedTerms(NamedTuple):
    """Per-example multi-sample bound and the ELBO's two terms, in nats.

    Attributes:
      bound: the reduced log-weights, `[B]`.
      log_likelihood: estimate of E_q(z|x)[log p(x|z)], `[B]`, without gradient.
      kl_divergence: KL(q(z|x) || p(z)) or its estimate, `[B]`, without gradient.
    """

    bound: Array
    log_likelihood: Array
    kl_divergence: Array


def elbo_terms(
    params: Params,
    x: Array,
    key: Key,
    *,
    beta: float | Array = 1.0,
    num_samples: int = 1,
    kl: str = "auto",
    estimator: Estimator = reparameterization,
    posterior: Posterior | None = None,
    labels: Labels = None,
) -> ELBOTerms:
    """Per-example ELBO and its two terms, in nats.

        elbo = E_q(z|x)[log p(x|z)] - beta * KL(q(z|x) || p(z))

    with the expectation estimated from samples (Kingma & Welling 2014, eq. 3). The KL
    term uses the closed form registered for the pair of distributions, if any (their
    estimator B, eq. 7), and is otherwise estimated from the same samples as the mean of
    log q(z|x) - log p(z) (their estimator A, eq. 6).

    Args:
      params: model parameters; their spec selects networks and families.
      x: observations, `[B, D]`, in [0, 1] for a Bernoulli likelihood.
      key: PRNG key, consumed once.
      beta: weight of the KL (Higgins et al. 2017), a number or a traced scalar.
      num_samples: number S of posterior samples per observation.
      kl: `auto` (closed form if available), `analytic`, or `monte_carlo`.
      estimator: estimator of the expectation and its gradient (`types.Estimator`).
      posterior: q(z|x) to use instead of `encode(params, x)`, for example with
        non-amortized parameters per example.
      labels: labels of a conditional model; see `encode`.

    Returns:
      `ELBOTerms`, each `[B]`.

    Raises:
      ValueError: `beta` is not a scalar; `num_samples` is below 1; `kl` is unknown,
        is `analytic` for a pair without a closed form, or requires a Monte Carlo
        estimate for a posterior without a density.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import vae_jax
      >>> params = vae_jax.init(vae_jax.ModelSpec(), jax.random.key(0))
      >>> terms = vae_jax.elbo_terms(params, jnp.zeros((8, 784)), jax.random.key(1))
      >>> terms.elbo.shape
      (8,)
    """
    require_scalar("beta", beta)
    require_at_least("num_samples", num_samples)
    _require_function(estimator)
    x = as_float(x, dtype_of(params))
    if posterior is None:
        posterior = encode(params, x, labels=labels)
    prior = build_prior(at_labels(params, labels))
    closed_form = _select_kl(posterior, prior, kl)

    def integrand(z: Latents, log_q: Array) -> dict[str, Array]:
        params.spec.likelihood.support.require(x)
        values = {"log_likelihood": decode(params, z, labels=labels).log_prob(x)}
        if closed_form is None:
            values["kl_divergence"] = log_q - prior.log_prob(z)
        return values

    means = estimator(integrand, posterior, key, num_samples=num_samples)
    if closed_form is not None:
        means["kl_divergence"] = closed_form(posterior, prior)
    # A [B] against a [B, 1] would broadcast silently.
    chex.assert_shape(list(means.values()), (x.shape[0],))
    return ELBOTerms(means["log_likelihood"] - beta * means["kl_divergence"], **means)


def elbo(
    params: Params,
    x: Array,
    key: Key,
    *,
    beta: float | Array = 1.0,
    num_samples: int = 1,
    kl: str = "auto",
    estimator: Estimator = reparameterization,
    labels: Labels = None,
) -> Array:
    """Monte Carlo evidence lower bound, averaged over the batch, in nats.

    Estimates the mean over the examples x of

        elbo = E_q(z|x)[log p(x|z)] - beta * KL(q(z|x) || p(z))

    (Kingma & Welling 2014, eq. 3; with beta, Higgins et al. 2017).

    Args:
      params: model parameters; their spec selects networks and families.
      x: observations, `[B, D]`, in [0, 1] for a Bernoulli likelihood.
      key: PRNG key, consumed once.
      beta: weight of the KL, a number or a traced scalar; 1 gives the ELBO.
      num_samples: number S of posterior samples per observation.
      kl: `auto` (closed form if available), `analytic`, or `monte_carlo`.
      estimator: estimator of the expectation and its gradient (`types.Estimator`).
      labels: labels of a conditional model; see `encode`.

    Returns:
      A scalar. Larger is better; negate it to minimise.

    Raises:
      ValueError: see `elbo_terms`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax import ModelSpec, elbo, init
      >>> params = init(ModelSpec(), jax.random.key(0))
      >>> elbo(params, jnp.zeros((8, 784)), jax.random.key(1), beta=4.0).shape
      ()
    """
    terms = elbo_terms(
        params,
        x,
        key,
        beta=beta,
        num_samples=num_samples,
        kl=kl,
        estimator=estimator,
        labels=labels,
    )
    return jnp.mean(terms.elbo)


def log_joint(params: Params, x: Array, z: Latents, *, labels: Labels = None) -> Array:
    """Log joint density of observations and latents, in nats.

        log p(x, z) = log p(x|z) + log p(z)

    As a function of z, it is the log posterior up to an additive constant.

    Args:
      params: model parameters.
      x: observations, `[B, D]`.
      z: latents, `[S, B, L]`.
      labels: labels of a conditional model; see `encode`.

    Returns:
      `[S, B]`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax import ModelSpec, init, log_joint
      >>> params, x = init(ModelSpec(), jax.random.key(0)), jnp.zeros((8, 784))
      >>> log_joint(params, x, jnp.zeros((5, 8, 20))).shape
      (5, 8)
    """
    x = as_float(x, dtype_of(params))
    params.spec.likelihood.support.require(x)
    log_likelihood = decode(params, z, labels=labels).log_prob(x)
    log_p = log_prior(params, z, labels=labels)
    chex.assert_equal_shape([log_likelihood, log_p])
    return log_likelihood + log_p


def log_weight(
    params: Params, x: Array, z: Latents, log_q: Array, *, labels: Labels = None
) -> Array:
    """Log importance weight of a latent drawn from q(z|x), in nats.

        log w = log p(x|z) + log p(z) - log q(z|x)

    Args:
      params: model parameters.
      x: observations, `[B, D]`.
      z: latents drawn from q, `[S, B, L]`.
      log_q: log-density of `z` under q, `[S, B]`.
      labels: labels of a conditional model; see `encode`.

    Returns:
      `[S, B]`; the sample mean of its exponential is an unbiased estimate of p(x).

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax import ModelSpec, encode, init, log_weight
      >>> params, x = init(ModelSpec(), jax.random.key(0)), jnp.zeros((8, 784))
      >>> draws = encode(params, x).sample_and_log_prob(jax.random.key(1), 5)
      >>> log_weight(params, x, *draws).shape
      (5, 8)
    """
    joint = log_joint(params, x, z, labels=labels)
    chex.assert_equal_shape([joint, log_q])
    return joint - log_q


def importance_weighted_terms(
    params: Params,
    x: Array,
    key: Key,
    *,
    num_samples: int,
    estimator: Estimator = reparameterization,
    reduction: Reduction = log_mean_exp,
    labels: Labels = None,
) -> ImportanceWeightedTerms:
    """Per-example importance-weighted bound and the ELBO's two terms, in nats.

    `importance_weighted_bound` is the batch mean of the bound. The ELBO's terms are
    estimated from the same samples, which are drawn and decoded once. They carry no
    gradient and are meant for logging.

    Args:
      params: model parameters.
      x: observations, `[B, D]`.
      key: PRNG key, consumed once.
      num_samples: number S of importance samples per observation.
      estimator: estimator of the bound and its gradient (`types.Estimator`).
      reduction: reduction of the log-weights, `[S, B]` to `[B]`.
      labels: labels of a conditional model; see `encode`.

    Returns:
      `ImportanceWeightedTerms`, each `[B]`.

    Raises:
      ValueError: see `importance_weighted_bound`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax import ModelSpec, importance_weighted_terms, init
      >>> params, x = init(ModelSpec(), jax.random.key(0)), jnp.zeros((8, 784))
      >>> terms = importance_weighted_terms(params, x, jax.random.key(1), num_samples=5)
      >>> terms.bound.shape
      (8,)
    """
    require_at_least("num_samples", num_samples)
    _require_function(estimator)
    x = as_float(x, dtype_of(params))
    posterior = encode(params, x, labels=labels)
    require_density(posterior, "an importance-weighted bound")
    prior = build_prior(at_labels(params, labels))

    def integrand(z: Latents, log_q: Array) -> tuple[Array, tuple[Array, Array]]:
        params.spec.likelihood.support.require(x)
        log_likelihood = decode(params, z, labels=labels).log_prob(x)
        log_p = prior.log_prob(z)
        chex.assert_equal_shape([log_likelihood, log_p])
        return log_likelihood + log_p - log_q, (log_likelihood, log_q - log_p)

    bound, (log_likelihood, kl_divergence) = estimator(
        integrand,
        posterior,
        key,
        num_samples=num_samples,
        reduction=reduction,
        has_aux=True,
    )
    closed_form = _select_kl(posterior, prior, "auto")
    if closed_form is not None:
        kl_divergence = closed_form(posterior, prior)
    terms = jax.lax.stop_gradient((log_likelihood, kl_divergence))
    chex.assert_shape([bound, *terms], (x.shape[0],))
    return ImportanceWeightedTerms(bound, *terms)


def importance_weighted_bound(
    params: Params,
    x: Array,
    key: Key,
    *,
    num_samples: int,
    estimator: Estimator = reparameterization,
    reduction: Reduction = log_mean_exp,
    labels: Labels = None,
) -> Array:
    """Importance-weighted bound on log p(x), averaged over the batch, in nats.

        bound_S = E[log(1/S sum_s p(x, z_s) / q(z_s|x))] with z_s ~ q(z|x)

    (Burda, Grosse & Salakhutdinov 2016, eq. 8). It equals the ELBO at S = 1, does not
    decrease with S, and converges to log p(x). Other reductions of the same log-weights
    give other bounds: `estimators.Grouped`, `Combined` and `Renyi`.

    Args:
      params: model parameters.
      x: observations, `[B, D]`.
      key: PRNG key, consumed once.
      num_samples: number S of importance samples per observation.
      estimator: estimator of the bound and its gradient (`types.Estimator`).
      reduction: reduction of the log-weights, `[S, B]` to `[B]`.
      labels: labels of a conditional model; see `encode`.

    Returns:
      A scalar. Larger is better; negate it to minimise.

    Raises:
      ValueError: `num_samples` is below 1, or the posterior has no density.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax import ModelSpec, importance_weighted_bound, init
      >>> params, x = init(ModelSpec(), jax.random.key(0)), jnp.zeros((8, 784))
      >>> bound = importance_weighted_bound(params, x, jax.random.key(1), num_samples=5)
      >>> bound.shape
      ()
    """
    terms = importance_weighted_terms(
        params,
        x,
        key,
        num_samples=num_samples,
        estimator=estimator,
        reduction=reduction,
        labels=labels,
    )
    return jnp.mean(terms.bound)


def partially_importance_weighted_terms(
    params: Params,
    x: Array,
    key: Key,
    *,
    num_samples: int,
    num_groups: int,
    estimator: Estimator = reparameterization,
    labels: Labels = None,
) -> ImportanceWeightedTerms:
    """Per-example terms of the partially importance-weighted bound (PIWAE), in nats.

    `partially_importance_weighted_bound` is the batch mean of the bound.

    Args:
      params: model parameters.
      x: observations, `[B, D]`.
      key: PRNG key, consumed once.
      num_samples: number S of importance samples per observation.
      num_groups: number M of groups; must divide S.
      estimator: estimator of the bound and its gradient (`types.Estimator`).
      labels: labels of a conditional model; see `encode`.

    Returns:
      `ImportanceWeightedTerms`, each `[B]`.

    Raises:
      ValueError: see `partially_importance_weighted_bound`.

    Example:
      See `importance_weighted_terms`.
    """
    frozen = jax.lax.stop_gradient(params)
    generative = params.replace(encoder=frozen.encoder, posterior=frozen.posterior)
    inference = frozen.replace(encoder=params.encoder, posterior=params.posterior)
    options = {"num_samples": num_samples, "estimator": estimator, "labels": labels}
    terms = importance_weighted_terms(generative, x, key, **options)
    surrogate = importance_weighted_terms(
        inference, x, key, reduction=Grouped(num_groups), **options
    )
    return terms._replace(bound=with_surrogate(terms.bound, surrogate.bound))


def partially_importance_weighted_bound(
    params: Params,
    x: Array,
    key: Key,
    *,
    num_samples: int,
    num_groups: int,
    estimator: Estimator = reparameterization,
    labels: Labels = None,
) -> Array:
    """Partially importance-weighted bound (PIWAE), averaged over the batch, in nats.

    With S = M K samples in M groups, the value, and the gradient with respect to
    decoder, prior and likelihood, are those of `importance_weighted_bound` on all
    samples. The gradient with respect to encoder and posterior is that of the reduction
    `estimators.Grouped(num_groups)`, the mean of the bounds of the groups,

        bound_M_K = E[1/M sum_m log(1/K sum_k p(x, z_mk) / q(z_mk|x))]

    which has a higher signal-to-noise ratio (Rainforth et al. 2018, section 4).

    Args:
      params: model parameters.
      x: observations, `[B, D]`.
      key: PRNG key, consumed once.
      num_samples: number S of importance samples per observation.
      num_groups: number M of groups; must divide S.
      estimator: estimator of the bound and its gradient (`types.Estimator`).
      labels: labels of a conditional model; see `encode`.

    Returns:
      A scalar. Larger is better; negate it to minimise.

    Raises:
      ValueError: see `importance_weighted_bound`; also if M does not divide S.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax import ModelSpec, init, partially_importance_weighted_bound
      >>> params, x = init(ModelSpec(), jax.random.key(0)), jnp.zeros((8, 784))
      >>> partially_importance_weighted_bound(
      ...     params, x, jax.random.key(1), num_samples=4, num_groups=2
      ... ).shape
      ()
    """
    terms = partially_importance_weighted_terms(
        params,
        x,
        key,
        num_samples=num_samples,
        num_groups=num_groups,
        estimator=estimator,
        labels=labels,
    )
    return jnp.mean(terms.bound)


def _require_function(estimator: object) -> None:
    """Raise ValueError for the name of an estimator in place of the function."""
    if not callable(estimator):
        raise ValueError(
            f"estimator must be a function of vae_jax.estimators, got {estimator!r}"
        )


def require_density(posterior: Posterior, purpose: str) -> None:
    """Raise ValueError if a posterior has no density (a point mass).

    Args:
      posterior: distribution returned by `encode`.
      purpose: computation that needs the density, for the message.

    Raises:
      ValueError: the posterior has no density.
    """
    if not posterior.has_density:
        raise ValueError(
            f"{purpose} needs the density of q(z|x), but {type(posterior).__name__} "
            "has none"
        )


def _select_kl(posterior: Posterior, prior: Distribution, kl: str):
    """Return the closed-form KL to use, or None for a Monte Carlo estimate."""
    if kl not in KL_CHOICES:
        raise ValueError(f"kl must be one of {', '.join(KL_CHOICES)}, got {kl!r}")
    closed_form = closed_form_kl(type(posterior), type(prior))
    if kl == "analytic" and closed_form is None:
        raise ValueError(
            "kl='analytic', but no closed form is registered for "
            f"{type(posterior).__name__} and {type(prior).__name__}"
        )
    if kl == "monte_carlo" or closed_form is None:
        require_density(posterior, "a Monte Carlo KL")
        return None
    return closed_form
