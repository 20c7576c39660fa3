.DEFAULT_GOAL := help
.PHONY: help quickstart test test-slow test-ci attack bench lint check docs lock

PYTHON ?= python3
BIN := .venv/bin
# DVC runs `python -m changepair.flows.<stage>`, so this python must be first on PATH.
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DVC_NO_ANALYTICS := true
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export HF_HUB_OFFLINE := 1
# Two tests at a time, with one thread each.
TWO := -n 2 --dist loadgroup --no-loadscope-reorder

help: ## List the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

.venv/installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	# The lock is also a constraint: otherwise pip takes a newer version for a requirement with extras, whose hash is missing.
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock -c requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

quickstart: .venv/installed ## Generate pairs, train on them, evaluate on solar cells, textures and digits; about ten minutes on two cores
	changepair retrain quickstart

test: .venv/installed ## Run the tests in random order, two at a time
	OMP_NUM_THREADS=1 python -m pytest $(TWO)

test-slow: .venv/installed ## Run the slow tests, which run whole pipelines
	python -m pytest -m slow

test-ci: .venv/installed ## Run selected slow tests: runs, reruns, commands, workspaces, and a server that is down
	OMP_NUM_THREADS=1 python -m pytest $(TWO) -m slow -k "not is_quick" tests/pipeline/test_pipeline.py tests/pipeline/test_unchanged.py tests/pipeline/test_new_stage.py tests/schedule/test_workspaces.py tests/training/test_training.py \
		tests/detectors/test_packaged.py tests/prediction/test_entrances.py tests/pipeline/test_every_byte.py \
		"tests/running/test_faults.py::test_a_server_that_is_stopped_and_started_mid_run_costs_nothing"

attack: .venv/installed ## Run hundreds of hostile inputs of each kind, signals and cancellations, and attack the whole stack locally
	CHANGEPAIR_TRIES=400 python -m pytest -m attack tests

bench: .venv/installed ## Run the benchmarks and print their results
	python -m pytest tests/benchmarks -m bench -s

lint: .venv/installed ## Check format, lint rules, types and secrets
	ruff format --check . && ruff check . && mypy && python .ci/audit.py secrets

check: lint ## Run lint, and check for known vulnerabilities
	python .ci/audit.py

docs: .venv/installed ## Build the site in build/docs
	python -m changepair.flows.settings.reference > docs/pages/settings.md
	mkdocs build --quiet --strict --config-file docs/site.yml

lock: ## Update requirements.lock (needs uv)
	uv pip compile --universal --python-version 3.11 --generate-hashes --all-extras --no-annotate --no-header pyproject.toml -o requirements.lock
