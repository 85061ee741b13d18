# From a bare clone, `make demo` and `make test` do everything themselves. PYTHON names the interpreter
# to build .venv from, ARGS is passed on: make test ARGS="-k manifest"; make demo PYTHON=python3.12

PYTHON ?= python3
ARGS ?=

VENV := .venv
VENV_PYTHON := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
# Without --quiet, which hides warnings from --strict. A broken link, a page outside the navigation or a docstring that does not fit its function fails the build.
BUILD_DOCS := NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --config-file configs/mkdocs.yml

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow check docs bench format clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(INSTALLED)  ## Watch a small student learn from a teacher, from rendered videos to a table of results
	$(VENV_PYTHON) scripts/demo.py $(ARGS)

test: $(INSTALLED)  ## Run the quick tests, on every core
	$(VENV_PYTHON) -m pytest -m "not slow" --numprocesses auto --dist worksteal $(ARGS)

test-slow: $(INSTALLED)  ## Run the proofs that take minutes
	$(VENV_PYTHON) -m pytest -m slow $(ARGS)

check: $(INSTALLED)  ## Check format, lint, types, the order of the rooms and the documentation; change no file of the project
	$(VENV_PYTHON) -m ruff format --check .
	$(VENV_PYTHON) -m ruff check .
	$(VENV_PYTHON) -m mypy
	$(VENV)/bin/lint-imports
	$(BUILD_DOCS)

docs: $(INSTALLED)  ## Write the generated pages and build the documentation into build/site
	$(VENV_PYTHON) scripts/make_reference.py
	$(VENV_PYTHON) scripts/make_results.py
	$(VENV_PYTHON) scripts/draw_diagram.py
	$(BUILD_DOCS)

bench: $(INSTALLED)  ## Run every benchmark, scripts/bench_*.py, in turn
	@set -e; for script in $(sort $(wildcard scripts/bench_*.py)); do \
		echo "== $$script"; $(VENV_PYTHON) $$script $(ARGS); \
	done

format: $(INSTALLED)  ## Format the code and fix what the linter can fix
	$(VENV_PYTHON) -m ruff format .
	$(VENV_PYTHON) -m ruff check --fix .

clean:  ## Remove caches and build outputs; .venv, runs and data stay
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# The stamp is written last, so that an interrupted installation is taken up again. One pip command
# for all: only so does pip choose torch and torchvision as a pair. Whether they are one is then checked.
$(INSTALLED): pyproject.toml constraints.txt
	@rm -f $@
	@command -v "$(PYTHON)" >/dev/null || \
		{ echo "crossdistill needs Python 3.10 or newer, and '$(PYTHON)' is no command here: type make PYTHON=<path to python> $(MAKECMDGOALS)" >&2; exit 1; }
	@test -x $(VENV_PYTHON) || "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "crossdistill needs Python 3.10 or newer, and '$(PYTHON)' is $$("$(PYTHON)" -V 2>&1): type make PYTHON=<path to a newer python> $(MAKECMDGOALS)" >&2; exit 1; }
	@$(VENV_PYTHON) -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv $(VENV)
	$(VENV_PYTHON) -m pip install --disable-pip-version-check --constraint constraints.txt \
		torch torchvision --editable '.[dev]'
	$(VENV_PYTHON) -m crossdistill.utils.environment
	@touch $@
