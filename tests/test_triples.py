"""Every posterior with every prior and likelihood: right, or refused by the spec.

A new family is held to all of it by a line in its list. The evidence is a sum over a
grid of z, or over all states of bits, of densities of x by NumPy and SciPy.
"""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from vae_jax import (
    MLP,
    AutoregressiveFlow,
    Bernoulli,
    Categorical,
    ClassConditionalPrior,
    ContinuousBernoulli,
    DiagonalGaussian,
    DiagonalGaussianPrior,
    DiscretizedLogistic,
    FactorizedBernoulli,
    FactorizedBernoulliPrior,
    FullCovarianceGaussian,
    FullGaussian,
    Gaussian,
    HierarchicalGaussian,
    HierarchicalGaussianPrior,
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
    StochasticLayer,
    Sylvester,
    VampPrior,
    ZeroInflatedNegativeBinomial,
    elbo_terms,
    encode,
    init,
    log_prior,
    trainable,
)
from vae_jax.distributions import closed_form_kl
from vae_jax.estimators import (
    exact_enumeration,
    leave_one_out,
    reparameterization,
)
from vae_jax.model import at_labels, build_prior

NETWORK = MLP((3,), activation=nn.tanh)
ABOVE = (StochasticLayer(1, encoder=Linear(), decoder=Linear()),)
POSTERIORS = {
    "point": PointMass(),
    "diagonal": DiagonalGaussian(),
    "full": FullGaussian(),
    "low-rank": LowRankGaussian(rank=1),
    "householder": Householder(num_steps=2),
    "planar": Planar(num_steps=2),
    "sylvester": Sylvester(num_steps=1, num_reflections=1),
    "inverse-autoregressive": InverseAutoregressive(1, hidden_dim=3, context_dim=2),
    "bits": FactorizedBernoulli(),
    "layers": HierarchicalGaussian(ABOVE),
}
PRIORS = {
    "standard": StandardNormal(),
    "learned": DiagonalGaussianPrior(),
    "of-classes": ClassConditionalPrior(2),
    "mixture": MixtureOfGaussians(2),
    "full-mixture": MixtureOfGaussians(2, full_covariance=True),
    "flow": AutoregressiveFlow(1, hidden_dim=3),
    "vamp": VampPrior(2),
    "bits": FactorizedBernoulliPrior(),
    "layers": HierarchicalGaussianPrior(ABOVE),
}
WITHOUT_DENSITY = ("point", "planar", "sylvester", "inverse-autoregressive")


def log_gaussian(p, x):
    return scipy.stats.norm(p.mean, np.exp(p.log_var / 2)).logpdf(x).sum(-1)


def log_full_gaussian(p, x):
    precision = p.precision_tril @ np.swapaxes(p.precision_tril, -1, -2)
    squares = np.einsum("...i,...ij,...j", x - p.mean, precision, x - p.mean)
    log_det = np.linalg.slogdet(precision / (2 * np.pi))[1]
    return 0.5 * (log_det - squares)


def log_categories(p, x):
    level = np.rint(2 * x).astype(int)
    probability = scipy.special.softmax(p.logits, axis=-1)
    level = np.broadcast_to(level, probability.shape[:-1])[..., None]
    return np.log(np.take_along_axis(probability, level, axis=-1)).sum((-1, -2))


def log_counts(p, x):
    zero = scipy.special.expit(p.logits)
    mean, r = p.counted.mean, p.counted.inverse_dispersion
    counted = scipy.stats.nbinom(r, r / (r + mean)).pmf(x)
    return np.log(zero * (x == 0) + (1 - zero) * counted).sum(-1)


def log_logistic_levels(p, x):
    middle = x[..., None]
    ends = [
        np.where(middle == edge, outside, middle + half)
        for edge, outside, half in ((0, -np.inf, -0.25), (1, np.inf, 0.25))
    ]
    below, above = scipy.stats.logistic(p.location, np.exp(p.log_scale)).cdf(
        np.array(ends)[:, None]
    )
    weights = scipy.special.softmax(p.logits, axis=-1)
    return np.log(np.sum(weights * (above - below), axis=-1)).sum(-1)


