"""Denoising, super-resolution and inpainting (S2-5).

    python -m experiments.lecture.applications

The encoder receives a damaged image and the decoder reconstructs the clean one: the
objective is the ELBO of x with q(z|damaged x). The models of all three tasks train in
one program, for a VAE and for an autoencoder. Baselines are the damaged image itself, a
projection on principal components, and ridge regression from damaged to clean images.
Two minutes on two cores.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge

import vae_jax
from experiments.lecture.images import Images, draw_rows, load
from experiments.lecture.report import Check, Report, topic
from experiments.lecture.training import epochs_for, fit
from experiments.runner import flags
from vae_jax import MLP, DiagonalGaussian, ModelSpec, Params, PointMass
from vae_jax.types import Array, Key

NOISE = 0.4  # Standard deviation of the noise to remove.
TASKS = ("denoising", "super-resolution", "inpainting")
METHODS = ("damaged", "PCA", "linear map", "autoencoder", "VAE")


@dataclass(frozen=True)
class Config(flags.DataFlags):
    """Repair damaged images with a VAE, an autoencoder, and linear baselines."""

    num_steps: flags.Count = 3000
    """Training steps, in whole epochs."""
    hidden_dims: tuple[int, ...] = (256,)
    """Hidden widths of the encoders; the decoders have them in reverse."""
    latent_dim: flags.Count = 32
    """Latent dimension of the models and number of principal components."""
    num_test: Annotated[int, flags.at_least(10)] = 1000
    """Number of test images to repair."""
    seed: flags.Natural = 0
    """Seed of the weights, the noise and the order of the data."""
    run_dir: str = "runs/lecture/applications"
    """Folder for results.json and figures/."""


def add_noise(x: Array, key: Key, shape: tuple[int, ...]) -> Array:
    """Add Gaussian noise and clip to [0, 1]."""
    return jnp.clip(x + NOISE * jax.random.normal(key, x.shape, x.dtype), 0, 1)


def block_side(shape: tuple[int, ...]) -> int:
    """Side, in pixels, of the blocks averaged for super-resolution."""
    return 4 if min(shape) >= 16 else 2


def lower_resolution(x: Array, key: Key, shape: tuple[int, ...]) -> Array:
    """Replace blocks of pixels by their means."""
    side = block_side(shape)
    height, width = (size // side for size in shape)
    blocks = x.reshape(-1, height, side, width, side).mean(axis=(2, 4))
    large = jnp.repeat(jnp.repeat(blocks, side, axis=1), side, axis=2)
    return large.reshape(x.shape)


def cover(x: Array, key: Key, shape: tuple[int, ...]) -> Array:
    """Set the lower half of each image to zero."""
    rows = jnp.arange(shape[0])[:, None] < shape[0] / 2
    visible = jnp.broadcast_to(rows, shape).reshape(-1)
    return jnp.where(visible, x, 0.0)


DAMAGES = (add_noise, lower_resolution, cover)


def damage(task: Array | int, x: Array, key: Key, shape: tuple[int, ...]) -> Array:
    """Damage images for a task. `task` may be traced, so one program covers all."""
    branches = [partial(function, shape=shape) for function in DAMAGES]
    return jax.lax.switch(task, branches, x, key)


def repair_objective(task: Array, shape: tuple[int, ...]) -> Callable:
    """Objective of a task: the ELBO of x with q(z|damaged x)."""

    def objective(params: Params, x: Array, key: Key, step: Array):
        damage_key, elbo_key = jax.random.split(key)
        posterior = vae_jax.encode(params, damage(task, x, damage_key, shape))
        terms = vae_jax.elbo_terms(params, x, elbo_key, posterior=posterior)
        elbo = terms.elbo.mean()
        return elbo, {"elbo": elbo}

    return objective


def train_models(images: Images, key: Key, config: Config) -> dict[str, Params]:
    """Train, for each posterior family, one model per task along a leading axis."""
    num_epochs = epochs_for(config.num_steps, len(images.train))
    init_key, fit_key = jax.random.split(key)
    trained = {}
    for name, family in (("autoencoder", PointMass()), ("VAE", DiagonalGaussian())):
        spec = ModelSpec(
            encoder=MLP(config.hidden_dims),
            decoder=MLP(config.hidden_dims[::-1]),
            posterior=family,
            latent_dim=config.latent_dim,
            data_shape=images.data_shape,
        )
        start = vae_jax.init(spec, init_key, x=images.train)

        def train(task: Array, start=start) -> Params:
            # The Bernoulli log-probability of grey values fits their means.
            params, _ = fit(
                start,
                images.train,
                fit_key,
                num_epochs=num_epochs,
                objective=repair_objective(task, images.data_shape),
                preprocess=None,
            )
            return params

        trained[name] = jax.jit(jax.vmap(train))(jnp.arange(len(TASKS)))
    return trained


def psnr(repaired: Array, clean: Array) -> float:
    """Peak signal-to-noise ratio in decibels: -10 log10 of the mean squared error."""
    return float(-10 * jnp.log10(jnp.mean(jnp.square(repaired - clean))))


def repair(models: dict[str, Params], images: Images, key: Key, config: Config):
    """Repair test images with every method, `[task][method] -> [n, D]`."""
    train_key, test_key = jax.random.split(key)
    clean = images.test[: config.num_test]
    pca = PCA(min(config.latent_dim, clean.shape[1])).fit(images.train)
    few = images.train[:10_000]
    rebuild = jax.jit(
        lambda params, x: vae_jax.decode(params, vae_jax.encode(params, x).mean).mean
    )
    found = {}
    for index, task in enumerate(TASKS):
        given = damage(index, clean, test_key, images.data_shape)
        example = damage(index, few, train_key, images.data_shape)
        linear = Ridge(1.0).fit(np.asarray(example), np.asarray(few))
        found[task] = {
            "damaged": given,
            "PCA": jnp.asarray(pca.inverse_transform(pca.transform(given))),
            "linear map": jnp.asarray(linear.predict(np.asarray(given))),
        }
        for name, params in models.items():
            of_task = jax.tree.map(lambda leaf, index=index: leaf[index], params)
            found[task][name] = rebuild(of_task, given)
        # Linear maps can leave the range of a pixel.
        found[task] = {name: jnp.clip(x, 0, 1) for name, x in found[task].items()}
    return clean, found


def checks_of(clean: Array, found, key: Key) -> tuple[list[Check], list[str]]:
    """Checks of the VAE against the damaged image and PCA, and a table of all PSNRs."""
    ratios = {
        task: {method: psnr(pictures, clean) for method, pictures in methods.items()}
        for task, methods in found.items()
    }
    checks = [
        Check("S2-5", f"{task}: dB, VAE above {other}", by["VAE"], by[other], 0, ">")
        for task, by in ratios.items()
        for other in ("damaged", "PCA")
    ]
    # A known error: noise of variance 0.01 has a PSNR of 20 dB.
    noise = 0.1 * jax.random.normal(key, clean.shape)
    checks.append(
        Check(
            "S2-5", "dB of noise of variance 0.01", psnr(clean + noise, clean), 20, 0.1
        )
    )
    lines = [f"{'dB':18}" + "".join(f"{method:>13}" for method in METHODS)]
    for task, by in ratios.items():
        lines.append(f"{task:18}" + "".join(f"{by[name]:13.2f}" for name in METHODS))
    return checks, lines


def draw_ratios(clean: Array, found, name: str) -> Figure:
    """Bar chart of the PSNR of each method and task."""
    figure = Figure((7, 3.8))
    axes = figure.subplots()
    places = np.arange(len(TASKS))
    for number, method in enumerate(METHODS):
        values = [psnr(found[task][method], clean) for task in TASKS]
        bars = axes.bar(places + 0.16 * (number - 2), values, 0.15, label=method)
        axes.bar_label(bars, fmt="%.1f", fontsize=7)
    axes.set_xticks(places, TASKS)
    axes.set(ylabel="PSNR, dB; more is better")
    axes.set_title(f"{name}: repairing test images")
    figure.legend(loc="outside lower center", ncols=len(METHODS))
    return figure


def compute(config: Config) -> Report:
    """Compute every check and figure of the topic."""
    images = load(config)
    shape = images.data_shape
    if len(shape) != 2 or any(size % block_side(shape) for size in shape):
        raise ValueError(
            f"--dataset must contain grey images with sides divisible by "
            f"{block_side(shape)}, got shape {shape}"
        )
    train_key, damage_key, noise_key = jax.random.split(jax.random.key(config.seed), 3)
    models = train_models(images, train_key, config)
    clean, found = repair(models, images, damage_key, config)
    checks, lines = checks_of(clean, found, noise_key)
    figures = {"ratios": draw_ratios(clean, found, images.name)}
    for task in TASKS:
        rows = [("clean", clean[:10])]
        rows += [(name, found[task][name][:10]) for name in METHODS]
        title = f"{images.name}: {task}, test images"
        figures[task.replace("-", "_")] = draw_rows(rows, images.data_shape, title)
    title = f"Applications, {images.name}"
    return Report(title, checks, figures, [*images.notes, *lines])


run, main = topic("applications", Config, compute)

if __name__ == "__main__":
    main()
