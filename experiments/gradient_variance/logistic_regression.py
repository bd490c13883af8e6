"""Part logistic: Bayesian logistic regression on breast-cancer data.

The setting follows Mohamed, Rosca, Figurnov & Mnih 2020, section 8.2: scikit-learn's
data set of 569 tumours with 30 features, weights w ~ N(0, I), a diagonal Gaussian q(w),
batches of 32, 50 samples of w, and 5000 steps of Adam at 1e-3 with cosine decay.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_breast_cancer

from vae_jax import estimators
from vae_jax.distributions import DiagonalGaussianDistribution, bernoulli, gaussian
from vae_jax.types import Array, Estimator, Key

NUM_SAMPLES = 50
BATCH_SIZE = 32
LEARNING_RATE = 1e-3
VARIANCE_DRAWS = 1000
RECORDS = 50

ESTIMATORS: dict[str, Estimator] = {
    "reparameterization": estimators.reparameterization,
    "score_function": estimators.score_function,
    "leave_one_out": estimators.leave_one_out,
    "delta_control_variate": partial(
        estimators.delta_control_variate, num_coefficient_samples=25
    ),
}
# Four evaluations per sample and weight: measured, but too slow for training.
MEASURED = ESTIMATORS | {"measure_valued": estimators.measure_valued}


class Curve(NamedTuple):
    """Training run of one estimator.

    Attributes:
      steps: steps at which the ELBO was recorded.
      elbo: ELBO of the whole data set, nats.
      posterior: final q.
    """

    steps: np.ndarray
    elbo: np.ndarray
    posterior: DiagonalGaussianDistribution


def load() -> tuple[Array, Array]:
    """Load standardized features with a constant, `[569, 31]`, and classes `[569]`."""
    features, classes = load_breast_cancer(return_X_y=True)
    features = (features - features.mean(axis=0)) / features.std(axis=0)
    ones = np.ones((len(features), 1))
    return (
        jnp.asarray(np.concatenate([features, ones], axis=1), jnp.float32),
        jnp.asarray(classes, jnp.float32),
    )


def elbo(
    posterior: DiagonalGaussianDistribution,
    features: Array,
    classes: Array,
    key: Key,
    *,
    num_examples: int,
    estimator: Estimator,
    num_samples: int = NUM_SAMPLES,
) -> Array:
    """Minibatch estimate of the ELBO of all examples, in nats.

    (num_examples / B) E_q[log p(classes | w)] - KL(q || prior).

    Args:
      posterior: q(w), a batch of one.
      features: features of the minibatch, `[B, 31]`.
      classes: 0 or 1, `[B]`.
      key: PRNG key, consumed once.
      num_examples: size of the data set.
      estimator: gradient estimator of the expectation.
      num_samples: samples of w.
    """

    def log_likelihood(w: Array, log_q: Array) -> Array:
        return bernoulli.log_prob(classes, w @ features.T)

    expectation = estimator(
        log_likelihood,
        posterior,
        key,
        num_samples=num_samples,
        reduction=estimators.sample_mean,
    )
    kl = gaussian.diagonal_kl_to_standard_normal(posterior.mean, posterior.log_var)
    return (num_examples / len(features) * expectation - kl)[0]


def train(
    estimator: Estimator, features: Array, classes: Array, key: Key, *, num_steps: int
) -> Curve:
    """Fit q with one estimator, with all steps in one compiled program."""
    optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, num_steps))
    num_examples, num_features = features.shape
    posterior = DiagonalGaussianDistribution(*jnp.zeros((2, 1, num_features)))
    every = max(1, num_steps // RECORDS)
    steps_key, record_key = jax.random.split(key)

    def step(carry, number: Array):
        posterior, opt_state = carry
        batch_key, noise_key = jax.random.split(jax.random.fold_in(steps_key, number))
        batch = jax.random.choice(batch_key, num_examples, (BATCH_SIZE,), replace=False)

        def loss(posterior: DiagonalGaussianDistribution) -> Array:
            return -elbo(
                posterior,
                features[batch],
                classes[batch],
                noise_key,
                num_examples=num_examples,
                estimator=estimator,
            )

        updates, opt_state = optimizer.update(jax.grad(loss)(posterior), opt_state)
        # Optax returns the pytree type it was given, but annotates some containers.
        moved: Any = optax.apply_updates(posterior, updates)
        return (moved, opt_state), None

    def record(carry, start: Array):
        carry, _ = jax.lax.scan(step, carry, start + jnp.arange(every))
        value = elbo(
            carry[0],
            features,
            classes,
            record_key,
            num_examples=num_examples,
            estimator=estimators.value_only,
            num_samples=1000,
        )
        return carry, value

    starts = jnp.arange(0, num_steps, every)
    run = jax.jit(partial(jax.lax.scan, record))
    (posterior, _), values = run((posterior, optimizer.init(posterior)), starts)
    return Curve(np.asarray(starts + every), np.asarray(values), posterior)


def gradient_variances(
    posterior: DiagonalGaussianDistribution, features: Array, classes: Array, key: Key
) -> dict[str, estimators.GradientMoments]:
    """Moments of the gradient with respect to q's parameters, on the whole data set."""
    moments = {}
    for name, estimator in MEASURED.items():
        value = partial(
            elbo, num_examples=len(features), estimator=estimator, num_samples=10
        )

        @jax.jit
        def measure(posterior, key, value=value):
            return estimators.gradient_moments(
                lambda key: jax.grad(value)(posterior, features, classes, key),
                key,
                num_draws=VARIANCE_DRAWS,
                chunk_size=10,
            )

        moments[name] = jax.device_get(measure(posterior, key))
    return moments


def accuracy(posterior: DiagonalGaussianDistribution, features, classes) -> float:
    """Fraction of examples classified correctly with w at the mean of q."""
    guesses = (features @ posterior.mean[0] > 0).astype(jnp.float32)
    return float(jnp.mean(guesses == classes))


def measure(*, num_steps: int, key: Key, progress=lambda _: None):
    """Measure rows at the start and end of training; return rows, curves, summary."""
    features, classes = load()
    train_key, draw_key = jax.random.split(key)
    curves = {}
    for name, estimator in ESTIMATORS.items():
        progress(f"logistic regression: training with {name}")
        curves[name] = train(
            estimator, features, classes, train_key, num_steps=num_steps
        )
    end = curves["reparameterization"].posterior
    rows: list[dict[str, Any]] = []
    for stage, posterior in (
        ("initialisation", jax.tree.map(jnp.zeros_like, end)),
        ("end", end),
    ):
        progress(f"logistic regression: gradient variance at {stage}")
        for name, moments in gradient_variances(
            posterior, features, classes, draw_key
        ).items():
            for parameter in ("mean", "log_var"):
                rows.append(
                    {
                        "part": "logistic",
                        "estimator": name,
                        "stage": stage,
                        "parameter": parameter,
                        "num_samples": 10,
                        "num_draws": int(moments.num_draws),
                        **{
                            figure: float(
                                getattr(getattr(moments.leaves, figure), parameter)
                            )
                            for figure in (
                                "mean",
                                "variance",
                                "variance_standard_error",
                                "signal_to_noise",
                            )
                        },
                    }
                )
    summary = {
        name: {
            "elbo": float(curve.elbo[-1]),
            "accuracy": accuracy(curve.posterior, features, classes),
        }
        for name, curve in curves.items()
    }
    return rows, curves, summary
