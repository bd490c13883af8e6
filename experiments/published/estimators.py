"""Comparison of gradient estimators, paired by seed.

    python -m experiments.published.estimators

Bits: 200 Bernoulli latents between linear networks, static MNIST, batches of 24, as in
the table of Grathwohl et al. 2018, at a tenth of its 2,000,000 steps. Every estimator
evaluates the decoder at two points per image and step; the best one is also trained
with sixteen points, for all of the paper's steps, and with batches ten times as large.
Gaussian latents: the network of Burda et al. 2016, with the standard gradient and with
a published improvement, one pair per claim. All seeds of an estimator train in one
program.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np

import vae_jax
from experiments import evaluation_data, sweep
from experiments.evaluation import elbo_figures
from experiments.published.tables import FOLDER, chosen, provenance, write
from experiments.runner import flags
from experiments.runner.command_line import execute, parse
from experiments.runner.report import columns, markdown, mean_of, measured
from vae_jax.types import Array

FIGURES = ("train_elbo", "validation_elbo", "test_elbo", "log_evidence")
PAPER_STEPS = 2_000_000
_MODULE = "experiments.published.estimators"
BITS_COLUMNS: tuple[str, ...] = (
    "estimator",
    "training ELBO",
    "difference",
    "validation",
    "test",
    "steps",
    "of the paper's",
)
PAPER = {
    "NVIL": -112.5,
    "MuProp": -111.7,
    "REBAR": -111.6,
    "Concrete": -111.3,
    "RELAX": -111.2,
}
_COMMON: dict[str, Any] = {
    "dataset": "binarized_mnist",
    "likelihood": "bernoulli",
    "beta": (1.0,),
    "beta_warmup_epochs": (0.0,),
    "schedule": "cosine",
    "warmup_steps": 500,
    "num_seeds": 3,
}
_BITS: dict[str, Any] = {
    **_COMMON,
    "network": "linear",
    "posterior": "bernoulli",
    "latent_dim": 200,
    "batch_size": 24,
    "epochs": 96,
    "learning_rate": (1e-3,),
}
_GAUSSIAN: dict[str, Any] = {
    **_COMMON,
    "hidden_dims": (200, 200),
    "activation": "tanh",
    "latent_dim": 50,
    "batch_size": 100,
    "epochs": 30,
    "learning_rate": (2e-3,),
    "evaluation_samples": 1000,
}


class Signs(nn.Module):
    """Affine network on signs: 0 becomes -1."""

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Return 2 x - 1."""
        return 2 * inputs - 1


class Arm(NamedTuple):
    """One estimator of a comparison.

    Attributes:
      group: `bits` or `gaussian`.
      against: name of the baseline arm, compared seed by seed; None for a baseline.
      flags: flags of experiments.sweep.
    """

    group: str
    against: str | None
    flags: Mapping[str, Any]


def _bits(
    estimator: str, num_samples: int, against: str | None = "disarm", **other: Any
) -> Arm:
    own = {"estimator": estimator, "num_samples": num_samples, **other}
    return Arm("bits", against, _BITS | own)


def _gaussian(against: str | None, **own: Any) -> Arm:
    return Arm("gaussian", against, _GAUSSIAN | own)


ARMS = {
    # Two points each: a pair of bits, two samples, a sample and its relaxation, etc.
    "disarm": _bits("disarm", 1, None),
    "leave_one_out": _bits("leave_one_out", 2),
    "rebar": _bits("rebar", 1),
    "mean_baseline": _bits("mean_baseline", 1),
    "gumbel_softmax": _bits("gumbel_softmax", 2),
    "straight_through": _bits("straight_through", 2),
    "disarm_3e-3": _bits("disarm", 1, learning_rate=(3e-3,)),
    "disarm_3e-3_8_pairs": _bits("disarm", 8, learning_rate=(3e-3,)),
    "disarm_3e-3_all_steps": _bits(
        "disarm", 1, None, learning_rate=(3e-3,), epochs=960, num_seeds=1
    ),
    "disarm_batches_of_240": _bits(
        "disarm",
        1,
        None,
        network=f"{_MODULE}:Signs",
        batch_size=240,
        learning_rate=(1e-2,),
        epochs=960,
        num_seeds=1,
    ),
    "elbo": _gaussian(None, kl="monte_carlo"),
    "elbo_path_derivative": _gaussian(
        "elbo", kl="monte_carlo", estimator="path_derivative"
    ),
    "iwae_5": _gaussian(None, objective="iwae", num_samples=5),
    "iwae_5_doubly_reparameterized": _gaussian(
        "iwae_5", objective="iwae", num_samples=5, estimator="doubly_reparameterized"
    ),
    "iwae_16": _gaussian(None, objective="iwae", num_samples=16),
    "piwae_4_by_4": _gaussian(
        "iwae_16", objective="piwae", num_samples=16, num_groups=4
    ),
}


