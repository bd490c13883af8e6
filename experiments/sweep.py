"""Train many models at once: settings and seeds, in one compiled program.

    python -m experiments.sweep --beta 0.1 0.3 1 3 10 --num_seeds 8

trains 40 variational autoencoders, the product of all values given and all seeds, each
equal to its own run of experiments.mnist up to rounding. It ends in the table of the
best settings and the rate-distortion curve, means and standard errors over seeds. The
same command on the same folder goes on where it stopped;
`vae_jax.load_run(folder, model=3)` is one of the models.
"""

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import vae_jax
from experiments import choices, mnist, run_folder, sweep_report, training_setup
from experiments.command_line import execute, parse, say
from experiments.evaluation_report import (
    elbo_figures,
    importance_weighted_figures,
    unit_figures,
)
from experiments.ignored_flags import refuse_ignored
from experiments.sweep_chunks import Chunks, compile_chunks, in_chunks
from experiments.training_loop import Run, Trained, finite_models, train
from vae_jax import data
from vae_jax.training import TrainState


@dataclass(frozen=True)
class Config(mnist.Config):
    """Train a model for every combination of settings and every seed, all at once.

    The flags are those of experiments.mnist; these take several values.
    """

    beta: tuple[float, ...] = ()
    """Weights of the KL term in training, by default 0.1 0.3 1 3 10, or 1 where there \
is none (a bound, a point mass); evaluation is always at 1."""
    learning_rate: tuple[float, ...] = (1e-3,)
    """Of Adam."""
    beta_warmup_epochs: tuple[float, ...] = ()
    """Epochs over which beta rises linearly from 0; by default 400 steps, or half of \
a shorter run."""
    free_bits: tuple[float, ...] = (0.0,)
    """KL in nats that is not charged for in training, of each latent unit."""
    capacity: tuple[float, ...] = ()
    """Targets of the KL in nats; none by default."""
    variance: tuple[float, ...] = (1.0,)
    """Variances of a pixel of --likelihood=gaussian."""
    elbo_share: tuple[float, ...] = (0.5,)
    """Shares of the ELBO in --objective=ciwae."""
    tc_weight: tuple[float, ...] = (6.0,)
    """Weights of the total correlation in --objective=beta_tc."""
    mmd_weight: tuple[float, ...] = (100.0,)
    """Weights of the squared MMD in --objective=mmd."""
    num_seeds: int = 1
    """Seeds of each setting, from --seed on: weights, noise and order of the data."""
    num_devices: int = 1
    """Devices to share the models."""
    evaluation_samples: int = 0
    """Importance samples an image for log p(x) at the end; 0 leaves it out."""
    models_at_once: int | None = None
    """Models in one program; by default all for which there is memory."""


SWEPT = (*choices.SETTINGS, "variance")
BETAS = (0.1, 0.3, 1.0, 3.0, 10.0)


def with_betas(config: Config) -> Config:
    """The configuration with what `--beta` is by default."""
    if config.beta:
        return config
    return dataclasses.replace(
        config, beta=BETAS if choices.has_beta(config) else (1.0,)
    )


def grid(config: Config) -> list[mnist.Config]:
    """The run of experiments.mnist that each model is, in the order of the models.

    Args:
      config: the configuration of the sweep.

    Returns:
      One configuration for each combination of values, seeds changing fastest.

    Raises:
      ValueError: a flag without values.
    """
    values = {name: getattr(config, name) for name in SWEPT}
    for name in ("capacity", "beta_warmup_epochs"):
        values[name] = values[name] or (None,)
    for name, given in values.items():
        if not given:
            raise ValueError(f"--{name} must have one value or more, got none")
        if len(set(given)) < len(given):
            raise ValueError(f"--{name} must name each value once, got {given}")
    common = {
        field.name: getattr(config, field.name)
        for field in fields(mnist.Config)
        if field.name not in SWEPT
    } | {"num_devices": 1}
    seeds = range(config.seed, config.seed + config.num_seeds)
    return [
        mnist.Config(**common | dict(zip(values, chosen, strict=True)) | {"seed": seed})
        for chosen in itertools.product(*values.values())
        for seed in seeds
    ]


