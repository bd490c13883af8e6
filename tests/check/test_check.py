"""The checker passes what is right, and each classic defect fails its own line."""

from dataclasses import dataclass, replace
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from specs import SPECS, example_data, random_params

from vae_jax import (
    AutoregressiveFlow,
    ClassConditionalPrior,
    DiagonalGaussian,
    DiagonalGaussianPrior,
    FactorizedBernoulli,
    FactorizedBernoulliPrior,
    FullCovarianceGaussian,
    FullGaussian,
    Gaussian,
    Householder,
    InverseAutoregressive,
    Linear,
    LowRankGaussian,
    MixtureOfGaussians,
    ModelSpec,
    PerPixelGaussian,
    Planar,
    PointMass,
    StandardNormal,
    VampPrior,
    check,
    register_kl,
)
from vae_jax.contracts import LINES, Line, Report
from vae_jax.distributions import (
    BernoulliDistribution,
    DiagonalGaussianDistribution,
    gaussian,
)
from vae_jax.families.bernoulli import Bernoulli
from vae_jax.types import Distribution

# One size for all, so that the operations of one model are compiled for the next.
SMALL = ModelSpec(encoder=Linear(), decoder=Linear(), latent_dim=2, data_shape=(3,))
X = np.array([[0, 1, 1], [1, 0, 1]], np.float32)


def report_of(spec, x=X, **options):
    params = jax.tree.map(jnp.asarray, random_params(spec))
    return check(params, jnp.asarray(x), jax.random.key(2), **options)


def without(report):
    """The lines that do not apply."""
    return {line.name for line in report.lines if line.passed is None}


NEEDS_DENSITY = {
    "log q of samples is log_prob",
    "KL is not negative",
    "registered KL is the sampled KL",
    "posterior keeps its mass",
    "posterior has mass one",
    "bounds rise with samples",
}


@pytest.mark.parametrize(
    "changes, not_applicable",
    [
        ({}, set()),
        (
            {"posterior": Planar(2)},
            {
                "log q of samples is log_prob",
                "registered KL is the sampled KL",
                "posterior keeps its mass",
            },
        ),
        ({"posterior": PointMass()}, NEEDS_DENSITY),
        (
            {"posterior": FactorizedBernoulli(), "prior": FactorizedBernoulliPrior()},
            {"posterior has mass one", "gradient is the slope"},
        ),
    ],
    ids=["diagonal", "flow", "point-mass", "discrete"],
)
def test_a_correct_model_passes_every_line(changes, not_applicable):
    report = report_of(replace(SMALL, **changes))
    assert report.passed, str(report)
    assert without(report) == not_applicable
    assert tuple(line.name for line in report.lines) == LINES


@pytest.mark.slow
@pytest.mark.parametrize("spec", [s for _, s in SPECS], ids=[n for n, _ in SPECS])
def test_all_that_the_library_has_passes(spec):
    report = report_of(spec, example_data(spec))
    assert report.passed, str(report)


def pytree(cls):
    return jax.tree_util.register_dataclass(dataclass(frozen=True)(cls))


def with_posterior(posterior_class, unbounded=False, scale=1.0):
    """SMALL with another class for what its diagonal Gaussian builds."""

    @dataclass(frozen=True)
    class Family(DiagonalGaussian):
        def build(self, params, outputs):
            mean, raw = jnp.split(outputs, 2, axis=-1)
            return posterior_class(scale * mean, raw if unbounded else jnp.tanh(raw))

    return replace(SMALL, posterior=Family())


def with_likelihood(likelihood_class, base=Bernoulli):
    @dataclass(frozen=True)
    class Family(base):
        def build(self, params, outputs):
            parts = jnp.split(outputs, 2, -1) if base is PerPixelGaussian else [outputs]
            return likelihood_class(*parts)

    return replace(SMALL, likelihood=Family())


def in_units(name):
    """Three examples of three dimensions: shares, counts 0 to 16, or thousands."""
    rng = np.random.default_rng(5)
    counts = rng.integers(0, 17, (3, 3)).astype(np.float32)
    thousands = np.float32(1000 * rng.normal(size=(3, 3)))
    return {"shares": counts / 16, "counts": counts, "thousands": thousands}[name]


