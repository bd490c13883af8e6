"""Part vae: variance of a VAE's encoder gradient under every applicable estimator.

Two models are trained on the same data: one with Gaussian latents, and one with few
enough Bernoulli latents to enumerate. The gradient of a fixed batch is drawn many times
at initialisation, after one epoch, and at the end of training. Variances are comparable
only between estimators of the same gradient, so the means are compared as well, along
the direction of the mean of a reference estimator; this reveals biased estimators.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import vae_jax
from experiments.evaluation import evaluation_keys
from vae_jax import data, estimators
from vae_jax.types import Array, Estimator, Key

CHUNK = 20
TRAINING_SAMPLES = 4
STEPS_WANTED = 2000
STAGES = ("initialisation", "one epoch", "end")
# Largest number of samples for estimators whose cost also grows with the latents.
MOST_SAMPLES = {"measure_valued": 4}
BIASED = ("gumbel_softmax", "straight_through")

Objective = Callable[[vae_jax.Params, Array, Key, int], Array]


class Entry(NamedTuple):
    """Objective `value(params, x, key, num_samples)` and its gradient estimator."""

    objective: str
    estimator: str
    value: Objective
    fewest_samples: int = 1


class Model(NamedTuple):
    """Model, the entries measured on it, and the estimators it is trained with.

    The first entry of each objective is the reference for its mean.
    """

    name: str
    spec: vae_jax.ModelSpec
    entries: tuple[Entry, ...]
    trained_with: dict[str, Estimator]


def gaussian_model(data_shape: tuple[int, ...], latent_dim: int, width: int) -> Model:
    """Model with Gaussian latents: ELBO, Monte Carlo KL, importance-weighted bound."""
    spec = vae_jax.ModelSpec(
        encoder=vae_jax.MLP((width,)),
        decoder=vae_jax.MLP((width,)),
        latent_dim=latent_dim,
        data_shape=data_shape,
    )
    elbo = partial(
        _elbos,
        "reparameterization score_function mean_baseline optimal_baseline "
        "leave_one_out delta_control_variate measure_valued",
    )
    bounds = "doubly_reparameterized reparameterization score_function leave_one_out"
    entries = (
        *elbo("ELBO"),
        *_elbos("reparameterization path_derivative", "ELBO, Monte Carlo KL"),
        *(
            Entry(
                "importance-weighted bound",
                name,
                partial(_bound, getattr(estimators, name)),
                fewest_samples=2,
            )
            for name in bounds.split()
        ),
    )
    names = "reparameterization leave_one_out score_function"
    return Model("Gaussian latents", spec, entries, _by_name(names))


def bits_model(data_shape: tuple[int, ...], num_bits: int, width: int) -> Model:
    """Model with Bernoulli latents and a learned factorized prior."""
    spec = vae_jax.ModelSpec(
        encoder=vae_jax.MLP((width,)),
        decoder=vae_jax.MLP((width,)),
        posterior=vae_jax.FactorizedBernoulli(),
        prior=vae_jax.FactorizedBernoulliPrior(),
        latent_dim=num_bits,
        data_shape=data_shape,
    )
    names = (
        "exact_enumeration score_function mean_baseline optimal_baseline leave_one_out "
        "arm disarm rebar gumbel_softmax straight_through"
    )
    trained_with = _by_name("disarm leave_one_out score_function straight_through")
    return Model("bits", spec, _elbos(names, "ELBO"), trained_with)


def _by_name(names: str) -> dict[str, Estimator]:
    return {name: getattr(estimators, name) for name in names.split()}


def _elbos(names: str, objective: str) -> tuple[Entry, ...]:
    kl = "monte_carlo" if "Monte Carlo" in objective else "auto"
    return tuple(
        Entry(
            objective,
            name,
            partial(_elbo, estimator, kl),
            fewest_samples=2 if name == "leave_one_out" else 1,
        )
        for name, estimator in _by_name(names).items()
    )


def _elbo(estimator: Estimator, kl: str, params, x, key, num_samples) -> Array:
    return vae_jax.elbo(
        params, x, key, num_samples=num_samples, kl=kl, estimator=estimator
    )


def _bound(estimator: Estimator, params, x, key, num_samples) -> Array:
    return vae_jax.importance_weighted_bound(
        params, x, key, num_samples=num_samples, estimator=estimator
    )


class Trained(NamedTuple):
    """Parameters at the three stages, and the test ELBO after each epoch."""

    stages: dict[str, vae_jax.Params]
    test_elbo: list[float]


def train(
    model: Model,
    estimator: Estimator,
    dataset: data.Dataset,
    *,
    epochs: int,
    seed: int,
) -> Trained:
    """Train a model with one estimator; all estimators share start and data order."""
    keys = vae_jax.run_keys(jax.random.key(seed))
    test_key, _ = jax.random.split(keys.evaluation)
    pixels = data.to_unit_interval(dataset.train.mean(axis=0), dataset.num_levels)
    params = vae_jax.init(model.spec, keys.weights, x=pixels[None])
    x_test = binarized_test(dataset)
    stages = {STAGES[0]: params}
    curve = [_mean_elbo(params, x_test, test_key)]

    def keep(number: int, figures: dict[str, float], params: vae_jax.Params) -> None:
        stages[STAGES[2]] = params
        stages.setdefault(STAGES[1], params)
        curve.append(_mean_elbo(params, x_test, test_key))

    vae_jax.fit(
        params,
        dataset.train,
        keys.noise,
        num_epochs=epochs,
        objective=vae_jax.ELBO(num_samples=TRAINING_SAMPLES, estimator=estimator),
        preprocess=lambda batch, key: data.binarize(
            data.to_unit_interval(batch, dataset.num_levels), key
        ),
        callback=keep,
    )
    return Trained(stages, curve)


def num_epochs(wanted: int | None, dataset: data.Dataset) -> int:
    """Requested epochs, or by default about 2000 steps, but at least five epochs."""
    return wanted or max(5, STEPS_WANTED * 128 // len(dataset.train))


def binarized_test(dataset: data.Dataset) -> Array:
    """Binarize the first 1000 test images once."""
    images = data.to_unit_interval(jnp.asarray(dataset.test[:1000]), dataset.num_levels)
    return data.binarize(images, evaluation_keys().data)


@jax.jit
def _evaluate(params: vae_jax.Params, x: Array, key: Key) -> Array:
    return jnp.mean(vae_jax.evaluate(params, x, key).elbo)


def _mean_elbo(params: vae_jax.Params, x: Array, key: Key) -> float:
    return float(_evaluate(params, x, key))


def measure(
    model: Model,
    stages: dict[str, vae_jax.Params],
    x: Array,
    *,
    sample_counts: tuple[int, ...],
    num_draws: int,
    key: Key,
    progress: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Measure every entry of a model at every stage and number of samples.

    Args:
      model: the model and its entries.
      stages: parameters by stage.
      x: batch whose gradient is drawn, `[B, D]`.
      sample_counts: numbers of samples per estimate.
      num_draws: gradients drawn per row.
      key: PRNG key; every row uses the same noise.
      progress: called with a short description of the current step.
    """
    rows = []
    for count in sample_counts:
        references: dict[tuple[str, str], tuple[Array, float, float]] = {}
        for entry in model.entries:
            most = MOST_SAMPLES.get(entry.estimator, count)
            if not entry.fewest_samples <= count <= most:
                continue
            progress(f"{model.name}: {entry.estimator}, {count} samples")
            draws = 2 if entry.estimator == "exact_enumeration" else num_draws
            compiled = _compile(entry, count, draws, stages, x, key)
            for stage, params in stages.items():
                reference = references.get((entry.objective, stage))
                if reference is None:
                    nowhere = jnp.zeros(ravel_pytree(params.encoder)[0].shape)
                    mean = compiled(params, x, nowhere, key).parameters.mean
                    direction = mean["encoder"] / jnp.linalg.norm(mean["encoder"])
                else:
                    direction = reference[0]
                start = time.perf_counter()
                moments = jax.block_until_ready(compiled(params, x, direction, key))
                seconds = (time.perf_counter() - start) / draws
                row = _row(model, entry, stage, count, moments, seconds)
                known = (direction, row["along"], row["along_standard_error"])
                _, along, error = references.setdefault((entry.objective, stage), known)
                error = np.hypot(error, row["along_standard_error"])
                difference = row["along"] - along
                row["mean_difference"] = difference / along
                row["mean_z"] = float(difference / error) if difference else 0.0
                rows.append(row)
    return rows


