# make setup | spark | demo | test | check | bench | clean
PYTHON ?= python3.11
BIN := .venv/bin
# TorchRec asks for the CUDA build of FBGEMM whatever the machine: hence without its dependencies, and only where the
# CPU build has a wheel. Without the two `tests/optimizers/test_torchrec.py` is skipped.
TORCHREC := torchrec==1.8.0 fbgemm-gpu-cpu==1.8.0

.PHONY: setup spark demo test check bench clean

setup: .venv/.ready

.venv/.ready: pyproject.toml Makefile
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[dev,distributed,baselines]'
ifeq ($(shell uname -sm),Linux x86_64)
	$(BIN)/pip install --quiet --no-deps $(TORCHREC)
endif
	@touch $@

# Beside the setup, since it is half a gigabyte; without it or without Java `tests/features/test_spark.py` is skipped.
spark: .venv/.spark

.venv/.spark: .venv/.ready
	$(BIN)/pip install --quiet --editable '.[spark]'
	@touch $@

demo: setup
	$(BIN)/tml run examples/demo.yaml --run-dir runs/demo

test: setup
	$(BIN)/pytest

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup
	@for file in benchmarks/[a-z]*.py; do $(BIN)/python $$file --short || exit 1; done

clean:
	rm -rf .venv runs build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} + -o -name '*.egg-info' -prune -exec rm -rf {} +
