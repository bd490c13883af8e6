"""Objectives of training: the bounds of `objectives` as values that compare and sweep.

An objective is called as `objective(params, batch, key, step, axis_name=...)`
(`types.Objective`) and returns the value to maximise, a batch mean in nats, and scalars
to log. Those here log `elbo` (at beta 1, whatever is trained), `log_likelihood` and
`kl_divergence`. They are frozen dataclasses and pytrees (`options`): as an argument of
a compiled program, static or not, an equal one compiles nothing again.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from vae_jax.estimators import Grouped, log_mean_exp, reparameterization
from vae_jax.estimators.contract import check_num_samples
from vae_jax.estimators.reductions import Reduction
from vae_jax.model import at_labels, encode
from vae_jax.objectives import (
    ELBOTerms,
    ImportanceWeightedTerms,
    elbo_terms,
    importance_weighted_terms,
    partially_importance_weighted_terms,
)
from vae_jax.options import register_options, require_scalar
from vae_jax.penalties import Penalty, mean_kl
from vae_jax.schedules import Scheduled, at_step
from vae_jax.spec import Params
from vae_jax.types import Array, Estimator, Key, Objective

Metrics = dict[str, Array]


class Labelled(NamedTuple):
    """Examples with their labels: a batch, or a data set, of a conditional model.

    Attributes:
      x: `[B, D]`.
      labels: integers `[B]`, or weights of the classes `[B, C]`.
    """

    x: Array
    labels: Array


@register_options(static=("num_samples", "kl"))
@dataclass(frozen=True, kw_only=True)
class ELBO:
    """The ELBO as an objective of training, beta possibly on a schedule.

    Attributes:
      beta: weight of the KL: a number, a traced scalar, or a schedule, a function of
        the step (`LinearWarmup`, `Cyclic`, or one of optax).
      penalty: what is charged for the KL, times beta (`FreeBits`, `Capacity`, or a
        function of your own, as in `penalties`); by default the KL.
      num_samples: posterior samples of each observation.
      kl: as for `elbo_terms`.
      estimator: gives value and gradient of the expectation (`types.Estimator`).

    Raises:
      ValueError: `beta` is not a scalar, or `num_samples` is below 1. When it is
        called: as `elbo_terms`, and on several devices for a penalty that compares
        examples with one another, or one that does not take `axis_name`.

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
        check_num_samples(self.num_samples)

    def __call__(self, params, batch, key, step, *, axis_name=None):
        """Value to maximise and figures to log. See `types.Objective`."""
        weight = at_step("beta", self.beta, step)
        x, labels = _parts(batch)
        posterior = encode(params, x, labels=labels)
        # The KL draws nothing: this objective and `elbo` have one value at one key.
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
        # Of the two means, not a third mean: XLA would go over all pixels again.
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
    """Mean bound of several samples, and figures to log, of the same samples."""
    x, labels = _parts(batch)
    found = terms(params, x, key, labels=labels, **options)
    return jnp.mean(found.bound), _logged(found)


class _Bound:
    """A bound whose options are the fields of the objective."""

    _terms: ClassVar[Callable[..., ImportanceWeightedTerms]]

    def __call__(self, params, batch, key, step, *, axis_name=None):
        """Value to maximise and figures to log. See `types.Objective`."""
        return _mean_bound(self._terms, params, batch, key, step, **vars(self))


@register_options(static=("num_samples",))
@dataclass(frozen=True, kw_only=True)
class IWAE(_Bound):
    """The importance-weighted bound as an objective of training.

    Attributes:
      num_samples: importance samples of each observation.
      reduction: of their log-weights: `estimators.Grouped` makes it MIWAE, `Combined`
        CIWAE, `Renyi` a Renyi bound.
      estimator: gives value and gradient of the bound (`types.Estimator`).

    Raises:
      ValueError: `num_samples` below 1. When it is called: as
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
    """The importance-weighted bound, its encoder trained on groups of samples.

    Attributes:
      num_samples: importance samples of each observation.
      num_groups: M, which must divide them.
      estimator: gives value and gradient of the bound (`types.Estimator`).

    Raises:
      ValueError: `num_samples` below 1, or `num_groups` does not divide it. When it is
        called: as `partially_importance_weighted_bound`.

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
    """A bound of several samples as an objective of training.

    Args:
      num_samples: importance samples of each observation.
      terms: `importance_weighted_terms`, which makes it `IWAE`,
        `partially_importance_weighted_terms`, which makes it `PIWAE`, or a function of
        your own of their arguments.
      **options: further options of that function.

    Returns:
      An `Objective`. It logs what `ELBO` logs, of the same samples. Of a function of
      your own it compares by identity.

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
    """Keyword that names the axis of devices; none on one device.

    Args:
      name: what the function is, for the message.
      function: an objective or a penalty.
      axis_name: the axis, or None.

    Returns:
      Keywords to call it with.

    Raises:
      ValueError: several devices, and a function that does not take it.

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
            "axis_name: average what it takes of the batch as a whole over that axis "
            "(jax.lax.pmean) before anything nonlinear; a mean over examples needs no "
            "more than to accept it"
        )
    return {"axis_name": axis_name}


def _check_reduction(reduction: Reduction, num_samples: int) -> None:
    """Raise if a reduction does not take a number of samples."""
    check_num_samples(num_samples)
    jax.eval_shape(reduction, jax.ShapeDtypeStruct((num_samples, 1), jnp.float32))


def _parts(batch: Array | Labelled) -> tuple[Array, Array | None]:
    return batch if isinstance(batch, Labelled) else (batch, None)


def _logged(terms: ELBOTerms | ImportanceWeightedTerms) -> Metrics:
    """Batch means of the terms; the ELBO at beta 1."""
    log_likelihood = jnp.mean(terms.log_likelihood)
    kl_divergence = jnp.mean(terms.kl_divergence)
    return {
        "elbo": log_likelihood - kl_divergence,
        "log_likelihood": log_likelihood,
        "kl_divergence": kl_divergence,
    }
