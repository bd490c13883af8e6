"""Score-function estimators, which use only values of f and the gradient of log q.

    d/d phi E_q[f(z)] = E_q[f(z) d/d phi log q_phi(z)]

(Williams 1992: REINFORCE). They apply to any distribution with a density, including
discrete ones, and to integrands without a derivative. Their variance grows with f^2 and
the number of latents. They differ in the baseline subtracted from f, which reduces the
variance; a baseline independent of the sample leaves the expectation unchanged.
"""

import jax
import jax.numpy as jnp

from vae_jax.estimators.contract import (
    Integrand,
    Reduction,
    along_parameters,
    constant_draws,
    expand_to_score,
    nonzero,
    require_mean,
    sample_mean,
    scores,
    values_of,
    with_auxiliary,
    with_surrogate,
)
from vae_jax.options import require_at_least
from vae_jax.types import Array, Key, Posterior, PyTree


def score_function(
    integrand: Integrand,
    posterior: Posterior,
    key: Key,
    *,
    num_samples: int = 1,
    reduction: Reduction = sample_mean,
    has_aux: bool = False,
    baseline: PyTree = None,
) -> PyTree:
    """Score-function estimate with an optional baseline (REINFORCE).

        g = 1/S sum_s (f(z_s) - b) d/d phi log q_phi(z_s)

    (Mohamed, Rosca, Figurnov & Mnih 2020, section 4). Unbiased for any b that does not
    depend on z. For a reduction R of several samples, the weight of sample s is
    R(f_1, ..., f_S) minus R with f_s replaced by b; for the mean this is (f_s - b) / S.
    Cost: one evaluation of f per sample, without its derivative.

    Args:
      integrand: f, called with latents `[S, B, L]` and their log q `[S, B]`; returns
        `[S, B]` or a pytree of such arrays.
      posterior: q, a batch of B distributions.
      key: PRNG key, consumed once.
      num_samples: number S of samples.
      reduction: reduction of `[S, B]` to `[B]` with R(f + c) = R(f) + c for constant c.
      has_aux: whether f also returns auxiliary outputs (`types.Estimator`).
      baseline: b, a number or `[B]`, possibly a learned function of x (with
        `baseline_loss`); treated as a constant. If f returns a tree, a tree of
        baselines. None is equivalent to 0.

    Returns:
      The estimates, `[B]` for each `[S, B]`.

    Raises:
      ValueError: `num_samples` is below 1; q has no density; the baseline has the wrong
        shape, or a tree structure other than that of the integrand's values.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax.estimators import score_function
      >>> from vae_jax.distributions import BernoulliDistribution
      >>> def expectation(logits):
      ...     f = lambda z, log_q: z[..., 0]
      ...     q = BernoulliDistribution(logits)
      ...     return score_function(f, q, jax.random.key(0), num_samples=100_000)[0]
      >>> print(jax.grad(expectation)(jnp.zeros((1, 1))).round(2))
      [[0.25]]
    """
    z, log_q = constant_draws(posterior, key, num_samples, "score_function")
    values, aux = values_of(integrand, z, log_q, has_aux)
    estimates = _with_scores(values, log_q, _like(baseline, values), reduction)
    return with_auxiliary(estimates, aux, has_aux)


def mean_baseline(
    integrand: Integrand,
    posterior: Posterior,
    key: Key,
    *,
    num_samples: int = 1,
    reduction: Reduction = sample_mean,
    has_aux: bool = False,
    num_baseline_samples: int = 1,
) -> PyTree:
    """Score-function estimate with the mean of f as the baseline.

        g = 1/S sum_s (f(z_s) - b) d/d phi log q_phi(z_s)
        b = 1/N sum_n f(y_n) with y_n ~ q(z)

    The N samples y are separate; with the estimate's own samples, the gradient would be
    scaled by (S - 1) / S. Unbiased. The variance is that with the exact mean plus
    Var(f) / N E[score^2] / S. Cost: S + N evaluations of f.

    Args:
      integrand: f, as in `score_function`.
      posterior: q, a batch of B distributions.
      key: PRNG key, consumed once.
      num_samples: number S of samples.
      reduction: reduction of `[S, B]` to `[B]`.
      has_aux: whether f also returns auxiliary outputs (`types.Estimator`).
      num_baseline_samples: number N of samples for the mean.

    Returns:
      The estimates, `[B]` for each `[S, B]`.

    Raises:
      ValueError: a number of samples is below 1; q has no density.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax.estimators import mean_baseline
      >>> from vae_jax.distributions import BernoulliDistribution
      >>> q = BernoulliDistribution(jnp.zeros((2, 3)))
      >>> mean_baseline(lambda z, _: z.sum(-1), q, jax.random.key(0)).shape
      (2,)
    """
    key, baseline_key = jax.random.split(key)
    name = "mean_baseline"
    other_draws = constant_draws(posterior, baseline_key, num_baseline_samples, name)
    others, _ = values_of(integrand, *other_draws, has_aux)
    z, log_q = constant_draws(posterior, key, num_samples, name)
    values, aux = values_of(integrand, z, log_q, has_aux)
    baselines = jax.tree.map(sample_mean, others)
    estimates = _with_scores(values, log_q, baselines, reduction)
    return with_auxiliary(estimates, aux, has_aux)


