# `make demo` shows the method end to end; `make test` runs the tests. Both make
# `.venv` from requirements.lock first, which is a no-op when nothing changed.

# Any command that starts Python 3.11 or newer: `make setup PYTHON=python3.12`.
PYTHON ?=
# Test processes; 0 runs the tests in one process (for a debugger).
TEST_WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PARITY := $(VENV)/.parity

# Compiled programs are kept between runs and shared by tests and demo: most of
# a first run on two cores is compilation.
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0.5

.PHONY: help setup parity gl demo smoke test chaos clean
.DEFAULT_GOAL := help

help: ## Lists the targets.
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## */  make \1\t/' | expand -t 16

setup: $(STAMP) gl ## Makes .venv with the locked packages and finds an OpenGL library.

parity: setup $(PARITY) ## Adds PyTorch's models and the TPU compiler: `make test` then compares with them.

demo: setup ## Data, training, evaluation: writes runs/demo/report.html (11 to 23 minutes on two shared cores).
	$(BIN)/python -m experiments.demo --out runs/demo

smoke: setup ## The same path, tiny: runs/smoke/report.html.
	$(BIN)/python -m experiments.demo --profile smoke --out runs/smoke

test: setup ## The whole test suite (about 20 minutes on two cores).
	$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile

chaos: setup ## Kills and damages a small training run (20 kills, a few minutes): nothing may differ.
	$(BIN)/python -m experiments.chaos --smoke --rounds R3,R4,R5,R6
	$(BIN)/python -m experiments.chaos --rounds R1 --kills 20

clean: ## Removes the environment, the caches and the runs.
	rm -rf $(VENV) .cache runs build *.egg-info .pytest_cache .hypothesis
	find wallwm_jax configs data experiments tests -name __pycache__ -type d -prune -exec rm -rf {} +

# $(call debian,package,what is missing): installs one Debian package when this
# user may, otherwise says the one command and stops.
define debian
{ as=""; test "$$(id -u)" = 0 || as="sudo -n"; \
  command -v apt-get >/dev/null && $$as true 2>/dev/null && \
  apt="$$as env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120 -qq -y" && \
  { $$apt install $(1) || { $$apt update && $$apt install $(1); }; }; } || \
{ echo "make setup: $(2); run this once, then make again:  sudo apt-get install -y $(1)" >&2; exit 1; }
endef

# Each candidate is run, not only looked up: a shim may exist and still fail.
# The target is pip, which comes last, so that a half-made .venv is completed.
$(BIN)/pip:
	@set -e; chosen=""; \
	for python in $(or $(PYTHON),python3.11 python3.12 python3); do \
	  if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11) or (3, 12) <= sys.version_info < (3, 12, 2))' 2>/dev/null; then chosen=$$python; break; fi; \
	done; \
	if test -z "$$chosen"; then \
	  echo "make setup: no Python 3.11, nor one from 3.12.2 on, found (tried $(or $(PYTHON),python3.11 python3.12 python3)); install one, or name it: make setup PYTHON=/path/to/python3.11" >&2; \
	  exit 1; \
	fi; \
	$$chosen -c 'import ensurepip' 2>/dev/null || $(call debian,python3-venv,$$chosen cannot make virtual environments); \
	echo "make setup: $(VENV) from $$($$chosen --version)"; \
	$$chosen -m venv $(VENV)

# Touched last, so that an interrupted installation starts again.
$(STAMP): requirements.lock setup.py | $(BIN)/pip
	@echo "make setup: installing the locked packages (one or two minutes)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# PyTorch comes first and without a hash: its builds differ between machines, and
# the libraries that follow must find it there rather than choose one.
$(PARITY): requirements-parity.lock $(STAMP)
	@echo "make parity: installing PyTorch, diffusers, transformers and the TPU compiler"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements-parity.lock
	@touch $@

# Headless rendering needs OSMesa (asked for the way PyOpenGL looks it up).
# MUJOCO_GL=egl, for machines with a GPU driver, does without.
gl: $(STAMP)
	@test "$(MUJOCO_GL)" = egl || \
	$(BIN)/python -c 'import ctypes.util, sys; sys.exit(not ctypes.util.find_library("OSMesa"))' || \
	$(call debian,libosmesa6,no OSMesa library for headless rendering)
