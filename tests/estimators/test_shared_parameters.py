"""Estimators treat examples separately when a distribution shares parameters."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from specs import SPECS, example_data, random_params

from vae_jax import elbo_terms
from vae_jax.estimators import (
    exact_enumeration,
    leave_one_out,
    mean_baseline,
    optimal_baseline,
    score_function,
)
from vae_jax.types import Distribution

ON_ANY_DENSITY = {
    "score_function": score_function,
    "mean_baseline": mean_baseline,
    "leave_one_out": leave_one_out,
    "optimal_baseline": partial(optimal_baseline, num_baseline_samples=4),
}


# The others do not need per-example scores and take seconds to compile.
@pytest.mark.long
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name == "optimal_baseline" else pytest.mark.slow)
        for name in ON_ANY_DENSITY
    ],
)
def test_the_gradient_of_an_example_does_not_depend_on_the_others(name):
    """For all parameters of a model whose upper encoders are shared by all examples."""
    spec = dict(SPECS)["three-stochastic-layers"]
    params, x = random_params(spec), example_data(spec)[:2]
    changed = np.stack([x[0], 1 - x[1]])

    @jax.jit
    def gradients(params, x):
        def first(params):
            terms = elbo_terms(
                params,
                x,
                jax.random.key(1),
                num_samples=2,
                estimator=ON_ANY_DENSITY[name],
            )
            return terms.elbo[0]

        return jax.grad(first)(params)

    before, after = gradients(params, x), gradients(params, changed)
    for part in ("encoder", "posterior", "decoder", "prior"):
        for one, other in zip(
            *(jax.tree.leaves(getattr(found, part)) for found in (before, after)),
            strict=True,
        ):
            size = np.abs(one).max()
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * size)


NOISE = np.float32(np.random.default_rng(2).normal(size=(8, 3, 2)))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SharedScale(Distribution):
    """N(mean, exp(log_scale)^2) from fixed noise; all examples share the scale."""

    log_scale: jax.Array  # [1, L]
    mean: jax.Array  # [B, L]

    def log_prob(self, z):
        noise = (z - self.mean) * jnp.exp(-self.log_scale)
        return jnp.sum(-0.5 * noise**2 - self.log_scale, axis=-1)

    def sample_and_log_prob(self, key, num_samples):
        """Use the last `num_samples` rows of the noise: 5 and 3 samples differ."""
        z = self.mean + jnp.exp(self.log_scale) * NOISE[-num_samples:]
        return z, self.log_prob(z)


def test_the_optimal_baseline_is_that_of_each_example_by_brute_force():
    rng = np.random.default_rng(3)
    log_scale, mean = rng.normal(size=(1, 2)), rng.normal(size=(3, 2))
    sizes = np.float32([1, 10, 100])

    def total(log_scale, mean, cotangent):
        q = SharedScale(log_scale, mean)
        estimate = optimal_baseline(
            lambda z, log_q: sizes * jnp.sum(z**2, axis=-1),
            q,
            jax.random.key(0),
            num_samples=3,
            num_baseline_samples=5,
        )
        return jnp.sum(cotangent * estimate)

    gradient = jax.jit(jax.grad(total, (0, 1)))
    arguments = np.float32(log_scale), np.float32(mean)

    def expected(example):
        """(f - b) score of 3 samples, with b = E[f score^2] / E[score^2] of 5."""
        scale, noise = np.exp(log_scale[0]), np.float64(NOISE[:, example])
        f = sizes[example] * ((mean[example] + scale * noise) ** 2).sum(-1)[:, None]
        score = np.concatenate([noise**2 - 1, noise / scale], axis=-1)
        square = score[-5:] ** 2
        baseline = (f[-5:] * square).sum(axis=0) / square.sum(axis=0)
        return ((f[-3:] - baseline) * score[-3:]).mean(axis=0)

    for example in range(3):
        by_scale, by_mean = gradient(*arguments, np.eye(3, dtype=np.float32)[example])
        found = np.concatenate([by_scale[0], by_mean[example]])
        np.testing.assert_allclose(found, expected(example), rtol=2e-4)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SharedLogits(Distribution):
    """Bits whose logits are per-example logits plus shared ones."""

    shared: jax.Array  # [1, L]
    own: jax.Array  # [B, L]
    is_enumerable: ClassVar[bool] = True

    def enumerate_support(self):
        return jnp.array([[0, 0], [0, 1], [1, 0], [1, 1]], self.own.dtype)[:, None]

    def log_prob(self, z):
        logits = self.shared + self.own
        return jnp.sum(z * logits - jax.nn.softplus(logits), axis=-1)


def test_the_batch_is_enumerated_where_the_first_parameter_is_shared():
    shared, own = np.float32([[0.5, -1.0]]), np.float32([[0.0, 1.0], [2.0, 0.3]])
    q = SharedLogits(jnp.asarray(shared), jnp.asarray(own))
    found = exact_enumeration(lambda z, _: z[..., 0], q, jax.random.key(0))
    expected = scipy.special.expit(own + shared)[:, 0]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
