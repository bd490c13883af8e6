"""Data of a run: loading, binarization, scaling to [0, 1], labels and a digest."""

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import vae_jax
from experiments import choices
from experiments.evaluation import evaluation_keys, has_density
from experiments.runner import memory
from vae_jax import data
from vae_jax.data.columns import (
    OTHER_KINDS,
    Column,
    Given,
    columns_from_json,
    columns_to_json,
)
from vae_jax.data.files import ENDS
from vae_jax.data.memory import bytes_of_file, gigabytes
from vae_jax.data.rows import blocks
from vae_jax.distributions.support import COUNTS, ColumnSupport, Support
from vae_jax.types import Array, Family, Key, Labels

if TYPE_CHECKING:
    from experiments.mnist import ModelFlags

# Root mean square of a covariate above which it is warned of.
LARGE_COVARIATE = 10.0


class Split(NamedTuple):
    """Examples on which a model is evaluated.

    Attributes:
      name: `test` or `validation`.
      x: examples `[m, D]` on the device, levels scaled to [0, 1].
      labels: labels `[m]`, or `Conditions` if there are covariates; None if there are
        neither.
    """

    name: str
    x: Array
    labels: Labels


def split(dataset: data.Dataset, name: str) -> Split:
    """Return the test or validation examples of a data set.

    Args:
      dataset: the binarized data set.
      name: `test` or `validation`.

    Returns:
      A `Split`.
    """
    x = data.to_unit_interval(jnp.asarray(getattr(dataset, name)), dataset.num_levels)
    return Split(name, x, conditions(dataset, name, labelled=True))


def conditions(dataset: data.Dataset, name: str, *, labelled: bool) -> Any:
    """Return the labels of a split, or `Conditions` if there are covariates.

    Args:
      dataset: the data as loaded.
      name: `train`, `test` or `validation`.
      labelled: whether to include the labels.

    Returns:
      NumPy arrays; None if there are neither labels nor covariates.
    """
    labels = getattr(dataset, f"{name}_labels") if labelled else None
    covariates = getattr(dataset, f"{name}_covariates")
    if covariates is None:
        return labels
    return vae_jax.Conditions(labels, covariates)


def watched(dataset: data.Dataset) -> Split:
    """Return the validation examples; the test examples if there are none."""
    name = "test" if dataset.validation is None else "validation"
    return split(dataset, name)


def load(config: "ModelFlags", *, data_dir: str | None = None) -> data.Dataset:
    """Load the data set that the flags name.

    Whole numbers are loaded as counts if the likelihood is one of counts. With
    `--validation`, training examples are held out for validation.

    Args:
      config: the configuration, which names the data set and the likelihood.
      data_dir: folder of data files; None for `--data_dir`.

    Returns:
      A `Dataset`.

    Raises:
      ValueError: see `data.load` and `data.hold_out`; also if `--exposure=row_total`
        and a row has no counts.
    """
    is_npy = config.dataset.endswith(".npy")
    num_bytes = bytes_of_file(config.dataset) if is_npy else 0
    dataset = data.load(
        config.dataset,
        data_dir=data_dir or config.data_dir,
        values="counts" if choices.is_of_counts(config) else None,
        columns=given_columns(config.columns),
        missing="error" if config.missing == "error" else "mask",
        memory_map=is_npy and memory.stays_on_host(config.data_on, num_bytes),
    )
    if memory.stays_on_host(config.data_on, max(num_bytes, dataset.train.nbytes)):
        dataset = _on_host(dataset, config.data_on)
    if config.exposure == "row_total":
        require_totals(dataset)
    return data.hold_out(dataset, config.validation) if config.validation else dataset


def require_totals(dataset: data.Dataset) -> None:
    """Raise ValueError if a row has no counts and therefore no exposure."""
    for name in ("train", "test", "validation"):
        x = getattr(dataset, name)
        for first, block in blocks(x) if x is not None else ():
            totals = block.sum(axis=-1, dtype=np.float64)
            if not (totals > 0).all():
                row = np.argmin(totals > 0)
                raise ValueError(
                    f"--exposure=row_total needs a positive total of every row, got "
                    f"{totals[row]:g} in row {first + row} of the {name} examples: "
                    "remove the row"
                )


