"""Figures of a run: files for every kind of data, and the content of each."""

import struct

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from specs import random_params

import vae_jax
from experiments import figures
from experiments.evaluation import active_units
from experiments.style import STYLE
from vae_jax import MLP, Gaussian, Linear, ModelSpec, Params, PointMass

ALWAYS = {"training_curves", "reconstructions", "samples", "interpolations"}
ALWAYS |= {"traversals"}
IN_THE_PLANE = {"manifold", "latent_scatter"}
NAME = "prices in $_$"  # Must not be parsed as a formula.

ROWS = [
    {
        "epoch": epoch,
        "step": 10 * epoch,
        "split": split,
        "elbo": -100 / epoch,
        "log_likelihood": -90 / epoch,
        "kl_divergence": 10 / epoch,
        "images_per_second": None,
    }
    for epoch in range(1, 6)
    for split in ("train", "test")
]
EMPTY = {"elbo": None, "log_likelihood": np.nan, "kl_divergence": np.inf}


def small(shape, latent_dim, **choices):
    choices = {"encoder": Linear(), "decoder": Linear(), **choices}
    return ModelSpec(latent_dim=latent_dim, data_shape=shape, **choices)


# Spec, number of examples, labels, rows of metrics.
CASES = {
    "plane-with-labels": (small((28, 28), 2), 43, np.arange(43) % 10, ROWS),
    "twenty-units": (
        small((8, 8), 20, decoder=MLP((4,))),
        30,
        np.arange(30) % 3,
        ROWS[:2],
    ),
    "curves": (small((37,), 3, likelihood=Gaussian()), 13, None, ROWS),
    "one-example": (small((5, 3), 3), 1, np.array([7]), [ROWS[0] | EMPTY, *ROWS]),
    "autoencoder": (small((8, 8), 2, posterior=PointMass()), 2, np.arange(2), ROWS[:1]),
}


def draw(folder, spec, n, labels, rows, params=None):
    x = np.random.default_rng(0).uniform(size=(n, spec.data_dim)).astype(np.float32)
    params = random_params(spec) if params is None else params
    return figures.draw_all(
        folder,
        params,
        dataset_name=NAME,
        data_shape=spec.data_shape,
        x=x,
        labels=labels,
        unit_variances=active_units(params, x, labels).variance,
        metrics=rows,
        key=jax.random.key(0),
    )


def png_size(file):
    content = file.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n" and content[-8:-4] == b"IEND"
    return struct.unpack(">II", content[16:24])


@pytest.fixture
def drawn(monkeypatch):
    """Figures made during a test, with their titles and subtitles."""
    made = []

    def new_figure(size, title, subtitle):
        made.append((original(size, title, subtitle), title, subtitle))
        return made[-1][0]

    original = figures.new_figure
    monkeypatch.setattr(figures, "new_figure", new_figure)
    return made


@pytest.mark.long
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=pytest.mark.slow if number else [])
        for number, case in enumerate(CASES)
    ],
)
def test_draws_every_file(case, tmp_path, drawn):
    spec, n, labels, rows = CASES[case]
    files = draw(tmp_path / "a" / "b", spec, n, labels, rows)
    expected = ALWAYS | (IN_THE_PLANE if spec.latent_dim == 2 else set())
    assert {file.stem for file in files} == expected
    assert {file.name for file in (tmp_path / "a" / "b").iterdir()} == {
        file.name for file in files
    }
    for file in files:
        width, height = png_size(file)
        assert 600 <= width < 3000 and 150 <= height < 3000
    assert len(drawn) == len(files)
    for figure, title, subtitle in drawn:
        assert title.startswith(NAME)
        if title.endswith("samples"):
            assert ("not trained for" in subtitle) == (case == "autoencoder")
        # No text extends beyond the figure, and no panel covers the titles.
        renderer = FigureCanvasAgg(figure).get_renderer()
        titles = [text.get_window_extent(renderer) for text in figure.texts]
        panels = [axes.get_tightbbox(renderer) for axes in figure.axes]
        for box in titles + panels:
            assert 0 <= box.x0 and box.x1 <= figure.bbox.x1
            assert 0 <= box.y0 and box.y1 <= figure.bbox.y1
        assert titles[0].y0 >= titles[1].y1
        assert all(panel.y1 <= titles[1].y0 for panel in panels)


@pytest.mark.slow
def test_equal_inputs_give_equal_files(tmp_path):
    case = small((1,), 1, likelihood=Gaussian()), 3, None, []
    first, second = draw(tmp_path / "1", *case), draw(tmp_path / "2", *case)
    assert {file.stem for file in first} == ALWAYS
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()


