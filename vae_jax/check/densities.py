"""Lines about densities: of what was drawn, in order, and with a mass that stays.

None needs a closed form. Where an expectation is estimated, it must lie within four
standard errors; the keys are fixed, so a verdict does not change from call to call.
"""

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax.check.shapes import draw_prior
from vae_jax.check.subject import (
    STANDARD_ERRORS,
    Outcome,
    Subject,
    along,
    direction,
    is_discrete,
    kl_of,
    normal_like,
    off_zero,
    random_of,
    ratio_to_one,
    why_without_density,
    worst,
)
from vae_jax.model import decode, encode, log_prior
from vae_jax.types import Array, Key, Latents

NUM_DIRECTIONS = 2
SHRINK = 0.8
SMALLEST_EFFECTIVE_SHARE = 0.1
SMALLEST_SHARE_OF_A_GAUSSIAN = 0.5


def log_q_agrees(subject: Subject, key: Key) -> Outcome:
    """The log q that comes with the samples, and `log_prob` of the same samples."""
    posterior = subject.posterior()
    if reason := why_without_density(posterior):
        return Outcome(None, "", reason)
    if not hasattr(posterior, "log_prob"):
        return Outcome(None, "", f"{type(posterior).__name__} has no log_prob")
    z, log_q = posterior.sample_and_log_prob(key, subject.few)
    came, expected = np.asarray(log_q), np.asarray(posterior.log_prob(z))
    # The two may sum in another order, or undo a transform that loses digits.
    allowed = np.sqrt(subject.epsilon) * (1 + np.abs(expected))
    return _same(came, expected, allowed, ("sample_and_log_prob", "log_prob(z)"))


def _same(
    came: np.ndarray, expected: np.ndarray, allowed: np.ndarray, names: tuple[str, str]
) -> Outcome:
    difference = np.abs(came - expected)
    passed = bool(np.all(difference <= allowed))
    at = np.unravel_index(np.argmax(np.nan_to_num(difference, nan=np.inf)), came.shape)
    figure = f"largest difference {difference[at]:.2g} nats"
    detail = (
        f"{names[0]} came to {came[at]:.6g}, expected {expected[at]:.6g} as in "
        f"{names[1]}, within {allowed[at]:.2g}"
    )
    return Outcome(passed, figure, "" if passed else detail)


def _sampled_kl(subject: Subject, key: Key) -> tuple[np.ndarray, np.ndarray]:
    """Mean of log q(z|x) - log p(z) and its standard error, `[B]` each."""
    draws = subject.posterior().sample_and_log_prob(key, subject.num_samples)
    log_p = log_prior(subject.moved, draws[0], labels=subject.labels)
    ratio = np.asarray(draws[1] - log_p, np.float64)
    return ratio.mean(axis=0), ratio.std(axis=0, ddof=1) / np.sqrt(len(ratio))


def kl_is_not_negative(subject: Subject, key: Key) -> Outcome:
    """The registered KL down to rounding; the sampled one down to its error."""
    posterior = subject.posterior()
    if reason := why_without_density(posterior):
        return Outcome(None, "", reason)
    mean, error = _sampled_kl(subject, key)
    # Terms of the size of the latent dimension cancel where q is the prior.
    rounding = 100 * subject.epsilon * (1 + subject.params.spec.latent_dim)
    found = {"sampled": (mean, -STANDARD_ERRORS * error - rounding)}
    divergence = kl_of(subject.moved, posterior, subject.labels)
    if divergence is not None:
        closed_form = np.asarray(divergence, np.float64)
        found["registered"] = (closed_form, np.full_like(closed_form, -rounding))
    wrong = [
        f"the {name} KL came to {value.min():.4g} nats, expected at least "
        f"{least[value.argmin()]:.2g}"
        for name, (value, least) in found.items()
        if not np.all(value >= least)
    ]
    smallest = min(value.min() for value, _ in found.values())
    return Outcome(not wrong, f"smallest {smallest:.3g} nats", "\n".join(wrong))


