"""Part exact: measured and exact means and variances for known integrands."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax import estimators
from vae_jax.distributions import (
    BernoulliDistribution,
    DiagonalGaussianDistribution,
    gaussian,
)
from vae_jax.estimators import exact_variance
from vae_jax.types import Array, Estimator, Key

CHUNK = 10_000
BASELINE_SAMPLES = 4
COEFFICIENT_SAMPLES = 25
TARGET = (0.5, 2.0)  # Mean and standard deviation of the ELBO's target.
DEFAULT_K = {"quadratic": -3.0, "exponential": 0.7, "cos": 1.3}

# f(x, log_q, k).
FUNCTIONS: dict[str, Callable[..., Array]] = {
    "quadratic": lambda x, log_q, k: jnp.square(x - k),
    "exponential": lambda x, log_q, k: jnp.exp(-k * jnp.square(x)),
    "cos": lambda x, log_q, k: jnp.cos(k * x),
    "elbo": lambda x, log_q, k: log_target(x) - log_q,
}
# One object per name, so that rows with the same estimator share a compiled program.
CALLS: dict[str, Estimator] = {
    "mean_baseline": partial(
        estimators.mean_baseline, num_baseline_samples=BASELINE_SAMPLES
    ),
    "delta_control_variate": partial(
        estimators.delta_control_variate, num_coefficient_samples=COEFFICIENT_SAMPLES
    ),
    "measure_valued_uncoupled": partial(estimators.measure_valued, coupled=False),
    "constant_baseline": estimators.score_function,
    "optimal_constant": estimators.score_function,
}
BIASED = ("gumbel_softmax", "straight_through")


def log_target(x: Array) -> Array:
    """Log-density of the ELBO's target, without -log of its standard deviation."""
    mean, scale = TARGET
    return -0.5 * jnp.square((x - mean) / scale) - 0.5 * gaussian.LOG_2PI


class Case(NamedTuple):
    """One estimator on one integrand.

    Attributes:
      estimator: name of the estimator in the table.
      integrand: name of the integrand.
      parameters: parameters of the distribution: `mu` and `sigma`, or `logit`.
      k: constant of the integrand; None if it has none.
      num_samples: samples per estimate.
      exact: exact gradient and variance (None if unknown) of an estimate, by parameter;
        parameters not listed get no row.
      options: real-valued options of the estimator.
    """

    estimator: str
    integrand: str
    parameters: dict[str, float]
    k: float | None
    num_samples: int
    exact: dict[str, tuple[float, float | None]]
    options: dict[str, float] = {}  # noqa: RUF012

    @property
    def distribution(self) -> str:
        """Name of the distribution: `gaussian` or `bernoulli`."""
        return "bernoulli" if "logit" in self.parameters else "gaussian"


Moments = exact_variance.ScoreMoments
Variance = Callable[[str, Moments], float | None]


def score_function_cases(
    integrand: str,
    parameters: dict[str, float],
    moments: dict[str, Moments],
    *,
    k: float,
    num_samples: int,
) -> Iterator[Case]:
    """Yield the cases of the score-function estimators, for any distribution."""
    variance = exact_variance.score_function_variance

    def case(name: str, exact: Variance, count: int = num_samples, **options) -> Case:
        return Case(
            estimator=name,
            integrand=integrand,
            parameters=parameters,
            k=k,
            num_samples=count,
            exact={name: (m.fs, exact(name, m)) for name, m in moments.items()},
            options=options,
        )

    mean = next(iter(moments.values())).f
    several = max(num_samples, 2)
    yield case("score_function", lambda _, m: variance(m) / num_samples)
    yield case(
        "constant_baseline",
        lambda _, m: variance(m, baseline=mean) / num_samples,
        baseline=mean,
    )
    yield case(
        "mean_baseline",
        lambda _, m: (
            exact_variance.mean_baseline_variance(
                m, num_baseline_samples=BASELINE_SAMPLES
            )
            / num_samples
        ),
    )
    for parameter, known in moments.items():
        best = exact_variance.optimal_constant(known)
        row = case(
            "optimal_constant",
            lambda _, m, best=best: variance(m, baseline=best) / num_samples,
            baseline=best,
        )
        yield row._replace(exact={parameter: row.exact[parameter]})
    yield case("optimal_baseline", lambda _, m: None)
    yield case(
        "leave_one_out",
        lambda _, m: exact_variance.leave_one_out_variance(m, num_samples=several),
        several,
    )