@pytree
class HeavyTailed(Distribution):
    """Student's t with 2.5 degrees of freedom, right: no fourth moment."""

    loc: jax.Array
    log_scale: jax.Array

    @property
    def mean(self):
        return self.loc

    def log_prob(self, z):
        scaled = jax.scipy.stats.t.logpdf(
            (z - self.loc) * jnp.exp(-self.log_scale), 2.5
        )
        return jnp.sum(scaled - self.log_scale, axis=-1)

    def sample_and_log_prob(self, key, num_samples):
        noise = jax.random.t(key, 2.5, (num_samples, *self.loc.shape))
        z = self.loc + jnp.exp(self.log_scale) * noise
        return z, self.log_prob(z)


ON_DENSITIES = [
    "log q of samples is log_prob",
    "KL is not negative",
    "registered KL is the sampled KL",
    "posterior keeps its mass",
    "posterior has mass one",
    "prior keeps its mass",
    "likelihood keeps its mass",
    "likelihood has its mean",
    "bounds rise with samples",
    "gradient is the slope",
]
REALS = replace(SMALL, likelihood=Gaussian())
BITS = replace(REALS, posterior=FactorizedBernoulli(), prior=FactorizedBernoulliPrior())
# Correct families with the lines that chance or rounding failed at some of ten seeds.
CORRECT = {
    "gaussian": (REALS, "thousands", ["posterior keeps its mass"]),
    "full": (
        replace(REALS, posterior=FullGaussian()),
        "counts",
        ["log q of samples is log_prob"],
    ),
    "bits": (BITS, "counts", ["registered KL is the sampled KL"]),
}


def assert_no_false_alarm(spec, unit, lines):
    params = jax.tree.map(jnp.asarray, random_params(spec))
    x = jnp.asarray(in_units(unit))
    for seed in range(10):
        report = check(params, x, jax.random.key(seed), only=lines)
        assert report.passed, f"seed {seed}\n{report}"


@pytest.mark.long
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name == "full" else [])
        for name in CORRECT
    ],
)
def test_a_correct_family_raises_no_false_alarm(name):
    assert_no_false_alarm(*CORRECT[name])


