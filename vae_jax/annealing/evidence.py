"""Estimates of log p(x) by annealing, from below and from above."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from vae_jax.annealing.path import (
    Settings,
    dtype_of,
    follow,
    lay_path,
    sample_prior,
    split,
)
from vae_jax.evaluation import evaluation_keys, example_keys
from vae_jax.importance_weights import summarize_all
from vae_jax.model import as_float, check_observations, decode, encode
from vae_jax.spec import Params
from vae_jax.types import Array, Key


class AnnealedEvidence(NamedTuple):
    """Estimate of log p(x) of each example by annealing, in nats.

    Attributes:
      estimate: `[B]`; a lower or an upper bound in expectation, as the function says.
      standard_error: of the estimate over its chains (delta method), `[B]`; infinite
        for one chain. Too small where the effective sample size is a handful.
      effective_sample_size: (sum w)^2 / sum w^2, between 1 and C, `[B]`.
      acceptance_rate: mean over chains and temperatures, `[B]`.
    """

    estimate: Array
    standard_error: Array
    effective_sample_size: Array
    acceptance_rate: Array


class BidirectionalEvidence(NamedTuple):
    """Log p(x) of simulated examples between two estimates, in nats.

    Attributes:
      lower: forward, from the prior, `[n]`; below log p(x) in expectation.
      upper: back from the z that x was made of, `[n]`; above it in expectation.
      gap: upper - lower, `[n]`; its mean bounds the error of both.
      x: the examples, `[n, D]`.
    """

    lower: Array
    upper: Array
    gap: Array
    x: Array


def annealed_log_evidence(
    params: Params,
    x: Array,
    key: Key,
    *,
    num_chains: int = 16,
    num_temperatures: int = 500,
    num_leapfrog: int = 10,
    initial_step_size: float | Array = 0.3,
    first: int | Array = 0,
) -> AnnealedEvidence:
    """Log p(x) of every example in nats: a lower bound in expectation.

    log 1/C sum_c w_c with log w = sum_k (t_k - t_(k-1)) log p(x|z_(k-1)), z_0 ~ p(z),
    and z_k from z_(k-1) by a Hamiltonian Monte Carlo step that leaves p(z) p(x|z)^t_k
    as it is (Neal 2001; Wu, Burda, Salakhutdinov & Grosse 2017). The mean weight is
    unbiased for p(x) with any number of temperatures; more of them bring its log up to
    log p(x).

    The step size of each image and temperature is adapted in a pilot run of four chains
    with a key of its own, and frozen for the chains that are weighted. Were it adapted
    in these, it would depend on their past, their steps would not leave the
    distribution as it is, and the estimate would no longer be a bound.

    Args:
      params: of a model with one array of continuous latents; the encoder enters by a
        VampPrior only.
      x: observations, `[B, D]`.
      key: root of an evaluation; example i uses
        `fold_in(evaluation_keys(key).annealing, first + i)`.
      num_chains: C, for each example.
      num_temperatures: K steps from the prior to the posterior (`sigmoid_schedule`).
      num_leapfrog: gradients in each of the K - 1 Hamiltonian steps.
      initial_step_size: what the pilot run begins with at the prior.
      first: number of the first example, where `x` is part of a data set.

    Returns:
      `AnnealedEvidence`, each `[B]`.

    Raises:
      ValueError: discrete latents or a tuple of latents, `num_temperatures` below 2, or
        another number below 1.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax import ModelSpec, init
      >>> from vae_jax.annealing import annealed_log_evidence
      >>> params = init(ModelSpec(latent_dim=2, data_shape=(5,)), jax.random.key(0))
      >>> x, key = jnp.zeros((3, 5)), jax.random.key(1)
      >>> jax.eval_shape(annealed_log_evidence, params, x, key).estimate.shape
      (3,)
    """
    settings = Settings(num_chains, num_temperatures, num_leapfrog, initial_step_size)
    x = _check(params, x, settings)
    keys = split(example_keys(evaluation_keys(key).annealing, len(x), first=first), 3)
    pilot_keys, start_keys, chain_keys = keys
    path = lay_path(params, x, pilot_keys, settings)
    z = sample_prior(params, start_keys, num_chains)
    return _summarize(*follow(params, x, path, z, chain_keys))


def reverse_annealed_log_evidence(
    params: Params,
    x: Array,
    z: Array,
    key: Key,
    *,
    num_chains: int = 16,
    num_temperatures: int = 500,
    num_leapfrog: int = 10,
    initial_step_size: float | Array = 0.3,
    first: int | Array = 0,
) -> AnnealedEvidence:
    """Log p(x) of every example in nats: an upper bound in expectation.

    -log 1/C sum_c w_c with chains from t = 1 down to 0 that all start at the given z
    (Grosse, Ghahramani & Adams 2015). Over z ~ p(z|x) and the chains the mean weight is
    unbiased for 1 / p(x), dependent as its terms are, so by Jensen's inequality
    E[-log mean w] >= log p(x), and more chains lower it. For a z that is not an exact
    posterior sample nothing holds; one is had for an x made of it (see
    `bidirectional_log_evidence`). The standard error is that of the chains given z.

    Args:
      params: as `annealed_log_evidence`.
      x: observations, `[B, D]`.
      z: for each an exact sample of p(z|x), `[B, L]`.
      key: root of an evaluation; example i uses
        `fold_in(evaluation_keys(key).reverse_annealing, first + i)`.
      num_chains: C, for each example.
      num_temperatures: K steps from the posterior to the prior.
      num_leapfrog: gradients in each of the K - 1 Hamiltonian steps.
      initial_step_size: what the pilot run, from the prior, begins with.
      first: number of the first example, where `x` is part of a data set.

    Returns:
      `AnnealedEvidence`, each `[B]`.

    Raises:
      ValueError: as `annealed_log_evidence`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax import ModelSpec, init
      >>> from vae_jax.annealing import reverse_annealed_log_evidence
      >>> params = init(ModelSpec(latent_dim=2, data_shape=(5,)), jax.random.key(0))
      >>> x, z, key = jnp.zeros((3, 5)), jnp.zeros((3, 2)), jax.random.key(1)
      >>> found = jax.eval_shape(reverse_annealed_log_evidence, params, x, z, key)
      >>> found.estimate.shape
      (3,)
    """
    settings = Settings(num_chains, num_temperatures, num_leapfrog, initial_step_size)
    x = _check(params, x, settings)
    chex.assert_shape(z, (x.shape[0], params.spec.latent_dim))
    pilot_keys, chain_keys = split(
        example_keys(evaluation_keys(key).reverse_annealing, len(x), first=first), 2
    )
    path = lay_path(params, x, pilot_keys, settings).reversed()
    z = jnp.broadcast_to(z.astype(x.dtype), (num_chains, *z.shape))
    found = _summarize(*follow(params, x, path, z, chain_keys))
    return found._replace(estimate=-found.estimate)


def bidirectional_log_evidence(
    params: Params,
    key: Key,
    *,
    num_examples: int,
    num_chains: int = 16,
    num_temperatures: int = 500,
    num_leapfrog: int = 10,
    initial_step_size: float | Array = 0.3,
) -> BidirectionalEvidence:
    """Log p(x) of examples of the model's own between two bounds, in nats.

    z ~ p(z), x ~ p(x|z) makes z an exact sample of p(z|x), from which annealing back
    bounds log p(x) from above, while annealing forward bounds it from below: the mean
    gap shows how far either can be off at these settings (bidirectional Monte Carlo,
    Grosse, Ghahramani & Adams 2015). It speaks of simulated data; on real data the same
    settings do as well if the posteriors are alike (Wu et al. 2017).

    Args:
      params: as `annealed_log_evidence`.
      key: root of an evaluation; example i uses
        `fold_in(evaluation_keys(key).bidirectional, i)`.
      num_examples: n.
      num_chains: C, for each example and direction.
      num_temperatures: K steps in each direction.
      num_leapfrog: gradients in each of the K - 1 Hamiltonian steps.
      initial_step_size: what the pilot runs begin with at the prior.

    Returns:
      `BidirectionalEvidence`.

    Raises:
      ValueError: as `annealed_log_evidence`, and for `num_examples` below 1.

    Example:
      >>> import functools, jax
      >>> from vae_jax import ModelSpec, init
      >>> from vae_jax.annealing import bidirectional_log_evidence
      >>> params = init(ModelSpec(latent_dim=2, data_shape=(5,)), jax.random.key(0))
      >>> simulate = functools.partial(bidirectional_log_evidence, num_examples=3)
      >>> jax.eval_shape(simulate, params, jax.random.key(1)).gap.shape
      (3,)
    """
    _check_at_least("num_examples", num_examples, 1)
    require_continuous_latents(params, "annealing")
    settings = Settings(num_chains, num_temperatures, num_leapfrog, initial_step_size)
    keys = split(example_keys(evaluation_keys(key).bidirectional, num_examples), 5)
    simulation_keys, pilot_keys, start_keys, forward_keys, reverse_keys = keys
    z, x = _simulate(params, simulation_keys)
    x = _check(params, x, settings)
    path = lay_path(params, x, pilot_keys, settings)
    start = sample_prior(params, start_keys, num_chains)
    lower = _summarize(*follow(params, x, path, start, forward_keys)).estimate
    start = jnp.broadcast_to(z, (num_chains, *z.shape))
    found = follow(params, x, path.reversed(), start, reverse_keys)
    upper = -_summarize(*found).estimate
    return BidirectionalEvidence(lower, upper, upper - lower, x)


def require_continuous_latents(params: Params, purpose: str) -> None:
    """Refuses discrete latents, those of several layers, and models with labels.

    Args:
      params: model parameters.
      purpose: what needs one array of continuous latents, for the message.

    Raises:
      ValueError: a discrete posterior or prior, a tuple of latents, or a conditional
        model.
    """
    spec = params.spec
    if spec.num_classes:
        raise ValueError(
            f"{purpose} takes no labels, and the model has num_classes="
            f"{spec.num_classes}"
        )

    def build():
        x = jnp.zeros((1, spec.data_dim), dtype_of(params))
        z = sample_prior(params, jax.random.key(0)[None], 1)
        return z, encode(params, x)

    z, posterior = jax.eval_shape(build)
    if not isinstance(z, jax.ShapeDtypeStruct):
        raise ValueError(
            f"{purpose} moves one array of latents, got a {type(z).__name__} from "
            f"{spec.prior}"
        )
    # A prior of other latents than the posterior's is no part of a spec.
    if not posterior.is_reparameterizable:
        raise ValueError(f"{purpose} needs continuous latents, got {spec.posterior}")


def _check(params: Params, x: Array, settings: Settings) -> Array:
    """The observations in the dtype of the parameters."""
    _check_at_least("num_chains", settings.num_chains, 1)
    _check_at_least("num_temperatures", settings.num_temperatures, 2)
    _check_at_least("num_leapfrog", settings.num_leapfrog, 1)
    require_continuous_latents(params, "annealing")
    chex.assert_shape(x, (None, params.spec.data_dim))
    check_observations(params, x)
    return as_float(x, dtype_of(params)).astype(dtype_of(params))


def _simulate(params: Params, keys: Key) -> tuple[Array, Array]:
    """Latents of the prior `[B, L]` and observations made of them, `[B, D]`."""
    prior_keys, likelihood_keys = split(keys, 2)
    z = sample_prior(params, prior_keys, 1)[0]

    def draw(z: Array, key: Key) -> Array:
        return decode(params, z[None, None]).sample(key, 1)[0, 0, 0]

    return z, jax.vmap(draw)(z, likelihood_keys)


def _summarize(log_w: Array, acceptance_rate: Array) -> AnnealedEvidence:
    """Log of the mean weight and its spread, of log-weights `[C, B]`."""
    found = summarize_all(log_w)
    return AnnealedEvidence(
        estimate=found.log_mean,
        standard_error=found.standard_error,
        effective_sample_size=found.effective_sample_size,
        acceptance_rate=acceptance_rate,
    )


def _check_at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
