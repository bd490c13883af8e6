"""Prior fitted to the latent codes after training, for the same decoder.

Its samples stay in the region to which the encoder maps the data, unlike those of
N(0, I). A deterministic autoencoder needs such a fitted density for sampling (Ghosh,
Sajjadi, Vergari, Black & Scholkopf 2020, section 5).
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from vae_jax.extras import import_extra
from vae_jax.families import unbound_covariance, unbound_log_var
from vae_jax.families.bounds import CORRELATED_LOG_VAR_BOUND, LOG_VAR_BOUND
from vae_jax.model import check_inputs, encode
from vae_jax.priors import MixtureOfGaussians
from vae_jax.spec import Params
from vae_jax.types import AnyArray, Array, Key, Labels


def fit_mixture_prior(
    params: Params,
    x: Array,
    key: Key,
    *,
    num_components: int = 10,
    full_covariance: bool = True,
    labels: Labels = None,
    seed: int = 0,
) -> Params:
    """Replace the prior by a mixture of Gaussians fitted to the aggregate posterior.

    The mixture is fitted to one sample of q(z|x) per x by scikit-learn's expectation
    maximisation. It runs on the host and cannot be called in a compiled function.

    Args:
      params: model parameters.
      x: observations of the training set, `[n, D]`.
      key: PRNG key of the samples, consumed once.
      num_components: number K of components, at most n.
      full_covariance: whether the components have full covariance matrices.
      labels: labels of a conditional model; see `encode`.
      seed: seed of the initialisation of expectation maximisation.

    Returns:
      `Params` with the same networks and a `MixtureOfGaussians` prior.

    Raises:
      ValueError: `num_components` is not between 1 and n, there are several
        stochastic layers, or the codes are spread too widely for a component.
      ImportError: scikit-learn is not installed.

    Example:
      >>> import jax
      >>> from vae_jax import ModelSpec, fit_mixture_prior, generate, init
      >>> params = init(ModelSpec(data_shape=(5,), latent_dim=2), jax.random.key(0))
      >>> x = jax.random.uniform(jax.random.key(1), (200, 5))
      >>> fitted = fit_mixture_prior(params, x, jax.random.key(2), num_components=2)
      >>> fitted.spec.prior
      MixtureOfGaussians(num_components=2, full_covariance=True)
    """
    if not 1 <= num_components <= len(x):
        raise ValueError(
            f"num_components must be between 1 and the {len(x)} examples, got "
            f"{num_components}"
        )
    check_inputs(params, x)
    z, _ = encode(params, x, labels=labels).sample_and_log_prob(key, 1)
    if isinstance(z, tuple):
        raise ValueError(
            f"a prior is fitted to one layer of latents, and the model has {len(z)}"
        )
    spec = dataclasses.replace(
        params.spec, prior=MixtureOfGaussians(num_components, full_covariance)
    )
    mixture = (
        import_extra("sklearn.mixture", "sklearn")
        .GaussianMixture(
            num_components,
            covariance_type="full" if full_covariance else "diag",
            random_state=seed,
        )
        .fit(np.asarray(z[0], np.float64))
    )
    prior = {
        "logits": np.log(mixture.weights_),
        "mean": mixture.means_,
        **_shape(mixture.covariances_, full_covariance),
    }
    fitted = {name: jnp.asarray(leaf, z.dtype) for name, leaf in prior.items()}
    return params.replace(prior=fitted, spec=spec)


def _shape(covariances: np.ndarray, full_covariance: bool) -> dict[str, AnyArray]:
    """Convert covariances to the parameters of `MixtureOfGaussians`."""
    bound = CORRELATED_LOG_VAR_BOUND if full_covariance else LOG_VAR_BOUND
    variances = covariances
    if full_covariance:
        variances = np.diagonal(covariances, axis1=-2, axis2=-1)
    largest = np.sqrt(variances.max())
    most = np.exp(0.999 * bound / 2)
    if not largest <= most:
        raise ValueError(
            f"codes of a component have a standard deviation of {largest:.5g}, and a "
            f"component of the prior one of {most:.5g} at most: train with an "
            "objective that bounds the codes (MMD), or with fewer steps"
        )
    if not full_covariance:
        return {"log_var": unbound_log_var(np.log(covariances))}
    log_var, below = unbound_covariance(covariances)
    return {"log_var": log_var, "below": below}
