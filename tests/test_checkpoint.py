"""Checkpoints: what comes back is what was written, or an error says what is not."""

import dataclasses
import hashlib
import json
import shutil
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vae_jax
from vae_jax import checkpoint, manifest
from vae_jax.checkpoint import CorruptCheckpoint
from vae_jax.spec_json import differences, spec_from_json, spec_to_json

SPEC = vae_jax.ModelSpec(
    encoder=vae_jax.MLP((5,), activation=jnp.tanh),
    decoder=vae_jax.Linear(),
    likelihood=vae_jax.Gaussian(learned_variance=True),
    latent_dim=2,
    data_shape=(3,),
)
ADAM = optax.adam(1e-3)


class UserNetwork(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        return nn.relu(nn.Dense(self.width)(x))


def make_state(*, average=False, spec=SPEC):
    params = vae_jax.init(spec, jax.random.key(0))
    state = vae_jax.init_state(
        params, jax.random.key(1), optimizer=ADAM, average=average
    )
    x = jnp.linspace(0, 1, 12).reshape(4, 3)
    step = jax.jit(
        lambda state: vae_jax.train_step(
            state,
            x,
            objective=vae_jax.elbo_objective(),
            optimizer=ADAM,
            average_decay=0.5,
        )[0]
    )
    return step(step(state))


def assert_same_bits(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    for leaf, twin in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf, twin = jax.random.key_data(leaf), jax.random.key_data(twin)
        assert leaf.dtype == twin.dtype
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(twin))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "checkpoints" / "2"
    state = make_state()
    checkpoint.save(folder, state, spec=SPEC, extra={"history": jnp.arange(3.0)})
    return folder, state


@pytest.fixture
def copy(saved, tmp_path):
    folder = tmp_path / "checkpoints" / "2"
    shutil.copytree(saved[0], folder)
    return folder


def test_state_comes_back_bit_for_bit(saved):
    folder, state = saved
    blank = vae_jax.init_state(
        vae_jax.init(SPEC, jax.random.key(9)), jax.random.key(9), optimizer=ADAM
    )
    found, extra = checkpoint.restore_state(
        folder, blank, extra={"history": jnp.zeros(3)}
    )
    assert_same_bits(found, state)
    assert_same_bits(extra, {"history": jnp.arange(3.0)})


def test_bfloat16_float64_and_empty_leaves(tmp_path):
    tree = {
        "half": jnp.arange(3, dtype=jnp.bfloat16),
        "double": np.arange(3, dtype=np.float64),
        "empty": np.zeros((0, 4), np.int32),
        "scalar": np.int32(7),
    }
    checkpoint.save(tmp_path / "checkpoints" / "0", tree, spec=SPEC)
    leaves = manifest.read(tmp_path / "checkpoints" / "0").leaves
    for name, leaf in tree.items():
        found = leaves[f"state.{name}"]
        assert found.dtype == leaf.dtype and found.shape == leaf.shape
        np.testing.assert_array_equal(found, np.asarray(leaf))


def test_restore_gives_params_that_know_their_spec(saved):
    folder, state = saved
    params = checkpoint.restore(folder)
    assert params.spec == SPEC
    assert_same_bits(params, state.params)


def test_restore_gives_the_average_where_one_is_kept(tmp_path):
    state = make_state(average=True)
    checkpoint.save(tmp_path / "checkpoints" / "2", state, spec=SPEC)
    params = checkpoint.restore(tmp_path / "checkpoints" / "2")
    assert_same_bits(params, state.average)
    difference = (
        state.average.encoder["output"]["bias"] - state.params.encoder["output"]["bias"]
    )
    assert np.abs(difference).max() > 0


def test_only_numbers_are_names(saved):
    folder, _ = saved
    assert [path.name for path in folder.parent.iterdir()] == ["2"]
    assert [path.name for path in folder.parent.parent.iterdir()] == ["checkpoints"]


def every_file(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_a_flipped_bit_in_any_file_is_found(saved, tmp_path):
    names = [path.relative_to(saved[0]) for path in every_file(saved[0])]
    assert len(names) > 5
    for number, name in enumerate(names):
        folder = tmp_path / str(number) / "2"
        shutil.copytree(saved[0], folder)
        content = bytearray((folder / name).read_bytes())
        if not content:
            continue
        content[len(content) // 2] ^= 4
        (folder / name).write_bytes(bytes(content))
        with pytest.raises(CorruptCheckpoint):
            checkpoint.verify(folder)


def test_a_flipped_bit_that_the_file_digest_does_not_know_is_found(copy):
    # As if orbax had read something else than lies on the disk.
    manifest = json.loads((copy / "manifest.json").read_text())
    name = "state.params.encoder.output.bias"
    manifest["leaves"][name]["sha256"] = "0" * 64
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CorruptCheckpoint, match=name):
        checkpoint.verify(copy)


@pytest.mark.parametrize("damage", ["rename", "remove", "empty"])
def test_a_manifest_of_other_arrays_is_found(copy, damage):
    """A flipped bit in a name: orbax asks for arrays that are not there."""
    path = copy / "manifest.json"
    manifest = json.loads(path.read_text())
    name = "state.params.encoder.output.bias"
    leaf = manifest["leaves"].pop(name)
    if damage == "rename":
        manifest["leaves"][name.replace("bias", "bkas")] = leaf
    if damage == "empty":
        manifest["leaves"][name] = leaf | {"shape": [0]}
    path.write_text(json.dumps(manifest))
    with pytest.raises(CorruptCheckpoint, match="manifest.json does not describe"):
        checkpoint.verify(copy)


@pytest.mark.parametrize("damage", ["truncate", "delete", "empty"])
@pytest.mark.parametrize("name", ["spec.json", "manifest.json", "arrays/_METADATA"])
def test_damaged_files_are_named(copy, damage, name):
    path = copy / name
    if damage == "delete":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:10] if damage == "truncate" else b"")
    with pytest.raises(CorruptCheckpoint, match=name):
        checkpoint.verify(copy)