BITS = np.array([[0.0, 1.0], [1.0, 1.0]])
GREYS = np.array([[0.2, 0.7], [0.9, 0.4]])
COUNTS = np.array([[0.0, 3.0], [1.0, 2.0]])
LEVELS = np.array([[0.0, 0.5], [1.0, 0.5]])  # of three
# Family, data `[B, D]`, and the log-density of these under what it builds.
LIKELIHOODS = {
    "bernoulli": (
        Bernoulli(),
        BITS,
        lambda p, x: scipy.special.log_expit((2 * x - 1) * p.logits).sum(-1),
    ),
    "continuous-bernoulli": (
        ContinuousBernoulli(),
        GREYS,
        lambda p, x: np.sum(p.logits * x + np.log(p.logits / np.expm1(p.logits)), -1),
    ),
    "gaussian": (Gaussian(), GREYS, log_gaussian),
    "gaussian-learned": (Gaussian(learned_variance=True), GREYS, log_gaussian),
    "gaussian-per-pixel": (PerPixelGaussian(), GREYS, log_gaussian),
    "gaussian-full": (FullCovarianceGaussian(), GREYS, log_full_gaussian),
    "counts": (ZeroInflatedNegativeBinomial(), COUNTS, log_counts),
    "categorical": (Categorical(3), LEVELS, log_categories),
    "discretized-logistic": (DiscretizedLogistic(3, 2), LEVELS, log_logistic_levels),
}


def go_together(posterior, prior, likelihood):
    if prior == "vamp":
        if likelihood == "counts":
            return False
        return posterior != "layers" and posterior not in WITHOUT_DENSITY
    return all((posterior == own) == (prior == own) for own in ("bits", "layers"))


def spec_of(posterior, prior, likelihood, latent_dim=2):
    return ModelSpec(
        encoder=Linear(),
        decoder=NETWORK,
        posterior=POSTERIORS[posterior],
        prior=PRIORS[prior],
        likelihood=LIKELIHOODS[likelihood][0],
        latent_dim=1 if posterior == "layers" else latent_dim,
        data_shape=(2,),
        num_classes=2 if prior == "of-classes" else 0,
    )


EVERY = list(itertools.product(POSTERIORS, PRIORS, LIKELIHOODS))
# Point masses have no density to be right about.
ACCEPTED = [t for t in EVERY if go_together(*t) and t[0] != "point"]


def pairs_of(triple):
    """Its pairs of kinds: settings of one class, or of one density, are one kind."""
    posterior, prior, likelihood = triple
    _, _, density = LIKELIHOODS[likelihood]
    kinds = type(POSTERIORS[posterior]), type(PRIORS[prior]), density
    return set(itertools.combinations(enumerate(kinds), 2))


def pairwise_cover(triples):
    """Few of the triples that have every pair of families, the greedy choice."""
    left, chosen = set().union(*map(pairs_of, triples)), []
    while left:
        chosen.append(max(triples, key=lambda triple: len(left & pairs_of(triple))))
        left -= pairs_of(chosen[-1])
    return chosen


COVER = pairwise_cover(ACCEPTED)


def test_every_triple_that_is_refused_is_refused_by_the_spec():
    for posterior, prior, likelihood in EVERY:
        if go_together(posterior, prior, likelihood):
            spec_of(posterior, prior, likelihood)
            continue
        with pytest.raises(ValueError) as refusal:
            spec_of(posterior, prior, likelihood)
        other = POSTERIORS[posterior]
        if go_together(posterior, prior, "bernoulli"):
            other = LIKELIHOODS[likelihood][0]
        for choice in (other, PRIORS[prior]):
            assert str(choice) in str(refusal.value)


# Each of two examples this many times over: as many independent estimates.
COPIES = 300
STEP = 1e-5
GRID_LIMIT = 9.0
PARTS = ("encoder", "decoder", "posterior", "prior", "likelihood")


