"""Published tables, reproduced on the papers' data by one command each.

    python -m experiments.published.reference_vae

A paper is a module: a `tables.Table` of cells, each a run of `experiments.mnist` beside
the figures that were published. Finished cells are written to `results/`, and
`python -m experiments.published` makes README.md of them.
"""
