"""Labels, covariates and exposures: what a model is conditioned on, validated.

Invalid values raise ValueError while they are known, and become NaN where JAX traces
them.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax.distributions.support import known_values
from vae_jax.spec import ModelSpec
from vae_jax.types import AnyArray, Conditions, Labels


def as_conditions(labels: Labels) -> Conditions:
    """Conditions of a model; an array alone is its labels."""
    return labels if isinstance(labels, Conditions) else Conditions(labels)


def require_arrays(labels: Labels) -> None:
    """Raise ValueError for a list, which JAX takes for many arguments."""
    for name, given in as_conditions(labels)._asdict().items():
        if isinstance(given, list | tuple):
            raise ValueError(
                f"{name} must be an array, got a {type(given).__name__}: give "
                "numpy.asarray of it"
            )


def checked_covariates(
    spec: ModelSpec, labels: Labels, batch: int | None
) -> AnyArray | None:
    """Covariates `[B, C]` of a model that has some; NaN for invalid traced ones.

    Raises ValueError for covariates given to another model, missing or invalid ones,
    and another shape.
    """
    covariates, count = as_conditions(labels).covariates, spec.num_covariates
    if count == 0:
        if covariates is not None:
            raise ValueError(
                "covariates were given to a model without any: set num_covariates in "
                "its spec"
            )
        return None
    expected = f"finite numbers, [B, {count}]"
    if covariates is None:
        raise ValueError(
            f"a model of num_covariates={count} needs covariates: give "
            f"labels=Conditions(covariates=...), {expected}; to fit, "
            "data=Labelled(x, Conditions(covariates=...))"
        )
    return _of_each_example(
        "covariates",
        covariates,
        (count,),
        batch,
        expected=expected,
        is_valid=lambda values: abs(values) < jnp.inf,
    )


def _of_each_example(
    name: str,
    given: AnyArray,
    shape: tuple[int, ...],
    batch: int | None,
    *,
    expected: str,
    is_valid: Callable[[AnyArray], AnyArray],
) -> AnyArray:
    """Numbers `[B, *shape]` beside x; NaN for invalid traced ones.

    Raises ValueError for another shape, or another B than `batch`, and for known values
    that are not valid.
    """
    known, found = known_values(given), jnp.shape(given)
    if found[1:] != shape or not found or batch not in (None, found[0]):
        examples = "" if batch is None else f" for {batch} examples"
        raise ValueError(f"{name} must be {expected}, got {list(found)}{examples}")
    if known is None:
        values = jnp.asarray(given)
        return jnp.where(is_valid(values), values, jnp.nan)
    # As they are used: outside JAX's x64 mode, float64 becomes float32.
    dtype = jax.dtypes.canonicalize_dtype(np.promote_types(known.dtype, np.float32))
    with np.errstate(over="ignore"):
        values = known.astype(dtype)
    valid = is_valid(values)
    if not valid.all():
        raise ValueError(
            f"{name} must be {expected}, got {known[~valid][0]} ({dtype.name})"
        )
    return values


def network_inputs(
    spec: ModelSpec, labels: Labels, batch: int | None
) -> AnyArray | None:
    """Inputs of the networks beside x and z, `[B, C]`: labels and covariates."""
    parts = class_weights(spec, labels, batch), checked_covariates(spec, labels, batch)
    given = [part for part in parts if part is not None]
    if len(given) < 2:
        return given[0] if given else None
    return jnp.concatenate(given, axis=-1)


def placeholders(spec: ModelSpec) -> Conditions:
    """Labels and covariates of one example, of the right shapes."""
    label = jnp.zeros(1, jnp.int32) if spec.num_classes else None
    covariates = jnp.zeros((1, spec.num_covariates)) if spec.num_covariates else None
    return Conditions(label, covariates)


def checked_exposure(
    spec: ModelSpec, labels: Labels, batch: int | None
) -> AnyArray | None:
    """Exposures `[B]` of a likelihood that takes them; NaN for invalid traced ones.

    Raises ValueError for exposures given to another likelihood, missing or invalid
    ones, and another number of them than `batch`.
    """
    exposure = as_conditions(labels).exposure
    if not spec.likelihood.takes_exposure:
        if exposure is not None:
            raise ValueError(
                "an exposure was given, and likelihood "
                f"{spec.likelihood!r} takes none: choose Exposed(...)"
            )
        return None
    expected = "positive and finite, one for each example, [B]"
    if exposure is None:
        raise ValueError(
            f"likelihood {spec.likelihood!r} needs exposures: give "
            f"labels=Conditions(exposure=...), {expected}; to fit, "
            "data=Labelled(x, Conditions(exposure=...))"
        )
    return _of_each_example(
        "exposure",
        exposure,
        (),
        batch,
        expected=expected,
        is_valid=lambda values: (
            (values >= jnp.finfo(values.dtype).tiny) & (values < jnp.inf)
        ),
    )


# Tolerance on the sum of the class weights; the rounding error of bfloat16 is smaller.
_WEIGHT_TOLERANCE = 0.01


def class_weights(
    spec: ModelSpec, labels: Labels, batch: int | None = None
) -> AnyArray | None:
    """Convert labels to class weights `[B, C]`; NaN for invalid traced labels.

    Raises ValueError for labels given to an unconditional model, missing or invalid
    labels, and a number of labels other than `batch`.
    """
    labels = as_conditions(labels).labels
    if spec.num_classes == 0:
        if labels is not None:
            raise ValueError(
                "labels were given to a model without classes: set num_classes in its "
                "spec"
            )
        return None
    count = spec.num_classes
    expected = (
        f"integers [B] from 0 to {count - 1}, or weights of the classes [B, {count}], "
        "none negative, that sum to 1"
    )
    if labels is None:
        raise ValueError(f"a model of num_classes={count} needs labels: {expected}")
    known = known_values(labels)
    given = labels if known is None else known
    are_classes = jnp.issubdtype(given.dtype, jnp.integer)
    rows = (given.shape or (0,))[0] if batch is None else batch
    if given.shape != ((rows,) if are_classes else (rows, count)):
        came = f"{given.dtype}{list(given.shape)}"
        examples = "" if batch is None else f" for {batch} examples"
        raise ValueError(f"labels must be {expected}, got {came}{examples}")
    if are_classes:
        exists = (given >= 0) & (given < count)
        weights = given[:, None] == np.arange(count)
    else:
        total = given.astype(jnp.float32).sum(axis=-1)
        exists = (given >= 0).all(axis=-1) & (abs(total - 1) <= _WEIGHT_TOLERANCE)
        weights = given
    weights = weights.astype(jnp.promote_types(weights.dtype, jnp.float32))
    if known is None:
        return jnp.where(exists[:, None], weights, jnp.nan)
    if not exists.all():
        raise ValueError(f"labels must be {expected}, got {known[~exists][0]}")
    # A NumPy array, so that the prior can validate it even under tracing.
    return weights


def checked_conditions(
    spec: ModelSpec, labels: Labels, batch: int | None, *, with_exposure: bool
) -> Conditions | None:
    """Validated conditions beside x or z; None if the model has none."""
    exposure = checked_exposure(spec, labels, batch) if with_exposure else None
    given = Conditions(
        class_weights(spec, labels, batch),
        checked_covariates(spec, labels, batch),
        exposure,
    )
    return given if any(part is not None for part in given) else None