def test_a_checkpoint_under_another_step_is_found(copy):
    copy.rename(copy.with_name("3"))
    with pytest.raises(CorruptCheckpoint, match="of step 2"):
        checkpoint.verify(copy.with_name("3"))


def test_another_structure_is_refused(saved):
    folder, _ = saved
    other = vae_jax.ModelSpec(
        encoder=vae_jax.MLP((6,), activation=jnp.tanh),
        decoder=vae_jax.Linear(),
        likelihood=vae_jax.Gaussian(learned_variance=True),
        latent_dim=2,
        data_shape=(3,),
    )
    with pytest.raises(ValueError, match=r"encoder.*\[5\] in .*\[6\] was"):
        checkpoint.restore(folder, spec=other)
    with pytest.raises(ValueError, match="has no state.average"):
        checkpoint.restore_state(folder, make_state(average=True))


def replaced(**parts):
    return dataclasses.replace(SPEC, **parts)


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        ({"encoder": vae_jax.MLP((5, 5))}, "state.params.encoder.*kernel"),
        ({"prior": vae_jax.MixtureOfGaussians(3)}, "state.params.prior.*"),
    ],
)
def test_a_spec_that_leaves_arrays_over_is_refused(tmp_path, parts, name):
    spec = replaced(**parts)
    smaller = replaced(encoder=vae_jax.MLP((5,)))
    folder = tmp_path / "checkpoints" / "0"
    state = vae_jax.init_state(
        vae_jax.init(spec, jax.random.key(0)), jax.random.key(1), optimizer=ADAM
    )
    checkpoint.save(folder, state, spec=spec)
    with pytest.raises(ValueError, match=f"{name}.* as well"):
        checkpoint.restore(folder, spec=smaller)


