"""Replacements for the KL term: free bits, capacity, total correlation, MMD.

A penalty counteracts posterior collapse, sets a target for the rate, or reweights parts
of the KL. Penalties apply to training only; evaluation does not use them.
"""

from dataclasses import KW_ONLY, dataclass
from functools import reduce
from operator import add
from typing import Protocol

import jax
import jax.numpy as jnp

from vae_jax.aggregate import KLDecomposition, kl_decomposition, posterior_mmd
from vae_jax.distributions import closed_form_kl, unit_kl
from vae_jax.model import build_prior
from vae_jax.options import register_options, require_scalar
from vae_jax.schedules import Scheduled, at_step
from vae_jax.spec import Params
from vae_jax.types import Array, Key, Posterior


class Penalty(Protocol):
    """A replacement for the KL term of the ELBO."""

    def __call__(
        self,
        params: Params,
        posterior: Posterior,
        kl_divergence: Array,
        key: Key,
        step: Array,
        /,
        *,
        axis_name: str | None = None,
    ) -> Array:
        """Return the penalty, averaged over the batch; `ELBO` multiplies it by beta.

        Args:
          params: model parameters, with the prior conditioned on the labels.
          posterior: q(z|x) of the batch.
          kl_divergence: KL of each example or its estimate, `[B]`.
          key: PRNG key, consumed once.
          step: training step.
          axis_name: name of the device axis, set on several devices; see
            `types.Objective`.
        """
        ...


def mean_kl(params, posterior, kl_divergence, key, step, *, axis_name=None) -> Array:
    """KL divergence averaged over the batch, the default penalty. See `Penalty`."""
    return jnp.mean(kl_divergence)


def _batch_mean(values: Array, axis_name: str | None) -> Array:
    """Mean over the examples `[B, ...]` of all devices.

    A nonlinear function of this mean has the same value on every device, and the
    devices' average gradient equals that of a single device.
    """
    mean = jnp.mean(values, axis=0)
    return mean if axis_name is None else jax.lax.pmean(mean, axis_name)


def _require_one_device(name: str, axis_name: str | None) -> None:
    """Raise ValueError if the examples that a penalty compares span several devices.

    Raises:
      ValueError: the axis has several devices.
    """
    if axis_name is not None and jax.lax.axis_size(axis_name) > 1:
        raise ValueError(
            f"{name} compares the examples of a batch with one another, but they are "
            f"split over {jax.lax.axis_size(axis_name)} devices: train on one device"
        )


@register_options(static=("per",))
@dataclass(frozen=True)
class FreeBits:
    """Free bits: a lower threshold on the KL, below which its gradient is 0.

        penalty = sum_j max(nats, 1/B sum_b KL_bj)

    per unit, with the KL of unit j of example b (Kingma et al. 2016, eq. 15), or

        penalty = 1/B sum_b max(nats, KL_b)

    per example, with the total KL of example b. Only the closed-form KL is used: the
    maximum of an estimate is biased upwards, and its gradient is not 0 below the
    threshold.

    When called, it raises a `ValueError` if the KL between posterior and prior has no
    closed form or, per unit, if the posterior does not factorize over units.

    Attributes:
      nats: threshold per unit or per example; a number or a traced scalar.
      per: `unit` or `example`.

    Raises:
      ValueError: `nats` is not a scalar, or `per` is unknown.

    Example:
      >>> from vae_jax import ELBO, FreeBits
      >>> objective = ELBO(penalty=FreeBits(0.25))
      >>> objective == ELBO(penalty=FreeBits(0.25))
      True
    """

    nats: float | Array
    _: KW_ONLY
    per: str = "unit"

    def __post_init__(self):
        require_scalar("nats", self.nats)
        if self.per not in ("unit", "example"):
            raise ValueError(f"per must be unit or example, got {self.per!r}")

    def __call__(self, params, posterior, kl_divergence, key, step, *, axis_name=None):
        """See `Penalty`."""
        # Checked again: unflattening bypasses __post_init__, so a stack of settings
        # outside `vmap` would reach this point.
        require_scalar("nats", self.nats)
        prior = build_prior(params)
        if self.per == "unit":
            kls = unit_kl(posterior, prior)
            return jnp.sum(jnp.maximum(_batch_mean(kls, axis_name), self.nats))
        closed_form = closed_form_kl(type(posterior), type(prior))
        if closed_form is None:
            raise ValueError(
                "free bits of each example need a closed-form KL, and "
                f"{type(posterior).__name__} and {params.spec.prior} have none: "
                "register one (register_kl), choose another pair, or set a target for "
                "the mean KL (capacity)"
            )
        kls = closed_form(posterior, prior)
        return jnp.mean(jnp.maximum(kls, self.nats))


