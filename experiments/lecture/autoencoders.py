"""Autoencoders: PCA, overfitting, generation (S0-1, S0-2, S2-1 to S2-7).

    python -m experiments.lecture.autoencoders

A linear autoencoder finds the principal subspace, a deep one reconstructs better and
memorises a small data set. Compared with a VAE of the same networks, its codes leave
holes: images decoded between codes, or from random codes, are judged by their nearest
neighbours in the training data. Two minutes on two cores. The linear part always uses
the 8x8 digits.
"""

from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import NearestNeighbors

import vae_jax
from experiments.lecture.images import Images, draw_rows, load
from experiments.lecture.report import Check, Report, topic
from experiments.lecture.training import epochs_for, fit, minimize
from experiments.runner import flags
from experiments.style import BY_LABEL, add_title
from vae_jax import (
    MLP,
    DiagonalGaussian,
    Gaussian,
    Linear,
    ModelSpec,
    Params,
    PointMass,
    data,
)
from vae_jax.distributions import multivariate_gaussian
from vae_jax.types import Array, Key

LINEAR_EXAMPLES = 1000
FEW = 8
NEIGHBOURS = 10


@dataclass(frozen=True)
class Config(flags.DataFlags):
    """Compare autoencoders with PCA and with a VAE."""

    linear_dim: flags.Count = 4
    """Latent dimension of the linear autoencoders."""
    linear_steps: flags.Count = 700
    """Steps of L-BFGS for each linear autoencoder."""
    latent_dim: flags.Count = 16
    """Latent dimension of the generative deep models; the plotted ones have two."""
    num_steps: Annotated[int, flags.at_least(20)] = 2500
    """Training steps of the deep models, in whole epochs."""
    hidden_dims: tuple[int, ...] = (200,)
    """Hidden widths of the deep encoders; the decoders have them in reverse."""
    num_pairs: Annotated[int, flags.at_least(18)] = 100
    """Number of pairs of test images to interpolate and of random codes to decode."""
    seed: flags.Natural = 0
    """Seed of the weights, the noise and the order of the data."""
    run_dir: str = "runs/lecture/autoencoders"
    """Folder for results.json and figures/."""


def tied_weights(x: Array, key: Key, *, latent_dim: int, num_steps: int) -> Array:
    """Fit the tied linear autoencoder x' = W W' x to centered data; W is `[D, L]`.

    The mean squared error depends on the data only through the covariance S:
    tr S - 2 tr W' S W + tr (W' S W)(W' W).
    """
    covariance = jnp.cov(x, rowvar=False, bias=True)

    def error(weights: Array) -> Array:
        inner = weights.T @ covariance @ weights
        gram = weights.T @ weights
        return jnp.trace(covariance) - 2 * jnp.trace(inner) + jnp.trace(inner @ gram)

    start = 0.1 * jax.random.normal(key, (x.shape[1], latent_dim), x.dtype)
    return minimize(error, start, num_steps=num_steps)


def untied(x: Array, key: Key, *, latent_dim: int, num_steps: int) -> Params:
    """Fit a linear autoencoder with separate encoder and decoder weights."""
    spec = ModelSpec(
        encoder=Linear(),
        decoder=Linear(),
        posterior=PointMass(),
        likelihood=Gaussian(),
        latent_dim=latent_dim,
        data_shape=(x.shape[1],),
    )
    params = vae_jax.init(spec, key, x=x, dtype=x.dtype)
    trained = vae_jax.trainable(params)

    def loss(weights) -> Array:
        # The KL of a point mass is taken as 0: the ELBO is the log-likelihood.
        weights = jax.tree.map(
            lambda new, old, train: new if train else old, weights, params, trained
        )
        return -vae_jax.elbo(weights, x, key)

    return minimize(loss, params, num_steps=num_steps)


def squared_error(params: Params, x: Array) -> Array:
    """Squared error |x - x'|^2: sum over pixels, mean over the examples."""
    rebuilt = vae_jax.decode(params, vae_jax.encode(params, x).mean).mean
    return jnp.mean(jnp.sum(jnp.square(x - rebuilt), axis=-1))


