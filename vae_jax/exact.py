"""Models with known evidence: linear-Gaussian, mixtures, few latents, few states.

A linear decoder with Gaussian noise is probabilistic PCA (Tipping & Bishop 1999), whose
evidence, posterior and maximum likelihood have closed forms. A VAE with linear networks
has the same optimum (Lucas, Tucker, Grosse & Norouzi 2019), and under a mixture prior
the evidence is a mixture. For other decoders, the evidence is computed by quadrature
with one or two latents, and by enumeration with binary latents.
"""

from typing import NamedTuple, TypeVar

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from vae_jax.distributions.gaussian import LOG_2PI
from vae_jax.external import External
from vae_jax.families import LOG_VAR_BOUND, DiagonalGaussian, Gaussian, unbound_log_var
from vae_jax.model import (
    as_float,
    build_prior,
    check_observations,
    decode,
    log_prior,
    require_rows,
)
from vae_jax.networks import Linear
from vae_jax.options import require_at_least
from vae_jax.priors import MixtureOfGaussians, StandardNormal
from vae_jax.spec import ModelSpec, Params
from vae_jax.types import Array

Choice = TypeVar("Choice")

# In nats. Above this error, the moments of p(z|x) on the grid are unreliable.
MAX_QUADRATURE_ERROR = 0.1


class LinearGaussian(NamedTuple):
    """Linear-Gaussian model, p(z) = N(0, I) and p(x|z) = N(W z + b, s^2 I).

    Attributes:
      weights: W, `[D, L]`.
      bias: b, `[D]`.
      noise_var: s^2, a scalar.
    """

    weights: Array
    bias: Array
    noise_var: Array


class Quadrature(NamedTuple):
    """Log p(x) by quadrature on a grid, in nats.

    Attributes:
      estimate: log p(x), `[B]`.
      error: difference to the sum over every other point, plus the contribution from
        the ends of the grid to twice as far, `[B]`. If it is not small, the grid is too
        coarse for the posterior or its range too short.
    """

    estimate: Array
    error: Array


def linear_gaussian(params: Params) -> LinearGaussian:
    """Extract the linear-Gaussian model of a VAE's decoder.

    Args:
      params: parameters of a model with a `Linear` decoder, a `Gaussian` likelihood and
        a `StandardNormal` prior.

    Returns:
      The model, which does not depend on the encoder.

    Raises:
      ValueError: decoder, likelihood or prior is of another type, or the model is
        conditional.

    Example:
      >>> import jax
      >>> from vae_jax import Gaussian, Linear, ModelSpec, exact, init
      >>> spec = ModelSpec(Linear(), Linear(), likelihood=Gaussian(), data_shape=(5,))
      >>> exact.linear_gaussian(init(spec, jax.random.key(0))).weights.shape
      (5, 20)
    """
    _choice(params, "prior", StandardNormal)
    return _linear_decoder(params)


def _linear_decoder(params: Params) -> LinearGaussian:
    _choice(params, "decoder", Linear)
    likelihood = _choice(params, "likelihood", Gaussian)
    spec = params.spec
    if spec.is_conditional:
        raise ValueError(
            "exact answers are for an unconditional model, got one of num_classes="
            f"{spec.num_classes} and num_covariates={spec.num_covariates}: with labels "
            "or covariates, a linear decoder has another bias for each example"
        )
    if likelihood.per_dimension:
        raise ValueError(
            "this exact answer is for one noise variance, got a likelihood with one "
            f"for each dimension, {likelihood}"
        )
    if isinstance(params.decoder, External):
        raise ValueError(
            "this exact answer is for a decoder of the library, got a likelihood of "
            "replace_networks, whose weights are unknown"
        )
    output = params.decoder["output"]
    noise_var = jnp.exp(likelihood.build(params.likelihood, output["bias"]).log_var)
    return LinearGaussian(output["kernel"].T, output["bias"], noise_var)


