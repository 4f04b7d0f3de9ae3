# Everything one does with this repository. Needs GNU make 3.81 and Python 3.11, nothing else.
# HOST, PORT, REDIS_PORT, DATA_DIR, API_TOKEN and the other settings (docs/configuration.md)
# come from the environment or the command line: make up PORT=9000

VENV := .venv
BIN := $(VENV)/bin
RUNTIME := $(VENV)/.ready-runtime
DEV := $(VENV)/.ready-dev
DEEP := $(VENV)/.ready-deep
IMAGE ?= tailrun
WHAT ?= run
BENCH_queue := queues

.DEFAULT_GOAL := help
.PHONY: help demo up down test test-deep chaos check bench build manifests compose-up compose-down clean lock

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' Makefile

demo: $(RUNTIME) ## start everything, run a real job and a recorded agent, show their lines and files, stop everything
	@$(BIN)/tailrun demo

up: $(RUNTIME) ## serve on this machine until Ctrl-C (HOST, PORT, REDIS_PORT, DATA_DIR, API_TOKEN)
	@$(BIN)/python scripts/foreground.py $(BIN)/tailrun up

down: $(RUNTIME) ## stop the `make up` of this folder
	@$(BIN)/tailrun down

test: $(DEV) ## run the tests (minutes; nothing to install besides)
	@$(BIN)/python -m pytest -m "not deep" -n 3 --dist worksteal

test-deep: $(DEEP) ## run the long tests; installs the Debian packages they need when missing
	@sh scripts/debian_packages.sh
	@$(BIN)/python -m pytest -m deep

chaos: $(DEV) ## a storm of kills, freezes and cuts (CHAOS_SEED, CHAOS_RUNS, CHAOS_SECONDS)
	@$(BIN)/python -m pytest tests/chaos/test_storm.py -m deep -s

check: $(DEV) ## lint, format, types, layers, dependencies, locks, documents
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports
	$(BIN)/deptry app tailrun toolbox
	$(BIN)/shellcheck *.sh
	$(BIN)/python scripts/lock.py --check
	$(BIN)/python -m pytest tests/unit/test_docs.py tests/unit/test_repository.py

bench: $(DEV) ## measure; WHAT=run, queue, runs, stream, ingest, backlog, agent, tools (on a cluster) or load
	@$(BIN)/python bench/$(or $(BENCH_$(WHAT)),$(WHAT)).py

build: ## build the container image (docker or buildah)
	@sh scripts/build_image.sh $(IMAGE)

manifests: $(DEV) ## make k8s/, the chart's schema and its README anew
	@$(BIN)/python scripts/manifests.py

compose-up: ## serve in containers until compose-down: API, worker, Redis, PostgreSQL, S3 (docker compose)
	@sh scripts/build_image.sh $(IMAGE)
	@docker compose up --detach --wait api worker

compose-down: ## stop them; their data stays
	@docker compose down

clean: ## remove what was built or installed here; data stays
	@rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	@find app tailrun toolbox tests scripts bench -name __pycache__ -type d -prune -exec rm -rf {} +

lock: $(DEV) ## resolve the dependencies of pyproject.toml anew into the requirements files
	@$(BIN)/python scripts/lock.py

$(RUNTIME): requirements.txt requirements-embedded.txt requirements-fast.txt scripts/setup.sh
	@sh scripts/setup.sh runtime

$(DEV): $(RUNTIME) requirements-dev.txt
	@sh scripts/setup.sh dev

$(DEEP): $(DEV) requirements-deep.txt
	@sh scripts/setup.sh deep
