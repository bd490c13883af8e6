"""Families of counts: where they start, what the encoder sees, what they fit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vae_jax import (
    MLP,
    ConvolutionalDecoder,
    ConvolutionalEncoder,
    Linear,
    ModelSpec,
    Multinomial,
    NegativeBinomial,
    Poisson,
    ZeroInflatedNegativeBinomial,
    decode,
    encode,
    fit,
    init,
    log_evidence,
)

RNG = np.random.default_rng(0)
# Of variances far above the means, 3 dimensions.
OVERDISPERSED = RNG.negative_binomial(
    [0.7, 3.0, 20.0], [0.1, 0.02, 0.5], size=(4000, 3)
).astype(np.float32)
LINEAR = {"encoder": Linear(), "decoder": Linear(), "latent_dim": 2}


def started(likelihood, x, **networks):
    spec = ModelSpec(likelihood=likelihood, **(LINEAR | networks))
    params = init(spec, jax.random.key(0), x=x)
    return params, decode(params, jnp.zeros((1, 1, 2)))


@pytest.mark.parametrize("dispersion", ["dimension", "decoder"])
def test_a_model_starts_at_the_mean_and_variance_of_the_data(dispersion):
    x = OVERDISPERSED
    _, p = started(NegativeBinomial(dispersion), x, data_shape=(3,))
    np.testing.assert_allclose(p.mean[0, 0], x.mean(0), rtol=1e-3)
    r = np.broadcast_to(p.inverse_dispersion, p.mean.shape)[0, 0]
    np.testing.assert_allclose(x.mean(0) + x.mean(0) ** 2 / r, x.var(0), rtol=1e-3)


def test_a_shared_dispersion_starts_at_that_of_all():
    x = OVERDISPERSED
    _, p = started(NegativeBinomial("shared"), x, data_shape=(3,))
    excess = np.square(x.mean(0)).sum() / p.inverse_dispersion
    assert (x.var(0) - x.mean(0)).sum() == pytest.approx(float(excess), rel=1e-3)


@pytest.mark.parametrize("family", [Poisson(), ZeroInflatedNegativeBinomial("decoder")])
def test_other_counts_start_at_the_mean_of_the_data(family):
    _, p = started(family, OVERDISPERSED, data_shape=(3,))
    np.testing.assert_allclose(p.mean[0, 0], OVERDISPERSED.mean(0), rtol=1e-3)


@pytest.mark.parametrize("x", [np.zeros((5, 3)), np.full((5, 3), 7.0)])
@pytest.mark.parametrize("dispersion", ["shared", "dimension", "decoder"])
def test_data_without_variance_start_finite(x, dispersion):
    _, p = started(NegativeBinomial(dispersion), x.astype(np.float32), data_shape=(3,))
    assert np.isfinite(p.log_prob(jnp.asarray(x, jnp.float32))).all()


@pytest.mark.long
@pytest.mark.parametrize(
    "family",
    [Poisson(), NegativeBinomial(), NegativeBinomial("decoder"), Multinomial()],
    ids=["poisson", "dimension", "decoder", "multinomial"],
)
def test_images_of_counts_start_at_the_mean_of_all_positions(family):
    x = RNG.poisson(3, size=(50, 16)).astype(np.float32)
    params, p = started(
        family,
        x,
        encoder=ConvolutionalEncoder((2,), hidden_dim=4),
        decoder=ConvolutionalDecoder((2,)),
        data_shape=(4, 4),
    )
    assert p.mean.shape == (1, 1, 16)
    # The features of z = 0 are not zero in a decoder with a ReLU, but near it.
    np.testing.assert_allclose(p.mean.mean(), x.mean(), rtol=0.2)
    assert np.isfinite(p.log_prob(x[:1])).all()


def test_the_encoder_sees_the_logarithm():
    params, _ = started(Poisson(), OVERDISPERSED, data_shape=(3,))
    kernel, bias = (params.encoder["output"][name] for name in ("kernel", "bias"))
    expected = (np.log1p(OVERDISPERSED[:7]) @ kernel + bias)[:, :2]
    np.testing.assert_allclose(
        encode(params, OVERDISPERSED[:7]).mean, expected, rtol=1e-4, atol=1e-4
    )


def test_what_is_no_count_is_refused():
    params, _ = started(Poisson(), OVERDISPERSED, data_shape=(3,))
    for bad, said in ((0.5, "whole numbers"), (-1.0, "must lie in")):
        x = np.full((2, 3), bad, np.float32)
        with pytest.raises(ValueError, match=said):
            decode(params, jnp.zeros((1, 2, 2))).log_prob(x)
    with pytest.raises(ValueError, match="dispersion must be one of"):
        NegativeBinomial("gene")


@pytest.mark.long
def test_overdispersed_counts_are_more_probable_under_a_negative_binomial():
    """By log p(x) of data that were not trained on, image by image."""
    x = OVERDISPERSED
    found = {}
    for family in (Poisson(), NegativeBinomial()):
        spec = ModelSpec(
            encoder=MLP((8,)),
            decoder=MLP((8,)),
            likelihood=family,
            latent_dim=1,
            data_shape=(3,),
        )
        start = init(spec, jax.random.key(0), x=x[:3500])
        fitted = fit(
            start,
            x[:3500],
            jax.random.key(1),
            num_epochs=5,
            optimizer=optax.adam(3e-3),
        )
        evidence = log_evidence(
            fitted.params, jnp.asarray(x[3500:]), jax.random.key(2), num_samples=64
        )
        found[type(family)] = np.asarray(evidence.estimate)
    difference = found[NegativeBinomial] - found[Poisson]
    error = difference.std(ddof=1) / np.sqrt(difference.size)
    assert difference.mean() > 5 * error and difference.mean() > 1
