"""Train many models at once, all settings and seeds in one compiled program.

    python -m experiments.sweep --beta 0.1 0.3 1 3 10 --num_seeds 8

trains 40 variational autoencoders, one for each combination of values and seed. Each
equals its own run of experiments.mnist up to rounding. The command prints a table of
the settings, sorted by validation ELBO if there are validation data, and draws the
rate-distortion curve, with means and standard errors over seeds. Run the same command
on the same folder to resume; `vae_jax.load_run(folder, model=3)` loads one of the
models.
"""

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

import vae_jax
from experiments import choices, datasets, mnist, sweep_report
from experiments.defaults import resolve, with_former_likelihood
from experiments.evaluation import (
    elbo_figures,
    has_density,
    importance_weighted_figures,
    unit_figures,
    warn_of_collapse,
)
from experiments.runner import devices, flags, memory
from experiments.runner.checkpoints import finite_models
from experiments.runner.command_line import execute, parse, say
from experiments.runner.training import open_run
from experiments.sweep_chunks import place
from vae_jax import data
from vae_jax.training import TrainState


@dataclass(frozen=True)
class Config(mnist.ModelFlags):
    """Train a model for every combination of settings and seed, all at once.

    The flags are those of experiments.mnist; those that are tuples take several values.
    """

    beta: tuple[float, ...] = ()
    """Weights of the KL term in training, by default 0.1 0.3 1 3 10, or 1 if the \
objective has no KL term (a bound, a point mass); evaluation always uses 1."""
    learning_rate: tuple[float, ...] = ()
    """Peak learning rates of the schedule; by default that of experiments.mnist."""
    beta_warmup_epochs: tuple[float, ...] = ()
    """Epochs over which beta rises linearly from 0; by default 400 steps, or half of \
a shorter run."""
    free_bits: tuple[float, ...] = (0.0,)
    """KL in nats of each latent unit that is not penalized in training."""
    capacity: tuple[float, ...] = ()
    """Target values of the KL in nats; none by default."""
    variance: tuple[float, ...] = (1.0,)
    """Variances under --likelihood=gaussian, of a pixel or of a standardized column \
of a table."""
    elbo_share: tuple[float, ...] = (0.5,)
    """Shares of the ELBO in --objective=ciwae."""
    tc_weight: tuple[float, ...] = (6.0,)
    """Weights of the total correlation in --objective=beta_tc."""
    mmd_weight: tuple[float, ...] = (100.0,)
    """Weights of the squared MMD in --objective=mmd."""
    num_seeds: flags.Count = 1
    """Number of seeds per setting, counted up from --seed; a seed determines weights, \
noise and order of the data."""
    num_devices: flags.Count = 1
    """Number of devices that share the models."""
    evaluation_samples: flags.Natural = 0
    """Importance samples per image for log p(x) at the end; 0 leaves it out."""
    models_at_once: flags.Count | None = None
    """Number of models in one program; by default as many as fit in memory."""


SWEPT = (*choices.SETTINGS, "variance")
BETAS = (0.1, 0.3, 1.0, 3.0, 10.0)


def with_betas(config: Config) -> Config:
    """Return the configuration with the default of `--beta` filled in."""
    if config.beta:
        return config
    return dataclasses.replace(
        config, beta=BETAS if flags.holds(choices.HAS_BETA, config) else (1.0,)
    )


def grid(config: Config) -> list[mnist.Config]:
    """Return the equivalent configuration of experiments.mnist for each model.

    Args:
      config: the configuration of the sweep.

    Returns:
      One configuration for each combination of values and seed, in the order of the
      models; seeds vary fastest.

    Raises:
      ValueError: if a flag has no values, or the same value twice.
    """
    values: dict[str, Any] = {name: getattr(config, name) for name in SWEPT}
    for name in ("capacity", "beta_warmup_epochs", "learning_rate"):
        values[name] = values[name] or (None,)
    for name, given in values.items():
        if not given:
            raise ValueError(f"--{name} must have one value or more, got none")
        if len(set(given)) < len(given):
            raise ValueError(f"--{name} must name each value once, got {given}")
    common: dict[str, Any] = {
        field.name: getattr(config, field.name)
        for field in fields(mnist.Config)
        if field.name not in (*SWEPT, "seed", "num_devices", "early_stopping")
    }
    seeds = range(config.seed, config.seed + config.num_seeds)
    return [
        mnist.Config(**common, **dict(zip(values, chosen, strict=True)), seed=seed)
        for chosen in itertools.product(*values.values())
        for seed in seeds
    ]