def gaussian_cases(
    integrand: str, *, mu: float, sigma: float, k: float, num_samples: int
) -> Iterator[Case]:
    """Yield every estimator for N(mu, sigma^2) on one integrand."""
    moments = exact_variance.gaussian_moments(integrand, mu=mu, sigma=sigma, k=k)
    parameters = {"mu": mu, "sigma": sigma}
    quadratic = integrand == "quadratic"

    def measure_valued(coupled: bool) -> Variance:
        def exact(parameter: str, _: Moments) -> float | None:
            variance = exact_variance.measure_valued_variance(
                parameter, mu=mu, sigma=sigma, k=k, coupled=coupled
            )
            return variance / num_samples if quadratic else None

        return exact

    known: dict[str, Variance] = {
        "reparameterization": lambda _, m: (
            exact_variance.reparameterization_variance(m) / num_samples
        ),
        "delta_control_variate": lambda _, m: 0.0 if quadratic else None,
        "measure_valued": measure_valued(coupled=True),
        "measure_valued_uncoupled": measure_valued(coupled=False),
    }
    for name, exact in known.items():
        yield Case(
            estimator=name,
            integrand=integrand,
            parameters=parameters,
            k=k,
            num_samples=num_samples,
            exact={name: (m.fs, exact(name, m)) for name, m in moments.items()},
        )
    yield from score_function_cases(
        integrand, parameters, moments, k=k, num_samples=num_samples
    )


def elbo_cases(*, mu: float, sigma: float, num_samples: int) -> Iterator[Case]:
    """Yield the pathwise estimators on E_q[log p - log q], q = N(mu, sigma^2).

    With p = N(m, s^2) and d = 1/sigma - sigma/s^2 the gradients are (m - mu)/s^2 and d.
    At z = mu + sigma eps, log q(z) depends on the parameters only through -log sigma,
    so the total derivative has the variances of the derivative of log p:
    sigma^2/s^4 and (mu - m)^2/s^4 + 2 sigma^2/s^4. Without the score term they are d^2
    and (mu - m)^2/s^4 + 2 d^2.
    """
    mean, scale = TARGET
    d = 1 / sigma - sigma / scale**2
    gradients = {"mu": (mean - mu) / scale**2, "sigma": d}
    distance = (mu - mean) ** 2 / scale**4
    ratio = sigma**2 / scale**4
    known = {
        "reparameterization": {"mu": ratio, "sigma": distance + 2 * ratio},
        "path_derivative": {"mu": d**2, "sigma": distance + 2 * d**2},
    }
    for name, variances in known.items():
        yield Case(
            estimator=name,
            integrand="elbo",
            parameters={"mu": mu, "sigma": sigma},
            k=None,
            num_samples=num_samples,
            exact={p: (gradients[p], variances[p] / num_samples) for p in gradients},
        )


def bernoulli_cases(
    integrand: str, *, logit: float, k: float, num_samples: int
) -> Iterator[Case]:
    """Yield every estimator for a Bernoulli variable, with respect to its logit."""
    f0, f1 = (float(FUNCTIONS[integrand](np.float64(bit), 0.0, k)) for bit in (0, 1))
    bit = {"logit": logit, "f0": f0, "f1": f1}
    moments = exact_variance.bernoulli_moments(**bit)
    variances = {
        "arm": exact_variance.arm_variance(**bit) / num_samples,
        "disarm": exact_variance.disarm_variance(**bit) / num_samples,
        "rebar": None,
        "gumbel_softmax": None,
        "straight_through": None,
        "exact_enumeration": 0.0,
    }
    name_here = f"bernoulli_{integrand}"
    parameters = {"logit": logit}
    for name, variance in variances.items():
        yield Case(
            estimator=name,
            integrand=name_here,
            parameters=parameters,
            k=k,
            num_samples=num_samples,
            exact={"logit": (moments.fs, variance)},
        )
    yield from score_function_cases(
        name_here, parameters, {"logit": moments}, k=k, num_samples=num_samples
    )


