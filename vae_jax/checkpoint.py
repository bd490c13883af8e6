"""Checkpoints: arrays written by orbax, the spec, and digests of all contents.

A checkpoint is a folder named by its step:

    <step>/arrays/          written by orbax: each leaf under its path in the tree
    <step>/spec.json        import paths and fields of the `ModelSpec`, and the version
    <step>/manifest.json    shape, dtype and sha256 of each leaf, sha256 of each file

With several processes, all of them call `save` with the same state and the same shared
folder; orbax writes the arrays, and the first process writes the other files.

A checkpoint is written to a temporary folder and then renamed, so a folder named by a
number is always complete. The digests detect corrupt arrays, which orbax does not.
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
from vae_jax.external import external_of
from vae_jax.leaf_names import leaf_name, named_leaves
from vae_jax.manifest import CorruptCheckpoint, discard
from vae_jax.model import init
from vae_jax.options import require_at_least
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
    """Write a checkpoint atomically.

    Args:
      folder: folder of the checkpoint, `.../<step>`; must not exist.
      state: a `TrainState`, or any pytree of arrays and typed keys.
      spec: the spec of the parameters.
      extra: a further pytree of arrays, returned by `restore_state`.
      texts: contents of further text files by name, returned by `read_text`.

    Raises:
      FileExistsError: the folder exists.
      OSError: the checkpoint cannot be written, for example because the disk is full;
        the error names the folder.

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
        raise FileExistsError(
            errno.EEXIST,
            "exists already: choose another step, or move it away",
            str(folder),
        )
    leaves = _flatten({_STATE: state, _EXTRA: extra})
    # Next to the folder of checkpoints, which contains only steps.
    draft = folder.parent.parent / f".{folder.parent.name}-{folder.name}.draft"
    is_first = jax.process_index() == 0
    if is_first:
        discard(draft)
        draft.mkdir(parents=True)
    multihost_utils.sync_global_devices("vae_jax.checkpoint: draft")
    # orbax does not store empty arrays; the manifest describes them completely.
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
    """Write arrays with orbax.

    Raises:
      OSError: writing failed; orbax raises many types of errors for a full disk.
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
    """Restore the parameters of a checkpoint, or their moving average if it has one.

    Args:
      folder: folder of the checkpoint, `.../<step>`.
      spec: the spec, if it cannot be rebuilt from its import paths (a class that was
        defined in a script or has moved).
      model: index of the model, for a checkpoint of many models (`vae_jax.sweep`).
      trust: modules outside `vae_jax` from which classes of the spec may be imported,
        which runs the modules: True for all, or their names.

    Returns:
      `Params` on the default device.

    Raises:
      CorruptCheckpoint: a file or an array differs from what was written.
      ValueError: the spec cannot be rebuilt, or `spec` has other values or arrays than
        the checkpoint's (an import path may differ); `model` is missing or out of range
        for a checkpoint of many models, or given for one of a single model.
      FileNotFoundError: the checkpoint does not exist.

    Example:
      See `save`.
    """
    leaves, described = manifest.read(Path(folder).absolute())
    wanted = _spec(described, trust) if spec is None else spec
    averaged = any(name.startswith(f"{_STATE}.average.") for name in leaves)
    field = "average" if averaged else "params"
    like = _shapes(wanted)
    leaves = _subtree((_STATE, field), _select_model(leaves, model))
    params = _unflatten({_STATE: {field: like}}, leaves, dtypes=False)[_STATE][field]
    if spec is not None:
        _refuse(differences(described, spec, may_move=True))
    return params


def _refuse(differing: list[str]) -> None:
    if differing:
        raise ValueError(f"the checkpoint has another spec: {'; '.join(differing)}")


def _spec(described: dict[str, Any], trust: Trust) -> ModelSpec:
    """Rebuild the spec of a checkpoint from its JSON.

    Raises:
      ValueError: the spec cannot be rebuilt; the message states the versions.
    """
    try:
        spec = spec_from_json(described, trust=trust)
        if not isinstance(spec, ModelSpec):
            raise ValueError(f"spec: {described} is not a ModelSpec; pass spec=")
    except ValueError as error:
        raise ValueError(
            f"{error} (written by vae_jax {described.get('version', '0.1')}, read by "
            f"{_version()})"
        ) from error
    return spec


def _shapes(spec: ModelSpec) -> Params:
    """Shapes and dtypes of the parameters of a spec.

    Raises:
      ValueError: the parameters cannot be initialized.
    """
    try:
        return jax.eval_shape(lambda key: init(spec, key), jax.random.key(0))
    except ValueError:
        raise
    # A network with invalid fields can raise any error.
    except Exception as error:
        raise ValueError(
            f"spec: cannot initialize its parameters ({error!r:.300}); pass spec="
        ) from error


def _version() -> str:
    try:
        return metadata.version("vae_jax")
    except metadata.PackageNotFoundError:
        return "of a checkout"


def _select_model(
    leaves: dict[str, np.ndarray], model: int | None
) -> dict[str, np.ndarray]:
    """Select the leaves of one model; those of a single model are unchanged."""
    key = leaves.get(f"{_STATE}.key")
    # The data of one key are a vector of words; those of many keys are a matrix.
    count = len(key) if key is not None and key.ndim == 2 else None
    if count is None:
        if model is not None:
            raise ValueError(
                f"model is {model}, but the checkpoint holds a single one: leave model "
                "out"
            )
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
            raise CorruptCheckpoint(f"{name} has {len(leaf)} models, not {count}")
    return {name: leaf[model] for name, leaf in of_models.items()}


def restore_state(
    folder: str | Path,
    like: PyTree,
    *,
    extra: PyTree = None,
    spec: ModelSpec | None = None,
) -> tuple:
    """Restore a saved state to the structure of a given one.

    Args:
      folder: folder of the checkpoint, `.../<step>`.
      like: a state of the same structure, shapes and dtypes.
      extra: a pytree of the structure, shapes and dtypes of the saved `extra`; None
        does not restore it.
      spec: the spec to compare with the saved one; None compares only the names,
        shapes and dtypes of the arrays.

    Returns:
      The state and the extra, bitwise equal to what was saved.

    Raises:
      CorruptCheckpoint: a file or an array differs from what was written.
      ValueError: the structure or the spec differs; the message states how.
      FileNotFoundError: the checkpoint does not exist.

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
    if spec is not None:
        _refuse(differences(described, spec))
    if extra is None:
        leaves = _subtree((_STATE,), leaves)
    trees = _unflatten({_STATE: like, _EXTRA: extra}, leaves, dtypes=True)
    return trees[_STATE], trees[_EXTRA]


