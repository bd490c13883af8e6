"""Optimizers and learning-rate schedules, by their names in flags.

A schedule is relative: its peak is 1, and it is multiplied by the learning rate, which
may therefore be traced, as in a sweep.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import open_choices
from experiments.runner import flags
from vae_jax.types import Array

# Other choices are compared in docs/results/recipes.md.
PEAK, WARMUP_STEPS = 5e-3, 200


@dataclass(frozen=True)
class OptimizerFlags(flags.RunFlags):
    """Flags of the optimizer, except the learning rate."""

    batch_size: flags.Count = 128
    """Examples per step, over all devices together."""
    optimizer: str = "adam"
    """adam, adamw (with --weight_decay), rmsprop, sgd, or module:function of the \
learning rate: optax:adam(b2=0.99)."""
    schedule: Literal["constant", "cosine", "linear", "exponential", "burda"] = "cosine"
    """Decay of the learning rate: cosine and linear to 0, exponential to a \
hundredth, burda to a tenth in the eight stages of Burda et al."""
    schedule_epochs: flags.Count | None = None
    """Epochs over which schedules run (of the learning rate, --beta_cycles, \
--capacity); by default those of the run. Give more for a run to be extended later."""
    warmup_steps: flags.Natural | None = None
    """Steps over which the learning rate rises linearly from 0, before it decays; by \
