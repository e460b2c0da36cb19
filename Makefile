# `make` alone lists the targets. No virtual environment has to be activated.

PYTHON ?= python3
# Handed to pip, for instance PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu" for a torch without CUDA
PIP_ARGS ?=
# Handed to the example scripts
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help venv alanine models figures test test-all lint format clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-10s %s\n", $$1, $$2}'
	@echo
	@echo '  PYTHON=python3.12  the Python that makes .venv (3.11 or newer)'
	@echo '  PIP_ARGS="..."     more arguments for pip, such as the index of a torch build'
	@echo '  ARGS="..."         more arguments for the script of alanine, models and figures'

venv: $(STAMP) ## Make .venv with the tested versions of everything

$(STAMP): setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "openmm_diffusion needs Python 3.11 or newer, but $(PYTHON) is $$($(PYTHON) --version 2>&1);" \
		     "name another one: make venv PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_ARGS) -c constraints.txt -e ".[dev,notebook]"
	@touch $@

alanine: $(STAMP) ## Alanine dipeptide: SE(3) and torsion moves against plain MD, table and pictures in results/alanine
	$(BIN)/python examples/alanine_dipeptide.py --output results/alanine $(ARGS)

models: $(STAMP) ## Train the shipped alanine dipeptide models again
	$(BIN)/python examples/train_alanine.py $(ARGS)

figures: $(STAMP) ## Draw the figures of the documentation again
	$(BIN)/python examples/figures.py $(ARGS)

lint: $(STAMP) ## Style, format and types, without changing a file
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP) ## Rewrite the code in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: lint ## Lint and the fast tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n auto

test-all: lint ## Lint and every test, the long statistical ones too; one that skips itself fails, but for want of a GPU
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --no-skips

clean: ## Remove caches and build products; .venv and results stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find openmm_diffusion tests examples -name __pycache__ -type d -prune -exec rm -rf {} +
