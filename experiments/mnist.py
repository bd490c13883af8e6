"""Train a variational autoencoder on MNIST, or on any other data set, end to end.

    python -m experiments.mnist --beta=1.0

trains the reference model (784-400-20, Bernoulli pixels drawn afresh at every step,
Adam) on real MNIST for 20 epochs: test ELBO -100.46 nats, log p(x) -95.11 +- 0.24 nats
by 1000 importance samples (Python 3.11, jax 0.10.2). It took 328 s on two cores that
other programs kept busy as well.

Without MNIST and without a network it says so and trains on scikit-learn's 8x8
digits. The same command on the same folder goes on where it stopped.
"""

import dataclasses
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

import vae_jax
from experiments import choices, processes, run_folder
from experiments.command_line import execute, parse, say
from experiments.evaluation_report import (
    EVALUATION_SEED,
    elbo_figures,
    evaluation_keys,
    importance_weighted_figures,
    table,
    unit_figures,
)
from experiments.ignored_flags import refuse_ignored
from experiments.training_loop import Trained, train
from experiments.training_setup import (
    binarized,
    data_digest,
    keep_compiled,
    num_classes,
    on_one_device,
    training_run,
)
from vae_jax import data

# Where the epochs are not given: small data sets are seen more often.
STEPS_WANTED = 8000
MINIMUM_EPOCHS = 20


