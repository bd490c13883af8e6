"""Checkpoints: orbax arrays, with the spec and a digest of everything beside them.

A checkpoint is a folder named by its step:

    <step>/arrays/          written by orbax: every leaf under its path in the tree
    <step>/spec.json        import paths and fields of the `ModelSpec`, and the version
    <step>/manifest.json    shape, dtype and sha256 of each leaf, sha256 of each file

Of several processes all call `save`, on a folder that they share, with one state that
is the same in each; orbax writes the arrays and the first process the rest.

It is written beside the others and moved into place whole, so that a folder with a
number for a name is complete. orbax does not notice a flipped bit in an array; the
digests do.
"""

import errno
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from vae_jax import manifest
from vae_jax.external import External
from vae_jax.manifest import CorruptCheckpoint, discard
from vae_jax.model import init
from vae_jax.spec import ModelSpec, Params
from vae_jax.spec_json import Trust, differences, spec_from_json, spec_to_json
from vae_jax.types import PyTree

_STATE, _EXTRA = "state", "extra"
_NUMBER = re.compile("0|[1-9][0-9]{0,17}", re.ASCII)


def save(
    folder: str | Path,
    state: PyTree,
    *,
    spec: ModelSpec,
    extra: PyTree = None,
    texts: Mapping[str, str] | None = None,
) -> None:
    """Write a checkpoint; it appears under its name complete or not at all.

    Args:
      folder: the checkpoint's own folder, `.../<step>`; must not exist.
      state: a `TrainState`, or any pytree of arrays and typed keys.
      spec: the spec of its parameters.
      extra: a further pytree of arrays that `restore_state` gives back.
      texts: further files by their names, which `read_text` gives back.

    Raises:
      FileExistsError: the folder exists.
      OSError: it cannot be written, of a full disk for one; names the folder.

    Example:
      >>> import jax, optax, tempfile, vae_jax
      >>> from vae_jax import checkpoint
      >>> spec = vae_jax.ModelSpec(latent_dim=2)
      >>> params = vae_jax.init(spec, jax.random.key(0))
      >>> adam = optax.adam(1e-3)
      >>> state = vae_jax.init_state(params, jax.random.key(1), optimizer=adam)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     checkpoint.save(f"{folder}/0", state, spec=spec)
      ...     checkpoint.restore(f"{folder}/0").spec == spec
      True
    """
    folder = Path(folder).absolute()
    if folder.exists():
        raise FileExistsError(errno.EEXIST, "exists already: move it away", str(folder))
    # Beside the folder of checkpoints: in there only numbers are names.
    draft = folder.parent.parent / f".{folder.parent.name}-{folder.name}.draft"
    is_first = jax.process_index() == 0
    if is_first:
        discard(draft)
        draft.mkdir(parents=True)
    multihost_utils.sync_global_devices("vae_jax.checkpoint: draft")
    leaves = _flatten({_STATE: state, _EXTRA: extra})
    # orbax stores no empty arrays; the manifest has all there is to know of them.
    _save_arrays(draft, {name: leaf for name, leaf in leaves.items() if leaf.size})
    if is_first:
        with manifest.naming(draft):
            for name, text in (texts or {}).items():
                (draft / name).write_text(text)
            described = spec_to_json(spec) | {"version": _version()}
            manifest.write(draft, leaves, described, step=folder.name)
            folder.parent.mkdir(exist_ok=True)
            draft.rename(folder)
            manifest.flush(folder.parent)
    multihost_utils.sync_global_devices("vae_jax.checkpoint: in place")


