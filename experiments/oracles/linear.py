"""A linear VAE trained by gradient steps, compared with probabilistic PCA."""

import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import optax

import vae_jax
from experiments.runner.report import Check, row
from vae_jax import data, exact
from vae_jax.diagnostics import ACTIVE_VARIANCE

if TYPE_CHECKING:
    from experiments.oracles.__main__ import Config

LATENT_DIM = 10
BETAS = (1.0, 3.0, 5.0, 10.0)
NOISE_VAR = 0.1
BATCH_SIZE = 500
LEARNING_RATE = 1e-2


def run(config: "Config", dataset: data.Dataset, folder: Path) -> list[Check]:
    """Measure the ELBO of a trained linear VAE and its active directions under beta.

    Args:
      config: configuration; `linear_steps` and `seed` are used.
      dataset: data set, scaled to [0, 1] without binarization.
      folder: unused.

    Returns:
      Rows of the table.
    """
    train, test = (
        data.to_unit_interval(jnp.asarray(part), dataset.num_levels)
        for part in (dataset.train, dataset.test)
    )
    keys = jax.random.split(jax.random.key(config.seed), 2)
    return [
        *evidence_rows(train, test, keys[0], config.linear_steps),
        *live_rows(train, keys[1], math.ceil(config.linear_steps / 2)),
    ]


def spec(data_dim: int, latent_dim: int, *, learned: bool) -> vae_jax.ModelSpec:
    """Spec of a linear VAE with one noise variance."""
    return vae_jax.ModelSpec(
        encoder=vae_jax.Linear(),
        decoder=vae_jax.Linear(),
        likelihood=vae_jax.Gaussian(learned_variance=learned),
        latent_dim=latent_dim,
        data_shape=(data_dim,),
    )


def trained(params: vae_jax.Params, x, key, *, num_steps: int, beta=1.0):
    """Train for at least so many steps, with Adam and a cosine decay to zero."""
    batch_size = min(BATCH_SIZE, len(x))
    steps_per_epoch = math.ceil(len(x) / batch_size)
    num_epochs = math.ceil(num_steps / steps_per_epoch)
    rate = optax.cosine_decay_schedule(LEARNING_RATE, num_epochs * steps_per_epoch)
    return vae_jax.fit(
        params,
        x,
        key,
        num_epochs=num_epochs,
        batch_size=batch_size,
        objective=vae_jax.ELBO(beta=beta),
        optimizer=optax.adam(rate),
    ).params


def evidence_rows(train, test, key, num_steps: int) -> list[Check]:
    """Compare the ELBO of a trained model with the maximum-likelihood evidence."""
    best = jax.jit(partial(exact.maximum_likelihood, latent_dim=LATENT_DIM))(train)
    init_key, train_key, elbo_key = jax.random.split(key, 3)
    model = spec(train.shape[1], LATENT_DIM, learned=True)
    params = jax.jit(partial(vae_jax.init, model, x=train))(init_key)
    params = trained(params, train, train_key, num_steps=num_steps)
    evaluate = jax.jit(partial(vae_jax.evaluate, num_samples=16))
    optimum, own = jax.jit(exact.log_evidence), exact.linear_gaussian(params)
    gap = float(jax.jit(exact.diagonal_gap)(own))
    rows = []
    for name, x in (("test", test), ("train", train)):
        value = float(np.mean(np.asarray(optimum(best, x), np.float64)))
        elbo = np.asarray(evaluate(params, x, elbo_key).elbo, np.float64).mean()
        label = f"ELBO, trained, {name}; optimum"
        rows.append(row(label, float(elbo), exact=value, within=0.1))
    left = np.asarray(optimum(own, test), np.float64) - np.asarray(
        evaluate(params, test, elbo_key).elbo, np.float64
    )
    label = "  its log p(x) - ELBO, test; best diagonal q"
    rows.append(row(label, float(left.mean()), exact=gap))
    return rows


def live_rows(train, key, num_steps: int) -> list[Check]:
    """Compare active directions after training with the exact ones, for every beta."""
    covariance = np.cov(np.asarray(train, np.float64), rowvar=False, bias=True)
    values, vectors = np.linalg.eigh(covariance)
    latent_dim = min(80, train.shape[1] - 1)
    model = spec(train.shape[1], latent_dim, learned=False)
    init_key, train_key = jax.random.split(key)
    params = jax.jit(partial(vae_jax.init, model, x=train))(init_key)
    log_var = jnp.log(jnp.float32(NOISE_VAR))
    params = params.replace(likelihood={"log_var": log_var})
    betas = jnp.asarray(BETAS)
    sweep = jax.vmap(
        lambda beta: trained(params, train, train_key, num_steps=num_steps, beta=beta)
    )
    models = jax.jit(sweep)(betas)
    rows = []
    for index, beta in enumerate(BETAS):
        threshold = beta * NOISE_VAR
        count = int(exact.live_units(train, noise_var=NOISE_VAR, beta=beta))
        expected = int(np.sum(values > threshold))
        name = f"live directions, beta {beta:g}: exact.live_units; eigenvalues above"
        rows.append(row(name, count, exact=expected, within=0))
        weights = np.asarray(models.decoder["output"]["kernel"][index], np.float64)
        explained = np.sum(np.square(weights @ vectors), axis=0)
        clear = np.abs(values - threshold) > 0.1 * threshold
        # At the optimum an active direction explains eigenvalue - threshold.
        wrong = (explained > 0.05 * threshold) != (values > threshold)
        rows.append(
            row(
                f"  trained with {latent_dim} latents, directions that disagree",
                int(np.sum(wrong & clear)),
                exact=0,
                within=0,
            )
        )
        # At the optimum Var E[z|x] is 1 - threshold / eigenvalue.
        at_optimum = np.sum(values > threshold / (1 - ACTIVE_VARIANCE))
        label = "  active units by their variance, at the optimum"
        rows.append(row(label, int(at_optimum)))
    return rows
