# Every target sets up what it needs; `make` alone lists them.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup paper smoke publish site lesson status doctor grid test slow lint lab data bench oracle browser clean

PYTHON ?= python3
PROFILE ?= auto
DATA ?=
ONLY ?=
RETRAIN ?=
DEVICE ?= cpu
PRETRAINED ?=
WORKERS ?=
UV_VERSION := 0.13.8
BIN := .venv/bin
OPTIONS := --profile $(PROFILE) $(if $(DATA),--data "$(DATA)")
# One thread a process: torch's threads wait for each other when processes share the cores.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup
OLD_PYTHON := MedShift needs Python 3.11 or newer; say which one to use: make PYTHON=python3.12

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  PROFILE=smoke|cpu|gpu|paper|auto   DATA=folder of your own X-rays   PYTHON=python3.12"

setup: .venv/.ready  ## make .venv and install the locked packages into it

.venv/.ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(OLD_PYTHON)" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv==$(UV_VERSION)
	$(BIN)/uv pip install --quiet --python $(BIN)/python -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -e .
	@touch $@

paper: setup  ## rebuild every figure of the profile whose inputs changed (PROFILE=, DATA=, ONLY=04, RETRAIN=all, PRETRAINED=1, WORKERS=)
	$(BIN)/medshift paper $(OPTIONS) $(if $(ONLY),--only $(ONLY)) $(if $(RETRAIN),--retrain $(RETRAIN)) $(if $(PRETRAINED),--pretrained) $(if $(WORKERS),--workers $(WORKERS))

smoke: setup  ## run every notebook at its smallest, to see that everything works here
	$(BIN)/medshift paper --profile smoke

status: setup  ## say what is fresh, what is stale and why
	$(BIN)/medshift status $(OPTIONS)

site: setup  ## make a static site of the executed notebooks and all figures
	$(BIN)/medshift site --profile $(PROFILE)

lesson: setup  ## write the student and solution editions of notebook 00 to build/lesson, in place of former ones
	$(BIN)/medshift lesson

# Made once: what a student has written into it must outlast the next `make lab`.
build/lesson/00_flow_matching-student.ipynb: | setup
	$(BIN)/medshift lesson

publish: setup  ## copy the figures of the profile to figures/
	$(BIN)/medshift publish --profile $(PROFILE)

grid: setup  ## run a study: make grid GRID=guidance WORKERS=2
	$(BIN)/medshift grid $(GRID) --profile $(PROFILE) $(if $(WORKERS),--workers $(WORKERS))

doctor: setup  ## look at this machine: what is missing, and what mends it
	$(BIN)/medshift doctor

test: setup  ## the fast tests
	$(PYTEST) -m "not slow"

slow: setup  ## the slow tests
	$(PYTEST) -m "slow and not bench and not oracle and not browser"

lint: setup  ## ruff (code and notebooks), mypy, import-linter
	$(BIN)/ruff check .
	$(BIN)/mypy medshift
	$(BIN)/lint-imports

lab: setup build/lesson/00_flow_matching-student.ipynb  ## open JupyterLab on the student edition of 00; notebooks/ lies beside
	$(BIN)/jupyter lab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/build/lesson/00_flow_matching-student.ipynb

data: setup  ## only make the data of the profile
	$(BIN)/medshift data $(OPTIONS)

# torchcfm asks for packages that none of what is measured imports, hence --no-deps.
bench: setup  ## measure speeds on this machine; on a GPU, in some minutes: make bench DEVICE=cuda
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -r pyproject.toml --extra bench
ifeq ($(DEVICE),cpu)
	$(BIN)/python -m pytest -s tests/bench -m bench
else
	MEDSHIFT_BENCH_DEVICE=$(DEVICE) $(BIN)/python -m pytest -s tests/bench/test_device.py -m bench
endif

oracle: setup  ## the projector against DiffDRR (installs 1.1 GB)
	$(BIN)/uv pip install --quiet --python $(BIN)/python -e ".[oracle]"
	$(BIN)/python -m pytest -m oracle tests/oracles

browser: setup  ## the widgets in a real browser (needs chromium: apt-get install chromium)
	$(BIN)/uv pip install --quiet --python $(BIN)/python -e ".[browser]"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m browser tests/browser

clean:  ## remove what was built, keeping .venv and trained runs
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