@dataclass(frozen=True)
class Config:
    """Train a variational autoencoder; figures and pictures go to the run folder."""

    dataset: str = "auto"
    """auto (MNIST, or digits where it cannot be had), mnist, fashion_mnist, kmnist, \
digits, synthetic, or a file: .npz with key x (perhaps x_test), or .npy."""
    data_dir: str = "data"
    """Where data files are looked for and downloaded to."""
    epochs: int | None = None
    """Passes over the training data; by default 20, more for small data sets."""
    batch_size: int = 128
    """Examples of a step, over all devices together."""
    learning_rate: float = 1e-3
    """Of Adam."""
    beta: float = 1.0
    """Weight of the KL term in training; evaluation is always at 1."""
    beta_warmup_epochs: float | None = None
    """Epochs over which beta rises linearly from 0; by default 400 steps, or half of \
a shorter run. With 0 deep networks, and those of many latents, collapse."""
    beta_cycles: int = 0
    """Cycles of beta over the run, each rising from 0 in its first half; 0 for none."""
    free_bits: float = 0.0
    """KL in nats that is not charged for in training, of each latent unit."""
    free_bits_per: Literal["unit", "example"] = "unit"
    """What --free_bits is granted to: a unit (mean over the batch), or an example."""
    capacity: float | None = None
    """Target of the KL in nats: beta weighs the distance from it; the target rises \
linearly over the first half of the run."""
    latent_dim: int = 20
    """Dimensions of the latent space; with 2 the manifold is drawn as well."""
    hidden_dims: tuple[int, ...] = (400,)
    """Widths of the hidden layers, the decoder's in reverse; --network=conv has one \
dense layer."""
    upper_latent_dims: tuple[int, ...] = ()
    """Dimensions of further stochastic layers above the first, each with networks of \
two hidden layers of 100."""
    conditional: bool = False
    """Give the labels to encoder, decoder and, if it is standard, the prior."""
    network: Literal["linear", "mlp", "gated", "conv", "residual"] = "mlp"
    """Encoder and decoder; gated is an MLP with gates, residual is convolutional."""
    activation: Literal["relu", "tanh"] = "relu"
    """Of the hidden units of an MLP or a convolutional network."""
    compute_dtype: Literal["bfloat16"] | None = None
    """What the networks compute in; by default float32. Weights, densities and sums \
are float32 all the same."""
    posterior: Literal[
        "point",
        "diagonal",
        "full",
        "low_rank",
        "householder",
        "sylvester",
        "planar",
        "iaf",
    ] = "diagonal"
    """q(z|x): point makes an autoencoder; diagonal, full and low_rank are Gaussians; \
the others are flows of --num_flow_steps."""
    rank: int = 2
    """Of the covariance of --posterior=low_rank, beside its diagonal."""
    num_flow_steps: int = 2
    """Steps of a posterior or prior that is a flow."""
    prior: Literal["standard", "mixture", "vamp", "flow"] = "standard"
    """p(z); mixture of Gaussians and VampPrior learn --num_components of them."""
    num_components: int = 50
    """Components of --prior=mixture, pseudo-inputs of --prior=vamp."""
    likelihood: Literal[
        "bernoulli",
        "gaussian",
        "gaussian_learned",
        "gaussian_per_pixel",
        "gaussian_full",
        "discretized_logistic",
        "categorical",
        "continuous_bernoulli",
    ] = "bernoulli"
    """p(x|z); gaussian has the variance --variance, gaussian_learned learns one, \
gaussian_per_pixel has the decoder say one for each pixel, gaussian_full all \
covariances (for small images); discretized_logistic and categorical model grey \
levels."""
    variance: float = 1.0
    """Variance of a pixel of --likelihood=gaussian."""
    binarization: Literal["auto", "dynamic", "fixed", "threshold", "none"] = "auto"
    """dynamic draws the pixels afresh at every step, fixed once; auto is dynamic for \
a Bernoulli likelihood and none for a Gaussian one."""
    objective: Literal[
        "elbo", "iwae", "miwae", "ciwae", "piwae", "renyi", "beta_tc", "mmd"
    ] = "elbo"
    """What training maximises: the ELBO; bounds of --num_samples (miwae and piwae in \
--num_groups, ciwae with --elbo_share, renyi of order --renyi_alpha); the ELBO with \
the total correlation weighed by --tc_weight, or with --mmd_weight times the squared \
MMD in place of the KL."""
    num_samples: int = 1
    """Posterior samples of each example in training."""
    num_groups: int = 1
    """Groups of samples of --objective=miwae or piwae."""
    elbo_share: float = 0.5
    """Share of the ELBO in --objective=ciwae."""
    renyi_alpha: float = 0.5
    """Order of --objective=renyi: 0 is iwae, 1 the ELBO."""
    tc_weight: float = 6.0
    """Weight of the total correlation in --objective=beta_tc."""
    mmd_weight: float = 100.0
    """Weight of the squared MMD in --objective=mmd."""
    ema_decay: float | None = None
    """Decay of a moving average of the weights (0.999, say), which is then what is \
evaluated."""
    seed: int = 0
    """Of weights, noise and order of the data."""
    num_devices: int = 1
    """Devices to share each batch; several processes always use all they have."""
    run_dir: str | None = None
    """The run's folder; by default runs/mnist/<data set>-<digest of the flags>."""
    overwrite: bool = False
    """Start anew in a folder that holds a run."""
    evaluation_samples: int = 1000
    """Importance samples an image for log p(x) at the end; 0 leaves it out."""
    checkpoint_every: int | None = None
    """Epochs between checkpoints, by default a tenth of the run and at most 5; the \
last epoch is always saved."""
    compilation_cache: str | None = None
    """A folder to keep compiled programs in, so that the next run starts sooner."""
    coordinator_address: str | None = None
    """host:port of the first of several processes, which all run the same command; \
auto where a cluster's environment knows it."""
    num_processes: int | None = None
    """Processes in all; left out where the cluster's environment knows."""
    process_id: int | None = None
    """Number of this one, from 0 on; likewise."""


def check(config: Config) -> None:
    """Refuses values that no run can have, and flags without effect.

    Args:
      config: the configuration.

    Raises:
      ValueError: names the flag, its value and what was expected.
    """
    check_values(config)
    refuse_ignored([config])


