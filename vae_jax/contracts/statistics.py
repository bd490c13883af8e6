"""Statistical tests of expectations, robust to heavy tails of correct densities.

The averaged quantities are bounded or compared by rank; otherwise the test does not
apply. The standard error of a heavy-tailed mean cannot be estimated from a thousand
draws.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from vae_jax.types import Array, Key, PyTree

STANDARD_ERRORS = 5.0
# Events with a probability above this, divided by the number of draws, are observed.
RARE_EVENTS = 10.0
PILOT_STEP = 0.1
LARGEST_STEP = 1.0
LOG_RATIO_SPREAD = 2.0
LARGEST_RATIO = 50.0
LARGEST_SHARE_OF_ONE_DRAW = 0.25


class Finding(NamedTuple):
    """A test statistic with expectation zero.

    Attributes:
      off: its deviation from zero in standard errors.
      came: description of the actual and the expected result.
    """

    off: float
    came: str


class Path(NamedTuple):
    """Densities p_h along a line in parameter space, with samples.

    Attributes:
      log_density: maps h and samples to their log p_h, `[N, B]`.
      draw: maps h and a key to N samples of p_h for each of B examples.
    """

    log_density: Callable[[float, PyTree], Array]
    draw: Callable[[float, Key], PyTree]


def mean_off_zero(values: np.ndarray, epsilon: float) -> float:
    """Deviation of the mean of independent numbers from zero, in standard errors."""
    values = np.asarray(values, np.float64)
    # The error of constant numbers is that of rounding.
    rounding = 10 * epsilon * max(1.0, np.abs(values).mean())
    error = values.std(ddof=1) / np.sqrt(values.size)
    return _or_infinite(abs(values.mean()) / max(error, rounding))


def has_heavy_tail(values: np.ndarray) -> bool:
    """Whether a single number contributes a large share of the variance.

    If so, the standard error is unreliable.
    """
    squares = np.square(values - values.mean(axis=0))
    return bool(
        np.any(squares.max(axis=0) > LARGEST_SHARE_OF_ONE_DRAW * squares.sum(axis=0))
    )


def keeps_its_mass(path: Path, keys: Key, epsilon: float) -> Finding:
    """Test whether densities along a path have equal mass and match their samples.

    With l = log p_h - log p_0 and a bounded function g of l,

        E_0[sigmoid(l) g(l)] = E_h[sigmoid(-l) g(l)]

    since both are the integral of g p_0 p_h / (p_0 + p_h). This holds for any p_h and
    any tails, and needs neither a derivative nor a closed form. g = 1 detects a mass
    that changes at first order in h, g = tanh(l / 2) errors that the first misses by
    symmetry. The tolerance includes the contribution of events too rare to be observed.

    Args:
      path: the densities and their samples.
      keys: two keys, for the samples at both ends.
      epsilon: relative rounding error.

    Returns:
      The larger deviation of the two functions g.
    """
    here = path.draw(0.0, keys[0])
    log_p = np.asarray(path.log_density(0.0, here), np.float64)
    if not np.isfinite(log_p).all():
        return Finding(np.inf, "the log-density of its own draws is not finite")
    step = _step(lambda h: np.asarray(path.log_density(h, here), np.float64) - log_p)
    there = path.draw(step, keys[1])
    log_densities = [
        np.asarray(path.log_density(h, draws), np.float64)
        for h, draws in ((step, here), (step, there), (0.0, there))
    ]
    ratio_here = log_densities[0] - log_p
    ratio_there = log_densities[1] - log_densities[2]
    size = np.mean(np.abs(log_p)) + np.mean(np.abs(log_densities[1]))
    allowed = RARE_EVENTS / log_p.size + epsilon * (10 + size)
    found = []
    for g in (np.ones_like, lambda ratio: np.tanh(ratio / 2)):
        came = _sigmoid(ratio_here) * g(ratio_here)
        expected = _sigmoid(-ratio_there) * g(ratio_there)
        error = sum(
            values.mean(axis=1).var(ddof=1) / len(values) for values in (came, expected)
        )
        off = abs(came.mean() - expected.mean())
        text = (
            "an integral over the density and one with other parameters is "
            f"{came.mean():.4g} from draws of the first, expected "
            f"{expected.mean():.4g} as from draws of the second"
        )
        error = np.sqrt(error) + allowed / STANDARD_ERRORS
        found.append(Finding(_or_infinite(off / error), text))
    return max(found)


def _step(log_ratio: Callable[[float], np.ndarray]) -> float:
    """Choose a step with a moderate log-ratio for the most sensitive example."""

    def spread(step: float) -> float:
        ratios = np.clip(np.nan_to_num(log_ratio(step)), -LARGEST_RATIO, LARGEST_RATIO)
        ends = np.quantile(ratios, [0.1, 0.9], axis=0)
        return float(np.max(ends[1] - ends[0]))

    step = PILOT_STEP * LOG_RATIO_SPREAD / max(spread(PILOT_STEP), 1e-9)
    step = min(LARGEST_STEP, step)
    # If strongly nonlinear, the spread may grow faster than the step.
    for _ in range(8):
        if spread(step) <= 2 * LOG_RATIO_SPREAD:
            break
        step /= 2
    return step


def _sigmoid(value: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(value / 2))


def laws_differ(some: np.ndarray, others: np.ndarray, rounding: float) -> float:
    """Two-sample Kolmogorov-Smirnov statistic, scaled to standard errors.

    Twice the largest distance between the distribution functions, divided by
    sqrt(1/n + 1/m). For equal distributions, its tail is bounded by that of a normal
    variable (Massart 1990). Numbers that differ by rounding count as equal.

    Args:
      some: first sample, `[n]`.
      others: second sample, `[m]`.
      rounding: tolerance, relative to 1 + |value|.

    Returns:
      Difference of the distributions in standard errors.
    """
    some, others = np.sort(some), np.sort(others)
    if np.isnan(some).any() or np.isnan(others).any():
        return np.inf

    def lead(a: np.ndarray, b: np.ndarray) -> float:
        later = a + rounding * (1 + np.abs(a))
        below_b = np.searchsorted(b, later, side="right") / len(b)
        return np.max(np.searchsorted(a, a, side="right") / len(a) - below_b)

    distance = max(lead(some, others), lead(others, some))
    return float(2 * distance / np.sqrt(1 / len(some) + 1 / len(others)))


def _or_infinite(off: float) -> float:
    return float(np.nan_to_num(off, nan=np.inf))