def _choice(params: Params, name: str, wanted: type[Choice]) -> Choice:
    """Return a field of the spec; raise ValueError if it has another type."""
    found = getattr(params.spec, name)
    # A subclass may have another density.
    if type(found) is not wanted:
        raise ValueError(
            f"this exact answer is for the {name} {wanted.__name__}, got {found}"
        )
    return found


def linear_vae(model: LinearGaussian) -> Params:
    """Build the VAE with the model as its decoder and the optimal diagonal q.

        q(z|x) = prod_l N(z_l; m_l, s^2 / M_ll) with m = M^-1 W' (x - b)

    with M = W' W + s^2 I. It minimises KL(q || p(z|x)) among diagonal Gaussians: it has
    the mean of the exact posterior, and variances equal to the inverse diagonal of its
    precision.

    Args:
      model: a linear-Gaussian model.

    Returns:
      `Params` with linear networks.

    Raises:
      ValueError: the noise variance is not positive, or a posterior variance is outside
        exp(-20) to exp(20), the bound of a diagonal Gaussian. NaN if traced.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax import exact
      >>> model = exact.LinearGaussian(jnp.eye(3)[:, :1], jnp.zeros(3), jnp.array(0.5))
      >>> exact.linear_vae(model).spec.latent_dim
      1
    """
    data_dim, latent_dim = model.weights.shape
    precision = _precision(model)
    gain = jnp.linalg.solve(precision, model.weights.T).T
    log_var = jnp.log(model.noise_var / jnp.diag(precision))
    if not _holds(jnp.abs(log_var) < LOG_VAR_BOUND):
        raise ValueError(
            f"the log-variances of q must be between -{LOG_VAR_BOUND:g} and "
            f"{LOG_VAR_BOUND:g}, got {log_var}; rescale the data"
        )
    spec = ModelSpec(
        encoder=Linear(),
        decoder=Linear(),
        posterior=DiagonalGaussian(),
        likelihood=Gaussian(),
        latent_dim=latent_dim,
        data_shape=(data_dim,),
    )
    encoder = {
        "kernel": jnp.concatenate([gain, jnp.zeros_like(gain)], axis=1),
        "bias": jnp.concatenate([-model.bias @ gain, unbound_log_var(log_var)]),
    }
    return Params(
        encoder={"output": encoder},
        decoder={"output": {"kernel": model.weights.T, "bias": model.bias}},
        posterior={},
        prior={},
        likelihood={"log_var": jnp.log(model.noise_var)},
        spec=spec,
    )


def log_evidence(model: LinearGaussian, x: Array) -> Array:
    """Exact log p(x) of a linear-Gaussian model in nats.

        log p(x) = log N(x; b, W W' + s^2 I)
        log |W W' + s^2 I| = (D - L) log s^2 + log |M|

    computed from the L x L matrix M = W' W + s^2 I (Tipping & Bishop 1999, section 3).

    Args:
      model: the model.
      x: observations, `[B, D]`.

    Returns:
      `[B]`.

    Raises:
      ValueError: the noise variance is not positive. NaN if traced.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax import exact
      >>> model = exact.LinearGaussian(jnp.zeros((2, 1)), jnp.zeros(2), jnp.array(1.0))
      >>> print(exact.log_evidence(model, jnp.zeros((1, 2))))
      [-1.837877]
    """
    data_dim, latent_dim = model.weights.shape
    require_rows(x, data_dim)
    centered = x - model.bias
    precision = _precision(model)
    mean = jnp.linalg.solve(precision, (centered @ model.weights).T).T
    # c' C^-1 c, without subtracting the part of |c|^2 explained by W.
    residual = jnp.sum(jnp.square(centered - mean @ model.weights.T), axis=-1)
    squares = residual / model.noise_var + jnp.sum(jnp.square(mean), axis=-1)
    log_det = (data_dim - latent_dim) * jnp.log(model.noise_var)
    log_det = log_det + jnp.linalg.slogdet(precision)[1]
    return -0.5 * (data_dim * LOG_2PI + log_det + squares)