OF_ANY_SCALE = {
    "gaussian": REALS,
    "bits": BITS,
    "per-pixel": replace(SMALL, likelihood=PerPixelGaussian()),
    "low-rank-mixture": replace(
        SMALL,
        posterior=LowRankGaussian(1),
        prior=MixtureOfGaussians(3),
        likelihood=FullCovarianceGaussian(),
    ),
    "householder-vamp": replace(REALS, posterior=Householder(2), prior=VampPrior(3)),
    "planar": replace(REALS, posterior=Planar(2), prior=DiagonalGaussianPrior()),
    "autoregressive": replace(
        REALS,
        posterior=InverseAutoregressive(2, hidden_dim=5, context_dim=3),
        prior=AutoregressiveFlow(2, hidden_dim=5),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["shares", "counts", "thousands"])
@pytest.mark.parametrize("name", OF_ANY_SCALE)
def test_no_correct_family_raises_a_false_alarm_in_any_unit(name, unit):
    assert_no_false_alarm(OF_ANY_SCALE[name], unit, ON_DENSITIES)


@pytest.mark.slow
def test_a_correct_posterior_of_heavy_tail_raises_no_false_alarm():
    spec = replace(with_posterior(HeavyTailed), likelihood=Gaussian())
    assert_no_false_alarm(spec, "counts", ON_DENSITIES)


class Own(Distribution):
    """A diagonal Gaussian of the user's own, right, and with no registered KL."""

    @property
    def mean(self):
        return self.loc

    def log_prob(self, z):
        return gaussian.diagonal_log_prob(z, self.loc, self.log_var)

    def sample_and_log_prob(self, key, num_samples):
        z = gaussian.diagonal_sample(
            self.loc, self.log_var, key, num_samples=num_samples
        )
        return z, self.log_prob(z)


@pytree
class ColumnMean(Own):
    loc: jax.Array
    log_var: jax.Array

    @property
    def mean(self):
        return self.loc[:, None]


@pytree
class SamplesAndBatchSwapped(Own):
    loc: jax.Array
    log_var: jax.Array

    def sample_and_log_prob(self, key, num_samples):
        z, log_q = super().sample_and_log_prob(key, num_samples)
        return z.swapaxes(0, 1), log_q.T


@pytree
class AllOverTheVariance(Own):
    loc: jax.Array
    log_var: jax.Array

    def log_prob(self, z):
        squares = self.log_var + jnp.square(z - self.loc)
        terms = jnp.log(2 * jnp.pi) + squares * jnp.exp(-self.log_var)
        return -0.5 * jnp.sum(terms, axis=-1)


@pytree
class WithoutItsConstant(Own):
    loc: jax.Array
    log_var: jax.Array

    def log_prob(self, z):
        constant = 0.5 * z.shape[-1] * np.log(2 * np.pi)
        return super().log_prob(z) + np.float32(constant)


@pytree
class VarianceForDeviation(Own):
    loc: jax.Array
    log_var: jax.Array

    def sample_and_log_prob(self, key, num_samples):
        noise = jax.random.normal(key, (num_samples, *self.loc.shape))
        z = self.loc + jnp.exp(self.log_var) * noise
        return z, self.log_prob(z)


@pytree
class LogProbOfItsOwn(DiagonalGaussianDistribution):
    mean: jax.Array
    log_var: jax.Array

    def sample_and_log_prob(self, key, num_samples):
        right = DiagonalGaussianDistribution(self.mean, self.log_var)
        return right.sample_and_log_prob(key, num_samples)

    def log_prob(self, z):
        return super().log_prob(z) + 1


@pytree
class SamplesOfItsOwn(DiagonalGaussianDistribution):
    mean: jax.Array
    log_var: jax.Array

    def sample(self, key, num_samples):
        return 2 * super().sample(key, num_samples)

    def sample_and_log_prob(self, key, num_samples):
        right = DiagonalGaussianDistribution(self.mean, self.log_var)
        return right.sample_and_log_prob(key, num_samples)


@pytree
class KLOfLogVar(DiagonalGaussianDistribution):
    mean: jax.Array
    log_var: jax.Array


@register_kl(KLOfLogVar, DiagonalGaussianDistribution)
def _log_var_for_its_exponential(posterior, prior):
    log_var = posterior.log_var
    terms = jnp.square(posterior.mean) + log_var - 1 - log_var
    return 0.5 * jnp.sum(terms, axis=-1)


@pytree
class KLWithoutHalf(DiagonalGaussianDistribution):
    mean: jax.Array
    log_var: jax.Array


@register_kl(KLWithoutHalf, DiagonalGaussianDistribution)
def _without_half(posterior, prior):
    return 2 * gaussian.diagonal_kl_to_standard_normal(
        posterior.mean, posterior.log_var
    )


@pytree
class StoppedSamples(DiagonalGaussianDistribution):
    mean: jax.Array
    log_var: jax.Array

    def sample_and_log_prob(self, key, num_samples):
        z, _ = super().sample_and_log_prob(key, num_samples)
        z = jax.lax.stop_gradient(z)
        return z, self.log_prob(z)


@pytree
class BranchOnNoise(DiagonalGaussianDistribution):
    mean: jax.Array
    log_var: jax.Array

    def sample_and_log_prob(self, key, num_samples):
        if float(jax.random.normal(key)) > 10:
            raise OverflowError
        return super().sample_and_log_prob(key, num_samples)


@pytree
class OnTheHost(DiagonalGaussianDistribution):
    mean: jax.Array
    log_var: jax.Array

    def sample_and_log_prob(self, key, num_samples):
        z, log_q = super().sample_and_log_prob(key, num_samples)
        shape = jax.ShapeDtypeStruct(log_q.shape, log_q.dtype)
        zero = jax.pure_callback(np.zeros_like, shape, jax.lax.stop_gradient(log_q))
        return z, log_q + zero


class OwnBits(Distribution):
    """Bits of the user's own, with no registered KL."""

    has_log_prob: ClassVar[bool] = False
    is_reparameterizable: ClassVar[bool] = False

    @property
    def mean(self):
        return jax.nn.sigmoid(self.logits)

    def sample_and_log_prob(self, key, num_samples):
        return BernoulliDistribution(self.logits).sample_and_log_prob(key, num_samples)


@pytree
class BitsOffByConstant(OwnBits):
    logits: jax.Array

    def sample_and_log_prob(self, key, num_samples):
        z, log_q = super().sample_and_log_prob(key, num_samples)
        return z, log_q - 20


@pytree
class BitsOverTheNumberOfSamples(OwnBits):
    logits: jax.Array

    def sample_and_log_prob(self, key, num_samples):
        z, log_q = super().sample_and_log_prob(key, num_samples)
        return z, log_q + np.float32(np.log(num_samples))


@pytree
class BitsWithoutNormalizer(OwnBits):
    logits: jax.Array
    has_log_prob: ClassVar[bool] = True

    def sample_and_log_prob(self, key, num_samples):
        z, _ = super().sample_and_log_prob(key, num_samples)
        return z, self.log_prob(z)

    def log_prob(self, z):
        return jnp.sum(z * self.logits, axis=-1) + 5


def with_bits(posterior_class):
    @dataclass(frozen=True)
    class Family(FactorizedBernoulli):
        def build(self, params, outputs):
            return posterior_class(outputs)

    return replace(SMALL, posterior=Family(), prior=FactorizedBernoulliPrior())


def with_prior(prior_class):
    """SMALL with another class for what its standard normal prior builds."""

    @dataclass(frozen=True)
    class Prior(StandardNormal):
        def build(self, prior_params, **options):
            normal = super().build(prior_params, **options)
            return prior_class(normal.mean, normal.log_var)

    return replace(SMALL, prior=Prior())


@pytree
class SampleInColumns(DiagonalGaussianDistribution):
    mean: jax.Array
    log_var: jax.Array

    def sample(self, key, num_samples):
        return super().sample(key, num_samples)[:, :, None]


@pytree
class WiderSamples(DiagonalGaussianDistribution):
    mean: jax.Array
    log_var: jax.Array

    def sample(self, key, num_samples):
        return 1.3 * super().sample(key, num_samples)


@pytree
class IntegerDraws(BernoulliDistribution):
    logits: jax.Array

    def sample(self, key, num_samples):
        return super().sample(key, num_samples).astype(jnp.int32)


@pytree
class LogOfSigmoid(BernoulliDistribution):
    logits: jax.Array

    def log_prob(self, x):
        ones = jax.nn.sigmoid(self.logits)
        return jnp.sum(x * jnp.log(ones) + (1 - x) * jnp.log(1 - ones), axis=-1)


@pytree
class MeanOverPixels(BernoulliDistribution):
    logits: jax.Array

    def log_prob(self, x):
        return super().log_prob(x) / x.shape[-1]


@pytree
class MeanIsLogits(BernoulliDistribution):
    logits: jax.Array

    @property
    def mean(self):
        return self.logits


@pytree
class CannotDraw(BernoulliDistribution):
    logits: jax.Array

    def sample(self, key, num_samples):
        raise NotImplementedError("no draws yet")


@pytree
class WithoutLogVar(DiagonalGaussianDistribution):
    mean: jax.Array
    log_var: jax.Array

    def log_prob(self, x):
        log_var = jnp.tanh(self.log_var)
        return -0.5 * jnp.sum(jnp.square(x - self.mean) * jnp.exp(-log_var), axis=-1)

    def sample(self, key, num_samples):
        log_var = jnp.tanh(self.log_var)
        return gaussian.diagonal_sample(
            self.mean, log_var, key, num_samples=num_samples
        )


class StandardizesExample(nn.Module):
    @nn.compact
    def __call__(self, inputs):
        inputs = inputs - inputs.mean(axis=-1, keepdims=True)
        return inputs / inputs.std(axis=-1, keepdims=True)


class CentersBatch(nn.Module):
    @nn.compact
    def __call__(self, inputs):
        return inputs - inputs.mean(axis=0)


DEFECTS = {
    "column-mean": (with_posterior(ColumnMean), {"shapes of the posterior"}),
    "prior-columns": (
        with_prior(SampleInColumns),
        {"shapes of the prior"},
    ),
    "two-ways-to-draw": (
        with_posterior(SamplesOfItsOwn),
        {"samples come with their log q"},
    ),
    "integer-draws": (with_likelihood(IntegerDraws), {"shapes of the likelihood"}),
    "standardizes-constant-images": (
        replace(SMALL, encoder=StandardizesExample()),
        {"finite at x of all 0 and all 1"},
    ),
    "unbounded-log-var": (
        with_posterior(DiagonalGaussianDistribution, unbounded=True),
        {"finite where the encoder runs away"},
    ),
    "log-of-sigmoid": (
        with_likelihood(LogOfSigmoid),
        {"finite where latents and decoder run away"},
    ),
    "two-densities": (
        with_posterior(LogProbOfItsOwn),
        {"log q of samples is log_prob"},
    ),
    "bits-off-by-a-constant": (with_bits(BitsOffByConstant), {"KL is not negative"}),
    "kl-of-log-var": (
        with_posterior(KLOfLogVar, scale=0.3),
        {"KL is not negative", "registered KL is the sampled KL"},
    ),
    "kl-without-half": (
        with_posterior(KLWithoutHalf),
        {"registered KL is the sampled KL"},
    ),
    "bits-without-normalizer": (
        with_bits(BitsWithoutNormalizer),
        {"posterior keeps its mass"},
    ),
    "all-over-the-variance": (
        with_posterior(AllOverTheVariance),
        {"posterior keeps its mass", "posterior has mass one"},
    ),
    "variance-for-deviation": (
        with_posterior(VarianceForDeviation),
        {"posterior keeps its mass", "posterior has mass one"},
    ),
    "without-its-constant": (
        with_posterior(WithoutItsConstant),
        {"posterior has mass one"},
    ),
    "prior-draws-wider": (
        with_prior(WiderSamples),
        {"prior keeps its mass"},
    ),
    "without-log-var": (
        with_likelihood(WithoutLogVar, PerPixelGaussian),
        {"likelihood keeps its mass"},
    ),
    "mean-over-pixels": (
        with_likelihood(MeanOverPixels),
        {"likelihood keeps its mass"},
    ),
    "mean-is-logits": (with_likelihood(MeanIsLogits), {"likelihood has its mean"}),
    "over-the-number-of-samples": (
        with_bits(BitsOverTheNumberOfSamples),
        {"bounds rise with samples"},
    ),
    "stopped-samples": (with_posterior(StoppedSamples), {"gradient is the slope"}),
    # It stops vmap as well, and is told once.
    "branch-on-noise": (with_posterior(BranchOnNoise), {"jit changes nothing"}),
    "on-the-host": (with_posterior(OnTheHost), {"vmap changes nothing"}),
    "centers-the-batch": (
        replace(SMALL, encoder=CentersBatch()),
        {"examples stand alone"},
    ),
}


def assert_each_says_what_was_expected(report):
    for line in report.lines:
        assert line.passed is not False or "expected" in line.detail, line


# What peers got wrong, and what is quick; `make test-slow` has them all.
QUICK = ("kl-of-log-var", "mean-over-pixels", "two-ways-to-draw")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)
        for name in DEFECTS
    ],
)
def test_a_defect_fails_its_own_line(name):
    spec, lines = DEFECTS[name]
    report = report_of(spec, only=sorted(lines))
    assert set(report.failed) == lines, str(report)
    assert_each_says_what_was_expected(report)


