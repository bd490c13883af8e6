"""Compare a negative binomial model of counts with that of scvi-tools.

python -m experiments.comparisons.scvi_tools --counts=cells.npz

This needs an environment with `pip install 'scvi-tools>=1.4,<1.5'`, which brings
PyTorch. SCVI (Lopez et al. 2018) has its defaults: 128 hidden units, batch
normalization, a softmax over genes, one dispersion per gene, and the total of a row as
its library size. Its number of epochs is chosen on the same validation rows, and it is
trained again on the same rows as the model of `vae_jax`. Its networks are then called
from a model of `vae_jax` (`replace_networks`), so that log p(x) of both is estimated by
the same code.
"""

import contextlib
import importlib
import io
import logging
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import vae_jax
from experiments.choices import with_row_totals
from experiments.comparisons import counts, protocol
from experiments.comparisons.protocol import Held, Rows
from experiments.published.tables import write
from experiments.runner import flags
from experiments.runner.command_line import execute, parse
from experiments.runner.report import columns, markdown, num_cores
from vae_jax.distributions import (
    DiagonalGaussianDistribution,
    NegativeBinomialDistribution,
)
from vae_jax.types import Array

COMMAND = "python -m experiments.comparisons.scvi_tools"
OURS, THEIRS = "vae_jax", "scvi-tools"
TIMED_EPOCHS = (200, 1000)


@dataclass(frozen=True, kw_only=True)
class Config(counts.Config):
    """Compare a negative binomial model of counts with that of scvi-tools."""


def run(config: Config) -> dict[str, Any]:
    """Train both on each fold; print and record the results.

    Args:
      config: the configuration.

    Returns:
      The record.

    Raises:
      ValueError: if scvi-tools is not installed.
    """
    flags.check(config)
    try:
        importlib.import_module("scvi")
    except ImportError as error:
        raise ValueError(
            "scvi-tools is not installed: pip install 'scvi-tools>=1.4,<1.5', best in "
            "an environment of its own"
        ) from error
    begun = counts.provenance(config, COMMAND, "scvi-tools", "torch")
    x = counts.load(config.counts)
    folds = protocol.folds(x, config)
    likelihood = counts.LIKELIHOODS[counts.REFERENCE]
    held: dict[str, list[Held]] = {OURS: [], THEIRS: []}
    for rows in folds:
        held[OURS].append(counts.of_fold(likelihood, rows, config)[0])
        held[THEIRS].append(of_scvi(rows, config))
    record = {
        "rows": len(x),
        "columns": x.shape[1],
        "models": protocol.summary(held, OURS),
        "rows_per_second": speeds(folds[0], config),
        "cores": num_cores(),
        "timed_epochs": TIMED_EPOCHS,
        "timed_rows": len(folds[0].known),
        **begun,
    }
    print(columns(_rows(record), "<>>>>"))
    write(record, config.results_dir, "scvi_tools")
    return record


def of_scvi(rows: Rows, config: Config) -> Held:
    """Train SCVI on a fold and estimate log p(x) of its held-out rows."""
    first = _model(rows.known, config)
    numbers = np.arange(len(rows.known))
    _fit(
        first,
        config,
        config.epochs,
        check_val_every_n_epoch=1,
        datasplitter_kwargs={"external_indexing": np.split(numbers, [len(rows.train)])},
    )
    # All epochs: during its warm-up of the KL the bound falls and rises again. The
    # history is of minus the ELBO.
    bound = first.history["elbo_validation"].to_numpy()[:, 0]
    best = int(np.nanargmin(bound)) + 1
    chosen = _model(rows.known, config)
    _fit(chosen, config, protocol.refit_epochs(best, rows, config), train_size=1.0)
    chosen.module.eval()
    return protocol.held_out(
        as_params(chosen, rows.known.shape[1], config.latent_dim),
        rows,
        rows.key,
        config,
        choice=f"{best} epochs",
        labels=with_row_totals,
    )


