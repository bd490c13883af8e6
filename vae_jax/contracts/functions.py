"""Lines about the model as a function: bounds, gradients and transformations."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax.contracts.statistics import STANDARD_ERRORS, laws_differ
from vae_jax.contracts.subject import (
    FAMILIES,
    LARGEST_OUTPUT,
    Outcome,
    Subject,
    along,
    direction,
    is_discrete,
    terms,
    why_without_density,
)
from vae_jax.model import decode, decoder_outputs, encode, encoder_outputs
from vae_jax.objectives import elbo_terms, log_joint
from vae_jax.spec import Params
from vae_jax.types import Array, Key, Labels, Latents, PyTree

NUM_IMPORTANCE_SAMPLES = (1, 4, 16)
RELATIVE_TOLERANCE = 0.02
RELATIVE_ROUNDING = 1e-5


def bounds_rise(subject: Subject, key: Key) -> Outcome:
    """Check that the importance-weighted bound does not decrease with S.

    E[log mean_s w_s] increases with S for identically distributed weights (Burda,
    Grosse & Salakhutdinov 2016, theorem 1). The check is therefore that the
    distribution of a weight does not depend on the number of samples drawn at a time.
    It uses ranks, because log w may have heavy tails.
    """
    if reason := why_without_density(subject.posterior()):
        return Outcome(None, "", reason)
    keys = jax.random.split(key, len(NUM_IMPORTANCE_SAMPLES))
    alone, *others = (
        _log_weights(subject, own, count)
        for own, count in zip(keys, NUM_IMPORTANCE_SAMPLES, strict=True)
    )
    wrong, largest = [], 0.0
    for count, several in zip(NUM_IMPORTANCE_SAMPLES[1:], others, strict=True):
        for index in range(subject.batch):
            pair = several[:, index], alone[:, index]
            off = laws_differ(*pair, rounding=RELATIVE_ROUNDING)
            largest = max(largest, off)
            if off > STANDARD_ERRORS:
                came, expected = (np.median(weights) for weights in pair)
                wrong.append(
                    f"log weights of example {index} drawn {count} at a time have a "
                    f"median of {came:.4g} nats, expected the distribution of those "
                    f"drawn alone, with a median of {expected:.4g}"
                )
    return Outcome(
        not wrong, f"{largest:.1f} standard errors off", "\n".join(wrong[:4])
    )


def _log_weights(subject: Subject, key: Key, count: int) -> np.ndarray:
    """Log-weights of independent draws, taken from `count` at a time, `[N, B]`.

    The examples are repeated rather than the call, so that the posterior draws `count`
    samples at once.
    """
    many = subject.repeated(subject.num_samples)
    posterior = encode(subject.moved, many.x, labels=many.labels)
    z, log_q = posterior.sample_and_log_prob(key, count)
    # Use every position of the draw, and only one from each copy.
    copies = np.arange(log_q.shape[1])
    position = copies // subject.batch % count
    z = jax.tree.map(lambda leaf: leaf[position, copies][None], z)
    log_joints = log_joint(subject.moved, many.x, z, labels=many.labels)[0]
    log_w = np.asarray(log_joints - log_q[position, copies], np.float64)
    return log_w.reshape(subject.num_samples, subject.batch)


def gradient_is_the_slope(subject: Subject, key: Key) -> Outcome:
    """Compare the gradient of the ELBO along random directions to central differences.

    The key, and thus the samples, are fixed. A difference with step h has an error of
    rounding / h plus a truncation error of order h^2, so h is the cube root of the
    rounding error. With step 2 h, the truncation error is four times as large, so the
    two differences give an estimate of it. The tolerance is this estimate (which also
    covers a ReLU kink within the step), plus the rounding error, plus 2% of the slope.
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
    z, _ = subject.posterior().sample_and_log_prob(sample_key, subject.few)
    wrong, off = [], []
    for index, part in enumerate(("encoder", "decoder", *FAMILIES)):
        own = jax.random.fold_in(direction_key, index)
        towards = direction(subject.moved, own, (part,), whole=True)
        if not any(np.any(leaf) for leaf in jax.tree.leaves(towards)):
            continue
        towards = _of_ordinary_effect(subject, part, towards, z)
        slope = _inner(gradient, towards)
        expected, tolerance = _differences(subject, value, towards, float(size))
        off.append(abs(slope - expected) / tolerance)
        if not off[-1] <= 1:
            wrong.append(
                f"along a direction in the {part} the gradient is {slope:.5g}, "
                f"expected {expected:.5g} within {tolerance:.2g}"
            )
    figure = f"at most {max(off):.2g} of the tolerance"
    return Outcome(not wrong, figure, "\n".join(wrong))