@pytest.mark.slow
def test_draws_a_model_that_diverged(tmp_path):
    def diverged(weights):
        bias = np.full(weights["output"]["bias"].shape, np.inf, np.float32)
        bias[0] = np.nan
        return weights | {"output": weights["output"] | {"bias": bias}}

    spec, *case = CASES["autoencoder"]
    params = random_params(spec)
    params = params.replace(
        encoder=diverged(params.encoder), decoder=diverged(params.decoder)
    )
    assert len(draw(tmp_path, spec, *case, params)) == 7


def captured(cells, title, subtitle, **options):
    """Stand-in for `draw_grid` that returns its arguments."""
    return np.asarray(cells), options | {"title": title, "subtitle": subtitle}


def identity(dim, posterior=None) -> Params:
    """Model whose encoder and decoder are the identity."""
    kernel = np.eye(dim, dtype=np.float32)
    if posterior is None:
        posterior = vae_jax.DiagonalGaussian()
        encoder = np.concatenate([kernel, 0 * kernel], axis=1)
    else:
        encoder = kernel
    spec = small((dim,), dim, posterior=posterior, likelihood=Gaussian())
    networks = [
        {"output": {"kernel": jnp.asarray(k), "bias": jnp.zeros(k.shape[1])}}
        for k in (encoder, kernel)
    ]
    return Params(*networks, {}, {}, {"log_var": jnp.zeros(())}, spec)


def test_reconstructions_stand_below_their_originals():
    params, key = identity(3), jax.random.key(1)
    x = np.random.default_rng(0).normal(size=(25, 3)).astype(np.float32)
    cells, options = figures.draw_reconstructions(captured, params, x, key)
    assert cells.shape == (4, 10, 3)
    decoded = jax.jit(vae_jax.reconstruct)(params, x[:20], key)
    np.testing.assert_array_equal(cells[::2].reshape(20, 3), x[:20])
    np.testing.assert_allclose(cells[1::2].reshape(20, 3), decoded, atol=1e-5)
    assert not np.allclose(cells[0], cells[1])
    assert options["labels"][1] == ["test example", "reconstruction"] * 2
    assert list(options["breaks"][1]) == [2]


def test_manifold_lies_as_its_axes_say():
    cells, options = figures.draw_manifold(captured, identity(2), "")
    assert cells.shape == (20, 20, 2)
    assert options["axis_labels"] == ("z1", "z2")
    across, down = (np.array(list(map(float, ticks))) for ticks in options["labels"])
    assert np.all(np.diff(across) > 0) and np.all(np.diff(down) < 0)
    np.testing.assert_allclose(cells[..., 0], np.tile(across, (20, 1)), atol=0.006)
    np.testing.assert_allclose(cells[..., 1], np.tile(down[:, None], 20), atol=0.006)
    # The slices of N(0, 1) are equally probable.
    probabilities = jax.scipy.stats.norm.cdf(cells[0, :, 0])
    np.testing.assert_allclose(probabilities, (np.arange(20) + 0.5) / 20, atol=1e-5)


def test_traversals_begin_with_the_most_varied_unit():
    spread = np.array([0.5, 2.0, 0.001, 1.0], np.float32)
    means = 0.25 + spread * np.array([[1], [-1]], np.float32)
    cells, options = figures.draw_traversals(
        captured, identity(4), means, means.var(axis=0)
    )
    assert cells.shape == (3, 13, 4)
    for row, unit in enumerate([1, 3, 0]):
        np.testing.assert_allclose(cells[row, :, unit], np.linspace(-3, 3, 13))
        others = np.delete(cells[row], unit, axis=1)
        np.testing.assert_allclose(others, np.tile(np.delete(means[0], unit), (13, 1)))
    assert options["labels"][1] == ["z2: 76%", "z4: 19%", "z1: 5%"]
    assert options["labels"][0][0] == "-3" and options["labels"][0][-1] == "3"
    assert "3 of 4 units are active" in options["subtitle"]


def test_traversals_of_an_autoencoder_span_its_codes():
    means = np.array([[10.0, 0.0], [30.0, 1.0]], np.float32)
    cells, options = figures.draw_traversals(
        captured, identity(2, PointMass()), means, means.var(axis=0)
    )
    np.testing.assert_allclose(cells[0, [0, 6, 12], 0], [-10, 20, 50], rtol=1e-5)
    assert "standard deviations" in options["axis_labels"][0]