def read_text(folder: str | Path, name: str) -> str | None:
    """Read one of the texts saved with a state.

    Args:
      folder: folder of the checkpoint, `.../<step>`.
      name: name of the text.

    Returns:
      The text; None if no text of this name was saved.

    Raises:
      CorruptCheckpoint: the text or the manifest differs from what was written.

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
    """Verify the digests of all files and arrays of a checkpoint.

    Args:
      folder: folder of the checkpoint, `.../<step>`.

    Raises:
      CorruptCheckpoint: a file or an array differs from what was written.
      FileNotFoundError: the checkpoint does not exist.

    Example:
      >>> from vae_jax import checkpoint
      >>> checkpoint.verify("nowhere/7")
      Traceback (most recent call last):
      FileNotFoundError: no checkpoint at nowhere/7
    """
    manifest.read(Path(folder))


def steps(folder: str | Path) -> list[int]:
    """List the steps of the checkpoints in a folder, in ascending order.

    Args:
      folder: the `checkpoints` folder of a run; need not exist.

    Returns:
      The subfolders whose name is a decimal number without leading zeros, as integers.

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
    """Remove a checkpoint; it is renamed first, so it disappears atomically.

    If it is a symbolic link, only the link is removed.

    Args:
      folder: folder of the checkpoint, `.../<step>`.

    Example:
      See `steps` for listing the remaining ones.
    """
    folder = Path(folder).absolute()
    doomed = folder.parent.parent / f".{folder.parent.name}-{folder.name}.removed"
    discard(doomed)
    folder.rename(doomed)
    discard(doomed)


