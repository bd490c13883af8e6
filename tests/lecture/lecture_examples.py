"""Numbers and models shared by the tests of several sets of notes."""

import importlib
import math
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from experiments.lecture import evidence
from vae_jax import (
    Gaussian,
    Linear,
    ModelSpec,
    exact,
)


def topic(name):
    return importlib.import_module(f"experiments.lecture.{name}")


def numpy_kl(p, q):
    """KL(p || q) by its definition, for strictly positive probabilities."""
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


LETTERS = np.array([0.7, 0.2, 0.1])


UNIFORM = np.full(3, 1 / 3)


WEIGHTS = np.array([[1.0, 0.5], [0.3, -0.8], [0.2, 0.6]])


BIAS, NOISE_VAR = np.array([0.1, -0.2, 0.3]), 0.5


X = np.array([[0.5, 1.0, -0.3], [1.5, -0.4, 0.2], [-2.0, 0.1, 0.7], [0.0, 0.0, 0.0]])


Q_MEAN = np.array([[0.2, 0.5], [0.9, -0.3], [-1.0, 0.4], [0.1, 0.1]])


Q_LOG_VAR = np.log(np.array([[0.4, 0.6], [0.2, 0.9], [1.3, 0.5], [0.5, 0.5]]))


COVARIANCE = WEIGHTS @ WEIGHTS.T + NOISE_VAR * np.eye(3)


def model_of_weights(weights=WEIGHTS):
    arrays = (weights, BIAS, np.asarray(NOISE_VAR))
    return exact.LinearGaussian(*map(jnp.asarray, arrays))


def numpy_gaussian_kl(mean, variance, other_mean, other_covariance):
    """KL of a diagonal to a full Gaussian, by the closed form in NumPy."""
    inverse, shift = np.linalg.inv(other_covariance), other_mean - mean
    _, log_det = np.linalg.slogdet(other_covariance)
    trace = np.trace(inverse @ np.diag(variance))
    square = shift @ inverse @ shift
    return 0.5 * (trace + square - len(mean) + log_det - np.log(variance).sum())


def best_of(plane, fidelity, beta):
    """Mean and scale of the q maximising fidelity * E log p(x|z) - beta * KL."""
    means, scales, log_likelihood, kl = plane
    values = fidelity * log_likelihood - beta * kl
    row, column = np.unravel_index(np.argmax(values), values.shape)
    return means[row], scales[column]


def linear_spec(**choices):
    return ModelSpec(
        **{
            "encoder": Linear(),
            "decoder": Linear(),
            "likelihood": Gaussian(),
            "latent_dim": 2,
            "data_shape": (3,),
        }
        | choices
    )


def small_joint():
    """p(z), p(x|z), p(x, z) and p(z|x) for two values of z and three of x."""
    prior, likelihood = (
        np.array([0.3, 0.7]),
        np.array([[0.2, 0.5, 0.3], [0.6, 0.1, 0.3]]),
    )
    joint = prior[:, None] * likelihood
    return prior, likelihood, joint, joint / joint.sum(axis=0)


def arbitrary_q():
    prior, likelihood, joint, posterior = small_joint()
    q = np.array([0.6, 0.4])
    return q, joint[:, 0], posterior[:, 0], joint[:, 0].sum()


def mean_is(draws, value):
    return abs(draws.mean() - value) < 5 * draws.std() / math.sqrt(len(draws))


PAGE = Path(evidence.__file__).parents[2] / "docs" / "lecture" / "index.md"


def page():
    return PAGE.read_text()
