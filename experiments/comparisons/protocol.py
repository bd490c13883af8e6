"""Folds, training, log p(x) of held-out rows and records, for all comparisons."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import vae_jax
from experiments.published import tables as published
from experiments.runner import flags
from experiments.runner.report import mean_of, measured
from vae_jax.importance_weights import HIGH_PARETO_K

FOLDER = Path(__file__).parent
LabelsOf = Callable[[jax.Array], Any]


@dataclasses.dataclass(frozen=True)
class Config:
    """Flags of every comparison."""

    folds: Annotated[int, flags.at_least(2), flags.at_most(20)] = 5
    """Number of parts of the rows, each of which is held out once."""
    epochs: flags.Count = 1000
    """Maximum number of passes over the training rows; the number is chosen on \
validation rows."""
    patience: flags.Count = 100
    """Epochs without a better validation ELBO after which training ends."""
    batch_size: flags.Count = 64
    """Rows per step."""
    learning_rate: flags.Positive = 1e-3
    """Learning rate of Adam for the networks."""
    likelihood_learning_rate: flags.Positive = 0.02
    """Learning rate of Adam for the likelihood's own parameters, such as \
variances and dispersions, which lag behind at that of the networks."""
    num_samples: flags.Several = 5000
    """Importance samples per held-out row."""
    seed: flags.Natural = 0
    """Seed of folds, weights and noise."""
    results_dir: str = str(FOLDER / "results")
    """Folder of the record."""


class Rows(NamedTuple):
    """Rows of a fold.

    Attributes:
      train: rows to fit candidates to, `[n, D]`.
      validation: rows to choose among candidates by, `[m, D]`: a fifth of those that
        are not held out.
      test: held-out rows, `[t, D]`.
      key: PRNG key of the fold.
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    key: jax.Array

    @property
    def known(self) -> np.ndarray:
        """All rows that are not held out, `[n + m, D]`."""
        return np.concatenate([self.train, self.validation])


def folds(x: np.ndarray, config: Config) -> list[Rows]:
    """Split rows into folds so that each row is held out once.

    Args:
      x: all rows, `[n, D]`.
      config: number of folds and seed.

    Returns:
      One `Rows` per fold.

    Raises:
      ValueError: if there are fewer than 5 rows per fold.

    Example:
      >>> import numpy as np
      >>> from experiments.comparisons.protocol import Config, folds
      >>> rows = folds(np.zeros((100, 3)), Config())[0]
      >>> len(rows.train), len(rows.validation), len(rows.test)
      (64, 16, 20)
    """
    count = config.folds
    if len(x) < 5 * count:
        raise ValueError(f"--folds {count} needs {5 * count} rows, got {len(x)}")
    order = np.random.default_rng(config.seed).permutation(len(x))
    parts = np.array_split(order, count)
    keys = jax.random.split(jax.random.key(config.seed), count)
    found = []
    for number, test in enumerate(parts):
        rest = np.concatenate([*parts[number + 1 :], *parts[:number]])
        validation, train = np.split(rest, [len(rest) // 5])
        found.append(Rows(x[train], x[validation], x[test], keys[number]))
    return found


class Held(NamedTuple):
    """Log p(x) of the held-out rows of a fold.

    Attributes:
      log_p: log p(x) of each held-out row, `[t]`, in nats.
      choice: what was chosen on validation rows.
      high_pareto_k: share of the rows whose importance weights are heavy-tailed, for
        which log_p is a lower bound; None for closed forms.
    """

    log_p: np.ndarray
    choice: str = ""
    high_pareto_k: float | None = None


def optimizer(config: Config) -> optax.GradientTransformation:
    """Adam with a separate learning rate for the likelihood's own parameters."""
    rates = {
        "network": config.learning_rate,
        "likelihood": config.likelihood_learning_rate,
    }

    def group(params: vae_jax.Params) -> vae_jax.Params:
        groups = jax.tree.map(lambda _: "network", params)
        return groups.replace(
            likelihood=jax.tree.map(lambda _: "likelihood", params.likelihood)
        )

    return optax.partition({k: optax.adam(v) for k, v in rates.items()}, group)


