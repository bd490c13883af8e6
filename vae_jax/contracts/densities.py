"""Lines about densities: consistency with samples, KL divergences, and total mass.

No closed form is needed. Estimated expectations must lie within five standard errors.
The keys are fixed, so a verdict does not change between calls.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax.contracts.shapes import prior_draws
from vae_jax.contracts.statistics import (
    STANDARD_ERRORS,
    Finding,
    Path,
    has_heavy_tail,
    keeps_its_mass,
    mean_off_zero,
)
from vae_jax.contracts.subject import (
    Outcome,
    Subject,
    along,
    direction,
    is_discrete,
    kl_of,
    normal_like,
    random_of,
    why_without_density,
)
from vae_jax.model import decode, encode, log_prior
from vae_jax.spec import Params
from vae_jax.types import Array, Distribution, Key, Latents, Posterior

NUM_DIRECTIONS = 2
SHRINK = 0.8
SMALLEST_EFFECTIVE_SHARE = 0.1
SMALLEST_SHARE_OF_A_GAUSSIAN = 0.5
LARGEST_RATIO = 10.0
MASS_TOLERANCE = 0.1
HEAVY_TAIL = "single draws dominate the mean of {}: its tail is too heavy for a test"


def log_q_agrees(subject: Subject, key: Key) -> Outcome:
    """Compare log q from `sample_and_log_prob` with `log_prob` of the same samples."""
    posterior = subject.posterior()
    if reason := why_without_density(posterior):
        return Outcome(None, "", reason)
    if not posterior.has_log_prob:
        return Outcome(None, "", f"{type(posterior).__name__} has no log_prob")
    z, log_q = posterior.sample_and_log_prob(key, subject.few)
    came, expected = np.asarray(log_q), np.asarray(posterior.log_prob(z))
    # The two may sum in different orders, or invert an ill-conditioned transform.
    allowed = np.sqrt(subject.epsilon) * (1 + np.abs(expected))
    return _same(came, expected, allowed, ("sample_and_log_prob", "log_prob(z)"))


def samples_agree(subject: Subject, key: Key) -> Outcome:
    """Compare the samples of `sample` and `sample_and_log_prob` at the same key."""
    posterior, count = subject.posterior(), subject.few
    with_log_q, _ = posterior.sample_and_log_prob(key, count)
    came, expected = (
        np.concatenate(jax.tree.leaves(z), axis=-1)
        for z in (posterior.sample(key, count), with_log_q)
    )
    allowed = np.sqrt(subject.epsilon) * (1 + np.abs(expected))
    return _same(came, expected, allowed, ("sample", "sample_and_log_prob"), unit="")


def _same(
    came: np.ndarray,
    expected: np.ndarray,
    allowed: np.ndarray,
    names: tuple[str, str],
    unit: str = " nats",
) -> Outcome:
    difference = np.abs(came - expected)
    passed = bool(np.all(difference <= allowed))
    at = np.unravel_index(np.argmax(np.nan_to_num(difference, nan=np.inf)), came.shape)
    figure = f"largest difference {difference[at]:.2g}{unit}"
    detail = (
        f"{names[0]} gave {came[at]:.6g}, expected {expected[at]:.6g} as in "
        f"{names[1]}, within {allowed[at]:.2g}"
    )
    return Outcome(passed, figure, "" if passed else detail)


def _log_ratios(subject: Subject, key: Key) -> np.ndarray:
    """Log q(z|x) - log p(z) of samples of q, `[N, B]`."""
    z, log_q = subject.posterior().sample_and_log_prob(key, subject.num_samples)
    log_p = log_prior(subject.moved, z, labels=subject.labels)
    return np.asarray(log_q - log_p, np.float64)


def _mean_and_error(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard error over the first axis, `[B]` each."""
    return values.mean(axis=0), values.std(axis=0, ddof=1) / np.sqrt(len(values))