def random_params(spec):
    """No leaf at a special point, in float64, and q wide enough to find all of z.

    A part is drawn by itself, so that it is the same in every triple.
    """
    fresh = jax.eval_shape(functools.partial(init, spec), jax.random.key(0))

    def draw(part, number):
        rng = np.random.default_rng([0, number])
        return jax.tree.map(lambda leaf: 0.3 * rng.normal(size=leaf.shape), part)

    params = fresh.replace(
        **{name: draw(getattr(fresh, name), n) for n, name in enumerate(PARTS)}
    )
    if spec.posterior.latent_space == "real":
        log_var = slice(spec.latent_dim, 2 * spec.latent_dim)
        params.encoder["output"]["bias"][log_var] += 1.5
    return params


def is_layered(spec):
    return spec.posterior == POSTERIORS["layers"]


def grid_of(spec):
    """All latents there are, or nearly so, `[G, 2, L]`, and the log-volume of each."""
    if spec.posterior.latent_space == "binary":
        axis, dim, log_volume = np.array([0.0, 1.0]), spec.latent_dim, 0.0
    else:
        dim = 1 + (spec.latent_dim == 2 or is_layered(spec))
        axis = np.linspace(-GRID_LIMIT, GRID_LIMIT, 101)
        log_volume = dim * np.log(axis[1] - axis[0])
    points = np.array(list(itertools.product(axis, repeat=dim)))[:, None]
    points = points.repeat(2, axis=1)
    z = (points[..., :1], points[..., 1:]) if is_layered(spec) else points
    return z, log_volume


def decoded(params, z, labels):
    """p(x|z) of the network by NumPy."""
    hidden, output = params.decoder["network"]["Dense_0"], params.decoder["output"]
    inputs = z[0] if isinstance(z, tuple) else z
    if labels is not None:
        one_hot = np.broadcast_to(np.eye(2)[labels], (*inputs.shape[:-1], 2))
        inputs = np.concatenate([inputs, one_hot], axis=-1)
    features = np.tanh(inputs @ hidden["kernel"] + hidden["bias"])
    outputs = features @ output["kernel"] + output["bias"]
    built = params.spec.likelihood.build(params.likelihood, jnp.asarray(outputs))
    return jax.tree.map(np.asarray, built)


def evidence_of(params, x, labels, log_density):
    """Log p(x) on the grid, where the prior has mass one: it is wide and fine."""
    z, log_volume = grid_of(params.spec)
    log_p = np.asarray(log_prior(params, z, labels=labels)) + log_volume
    np.testing.assert_allclose(np.exp(log_p).sum(axis=0), 1, rtol=1e-3)
    log_joint = log_density(decoded(params, z, labels), x) + log_p
    return scipy.special.logsumexp(log_joint, axis=0)


@jax.jit
def elbos(params, x, labels, key):
    """ELBOs of every copy, with the sampled KL and the closed form where there is one.

    Its value is the sum of their means, with its gradient.
    """
    spec = params.spec
    bits = spec.posterior.latent_space == "binary"
    estimator = exact_enumeration if bits else reparameterization
    prior = build_prior(at_labels(params, labels))
    pair = type(encode(params, x, labels=labels)), type(prior)
    choices = ["monte_carlo"] + ["analytic"] * (closed_form_kl(*pair) is not None)

    def total(params):
        terms = {
            kl: elbo_terms(params, x, key, kl=kl, estimator=estimator, labels=labels)
            for kl in choices
        }
        return sum(jnp.mean(each.elbo) for each in terms.values()), terms

    return jax.value_and_grad(total, has_aux=True)(params)


def along(params, direction, step):
    return jax.tree.map(lambda leaf, d: leaf + step * d, params, direction)


def error_of(values):
    return values.std(axis=0, ddof=1) / np.sqrt(len(values))