@pytest.mark.long
def test_a_state_that_leaves_arrays_over_is_refused(tmp_path):
    folder = tmp_path / "checkpoints" / "2"
    checkpoint.save(folder, make_state(average=True), spec=SPEC)
    with pytest.raises(ValueError, match="state.average.* as well"):
        checkpoint.restore_state(folder, make_state())


def test_a_state_of_another_spec_is_refused(saved):
    folder, state = saved
    other = replaced(encoder=vae_jax.MLP((5,)))
    with pytest.raises(ValueError, match="activation.import 'jax.nn:tanh' there"):
        checkpoint.restore_state(folder, state, spec=other)
    found, _ = checkpoint.restore_state(folder, state, spec=SPEC)
    assert_same_bits(found, state)


def test_a_moved_class_and_a_newer_field_are_no_difference():
    described = spec_to_json(SPEC)
    described["class"] = "vae_jax.elsewhere:ModelSpec"
    described["version"] = "0.1"
    del described["fields"]["compute_dtype"]
    assert differences(described, SPEC) == []


@dataclasses.dataclass(frozen=True)
class Named:
    name: str = "plain"
    parent: int = 0


def test_only_linen_modules_have_fields_that_are_left_out():
    named = spec_to_json(Named("triple", 1))
    assert named["fields"] == {"name": "triple", "parent": 1}
    assert spec_to_json(UserNetwork(3, name="hung"))["fields"] == {"width": 3}


def test_existing_checkpoints_are_never_written_over(saved):
    folder, state = saved
    with pytest.raises(FileExistsError):
        checkpoint.save(folder, state, spec=SPEC)
    checkpoint.verify(folder)


def test_a_failure_while_writing_leaves_no_checkpoint(tmp_path, monkeypatch):
    def fail(path):
        raise OSError("no space left")

    monkeypatch.setattr(manifest, "flush", fail)
    with pytest.raises(OSError, match="no space"):
        checkpoint.save(tmp_path / "checkpoints" / "2", make_state(), spec=SPEC)
    assert checkpoint.steps(tmp_path / "checkpoints") == []


def test_remove_and_steps(copy):
    (copy.parent / "best.json").write_text("{}")
    shutil.copytree(copy, copy.with_name("10"))
    assert checkpoint.steps(copy.parent) == [2, 10]
    checkpoint.remove(copy)
    assert checkpoint.steps(copy.parent) == [10]


def test_load_run_takes_the_newest_or_the_one_asked_for(tmp_path):
    first = make_state()
    checkpoint.save(tmp_path / "checkpoints" / "9", first, spec=SPEC)
    other = vae_jax.init_state(
        vae_jax.init(SPEC, jax.random.key(5)), jax.random.key(1), optimizer=ADAM
    )
    checkpoint.save(tmp_path / "checkpoints" / "10", other, spec=SPEC)
    assert_same_bits(vae_jax.load_run(tmp_path), other.params)
    assert_same_bits(vae_jax.load_run(tmp_path, step=9), first.params)
    with pytest.raises(ValueError, match=r"step must be one of \[9, 10\], got 11"):
        vae_jax.load_run(tmp_path, step=11)


def test_spec_that_cannot_be_rebuilt_is_asked_for(tmp_path):
    class Local(UserNetwork):
        pass

    spec = vae_jax.ModelSpec(encoder=Local(4), latent_dim=2, data_shape=(3,))
    params = save_run(tmp_path, spec)
    with pytest.raises(ValueError, match=r"Local cannot be imported .* pass spec="):
        vae_jax.load_run(tmp_path, trust=True)
    assert_same_bits(vae_jax.load_run(tmp_path, spec=spec), params)