def kl_is_not_negative(subject: Subject, key: Key) -> Outcome:
    """Check that the registered and the sampled KL are non-negative, within errors.

    A tail missed by the samples may make the sampled KL negative. The mean of p / q,
    with bounded ratios, distinguishes the cases: its expectation is at most 1 for
    normalised densities, and above 1 if the KL is in fact negative.
    """
    posterior = subject.posterior()
    if reason := why_without_density(posterior):
        return Outcome(None, "", reason)
    log_ratios = _log_ratios(subject, key)
    mean, error = _mean_and_error(log_ratios)
    # If q is the prior, terms of the size of the latent dimension cancel.
    rounding = 100 * subject.epsilon * (1 + subject.params.spec.latent_dim)
    ratio = np.exp(np.minimum(-log_ratios, np.log(LARGEST_RATIO)))
    mass, mass_error = _mean_and_error(ratio)
    is_possible = mass <= 1 + STANDARD_ERRORS * mass_error + rounding
    lower = np.where(is_possible, -np.inf, -STANDARD_ERRORS * error - rounding)
    found = {"sampled": (mean, lower)}
    divergence = kl_of(subject.moved, posterior, subject.labels)
    if divergence is not None:
        closed_form = np.asarray(divergence, np.float64)
        found["registered"] = (closed_form, np.full_like(closed_form, -rounding))
    wrong = []
    for name, (value, least) in found.items():
        at = np.argmax(np.nan_to_num(least - value, nan=np.inf))
        if not value[at] >= least[at]:
            wrong.append(
                f"the {name} KL is {value[at]:.4g} nats, expected at least "
                f"{least[at]:.2g}"
            )
    smallest = min(value.min() for value, _ in found.values())
    return Outcome(not wrong, f"smallest {smallest:.3g} nats", "\n".join(wrong))


def kl_agrees(subject: Subject, key: Key) -> Outcome:
    """Compare the registered KL to the mean of log q(z|x) - log p(z), per example."""
    posterior = subject.posterior()
    if reason := why_without_density(posterior):
        return Outcome(None, "", reason)
    divergence = kl_of(subject.moved, posterior, subject.labels)
    if divergence is None:
        return Outcome(None, "", "no closed-form KL is registered for the pair")
    log_ratios = _log_ratios(subject, key)
    if has_heavy_tail(log_ratios):
        return Outcome(None, "", HEAVY_TAIL.format("log q(z|x) - log p(z)"))
    mean, error = _mean_and_error(log_ratios)
    closed_form = np.asarray(divergence, np.float64)
    rounding = 100 * subject.epsilon * (1 + np.abs(closed_form))
    off = np.abs(mean - closed_form) / np.maximum(error, rounding)
    off = np.nan_to_num(off, nan=np.inf)
    at = int(np.argmax(off))
    came = (
        f"the registered KL is {closed_form[at]:.4g} nats, expected "
        f"{mean[at]:.4g} +- {error[at]:.2g} from the samples"
    )
    return _worst([Finding(float(off[at]), came)])


def _worst(found: list[Finding]) -> Outcome:
    """Verdict on test statistics with expectation zero."""
    off, came = max(found)
    passed = off <= STANDARD_ERRORS
    figure = f"{off:.1f} standard errors off"
    detail = f"{came}; {off:.1f} standard errors off, at most {STANDARD_ERRORS:.0f}"
    return Outcome(passed, figure, "" if passed else detail)


def posterior_keeps_its_mass(subject: Subject, key: Key) -> Outcome:
    """Check mass and samples of q while moving the outputs of the encoder."""
    posterior = subject.posterior()
    if reason := why_without_density(posterior):
        return Outcome(None, "", reason)
    if not posterior.has_log_prob:
        return Outcome(None, "", f"{type(posterior).__name__} has no log_prob")

    def path(towards: Params) -> Path:
        def at(step: float) -> Posterior:
            params = along(subject.moved, towards, step)
            return encode(params, subject.x, labels=subject.labels)

        def draw(step: float, key: Key) -> Latents:
            return at(step).sample_and_log_prob(key, subject.num_samples)[0]

        return Path(lambda step, z: at(step).log_prob(z), draw)

    return _along_directions(subject, key, ("encoder", "posterior"), path)