def check(config: Config) -> None:
    """Raise ValueError for flags that a sweep does not accept.

    Called before anything is written.

    Args:
      config: the configuration.

    Raises:
      ValueError: names the flag, its value and what was expected.
    """
    flags.check(config)
    devices.require(config.num_devices, jax.local_device_count())
    for name in ("coordinator_address", "num_processes", "process_id"):
        if getattr(config, name) is not None:
            raise ValueError(
                f"a sweep runs in one process: --{name} is for experiments.mnist only, "
                f"got {getattr(config, name)}"
            )
    if config.data_on == "host":
        raise ValueError(
            "the models of a sweep share data on the device: --data_on=host is of "
            "experiments.mnist"
        )
    if config.binarization == "fixed" and config.num_seeds > 1:
        raise ValueError(
            "--binarization=fixed draws a different data set for each seed, but the "
            "models of a sweep share one: --num_seeds must be 1"
        )
    mnist.check(*grid(config))


# Terms that are compiled in if any model has them; they have no effect in the others.
RISING = ("beta_warmup_epochs", "free_bits")


def in_turn(
    figures: Callable[[vae_jax.Params], dict[str, Any]], state: TrainState
) -> dict[str, list]:
    """Compute the figures of every model in turn, on one device.

    Args:
      figures: `f(params)`, the figures of one model.
      state: the state of all models.

    Returns:
      For each figure, a list with one value per model.
    """
    params = jax.device_put(state.evaluation_params, jax.local_devices()[0])
    # Compiled: one operation per array would take longer than a small test set.
    select = jax.jit(vae_jax.select)
    found = [
        figures(select(params, jnp.int32(index)))
        for index in range(vae_jax.num_models(params))
    ]
    return {name: [one[name] for one in found] for name in found[0]}


def run(config: Config) -> dict[str, Any]:
    """Train all models, evaluate them and draw figures, resuming if possible.

    Args:
      config: the configuration.

    Returns:
      The content of results.json.

    Raises:
      ValueError: if the input is invalid.
      CommandFailed: if no model is finite any more.
      Interrupted: if a signal was received; the state has been saved.
    """
    started = time.perf_counter()
    config = with_betas(config)
    check(config)
    devices.keep_compiled(config.compilation_cache)

    # The data are the same for all models.
    original = datasets.load(dataclasses.replace(config, data_on="device"))
    config, notes = with_former_likelihood(config, original, "sweep", resolved)
    models = [resolve(single, original) for single in grid(config)]
    config, first = resolved(config, original), models[0]
    num_classes = datasets.num_classes(original, conditional=config.conditional)
    spec = choices.model_spec(first, original, num_classes=num_classes)
    warnings = datasets.warnings(original, spec.likelihood, config.binarization)
    say(*original.notes, *notes, *warnings)
    dataset = datasets.binarized(original, config.binarization, seed=first.seed)
    datasets.require_in(spec.likelihood.support, dataset, config.binarization)
    examples = datasets.examples(dataset, labelled=config.conditional)
    test, watched = datasets.split(dataset, "test"), datasets.watched(dataset)
    evaluated = watched.x, watched.labels
    orders = [mnist.data_order(model, len(dataset.train)) for model in models]
    batch_sizes = jax.eval_shape(orders[0], 0).batch_sizes

    def order(epoch: int) -> vae_jax.Epoch:
        return jax.tree.map(
            lambda *leaves: jnp.stack(leaves), *(f(epoch) for f in orders)
        )

    # One step with the terms that any model has, and settings for each model.
    most = {name: max(getattr(model, name) or 0 for model in models) for name in RISING}
    structure = dataclasses.replace(first, **most)
    step = partial(mnist.training_step, config=structure, dataset=dataset)
    settings = jax.tree.map(
        lambda *values: jnp.array(values, jnp.float32), *map(choices.settings, models)
    )
    count = len(models)
    state_of = partial(mnist.initial_state, first, spec, dataset)
    sizes = {"num_examples": len(dataset.train), "num_models": count}
    memory.require(state_of, first, **sizes)
    state = vae_jax.stack_states(
        [mnist.initial_state(model, spec, dataset) for model in models]
    )
    empty = vae_jax.empty_sweep_history(step, state, order(0), examples, settings)
    remedies = choices.collapse_remedies(structure)

    headline = datasets.describe(dataset, config, config.binarization)
    digest = datasets.digest(original, config.dataset, labelled=config.conditional)
    with open_run(
        "sweep", config, digest, spec, batch_sizes, started, num_models=count
    ) as training:
        print(f"{headline}; {training.folder}", flush=True)
        chunks, train = place(
            step,
            state,
            order(0),
            examples,
            empty,
            settings,
            at_once=config.models_at_once,
            num_devices=config.num_devices,
        )
        print(f"{count} models, {chunks.reason}", flush=True)
        state, history = training.restore(state, empty)
        for epoch in training.epochs(state):
            taken = order(epoch)
            for stop in training.pieces(state):
                state, history = train(state, taken, history, stop)
                training.check(state, history)
            figures = in_turn(lambda params: elbo_figures(params, *evaluated), state)
            training.log(state, history, figures, watched.name)
            if training.is_time_to_judge(state):
                units = in_turn(lambda params: unit_figures(params, *evaluated), state)
                finite = finite_models(state.params, count)
                warn_of_collapse(
                    units["active_units"], remedies, finite=finite.tolist()
                )
            history = empty
            training.save(state, history)
        results = _results(config, models, state, training.rows, test, watched)
        results["models_at_once"] = chunks.indices.shape[1]
        results = training.write_results(state, results)
        sweep_report.draw_all(training.folder / "figures", results, training.rows)
        print(sweep_report.table(results, training.folder, remedies=remedies))
        return results


