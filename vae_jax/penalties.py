"""Replacements for the KL term: free bits, capacity, total correlation, MMD.

Penalties fight posterior collapse, aim the rate at a target, or charge for parts of it;
evaluation knows nothing of them.
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
        """Charge in nats, averaged over the batch; `ELBO` weighs it by beta.

        Args:
          params: model parameters; the prior's part is taken at the labels.
          posterior: q(z|x) of the batch.
          kl_divergence: KL of each example or its estimate, `[B]`.
          key: PRNG key, consumed once.
          step: number of the training step.
          axis_name: the axis of devices, as for `types.Objective`; given where there
            are several.
        """
        ...


def mean_kl(params, posterior, kl_divergence, key, step, *, axis_name=None) -> Array:
    """The KL itself, averaged over the batch: the ELBO's own penalty. See `Penalty`."""
    return jnp.mean(kl_divergence)


def _batch_mean(values: Array, axis_name: str | None) -> Array:
    """Mean over the examples `[B, ...]` of all devices.

    What is nonlinear in it is then the same on each of them, and the average of their
    gradients that of one device.
    """
    mean = jnp.mean(values, axis=0)
    return mean if axis_name is None else jax.lax.pmean(mean, axis_name)


def _require_one_device(name: str, axis_name: str | None) -> None:
    """Raise if examples that a penalty compares are on several devices.

    Raises:
      ValueError: the axis has several devices.
    """
    if axis_name is not None and jax.lax.axis_size(axis_name) > 1:
        raise ValueError(
            f"{name} compares the examples of a batch with one another, and those of "
            f"{jax.lax.axis_size(axis_name)} devices are apart: train on one device"
        )


@register_options(static=("per",))
@dataclass(frozen=True)
class FreeBits:
    """KL below an allowance costs as much as the allowance, so that none is saved.

    per unit: sum_j max(nats, mean_b KL_j), the batch's mean KL of each unit (Kingma et
    al. 2016, eq. 15); per example: mean_b max(nats, KL_b), the whole KL of each. Always
    of the KL in closed form: the maximum of an estimate is too large on average, and
    its gradient is not 0 below the allowance.

    Its gradient is 0 where the KL is below the allowance. Called with a posterior and
    prior without a closed-form KL, or per unit with one that is not a product over
    units, it raises a `ValueError`.

    Attributes:
      nats: the allowance, of a unit or of an example; a number or a traced scalar.
      per: `unit` or `example`.

    Raises:
      ValueError: `nats` is not a scalar, or an unknown `per`.

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
        # Again: a stack of settings that no `vmap` takes apart is built of leaves.
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
                "register one (register_kl), choose another pair, or aim the mean KL "
                "at a target (capacity)"
            )
        kls = closed_form(posterior, prior)
        return jnp.mean(jnp.maximum(kls, self.nats))


@register_options()
@dataclass(frozen=True)
class Capacity:
    """Distance of the mean KL from a target: |KL - C| (Burgess et al. 2018).

    KL is the mean over the batch. Where it is estimated from samples, for want of a
    closed form, so is the distance: within a standard error of the target it is about
    that error, not 0. With a large beta the rate follows the target.

    Attributes:
      nats: C, a number, a traced scalar, or a schedule of the step, which is how it is
        meant.

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
    """Parts of the KL at weights of their own (beta-TCVAE).

    alpha MI + weight TC + gamma unit KL (Chen, Li, Grosse & Duvenaud 2018, eq. 4), from
    one sample of each example (two of bits); all at 1 give the KL in expectation. The
    parts are those of the batch: `aggregate.kl_decomposition` says what the size of the
    data set would add to them. Called on several devices, or with a posterior that is
    not a product over units, it raises a `ValueError`.

    Attributes:
      weight: of the total correlation, their beta; a number or a traced scalar.
      mutual_information: weight of the mutual information of x and z.
      unit_kl: weight of the KLs of the units.

    Raises:
      ValueError: a weight that is not a scalar.

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
    """MMD of the aggregate posterior and the prior, beside a share of the KL.

    kl_weight KL + weight MMD^2(q(z), p(z)), one sample of each example against as many
    of the prior (`aggregate.posterior_mmd`). InfoVAE (Zhao, Song & Ermon 2019) with
    alpha and lambda has the weights alpha + lambda - 1 and 1 - alpha; without the KL it
    is the WAE of Tolstikhin et al. 2018, also for a point mass. Called on several
    devices, or with a batch of one example, it raises a `ValueError`.

    Attributes:
      weight: of the squared MMD, which is not in nats; a number or a traced scalar.
      kl_weight: of the KL.

    Raises:
      ValueError: a weight that is not a scalar.

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
