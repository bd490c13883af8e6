"""Figures of a trained model as PNG files, drawn with matplotlib.

Most are grids of examples, `cells` `[R, C, D]` with row 0 at the top, computed by the
model and drawn by `draw`, which is `draw_grid` for a given data set. No global state of
matplotlib is changed.
"""

import textwrap
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import NormalDist

import jax
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from matplotlib.ticker import MaxNLocator
from PIL import Image

import vae_jax
from experiments.choices import labels_of
from experiments.runner.report import save_figure
from experiments.style import BY_LABEL, styled
from vae_jax import Conditions, Params
from vae_jax.types import AnyArray, Key, Labels

DPI = 150
CELL = 84  # Minimum side of a drawn example in pixels; MNIST is enlarged 3 x 3.
LARGEST_SMOOTHED = 16  # Pixels of so few cannot be read as squares; digits have 8 x 8.
GAP, BREAK = 4, 18  # Pixels between examples, and additional pixels between groups.
ACTIVE_VARIANCE = 0.01  # Burda, Grosse & Salakhutdinov 2016, section 5.2
CURVES = {"elbo": "ELBO", "log_likelihood": "log-likelihood", "kl_divergence": "KL"}

_decode_means = jax.jit(
    lambda params, z, **labels: vae_jax.decode(params, z, **labels).mean
)


def draw_all(
    folder: Path,
    params: Params,
    *,
    dataset_name: str,
    data_shape: tuple[int, ...],
    x: AnyArray,
    labels: Labels,
    unit_variances: AnyArray,
    metrics: list[dict],
    key: Key,
) -> list[Path]:
    """Draw every figure of a run into `folder`, created if absent; return the files.

    Args:
      folder: folder of the figures.
      params: the trained model.
      dataset_name: name of the data set, for the titles.
      data_shape: shape of an example. (height, width) and (height, width, 1 or 3) are
        drawn as images, other shapes as step curves.
      x: test set, `[n, D]`; examples are drawn only if they are pixels (`are_pixels`).
      labels: labels of the test set, `[n]`, or `Conditions`, or None; a conditional
        model uses them.
      unit_variances: `variance` of the `active_units` on the test set.
      metrics: dicts with `epoch`, `split` ("train", and "validation" or "test")
        and the entries of `CURVES`, in nats per example or None.
      key: PRNG key, consumed once.
    """
    x, given = np.asarray(x), partial(labels_of, params)
    has_pictures = are_pixels(params, x) and not params.spec.num_covariates
    conditions = labels
    if isinstance(labels, Conditions):
        labels = labels.labels
    labels = np.zeros(len(x), int) if labels is None else np.asarray(labels)
    order = varied_order(labels)
    encoded = np.linspace(0, len(x) - 1, min(len(x), 5000)).astype(int)
    some = jax.tree.map(lambda values: np.asarray(values)[encoded], conditions)
    posterior = jax.jit(vae_jax.encode)(params, x[encoded], **given(some))
    # With several stochastic layers, use the one next to the data.
    means = np.asarray(jax.tree.leaves(posterior.mean)[0])
    keys = jax.random.split(key)
    autoencoder = isinstance(params.spec.posterior, vae_jax.PointMass)
    caveat = ", which the autoencoder was not trained for" if autoencoder else ""
    draw = partial(draw_grid, dataset_name=dataset_name, data_shape=data_shape)
    figures = {"training_curves": draw_training_curves(metrics, dataset_name)}
    if has_pictures:
        figures["reconstructions"] = draw_reconstructions(
            draw, params, x[order[:30]], keys[0], labels[order[:30]]
        )
        figures["samples"] = draw_samples(draw, params, keys[1], caveat)
        figures["interpolations"] = draw_interpolations(draw, params, x, labels, order)
    # Binary latents have no values between 0 and 1 to traverse.
    is_real = params.spec.posterior.latent_space != "binary"
    if is_real and has_pictures:
        variances = np.asarray(unit_variances)[: means.shape[1]]
        figures["traversals"] = draw_traversals(
            draw, params, means, variances, labels[:1]
        )
    if is_real and params.spec.latent_dim == 2:
        standard = isinstance(params.spec.prior, vae_jax.StandardNormal)
        if standard and has_pictures and not params.spec.num_classes:
            figures["manifold"] = draw_manifold(draw, params, caveat)
        labels = labels[encoded]
        figures["latent_scatter"] = draw_latent_scatter(means, labels, dataset_name)
    return [save_figure(figure, folder, name) for name, figure in figures.items()]