@pytest.mark.parametrize(
    "parts",
    [
        {"likelihood": vae_jax.Poisson()},
        {"encoder": vae_jax.MLP((5,))},
        {"likelihood": vae_jax.Masked(vae_jax.Bernoulli())},
    ],
    ids=["likelihood", "activation", "wrapper"],
)
def test_a_given_spec_that_is_another_model_is_refused(tmp_path, parts):
    """Their arrays have the same names and shapes."""
    likelihood = vae_jax.Bernoulli()
    save_run(tmp_path, replaced(likelihood=likelihood))
    with pytest.raises(ValueError, match="another spec: .* there, .* here"):
        vae_jax.load_run(
            tmp_path, spec=replaced(**({"likelihood": likelihood} | parts))
        )


def test_a_given_spec_may_name_a_moved_class_and_other_fields_of_it(tmp_path):
    class Moved(UserNetwork):
        slope: float = 0.0

    params = save_run(tmp_path, replaced(encoder=UserNetwork(4)))
    found = vae_jax.load_run(tmp_path, spec=replaced(encoder=Moved(4, slope=0.1)))
    assert_same_bits(found.encoder, params.encoder)


def test_leaves_of_one_name_are_refused(tmp_path):
    """One would be written over the other."""
    tree = {"a.b": jnp.ones(2), "a": {"b": jnp.zeros(2)}}
    with pytest.raises(ValueError, match="two weights have the name state.a.b"):
        checkpoint.save(tmp_path / "checkpoints" / "0", tree, spec=SPEC)
    assert not list(tmp_path.iterdir())


def test_numpy_integers_of_a_spec_are_saved_as_numbers(tmp_path):
    at = (tuple(np.flatnonzero([True, False, True])), tuple(np.flatnonzero([0, 1, 0])))
    parts = ((vae_jax.Bernoulli(), at[0]), (vae_jax.Gaussian(), at[1]))
    spec = vae_jax.ModelSpec(
        likelihood=vae_jax.Columns(parts), latent_dim=2, data_shape=(3,)
    )
    params = save_run(tmp_path, spec)
    assert vae_jax.load_run(tmp_path).spec == spec
    assert_same_bits(vae_jax.load_run(tmp_path), params)


def save_run(folder, spec):
    params = vae_jax.init(spec, jax.random.key(0))
    state = vae_jax.init_state(params, jax.random.key(1), optimizer=ADAM)
    checkpoint.save(folder / "checkpoints" / "0", state, spec=spec)
    return params


