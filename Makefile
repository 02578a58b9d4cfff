# Every target makes .venv by itself, from the versions pinned in constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
# Torch's threads wait awake for some microseconds, and sleep after that (docs/performance.md, "Threads").
export GOMP_SPINCOUNT ?= 1000
test test-all: export GOMP_SPINCOUNT = 0  # several processes share the cores
OFFLINE := HF_HUB_OFFLINE=1 PIP_NO_INDEX=1

.DEFAULT_GOAL := help
.PHONY: help install models demo demo-train results performance docs test test-all gpu-check lint clean

help:  ## print this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo 'Another Python than python3: make PYTHON=/path/to/python install'

install: .venv/installed  ## make .venv with the pinned versions

.venv/installed: pyproject.toml setup.py adapters/pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else \
		"hsdlab needs Python 3.11 or newer and $(PYTHON) is %d.%d; say make PYTHON=/path/to/python3.11" \
		% sys.version_info[:2])'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --no-compile --constraint constraints.txt --editable '.[dev,docs]' --editable ./adapters
	$(BIN)/python -m compileall -qq -j 0 .venv/lib || true  # what pip does on one core; templates are no Python
	touch $@

models: .venv/installed  ## fetch the embedded models into the user's cache (once, 180 MB)
	$(BIN)/python -m hsdlab.models.embedded

demo: models  ## two fine-tuned models under six strategies, side by side: a table and a picture (minutes)
	$(BIN)/hsdlab demo

demo-train: models  ## fine-tune the embedded model so that it can skip, then compare the strategies; table and pictures
	test -d runs/demo_model/model || { rm -rf runs/demo_model && \
		$(BIN)/python train.py fit --config configs/experiment/finetune_docstrings.yaml --output runs/demo_model; }
	$(BIN)/python evaluate.py compare --config configs/experiment/demo.yaml

results: models  ## decode and time what docs/results.md and docs/early_exit.md need and is not there yet (hours), and write them
	$(BIN)/python -m benchmarks.run_results
	$(BIN)/python -m benchmarks.results
	$(BIN)/python -m benchmarks.early_exit

performance: models  ## measure the figures of docs/performance.md and write them (long)
	$(BIN)/python -m benchmarks.performance

test: lint  ## linters, type checker and the tests that a change needs, offline (13 minutes on 2 cores without AVX-512)
	$(OFFLINE) $(BIN)/python -m pytest -n auto --dist loadgroup -m "not slow"

test-all: lint  ## all tests: each law on every family in every way to decode, long kills, every notebook too
	$(OFFLINE) $(BIN)/python -m pytest -n auto --dist loadgroup

gpu-check: .venv/installed  ## on a machine with a CUDA GPU: its tests, and the goals of compiled decoding; writes docs/results/gpu.json
	$(BIN)/python -m benchmarks.gpu_check

docs: .venv/installed  ## build the documentation site, offline, and check its links: docs/_build/html/index.html
	$(OFFLINE) $(BIN)/python -m sphinx -b html -W --keep-going -q docs docs/_build/html
	$(BIN)/python -m docs.check_links

lint: models
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

clean:  ## remove .venv and all that was built (not the fetched models)
	rm -rf .venv build dist docs/_build docs/_generated docs/notebooks *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .grimp_cache