def are_pixels(params: Params, x: np.ndarray) -> bool:
    """Whether examples are pixels in [0, 1], and not counts or rows of a table."""
    likelihood = params.spec.likelihood
    if isinstance(likelihood, vae_jax.Columns | vae_jax.Standardized | vae_jax.Masked):
        return False
    return bool(np.all((x >= 0) & (x <= 1))) and not likelihood.support.whole


def varied_order(labels: np.ndarray) -> np.ndarray:
    """Order the examples so that the labels `[n]` take turns; return indices `[n]`."""
    by_label = np.argsort(labels, kind="stable")
    _, counts = np.unique(labels, return_counts=True)
    turn = np.concatenate([np.arange(count) for count in counts])
    return by_label[np.argsort(turn, kind="stable")]


def draw_reconstructions(
    draw: Callable,
    params: Params,
    x: AnyArray,
    key: Key,
    labels: np.ndarray | None = None,
) -> Figure:
    """Draw rows of up to ten examples `[n, D]`, each above its reconstructions."""
    columns = min(10, len(x))
    count = len(x) // columns * columns
    x = x[:count]
    given = jax.tree.map(lambda value: value[:count], labels_of(params, labels))
    both = np.stack([x, jax.jit(vae_jax.reconstruct)(params, x, key, **given)])
    pairs = both.reshape(2, -1, columns, x.shape[1]).swapaxes(0, 1)
    return draw(
        pairs.reshape(-1, columns, x.shape[1]),
        "reconstructions",
        "Test examples; below each, the mean of p(x|z) for a z drawn from q(z|x)",
        labels=((), ["test example", "reconstruction"] * len(pairs)),
        breaks=((), range(2, 2 * len(pairs), 2)),
    )


def draw_samples(draw: Callable, params: Params, key: Key, caveat: str) -> Figure:
    """Draw the means of p(x|z) at 100 samples from the prior."""
    sample = jax.jit(vae_jax.generate, static_argnames="num_samples")
    classes = np.arange(100) % 10 % max(params.spec.num_classes, 1)
    drawn = sample(params, key, num_samples=100, **labels_of(params, classes))
    cells = np.asarray(drawn).reshape(10, 10, -1)
    each = ", a class to a column" if params.spec.num_classes else ""
    subtitle = f"Means of p(x|z) for z drawn from the prior{each}{caveat}"
    return draw(cells, "samples", subtitle)


def draw_interpolations(draw: Callable, params: Params, x, labels, order) -> Figure:
    """Draw interpolations between neighbours in `order` with different labels.

    If all labels are equal, any neighbours are used.
    """
    pairs = np.stack([order, np.roll(order, -1)], axis=1)
    differ = labels[pairs[:, 0]] != labels[pairs[:, 1]]
    pairs = pairs[differ] if differ.any() else pairs
    x0, x1 = x[pairs[:8].T]
    interpolate = jax.jit(vae_jax.interpolate, static_argnames="num_steps")
    given = labels_of(params, labels[pairs[:8, 0]])
    line = interpolate(params, x0, x1, num_steps=11, **given)
    return draw(
        np.concatenate([x0[None], line, x1[None]]).swapaxes(0, 1),
        "interpolations",
        "Means of p(x|z) for z on the line between two test examples' posterior means",
        labels=(["from", *(f"{step / 10:.1f}" for step in range(11)), "to"], ()),
        breaks=((1, 12), ()),
        axis_labels=("fraction of the way", ""),
    )