@pytest.mark.slow
@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_fails_no_other_line(name):
    spec, lines = DEFECTS[name]
    report = report_of(spec)
    assert set(report.failed) == lines, str(report)


@dataclass(frozen=True)
class RootOfWeight(Bernoulli):
    """Its gradient is 0 / 0 where the weight is 0, and nowhere else."""

    def init(self, key, *, dim):
        return {"weight": jnp.zeros(())}

    def build(self, params, outputs):
        return BernoulliDistribution(
            outputs + 0 * jnp.sqrt(jnp.square(params["weight"]))
        )


@pytest.mark.slow
def test_the_given_parameters_are_asked_as_they_are():
    spec = replace(SMALL, likelihood=RootOfWeight())
    params = jax.tree.map(jnp.asarray, random_params(spec))
    params = params.replace(likelihood={"weight": jnp.zeros(())})
    report = check(params, jnp.asarray(X), jax.random.key(2))
    assert report.failed == ("finite at the given parameters",), str(report)
    assert "likelihood weight has nan" in str(report)


def test_swapped_samples_and_batch_show_in_the_shapes():
    only = ["shapes of the posterior"]
    report = report_of(with_posterior(SamplesAndBatchSwapped), only=only)
    assert "z came as [2, 3, 2] float32, expected [3, 2, 2]" in str(report)


