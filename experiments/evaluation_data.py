"""The data that a trained model is evaluated on, as the model sees them."""

import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import vae_jax
from experiments import choices, datasets, mnist, sweep, sweep_report
from experiments.evaluation import evaluation_keys
from experiments.runner import flags, run_folder
from experiments.runner.command_line import say
from vae_jax import data
from vae_jax.data.rows import spacing
from vae_jax.distributions.support import COUNTS, MaskedSupport
from vae_jax.types import Array, Labels


class RunData(NamedTuple):
    """The data of a run, as the model sees them: pixels in [0, 1].

    Attributes:
      train: `[n, D]`, as the run saw it in one epoch; an evenly spaced subset if the
        data exceed the memory.
      test: `[m, D]`, as it was evaluated.
      train_labels: of a conditional model, or `Conditions`; None for another.
      test_labels: likewise.
    """

    train: Array
    test: Array
    train_labels: Labels
    test_labels: Labels


def of_run(
    folder: str | Path, *, model: int | None = None, data_dir: str | None = None
) -> tuple[mnist.Config, RunData]:
    """Load the configuration of a run and its data.

    Args:
      folder: the folder of a run of experiments.mnist, or of a sweep.
      model: number of a sweep's model.
      data_dir: folder of data files; by default the run's.

    Returns:
      The configuration, and the data.

    Raises:
      ValueError: if the folder holds no run, or the data are not those that it was
        trained on.
    """
    path = Path(folder) / "config.json"
    if not path.exists():
        raise ValueError(
            f"{folder} holds no config.json of a run; for a folder of "
            "vae_jax.save_run, name the data with --dataset"
        )
    found, is_changed = run_folder.read_signed(path)
    try:
        trained = _trained(_config(found), model)
        flags.check(trained)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    original = datasets.load(trained, data_dir=data_dir)
    digest = datasets.digest(original, trained.dataset, labelled=trained.conditional)
    if digest != found.get("data_sha256"):
        raise ValueError(
            f"the {trained.dataset} data found are not those of the run in {folder}"
        )
    _warn_if(is_changed, path)
    seen = _as_seen(
        original, trained.binarization, seed=trained.seed, labelled=trained.conditional
    )
    return trained, seen


def of_dataset(
    name: str,
    spec: vae_jax.ModelSpec,
    *,
    data_dir: str | None = None,
    columns: str | None = None,
    exposure: str = "none",
) -> RunData:
    """Load a data set for a model that a script trained, as its likelihood takes it.

    Args:
      name: the name of a data set, or a file.
      spec: the model.
      data_dir: folder of data files.
      columns: `--columns`, what the columns hold.
      exposure: `--exposure`, `none` or `row_total`.

    Returns:
      The data; grey levels are in [0, 1], and drawn as bits for a Bernoulli likelihood.

    Raises:
      ValueError: if examples have another size, values are outside the support of the
        likelihood, labels are missing or too many for a conditional model, the number
        of covariates is another, or a model that takes exposures has none.
    """
    takes_exposure = spec.likelihood.takes_exposure
    if takes_exposure and exposure == "none":
        raise ValueError(
            f"--exposure must be row_total for {spec.likelihood!r}; for other "
            "exposures call vae_jax.evaluate with labels=Conditions(exposure=...)"
        )
    if not takes_exposure and exposure != "none":
        raise ValueError(
            f"--exposure {exposure} needs a likelihood that takes exposures, "
            f"got {spec.likelihood!r}"
        )
    support = spec.likelihood.support
    masked = isinstance(support, MaskedSupport)
    support = support.base if masked else support
    original = data.load(
        name,
        data_dir=data_dir or "data",
        values="counts" if support == COUNTS else None,
        columns=datasets.given_columns(columns),
        missing="mask" if masked else "error",
    )
    say(*original.notes)
    if original.columns and not (columns and Path(columns).is_dir()):
        say(
            "columns are taken in the order of the file, covariates in that of their "
            "names, and categories by their rank: "
            "they must be those of the training data, to which --columns=RUN_FOLDER "
            "of a run of experiments.mnist holds them"
        )
    if takes_exposure:
        datasets.require_totals(original)
    datasets.require_covariates(original, spec.num_covariates)
    dim = original.train.shape[1]
    if dim != spec.data_dim:
        raise ValueError(
            f"--dataset={name} must have the model's {spec.data_dim} values an "
            f"example, got {dim}"
        )
    datasets.require_categories(original, support)
    num_classes = datasets.num_classes(original, conditional=spec.num_classes > 0)
    # Labels that --columns names are numbered by rank: none may be absent.
    is_ranked = columns is not None and num_classes < spec.num_classes
    if num_classes > spec.num_classes or is_ranked:
        raise ValueError(
            f"--dataset={name} has labels up to {num_classes - 1}, and the model takes "
            f"{spec.num_classes} classes"
        )
    binarization = choices.default_binarization(spec.likelihood, original)
    datasets.require_in(spec.likelihood.support, original, binarization)
    return _as_seen(original, binarization, seed=0, labelled=spec.num_classes > 0)