@dataclass(frozen=True)
class Config:
    """Train with each estimator; run the same command to resume."""

    arms: tuple[str, ...] = ()
    """Names of the estimators to train, by default all."""
    data_dir: str = "data"
    """Folder of data files; downloads go there."""
    run_dir: str = "runs/published"
    """Parent folder of the run folders."""
    results_dir: str = str(FOLDER / "results")
    """Folder of the records."""


def run(config: Config, *, arms: Mapping[str, Arm] = ARMS) -> list[dict[str, Any]]:
    """Train the arms of a comparison and record their figures.

    Args:
      config: the configuration.
      arms: all arms, by name.

    Returns:
      The records.

    Raises:
      ValueError: if a name is not that of an arm.
    """
    flags.check(config)
    records = []
    for name in chosen("arms", config.arms, arms):
        folder = Path(config.run_dir, f"estimators-{name}")
        begun = provenance(folder)
        results = sweep.run(
            sweep.Config(
                **arms[name].flags, data_dir=config.data_dir, run_dir=str(folder)
            )
        )
        records.append(record(name, arms[name], folder, results) | begun)
        write(records[-1], config.results_dir, f"estimators-{name}")
        rows = [("figure", "mean over seeds, nats")]
        print(columns([*rows, *_figures(records[-1])], "<>"), flush=True)
    return records


def record(
    name: str, arm: Arm, folder: Path, results: Mapping[str, Any]
) -> dict[str, Any]:
    """Make the record of an arm for `results/`.

    Args:
      name: name of the arm.
      arm: the arm.
      folder: folder of the sweep.
      results: content of the sweep's results.json.

    Returns:
      Figures of each seed, cost, and the command and flags to reproduce them.
    """
    # One data set for all seeds. The training ELBO is recomputed: the logged one is for
    # relaxed bits if the estimator relaxes them.
    _, found = evaluation_data.of_run(folder, model=0)
    models = []
    for index, row in enumerate(results["models"]):
        params = vae_jax.load_run(folder, model=index, trust=[_MODULE])
        models.append(row | {"train_elbo": elbo_figures(params, found.train)["elbo"]})
    return {
        "command": f"python -m experiments.published.estimators --arms {name}",
        "models": [
            {key: model[key] for key in ("seed", *FIGURES, "active_units")}
            for model in models
        ],
        "steps": results["step"],
        "passes": results["epochs"],
        "images_per_second": results["images_per_second"],
        "flags": asdict(sweep.Config(**arm.flags)),
    }


