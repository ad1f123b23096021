# Every target installs what it needs; only git, make and Python 3.11 or newer must be present.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
STAMP := .venv/.installed
# Tests run in two processes, a file in one of them. Each process has one Ray, which its tests share.
PARALLEL := -n 2 --dist loadfile

.PHONY: help install demo test test-fast test-all gpu-codegen lint types format clean

help:
	@echo "make demo      set up, transcribe a small corpus, evaluate, report"
	@echo "make test      set up and run the tests (minutes)"
	@echo "make test-fast the tests without Ray (two minutes)"
	@echo "make test-all  the slow ones too, and a search for new failing examples (an hour on 2 cores)"
	@echo "make gpu-codegen compile the GPU kernels for an H100, without a card (downloads Triton, 200 MB)"
	@echo "make lint types format clean"

# Installs the pinned versions of constraints.txt, so that every clone is the same; users choose their own versions.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	@echo "Installing the packages of constraints.txt into .venv: some minutes, most of them for torch."
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

install: $(STAMP)

demo: $(STAMP)
	rm -rf demo-run
	$(BIN)/sewd demo

test: $(STAMP)
	status=0; \
	$(BIN)/python -m pytest -m "not slow and not ray" $(PARALLEL) || status=$$?; \
	$(BIN)/python -m pytest -m "not slow and ray" $(PARALLEL) || status=$$?; \
	exit $$status

# The tests that need no Ray.
test-fast: $(STAMP)
	$(BIN)/python -m pytest -m "not slow and not ray" $(PARALLEL)

test-all: $(STAMP)
	status=0; \
	$(BIN)/python -m pytest --hypothesis-profile search -m "not ray" $(PARALLEL) || status=$$?; \
	$(BIN)/python -m pytest --hypothesis-profile search -m ray $(PARALLEL) || status=$$?; \
	exit $$status

# torch for CPUs comes without Triton: it is installed beside the environment, in the version that torch 2.13 wants.
gpu-codegen: $(STAMP)
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target .venv/gpu-codegen triton==3.7.1
	PYTHONPATH=.venv/gpu-codegen $(BIN)/python -m pytest -s tests/sewd_model/packed/test_gpu_codegen.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(STAMP)
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build dist *.egg-info demo-run .mypy_cache .ruff_cache .pytest_cache .hypothesis