def _save_arrays(draft: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays by orbax.

    Raises:
      OSError: it could not; orbax has a dozen errors for a full disk.
    """
    manifest.require_room(draft, arrays)
    try:
        with manifest.naming(draft), manifest.checkpointer() as orbax:
            orbax.save(draft / "arrays", arrays)
    except (OSError, MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:
        found = re.search(r"os_error_code='(\d+)'", str(error))
        number = int(found[1]) if found else errno.EIO
        raise OSError(number, os.strerror(number), str(draft)) from error


def restore(
    folder: str | Path,
    *,
    spec: ModelSpec | None = None,
    model: int | None = None,
    trust: Trust = False,
) -> Params:
    """The parameters of a checkpoint: the average where one was kept.

    Args:
      folder: a checkpoint's folder, `.../<step>`.
      spec: the spec, where it cannot be rebuilt from its import paths (a class that
        was defined in a script or has moved).
      model: number of the model, in the checkpoint of many (`vae_jax.sweep`).
      trust: whether the spec's classes may be imported from outside `vae_jax`, which
        runs their modules: True, or names of modules.

    Returns:
      `Params` on the host's default device.

    Raises:
      CorruptCheckpoint: a file or an array is not what was written.
      ValueError: the spec cannot be rebuilt, or does not fit the arrays; the
        checkpoint holds many models and `model` names none of them, or the reverse.
      FileNotFoundError: there is no such checkpoint.

    Example:
      See `save`.
    """
    leaves, described = manifest.read(Path(folder).absolute())
    if spec is None:
        spec = _spec(described, trust)
    averaged = any(name.startswith(f"{_STATE}.average.") for name in leaves)
    field = "average" if averaged else "params"
    like = _shapes(spec)
    leaves = _below((_STATE, field), _of_model(leaves, model))
    return _unflatten({_STATE: {field: like}}, leaves, dtypes=False)[_STATE][field]


def _spec(described: dict[str, Any], trust: Trust) -> ModelSpec:
    """The spec beside the arrays.

    Raises:
      ValueError: it cannot be rebuilt here; names the versions.
    """
    try:
        spec = spec_from_json(described, trust=trust)
        if not isinstance(spec, ModelSpec):
            raise ValueError(f"spec: {described} is no ModelSpec; pass spec=")
    except ValueError as error:
        raise ValueError(
            f"{error} (written by vae_jax {described.get('version', '0.1')}, read by "
            f"{_version()})"
        ) from error
    return spec


def _shapes(spec: ModelSpec) -> Params:
    """The parameters of a spec as shapes.

    Raises:
      ValueError: it has none.
    """
    try:
        return jax.eval_shape(lambda key: init(spec, key), jax.random.key(0))
    except ValueError:
        raise
    # A network of wrong fields may fail in any way.
    except Exception as error:
        raise ValueError(
            f"spec: it has no parameters ({error!r:.300}); pass spec="
        ) from error


def _version() -> str:
    try:
        return metadata.version("vae_jax")
    except metadata.PackageNotFoundError:
        return "of a checkout"


def _of_model(
    leaves: dict[str, np.ndarray], model: int | None
) -> dict[str, np.ndarray]:
    """The leaves of one model; those of a single one are taken as they are."""
    key = leaves.get(f"{_STATE}.key")
    # A key is two words or four, many keys are a matrix.
    count = len(key) if key is not None and key.ndim == 2 else None
    if count is None:
        if model is not None:
            raise ValueError(f"model is {model}, but the checkpoint holds a single one")
        return leaves
    if model is None or not 0 <= model < count:
        raise ValueError(
            f"the checkpoint holds {count} models: model must be one of 0 to "
            f"{count - 1}, got {model}"
        )
    of_models = {
        name: leaf
        for name, leaf in leaves.items()
        if name.startswith(f"{_STATE}.") and leaf.ndim
    }
    for name, leaf in of_models.items():
        if len(leaf) != count:
            raise CorruptCheckpoint(f"{name} is of {len(leaf)} models, not {count}")
    return {name: leaf[model] for name, leaf in of_models.items()}


def restore_state(
    folder: str | Path,
    like: PyTree,
    *,
    extra: PyTree = None,
    spec: ModelSpec | None = None,
) -> tuple:
    """A saved state, onto the structure of another.

    Args:
      folder: a checkpoint's folder, `.../<step>`.
      like: a state of the same structure, shapes and dtypes.
      extra: likewise for what was saved as `extra`; what was saved stays there where
        this is None.
      spec: the spec that the state is of; one that was saved with other fields is
        refused, where without it only names and shapes of arrays are compared.

    Returns:
      The state and the extra, bit for bit what was saved.

    Raises:
      CorruptCheckpoint: a file or an array is not what was written.
      ValueError: the structure or the spec is another; names what differs.
      FileNotFoundError: there is no such checkpoint.

    Example:
      >>> import jax.numpy as jnp, tempfile, vae_jax
      >>> from vae_jax import checkpoint
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     state = {"weight": jnp.ones(2)}
      ...     checkpoint.save(f"{folder}/7", state, spec=vae_jax.ModelSpec())
      ...     checkpoint.restore_state(f"{folder}/7", state)
      ({'weight': Array([1., 1.], dtype=float32)}, None)
    """
    leaves, described = manifest.read(Path(folder).absolute())
    differing = [] if spec is None else differences(described, spec)
    if differing:
        raise ValueError(f"the checkpoint is of another spec: {'; '.join(differing)}")
    if extra is None:
        leaves = _below((_STATE,), leaves)
    trees = _unflatten({_STATE: like, _EXTRA: extra}, leaves, dtypes=True)
    return trees[_STATE], trees[_EXTRA]


def read_text(folder: str | Path, name: str) -> str | None:
    """One of the texts that were saved with a state.

    Args:
      folder: a checkpoint's folder, `.../<step>`.
      name: of the text.

    Returns:
      The text; None where none was saved by this name.

    Raises:
      CorruptCheckpoint: it is not what was written.

    Example:
      >>> import jax.numpy as jnp, tempfile, vae_jax
      >>> from vae_jax import checkpoint
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     options = {"spec": vae_jax.ModelSpec(), "texts": {"notes": "of a day"}}
      ...     checkpoint.save(f"{folder}/7", {"weight": jnp.ones(2)}, **options)
      ...     checkpoint.read_text(f"{folder}/7", "notes")
      'of a day'
    """
    return manifest.read_text(Path(folder), name)


def verify(folder: str | Path) -> None:
    """Read a checkpoint and compare every file and array with its digest.

    Args:
      folder: a checkpoint's folder, `.../<step>`.

    Raises:
      CorruptCheckpoint: a file or an array is not what was written.
      FileNotFoundError: there is no such checkpoint.

    Example:
      >>> from vae_jax import checkpoint
      >>> checkpoint.verify("nowhere/7")
      Traceback (most recent call last):
      FileNotFoundError: no checkpoint at nowhere/7
    """
    manifest.read(Path(folder))


def steps(folder: str | Path) -> list[int]:
    """Steps of the checkpoints in a folder, in ascending order.

    Args:
      folder: a run's `checkpoints` folder; need not exist.

    Returns:
      Numbers of the folders in it whose name is a number, as Python writes it.

    Example:
      >>> from vae_jax import checkpoint
      >>> checkpoint.steps("nowhere")
      []
    """
    if not Path(folder).is_dir():
        return []
    names = [entry.name for entry in os.scandir(folder) if entry.is_dir()]
    return sorted(int(name) for name in names if _NUMBER.fullmatch(name))


def remove(folder: str | Path) -> None:
    """Remove a checkpoint; it disappears from its name at once.

    Of one that is a symbolic link the link is removed.

    Args:
      folder: a checkpoint's folder, `.../<step>`.

    Example:
      See `steps` for what remains.
    """
    folder = Path(folder).absolute()
    doomed = folder.parent.parent / f".{folder.parent.name}-{folder.name}.removed"
    discard(doomed)
    folder.rename(doomed)
    discard(doomed)


def save_run(folder: str | Path, params: Params, *, step: int = 0) -> Path:
    """Write a model trained in a loop of one's own as a run that `load_run` reads.

    `python -m experiments.evaluate FOLDER --dataset=...` evaluates it.

    Args:
      folder: the run's folder; made if it does not exist.
      params: model parameters.
      step: number of steps taken, the name of the checkpoint.

    Returns:
      The checkpoint's folder.

    Raises:
      ValueError: a negative step, or functions of `replace_networks`.
      FileExistsError: the run has a checkpoint of that step.

    Example:
      >>> import jax, tempfile, vae_jax
      >>> params = vae_jax.init(vae_jax.ModelSpec(latent_dim=2), jax.random.key(0))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     _ = vae_jax.save_run(folder, params, step=100)
      ...     vae_jax.load_run(folder).spec == params.spec
      True
    """
    if step < 0:
        raise ValueError(f"step must not be negative, got {step}")
    for network in (params.encoder, params.decoder):
        if isinstance(network, External):
            raise ValueError(
                f"a {network.role} of replace_networks is code, which no checkpoint "
                "holds: save its weights yourself, or make it a network of the spec "
                "(vae_jax.FunctionNetwork)"
            )
    state = _Trained(params.replace(network_key=None))
    checkpoint = Path(folder) / "checkpoints" / str(step)
    save(checkpoint, state, spec=params.spec)
    return checkpoint


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Trained:
    """A state that has parameters and no more."""

    params: Params


def load_run(
    folder: str | Path,
    *,
    which: Literal["last", "best"] = "last",
    step: int | None = None,
    spec: ModelSpec | None = None,
    model: int | None = None,
    trust: Trust = False,
) -> Params:
    """Parameters of a trained run, for a script or a notebook.

    Args:
      folder: the run's folder, which holds `checkpoints/`.
      which: the last checkpoint, or the best on validation data (`best.json`); the
        figures of both stand in `results.json`.
      step: the checkpoint to take in place of the last.
      spec: as in `restore`.
      model: as in `restore`: which of the many models of a sweep.
      trust: as in `restore`: a run of parts of one's own names their modules, and a
        folder from a stranger must not decide what code runs.

    Returns:
      `Params`.

    Raises:
      ValueError: no run or no checkpoint there; no best one, as in a run without
        validation data; else as `restore`.

    Example:
      >>> import vae_jax
      >>> vae_jax.load_run("nowhere")
      Traceback (most recent call last):
      ValueError: folder 'nowhere' holds no checkpoints of a run
    """
    checkpoints = Path(folder) / "checkpoints"
    available = steps(checkpoints)
    if not available:
        raise ValueError(f"folder {str(folder)!r} holds no checkpoints of a run")
    if which not in ("last", "best"):
        raise ValueError(f"which must be last or best, got {which!r}")
    if which == "best":
        if step is not None:
            raise ValueError(f"step {step} and which='best' exclude one another")
        step = _best_step(checkpoints)
    step = available[-1] if step is None else step
    if step not in available:
        raise ValueError(f"step must be one of {available}, got {step}")
    path = checkpoints / str(step)
    try:
        return restore(path, spec=spec, model=model, trust=trust)
    except CorruptCheckpoint as error:
        raise CorruptCheckpoint(
            f"checkpoint {path}: {error} (step= takes another of {available})"
        ) from error


def _best_step(checkpoints: Path) -> int:
    """The step that best.json names, chosen on validation data."""
    try:
        best = json.loads((checkpoints / "best.json").read_text())
        # Before there were validation data it was chosen on the test set.
        _ = best["validation_elbo"]
        step = best["step"]
        # True and 9.0 are equal to steps, and no names of checkpoints.
        if type(step) is not int:
            raise TypeError(f"step is {step!r}")
        return step
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"folder {str(checkpoints.parent)!r} holds no checkpoint that is best on "
            "validation data: the run had none, or trained many models (which='last')"
        ) from error


def _flatten(tree: PyTree) -> dict[str, np.ndarray]:
    """Leaves by the name of their path; typed keys as their data."""
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        _name(path): np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
        for path, leaf in paths
    }


def _below(
    path: tuple[str, ...], leaves: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The leaves of one part of the tree."""
    prefix = ".".join((*path, ""))
    return {
        name: leaf for name, leaf in leaves.items() if f"{name}.".startswith(prefix)
    }


def _unflatten(like: PyTree, leaves: dict[str, np.ndarray], *, dtypes: bool) -> PyTree:
    """The tree of named leaves, each put where `like` has one of its name."""
    paths, _ = jax.tree_util.tree_flatten_with_path(like)
    left_over = sorted(leaves.keys() - {_name(path) for path, _ in paths})

    def pick(path, wanted):
        name = _name(path)
        if name not in leaves:
            raise ValueError(f"the checkpoint has no {name}")
        found, is_key = leaves[name], _is_key(wanted)
        impl = jax.random.key_impl(wanted) if is_key else None
        if is_key:
            wanted = jax.eval_shape(jax.random.key_data, wanted)
        if found.shape != wanted.shape or (dtypes and found.dtype != wanted.dtype):
            raise ValueError(
                f"{name} is {found.dtype}{list(found.shape)} in the checkpoint, and "
                f"{wanted.dtype}{list(wanted.shape)} was expected"
            )
        leaf = jnp.asarray(found)
        return jax.random.wrap_key_data(leaf, impl=impl) if is_key else leaf

    tree = jax.tree_util.tree_map_with_path(pick, like)
    if left_over:
        raise ValueError(
            f"the checkpoint has {', '.join(left_over)} as well, which was not expected"
        )
    return tree


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
