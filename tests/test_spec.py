"""A spec: what it refuses, when two are equal, and how `Params` carries it."""

import copy
import dataclasses
import pickle
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from specs import random_params

from vae_jax import (
    MLP,
    AutoregressiveFlow,
    Bernoulli,
    Categorical,
    ClassConditionalPrior,
    Columns,
    DiagonalGaussian,
    FactorizedBernoulli,
    FactorizedBernoulliPrior,
    FullGaussian,
    Gaussian,
    HierarchicalGaussian,
    HierarchicalGaussianPrior,
    InverseAutoregressive,
    Linear,
    LogNormal,
    Masked,
    MixtureOfGaussians,
    ModelSpec,
    Multinomial,
    NegativeBinomial,
    Nominal,
    Ordinal,
    Params,
    Planar,
    PointMass,
    Poisson,
    Standardized,
    StandardNormal,
    StochasticLayer,
    Sylvester,
    VampPrior,
    elbo,
    encode,
    init,
    log_prior,
)


class Unhashable(Bernoulli):
    __hash__ = None


class UnhashablePrior(StandardNormal):
    __hash__ = None


UNHASHABLE = {"posterior": Unhashable(), "likelihood": Unhashable()}
UNHASHABLE["prior"] = UnhashablePrior()
FIELDS = ["encoder", "decoder", "posterior", "prior", "likelihood"]


def test_the_default_is_the_mnist_reference_model():
    spec = ModelSpec()
    assert spec.encoder == spec.decoder == MLP((400,), activation=nn.relu)
    assert spec.posterior == DiagonalGaussian() and spec.prior == StandardNormal()
    assert spec.likelihood == Bernoulli()
    assert (spec.latent_dim, spec.data_shape, spec.data_dim) == (20, (28, 28), 784)


@pytest.mark.parametrize("field", FIELDS)
def test_a_class_in_place_of_an_instance_is_refused(field):
    choice = type(getattr(ModelSpec(), field))
    with pytest.raises(ValueError, match=rf"{field} .*{choice.__name__}\(\.\.\.\)"):
        ModelSpec(**{field: choice})


@pytest.mark.parametrize("field", FIELDS)
def test_what_cannot_be_hashed_is_refused_by_the_name_of_its_field(field):
    with pytest.raises(ValueError, match=f"(?s){field} .*cannot be hashed"):
        ModelSpec(**{field: UNHASHABLE.get(field, MLP([400]))})


@pytest.mark.parametrize("field", ["encoder", "decoder"])
def test_a_list_inside_a_network_is_refused_by_the_name_of_its_field(field):
    with pytest.raises(ValueError, match=rf"(?s){field} .*\[400\].*tuples for lists"):
        ModelSpec(**{field: MLP([400])})


@pytest.mark.parametrize("field", ["encoder", "decoder"])
def test_what_lacks_the_methods_of_its_field_is_refused(field):
    with pytest.raises(ValueError, match=f"{field} must be a Linen module, got str"):
        ModelSpec(**{field: "mlp"})


@pytest.mark.parametrize(
    "field, base",
    [("posterior", "Family"), ("prior", "Prior"), ("likelihood", "Family")],
)
def test_what_does_not_subclass_its_base_is_refused(field, base):
    message = f"{field} .*'mlp'.* subclass vae_jax.types.{base}"
    with pytest.raises(ValueError, match=message):
        ModelSpec(**{field: "mlp"})


def test_a_family_in_the_wrong_field_is_refused():
    with pytest.raises(ValueError, match="likelihood .* declares no support"):
        ModelSpec(likelihood=FullGaussian())
    with pytest.raises(ValueError, match="posterior .* declares no latent_space"):
        ModelSpec(posterior=Categorical(17))


@pytest.mark.parametrize("family", [DiagonalGaussian(), FactorizedBernoulli()], ids=str)
def test_a_family_serves_on_both_sides(family):
    prior = NORMAL if family == DiagonalGaussian() else FactorizedBernoulliPrior()
    spec = ModelSpec(posterior=family, prior=prior, likelihood=family)
    assert spec.posterior == spec.likelihood


@pytest.mark.parametrize("size", [0, -1, 2.5, 2.0, True, "2", None])
def test_a_size_that_is_no_positive_integer_is_refused(size):
    with pytest.raises(ValueError, match=f"latent_dim .*{size!r}"):
        ModelSpec(latent_dim=size)
    with pytest.raises(ValueError, match=f"data_shape .*{size!r}"):
        ModelSpec(data_shape=(3, size))


def test_an_unknown_dtype_is_refused():
    with pytest.raises(ValueError, match="compute_dtype must be one of.*got 'half'"):
        ModelSpec(compute_dtype="half")


