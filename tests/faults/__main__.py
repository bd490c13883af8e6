"""A campaign of faults against runs of the digits.

    python -m tests.faults --minutes=30 --seed=0

Kills, damage to every file of a run's folder, environments, races, lost processes,
hostile files and flags. Each must lead to the figures of the undisturbed run, to the
bit, or to one line that names what is wrong; never to a traceback, to code of a
stranger, or to a change outside the folder. The exit code is 1 where one did not.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

# Before JAX starts; compiling is most of what a small run does.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
CACHE = tempfile.TemporaryDirectory(prefix="vae_jax-compiled-")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", CACHE.name)
os.environ.setdefault("JAX_PERSISTENT_COMPILATION_CACHE_MIN_COMPILE_TIME_SECS", "0")


def main() -> int:
    """Run the campaign, or repeat one fault of it."""
    from .bench import Bench
    from .campaign import KINDS, attempt, run, table, write

    parser = argparse.ArgumentParser("python -m tests.faults", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30, help="time to spend")
    parser.add_argument("--seed", type=int, default=0, help="of all faults")
    parser.add_argument("--only", choices=KINDS, help="faults of one kind")
    parser.add_argument("--number", type=int, help="repeat this fault of --only")
    parser.add_argument("--folder", default="runs/faults", help="for the table")
    given = parser.parse_args()
    if given.number is not None and given.only is None:
        parser.error("--number is that of a fault of one kind: give --only as well")
    bench = Bench()
    if given.number is not None:
        tried = [attempt(given.only, given.number, given.seed, bench)]
        print(tried[0])
    else:
        kinds = [given.only] if given.only else list(KINDS)
        tried = run(60 * given.minutes, given.seed, kinds, bench)
        write(Path(given.folder), tried, given.seed)
        print(table(tried, given.seed))
    bench.close()
    return int(not all(one.held for one in tried))


if __name__ == "__main__":
    sys.exit(main())
