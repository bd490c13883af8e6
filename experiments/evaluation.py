"""Figures of a trained model on a test set, and warnings based on them."""

import os
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import vae_jax
from experiments.choices import Given, labels_of
from experiments.runner.report import columns, mean_of, measured
from vae_jax.distributions import DiagonalGaussianDistribution
from vae_jax.importance_weights import HIGH_PARETO_K
from vae_jax.types import AnyArray, Array, Distribution, Labels

# Evaluation has its own root key: the same binarized test set and the same noise for
# every model and seed, so that differences between runs are paired. JAX's seeds have 32
# bits; `--seed` excludes this one, whose runs would use the same keys.
EVALUATION_SEED = 2**32 - 1
IMAGES_PER_CALL = 500
# A tail index near 0.7 has an error of about 0.2: some images exceed it by chance.
ALLOWED_HIGH_PARETO_K = 0.1


class EvaluationKeys(NamedTuple):
    """Children of the evaluation root.

    Attributes:
      data: draws the binarized test set.
      noise: root of the noise for ELBO, importance samples and annealing; in each,
        image i has one key (`vae_jax.evaluation.evaluation_keys`).
      figures: noise of the pictures.
      units: noise of the active units.
      aggregate: noise of the aggregate posterior.
      gap: noise of the inference gap.
      train_data: draws the training images to which a prior is fitted.
      fitted_prior: noise of their codes, and of the pictures of the fitted prior.
      calibration: noise of the simulated observations and their latents.
      predictive: noise of the replications of a posterior predictive check.
    """

    data: Array
    noise: Array
    figures: Array
    units: Array
    aggregate: Array
    gap: Array
    train_data: Array
    fitted_prior: Array
    calibration: Array
    predictive: Array


def evaluation_keys() -> EvaluationKeys:
    """Return the children of the evaluation root."""
    root = jax.random.key(EVALUATION_SEED)
    return EvaluationKeys(*jax.random.split(root, len(EvaluationKeys._fields)))


_evaluate = jax.jit(vae_jax.evaluate)
_log_evidence = jax.jit(
    vae_jax.log_evidence, static_argnames=("num_samples", "chunk_size")
)


def elbo_figures(
    params: vae_jax.Params, x: Array, labels: Labels = None
) -> dict[str, float]:
    """ELBO of a test set and its two terms, with one sample per image.

    Args:
      params: model parameters.
      x: the binarized test set, `[n, D]`.
      labels: its labels `[n]`, for a conditional model.

    Returns:
      `elbo`, `log_likelihood` and `kl_divergence`, means over images in nats.
    """
    given = labels_of(params, labels, x)
    terms = _evaluate(params, x, evaluation_keys().noise, **given)
    return {
        name: float(np.mean(np.asarray(values, np.float64)))
        for name, values in terms._asdict().items()
    }


_active_units = jax.jit(vae_jax.active_units)


def active_units(
    params: vae_jax.Params, x: AnyArray, labels: Labels = None
) -> vae_jax.ActiveUnits:
    """Variance of each latent unit's posterior mean over a test set.

    Args:
      params: model parameters.
      x: the binarized test set, `[n, D]`.
      labels: its labels `[n]`, for a conditional model.

    Returns:
      `vae_jax.ActiveUnits`, with the noise of the evaluation if the mean is not exact.
    """
    given = labels_of(params, labels, x)
    return _active_units(params, x, evaluation_keys().units, **given)


def unit_figures(
    params: vae_jax.Params, x: Array, labels: Labels = None
) -> dict[str, int | None]:
    """Number of active latent units; 0 means posterior collapse.

    Args:
      params: model parameters.
      x: the binarized test set, `[n, D]`.
      labels: its labels `[n]`, for a conditional model.

    Returns:
      `active_units`, the number of units whose posterior mean varies with x, None for
      a single example, and `num_units`.
    """
    return counts_of(active_units(params, x, labels), x)


def counts_of(units: vae_jax.ActiveUnits, x: AnyArray) -> dict[str, int | None]:
    """What `unit_figures` returns, of units that are known."""
    count = int(units.count) if len(x) > 1 else None
    return {"active_units": count, "num_units": units.active.size}


