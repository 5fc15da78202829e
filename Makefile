# Every target makes the environment it needs; see `make help`.
PYTHON ?= python3
PIP_OPTIONS ?= -c constraints.txt
PROFILE ?= mini
PORT ?= 5000
# Local folders in place of the hub: MODELS holds one folder a model, DATA one a task.
MODELS ?=
DATA ?=
# A folder that make gpu-wheels filled, for a machine without network; empty: packages are fetched.
WHEELS ?=
# Processes that share a sweep's jobs: a GPU is one job's.
WORKERS ?= $(if $(filter mini%,$(PROFILE)),2,1)

VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/ready
ITEMS := table1 table2 table3 table4 table6 figure1 figure3 figure4 curves
APART := quickstart mini_settings pairs selections systems worth
# Each process begins with a stretch of its own; whichever ends first takes from another's.
PARALLEL := --numprocesses logical --dist worksteal
LOCAL := $(if $(MODELS),model.root=$(MODELS)) $(if $(DATA),data.root=$(DATA))

.DEFAULT_GOAL := help

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## Make .venv with everything pinned; other targets do this themselves

ifneq ($(WHEELS),)
# Without network: what they lack is taken from the machine, and dfolora from this folder.
$(READY):
	$(PYTHON) -m venv --system-site-packages $(VENV)
	$(RUN) -m pip install --quiet --no-index --no-deps $(WHEELS)/*.whl
	printf '%s\n' $(CURDIR)/src $(CURDIR) > $$($(RUN) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/dfolora.pth
	touch $@
else
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet $(PIP_OPTIONS) --editable '.[dev]'
	touch $@
endif

quickstart: reproduce-quickstart ## The prompt alone, C-LoRA and F-LoRA on one embedded task, in a minute: a table and curves
	@echo "The curves are in reports/quickstart.png. Next: make reproduce-table1, or a run of your own:"
	@echo "  $(RUN) -m pipelines.run task=mini/agnews optimizer=fwa rank=4"

# Its times are told, so nothing may run beside it.
reproduce-table3: WORKERS := 1
reproduce-all: $(ITEMS:%=reproduce-%) ## All that follows, one after another (PROFILE=mini, small or paper)

reproduce-table1: ## Run what the store still lacks, then write reports/table1.md, .html, .tex, .csv (small: table1-small.md)
reproduce-table2: ## The same with causal language models
reproduce-table3: ## Memory and time, with early stopping
reproduce-table4: ## What the projections' scale and the search contribute
reproduce-table6: ## Which weight matrices are adapted
reproduce-figure1: ## Averages of Table 1; a figure also as .png and .svg
reproduce-figure3: ## The search dimension
reproduce-figure4: ## The rank
reproduce-curves: ## Losses and dev scores of one task as methods go on
reproduce-systems: ## Zeroth-order systems beside C-LoRA and F-LoRA; not of the paper, nor in reproduce-all
reproduce-pairs: ## The core's size, layers' turns and the bias in pairs; not of the paper, nor in reproduce-all
reproduce-worth: ## Searches beside one calibrated call; not of the paper, nor in reproduce-all
$(ITEMS:%=reproduce-%) $(APART:%=reproduce-%): reproduce-%: $(READY)
	@# The report is written also when a run failed, with a hole in its place.
	@$(RUN) -m pipelines.run experiment=$* profile=$(PROFILE) workers=$(WORKERS) $(LOCAL); status=$$?; \
	$(RUN) -m pipelines.report table=$* profile=$(PROFILE) && exit $$status

benchmark: $(READY) ## Time the engine beside the authors' way, then write reports/benchmark.md
	$(RUN) -m pipelines.benchmark

gpu-check: $(READY) ## Check what works on this machine's GPU, how fast, in what memory: reports/gpu.md, 20 minutes
	$(RUN) -m pipelines.gpu_check

gpu-wheels: $(READY) ## Collect what a GPU machine without network lacks beside torch and transformers: wheels/
	$(RUN) -m pip wheel --quiet --no-deps --wheel-dir wheels $(PIP_OPTIONS) \
	$$($(RUN) -m pipelines.gpu_check.wheels)

test: $(READY) ## Run the tests of every module, without the slow ones: minutes
	$(RUN) -m pytest $(PARALLEL) -m 'not slow'

test-slow: $(READY) ## Run the slow tests: about twice as long
	$(RUN) -m pytest $(PARALLEL) -m slow

test-all: test test-slow ## Run all tests

check: $(READY) ## Lint, format check, types, import directions
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(RUN) -m pytest --quiet tests/test_architecture.py

docs: $(READY) ## Write the documentation as a site, which opens from disk: site/index.html
	$(VENV)/bin/sphinx-build --fail-on-warning --keep-going --quiet -b html docs site

mlflow-ui: $(READY) ## Compare runs in the browser, on this machine only
	MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false \
	$(VENV)/bin/mlflow server --port $(PORT) --workers 1 \
	--backend-store-uri "$${MLFLOW_TRACKING_URI:-sqlite:///mlflow.db}" --host 127.0.0.1

clean: ## Remove the environment and caches; results stay
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis

.PHONY: help setup quickstart docs benchmark test test-slow test-all check mlflow-ui clean reproduce-all \
	$(ITEMS:%=reproduce-%) $(APART:%=reproduce-%)
