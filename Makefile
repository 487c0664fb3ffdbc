# One verb per act. `make demo` and `make test` start from nothing: they make .venv and install what they need.
# PYTHON=python3.12 chooses the interpreter, VENV=path the environment.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
  "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
PINS := $(VENV)/constraints.txt
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint $(PINS)
# Stamps say what is installed in $(VENV); they are older than the files they depend on when it must be renewed.
CORE := $(VENV)/.installed-core
TEST := $(VENV)/.installed-test
DEV := $(VENV)/.installed-dev
# Workers compute beside each other, so one thread each. Hundreds of processes are started, which would each compile
# quire's modules for themselves if they might not keep them.
PYTEST := env -u PYTHONDONTWRITEBYTECODE OMP_NUM_THREADS=1 $(BIN)/python -m pytest
# One more than two cores: what waits for servers leaves room.
PARALLEL := -n 3 --dist worksteal
# Those of benchmarks/ that need no GPU, no peer and no hour.
BENCHES := startup scheduler finite structured deterministic front loading cpu vs_transformers
PROMPT ?= The old house stood on a hill above the village, and

.PHONY: help setup demo test test-long soak check check-extras sizes bench docs constraints clean
.DELETE_ON_ERROR:

help:
	@echo 'make demo          install, and stream an answer of the model that ships with quire'
	@echo 'make test          install, and run the tests'
	@echo 'make setup         make $(VENV) with quire and what its tests need'
	@echo 'make test-long     the tests with 20,000 examples per property and 100,000 simulated lives; takes hours'
	@echo 'make soak          an hour of mixed traffic on the toy model; looks for what is lost, wrong, left over or growing'
	@echo 'make check         format, lint, types, import contracts, sizes, plain tests with coverage'
	@echo 'make check-extras  core install alone, page and deploy/ by the tools of Debian'
	@echo 'make sizes         lines per folder, the change against main, and the hard stops'
	@echo 'make bench         the benchmarks that a laptop can run; most append their figures to benchmarks/ledger'
	@echo 'make docs          renew the generated documents and check every link'
	@echo 'make constraints   renew constraints.txt from pyproject.toml'
	@echo 'make clean         remove $(VENV), caches and builds'

setup: $(TEST)

demo: $(CORE)
	@echo 'quire run "$(PROMPT)"'
	@$(BIN)/quire run --raw --hints "$(PROMPT)"

test: $(TEST)
	$(PYTEST) $(PARALLEL)

test-long: $(TEST)
	HYPOTHESIS_PROFILE=long $(PYTEST) $(PARALLEL) --timeout 7200

soak: $(DEV)
	$(BIN)/python benchmarks/soak.py --minutes 60 --plot docs/images/soak.svg --ledger benchmarks/ledger/soak.jsonl

check: $(DEV)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/sizes.py
	OMP_NUM_THREADS=1 $(BIN)/coverage run -m pytest -m plain
	$(BIN)/coverage report --skip-covered --skip-empty

# A second environment with the core only: what an extra brings would hide a missing dependency.
check-extras:
	$(MAKE) VENV=.cache/venv-core .cache/venv-core/.installed-core
	.cache/venv-core/bin/python tools/import_all.py
	.cache/venv-core/bin/quire run --raw --max-tokens 16 "$(PROMPT)"
	@for tool in chromedriver nix-instantiate systemd-analyze; do command -v $$tool > /dev/null || \
	  { echo 'apt-get install chromium chromium-driver nix-bin systemd, then again'; exit 1; }; done
	$(MAKE) $(TEST)
	$(BIN)/python tools/check_native.py
	$(INSTALL) --editable '.[test,extras]'
	$(MAKE) .cache/venv-clients/.installed
	$(BIN)/python -m pytest -m extras tests/extras

# LangChain, LlamaIndex and lm-eval want another openai than the tests, and weigh a gigabyte.
.cache/venv-clients/.installed: examples/requirements.txt
	$(PYTHON) -m venv .cache/venv-clients
	.cache/venv-clients/bin/python -m pip --disable-pip-version-check install --quiet -r examples/requirements.txt
	@touch $@

sizes: $(CORE)
	$(BIN)/python tools/sizes.py

bench: $(TEST)
	for name in $(BENCHES); do echo "== $$name"; $(BIN)/python "benchmarks/$$name.py" || exit 1; done

docs: $(CORE)
	$(BIN)/python tools/make_config_docs.py
	$(BIN)/python tools/make_models_doc.py
	$(BIN)/python tools/make_quantization_docs.py
	$(BIN)/python tools/check_links.py

constraints: $(CORE)
	$(BIN)/python tools/make_constraints.py

clean:
	rm -rf $(VENV) .cache build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo 'quire needs Python 3.11 or newer: install it, or say make PYTHON=/path/to/python'; exit 1; }
	$(PYTHON) -m venv $(VENV)

# An environment that has a torch keeps it, whatever build it is: it and its triton are not pinned there. The tests name
# a triton of their own: a torch that comes with another one is replaced for them.
$(PINS): constraints.txt | $(BIN)/python
	@if $(BIN)/python -c 'import torch' 2>/dev/null; then grep -Ev '^(torch|triton)==' constraints.txt > $@; \
	  else cp constraints.txt $@; fi

# torch goes first and by itself; native/ is compiled meanwhile, and what is installed behind finds it done. It needs the
# setuptools of pyproject.toml, which so need not be installed anew for each installation of quire.
INSTALL := $(PIP) --no-build-isolation
$(CORE): pyproject.toml constraints.txt setup.py $(wildcard native/* native/*/*) | $(BIN)/python $(PINS)
	@echo 'Installing quire and torch into $(VENV); the first time takes a few minutes.'
	@$(PIP) 'setuptools>=77'
	@$(BIN)/python setup.py --quiet build_ext --inplace & \
	  $(BIN)/python -c 'import torch' 2>/dev/null || $(PIP) torch; done=$$?; wait; exit $$done
	@$(INSTALL) --editable .
	@touch $@

# Python compiles what tests import, when they do.
$(TEST): $(CORE)
	@echo 'Installing what the tests need.'
	@$(INSTALL) --no-compile --editable '.[test]'
	@touch $@

$(DEV): $(TEST)
	@echo 'Installing what the checks need.'
	@$(INSTALL) --no-compile --editable '.[dev]'
	@touch $@