def require_covariates(dataset: data.Dataset, number: int) -> None:
    """Raise ValueError unless rows have as many covariates as the model takes."""
    found = dataset.train_covariates
    got = 0 if found is None else found.shape[1]
    # A model without covariates leaves them out.
    if number and got != number:
        raise ValueError(
            f"the model takes {number} covariates a row, and {dataset.name} has {got}: "
            'name them in --columns, as {"age": "covariate"}'
        )


def require_categories(dataset: data.Dataset, support: Any) -> None:
    """Raise ValueError unless columns have as many categories as the likelihood.

    Categories are numbered by rank: without one of them, others would take its number.

    Args:
      dataset: the data as loaded.
      support: support of the likelihood; only that of a table is by column.

    Raises:
      ValueError: names the column and both numbers.
    """
    parts = support.parts if isinstance(support, ColumnSupport) else ()
    for part, at in parts:
        for column in (dataset.columns[number] for number in at):
            got = len(column.categories)
            if got and part.whole and part != COUNTS and part.high != got - 1:
                raise ValueError(
                    f"column {column.name!r} has {got} categories, and the model "
                    f"{part.high + 1:g}: give them all in --columns, as "
                    f'{{"{column.name}": {{"kind": "{column.kind}", "categories": '
                    "[...]}}"
                )


def _on_host(dataset: data.Dataset, data_on: str) -> data.Dataset:
    """Keep the training examples on the host, with a note on the reason."""
    train = dataset.train
    free = gigabytes(memory.free_bytes())
    note = (
        f"{gigabytes(train.nbytes)} of training data stay on the host, because they "
        f"exceed half of the {free} of free memory; batches are gathered ahead and "
        "moved to the device (--data_on)"
    )
    if isinstance(train, np.ndarray):
        train = data.Rows(train, np.arange(len(train)), train.dtype)
    notes = dataset.notes + (note,) * (data_on == "auto")
    return dataset._replace(train=train, notes=notes)


def given_columns(columns: str | None) -> Given:
    """Parse `--columns`: a path, or JSON text in a resolved configuration."""
    if columns is None:
        return None
    if columns.startswith("["):
        return columns_from_json(columns)
    return data.read_columns(columns)


def resolved_columns(columns: str | None, dataset: data.Dataset) -> str | None:
    """Describe all columns of a table, including inferred ones, for config.json.

    Args:
      columns: `--columns`.
      dataset: the data as loaded.

    Returns:
      JSON; None if `--columns` is None and the columns have only numbers for names.
    """
    if columns is None and [c.name for c in dataset.columns] == [
        str(number) for number in range(len(dataset.columns))
    ]:
        return None
    given = given_columns(columns) or {}
    if not isinstance(given, Mapping):
        return columns_to_json(given)
    kinds = {
        name: entry if isinstance(entry, str) else entry.get("kind")
        for name, entry in given.items()
    }
    others = (Column(name, kind) for name, kind in kinds.items() if kind in OTHER_KINDS)
    return columns_to_json([*dataset.columns, *others])


def binarized(original: data.Dataset, method: str, *, seed: int) -> data.Dataset:
    """Binarize the data of a run.

    Args:
      original: the data as loaded.
      method: `--binarization`, resolved.
      seed: seed of the run; the binarized test set does not depend on it.

    Returns:
      The binarized data set.
    """
    return data.binarize_dataset(
        original,
        evaluation_keys().data,
        method=method,
        train_key=vae_jax.run_keys(jax.random.key(seed)).data,
    )


def examples(dataset: data.Dataset, *, labelled: bool) -> Any:
    """Return the training examples, on the device unless they stay on the host.

    Args:
      dataset: the binarized data set.
      labelled: whether to include the labels, for a conditional model.

    Returns:
      Values `[n, D]` as stored, not yet scaled.
    """
    x: Any = dataset.train
    given = conditions(dataset, "train", labelled=labelled)
    found = x if given is None else vae_jax.Labelled(x, given)
    return found if isinstance(x, data.Rows) else jax.tree.map(jnp.asarray, found)


