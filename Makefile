# make run: pictures in outputs/. make test: the tests. make lint: style and types. Each sets up .venv when needed.
ifeq ($(OS),Windows_NT)  # needs Git's bash
SHELL := bash
PYTHON ?= python
BIN := .venv/Scripts
else
PYTHON ?= python3
BIN := .venv/bin
endif
DATA_ROOT ?= data
DATASET ?= auto
OUTPUT_DIR ?= outputs
# LOCKED=1 installs exactly the packages of requirements-lock.txt, each checked against its hashes, as CI does.
LOCKED ?=

.PHONY: run test lint bench torture lock clean

run: .venv/run.stamp
	$(BIN)/python ae_pca.py --dataset "$(DATASET)" --data-root "$(DATA_ROOT)" --output-dir "$(OUTPUT_DIR)"
	$(BIN)/python ae_train.py --dataset "$(DATASET)" --data-root "$(DATA_ROOT)" --output-dir "$(OUTPUT_DIR)"

test: .venv/dev.stamp
	$(BIN)/python -m pytest

lint: .venv/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/run.stamp
	$(BIN)/python -m benchmarks.bench --data-root "$(DATA_ROOT)"
	$(BIN)/python ae_reproduce.py --data-root "$(DATA_ROOT)"

torture: .venv/dev.stamp
	$(BIN)/python -m tests.torture

# Needs pip-tools on Linux, x86_64, CPython 3.11; add --upgrade to the command for newer versions of what is not pinned.
lock:
	CUSTOM_COMPILE_COMMAND="make lock  # all packages of CI, for Linux on x86_64 and CPython 3.11" \
	pip-compile --quiet --generate-hashes --allow-unsafe --strip-extras --no-emit-index-url --no-emit-find-links \
	  --no-emit-options --output-file requirements-lock.txt requirements.txt requirements-dev.txt

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache

# A stamp is written after a successful install; an interrupted install runs again.
.venv/run.stamp: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(if $(LOCKED),--require-hashes -r requirements-lock.txt,-r requirements.txt)
	touch $@

.venv/dev.stamp: requirements-dev.txt requirements-trackers.txt requirements-export.txt .venv/run.stamp
	$(BIN)/python -m pip install --quiet $(if $(LOCKED),--require-hashes -r requirements-lock.txt,-r requirements-dev.txt)
	touch $@
