"""Lower and upper bounds on log p(x) by annealed importance sampling, in nats.

Chains move from the prior to the posterior through the densities

    f_t(z) = p(z) p(x|z)^t for t in [0, 1]

and accumulate importance weights (Neal 2001). For any number of temperatures the mean
weight is unbiased for p(x), so its log is a lower bound on log p(x) in expectation. In
reverse, from an exact posterior sample, the mean weight is unbiased for
1 / p(x), which gives an upper bound (Grosse, Ghahramani & Adams 2015). Unlike
importance sampling, neither requires a good q(z|x), so annealing can evaluate decoders
independently of their encoders (Wu, Burda, Salakhutdinov & Grosse 2017).

The chains of an example are the sample axis of `z` `[C, B, L]`. All randomness of
example i comes from `fold_in(child, first + i)`, with a child key per function
(`evaluation_keys`). C * B latents are decoded at once; split a large data set into
parts and pass `first`.
"""

from vae_jax.annealing.evidence import (
    AnnealedEvidence,
    BidirectionalEvidence,
    annealed_log_evidence,
    bidirectional_log_evidence,
    require_continuous_latents,
    reverse_annealed_log_evidence,
)
from vae_jax.annealing.path import sigmoid_schedule
from vae_jax.annealing.samples import annealed_posterior_samples

__all__ = [
    "AnnealedEvidence",
    "BidirectionalEvidence",
    "annealed_log_evidence",
    "annealed_posterior_samples",
    "bidirectional_log_evidence",
    "require_continuous_latents",
    "reverse_annealed_log_evidence",
    "sigmoid_schedule",
]
