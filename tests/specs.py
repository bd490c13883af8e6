"""Models that every generic property is held to, with parameters and data for them.

A new architecture or family inherits the whole suite with a line in `SPECS`.
"""

import functools

import flax.linen as nn
import jax
import numpy as np

from vae_jax import (
    MLP,
    AutoregressiveFlow,
    Bernoulli,
    Beta,
    Categorical,
    Columns,
    ContinuousBernoulli,
    ConvolutionalDecoder,
    ConvolutionalEncoder,
    DiagonalGaussianPrior,
    DiscretizedLogistic,
    FullCovarianceGaussian,
    FullGaussian,
    Gamma,
    GatedMLP,
    Gaussian,
    HierarchicalGaussian,
    HierarchicalGaussianPrior,
    Householder,
    InverseAutoregressive,
    Laplace,
    Linear,
    LogNormal,
    LowRankGaussian,
    Masked,
    MixtureOfGaussians,
    ModelSpec,
    Nominal,
    Ordinal,
    Params,
    PerPixelGaussian,
    Planar,
    PointMass,
    Standardized,
    StochasticLayer,
    StudentT,
    Sylvester,
    VampPrior,
    ZeroInflatedNegativeBinomial,
    init,
)


class Gated(nn.Module):
    """A network as a user writes one; it asks for `data_shape` and uses it."""

    width: int = 3
    data_shape: tuple[int, ...] | None = None

    @nn.compact
    def __call__(self, inputs):
        width = self.width * len(self.data_shape)
        return nn.Dense(width)(inputs) * nn.sigmoid(nn.Dense(width)(inputs))


ABOVE = (
    StochasticLayer(3, encoder=MLP((4,)), decoder=MLP((4,))),
    StochasticLayer(2, encoder=MLP((4,)), decoder=Linear()),
)

# (id, spec): every kind of network, posterior and likelihood, and shapes in which a
# wrong reshape, a lost axis or a silent broadcast shows.
SPECS = [
    (
        "linear-gaussian",
        ModelSpec(
            encoder=Linear(),
            decoder=Linear(),
            likelihood=Gaussian(),
            latent_dim=2,
            data_shape=(5,),
        ),
    ),
    (
        "mlp-bernoulli",
        ModelSpec(
            encoder=MLP((8,)), decoder=MLP((8,)), latent_dim=3, data_shape=(4, 4)
        ),
    ),
    (
        "deep-mlp-learned-variance-prime",
        ModelSpec(
            encoder=MLP((8, 6), activation=nn.tanh),
            decoder=MLP((6, 8), activation=nn.tanh),
            likelihood=Gaussian(learned_variance=True),
            latent_dim=1,
            data_shape=(13,),
        ),
    ),
    (
        "users-own-autoencoder",
        ModelSpec(
            encoder=Gated(),
            decoder=Gated(),
            posterior=PointMass(),
            latent_dim=2,
            data_shape=(2, 3),
        ),
    ),
    (
        "conv-bernoulli-odd",
        ModelSpec(
            encoder=ConvolutionalEncoder((2, 3), hidden_dim=6),
            decoder=ConvolutionalDecoder((3, 2)),
            latent_dim=2,
            data_shape=(7, 5),
        ),
    ),
    (
        "conv-gaussian-channels-learned-prior",
        ModelSpec(
            encoder=ConvolutionalEncoder((2,), hidden_dim=6),
            decoder=ConvolutionalDecoder((2,)),
            prior=DiagonalGaussianPrior(),
            likelihood=Gaussian(learned_variance=True),
            latent_dim=3,
            data_shape=(8, 8, 3),
        ),
    ),
    (
        "full-mixture-categorical-gated",
        ModelSpec(
            encoder=GatedMLP((6,)),
            decoder=GatedMLP((6,)),
            posterior=FullGaussian(),
            prior=MixtureOfGaussians(3, full_covariance=True),
            likelihood=Categorical(3),
            latent_dim=3,
            data_shape=(5,),
        ),
    ),
    (
        "low-rank-full-covariance",
        ModelSpec(
            encoder=MLP((6,)),
            decoder=MLP((6,)),
            posterior=LowRankGaussian(rank=2),
            likelihood=FullCovarianceGaussian(),
            latent_dim=4,
            data_shape=(5,),
        ),
    ),
    (
        "autoregressive-flows-discretized-logistic",
        ModelSpec(
            encoder=MLP((6,)),
            decoder=MLP((6,)),
            posterior=InverseAutoregressive(2, hidden_dim=5, context_dim=3),
            prior=AutoregressiveFlow(2, hidden_dim=5),
            likelihood=DiscretizedLogistic(num_levels=3, num_components=2),
            latent_dim=3,
            data_shape=(5,),
        ),
    ),
    (
        "sylvester-residual-continuous",
        ModelSpec(
            encoder=ConvolutionalEncoder((2,), hidden_dim=6, num_blocks=1),
            decoder=ConvolutionalDecoder((2,), num_blocks=1),
            posterior=Sylvester(num_steps=2, num_reflections=2),
            likelihood=ContinuousBernoulli(),
            latent_dim=3,
            data_shape=(4, 4),
        ),
    ),
    (
        "planar-per-pixel",
        ModelSpec(
            encoder=MLP((6,)),
            decoder=MLP((6,)),
            posterior=Planar(num_steps=3),
            likelihood=PerPixelGaussian(),
            latent_dim=2,
            data_shape=(5,),
        ),
    ),
    (
        "householder-vamp",
        ModelSpec(
            encoder=MLP((6,)),
            decoder=MLP((6,)),
            posterior=Householder(num_steps=2),
            prior=VampPrior(3),
            latent_dim=3,
            data_shape=(5,),
        ),
    ),
    (
        "counts",
        ModelSpec(
            encoder=MLP((6,)),
            decoder=MLP((6,)),
            likelihood=ZeroInflatedNegativeBinomial("decoder"),
            latent_dim=2,
            data_shape=(3,),
        ),
    ),
    (
        "columns",
        ModelSpec(
            encoder=MLP((6,)),
            decoder=MLP((6,)),
            likelihood=Columns(
                (
                    (Standardized(Gaussian(True, per_dimension=True)), (3, 0)),
                    (Standardized(StudentT()), (5,)),
                    (Laplace(), (6,)),
                    (LogNormal(), (7,)),
                    (Gamma(), (8,)),
                    (Beta(), (9,)),
                    (Ordinal(3), (10,)),
                    (PerPixelGaussian(), (2,)),
                    (Nominal(3), (4,)),
                    (Bernoulli(), (1,)),
                )
            ),
            latent_dim=2,
            data_shape=(11,),
        ),
    ),
    (
        "missing-values",
        ModelSpec(
            encoder=MLP((6,)),
            decoder=MLP((6,)),
            likelihood=Masked(Standardized(PerPixelGaussian()), shows_mask=True),
            latent_dim=2,
            data_shape=(3,),
        ),
    ),
    (
        "three-stochastic-layers",
        ModelSpec(
            encoder=MLP((6,)),
            decoder=MLP((6,)),
            posterior=HierarchicalGaussian(ABOVE),
            prior=HierarchicalGaussianPrior(ABOVE),
            latent_dim=4,
            data_shape=(5,),
        ),
    ),
]


