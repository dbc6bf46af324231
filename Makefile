# Everything a newcomer types. PYTHON is the interpreter the environment is made from.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TRITON := build/triton-venv
LABELS := build/labels-venv
# Headers of ONNX Runtime: its wheel has the library alone. Headers also fit newer libraries.
ORT_HEADERS := pool/main/o/onnxruntime/libonnxruntime-dev_1.21.0+dfsg-1_amd64.deb
ORT_HEADERS_SHA256 := 14f7d959d5deacbcf1504830d4189f91fc67382b399ed9ae9d3aa9c4050ced08
# A file of tests goes to one process. A process that dies ends the run: xdist may wait forever for the tests it had.
PROCESSES := --numprocesses auto --maxprocesses 8 --max-worker-restart 0 --dist loadfile
# The scripts that `make bench` runs with options, or not at all without a GPU.
TABLE := $(addprefix benchmarks/,gpu.py pretrain_step.py detectors.py predict.py deformable_attention.py)

.DEFAULT_GOAL := help
.PHONY: help quickstart test check format lint types docs coverage triton labels browser cpp bench gpu clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint requirements.lock --editable '.[dev]'
	touch $(STAMP)

quickstart: $(STAMP)  ## the whole path on a synthetic data set
	$(BIN)/siamdetr quickstart

test: $(STAMP)  ## the tests, a file a process; each process has one thread
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PROCESSES)

format: $(STAMP)  ## let ruff repair and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lint: $(STAMP)  ## ruff, without changing anything
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)  ## mypy, strict
	$(BIN)/python .ci/check_types.py

docs: $(STAMP)  ## the documentation site, into build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

coverage: $(STAMP)  ## the tests, and which lines they never reach
	OMP_NUM_THREADS=1 $(BIN)/coverage run -m pytest $(PROCESSES)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

triton: $(TRITON)/.installed  ## Triton's protobufs, apart from ours: they want an older protobuf library

$(TRITON)/.installed:
	$(PYTHON) -m venv $(TRITON)
	$(TRITON)/bin/python -m pip install --quiet 'tritonclient[grpc]==2.73.0'
	touch $@

labels: $(LABELS)/.installed  ## label tools' readers, apart from ours: they want another OpenCV

$(LABELS)/.installed:
	$(PYTHON) -m venv $(LABELS)
	$(LABELS)/bin/python -m pip install --quiet datumaro==1.13.12 label-studio-sdk==2.1.2
	touch $@

browser: build/browser/.installed  ## ONNX Runtime Web, for the test of examples/js; needs npm

build/browser/.installed: examples/js/package.json
	mkdir -p build/browser && cp examples/js/package.json build/browser/
	npm install --prefix build/browser --silent --no-audit --no-fund
	touch $@

cpp: build/cpp/.installed  ## what the test of examples/cpp is built from; needs Debian or Ubuntu, and root

build/cpp/.installed:
	apt-get update -qq
	apt-get install -y -qq --no-install-recommends g++ cmake libopencv-imgcodecs-dev nlohmann-json3-dev
	mkdir -p build/cpp
	mirror=$$(apt-get indextargets --format '$$(SITE)' 'Created-By: Packages' | grep -v security | head -n 1) && \
	  /usr/lib/apt/apt-helper download-file "$$mirror/$(ORT_HEADERS)" build/cpp/headers.deb SHA256:$(ORT_HEADERS_SHA256)
	dpkg-deb -x build/cpp/headers.deb build/cpp
	touch $@

check: lint types docs test  ## what CI runs, and what a commit must pass

bench: $(STAMP)  ## side-by-side ratios of docs/results.md, both sides in turns; needs an idle machine
	for line in \
	  "pretrain_step.py" "pretrain_step.py --variant vanilla" "pretrain_step.py --variant deformable --queries 300" \
	  "pretrain_step.py --precision bf16" "pretrain_step.py --variant vanilla --precision bf16" \
	  "pretrain_step.py --variant deformable --queries 300 --precision bf16" \
	  "detectors.py --variants conditional deformable vanilla" \
	  "detectors.py --variants conditional deformable vanilla --precision bf16" \
	  "predict.py --variant conditional" "predict.py --variant deformable --levels 4 --queries 300" \
	  "predict.py --variant rtdetr --backbone resnet18 --queries 300" \
	  "deformable_attention.py --height 320 --width 320 --device cpu" \
	; do echo "== $$line"; $(BIN)/python benchmarks/$$line || exit 1; done
	for script in $(filter-out $(TABLE),$(wildcard benchmarks/*.py)); do echo "== $$script"; $(BIN)/python $$script || exit 1; done

gpu: $(STAMP)  ## what only a GPU can tell, in eight minutes
	$(BIN)/python benchmarks/gpu.py --output build/gpu

clean:  ## remove the environment and everything built
	rm -rf $(VENV) build dist *.egg-info