def as_params(model: Any, dim: int, latent_dim: int) -> vae_jax.Params:
    """Convert a trained SCVI to a model of `vae_jax`, independent of PyTorch.

    Args:
      model: an SCVI with one hidden layer per network and negative binomials.
      dim: number of genes.
      latent_dim: number of latents.

    Returns:
      Parameters with functions for q(z|x) and p(x|z).
    """
    weights = {
        name: jnp.asarray(value.numpy())
        for name, value in model.module.state_dict().items()
    }

    def linear(x: Array, name: str) -> Array:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def hidden(x: Array, name: str) -> Array:
        normalized, layer = f"{name}.fc_layers.Layer 0.1", f"{name}.fc_layers.Layer 0.0"
        mean, variance, scale, shift = (
            weights[f"{normalized}.{part}"]
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        x = (linear(x, layer) - mean) / jnp.sqrt(variance + 1e-3)
        return jax.nn.relu(scale * x + shift)

    def posterior(x: Array) -> DiagonalGaussianDistribution:
        h = hidden(jnp.log1p(x), "z_encoder.encoder")
        variance = jnp.exp(linear(h, "z_encoder.var_encoder")) + 1e-4
        mean = linear(h, "z_encoder.mean_encoder")
        return DiagonalGaussianDistribution(mean, jnp.log(variance))

    def likelihood(z: Array, labels: Any) -> NegativeBinomialDistribution:
        h = hidden(z, "decoder.px_decoder")
        shares = jax.nn.softmax(linear(h, "decoder.px_scale_decoder.0"))
        mean = shares * labels.exposure[:, None]
        return NegativeBinomialDistribution(mean, jnp.exp(weights["px_r"]))

    spec = counts.spec(counts.LIKELIHOODS[counts.REFERENCE], dim, latent_dim)
    start = vae_jax.init(spec, jax.random.key(0))
    return vae_jax.replace_networks(start, posterior=posterior, likelihood=likelihood)


def speeds(rows: Rows, config: Config) -> dict[str, float]:
    """Rows per second of training, from the time of many epochs less that of few.

    This leaves out the start and compilation. The packages take turns.

    Args:
      rows: rows of a fold; all that are not held out are trained on.
      config: batch size and rates.

    Returns:
      The medians of three by the name of the package.
    """
    likelihood = counts.LIKELIHOODS[counts.REFERENCE]
    spec = counts.spec(likelihood, rows.known.shape[1], config.latent_dim)

    def ours(epochs: int) -> None:
        found = protocol.trained(
            spec, rows, rows.key, config, num_epochs=epochs, labels=with_row_totals
        )
        jax.block_until_ready(found)

    def theirs(epochs: int) -> None:
        _fit(_model(rows.known, config), config, epochs, train_size=1.0)

    trains = {OURS: ours, THEIRS: theirs}
    seconds: dict[str, list[list[float]]] = {name: [] for name in trains}
    for _ in range(3):
        for name, train in trains.items():
            seconds[name].append([_seconds(train, epochs) for epochs in TIMED_EPOCHS])
    rows_more = (TIMED_EPOCHS[1] - TIMED_EPOCHS[0]) * len(rows.known)
    medians = {name: np.median(each, axis=0) for name, each in seconds.items()}
    return {name: rows_more / (long - short) for name, (short, long) in medians.items()}


def _seconds(train: Callable[[int], None], epochs: int) -> float:
    started = time.perf_counter()
    train(epochs)
    return time.perf_counter() - started


def _model(x: np.ndarray, config: Config) -> Any:
    scvi, anndata = map(importlib.import_module, ("scvi", "anndata"))
    scvi.settings.seed = config.seed
    scvi.settings.verbosity = logging.ERROR
    cells = anndata.AnnData(x.astype(np.float32))
    scvi.model.SCVI.setup_anndata(cells)
    return scvi.model.SCVI(
        cells, n_latent=config.latent_dim, n_layers=1, gene_likelihood="nb"
    )


def _fit(model: Any, config: Config, epochs: int, **options: Any) -> None:
    """Train on the CPU without output."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.train(
            max_epochs=epochs,
            accelerator="cpu",
            batch_size=config.batch_size,
            enable_progress_bar=False,
            **options,
        )


def _rows(record: dict[str, Any]) -> list[tuple[str, ...]]:
    speeds, models = record["rows_per_second"], record["models"]
    rows = protocol.evidence_rows("package", models, OURS, 1)
    others = [("Pareto k > 0.7", "rows per second")]
    for name, found in models.items():
        others.append((f"{found['high_pareto_k']:.0%}", f"{speeds[name]:,.0f}"))
    return [(*row, *other) for row, other in zip(rows, others, strict=True)]


def section(record: dict[str, Any] | None) -> str:
    """Format the section of the page on scvi-tools.

    Args:
      record: content of `results/scvi_tools.json`; None if not yet measured.

    Returns:
      Markdown.
    """
    lines = ["## Counts of cells, beside scvi-tools", ""]
    if record is None:
        return "\n".join([*lines, f"`{COMMAND}`: not yet measured.", ""])
    return "\n".join(
        [
            *lines,
            f"`{record['command']}`, with scvi-tools "
            f"{record['versions']['scvi-tools']} and PyTorch "
            f"{record['versions']['torch']}.",
            "",
            "Negative binomials with 10 latents and 128 hidden units. SCVI has batch "
            "normalization, dropout, a softmax over genes and a warm-up of its KL; "
            "ours none of them, and a larger rate for the dispersions. The log p(x) of "
            "both is taken by the same code, a lower bound for rows with a Pareto k "
            "above 0.7. Speed: rows per second of training on "
            f"{record['timed_rows']} cells, start and compilation left out, on "
            f"{record['cores']} core{'s' * (record['cores'] > 1)}.",
            "",
            markdown(_rows(record)),
            "",
        ]
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with these arguments or those of the process."""
    execute(run, parse(Config, argv, command=COMMAND))


if __name__ == "__main__":
    main()
