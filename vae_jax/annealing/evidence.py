"""Estimates of log p(x) by annealing: lower and upper bounds in expectation."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from vae_jax.annealing.path import (
    Annealed,
    Settings,
    adapt_step_sizes,
    anneal,
    sample_prior,
    split,
)
from vae_jax.evaluation import evaluation_keys, example_keys
from vae_jax.importance_weights import summarize_all
from vae_jax.model import as_float, check_observations, decode, dtype_of, encode
from vae_jax.options import require_at_least, require_value
from vae_jax.spec import Params
from vae_jax.types import Array, Key


class AnnealedEvidence(NamedTuple):
    """Per-example estimate of log p(x) by annealing, in nats.

    Attributes:
      estimate: lower or upper bound in expectation, depending on the function, `[B]`.
      standard_error: standard error of the estimate over its chains (delta method),
        `[B]`; infinite for one chain. Underestimated if the effective sample size is
        only a few.
      effective_sample_size: (sum w)^2 / sum w^2, between 1 and C, `[B]`.
      acceptance_rate: mean over chains and temperatures, `[B]`.
    """

    estimate: Array
    standard_error: Array
    effective_sample_size: Array
    acceptance_rate: Array


class BidirectionalEvidence(NamedTuple):
    """Lower and upper bounds on log p(x) of simulated examples, in nats.

    Attributes:
      lower: estimate by forward annealing from the prior, `[n]`; a lower bound in
        expectation.
      upper: estimate by reverse annealing from the z that generated x, `[n]`; an upper
        bound in expectation.
      gap: upper - lower, `[n]`; its mean bounds the mean error of both.
      x: the simulated examples, `[n, D]`.
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
    """Per-example estimate of log p(x) in nats, a lower bound in expectation.

        log p(x) ~= log(1/C sum_c w_c)
        log w = sum_k (t_k - t_(k - 1)) log p(x|z_(k - 1))

    with z_0 ~ p(z), and z_k drawn from z_(k - 1) by a Hamiltonian Monte Carlo step that
    leaves p(z) p(x|z)^t_k invariant (Neal 2001; Wu, Burda, Salakhutdinov & Grosse
    2017). The mean weight is unbiased for p(x) with any number of temperatures; with
    more temperatures, the bound becomes tighter.

    The step size of each example and temperature is adapted in a pilot run of four
    chains with a separate key, and then kept fixed. If it were adapted in the weighted
    chains, it would depend on their history; the transitions would not leave the
    distributions invariant, and the estimate would not be a bound.

    Args:
      params: parameters of an unconditional model with one array of continuous latents.
        The encoder is used only by a VampPrior.
      x: observations, `[B, D]`.
      key: root key of an evaluation; example i uses
        `fold_in(evaluation_keys(key).annealing, first + i)`.
      num_chains: number C of chains per example.
      num_temperatures: number K of steps from the prior to the posterior
        (`sigmoid_schedule`).
      num_leapfrog: number of leapfrog steps in each of the K - 1 Hamiltonian steps.
      initial_step_size: initial step size of the pilot run, at the prior.
      first: index of the first example, if `x` is part of a data set.

    Returns:
      `AnnealedEvidence`, each `[B]`.

    Raises:
      ValueError: the latents are discrete or a tuple, the model is conditional,
        `num_temperatures` is below 2, or another number is below 1.

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
    x = check_arguments(params, x, settings)
    keys = split(example_keys(evaluation_keys(key).annealing, len(x), first=first), 3)
    pilot_keys, start_keys, chain_keys = keys
    path = adapt_step_sizes(params, x, pilot_keys, settings)
    z = sample_prior(params, start_keys, num_chains)
    return _summarize(anneal(params, x, path, z, chain_keys))


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
    """Per-example estimate of log p(x) in nats, an upper bound in expectation.

        log p(x) ~= -log(1/C sum_c w_c)

    with chains from t = 1 down to 0 that all start at the given z (Grosse, Ghahramani &
    Adams 2015). Over z ~ p(z|x) and the chains, the mean weight is unbiased for
    1 / p(x), although its terms are dependent. By Jensen's inequality,
    E[-log mean w] >= log p(x); more chains make the bound tighter. The bound requires
    exact posterior samples, which are available for simulated x (see
    `bidirectional_log_evidence`). The standard error is that of the chains given z.

    Args:
      params: see `annealed_log_evidence`.
      x: observations, `[B, D]`.
      z: an exact sample of p(z|x) for each observation, `[B, L]`.
      key: root key of an evaluation; example i uses
        `fold_in(evaluation_keys(key).reverse_annealing, first + i)`.
      num_chains: number C of chains per example.
      num_temperatures: number K of steps from the posterior to the prior.
      num_leapfrog: number of leapfrog steps in each of the K - 1 Hamiltonian steps.
      initial_step_size: initial step size of the pilot run, which starts at the prior.
      first: index of the first example, if `x` is part of a data set.

    Returns:
      `AnnealedEvidence`, each `[B]`.

    Raises:
      ValueError: see `annealed_log_evidence`.

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
    x = check_arguments(params, x, settings)
    chex.assert_shape(z, (x.shape[0], params.spec.latent_dim))
    pilot_keys, chain_keys = split(
        example_keys(evaluation_keys(key).reverse_annealing, len(x), first=first), 2
    )
    path = adapt_step_sizes(params, x, pilot_keys, settings).reversed()
    z = jnp.broadcast_to(z.astype(x.dtype), (num_chains, *z.shape))
    found = _summarize(anneal(params, x, path, z, chain_keys))
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
    """Lower and upper bounds on log p(x) of examples simulated from the model, in nats.

    If z ~ p(z) and x ~ p(x|z), then z is an exact sample of p(z|x). Reverse annealing
    from z gives an upper bound on log p(x) and forward annealing a lower bound. The
    mean gap bounds the error of either at these settings (bidirectional Monte Carlo,
    Grosse, Ghahramani & Adams 2015). The result applies to simulated data; it carries
    over to real data if the posteriors are similar (Wu et al. 2017).

    Args:
      params: see `annealed_log_evidence`.
      key: root key of an evaluation; example i uses
        `fold_in(evaluation_keys(key).bidirectional, i)`.
      num_examples: number n of simulated examples.
      num_chains: number C of chains per example and direction.
      num_temperatures: number K of steps in each direction.
      num_leapfrog: number of leapfrog steps in each of the K - 1 Hamiltonian steps.
      initial_step_size: initial step size of the pilot run, at the prior.

    Returns:
      `BidirectionalEvidence`.

    Raises:
      ValueError: see `annealed_log_evidence`; also if `num_examples` is below 1.

    Example:
      >>> import functools, jax
      >>> from vae_jax import ModelSpec, init
      >>> from vae_jax.annealing import bidirectional_log_evidence
      >>> params = init(ModelSpec(latent_dim=2, data_shape=(5,)), jax.random.key(0))
      >>> simulate = functools.partial(bidirectional_log_evidence, num_examples=3)
      >>> jax.eval_shape(simulate, params, jax.random.key(1)).gap.shape
      (3,)
    """
    require_at_least("num_examples", num_examples)
    require_continuous_latents(params, "annealing")
    settings = Settings(num_chains, num_temperatures, num_leapfrog, initial_step_size)
    keys = split(example_keys(evaluation_keys(key).bidirectional, num_examples), 5)
    simulation_keys, pilot_keys, start_keys, forward_keys, reverse_keys = keys
    z, x = _simulate(params, simulation_keys)
    x = check_arguments(params, x, settings)
    path = adapt_step_sizes(params, x, pilot_keys, settings)
    start = sample_prior(params, start_keys, num_chains)
    lower = _summarize(anneal(params, x, path, start, forward_keys)).estimate
    start = jnp.broadcast_to(z, (num_chains, *z.shape))
    found = anneal(params, x, path.reversed(), start, reverse_keys)
    upper = -_summarize(found).estimate
    return BidirectionalEvidence(lower, upper, upper - lower, x)


