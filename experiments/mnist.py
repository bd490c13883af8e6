"""Train a variational autoencoder on MNIST, or on any other data set, end to end.

    python -m experiments.mnist --beta=1.0

trains the reference model (784-400-20, Bernoulli pixels drawn afresh at every step,
Adam, a cosine schedule) on real MNIST for 20 epochs: test ELBO -97.76 nats, log p(x)
-93.03 +- 0.24 nats by 1000 importance samples (Python 3.11, jax 0.10.2).

Without MNIST and without a network it says so and trains on scikit-learn's 8x8
digits, by their 17 grey levels. The same command on the same folder goes on where it
stopped.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp

import vae_jax
from experiments import choices, datasets, evaluation, final_evaluation, optimizers
from experiments.defaults import USED_BY, resolve, with_former_likelihood
from experiments.runner import devices, flags, memory, processes
from experiments.runner.command_line import execute, parse, say
from experiments.runner.training import open_run
from vae_jax import TrainState, data
from vae_jax.data.rows import spacing
from vae_jax.types import Array, Key


@dataclass(frozen=True)
class ModelFlags(optimizers.OptimizerFlags):
    """Flags that take a single value in experiments.sweep too."""

    beta_cycles: flags.Natural = 0
    """Cycles of beta over the run, each rising from 0 in its first half; 0 for none."""
    free_bits_per: Literal["unit", "example"] = "unit"
    """Grant --free_bits to each unit (mean over the batch), or to each example."""
    latent_dim: flags.Count = 20
    """Dimensions of the latent space; with 2 the manifold is drawn as well."""
    hidden_dims: flags.Counts = (400,)
    """Widths of the hidden layers, the decoder's in reverse; --network=conv has one \
dense layer."""
    upper_latent_dims: tuple[flags.Count, ...] = ()
    """Dimensions of further stochastic layers above the first, each with networks of \
two hidden layers of 100."""
    conditional: bool = False
    """Give the labels to encoder, decoder and, if it is standard, the prior."""
    network: str = "mlp"
    """Encoder and decoder: linear, mlp, gated (an MLP with gates), conv, residual \
(convolutional), or module:Class or module:Class(width=64) of a file of your own: a \
class for both, or a function that returns a pair."""
    activation: Literal["relu", "tanh"] = "relu"
    """Nonlinearity of the hidden units of an MLP or a convolutional network."""
    compute_dtype: Literal["bfloat16"] | None = None
    """Type that the networks compute in, by default float32; weights, densities and \
sums are float32 all the same."""
    posterior: str = "diagonal"
    """q(z|x): point makes an autoencoder; diagonal, full and low_rank are Gaussians; \
householder, sylvester, planar and iaf are flows of --num_flow_steps; bernoulli is \
bits, whose gradient needs another --estimator; or module:Class."""
    rank: flags.Count = 2
    """Rank of the covariance of --posterior=low_rank, beside its diagonal."""
    num_flow_steps: flags.Count = 2
    """Steps of a posterior or prior that is a flow."""
    prior: str = "auto"
    """p(z): standard, mixture (of Gaussians) and vamp (VampPrior), which learn \
--num_components of them, flow, bernoulli, or module:Class; auto suits --posterior: \
bernoulli for bits, standard for others."""
    num_components: flags.Count = 50
    """Components of --prior=mixture, pseudo-inputs of --prior=vamp."""
    likelihood: str = "auto"
    """p(x|z): bernoulli; gaussian of --variance, gaussian_learned, gaussian_per_pixel \
(the decoder says each), gaussian_full (all covariances); grey levels are \
discretized_logistic or categorical, counts poisson, negative_binomial or \
zero_inflated_negative_binomial; continuous_bernoulli; or module:Class; auto suits \
the data: bernoulli for bits and for MNIST, of which bits are drawn by convention, \
discretized_logistic for other grey levels."""
    exposure: Literal["none", "row_total"] = "none"
    """Factor of the means of counts: none, or the total of each example, of which \
figures and draws are then conditional."""
    binarization: Literal["auto", "dynamic", "fixed", "threshold", "none"] = "auto"
    """dynamic draws binary pixels anew at every step, fixed draws them once; auto is \
dynamic for a Bernoulli likelihood of grey pixels, and none otherwise."""
    objective: str = "elbo"
    """What training maximises: elbo; bounds of --num_samples (iwae, miwae and piwae \
in --num_groups, ciwae with --elbo_share, renyi of order --renyi_alpha); beta_tc, the \
ELBO with the total correlation weighed by --tc_weight; mmd, with --mmd_weight times \
the squared MMD in place of the KL; or module:Class."""
    estimator: str = "reparameterization"
    """Of the gradient, by its name in vae_jax.estimators (score_function, \
leave_one_out, disarm, doubly_reparameterized, ...), or module:function."""
    kl: Literal["auto", "analytic", "monte_carlo"] = "auto"
    """The KL of the ELBO: in closed form where there is one, or by samples, which \
--estimator=path_derivative needs."""
    num_samples: flags.Count = 1
    """Posterior samples of each example in training."""
    num_groups: flags.Count = 1
    """Groups of samples of --objective=miwae or piwae."""
    renyi_alpha: flags.Finite = 0.5
    """Order of --objective=renyi: 0 is iwae, 1 the ELBO."""
    ema_decay: flags.Fraction | None = None
    """Decay of a moving average of the weights (0.999, say), which is then what is \
evaluated."""
    seed: Annotated[int, flags.at_least(0), flags.below(evaluation.EVALUATION_SEED)] = 0
    """Seed of weights, noise and order of the data."""