def active_of(count: int | None, num_units: int) -> str:
    """Format the number of active units."""
    return f"{'-' if count is None else count} of {num_units}"


def collapse_warning(models: str, remedies: str) -> str:
    """Return the warning of posterior collapse, with remedies.

    Args:
      models: subject and verb of the sentence: `the model has`.
      remedies: flags to change (`choices.collapse_remedies`).

    Returns:
      A line of text.
    """
    return (
        f"warning: posterior collapse: {models} no active unit on held-out data, so z "
        "carries no information about x and all reconstructions are alike; longer "
        f"training rarely helps: start anew with {remedies}"
    )


def warn_of_collapse(
    active_units: Sequence[int | None],
    remedies: str,
    *,
    finite: Sequence[bool] = (True,),
) -> None:
    """Warn of posterior collapse during training, while stopping still saves time.

    Args:
      active_units: number of active units of each model.
      remedies: flags to change (`choices.collapse_remedies`).
      finite: whether each model has finite parameters; others are not reported.
    """
    each = enumerate(zip(active_units, finite, strict=True))
    collapsed = [str(model) for model, (units, ok) in each if ok and units == 0]
    models = "the model has"
    if len(active_units) > 1:
        models = f"of the models, {', '.join(collapsed)} have"
    if collapsed:
        tqdm.write(collapse_warning(models, remedies), file=sys.stderr)


def latents_at_once() -> int:
    """Number of latents to decode at once, to fit a CPU cache or fill an accelerator.

    On two cores, 250 is 1.3 times as fast as 1000 (`experiments.throughput
    --workload=c`). The figures do not depend on this number.
    """
    return 250 if jax.default_backend() == "cpu" else 20_000


def importance_weighted_figures(
    params: vae_jax.Params, x: Array, labels: Labels = None, *, num_samples: int
) -> dict[str, Any]:
    """Importance-sampled log p(x) of a test set, mean over images in nats.

    Args:
      params: model parameters.
      x: the binarized test set, `[n, D]`.
      labels: its labels `[n]`, for a conditional model.
      num_samples: importance samples per image; with 0 the figures are undefined.

    Returns:
      The entries `importance_weighted_*` of results.json. The standard error is over
      images; `high_pareto_k` is the fraction of images whose weights have a Pareto k
      above 0.7. An undefined figure is None.
    """
    names = (
        "log_likelihood",
        "standard_error",
        "effective_sample_size",
        "high_pareto_k",
    )
    if not num_samples or not has_density(params, x, labels):
        figures: dict[str, Any] = dict.fromkeys(names)
    else:
        given = labels_of(params, labels, x)
        evidence = _evidence_of_all(params, x, given, num_samples)
        estimate = mean_of(evidence.estimate)
        values = (
            *estimate.values(),
            np.mean(evidence.effective_sample_size, dtype=np.float64),
            np.mean(evidence.pareto_k > HIGH_PARETO_K),
        )
        figures = dict(zip(names, map(float, values), strict=True))
    figures["num_samples"] = num_samples
    return {f"importance_weighted_{name}": value for name, value in figures.items()}


def has_density(params: vae_jax.Params, x: Array, labels: Labels) -> bool:
    """Return whether q(z|x) has a density, which KL and importance weights need."""
    given = labels_of(params, labels)
    return jax.eval_shape(vae_jax.encode, params, x, **given).has_density