def as_seen(
    batch: Array | vae_jax.Labelled,
    key: Key,
    *,
    binarization: str,
    num_levels: int | None,
    exposure: str = "none",
) -> Array | vae_jax.Labelled:
    """Prepare a batch for one step: scale it, and draw binary pixels if dynamic.

    Args:
      batch: a batch of the data set.
      key: PRNG key, consumed once.
      binarization: `dynamic` draws binary pixels.
      num_levels: number of levels of the data set.
      exposure: `row_total` adds the total of each row as its exposure.

    Returns:
      The batch, with levels scaled to [0, 1].
    """
    labels: Any
    x, labels = batch if isinstance(batch, vae_jax.Labelled) else (batch, None)
    x = data.to_unit_interval(x, num_levels)
    if binarization == "dynamic":
        x = data.binarize(x, key)
    if exposure == "row_total":
        labels = choices.with_row_totals(x, labels)
    return x if labels is None else vae_jax.Labelled(x, labels)


def test_images(dataset: data.Dataset) -> Array:
    """Return the test set as the model gets it, `[m, D]`, on the device."""
    return split(dataset, "test").x


def check_early_stopping(
    patience: int | None, params: vae_jax.Params, watched: Split
) -> None:
    """Raise ValueError if early stopping has no criterion.

    Args:
      patience: `--early_stopping`.
      params: parameters of the model.
      watched: the examples on which each epoch is evaluated.

    Raises:
      ValueError: if there are no validation data, or the model has no ELBO.
    """
    if patience is None:
        return
    if watched.name != "validation":
        raise ValueError(
            f"--early_stopping {patience} needs validation data: give --validation=N, "
            "or --dataset=binarized_mnist, which has some"
        )
    if not has_density(params, watched.x, watched.labels):
        raise ValueError(
            f"--early_stopping {patience} needs an ELBO, and q(z|x) of this posterior "
            "has no density"
        )


def require_in(support: Support, dataset: data.Dataset, binarization: str) -> None:
    """Raise ValueError if data lie outside the support of the likelihood.

    Called before anything is written.

    Args:
      support: the support that the likelihood declares.
      dataset: the binarized data set.
      binarization: `--binarization`, resolved; with `dynamic` the training set is not
        checked, since bits are drawn in each step.

    Raises:
      ValueError: names the values and the support.
    """
    support.require(test_images(dataset), "the test set")
    if dataset.validation is not None:
        support.require(split(dataset, "validation").x, "the validation set")
    if binarization != "dynamic":
        for _, block in blocks(dataset.train):
            train = data.to_unit_interval(jnp.asarray(block), dataset.num_levels)
            support.require(train, "the training set")


def warnings(
    original: data.Dataset, likelihood: Family, binarization: str
) -> list[str]:
    """Warn about settings that are allowed but probably unintended.

    These are likelihoods that do not suit the data, and covariates of large scale.

    Args:
      original: the data as loaded.
      likelihood: the family that `--likelihood` names.
      binarization: `--binarization`, resolved.

    Returns:
      Warnings, one sentence each.
    """
    found = [] if original.train_covariates is None else _scales(original)
    return found + _unlikely(original, likelihood, binarization)


def _scales(original: data.Dataset) -> list[str]:
    """Warn about covariates of large scale; they are not standardized."""
    values = np.asarray(original.train_covariates, np.float64)
    sizes = np.sqrt(np.mean(values**2, axis=0))
    large = ", ".join(
        f"{number} (root mean square {sizes[number]:.3g})"
        for number in np.flatnonzero(sizes > LARGE_COVARIATE)
    )
    if not large:
        return []
    return [
        "covariates are not standardized, and these (numbered from 0 in alphabetical "
        f"order) are large: {large}; networks train well at unit scale, so standardize "
        "them in the file"
    ]