@dataclass(frozen=True)
class Config(ModelFlags):
    """Train a variational autoencoder; figures and pictures go to the run folder."""

    learning_rate: flags.Positive | None = None
    """Learning rate, at its peak where it rises or falls; by default 0.005 for Adam \
with a schedule that falls, 0.001 for others."""
    early_stopping: flags.Count | None = None
    """Epochs without a better ELBO of the validation data after which the run ends."""
    beta: flags.NonNegative = 1.0
    """Weight of the KL term in training; evaluation is always at 1."""
    beta_warmup_epochs: flags.NonNegative | None = None
    """Epochs over which beta rises linearly from 0; by default 400 steps, or half of \
a shorter run. With 0 deep networks, and those of many latents, collapse."""
    free_bits: flags.NonNegative = 0.0
    """KL in nats that is not charged for in training, of each latent unit."""
    capacity: flags.NonNegative | None = None
    """Target of the KL in nats: beta weighs the distance from it; the target rises \
linearly over the first half of the run."""
    variance: flags.Positive = 1.0
    """Variance of --likelihood=gaussian, of a pixel or of a standardized column."""
    elbo_share: Annotated[flags.NonNegative, flags.at_most(1)] = 0.5
    """Share of the ELBO in --objective=ciwae."""
    tc_weight: flags.NonNegative = 6.0
    """Weight of the total correlation in --objective=beta_tc."""
    mmd_weight: flags.NonNegative = 100.0
    """Weight of the squared MMD in --objective=mmd."""


def check(*configs: Config) -> None:
    """Raise ValueError for invalid values, and for flags without effect."""
    for config in configs:
        flags.check(config)
        choices.check_combinations(config)
        optimizers.check_own(config)
        devices.require(config.num_devices, jax.device_count())
        devices.require_divisible(config.batch_size, config.num_devices)
    flags.refuse_ignored(configs, USED_BY)


def training_step(
    state: TrainState,
    batch: Array | vae_jax.Labelled,
    settings: choices.Settings,
    *,
    config: Config,
    dataset: data.Dataset,
    axis_name: str | None = None,
) -> tuple[TrainState, dict[str, Array]]:
    """One step of the optimizer on the objective, as the flags name them.

    Args:
      state: before the step.
      batch: examples of the data set.
      settings: the numbers of `choices.settings`, each possibly traced.
      config: the configuration, resolved.
      dataset: what is trained on.
      axis_name: name of the mapped axis of devices.

    Returns:
      The state after it, and its figures.
    """
    num_steps = math.ceil(len(dataset.train) / config.batch_size)
    objective = choices.objective(config, settings, steps_per_epoch=num_steps)
    recipe = optimizers.recipe(config, num_examples=len(dataset.train))
    # The loss is minus the objective, which by default is elbo(params, x, key).
    return vae_jax.train_step(
        state,
        batch,
        objective=objective,
        optimizer=recipe.at_rate(settings["learning_rate"]),
        preprocess=partial(
            datasets.as_seen,
            binarization=config.binarization,
            num_levels=dataset.num_levels,
            exposure=config.exposure,
        ),
        average_decay=config.ema_decay or 0.0,
        axis_name=axis_name,
    )


# Each is one program: compiled an operation at a time they take seconds longer.
_shuffled_epoch = jax.jit(
    vae_jax.shuffled_epoch, static_argnames=("num_examples", "batch_size")
)


def data_order(config: Config, num_examples: int) -> Callable[..., vae_jax.Epoch]:
    """The order of the data, a function of the epoch's number."""
    sizes = {"num_examples": num_examples, "batch_size": config.batch_size}
    return partial(_shuffled_epoch, jax.random.key(config.seed), **sizes)