def check(config: Config) -> None:
    """Refuses values that no sweep can have, before anything is written.

    Args:
      config: the configuration.

    Raises:
      ValueError: names the flag, its value and what was expected.
    """
    for name in ("num_seeds", "num_devices", "models_at_once"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} must be at least 1, got {value}")
    if config.num_devices > jax.local_device_count():
        raise ValueError(
            f"--num_devices is {config.num_devices}, but there are "
            f"{jax.local_device_count()} ({jax.devices()[0].platform})"
        )
    for name in ("coordinator_address", "num_processes", "process_id"):
        if getattr(config, name) is not None:
            raise ValueError(
                f"a sweep is one process: --{name} is of experiments.mnist, got "
                f"{getattr(config, name)}"
            )
    if config.binarization == "fixed" and config.num_seeds > 1:
        raise ValueError(
            "--binarization=fixed draws another data set for each seed, and the models "
            "of a sweep share theirs: --num_seeds must be 1"
        )
    singles = grid(config)
    for single in singles:
        mnist.check_values(single)
    refuse_ignored(singles)


# Terms that are in the program where one model has them, and say nothing in others.
RISING = ("beta_warmup_epochs", "free_bits")


def sweep_run(
    config: Config,
    models: Sequence[mnist.Config],
    spec: vae_jax.ModelSpec,
    dataset: data.Dataset,
    folder: Path,
) -> tuple[Run, TrainState, Chunks]:
    """What the loop needs: the compiled functions and the state before step 0.

    Args:
      config: the configuration of the sweep.
      models: one for each model, resolved.
      spec: of all models.
      dataset: binarized as the configuration says.
      folder: the sweep's folder.

    Returns:
      The run, its initial state, and how the models are shared out.
    """
    structure = dataclasses.replace(
        models[0],
        **{name: max(getattr(model, name) or 0 for model in models) for name in RISING},
    )
    orders = [training_setup.data_order(model, len(dataset.train)) for model in models]
    batch_sizes = jax.eval_shape(orders[0], 0).batch_sizes
    settings = jax.tree.map(
        lambda *values: jnp.array(values, jnp.float32),
        *map(choices.settings, models),
    )

    def step(state, batch, setting):
        return training_setup.training_step(
            state,
            batch,
            config=structure,
            dataset=dataset,
            steps_per_epoch=len(batch_sizes),
            settings=setting,
        )

    def epoch(number: int) -> vae_jax.Epoch:
        return jax.tree.map(
            lambda *leaves: jnp.stack(leaves), *(order(number) for order in orders)
        )

    state = vae_jax.stack_states(
        [training_setup.initial_state(model, spec, dataset) for model in models]
    )
    examples = training_setup.training_data(spec, dataset)
    history = vae_jax.empty_sweep_history(step, state, epoch(0), examples, settings)
    devices = jax.local_devices()[: config.num_devices]
    train_chunks, compiled = in_chunks(
        vae_jax.jit_sweep(step, devices=devices), examples, settings
    )
    chunks, program = compile_chunks(
        lambda indices: compiled(indices, state, epoch(0), history),
        config,
        len(models),
        state_bytes=sum(leaf.nbytes for leaf in jax.tree.leaves(state)),
    )
    test_data = data.to_unit_interval(jnp.asarray(dataset.test), dataset.num_levels)
    run = Run(
        folder=folder,
        spec=spec,
        num_epochs=structure.epochs,
        batch_sizes=batch_sizes,
        checkpoint_every=structure.checkpoint_every,
        epoch=epoch,
        train=partial(train_chunks, program, chunks),
        empty_history=lambda: jax.tree.map(jnp.copy, history),
        evaluate=lambda state: in_turn(
            lambda params: elbo_figures(params, test_data, dataset.test_labels), state
        ),
        active_units=lambda state: in_turn(
            lambda params: unit_figures(params, test_data, dataset.test_labels), state
        )["active_units"],
        remedies=choices.collapse_remedies(structure),
        num_models=len(models),
    )
    return run, state, chunks


def in_turn(
    figures: Callable[[vae_jax.Params], dict[str, Any]], state: TrainState
) -> dict[str, list]:
    """Figures of every model, one after the other, on one device.

    Args:
      figures: of one model's parameters.
      state: of many.

    Returns:
      A list for each figure.
    """
    params = jax.device_put(state.evaluation_params, jax.local_devices()[0])
    # A program: an operation an array would take longer than a small test set.
    select = jax.jit(vae_jax.select)
    found = [
        figures(select(params, jnp.int32(index)))
        for index in range(vae_jax.num_models(params))
    ]
    return {name: [one[name] for one in found] for name in found[0]}


