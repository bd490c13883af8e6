"""Networks of other frameworks, held to the Linen module of the same weights."""

import json

import equinox
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import vae_jax
from vae_jax import FunctionNetwork, ModelSpec, checkpoint, equinox_network, nnx_network
from vae_jax.networks import adapted
from vae_jax.spec_json import spec_from_json, spec_to_json

WIDTH = 7
DATA_DIM = 12
LATENT_DIM = 3


class LinenTanh(nn.Module):
    rate: float = 0.0

    @nn.compact
    def __call__(self, inputs, deterministic):
        hidden = nn.tanh(nn.Dense(WIDTH)(inputs))
        return nn.Dropout(self.rate, deterministic=deterministic)(hidden)


class NNXTanh(nnx.Module):
    def __init__(self, in_features, rate=0.0, *, rngs):
        self.layers = nnx.List([nnx.Linear(in_features, WIDTH, rngs=rngs)])
        self.dropout = nnx.Dropout(rate, rngs=rngs)

    def __call__(self, inputs):
        return self.dropout(jnp.tanh(self.layers[0](inputs)))


class EquinoxTanh(equinox.Module):
    hidden: equinox.nn.Linear
    dropout: equinox.nn.Dropout

    def __init__(self, in_size, rate=0.0, *, key):
        self.hidden = equinox.nn.Linear(in_size, WIDTH, key=key)
        self.dropout = equinox.nn.Dropout(rate)

    def __call__(self, x, key=None):
        return self.dropout(jnp.tanh(self.hidden(x)), key=key)


def initial_weights(key, num_inputs):
    kernel = jax.random.normal(key, (num_inputs, WIDTH)) / np.sqrt(num_inputs)
    return {"kernel": kernel, "bias": jnp.zeros(WIDTH)}


def features(weights, inputs):
    return jnp.tanh(inputs @ weights["kernel"] + weights["bias"])


def features_with_dropout(weights, inputs, key):
    hidden = features(weights, inputs)
    if key is None:
        return hidden
    return 2 * hidden * jax.random.bernoulli(key, shape=hidden.shape)


# A network, and its weights as those of Linen's dense layer.
NETWORKS = {
    "nnx": (
        nnx_network(NNXTanh),
        lambda dense: {
            "layers.0.kernel": dense["kernel"],
            "layers.0.bias": dense["bias"],
        },
    ),
    "equinox": (
        equinox_network(EquinoxTanh),
        lambda dense: {
            "hidden.weight": dense["kernel"].T,
            "hidden.bias": dense["bias"],
        },
    ),
    "functions": (FunctionNetwork(initial_weights, features), dict),
}
WITH_DROPOUT = {
    "linen": LinenTanh(0.5),
    "nnx": nnx_network(NNXTanh, rate=0.5),
    "equinox": equinox_network(EquinoxTanh, rate=0.5),
    "functions": FunctionNetwork(initial_weights, features_with_dropout),
}
networks = pytest.mark.parametrize("name", NETWORKS)


@pytest.fixture(scope="module")
def x():
    return (jax.random.uniform(jax.random.key(0), (16, DATA_DIM)) < 0.4).astype(float)


def spec_of(network):
    return ModelSpec(
        encoder=network, decoder=network, latent_dim=LATENT_DIM, data_shape=(DATA_DIM,)
    )


def with_weights_of_linen(params, linen, converted):
    """The Linen model's weights in the model of another framework."""

    def moved(weights):
        dense = converted(weights["network"]["Dense_0"])
        return {"network": {"weights": dense}, "output": weights["output"]}

    moved_params = params.replace(
        encoder=moved(linen.encoder), decoder=moved(linen.decoder)
    )
    assert jax.tree.structure(moved_params) == jax.tree.structure(params)
    return moved_params


def trained(params, x):
    optimizer = optax.adam(0.02)
    step = jax.jit(
        lambda state: vae_jax.train_step(
            state, x, objective=vae_jax.ELBO(), optimizer=optimizer
        )
    )
    state = vae_jax.init_state(params, jax.random.key(2), optimizer=optimizer)
    values = []
    for _ in range(5):
        state, metrics = step(state)
        values.append(metrics["elbo"])
    return state, np.array(values)


@pytest.mark.long
@networks
def test_equal_weights_train_to_equal_figures(name, x):
    network, converted = NETWORKS[name]
    linen = vae_jax.init(spec_of(LinenTanh()), jax.random.key(1), x=x)
    own = vae_jax.init(spec_of(network), jax.random.key(1), x=x)
    moved = with_weights_of_linen(own, linen, converted)
    (_, expected), (state, actual) = trained(linen, x), trained(moved, x)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    assert actual[-1] > actual[0]
    report = vae_jax.check(
        state.params, x[:4], jax.random.key(3), only=["examples stand alone"]
    )
    assert report.passed, report


