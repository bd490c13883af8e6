"""Log p(x) from below and from above by annealed importance sampling, in nats.

Chains are led from the prior to the posterior along p(z) p(x|z)^t, t from 0 to 1, and
weighted by what they meet on the way (Neal 2001). However short the way, the mean
weight is unbiased for p(x), so that its log lies below log p(x) in expectation; led
back from an exact posterior sample it is unbiased for 1 / p(x), which bounds from above
(Grosse, Ghahramani & Adams 2015). Unlike importance sampling neither needs a good
q(z|x): this is the instrument for decoders whose encoder is not to be trusted (Wu,
Burda, Salakhutdinov & Grosse 2017).

The chains of an image are the sample axis of `z` `[C, B, L]`. All randomness of image
i comes from `fold_in(child, first + i)` with a child of the key for each function
(`evaluation_keys`). C * B latents are decoded at once: a large data set is given in
parts, with `first`.
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

__all__ = [
    "AnnealedEvidence",
    "BidirectionalEvidence",
    "annealed_log_evidence",
    "bidirectional_log_evidence",
    "require_continuous_latents",
    "reverse_annealed_log_evidence",
    "sigmoid_schedule",
]
