"""Lines about shapes, dtypes and finite values."""

from collections.abc import Callable, Iterable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax import networks
from vae_jax.contracts.subject import (
    Outcome,
    Subject,
    is_discrete,
    kl_of,
    random_of,
    terms,
)
from vae_jax.model import at_labels, decode, draw_prior, encode, log_prior
from vae_jax.spec import Params
from vae_jax.types import Array, Key, Latents, PyTree

FAR = 1e3


def _verdict(
    subject: Subject, arrays: list[tuple[str, Array, tuple[int, ...]]]
) -> Outcome:
    """Compare arrays with their expected shapes and with the model's dtype."""
    wrong = []
    for name, array, shape in arrays:
        came = (jnp.shape(array), jnp.result_type(array))
        if came != (shape, subject.x.dtype):
            wrong.append(
                f"{name} came as {list(came[0])} {came[1]}, "
                f"expected {list(shape)} {subject.x.dtype}"
            )
    return Outcome(not wrong, f"{len(arrays)} arrays", "\n".join(wrong))


def _layers(name: str, z: Latents, leading: tuple[int, ...], sizes: list[int]):
    """List each stochastic layer of latents with its expected shape."""
    layers = list(z) if isinstance(z, tuple) else [z]
    if len(layers) != len(sizes):
        raise ValueError(f"{name} has {len(layers)} layers, expected {len(sizes)}")
    return [
        (name if len(sizes) == 1 else f"{name}, layer {index + 1}", layer, shape)
        for index, (layer, size) in enumerate(zip(layers, sizes, strict=True))
        for shape in [(*leading, size)]
    ]


def _sizes(subject: Subject) -> list[int]:
    """Latent dimension of each stochastic layer."""
    above = subject.params.spec.posterior.layers or ()
    return [subject.params.spec.latent_dim, *(layer.latent_dim for layer in above)]


def posterior_shapes(subject: Subject, key: Key) -> Outcome:
    """Check shapes of mean, samples, log q and KL, with B + 1 samples."""
    posterior, count = subject.posterior(), subject.few
    z, log_q = posterior.sample_and_log_prob(key, count)
    sizes, leading = _sizes(subject), (count, subject.batch)
    arrays = [
        *_layers("posterior mean", posterior.mean, (subject.batch,), sizes),
        *_layers("z", z, leading, sizes),
        ("log q", log_q, leading),
    ]
    # Stop here: densities of wrongly shaped samples may raise and hide these shapes.
    drawn = _verdict(subject, arrays)
    if not drawn.passed:
        return drawn
    if posterior.has_log_prob:
        arrays.append(("posterior log_prob", posterior.log_prob(z), leading))
    divergence = kl_of(subject.moved, posterior, subject.labels)
    if divergence is not None:
        arrays.append(("the registered KL", divergence, (subject.batch,)))
    return _verdict(subject, arrays)


def prior_shapes(subject: Subject, key: Key) -> Outcome:
    """Check shapes of prior samples, and of log p(z) with a sample axis."""
    sizes, count = _sizes(subject), subject.few
    z = prior_draws(subject, key)
    arrays = _layers("prior sample", z, (subject.batch,), sizes)
    several = jax.tree.map(lambda leaf: jnp.stack([leaf] * count), z)
    log_p = log_prior(subject.moved, several, labels=subject.labels)
    return _verdict(subject, [*arrays, ("log p(z)", log_p, (count, subject.batch))])


def prior_draws(subject: Subject, key: Key) -> Latents:
    """Draw from the prior, one sample per example, `[B, L]`, in the dtype of the data.

    A prior without parameters does not know this dtype.
    """
    params = at_labels(subject.moved, subject.labels)
    z = draw_prior(params, key, num_samples=subject.batch)
    return jax.tree.map(lambda leaf: leaf.astype(subject.x.dtype), z)


def likelihood_shapes(subject: Subject, key: Key) -> Outcome:
    """Check shapes of log p(x|z), mean and samples, with B + 1 samples of z."""
    posterior_key, draw_key = jax.random.split(key)
    count = subject.few
    z, _ = subject.posterior().sample_and_log_prob(posterior_key, count)
    likelihood = decode(subject.moved, z, labels=subject.labels)
    leading = (count, subject.batch)
    images = (*leading, subject.params.spec.data_dim)
    return _verdict(
        subject,
        [
            ("log p(x|z)", likelihood.log_prob(subject.x), leading),
            ("likelihood mean", likelihood.mean, images),
            ("likelihood sample", likelihood.sample(draw_key, 2), (2, *images)),
        ],
    )