@pytest.mark.long
@networks
def test_a_checkpoint_and_a_description_give_the_model_back(name, x, tmp_path):
    spec = spec_of(NETWORKS[name][0])
    described = json.loads(json.dumps(spec_to_json(spec)))
    assert spec_from_json(described, trust=[__name__]) == spec
    with pytest.raises(ValueError, match="if you trust it, pass trust=True"):
        spec_from_json(described)
    state, _ = trained(vae_jax.init(spec, jax.random.key(1), x=x), x)
    folder = tmp_path / "checkpoints" / "5"
    checkpoint.save(folder, state, spec=spec)
    restored = checkpoint.restore(folder, trust=[__name__])
    key = jax.random.key(4)
    assert restored.spec == spec
    assert vae_jax.elbo(restored, x, key) == vae_jax.elbo(state.params, x, key)


@pytest.mark.long
@networks
def test_many_models_train_in_one_program(name, x):
    params = vae_jax.init(spec_of(NETWORKS[name][0]), jax.random.key(1), x=x)
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), params)
    keys = jax.random.split(jax.random.key(5), 2)
    values = jax.vmap(lambda params, key: vae_jax.elbo(params, x, key))(stacked, keys)
    alone = [vae_jax.elbo(params, x, key) for key in keys]
    np.testing.assert_allclose(values, jnp.stack(alone), rtol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("name", WITH_DROPOUT)
def test_dropout_draws_in_training_and_not_in_evaluation(name, x):
    network = WITH_DROPOUT[name]
    params = vae_jax.init(spec_of(network), jax.random.key(1), x=x)
    key = jax.random.key(6)

    def value(seed):
        given = params.replace(network_key=jax.random.key(seed))
        return float(vae_jax.elbo(given, x, key))

    assert value(0) == value(0) != value(1)
    without = {
        "linen": LinenTanh(),
        "functions": NETWORKS["functions"][0],
        "nnx": NETWORKS["nnx"][0],
        "equinox": NETWORKS["equinox"][0],
    }[name]
    plain = params.replace(spec=spec_of(without))
    assert vae_jax.elbo(params, x, key) == vae_jax.elbo(plain, x, key)
    # The step gives the networks a key of its own; its noise is that of any network.
    assert trained(params, x)[1][0] != trained(plain, x)[1][0]


@pytest.mark.parametrize("name", WITH_DROPOUT)
def test_dropout_has_the_mean_of_the_deterministic_features(name, x):
    """Half of the units are dropped, the others doubled (Srivastava et al. 2014)."""
    params = vae_jax.init(spec_of(WITH_DROPOUT[name]), jax.random.key(1), x=x)
    exact = vae_jax.encode(params, x[:1]).mean
    rows = jnp.repeat(x[:1], 20_000, axis=0)
    drawn = vae_jax.encode(params.replace(network_key=jax.random.key(7)), rows).mean
    error = jnp.std(drawn, axis=0) / np.sqrt(len(rows))
    assert jnp.all(error > 0)
    assert jnp.all(jnp.abs(jnp.mean(drawn, axis=0) - exact[0]) < 5 * error)


def test_networks_without_random_numbers_keep_the_noise_they_had(x):
    """The key of dropout is a further child: the other two do not move."""
    key = jax.random.key(8)
    both = jax.random.key_data(jax.random.split(key, 2))
    np.testing.assert_array_equal(
        both, jax.random.key_data(jax.random.split(key, 3)[:2])
    )


class NNXBatchNorm(nnx.Module):
    def __init__(self, in_features, *, rngs):
        self.norm = nnx.BatchNorm(in_features, rngs=rngs)

    def __call__(self, inputs):
        return self.norm(inputs)


class NNXAlways(nnx.Module):
    def __init__(self, in_features, *, rngs):
        self.dropout = nnx.Dropout(0.5, deterministic=False, rngs=rngs)

    def __call__(self, inputs):
        return self.dropout(inputs, deterministic=False)


class NNXNoise(nnx.Module):
    def __init__(self, in_features, *, rngs):
        self.rngs = rngs

    def __call__(self, inputs):
        return inputs + jax.random.normal(self.rngs.noise(), inputs.shape)


class NNXCalls(nnx.Module):
    """Two layers with dropout, each run by a transformation of NNX."""

    def __init__(self, in_features, *, rngs):
        self.first = NNXTanh(in_features, rate=0.5, rngs=rngs)
        self.second = NNXTanh(WIDTH, rate=0.5, rngs=rngs)

    def __call__(self, inputs):
        hidden = nnx.remat(lambda layer, x: layer(x))(self.first, inputs)
        return nnx.jit(lambda layer, x: layer(x))(self.second, hidden)


def test_transformed_layers_draw_in_training_and_not_in_evaluation(x):
    params = vae_jax.init(spec_of(nnx_network(NNXCalls)), jax.random.key(1), x=x)
    same = vae_jax.encode(params, jnp.repeat(x[:1], 5, axis=0)).mean
    np.testing.assert_array_equal(same, jnp.repeat(same[:1], 5, axis=0))
    drawn = vae_jax.encode(params.replace(network_key=jax.random.key(2)), x).mean
    assert not np.allclose(drawn, vae_jax.encode(params, x).mean)


class NNXCalledNoise(NNXNoise):
    def __call__(self, inputs):
        return nnx.jit(NNXNoise.__call__)(self, inputs)


class EquinoxBatchNorm(equinox.Module):
    norm: equinox.nn.BatchNorm

    def __init__(self, in_size, *, key):
        self.norm = equinox.nn.BatchNorm(in_size, "batch", mode="batch")


class EquinoxIntegers(equinox.Module):
    order: jax.Array

    def __init__(self, in_size, *, key):
        self.order = jnp.arange(in_size)


class LinenBatchNorm(nn.Module):
    @nn.compact
    def __call__(self, inputs, train):
        return nn.BatchNorm(use_running_average=not train)(inputs)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (nnx_network(NNXBatchNorm), "network NNXBatchNorm keeps .*BatchStat.*couples"),
        (nnx_network(NNXAlways), "network NNXAlways draws random .* in evaluation too"),
        (nnx_network(NNXNoise), "network NNXNoise draws random numbers in evaluation"),
        (nnx_network(NNXCalledNoise), "network NNXCalledNoise draws random numbers in"),
        (equinox_network(EquinoxBatchNorm), "network EquinoxBatchNorm keeps .*couples"),
        (LinenBatchNorm(), "has collections .'batch_stats'.*couples"),
        (equinox_network(EquinoxIntegers), "EquinoxIntegers holds arrays .*order"),
        (nnx_network(NNXTanh, widht=3), "network NNXTanh: .*'widht'"),
        (equinox_network(EquinoxTanh, widht=3), "network EquinoxTanh: .*'widht'"),
    ],
)
def test_what_is_no_function_of_weights_and_inputs_is_refused(network, message):
    with pytest.raises(ValueError, match=message):
        vae_jax.init(spec_of(network), jax.random.key(0))