def draw_traversals(
    draw: Callable,
    params: Params,
    means: np.ndarray,
    variances: np.ndarray,
    label: np.ndarray | None = None,
) -> Figure:
    """Draw traversals of single units, with the other units fixed at `means[0]`.

    Rows are sorted by the variance of the unit's posterior mean, largest first:
    `variances`, as `active_units` estimates it.
    """
    finite = np.where(np.isfinite(means), means, 0).astype(np.float64)
    # An estimate from samples may be negative.
    variances = np.maximum(np.where(np.isfinite(variances), variances, 0), 0.0)
    active = int(np.sum(variances > ACTIVE_VARIANCE))
    units = np.argsort(-variances, kind="stable")[: min(active or len(variances), 10)]
    shares = variances / max(variances.sum(), 1e-30)
    steps, axis_label = np.linspace(-3, 3, 13), "value of the unit"
    values = np.tile(steps, (len(units), 1))
    if isinstance(params.spec.posterior, vae_jax.PointMass):  # Codes of any scale.
        values = values * finite.std(0)[units, None] + finite.mean(0)[units, None]
        axis_label += ", in standard deviations from its mean over the test set"
    z = np.tile(means[0], (*values.shape, 1))
    z[np.arange(len(units)), :, units] = values
    given = None if label is None else np.tile(label, len(steps))
    beside = "" if params.spec.posterior.layers is None else " next to the data"
    names = [f"z{unit + 1}: {shares[unit]:.0%}" for unit in units]
    return draw(
        np.asarray(_decode_means(params, z, **labels_of(params, given))),
        "latent traversals",
        "Means of p(x|z) as one unit of z changes and the others stay as one example "
        f"has them. {active} of {len(variances)} units{beside} are active; left, each "
        "one's share in the variance of the means of q(z|x)",
        labels=([f"{step:g}" for step in steps], names),
        axis_labels=(axis_label, ""),
    )


def draw_manifold(draw: Callable, params: Params, caveat: str) -> Figure:
    """Draw the decoded plane of two latents, on a grid of equal prior probability."""
    values = [NormalDist().inv_cdf((n + 0.5) / 20) for n in range(20)]
    z = np.stack(np.meshgrid(values, values[::-1]), axis=-1)
    ticks = [f"{value:.2f}" for value in values]
    return draw(
        np.asarray(_decode_means(params, z)),
        "the latent plane, decoded",
        f"Means of p(x|z); each cell is 1/400 of the prior N(0, I){caveat}",
        labels=(ticks, ticks[::-1]),
        axis_labels=("z1", "z2"),
    )


@styled()
def draw_latent_scatter(means, labels, dataset_name: str) -> Figure:
    """Draw posterior means `[n, 2]`, coloured by label `[n]` if there are several."""
    subtitle = (
        f"Means of q(z|x) of {len(means):,} test examples; circle: 95% of N(0, I)"
    )
    figure = new_figure((1010, 830), f"{dataset_name}: the latent plane", subtitle)
    axes = add_axes(figure, 100, 80, 740, 740)
    axes.add_patch(Circle((0, 0), 2.448, fill=False, ls="--", color="0.4", zorder=2))
    axes.set(xlabel="z1", ylabel="z2", aspect="equal", adjustable="datalim")
    classes, index = np.unique(labels, return_inverse=True)
    colors = BY_LABEL if len(classes) <= 10 else colormaps["viridis"]
    means = np.where(np.isfinite(means), means, np.nan)
    points = axes.scatter(
        *means.T, s=6, c=index, cmap=colors.resampled(len(classes)), lw=0
    )
    if len(classes) > 1:
        points.set_clim(-0.5, len(classes) - 0.5)
        bar = figure.colorbar(points, add_axes(figure, 870, 80, 30, 740), label="label")
        ticks = np.unique(np.linspace(0, len(classes) - 1, 10).astype(int))
        bar.set_ticks(
            ticks.tolist(), labels=list(map(str, classes[ticks])), minor=False
        )
    return figure


