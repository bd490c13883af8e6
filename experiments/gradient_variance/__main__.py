"""`python -m experiments.gradient_variance`."""

from experiments.gradient_variance import main

main()