def require_continuous_latents(params: Params, purpose: str) -> None:
    """Raise ValueError unless an unconditional model has one array of real latents.

    Args:
      params: model parameters.
      purpose: computation that needs continuous latents, for the message.

    Raises:
      ValueError: the posterior or prior is discrete, the latents are a tuple, or the
        model is conditional.
    """
    spec = params.spec
    if spec.is_conditional:
        raise ValueError(
            f"{purpose} needs an unconditional model, got one of num_classes="
            f"{spec.num_classes}, num_covariates={spec.num_covariates} and likelihood "
            f"{spec.likelihood!r}"
        )

    def build():
        x = jnp.zeros((1, spec.data_dim), dtype_of(params))
        z = sample_prior(params, jax.random.key(0)[None], 1)
        return z, encode(params, x)

    z, posterior = jax.eval_shape(build)
    if not isinstance(z, jax.ShapeDtypeStruct):
        # The repr of a prior with networks has a line for each of their fields.
        units = ", ".join(str(leaf.size) for leaf in jax.tree.leaves(z))
        raise ValueError(
            f"{purpose} needs one array of latents, got a {type(z).__name__} from "
            f"{type(spec.prior).__name__}, with {units} units in its layers"
        )
    # The prior has the same latent space, as the spec has checked.
    if not posterior.is_reparameterizable:
        raise ValueError(f"{purpose} needs continuous latents, got {spec.posterior}")


def check_arguments(params: Params, x: Array, settings: Settings) -> Array:
    """Check the arguments; return the observations in the dtype of the parameters."""
    require_at_least("num_chains", settings.num_chains)
    require_at_least("num_temperatures", settings.num_temperatures, 2)
    require_at_least("num_leapfrog", settings.num_leapfrog)
    require_value(
        "initial_step_size", settings.initial_step_size, lambda v: v > 0, "positive"
    )
    require_continuous_latents(params, "annealing")
    check_observations(params, x)
    return as_float(x, dtype_of(params)).astype(dtype_of(params))


def _simulate(params: Params, keys: Key) -> tuple[Array, Array]:
    """Draw latents from the prior, `[B, L]`, and observations given them, `[B, D]`."""
    prior_keys, likelihood_keys = split(keys, 2)
    z = sample_prior(params, prior_keys, 1)[0]

    def draw(z: Array, key: Key) -> Array:
        return decode(params, z[None, None]).sample(key, 1)[0, 0, 0]

    return z, jax.vmap(draw)(z, likelihood_keys)


def _summarize(chains: Annealed) -> AnnealedEvidence:
    """Summarize the log-weights of annealed chains."""
    found = summarize_all(chains.log_weights)
    return AnnealedEvidence(
        estimate=found.log_mean,
        standard_error=found.standard_error,
        effective_sample_size=found.effective_sample_size,
        acceptance_rate=chains.acceptance_rate,
    )
