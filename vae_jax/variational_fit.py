"""Non-amortized variational inference, and the inference gap.

The gap between log p(x) and the ELBO is the sum of the approximation gap of the family
of q and the amortization gap of the encoder (Cremer, Li & Duvenaud 2018). Separating
them requires the optimal q of the family for each example, found by variational
inference without amortization.
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
from vae_jax.evaluation import broadcast_to_batch, log_evidence, map_examples
from vae_jax.model import check_observations, encode
from vae_jax.objectives import elbo_terms, require_density
from vae_jax.options import require_at_least
from vae_jax.quasi_newton import minimize
from vae_jax.spec import Params
from vae_jax.types import Array, Key, Labels, Posterior

# With fewer samples, the optimum for these samples is far from the optimal q; with
# more, the rounds cost more than the steps of Adam.
ROUND_SAMPLES = 128
ROUND_EVALUATIONS = 40
NUM_ROUNDS = 2
# Gradients of log p(x, z) per example, including those at the start of each round.
QUASI_NEWTON_COST = (NUM_ROUNDS + 1) * (ROUND_EVALUATIONS + 1) * ROUND_SAMPLES
# Fresh samples for comparing two posteriors: number of batches, samples per batch.
COMPARISON = (4, 64)
LAST_COMPARISON = (16, 64)
EVIDENCE_FACTOR = 5
TOLERANCE = 0.1


class FittedPosterior(NamedTuple):
    """Best q(z|x) found for each example, with an estimate of its suboptimality.

    Attributes:
      posterior: the fitted posterior, of the family it started with, batch B.
      remaining_improvement: estimate of how much the ELBO of each example would still
        increase, in nats, `[B]`; about 0 at a maximum.
      standard_error: standard error of that estimate, `[B]`.
      converged: whether the remaining improvement is below 0.1 nats by two standard
        errors and the last round of L-BFGS accepted a step, `[B]`.
    """

    posterior: Posterior
    remaining_improvement: Array
    standard_error: Array
    converged: Array


class InferenceGap(NamedTuple):
    """Decomposition of log p(x) - ELBO in nats, `[B]` each.

    Attributes:
      log_evidence: importance-sampling estimate of log p(x).
      best_elbo: ELBO with the best q of the family for each x.
      elbo: ELBO with the encoder's q.
      approximation_gap: log_evidence - best_elbo, due to the family of q.
      amortization_gap: best_elbo - elbo, due to the encoder.
      remaining_improvement: estimate of the difference between the nearest maximum and
        best_elbo.
      converged: see `FittedPosterior`. If False, the approximation gap may be too large
        and the amortization gap too small.
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
    """Fit q(z|x) to each example by maximising the ELBO without amortization.

    The parameters of each example's q, including the weights of a flow, are optimised
    separately with the model fixed, starting from the encoder's q or from `start`:

    1. Two rounds of L-BFGS on the ELBO of 128 fixed samples approach the maximum, even
       if it is badly scaled.
    2. Adam on fresh samples, with cosine decay of the learning rate to zero, removes
       the dependence on these samples. Its steps are scaled by each parameter's
       curvature.
    3. Another round of L-BFGS estimates the remaining improvement: the mean of its gain
       on its own samples, which is too large, and on fresh samples, which is too small
       by the same amount.

    The result of a stage is kept for the examples whose ELBO on fresh samples it
    improves. A converged q is a local optimum near the start; another mode of p(z|x)
    may have a better one.

    Args:
      params: model parameters.
      x: observations, `[B, D]`.
      key: PRNG key; example i uses `fold_in(key, first + i)`.
      num_steps: number of steps of Adam. They cost `num_steps * num_samples` gradients
        of log p(x, z) per example, the rounds of L-BFGS another 15,744.
      num_samples: number of posterior samples per example and step of Adam.
      learning_rate: initial learning rate of Adam.
      start: initial posterior of any family, batch B; the encoder's by default.
      labels: labels of a conditional model; see `encode`.
      first: index of the first example, if `x` is part of a data set.
      chunk_size: number of latents decoded at once by L-BFGS, 128 per example;
        determines how many examples are fitted together.

    Returns:
      `FittedPosterior`, whose posterior can be passed to `elbo_terms(..., posterior=)`.

    Raises:
      ValueError: `num_steps`, `num_samples` or `chunk_size` is below 1; otherwise see
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
        require_at_least(name, value)
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
        start = broadcast_to_batch(start, x.shape[0])
    found = map_examples(
        fit,
        (x, labels, start),
        key,
        first=first,
        examples_at_once=max(1, chunk_size // ROUND_SAMPLES),
    )
    posterior = jax.tree.map(lambda leaf: leaf[:, 0], found.posterior)
    return found._replace(posterior=posterior)


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
    """`fit_posterior` for one example, `[1, D]`; the posterior has a batch of one."""
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
    # The errors of the two gains are equal with opposite signs.
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
    """Run Adam on fresh samples, with steps scaled by each parameter's curvature.

    If q is the posterior, the second moment of a one-sample gradient equals the
    curvature of the ELBO: 1 / variance for a mean, 1/2 for a log-variance.
    """
    scale_key, step_key = jax.random.split(key)

    def add_square(total: Array, key: Key) -> tuple[Array, None]:
        return total + jnp.square(gradient(start, key, 1)), None

    keys = jax.random.split(scale_key, num_samples)
    total, _ = jax.lax.scan(add_square, jnp.zeros_like(start), keys)
    # At most 1, for parameters with little influence.
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
    """Decompose log p(x) - ELBO into approximation and amortization gap, in nats.

        approximation = log p(x) - ELBO(q_best)
        amortization = ELBO(q_best) - ELBO(q)

    with q_best the best q of the family for each x (Cremer, Li & Duvenaud 2018). Both
    ELBOs use the same noise. The evidence is an importance-sampling estimate with
    q_best as the proposal, which is below log p(x) in expectation; the approximation
    gap is then too small by the same amount.

    If `converged` is False, a better q exists near q_best or could not be ruled out.
    The decomposition is then unreliable, and more steps are needed.

    Args:
      params: model parameters.
      x: observations, `[B, D]`.
      key: PRNG key; example i uses `fold_in(key, first + i)`.
      num_steps: number of steps of `fit_posterior`.
      num_samples: number of samples per ELBO; log p(x) uses five times as many.
      labels: labels of a conditional model; see `encode`.
      first: index of the first example, if `x` is part of a data set.
      chunk_size: number of latents decoded at once, which bounds the memory, but at
        least the `num_samples` of one example.

    Returns:
      `InferenceGap`, each `[B]`.

    Raises:
      ValueError: the posterior has no density; otherwise see `fit_posterior`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax import ModelSpec, inference_gap, init
      >>> params = init(ModelSpec(latent_dim=2, data_shape=(5,)), jax.random.key(0))
      >>> split = jax.jit(inference_gap)
      >>> split(params, jnp.zeros((3, 5)), jax.random.key(1)).approximation_gap.shape
      (3,)
    """
    require_at_least("num_samples", num_samples)
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
