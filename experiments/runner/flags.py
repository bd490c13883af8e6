"""Flags shared by all training commands, and rules and conditions for their values.

Rules are part of a field's annotation, as in `epochs: Count = 20`; `check` applies all
rules of a configuration.
"""

import math
import numbers
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, NamedTuple


class Rule(NamedTuple):
    """A condition on the value of a flag.

    Attributes:
      holds: `f(value)`, whether the value satisfies the rule.
      expected: completes "--flag must be ...".
    """

    holds: Callable[[Any], bool]
    expected: str


def at_least(least: float) -> Rule:
    """Rule for a finite number with an inclusive lower bound."""
    # An integer may be too large to be compared with infinity.
    return Rule(
        lambda v: (isinstance(v, int) or math.isfinite(v)) and v >= least,
        f"at least {least}",
    )


def at_most(most: float) -> Rule:
    """Rule for a number with an inclusive upper bound."""
    return Rule(lambda v: v <= most, f"at most {most}")


def below(limit: float) -> Rule:
    """Rule for a number with an exclusive upper bound."""
    return Rule(lambda v: v < limit, f"below {limit}")


IN_INT32 = at_most(2**31 - 1)
# Leaves room for a product; an underflow would silently become 0.
IN_FLOAT32 = Rule(
    lambda v: v == 0 or 1e-37 <= abs(v) <= 1e37, "0 or of a size from 1e-37 to 1e37"
)
EXPANDED = Rule(
    lambda v: not v.startswith("~"), "a path without ~, which no shell expanded here"
)

Count = Annotated[int, at_least(1), IN_INT32]
Natural = Annotated[int, at_least(0), IN_INT32]
Several = Annotated[int, at_least(2), IN_INT32]
NonNegative = Annotated[float, at_least(0), IN_FLOAT32]
Finite = Annotated[float, Rule(math.isfinite, "finite"), IN_FLOAT32]
Positive = Annotated[
    float, Rule(lambda v: math.isfinite(v) and v > 0, "positive and finite"), IN_FLOAT32
]
Fraction = Annotated[float, Rule(lambda v: 0 < v < 1, "between 0 and 1"), IN_FLOAT32]
Counts = Annotated[tuple[Count, ...], Rule(bool, "one or more positive numbers")]
Folder = Annotated[str, EXPANDED]
Address = Annotated[
    str,
    Rule(
        lambda v: v == "auto" or re.fullmatch(r".+:\d{1,5}", v) is not None,
        "host:port, or auto",
    ),
]


def check(config: Any) -> None:
    """Raise ValueError if a value violates the rule of its flag.

    Args:
      config: a dataclass whose fields have rules.

    Raises:
      ValueError: names the flag, the expectation and the value.

    Example:
      >>> from dataclasses import dataclass
      >>> from experiments.runner import flags
      >>> @dataclass
      ... class Config:
      ...     epochs: flags.Count = 20
      >>> flags.check(Config(epochs=0))
      Traceback (most recent call last):
      ValueError: --epochs must be at least 1, got 0
    """
    for name, hint in typing.get_type_hints(type(config), include_extras=True).items():
        _check(name, getattr(config, name), hint)


def _check(name: str, value: Any, hint: Any) -> None:
    """Raise ValueError if a value or an element violates its type or rules."""
    kind, arguments = typing.get_origin(hint), typing.get_args(hint)
    if kind is Annotated:
        _check(name, value, arguments[0])
        for rule in arguments[1:]:
            if isinstance(rule, Rule) and not rule.holds(value):
                raise ValueError(f"--{name} must be {rule.expected}, got {value}")
    elif kind in (typing.Union, types.UnionType):
        if value is not None or types.NoneType not in arguments:
            (option,) = (one for one in arguments if one is not types.NoneType)
            _check(name, value, option)
    elif kind is tuple:
        _require(name, value, isinstance(value, tuple), "several values")
        for element in value:
            _check(name, element, arguments[0])
    elif kind is typing.Literal:
        options = ", ".join(map(str, arguments))
        _require(name, value, value in arguments, f"one of {options}")
    elif hint in _TYPES:
        # bool is a subclass of int in Python.
        is_bool = isinstance(value, bool) == (hint is bool)
        holds = isinstance(value, _TYPES[hint]) and is_bool
        _require(name, value, holds, f"of type {hint.__name__}")
        if isinstance(value, str):
            require_text(name, value)
            _require(name, value, bool(value.strip()), "some text")


_TYPES = {int: numbers.Integral, float: numbers.Real, bool: bool, str: str}


def require_text(name: str, value: str) -> None:
    """Raise ValueError for text that is not valid UTF-8, such as some paths.

    Args:
      name: name of the flag.
      value: value of the flag.

    Raises:
      ValueError: if the value cannot be encoded as UTF-8.
    """
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"--{name} must be UTF-8, got {ascii(value)}") from error


def _require(name: str, value: Any, holds: bool, expected: str) -> None:
    if not holds:
        raise ValueError(f"--{name} must be {expected}, got {value!r}")


