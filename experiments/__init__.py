"""Experiments: each file is a command, `python -m experiments.NAME --help`."""

import sys

# Only where this is the process of a command, whose other imports take seconds.
if sys.argv[:1] == ["-m"]:
    from experiments.runner.startup import prepare

    prepare()