@pytest.mark.parametrize("shape", [(), [28, 28], 784, "28", None])
def test_a_data_shape_that_is_no_tuple_of_sizes_is_refused(shape):
    with pytest.raises(ValueError, match="data_shape"):
        ModelSpec(data_shape=shape)


BITS, NORMAL = FactorizedBernoulli(), StandardNormal()
ABOVE = (StochasticLayer(2),)
REFUSED_PAIRS = {
    "bits under a density": (BITS, NORMAL, "kind, got binary and real"),
    "bits under a mixture": (BITS, MixtureOfGaussians(3), "kind, got binary and real"),
    "bits under a flow": (BITS, AutoregressiveFlow(), "kind, got binary and real"),
    "a density under bits": (
        DiagonalGaussian(),
        FactorizedBernoulliPrior(),
        "kind, got real and binary",
    ),
    "a point under bits": (
        PointMass(),
        FactorizedBernoulliPrior(),
        "kind, got real and binary",
    ),
    "a mixture of points": (PointMass(), VampPrior(3), "has none at a given z"),
    "a mixture of planar flows": (Planar(2), VampPrior(3), "has none at a given z"),
    "a mixture of Sylvester flows": (
        Sylvester(),
        VampPrior(3),
        "has none at a given z",
    ),
    "a mixture of IAFs": (
        InverseAutoregressive(),
        VampPrior(3),
        "has none at a given z",
    ),
    "a mixture of layers": (
        HierarchicalGaussian(ABOVE),
        VampPrior(3),
        "same stochastic layers",
    ),
    "layers above a single array": (
        DiagonalGaussian(),
        HierarchicalGaussianPrior(ABOVE),
        "same stochastic layers",
    ),
    "a tuple of one above a single array": (
        HierarchicalGaussian(()),
        NORMAL,
        "same stochastic layers",
    ),
}


@pytest.mark.parametrize("name", REFUSED_PAIRS)
def test_a_posterior_and_a_prior_of_other_latents_are_refused(name):
    posterior, prior, reason = REFUSED_PAIRS[name]
    message = f"posterior {re.escape(str(posterior))} and prior "
    message = message + re.escape(str(prior)) + f".*{reason}"
    with pytest.raises(ValueError, match=message):
        ModelSpec(posterior=posterior, prior=prior)


@pytest.mark.parametrize(
    "likelihood",
    [
        Standardized(Gaussian()),
        Nominal(3),
        Ordinal(3),
        LogNormal(),
        Multinomial(),
        Masked(NegativeBinomial()),
        Columns(((Bernoulli(), (0,)), (Poisson(), (1,)))),
    ],
    ids=repr,
)
def test_pseudo_inputs_unlike_the_data_are_refused(likelihood):
    """The prior would be of posteriors at x in (0, 1), whatever the data are."""
    message = re.escape(f"of likelihood {likelihood!r} are") + ".*MixtureOfGaussians"
    with pytest.raises(ValueError, match=message):
        ModelSpec(likelihood=likelihood, prior=VampPrior(3), data_shape=(2,))
    for other in (Gaussian(), Masked(Bernoulli())):
        ModelSpec(likelihood=other, prior=VampPrior(3), data_shape=(2,))


@pytest.mark.parametrize(
    "prior, num_classes, message",
    [
        (VampPrior(3), 2, "VampPrior.* encodes without labels, and num_classes is 2"),
        (ClassConditionalPrior(2), 0, "has 2 classes, and num_classes is 0"),
        (ClassConditionalPrior(2), 3, "has 2 classes, and num_classes is 3"),
    ],
)
def test_a_prior_and_a_model_of_other_labels_are_refused(prior, num_classes, message):
    with pytest.raises(ValueError, match=message):
        ModelSpec(prior=prior, num_classes=num_classes)


@pytest.mark.parametrize("posterior", [DiagonalGaussian(), BITS], ids=str)
def test_a_prior_that_declares_no_latents_goes_with_any(posterior):
    spec = ModelSpec(posterior=posterior, prior=VampPrior(3))
    assert spec.posterior == posterior


@dataclasses.dataclass(frozen=True)
class Undeclared(Planar):
    """A user's family that does not say that its density is known of samples only."""

    has_log_prob = True


def test_a_mixture_of_an_undeclared_posterior_is_refused_by_its_density():
    spec = dataclasses.replace(SMALL, posterior=Undeclared(1), prior=VampPrior(3))
    params = jax.tree.map(jnp.asarray, random_params(spec))
    with pytest.raises(ValueError, match="mixture of densities.*Planar.* no log_prob"):
        log_prior(params, jnp.zeros((1, 1, 2)))


@dataclasses.dataclass(frozen=True)
class BuildsArrays(DiagonalGaussian):
    def build(self, params, outputs):
        return outputs