class Candidate(NamedTuple):
    """A model with the number of epochs that is best on validation rows.

    Attributes:
      spec: spec of the model.
      validation_elbo: ELBO of its best epoch, in nats per row.
      num_epochs: number of that epoch, counted from 1.
    """

    spec: vae_jax.ModelSpec
    validation_elbo: float
    num_epochs: int


def candidate(
    spec: vae_jax.ModelSpec,
    rows: Rows,
    key: jax.Array,
    config: Config,
    labels: LabelsOf | None = None,
) -> Candidate:
    """Train a model and find the epoch that is best on validation rows.

    Args:
      spec: spec of the model.
      rows: rows of a fold.
      key: PRNG key, consumed once.
      config: training flags.
      labels: function from rows to the labels of a conditional model.

    Returns:
      The model with its best epoch.
    """
    found = _fit(
        spec,
        rows.train,
        key,
        config,
        labels,
        num_epochs=config.epochs,
        validation=_with_labels(rows.validation, labels),
        patience=config.patience,
    )
    elbo = np.asarray(found.history["validation_elbo"])
    best = int(np.nanargmax(elbo))
    return Candidate(spec, float(elbo[best]), best + 1)


def refit_epochs(num_epochs: int, rows: Rows, config: Config) -> int:
    """Return how many epochs over all known rows take the steps of those over `train`.

    Args:
      num_epochs: number of epochs over `rows.train`.
      rows: rows of a fold.
      config: batch size.

    Returns:
      Number of epochs over `rows.known`, at least 1.
    """
    train, known = (
        math.ceil(len(part) / config.batch_size) for part in (rows.train, rows.known)
    )
    return max(1, round(num_epochs * train / known))


def trained(
    spec: vae_jax.ModelSpec,
    rows: Rows,
    key: jax.Array,
    config: Config,
    *,
    num_epochs: int,
    labels: LabelsOf | None = None,
) -> vae_jax.Params:
    """Train a model on all rows that are not held out.

    Args:
      spec: spec of the model.
      rows: rows of a fold.
      key: PRNG key, consumed once.
      config: training flags.
      num_epochs: number of epochs; see `refit_epochs`.
      labels: see `candidate`.

    Returns:
      Its parameters.
    """
    return _fit(spec, rows.known, key, config, labels, num_epochs=num_epochs).params


def _fit(
    spec: vae_jax.ModelSpec,
    rows: np.ndarray,
    key: jax.Array,
    config: Config,
    labels: LabelsOf | None,
    **options: Any,
) -> Any:
    init_key, fit_key = jax.random.split(key)
    data = _with_labels(rows, labels)
    x, given = (data, None) if labels is None else data
    params = jax.jit(partial(vae_jax.init, spec))(init_key, x=x, labels=given)
    return vae_jax.fit(
        params,
        data,
        fit_key,
        batch_size=config.batch_size,
        optimizer=optimizer(config),
        **options,
    )


def _with_labels(rows: np.ndarray, labels: LabelsOf | None) -> Any:
    """Return the rows as `fit` takes them, with the labels of a conditional model."""
    x = jnp.asarray(rows, jnp.float32)
    return x if labels is None else vae_jax.Labelled(x, labels(x))


_log_evidence = jax.jit(vae_jax.log_evidence, static_argnames="num_samples")
_fit_posterior = jax.jit(vae_jax.fit_posterior)