def mixture_log_evidence(params: Params, x: Array) -> Array:
    """Exact log p(x) of a linear decoder with a mixture prior in nats.

        log p(x) = log(sum_k w_k N(x; W m_k + b, W S_k W' + s^2 I))

    Each component is a linear-Gaussian model with the weights W A_k, where
    S_k = A_k A_k', and the bias W m_k + b (Bishop 2006, eq. 2.115).

    Args:
      params: parameters of a model with a `Linear` decoder, a `Gaussian` likelihood and
        a `MixtureOfGaussians` prior (also as set by `fit_mixture_prior`).
      x: observations, `[B, D]`.

    Returns:
      `[B]`.

    Raises:
      ValueError: decoder, likelihood or prior is of another type, or the model is
        conditional.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax import Gaussian, Linear, MixtureOfGaussians, ModelSpec
      >>> from vae_jax import exact, init
      >>> spec = ModelSpec(
      ...     Linear(),
      ...     Linear(),
      ...     prior=MixtureOfGaussians(3),
      ...     likelihood=Gaussian(),
      ...     data_shape=(5,),
      ... )
      >>> params = init(spec, jax.random.key(0))
      >>> exact.mixture_log_evidence(params, jnp.zeros((2, 5))).shape
      (2,)
    """
    prior = _choice(params, "prior", MixtureOfGaussians)
    weights, bias, noise_var = _linear_decoder(params)
    log_weights = jax.nn.log_softmax(params.prior["logits"])

    def of_component(mean: Array, scale_tril: Array) -> Array:
        model = LinearGaussian(weights @ scale_tril, bias + weights @ mean, noise_var)
        return log_evidence(model, x)

    components = prior.components(params.prior)
    each = jax.vmap(of_component)(components.mean, components.scale_tril)
    return jax.nn.logsumexp(each + log_weights[:, None], axis=0)


def posterior(model: LinearGaussian, x: Array) -> tuple[Array, Array]:
    """True posterior p(z|x) of a linear-Gaussian model.

        p(z|x) = N(z; M^-1 W' (x - b), s^2 M^-1)

    with M = W' W + s^2 I (Tipping & Bishop 1999, eq. 9).

    Args:
      model: the model.
      x: observations, `[B, D]`.

    Returns:
      Means `[B, L]`, and the covariance `[L, L]`, which is the same for all x.

    Raises:
      ValueError: the noise variance is not positive. NaN if traced.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax import exact
      >>> model = exact.LinearGaussian(jnp.ones((1, 1)), jnp.zeros(1), jnp.array(1.0))
      >>> mean, covariance = exact.posterior(model, jnp.ones((1, 1)))
      >>> print(mean, covariance)
      [[0.5]] [[0.5]]
    """
    precision = _precision(model)
    projected = (x - model.bias) @ model.weights
    mean = jnp.linalg.solve(precision, projected.T).T
    return mean, model.noise_var * jnp.linalg.inv(precision)


def diagonal_gap(model: LinearGaussian) -> Array:
    """Gap between log p(x) and the ELBO of the optimal diagonal q, in nats.

        gap = 1/2 (sum_l log M_ll - log |M|)

    with M = W' W + s^2 I; the same for every x, and 0 if the columns of W are
    orthogonal.

    Args:
      model: the model.

    Returns:
      A scalar.

    Raises:
      ValueError: the noise variance is not positive. NaN if traced.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax import exact
      >>> model = exact.LinearGaussian(jnp.eye(3)[:, :2], jnp.zeros(3), jnp.array(0.5))
      >>> print(exact.diagonal_gap(model))
      0.0
    """
    precision = _precision(model)
    log_det = jnp.linalg.slogdet(precision)[1]
    return 0.5 * (jnp.sum(jnp.log(jnp.diag(precision))) - log_det)