@functools.cache
def random_params(spec: ModelSpec) -> Params:
    """Parameters with no leaf at a special point: fresh biases and variances are 0.

    Drawn by NumPy: compiling JAX's own initializers would take most of the suite.
    """
    rng = np.random.default_rng(0)

    def draw(leaf):
        scale = 1 / np.sqrt(np.prod(leaf.shape[:-1])) if leaf.ndim > 1 else 0.3
        return np.asarray(scale * rng.normal(size=leaf.shape), leaf.dtype)

    fresh = jax.eval_shape(functools.partial(init, spec), jax.random.key(0))
    return jax.tree.map(draw, fresh)


def example_data(spec: ModelSpec) -> np.ndarray:
    """Four examples of two values that the likelihood takes, `[4, D]`.

    Zeros and ones, or a quarter and three quarters where these have no density.
    """
    rng = np.random.default_rng(1)
    bits = rng.integers(0, 2, (4, spec.data_dim)).astype(np.float32)
    inside = spec.likelihood.support.contains(np.zeros(spec.data_dim))
    return np.where(inside, bits, 0.25 + 0.5 * bits)


def covariance_of(raw_log_var, raw_below, margin=1e-4, bound=17.0) -> np.ndarray:
    """What `bound_covariance` promises of one example, entry by entry in float64."""
    variance = np.exp(bound * np.tanh(np.float64(raw_log_var) / bound))
    size = len(variance)
    rows = np.diag(np.full(size, np.sqrt(size)))
    rows[np.tril_indices(size, -1)] = raw_below
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    shrink = 1 / np.sqrt(1 + margin + np.exp(-bound) / variance)
    correlations = np.outer(shrink, shrink) * (rows @ rows.T)
    np.fill_diagonal(correlations, 1)
    return correlations * np.sqrt(np.outer(variance, variance))