@styled()
def draw_training_curves(metrics: list[dict], dataset_name: str) -> Figure:
    """Draw the ELBO and its two terms against the epoch, in nats per example."""
    subtitle = "ELBO = log-likelihood E[log p(x|z)] - KL(q(z|x) || p(z))"
    width = max((row["epoch"] for row in metrics), default=0) // 20
    is_long = width >= 5
    if is_long:
        subtitle += f"; solid lines: means of {width} epochs"
    figure = new_figure((1560, 430), f"{dataset_name}: training", subtitle)
    for panel, (name, label) in enumerate(CURVES.items()):
        axes = add_axes(figure, 125 + 520 * panel, 85, 365, 300)
        axes.set(title=label, xlabel="epoch", ylabel="nats per example")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
        curves = []
        for split in dict.fromkeys(row["split"] for row in metrics):
            style = ".--" if split == "train" else ".-"
            rows = [row for row in metrics if row["split"] == split]
            curve = [(row["epoch"], row.get(name)) for row in rows]
            curves.append(np.array(curve, float).reshape(-1, 2).T)  # None becomes NaN.
            (line,) = axes.plot(*curves[-1], style, label=split)
            if is_long:
                line.set(alpha=0.3, markersize=2, label="_")
                mean = moving_average(curves[-1][1], width)
                axes.plot(curves[-1][0], mean, color=line.get_color(), label=split)
        if curves:  # There are none if the history of the run was lost.
            axes.set_ylim(focus(np.concatenate(curves, axis=1)))
            axes.legend()
    return figure


def moving_average(values: np.ndarray, width: int) -> np.ndarray:
    """Mean of the last `width` of `values` `[n]`, of fewer at the start, `[n]`."""
    ends = range(1, len(values) + 1)
    return np.array([values[max(0, end - width) : end].mean() for end in ends])


def focus(points: np.ndarray) -> tuple[float, float] | None:
    """Limits of y without the first tenth of epochs, if those compress the rest.

    None if the automatic limits are adequate, or the epochs are few.
    """
    epochs, values = points[:, np.isfinite(points[1])]
    if len(values) == 0 or np.ptp(epochs) < 10:
        return None
    late = values[epochs >= epochs.min() + 0.1 * np.ptp(epochs)]
    margin = 0.1 * np.ptp(late)
    if margin == 0 or np.ptp(values) < 3 * np.ptp(late):
        return None
    return late.min() - margin, late.max() + margin


@styled()
def draw_grid(
    cells: np.ndarray,
    title: str,
    subtitle: str,
    *,
    dataset_name: str,
    data_shape: tuple[int, ...],
    labels: tuple[Sequence[str], Sequence[str]] = ((), ()),
    breaks: tuple[Sequence[int], Sequence[int]] = ((), ()),
    axis_labels: tuple[str, str] = ("", ""),
) -> Figure:
    """Draw examples `[R, C, D]`; pairs of options are for columns and for rows."""
    tiles = to_tiles(cells, data_shape)
    subtitle += "; the curves run from 0 to 1" if len(data_shape) == 1 else ""
    rows, columns, height, width, _ = tiles.shape
    lefts = _starts(columns, width + GAP, breaks[0])
    tops = _starts(rows, height + GAP, breaks[1])
    image = np.full((tops[-1] + height, lefts[-1] + width, 3), 255, np.uint8)
    for row, column in np.ndindex(rows, columns):
        y, x = tops[row], lefts[column]
        image[y : y + height, x : x + width] = tiles[row, column]
    left = 16 + 14 * max(map(len, labels[1]), default=0) + 30 * bool(axis_labels[1])
    below = 16 + 30 * bool(labels[0]) + 32 * bool(axis_labels[0])
    size = image.shape[1::-1]
    around = (size[0] + left + 16, size[1] + below)
    figure = new_figure(around, f"{dataset_name}: {title}", subtitle)
    axes = add_axes(figure, left, below, *size)
    axes.imshow(image, extent=(0, size[0], size[1], 0), interpolation="nearest")
    axes.set(xlabel=axis_labels[0], ylabel=axis_labels[1])
    axes.set_xticks(lefts[: len(labels[0])] + width / 2, labels[0])
    axes.set_yticks(tops[: len(labels[1])] + height / 2, labels[1])
    axes.tick_params(length=0, labelsize=8)
    axes.spines[:].set_visible(False)
    axes.grid(visible=False)
    return figure