def check_values(config: Config) -> None:
    """Refuses values that no run can have, before anything is written.

    Args:
      config: the configuration.

    Raises:
      ValueError: names the flag, its value and what was expected.
    """
    at_least = {
        "batch_size": 1,
        "latent_dim": 1,
        "num_components": 1,
        "num_samples": 1,
        "num_groups": 1,
        "num_flow_steps": 1,
        "rank": 1,
        "tc_weight": 0,
        "mmd_weight": 0,
        "elbo_share": 0,
        "num_devices": 1,
        "epochs": 1,
        "checkpoint_every": 1,
        "beta": 0,
        "beta_warmup_epochs": 0,
        "beta_cycles": 0,
        "free_bits": 0,
        "capacity": 0,
        "evaluation_samples": 0,
        "seed": 0,
    }
    for name, least in at_least.items():
        value = getattr(config, name)
        if value is not None and not (math.isfinite(value) and value >= least):
            raise ValueError(f"--{name} must be at least {least}, got {value}")
    for name in ("learning_rate", "variance"):
        value = getattr(config, name)
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"--{name} must be positive and finite, got {value}")
    if config.ema_decay is not None and not 0 < config.ema_decay < 1:
        raise ValueError(f"--ema_decay must be between 0 and 1, got {config.ema_decay}")
    choices.check_combinations(config)
    if config.elbo_share > 1:
        raise ValueError(f"--elbo_share must be at most 1, got {config.elbo_share}")
    if not math.isfinite(config.renyi_alpha):
        raise ValueError(f"--renyi_alpha must be finite, got {config.renyi_alpha}")
    if config.upper_latent_dims and min(config.upper_latent_dims) < 1:
        raise ValueError(
            f"--upper_latent_dims must be positive, got {config.upper_latent_dims}"
        )
    if not config.hidden_dims or min(config.hidden_dims) < 1:
        raise ValueError(
            f"--hidden_dims must be one or more positive widths, got "
            f"{config.hidden_dims} (--network=linear has none)"
        )
    if config.seed >= EVALUATION_SEED:
        raise ValueError(f"--seed must be below {EVALUATION_SEED}, got {config.seed}")
    if config.num_devices > jax.device_count():
        raise ValueError(
            f"--num_devices is {config.num_devices}, but there are "
            f"{jax.device_count()} ({jax.devices()[0].platform})"
        )
    if jax.process_count() > 1 and config.num_devices != jax.device_count():
        raise ValueError(
            f"--num_devices must be all {jax.device_count()} of the "
            f"{jax.process_count()} processes, got {config.num_devices}"
        )
    if config.batch_size % config.num_devices:
        raise ValueError(
            f"--batch_size {config.batch_size} does not divide among "
            f"--num_devices {config.num_devices}"
        )


