"""Gradient estimators for expectations E_q[f(z)].

All follow `types.Estimator`: the value is the Monte Carlo estimate from the samples, or
a sum over fixed points (`sigma_points`, `exact_enumeration`), and the gradient depends
on the estimator. Options of an estimator are set with `functools.partial`. Estimators
apply to a model's ELBO (`elbo(..., estimator=leave_one_out)`) and to any other
expectation. Mohamed, Rosca, Figurnov & Mnih 2020 is a survey.
"""

from vae_jax.estimators.contract import value_only
from vae_jax.estimators.control_variate import delta_control_variate
from vae_jax.estimators.discrete import (
    arm,
    disarm,
    exact_enumeration,
    gumbel_softmax,
    rebar,
    straight_through,
)
from vae_jax.estimators.measure_valued import measure_valued
from vae_jax.estimators.moments import GradientMoments, Moments, gradient_moments
from vae_jax.estimators.pathwise import (
    doubly_reparameterized,
    path_derivative,
    reparameterization,
)
from vae_jax.estimators.reductions import (
    Combined,
    Grouped,
    Renyi,
    log_mean_exp,
    sample_mean,
)
from vae_jax.estimators.score_function import (
    baseline_loss,
    leave_one_out,
    mean_baseline,
    optimal_baseline,
    score_function,
    vimco,
)
from vae_jax.estimators.sigma_points import sigma_points

__all__ = [
    "GradientMoments",
    "Moments",
    "arm",
    "baseline_loss",
    "Combined",
    "delta_control_variate",
    "disarm",
    "doubly_reparameterized",
    "exact_enumeration",
    "gradient_moments",
    "Grouped",
    "gumbel_softmax",
    "leave_one_out",
    "log_mean_exp",
    "mean_baseline",
    "measure_valued",
    "optimal_baseline",
    "path_derivative",
    "rebar",
    "Renyi",
    "reparameterization",
    "sample_mean",
    "score_function",
    "sigma_points",
    "straight_through",
    "value_only",
    "vimco",
]
