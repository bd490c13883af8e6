"""Figures of a trained model, always at beta = 1, with one noise key per image.

Image i of a data set is evaluated with `fold_in(key, i)`, and its importance sample
s with a further `fold_in(_, s)`: its figures depend neither on how many images
there are nor on how many are computed at once, so that two models meet the same
noise and their difference is a paired one.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from vae_jax.estimators import value_only
from vae_jax.model import encode
from vae_jax.objectives import ELBOTerms, elbo_terms, log_weight, require_density
from vae_jax.spec import Params
from vae_jax.types import Array, Key, Posterior, PyTree


class LogEvidence(NamedTuple):
    """Importance-sampling estimate of log p(x) of each example, in nats.

    Attributes:
      estimate: log of the mean weight, `[B]`; below log p(x) in expectation.
      standard_error: of the estimate over the samples (delta method), `[B]`.
      effective_sample_size: (sum w)^2 / sum w^2, between 1 and S, `[B]`.
    """

    estimate: Array
    standard_error: Array
    effective_sample_size: Array


def evaluate(
    params: Params,
    x: Array,
    key: Key,
    *,
    num_samples: int = 1,
    first: int | Array = 0,
    chunk_size: int = 1000,
    labels: Array | None = None,
) -> ELBOTerms:
    """The ELBO of every example of a data set and its two terms, in nats, beta 1.

    Args:
      params: model parameters.
      x: observations, `[B, D]`; B may be a whole data set.
      key: PRNG key; example i uses `fold_in(key, first + i)`.
      num_samples: posterior samples of each example.
      first: number of the first example, where `x` is part of a data set.
      chunk_size: latents decoded at once; bounds the memory.
      labels: of a conditional model, as for `encode`, `[B]` or `[B, C]`.

    Returns:
      `ELBOTerms`, each `[B]`.

    Raises:
      ValueError: as `elbo_terms`, and for a `chunk_size` below 1.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax import ModelSpec, evaluate, init
      >>> params = init(ModelSpec(), jax.random.key(0))
      >>> evaluate(params, jnp.zeros((10, 784)), jax.random.key(1)).elbo.shape
      (10,)
    """

    def terms(x: Array, labels: Array | None, key: Key) -> ELBOTerms:
        batch = elbo_terms(
            params,
            x,
            key,
            num_samples=num_samples,
            estimator=value_only,
            labels=labels,
        )
        return jax.tree.map(lambda leaf: leaf[0], batch)

    _check_positive("num_samples", num_samples)
    _check_positive("chunk_size", chunk_size)
    images_at_once = max(1, chunk_size // num_samples)
    return _map_images(
        terms, (x, labels), key, first=first, images_at_once=images_at_once
    )


def log_evidence(
    params: Params,
    x: Array,
    key: Key,
    *,
    num_samples: int = 5000,
    first: int | Array = 0,
    chunk_size: int = 1000,
    posterior: Posterior | None = None,
    labels: Array | None = None,
) -> LogEvidence:
    """Importance-sampling estimate of log p(x) of every example, in nats.

    log 1/S sum_s w_s with w_s = p(x|z_s) p(z_s) / q(z_s|x), z_s ~ q(z|x) (Burda,
    Grosse & Salakhutdinov 2016, section 5). Its expectation is below log p(x), by
    about half the squared standard error; where that is not small, or the effective
    sample size is a handful, q is a poor proposal and the figure only a bound.

    The encoder runs once an example; samples are taken chunk by chunk, so that
    memory does not grow with their number.

    Args:
      params: model parameters.
      x: observations, `[B, D]`; B may be a whole data set.
      key: PRNG key; sample s of example i uses
        `fold_in(fold_in(key, first + i), s)`.
      num_samples: importance samples S of each example.
      first: number of the first example, where `x` is part of a data set.
      chunk_size: latents decoded at once; bounds the memory.
      posterior: q to draw from in place of the encoder's, each of its arrays `[B,
        ...]`; that of `fit_posterior`, say, made wider.
      labels: of a conditional model, as for `encode`, `[B]` or `[B, C]`.

    Returns:
      `LogEvidence`, each `[B]`. With a single sample the standard error is nan.

    Raises:
      ValueError: `num_samples` or `chunk_size` below 1, or a posterior without
        density.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax import ModelSpec, init, log_evidence
      >>> params = init(ModelSpec(), jax.random.key(0))
      >>> x, key = jnp.zeros((3, 784)), jax.random.key(1)
      >>> log_evidence(params, x, key, num_samples=50).estimate.shape
      (3,)
    """
    _check_positive("num_samples", num_samples)
    _check_positive("chunk_size", chunk_size)
    samples_at_once = min(num_samples, chunk_size)
    return _map_images(
        partial(
            _image_log_evidence,
            params,
            num_samples=num_samples,
            samples_at_once=samples_at_once,
        ),
        (x, labels, posterior),
        key,
        first=first,
        images_at_once=max(1, chunk_size // samples_at_once),
    )


def _image_log_evidence(
    params: Params,
    x: Array,
    labels: Array | None,
    posterior: Posterior | None,
    key: Key,
    *,
    num_samples: int,
    samples_at_once: int,
) -> LogEvidence:
    """`log_evidence` of one example, `[1, D]`."""
    if posterior is None:
        posterior = encode(params, x, labels=labels)
    require_density(posterior, "importance-sampled log evidence")

    def sample(index: Array) -> tuple[PyTree, Array]:
        return posterior.sample_and_log_prob(jax.random.fold_in(key, index), 1)

    def add_chunk(sums: tuple[Array, Array], start: Array):
        index = start + jnp.arange(samples_at_once)
        draws = jax.tree.map(lambda leaf: leaf[:, 0], jax.vmap(sample)(index))
        log_w = log_weight(params, x, *draws, labels=labels)[:, 0]
        # The last chunk may reach beyond the samples asked for.
        log_w = jnp.where(index < num_samples, log_w, -jnp.inf)
        log_sum, log_sum_squares = sums
        log_sum = jnp.logaddexp(log_sum, jax.nn.logsumexp(log_w))
        log_sum_squares = jnp.logaddexp(log_sum_squares, jax.nn.logsumexp(2 * log_w))
        return (log_sum, log_sum_squares), None

    empty = jnp.full((), -jnp.inf, jax.tree.leaves(posterior)[0].dtype)
    starts = jnp.arange(0, num_samples, samples_at_once)
    (log_sum, log_sum_squares), _ = jax.lax.scan(add_chunk, (empty, empty), starts)
    effective = jnp.exp(2 * log_sum - log_sum_squares)
    # Var(mean w) / mean(w)^2 = (1 / effective - 1 / S) S / (S - 1).
    excess = jnp.maximum(num_samples / effective - 1, 0)
    variance = excess / (num_samples - 1) if num_samples > 1 else jnp.nan
    return LogEvidence(
        estimate=log_sum - jnp.log(jnp.asarray(num_samples, log_sum.dtype)),
        standard_error=jnp.sqrt(variance),
        effective_sample_size=effective,
    )


def _map_images(
    function: Callable[..., PyTree],
    examples: tuple[PyTree, ...],
    key: Key,
    *,
    first: int | Array,
    images_at_once: int,
) -> PyTree:
    """`function(x[i], labels[i], ..., fold_in(key, first + i))` of batches of one.

    A chunk of images is computed at a time.
    """
    count = examples[0].shape[0]
    chex.assert_rank(examples[0], 2)
    chex.assert_tree_shape_prefix(examples, (count,))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, first + jnp.arange(count))
    alone = jax.tree.map(lambda leaf: leaf[:, None], examples)
    return jax.lax.map(
        lambda image: function(*image[0], image[1]),
        (alone, keys),
        batch_size=min(images_at_once, count),
    )


def _check_positive(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
