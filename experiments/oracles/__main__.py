"""The command `python -m experiments.oracles`."""

from experiments.oracles import main

main()