def to_tiles(cells: np.ndarray, data_shape: tuple[int, ...]) -> np.ndarray:
    """Pixels `[R, C, height, width, 3]` of images or step curves; non-finite is red."""
    shape = (*data_shape, 1)[:3]
    if len(data_shape) in (2, 3) and shape[2] in (1, 3):
        pixels, size = cells.reshape(*cells.shape[:2], *shape), max(shape)
        if min(shape[:2]) > 3 and size <= LARGEST_SMOOTHED:
            pixels = _smooth(pixels, size)
        else:
            pixels = _resize(_resize(pixels, 2, size), 3, size)
    else:
        values = _resize(cells, 2, cells.shape[2])[:, :, None, :, None]
        levels = (np.arange(CELL // 1.5)[::-1, None, None] + 0.5) / (CELL // 1.5)
        pixels = np.where(values > levels, (0.12, 0.47, 0.71), (0.92, 0.92, 0.92))
        pixels = np.where(np.isfinite(values), pixels, np.nan)
    pixels = np.where(np.isfinite(pixels), np.clip(pixels, 0, 1), (0.9, 0.1, 0.1))
    return np.round(255 * pixels).astype(np.uint8)


def _resize(pixels: np.ndarray, axis: int, size: int) -> np.ndarray:
    """Repeat or skip pixels, so that `size` of them become `CELL` to 2 `CELL`."""
    if size > 2 * CELL:
        return np.take(pixels, range(0, pixels.shape[axis], size // CELL), axis)
    return np.repeat(pixels, -(-CELL // size), axis)


def _smooth(pixels: np.ndarray, size: int) -> np.ndarray:
    """Interpolate small images so that `size` pixels become `CELL` to 2 `CELL`."""
    times = -(-CELL // size)
    height, width = times * pixels.shape[2], times * pixels.shape[3]
    shape = (*pixels.shape[:2], height, width, pixels.shape[4])
    finite = np.isfinite(pixels)
    smooth = np.empty(shape, np.float32)
    known = np.where(finite, pixels, 0).astype(np.float32)
    for row, column, channel in np.ndindex(*shape[:2], shape[4]):
        image = Image.fromarray(known[row, column, :, :, channel])
        resized = image.resize((width, height), Image.Resampling.BICUBIC)
        smooth[row, column, :, :, channel] = np.asarray(resized)
    return np.where(_resize(_resize(finite, 2, size), 3, size), smooth, np.nan)


def _starts(count: int, step: int, breaks: Sequence[int]) -> np.ndarray:
    """Start of each of `count` tiles, with extra space before those in `breaks`."""
    return step * np.arange(count) + BREAK * np.isin(range(count), breaks).cumsum()


def new_figure(size: Sequence[int], title: str, subtitle: str) -> Figure:
    """Make a figure with `size` pixels of space below its titles."""
    width = max(size[0], 600)
    title = textwrap.fill(title, width // 14)
    subtitle = textwrap.fill(subtitle, int(width / 10.5))
    title_height = 28 * (title.count("\n") + 1)
    height = size[1] + 38 + title_height + 24 * (subtitle.count("\n") + 1)
    # Places in pixels, which no layout moves.
    figure = Figure((width / DPI, height / DPI), dpi=DPI)
    figure.set_layout_engine("none")
    # A dollar sign in the name of a data set does not start a formula.
    write = partial(figure.text, 16 / width, va="top", parse_math=False)
    write(1 - 12 / height, title, size=11, weight="bold")
    write(1 - (18 + title_height) / height, subtitle, size=8.5, color="0.35")
    return figure


def add_axes(figure: Figure, left: int, bottom: int, width: int, height: int) -> Axes:
    """Add axes at a position given in pixels."""
    pixels = np.tile(DPI * figure.get_size_inches(), 2)
    x, y, dx, dy = np.array((left, bottom, width, height)) / pixels
    return figure.add_axes((x, y, dx, dy))