def test_traversals_of_a_conditional_model_keep_the_label_of_their_example():
    params = random_params(small((5,), 3, num_classes=4))
    means = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
    cells, _ = figures.draw_traversals(
        captured, params, means, means.var(axis=0), np.array([2])
    )
    z = jnp.tile(means[:1], (13, 1))
    unit = int(np.argmax(means.var(axis=0)))
    z = z.at[:, unit].set(jnp.linspace(-3, 3, 13))[None]
    expected = vae_jax.decode(params, z, labels=jnp.full(13, 2)).mean[0]
    np.testing.assert_allclose(cells[0], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("case", ["layers", "flow"])
def test_traversals_show_the_active_units_of_the_table(case, tmp_path, monkeypatch):
    """Of several layers those next to the data; of a flow not those of its base."""
    layers = (vae_jax.StochasticLayer(2),)
    chosen = {
        "layers": {
            "posterior": vae_jax.HierarchicalGaussian(layers),
            "prior": vae_jax.HierarchicalGaussianPrior(layers),
        },
        "flow": {"posterior": vae_jax.Planar(2)},
    }
    drawn = {}

    def record(cells, title, subtitle, *, labels=(), **options):
        drawn[title] = subtitle, labels
        return figures.new_figure((300, 300), title, subtitle)

    monkeypatch.setattr(figures, "draw_grid", record)
    params = random_params(small((5, 5), 3, **chosen[case]))
    draw(tmp_path, params.spec, 40, None, [], params)
    x = np.random.default_rng(0).uniform(size=(40, 25)).astype(np.float32)
    variances = np.asarray(active_units(params, x).variance[:3], np.float64)
    assert np.all(variances > figures.ACTIVE_VARIANCE)
    subtitle, (_, names) = drawn["latent traversals"]
    beside = " next to the data" if case == "layers" else ""
    assert f" 3 of 3 units{beside} are active" in subtitle
    shares = variances / variances.sum()
    order = np.argsort(-variances)
    assert names == [f"z{unit + 1}: {shares[unit]:.0%}" for unit in order]


def test_interpolations_join_examples_of_different_labels():
    x = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
    labels = np.array([0, 0, 0, 0, 0, 1, 1, 2, 2])
    order = figures.varied_order(labels)
    assert sorted(order) == list(range(9))
    assert list(labels[order]) == [0, 1, 2, 0, 1, 2, 0, 0, 0]
    cells, options = figures.draw_interpolations(
        captured, identity(3), x, labels, order
    )
    assert cells.shape[1:] == (13, 3) and len(options["labels"][0]) == 13
    for row in cells:
        ends = [int(np.flatnonzero((x == end).all(1))[0]) for end in row[[0, -1]]]
        assert labels[ends[0]] != labels[ends[1]]
        # The model is the identity, so the line is straight in x.
        weights = np.linspace(0, 1, 11)[:, None]
        line = (1 - weights) * row[0] + weights * row[-1]
        np.testing.assert_allclose(row[1:-1], line, atol=1e-5)


def test_grid_puts_cells_and_labels_where_they_belong():
    cells = np.zeros((2, 3, 6))
    cells[0, 2] = [1, 1, 1, 0, 0, 0]  # Its upper row of pixels.
    figure = figures.draw_grid(
        cells,
        "title",
        "subtitle",
        dataset_name="data",
        data_shape=(2, 3),
        labels=(("left", "middle", "right"), ("top", "bottom")),
        breaks=((), (1,)),
    )
    (axes,) = figure.axes
    image = axes.images[0].get_array()
    assert axes.get_xlim() == (0, image.shape[1])
    assert axes.get_ylim() == (image.shape[0], 0)
    assert [text.get_text() for text in axes.get_yticklabels()] == ["top", "bottom"]
    pixels = [
        [image[int(y) - 20, int(x), 0] for x in axes.get_xticks()]
        for y in axes.get_yticks()
    ]
    assert pixels == [[0, 0, 255], [0, 0, 0]]
    assert image[int(axes.get_yticks()[0]) + 20, int(axes.get_xticks()[2]), 0] == 0


def test_tiles_clip_show_colours_and_mark_what_is_not_finite():
    cells = np.array([[[-3.0, 0.5, 7.0, np.nan, np.inf, 1.0]]])
    grey = figures.to_tiles(cells, (2, 3))[0, 0, 10::28, 10::28]
    red = [230, 26, 26]
    expected = [[[0] * 3, [128] * 3, [255] * 3], [red, red, [255] * 3]]
    np.testing.assert_array_equal(grey, expected)
    colour = figures.to_tiles(cells[..., :3], (1, 1, 3))[0, 0, 0, 0]
    np.testing.assert_array_equal(colour, [0, 128, 255])


def test_small_images_are_interpolated_and_marked_where_not_finite():
    ramp = np.tile(np.linspace(0, 1, 8), (8, 1))
    broken = np.where(np.arange(64).reshape(8, 8) == 27, np.nan, ramp)
    tile, marked = figures.to_tiles(np.stack([ramp, broken])[None], (8, 8))[0]
    # A cubic through equidistant values of a line is the line, away from the border.
    middles = (np.arange(88) + 0.5) / 11 - 0.5
    expected = 255 * np.clip(middles / 7, 0, 1)
    np.testing.assert_allclose(tile[40, 20:-20, 0], expected[20:-20], atol=1)
    np.testing.assert_array_equal(marked[38, 38], [230, 26, 26])
    np.testing.assert_array_equal(marked[10], tile[10])


def test_moving_average_is_of_the_epochs_up_to_each():
    values = np.array([1.0, 3.0, 5.0, 9.0])
    np.testing.assert_allclose(figures.moving_average(values, 2), [1, 2, 4, 7])


@pytest.mark.parametrize("dim", [1, 4, 37, 1009])
def test_curves_are_as_high_as_their_values(dim):
    values = np.linspace(0.25, 0.75, dim)
    tile = figures.to_tiles(values[None, None], (dim,))[0, 0]
    assert 84 <= tile.shape[1] <= 168
    is_area = tile[:, :, 0] < 128
    heights = is_area.mean(axis=0)
    # The area starts at the bottom and has no holes.
    assert np.all(np.diff(is_area.astype(int), axis=0) >= 0)
    assert heights[0] == pytest.approx(0.25, abs=0.02)
    assert heights[-1] == pytest.approx(values[-1], abs=0.02)
    assert np.all(np.diff(heights) >= 0)


def test_first_epochs_do_not_flatten_the_curves():
    epochs = np.arange(1.0, 21.0)
    values = epochs.copy()
    assert figures.focus(np.stack([epochs, values])) is None
    values[0] = -1000
    low, high = figures.focus(np.stack([epochs, values]))
    assert 0 < low < values[2] and values[-1] < high < 25


def test_curves_without_values_have_no_limits():
    nothing = np.array([[1.0, 2.0], [np.nan, np.inf]])
    assert figures.focus(nothing) is None
    assert figures.focus(nothing[:, :0]) is None


def test_training_curves_hold_the_rows():
    figure = figures.draw_training_curves(ROWS, "data")
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == list(figures.CURVES.values())
    for axes, name in zip(figure.axes, figures.CURVES, strict=True):
        assert "nats" in axes.get_ylabel() and axes.get_xlabel() == "epoch"
        lines = {line.get_label(): line.get_xydata() for line in axes.get_lines()}
        for split in ("train", "test"):
            rows = [row for row in ROWS if row["split"] == split]
            expected = [[row["epoch"], row[name]] for row in rows]
            np.testing.assert_allclose(lines[split], expected)


def test_figures_have_the_style_and_leave_matplotlib_alone():
    before = dict(matplotlib.rcParams)
    axes = figures.draw_training_curves(ROWS, "data").axes[0]
    assert not axes.spines["top"].get_visible()
    assert not axes.get_legend().get_frame_on()
    assert dict(matplotlib.rcParams) == before != before | STYLE


def test_few_epochs_are_shown_whole():
    epochs = np.arange(1.0, 4.0)
    assert figures.focus(np.stack([epochs, [-1000.0, -2.0, -1.0]])) is None


def test_one_epoch_is_an_epoch():
    figure = figures.draw_training_curves(ROWS[:2], "data")
    for axes in figure.axes:
        low, high = axes.get_xlim()
        assert [tick for tick in axes.get_xticks() if low <= tick <= high] == [1]


def test_scatter_colours_by_label():
    means = np.array([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0], [np.nan, 0.0]])
    figure = figures.draw_latent_scatter(means, np.array([5, 9, 5, 9]), "data")
    axes, bar = figure.axes
    assert axes.get_aspect() == 1
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("z1", "z2")
    points = axes.collections[0]
    np.testing.assert_array_equal(points.get_offsets()[:3], means[:3])
    colors = points.to_rgba(points.get_array())
    assert np.all(colors[0] == colors[2]) and np.any(colors[0] != colors[1])
    assert [text.get_text() for text in bar.get_yticklabels()] == ["5", "9"]


def test_scatter_of_one_label_and_of_many():
    means = np.random.default_rng(0).normal(size=(26, 2))
    assert len(figures.draw_latent_scatter(means[:1], np.ones(1), "data").axes) == 1
    assert len(figures.draw_latent_scatter(means, np.zeros(26), "data").axes) == 1
    figure = figures.draw_latent_scatter(means, np.arange(26), "data")
    points = figure.axes[0].collections[0]
    assert len(np.unique(points.to_rgba(points.get_array()), axis=0)) == 26
    assert len(figure.axes[1].get_yticklabels()) == 10
