"""A density of the codes, fitted after training: another prior for the same decoder.

Draws from it stay where the encoder puts the data, which N(0, I) need not do, and which
an autoencoder has no other way to know (Ghosh, Sajjadi, Vergari, Black & Scholkopf
2020, section 5).
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from vae_jax.extras import import_extra
from vae_jax.families import unbound_covariance, unbound_log_var
from vae_jax.model import encode
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
    """The model with another prior: Gaussians fitted to its aggregate posterior.

    Of one sample of q(z|x) for each x, by scikit-learn's expectation maximisation. It
    runs on the host, so it is not for a compiled function.

    Args:
      params: model parameters.
      x: observations that stand for all, `[n, D]`: of the training set.
      key: PRNG key of the samples, consumed once.
      num_components: K, at most n.
      full_covariance: whether the components have correlations.
      labels: of a conditional model, as for `encode`.
      seed: where expectation maximisation starts.

    Returns:
      `Params` with the same networks and a `MixtureOfGaussians` prior.

    Raises:
      ValueError: `num_components` is not between 1 and n, or there are several
        stochastic layers.
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
    """Covariances as `MixtureOfGaussians` has them."""
    if not full_covariance:
        return {"log_var": unbound_log_var(np.log(covariances))}
    log_var, below = unbound_covariance(covariances)
    return {"log_var": log_var, "below": below}
