"""Final evaluation of a run: test figures of the last and the best model, pictures."""

from typing import TYPE_CHECKING, Any

import vae_jax
from experiments import choices, datasets, evaluation
from experiments.runner import checkpoints, devices
from experiments.runner.training import Run
from vae_jax import TrainState, data

if TYPE_CHECKING:
    from experiments.mnist import Config


def read_best(training: Run, state: TrainState) -> vae_jax.Params | None:
    """Restore the best model on validation data, in all processes together.

    Args:
      training: the run.
      state: the state at its end.

    Returns:
      The parameters; None if no best epoch was selected, if the best is the last, or if
      the checkpoint cannot be read.
    """
    best = training.best
    if best is None or best["step"] == int(state.step):
        return None
    # The spec of this run, whose classes may be user-defined.
    spec = state.evaluation_params.spec
    return checkpoints.restore_best(training.folder, best["step"], spec)


def evaluate(
    config: "Config",
    training: Run,
    state: TrainState,
    best: vae_jax.Params | None,
    dataset: data.Dataset,
    remedies: str,
) -> dict[str, Any]:
    """Evaluate the trained model and draw its pictures, unless already done.

    Args:
      config: the resolved configuration.
      training: the run.
      state: the state at its end.
      best: the parameters returned by `read_best`.
      dataset: the binarized data set.
      remedies: flags to change if the posterior collapsed.

    Returns:
      The content of results.json.
    """
    samples = config.evaluation_samples
    found = training.finished(state, importance_weighted_num_samples=samples)
    if found is not None:
        print(f"complete: checkpoint {found['step']} verified, nothing left to train")
        print(evaluation.table(found, training.folder, remedies=remedies))
        return found
    # Imported here because it takes a second, which would delay the first step.
    from experiments import figures

    params = devices.on_one(state.evaluation_params)
    test = datasets.split(dataset, "test")
    units = evaluation.active_units(params, test.x, test.labels)
    figures.draw_all(
        training.folder / "figures",
        params,
        dataset_name=config.dataset,
        data_shape=params.spec.data_shape,
        x=test.x,
        labels=test.labels,
        unit_variances=units.variance,
        metrics=training.rows,
        key=evaluation.evaluation_keys().figures,
    )
    last = _test_figures(params, test, samples, units)
    of_best = None if best is None else _test_figures(best, test, samples)
    if training.best and training.best["step"] == int(state.step):
        of_best = last
    chosen = _best(training.best, of_best)
    if dataset.validation is not None:
        chosen["validation_elbo"] = training.rows[-1]["elbo"]
    results = training.write_results(
        state, {**choices.trained_on(config), **last, **chosen}
    )
    print(evaluation.table(results, training.folder, remedies=remedies))
    return results


def _test_figures(
    params: vae_jax.Params,
    test: datasets.Split,
    num_samples: int,
    units: vae_jax.ActiveUnits | None = None,
) -> dict[str, Any]:
    if units is None:
        units = evaluation.active_units(params, test.x, test.labels)
    elbo = evaluation.elbo_figures(params, test.x, test.labels)
    return {
        **{f"test_{name}": value for name, value in elbo.items()},
        **evaluation.counts_of(units, test.x),
        **evaluation.importance_weighted_figures(
            params, test.x, test.labels, num_samples=num_samples
        ),
    }


def _best(
    best: dict[str, Any] | None, figures: dict[str, Any] | None
) -> dict[str, Any]:
    """Return the entries `best_*` of results.json; empty if no best epoch is known."""
    if best is None or figures is None:
        return {}
    # The same for the last model.
    common = ("importance_weighted_num_samples", "num_units")
    own = {name: value for name, value in figures.items() if name not in common}
    return {f"best_{name}": value for name, value in (best | own).items()}
