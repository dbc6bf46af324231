# Everything a newcomer types. PYTHON is the interpreter the environment is made from.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TRITON := build/triton-venv

.PHONY: quickstart test check lint types triton bench clean

$(STAMP): pyproject.toml requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint requirements.lock --editable '.[dev]'
	touch $(STAMP)

quickstart: $(STAMP)  ## the whole path on a synthetic data set
	$(BIN)/siamdetr quickstart

test: $(STAMP)  ## the tests, a file a process; each process has one thread
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)  ## mypy sees export/, serve/ and cli/ only through links in one tree
	rm -rf build/view && mkdir -p build/view/siamdetr
	for entry in siamdetr/*; do ln -s ../../../$$entry build/view/siamdetr/; done
	for folder in export serve cli; do ln -s ../../../$$folder build/view/siamdetr/$$folder; done
	$(BIN)/mypy -p siamdetr

triton: $(TRITON)/.installed  ## Triton's protobufs, apart from ours: they want an older protobuf library

$(TRITON)/.installed:
	$(PYTHON) -m venv $(TRITON)
	$(TRITON)/bin/python -m pip install --quiet 'tritonclient[grpc]==2.73.0'
	touch $@

check: lint types test  ## what CI runs, and what a commit must pass

bench: $(STAMP)  ## side-by-side ratios, printed
	for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

clean:
	rm -rf $(VENV) build dist *.egg-info
