.DEFAULT_GOAL := help
.PHONY: help quickstart test test-slow test-ci attack bench bench-peers lint check docs lock

PYTHON ?= python3
BIN := .venv/bin
# DVC runs `python -m changepair.flows.<stage>`, which must find the environment's Python.
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DVC_NO_ANALYTICS := true
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export HF_HUB_OFFLINE := 1
PEERS := "anomalib[clip]==2.7.0" faiss-cpu==1.15.1 openvino==2026.4.1 onnx onnxscript
# Two tests at a time, with one thread each.
TWO := -n 2 --dist loadgroup --no-loadscope-reorder

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

.venv/installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	# The lock is also a constraint: otherwise pip takes a newer version for a requirement with extras, which has no hash.
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock -c requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

quickstart: .venv/installed ## make pairs, train detectors, evaluate them on solar cells; about five minutes on two cores
	changepair retrain quickstart

test: .venv/installed ## run the tests, two at a time and in random order
	OMP_NUM_THREADS=1 python -m pytest $(TWO)

test-slow: .venv/installed ## run the tests that need minutes, such as whole pipelines
	python -m pytest -m slow

test-ci: .venv/installed ## run the most important slow tests
	OMP_NUM_THREADS=1 python -m pytest $(TWO) -m slow -k "not is_quick" tests/pipeline/test_pipeline.py tests/pipeline/test_unchanged.py tests/pipeline/test_new_stage.py tests/schedule/test_workspaces.py tests/training/test_training.py \
		tests/detectors/test_packaged.py tests/prediction/test_entrances.py tests/pipeline/test_every_byte.py \
		"tests/running/test_faults.py::test_a_server_that_is_stopped_and_started_mid_run_costs_nothing"

attack: .venv/installed ## test hundreds of hostile inputs, signals and cancellations, and the whole stack against a local attacker
	CHANGEPAIR_TRIES=400 python -m pytest -m attack tests

bench: .venv/installed ## run the benchmarks and print their results
	python -m pytest tests/benchmarks -m bench -s

# anomalib needs an earlier open_clip, so it has an environment of its own. Shared packages have equal versions, so that their speed is equal.
build/peers/installed: requirements.lock Makefile
	$(PYTHON) -m venv build/peers
	sed -n 's/ *\\$$//; /^[a-z].*==/p' requirements.lock | grep -v '^open-clip-torch' > build/peers/constraints.txt
	build/peers/bin/python -m pip install --quiet $(PEERS) -c build/peers/constraints.txt
	@touch $@

bench-peers: .venv/installed build/peers/installed ## compare speed and memory with anomalib and faiss, installed in build/peers
	python tests/benchmarks/peers.py $(ARGS)

lint: .venv/installed ## check format, style, types, secrets and wording
	ruff format --check . && ruff check . && mypy && python .ci/audit.py secrets && python .ci/words.py

check: lint ## lint, and check for known vulnerabilities
	python .ci/audit.py

docs: .venv/installed ## draw the pictures and build the site in build/docs
	python docs/pictures.py
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict --config-file docs/site.yml

lock: ## update requirements.lock (needs uv)
	uv pip compile --universal --python-version 3.11 --generate-hashes --all-extras --no-annotate --no-header pyproject.toml -o requirements.lock
