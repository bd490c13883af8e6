"""The throughput benchmark runs, and its contestants do the same work.

No speed is asserted, because it depends on the machine.
"""

import functools
import importlib.util
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.throughput import __main__ as throughput
from experiments.throughput import (
    anatomy,
    convolution,
    curves,
    elbo,
    evidence,
    gradients,
    importance,
    limit,
    pytorch,
)
from experiments.throughput.__main__ import Config
from experiments.throughput.contestants import (
    LOOP,
    NUMPYRO,
    OURS,
    SCAN,
    Contestant,
)
from experiments.throughput.limit import ADAM, PRODUCTS
from experiments.throughput.memory import peak_bytes
from experiments.throughput.report import (
    Row,
    Spread,
    make_remarks,
    make_rows,
    table,
)

INSTALLED = [OURS, SCAN, LOOP] + [NUMPYRO] * bool(importlib.util.find_spec("numpyro"))
LIMIT = [PRODUCTS, ADAM]
STEPS, REPEATS = 20, 1
# The PyTorch contestants take a minute to compile and have separate slow tests.
TORCH = pytorch.TORCH
CONTESTANTS = elbo.contestants


def without_noise_at_first(params):
    """Make the decoder ignore z before the first step, so the first loss is noise-free.

    Random output biases keep the likelihood term from being constant over pixels.
    """
    bias = jax.random.normal(jax.random.key(7), (784,))
    output = params.decoder["output"] | {"bias": bias}
    hidden = jax.tree.map(jnp.zeros_like, params.decoder["network"])
    hidden["Dense_0"]["bias"] = jnp.ones(400)
    return params.replace(decoder={"network": hidden, "output": output})


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Results, folder and losses by contestant from a small run of the experiment."""
    losses = {}

    def recorded(contestant: Contestant) -> Contestant:
        def prepare(workload):
            params = without_noise_at_first(workload.params)
            run = contestant.prepare(workload._replace(params=params))
            losses[contestant.name] = []

            def run_and_record(batches):
                found = run(batches)
                if contestant.name not in LIMIT:
                    losses[contestant.name].append(np.asarray(found))
                return found

            return run_and_record

        return contestant._replace(prepare=prepare)

    folder = tmp_path_factory.mktemp("throughput")
    config = Config(
        repeats=REPEATS,
        steps=STEPS,
        batch_size=32,
        num_examples=STEPS * 32 + 5,
        run_dir=str(folder),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            elbo,
            "contestants",
            lambda: [
                recorded(entrant) for entrant in CONTESTANTS() if entrant.needs != TORCH
            ],
        )
        results = throughput.run(config)
    return results, folder, {name: np.array(found) for name, found in losses.items()}


@pytest.mark.long
def test_a_row_for_everyone_installed(measured):
    results, _, losses = measured
    assert [row.name for row in results.rows] == INSTALLED + LIMIT
    for row in results.rows:
        assert 0 < row.per_second.min <= row.per_second.median
        assert row.per_second.median <= row.per_second.max
    for name in INSTALLED:
        assert losses[name].shape == (1 + REPEATS, STEPS)
    assert results.rows[0].ratio == (1, 1, 1)


def test_the_folder_holds_table_and_picture(measured):
    results, folder, _ = measured
    found = json.loads((folder / "results.json").read_text())
    assert [row["name"] for row in found["rows"]] == INSTALLED + LIMIT
    assert found["rows"][0]["images_per_second"].keys() == {"median", "min", "max"}
    assert found["jax_version"] == jax.__version__
    assert found["workload"] == "a"
    assert (folder / "figures" / "throughput.png").read_bytes()[1:4] == b"PNG"
    for name in INSTALLED:
        assert name in table(results)


@pytest.mark.parametrize("name", INSTALLED[1:])
def test_same_loss_before_the_first_step(measured, name):
    # Nats per image with the closed-form KL: the loss does not depend on the noise,
    # whereas an estimated KL would be off by tenths of a nat.
    losses = measured[2]
    ours = losses[OURS][0, 0]
    assert ours > 300
    # The library bounds the log-variance, which affects the sixth digit.
    np.testing.assert_allclose(losses[name][0, 0], ours, rtol=1e-5)


@pytest.mark.parametrize("name", INSTALLED[1:])
def test_same_losses_along_the_way(measured, name):
    losses = measured[2]
    # Batches and their order are the same; only the noise of z differs.
    difference = (losses[name] - losses[OURS])[:, 1:].ravel()
    standard_error = difference.std(ddof=1) / np.sqrt(difference.size)
    assert abs(difference.mean()) < 5 * standard_error
    assert np.abs(difference).max() < 2
    assert losses[name][-1].mean() < losses[name][0, 0] - 20


def test_rows_from_known_times():
    # Two rounds; the second contestant takes twice, then four times as long.
    seconds = np.array([[1.0, 2.0], [2.0, 8.0]])
    ours, other = make_rows([OURS, "x"], seconds, np.array([9.5, 1.0]), 80)
    assert ours == Row(OURS, Spread(60, 40, 80), Spread(1, 1, 1), 8.0)
    assert other == Row("x", Spread(25, 10, 40), Spread(3, 2, 4), 0.0)


def test_remarks():
    steady = Spread(100.0, 95.0, 105.0)
    names = (OURS, pytorch.EAGER, NUMPYRO)
    everyone = [Row(name, steady, steady, 1.0) for name in names]
    assert make_remarks(everyone, load=0.1, cores=2) == ()
    no_numpyro, no_torch = make_remarks(everyone[:1], load=0.1, cores=2)
    assert 'pip install -e ".[bench]"' in no_numpyro
    assert 'pip install -e ".[peers]"' in no_torch
    (busy,) = make_remarks(everyone, load=1.5, cores=2)
    shaken = [*everyone[:2], Row(NUMPYRO, Spread(100.0, 50.0, 105.0), steady, 1.0)]
    (drifting,) = make_remarks(shaken, load=0.1, cores=2)
    assert busy.startswith("WARNING") and "55%" in drifting
    limit = [
        Row(name, steady, Spread(share, share, share), 1.0)
        for name, share in zip(LIMIT, (0.5, 0.2), strict=True)
    ]
    (share,) = make_remarks(everyone + limit, load=0.1, cores=2)
    assert "0.50 + 0.20 = 0.70 of the time" in share


def test_the_limit_does_the_products_of_a_step():
    """Per weight and row: two operations forward, four backward (two in layer one)."""
    config = Config(steps=2, batch_size=4, num_examples=8)
    workload, rounds = throughput.make_workload(config)
    first, others = 784 * 400, 400 * 40 + 20 * 400 + 400 * 784
    assert limit.operations(workload) == 4 * (4 * first + 6 * others)
    more = workload._replace(num_samples=3)
    decoder = 20 * 400 + 400 * 784
    added = limit.operations(more) - limit.operations(workload)
    assert added == 2 * 4 * 6 * decoder
    run = limit.prepare_products(workload)
    # An entry of a product of ones is its inner dimension.
    total = sum(inner for _, inner, _ in limit.product_shapes(workload))
    assert run(rounds[0]) == pytest.approx(2e-30 * total, abs=0)


def test_without_numpyro_its_row_is_left_out(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    found = [entrant.name for entrant in CONTESTANTS()]
    assert found == [OURS, SCAN, LOOP] + LIMIT


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--repeats=0"], "--repeats must be at least 1, got 0"),
        (["--steps=469"], "steps must be at most 468"),
        (["--workload=z"], "workload"),
        (["--workload=c", "--num_samples=4999"], "a multiple of 250"),
        (["--workload=curves", "--seed=5"], "seed is not for workload curves, got 5"),
        (["--workload=anatomy", "--keep_denormals"], "keep_denormals is not for"),
        (["--workload=curves", "--peak_memory"], "peak_memory is not for workload"),
        (["--workload=a", "--num_samples=5"], "num_samples is not for workload a"),
    ],
    ids=[
        "none",
        "beyond-the-epoch",
        "unknown",
        "ragged-samples",
        "seed-of-curves",
        "denormals-of-anatomy",
        "memory-of-curves",
        "samples-of-one",
    ],
)
def test_bad_input_is_one_line_and_code_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        throughput.main(arguments)
    captured = capsys.readouterr().err
    assert stop.value.code == 2
    assert message in captured and captured.count("\n") == 1


@pytest.fixture(scope="module")
def bounds():
    """Losses of the importance-weighted step by name, `[K, 20]`, for K noise keys.

    Pixels are black or white, so that binarization is deterministic. Before the first
    step the posterior is the prior and the decoder ignores z, so the loss is
    noise-free.
    """
    config = Config(
        workload="b50", repeats=1, steps=10, batch_size=20, num_examples=200
    )
    workload, rounds = throughput.make_workload(config)
    zero = functools.partial(jax.tree.map, jnp.zeros_like)
    encoder, decoder = workload.params.encoder, workload.params.decoder
    bias = jax.random.normal(jax.random.key(7), (784,))
    params = workload.params.replace(
        encoder=encoder | {"output": zero(encoder["output"])},
        decoder=decoder | {"output": zero(decoder["output"]) | {"bias": bias}},
    )
    assert workload.num_samples == 50
    images = jnp.where(workload.images > 127, 255, 0).astype(jnp.uint8)
    workload = workload._replace(params=params, images=images, num_samples=3)

    @functools.cache
    def losses(name):
        (entrant,) = (e for e in importance.contestants() if e.name == name)
        found = []
        for number in range(6):
            key = jax.random.fold_in(workload.key, number)
            run = entrant.prepare(workload._replace(key=key))
            found.append(np.concatenate([run(batches) for batches in rounds]))
        return np.array(found)

    return losses


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name == NUMPYRO))
        for name in INSTALLED[1:]
    ],
)
def test_same_bound_before_the_first_step_and_along_the_way(name, bounds):
    ours, theirs = bounds(OURS), bounds(name)
    assert ours[0, 0] > 300
    np.testing.assert_allclose(theirs[:, 0], ours[:, 0], rtol=1e-5)
    # Batches and their order are the same; only the noise of z differs.
    means = theirs.mean(axis=1), ours.mean(axis=1)
    error = np.hypot(*(each.std(ddof=1) for each in means)) / np.sqrt(len(ours))
    assert abs(means[0].mean() - means[1].mean()) < 4 * error < 12
    assert np.all(theirs[:, -1] < theirs[:, 0] - 20)


@pytest.mark.long
def test_convolutions_by_hand_are_the_same_work():
    config = Config(workload="conv", repeats=1, steps=3, batch_size=20, num_examples=60)
    workload, (batches, _) = throughput.make_workload(config)
    params = workload.params
    # The decoder ignores z at first, and its bias is far from the optimum.
    network, output = params.decoder["network"], params.decoder["output"]
    dense = jax.tree.map(jnp.zeros_like, network["Dense_0"])
    dense["bias"] = jax.random.uniform(jax.random.key(5), dense["bias"].shape)
    decoder = {
        "network": network | {"Dense_0": dense},
        "output": output | {"bias": output["bias"] + 4},
    }
    workload = workload._replace(params=params.replace(decoder=decoder))
    ours, theirs = (
        np.array(entrant.prepare(workload)(batches))
        for entrant in convolution.contestants()
    )
    np.testing.assert_allclose(theirs[0], ours[0], rtol=1e-5)
    np.testing.assert_allclose(theirs, ours, rtol=2e-3)  # The noise of z differs.
    assert theirs[-1] < theirs[0] - 10


@pytest.fixture(scope="module")
def measured_evidence(tmp_path_factory):
    """Results, folder and log evidence by contestant from a small run of workload c."""
    found = {}

    def recorded(entrant):
        def prepare(workload):
            # Posterior near the prior, decoder nearly constant: small standard errors.
            params = jax.tree.map(lambda leaf: 0.3 * leaf, workload.params)
            run = entrant.prepare(workload._replace(params=params))

            def run_and_record(batches):
                found[entrant.name] = run(batches)
                return found[entrant.name]

            return run_and_record

        return entrant._replace(prepare=prepare)

    folder = tmp_path_factory.mktemp("evidence")
    entrants, sizes = (
        evidence.contestants,
        evidence.temporary_bytes,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            evidence,
            "contestants",
            lambda: [recorded(entrant) for entrant in entrants()],
        )
        # Only for this library: compiling takes longer than the rest of the run.
        patch.setattr(
            evidence,
            "temporary_bytes",
            lambda _, workload: sizes(
                entrants()[:1], workload._replace(num_samples=5000)
            ),
        )
        results = throughput.run(
            Config(
                workload="c",
                num_samples=250,
                repeats=1,
                batch_size=5,
                num_examples=20,
                run_dir=str(folder),
            )
        )
    return results, folder, found


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [entrant.name for entrant in evidence.contestants()[1:]]
)
def test_same_log_evidence_within_its_error(name, measured_evidence):
    ours, theirs = measured_evidence[2][OURS], measured_evidence[2][name]
    assert theirs.shape == (5,)
    assert np.all(ours.standard_error < 0.2)
    z = (ours.estimate - theirs) / (np.sqrt(2) * ours.standard_error)
    assert np.abs(z).max() < 5


@pytest.mark.slow
def test_memory_does_not_grow_with_the_samples(measured_evidence):
    results, folder, _ = measured_evidence
    (sizes,) = results.temporary_bytes.values()
    assert list(sizes) == [1000, 5000, 20_000]
    # Storing even a few samples' pixels would exceed this bound.
    assert max(sizes.values()) < 1.1 * min(sizes.values())
    found = json.loads((folder / "results.json").read_text())
    assert found["workload"] == "c" and found["num_samples"] == 250
    assert found["temporary_bytes"][OURS]["20000"] == sizes[20_000]
    assert "20,000 samples" in table(results)


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec(TORCH), reason="PyTorch is not here")
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # From PyTorch.
def test_pytorch_does_the_same_work(measured, bounds):
    """Losses and bounds agree up to the noise of z."""
    workload, rounds = throughput.make_workload(
        Config(steps=STEPS, batch_size=32, num_examples=STEPS * 32 + 5, repeats=REPEATS)
    )
    params = without_noise_at_first(workload.params)
    ours = measured[2][OURS]
    trained = {entrant.name: entrant for entrant in CONTESTANTS()}
    entrants = [
        entrant
        for name, entrant in trained.items()
        if entrant.needs == TORCH and name != pytorch.TORCH_PRODUCTS
    ]
    assert len(entrants) == 3
    for entrant in entrants:
        run = entrant.prepare(workload._replace(params=params))
        losses = np.array([run(batches) for batches in rounds])
        np.testing.assert_allclose(losses[0, 0], ours[0, 0], rtol=1e-5)
        assert np.abs(losses - ours).max() < 2
    theirs = bounds(pytorch.EAGER)
    np.testing.assert_allclose(theirs[:, 0], bounds(OURS)[:, 0], rtol=1e-5)
    assert abs(theirs.mean() - bounds(OURS).mean()) < 5


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec(TORCH), reason="PyTorch is not here")
@pytest.mark.parametrize("keep", [False, True])
def test_pytorch_flushes_denormals_unless_asked_to_keep_them(keep):
    """The setting also applies to PyTorch's worker threads, in a fresh process."""
    script = f"""
from experiments.throughput import __main__ as throughput
throughput.contestants_of(throughput.Config(keep_denormals={keep}))
import torch
small = torch.full((1_000_000,), 1e-30)  # Large enough for several threads.
print(int(torch.count_nonzero(small * 1e-10)))
"""
    run = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    assert int(run.stdout) == (1_000_000 if keep else 0)


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec(TORCH), reason="PyTorch is not here")
def test_the_products_of_pytorch_are_those_of_the_limit():
    """The last product of ones in a step equals its inner dimension everywhere."""
    workload, rounds = throughput.make_workload(
        Config(steps=2, batch_size=8, num_examples=16, repeats=1)
    )
    last = pytorch.prepare_products(workload)(rounds[0])
    rows, inner, outputs = limit.product_shapes(workload)[-1]
    np.testing.assert_array_equal(last, np.full((rows, outputs), inner))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