def kl_agrees(subject: Subject, key: Key) -> Outcome:
    """The registered KL and the mean of log q(z|x) - log p(z), for each example."""
    posterior = subject.posterior()
    if reason := why_without_density(posterior):
        return Outcome(None, "", reason)
    divergence = kl_of(subject.moved, posterior, subject.labels)
    if divergence is None:
        return Outcome(None, "", "no closed-form KL is registered for the pair")
    mean, error = _sampled_kl(subject, key)
    closed_form = np.asarray(divergence, np.float64)
    rounding = 100 * subject.epsilon * (1 + np.abs(closed_form))
    off = np.abs(mean - closed_form) / np.maximum(error, rounding)
    at = int(np.argmax(np.nan_to_num(off, nan=np.inf)))
    came = (
        f"the registered KL came to {closed_form[at]:.4g} nats, expected "
        f"{mean[at]:.4g} +- {error[at]:.2g} of the samples"
    )
    return worst([(float(np.nan_to_num(off[at], nan=np.inf)), came)])


def posterior_keeps_its_mass(subject: Subject, key: Key) -> Outcome:
    """E[q'(z) / q(z)] = 1 over z ~ q, q' being q at other outputs of the encoder."""
    posterior = subject.posterior()
    if reason := why_without_density(posterior):
        return Outcome(None, "", reason)
    if not hasattr(posterior, "log_prob"):
        return Outcome(None, "", f"{type(posterior).__name__} has no log_prob")
    sample_key, direction_key = jax.random.split(key)
    z, _ = posterior.sample_and_log_prob(sample_key, subject.num_samples)

    def log_density(towards):
        def at(size: float) -> Array:
            params = along(subject.moved, towards, size)
            return encode(params, subject.x, labels=subject.labels).log_prob(z)

        return at

    parts = ("encoder", "posterior")
    return worst(
        [
            ratio_to_one(log_density(towards), subject.epsilon)
            for towards in _directions(subject, direction_key, parts)
        ]
    )


def _directions(subject: Subject, key: Key, parts: tuple[str, ...]):
    keys = jax.random.split(key, NUM_DIRECTIONS)
    return [direction(subject.moved, own, parts) for own in keys]


def posterior_has_mass_one(subject: Subject, key: Key) -> Outcome:
    """E[r(z) / q(z)] = 1 over z ~ q, r being a Gaussian within the samples of q.

    It finds a constant that log q lacks, and needs log q of the samples alone. r is
    narrower than q, so that the ratio has a variance.
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
    log_r = np.stack(
        [_gaussian_fit(flat[:half, b], flat[half:, b]) for b in range(subject.batch)],
        axis=1,
    )
    log_ratio = log_r - np.asarray(log_q[half:], np.float64)
    if not np.isfinite(log_ratio).all():
        return Outcome(False, "", "log q came not finite at its own samples")
    scaled = np.exp(log_ratio - log_ratio.max(axis=0))
    effective = scaled.sum(axis=0) ** 2 / np.square(scaled).sum(axis=0)
    # What it would be for a Gaussian q. Far below it the ratio has a heavy tail, and
    # the standard error of a few hundred ratios is too small.
    gaussian_share = (SHRINK * (2 - SHRINK)) ** (flat.shape[-1] / 2)
    share = max(SMALLEST_EFFECTIVE_SHARE, SMALLEST_SHARE_OF_A_GAUSSIAN * gaussian_share)
    if effective.min() < share * len(scaled):
        return Outcome(None, "", "q is too far from a Gaussian for this many samples")
    with np.errstate(over="ignore"):
        ratio = np.exp(log_ratio).mean(axis=1)
    came = f"the mass of q came to {1 / ratio.mean():.4g}, expected 1"
    return worst([(off_zero(ratio - 1, subject.epsilon), came)])


def _gaussian_fit(seen: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Log-density of new points under a Gaussian of the moments of others, shrunk."""
    mean, dimension = seen.mean(axis=0), seen.shape[1]
    covariance = np.cov(seen, rowvar=False).reshape(dimension, dimension)
    factor = np.linalg.cholesky(SHRINK * covariance)
    noise = np.linalg.solve(factor, (new - mean).T)
    log_det = np.log(np.diag(factor)).sum()
    return -0.5 * (noise**2 + np.log(2 * np.pi)).sum(axis=0) - log_det