def maximum_likelihood(x: Array, *, latent_dim: int) -> LinearGaussian:
    """Maximum-likelihood linear-Gaussian model: probabilistic PCA.

        W = U (Lambda - s^2 I)^(1/2)
        s^2 = 1 / (D - L) sum_(d > L) lambda_d

    with U and Lambda the leading eigenvectors and eigenvalues of the data covariance,
    and s^2 the mean of the other eigenvalues lambda_d (Tipping & Bishop 1999, eq. 7-8).
    The solution is unique up to a rotation in latent space; here the columns of W are
    orthogonal.

    Args:
      x: data, `[n, D]`.
      latent_dim: number L of latents, below the rank of the centered data.

    Returns:
      The model.

    Raises:
      ValueError: `latent_dim` is not between 1 and D - 1, or not below the numerical
        rank of the centered data; the likelihood is then unbounded as s^2 -> 0. NaN if
        traced.

    Example:
      >>> import jax
      >>> from vae_jax import exact
      >>> x = jax.random.normal(jax.random.key(0), (100, 5))
      >>> exact.maximum_likelihood(x, latent_dim=2).weights.shape
      (5, 2)
    """
    chex.assert_rank(x, 2)
    num_examples, data_dim = x.shape
    if not 1 <= latent_dim < data_dim:
        raise ValueError(
            f"latent_dim must be between 1 and {data_dim - 1}, got {latent_dim}"
        )
    mean = jnp.mean(x, axis=0)
    # Singular values of the data resolve smaller variances than the eigenvalues of
    # their covariance, which are the squares.
    scaled = (x - mean) / jnp.sqrt(num_examples)
    _, deviations, directions = jnp.linalg.svd(
        jnp.linalg.qr(scaled, mode="r"), full_matrices=False
    )
    rounding = data_dim * jnp.finfo(deviations.dtype).eps * deviations[0]
    rank = jnp.sum(deviations > rounding)
    if not _holds(rank > latent_dim):
        raise ValueError(
            f"latent_dim must be below {rank}, the number of directions in which these "
            f"{num_examples} examples vary in {deviations.dtype}, got {latent_dim}: no "
            "variance is left for the noise"
        )
    variances = jnp.square(deviations)
    noise_var = jnp.sum(variances[latent_dim:]) / (data_dim - latent_dim)
    noise_var = jnp.where(rank > latent_dim, noise_var, jnp.nan)
    leading = jnp.maximum(variances[:latent_dim] - noise_var, 0)
    weights = directions[:latent_dim].T * jnp.sqrt(leading)
    return LinearGaussian(weights, mean, noise_var)


def live_units(
    x: Array, *, noise_var: float | Array, beta: float | Array = 1.0
) -> Array:
    """Number of active units of a linear VAE with fixed noise at its optimum.

        number = sum_d 1[lambda_d > beta s^2]

    with the eigenvalues lambda of the data covariance: a principal direction is
    modelled if its eigenvalue exceeds beta s^2, because dividing the beta-ELBO by beta
    gives the ELBO with noise variance beta s^2 (Lucas, Tucker, Grosse & Norouzi 2019
    for beta = 1). The other units collapse to the prior.

    Args:
      x: data, `[n, D]`.
      noise_var: s^2, fixed; positive.
      beta: weight of the KL.

    Returns:
      A scalar integer.

    Raises:
      ValueError: `noise_var` is not positive.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax import exact
      >>> x = jax.random.normal(jax.random.key(0), (10_000, 3)) * jnp.array([2, 1, 0.1])
      >>> print(exact.live_units(x, noise_var=0.5), exact.live_units(x, noise_var=2.0))
      2 1
    """
    if not _holds(jnp.asarray(noise_var) > 0):
        raise ValueError(f"noise_var must be positive, got {noise_var}")
    covariance = jnp.atleast_2d(jnp.cov(x, rowvar=False, bias=True))
    values = jnp.linalg.eigvalsh(covariance)
    return jnp.sum(values > beta * noise_var)