def measure(case: Case, key: Key, *, num_draws: int) -> estimators.Moments:
    """Estimate the moments of a case's gradient, by parameter."""
    names = list(FUNCTIONS)
    return jax.device_get(
        _moments(
            key,
            {name: jnp.asarray(value) for name, value in case.parameters.items()},
            names.index(case.integrand.removeprefix("bernoulli_")),
            0.0 if case.k is None else case.k,
            case.options,
            call=CALLS.get(case.estimator) or getattr(estimators, case.estimator),
            num_samples=case.num_samples,
            num_draws=num_draws,
        )
    )


@partial(jax.jit, static_argnames=("call", "num_samples", "num_draws"))
def _moments(
    key: Key,
    parameters: dict[str, Array],
    function: Array,
    k: Array,
    options: dict[str, Any],
    *,
    call: Estimator,
    num_samples: int,
    num_draws: int,
) -> estimators.Moments:
    """Estimate moments; `function` is traced, so an estimator compiles only once."""

    def integrand(z: Array, log_q: Array) -> Array:
        return jax.lax.switch(function, list(FUNCTIONS.values()), z[..., 0], log_q, k)

    def draw(key: Key) -> dict[str, Array]:
        def value(parameters: dict[str, Array]) -> Array:
            estimate = call(
                integrand,
                _distribution(parameters),
                key,
                num_samples=num_samples,
                **options,
            )
            return estimate[0]

        return jax.grad(value)(parameters)

    return estimators.gradient_moments(
        draw, key, num_draws=num_draws, chunk_size=CHUNK
    ).parameters


def _distribution(parameters: dict[str, Array]):
    """One-dimensional distribution with a batch of one."""
    if "logit" in parameters:
        return BernoulliDistribution(parameters["logit"].reshape(1, 1))
    return DiagonalGaussianDistribution(
        parameters["mu"].reshape(1, 1), 2 * jnp.log(parameters["sigma"]).reshape(1, 1)
    )


def rows_of(case: Case, measured: estimators.Moments) -> list[dict[str, Any]]:
    """One row for each parameter whose exact gradient is known."""
    rows = []
    for parameter, (exact_mean, exact_value) in case.exact.items():
        mean, mean_error, variance, variance_error = (
            float(getattr(measured, name)[parameter])
            for name in (
                "mean",
                "mean_standard_error",
                "variance",
                "variance_standard_error",
            )
        )
        rows.append(
            {
                "part": "exact",
                "estimator": case.estimator,
                "integrand": case.integrand,
                "distribution": case.distribution,
                "parameter": parameter,
                "k": case.k,
                "num_samples": case.num_samples,
                "mean": mean,
                "mean_standard_error": mean_error,
                "exact_mean": exact_mean,
                "mean_z": z_score(mean, exact_mean, mean_error),
                "unbiased": case.estimator not in BIASED,
                "variance": variance,
                "variance_standard_error": variance_error,
                "exact_variance": exact_value,
                "variance_z": None
                if exact_value is None
                else z_score(variance, exact_value, variance_error),
            }
        )
    return rows


def z_score(measured: float, exact: float, error: float) -> float:
    """Difference in standard errors, which are at least the float32 rounding error."""
    rounding = 1e-5 * max(abs(exact), 1e-3)
    return (measured - exact) / max(error, rounding)


def largest_z(rows: list[dict[str, Any]]) -> float:
    """Largest |z| over means of unbiased estimators and all known variances."""
    scores = [row["mean_z"] for row in rows if row["unbiased"]]
    scores += [row["variance_z"] for row in rows if row["variance_z"] is not None]
    return max(map(abs, scores))
