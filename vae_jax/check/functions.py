"""Lines about the model as a function: bounds, gradients, and transformations."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax.check.subject import (
    FAMILIES,
    STANDARD_ERRORS,
    Outcome,
    Subject,
    along,
    direction,
    is_discrete,
    terms,
    why_without_density,
)
from vae_jax.model import decode, encode
from vae_jax.objectives import elbo_terms, log_joint
from vae_jax.spec import Params
from vae_jax.types import Array, Key, PyTree

NUM_IMPORTANCE_SAMPLES = (1, 4, 16)
RELATIVE_TOLERANCE = 0.02


def bounds_rise(subject: Subject, key: Key) -> Outcome:
    """The importance-weighted bound does not fall with the number of samples.

    E[log mean_s w_s] rises with S for any weights that are drawn alike (Burda, Grosse &
    Salakhutdinov 2016, theorem 1).
    """
    if reason := why_without_density(subject.posterior()):
        return Outcome(None, "", reason)
    bounds = [
        _bound(subject, jax.random.fold_in(key, count), count)
        for count in NUM_IMPORTANCE_SAMPLES
    ]
    figure = " <= ".join(f"{mean:.4g}" for mean, _ in bounds) + " nats"
    wrong = [
        f"with {NUM_IMPORTANCE_SAMPLES[i + 1]} samples the bound came to {b:.6g} +- "
        f"{b_error:.2g} nats, expected not below the {a:.6g} +- {a_error:.2g} with "
        f"{NUM_IMPORTANCE_SAMPLES[i]}"
        for i, ((a, a_error), (b, b_error)) in enumerate(
            zip(bounds, bounds[1:], strict=False)
        )
        if not b - a >= -STANDARD_ERRORS * np.hypot(a_error, b_error) - _rounding(a)
    ]
    return Outcome(not wrong, figure, "\n".join(wrong))


def _bound(subject: Subject, key: Key, count: int) -> tuple[float, float]:
    """The bound with a number of importance samples, and its standard error.

    The examples are repeated, not the call: the posterior is asked for that number.
    """
    repeats = max(2, subject.num_samples // count)
    many = subject.repeated(repeats)
    posterior = encode(subject.moved, many.x, labels=many.labels)
    z, log_q = posterior.sample_and_log_prob(key, count)
    # Side by side, the weights of every count are one computation of one shape.
    every = subject.repeated(repeats * count)
    z = jax.tree.map(lambda leaf: leaf.reshape(1, -1, leaf.shape[-1]), z)
    log_w = np.asarray(
        log_joint(subject.moved, every.x, z, labels=every.labels)
    ).reshape(log_q.shape) - np.asarray(log_q)
    with np.errstate(invalid="ignore"):
        values = np.logaddexp.reduce(log_w.astype(np.float64), axis=0) - np.log(count)
    values = values.reshape(repeats, subject.batch).mean(axis=1)
    return values.mean(), values.std(ddof=1) / np.sqrt(repeats)


def _rounding(value: float) -> float:
    return 1e-5 * (1 + abs(value))


def gradient_is_the_slope(subject: Subject, key: Key) -> Outcome:
    """The gradient of the ELBO along random directions, and central differences.

    The samples are kept by keeping the key. A difference over a step h is off by
    rounding / h and by a curvature term in h^2, so h is the cube root of the rounding
    error. The difference over 2 h is off by four times the second, so the two tell it;
    that and the rounding of the two sums are the tolerance, and two hundredths of the
    slope beside them. A kink of a ReLU within the step shows in it as well.
    """
    if is_discrete(subject.posterior()):
        return Outcome(None, "", "the samples are discrete, and have no derivative")
    direction_key, sample_key = jax.random.split(key)

    def value(params: Params) -> tuple[Array, Array]:
        found = elbo_terms(
            params,
            subject.x,
            sample_key,
            num_samples=subject.few,
            labels=subject.labels,
        )
        size = jnp.abs(found.log_likelihood) + jnp.abs(found.kl_divergence)
        return jnp.mean(found.elbo), jnp.mean(size)

    gradient, size = jax.grad(value, has_aux=True)(subject.moved)
    wrong, off = [], []
    for index, part in enumerate(("encoder", "decoder", *FAMILIES)):
        own = jax.random.fold_in(direction_key, index)
        towards = direction(subject.moved, own, (part,), whole=True)
        if not any(np.any(leaf) for leaf in jax.tree.leaves(towards)):
            continue
        slope = _inner(gradient, towards)
        expected, tolerance = _differences(subject, value, towards, float(size))
        off.append(abs(slope - expected) / tolerance)
        if not off[-1] <= 1:
            wrong.append(
                f"along a direction in the {part} the gradient came to {slope:.5g}, "
                f"expected {expected:.5g} within {tolerance:.2g}"
            )
    figure = f"at most {max(off):.2g} of the tolerance"
    return Outcome(not wrong, figure, "\n".join(wrong))


def _inner(gradient: PyTree, towards: PyTree) -> float:
    products = jax.tree.map(lambda a, b: np.vdot(a, b), gradient, towards)
    return float(sum(jax.tree.leaves(products)))


def _differences(
    subject: Subject, value, towards: Params, size: float
) -> tuple[float, float]:
    """A central difference and how far it may be off."""
    step = subject.epsilon ** (1 / 3)

    def at(distance: float) -> float:
        return float(value(along(subject.moved, towards, distance))[0])

    near, far = ((at(h) - at(-h)) / (2 * h) for h in (step, 2 * step))
    rounding = 16 * subject.epsilon * (1 + size) / step
    return near, 2 * abs(far - near) + rounding + RELATIVE_TOLERANCE * abs(near)


def _compare(
    subject: Subject, pairs: list[tuple[str, PyTree, PyTree]], expected_from: str
) -> Outcome:
    """Compares what came with what was expected, to half the digits."""
    wrong, largest = [], 0.0
    for name, came, expected in pairs:
        flat = jax.tree_util.tree_leaves_with_path((came, expected))
        half = len(flat) // 2
        for (path, a), (_, b) in zip(flat[:half], flat[half:], strict=True):
            a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
            # Fused operations round otherwise, and sums run in another order.
            scale = 1 + np.max(np.abs(b), initial=0)
            off = np.max(np.abs(a - b), initial=0) / scale
            largest = max(largest, float(np.nan_to_num(off, nan=np.inf)))
            if not off <= np.sqrt(subject.epsilon):
                at = np.argmax(np.abs(a - b))
                what = jax.tree_util.keystr(path[1:], simple=True, separator=" ")
                wrong.append(
                    f"{name}: {what} came to {a.flat[at]:.6g}, expected "
                    f"{b.flat[at]:.6g} as {expected_from}"
                )
    return Outcome(
        not wrong, f"largest relative difference {largest:.1g}", "\n".join(wrong)
    )


def jit_changes_nothing(subject: Subject, key: Key) -> Outcome:
    """The terms of the ELBO, compiled and not, with one key."""
    arguments = (subject.moved, subject.x, key, subject.labels)
    function = partial(terms, num_samples=subject.few)
    pairs = [("under jit", jax.jit(function)(*arguments), function(*arguments))]
    return _compare(subject, pairs, "without jit")


def vmap_changes_nothing(subject: Subject, key: Key) -> Outcome:
    """The terms of two models at once, and of all examples alone at once.

    Compiled, as sweeps are; mapped operations one by one would take seconds.
    """
    function = partial(terms, num_samples=subject.few)
    models = [subject.moved, along(subject.moved, subject.moved, -0.1)]
    stacked = jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *models)
    alone = jax.tree.map(lambda leaf: leaf[:, None], (subject.x, subject.labels))

    def of_model(params: Params) -> PyTree:
        return function(params, subject.x, key, subject.labels)

    def of_example(example: PyTree) -> PyTree:
        return function(subject.moved, example[0], key, example[1])

    def in_turn(each_of, stack: PyTree, count: int) -> PyTree:
        each = []
        for index in range(count):
            one = jax.tree.map(lambda leaf, index=index: leaf[index], stack)
            each.append(each_of(one))
        return jax.tree.map(lambda *leaves: np.stack(leaves), *each)

    pairs = [
        ("models", jax.jit(jax.vmap(of_model))(stacked), in_turn(of_model, stacked, 2)),
        (
            "examples",
            jax.jit(jax.vmap(of_example))(alone),
            in_turn(of_example, alone, subject.batch),
        ),
    ]
    return _compare(subject, pairs, "in a loop")


def examples_stand_alone(subject: Subject, key: Key) -> Outcome:
    """What the model says of an example in a batch, and of the example by itself.

    Networks that normalise over the batch, and axes that were taken for one another,
    let examples see each other; every gradient and every figure is wrong then.
    """
    z, _ = subject.posterior().sample_and_log_prob(key, subject.few)

    def figures(x: Array, labels: Array | None, z: PyTree) -> PyTree:
        posterior = encode(subject.moved, x, labels=labels)
        likelihood = decode(subject.moved, z, labels=labels)
        mean = jax.tree.map(lambda leaf: leaf[None], posterior.mean)
        found = {"posterior mean": mean, "log p(x|z)": likelihood.log_prob(x)}
        if hasattr(posterior, "log_prob") and posterior.has_density:
            found["log q(z|x)"] = posterior.log_prob(z)
        return found

    labels = subject.labels
    together = figures(subject.x, labels, z)
    pairs = []
    for index in range(subject.batch):
        here = slice(index, index + 1)
        own = None if labels is None else labels[here]
        at = jax.tree.map(lambda leaf, here=here: leaf[:, here], (z, together))
        pairs.append((f"example {index}", at[1], figures(subject.x[here], own, at[0])))
    return _compare(subject, pairs, "by itself")
