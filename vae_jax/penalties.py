"""What a training objective may charge for the KL in place of the KL itself.

A penalty is a function `(params, posterior, kl_divergence, step) -> scalar` in nats,
averaged over the batch; `elbo_objective` weighs it by beta. They fight posterior
collapse, or aim the rate at a target; evaluation knows nothing of them.
"""

from collections.abc import Callable

import jax.numpy as jnp
import optax

from vae_jax.priors import unit_kl
from vae_jax.spec import Params
from vae_jax.types import Array, Posterior

Penalty = Callable[[Params, Posterior, Array, Array], Array]


def mean_kl(
    params: Params, posterior: Posterior, kl_divergence: Array, step: Array
) -> Array:
    """The KL itself, averaged over the batch: the ELBO's own penalty."""
    return jnp.mean(kl_divergence)


def free_bits(nats: float | Array, *, per: str = "unit") -> Penalty:
    """The KL below an allowance costs as much as the allowance, so none is saved.

    per unit: sum_j max(nats, mean_b KL_j), the batch's mean KL of each unit (Kingma et
    al. 2016, eq. 15); per example: mean_b max(nats, KL_b), the whole KL of each.

    Args:
      nats: the allowance, of a unit or of an example.
      per: `unit` or `example`.

    Returns:
      The penalty. Its gradient is 0 where the KL is below the allowance.

    Raises:
      ValueError: an unknown `per`; when it is applied per unit, a posterior and prior
        that are not products over units.

    Example:
      >>> from vae_jax import elbo_objective, free_bits
      >>> objective = elbo_objective(penalty=free_bits(0.25))
    """
    if per not in ("unit", "example"):
        raise ValueError(f"per must be unit or example, got {per!r}")

    def penalty(
        params: Params, posterior: Posterior, kl_divergence: Array, step: Array
    ) -> Array:
        if per == "example":
            return jnp.mean(jnp.maximum(kl_divergence, nats))
        kls = unit_kl(posterior, params.spec.prior, params.prior)
        return jnp.sum(jnp.maximum(jnp.mean(kls, axis=0), nats))

    return penalty


def capacity(nats: float | Array | optax.Schedule) -> Penalty:
    """The distance of the mean KL from a target: |KL - C| (Burgess et al. 2018).

    Args:
      nats: C, a number or an optax schedule of the step, which is how it is meant.

    Returns:
      The penalty; with a large beta the rate follows the target.

    Example:
      >>> import optax
      >>> from vae_jax import capacity, elbo_objective
      >>> target = capacity(optax.linear_schedule(0.0, 25.0, 10_000))
      >>> objective = elbo_objective(beta=100.0, penalty=target)
    """

    def penalty(
        params: Params, posterior: Posterior, kl_divergence: Array, step: Array
    ) -> Array:
        target = nats(step) if callable(nats) else nats
        return jnp.abs(jnp.mean(kl_divergence) - target)

    return penalty


def cyclic_schedule(
    peak: float, *, period: int, rising_share: float = 0.5
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