def with_spec(folder, description):
    """Puts another spec.json into a run's checkpoint, and its digest beside it."""
    found = folder / "checkpoints" / "0"
    (found / "spec.json").write_text(json.dumps(description))
    manifest = json.loads((found / "manifest.json").read_text())
    digest = hashlib.sha256((found / "spec.json").read_bytes()).hexdigest()
    manifest["files"]["spec.json"] = digest
    (found / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("trust", [True, [__name__], ["others", __name__]], ids=str)
def test_a_class_of_the_users_own_is_imported_where_it_is_trusted(tmp_path, trust):
    spec = vae_jax.ModelSpec(encoder=UserNetwork(4), latent_dim=2, data_shape=(3,))
    params = save_run(tmp_path, spec)
    assert_same_bits(vae_jax.load_run(tmp_path, trust=trust), params)


@pytest.mark.parametrize("trust", [False, [], ["others"], [f"{__name__[:-1]}"]])
def test_without_trust_the_class_is_named_and_not_imported(tmp_path, trust):
    spec = vae_jax.ModelSpec(encoder=UserNetwork(4), latent_dim=2, data_shape=(3,))
    save_run(tmp_path, spec)
    with pytest.raises(
        ValueError,
        match=rf"{__name__}:UserNetwork is no class of vae_jax .* trust=True or "
        rf"trust=\['{__name__}'\] .*spec= .*written by vae_jax .*read by",
    ):
        vae_jax.load_run(tmp_path, trust=trust)


EVIL = """
from dataclasses import dataclass
from os import system
from pathlib import Path

Path("was_here").write_text("")

@dataclass(frozen=True)
class Network:
    command: str = ""

def run(command):
    Path("was_called").write_text("")
"""


def default_with(**parts):
    """The default spec as JSON, some of its fields replaced."""
    described = spec_to_json(vae_jax.ModelSpec(data_shape=(3,), latent_dim=2))
    return described | {"fields": described["fields"] | parts}


def called(path, /, **fields):
    return {"class": path, "fields": fields or {"command": "touch was_called"}}


MALICIOUS = {
    "a module": default_with(encoder=called("evil:Network")),
    "a function of a module": default_with(encoder=called("evil:run")),
    "os.system": default_with(encoder=called("os:system")),
    "os.system, as an activation": default_with(
        encoder=called("vae_jax:MLP", activation={"import": "os:system"})
    ),
    "through a module of the library": default_with(
        encoder=called("vae_jax.checkpoint:os.system")
    ),
    "through the package": default_with(
        encoder=called("vae_jax:checkpoint.shutil.rmtree", path="kept")
    ),
    "a function of the library": default_with(
        encoder=called("vae_jax.checkpoint:remove", folder="kept")
    ),
    "a module of the library, as an activation": default_with(
        encoder=called(
            "vae_jax:MLP", activation={"import": "vae_jax.checkpoint:remove"}
        )
    ),
    "another function, as an activation": default_with(
        encoder=called("vae_jax:MLP", activation={"import": "evil:run"})
    ),
    "through jax": default_with(
        encoder=called("vae_jax:MLP", activation={"import": "jax.numpy:np.os.system"})
    ),
    "a name that only begins alike": default_with(encoder=called("vae_jax_evil:Run")),
    "in place of the spec": called("evil:Network"),
    "a function in place of the spec": {"import": "evil:run"},
    "eval": default_with(encoder=called("builtins:eval", source="1")),
    "Popen": default_with(encoder=called("subprocess:Popen", args="touch was_called")),
}


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    """A folder of a run beside a module that acts when it is imported."""
    (tmp_path / "evil.py").write_text(EVIL)
    (tmp_path / "kept").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "evil", raising=False)
    save_run(tmp_path, vae_jax.ModelSpec(data_shape=(3,), latent_dim=2))
    return tmp_path


@pytest.mark.parametrize("name", MALICIOUS)
def test_a_folder_of_a_stranger_runs_no_code(stranger, name):
    with_spec(stranger, MALICIOUS[name])
    with pytest.raises(ValueError, match=r"^spec: .*pass spec=|else spec="):
        vae_jax.load_run(stranger)
    assert "evil" not in sys.modules
    left = {path.name for path in stranger.iterdir()}
    assert left == {"evil.py", "kept", "checkpoints"}


# A trusted module's classes are made, and its functions networks may call.
TRUSTED = ("a module", "another function, as an activation")
CALLS = [name for name in MALICIOUS if name not in TRUSTED]


@pytest.mark.parametrize("name", CALLS)
def test_a_trusted_folder_still_calls_nothing_but_dataclasses(stranger, name):
    with_spec(stranger, MALICIOUS[name])
    with pytest.raises((ValueError, TypeError)):
        vae_jax.load_run(stranger, trust=True)
    assert not (stranger / "was_called").exists() and (stranger / "kept").exists()


