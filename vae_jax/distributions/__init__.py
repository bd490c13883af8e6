"""Densities on plain arrays: `log_prob`, `sample`, `kl_divergence`, `entropy`.

Every function sums over the last axis, works under `jit`, `grad` and `vmap`, and
computes in the dtype of its inputs. All figures are in nats.
"""

from vae_jax.distributions import bernoulli, continuous_bernoulli, gaussian

__all__ = ["bernoulli", "continuous_bernoulli", "gaussian"]