default 200, or a tenth of the run if that is less; 0 for a constant rate."""
    weight_decay: flags.NonNegative = 0.01
    """Decoupled weight decay of --optimizer=adamw, multiplied by the learning rate."""
    clip_norm: flags.Positive | None = None
    """Maximum global norm of the gradient, which is scaled down to it if larger."""


def _burda(num_steps: int) -> optax.Schedule:
    """Relative rate 10^(-i/7) for 3^i of 3280 passes, i = 0, ..., 7.

    Burda, Grosse & Salakhutdinov 2016, section 5.
    """
    ends = np.array([-(-num_steps * (3**i - 1) // 6560) for i in range(1, 8)])
    return lambda step: 10.0 ** (-jnp.sum(step >= ends) / 7)


SCHEDULES: dict[str, Callable[[int], optax.Schedule]] = {
    "constant": lambda num_steps: optax.constant_schedule(1.0),
    "cosine": lambda num_steps: optax.cosine_decay_schedule(1.0, num_steps),
    "linear": lambda num_steps: optax.linear_schedule(1.0, 0.0, num_steps),
    "exponential": lambda num_steps: optax.exponential_decay(1.0, num_steps, 0.01),
    "burda": _burda,
}
OPTIMIZERS: dict[str, Callable[["Recipe", Any], optax.GradientTransformation]] = {
    "adam": lambda recipe, rate: optax.adam(rate),
    "adamw": lambda recipe, rate: optax.adamw(rate, weight_decay=recipe.weight_decay),
    "rmsprop": lambda recipe, rate: optax.rmsprop(rate),
    "sgd": lambda recipe, rate: optax.sgd(rate),
}


@dataclass(frozen=True)
class Recipe:
    """An optimizer without its learning rate; hashable, so it can be static under jit.

    Attributes:
      optimizer: `--optimizer`; the others are flags as well, except `num_steps`.
      schedule: the decay of the learning rate.
      warmup_steps: number of steps of linear warm-up.
      num_steps: number of steps of warm-up and decay together.
      weight_decay: weight decay of adamw.
      clip_norm: maximum global norm of the gradient; None disables clipping.
    """

    optimizer: str
    schedule: str
    warmup_steps: int
    num_steps: int
    weight_decay: float
    clip_norm: float | None

    def relative_rate(self, step: int | Array) -> Array:
        """Learning rate of a step, counted from 0, divided by the peak rate."""
        fall: Any = SCHEDULES[self.schedule](self.num_steps - self.warmup_steps)
        if self.warmup_steps:
            rise = optax.linear_schedule(0.0, 1.0, self.warmup_steps)
            fall = optax.join_schedules([rise, fall], [self.warmup_steps])
        return jnp.asarray(fall(step))

    def _rate(self, learning_rate: float | Array, step: int | Array) -> Array:
        return learning_rate * self.relative_rate(step)

    def at_rate(self, learning_rate: float | Array) -> optax.GradientTransformation:
        """Build the optimizer for a learning rate.

        Args:
          learning_rate: the peak learning rate; may be traced.

        Returns:
          An optax optimizer.

        Raises:
          ValueError: if a user-defined function does not return an optimizer.
        """
        rate: Any = learning_rate
        if self.warmup_steps or self.schedule != "constant":
            rate = partial(self._rate, learning_rate)
        found = open_choices.find("optimizer", self.optimizer, OPTIMIZERS)
        is_own = isinstance(found, open_choices.Own)
        made = _of_own(found, rate) if is_own else found(self, rate)
        if self.clip_norm is None:
            return made
        return optax.chain(optax.clip_by_global_norm(self.clip_norm), made)


def recipe(config: OptimizerFlags, *, num_examples: int) -> Recipe:
    """Return the recipe given by the flags.

    Args:
      config: the resolved configuration.
      num_examples: number of training examples.

    Returns:
      A `Recipe`.
    """
    falls = config.schedule != "constant"
    steps_per_epoch = math.ceil(num_examples / config.batch_size)
    return Recipe(
        config.optimizer,
        config.schedule,
        config.warmup_steps or 0,
        scheduled_epochs(config) * steps_per_epoch if falls else 0,
        config.weight_decay,
        config.clip_norm,
    )


def scheduled_epochs(config: OptimizerFlags) -> int:
    """Epochs over which schedules run; raise ValueError if not resolved."""
    epochs = config.schedule_epochs or config.epochs
    if epochs is None:
        raise ValueError("epochs must be resolved, got None: see defaults.resolve")
    return epochs


def default_warmup_steps(config: OptimizerFlags, *, steps_per_epoch: int) -> int:
    """Default of `--warmup_steps`.

    Args:
      config: the configuration, with epochs resolved.
      steps_per_epoch: number of steps per epoch.

    Returns:
      `WARMUP_STEPS`, or a tenth of a shorter schedule; 0 for a constant rate.
    """
    if config.schedule == "constant":
        return 0
    return min(WARMUP_STEPS, scheduled_epochs(config) * steps_per_epoch // 10)


def default_learning_rate(config: OptimizerFlags) -> float:
    """Default of `--learning_rate`.

    Args:
      config: the configuration.

    Returns:
      `PEAK` for adam and adamw with a cosine, linear or exponential schedule, 1e-3
      otherwise.
    """
    falls = config.schedule in ("cosine", "linear", "exponential")
    return PEAK if falls and config.optimizer in ("adam", "adamw") else 1e-3


def check_length(config: OptimizerFlags, *, steps_per_epoch: int) -> None:
    """Raise ValueError if a schedule does not fit the length of the run.

    Args:
      config: the resolved configuration.
      steps_per_epoch: number of steps per epoch.

    Raises:
      ValueError: names the flag.
    """
    if config.schedule_epochs and config.schedule_epochs < (config.epochs or 0):
        raise ValueError(
            f"--schedule_epochs must be at least --epochs {config.epochs}, got "
            f"{config.schedule_epochs}"
        )
    num_steps = scheduled_epochs(config) * steps_per_epoch
    if (config.warmup_steps or 0) >= num_steps:
        raise ValueError(
            f"--warmup_steps must be below the {num_steps} steps of the run, got "
            f"{config.warmup_steps}"
        )


def check_own(config: OptimizerFlags) -> None:
    """Raise ValueError if a user-defined optimizer fails on a small tree.

    Args:
      config: the configuration.

    Raises:
      ValueError: if it is not an optimizer, or needs more than gradients, state and
        parameters.
    """
    if config.optimizer in OPTIMIZERS:
        return

    def update(tree: Any) -> Any:
        made = Recipe(config.optimizer, "constant", 0, 0, 0.0, None).at_rate(0.1)
        return made.update(tree, made.init(tree), tree)[0]

    tree = {"weight": jnp.ones(2)}
    try:
        updates = jax.eval_shape(update, tree)
    except TypeError as error:
        raise ValueError(
            f"--optimizer={config.optimizer} must update from gradients, state and "
            f"parameters alone, but failed: {error}"
        ) from error
    if jax.tree.map(jnp.shape, updates) != jax.tree.map(jnp.shape, tree):
        raise ValueError(
            f"--optimizer={config.optimizer} must return updates with the parameters' "
            f"shapes, got {updates} for {tree}"
        )


def _of_own(own: open_choices.Own, rate: Any) -> optax.GradientTransformation:
    """Build an optimizer with a user-defined function of the learning rate."""
    if own.arguments or "learning_rate" in own.keywords:
        raise ValueError(
            f"{own.text}: set the learning rate by --learning_rate, and give other "
            "arguments by name"
        )
    made = own.held_to("optimizer(learning_rate=)")(learning_rate=rate)
    if not isinstance(made, optax.GradientTransformation):
        raise ValueError(
            f"{own.text} must return an optax.GradientTransformation, got "
            f"{type(made).__name__}"
        )
    return made