def _evidence_of_all(
    params: vae_jax.Params, x: Array, labels: Given, num_samples: int
) -> vae_jax.LogEvidence:
    """`log_evidence` of a data set, in calls of `IMAGES_PER_CALL` images."""
    parts = []
    with tqdm(total=len(x), unit="image", disable=None, desc="log p(x)") as bar:
        for first in range(0, len(x), IMAGES_PER_CALL):
            here = slice(first, first + IMAGES_PER_CALL)
            part = _log_evidence(
                params,
                x[here],
                evaluation_keys().noise,
                num_samples=num_samples,
                first=jnp.int32(first),
                chunk_size=latents_at_once(),
                **jax.tree.map(lambda values, here=here: values[here], labels),
            )
            parts.append(jax.device_get(part))
            bar.update(len(parts[-1].estimate))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def table(results: dict[str, Any], folder: os.PathLike, *, remedies: str) -> str:
    """Format the figures of a run as a text table, followed by warnings.

    Args:
      results: the content of results.json.
      folder: the run's folder.
      remedies: flags to change if the posterior collapsed.

    Returns:
      Lines of text.
    """
    samples = results["importance_weighted_num_samples"]
    rows = [
        ("data set", results["dataset"]),
        *_likelihood_row(results),
        ("test ELBO", _nats(results["test_elbo"])),
        ("  E_q log p(x|z)", _nats(results["test_log_likelihood"])),
        ("  KL(q(z|x) || p(z))", _nats(results["test_kl_divergence"])),
        ("active units", active_of(results["active_units"], results["num_units"])),
        (
            f"log p(x), {samples} samples",
            _nats(
                results["importance_weighted_log_likelihood"],
                results["importance_weighted_standard_error"],
            ),
        ),
        *pareto_k_row(results),
        *_best_rows(results),
        ("training", f"{results['images_per_second'] or 0:,.0f} examples/s"),
        # Those before it, of a run that was resumed, are not counted.
        ("time of the last process", _seconds(results["seconds"])),
        ("  its first step after", _seconds(results["seconds_to_first_step"])),
        ("files", str(folder)),
    ]
    collapsed = ["the model has"] if results["active_units"] == 0 else []
    warnings = [collapse_warning(models, remedies) for models in collapsed]
    return "\n".join([columns(rows), *warnings, *evidence_warnings(results)])


def _likelihood_row(results: dict[str, Any]) -> list[tuple[str, str]]:
    """Likelihood and binarization; earlier versions record only the latter."""
    binarization = results["binarization"]
    parts = [results.get("likelihood")]
    parts += [None if binarization == "none" else f"{binarization} binarization"]
    text = ", ".join(part for part in parts if part)
    return [("likelihood", text)] if text else []


def _best_rows(results: dict[str, Any]) -> list[tuple[str, str]]:
    """Rows of the epoch that is best on validation data, if one was selected."""
    if "best_epoch" not in results:
        return []
    evidence = (
        results[f"best_importance_weighted_{name}"]
        for name in ("log_likelihood", "standard_error")
    )
    return [
        (
            "best validation ELBO",
            f"{_nats(results['best_validation_elbo'])}, epoch {results['best_epoch']}",
        ),
        ("  its test ELBO", _nats(results["best_test_elbo"])),
        ("  its log p(x)", _nats(*evidence)),
    ]


def pareto_k_row(figures: dict[str, Any]) -> list[tuple[str, str]]:
    """Table row with the fraction of images with heavy-tailed importance weights.

    Args:
      figures: contains the entries of `importance_weighted_figures`.

    Returns:
      One row of name and value; none if log p(x) is undefined.
    """
    share = figures.get("importance_weighted_high_pareto_k")
    if share is None:
        return []
    return [("  Pareto k of its weights above 0.7", f"{share:.1%} of the examples")]


def evidence_warnings(figures: dict[str, Any]) -> list[str]:
    """Warn if importance sampling of log p(x) is unreliable.

    Args:
      figures: contains the entries of `importance_weighted_figures`.

    Returns:
      One line, or none.
    """
    share = figures.get("importance_weighted_high_pareto_k")
    if share is None or share <= ALLOWED_HIGH_PARETO_K:
        return []
    return [
        f"warning: log p(x) is unreliable for {share:.0%} of the examples (Pareto k "
        "above 0.7, or too few samples to estimate it): it is a lower bound, and its "
        "error is larger than the standard error; raise --evaluation_samples, or see "
        "annealing in experiments.evaluate"
    ]


_nats = partial(measured, unit="nats")


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} s"


def diagonal(found: Distribution) -> DiagonalGaussianDistribution:
    """Return the distribution, which must be a diagonal Gaussian.

    Raises:
      ValueError: if it is of another class.
    """
    if not isinstance(found, DiagonalGaussianDistribution):
        raise ValueError(f"expected a diagonal Gaussian, got {type(found).__name__}")
    return found