def test_a_family_that_builds_no_distribution_is_refused_by_its_name():
    spec = dataclasses.replace(SMALL, posterior=BuildsArrays())
    params = jax.tree.map(jnp.asarray, random_params(spec))
    with pytest.raises(ValueError, match="BuildsArrays.* subclass .*Distribution"):
        encode(params, jnp.zeros((1, spec.data_dim)))


@pytest.mark.parametrize("shape", [(1,), (784,), (28, 28), (8, 8, 3)], ids=str)
def test_the_data_dimension_is_the_product_of_the_shape(shape):
    spec = ModelSpec(data_shape=shape)
    product = 1
    for size in shape:
        product *= size
    assert spec.data_dim == product


def test_equal_specs_are_equal_and_hash_equal(spec):
    copy = dataclasses.replace(spec)
    assert copy is not spec and copy == spec and hash(copy) == hash(spec)
    rebuilt = dataclasses.replace(spec, encoder=spec.encoder.clone())
    assert rebuilt == spec and hash(rebuilt) == hash(spec)


@pytest.mark.parametrize(
    "change",
    [
        {"encoder": MLP((399,))},
        {"decoder": MLP((400,), activation=nn.tanh)},
        {"posterior": PointMass()},
        {"likelihood": Gaussian()},
        {"latent_dim": 21},
        {"data_shape": (784,)},
        {"compute_dtype": "bfloat16"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_specs_that_differ_in_a_field_differ(change):
    assert ModelSpec(**change) != ModelSpec()


def test_two_lambdas_of_the_same_text_are_two_specs():
    """Why an activation must be a named function: each lambda would compile anew."""
    one, other = (MLP((4,), activation=lambda x: x) for _ in range(2))
    assert ModelSpec(encoder=one) != ModelSpec(encoder=other)
    assert ModelSpec(encoder=one) == ModelSpec(encoder=one)


def test_a_spec_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ModelSpec().latent_dim = 3


# Params


SMALL = ModelSpec(
    encoder=Linear(),
    decoder=Linear(),
    likelihood=Gaussian(),
    latent_dim=2,
    data_shape=(3,),
)


def small_params(spec=SMALL):
    return Params(
        encoder={"output": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)}},
        decoder={"output": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}},
        posterior={},
        prior={},
        likelihood={"log_var": jnp.zeros(())},
        spec=spec,
    )


def test_params_are_a_tree_of_arrays_with_a_static_spec():
    leaves, structure = jax.tree.flatten(small_params())
    assert [leaf.shape for leaf in leaves] == [(4,), (3, 4), (3,), (2, 3), ()]
    assert jax.tree.unflatten(structure, leaves).spec == SMALL
    assert jax.tree.map(lambda leaf: leaf + 1, small_params()).spec == SMALL


def test_params_of_two_specs_do_not_mix():
    other = small_params(dataclasses.replace(SMALL, data_shape=(1, 3)))
    with pytest.raises(ValueError):
        jax.tree.map(jnp.add, small_params(), other)
    equal = small_params(dataclasses.replace(SMALL))
    total = jax.tree.map(jnp.add, small_params(), equal)
    assert total.encoder["output"]["bias"][0] == 2


def test_replace_changes_the_named_fields_only():
    params = small_params()
    changed = params.replace(likelihood={"log_var": jnp.ones(())})
    assert changed.likelihood == {"log_var": 1} and params.likelihood == {"log_var": 0}
    assert changed.encoder is params.encoder and changed.spec is params.spec


def test_a_compiled_function_is_compiled_again_exactly_when_the_spec_changes():
    traces = []

    @jax.jit
    def value(params, x, key):
        traces.append(params.spec)
        return elbo(params, x, key)

    x, key = jnp.ones((2, 3)), jax.random.key(0)
    twice = jax.tree.map(lambda leaf: 2 * leaf, small_params())
    equal = small_params(dataclasses.replace(SMALL, encoder=Linear()))
    for params in (small_params(), twice, equal):
        value(params, x, key)
    assert traces == [SMALL]
    learned = dataclasses.replace(SMALL, likelihood=Gaussian(learned_variance=True))
    value(small_params(learned), x, key)
    value(small_params(), x, key)
    assert traces == [SMALL, learned]


def test_a_spec_and_its_parameters_are_pickled():
    spec = ModelSpec(encoder=MLP((5,)), latent_dim=2, data_shape=(4,))
    params = init(spec, jax.random.key(0))
    again = pickle.loads(pickle.dumps(params))
    assert again.spec == spec
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_a_copy_of_a_spec_needs_no_import_path():
    """As scikit-learn's `clone` copies its arguments, also a network of a notebook."""
    spec = ModelSpec(encoder=MLP((5,), activation=lambda x: x), latent_dim=2)
    assert copy.deepcopy([spec]) == [spec]
