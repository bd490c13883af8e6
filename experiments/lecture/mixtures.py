"""k-means and Gaussian mixtures; a Gaussian from four images (S0-3, S2-8).

    python -m experiments.lecture.mixtures

A mixture has a discrete latent z, so its posterior, its evidence and its ELBO are sums.
EM uses the exact posterior as q and k-means a point mass, which is the relation of a
VAE to an autoencoder. Seconds on one core. The four images are MNIST digits if MNIST is
available, and 8x8 digits otherwise.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.colors import to_rgba_array
from matplotlib.figure import Figure
from sklearn.cluster import KMeans
from sklearn.mixture import GaussianMixture

from experiments.lecture.report import Check, Report, topic
from experiments.runner import flags
from experiments.style import COLORS, add_title, draw_pixels
from vae_jax import data
from vae_jax.distributions import discrete, gaussian, multivariate_gaussian
from vae_jax.types import Array, Key

NUM_CLUSTERS = 3
DEVIATIONS = np.geomspace(3.0, 0.03, 25)


@dataclass(frozen=True)
class Config(flags.DataFlags):
    """Compare k-means with Gaussian mixtures; fit a Gaussian to four images."""

    num_points: Annotated[int, flags.at_least(10)] = 600
    """Number of points in the plane."""
    em_steps: flags.Count = 300
    """EM steps for each standard deviation."""
    num_draws: Annotated[int, flags.at_least(5)] = 20_000
    """Number of images drawn from the Gaussian fitted to four images."""
    seed: flags.Natural = 0
    """Seed of all noise."""
    run_dir: str = "runs/lecture/mixtures"
    """Folder for results.json and figures/."""


def make_points(num_points: int, seed: int) -> np.ndarray:
    """Draw three clusters in the plane, `[n, 2]`, two of them long and adjacent."""
    draws = np.random.default_rng(seed)
    stretch = np.array([[2.2, 0.35], [2.2, 0.35], [0.5, 0.5]])
    center = np.array([[0.0, 0.0], [1.0, 2.0], [6.0, -1.0]])
    of = np.arange(num_points) % NUM_CLUSTERS
    return center[of] + stretch[of] * draws.normal(size=(num_points, 2))


def responsibilities(
    points: Array, centers: Array, log_var: Array
) -> tuple[Array, Array]:
    """p(z|x) for K equal isotropic clusters, `[n, K]`, and log p(x) in nats, `[n]`."""
    log_likelihood = gaussian.diagonal_log_prob(
        points[:, None], centers, jnp.broadcast_to(log_var, centers.shape)
    )
    log_prior = jnp.full(len(centers), -math.log(len(centers)))
    return discrete.posterior(log_prior, log_likelihood)


def fit_centers(points: Array, start: Array, log_var: Array, num_steps: int):
    """Fit the centers of equal isotropic clusters of a given variance by EM.

    Returns:
      The centers, and the mean log p(x) before each step.
    """

    def step(centers: Array, _):
        weights, log_evidence = responsibilities(points, centers, log_var)
        centers = weights.T @ points / weights.sum(axis=0)[:, None]
        return centers, log_evidence.mean()

    return jax.lax.scan(step, start, length=num_steps)


def limit(points: np.ndarray, start: np.ndarray, num_steps: int):
    """Run EM for every standard deviation; return the centers and log p(x) per step."""
    log_vars = jnp.asarray(2 * np.log(DEVIATIONS))
    fit = jax.jit(
        jax.vmap(
            lambda log_var: fit_centers(
                jnp.asarray(points), jnp.asarray(start), log_var, num_steps
            )
        )
    )
    return jax.device_get(fit(log_vars))


def elbo_of(weights: Array, log_joint: Array) -> Array:
    """ELBO in nats, `[n]`, for q(z|x) = weights: E_q log p(x, z) + entropy of q."""
    energy = jnp.sum(jnp.where(weights > 0, weights * log_joint, 0), axis=-1)
    return energy + discrete.entropy(weights)


def hard_and_soft(points: np.ndarray, centers: np.ndarray, deviation: float):
    """Mean log p(x), ELBO of the exact posterior and of the hard assignment, and gap.

    All are means over the points, in nats; the gap is KL(hard || exact posterior).
    """
    log_var = jnp.asarray(2 * math.log(deviation))
    soft, log_evidence = responsibilities(
        jnp.asarray(points), jnp.asarray(centers), log_var
    )
    log_joint = jnp.log(soft) + log_evidence[:, None]
    hard = jax.nn.one_hot(jnp.argmax(soft, axis=-1), len(centers), dtype=soft.dtype)
    gap = discrete.kl_divergence(hard, soft).mean()
    bounds = [elbo_of(weights, log_joint).mean() for weights in (soft, hard)]
    return log_evidence.mean(), *bounds, gap


def full_mixture(points: np.ndarray, seed: int) -> GaussianMixture:
    """Fit scikit-learn's mixture with a full covariance for each cluster."""
    # Initialised by k-means it would stay in a local optimum similar to k-means.
    return GaussianMixture(
        NUM_CLUSTERS, n_init=20, init_params="random_from_data", random_state=seed
    ).fit(points)


