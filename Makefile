# `make mnist` and `make test` do all of their own set-up in .venv; a second time it
# costs nothing. PYTHON picks another interpreter: make setup PYTHON=python3.12
PYTHON ?= python3
BIN := .venv/bin
# One file of pinned versions for each resolution: 3.12 and 3.13 share theirs.
PINNED = constraints/python3.$$($(BIN)/python -c 'import sys; print(min(sys.version_info[1], 12))').txt
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(PINNED) --editable

.PHONY: help setup mnist test test-nans test-leaks test-slow lint types format \
	bench docs docs-serve coverage wheel

help:  ## List the commands.
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

# A stamp for each set of packages, older than what decides about it if that changed.
.venv/.python: pyproject.toml $(wildcard constraints/*.txt)
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
		|| (echo "error: Python 3.11 to 3.13 is needed; give one with PYTHON=..." >&2; exit 2)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@touch $@

.venv/.%: .venv/.python
	$(INSTALL) '.[$*]'
	@touch $@

setup: .venv/.experiments  ## Make .venv with pinned versions.

mnist: .venv/.experiments  ## Train the reference VAE (MNIST, or digits where it cannot be had).
	$(BIN)/python -m experiments.mnist --beta=1.0

# With the long tests, before a release: make test TESTS="not slow"
TESTS ?= not slow and not long
FILES ?= tests

test: .venv/.test  ## Run the test suite, without the tests that take long.
	$(BIN)/python -m pytest -n auto --dist worksteal -m "$(TESTS)" $(FILES)

# Of training, objectives and evaluation.
NAN_TESTS = $(patsubst %,tests/test_%.py,training fitting sweep parallel objectives \
	penalties aggregate evaluation diagnostics annealing)
# Of the library; not of the commands, of `check` and the estimator, which run it all once
# more, and of what runs no program of the library's own.
LEAK_TESTS = $(patsubst %,tests/%,distributions families networks priors estimators) \
	$(filter-out $(patsubst %,tests/test_%.py,docstrings package sklearn), \
	$(wildcard tests/test_*.py))

test-nans: .venv/.test  ## Run the tests of training and evaluation, stopping at a nan.
	JAX_DEBUG_NANS=1 $(BIN)/python -m pytest -n auto --dist worksteal -m "not slow" \
		$(NAN_TESTS)

test-leaks: .venv/.test  ## Run the tests of the library, looking for leaked tracers.
	JAX_CHECK_TRACER_LEAKS=1 $(BIN)/python -m pytest -n auto --dist worksteal \
		-m "not slow" $(LEAK_TESTS)

test-slow: test-nans test-leaks  ## Run the tests that train for minutes as well.
	$(BIN)/python -m pytest -n auto --dist worksteal

lint: .venv/.test  ## Check style, docstrings and formatting.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.test  ## Check the types of the library and the experiments.
	$(BIN)/basedpyright --pythonpath $(BIN)/python

format: .venv/.test  ## Format the code.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs/assets/fetched: docs/fetch_scripts.py .venv/.python
	$(BIN)/python docs/fetch_scripts.py
	@touch $@

docs: .venv/.docs docs/assets/fetched  ## Build the documentation site in build/site.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "open build/site/index.html"

docs-serve: .venv/.docs docs/assets/fetched  ## Show the site, and build it again as it changes.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

coverage: .venv/.test .venv/.coverage  ## Measure which lines of the library the tests run.
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not slow" \
		--cov=vae_jax --cov-report=term:skip-covered --cov-report=html:build/coverage

# The source archive and the wheel; the wheel is tried where nothing else is installed.
wheel: .venv/.release  ## Build the release in dist/ and try the wheel.
	rm -rf dist build/wheel
	$(BIN)/python -m build --outdir dist . >/dev/null
	$(BIN)/twine check --strict dist/*
	$(PYTHON) -m venv build/wheel
	build/wheel/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint $(PINNED) dist/*.whl
	cd build && wheel/bin/python -P ../tests/wheel_smoke.py

bench: .venv/.bench  ## Measure the speed beside other ways to do the same work.
	$(BIN)/python -m experiments.throughput