def leave_one_out(
    integrand: Integrand,
    posterior: Posterior,
    key: Key,
    *,
    num_samples: int = 2,
    reduction: Reduction = sample_mean,
    has_aux: bool = False,
) -> PyTree:
    """Score-function estimate with the mean of the other samples as the baseline.

        g = 1 / (S - 1) sum_s (f(z_s) - m) d/d phi log q_phi(z_s)
        m = 1/S sum_s f(z_s)

    RLOO (Kool, van Hoof & Welling 2019; Salimans & Knowles 2014). For another reduction
    R, the weight of sample s is R(f_1, ..., f_S) minus R with f_s replaced by the mean
    of the others.
    With `log_mean_exp` and f = log w, whose mean is the log of the geometric mean of
    the weights, this is VIMCO (Mnih & Rezende 2016). Unbiased. Cost: S evaluations of
    f; for reductions other than the mean, also S^2 additions.

    Args:
      integrand: f, as in `score_function`.
      posterior: q, a batch of B distributions.
      key: PRNG key, consumed once.
      num_samples: number S of samples, at least 2.
      reduction: reduction of `[S, B]` to `[B]`.
      has_aux: whether f also returns auxiliary outputs (`types.Estimator`).

    Returns:
      The estimates, `[B]` for each `[S, B]`.

    Raises:
      ValueError: `num_samples` is below 2; q has no density.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax.estimators import leave_one_out
      >>> from vae_jax.distributions import BernoulliDistribution
      >>> q = BernoulliDistribution(jnp.zeros((2, 3)))
      >>> leave_one_out(lambda z, _: z.sum(-1), q, jax.random.key(0)).shape
      (2,)
    """
    require_at_least(
        "num_samples",
        num_samples,
        2,
        ": leave_one_out compares a sample with the others",
    )
    z, log_q = constant_draws(posterior, key, num_samples, "leave_one_out")
    values, aux = values_of(integrand, z, log_q, has_aux)
    others = jax.tree.map(
        lambda v: (jnp.sum(v, axis=0) - v) / (num_samples - 1), values
    )
    estimates = _with_scores(values, log_q, others, reduction)
    return with_auxiliary(estimates, aux, has_aux)


# The name in the literature on multi-sample bounds.
vimco = leave_one_out


def optimal_baseline(
    integrand: Integrand,
    posterior: Posterior,
    key: Key,
    *,
    num_samples: int = 1,
    reduction: Reduction = sample_mean,
    has_aux: bool = False,
    num_baseline_samples: int = 32,
) -> PyTree:
    """Score-function estimate with the variance-minimising constant baseline.

        b = E_q[f(z) s(z)^2] / E_q[s(z)^2]
        s(z) = d/d phi log q_phi(z)

    separately for each parameter of q (Mohamed, Rosca, Figurnov & Mnih 2020, section
    7), estimated from N separate samples. Unbiased. Cost: S + N evaluations of f, and a
    score per sample and parameter.

    Args:
      integrand: f, as in `score_function`.
      posterior: q, a batch of B distributions.
      key: PRNG key, consumed once.
      num_samples: number S of samples.
      reduction: must be the mean.
      has_aux: whether f also returns auxiliary outputs (`types.Estimator`).
      num_baseline_samples: number N of samples for the baselines.

    Returns:
      The estimates, `[B]` for each `[S, B]`.

    Raises:
      ValueError: a number of samples is below 1; q has no density; `reduction` is not
        the mean.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax.estimators import optimal_baseline
      >>> from vae_jax.distributions import BernoulliDistribution
      >>> q = BernoulliDistribution(jnp.zeros((2, 3)))
      >>> optimal_baseline(lambda z, _: z.sum(-1), q, jax.random.key(0)).shape
      (2,)
    """
    name = "optimal_baseline"
    require_mean(reduction, name, "leave_one_out")
    key, baseline_key = jax.random.split(key)
    other_z, other_log_q = constant_draws(
        posterior, baseline_key, num_baseline_samples, name
    )
    others, _ = values_of(integrand, other_z, other_log_q, has_aux)
    others = jax.lax.stop_gradient(others)
    other_scores = scores(posterior, other_z)
    z, log_q = constant_draws(posterior, key, num_samples, name)
    sample_scores = scores(posterior, z)

    def estimate(values: Array, others: Array) -> Array:
        def gradient(score: Array, other_score: Array) -> Array:
            square = jnp.square(other_score)
            weighted = jnp.sum(expand_to_score(others, square) * square, axis=0)
            baseline = weighted / nonzero(jnp.sum(square, axis=0))
            return sample_mean((expand_to_score(values, score) - baseline) * score)

        gradients = jax.tree.map(gradient, sample_scores, other_scores)
        return with_surrogate(
            sample_mean(values), along_parameters(gradients, posterior)
        )

    values, aux = values_of(integrand, z, log_q, has_aux)
    return with_auxiliary(jax.tree.map(estimate, values, others), aux, has_aux)


