"""Replacements for the KL term: free bits, capacity, total correlation, MMD.

A penalty is a function `(params, posterior, kl_divergence, key, step, *, axis_name) ->
scalar` in nats, averaged over the batch; `elbo_objective` weighs it by beta. The
prior's part of `params` is taken at the labels, where there are any. `axis_name` is
the axis of devices, as for `types.Objective`, and given where there are several.
Penalties fight posterior collapse, aim the rate at a target, or charge for parts of it;
evaluation knows nothing of them.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from vae_jax.aggregate import KLDecomposition, kl_decomposition, posterior_mmd
from vae_jax.objectives import require_scalar
from vae_jax.priors import closed_form_kl, unit_kl
from vae_jax.spec import Params
from vae_jax.types import Array, Key, Posterior

Penalty = Callable[..., Array]


def mean_kl(
    params: Params,
    posterior: Posterior,
    kl_divergence: Array,
    key: Key,
    step: Array,
    *,
    axis_name: str | None = None,
) -> Array:
    """The KL itself, averaged over the batch: the ELBO's own penalty."""
    return jnp.mean(kl_divergence)


def _batch_mean(values: Array, axis_name: str | None) -> Array:
    """Mean over the examples `[B, ...]` of all devices.

    What is nonlinear in it is then the same on each of them, and the average of their
    gradients that of one device.
    """
    mean = jnp.mean(values, axis=0)
    return mean if axis_name is None else jax.lax.pmean(mean, axis_name)


def _require_one_device(name: str, axis_name: str | None) -> None:
    """Refuses a penalty that compares each example with all the others.

    Raises:
      ValueError: the axis has several devices.
    """
    if axis_name is not None and jax.lax.axis_size(axis_name) > 1:
        raise ValueError(
            f"{name} compares the examples of a batch with one another, and those of "
            f"{jax.lax.axis_size(axis_name)} devices are apart: train on one device"
        )


def free_bits(nats: float | Array, *, per: str = "unit") -> Penalty:
    """The KL below an allowance costs as much as the allowance, so none is saved.

    per unit: sum_j max(nats, mean_b KL_j), the batch's mean KL of each unit (Kingma et
    al. 2016, eq. 15); per example: mean_b max(nats, KL_b), the whole KL of each. Always
    of the KL in closed form: the maximum of an estimate is too large on average, and
    its gradient is not 0 below the allowance.

    Args:
      nats: the allowance, of a unit or of an example.
      per: `unit` or `example`.

    Returns:
      The penalty. Its gradient is 0 where the KL is below the allowance. It refuses a
      posterior and prior without a closed-form KL, and per unit those that are not
      products over units, with a `ValueError`.

    Raises:
      ValueError: `nats` is not a scalar, or an unknown `per`.

    Example:
      >>> from vae_jax import elbo_objective, free_bits
      >>> objective = elbo_objective(penalty=free_bits(0.25))
    """
    require_scalar("nats", nats)
    if per not in ("unit", "example"):
        raise ValueError(f"per must be unit or example, got {per!r}")

    def penalty(
        params: Params,
        posterior: Posterior,
        kl_divergence: Array,
        key: Key,
        step: Array,
        *,
        axis_name: str | None = None,
    ) -> Array:
        prior = params.spec.prior
        if per == "unit":
            kls = unit_kl(posterior, prior, params.prior)
            return jnp.sum(jnp.maximum(_batch_mean(kls, axis_name), nats))
        closed_form = closed_form_kl(type(posterior), type(prior))
        if closed_form is None:
            raise ValueError(
                "free bits of each example need a closed-form KL, and "
                f"{type(posterior).__name__} and {prior} have none: register one "
                "(register_kl), choose another pair, or aim the mean KL at a target "
                "(capacity)"
            )
        kls = closed_form(posterior, prior, params.prior)
        return jnp.mean(jnp.maximum(kls, nats))

    return penalty


def capacity(nats: float | Array | optax.Schedule) -> Penalty:
    """The distance of the mean KL from a target: |KL - C| (Burgess et al. 2018).

    KL is the mean over the batch. Where it is estimated from samples, for want of a
    closed form, so is the distance: within a standard error of the target it is about
    that error, not 0.

    Args:
      nats: C, a number or an optax schedule of the step, which is how it is meant.

    Returns:
      The penalty; with a large beta the rate follows the target.

    Raises:
      ValueError: `nats` is not a scalar.

    Example:
      >>> import optax
      >>> from vae_jax import capacity, elbo_objective
      >>> target = capacity(optax.linear_schedule(0.0, 25.0, 10_000))
      >>> objective = elbo_objective(beta=100.0, penalty=target)
    """
    if not callable(nats):
        require_scalar("nats", nats)

    def penalty(
        params: Params,
        posterior: Posterior,
        kl_divergence: Array,
        key: Key,
        step: Array,
        *,
        axis_name: str | None = None,
    ) -> Array:
        target = nats(step) if callable(nats) else nats
        require_scalar("nats", target)
        return jnp.abs(_batch_mean(kl_divergence, axis_name) - target)

    return penalty