# Where the classes of version 0.1 were.
PATHS_OF_0_1 = """
vae_jax.likelihoods.bernoulli:Bernoulli
vae_jax.likelihoods.bernoulli:ContinuousBernoulli
vae_jax.likelihoods.gaussian:FullCovarianceGaussian
vae_jax.likelihoods.gaussian:Gaussian
vae_jax.likelihoods.gaussian:PerPixelGaussian
vae_jax.likelihoods.levels:Categorical
vae_jax.likelihoods.levels:DiscretizedLogistic
vae_jax.networks:ConvolutionalDecoder
vae_jax.networks:ConvolutionalEncoder
vae_jax.networks:GatedMLP
vae_jax.networks:Linear
vae_jax.networks:MLP
vae_jax.hierarchical:HierarchicalGaussian
vae_jax.hierarchical:HierarchicalGaussianPrior
vae_jax.hierarchical:StochasticLayer
vae_jax.posteriors.discrete:FactorizedBernoulli
vae_jax.posteriors.flows:Householder
vae_jax.posteriors.flows:InverseAutoregressive
vae_jax.posteriors.flows:Planar
vae_jax.posteriors.flows:Sylvester
vae_jax.posteriors.gaussian:DiagonalGaussian
vae_jax.posteriors.gaussian:FullGaussian
vae_jax.posteriors.gaussian:LowRankGaussian
vae_jax.posteriors.point_mass:PointMass
vae_jax.priors.autoregressive:AutoregressiveFlow
vae_jax.priors.factorized:ClassConditionalPrior
vae_jax.priors.factorized:DiagonalGaussianPrior
vae_jax.priors.factorized:FactorizedBernoulliPrior
vae_jax.priors.factorized:StandardNormal
vae_jax.priors.mixtures:MixtureOfGaussians
vae_jax.priors.mixtures:VampPrior
""".split()
ARGUMENTS = {
    "StochasticLayer": {"latent_dim": 3},
    "HierarchicalGaussian": {"layers": []},
    "HierarchicalGaussianPrior": {"layers": []},
    "ClassConditionalPrior": {"num_classes": 3},
    "MLP": {"hidden_dims": [5]},
    "GatedMLP": {"hidden_dims": [5]},
}


@pytest.mark.parametrize("path", PATHS_OF_0_1)
def test_a_path_of_version_0_1_leads_to_its_class(path):
    name = path.partition(":")[2]
    found = spec_from_json({"class": path, "fields": ARGUMENTS.get(name, {})})
    assert type(found) is getattr(vae_jax, name)
    again = spec_to_json(found)
    assert again["class"].startswith("vae_jax:") and spec_from_json(again) == found


def test_a_run_of_version_0_1_loads(tmp_path):
    params = save_run(tmp_path, SPEC)
    old = json.loads((tmp_path / "checkpoints" / "0" / "spec.json").read_text())
    del old["version"]
    old["class"] = "vae_jax.spec:ModelSpec"
    for part in old["fields"].values():
        if isinstance(part, dict):
            name = part["class"].partition(":")[2]
            ends = [path for path in PATHS_OF_0_1 if path.endswith(f":{name}")]
            part["class"] = ends[0]
    with_spec(tmp_path, old)
    assert_same_bits(vae_jax.load_run(tmp_path), params)
    old["fields"]["prior"]["class"] = "vae_jax.priors:Forgotten"
    with_spec(tmp_path, old)
    with pytest.raises(
        ValueError,
        match=r"vae_jax.priors:Forgotten cannot be imported .*written by vae_jax 0.1,",
    ):
        vae_jax.load_run(tmp_path)


@pytest.mark.parametrize(
    "spec",
    [
        vae_jax.ModelSpec(),
        SPEC,
        vae_jax.ModelSpec(
            encoder=vae_jax.ConvolutionalEncoder((8, 16), activation=nn.gelu),
            decoder=vae_jax.ConvolutionalDecoder((16, 8)),
            posterior=vae_jax.PointMass(),
            data_shape=(8, 8, 3),
        ),
        vae_jax.ModelSpec(encoder=UserNetwork(7), data_shape=(3, 5)),
    ],
    ids=["default", "linear", "convolutional", "user"],
)
def test_spec_survives_json(spec):
    described = json.loads(json.dumps(spec_to_json(spec)))
    found = spec_from_json(described, trust=[__name__])
    assert found == spec and hash(found) == hash(spec)


def test_saved_activations_have_public_names():
    assert spec_to_json(nn.relu) == {"import": "jax.nn:relu"}
    assert spec_to_json(jnp.sin) == {"import": "jax.numpy:sin"}