def run(config: Config) -> dict[str, Any]:
    """Trains, evaluates, draws; goes on where the sweep's folder stands.

    Args:
      config: the configuration.

    Returns:
      The figures of results.json.

    Raises:
      ValueError: bad input.
      CommandFailed: no model is finite any more.
      Interrupted: a signal came; the state is saved.
    """
    started = time.perf_counter()
    config = with_betas(config)
    check(config)
    first, spec, dataset, original, digest = mnist.prepare(grid(config)[0])
    models = [mnist.resolve(single, original) for single in grid(config)]
    config = dataclasses.replace(
        config,
        **{
            name: getattr(first, name)
            for name in ("dataset", "epochs", "binarization", "checkpoint_every")
        },
        # One for all: what it depends on is the same for all.
        beta_warmup_epochs=config.beta_warmup_epochs or (first.beta_warmup_epochs,),
    )
    folder = Path(config.run_dir or run_folder.default_folder("sweep", config))
    with run_folder.locked(folder):
        say(*run_folder.claim(folder, config, digest))
        print(mnist.headline(first, dataset, folder), flush=True)
        training, state, chunks = sweep_run(config, models, spec, dataset, folder)
        print(f"{len(models)} models, {chunks.reason}", flush=True)
        trained = train(training, state, started=started)
        results = _results(config, models, training, trained, dataset)
        results["models_at_once"] = chunks.indices.shape[1]
        results["seconds"] = time.perf_counter() - started
        run_folder.write_json(folder / "results.json", results)
        sweep_report.draw_all(folder / "figures", results, trained.rows)
        print(sweep_report.table(results, folder, remedies=training.remedies))
        return results


def _results(
    config: Config,
    models: Sequence[mnist.Config],
    training: Run,
    trained: Trained,
    dataset: data.Dataset,
) -> dict[str, Any]:
    """Figures of every model, and of every setting over its seeds."""
    x = data.to_unit_interval(jnp.asarray(dataset.test), dataset.num_levels)

    def figures(params: vae_jax.Params) -> dict[str, Any]:
        found = elbo_figures(params, x, dataset.test_labels)
        found |= importance_weighted_figures(
            params, x, dataset.test_labels, num_samples=config.evaluation_samples
        )
        units = unit_figures(params, x, dataset.test_labels)
        return {
            "test_elbo": found["elbo"],
            "rate": found["kl_divergence"],
            "distortion": -found["log_likelihood"],
            "active_units": units["active_units"],
            "log_evidence": found["importance_weighted_log_likelihood"],
        }

    speeds = [
        row["images_per_second"] for row in trained.rows if row["split"] == "train"
    ]
    found = in_turn(figures, trained.state)
    finite = finite_models(training, trained.state)
    rows = [
        {name: getattr(model, name) for name in (*swept(config), "seed")}
        | {"finite": bool(finite[index] and math.isfinite(found["test_elbo"][index]))}
        | {name: values[index] for name, values in found.items()}
        for index, model in enumerate(models)
    ]
    return {
        "dataset": config.dataset,
        "binarization": models[0].binarization,
        "swept": swept(config),
        "models": rows,
        "not_finite": sweep_report.not_finite(rows, trained.rows),
        "collapsed": sweep_report.collapsed(rows),
        "settings": sweep_report.over_seeds(rows, swept(config)),
        "images_per_second": trained.images_per_second or speeds[-1],
        "seconds_to_first_step": trained.seconds_to_first_step,
        "epochs": models[0].epochs,
        "step": int(trained.state.step),
        "jax_version": jax.__version__,
        "device": f"{config.num_devices} x {jax.devices()[0].device_kind}",
    }


def swept(config: Config) -> list[str]:
    """The flags that have several values; beta where none has."""
    names = [name for name in SWEPT if len(getattr(config, name)) > 1]
    return names or ["beta"]


def main(argv: Sequence[str] | None = None) -> None:
    """The command.

    Args:
      argv: its arguments; those of the process where None.
    """
    config = parse(Config, argv, command="python -m experiments.sweep")
    execute(lambda: run(config))


if __name__ == "__main__":
    main()