@pytest.mark.long
@pytest.mark.parametrize(
    "triple",
    [
        pytest.param(
            triple,
            id="-".join(triple),
            marks=[] if triple in COVER else pytest.mark.slow,
        )
        for triple in ACCEPTED
    ],
)
def test_an_accepted_triple_is_right(triple, x64):
    _, x, log_density = LIKELIHOODS[triple[2]]
    spec = spec_of(*triple, latent_dim=1 + ACCEPTED.index(triple) % 2)
    params, key = random_params(spec), jax.random.key(0)
    labels = np.array([0, 1]) if spec.num_classes else None
    many = np.tile(x, (COPIES, 1))
    their_labels = np.tile(labels, COPIES) if spec.num_classes else None
    compute = functools.partial(elbos, x=many, labels=their_labels, key=key)
    (_, terms), gradient = jax.tree.map(np.asarray, compute(params))
    evidence = evidence_of(params, x, labels, log_density)

    # Bounds; and importance weights, whose mean is p(x). Those of bits are summed over.
    terms = jax.tree.map(lambda leaf: leaf.reshape(COPIES, 2), terms)
    for each in terms.values():
        assert np.isfinite(each.elbo).all()
        bound, error = each.elbo.mean(axis=0), error_of(each.elbo)
        assert np.all(bound <= evidence + 5 * error + 1e-3), (bound, evidence, error)
    sampled = terms["monte_carlo"]
    if spec.posterior.latent_space == "real":
        ratio = np.exp(sampled.elbo - evidence)
        off = (ratio.mean(axis=0) - 1) / error_of(ratio)
        assert np.all(np.abs(off) < 5), off
    if "analytic" in terms:
        difference = sampled.kl_divergence - terms["analytic"].kl_divergence
        assert np.all(np.abs(difference.mean(0)) <= 5 * error_of(difference) + 1e-9)

    # Samples and their density.
    posterior = encode(params, many, labels=their_labels)
    assert posterior.has_log_prob == spec.posterior.has_log_prob
    if spec.posterior.has_log_prob:
        z, log_q = posterior.sample_and_log_prob(key, 1)
        np.testing.assert_allclose(posterior.log_prob(z), log_q, rtol=1e-8)

    # The gradient, along a random direction.
    rng = np.random.default_rng(9)
    direction = jax.tree.map(
        lambda leaf, moves: moves * rng.normal(size=leaf.shape),
        params,
        trainable(params),
    )
    above, below = (
        compute(along(params, direction, step))[0][0] for step in (STEP, -STEP)
    )
    products = jax.tree.map(lambda d, g: np.sum(d * g), direction, gradient)
    slope = sum(jax.tree.leaves(products))
    assert (above - below) / (2 * STEP) == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize(
    "prior", ["bits", pytest.param("vamp", marks=pytest.mark.slow)]
)
def test_the_elbo_of_bits_is_its_enumeration(prior, x64, assert_mean):
    """By NumPy; and the estimator for sampled bits has its slope in expectation."""
    spec = spec_of("bits", prior, "bernoulli")
    params, key = random_params(spec), jax.random.key(0)
    direction = jax.tree.map(lambda leaf: np.ones_like(leaf), params)
    _, x, log_density = LIKELIHOODS["bernoulli"]

    def exact(params):
        z, _ = grid_of(spec)
        q = scipy.special.expit((2 * z - 1) * np.asarray(encode(params, x).logits))
        log_joint = log_density(decoded(params, z, None), x) + log_prior(params, z)
        return np.sum(q.prod(-1) * (log_joint - np.log(q).sum(-1)), axis=0)

    @jax.jit
    def sampled(params):
        many = jnp.tile(x, (COPIES, 1))

        def elbo(params):
            return elbo_terms(
                params, many, key, num_samples=2, estimator=leave_one_out
            ).elbo

        return jax.jvp(elbo, (params,), (direction,))

    above, below = (exact(along(params, direction, h)) for h in (STEP, -STEP))
    slope = (above - below) / (2 * STEP)
    values, slopes = (np.reshape(each, (COPIES, 2)) for each in sampled(params))
    assert_mean(values, exact(params))
    assert_mean(slopes, slope)