def resolved(config: Config, dataset: data.Dataset) -> Config:
    """Resolve defaults, which are the same for all models.

    Args:
      config: the configuration as given.
      dataset: the data as loaded.

    Returns:
      The configuration with defaults replaced by values.
    """
    first = resolve(grid(config)[0], dataset)
    names = ("dataset", "epochs", "schedule_epochs", "warmup_steps", "prior")
    names += ("likelihood", "binarization", "columns", "checkpoint_every")
    common = {name: getattr(first, name) for name in names}
    for name in ("beta_warmup_epochs", "learning_rate"):
        common[name] = getattr(config, name) or (getattr(first, name),)
    return dataclasses.replace(config, **common)


def _results(
    config: Config,
    models: Sequence[mnist.Config],
    state: TrainState,
    metrics: Sequence[dict],
    test: datasets.Split,
    watched: datasets.Split,
) -> dict[str, Any]:
    """Return the figures of every model, and of every setting over its seeds."""

    def figures(params: vae_jax.Params) -> dict[str, Any]:
        found = elbo_figures(params, test.x, test.labels)
        evidence = importance_weighted_figures(
            params, test.x, test.labels, num_samples=config.evaluation_samples
        )
        chosen_by = None
        if watched.name == "validation" and has_density(
            params, watched.x, watched.labels
        ):
            chosen_by = elbo_figures(params, watched.x, watched.labels)["elbo"]
        return {
            "validation_elbo": chosen_by,
            "test_elbo": found["elbo"],
            "rate": found["kl_divergence"],
            "distortion": -found["log_likelihood"],
            "active_units": unit_figures(params, test.x, test.labels)["active_units"],
            "log_evidence": evidence["importance_weighted_log_likelihood"],
        }

    found = in_turn(figures, state)
    finite = finite_models(state.params, len(models))
    rows = [
        {name: getattr(model, name) for name in (*swept(config), "seed")}
        | {"finite": bool(finite[index] and math.isfinite(found["test_elbo"][index]))}
        | {name: values[index] for name, values in found.items()}
        for index, model in enumerate(models)
    ]
    return {
        "dataset": config.dataset,
        "likelihood": config.likelihood,
        "binarization": config.binarization,
        "swept": swept(config),
        "models": rows,
        "best_model": sweep_report.best_model(rows),
        "not_finite": sweep_report.not_finite(rows, metrics),
        "collapsed": sweep_report.collapsed(rows),
        "settings": sweep_report.over_seeds(rows, swept(config)),
    }


def swept(config: Config) -> list[str]:
    """Names of the flags that have several values; beta if none has."""
    names = [name for name in SWEPT if len(getattr(config, name)) > 1]
    return names or ["beta"]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with these arguments or those of the process."""
    execute(run, parse(Config, argv, command="python -m experiments.sweep"))


if __name__ == "__main__":
    main()
