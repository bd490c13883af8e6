"""Part snr: signal-to-noise ratio of the gradient of importance-weighted bounds.

The Gaussian model of Rainforth et al. 2018 ("Tighter variational bounds are not
necessarily better"): z ~ N(mu, I), x|z ~ N(z, I), q = N(A x + b, 2/3 I) in 20
dimensions, with parameters slightly perturbed from their optimum. With K importance
samples the signal-to-noise ratio scales like K^(1/2) for mu and like K^(-1/2) for A and
b; with the doubly reparameterized estimator, like K^(1/2) for A and b as well (Tucker
et al. 2019).
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import vae_jax
from vae_jax import estimators
from vae_jax.families import unbound_log_var
from vae_jax.types import Array, Key

LATENT_DIM = 20
BATCH_SIZE = 16
PERTURBATION = 0.01
SAMPLE_COUNTS = (1, 4, 16, 64, 256, 1024)
FIT_FROM = 16  # The scaling is asymptotic in K.
POSTERIOR_VAR = 2 / 3

SPEC = vae_jax.ModelSpec(
    encoder=vae_jax.Linear(),
    decoder=vae_jax.Linear(),
    prior=vae_jax.DiagonalGaussianPrior(),
    likelihood=vae_jax.Gaussian(),
    latent_dim=LATENT_DIM,
    data_shape=(LATENT_DIM,),
)
EXPECTED_SLOPES = {
    ("generative", "reparameterization"): 0.5,
    ("inference", "reparameterization"): -0.5,
    ("inference", "doubly_reparameterized"): 0.5,
}


class Toy(NamedTuple):
    """Parameters whose gradient is measured: mu `[L]`, A `[L, L]`, b `[L]`."""

    mu: Array
    slope: Array
    intercept: Array


def as_params(toy: Toy) -> vae_jax.Params:
    """Convert to the parameters of a linear VAE with a learned prior mean."""
    raw = unbound_log_var(jnp.full(LATENT_DIM, np.log(POSTERIOR_VAR)))
    zeros = jnp.zeros(LATENT_DIM)
    return vae_jax.Params(
        encoder={
            "output": {
                "kernel": jnp.concatenate([toy.slope.T, jnp.zeros_like(toy.slope)], 1),
                "bias": jnp.concatenate([toy.intercept, raw]),
            }
        },
        decoder={"output": {"kernel": jnp.eye(LATENT_DIM), "bias": zeros}},
        posterior={},
        prior={"mean": toy.mu, "log_var": zeros},
        likelihood={"log_var": jnp.zeros(())},
        spec=SPEC,
    )


def make_toy(key: Key) -> tuple[Toy, Array]:
    """Draw parameters near their optimum, and data from the model, `[B, L]`."""
    mu_key, data_key, noise_key = jax.random.split(key, 3)
    mu = jax.random.normal(mu_key, (LATENT_DIM,))
    # x has mean mu and covariance 2 I.
    shape = (BATCH_SIZE, LATENT_DIM)
    x = mu + jnp.sqrt(2.0) * jax.random.normal(data_key, shape)
    optimum = Toy(mu, 0.5 * jnp.eye(LATENT_DIM), mu / 2)
    keys = jax.tree.unflatten(
        jax.tree.structure(optimum), list(jax.random.split(noise_key, len(optimum)))
    )
    perturbed = jax.tree.map(
        lambda leaf, key: leaf + PERTURBATION * jax.random.normal(key, leaf.shape),
        optimum,
        keys,
    )
    return perturbed, x


def measure(*, num_draws: int, key: Key, progress=lambda _: None) -> list[dict]:
    """Measure the ratio for each parameter group, estimator and number of samples.

    The mean of the inference gradient falls like 1/K and is lost in the noise of the
    plain estimator. Both estimators have the same mean, so it is taken from the doubly
    reparameterized draws.
    """
    toy_key, draw_key = jax.random.split(key)
    toy, x = make_toy(toy_key)
    rows = []
    for count in SAMPLE_COUNTS:
        progress(f"signal to noise: {count} importance samples")
        chunk_size = max(1, min(200, 20_000 // count))
        moments = {}
        for name in ("doubly_reparameterized", "reparameterization"):
            moments[name] = jax.device_get(
                _moments(
                    toy,
                    x,
                    draw_key,
                    estimator=getattr(estimators, name),
                    num_samples=count,
                    num_draws=num_draws,
                    chunk_size=chunk_size,
                )
            )
        best = moments["doubly_reparameterized"].leaves
        for name, measured in moments.items():
            for group, names in (
                ("generative", ("mu",)),
                ("inference", ("slope", "intercept")),
            ):
                if group == "generative" and name == "doubly_reparameterized":
                    continue  # The estimators differ only in the gradient of q.
                norm = np.hypot.reduce([getattr(best.mean, leaf) for leaf in names])
                variance = sum(getattr(measured.leaves.variance, n) for n in names)
                rows.append(
                    {
                        "part": "snr",
                        "parameters": group,
                        "estimator": name,
                        "num_samples": count,
                        "num_draws": num_draws,
                        "mean_norm": float(norm),
                        "variance": float(variance),
                        "signal_to_noise": float(norm / np.sqrt(variance)),
                    }
                )
    return rows


@partial(
    jax.jit, static_argnames=("estimator", "num_samples", "num_draws", "chunk_size")
)
def _moments(
    toy: Toy, x: Array, key: Key, *, estimator, num_samples, num_draws, chunk_size
) -> estimators.GradientMoments:
    def draw(key: Key) -> Toy:
        def bound(toy: Toy) -> Array:
            return vae_jax.importance_weighted_bound(
                as_params(toy), x, key, num_samples=num_samples, estimator=estimator
            )

        return jax.grad(bound)(toy)

    return estimators.gradient_moments(
        draw, key, num_draws=num_draws, chunk_size=chunk_size
    )


def slopes(rows: list[dict[str, Any]]) -> dict[tuple[str, str], float]:
    """Slope of log ratio against log K >= log 16, by parameter group and estimator."""
    fits = {}
    for group in EXPECTED_SLOPES:
        points = [
            (row["num_samples"], row["signal_to_noise"])
            for row in rows
            if (row["parameters"], row["estimator"]) == group
            and row["num_samples"] >= FIT_FROM
        ]
        counts, ratios = np.log(np.array(points)).T
        fits[group] = float(np.polyfit(counts, ratios, 1)[0])
    return fits
