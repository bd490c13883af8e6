"""Cases of all kinds in turn, and a table of what was tried and what held."""

import json
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from . import commands
from .bench import Bench, DidNotHold
from .corruption import corruption

Case = Callable[[np.random.Generator, Bench], str]
KINDS: dict[str, Case] = {
    "corruption": corruption,
    "random_kill": commands.random_kill,
    "aimed_kill": commands.aimed_kill,
    "interruption": commands.interruption,
    "environment": commands.environment,
    "race": commands.race,
    "lost": commands.lost,
    "flag": commands.flag,
    "hostile_file": commands.hostile_file,
}
# Of the time; corruptions and kills are what most can go wrong with.
SHARES = {
    "corruption": 0.4,
    "random_kill": 0.15,
    "aimed_kill": 0.15,
    "interruption": 0.06,
    "environment": 0.06,
    "race": 0.03,
    "lost": 0.07,
    "flag": 0.05,
    "hostile_file": 0.03,
}


class Tried(NamedTuple):
    """One fault.

    Attributes:
      kind: of fault.
      number: of its kind; with the seed it repeats the fault.
      what: was done, and what came of it.
      held: whether nothing was lost, silent or beyond one line.
    """

    kind: str
    number: int
    what: str
    held: bool


def attempt(kind: str, number: int, seed: int, bench: Bench) -> Tried:
    """Do one fault, the same for the same seed and number.

    Args:
      kind: of fault.
      number: of its kind.
      seed: of the campaign.
      bench: the run that it happens to.

    Returns:
      What came of it.
    """
    rng = np.random.default_rng([seed, zlib.crc32(kind.encode()), number])
    try:
        return Tried(kind, number, KINDS[kind](rng, bench), True)
    except DidNotHold as error:
        return Tried(kind, number, str(error), False)
    except Exception as error:
        return Tried(kind, number, repr(error), False)


def run(seconds: float, seed: int, kinds: list[str], bench: Bench) -> list[Tried]:
    """Do faults until the time is up, each kind by its share of the time.

    Args:
      seconds: time to spend.
      seed: of the campaign.
      kinds: to try.
      bench: the run that they happen to.

    Returns:
      All that was tried.
    """
    spent, tried = dict.fromkeys(kinds, 0.0), []
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        kind = min(kinds, key=lambda kind: spent[kind] / SHARES[kind])
        number = sum(one.kind == kind for one in tried)
        started = time.monotonic()
        tried.append(attempt(kind, number, seed, bench))
        spent[kind] += time.monotonic() - started
        if not tried[-1].held:
            print(f"DID NOT HOLD: {tried[-1]}", flush=True)
    return tried


def table(tried: list[Tried], seed: int) -> str:
    """What was tried and what held, in Markdown.

    Args:
      tried: all of it.
      seed: of the campaign.

    Returns:
      A table, and the command that repeats each fault that did not hold.
    """
    lines = ["| faults | tried | held |", "|---|---|---|"]
    for kind, case in KINDS.items():
        own = [one for one in tried if one.kind == kind]
        if own:
            about = (case.__doc__ or "").strip().splitlines()[0].rstrip(".")
            held = sum(one.held for one in own)
            lines.append(f"| `{kind}`: {about} | {len(own)} | {held} |")
    kills = [one.what for one in tried if one.kind.endswith("_kill") and one.held]
    lines += [
        "",
        f"{sum(int(what.split()[0]) for what in kills)} processes were killed.",
    ]
    failed = [one for one in tried if not one.held]
    for one in failed:
        command = f"python -m tests.faults --seed={seed} --only={one.kind}"
        lines += ["", f"Did not hold: {one.what[:300]}"]
        lines.append(f"    {command} --number={one.number}")
    return "\n".join(lines) + "\n"


def write(folder: Path, tried: list[Tried], seed: int) -> None:
    """Write the table, and all that was tried as JSON.

    Args:
      folder: made if absent.
      tried: all of it.
      seed: of the campaign.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "faults.md").write_text(table(tried, seed))
    described = {"seed": seed, "tried": [one._asdict() for one in tried]}
    (folder / "faults.json").write_text(json.dumps(described, indent=1))
