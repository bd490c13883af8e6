"""Choices of the user's own, named on the command line as `module:Class(...)`."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import vae_jax
from experiments import choices, datasets, evaluate, evaluation, mnist, sweep
from experiments.defaults import resolve
from experiments.open_choices import find

MODULE = '''
"""Every choice of one's own, in a file beside the data."""

from dataclasses import dataclass
from typing import ClassVar

import equinox
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

import vae_jax
from vae_jax.distributions.support import REAL
from vae_jax.estimators import reparameterization
from vae_jax.types import Distribution, Family


class Net(nn.Module):
    width: int = 8

    @nn.compact
    def __call__(self, inputs):
        return nn.tanh(nn.Dense(self.width)(inputs))


class EquinoxNet(equinox.Module):
    hidden: equinox.nn.Linear

    def __init__(self, in_size, width, *, key):
        self.hidden = equinox.nn.Linear(in_size, width, key=key)

    def __call__(self, x):
        return jnp.tanh(self.hidden(x))


class NNXNet(nnx.Module):
    def __init__(self, in_features, width, *, rngs):
        self.hidden = nnx.Linear(in_features, width, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, inputs):
        return self.dropout(jnp.tanh(self.hidden(inputs)))


def pair(width, depth=1):
    return Net(width), vae_jax.MLP((width,) * depth)


@dataclass(frozen=True)
class Posterior(vae_jax.DiagonalGaussian):
    scale: float = 1.0

    def build(self, params, outputs):
        return super().build(params, self.scale * outputs)


@dataclass(frozen=True)
class Prior(vae_jax.DiagonalGaussianPrior):
    mean: float = 0.0

    def init(self, key, *, latent_dim, data_shape):
        params = super().init(key, latent_dim=latent_dim, data_shape=data_shape)
        return params | {"mean": params["mean"] + self.mean}


@dataclass(frozen=True)
class Likelihood(vae_jax.Bernoulli):
    scale: float = 1.0

    def build(self, params, outputs):
        return super().build(params, self.scale * outputs)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LaplaceDistribution(Distribution):
    location: jax.Array
    mean_is_exact: ClassVar[bool] = True

    @property
    def mean(self):
        return self.location

    def sample(self, key, num_samples):
        shape = (num_samples, *self.location.shape)
        return self.location + jax.random.laplace(key, shape)

    def log_prob(self, value):
        return jnp.sum(-jnp.abs(value - self.location) - jnp.log(2.0), axis=-1)


@dataclass(frozen=True)
class Laplace(Family):
    support: ClassVar = REAL

    def num_outputs(self, dim):
        return dim

    def build(self, params, outputs):
        return LaplaceDistribution(outputs)

    def output_bias(self, data_mean):
        return data_mean


def scaled(integrand, posterior, key, *, factor=1.0, **options):
    return reparameterization(integrand, posterior, key, **options)


@dataclass(frozen=True)
class Objective:
    beta: float = 1.0

    def __call__(self, params, x, key, step, *, axis_name=None):
        return vae_jax.ELBO(beta=self.beta)(params, x, key, step)


def objective(params, x, key, step, *, axis_name=None):
    return vae_jax.ELBO()(params, x, key, step)


def without_figures(params, x, key, step, *, axis_name=None):
    return vae_jax.ELBO()(params, x, key, step)[0], {"elbo": 0.0}


def only_a_value(params, x, key, step, *, axis_name=None):
    return vae_jax.ELBO()(params, x, key, step)[0]


def without_step(params, x, key):
    return vae_jax.ELBO()(params, x, key, 0)


def without_samples(integrand, posterior, key):
    return reparameterization(integrand, posterior, key, num_samples=1)


def both(width):
    return [Net(width), Net(width)]


def three(width):
    return (Net(width),) * 3


@dataclass(frozen=True)
class Point(vae_jax.PointMass):
    """An autoencoder's posterior under a name of one's own."""