def _of_ordinary_effect(
    subject: Subject, part: str, towards: Params, z: Latents
) -> Params:
    """Shorten a direction that changes the outputs of a network strongly.

    With data in the thousands, the outputs change a thousand times as fast, and a
    difference with the usual step is not close to the slope.
    """
    functions = {
        "encoder": lambda params: encoder_outputs(
            params, subject.x, labels=subject.labels
        ),
        "decoder": lambda params: decoder_outputs(params, z, labels=subject.labels),
    }
    if part not in functions:
        return towards
    step = _step(subject)
    start, end = map(
        functions[part], (subject.moved, along(subject.moved, towards, step))
    )
    rate = float(jnp.max(jnp.abs(end - start))) / step
    factor = min(1.0, LARGEST_OUTPUT / max(rate, 1e-9))
    return jax.tree.map(lambda leaf: (factor * leaf).astype(leaf.dtype), towards)


def _step(subject: Subject) -> float:
    """Step of a central difference."""
    return subject.epsilon ** (1 / 3)


def _inner(gradient: PyTree, towards: PyTree) -> float:
    products = jax.tree.map(lambda a, b: np.vdot(a, b), gradient, towards)
    return float(sum(jax.tree.leaves(products)))


def _differences(
    subject: Subject, value, towards: Params, size: float
) -> tuple[float, float]:
    """Return a central difference and its tolerance."""
    step = _step(subject)

    def at(distance: float) -> float:
        return float(value(along(subject.moved, towards, distance))[0])

    near, far = ((at(h) - at(-h)) / (2 * h) for h in (step, 2 * step))
    rounding = 16 * subject.epsilon * (1 + size) / step
    return near, 2 * abs(far - near) + rounding + RELATIVE_TOLERANCE * abs(near)


def _compare(
    subject: Subject, pairs: list[tuple[str, PyTree, PyTree]], expected_from: str
) -> Outcome:
    """Compare actual and expected trees, to half of the significant digits."""
    wrong, largest = [], 0.0
    for name, came, expected in pairs:
        flat = jax.tree_util.tree_leaves_with_path((came, expected))
        half = len(flat) // 2
        for (path, a), (_, b) in zip(flat[:half], flat[half:], strict=True):
            a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
            # Fused operations and reordered sums round differently.
            scale = 1 + np.max(np.abs(b), initial=0)
            off = np.max(np.abs(a - b), initial=0) / scale
            largest = max(largest, float(np.nan_to_num(off, nan=np.inf)))
            if not off <= np.sqrt(subject.epsilon):
                at = np.argmax(np.abs(a - b))
                what = jax.tree_util.keystr(path[1:], simple=True, separator=" ")
                wrong.append(
                    f"{name}: {what} is {a.flat[at]:.6g}, expected "
                    f"{b.flat[at]:.6g} as {expected_from}"
                )
    return Outcome(
        not wrong, f"largest relative difference {largest:.1g}", "\n".join(wrong)
    )


def jit_changes_nothing(subject: Subject, key: Key) -> Outcome:
    """Compare the terms of the ELBO with and without `jit`, at the same key."""
    arguments = (subject.moved, subject.x, key, subject.labels)
    function = partial(terms, num_samples=subject.few)
    pairs = [("under jit", jax.jit(function)(*arguments), function(*arguments))]
    return _compare(subject, pairs, "without jit")


def vmap_changes_nothing(subject: Subject, key: Key) -> Outcome:
    """Compare `vmap` over two models, and over single examples, to loops.

    Compiled, as sweeps are; without `jit`, the mapped operations take seconds.
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
    """Compare the results for an example within a batch and on its own.

    Batch normalisation and swapped axes make examples depend on each other, which
    invalidates every gradient and every reported value.
    """
    z, _ = subject.posterior().sample_and_log_prob(key, subject.few)

    def figures(x: Array, labels: Labels, z: PyTree) -> PyTree:
        posterior = encode(subject.moved, x, labels=labels)
        likelihood = decode(subject.moved, z, labels=labels)
        mean = jax.tree.map(lambda leaf: leaf[None], posterior.mean)
        found = {"posterior mean": mean, "log p(x|z)": likelihood.log_prob(x)}
        if posterior.has_log_prob:
            found["log q(z|x)"] = posterior.log_prob(z)
        return found

    labels = subject.labels
    together = figures(subject.x, labels, z)
    pairs = []
    for index in range(subject.batch):
        here = slice(index, index + 1)
        own = jax.tree.map(lambda leaf, here=here: leaf[here], labels)
        at = jax.tree.map(lambda leaf, here=here: leaf[:, here], (z, together))
        pairs.append((f"example {index}", at[1], figures(subject.x[here], own, at[0])))
    return _compare(subject, pairs, "by itself")
