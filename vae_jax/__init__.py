"""A functional JAX research codebase for variational autoencoders."""

from vae_jax.checkpoint import load_run
from vae_jax.diagnostics import (
    ActiveUnits,
    AggregatePosterior,
    InferenceGap,
    active_units,
    aggregate_posterior,
    fit_posterior,
    inference_gap,
    kl_per_unit,
)
from vae_jax.estimators import reparameterization
from vae_jax.evaluation import LogEvidence, evaluate, log_evidence
from vae_jax.likelihoods import (
    Bernoulli,
    ContinuousBernoulli,
    Gaussian,
    PerPixelGaussian,
)
from vae_jax.model import (
    decode,
    encode,
    generate,
    init,
    interpolate,
    log_prior,
    reconstruct,
    reparameterize,
    trainable,
)
from vae_jax.networks import MLP, ConvolutionalDecoder, ConvolutionalEncoder, Linear
from vae_jax.objectives import (
    ELBOTerms,
    elbo,
    elbo_terms,
    importance_weighted_bound,
    log_weight,
)
from vae_jax.parallel import (
    jit_step,
    pmap_step,
    shard_batch,
    shard_epoch,
    shard_map_step,
)
from vae_jax.penalties import capacity, cyclic_schedule, free_bits
from vae_jax.posteriors import DiagonalGaussian, FactorizedBernoulli, PointMass
from vae_jax.priors import (
    DiagonalGaussianPrior,
    FactorizedBernoulliPrior,
    MixtureOfGaussians,
    StandardNormal,
    VampPrior,
    register_kl,
)
from vae_jax.spec import ModelSpec, Params
from vae_jax.training import (
    Epoch,
    TrainState,
    elbo_objective,
    empty_history,
    init_state,
    shuffled_epoch,
    train_epoch,
    train_step,
)

__all__ = [
    "MLP",
    "ActiveUnits",
    "AggregatePosterior",
    "Bernoulli",
    "ContinuousBernoulli",
    "ConvolutionalDecoder",
    "ConvolutionalEncoder",
    "DiagonalGaussian",
    "DiagonalGaussianPrior",
    "ELBOTerms",
    "Epoch",
    "FactorizedBernoulli",
    "FactorizedBernoulliPrior",
    "Gaussian",
    "InferenceGap",
    "Linear",
    "LogEvidence",
    "MixtureOfGaussians",
    "ModelSpec",
    "Params",
    "PerPixelGaussian",
    "PointMass",
    "StandardNormal",
    "TrainState",
    "VampPrior",
    "active_units",
    "aggregate_posterior",
    "capacity",
    "cyclic_schedule",
    "decode",
    "elbo",
    "elbo_objective",
    "elbo_terms",
    "empty_history",
    "encode",
    "evaluate",
    "fit_posterior",
    "free_bits",
    "generate",
    "importance_weighted_bound",
    "inference_gap",
    "init",
    "init_state",
    "interpolate",
    "jit_step",
    "kl_per_unit",
    "load_run",
    "log_evidence",
    "log_prior",
    "log_weight",
    "pmap_step",
    "reconstruct",
    "register_kl",
    "reparameterization",
    "reparameterize",
    "shard_batch",
    "shard_epoch",
    "shard_map_step",
    "shuffled_epoch",
    "train_epoch",
    "train_step",
    "trainable",
]