def mixture_checks(points: np.ndarray, mixture: GaussianMixture) -> list[Check]:
    """Checks of the library's densities and Bayes' rule against scikit-learn's."""
    factors = jnp.stack(
        [
            multivariate_gaussian.cholesky_factor(c)
            for c in np.asarray(mixture.covariances_)
        ]
    )
    log_likelihood = jax.vmap(
        multivariate_gaussian.full_log_prob, in_axes=(None, 0, 0), out_axes=1
    )(jnp.asarray(points), jnp.asarray(mixture.means_), factors)
    weights, log_evidence = discrete.posterior(
        jnp.log(jnp.asarray(mixture.weights_)), log_likelihood
    )
    distance = jnp.abs(weights - mixture.predict_proba(points)).max()
    return [
        Check(
            "S0-3",
            "log p(x) of a full mixture, nats",
            log_evidence.mean(),
            mixture.score(points),
            1e-9,
        ),
        Check("S0-3", "responsibilities, largest difference", distance, 0, 1e-9),
    ]


def limit_checks(points, kmeans: KMeans, centers, log_evidence) -> list[Check]:
    """Checks that EM never lowers log p(x) and that its centers converge to k-means."""
    distances = np.linalg.norm(centers - kmeans.cluster_centers_, axis=-1).max(axis=-1)
    rises = np.diff(log_evidence, axis=1)
    checks = [
        Check("S0-3", "smallest rise of log p(x) by EM", rises.min(), 0, 1e-9, ">"),
        Check("S0-3", "centers to k-means, σ = 3", distances[0], 0.1, relation=">"),
        Check("S0-3", "centers to k-means, σ = 0.03", distances[-1], 0, 1e-6),
    ]
    for index, deviation in ((0, DEVIATIONS[0]), (-1, DEVIATIONS[-1])):
        evidence, soft, hard, gap = hard_and_soft(points, centers[index], deviation)
        name = f"σ = {deviation:g}, nats"
        checks += [
            Check("S0-3", f"soft ELBO - log p(x), {name}", soft - evidence, 0, 1e-9),
            Check("S0-3", f"log p(x) - hard ELBO, {name}", evidence - hard, gap, 1e-9),
        ]
    return checks + [Check("S0-3", "the last gap, nats", gap, 0, 1e-3)]