def _unlikely(
    original: data.Dataset, likelihood: Family, binarization: str
) -> list[str]:
    grey = original.num_levels != 2
    is_of_bits = isinstance(likelihood, vae_jax.Bernoulli)
    if is_of_bits and binarization == "none" and grey:
        return [
            "a Bernoulli likelihood on grey values is not a likelihood of the pixels; "
            "its figures are not comparable with others"
        ]
    # Whether a user-defined family is a density is unknown.
    is_known = type(likelihood).__module__.partition(".")[0] == vae_jax.__name__
    if is_known and not original.columns and not is_of_bits and binarization != "none":
        return ["a density of real numbers on pixels that are 0 or 1"]
    is_continuous = isinstance(likelihood, vae_jax.ContinuousBernoulli)
    if is_continuous and original.num_levels is not None:
        return [
            "a continuous Bernoulli on pixels that are exactly 0 or 1 is a density, of "
            "at most 256 each (5.55 nats), not a probability of grey levels; "
            "--likelihood=discretized_logistic gives one"
        ]
    return []


def describe(dataset: data.Dataset, config: "ModelFlags", binarization: str) -> str:
    """Describe the data (sizes, shape, values), the likelihood and the epochs."""
    shape = "x".join(map(str, dataset.data_shape))
    values = f"{binarization} binarization"
    if binarization == "none":
        levels = dataset.values == "levels"
        values = f"{dataset.num_levels} grey levels" if levels else dataset.values
    validation = dataset.validation
    chosen_by = "" if validation is None else f"{len(validation)} to choose by, "
    return (
        f"{config.dataset}: {len(dataset.train)} examples to train, {chosen_by}"
        f"{len(dataset.test)} to test, {shape}, {values}, {config.likelihood} "
        f"likelihood; {config.epochs} epoch{'s' * (config.epochs != 1)}"
    )


def num_classes(dataset: data.Dataset, *, conditional: bool) -> int:
    """Number of classes of a conditional model.

    Args:
      dataset: the data as loaded.
      conditional: whether the model is conditional on labels.

    Returns:
      The largest label plus one; 0 for a model without labels.

    Raises:
      ValueError: if there are no labels, or a label is negative.
    """
    if not conditional:
        return 0
    if dataset.train_labels is None or dataset.test_labels is None:
        of_table = ': name their column in --columns, as {"species": "label"}'
        raise ValueError(
            f"--conditional needs labels, and {dataset.name} has none"
            f"{of_table if dataset.columns else ''}"
        )
    labels = [dataset.train_labels, dataset.test_labels, dataset.validation_labels]
    labels = np.concatenate([one for one in labels if one is not None])
    if labels.min() < 0:
        raise ValueError(f"--conditional needs labels from 0 on, got {labels.min()}")
    return int(labels.max()) + 1


def is_file(dataset: str) -> bool:
    """Return whether `--dataset` names a file."""
    return dataset.endswith(ENDS)


_SPLITS = ("train", "test", "validation")


def digest(dataset: data.Dataset, name: str, *, labelled: bool) -> str:
    """Digest of the data as loaded, by which a run detects a changed file.

    Args:
      dataset: the data as loaded.
      name: `--dataset`.
      labelled: whether to include the labels.

    Returns:
      Hexadecimal digits.
    """
    found = hashlib.sha256()
    arrays = [dataset.train, dataset.test, dataset.validation]
    if labelled:
        arrays += [dataset.train_labels, dataset.test_labels, dataset.validation_labels]
    arrays += [getattr(dataset, f"{split}_covariates") for split in _SPLITS]
    if is_file(name):
        # A file may declare its levels; for other data sets the name determines them.
        found.update(f"{dataset.num_levels} levels".encode())
    if dataset.columns:
        found.update(repr(dataset.columns).encode())
    for array in (array for array in arrays if array is not None):
        for _, block in blocks(array):
            found.update(np.ascontiguousarray(block).tobytes())
    return found.hexdigest()