def test_an_exception_fails_the_first_line_that_it_stops():
    """The others that it stops do not apply, and the rest is asked."""
    lines = [
        "shapes of the posterior",
        "shapes of the likelihood",
        "likelihood keeps its mass",
        "likelihood has its mean",
    ]
    report = report_of(with_likelihood(CannotDraw), only=lines)
    assert [line.passed for line in report.lines] == [True, False, None, None]
    assert str(report).count("NotImplementedError: no draws yet") == 1
    for line in report.lines[2:]:
        assert line.detail == "stopped by the exception of 'shapes of the likelihood'"


class FailsAfterInit(nn.Module):
    @nn.compact
    def __call__(self, inputs):
        if not self.is_initializing():
            raise RuntimeError(f"no weights for {inputs.shape}")
        return inputs


def test_an_exception_in_a_network_is_told_once():
    report = report_of(replace(SMALL, encoder=FailsAfterInit()))
    assert report.failed == ("shapes of the posterior",)
    assert str(report).count("RuntimeError: no weights for (2, 3)") == 1
    assert str(report).count("stopped by the exception") >= 15


def test_labels_are_passed_through():
    spec = replace(SMALL, prior=ClassConditionalPrior(3), num_classes=3)
    params = jax.tree.map(jnp.asarray, random_params(spec))
    labels = np.array([2, 0])
    only = ["shapes of the prior", "shapes of the likelihood", "prior keeps its mass"]
    report = check(params, jnp.asarray(X), jax.random.key(2), labels=labels, only=only)
    assert report.passed and not without(report), str(report)
    without_labels = check(
        params, jnp.asarray(X), jax.random.key(2), only=["shapes of the prior"]
    )
    assert "needs labels" in str(without_labels)