def total_correlation(
    weight: float | Array,
    *,
    mutual_information: float | Array = 1.0,
    unit_kl: float | Array = 1.0,
) -> Penalty:
    """The parts of the KL at weights of their own (beta-TCVAE).

    alpha MI + weight TC + gamma unit KL (Chen, Li, Grosse & Duvenaud 2018, eq. 4), from
    one sample of each example (two of bits); all at 1 give the KL in expectation. The
    parts are those of the batch: `aggregate.kl_decomposition` says what the size of the
    data set would add to them.

    Args:
      weight: of the total correlation, their beta.
      mutual_information: of the mutual information of x and z.
      unit_kl: of the KLs of the units.

    Returns:
      The penalty. It refuses several devices, and a posterior that is not a product
      over units, with a `ValueError`.

    Raises:
      ValueError: a weight that is not a scalar.

    Example:
      >>> from vae_jax import elbo_objective, total_correlation
      >>> objective = elbo_objective(penalty=total_correlation(6.0))
    """
    weights = KLDecomposition(mutual_information, weight, unit_kl)
    for name, share in weights._asdict().items():
        require_scalar(f"the weight of {name}", share)

    def penalty(
        params: Params,
        posterior: Posterior,
        kl_divergence: Array,
        key: Key,
        step: Array,
        *,
        axis_name: str | None = None,
    ) -> Array:
        _require_one_device("total_correlation", axis_name)
        parts = kl_decomposition(params, posterior, key)
        return sum(share * part for share, part in zip(weights, parts, strict=True))

    return penalty


def maximum_mean_discrepancy(
    weight: float | Array, *, kl_weight: float | Array = 0.0
) -> Penalty:
    """The MMD of the aggregate posterior and the prior, beside a share of the KL.

    kl_weight KL + weight MMD^2(q(z), p(z)), one sample of each example against as many
    of the prior (`aggregate.posterior_mmd`). InfoVAE (Zhao, Song & Ermon 2019) with
    alpha and lambda has the weights alpha + lambda - 1 and 1 - alpha; without the KL it
    is the WAE of Tolstikhin et al. 2018, also for a point mass.

    Args:
      weight: of the squared MMD, which is not in nats.
      kl_weight: of the KL.

    Returns:
      The penalty. It refuses several devices, and a batch of one example, with a
      `ValueError`.

    Raises:
      ValueError: a weight that is not a scalar.

    Example:
      >>> from vae_jax import elbo_objective, maximum_mean_discrepancy
      >>> objective = elbo_objective(penalty=maximum_mean_discrepancy(100.0))
    """
    require_scalar("weight", weight)
    require_scalar("kl_weight", kl_weight)

    def penalty(
        params: Params,
        posterior: Posterior,
        kl_divergence: Array,
        key: Key,
        step: Array,
        *,
        axis_name: str | None = None,
    ) -> Array:
        _require_one_device("maximum_mean_discrepancy", axis_name)
        distance = posterior_mmd(params, posterior, key)
        return kl_weight * jnp.mean(kl_divergence) + weight * distance

    return penalty


def warmup_schedule(peak: float | Array, *, num_steps: float | Array) -> optax.Schedule:
    """Beta that rises linearly from 0 and stays (Bowman et al. 2016 rise it too).

    peak min(1, step / num_steps). What `optax.linear_schedule` does, and both numbers
    may be traced, so that `vmap` can sweep them.

    Args:
      peak: the value that it reaches.
      num_steps: steps of the rise; 0 for none.

    Returns:
      An optax schedule, a function of the step.

    Example:
      >>> from vae_jax import warmup_schedule
      >>> beta = warmup_schedule(2.0, num_steps=100)
      >>> print(*(float(beta(step)) for step in (0, 50, 100, 150)))
      0.0 1.0 2.0 2.0
    """
    # A rise of no steps is over at step 0, without 0 / 0.
    return lambda step: (
        peak * jnp.where(step < num_steps, step / jnp.maximum(num_steps, 1), 1.0)
    )


def cyclic_schedule(
    peak: float | Array, *, period: int, rising_share: float = 0.5
) -> optax.Schedule:
    """Beta that rises from 0 to its peak, stays, and starts again (Fu et al. 2019).

    Args:
      peak: the highest value.
      period: steps of a cycle.
      rising_share: part of a cycle in which it rises linearly.

    Returns:
      An optax schedule, a function of the step.

    Raises:
      ValueError: `period` below 1 or `rising_share` outside (0, 1].

    Example:
      >>> from vae_jax import cyclic_schedule
      >>> beta = cyclic_schedule(1.0, period=100)
      >>> print(*(float(beta(step)) for step in (0, 25, 50, 99, 100)))
      0.0 0.5 1.0 1.0 0.0
    """
    if period < 1:
        raise ValueError(f"period must be at least 1, got {period}")
    if not 0 < rising_share <= 1:
        raise ValueError(f"rising_share must be in (0, 1], got {rising_share}")

    def schedule(step: Array) -> Array:
        position = (step % period) / (rising_share * period)
        return peak * jnp.minimum(position, 1.0)

    return schedule
