# Everything runs in .venv. On a machine with GPUs, resolve its packages once and install them:
#   make lock setup LOCK=requirements-gpu.lock

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
LOCK ?= requirements-cpu.lock
EXTRA := $(patsubst requirements-%.lock,%,$(LOCK))
# CPU builds of torch carry a local version (+cpu) that not every package index has; this one does.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
HOOK := packaging/torchvision_ops
STAMP := $(VENV)/.installed-$(EXTRA)

# The locks were made for Python 3.11; newer ones do too. A python without venv or a shim without a python is passed over.
PYTHON ?= $(firstword $(foreach name,python3.11 python3 python3.12 python3.13,$(shell \
	$(name) -c "import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))" 2>/dev/null && echo $(name))))

export OMP_NUM_THREADS ?= 1
# Where byte code isn't kept, each of a run's processes compiles vLLM and PyTorch anew: 10 s of a processor.
export PYTHONDONTWRITEBYTECODE :=

# Engine tests by files, the longest first (tests/conftest.py); each worker's runs need some 5 GiB.
WORKERS ?= 2
SIDE_BY_SIDE := --numprocesses=$(WORKERS) --dist=loadfile --no-loadscope-reorder --durations=40

.PHONY: help setup quickstart test test-long test-examples chaos trackers recipes study-async study-rethinking check docs lock clean
.DEFAULT_GOAL := help

help: ## Print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP) ## Make the environment (.venv), once; takes a few minutes

quickstart: setup ## Train a tiny model with the whole system on two CPU cores
	$(BIN)/rethinker train conf/experiment/quickstart.yaml

test: setup check ## Check and run the tests, unit first
	$(BIN)/python -m pytest tests/unit --numprocesses=logical --maxprocesses=8 --dist=worksteal
	$(BIN)/python -m pytest tests/integration tests/chaos -m "not long" $(SIDE_BY_SIDE)

test-long: setup ## Run the thorough variants that make test leaves out; for most of an hour
	$(BIN)/python -m pytest tests/integration tests/chaos -m long $(SIDE_BY_SIDE)

chaos: setup ## Kill every role of one long run again and again, count what was lost; CHAOS="--seed 2 --faults 40 --only replay"
	$(BIN)/python -m tests.chaos $(CHAOS)

trackers: setup build/trackers ## Test Weights & Biases and MLflow, whose packages are put into build/trackers
	RETHINKER_TRACKERS=build/trackers $(BIN)/python -m pytest tests/integration/test_trackers.py

build/trackers:
	$(PIP) install --quiet --target $@ "wandb>=0.19" "mlflow>=3.0"

recipes: setup ## Run every shipped recipe with the tiny model and sizes scaled down, a minute or two each
	$(BIN)/python -m pytest tests/integration/test_recipes.py

test-examples: setup ## Test the example of a task of one's own as well; its reasoning-gym needs a compiler to install
	$(PIP) install --quiet reasoning-gym==0.1.25
	$(BIN)/python -m pytest tests/unit/test_examples.py

study-async: setup ## Accuracy against staleness, corrections on and off, three seeds; goes on where it stopped, for some hours
	$(BIN)/python -m benchmarks.staleness_study $(STUDY)

study-rethinking: setup ## Forced rethinking against more of stage 1, three seeds; goes on where it stopped, for some hours
	$(BIN)/python -m benchmarks.rethinking --seeds 1 2 3 $(STUDY)

check: setup docs ## Lint, import floors, types, documentation
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy

$(STAMP): $(LOCK) pyproject.toml $(wildcard $(HOOK)/*)
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or newer with the venv module was found; name one: make setup PYTHON=/path/to/python3" >&2; exit 2; }
	@echo "[1/5] environment in $(VENV), with $(PYTHON)"
	@$(PYTHON) -m venv $(VENV)
	@echo "[2/5] torch"
	@torch=$$(grep '^torch==' $(LOCK)); \
	$(PIP) install --no-deps --no-compile "$$torch" || case "$$torch" in \
		*+cpu) echo "      not on the usual package index, trying PyTorch's"; \
			$(PIP) install --no-deps --no-compile --index-url $(TORCH_INDEX) "$$torch";; \
		*) exit 1;; esac
	@echo "[3/5] $$(grep -c == $(LOCK)) packages of $(LOCK)"
	@$(PIP) install --no-deps --no-compile --requirement $(LOCK)
	@echo "[4/5] rethinker itself, editable"
	@$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@echo "[5/5] torchvision beside this torch"
	@if $(BIN)/python -c "import torchvision, torchaudio, torchcodec" >/dev/null 2>&1; then echo "      imports as it is"; \
	else $(PIP) install --quiet --no-deps --no-build-isolation --force-reinstall ./$(HOOK) \
		&& $(BIN)/python -c "import torchvision, torchaudio" && echo "      imports with $(HOOK)"; fi
	@echo "      byte code of what runs import, a quarter of all there is; the rest comes with its first use"
	@$(BIN)/python -c "import deepspeed, learner.worker, vllm.v1.engine.async_llm" >$(VENV)/imports.log 2>&1 || { cat $(VENV)/imports.log; exit 1; }
	@touch $@
	@echo "done: $(BIN)/rethinker --help"

docs: setup ## Build the documentation's site into build/site; a broken link fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

lock: ## Write the lock file anew, from the newest releases that pyproject.toml allows
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --dry-run --ignore-installed --report $(VENV)/report.json ".[$(EXTRA),dev]"
	$(BIN)/python packaging/write_lock.py < $(VENV)/report.json > $(VENV)/lock
	mv $(VENV)/lock $(LOCK)

clean: ## Remove the environment and the tools' caches; runs/ and .cache/ stay
	rm -rf $(VENV) .import_linter_cache .mypy_cache .pytest_cache .ruff_cache build dist
