# Every target creates .venv when it is absent. Paths are relative, so the checkout may lie in a folder with spaces.
.PHONY: help demo test test-all compat check docs screenshots format bench clean
.DEFAULT_GOAL := help
# Or each of the many processes that are started compiles the package anew.
unexport PYTHONDONTWRITEBYTECODE

SYSTEM_PYTHON ?= python3
PYTHON := .venv/bin/python
PIP := $(PYTHON) -m pip install --quiet --disable-pip-version-check -c constraints.txt
# What a user needs, and what developers need besides. Where all of it is installed, a user has what it takes.
USER_STAMP := .venv/.user
STAMP := .venv/.installed
# Three files at a time: what takes long is mostly waiting for processes to start. Slow tests want the machine for themselves.
TEST := $(PYTHON) -m pytest -n 3 --dist loadfile --no-loadscope-reorder

help:           ## Show this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*##/  /' | expand -t 14

demo: $(or $(wildcard $(STAMP)),$(USER_STAMP))  ## Plant a dataset, search, evaluate: everything once, in a few minutes
	@echo "Planting a dataset, searching, evaluating, reporting: about 2 minutes on two CPU cores"
	$(PYTHON) -m cdn_tune demo

test: $(STAMP)  ## Run the tests (minutes)
	@echo "Running the tests: about 8 minutes on two CPU cores; make test-all runs the slow ones, too"
	$(TEST)

test-all: $(STAMP)  ## Run all tests, the slow ones too (hours)
	$(TEST)
	CDN_TUNE_EXAMPLES=1000 $(PYTHON) -m pytest tests/tuning/test_virtual_search.py
	$(PYTHON) -m pytest -m slow

compat: $(STAMP)  ## Run selected tests with the oldest and the newest supported Ray and Optuna; writes a table
	$(PYTHON) -m tests.compat

check: $(STAMP)  ## Format, lint, types, tests: what must be clean before a commit
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy
	$(TEST)

docs: $(STAMP)  ## Build the documentation site into site/ (a minute at most, no network)
	$(PYTHON) -m tests.docs

screenshots: $(STAMP)  ## Make docs/images anew, from real searches (a quarter of an hour)
	$(PYTHON) -m tests.docs.screenshots

format: $(STAMP)  ## Format the code and mend what ruff can mend
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

bench: $(STAMP)  ## Run the benchmarks; they print ratios and rewrite benchmarks/RESULTS.md
	$(PYTHON) -m benchmarks

clean:          ## Remove the environment and caches; runs and data stay
	rm -rf .venv .compat .pytest_cache .mypy_cache .ruff_cache .cache site

$(USER_STAMP): pyproject.toml constraints.txt
	@echo "Installing cdn-tune into .venv: some 100 packages, 1.9 GB with torch for CPUs; 2 minutes or so, once"
	@test -x $(PYTHON) || $(SYSTEM_PYTHON) -m venv .venv
	@$(PIP) -e .
	@touch $(USER_STAMP)

$(STAMP): pyproject.toml constraints.txt
	@echo "Installing cdn-tune, and what tests, checks and documentation need, into .venv: 2.8 GB with torch for CPUs; 3 minutes or so, once"
	@test -x $(PYTHON) || $(SYSTEM_PYTHON) -m venv .venv
	@$(PIP) -e ".[dev]"
	@touch $(STAMP)
