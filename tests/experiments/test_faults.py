"""A small part of the campaign of faults (`python -m tests.faults`)."""

import contextlib
import json

import jax
import numpy as np
import pytest
from faults import campaign, corruption
from faults.bench import Bench, DidNotHold

from experiments import figures


@pytest.fixture(scope="module")
def bench():
    with pytest.MonkeyPatch.context() as patch:
        # The bench stubs it; this puts it back.
        patch.setattr(figures, "draw_all", figures.draw_all)
        with contextlib.closing(Bench()) as made:
            yield made


@pytest.mark.long
@pytest.mark.parametrize(
    "kind, count", [("corruption", 12), ("flag", 10), ("hostile_file", 20)]
)
def test_a_few_faults_of_every_cheap_kind(bench, kind, count):
    tried = [campaign.attempt(kind, number, 1, bench) for number in range(count)]
    assert all(one.held for one in tried), campaign.table(tried, 1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", campaign.KINDS)
def test_faults_of_every_kind(bench, kind):
    count = 100 if kind in ("corruption", "flag", "hostile_file") else 4
    tried = [campaign.attempt(kind, number, 2, bench) for number in range(count)]
    assert all(one.held for one in tried), campaign.table(tried, 2)


def test_a_silent_difference_is_noticed(bench, monkeypatch):
    """A reader that believes whatever it finds."""

    def believing(folder, path, bench):
        raise DidNotHold("other parameters")

    def raising(folder, path, bench):
        raise KeyError("leaves")

    for reader, said in ((believing, "other parameters"), (raising, "KeyError")):
        monkeypatch.setattr(corruption, "READERS", (reader,))
        one = campaign.attempt("corruption", 0, 1, bench)
        assert not one.held and said in one.what
        assert "--only=corruption --number=0" in campaign.table([one], 1)


def test_a_change_outside_of_the_folder_is_noticed(bench, monkeypatch):
    def meddling(folder, path, bench):
        (bench.outside / "file").write_text("other")

    monkeypatch.setattr(corruption, "READERS", (meddling,))
    assert not campaign.attempt("corruption", 0, 1, bench).held
    (bench.outside / "file").write_text("kept")
    bench.require_outside_untouched()


def test_other_parameters_and_figures_are_noticed(bench):
    copy = bench.copy()
    rows = (copy / "metrics.jsonl").read_text()
    bench.require_same(copy)
    (copy / "metrics.jsonl").write_text(rows.replace("-", "-1", 1))
    with pytest.raises(DidNotHold, match="metrics"):
        bench.require_same(copy)
    assert bench.is_same(bench.params)
    nudged = jax.tree.map(lambda leaf: np.nextafter(leaf, 9), bench.params)
    assert not bench.is_same(nudged)


def test_a_campaign_ends_in_a_table(bench, tmp_path):
    tried = campaign.run(1.0, 3, ["hostile_file"], bench)
    campaign.write(tmp_path, tried, 3)
    found = json.loads((tmp_path / "faults.json").read_text())
    assert found["seed"] == 3 and len(found["tried"]) == len(tried) > 0
    row = f"| {len(tried)} | {sum(one.held for one in tried)} |"
    assert row in (tmp_path / "faults.md").read_text()
