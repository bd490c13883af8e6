"""Exact means and variances of the estimators for simple integrands.

The variance of a score-function estimator with any baseline follows from six moments of
f and the score (`ScoreMoments`); that of the pathwise estimator requires a seventh.
`gaussian_moments` gives them in closed form for three integrands under N(mu, sigma^2),
`bernoulli_moments` for any function of one bit. All computations use NumPy in float64.
Unless stated otherwise, variances are those of one sample; divide by the number of
samples.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.polynomial import Polynomial

INTEGRANDS = ("quadratic", "exponential", "cos")


class ScoreMoments(NamedTuple):
    """Moments of f and s = d log q / d parameter for one parameter.

    Attributes:
      f: E[f].
      f2: E[f^2].
      fs: E[f s], the gradient.
      s2: E[s^2], the Fisher information.
      fs2: E[f s^2].
      f2s2: E[f^2 s^2].
      path2: E[(f' dx/d parameter)^2] if x is reparameterized, otherwise None.
    """

    f: float
    f2: float
    fs: float
    s2: float
    fs2: float
    f2s2: float
    path2: float | None = None


def gaussian_moments(
    integrand: str, *, mu: float, sigma: float, k: float
) -> dict[str, ScoreMoments]:
    """Moments under N(mu, sigma^2) of (x - k)^2, exp(-k x^2) or cos(k x).

    The scores are eps / sigma and (eps^2 - 1) / sigma with x = mu + sigma eps. Each
    integrand is a polynomial times exp(-c x^2 + i t x). The exponential tilts the
    density of eps to another Gaussian (with a complex mean for t != 0), whose moments
    are known.

    Args:
      integrand: `quadratic`, `exponential` or `cos`.
      mu: mean of x.
      sigma: standard deviation of x.
      k: the integrand's constant.

    Returns:
      `ScoreMoments` for `mu` and for `sigma`.

    Raises:
      ValueError: `integrand` is unknown, `sigma` is not positive, or the second moment
        of the exponential is infinite.

    Example:
      >>> from vae_jax.estimators.exact_variance import gaussian_moments
      >>> moments = gaussian_moments("quadratic", mu=1.0, sigma=1.5, k=-3.0)
      >>> print(round(moments["mu"].fs, 6))
      8.0
    """
    if sigma <= 0:
        raise ValueError(f"sigma must be positive, got {sigma}")
    x = Polynomial([mu, sigma])  # As a function of eps.
    if integrand == "quadratic":
        f, f2, slope2 = (
            [_Term((x - k) ** 2)],
            [_Term((x - k) ** 4)],
            [_Term(4 * (x - k) ** 2)],
        )
    elif integrand == "exponential":
        if 1 + 4 * k * sigma**2 <= 0:
            raise ValueError(
                "k of exp(-k x^2) must be above -1 / (4 sigma^2) = "
                f"{-1 / (4 * sigma**2):.4g}, or its second moment is infinite; got {k}"
            )
        one = Polynomial([1])
        f = [_Term(one, decay=k)]
        f2 = [_Term(one, decay=2 * k)]
        slope2 = [_Term(4 * k**2 * x**2, decay=2 * k)]
    elif integrand == "cos":
        f = [_Term(Polynomial([1]), frequency=k)]
        half = Polynomial([0.5])
        f2 = [_Term(half), _Term(half, frequency=2 * k)]
        slope2 = [_Term(half * k**2), _Term(-half * k**2, frequency=2 * k)]
    else:
        raise ValueError(
            f"integrand must be one of {', '.join(INTEGRANDS)}, got {integrand!r}"
        )

    def expectation(terms: Sequence[_Term], factor: Polynomial) -> float:
        return sum(_expectation(term, factor, mu, sigma) for term in terms)

    one, eps = Polynomial([1]), Polynomial([0, 1])
    scores = {"mu": eps / sigma, "sigma": (eps**2 - 1) / sigma}
    paths = {"mu": one, "sigma": eps}  # d x / d parameter.
    return {
        name: ScoreMoments(
            f=expectation(f, one),
            f2=expectation(f2, one),
            fs=expectation(f, score),
            s2=expectation([_Term(one)], score**2),
            fs2=expectation(f, score**2),
            f2s2=expectation(f2, score**2),
            path2=expectation(slope2, paths[name] ** 2),
        )
        for name, score in scores.items()
    }


def bernoulli_moments(*, logit: float, f0: float, f1: float) -> ScoreMoments:
    """Moments of a function of one bit, with the score of the logit, b - p.

    Args:
      logit: log-odds of a one.
      f0: f(0).
      f1: f(1).

    Returns:
      `ScoreMoments`.

    Example:
      >>> from vae_jax.estimators.exact_variance import bernoulli_moments
      >>> print(bernoulli_moments(logit=0.0, f0=0.0, f1=1.0).fs)
      0.25
    """
    p = 1 / (1 + np.exp(-logit))
    weights, f, score = np.array([1 - p, p]), np.array([f0, f1]), np.array([-p, 1 - p])

    def expectation(values: np.ndarray) -> float:
        return float(np.sum(weights * values))

    return ScoreMoments(
        f=expectation(f),
        f2=expectation(f**2),
        fs=expectation(f * score),
        s2=expectation(score**2),
        fs2=expectation(f * score**2),
        f2s2=expectation(f**2 * score**2),
    )


def reparameterization_variance(moments: ScoreMoments) -> float:
    """Variance of the pathwise estimator with respect to a parameter a.

        V = E[(f'(x) d/d a x)^2] - G^2

    with the gradient G = E[f s].

    Raises:
      ValueError: the moments have no `path2`: x is not reparameterized.
    """
    if moments.path2 is None:
        raise ValueError("moments must be those of a reparameterized x, got no path2")
    return moments.path2 - moments.fs**2


def score_function_variance(moments: ScoreMoments, *, baseline: float = 0.0) -> float:
    """Variance of the score-function estimator (f - b) s with a constant baseline.

        V = E[f^2 s^2] - 2 b E[f s^2] + b^2 E[s^2] - G^2

    with the gradient G = E[f s].

    Args:
      moments: moments of f and the score.
      baseline: b, a constant.

    Returns:
      The variance of one sample.

    Example:
      >>> from vae_jax.estimators import exact_variance
      >>> moments = exact_variance.gaussian_moments("quadratic", mu=1, sigma=1.5, k=-3)
      >>> print(round(exact_variance.score_function_variance(moments["mu"]), 2))
      371.53
    """
    second = moments.f2s2 - 2 * baseline * moments.fs2 + baseline**2 * moments.s2
    # Rounding must not make a variance of 0 negative.
    return max(second - moments.fs**2, 0.0)


def optimal_constant(moments: ScoreMoments) -> float:
    """Variance-minimising constant baseline, E[f s^2] / E[s^2]."""
    return moments.fs2 / moments.s2


def mean_baseline_variance(
    moments: ScoreMoments, *, num_baseline_samples: int
) -> float:
    """Variance with a baseline estimated from N samples of f.

        V = V_exact + Var(f) / N E[s^2]

    with V_exact the variance with the baseline b = E[f].

    Args:
      moments: moments of f and the score.
      num_baseline_samples: number N of samples for the baseline.

    Returns:
      The variance of one sample.

    Example:
      >>> from vae_jax.estimators import exact_variance
      >>> moments = exact_variance.bernoulli_moments(logit=0.0, f0=0.0, f1=1.0)
      >>> print(
      ...     exact_variance.mean_baseline_variance(moments, num_baseline_samples=1)
      ... )
      0.0625
    """
    noise = (moments.f2 - moments.f**2) / num_baseline_samples
    exact = score_function_variance(moments, baseline=moments.f)
    return exact + noise * moments.s2


def leave_one_out_variance(moments: ScoreMoments, *, num_samples: int) -> float:
    """Variance of the leave-one-out estimator with n samples in total.

    The estimator is a U-statistic with the kernel (f_1 - f_2)(s_1 - s_2) / 2. Its
    variance is

        V = 2 / (n (n - 1)) [2 (n - 2) z_1 + z_2]

    with z_1 the variance of the kernel's expectation given one sample and z_2 the
    variance of the kernel (Hoeffding 1948).

    Args:
      moments: moments of f and the score.
      num_samples: number n of samples, at least 2.

    Returns:
      The variance of the estimate from n samples.

    Example:
      >>> from vae_jax.estimators import exact_variance
      >>> moments = exact_variance.gaussian_moments("quadratic", mu=1, sigma=1.5, k=-3)
      >>> print(
      ...     round(
      ...         exact_variance.leave_one_out_variance(moments["mu"], num_samples=4), 2
      ...     )
      ... )
      48.67
    """
    n, m = num_samples, moments
    given_one = score_function_variance(m, baseline=m.f) / 4
    kernel = (m.f2s2 + m.f2 * m.s2 - 2 * m.f * m.fs2) / 2
    return 2 / (n * (n - 1)) * (2 * (n - 2) * given_one + kernel)


def measure_valued_variance(
    parameter: str, *, mu: float, sigma: float, k: float, coupled: bool
) -> float:
    """Variance of the measure-valued estimator on (x - k)^2 under N(mu, sigma^2).

    With a = mu - k, for mu and sigma with coupling, then without,

        V_mu = 4 a^2 (4 / pi - 1)
        V_sigma = 4 a^2 + 4 sigma^2
        V_mu = a^2 (8 / pi - 2) + (4 sigma^2) / pi
        V_sigma = 16 a^2 + 8 sigma^2

    Args:
      parameter: `mu` or `sigma`.
      mu: mean of x.
      sigma: standard deviation of x.
      k: the integrand's constant.
      coupled: see `measure_valued`.

    Returns:
      The variance of one sample.

    Example:
      >>> from vae_jax.estimators.exact_variance import measure_valued_variance
      >>> print(measure_valued_variance("sigma", mu=1, sigma=1.5, k=-3, coupled=True))
      73.0
    """
    a2, s2 = (mu - k) ** 2, sigma**2
    if parameter == "mu":
        return (
            a2 * (16 / np.pi - 4) if coupled else a2 * (8 / np.pi - 2) + 4 * s2 / np.pi
        )
    return 4 * a2 + 4 * s2 if coupled else 16 * a2 + 8 * s2


def arm_variance(*, logit: float, f0: float, f1: float) -> float:
    """Variance of ARM for one bit.

        V = 2/3 D^2 [1/8 - (1/2 - r)^3] - G^2

    with D = f(1) - f(0), r = min(p, 1 - p) and G = p (1 - p) D.

    Args:
      logit: log-odds of a one.
      f0: f(0).
      f1: f(1).

    Returns:
      The variance of one pair.

    Example:
      >>> from vae_jax.estimators.exact_variance import arm_variance
      >>> print(round(arm_variance(logit=0.0, f0=0.0, f1=1.0), 6))
      0.020833
    """
    rarer, difference, gradient = _bit(logit, f0, f1)
    return 2 / 3 * difference**2 * (1 / 8 - (0.5 - rarer) ** 3) - gradient**2


def disarm_variance(*, logit: float, f0: float, f1: float) -> float:
    """Variance of DisARM for one bit.

        V = 1/2 r (1 - r)^2 D^2 - G^2

    The symbols are defined in `arm_variance`.

    Args:
      logit: log-odds of a one.
      f0: f(0).
      f1: f(1).

    Returns:
      The variance of one pair.

    Example:
      >>> from vae_jax.estimators.exact_variance import disarm_variance
      >>> print(disarm_variance(logit=0.0, f0=0.0, f1=1.0))
      0.0
    """
    rarer, difference, gradient = _bit(logit, f0, f1)
    return max(rarer * (1 - rarer) ** 2 * difference**2 / 2 - gradient**2, 0.0)


def _bit(logit: float, f0: float, f1: float) -> tuple[float, float, float]:
    p = 1 / (1 + np.exp(-logit))
    return min(p, 1 - p), f1 - f0, p * (1 - p) * (f1 - f0)


class _Term(NamedTuple):
    """polynomial(eps) * exp(-decay x^2) * cos(frequency x)."""

    polynomial: Polynomial
    decay: float = 0.0
    frequency: float = 0.0


def _expectation(term: _Term, factor: Polynomial, mu: float, sigma: float) -> float:
    """E[factor(eps) term(eps)] with x = mu + sigma eps, by tilting the density of eps.

    exp(-c x^2 + i t x) exp(-eps^2 / 2) is, up to a constant, the density of a Gaussian
    with variance v = 1 / (1 + 2 c sigma^2) and mean v sigma (i t - 2 c mu).
    """
    c, t = term.decay, 1j * term.frequency
    variance = 1 / (1 + 2 * c * sigma**2)
    mean = variance * sigma * (t - 2 * c * mu)
    weight = np.sqrt(variance) * np.exp(t * mu - c * mu**2 + mean**2 / (2 * variance))
    coefficients = (term.polynomial * factor).coef
    moments = [1.0, mean]  # E[e^(n + 1)] = mean E[e^n] + n variance E[e^(n - 1)].
    for n in range(1, len(coefficients) - 1):
        moments.append(mean * moments[-1] + n * variance * moments[-2])
    return float(np.real(weight * np.dot(coefficients, moments[: len(coefficients)])))