def test_one_key_gives_one_report_and_a_line_does_not_depend_on_the_others():
    name = "posterior has mass one"
    several = report_of(SMALL, only=["prior keeps its mass", name])
    assert report_of(SMALL, only=[name]).lines == several.lines[1:]


@pytest.mark.long
def test_a_model_in_float32_passes_where_float64_is_allowed(x64):
    """N(0, I) has no parameters that would tell it the dtype of its draws."""
    params = jax.tree.map(
        lambda leaf: jnp.asarray(leaf, "float32"), random_params(SMALL)
    )
    only = ["shapes of the prior", "prior keeps its mass"]
    report = check(params, jnp.asarray(X, "float32"), jax.random.key(2), only=only)
    assert report.passed and not without(report), str(report)


@pytest.mark.long
def test_too_few_samples_for_the_latents_are_no_failure():
    spec = replace(SMALL, latent_dim=60)
    report = report_of(spec, num_samples=100, only=["posterior has mass one"])
    assert report.lines[0].passed is None and "too few samples" in str(report)


def test_a_report_reads_as_a_table():
    report = Report(
        (
            Line("KL is not negative", True, "smallest 0.31 nats"),
            Line("bounds rise", None, "", "PointMassDistribution has no density"),
            Line("log q", False, "off", "came 1\nexpected 2"),
        )
    )
    assert not report.passed and report.failed == ("log q",)
    assert str(report).splitlines() == [
        "passed          KL is not negative: smallest 0.31 nats",
        "does not apply  bounds rise",
        "                  PointMassDistribution has no density",
        "FAILED          log q: off",
        "                  came 1",
        "                  expected 2",
        "1 passed, 1 failed, 1 do not apply",
    ]


@pytest.mark.parametrize(
    "options, message",
    [({"only": ["speed"]}, "only must name"), ({"num_samples": 10}, "num_samples")],
)
def test_a_wrong_option_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        report_of(SMALL, **options)


def test_integer_data_is_refused():
    with pytest.raises(ValueError, match="floating or boolean"):
        report_of(SMALL, X.astype(int))