def test_peak_memory_is_that_of_the_contestant_alone():
    """The contestant keeps 50 MB and allocates 250 MB, then 50 MB, in its rounds."""
    ours = np.ones(400_000_000 // 8)
    found = peak_bytes(["hungry"], hungry)["hungry"]
    assert found["compiling"] == pytest.approx(300e6, rel=0.2)
    assert found["running"] == pytest.approx(100e6, rel=0.4)
    assert ours.all()


def hungry(name):
    """Contestant for `peak_bytes`; NumPy returns freed memory to the system at once."""

    def prepare(workload):
        kept = np.ones(50_000_000 // 8)

        def run(batches):
            scratch = np.ones(batches // 8)
            return scratch[:1] + kept[:1]

        return run

    return Contestant(name, prepare), None, [250_000_000, 50_000_000]


def test_gradients_are_the_same_by_vmap_and_by_a_loop(tmp_path):
    key, indices = jax.random.key(4), jnp.arange(60).reshape(6, 10)
    sums = [
        np.asarray(entrant.prepare(key)(indices)) for entrant in gradients.contestants()
    ]
    np.testing.assert_allclose(sums[0], sums[1], rtol=1e-4)
    config = Config(
        workload="gradients", repeats=2, steps=3, batch_size=10, run_dir=str(tmp_path)
    )
    results = throughput.run(config)
    assert [row.name for row in results.rows] == [OURS, gradients.LOOP]
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["rows"][1]["gradients_per_second"]["median"] > 0
    assert "gradients/s" in table(results)


@pytest.mark.slow
def test_the_variants_of_a_step_are_the_step_but_for_one_thing():
    config = Config(workload="anatomy", steps=2, batch_size=8, num_examples=24)
    workload, rounds = throughput.make_workload(config)
    assert workload.num_samples == 1
    workload = workload._replace(params=without_noise_at_first(workload.params))
    whole = elbo.prepare_scan(workload)(rounds[0])
    flags = ("512-bit vectors", "fast math", "parts at once")
    for name in ("gathered once", "own gradient", "no noise", *flags):
        run = anatomy.prepare_variant(workload, **anatomy.VARIANTS[name])
        np.testing.assert_allclose(run(rounds[0])[0], whole[0], rtol=1e-5)
    left_out = anatomy.VARIANTS["no exp, no log1p"]
    run = anatomy.prepare_variant(workload, **left_out)
    assert abs(run(rounds[0])[0] - whole[0]) > 10


def test_a_gradient_written_by_hand_is_that_of_jax(x64):
    x, logits = np.random.default_rng(0).normal(size=(2, 3, 4))
    found, expected = (
        jax.grad(lambda logits, f=f: f(x, logits).sum())(logits)
        for f in (
            anatomy.closed_gradient_log_prob,
            anatomy.softplus_log_prob,
        )
    )
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.slow
def test_curves_grow_with_their_sizes(tmp_path):
    sizes = {"images": (2, 4), "samples": (1, 2), "small models": (1, 3)}
    points = curves.measure(sizes, num_steps=2, repeats=1)
    assert [(point.curve, point.size) for point in points] == [
        (curve, size) for curve, chosen in sizes.items() for size in chosen
    ]
    by_size = {(point.curve, point.size): point for point in points}
    images = [by_size["images", size].operations for size in (2, 4)]
    models = [by_size["small models", size].operations for size in (1, 3)]
    assert images[1] == 2 * images[0] and models[1] == 3 * models[0]
    assert all(point.seconds > 0 for point in points)
    curves.save(points, {"device": "cpu", "cores": 2}, tmp_path)
    found = json.loads((tmp_path / "results.json").read_text())
    assert len(found["points"]) == 6
    assert (tmp_path / "figures" / "curves.png").read_bytes()[1:4] == b"PNG"
    lines = curves.table(points).splitlines()
    assert lines[1].split()[:2] == ["images", "2"] and lines[1].endswith("1.00")


def test_an_accelerator_is_measured_at_larger_sizes(monkeypatch):
    here = curves.sizes_here()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    there = curves.sizes_here()
    assert here.keys() == there.keys()
    for curve, sizes in here.items():
        assert max(there[curve]) > max(sizes)


def test_the_cost_of_twice_the_work_in_twice_the_time_is_one():
    first = curves.Point("images", 1, 100, 0.5, 0.5, 0.5)
    second = curves.Point("images", 2, 200, 1.5, 1.5, 1.5)
    assert curves.relative_cost(second, first) == 1.5
