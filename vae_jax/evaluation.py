"""Figures of a trained model, always at beta = 1, with one noise key per image.

Each figure has a child of its own of the key (`evaluation_keys`), so that one root may
serve them all. Image i of a data set is evaluated with `fold_in(child, i)`, and its
importance sample s with a further `fold_in(_, s)`: its figures depend neither on how
many images there are nor on how many are computed at once, so that two models meet the
same noise and their difference is a paired one. That holds for keys of every generator
(`example_keys`).
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from vae_jax.estimators import value_only
from vae_jax.importance_weights import (
    WeightStatistics,
    add_weights,
    no_weights,
    summarize,
)
from vae_jax.model import check_observations, encode
from vae_jax.objectives import ELBOTerms, elbo_terms, log_weight, require_density
from vae_jax.options import require_at_least
from vae_jax.prng import as_threefry
from vae_jax.spec import Params
from vae_jax.types import Array, Key, Labels, Posterior, PyTree


class LogEvidence(NamedTuple):
    """Importance-sampling estimate of log p(x) of each example, in nats.

    Attributes:
      estimate: log of the mean weight, `[B]`; below log p(x) in expectation.
      standard_error: of the estimate over the samples (delta method), `[B]`; infinite
        for one sample. Too small where `pareto_k` is above 0.7.
      effective_sample_size: (sum w)^2 / sum w^2, between 1 and S, `[B]`.
      pareto_k: tail index of the weights, `[B]`; above 0.7 estimate and standard error
        are unreliable (`vae_jax.importance_weights.pareto_k`). -infinity for equal
        weights, infinity for fewer than 21 unequal ones, which are too few to tell.
    """

    estimate: Array
    standard_error: Array
    effective_sample_size: Array
    pareto_k: Array


class EvaluationKeys(NamedTuple):
    """Children of the root key of an evaluation, one for each function that draws.

    Attributes:
      elbo: of `evaluate`.
      evidence: of `log_evidence`.
      annealing: of `annealed_log_evidence`.
      reverse_annealing: of `reverse_annealed_log_evidence`.
      bidirectional: of `bidirectional_log_evidence`.
      chains: of `mcmc.posterior_samples`.
      annealed_samples: of `annealed_posterior_samples`.
    """

    elbo: Key
    evidence: Key
    annealing: Key
    reverse_annealing: Key
    bidirectional: Key
    chains: Key
    annealed_samples: Key


def evaluation_keys(key: Key) -> EvaluationKeys:
    """Children of the root key of an evaluation, one for each function that draws.

    Args:
      key: root of the evaluation, which each of the functions may be given.

    Returns:
      `EvaluationKeys`.

    Example:
      >>> import jax
      >>> from vae_jax.evaluation import evaluation_keys
      >>> keys = evaluation_keys(jax.random.key(0))
      >>> print(keys.elbo == keys.evidence)
      False
    """
    return EvaluationKeys(*jax.random.split(key, len(EvaluationKeys._fields)))


def evaluate(
    params: Params,
    x: Array,
    key: Key,
    *,
    num_samples: int = 1,
    first: int | Array = 0,
    chunk_size: int = 1000,
    labels: Labels = None,
) -> ELBOTerms:
    """The ELBO of every example of a data set and its two terms, in nats, beta 1.

    Args:
      params: model parameters.
      x: observations, `[B, D]`; B may be a whole data set.
      key: root of an evaluation; example i uses `fold_in(evaluation_keys(key).elbo,
        first + i)`.
      num_samples: posterior samples of each example.
      first: number of the first example, where `x` is part of a data set.
      chunk_size: latents decoded at once, which bounds the memory, but at least the
        `num_samples` of one example.
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

    def terms(x: Array, labels: Labels, key: Key) -> ELBOTerms:
        batch = elbo_terms(
            params,
            x,
            key,
            num_samples=num_samples,
            estimator=value_only,
            labels=labels,
        )
        return jax.tree.map(lambda leaf: leaf[0], batch)

    require_at_least("num_samples", num_samples)
    require_at_least("chunk_size", chunk_size)
    check_observations(params, x, labels=labels)
    return map_examples(
        terms,
        (x, labels),
        evaluation_keys(key).elbo,
        first=first,
        examples_at_once=max(1, chunk_size // num_samples),
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
    labels: Labels = None,
) -> LogEvidence:
    """Importance-sampling estimate of log p(x) of every example, in nats.

        log p(x) ~= log(1/S sum_s w_s)
        w_s = p(x, z_s) / q(z_s|x) with z_s ~ q(z|x)

    (Burda, Grosse & Salakhutdinov 2016, section 5). Its expectation is below log p(x),
    by about half the squared standard error. The standard error holds where the weights
    have a variance. Where their tail is heavy (Pareto k above 0.7: q is narrower than
    p(z|x), or misses part of it) the largest weights have not been drawn yet: the
    estimate is a lower bound, below log p(x) by more than its standard error shows,
    and calls for more samples, a wider q, or `annealed_log_evidence` (Vehtari,
    Simpson, Gelman, Yao & Gabry 2024).

    The encoder runs once an example; samples are taken chunk by chunk, so that
    memory does not grow with their number.

    Args:
      params: model parameters.
      x: observations, `[B, D]`; B may be a whole data set.
      key: root of an evaluation; sample s of example i uses
        `fold_in(fold_in(evaluation_keys(key).evidence, first + i), s)`.
      num_samples: importance samples S of each example.
      first: number of the first example, where `x` is part of a data set.
      chunk_size: latents decoded at once; bounds the memory.
      posterior: q to draw from in place of the encoder's, each of its arrays `[B,
        ...]`, or `[1, ...]` where the examples share it; that of `fit_posterior`, say,
        made wider.
      labels: of a conditional model, as for `encode`, `[B]` or `[B, C]`.

    Returns:
      `LogEvidence`, each `[B]`. With a single sample the standard error is infinite.

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
    require_at_least("num_samples", num_samples)
    require_at_least("chunk_size", chunk_size)
    check_observations(params, x, labels=labels)
    if posterior is not None:
        posterior = broadcast_to_batch(posterior, x.shape[0])
    samples_at_once = min(num_samples, chunk_size)
    return map_examples(
        partial(
            _image_log_evidence,
            params,
            num_samples=num_samples,
            samples_at_once=samples_at_once,
        ),
        (x, labels, posterior),
        evaluation_keys(key).evidence,
        first=first,
        examples_at_once=max(1, chunk_size // samples_at_once),
    )


def broadcast_to_batch(posterior: Posterior, count: int) -> Posterior:
    """Broadcast shared parameters (weights `[1, ...]`) to every example."""
    return jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape[1:])), posterior
    )


def _image_log_evidence(
    params: Params,
    x: Array,
    labels: Labels,
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

    def add_chunk(seen: WeightStatistics, start: Array):
        index = start + jnp.arange(samples_at_once)
        draws = jax.tree.map(lambda leaf: leaf[:, 0], jax.vmap(sample)(index))
        log_w = log_weight(params, x, *draws, labels=labels)[:, 0]
        # The last chunk may reach beyond the samples asked for.
        return add_weights(seen, log_w, index < num_samples), None

    start = no_weights(num_samples, jax.tree.leaves(posterior)[0].dtype)
    chunks = jnp.arange(0, num_samples, samples_at_once)
    seen, _ = jax.lax.scan(add_chunk, start, chunks)
    return LogEvidence(*summarize(seen, num_samples))


def example_keys(key: Key, count: int, *, first: int | Array = 0) -> Key:
    """One key for each example of a data set, `fold_in(key, first + i)`.

    Noise drawn with keys of the "rbg" generators depends, under `vmap`, on the other
    keys of the batch. Where `key` is one of these, a key of the default generator is
    drawn with it, so that the noise of an example is its own in every case.

    Args:
      key: PRNG key, consumed once.
      count: number of examples, B.
      first: number of the first example, where they are part of a data set.

    Returns:
      `[B]`.

    Example:
      >>> import jax
      >>> from vae_jax.evaluation import example_keys
      >>> key = jax.random.key(0)
      >>> print(example_keys(key, 3)[2] == example_keys(key, 1, first=2)[0])
      True
    """
    numbers = first + jnp.arange(count)
    return jax.vmap(jax.random.fold_in, (None, 0))(as_threefry(key), numbers)


def map_examples(
    function: Callable[..., PyTree],
    examples: tuple[PyTree, ...],
    key: Key,
    *,
    first: int | Array = 0,
    examples_at_once: int,
) -> PyTree:
    """Map a function of one example over a data set, with one key per example.

    Args:
      function: called with the parts of an example, each leaf a batch of one, and its
        key, one of `example_keys`.
      examples: x, `[B, D]`, and trees of other parts, `[B, ...]` each; None is a tree.
      key: PRNG key, consumed once.
      first: number of the first example, where they are part of a data set.
      examples_at_once: how many are computed at a time.

    Returns:
      What the function returns, stacked: `[B, ...]`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax.evaluation import map_examples
      >>> total = lambda x, labels, key: jnp.sum(x)
      >>> x, key = jnp.ones((3, 5)), jax.random.key(0)
      >>> print(map_examples(total, (x, None), key, examples_at_once=2))
      [5. 5. 5.]
    """
    count = examples[0].shape[0]
    chex.assert_rank(examples[0], 2)
    chex.assert_tree_shape_prefix(examples, (count,))
    keys = example_keys(key, count, first=first)
    alone = jax.tree.map(lambda leaf: leaf[:, None], examples)
    return jax.lax.map(
        lambda example: function(*example[0], example[1]),
        (alone, keys),
        batch_size=min(examples_at_once, count),
    )