def initial_state(
    config: Config, spec: vae_jax.ModelSpec, dataset: data.Dataset
) -> TrainState:
    """The state before step 0, which starts at the data's mean and variance."""
    return _initial_state(
        jax.random.key(config.seed),
        jnp.asarray(dataset.train[:: spacing(dataset.train)]),
        config.variance if config.likelihood == "gaussian" else None,
        config.learning_rate,
        spec=spec,
        num_levels=dataset.num_levels,
        average=config.ema_decay is not None,
        recipe=optimizers.recipe(config, num_examples=len(dataset.train)),
    )


@partial(jax.jit, static_argnames=("spec", "num_levels", "average", "recipe"))
def _initial_state(
    key: Key,
    examples: Array,
    variance: float | None,
    learning_rate: float,
    *,
    spec: vae_jax.ModelSpec,
    num_levels: int | None,
    average: bool,
    recipe: optimizers.Recipe,
) -> TrainState:
    x = data.to_unit_interval(examples, num_levels)
    given = choices.with_row_totals(x) if spec.likelihood.takes_exposure else None
    params = vae_jax.init(spec, vae_jax.run_keys(key).weights, x=x, labels=given)
    if variance is not None:
        log_var = jnp.log(jnp.float32(variance))
        params = params.replace(likelihood=params.likelihood | {"log_var": log_var})
    # Some optimizers keep the rate in their state.
    optimizer = recipe.at_rate(learning_rate)
    return vae_jax.init_state(params, key, optimizer=optimizer, average=average)


def run(config: Config) -> dict[str, Any]:
    """Train, evaluate and draw; go on from what the run's folder holds.

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
    with processes.joined(config) as config:
        check(config)
        devices.keep_compiled(config.compilation_cache)

        # Data: pixels in [0, 1], or bits drawn from them.
        original = datasets.load(config)
        config, notes = with_former_likelihood(config, original, "mnist", resolve)
        config = resolve(config, original)
        say(*original.notes, *notes)
        num_classes = datasets.num_classes(original, conditional=config.conditional)
        dataset = datasets.binarized(original, config.binarization, seed=config.seed)
        examples = datasets.examples(dataset, labelled=config.conditional)
        watched = datasets.watched(dataset)
        order = data_order(config, len(dataset.train))
        batch_sizes = jax.eval_shape(order, 0).batch_sizes

        # Model.
        spec = choices.model_spec(config, original, num_classes=num_classes)
        say(*datasets.warnings(original, spec.likelihood, config.binarization))
        datasets.require_in(spec.likelihood.support, dataset, config.binarization)
        sizes = {"num_examples": len(dataset.train)}
        memory.require(partial(initial_state, config, spec, dataset), config, **sizes)
        state = initial_state(config, spec, dataset)
        datasets.check_early_stopping(config.early_stopping, state.params, watched)
        selects = dataset.validation is not None and evaluation.has_density(
            state.params, watched.x, watched.labels
        )

        # Objective and optimizer: a step, and epochs of it on the devices.
        step = partial(training_step, config=config, dataset=dataset)
        step = partial(step, settings=choices.settings(config))
        step = jax.jit(step, static_argnames="axis_name")
        empty = vae_jax.empty_history(step, state, order(0), examples)
        batches, train = devices.place(step, order, examples, config.num_devices)

        # The loop, from the newest checkpoint on.
        remedies = choices.collapse_remedies(config)
        headline = datasets.describe(dataset, config, config.binarization)
        digest = datasets.digest(original, config.dataset, labelled=config.conditional)
        with open_run(
            "mnist",
            config,
            digest,
            spec,
            batch_sizes,
            started,
            selects=selects,
            patience=config.early_stopping,
        ) as training:
            print(f"{headline}; {training.folder}", flush=True)
            state, history = training.restore(state, empty)
            for epoch in training.epochs(state):
                taken = batches(epoch)
                for stop in training.pieces(state):
                    state, history = train(state, taken, history, stop)
                    training.check(state, history)
                params = devices.on_one(state.evaluation_params)
                writes = processes.is_first()
                evaluated = params, watched.x, watched.labels
                figures = evaluation.elbo_figures(*evaluated) if writes else None
                training.log(state, history, figures, watched.name)
                if training.is_time_to_judge(state):
                    units = evaluation.unit_figures(*evaluated)["active_units"]
                    evaluation.warn_of_collapse([units], remedies)
                history = empty
                training.save(state, history)

            # Evaluation and figures, in the process that writes; all read checkpoints.
            best = final_evaluation.read_best(training, state)
            if not processes.is_first():
                return {}
            return final_evaluation.evaluate(
                config, training, state, best, dataset, remedies
            )


def main(argv: Sequence[str] | None = None) -> None:
    """The command, with these arguments or those of the process."""
    execute(run, parse(Config, argv, command="python -m experiments.mnist"))


if __name__ == "__main__":
    main()