def _figures(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Format means over the seeds, with standard errors."""
    values = {name: _of(found, name) for name in FIGURES}
    return [(name, _shown(own)) for name, own in values.items() if None not in own]


def _of(found: Mapping[str, Any], name: str) -> list[Any]:
    return [model[name] for model in found["models"]]


def _shown(values: Sequence[float]) -> str:
    mean = mean_of(values)
    return measured(*mean.values(), sign="±")


def difference(
    found: Mapping[str, Any], against: Mapping[str, Any], name: str
) -> list[float]:
    """Difference of a figure between two arms, seed by seed, in nats.

    Args:
      found: record of an arm.
      against: record of the arm to subtract.
      name: name of the figure.

    Returns:
      One difference per seed.

    Raises:
      ValueError: if the records have different seeds.
    """
    seeds = _of(found, "seed"), _of(against, "seed")
    if seeds[0] != seeds[1]:
        raise ValueError(f"records of seeds {seeds[0]} and {seeds[1]} are no pairs")
    return list(np.subtract(_of(found, name), _of(against, name)))


def section(results: Path, arms: Mapping[str, Arm] = ARMS) -> str:
    """Format the section of the page on gradient estimators.

    Args:
      results: folder of the records.
      arms: all arms, by name.

    Returns:
      Markdown.
    """
    paths = {name: results / f"estimators-{name}.json" for name in arms}
    found = {
        name: json.loads(path.read_text())
        for name, path in paths.items()
        if path.exists()
    }
    published = ", ".join(f"{name} {value}" for name, value in PAPER.items())
    bits = [name for name, arm in arms.items() if arm.group == "bits"]
    trained = [name for name in bits if name in found]
    trained.sort(key=lambda name: -mean_of(_of(found[name], "train_elbo"))["mean"])
    lines = [
        "## Gradient estimators for 200 bits, linear networks, static MNIST",
        "",
        "Published: Grathwohl, Choi, Wu, Roeder & Duvenaud 2018, arXiv:1711.00123, "
        f"highest training ELBO after 2,000,000 steps of 24: {published}. Here each "
        "estimator has the decoder at two points an image and step, Adam at 1e-3 with "
        "a cosine schedule, a learned factorized prior, weights of its last step; mean "
        "and standard error over three seeds; the differences are from `disarm`, seed "
        "by seed. `gumbel_softmax` and `straight_through` are biased. `disarm_3e-3` is "
        "at 3e-3, the best of 1e-3, 3e-3, 5e-3 and 1e-2 on validation data; "
        "`disarm_3e-3_8_pairs` has eight pairs of bits, sixteen points, an image and "
        "step. `disarm_3e-3_all_steps` takes all of the paper's steps, with one seed. "
        "`disarm_batches_of_240` takes a tenth of the paper's steps, of ten times as "
        "many images, at 1e-2, both networks on signs (0 becomes -1), with one seed.",
        "",
    ]
    rows = [BITS_COLUMNS]
    for name in trained:
        own = found[name]
        cells = [_shown(_of(own, figure)) for figure in FIGURES[:3]]
        other = found.get(arms[name].against or "")
        cells.insert(1, _difference(own, other, "train_elbo"))
        share = f"{own['steps'] / PAPER_STEPS:.2f}"
        rows.append((f"`{name}`", *cells, f"{own['steps']:,}", share))
    absent = [name for name in bits if name not in found]
    rows += [(f"`{name}`", "not yet measured", *[""] * 5) for name in absent]
    lines += [
        markdown(rows),
        "",
        "One command each, `python -m experiments.published.estimators --arms NAME`.",
        "",
        "## Better gradients for Gaussian latents, in pairs",
        "",
        "784-200-200-50, tanh, static MNIST, 30 passes of batches of 100, log p(x) by "
        "1000 importance samples, three seeds; the difference is taken seed by seed. "
        "Sources: Roeder, Wu & Duvenaud 2017 (`path_derivative`), Tucker, Lawson, Gu & "
        "Maddison 2019 (`doubly_reparameterized`), Rainforth et al. 2018 (`piwae`).",
        "",
    ]
    pairs = [
        _pair(name, arm, found) for name, arm in arms.items() if arm.group == "gaussian"
    ]
    lines.append(markdown([("gradient", "log p(x)", "against", "difference"), *pairs]))
    return "\n".join([*lines, ""])


def _pair(name: str, arm: Arm, found: Mapping[str, Any]) -> tuple[str, ...]:
    if name not in found:
        return f"`{name}`", "not yet measured", "", ""
    value = _shown(_of(found[name], "log_evidence"))
    if arm.against is None:
        return f"`{name}`", value, "", ""
    less = _difference(found[name], found.get(arm.against), "log_evidence")
    return f"`{name}`", value, f"`{arm.against}`", less


def _difference(
    own: Mapping[str, Any], other: Mapping[str, Any] | None, name: str
) -> str:
    if other is None or own is other:
        return ""
    shown = _shown(difference(own, other, name))
    return shown if shown.startswith("-") else f"+{shown}"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with these arguments or those of the process."""
    name = "python -m experiments.published.estimators"
    execute(run, parse(Config, argv, command=name))


if __name__ == "__main__":
    main()
