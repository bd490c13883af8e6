"""The statistics of the checker on laws that SciPy knows: no false alarm, and power."""

import numpy as np
import pytest
import scipy.stats

from vae_jax.contracts.statistics import (
    STANDARD_ERRORS,
    Path,
    has_heavy_tail,
    keeps_its_mass,
    laws_differ,
)

NORMAL, CAUCHY = scipy.stats.norm, scipy.stats.cauchy
EPSILON = 1e-7


def bit_log_prob(h, y):
    return y * (3 * h + 1) - np.logaddexp(0, 3 * h + 1)


def rare_bit_log_prob(h, y):
    return y * (3 * h - 8) - np.logaddexp(0, 3 * h - 8)


def drawn(rate, rng, shape):
    return (rng.random(shape) < 1 / (1 + np.exp(-rate))).astype(float)


# name: (log p_h(y), draws of p_h)
CORRECT = {
    "normal, scale": (
        lambda h, y: NORMAL.logpdf(y, 0, np.exp(h)),
        lambda h, rng, shape: np.exp(h) * rng.standard_normal(shape),
    ),
    "cauchy, location": (
        lambda h, y: CAUCHY.logpdf(y, h),
        lambda h, rng, shape: h + rng.standard_cauchy(shape),
    ),
    "lognormal, scale": (
        lambda h, y: scipy.stats.lognorm.logpdf(y, 2 * np.exp(h)),
        lambda h, rng, shape: np.exp(2 * np.exp(h) * rng.standard_normal(shape)),
    ),
    "uniform, location": (
        lambda h, y: np.where((h < y) & (y < h + 1), 0.0, -np.inf),
        lambda h, rng, shape: h + rng.random(shape),
    ),
    "bit": (bit_log_prob, lambda h, rng, shape: drawn(3 * h + 1, rng, shape)),
    "rare bit": (rare_bit_log_prob, lambda h, rng, s: drawn(3 * h - 8, rng, s)),
}
WRONG = {
    "no normalizer": (
        lambda h, y: -0.5 * np.square(y * np.exp(-h)),
        CORRECT["normal, scale"][1],
    ),
    "draws a tenth wider": (
        CORRECT["normal, scale"][0],
        lambda h, rng, shape: 1.1 * np.exp(h) * rng.standard_normal(shape),
    ),
    "draws wider, location": (
        lambda h, y: NORMAL.logpdf(y, h),
        lambda h, rng, shape: h + 1.3 * rng.standard_normal(shape),
    ),
    "a third of the log-density": (
        lambda h, y: bit_log_prob(h, y) / 3,
        CORRECT["bit"][1],
    ),
    "not a number": (
        lambda h, y: np.where(h > 0, np.nan, NORMAL.logpdf(y)),
        lambda h, rng, shape: rng.standard_normal(shape),
    ),
}


def finding(log_density, draw, seed):
    def drawn(h, key):
        return draw(h, np.random.default_rng(key), (1024, 3))

    return keeps_its_mass(Path(log_density, drawn), (2 * seed, 2 * seed + 1), EPSILON)


@pytest.mark.parametrize("name", CORRECT)
def test_no_tail_of_a_correct_density_raises_an_alarm(name):
    off = [finding(*CORRECT[name], seed).off for seed in range(50)]
    assert max(off) < 4 < STANDARD_ERRORS


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_mass_or_wrong_draws_are_found(name):
    for seed in range(5):
        assert finding(*WRONG[name], seed).off > STANDARD_ERRORS


def test_laws_are_compared_by_rank():
    rng = np.random.default_rng(0)
    for _ in range(50):
        some, others = rng.standard_cauchy((2, 1000))
        assert laws_differ(some, others, 1e-6) < STANDARD_ERRORS
        assert laws_differ(some, others + 2, 1e-6) > STANDARD_ERRORS
    exact = 2 * scipy.stats.ks_2samp(some, others).statistic / np.sqrt(2 / 1000)
    assert laws_differ(some, others, 0.0) == pytest.approx(exact)


def test_numbers_that_differ_by_rounding_are_one_value():
    bits = np.random.default_rng(0).integers(0, 2, 1000) * 3.0
    assert laws_differ(bits, bits + 1e-7, 1e-6) == 0
    assert laws_differ(bits, bits + np.nan, 1e-6) == np.inf


def test_a_tail_is_heavy_where_one_draw_makes_the_variance():
    rng = np.random.default_rng(0)
    assert not has_heavy_tail(rng.standard_normal((1000, 2)) ** 2)
    assert not has_heavy_tail(np.zeros((1000, 1)))
    assert has_heavy_tail(rng.standard_cauchy((1000, 2)))
