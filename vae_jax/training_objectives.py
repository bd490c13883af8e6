"""Training objectives: the bounds of `objectives` as comparable, sweepable dataclasses.

An objective is called as `objective(params, batch, key, step, axis_name=...)`
(`types.Objective`) and returns the value to maximise, a batch mean in nats, and scalar
metrics. The objectives in this module log `elbo` (at beta 1, regardless of the value
that is maximised), `log_likelihood` and `kl_divergence`. They are frozen dataclasses
and pytrees (`options`): passing an equal objective to a compiled program, as a static
or a traced argument, does not recompile it.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from vae_jax.estimators import Grouped, log_mean_exp, reparameterization
from vae_jax.estimators.reductions import Reduction
from vae_jax.model import at_labels, encode
from vae_jax.objectives import (
    ELBOTerms,
    ImportanceWeightedTerms,
    elbo_terms,
    importance_weighted_terms,
    partially_importance_weighted_terms,
)
from vae_jax.options import register_options, require_at_least, require_scalar
from vae_jax.penalties import Penalty, mean_kl
from vae_jax.schedules import Scheduled, at_step
from vae_jax.spec import Params
from vae_jax.types import Array, Estimator, Key, Objective

Metrics = dict[str, Array]


class Labelled(NamedTuple):
    """Examples with labels: a batch or data set for a conditional model.

    Attributes:
      x: observations, `[B, D]`.
      labels: integers `[B]`, or class weights `[B, C]`; or `Conditions`.
    """

    x: Array
    labels: Array


@register_options(static=("num_samples", "kl"))
@dataclass(frozen=True, kw_only=True)
class ELBO:
    """ELBO as a training objective, optionally with a schedule for beta.

        value = 1/B sum_b E_q(z|x_b)[log p(x_b|z)] - beta * penalty

    Attributes:
      beta: weight of the KL: a number, a traced scalar, or a schedule, a function of
        the step (`LinearWarmup`, `Cyclic`, or an optax schedule).
      penalty: replacement for the KL, multiplied by beta (`FreeBits`, `Capacity`, or
        any `penalties.Penalty`); by default the KL.
      num_samples: number of posterior samples per observation.
      kl: see `elbo_terms`.
      estimator: estimator of the expectation and its gradient (`types.Estimator`).

    Raises:
      ValueError: `beta` is not a scalar, or `num_samples` is below 1. When called: see
        `elbo_terms`; on several devices, also for a penalty that compares examples with
        each other or does not take `axis_name`.

    Example:
      >>> from vae_jax import ELBO, LinearWarmup
      >>> objective = ELBO(beta=LinearWarmup(1.0, num_steps=1000))
      >>> objective == ELBO(beta=LinearWarmup(1.0, num_steps=1000))
      True
    """

    beta: Scheduled = 1.0
    penalty: Penalty = mean_kl
    num_samples: int = 1
    kl: str = "auto"
    estimator: Estimator = reparameterization

    def __post_init__(self):
        if not callable(self.beta):
            require_scalar("beta", self.beta)
        require_at_least("num_samples", self.num_samples)

    def __call__(self, params, batch, key, step, *, axis_name=None):
        """Return the value to maximise and the metrics. See `types.Objective`."""
        weight = at_step("beta", self.beta, step)
        x, labels = _parts(batch)
        posterior = encode(params, x, labels=labels)
        # `mean_kl` uses no key: this objective equals `elbo` at the same key.
        terms_key, penalty_key = (
            (key, key) if self.penalty is mean_kl else jax.random.split(key)
        )
        terms = elbo_terms(
            params,
            x,
            terms_key,
            num_samples=self.num_samples,
            kl=self.kl,
            estimator=self.estimator,
            posterior=posterior,
            labels=labels,
        )
        metrics = _logged(terms)
        charge = self.penalty(
            at_labels(params, labels),
            posterior,
            terms.kl_divergence,
            penalty_key,
            step,
            **over_devices("penalty", self.penalty, axis_name),
        )
        # Combine the two means: with a third mean, XLA would reduce all pixels again.
        return metrics["log_likelihood"] - weight * charge, metrics


elbo_objective = ELBO


def _mean_bound(
    terms: Callable[..., ImportanceWeightedTerms],
    params: Params,
    batch: Array | Labelled,
    key: Key,
    step: Array,
    *,
    axis_name: str | None = None,
    **options: Any,
) -> tuple[Array, Metrics]:
    """Batch mean of a multi-sample bound, and metrics of the same samples."""
    x, labels = _parts(batch)
    found = terms(params, x, key, labels=labels, **options)
    return jnp.mean(found.bound), _logged(found)


class _Bound:
    """Base class of multi-sample bounds; the fields are the options of `_terms`."""

    _terms: ClassVar[Callable[..., ImportanceWeightedTerms]]

    def __call__(self, params, batch, key, step, *, axis_name=None):
        """Return the value to maximise and the metrics. See `types.Objective`."""
        return _mean_bound(self._terms, params, batch, key, step, **vars(self))


@register_options(static=("num_samples",))
@dataclass(frozen=True, kw_only=True)
class IWAE(_Bound):
    """Importance-weighted bound as a training objective.

        value = 1/B sum_b R(log w_1b, ..., log w_Sb)

    with a reduction R, by default the log of the mean weight.

    Attributes:
      num_samples: number of importance samples per observation.
      reduction: reduction of the log-weights: `estimators.Grouped` gives MIWAE,
        `Combined` CIWAE, `Renyi` a Renyi bound.
      estimator: estimator of the bound and its gradient (`types.Estimator`).

    Raises:
      ValueError: `num_samples` is below 1. When called: see
        `importance_weighted_bound`.

    Example:
      >>> from vae_jax import IWAE
      >>> from vae_jax.estimators import doubly_reparameterized
      >>> objective = IWAE(num_samples=50, estimator=doubly_reparameterized)
      >>> objective.num_samples
      50
    """

    _terms = staticmethod(importance_weighted_terms)

    num_samples: int
    reduction: Reduction = log_mean_exp
    estimator: Estimator = reparameterization

    def __post_init__(self):
        _check_reduction(self.reduction, self.num_samples)


@register_options(static=("num_samples", "num_groups"))
@dataclass(frozen=True, kw_only=True)
class PIWAE(_Bound):
    """Partially importance-weighted bound as a training objective.

    The encoder is trained on groups of samples.

    Attributes:
      num_samples: number of importance samples per observation.
      num_groups: number M of groups; must divide `num_samples`.
      estimator: estimator of the bound and its gradient (`types.Estimator`).

    Raises:
      ValueError: `num_samples` is below 1, or `num_groups` does not divide it. When
        called: see `partially_importance_weighted_bound`.

    Example:
      >>> from vae_jax import PIWAE
      >>> PIWAE(num_samples=50, num_groups=5).num_groups
      5
    """

    _terms = staticmethod(partially_importance_weighted_terms)

    num_samples: int
    num_groups: int
    estimator: Estimator = reparameterization

    def __post_init__(self):
        _check_reduction(Grouped(self.num_groups), self.num_samples)


def importance_weighted_objective(
    *,
    num_samples: int,
    terms: Callable[..., ImportanceWeightedTerms] = importance_weighted_terms,
    **options: Any,
) -> Objective:
    """Multi-sample bound as a training objective.

    Args:
      num_samples: number of importance samples per observation.
      terms: `importance_weighted_terms` (gives `IWAE`),
        `partially_importance_weighted_terms` (gives `PIWAE`), or a custom function with
        the same arguments.
      **options: further options of that function.

    Returns:
      An `Objective`. It logs the same metrics as `ELBO`, from the samples of the bound.
      With a custom function, it compares by identity.

    Example:
      >>> import vae_jax
      >>> vae_jax.importance_weighted_objective(num_samples=5) == vae_jax.IWAE(
      ...     num_samples=5
      ... )
      True
    """
    known = {
        importance_weighted_terms: IWAE,
        partially_importance_weighted_terms: PIWAE,
    }
    objective = known.get(terms, partial(partial, _mean_bound, terms))
    return objective(num_samples=num_samples, **options)


def over_devices(
    name: str, function: Callable[..., Any], axis_name: str | None
) -> dict[str, str]:
    """Return the keyword arguments that pass the device axis to a function.

    Args:
      name: kind of function, for the message.
      function: objective or penalty.
      axis_name: name of the device axis, or None on a single device.

    Returns:
      Keyword arguments for the function; empty on a single device.

    Raises:
      ValueError: `axis_name` is given and the function does not take it.

    Example:
      >>> from vae_jax import ELBO
      >>> from vae_jax.training_objectives import over_devices
      >>> over_devices("objective", ELBO(), "device")
      {'axis_name': 'device'}
    """
    if axis_name is None:
        return {}
    parameters = inspect.signature(function).parameters.values()
    label = getattr(function, "__qualname__", function)
    if not any(p.name == "axis_name" or p.kind is p.VAR_KEYWORD for p in parameters):
        raise ValueError(
            f"on several devices the {name} {label} must take the keyword "
            "axis_name: average batch statistics over that axis (jax.lax.pmean) before "
            "any nonlinear function of them; a mean over examples can ignore it"
        )
    return {"axis_name": axis_name}


def _check_reduction(reduction: Reduction, num_samples: int) -> None:
    """Raise ValueError if a reduction does not accept this number of samples."""
    require_at_least("num_samples", num_samples)
    jax.eval_shape(reduction, jax.ShapeDtypeStruct((num_samples, 1), jnp.float32))


def _parts(batch: Array | Labelled) -> tuple[Array, Array | None]:
    return batch if isinstance(batch, Labelled) else (batch, None)


def _logged(terms: ELBOTerms | ImportanceWeightedTerms) -> Metrics:
    """Batch means of the terms, and the ELBO at beta 1."""
    log_likelihood = jnp.mean(terms.log_likelihood)
    kl_divergence = jnp.mean(terms.kl_divergence)
    return {
        "elbo": log_likelihood - kl_divergence,
        "log_likelihood": log_likelihood,
        "kl_divergence": kl_divergence,
    }
