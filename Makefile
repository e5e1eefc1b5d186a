# Everything a developer runs. The first target that needs it makes .venv; after that nothing here but 'flower', once,
# uses the network.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
READY := $(VENV)/.ready

# Where torch and torchvision come from, if not from PyPI: https://download.pytorch.org/whl/cpu has them without CUDA.
TORCH_INDEX ?=

# Flower, Ray and validate-pyproject call home unless told not to; Flower would also install an app's dependencies anew.
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1
export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION := 1
export RAY_USAGE_STATS_ENABLED := 0
export VALIDATE_PYPROJECT_NO_NETWORK := 1

# Tests start many processes: with compiled modules kept beside the sources, each of them is ready seconds earlier.
unexport PYTHONDONTWRITEBYTECODE
PYTEST := $(PY) -m pytest -n 2 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help install demo test test-core test-all test-gpu test-release flower check check-types check-rest audit docs bench format clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

install: $(READY)  ## make .venv with this package and its tools; every other target does it by itself

demo: $(READY)  ## twenty virtual clients of five sizes train one digit classifier on Ray; writes a report
	$(VENV)/bin/heterofl run --grid ray

test: $(READY)  ## tests of every capability, about three minutes on two cores
	$(PYTEST) -m "not slow and not release"

# Coverage makes tests take half as long again, so it is measured where it must be complete, and only there. In one
# process: in two, they would be imported twice, which takes longer than half of them.
test-core: $(READY)  ## the tests of core, which have to cover each of its lines
	$(PY) -m pytest tests/core --cov=heterofl_flwr.core --cov-report=term-missing:skip-covered --cov-fail-under=100

test-gpu: $(READY)  ## the tests that need a CUDA device
	$(PY) -m pytest -m gpu

# The tests of a file stay in one process: what they share (whole runs, Ray) takes up to a minute to start. Four at a
# time, as they often wait for others' processes; in their order, since the longest come early in it. Short ones are
# among them: they have work to do while others wait.
test-all: $(READY)  ## test, with the long ones: Ray, whole runs, a deployment, every model and every fault
	$(PYTEST) -n 4 --dist loadfile --no-loadscope-reorder -m "not release"

test-release: $(READY)  ## what a release needs beside test-all: nodes killed in each phase, published apps, every method
	$(PY) -m pytest -m release

FLOWERS ?= 1.32.1 1.42.0
flower: $(READY)  ## a few tests with the oldest and the newest Flower that are allowed, or with FLOWERS="1.36.0 1.38.0"
	@for version in $(FLOWERS); do \
		own=$(CURDIR)/build/flwr-$$version; echo "Flower $$version"; \
		{ test -d $$own || $(PIP) install --quiet --no-deps --target $$own flwr==$$version; } && \
		PYTHONPATH=$$own:$(CURDIR) $(PY) -m pytest -q -p no:cacheprovider -m "not slow and not simulation" \
			tests/test_compat.py tests/client/test_client.py tests/federation/test_replies.py || exit 1; \
	done

check: $(READY)  ## format, lint, types, spelling, metadata, dependencies: whether they fit, and are known as vulnerable
	@$(MAKE) --no-print-directory -j 2 check-types check-rest

check-types: $(READY)
	$(PY) -m mypy

check-rest: $(READY)
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(VENV)/bin/lint-imports --no-cache --no-logo
	$(PY) -m codespell_lib
	$(PY) -m validate_pyproject pyproject.toml
	$(PIP) check
	$(PY) .ci/audit.py

audit: $(READY)  ## look up known vulnerabilities of what is installed; unlike check, fail without a network
	$(PY) .ci/audit.py --strict

docs: $(READY)  ## build the documentation, site/html/index.html; a warning is an error
	$(PY) -m sphinx -W --keep-going -q -E -d site/doctrees docs site/html

bench: $(READY)  ## time the aggregation
	$(PY) -m simulations.bench aggregate

format: $(READY)  ## rewrite the code in the project's format
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

clean:  ## remove what builds and tools leave behind; keeps .venv and the results of runs
	rm -rf build dist site htmlcov .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# The stamp comes last, so an install that was interrupted is taken up again: a first one from the start, because it may
# have left half of a package behind; a later one on top of what is there, because there may be no network now.
# $(PYTHON)'s pip fills .venv, or else ensurepip, which takes three times as long: it compiles all of pip, twice.
# The build tools come first, so that builds need no environment, and no download, of their own. setuptools is for
# hydra's antlr4, which is published as source only. uv takes a third of pip's time, but reads none of pip's settings:
# where there is no uv, or it finds no index, pip goes on. Both keep the torch of TORCH_INDEX, whose dependencies come
# with those of the package. Python compiles a module where it is first loaded; to compile
# all 24,000 of them here would take five times as long as the demo needs for its own.
install_packages = $(VENV)/bin/uv pip install --quiet --python $(PY) $(1) || \
	{ echo "pip goes on where uv has ended; it takes some minutes more"; $(PIP) install --quiet --no-compile $(1); }
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "heterofl-flwr needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>/dev/null || echo missing)." \
			"Name another one: make PYTHON=python3.11" >&2; exit 1; }
	@test ! -e $(VENV)/.unfinished || { echo "the last install did not finish; starting over"; rm -rf $(VENV); }
	@test -x $(PY) || { mkdir -p $(VENV) && touch $(VENV)/.unfinished && $(PYTHON) -m venv --without-pip $(VENV); }
	@echo "installing into $(VENV); the first time this takes some minutes and up to 7 GB"
	-@$(PYTHON) -m pip --python $(PY) install --quiet --no-compile pip uv || { $(PY) -m ensurepip && $(PIP) install --quiet uv; }
	$(call install_packages,"hatchling>=1.27" "editables>=0.5" "setuptools>=77")
	$(if $(TORCH_INDEX),$(call install_packages,--no-deps --constraint constraints.txt --index-url $(TORCH_INDEX) torch torchvision))
	$(call install_packages,--no-build-isolation --constraint constraints.txt --editable ".[dev]")
	@rm -f $(VENV)/.unfinished
	@touch $(READY)
