"""What the comparisons share: folds, training, log p(x) of held-out rows, records."""

import dataclasses
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
from experiments.runner import flags, run_folder
from experiments.runner.report import mean_of, measured
from vae_jax.importance_weights import HIGH_PARETO_K
from vae_jax.types import Labels

FOLDER = Path(__file__).parent
LabelsOf = Callable[[jax.Array], Any]


@dataclasses.dataclass(frozen=True)
class Config:
    """Flags of every comparison."""

    folds: Annotated[int, flags.at_least(2), flags.at_most(20)] = 5
    """Parts of the rows, each of which is held out once."""
    epochs: flags.Count = 1000
    """Passes over the training rows, at most; their number is chosen on validation \
rows."""
    patience: flags.Count = 100
    """Epochs without a better validation ELBO after which training ends."""
    batch_size: flags.Count = 64
    """Rows of a step."""
    learning_rate: flags.Positive = 1e-3
    """Of Adam, for the networks."""
    likelihood_learning_rate: flags.Positive = 0.02
    """For the likelihood's own parameters (variances, dispersions), which are numbers \
and not weights: at the networks' rate they lag behind."""
    num_samples: flags.Several = 5000
    """Importance samples of a held-out row."""
    seed: flags.Natural = 0
    """Seed of folds, weights and noise."""
    results_dir: str = str(FOLDER / "results")
    """Where the record goes."""


class Split(NamedTuple):
    """Numbers of the rows of a fold.

    Attributes:
      train: to fit candidates.
      validation: to choose among them: epochs, latents, components. A fifth of what is
        not held out; the chosen one is fitted again to both.
      test: held out.
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def splits(num_rows: int, folds: int, seed: int) -> list[Split]:
    """Splits of which each row is held out by one.

    Args:
      num_rows: n.
      folds: how many.
      seed: of the order of the rows.

    Returns:
      `folds` of them.

    Raises:
      ValueError: fewer than 5 rows a fold.

    Example:
      >>> from experiments.comparisons.protocol import splits
      >>> [len(part) for part in splits(100, 5, seed=0)[0]]
      [64, 16, 20]
    """
    if num_rows < 5 * folds:
        raise ValueError(f"--folds {folds} needs {5 * folds} rows, got {num_rows}")
    parts = np.array_split(np.random.default_rng(seed).permutation(num_rows), folds)
    found = []
    for number, test in enumerate(parts):
        rest = np.concatenate([*parts[number + 1 :], *parts[:number]])
        found.append(Split(rest[len(rest) // 5 :], rest[: len(rest) // 5], test))
    return found


class Rows(NamedTuple):
    """Rows of a fold.

    Attributes:
      train: `[n, D]`.
      validation: `[m, D]`.
      test: held out, `[t, D]`.
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray

    @classmethod
    def of(cls, x: np.ndarray, split: Split) -> "Rows":
        """The rows of a table that a split names."""
        return cls(*(x[part] for part in split))

    @property
    def known(self) -> np.ndarray:
        """All rows that are not held out."""
        return np.concatenate([self.train, self.validation])


class Held(NamedTuple):
    """A model's figures of one fold.

    Attributes:
      log_p: of each held-out row, `[t]`, in nats.
      choice: what was chosen on validation rows.
      high_pareto_k: share of the rows whose importance weights are heavy-tailed, so
        that log_p is a lower bound; None for closed forms.
    """

    log_p: np.ndarray
    choice: str = ""
    high_pareto_k: float | None = None


def optimizer(config: Config) -> optax.GradientTransformation:
    """Adam, with a rate of its own for the likelihood's own parameters."""
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
    """A model that may be chosen.

    Attributes:
      spec: of the model.
      validation_elbo: of its best epoch, in nats a row.
      num_epochs: the number of that epoch.
      name: what it is.
    """

    spec: vae_jax.ModelSpec
    validation_elbo: float
    num_epochs: int
    name: str