@pytest.mark.parametrize(
    "module",
    [
        EquinoxTanh(3, key=jax.random.key(0)),
        NNXTanh(3, rngs=nnx.Rngs(0)),
        jnp.tanh,
    ],
)
def test_a_module_without_an_adapter_is_refused_in_a_line(module):
    with pytest.raises(
        ValueError, match="must be a Linen module, got .*equinox_net"
    ) as e:
        spec_of(module)
    assert len(str(e.value)) < 200


class Always(nn.Module):
    @nn.compact
    def __call__(self, inputs):
        return nn.Dropout(0.5, deterministic=False)(inputs)


def test_random_numbers_in_evaluation_are_refused(x):
    params = vae_jax.init(spec_of(Always()), jax.random.key(0))
    with pytest.raises(ValueError, match="Always draws random numbers in evaluation"):
        vae_jax.encode(params, x)


def test_dropout_in_a_layer_without_a_key_is_refused():
    layer = vae_jax.StochasticLayer(2, encoder=LinenTanh(0.5))
    spec = ModelSpec(
        posterior=vae_jax.HierarchicalGaussian((layer,)),
        prior=vae_jax.HierarchicalGaussianPrior((layer,)),
        latent_dim=3,
    )
    with pytest.raises(ValueError, match="further stochastic layer draws random"):
        vae_jax.init(spec, jax.random.key(0))


def test_classes_find_their_adapters():
    assert adapted(NNXTanh)(rate=0.5) == nnx_network(NNXTanh, rate=0.5)
    assert adapted(EquinoxTanh)() == equinox_network(EquinoxTanh)
    assert adapted(LinenTanh) is LinenTanh
    assert adapted(initial_weights) is initial_weights
