"""Densities of scikit-learn and SciPy: log p(x) of held-out rows, in their units.

The columns are standardized by the moments of the training rows; log p(x) is in the
original units:

    log p(x) = log p_standardized((x - shift) / scale) - sum_d log scale_d
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
import scipy.stats
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture

from experiments.comparisons.protocol import Config, Held, Rows, held_out
from vae_jax.sklearn import VAE

MAX_COMPONENTS = 8
COVARIANCES = ("full", "tied", "diag")


def gaussian(rows: Rows) -> Held:
    """Log p(x) of a full-covariance Gaussian fitted to all rows not held out."""
    # In original units, SciPy takes the covariance of breast cancer for singular.
    (known, test), log_scale = _standardized(rows.known, rows.known, rows.test)
    log_density: Any = scipy.stats.multivariate_normal.logpdf
    log_p = log_density(test, cov=np.cov(known.T, bias=True))
    return Held(log_p - log_scale)


def mixture(rows: Rows, seed: int = 0) -> Held:
    """Log p(x) of a mixture of Gaussians; its form is chosen by validation."""
    settings = [
        GaussianMixture(count, covariance_type=form, n_init=3, random_state=seed)
        for form in COVARIANCES
        for count in range(1, MAX_COMPONENTS + 1)
        if count * 2 <= len(rows.train)
    ]
    log_p, best = _chosen(settings, rows)
    return Held(log_p, f"{best.n_components} {best.covariance_type}")


def ppca(rows: Rows) -> Held:
    """Log p(x) of probabilistic PCA (Tipping & Bishop 1999); L by validation."""
    settings = [PCA(count) for count in range(1, rows.train.shape[1])]
    log_p, best = _chosen(settings, rows)
    return Held(log_p, f"{best.n_components_} latents")


def estimators(config: Config) -> dict[str, Callable[[Rows], Held]]:
    """The scikit-learn estimator with its default of 2 latents, and with 10.

    Log p(x) is that of `held_out`; `score_samples`, by samples of the encoder's q, is
    lower for rows unlike the others.

    Args:
      config: seed and number of importance samples.

    Returns:
      Functions of the rows of a fold, by name.
    """

    def held(rows: Rows, **arguments: Any) -> Held:
        model = VAE(random_state=config.seed, **arguments).fit(rows.known)
        choice, key = f"{model.n_iter_} epochs", jax.random.key(config.seed)
        return held_out(model.params_, rows, key, config, choice=choice)

    return {
        "vae_jax.sklearn.VAE()": held,
        "vae_jax.sklearn.VAE(latent_dim=10)": partial(held, latent_dim=10),
    }


def _chosen(models: Sequence[Any], rows: Rows) -> tuple[np.ndarray, Any]:
    """Refit the best model on validation rows; return log p(x) of test rows and it."""
    train, validation = _standardized(rows.train, rows.train, rows.validation)[0]
    scores = [model.fit(train).score(validation) for model in models]
    best = models[int(np.argmax(scores))]
    (known, test), log_scale = _standardized(rows.known, rows.known, rows.test)
    return best.fit(known).score_samples(test) - log_scale, best


def _standardized(
    moments_of: np.ndarray, *parts: np.ndarray
) -> tuple[list[np.ndarray], float]:
    """Standardize rows by the moments of some; return them and sum_d log scale_d."""
    shift, scale = moments_of.mean(axis=0), moments_of.std(axis=0)
    return [(part - shift) / scale for part in parts], float(np.log(scale).sum())
