.DEFAULT_GOAL := help
.PHONY: help quickstart test test-slow test-ci attack bench lint check docs lock

PYTHON ?= python3
BIN := .venv/bin
# DVC runs `python -m changepair.flows.<stage>`: that python has to be the environment's.
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DVC_NO_ANALYTICS := true
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export HF_HUB_OFFLINE := 1
# Two tests at a time, with a thread each.
TWO := -n 2 --dist loadgroup --no-loadscope-reorder

help: ## what can be made
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

.venv/installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	# As constraint too: pip would take a newer version for a requirement with extras, and then miss its hash.
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock -c requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

quickstart: .venv/installed ## make pairs, train on them, evaluate on solar cells; about ten minutes on two cores
	changepair retrain quickstart

test: .venv/installed ## the tests, two at a time and in an order that is new each time
	OMP_NUM_THREADS=1 python -m pytest $(TWO)

test-slow: .venv/installed ## the tests that run a whole pipeline or need long
	python -m pytest -m slow

test-ci: .venv/installed ## of the slow tests those that guard runs, reruns, entrances, workspaces, and a server that is away
	OMP_NUM_THREADS=1 python -m pytest $(TWO) -m slow -k "not is_quick" tests/pipeline/test_pipeline.py tests/pipeline/test_unchanged.py tests/pipeline/test_new_stage.py tests/schedule/test_workspaces.py tests/training/test_training.py \
		tests/detectors/test_packaged.py tests/prediction/test_entrances.py tests/pipeline/test_every_byte.py \
		"tests/running/test_faults.py::test_a_server_that_is_stopped_and_started_mid_run_costs_nothing"

attack: .venv/installed ## hundreds of hostile inputs of each kind, signals, cancellations, and the whole stack against a local attacker
	CHANGEPAIR_TRIES=400 python -m pytest -m attack tests

bench: .venv/installed ## the benchmarks, with their numbers printed
	python -m pytest tests/benchmarks -m bench -s

lint: .venv/installed ## format, lint, types and secrets
	ruff format --check . && ruff check . && mypy && python .ci/audit.py secrets

check: lint ## lint, and look for known vulnerabilities
	python .ci/audit.py

docs: .venv/installed ## the site with its pictures, in build/docs
	python -m changepair.flows.settings.reference > docs/pages/settings.md
	python docs/pictures.py
	mkdocs build --quiet --strict --config-file docs/site.yml

lock: ## write requirements.lock anew (needs uv)
	uv pip compile --universal --python-version 3.11 --generate-hashes --all-extras --no-annotate --no-header pyproject.toml -o requirements.lock