def held_out(
    params: vae_jax.Params,
    rows: Rows,
    key: jax.Array,
    config: Config,
    *,
    choice: str = "",
    labels: LabelsOf | None = None,
) -> Held:
    """Estimate log p(x) of held-out rows by importance samples from the best q of each.

    The encoder's q can be far off for rows unlike all others, and its samples then miss
    p(z|x). The best Gaussian q of a row, with twice its variance, is used instead.

    Args:
      params: parameters of a trained model.
      rows: rows of a fold.
      key: PRNG key, consumed once.
      config: number of importance samples.
      choice: what was chosen on validation rows.
      labels: see `candidate`.

    Returns:
      Log p(x) of each row, with the share of heavy-tailed weights.
    """
    fit_key, evidence_key = jax.random.split(key)
    x = jnp.asarray(rows.test, jnp.float32)
    given = None if labels is None else labels(x)
    best = _fit_posterior(params, x, fit_key, labels=given).posterior
    wide = dataclasses.replace(best, log_var=best.log_var + jnp.log(2.0))
    found = _log_evidence(
        params,
        x,
        evidence_key,
        num_samples=config.num_samples,
        labels=given,
        posterior=wide,
    )
    high = float(np.mean(np.asarray(found.pareto_k) > HIGH_PARETO_K))
    return Held(np.asarray(found.estimate, np.float64), choice, high)


def summary(held: Mapping[str, Sequence[Held]], reference: str) -> dict[str, Any]:
    """Summarise log p(x) of models over all held-out rows.

    Args:
      held: one `Held` per fold, by the name of the model.
      reference: the model that the others are compared with, row by row.

    Returns:
      For each model: the mean log p(x) with its standard error over rows, the mean
      difference of the reference less the model over paired rows, the means of the
      folds, and the choices.

    Raises:
      ValueError: if log p(x) of a row is not finite.
    """
    rows = {
        name: np.concatenate([fold.log_p for fold in each])
        for name, each in held.items()
    }
    for name, log_p in rows.items():
        if not np.isfinite(log_p).all():
            raise ValueError(f"log p(x) of {name} must be finite, got {log_p.min()}")
    found = {}
    for name, each in held.items():
        high = [fold.high_pareto_k for fold in each]
        sizes = [len(fold.log_p) for fold in each]
        found[name] = {
            "log_p": mean_of(rows[name]),
            "reference_less_this": mean_of(rows[reference] - rows[name]),
            "fold_means": [float(fold.log_p.mean()) for fold in each],
            "chosen": [fold.choice for fold in each],
            "high_pareto_k": None
            if None in high
            else float(np.average(np.array(high, float), weights=sizes)),
        }
    return found


def provenance(config: Config, command: str, *packages: str) -> dict[str, Any]:
    """Command, flags, versions and commit of a record, before anything is measured.

    Args:
      config: the configuration.
      command: the command with the flags that name the data.
      packages: further packages whose versions matter.

    Returns:
      Part of a record. The command has all other flags that are not at their default.
    """
    given = dataclasses.asdict(config)
    del given["results_dir"]
    # A flag without a default, and `tables`, name the data.
    changed = [
        f"--{field.name}={given[field.name]}"
        for field in dataclasses.fields(config)
        if field.name in given.keys() - {"tables"}
        and field.default not in (dataclasses.MISSING, given[field.name])
    ]
    versions = {name: metadata.version(name) for name in packages}
    return {
        "command": " ".join([command, *changed]),
        "config": given,
        "versions": published.versions() | versions,
        "commit": published.commit(),
    }


def shown(figure: Mapping[str, float], digits: int = 2) -> str:
    """Format a mean with its standard error, for a page."""
    return measured(*figure.values(), digits=digits, sign="±")


def evidence_rows(
    header: str, models: Mapping[str, Any], reference: str, digits: int = 2
) -> list[tuple[str, ...]]:
    """Rows of a table of log p(x), with the paired difference to a reference.

    Args:
      header: header of the first column.
      models: result of `summary`.
      reference: the model that the others are compared with.
      digits: number of decimals.

    Returns:
      The header and one row per model.
    """
    rows = [(header, "log p(x)", f"{reference} less it")]
    for name, found in models.items():
        less = shown(found["reference_less_this"], digits)
        less = "" if name == reference else less
        rows.append((name, shown(found["log_p"], digits), less))
    return rows