def _along_directions(
    subject: Subject,
    key: Key,
    parts: tuple[str, ...],
    path: Callable[[Params], Path],
    others: Sequence[Path] = (),
) -> Outcome:
    """Check the mass along random directions in some parameters, and other paths."""
    direction_key, draw_key = jax.random.split(key)
    paths = list(others)
    for own in jax.random.split(direction_key, NUM_DIRECTIONS):
        towards = direction(subject.moved, own, parts)
        if any(np.any(leaf) for leaf in jax.tree.leaves(towards)):
            paths.append(path(towards))
    if not paths:
        return Outcome(None, "", f"no trainable parameters in {' and '.join(parts)}")
    keys = jax.random.split(draw_key, (len(paths), 2))
    return _worst(
        [
            keeps_its_mass(own, pair, subject.epsilon)
            for own, pair in zip(paths, keys, strict=True)
        ]
    )


def posterior_has_mass_one(subject: Subject, key: Key) -> Outcome:
    """Check E_q[r(z) / q(z)] = 1, with r a Gaussian fitted to samples of q.

    This detects a constant missing from log q, and needs log q only at the samples. r
    is narrower than q, so that the ratio has finite variance. A tolerance of 0.1 covers
    its tail; missing constants have a larger effect.
    """
    posterior = subject.posterior()
    if reason := why_without_density(posterior):
        return Outcome(None, "", reason)
    if is_discrete(posterior):
        return Outcome(None, "", f"{type(posterior).__name__} is discrete")
    z, log_q = posterior.sample_and_log_prob(key, subject.num_samples)
    flat = np.concatenate(jax.tree.leaves(z), axis=-1).astype(np.float64)
    half = len(flat) // 2
    if half <= flat.shape[-1]:
        return Outcome(None, "", "too few samples for so many latents")
    try:
        log_r = np.stack(
            [
                _gaussian_fit(flat[:half, b], flat[half:, b])
                for b in range(subject.batch)
            ],
            axis=1,
        )
    except np.linalg.LinAlgError:
        return Outcome(None, "", "the covariance of the samples is singular")
    log_ratio = log_r - np.asarray(log_q[half:], np.float64)
    if not np.isfinite(log_ratio).all():
        return Outcome(False, "", "log q is not finite, expected finite numbers")
    scaled = np.exp(log_ratio - log_ratio.max(axis=0))
    effective = scaled.sum(axis=0) ** 2 / np.square(scaled).sum(axis=0)
    # Effective share for a Gaussian q. Far below it, the ratio has a heavy tail, and
    # the standard error from a few hundred ratios is too small.
    gaussian_share = (SHRINK * (2 - SHRINK)) ** (flat.shape[-1] / 2)
    share = max(SMALLEST_EFFECTIVE_SHARE, SMALLEST_SHARE_OF_A_GAUSSIAN * gaussian_share)
    if effective.min() < share * len(scaled):
        return Outcome(None, "", "q is too far from a Gaussian for this many samples")
    with np.errstate(over="ignore"):
        ratio = np.exp(log_ratio).mean(axis=1)
    came = f"the mass of q is {1 / ratio.mean():.4g}, expected 1"
    error = ratio.std(ddof=1) / np.sqrt(len(ratio)) + MASS_TOLERANCE / STANDARD_ERRORS
    return _worst([Finding(float(abs(ratio.mean() - 1) / error), came)])


