"""Whether chains agree, and how many independent samples they are worth."""

from vae_jax.extras import import_extra
from vae_jax.types import Array


def r_hat(samples: Array) -> Array:
    """Whether chains agree: near 1 if so; above 1.01 they are to run longer.

    The rank-normalised split version: every chain is cut in two, so that one that
    drifts is seen too, values are replaced by normal scores of their ranks, and the
    greater of the statistics of values and of distances from the median is taken
    (Gelman & Rubin 1992; Vehtari et al. 2021).

    Args:
      samples: `[T, C, ...]`: T >= 4 steps, of C chains.

    Returns:
      One for each of the other axes, `[...]`.

    Example:
      >>> import jax
      >>> from vae_jax.mcmc import r_hat
      >>> samples = jax.random.normal(jax.random.key(0), (500, 4, 2))
      >>> print(jax.jit(r_hat)(samples) < 1.01)
      [ True  True]
    """
    diagnostics = import_extra("blackjax.diagnostics", "mcmc")
    found = diagnostics.rhat(samples, chain_axis=1, sample_axis=0)
    return found.reshape(samples.shape[2:])


def effective_sample_size(samples: Array) -> Array:
    """How many independent samples would know the mean as well.

    C T / (1 + 2 sum_t rho_t) with the autocorrelations rho_t over all chains, summed
    as long as sums of neighbours are positive and fall (Geyer 1992; Vehtari et al.
    2021, section 3.2).

    Args:
      samples: `[T, C, ...]`: T steps of C chains.

    Returns:
      One for each of the other axes, `[...]`; 0 for what never moved.

    Example:
      >>> import jax
      >>> from vae_jax.mcmc import effective_sample_size
      >>> samples = jax.random.normal(jax.random.key(0), (500, 4, 2))
      >>> jax.eval_shape(effective_sample_size, samples).shape
      (2,)
    """
    diagnostics = import_extra("blackjax.diagnostics", "mcmc")
    found = diagnostics.effective_sample_size(samples, chain_axis=1, sample_axis=0)
    return found.reshape(samples.shape[2:])