def likelihood_keeps_its_mass(subject: Subject, key: Key) -> Outcome:
    """E[p'(x|z) / p(x|z)] = 1 over x ~ p(x|z), p' at other outputs of the decoder."""
    sample_key, direction_key = jax.random.split(key)
    many, z, x = _data_draws(subject, sample_key)

    def log_density(towards):
        def at(size: float) -> Array:
            params = along(subject.moved, towards, size)
            log_p = decode(params, z, labels=many.labels).log_prob(x[0])
            return log_p.reshape(subject.num_samples, subject.batch)

        return at

    parts = ("decoder", "likelihood")
    return worst(
        [
            ratio_to_one(log_density(towards), subject.epsilon)
            for towards in _directions(subject, direction_key, parts)
        ]
    )


def _data_draws(subject: Subject, key: Key) -> tuple[Subject, Latents, Array]:
    """Each example many times over, one z of each, and a draw of x at every copy.

    The copies stand on the batch axis: `log_prob` takes an x for each example, not one
    for each sample.
    """
    posterior_key, draw_key = jax.random.split(key)
    z, _ = subject.posterior().sample_and_log_prob(posterior_key, 1)
    many = subject.repeated(subject.num_samples)
    z = jax.tree.map(lambda leaf: jnp.tile(leaf, (1, subject.num_samples, 1)), z)
    x = decode(subject.moved, z, labels=many.labels).sample(draw_key)
    return many, z, x.astype(subject.x.dtype)


def likelihood_has_its_mean(subject: Subject, key: Key) -> Outcome:
    """Draws less the mean, summed over all data dimensions with fixed weights.

    One sum with weights 1 and three with random weights: a test of every dimension by
    itself would raise a false alarm among the thousands of an image.
    """
    sample_key, weight_key = jax.random.split(key)
    many, z, x = _data_draws(subject, sample_key)
    mean = decode(subject.moved, z, labels=many.labels).mean
    shape = (subject.num_samples, subject.batch, subject.params.spec.data_dim)
    difference = np.asarray(x, np.float64) - np.asarray(mean, np.float64)
    difference = difference.reshape(shape)
    weights = random_of(weight_key).normal(size=(4, *shape[1:]))
    weights[0] = 1
    sums = np.einsum("nbd,kbd->kn", difference, weights)
    largest = np.abs(difference.mean(axis=0)).max()
    came = (
        f"means of {subject.num_samples} draws came up to {largest:.3g} off the "
        "likelihood's mean, expected 0 but for their standard errors"
    )
    scale = float(np.abs(weights).sum(axis=(1, 2)).max())
    return worst([(off_zero(row / scale, subject.epsilon), came) for row in sums])


def prior_keeps_its_mass(subject: Subject, key: Key) -> Outcome:
    """E[p'(z) / p(z)] = 1 over z ~ p, p' being p at other parameters, moved or scaled.

    p(z + h u) and p(exp(h) z) exp(h L) have the mass of p whatever the prior is, so
    that one without parameters is held to its samples as well.
    """
    sample_key, shift_key, direction_key = jax.random.split(key, 3)
    many = subject.repeated(subject.num_samples)
    z = jax.tree.map(lambda leaf: leaf[None], draw_prior(many, sample_key))

    def log_p(params, z: Latents) -> Array:
        log_density = log_prior(params, z, labels=many.labels)
        return log_density.reshape(subject.num_samples, subject.batch)

    found = []
    if jax.tree.leaves(subject.moved.prior):
        for towards in _directions(subject, direction_key, ("prior",)):
            found.append(lambda h, t=towards: log_p(along(subject.moved, t, h), z))
    if not is_discrete(subject.posterior()):
        one = jax.tree.map(lambda leaf: leaf[:, :1], z)
        move = normal_like(one, random_of(shift_key))
        dimension = sum(leaf.shape[-1] for leaf in jax.tree.leaves(z))
        found.append(lambda h: log_p(subject.moved, along(z, move, h)))
        found.append(
            lambda h: log_p(subject.moved, along(z, z, np.expm1(h))) + h * dimension
        )
    if not found:
        return Outcome(None, "", "the prior is discrete and has no parameters")
    return worst([ratio_to_one(function, subject.epsilon) for function in found])