def _not_finite(where: str, tree: PyTree) -> Iterable[str]:
    """Describe the arrays of a tree that hold NaN or an infinity."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        leaf = np.asarray(leaf)
        bad = leaf.size - np.isfinite(leaf).sum()
        if bad:
            name = jax.tree_util.keystr(path, simple=True, separator=" ")
            kind = "nan" if np.isnan(leaf).any() else "an infinity"
            yield f"{where}: {name} has {kind} in {bad} of {leaf.size} places"


def _finite(cases: dict[str, tuple[Callable[..., PyTree], dict]]) -> Outcome:
    """Check values and gradients of functions with respect to all their arguments."""
    bad, count = [], 0
    for where, (function, arguments) in cases.items():

        def total(arguments, function=function):
            values = function(**arguments)
            return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(values)), values

        gradients, values = jax.grad(total, has_aux=True)(arguments)
        named = {"gradient by": gradients, "value of": values}
        bad += _not_finite(where, named)
        count += len(jax.tree.leaves(named))
    expected = ["expected finite values and gradients"] if bad else []
    return Outcome(not bad, f"{count} arrays", "\n".join(bad[:8] + expected))


def finite_at_given(subject: Subject, key: Key) -> Outcome:
    """Check the terms at the given parameters and examples."""

    def ordinary(params: Params) -> PyTree:
        return terms(params, subject.x, key, subject.labels, num_samples=subject.few)

    return _finite({"at the given parameters": (ordinary, {"params": subject.params})})


def finite_at_extreme_data(subject: Subject, key: Key) -> Outcome:
    """Check the terms at data of all zeros and of all ones."""

    def at(x: Array, params: Params) -> PyTree:
        return terms(params, x, key, subject.labels, num_samples=subject.few)

    ends = {"x all 0": jnp.zeros_like, "x all 1": jnp.ones_like}
    return _finite(
        {
            where: (partial(at, like(subject.x)), {"params": subject.moved})
            for where, like in ends.items()
        }
    )


def _with_far_bias(weights: PyTree, signs: np.ndarray) -> PyTree:
    return networks.with_output_bias(weights, FAR * signs)


def _signs(key: Key, like: Array) -> np.ndarray:
    return random_of(key).choice([-1, 1], like.shape).astype(like.dtype)


def finite_at_far_encoder(subject: Subject, key: Key) -> Outcome:
    """Check the posterior with every encoder output at a large value of either sign."""
    sign_key, sample_key = jax.random.split(key)
    signs = _signs(sign_key, networks.output_bias(subject.moved.encoder))

    def of_posterior(params: Params) -> PyTree:
        posterior = encode(params, subject.x, labels=subject.labels)
        z, log_q = posterior.sample_and_log_prob(sample_key, subject.few)
        found = {"z": z, "the registered KL": kl_of(params, posterior, subject.labels)}
        return found | ({"log q": log_q} if posterior.has_density else {})

    cases = {}
    for sign in (1, -1):
        encoder = _with_far_bias(subject.moved.encoder, sign * signs)
        where = f"encoder outputs at {FAR:.0f} and {-FAR:.0f}"
        params = subject.moved.replace(encoder=encoder)
        cases[where + (", signs swapped" if sign < 0 else "")] = (
            of_posterior,
            {"params": params},
        )
    return _finite(cases)


def finite_at_far_decoder(subject: Subject, key: Key) -> Outcome:
    """Check the model at large latents and at large decoder outputs of either sign."""
    sample_key, sign_key, bias_key, draw_key = jax.random.split(key, 4)
    z, _ = subject.posterior().sample_and_log_prob(sample_key, subject.few)

    def of_model(params: Params, z: Latents) -> PyTree:
        likelihood = decode(params, z, labels=subject.labels)
        return {
            "log p(x|z)": likelihood.log_prob(subject.x),
            "the likelihood's mean": likelihood.mean,
            "log p(z)": log_prior(params, z, labels=subject.labels),
            "draws": jax.lax.stop_gradient(likelihood.sample(draw_key, 1)),
        }

    far = jax.tree.map(lambda leaf: FAR * _signs(sign_key, leaf), z)
    signs = _signs(bias_key, networks.output_bias(subject.moved.decoder))
    cases = {}
    if not is_discrete(subject.posterior()):
        where = f"latents at {FAR:.0f} and {-FAR:.0f}"
        cases[where] = (of_model, {"params": subject.moved, "z": far})
    for sign in (1, -1):
        decoder = _with_far_bias(subject.moved.decoder, sign * signs)
        where = f"decoder outputs at {FAR:.0f} and {-FAR:.0f}"
        cases[where + (", signs swapped" if sign < 0 else "")] = (
            of_model,
            {"params": subject.moved.replace(decoder=decoder), "z": z},
        )
    return _finite(cases)
