"""Hamiltonian Monte Carlo and the No-U-Turn sampler, from blackjax."""

import jax
import jax.numpy as jnp

from vae_jax.extras import import_extra
from vae_jax.mcmc.chains import Chain, LogDensity, run
from vae_jax.options import require_at_least
from vae_jax.types import Array, Key


def hmc(
    log_density: LogDensity,
    initial: Array,
    key: Key,
    *,
    num_samples: int,
    num_warmup: int = 500,
    num_leapfrog: int = 10,
) -> Chain:
    """Hamiltonian Monte Carlo with trajectories of fixed length (Neal 2011).

        H(z, r) = -log p(z) + 1/2 r^T M^-1 r with r ~ N(0, M)
        a = min(1, exp(H(z, r) - H(z', r')))

    with the end z', r' of the trajectory, which is accepted with probability a, and a
    diagonal M that is adapted during the warm-up.

    Args:
      log_density: differentiable log-density of the state `[L]`.
      initial: initial state, `[L]`.
      key: PRNG key, consumed once.
      num_samples: number T of samples.
      num_warmup: number of warm-up steps, which adapt step size and scales.
      num_leapfrog: number of leapfrog steps per sample.

    Returns:
      `Chain`.

    Raises:
      ValueError: `num_samples` or `num_warmup` is below 1.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax.mcmc import hmc
      >>> log_density = lambda z: -0.5 * jnp.sum(z**2)
      >>> start, key = jnp.zeros(2), jax.random.key(0)
      >>> hmc(log_density, start, key, num_samples=10, num_warmup=20).samples.shape
      (10, 2)
    """
    options = {"num_integration_steps": num_leapfrog}
    return _adapted("hmc", options, log_density, initial, key, num_samples, num_warmup)


def nuts(
    log_density: LogDensity,
    initial: Array,
    key: Key,
    *,
    num_samples: int,
    num_warmup: int = 500,
) -> Chain:
    """No-U-Turn sampler (Hoffman & Gelman 2014).

    Under `vmap`, every step costs as many gradients as the chain with the longest
    trajectory.

    Args:
      log_density: differentiable log-density of the state `[L]`.
      initial: initial state, `[L]`.
      key: PRNG key, consumed once.
      num_samples: number T of samples.
      num_warmup: number of warm-up steps, which adapt step size and scales.

    Returns:
      `Chain`.

    Raises:
      ValueError: `num_samples` or `num_warmup` is below 1.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax.mcmc import nuts
      >>> def sample(start, key):
      ...     log_density = lambda z: -0.5 * jnp.sum(z**2)
      ...     return nuts(log_density, start, key, num_samples=1000)
      >>> jax.eval_shape(sample, jnp.zeros(2), jax.random.key(0)).samples.shape
      (1000, 2)
    """
    return _adapted("nuts", {}, log_density, initial, key, num_samples, num_warmup)


def _adapted(
    name: str,
    options: dict[str, int],
    log_density: LogDensity,
    initial: Array,
    key: Key,
    num_samples: int,
    num_warmup: int,
) -> Chain:
    """Run a Hamiltonian sampler of blackjax after window adaptation."""
    blackjax = import_extra("blackjax", "mcmc")
    keep = import_extra("blackjax.adaptation.base", "mcmc").get_filter_adapt_info_fn()
    algorithm = getattr(blackjax, name)
    require_at_least("num_warmup", num_warmup)
    warmup_key, sample_key = jax.random.split(key)
    # Without the filter, blackjax stores the whole warm-up.
    adaptation = blackjax.window_adaptation(
        algorithm,
        log_density,
        adaptation_info_fn=keep,
        **options,
    )
    (state, parameters), _ = adaptation.run(warmup_key, initial, num_warmup)
    kernel = algorithm(log_density, **parameters).step

    def step(state, key: Key):
        state, info = kernel(key, state)
        return state, (state.position, info.acceptance_rate, info.is_divergent)

    samples, acceptance, diverged = run(step, state, sample_key, num_samples, 0)
    return Chain(samples, jnp.mean(acceptance), jnp.sum(diverged))