def _gaussian_fit(seen: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Log-density of new points under a shrunk Gaussian fit to other points."""
    mean, dimension = seen.mean(axis=0), seen.shape[1]
    covariance = np.cov(seen, rowvar=False).reshape(dimension, dimension)
    factor = np.linalg.cholesky(SHRINK * covariance)
    noise = np.linalg.solve(factor, (new - mean).T)
    log_det = np.log(np.diag(factor)).sum()
    return -0.5 * (noise**2 + np.log(2 * np.pi)).sum(axis=0) - log_det


def likelihood_keeps_its_mass(subject: Subject, key: Key) -> Outcome:
    """Check mass and samples of p(x|z) while moving the outputs of the decoder."""
    latent_key, path_key = jax.random.split(key)
    many, z = _one_latent_each(subject, latent_key)

    def path(towards: Params) -> Path:
        def at(step: float) -> Distribution:
            params = along(subject.moved, towards, step)
            return decode(params, z, labels=many.labels)

        def log_density(step: float, x: Array) -> Array:
            log_p = at(step).log_prob(x[0])
            return log_p.reshape(subject.num_samples, subject.batch)

        def draw(step: float, key: Key) -> Array:
            return at(step).sample(key, 1)[0].astype(subject.x.dtype)

        return Path(log_density, draw)

    return _along_directions(subject, path_key, ("decoder", "likelihood"), path)


def _one_latent_each(subject: Subject, key: Key) -> tuple[Subject, Latents]:
    """Repeat each example, with one z per example at all of its copies.

    The copies are on the batch axis, because `log_prob` takes one x per example rather
    than one per sample.
    """
    z, _ = subject.posterior().sample_and_log_prob(key, 1)
    many = subject.repeated(subject.num_samples)
    return many, jax.tree.map(
        lambda leaf: jnp.tile(leaf, (1, subject.num_samples, 1)), z
    )


def likelihood_has_its_mean(subject: Subject, key: Key) -> Outcome:
    """Check that samples minus the mean average to zero, in weighted sums over D.

    There is one sum with weights 1 and three with random weights: testing every
    dimension separately would give false alarms among the thousands of an image.
    """
    latent_key, draw_key, weight_key = jax.random.split(key, 3)
    many, z = _one_latent_each(subject, latent_key)
    likelihood = decode(subject.moved, z, labels=many.labels)
    x, mean = likelihood.sample(draw_key, 1)[0], likelihood.mean
    shape = (subject.num_samples, subject.batch, subject.params.spec.data_dim)
    difference = np.asarray(x, np.float64) - np.asarray(mean, np.float64)
    difference = difference.reshape(shape)
    weights = random_of(weight_key).normal(size=(4, *shape[1:]))
    weights[0] = 1
    sums = np.einsum("nbd,kbd->nk", difference, weights)
    if has_heavy_tail(sums):
        return Outcome(None, "", HEAVY_TAIL.format("x"))
    largest = np.abs(difference.mean(axis=0)).max()
    came = (
        f"means of {subject.num_samples} draws differ by up to {largest:.3g} from the "
        "likelihood's mean, expected 0 within their standard errors"
    )
    scale = float(np.abs(weights).sum(axis=(1, 2)).max())
    return _worst(
        [Finding(mean_off_zero(row / scale, subject.epsilon), came) for row in sums.T]
    )


def prior_keeps_its_mass(subject: Subject, key: Key) -> Outcome:
    """Check mass and samples of p(z) at moved parameters, and of shifted or scaled p.

    p(z + h u) and p(exp(h) z) exp(h L) have the same mass as p for any prior, so the
    samples of a prior without parameters are checked as well.
    """
    shift_key, path_key = jax.random.split(key)
    many = subject.repeated(subject.num_samples)

    def draw_at(params: Params, key: Key) -> Latents:
        z = prior_draws(replace(many, moved=params), key)
        return jax.tree.map(lambda leaf: leaf[None], z)

    def log_p(params: Params, z: Latents) -> Array:
        log_density = log_prior(params, z, labels=many.labels)
        return log_density.reshape(subject.num_samples, subject.batch)

    def path(towards: Params) -> Path:
        def at(step: float) -> Params:
            return along(subject.moved, towards, step)

        return Path(
            lambda step, z: log_p(at(step), z),
            lambda step, key: draw_at(at(step), key),
        )

    def of_moved_draws(move: Callable[[Latents, float], Latents], growth: int) -> Path:
        """Path of densities of z transformed by `move`, whose inverse is at -h."""
        return Path(
            lambda step, z: log_p(subject.moved, move(z, step)) + step * growth,
            lambda step, key: move(draw_at(subject.moved, key), -step),
        )

    others = []
    if not is_discrete(subject.posterior()):
        z = jax.eval_shape(lambda key: draw_at(subject.moved, key), path_key)
        one = jax.tree.map(lambda leaf: jnp.zeros((1, 1, leaf.shape[-1])), z)
        shift = normal_like(one, random_of(shift_key))
        dimension = sum(leaf.shape[-1] for leaf in jax.tree.leaves(z))
        others = [
            of_moved_draws(lambda z, step: along(z, shift, step), 0),
            of_moved_draws(lambda z, step: along(z, z, np.expm1(step)), dimension),
        ]
    return _along_directions(subject, path_key, ("prior",), path, others)
