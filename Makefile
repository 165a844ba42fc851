# make course   the course in JupyterLab        PORT=8890 chooses the port, BROWSER=none opens no window
# make test     everything that must pass       make units, make lint, make nbval, make browser: parts of it
#
# PYTHON=python3.12 chooses the interpreter. TORCH_FLAGS is handed to pip when it installs PyTorch.

PYTHON ?= python3
PORT ?=
TORCH_FLAGS ?=
FOLDER ?= my-course
WORKERS ?= 2

BIN := .venv/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
NOTEBOOKS = $(wildcard course/*.ipynb labs/solutions/*.ipynb)
NBVAL := --nbval --nbval-current-env --nbval-sanitize-with tests/sanitize.cfg \
         --nbval-cell-timeout=60 -n $(WORKERS) --dist loadfile

.NOTPARALLEL:  # timings are measured; and the cheap checks speak first
.PHONY: course test lint types units slow sync nbval browser notebooks weekly clean

# ---------------------------------------------------------------- two commands

course: .venv/course
	@$(BIN)/quantlab doctor
	@$(BIN)/quantlab course $(FOLDER) $(if $(PORT),--port $(PORT))

test: lint types sync units slow nbval browser
	@echo "make test: all of it passed"

# ---------------------------------------------------------------- the environment, made once

.venv/torch: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "quantlab needs Python 3.11 or newer; try: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing PyTorch into .venv (once, a few minutes)"
	@$(PIP) $(TORCH_FLAGS) torch
	@touch $@

.venv/course: .venv/torch pyproject.toml
	@echo "Installing quantlab and JupyterLab into .venv"
	@$(PIP) --quiet --editable '.[course]'
	@touch $@

.venv/test: .venv/course
	@echo "Installing the test tools into .venv"
	@$(PIP) --quiet --editable '.[test,hf,gpu]'
	@touch $@

# ---------------------------------------------------------------- parts of the test

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/test
	$(BIN)/pyright --pythonpath $(BIN)/python

sync: .venv/test   # the committed notebooks are what their sources build
	$(BIN)/python course/build.py check

units: .venv/test  # with the docstrings' examples
	$(PYTEST) -q -n $(WORKERS) -m "not slow and not browser" quantlab tests

slow: .venv/test   # the wheel in an empty environment, and other long ones
	$(PYTEST) -q -n $(WORKERS) -m "slow and not browser" tests

nbval: .venv/test  # every output, on this processor and on an older one
	QUANTLAB_OFFLINE=1 $(PYTEST) -q $(NBVAL) $(NOTEBOOKS)
	QUANTLAB_OFFLINE=1 ATEN_CPU_CAPABILITY=avx2 $(PYTEST) -q $(NBVAL) $(NOTEBOOKS)

browser: .venv/test  # skips with a plain line where no Chromium is
	$(PYTEST) -q -rs -m browser tests

# ---------------------------------------------------------------- for authors

notebooks: .venv/test  # execute the sources that changed
	$(BIN)/python course/build.py build

weekly: .venv/test  # the plainest processor, then two threads: the same outputs
	QUANTLAB_OFFLINE=1 ATEN_CPU_CAPABILITY=default $(PYTEST) -q $(NBVAL) $(NOTEBOOKS)
	QUANTLAB_OFFLINE=1 QUANTLAB_THREADS=2 $(PYTEST) -q $(NBVAL) $(NOTEBOOKS)

clean:
	rm -rf .venv build dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