def save_run(folder: str | Path, params: Params, *, step: int = 0) -> Path:
    """Save a model trained in a custom loop as a run, for `load_run`.

    `python -m experiments.evaluate FOLDER --dataset=...` evaluates it.

    Args:
      folder: folder of the run, created if necessary.
      params: model parameters.
      step: number of training steps, the name of the checkpoint.

    Returns:
      The folder of the checkpoint.

    Raises:
      ValueError: `step` is negative or not an integer, or a network is from
        `replace_networks`.
      FileExistsError: the run already has a checkpoint of this step.

    Example:
      >>> import jax, tempfile, vae_jax
      >>> params = vae_jax.init(vae_jax.ModelSpec(latent_dim=2), jax.random.key(0))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     _ = vae_jax.save_run(folder, params, step=100)
      ...     vae_jax.load_run(folder).spec == params.spec
      True
    """
    require_at_least("step", step, 0)
    if external := external_of(params):
        raise ValueError(
            f"a {external.role} of replace_networks is code, which checkpoints do not "
            "contain: save its weights yourself, or make it a network of the spec "
            "(vae_jax.FunctionNetwork)"
        )
    state = _Trained(params.replace(network_key=None))
    checkpoint = Path(folder) / "checkpoints" / str(step)
    save(checkpoint, state, spec=params.spec)
    return checkpoint


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Trained:
    """A state with parameters only."""

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
    """Load the parameters of a trained run.

    Args:
      folder: folder of the run, which contains `checkpoints/`.
      which: the last checkpoint, or the best on validation data (`best.json`); the
        results of both are in `results.json`.
      step: step of the checkpoint to load instead of the last.
      spec: as in `restore`.
      model: index of a model of a sweep, as in `restore`.
      trust: as in `restore`. A run with user-defined classes names their modules; an
        untrusted folder must not decide which code runs.

    Returns:
      `Params`.

    Raises:
      ValueError: the folder has no checkpoints or none of this step; an invalid
        `which`; `step` with `which="best"`; no best checkpoint, as in a run without
        validation data; or as for `restore`.

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
    """Step in best.json, chosen on validation data."""
    try:
        best = json.loads((checkpoints / "best.json").read_text())
        # Earlier versions chose it on the test set, without this key.
        _ = best["validation_elbo"]
        step = best["step"]
        # True and 9.0 compare equal to integers but do not name checkpoints.
        if type(step) is not int:
            raise TypeError(f"step is {step!r}")
        return step
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"folder {str(checkpoints.parent)!r} holds no checkpoint that is best on "
            "validation data: the run had no validation data, or trained many models "
            "(which='last')"
        ) from error


def _flatten(tree: PyTree) -> dict[str, np.ndarray]:
    """Map the names of paths to leaves as arrays, with typed keys as their data."""
    return {
        name: np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
        for name, leaf in named_leaves(tree).items()
    }


def _subtree(
    path: tuple[str, ...], leaves: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Select the leaves of a subtree."""
    prefix = ".".join((*path, ""))
    return {
        name: leaf for name, leaf in leaves.items() if f"{name}.".startswith(prefix)
    }


def _unflatten(like: PyTree, leaves: dict[str, np.ndarray], *, dtypes: bool) -> PyTree:
    """Rebuild a tree of the structure of `like` from named leaves."""
    left_over = sorted(leaves.keys() - named_leaves(like).keys())

    def pick(path, wanted):
        name = leaf_name(path)
        if name not in leaves:
            raise ValueError(f"the checkpoint has no {name}")
        found, is_key = leaves[name], _is_key(wanted)
        impl = jax.random.key_impl(wanted) if is_key else None
        if is_key:
            wanted = jax.eval_shape(jax.random.key_data, wanted)
        if found.shape != wanted.shape or (dtypes and found.dtype != wanted.dtype):
            raise ValueError(
                f"{name} is {found.dtype}{list(found.shape)} in the checkpoint, but "
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


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
