"""The reference model on real MNIST reaches its published neighbourhood."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from specs import random_params

from experiments.mnist import Config, run
from vae_jax import MLP, ModelSpec, data, elbo_terms, networks

MNIST = Path(__file__).parents[3] / "shared" / "data" / "mnist"


with_mnist = pytest.mark.skipif(
    not MNIST.is_dir(), reason="real MNIST is not beside the project"
)


@with_mnist
def test_a_collapsed_model_sits_at_the_entropy_of_independent_pixels():
    """Nothing but the output bias at the clipped log-odds: 205.97 nats expected.

    And no model of pixels drawn as Bernoulli is below their own entropy, 45.53 nats.
    """
    mnist = data.load("mnist", data_dir=str(MNIST))
    grey = np.asarray(mnist.test, np.float64) / 255
    mean = jnp.asarray(mnist.train.mean(axis=0) / 255, jnp.float32)
    spec = ModelSpec(MLP((4,)), MLP((4,)), latent_dim=2)
    params = jax.tree.map(jnp.zeros_like, random_params(spec))
    bias = spec.likelihood.output_bias(mean)
    decoder = networks.with_output_bias(params.decoder, bias)
    x = np.random.default_rng(0).random(grey.shape) < grey
    terms = jax.jit(elbo_terms)(
        params.replace(decoder=decoder), jnp.asarray(x, jnp.float32), jax.random.key(0)
    )
    np.testing.assert_allclose(terms.kl_divergence, 0, atol=1e-6)
    assert 205.8 < -np.mean(np.float64(terms.elbo)) < 206.0
    entr = scipy.special.entr
    entropy = (entr(grey) + entr(1 - grey)).sum(axis=1).mean()
    assert entropy == pytest.approx(45.53, abs=0.01)


@pytest.mark.slow
@with_mnist
def test_reference_model_on_mnist(tmp_path):
    """784-400-20, the defaults, 20 epochs: five minutes on two cores.

    flax's example, with 500 hidden units, reports -101.5 to -102 about there.
    """
    results = run(
        Config(dataset="mnist", data_dir=str(MNIST), epochs=20, run_dir=str(tmp_path))
    )
    assert results["test_elbo"] >= -97.8
    assert results["importance_weighted_log_likelihood"] >= -93.5
    # No model of Bernoulli draws can be above the pixels' own entropy.
    assert results["importance_weighted_log_likelihood"] <= -45.53
