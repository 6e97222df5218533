# Needs Python 3.11+, make and the package index; everything else goes into $(VENV).
# `make PYTHON=/path/to/python3.12 ...` names the interpreter.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

VENV ?= .venv
BIN := $(VENV)/bin
UV_VERSION := 0.13.9
UV := VIRTUAL_ENV=$(abspath $(VENV)) UV_PYTHON_DOWNLOADS=never $(BIN)/uv
TOOL := $(VENV)/.uv-$(UV_VERSION)
INSTALLED := $(VENV)/.installed

.PHONY: help
help: ## this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 26

.PHONY: demo
demo: $(INSTALLED) ## a real data set through a real pipeline on a real server and agent (two minutes)
	@$(BIN)/python examples/co2/demo.py

.PHONY: test
test: $(INSTALLED) ## all tests, on the engines this machine has (TESTS=tests/agents for some)
ifdef TESTS
	@$(BIN)/pytest $(TESTS)
else
	@$(BIN)/python -m tests
endif

.PHONY: chaos
chaos: $(INSTALLED) ## the long chaos: thousands of runs under kills, every outage (ENGINE=docker, RUNS=..., SEED=...)
ifeq ($(or $(ENGINE),process),process)
	@SHUNTER_CHAOS_RUNS=$(or $(RUNS),10000) SHUNTER_CHAOS_SEED=$(SEED) SHUNTER_CHAOS_AWAY=600 \
		$(BIN)/pytest tests/chaos -k "not engine"
else
	@SHUNTER_CHAOS_ENGINE_RUNS=$(or $(RUNS),500) SHUNTER_CHAOS_SEED=$(SEED) $(BIN)/pytest tests/chaos -k $(ENGINE)
endif

.PHONY: cluster-up
cluster-up: $(INSTALLED) ## a Kubernetes cluster on this machine for tests (root; see CONTRIBUTING.md)
	@$(BIN)/python -m tests.cluster up

.PHONY: cluster-build
cluster-build: $(INSTALLED) ## only build what that cluster is made of and charts are checked with, into the cache
	@$(BIN)/python -m tests.cluster build
	@$(BIN)/python -m tests.charts build

.PHONY: charts
charts: $(INSTALLED) ## write the README of each chart anew, from its values.yaml
	@$(BIN)/python -m tests.charts document

.PHONY: cluster-down
cluster-down: $(INSTALLED) ## end that cluster; nothing of it is left
	@$(BIN)/python -m tests.cluster down

.PHONY: cluster-fake-nodes
cluster-fake-nodes: $(INSTALLED) ## ten nodes in it that are not there, for thousands of pods
	@$(BIN)/python -m tests.cluster fake-nodes 10

.PHONY: cluster-kubeconfig
cluster-kubeconfig: $(INSTALLED) ## print the path of its kubeconfig (make -s cluster-kubeconfig)
	@$(BIN)/python -m tests.cluster kubeconfig

.PHONY: images
images: $(INSTALLED) ## the images of agent and server, also for the cluster that is up (BASE=python:3.13-slim, else Debian's packages)
	@BASE="$(BASE)" $(BIN)/python -m tests.engines.images

.PHONY: golden
golden: $(INSTALLED) ## keep what the command line prints as it is now (tests/cli/golden)
	@SHUNTER_GOLDEN=write $(BIN)/pytest -q tests/cli/test_golden.py

.PHONY: check
check: $(INSTALLED) ## format, lint, types, import rules, lock file, security (bandit, pip-audit)
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python .ci/check_tree.py
	@$(BIN)/bandit --quiet --configfile pyproject.toml --recursive flows work_pools agents infrastructure cli \
		2> >(grep -v "nosec encountered" >&2) # a mark is for all findings of a line, and some have one
	@$(BIN)/python .ci/check_advisories.py

.PHONY: format
format: $(INSTALLED) ## format and fix what can be fixed
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

.PHONY: bench
bench: $(INSTALLED) ## the figures of docs/benchmarks.md, measured here (BENCH=latency for one)
	@$(BIN)/python -m benchmarks $(or $(BENCH),--page docs/benchmarks.md)

.PHONY: compare
compare: $(INSTALLED) ## Shunter beside Prefect, both measured here
	@$(BIN)/python -m benchmarks.compare_prefect
	@$(BIN)/python -m benchmarks.tracked --prefect

.PHONY: install
install: $(INSTALLED) ## only make the environment

.PHONY: docs
docs: $(INSTALLED) ## write anew the pages of docs/ that are made from the code
	@$(BIN)/python -m shunter_cli.reference docs/settings.md

.PHONY: lock
lock: $(TOOL) ## write requirements.lock and those of images/ anew from pyproject.toml
	@$(COMPILE) --extra server --extra postgres --extra docker --extra kubernetes --extra code --group dev --group demo \
		$(LOCK_FLAGS) --output-file requirements.lock
	@$(COMPILE) --constraint requirements.lock --extra kubernetes --extra docker --extra code --output-file images/agent.lock
	@$(COMPILE) --constraint requirements.lock --extra server --extra postgres --output-file images/server.lock
	@echo "hatchling>=1.27" | $(subst pyproject.toml,-,$(COMPILE)) --constraint requirements.lock --output-file images/build.lock

COMPILE = UV_CUSTOM_COMPILE_COMMAND="make lock" $(UV) pip compile pyproject.toml --quiet --universal \
	--python-version 3.11 --generate-hashes --no-annotate --no-emit-index-url --no-emit-find-links

.PHONY: clean
clean: ## remove what make made, the environment too
	rm -rf $(VENV) .demo .bench .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The first of these that is new enough and can make an environment.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && break; done)

$(TOOL):
	@if [ -z "$(PYTHON)" ]; then \
		echo "No Python 3.11 or newer that can make environments was found." >&2; \
		echo "Install one (Debian: apt-get install python3 python3-venv) or name it: make PYTHON=/path/to/python3" >&2; \
		exit 1; fi
	@[ -x $(BIN)/python ] || { echo "making $(VENV) with $$($(PYTHON) --version)"; $(PYTHON) -m venv $(VENV); }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@rm -f $(VENV)/.uv-* && touch $@

$(INSTALLED): $(TOOL) pyproject.toml requirements.lock
	@echo "installing requirements.lock into $(VENV)"
	@$(UV) pip sync --quiet --compile-bytecode --require-hashes requirements.lock
	@$(UV) pip install --quiet --no-deps --editable .
	@touch $@
