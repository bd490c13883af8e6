"""Imputation of missing values by importance-weighted means and draws."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vae_jax.distributions import MaskedDistribution, ProductDistribution
from vae_jax.evaluation import map_examples
from vae_jax.importance_weights import summarize_all
from vae_jax.model import check_observations, decode, encode
from vae_jax.objectives import log_weight, require_density
from vae_jax.options import require_at_least
from vae_jax.spec import Params
from vae_jax.types import Array, Distribution, Key, Labels


class Imputation(NamedTuple):
    """Examples with imputed missing values.

    Attributes:
      mean: E[x_missing | x_observed] for missing values, and the observed values,
        `[B, D]`; NaN for missing values of a likelihood without an exact mean, such as
        that of unordered categories: use the draws.
      draws: M draws of x_missing given x_observed (multiple imputations), and the
        observed values, `[M, B, D]`.
      effective_sample_size: effective sample size of the weights, between 1 and S,
        `[B]`.
      pareto_k: tail index of the weights, `[B]`; above 0.7, the estimate is unreliable,
        as for `log_evidence`.
    """

    mean: Array
    draws: Array
    effective_sample_size: Array
    pareto_k: Array


def impute(
    params: Params,
    x: Array,
    key: Key,
    *,
    num_samples: int = 1000,
    num_draws: int = 1,
    chunk_size: int = 10_000,
    labels: Labels = None,
) -> Imputation:
    """Impute missing values by self-normalised importance sampling.

        E[x_m|x_o] ~= (sum_s w_s E[x_m|z_s]) / (sum_s w_s)
        w_s = p(x_o, z_s) / q(z_s|x_o) with z_s ~ q(z|x_o)

    for missing x_m and observed x_o (Mattei & Frellsen 2019, section 3). Draws are from
    p(x_m|z), with z resampled according to the weights.

    Args:
      params: parameters of a model whose likelihood is `Masked`.
      x: observations, `[B, D]`, NaN where a value is missing.
      key: PRNG key, consumed once; example i uses `fold_in(key, i)`.
      num_samples: number S of importance samples per example.
      num_draws: number M of draws per example.
      chunk_size: number of latents to decode at once; determines how many examples are
        imputed together. The `num_samples` of an example, and then its `num_draws`, are
        always decoded at once.
      labels: labels for a conditional model, as for `encode`.

    Returns:
      `Imputation`, in the units of the data.

    Raises:
      ValueError: NaN although the likelihood is not `Masked`, values outside its
        support, a number below 1, or a posterior without a density.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax import Gaussian, Masked, ModelSpec, impute, init
      >>> spec = ModelSpec(likelihood=Masked(Gaussian()), data_shape=(2,))
      >>> params = init(spec, jax.random.key(0))
      >>> x = jnp.array([[1.0, jnp.nan]])
      >>> print(impute(params, x, jax.random.key(1), num_samples=50).mean[0, 0])
      1.0
    """
    for name, value in (
        ("num_samples", num_samples),
        ("num_draws", num_draws),
        ("chunk_size", chunk_size),
    ):
        require_at_least(name, value)
    check_observations(params, x, labels=labels)

    def one(x: Array, labels: Labels, key: Key) -> Imputation:
        latent_key, index_key, draw_key = jax.random.split(key, 3)
        posterior = encode(params, x, labels=labels)
        require_density(posterior, "imputation")
        z, log_q = posterior.sample_and_log_prob(latent_key, num_samples)
        log_w = log_weight(params, x, z, log_q, labels=labels)[:, 0]
        mean = _exact_mean(decode(params, z, labels=labels))[:, 0]
        chosen = jax.random.categorical(index_key, log_w, shape=(num_draws,))
        z = jax.tree.map(lambda leaf: leaf[chosen], z)
        drawn = decode(params, z, labels=labels).sample(draw_key, 1)[0, :, 0]
        summary = summarize_all(log_w[:, None])
        missing = jnp.isnan(x[0])
        return Imputation(
            jnp.where(missing, jax.nn.softmax(log_w) @ mean, x[0]),
            jnp.where(missing, drawn, x[0]),
            summary.effective_sample_size[0],
            summary.pareto_k[0],
        )

    found = map_examples(
        one,
        (x, labels),
        key,
        examples_at_once=max(1, chunk_size // num_samples),
    )
    return found._replace(draws=jnp.moveaxis(found.draws, 1, 0))


def _exact_mean(p: Distribution) -> Array:
    """Mean of a distribution, NaN in columns without an exact mean."""
    if isinstance(p, MaskedDistribution):
        return _exact_mean(p.base)
    if isinstance(p, ProductDistribution):
        return p.in_order([_exact_mean(part) for part in p.parts])
    return p.mean if p.mean_is_exact else jnp.full_like(p.mean, jnp.nan)