def baseline_loss(baseline: Array, estimate: Array) -> Array:
    """Mean squared error of a learned baseline, averaged over the batch.

        loss = 1/B sum_i (estimate_i - b(x_i))^2

    Minimised by b(x) = E_q[f]. Its gradient flows only to the baseline, so it can be
    added to any loss (Mnih & Gregor 2014: NVIL).

    Args:
      baseline: b(x), `[B]`.
      estimate: the estimator's value for the same x, `[B]`.

    Returns:
      A scalar.

    Raises:
      ValueError: the shapes differ, as for a network's `[B, 1]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.estimators import baseline_loss
      >>> print(baseline_loss(jnp.zeros(2), jnp.array([1.0, 3.0])))
      5.0
    """
    if jnp.shape(baseline) != jnp.shape(estimate):
        raise ValueError(
            f"baseline and estimate must have the same shape, got "
            f"{list(jnp.shape(baseline))} and {list(jnp.shape(estimate))}"
        )
    return jnp.mean(jnp.square(jax.lax.stop_gradient(estimate) - baseline))


def _with_scores(
    values: PyTree, log_q: Array, baselines: PyTree, reduction: Reduction
) -> PyTree:
    """R(f) with its score-function gradient; baselines are `[S, B]` or `[B]`."""

    def estimate(values: Array, baseline: Array) -> Array:
        weights = _improvements(*jax.lax.stop_gradient((values, baseline)), reduction)
        return with_surrogate(reduction(values), jnp.sum(weights * log_q, axis=0))

    return jax.tree.map(estimate, values, baselines)


def _improvements(values: Array, baseline: Array, reduction: Reduction) -> Array:
    """R(v) - R(v with v_s replaced by b_s) for every s, `[S, B]`."""
    if reduction is sample_mean:  # The same without S^2 additions.
        return (values - baseline) / values.shape[0]
    # Center the values: a common constant cancels, but would cost precision.
    center = jnp.mean(values, axis=0)
    values = values - center
    baseline = jnp.broadcast_to(baseline, values.shape) - center
    replaced = jnp.where(
        jnp.eye(values.shape[0], dtype=bool)[:, :, None], baseline[:, None], values
    )
    return reduction(values) - jax.vmap(reduction)(replaced)


def _like(baseline: PyTree, values: PyTree) -> PyTree:
    """Expand a baseline to the tree structure of the values and check its shapes."""
    if baseline is None:
        return jax.tree.map(lambda _: 0.0, values)
    structure = jax.tree.structure(values)
    if structure.num_leaves == 1:
        baseline = structure.unflatten(jax.tree.leaves(baseline))
    if jax.tree.structure(baseline) != structure:
        raise ValueError(
            "baseline must have an entry for each term of the integrand, as its values "
            f"({structure}), got {jax.tree.structure(baseline)}"
        )
    for part in jax.tree.leaves(baseline):
        batch = jax.tree.leaves(values)[0].shape[1:]
        if jnp.shape(part) not in ((), batch):
            raise ValueError(
                f"baseline must be a number or of shape {batch}, one for each "
                f"distribution of the batch, got shape {jnp.shape(part)}"
            )
    return baseline
