"""What every command shares: rules of flags, tables, signals."""

import doctest
import importlib
import math
import os
import signal
from dataclasses import dataclass
from typing import Annotated

import pytest

from experiments.runner import flags, report, signals


@pytest.mark.parametrize("name", ["flags", "report"])
def test_examples_run(name):
    module = importlib.import_module(f"experiments.runner.{name}")
    found = doctest.testmod(module, optionflags=doctest.IGNORE_EXCEPTION_DETAIL)
    assert found.attempted and not found.failed


@dataclass
class Config:
    rate: flags.Positive = 1.0
    share: Annotated[flags.NonNegative, flags.at_most(1)] = 0.5
    decay: flags.Fraction | None = None
    widths: flags.Counts = (4,)
    free: str = "anything"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"rate": math.inf}, "--rate must be positive and finite, got inf"),
        ({"share": -0.1}, "--share must be at least 0, got -0.1"),
        ({"share": 1.5}, "--share must be at most 1, got 1.5"),
        ({"share": math.nan}, "--share must be .*, got nan"),
        ({"decay": 1.0}, "--decay must be between 0 and 1, got 1.0"),
        ({"widths": ()}, r"--widths must be one or more positive numbers, got \(\)"),
        ({"widths": (3, 0)}, "--widths must be at least 1, got 0"),
    ],
)
def test_a_value_is_held_to_the_rule_of_its_flag(changes, message):
    flags.check(Config())
    flags.check(Config(decay=0.9))
    with pytest.raises(ValueError, match=message):
        flags.check(Config(**changes))


def test_a_table_leaves_out_columns_that_would_be_empty():
    held = report.Check("S1", "b", 2.0, 1.0, relation=">")
    lines = report.table([held, report.row("a", 0.5)]).splitlines()
    assert lines[0].split() == ["row", "what", "measured", "exact", "ok"]
    assert lines[1].split() == ["S1", "b", "2", ">", "1", "yes"]
    assert lines[2].split() == ["a", "0.5"]


def test_a_figure_is_shown_with_its_error_where_there_is_one():
    assert report.measured(1.0, 0.5, unit="nats") == "1.00 +- 0.50 nats"
    assert report.measured(1.0, math.nan, digits=1) == "1.0"
    assert report.measured(None) == "undefined"
    assert math.isnan(report.mean_of([3.0])["standard_error"])


def test_a_signal_waits_and_its_handler_comes_back():
    interrupt = signal.getsignal(signal.SIGINT)
    before = signal.getsignal(signal.SIGTERM)
    with signals.collected() as received:
        signal.raise_signal(signal.SIGTERM)
        # A second one of the kind would act at once.
        assert signal.getsignal(signal.SIGTERM) == before
    assert received == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGINT) == interrupt


def test_cores_are_those_that_the_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert report.num_cores() == 1
    monkeypatch.delattr(os, "sched_getaffinity")
    assert report.num_cores() == 8