def linear_checks(x: Array, key: Key, config: Config) -> list[Check]:
    """Checks of tied and untied linear autoencoders against scikit-learn's PCA."""
    size = config.linear_dim
    pca = PCA(size, svd_solver="full").fit(x)
    axes = np.asarray(pca.components_).T
    eigenvalues = np.linalg.eigvalsh(np.cov(x.T, bias=True))
    best = eigenvalues[:-size].sum()
    options = {"latent_dim": size, "num_steps": config.linear_steps}
    tied_key, untied_key = jax.random.split(key)
    weights = tied_weights(x, tied_key, **options)
    centered = x - x.mean(axis=0)
    rebuilt = centered @ weights @ weights.T
    error = jnp.mean(jnp.sum(jnp.square(centered - rebuilt), axis=-1))
    projector = axes @ axes.T
    of_pca = np.mean(np.sum((x - pca.inverse_transform(pca.transform(x))) ** 2, axis=1))
    cosines = np.abs(axes.T @ weights / np.linalg.norm(weights, axis=0))
    own = untied(x, untied_key, **options)
    decoder = np.linalg.qr(own.decoder["output"]["kernel"].T)[0]
    gram_error = jnp.abs(weights.T @ weights - jnp.eye(size)).max()
    distance = jnp.linalg.norm(weights @ weights.T - jnp.eye(x.shape[1]))
    missing = np.sqrt(x.shape[1] - size)
    half = own.replace(likelihood={"log_var": jnp.log(jnp.asarray(0.5))})
    constant = 0.5 * x.shape[1] * np.log(np.pi)
    of_ours = squared_error(own, x)
    return [
        Check("S2-2", f"PCA: squared error, {size} components", of_pca, best, 1e-9),
        Check("S2-3", "tied: squared error", error, best, 1e-6),
        Check("S2-3", "untied: squared error", of_ours, best, 1e-4),
        Check(
            "S2-1",
            "-log p(x|z) - constant, s² = 1/2",
            -vae_jax.elbo(half, x, jax.random.key(0)) - constant,  # Deterministic.
            of_ours,
            1e-9,
        ),
        Check(
            "S2-3",
            "tied: WWᵀ minus PCA projection, largest",
            jnp.abs(weights @ weights.T - projector).max(),
            0,
            1e-4,
        ),
        Check(
            "S2-3",
            "untied: decoder's projection minus PCA's",
            np.abs(decoder @ decoder.T - projector).max(),
            0,
            1e-2,
        ),
        Check("S2-3", "tied: WᵀW minus identity, largest", gram_error, 0, 1e-4),
        Check("S2-3", "tied: |WWᵀ - I|, not 0", distance, missing, 1e-3),
        Check(
            "S2-3",
            "cosine of best column, worst PCA axis",
            cosines.max(axis=1).min(),
            0.99,
            relation="<",
        ),
    ]


def deep_spec(config: Config, data_shape, posterior, latent_dim: int = 2) -> ModelSpec:
    """Spec with the same networks for autoencoder and VAE; Bernoulli likelihood."""
    return ModelSpec(
        encoder=MLP(config.hidden_dims),
        decoder=MLP(config.hidden_dims[::-1]),
        posterior=posterior,
        latent_dim=latent_dim,
        data_shape=data_shape,
    )


def train_deep(
    images: Images, key: Key, config: Config, latent_dim: int
) -> dict[str, Params]:
    """Train an autoencoder and a VAE with the same networks."""
    init_key, fit_key = jax.random.split(key)
    num_epochs = epochs_for(config.num_steps, len(images.train))
    trained = {}
    for name, family in (("autoencoder", PointMass()), ("VAE", DiagonalGaussian())):
        spec = deep_spec(config, images.data_shape, family, latent_dim)
        params = vae_jax.init(spec, init_key, x=images.train)
        run = jax.jit(lambda params, x: fit(params, x, fit_key, num_epochs=num_epochs))
        trained[name], _ = run(params, images.train)
    return trained