def fit_to_four(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and factor F of the maximum-likelihood Gaussian; the covariance is F F'."""
    mean = images.mean(axis=0)
    return mean, (images - mean).T / math.sqrt(len(images))


def four_checks(images: np.ndarray, draws: np.ndarray) -> list[Check]:
    """Checks that the covariance has rank 3 and the draws stay in its subspace."""
    mean, factor = fit_to_four(images)
    covariance = factor @ factor.T
    try:
        multivariate_gaussian.cholesky_factor(jnp.asarray(covariance))
        refused = 0
    except ValueError:
        refused = 1
    plane, _ = np.linalg.qr(factor[:, :3])
    centered = draws - mean
    outside = np.abs(centered - centered @ plane @ plane.T).max()
    # The squared norm of a centered Gaussian has variance 2 tr(S^2).
    error = math.sqrt(2 * np.sum(covariance**2) / len(draws))
    total = (centered**2).sum(axis=1).mean()
    with_numpy = np.abs(covariance - np.cov(images.T, bias=True)).max()
    return [
        Check("S2-8", "covariance minus NumPy's, largest", with_numpy, 0, 1e-12),
        Check("S2-8", "its rank", np.linalg.matrix_rank(covariance), 3),
        Check("S2-8", "rejected as a density, 1 = yes", refused, 1),
        Check("S2-8", "draws outside the plane of four", outside, 0, 1e-9),
        Check(
            "S2-8",
            "variance of the draws, total",
            total,
            np.trace(covariance),
            5 * error,
        ),
    ]


def draw_from_four(images: np.ndarray, key: Key, num_draws: int) -> np.ndarray:
    """Draw images mean + F eps, without further noise, `[num_draws, D]`."""
    mean, factor = map(jnp.asarray, fit_to_four(images))
    nothing = jnp.full(mean.shape, -jnp.inf)
    return np.asarray(
        multivariate_gaussian.low_rank_sample(
            mean, nothing, factor, key, num_samples=num_draws
        )
    )


def draw_clusters(points, kmeans: KMeans, mixture: GaussianMixture) -> Figure:
    """Draw hard and soft assignments of the same points, blending cluster colors."""
    figure = Figure((8, 2.8))
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    colors = to_rgba_array(COLORS[:NUM_CLUSTERS])[:, :3]
    hard = np.eye(NUM_CLUSTERS)[kmeans.labels_]
    # Clusters are ordered from left to right, so that colors match between panels.
    for axes, weights, centers, title in (
        (
            panels[0],
            hard,
            np.asarray(kmeans.cluster_centers_),
            "k-means: one cluster a point",
        ),
        (
            panels[1],
            mixture.predict_proba(points),
            np.asarray(mixture.means_),
            "mixture: p(z|x), colors blend",
        ),
    ):
        order = np.argsort(centers[:, 0])
        axes.scatter(*points.T, 8, np.clip(weights[:, order] @ colors, 0, 1))
        axes.plot(*centers.T, "k*", markersize=12, label="centers")
        axes.set(title=title, xlabel="x1", aspect="equal")
    panels[0].set_ylabel("x2")
    panels[0].legend(loc="lower left")
    return figure


def draw_limit(centers: np.ndarray, kmeans: KMeans) -> Figure:
    """Draw the distance of EM centers to k-means centers against the deviation."""
    distances = np.linalg.norm(centers - kmeans.cluster_centers_, axis=-1).max(axis=-1)
    figure = Figure((6, 3.8))
    axes = figure.subplots()
    axes.loglog(DEVIATIONS, np.maximum(distances, 1e-16), "o-", markersize=4)
    axes.set_xlabel("standard deviation σ of every cluster")
    axes.set_ylabel("largest distance of a center\nof EM to that of k-means")
    axes.set_title("k-means is EM with σ → 0")
    return figure


def draw_four(images, draws, data_shape: tuple[int, ...], name: str) -> Figure:
    """Draw the four images, their mean, and samples."""
    mean, _ = fit_to_four(images)
    rows = (*images, mean, *draws[:5])
    titles = ["data"] * 4 + ["mean"] + ["draw"] * 5
    figure = Figure((8, 3.6))
    for axes, image, title in zip(
        figure.subplots(2, 5).flat, rows, titles, strict=True
    ):
        draw_pixels(axes, image.reshape(data_shape))
        axes.set_title(title)
    add_title(figure, f"{name}: a Gaussian from four images draws mixtures of them")
    return figure


def compute(config: Config) -> Report:
    """Compute every check and figure of the topic, in double precision."""
    points = make_points(config.num_points, config.seed)
    # EM and k-means both find a local optimum, so they share a starting point.
    start = points[np.argsort(points[:, 0])[[len(points) // 6, len(points) // 2, -1]]]
    # scikit-learn annotates these arguments with names only; arrays and numbers work.
    options: dict[str, Any] = {"init": start, "n_init": 1}
    kmeans = KMeans(NUM_CLUSTERS, tol=0, **options).fit(points)
    mixture = full_mixture(points, config.seed)
    dataset = data.load(config.dataset, data_dir=config.data_dir)
    with jax.enable_x64(True):
        centers, log_evidence = limit(points, start, config.em_steps)
        images = data.to_unit_interval(dataset.train[:4], dataset.num_levels)
        images = np.asarray(images, np.float64)
        draws = draw_from_four(images, jax.random.key(config.seed), config.num_draws)
        checks = [
            *mixture_checks(points, mixture),
            *limit_checks(points, kmeans, centers, log_evidence),
            *four_checks(images, draws),
        ]
    figures = {
        "clusters": draw_clusters(points, kmeans, mixture),
        "limit": draw_limit(centers, kmeans),
        "four_images": draw_four(images, draws, dataset.data_shape, dataset.name),
    }
    return Report("k-means and mixtures", checks, figures, dataset.notes)


run, main = topic("mixtures", Config, compute)

if __name__ == "__main__":
    main()
