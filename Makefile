# make demo    the whole way once: photos, shards, seeded batches, a proven resume   (PHOTOS=DIR takes your own)
# make test    the test suite                     make check   format, lint, types, arrows, then the test suite
# make bench   the benchmarks                     make setup   only the set-up, which the others do by themselves
# make nightly 10,000 random jobs that change world size, workers and batch on the way, new ones each time; 500 loaders
# make clean   removes what these made, .venv included
# make peers   what tests hold ours against and use it with, into .venv: DALI, datasets, polars, training frameworks (2 GB)

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
PEERS := .venv/.peers

.PHONY: setup peers demo test lint check bench nightly clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt scripts/setup.sh
	@PYTHON="$(PYTHON)" bash scripts/setup.sh "$(READY)"

peers: $(PEERS)

$(PEERS): $(READY)
	$(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt \
	    --no-build-isolation --editable '.[peers,dali,webdataset]'
	$(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt \
	    --no-deps --upgrade --target .venv/torchvision torchvision
	@touch $(PEERS)

demo: $(READY)
	$(BIN)/feeder demo $(if $(PHOTOS),--photos "$(PHOTOS)")

test: $(READY)
	$(BIN)/python -m pytest -q -n 2

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

check: lint test

bench: $(READY)
	$(BIN)/python -m benchmarks

nightly: $(READY)
	FEEDER_NIGHTLY=1 $(BIN)/python -m pytest -q -o faulthandler_timeout=0 \
	    tests/feeder/test_elasticity.py tests/feeder/test_elastic_batches.py tests/feeder/test_loader.py

clean:
	rm -rf .venv .demo build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