def memorise(images: Images, key: Key, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Train an autoencoder on `FEW` images; return steps and train and test errors."""
    spec = deep_spec(config, images.data_shape, PointMass())
    few, test = images.train[:FEW], images.test[:1000]
    rounds = 20

    @jax.jit
    def go_on(params: Params, key: Key):
        params, _ = fit(
            params, few, key, num_epochs=config.num_steps // rounds, preprocess=None
        )
        return params, squared_error(params, few), squared_error(params, test)

    init_key, rounds_key = jax.random.split(key)
    params = vae_jax.init(spec, init_key, x=images.train)
    errors = []
    for number in range(rounds):
        params, *both = go_on(params, jax.random.fold_in(rounds_key, number))
        errors.append(both)
    steps = config.num_steps // rounds * np.arange(1, rounds + 1)
    return steps, np.array(errors)


class Neighbours:
    """Distance to the nearest training image, and label agreement of neighbours."""

    def __init__(self, images: Images, most: int = 5000):
        """Index the first `most` training images."""
        self._labels = images.train_labels[:most]
        self._index = NearestNeighbors(n_neighbors=NEIGHBOURS)
        self._index.fit(np.asarray(images.train[:most]))

    def __call__(self, x: Array) -> tuple[float, float]:
        """Mean distance to the nearest; mean share of the most common label of ten."""
        distances, index = self._index.kneighbors(np.asarray(x))
        labels = self._labels[index]
        commonest = [np.bincount(row).max() / NEIGHBOURS for row in labels]
        return float(distances[:, 0].mean()), float(np.mean(commonest))


def test_pairs(images: Images, config: Config) -> tuple[Array, Array]:
    """Draw pairs of test images with different labels."""
    draws = np.random.default_rng(config.seed)
    index = draws.integers(len(images.test), size=(20 * config.num_pairs, 2))
    differ = images.test_labels[index[:, 0]] != images.test_labels[index[:, 1]]
    first, second = index[differ][: config.num_pairs].T
    return images.test[first], images.test[second]


def random_codes(params: Params, x: Array, key: Key, num_samples: int) -> Array:
    """Draw codes from the prior, or from a Gaussian fitted to autoencoder codes."""
    if isinstance(params.spec.posterior, PointMass):
        codes = vae_jax.encode(params, x).mean
        factor = multivariate_gaussian.cholesky_factor(
            jnp.cov(codes, rowvar=False, bias=True)
        )
        return multivariate_gaussian.full_sample(
            codes.mean(axis=0), factor, key, num_samples=num_samples
        )
    return jax.random.normal(key, (num_samples, params.spec.latent_dim))


def holes(params: Params, images: Images, key: Key) -> float:
    """Deviation of the codes from a single Gaussian, in nats per code.

    The mean log-density of test codes under a mixture of twenty Gaussians with a shared
    covariance, minus that under one Gaussian; both are fitted to training codes.
    """

    def codes(x: Array, key: Key) -> np.ndarray:
        return np.asarray(vae_jax.reparameterize(vae_jax.encode(params, x), key)[0])

    keys = jax.random.split(key)
    train, test = codes(images.train[:5000], keys[0]), codes(images.test, keys[1])
    scores = [
        GaussianMixture(count, covariance_type="tied", tol=0.01, random_state=0)
        .fit(train)
        .score(test)
        for count in (1, 20)
    ]
    return scores[1] - scores[0]


def generation(models: dict[str, Params], images: Images, key: Key, config: Config):
    """Measure and return the images decoded between codes and from random codes."""
    neighbours = Neighbours(images)
    random_key, holes_key = jax.random.split(key)
    pairs = test_pairs(images, config)
    found, pictures = {}, {}
    for name, params in models.items():
        path = vae_jax.interpolate(params, *pairs, num_steps=9)
        z = random_codes(params, images.train, random_key, config.num_pairs)
        made = vae_jax.decode(params, z).mean
        found[name] = {
            "between": neighbours(path[1:-1].reshape(-1, path.shape[-1])),
            "random": neighbours(made),
            "holes": holes(params, images, holes_key),
        }
        pictures[name] = path, made
    found["test images"] = {"themselves": neighbours(images.test[:1000])}
    mixed = (pairs[0] + pairs[1]) / 2
    found["pixels"] = {"averaged": neighbours(mixed)}
    return found, pictures


def generation_checks(found) -> list[Check]:
    """Checks of the notes' claims: the VAE has denser codes and better samples."""
    plain, vae = found["autoencoder"], found["VAE"]
    nearest = "pixels to the nearest image: VAE's below AE's"
    checks = [
        Check(row, f"{kind}, {nearest}", vae[kind][0], plain[kind][0], relation="<")
        for row, kind in (("S0-2", "between"), ("S2-7", "random"))
    ]
    gain = "gain of a mixture on codes, nats: VAE below AE"
    return [*checks, Check("S0-1", gain, vae["holes"], plain["holes"], relation="<")]


def generation_notes(found) -> list[str]:
    """One line per model and kind of image."""
    return [
        f"{model}, {kind}: distance to the nearest training image {measured[0]:.2f}, "
        f"label agreement of its ten neighbours {measured[1]:.1%}"
        for model, kinds in found.items()
        for kind, measured in kinds.items()
        if kind != "holes"
    ]


def deep_checks(models: dict[str, Params], images: Images, errors) -> list[Check]:
    """Checks that a deep code of size 2 beats PCA and that `FEW` images overfit."""
    pca = PCA(2).fit(images.train)
    rebuilt = pca.inverse_transform(pca.transform(images.test))
    of_pca = np.mean(np.sum((images.test - rebuilt) ** 2, axis=1))
    of_deep = squared_error(models["autoencoder"], images.test)
    train_error, test_error = errors[-1]
    return [
        Check(
            "S2-4",
            "test squared error, 2 latents: below PCA's",
            of_deep,
            of_pca,
            relation="<",
        ),
        Check("S2-6", f"squared error of {FEW} training images", train_error, 0, 0.5),
        Check(
            "S2-6",
            "error of test images: above PCA's",
            test_error,
            of_pca,
            relation=">",
        ),
    ]


def draw_codes(models: dict[str, Params], images: Images) -> Figure:
    """Draw the codes of the test images under each model, side by side."""
    figure = Figure((8.6, 4.2))
    panels = figure.subplots(1, 2)
    for axes, (name, params) in zip(panels, models.items(), strict=True):
        codes = np.asarray(vae_jax.encode(params, images.test[:3000]).mean)
        axes.scatter(
            *codes.T,
            s=6,
            c=images.test_labels[:3000],
            cmap=BY_LABEL,
            vmin=-0.5,
            vmax=9.5,
        )
        axes.set(title=name, xlabel="z1", aspect="equal", adjustable="datalim")
    panels[0].set_ylabel("z2")
    figure.colorbar(
        panels[-1].collections[0], ax=panels, ticks=range(10), label="label"
    )
    add_title(figure, f"{images.name}: the VAE holds its codes together around 0")
    return figure


def draw_memory(steps, errors, of_pca: float) -> Figure:
    """Draw the squared errors of the memorised and of other images."""
    figure = Figure((6, 3.8))
    axes = figure.subplots()
    axes.semilogy(steps, errors[:, 0], "o-", label=f"the {FEW} training images")
    axes.semilogy(steps, errors[:, 1], "o-", label="test images")
    axes.axhline(of_pca, color="0.5", ls="--", label="test images, PCA of all data")
    axes.set(xlabel="training steps", ylabel="squared error of an image")
    axes.set_title("No loss on a small data set, and nothing learnt")
    axes.legend()
    return figure


def compute(config: Config) -> Report:
    """Compute every check and figure of the topic."""
    images = load(config)
    linear_key, plane_key, deep_key, memory_key, code_key = jax.random.split(
        jax.random.key(config.seed), 5
    )
    with jax.enable_x64(True):
        digits = data.load("digits").train[:LINEAR_EXAMPLES] / 16
        checks = linear_checks(digits - digits.mean(axis=0), linear_key, config)
    drawn = train_deep(images, plane_key, config, 2)
    models = train_deep(images, deep_key, config, config.latent_dim)
    steps, errors = memorise(images, memory_key, config)
    found, pictures = generation(models, images, code_key, config)
    of_deep = deep_checks(drawn, images, errors)
    checks += of_deep + generation_checks(found)
    between = [
        (name, path[:, pair])
        for pair in range(3)
        for name, (path, _) in pictures.items()
    ]
    made = [
        (name, picture[9 * row : 9 * row + 9])
        for name, (_, picture) in pictures.items()
        for row in range(2)
    ]
    shape, name = images.data_shape, images.name
    figures = {
        "codes": draw_codes(drawn, images),
        "interpolation": draw_rows(
            between, shape, f"{name}: decoded on the way between two codes"
        ),
        "random_codes": draw_rows(made, shape, f"{name}: random codes, decoded"),
        "memory": draw_memory(steps, errors, float(of_deep[0].exact)),
    }
    notes = [*images.notes, *generation_notes(found)]
    return Report(f"Autoencoders, {images.name}", checks, figures, notes)


run, main = topic("autoencoders", Config, compute)

if __name__ == "__main__":
    main()