def quadrature_log_evidence(
    params: Params,
    x: Array,
    *,
    num_points: int = 300,
    limit: float = 6.0,
    chunk_size: int = 1000,
) -> Quadrature:
    """Log p(x) of a model with one or two latents by quadrature, in nats.

        log p(x) ~= log(sum_g p(x|z_g) p(z_g) h^L)

    over a uniform grid on [-limit, limit]^L with step h: the trapezoidal rule, which
    converges faster than any power of h for smooth integrands that vanish at the ends.
    The mass beyond the limit, part of the error, is that of a coarser grid up to twice
    the limit.

    Args:
      params: model parameters.
      x: observations, `[B, D]`.
      num_points: number of grid points per dimension; odd numbers are rounded up.
      limit: end of the grid, beyond which p(z|x) must be negligible.
      chunk_size: number of points decoded at once.

    Returns:
      `Quadrature`, each `[B]`.

    Raises:
      ValueError: there are more than two latents, or they are binary; `num_points` is
        below 4.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax import exact
      >>> model = exact.LinearGaussian(jnp.ones((2, 1)), jnp.zeros(2), jnp.array(0.5))
      >>> vae, x = exact.linear_vae(model), jnp.ones((3, 2))
      >>> exact.quadrature_log_evidence(vae, x, num_points=50).estimate.shape
      (3,)
    """
    return _quadrature(params, x, num_points, limit, chunk_size)[0]


def quadrature_posterior(
    params: Params,
    x: Array,
    *,
    num_points: int = 300,
    limit: float = 6.0,
    chunk_size: int = 1000,
) -> tuple[Array, Array]:
    """Means and variances of p(z|x) of a model with one or two latents, by quadrature.

        E[z|x] ~= (sum_g z_g p(x, z_g)) / (sum_g p(x, z_g))

    and likewise for the variance.

    Args:
      params: model parameters.
      x: observations, `[B, D]`.
      num_points: number of grid points per dimension; odd numbers are rounded up.
      limit: end of the grid, beyond which p(z|x) must be negligible.
      chunk_size: number of points decoded at once.

    Returns:
      Means `[B, L]` and variances of each latent, `[B, L]`; NaN if the error of
      `quadrature_log_evidence` on the same grid is above 0.1 nats.

    Raises:
      ValueError: there are more than two latents, or they are binary; `num_points` is
        below 4.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax import exact
      >>> model = exact.LinearGaussian(jnp.ones((1, 1)), jnp.zeros(1), jnp.array(1.0))
      >>> vae, x = exact.linear_vae(model), jnp.ones((1, 1))
      >>> mean, variance = exact.quadrature_posterior(vae, x, num_points=50)
      >>> print(mean.round(4), variance.round(4))
      [[0.5]] [[0.5]]
    """
    found, z, log_joint = _quadrature(params, x, num_points, limit, chunk_size)
    weights = jax.nn.softmax(log_joint, axis=0).T
    mean = weights @ z
    # Center the points first: E[z^2] - E[z]^2 is inaccurate for a narrow p(z|x).
    squares = jnp.square(z - mean[:, None])
    variance = jnp.einsum("bg,bgl->bl", weights, squares)
    known = (found.error <= MAX_QUADRATURE_ERROR)[:, None]
    return jnp.where(known, mean, jnp.nan), jnp.where(known, variance, jnp.nan)


def _quadrature(
    params: Params, x: Array, num_points: int, limit: float, chunk_size: int
) -> tuple[Quadrature, Array, Array]:
    """Log p(x), the points `[G, L]` and log p(x, z) on them, `[G, B]`."""
    latent_dim = params.spec.latent_dim
    if latent_dim > 2:
        raise ValueError(f"quadrature serves 1 or 2 latents, got {latent_dim}")
    if build_prior(params).is_enumerable:
        raise ValueError(
            f"quadrature needs real latents, got {params.spec.prior}: use "
            "enumeration_log_evidence"
        )
    require_at_least("num_points", num_points, 4)
    axis = np.linspace(-limit, limit, num_points + num_points % 2)
    z = jnp.asarray(_grid(axis, latent_dim))
    log_joint = _log_joint(params, x, z, chunk_size)
    values = log_joint.reshape(*[len(axis)] * latent_dim, -1)
    every_other = values[(slice(None, None, 2),) * latent_dim]
    over = tuple(range(latent_dim))
    volume = latent_dim * np.log(axis[1] - axis[0])
    fine = jax.nn.logsumexp(values, axis=over) + volume
    rough = jax.nn.logsumexp(every_other, axis=over) + volume + latent_dim * np.log(2)
    beyond = _log_mass_beyond(params, x, num_points, limit, chunk_size)
    error = jnp.abs(fine - rough) + jnp.logaddexp(0, beyond - fine)
    return Quadrature(fine, error), z, log_joint


