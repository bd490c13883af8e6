"""Published tables, reproduced on the papers' data with one command each.

    python -m experiments.published.reference_vae

Each paper has a module with a `tables.Table`, whose cells pair a run of
`experiments.mnist` with the published figures. Records of finished cells are written to
`results/`, and `python -m experiments.published` generates README.md from them.
"""
