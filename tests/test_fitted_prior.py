"""A prior fitted to codes: scikit-learn's mixture, as a model's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.mixture import GaussianMixture
from specs import SPECS, random_params

from vae_jax import encode, fit_mixture_prior, generate, log_prior

SPEC = dict(SPECS)["mlp-bernoulli"]
X = np.random.default_rng(0).uniform(size=(300, SPEC.data_dim)).astype("f")


@pytest.mark.long
@pytest.mark.parametrize(
    "full_covariance", [pytest.param(True, marks=pytest.mark.slow), False]
)
def test_the_prior_is_the_mixture_that_scikit_learn_fits(full_covariance, key):
    params = jax.tree.map(jnp.asarray, random_params(SPEC))
    fitted = fit_mixture_prior(
        params, X, key, num_components=3, full_covariance=full_covariance
    )
    z, _ = encode(params, X).sample_and_log_prob(key, 1)
    kind = "full" if full_covariance else "diag"
    oracle = GaussianMixture(3, covariance_type=kind, random_state=0).fit(z[0])
    found = log_prior(fitted, z)[0]
    np.testing.assert_allclose(found, oracle.score_samples(z[0]), rtol=1e-3, atol=1e-3)
    assert np.mean(found) > np.mean(log_prior(params, z))
    assert generate(fitted, key, num_samples=4).shape == (4, SPEC.data_dim)
    assert fitted.decoder is params.decoder


@pytest.mark.parametrize("full_covariance", [True, False])
def test_codes_wider_than_a_component_are_refused(full_covariance, key):
    """A deterministic autoencoder may have codes of any size."""
    params = jax.tree.map(jnp.asarray, random_params(SPEC))
    encoder = jax.tree.map(lambda leaf: 1e6 * leaf, params.encoder)
    with pytest.raises(ValueError, match="codes of a component have a standard dev"):
        fit_mixture_prior(
            params.replace(encoder=encoder),
            X,
            key,
            num_components=1,
            full_covariance=full_covariance,
        )


@pytest.mark.long
def test_what_cannot_be_fitted_is_refused(key):
    params = random_params(SPEC)
    with pytest.raises(ValueError, match="between 1 and the 300 examples, got 301"):
        fit_mixture_prior(params, X, key, num_components=301)
    ladder = dict(SPECS)["three-stochastic-layers"]
    layered = jax.tree.map(jnp.asarray, random_params(ladder))
    with pytest.raises(ValueError, match="one layer of latents, and the model has 3"):
        fit_mixture_prior(layered, X[:, :5], key, num_components=2)