class Other(tuple):
    """All values of a flag except these, as a condition for `holds`."""

    def __contains__(self, value: Any) -> bool:
        return not super().__contains__(value)


Conditions = Sequence[Mapping[str, Sequence[Any]]]
"""Alternatives; each maps flags to their allowed values, all of which must match."""


def holds(conditions: Conditions, config: Any) -> bool:
    """Return whether a configuration meets one of several conditions.

    Args:
      conditions: the alternatives.
      config: a dataclass of flags.

    Returns:
      True if, in at least one alternative, every flag has one of its values.

    Example:
      >>> from types import SimpleNamespace as Config
      >>> from experiments.runner import flags
      >>> flags.holds([{"prior": ["flow"]}], Config(prior="flow"))
      True
      >>> flags.holds([{"prior": flags.Other(["flow"])}], Config(prior="flow"))
      False
    """
    return any(
        all(getattr(config, flag) in values for flag, values in condition.items())
        for condition in conditions
    )


def describe(conditions: Conditions) -> str:
    """Describe conditions in words, for messages."""

    def one(flag: str, values: Sequence[Any]) -> str:
        sign = " other than " if isinstance(values, Other) else "="
        return f"--{flag}{sign}{' or '.join(map(str, values))}"

    return ", or ".join(
        " with ".join(one(*entry) for entry in condition.items())
        for condition in conditions
    )


def refuse_ignored(configs: Sequence[Any], used_by: Mapping[str, Conditions]) -> None:
    """Refuse a flag that differs from its default where nothing uses it.

    Args:
      configs: of the models that are trained together; one of them may use a flag for
        all.
      used_by: the conditions under which a flag has an effect, by its name.

    Raises:
      ValueError: names the flag, its value and what would use it.
    """
    defaults = {field.name: field.default for field in fields(configs[0])}
    for name, use in used_by.items():
        values = [getattr(config, name) for config in configs]
        given = [value for value in values if value != defaults[name]]
        if given and not any(holds(use, config) for config in configs):
            found = {flag: getattr(configs[0], flag) for part in use for flag in part}
            raise ValueError(
                f"--{name} {given[0]} has no effect: only {describe(use)} uses "
                f"it, got {' and '.join(map(str, found.values()))}"
            )


@dataclass(frozen=True)
class DataFlags:
    """Flags of the data set."""

    dataset: str = "auto"
    """auto (MNIST, or digits if it is not available), mnist, binarized_mnist, \
fashion_mnist, kmnist, digits, synthetic, or a file: .npz with key x (and optionally \
x_test), .npy, .csv, .parquet, .h5ad, or a sparse .npz."""
    data_dir: Folder = "data"
    """Folder of data files; downloads go there."""


@dataclass(frozen=True)
class RunFlags(DataFlags):
    """Flags of a training run: data, length, folder, devices and processes."""

    columns: str | None = None
    """Kinds of a file's columns, inferred by default: a JSON file of names and kinds \
(real, positive, count, binary, categorical, ordinal; label; ignore; covariate, an \
input of the networks besides x), or the folder of a run, whose columns are then \
expected."""
    missing: Literal["error", "mask", "mask_seen"] = "error"
    """Missing values of a table (empty, NA, NaN): an error, or left out of log p(x) \
and 0 in the encoder's input; with mask_seen the encoder also gets the mask of \
observed values."""
    data_on: Literal["auto", "device", "host"] = "auto"
    """Location of the training examples: the device, or the host (a .npy stays in \
its file), with batches gathered ahead; auto chooses the device if they take at most \
half of the free memory."""
    epochs: Count | None = None
    """Passes over the training data; by default 20, more for small data sets."""
    run_dir: Folder | None = None
    """The run's folder; by default runs/<command>/<data set>-<digest of the flags>."""
    overwrite: bool = False
    """Remove an existing run in the folder and start again."""
    validation: Natural = 0
    """Number of training examples, taken from the end, to hold out for validation, \
which selects the best epoch, or the best model of a sweep. binarized_mnist has 10,000 \
of its own."""
    evaluation_samples: Natural = 1000
    """Importance samples per image for log p(x) at the end; 0 leaves it out."""
    checkpoint_every: Count | None = None
    """Epochs between checkpoints, by default a tenth of the run and at most 5; the \
last epoch is always saved."""
    num_devices: Count = 1
    """Number of devices that share each batch; several processes always use all."""
    compilation_cache: Folder | None = None
    """Folder for compiled programs, so that the next run starts sooner."""
    coordinator_address: Address | None = None
    """host:port of the first of several processes, which all run the same command; \
auto if the cluster's environment provides it."""
    num_processes: int | None = None
    """Total number of processes; omit if the cluster's environment provides it."""
    process_id: int | None = None
    """Index of this process, counted from 0; omit if the environment provides it."""


# Behaviour of runs made before a flag existed, if it differs from the flag's default.
FORMER_DEFAULTS = {"schedule": "constant", "warmup_steps": 0}
# Flags that may differ between two commands on the same run.
IGNORED = {field.name for field in fields(RunFlags)}
IGNORED -= {"dataset", "epochs", "validation", "missing"}
IGNORED |= {"models_at_once"}