def is_sweep(folder: Path) -> bool:
    """Whether a folder of any kind is that of a sweep."""
    path = folder / "config.json"
    return path.exists() and "num_seeds" in run_folder.read_signed(path).content


def swept(folder: str | Path) -> list[str]:
    """Names of the flags in which the models of a sweep differ, besides the seed.

    Args:
      folder: the folder of a sweep.

    Returns:
      Names of fields of `mnist.Config`; none if the models differ only in their seeds.
    """
    path = Path(folder) / "config.json"
    config = _config(run_folder.read_signed(path).content)
    return [name for name in sweep.SWEPT if len(getattr(config, name)) > 1]


def best_model(folder: Path) -> int | None:
    """Choose the model of a sweep with the highest validation ELBO, and say which.

    Args:
      folder: a folder of any kind.

    Returns:
      The number of the model; None if the folder holds no sweep.

    Raises:
      ValueError: if the sweep had no validation data or is not done; no model is chosen
        on the test set.
    """
    if not is_sweep(folder):
        return None
    path = folder / "results.json"
    if not path.exists():
        raise ValueError(
            f"--model must name one of the sweep's models: {folder} holds no "
            "results.json to choose by, as the sweep is not done"
        )
    results, is_changed = run_folder.read_signed(path)
    try:
        models = results["models"]
        model = sweep_report.best_model(models)
        chosen = "" if model is None else _described(results, model)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    if model is None:
        raise ValueError(
            "--model must name one of the sweep's models: it had no validation data "
            "(--validation=N) to choose by, and none is chosen on the test set"
        )
    _warn_if(is_changed, path)
    print(f"{chosen} is the highest of {len(models)} (--model=N: another)")
    return model


def _described(results: dict[str, Any], model: int) -> str:
    """Describe a model of a sweep: number, settings and validation ELBO."""
    row = results["models"][model]
    settings = sweep_report.describe(row, results["swept"])
    return (
        f"model {model}: {settings}, whose validation ELBO {row['validation_elbo']:.2f}"
    )


def _as_seen(
    original: data.Dataset, binarization: str, *, seed: int, labelled: bool
) -> RunData:
    """Data as the model sees them in training and in evaluation."""
    dataset = datasets.binarized(original, binarization, seed=seed)
    test = datasets.test_images(dataset)
    step = spacing(dataset.train)
    train = jnp.asarray(dataset.train[::step])
    train = data.to_unit_interval(train, dataset.num_levels)
    if binarization == "dynamic":
        train = data.binarize(train, evaluation_keys().train_data)
    given, of_test = (
        datasets.conditions(dataset, name, labelled=labelled)
        for name in ("train", "test")
    )
    given = jax.tree.map(lambda values: values[::step], given)
    return RunData(train, test, given, of_test)


def _config(found: dict[str, Any]) -> mnist.Config | sweep.Config:
    """The configuration of a run or a sweep, out of config.json."""
    config_class = sweep.Config if "num_seeds" in found else mnist.Config
    names = {field.name for field in fields(config_class)}
    known: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in found.items()
        if name in names
    }
    return config_class(**known)


def _trained(config: mnist.Config | sweep.Config, model: int | None) -> mnist.Config:
    """The configuration of a run, or of one model of a sweep."""
    if isinstance(config, mnist.Config):
        return config
    flags.check(config)
    models = sweep.grid(config)
    if model is None or not 0 <= model < len(models):
        raise ValueError(
            f"--model must be one of the sweep's 0 to {len(models) - 1}, got {model}"
        )
    return models[model]


def _warn_if(is_changed: bool | None, path: Path) -> None:
    if is_changed:
        message = "is not what the run wrote, and is taken as it is now"
        print(f"warning: {path} {message}", file=sys.stderr)