def _log_mass_beyond(
    params: Params, x: Array, num_points: int, limit: float, chunk_size: int
) -> Array:
    """Log of the integral of p(x, z) from the limit to twice the limit, `[B]`.

    By the midpoint rule, with a quarter of the points per length.
    """
    per_limit = -(-num_points // 8)
    width = limit / per_limit
    axis = (np.arange(-2 * per_limit, 2 * per_limit) + 0.5) * width
    latent_dim = params.spec.latent_dim
    z = _grid(axis, latent_dim)
    outside = z[np.max(np.abs(z), axis=-1) > limit]
    log_joint = _log_joint(params, x, jnp.asarray(outside), chunk_size)
    return jax.nn.logsumexp(log_joint, axis=0) + latent_dim * np.log(width)


def _grid(axis: np.ndarray, latent_dim: int) -> np.ndarray:
    """All points whose L coordinates are on the axis, `[G, L]`."""
    points = np.stack(np.meshgrid(*[axis] * latent_dim), axis=-1)
    return points.reshape(-1, latent_dim)


def enumeration_log_evidence(
    params: Params, x: Array, *, chunk_size: int = 1000
) -> Array:
    """Exact log p(x) of a model with binary latents by enumeration, in nats.

        log p(x) = log(sum_z p(x|z) p(z))

    over all 2^L values of z.

    Args:
      params: parameters of a model with an enumerable prior.
      x: observations, `[B, D]`.
      chunk_size: number of states decoded at once.

    Returns:
      `[B]`.

    Raises:
      ValueError: the prior is not enumerable, or has more than 2^12 states.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax import FactorizedBernoulli, FactorizedBernoulliPrior, ModelSpec
      >>> from vae_jax import exact, init
      >>> spec = ModelSpec(
      ...     posterior=FactorizedBernoulli(),
      ...     prior=FactorizedBernoulliPrior(),
      ...     latent_dim=3,
      ...     data_shape=(5,),
      ... )
      >>> params = init(spec, jax.random.key(0))
      >>> exact.enumeration_log_evidence(params, jnp.zeros((2, 5))).shape
      (2,)
    """
    distribution = build_prior(params)
    if not distribution.is_enumerable:
        raise ValueError(f"enumeration needs a discrete prior, got {params.spec.prior}")
    z = distribution.enumerate_support()[:, 0]
    return jax.nn.logsumexp(_log_joint(params, x, z, chunk_size), axis=0)


def _log_joint(params: Params, x: Array, z: Array, chunk_size: int) -> Array:
    """Log p(x, z) of all pairs of grid points and observations, `[G, B]`."""
    check_observations(params, x)
    x = as_float(x, z.dtype)

    def one(z: Array) -> Array:
        likelihood = decode(params, z[None, None])
        log_likelihood = jax.vmap(lambda x: likelihood.log_prob(x[None])[0, 0])(x)
        return log_likelihood + log_prior(params, z[None, None])[0, 0]

    return jax.lax.map(one, z, batch_size=min(chunk_size, len(z)))


def _precision(model: LinearGaussian) -> Array:
    """M = W' W + s^2 I, `[L, L]`: s^2 times the precision of p(z|x)."""
    positive = model.noise_var > 0
    if not _holds(positive):
        raise ValueError(f"noise_var must be positive, got {model.noise_var}")
    noise_var = jnp.where(positive, model.noise_var, jnp.nan)
    latent_dim = model.weights.shape[1]
    identity = jnp.eye(latent_dim, dtype=model.weights.dtype)
    return model.weights.T @ model.weights + noise_var * identity


def _holds(condition: Array) -> bool:
    """Whether a condition holds everywhere; True if it is traced."""
    return isinstance(condition, Tracer) or bool(jnp.all(condition))
