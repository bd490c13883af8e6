"""The best q(z|x) of each example, and what the encoder and the family cost.

The gap between log p(x) and the ELBO splits into what the family of q cannot reach and
what the encoder does not (Cremer, Li & Duvenaud 2018). The split needs the best q of
the family for each example, by variational inference without amortization.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from vae_jax.estimators import value_only
from vae_jax.evaluation import check_positive, log_evidence, map_examples
from vae_jax.model import check_observations, encode
from vae_jax.objectives import elbo_terms, require_density
from vae_jax.quasi_newton import minimize
from vae_jax.spec import Params
from vae_jax.types import Array, Key, Labels, Posterior

# With fewer samples the best q for them is far from the best q; with more, they cost
# more than the steps of Adam.
ROUND_SAMPLES = 128
ROUND_EVALUATIONS = 40
NUM_ROUNDS = 2
# Gradients of log p(x, z) of each example, those at the start of a round included.
QUASI_NEWTON_COST = (NUM_ROUNDS + 1) * (ROUND_EVALUATIONS + 1) * ROUND_SAMPLES
# Fresh samples that decide between two posteriors: batches, and samples of each.
COMPARISON = (4, 64)
LAST_COMPARISON = (16, 64)
EVIDENCE_FACTOR = 5
TOLERANCE = 0.1


class FittedPosterior(NamedTuple):
    """The best q(z|x) found for each example, and how much better another might be.

    Attributes:
      posterior: of the family it started with, batch B.
      remaining_improvement: estimate of the nats by which the ELBO of each example
        would rise if the search went on, `[B]`; about 0 at a maximum.
      standard_error: of that estimate, `[B]`.
      converged: whether it is below 0.1 nats by two standard errors, `[B]`.
    """

    posterior: Posterior
    remaining_improvement: Array
    standard_error: Array
    converged: Array


class InferenceGap(NamedTuple):
    """Parts of log p(x) - ELBO in nats, `[B]` each.

    Attributes:
      log_evidence: importance-sampling estimate of log p(x).
      best_elbo: with the best q of the family for each x.
      elbo: with the encoder's q.
      approximation_gap: log_evidence - best_elbo: what the family cannot do.
      amortization_gap: best_elbo - elbo: what the encoder does not do.
      remaining_improvement: estimate of how far best_elbo is below the maximum near it.
      converged: whether that is below 0.1 nats by two standard errors. Where it is
        not, the approximation gap is too large and the amortization gap too small.
    """

    log_evidence: Array
    best_elbo: Array
    elbo: Array
    approximation_gap: Array
    amortization_gap: Array
    remaining_improvement: Array
    converged: Array


def fit_posterior(
    params: Params,
    x: Array,
    key: Key,
    *,
    num_steps: int = 500,
    num_samples: int = 16,
    learning_rate: float | Array = 0.03,
    start: Posterior | None = None,
    labels: Labels = None,
    first: int | Array = 0,
    chunk_size: int = 25_600,
) -> FittedPosterior:
    """The best q(z|x) of a family for each example, and whether it was found.

    Variational inference without amortization: the ELBO is raised by the parameters of
    every example's own q, from the encoder's or from `start`, while the model stays as
    it is; of a flow every example gets weights of its own as well. Two rounds of L-BFGS
    on the ELBO of 128 fixed samples lead near the maximum, however badly it is scaled.
    Adam on fresh samples, its rate falling to zero by a cosine, removes what is due to
    the samples; its steps are in units of each parameter's curvature. A further round
    of L-BFGS from there estimates the improvement that remains: the mean of what it
    gains on its own samples, where it gains too much, and on fresh ones, where it loses
    as much. Each stage is kept for the examples that it improves on fresh samples.

    A q that has converged is the best near the start. Another mode of p(z|x) may have a
    better one.

    Args:
      params: model parameters.
      x: observations, `[B, D]`.
      key: PRNG key; example i uses `fold_in(key, first + i)`.
      num_steps: steps of Adam. Each example takes `num_steps * num_samples` gradients
        of log p(x, z) for them, and 15,744 for the rounds of L-BFGS.
      num_samples: posterior samples of each example and step of Adam.
      learning_rate: of Adam at the start.
      start: a posterior of any family, batch B, to improve; by default the encoder's.
      labels: of a conditional model, as for `encode`.
      first: number of the first example, where `x` is part of a data set.
      chunk_size: latents decoded at once; bounds the memory.

    Returns:
      `FittedPosterior`; its posterior is one for `elbo_terms(..., posterior=)`.

    Raises:
      ValueError: `num_steps`, `num_samples` or `chunk_size` below 1; else as
        `elbo_terms`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax import ModelSpec, fit_posterior, init
      >>> params = init(ModelSpec(data_shape=(5,)), jax.random.key(0))
      >>> fitted = jax.jit(fit_posterior)(params, jnp.zeros((3, 5)), jax.random.key(1))
      >>> fitted.posterior.mean.shape
      (3, 20)
      >>> print(fitted.converged)
      [ True  True  True]
    """
    for name, value in (
        ("num_steps", num_steps),
        ("num_samples", num_samples),
        ("chunk_size", chunk_size),
    ):
        check_positive(name, value)
    check_observations(params, x, labels=labels)
    options = {
        "num_steps": num_steps,
        "num_samples": num_samples,
        "learning_rate": learning_rate,
    }

    def fit(x: Array, labels: Labels, start: Posterior | None, key: Key):
        start = encode(params, x, labels=labels) if start is None else start
        return _fit(params, x, labels, start, key, **options)

    if start is not None:
        start = _each_its_own(start, x.shape[0])
    found = map_examples(
        fit,
        (x, labels, start),
        key,
        first=first,
        examples_at_once=max(1, chunk_size // ROUND_SAMPLES),
    )
    posterior = jax.tree.map(lambda leaf: leaf[:, 0], found.posterior)
    return found._replace(posterior=posterior)


def _each_its_own(posterior: Posterior, count: int) -> Posterior:
    """The posterior with what examples share (weights `[1, ...]`) for each of them."""
    return jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape[1:])), posterior
    )


def _fit(
    params: Params,
    x: Array,
    labels: Labels,
    start: Posterior,
    key: Key,
    *,
    num_steps: int,
    num_samples: int,
    learning_rate: float | Array,
) -> FittedPosterior:
    """`fit_posterior` of one example, `[1, D]`; its posterior has a batch of one."""
    vector, unravel = ravel_pytree(start)

    def elbo(vector: Array, key: Key, num_samples: int, **options) -> Array:
        terms = elbo_terms(
            params,
            x,
            key,
            num_samples=num_samples,
            posterior=unravel(vector),
            labels=labels,
            **options,
        )
        return terms.elbo[0]

    def gains(new: Array, old: Array, key: Key, batches: int, samples: int) -> Array:
        """Differences of the ELBO on the same fresh samples, `[batches]`."""

        def of_batch(key: Key) -> Array:
            value = partial(elbo, key=key, num_samples=samples, estimator=value_only)
            return value(new) - value(old)

        return jax.lax.map(of_batch, jax.random.split(key, batches))

    def better(new: Array, old: Array, key: Key) -> Array:
        return jnp.where(jnp.mean(gains(new, old, key, *COMPARISON)) > 0, new, old)

    def negative_elbo(key: Key) -> Callable[[Array], Array]:
        return lambda vector: -elbo(vector, key, ROUND_SAMPLES)

    def one_round(vector: Array, key: Key) -> tuple[Array, None]:
        own_key, comparison_key = jax.random.split(key)
        found = minimize(
            negative_elbo(own_key), vector, num_evaluations=ROUND_EVALUATIONS
        )
        return better(found.point, vector, comparison_key), None

    round_key, adam_key, adam_comparison_key, last_key, last_comparison_key = (
        jax.random.split(key, 5)
    )
    vector, _ = jax.lax.scan(one_round, vector, jax.random.split(round_key, NUM_ROUNDS))
    noisy_gradient = jax.grad(lambda vector, key, size: -elbo(vector, key, size))
    found = _adam(
        noisy_gradient,
        vector,
        adam_key,
        num_steps=num_steps,
        num_samples=num_samples,
        learning_rate=learning_rate,
    )
    vector = better(found, vector, adam_comparison_key)

    last = minimize(negative_elbo(last_key), vector, num_evaluations=ROUND_EVALUATIONS)
    on_fresh_samples = gains(last.point, vector, last_comparison_key, *LAST_COMPARISON)
    gain = jnp.mean(on_fresh_samples)
    improvement = 0.5 * (last.start_value - last.value + gain)
    # The error of the first half is that of the second with the other sign.
    batches = len(on_fresh_samples)
    error = 0.5 * jnp.std(on_fresh_samples, ddof=1) / jnp.sqrt(batches)
    within = improvement + 2 * error < TOLERANCE
    vector = jnp.where(gain > 0, last.point, vector)
    return FittedPosterior(
        posterior=unravel(vector),
        remaining_improvement=improvement,
        standard_error=error,
        converged=within & (last.num_accepted > 0),
    )


def _adam(
    gradient: Callable[[Array, Key, int], Array],
    start: Array,
    key: Key,
    *,
    num_steps: int,
    num_samples: int,
    learning_rate: float | Array,
) -> Array:
    """Steps of Adam on fresh samples, each parameter in units of its curvature.

    At the maximum of the ELBO the second moment of the gradient of one sample is the
    curvature where q is the posterior: 1 / variance for a mean, 1/2 for a log-variance.
    """
    scale_key, step_key = jax.random.split(key)

    def add_square(total: Array, key: Key) -> tuple[Array, None]:
        return total + jnp.square(gradient(start, key, 1)), None

    keys = jax.random.split(scale_key, num_samples)
    total, _ = jax.lax.scan(add_square, jnp.zeros_like(start), keys)
    # Not more than 1, for parameters that hardly matter.
    unit = jax.lax.rsqrt(1 + total / num_samples)
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, num_steps))

    def step(number: Array, carry):
        vector, opt_state = carry
        updates: Any
        slope = gradient(vector, jax.random.fold_in(step_key, number), num_samples)
        updates, opt_state = optimizer.update(slope, opt_state)
        return vector + unit * updates, opt_state

    vector, _ = jax.lax.fori_loop(0, num_steps, step, (start, optimizer.init(start)))
    return vector


def inference_gap(
    params: Params,
    x: Array,
    key: Key,
    *,
    num_steps: int = 500,
    num_samples: int = 1000,
    labels: Labels = None,
    first: int | Array = 0,
    chunk_size: int = 25_600,
) -> InferenceGap:
    """Splits log p(x) - ELBO into approximation gap and amortization gap, in nats.

    With q* the best q of the family for each x: log p(x) - ELBO(q*), and ELBO(q*) -
    ELBO(q) (Cremer, Li & Duvenaud 2018). Both ELBOs are taken with the same noise. The
    evidence is an importance-sampling estimate with q* as its proposal: below log p(x)
    in expectation, and then so is the first gap.

    Where `converged` is False a better q of the family was seen near q*, or could not
    be ruled out: the split is not known there, and more steps are needed.

    Args:
      params: model parameters.
      x: observations, `[B, D]`.
      key: PRNG key; example i uses `fold_in(key, first + i)`.
      num_steps: steps of `fit_posterior`.
      num_samples: samples of each ELBO; log p(x) takes five times as many, in turn.
      labels: of a conditional model, as for `encode`.
      first: number of the first example, where `x` is part of a data set.
      chunk_size: latents decoded at once; bounds the memory.

    Returns:
      `InferenceGap`, each `[B]`.

    Raises:
      ValueError: a posterior without density; else as `fit_posterior`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax import ModelSpec, inference_gap, init
      >>> params = init(ModelSpec(latent_dim=2, data_shape=(5,)), jax.random.key(0))
      >>> split = jax.jit(inference_gap)
      >>> split(params, jnp.zeros((3, 5)), jax.random.key(1)).approximation_gap.shape
      (3,)
    """
    check_positive("num_samples", num_samples)
    check_observations(params, x, labels=labels)
    require_density(encode(params, x, labels=labels), "an inference gap")
    fit_key, elbo_key, evidence_key = jax.random.split(key, 3)
    options = {"first": first, "chunk_size": chunk_size}
    fitted = fit_posterior(
        params, x, fit_key, num_steps=num_steps, labels=labels, **options
    )

    def elbos(x: Array, labels: Labels, best: Posterior, key: Key):
        own = encode(params, x, labels=labels)
        value = partial(
            elbo_terms,
            params,
            x,
            key,
            num_samples=num_samples,
            estimator=value_only,
            labels=labels,
        )
        return value(posterior=own).elbo[0], value(posterior=best).elbo[0]

    own, best = map_examples(
        elbos,
        (x, labels, fitted.posterior),
        elbo_key,
        first=first,
        examples_at_once=max(1, chunk_size // num_samples),
    )
    evidence = log_evidence(
        params,
        x,
        evidence_key,
        num_samples=EVIDENCE_FACTOR * num_samples,
        posterior=fitted.posterior,
        labels=labels,
        **options,
    ).estimate
    chex.assert_equal_shape([own, best, evidence])
    return InferenceGap(
        log_evidence=evidence,
        best_elbo=best,
        elbo=own,
        approximation_gap=evidence - best,
        amortization_gap=best - own,
        remaining_improvement=fitted.remaining_improvement,
        converged=fitted.converged,
    )