'''
# Three latents: an integral over two is seconds of work.
TINY = [
    "--dataset=digits",
    "--epochs=1",
    "--schedule=constant",
    "--latent_dim=3",
    "--batch_size=512",
    "--evaluation_samples=5",
]
OWN = {
    "network": "my_parts:Net(width=6)",
    "posterior": "my_parts:Posterior(0.5)",
    "prior": "my_parts:Prior(mean=2.0)",
    "likelihood": "my_parts:Likelihood()",
    "estimator": "my_parts:scaled(factor=2.0)",
}
FLAGS = [f"--{flag}={text}" for flag, text in OWN.items()]


@pytest.fixture
def beside(tmp_path, monkeypatch):
    """A working directory that holds a module of the user's own."""
    (tmp_path / "my_parts.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "my_parts", raising=False)
    return tmp_path


@pytest.fixture
def no_pictures(monkeypatch):
    monkeypatch.setattr("experiments.figures.draw_all", lambda *_, **__: [])
    monkeypatch.setattr("experiments.sweep_report.draw_all", lambda *_, **__: None)


@pytest.mark.long
def test_parts_of_ones_own_train_resume_and_load(beside, no_pictures):
    flags = [*TINY, *FLAGS, "--beta_warmup_epochs=0", "--binarization=dynamic"]
    mnist.main([*flags, "--run_dir=run"])
    mnist.main([*flags, "--run_dir=run", "--epochs=2"])
    written = json.loads((beside / "run" / "config.json").read_text())
    assert {flag: written[flag] for flag in OWN} == OWN
    results = json.loads((beside / "run" / "results.json").read_text())
    assert results["epochs"] == 2 and np.isfinite(results["test_elbo"])
    with pytest.raises(ValueError, match="my_parts:Net is no class of vae_jax"):
        vae_jax.load_run("run")
    spec = vae_jax.load_run("run", trust=["my_parts"]).spec
    assert (spec.encoder.width, spec.decoder.width) == (6, 6)
    assert (spec.posterior.scale, spec.prior.mean, spec.likelihood.scale) == (
        0.5,
        2.0,
        1.0,
    )


@pytest.mark.long
@pytest.mark.parametrize("kind", ["EquinoxNet", "NNXNet"])
def test_networks_of_other_frameworks_train_sweep_and_load(kind, beside, no_pictures):
    named = [f"--network=my_parts:{kind}(width=6)", "--likelihood=bernoulli"]
    mnist.main([*TINY, *named, "--run_dir=run"])
    results = json.loads((beside / "run" / "results.json").read_text())
    params = vae_jax.load_run("run", trust=["my_parts"])
    assert params.spec.decoder.arguments == (("width", 6),)
    digits = vae_jax.data.load("digits")
    x = jnp.asarray(datasets.test_images(datasets.binarized(digits, "dynamic", seed=0)))
    again = evaluation.elbo_figures(params, x, None)
    assert again["elbo"] == pytest.approx(results["test_elbo"], rel=1e-5)
    sweep.main([*TINY, *named, "--beta", "1.0", "2.0", "--run_dir=sweep"])
    second = vae_jax.load_run("sweep", model=1, trust=["my_parts"])
    assert second.spec == params.spec


@pytest.mark.long
def test_a_class_that_changed_is_another_run(beside, no_pictures, capsys):
    """A default is no flag: only the spec beside the arrays knows it."""
    flags = [*TINY, "--posterior=my_parts:Posterior", "--beta_warmup_epochs=0"]
    flags.append("--run_dir=run")
    mnist.main(flags)
    changed = MODULE.replace("scale: float = 1.0", "scale: float = 3.0")
    (beside / "my_parts.py").write_text(changed + "# of another size\n")
    del sys.modules["my_parts"]
    with pytest.raises(SystemExit) as stop:
        mnist.main([*flags, "--epochs=2"])
    message = capsys.readouterr().err
    assert stop.value.code == 2
    assert "posterior.scale 1.0 there, 3.0 here (--overwrite starts anew)" in message


@pytest.mark.long
def test_parts_of_ones_own_keep_the_contracts(beside):
    config = mnist.Config(**OWN, latent_dim=2)
    spec = choices.model_spec(config, vae_jax.data.load("digits"))
    params = vae_jax.init(spec, jax.random.key(0))
    lines = ["shapes of the posterior", "shapes of the likelihood"]
    x = jnp.eye(3, 64)
    report = vae_jax.check(params, x, jax.random.key(1), only=lines)
    assert report.passed, report


@pytest.mark.long
def test_a_likelihood_of_ones_own_works_everywhere(beside, no_pictures):
    """Library, contracts, command, checkpoint, evaluation and sweep."""
    named = "--likelihood=my_parts:Laplace"
    mnist.main([*TINY, named, "--run_dir=run"])
    params = vae_jax.load_run("run", trust=["my_parts"])
    assert type(params.spec.likelihood).__name__ == "Laplace"
    x = jnp.asarray(vae_jax.data.load("digits").test[:5] / 16, jnp.float32)
    z = jnp.zeros((1, 5, 3))
    found = vae_jax.decode(params, z)
    expected = scipy.stats.laplace(found.mean[0]).logpdf(x).sum(axis=1)
    np.testing.assert_allclose(found.log_prob(x)[0], expected, rtol=1e-5)
    lines = [
        "shapes of the likelihood",
        "finite at the given parameters",
        "likelihood keeps its mass",
        "likelihood has its mean",
    ]
    report = vae_jax.check(params, x, jax.random.key(1), only=lines)
    assert report.passed, report
    evaluate.main([*SHORT, "run", "--trust"])
    results, evaluation = (
        json.loads((beside / "run" / f"{name}.json").read_text())
        for name in ("results", "evaluation")
    )
    assert evaluation["elbo"] == pytest.approx(results["test_elbo"], rel=1e-5)
    sweep.main([*TINY, named, "--run_dir=many", "--num_seeds=2"])
    models = json.loads((beside / "many" / "results.json").read_text())["models"]
    assert all(model["finite"] for model in models)


@pytest.mark.long
def test_parts_of_ones_own_are_swept(beside, no_pictures):
    sweep.main([*TINY, *FLAGS, "--run_dir=many", "--beta", "0.5", "1.0"])
    results = json.loads((beside / "many" / "results.json").read_text())
    assert [model["finite"] for model in results["models"]] == [True, True]
    trained = vae_jax.load_run("many", model=1, trust=True)
    assert trained.spec.posterior.scale == 0.5
    evaluate.main([*SHORT, "many", "--model=1", "--trust"])
    assert (beside / "many" / "model-1" / "evaluation.json").exists()


SHORT = [
    "--num_gap=2",
    "--gap_steps=2",
    "--num_annealed=0",
    "--num_simulated=0",
    "--evaluation_samples=5",
    "--num_aggregate=20",
    "--fitted_components=0",
]


@pytest.mark.long
def test_a_run_of_ones_own_parts_is_evaluated_where_it_is_trusted(
    beside, no_pictures, capsys
):
    mnist.main([*TINY, *FLAGS, "--run_dir=run", "--binarization=dynamic"])
    with pytest.raises(SystemExit) as stop:
        evaluate.main([*SHORT, "run"])
    assert stop.value.code == 2
    assert "my_parts:Net is no class of vae_jax" in capsys.readouterr().err
    evaluate.main([*SHORT, "run", "--trust"])
    assert (beside / "run" / "evaluation.json").exists()


@pytest.mark.long
@pytest.mark.parametrize("named", ["Objective(beta=0.5)", "Objective", "objective"])
def test_an_objective_of_ones_own_trains(beside, no_pictures, named):
    mnist.main([*TINY, f"--objective=my_parts:{named}", "--run_dir=run"])
    assert (beside / "run" / "results.json").exists()


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("objective=my_parts:without_figures", "must return .*_divergence, got elbo\n"),
        ("objective=my_parts:only_a_value", "must return the value and a dict"),
        ("objective=my_parts:without_step", "is called as objective.params, batch"),
        ("estimator=my_parts:without_samples", "is called as estimator.integrand"),
        ("posterior=my_parts:Net", "must subclass vae_jax.types.Family, got Net"),
        ("network=my_parts:three(5)", "one network or a pair, got 3"),
        ("likelihood=vae_jax:Categorical(num_levels=4)", "4 evenly spaced levels"),
    ],
)
def test_a_broken_contract_is_one_line_before_anything_is_written(
    beside, flag, message
):
    config = mnist.parse(mnist.Config, [*TINY, f"--{flag}", "--run_dir=r"], command="c")
    with pytest.raises(ValueError, match=message):
        mnist.run(config)
    assert not (beside / "r").exists()


def test_the_likelihood_itself_decides_the_binarization(beside):
    digits = vae_jax.data.load("digits")
    for name, expected in (
        ("vae_jax:Bernoulli", "dynamic"),
        ("my_parts:Likelihood", "dynamic"),
        ("vae_jax:Gaussian", "none"),
        ("my_parts:Laplace", "none"),
    ):
        config = resolve(mnist.Config(likelihood=name), digits)
        assert config.binarization == expected
    notes = datasets.warnings(digits, vae_jax.Gaussian(), "dynamic")
    assert notes == ["a density of real numbers on pixels that are 0 or 1"]
    (note,) = datasets.warnings(digits, vae_jax.Bernoulli(), "none")
    assert "is not a likelihood of the pixels" in note


@pytest.mark.long
def test_a_posterior_without_density_of_ones_own_is_evaluated(
    beside, no_pictures, capsys
):
    mnist.main([*TINY, "--posterior=my_parts:Point", "--beta=0", "--run_dir=run"])
    results = json.loads((beside / "run" / "results.json").read_text())
    assert results["importance_weighted_log_likelihood"] is None
    flags = [flag for flag in SHORT if "fitted" not in flag]
    evaluate.main([*flags, "run", "--trust", "--fitted_components=2"])
    found = json.loads((beside / "run" / "evaluation.json").read_text())
    assert found["fitted_prior"] == {"elbo": None, "kl_divergence": None}


@pytest.mark.long
def test_beta_is_told_only_where_it_has_a_use(beside, no_pictures, capsys):
    named = "vae_jax:ELBO(beta=4.0)"
    mnist.main([*TINY, f"--objective={named}", "--run_dir=run"])
    results = json.loads((beside / "run" / "results.json").read_text())
    assert (results["objective"], results["beta"]) == (named, None)
    evaluate.main([*SHORT, "run"])
    assert f"digits: {named}, " in capsys.readouterr().out
    assert choices.trained_on(mnist.Config(beta=2.0))["beta"] == 2.0


def test_a_function_may_make_both_networks(beside):
    config = mnist.Config(network="my_parts:pair(7, depth=2)")
    spec = choices.model_spec(config, vae_jax.data.load("digits"))
    assert spec.encoder.width == 7 and spec.decoder == vae_jax.MLP((7, 7))
    config = mnist.Config(network="my_parts:both(7)")
    spec = choices.model_spec(config, vae_jax.data.load("digits"))
    assert spec.encoder.width == spec.decoder.width == 7


def test_classes_of_the_library_have_names_too():
    config = mnist.Config(posterior="vae_jax:LowRankGaussian(rank=3)")
    spec = choices.model_spec(config, vae_jax.data.load("digits"))
    assert spec.posterior == vae_jax.LowRankGaussian(3)


def test_the_prior_follows_the_posterior():
    digits = vae_jax.data.load("digits")
    for flags, expected in (
        ({}, vae_jax.StandardNormal()),
        ({"posterior": "bernoulli"}, vae_jax.FactorizedBernoulliPrior()),
        (
            {"posterior": "vae_jax:FactorizedBernoulli"},
            vae_jax.FactorizedBernoulliPrior(),
        ),
        (
            {"upper_latent_dims": (3,)},
            vae_jax.HierarchicalGaussianPrior((vae_jax.StochasticLayer(3),)),
        ),
    ):
        config = mnist.Config(**flags)
        assert choices.model_spec(config, digits).prior == expected
        named = resolve(config, digits).prior
        assert named == ("bernoulli" if "posterior" in flags else "standard")


OF_BITS = {
    "leave_one_out": ["--num_samples=2"],
    "score_function": [],
    "mean_baseline": [],
    "optimal_baseline": [],
    "disarm": [],
    "arm": [],
    "rebar": [],
    "gumbel_softmax": [],
    "straight_through": [],
    "exact_enumeration": [],
    "vimco": ["--objective=iwae", "--num_samples=2"],
}
OF_NORMALS = {
    "reparameterization": [],
    "path_derivative": ["--kl=monte_carlo"],
    "doubly_reparameterized": ["--objective=iwae", "--num_samples=2"],
    "score_function": ["--prior=mixture", "--num_components=2"],
    "delta_control_variate": [],
    "measure_valued": [],
    "sigma_points": [],
}


def traced(arguments):
    """The objective of a command, on shapes alone."""
    config = mnist.parse(mnist.Config, arguments, command="c")
    mnist.check(config)
    digits = vae_jax.data.load("digits")
    config = resolve(config, digits)
    objective = choices.objective(config, choices.settings(config), steps_per_epoch=3)
    spec = choices.model_spec(config, digits)

    def value(key):
        return objective(vae_jax.init(spec, key), jnp.zeros((4, 64)), key, 0)

    jax.eval_shape(value, jax.random.key(0))


@pytest.mark.parametrize("name", OF_BITS)
def test_every_estimator_of_bits_is_reached(name):
    traced([*TINY, "--posterior=bernoulli", f"--estimator={name}", *OF_BITS[name]])


@pytest.mark.parametrize("name", OF_NORMALS)
def test_every_estimator_of_normals_is_reached(name):
    traced([*TINY, f"--estimator={name}", *OF_NORMALS[name]])


def test_no_estimator_is_left_out():
    assert {*OF_BITS, *OF_NORMALS} == set(choices.ESTIMATORS)
    others = {"log_mean_exp", "sample_mean", "value_only"}
    others |= {"baseline_loss", "gradient_moments"}
    functions = {name for name in vae_jax.estimators.__all__ if name.islower()} - others
    assert functions == set(choices.ESTIMATORS)


@pytest.mark.long
def test_bits_train_by_the_command(tmp_path, no_pictures):
    flags = ["--posterior=bernoulli", "--estimator=disarm", "--epochs=3"]
    mnist.main([*TINY, *flags, f"--run_dir={tmp_path}/run"])
    assert isinstance(
        vae_jax.load_run(tmp_path / "run").spec.posterior, vae_jax.FactorizedBernoulli
    )


@pytest.mark.parametrize(
    "arguments",
    [
        "(print)",
        "(*[1])",
        "(**{'a': 1})",
        "(a=print)",
        "(1)(2)",
        "(1).a",
        "(1",
        "(a )b(",
    ],
)
def test_arguments_are_literals(arguments):
    with pytest.raises(ValueError, match="--prior.* must be"):
        find("prior", f"vae_jax:Planar{arguments}", {})


def test_literals_are_read():
    own = find("network", "vae_jax:MLP((3, 4), activation=None)", {})
    assert own.target is vae_jax.MLP
    assert own.arguments == ((3, 4),) and own.keywords == {"activation": None}