def resolve(config: Config, dataset: data.Dataset) -> Config:
    """Puts what the defaults come to for a data set into the configuration.

    Args:
      config: as given.
      dataset: what `--dataset` led to.

    Returns:
      A configuration that names data set, epochs, warm-up and binarization.
    """
    is_file = config.dataset.endswith((".npz", ".npy"))
    steps_per_epoch = math.ceil(len(dataset.train) / config.batch_size)
    epochs = config.epochs or max(MINIMUM_EPOCHS, STEPS_WANTED // steps_per_epoch)
    warmup = config.beta_warmup_epochs
    if warmup is None:
        warmup = choices.default_warmup_epochs(
            config, epochs=epochs, steps_per_epoch=steps_per_epoch
        )
    default = "dynamic" if config.likelihood == "bernoulli" else "none"
    return dataclasses.replace(
        config,
        dataset=config.dataset if is_file else dataset.name,
        epochs=epochs,
        beta_warmup_epochs=warmup,
        binarization=default if config.binarization == "auto" else config.binarization,
        checkpoint_every=config.checkpoint_every or min(5, math.ceil(epochs / 10)),
    )


class Prepared(NamedTuple):
    """What the flags of a run lead to.

    Attributes:
      config: resolved.
      spec: the model.
      dataset: binarized as the configuration says.
      original: as loaded.
      digest: of the data as loaded.
    """

    config: Config
    spec: vae_jax.ModelSpec
    dataset: data.Dataset
    original: data.Dataset
    digest: str


def prepare(config: Config) -> Prepared:
    """Loads the data and says what there is to say about them.

    Args:
      config: as given, and checked.

    Returns:
      `Prepared`.

    Raises:
      ValueError: no data, or a model that does not suit them.
    """
    keep_compiled(config)
    original = data.load(config.dataset, data_dir=config.data_dir)
    config = resolve(config, original)
    spec = choices.model_spec(
        config, original, num_classes=num_classes(config, original)
    )
    say(*original.notes, *warnings(config, original))
    digest = data_digest(config, original)
    return Prepared(config, spec, binarized(config, original), original, digest)


def run(config: Config) -> dict[str, Any]:
    """Trains, evaluates, draws; goes on where the run's folder stands.

    Args:
      config: the configuration.

    Returns:
      The figures of results.json.

    Raises:
      ValueError: bad input.
      CommandFailed: a loss that is not finite.
      Interrupted: a signal came; the state is saved.
    """
    started = time.perf_counter()
    processes.join(config)
    with processes.silent_unless_first(), processes.lost_process_ends_the_run():
        return _run(_on_all_devices(config), started)


def _on_all_devices(config: Config) -> Config:
    """Several processes use every device, where the flags do not say otherwise."""
    if jax.process_count() == 1 or config.num_devices != 1:
        return config
    return dataclasses.replace(config, num_devices=jax.device_count())


def _run(config: Config, started: float) -> dict[str, Any]:
    """`run` in one of the processes."""
    check(config)
    config, spec, dataset, _, digest = prepare(config)
    processes.require_alike(config, digest)
    folder = Path(config.run_dir or run_folder.default_folder("mnist", config))
    with processes.first_alone(run_folder.locked(folder)):
        if processes.is_first():
            say(*run_folder.claim(folder, config, digest))
        print(headline(config, dataset, folder), flush=True)
        training, state = training_run(config, spec, dataset, folder)
        trained = train(training, state, started=started)
        if not processes.is_first():
            return {}
        return _report(config, dataset, folder, trained, started)


def _report(
    config: Config,
    dataset: data.Dataset,
    folder: Path,
    trained: Trained,
    started: float,
) -> dict[str, Any]:
    """Evaluates the trained model, unless this very evaluation is there already."""
    found = run_folder.read_results(folder)
    step = int(trained.state.step)
    remedies = choices.collapse_remedies(config)
    if (
        found is not None
        and trained.images_per_second is None
        and found["step"] == step
        and "active_units" in found
        and found["importance_weighted_num_samples"] == config.evaluation_samples
    ):
        print(f"complete: checkpoint {step} verified, nothing left to train")
        print(table(found, folder, remedies=remedies))
        return found
    # Takes a second to import; the first step does not wait for it.
    from experiments import figures

    params = on_one_device(trained.state)
    x = data.to_unit_interval(jnp.asarray(dataset.test), dataset.num_levels)
    labels = dataset.test_labels
    speeds = [
        row["images_per_second"] for row in trained.rows if row["split"] == "train"
    ]
    results = {
        "dataset": config.dataset,
        "binarization": config.binarization,
        **{
            f"test_{name}": value
            for name, value in elbo_figures(params, x, labels).items()
        },
        **unit_figures(params, x, labels),
        **importance_weighted_figures(
            params, x, labels, num_samples=config.evaluation_samples
        ),
        "images_per_second": trained.images_per_second or speeds[-1],
        "seconds_to_first_step": trained.seconds_to_first_step,
        "epochs": config.epochs,
        "step": step,
        "beta": config.beta,
        "jax_version": jax.__version__,
        "device": f"{config.num_devices} x {jax.devices()[0].device_kind}",
    }
    figures.draw_all(
        folder / "figures",
        params,
        dataset_name=config.dataset,
        data_shape=dataset.data_shape,
        x=x,
        labels=labels,
        metrics=trained.rows,
        key=evaluation_keys().figures,
    )
    results["seconds"] = time.perf_counter() - started
    run_folder.write_json(folder / "results.json", results)
    print(table(results, folder, remedies=remedies))
    return results


def warnings(config: Config, dataset: data.Dataset) -> list[str]:
    """What is allowed and often not meant."""
    grey = dataset.num_levels != 2
    if config.likelihood == "bernoulli" and config.binarization == "none" and grey:
        return [
            "a Bernoulli likelihood on grey values is not a likelihood of the pixels; "
            "its figures compare with no others"
        ]
    if config.likelihood != "bernoulli" and config.binarization != "none":
        return ["a density of real numbers on pixels that are 0 or 1"]
    if config.likelihood == "continuous_bernoulli" and dataset.num_levels is not None:
        return [
            "a continuous Bernoulli on pixels that are exactly 0 or 1 is a density, of "
            "at most 256 each (5.55 nats), and no probability of grey levels, which "
            "--likelihood=discretized_logistic gives"
        ]
    return []


def headline(config: Config, dataset: data.Dataset, folder: Path) -> str:
    """What a run is about, in a line."""
    shape = "x".join(map(str, dataset.data_shape))
    return (
        f"{config.dataset}: {len(dataset.train)} examples to train, "
        f"{len(dataset.test)} to test, {shape}, {config.binarization} binarization; "
        f"{config.epochs} epochs; {folder}"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """The command.

    Args:
      argv: its arguments; those of the process where None.
    """
    config = parse(Config, argv, command="python -m experiments.mnist")
    execute(lambda: run(config))


if __name__ == "__main__":
    main()