@register_options()
@dataclass(frozen=True)
class Capacity:
    """Distance of the mean KL from a target (Burgess et al. 2018).

        penalty = |1/B sum_b KL_b - C|

    If the KL has no closed form, it is estimated from samples, and near the target the
    distance is about the standard error of the estimate instead of 0. With a large
    beta, the rate follows the target.

    Attributes:
      nats: target C: a number, a traced scalar, or a schedule of the step (the intended
        use).

    Raises:
      ValueError: `nats` is not a scalar.

    Example:
      >>> from vae_jax import ELBO, Capacity, LinearWarmup
      >>> target = LinearWarmup(25.0, num_steps=10_000)
      >>> objective = ELBO(beta=100.0, penalty=Capacity(target))
    """

    nats: Scheduled

    def __post_init__(self):
        if not callable(self.nats):
            require_scalar("nats", self.nats)

    def __call__(self, params, posterior, kl_divergence, key, step, *, axis_name=None):
        """See `Penalty`."""
        target = at_step("nats", self.nats, step)
        return jnp.abs(_batch_mean(kl_divergence, axis_name) - target)


@register_options()
@dataclass(frozen=True)
class TotalCorrelation:
    """Separately weighted parts of the KL (beta-TCVAE).

        penalty = alpha * I(x; z) + weight * TC + gamma * sum_j KL(q(z_j) || p(z_j))
        TC = KL(q(z) || prod_j q(z_j))

    with alpha = `mutual_information` and gamma = `unit_kl` (Chen, Li, Grosse & Duvenaud
    2018, eq. 4), estimated from one sample per example (two for discrete latents). With
    all weights at 1, the expectation is the KL. The parts are those of the batch; see
    `aggregate.kl_decomposition` on the size of the data set. When called, it raises a
    `ValueError` on several devices, or if the posterior does not factorize over units.

    Attributes:
      weight: weight of the total correlation (beta in the paper); a number or a traced
        scalar.
      mutual_information: weight of the mutual information of x and z.
      unit_kl: weight of the sum of the units' KLs.

    Raises:
      ValueError: a weight is not a scalar.

    Example:
      >>> from vae_jax import ELBO, TotalCorrelation
      >>> objective = ELBO(penalty=TotalCorrelation(6.0))
    """

    weight: float | Array
    _: KW_ONLY
    mutual_information: float | Array = 1.0
    unit_kl: float | Array = 1.0

    def __post_init__(self):
        for name, share in zip(KLDecomposition._fields, self._weights, strict=True):
            require_scalar(f"the weight of {name}", share)

    @property
    def _weights(self) -> tuple[float | Array, ...]:
        return self.mutual_information, self.weight, self.unit_kl

    def __call__(self, params, posterior, kl_divergence, key, step, *, axis_name=None):
        """See `Penalty`."""
        _require_one_device("total_correlation", axis_name)
        parts = kl_decomposition(params, posterior, key)
        weighted = zip(self._weights, parts, strict=True)
        return reduce(add, (share * part for share, part in weighted))


@register_options()
@dataclass(frozen=True)
class MaximumMeanDiscrepancy:
    """MMD between aggregate posterior and prior, plus a weighted KL.

        penalty = kl_weight * KL(q(z|x) || p(z)) + weight * MMD^2(q(z), p(z))

    with one sample per example and as many from the prior (`aggregate.posterior_mmd`).
    InfoVAE (Zhao, Song & Ermon 2019) with parameters alpha and lambda corresponds to
    weight = alpha + lambda - 1 and kl_weight = 1 - alpha. With kl_weight = 0, it is the
    WAE of Tolstikhin et al. 2018, also for a point-mass posterior. When called, it
    raises a `ValueError` on several devices, or for a batch of one example.

    Attributes:
      weight: weight of the squared MMD, which is not in nats; a number or a traced
        scalar.
      kl_weight: weight of the KL.

    Raises:
      ValueError: a weight is not a scalar.

    Example:
      >>> from vae_jax import ELBO, MaximumMeanDiscrepancy
      >>> objective = ELBO(penalty=MaximumMeanDiscrepancy(100.0))
    """

    weight: float | Array
    _: KW_ONLY
    kl_weight: float | Array = 0.0

    def __post_init__(self):
        require_scalar("weight", self.weight)
        require_scalar("kl_weight", self.kl_weight)

    def __call__(self, params, posterior, kl_divergence, key, step, *, axis_name=None):
        """See `Penalty`."""
        _require_one_device("maximum_mean_discrepancy", axis_name)
        distance = posterior_mmd(params, posterior, key)
        return self.kl_weight * jnp.mean(kl_divergence) + self.weight * distance


free_bits = FreeBits
capacity = Capacity
total_correlation = TotalCorrelation
maximum_mean_discrepancy = MaximumMeanDiscrepancy
