"""The end of a run: the test set, once, for the last and the best model; pictures."""

from typing import TYPE_CHECKING, Any

import vae_jax
from experiments import choices, datasets, evaluation
from experiments.runner import checkpoints, devices
from experiments.runner.training import Run
from vae_jax import TrainState, data

if TYPE_CHECKING:
    from experiments.mnist import Config


def read_best(training: Run, state: TrainState) -> vae_jax.Params | None:
    """The best model on validation data, which all processes read together.

    Args:
      training: the run.
      state: at its end.

    Returns:
      Its parameters; None where no epoch is the best, the last one is, or the
      checkpoint cannot be read.
    """
    best = training.best
    if best is None or best["step"] == int(state.step):
        return None
    # The spec of this run, whose classes may be the user's own.
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
    """Evaluate and draw the trained model, unless this was done before.

    Args:
      config: resolved.
      training: the run.
      state: at its end.
      best: what `read_best` found.
      dataset: binarized.
      remedies: what to change if the posterior collapsed.

    Returns:
      The figures of results.json.
    """
    samples = config.evaluation_samples
    found = training.finished(state, importance_weighted_num_samples=samples)
    if found is not None:
        print(f"complete: checkpoint {found['step']} verified, nothing left to train")
        print(evaluation.table(found, training.folder, remedies=remedies))
        return found
    # Takes a second to import; the first step does not wait for it.
    from experiments import figures

    params = devices.on_one(state.evaluation_params)
    test = datasets.split(dataset, "test")
    figures.draw_all(
        training.folder / "figures",
        params,
        dataset_name=config.dataset,
        data_shape=params.spec.data_shape,
        x=test.x,
        labels=test.labels,
        metrics=training.rows,
        key=evaluation.evaluation_keys().figures,
    )
    last = _test_figures(params, test, samples)
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
    params: vae_jax.Params, test: datasets.Split, num_samples: int
) -> dict[str, Any]:
    elbo = evaluation.elbo_figures(params, test.x, test.labels)
    return {
        **{f"test_{name}": value for name, value in elbo.items()},
        **evaluation.unit_figures(params, test.x, test.labels),
        **evaluation.importance_weighted_figures(
            params, test.x, test.labels, num_samples=num_samples
        ),
    }


def _best(
    best: dict[str, Any] | None, figures: dict[str, Any] | None
) -> dict[str, Any]:
    """Figures of the epoch that is best on validation data, where there are any."""
    if best is None or figures is None:
        return {}
    # As many samples and units as the last one has.
    common = ("importance_weighted_num_samples", "num_units")
    own = {name: value for name, value in figures.items() if name not in common}
    return {f"best_{name}": value for name, value in (best | own).items()}