def candidate(
    spec: vae_jax.ModelSpec,
    rows: Rows,
    key: jax.Array,
    config: Config,
    *,
    name: str,
    labels: LabelsOf | None = None,
) -> Candidate:
    """Train a model, and find the epoch that is best on validation rows.

    Args:
      spec: of the model.
      rows: of a fold.
      key: PRNG key, consumed once.
      config: epochs, patience and batch size.
      name: for the record.
      labels: of rows of a conditional model.

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
        validation=_beside(rows.validation, labels),
        patience=config.patience,
    )
    elbo = np.asarray(found.history["validation_elbo"])
    best = int(np.nanargmax(elbo))
    return Candidate(spec, float(elbo[best]), best + 1, name)


def refitted(
    chosen: Candidate,
    rows: Rows,
    key: jax.Array,
    config: Config,
    labels: LabelsOf | None = None,
) -> vae_jax.Params:
    """The chosen model, trained anew for its number of steps on all rows not held out.

    Args:
      chosen: by its validation ELBO.
      rows: of a fold.
      key: PRNG key, consumed once.
      config: batch size and rates.
      labels: as in `candidate`.

    Returns:
      Its parameters.
    """
    steps, more = (
        -(-len(part) // config.batch_size) for part in (rows.train, rows.known)
    )
    num_epochs = max(1, round(chosen.num_epochs * steps / more))
    return _fit(
        chosen.spec, rows.known, key, config, labels, num_epochs=num_epochs
    ).params


def _fit(
    spec: vae_jax.ModelSpec,
    rows: np.ndarray,
    key: jax.Array,
    config: Config,
    labels: LabelsOf | None,
    **options: Any,
) -> Any:
    init_key, fit_key = jax.random.split(key)
    data = _beside(rows, labels)
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


def _beside(rows: np.ndarray, labels: LabelsOf | None) -> Any:
    """Rows for `fit`, with what a conditional model is given."""
    x = jnp.asarray(rows, jnp.float32)
    return x if labels is None else vae_jax.Labelled(x, labels(x))


_log_evidence = jax.jit(vae_jax.log_evidence, static_argnames="num_samples")
_fit_posterior = jax.jit(vae_jax.fit_posterior)


def held_out(
    params: vae_jax.Params,
    x: Any,
    key: jax.Array,
    *,
    num_samples: int,
    choice: str = "",
    labels: Labels = None,
) -> Held:
    """Importance-sampled log p(x) of held-out rows, from the best q of each.

    Of rows unlike all others the encoder's q is so far off that its samples say nothing
    about the model. The best Gaussian q of each row, of twice its variance, is.

    Args:
      params: of a trained model.
      x: `[t, D]`.
      key: PRNG key, consumed once.
      num_samples: importance samples of a row.
      choice: what was chosen on validation rows.
      labels: of a conditional model.

    Returns:
      Its figures.
    """
    x, keys = jnp.asarray(x, jnp.float32), jax.random.split(key)
    best = _fit_posterior(params, x, keys[0], labels=labels).posterior
    wide = dataclasses.replace(best, log_var=best.log_var + jnp.log(2.0))
    found = _log_evidence(
        params, x, keys[1], num_samples=num_samples, labels=labels, posterior=wide
    )
    high = float(np.mean(np.asarray(found.pareto_k) > HIGH_PARETO_K))
    return Held(np.asarray(found.estimate, np.float64), choice, high)


def summary(held: Mapping[str, Sequence[Held]], reference: str) -> dict[str, Any]:
    """Figures of models over all held-out rows.

    Args:
      held: by the name of the model, one for each fold.
      reference: the model that the others are compared with, row by row.

    Returns:
      For each model the mean log p(x) and its standard error over rows, that of the
      reference less its own (of paired rows), the means of the folds, and what was
      chosen in each.

    Raises:
      ValueError: log p(x) that is not finite.
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


def versions(*names: str) -> dict[str, str]:
    """Versions of what the figures depend on, and of further packages."""
    return published.versions() | {name: metadata.version(name) for name in names}


def save(config: Config, name: str, record: dict[str, Any]) -> None:
    """Write a record, with the flags and the commit that it is of."""
    folder = Path(config.results_dir)
    folder.mkdir(parents=True, exist_ok=True)
    given = dataclasses.asdict(config)
    del given["results_dir"]
    whole = {**record, "config": given, "commit": published.commit()}
    run_folder.write_json(folder / f"{name}.json", whole)


def shown(figure: Mapping[str, float], digits: int = 2) -> str:
    """A mean with its standard error, for a page."""
    return measured(figure["mean"], figure["standard_error"], digits=digits, sign="±")