def _compile(entry: Entry, count: int, num_draws: int, stages, x: Array, key: Key):
    """Compile the moments of an entry's encoder gradient, once for all stages."""

    def moments(params: vae_jax.Params, x: Array, direction: Array, key: Key):
        def draw(key: Key) -> dict[str, Array]:
            def value(encoder):
                return entry.value(params.replace(encoder=encoder), x, key, count)

            gradient, _ = ravel_pytree(jax.grad(value)(params.encoder))
            return {"encoder": gradient, "along": gradient @ direction}

        return estimators.gradient_moments(
            draw, key, num_draws=num_draws, chunk_size=CHUNK
        )

    params = stages[STAGES[0]]
    direction = ravel_pytree(params.encoder)[0]
    return jax.jit(moments).lower(params, x, direction, key).compile()


def _row(
    model: Model,
    entry: Entry,
    stage: str,
    count: int,
    moments: estimators.GradientMoments,
    seconds: float,
) -> dict[str, Any]:
    encoder = {
        name: float(getattr(moments.leaves, name)["encoder"])
        for name in ("variance", "variance_standard_error", "signal_to_noise")
    }
    along = moments.parameters
    return {
        "part": "vae",
        "model": model.name,
        "objective": entry.objective,
        "estimator": entry.estimator,
        "stage": stage,
        "num_samples": count,
        "num_draws": int(moments.num_draws),
        **encoder,
        "seconds_per_draw": seconds,
        "cost_adjusted_variance": float(
            moments.cost_adjusted_variance(seconds)["encoder"]
        ),
        "unbiased": entry.estimator not in BIASED,
        "along": float(along.mean["along"]),
        "along_standard_error": float(along.mean_standard_error["along"]),
    }


def variance_ratio(rows: list[dict[str, Any]]) -> float:
    """Ratio of variances, score function over reparameterization.

    For the ELBO at the end of training, with the fewest samples.
    """
    fewest = min(row["num_samples"] for row in rows)
    variance = {
        row["estimator"]: row["variance"]
        for row in rows
        if (row["model"], row["objective"], row["stage"], row["num_samples"])
        == ("Gaussian latents", "ELBO", "end", fewest)
    }
    return variance["score_function"] / variance["reparameterization"]
