"""A campaign of faults against runs: what was tried, what held, how to repeat it."""
