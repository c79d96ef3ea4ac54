# `make help` lists what there is. Every target makes the environment first, if it is missing.
SHELL := /bin/bash
VENV ?= .venv
PYTHON ?= python3
PROFILE ?= demo
PAPER ?=
JOBS ?= 2
TESTS ?= tests
QUICK := $(addprefix tests/test_,project.py notebooks.py layout.py dice.py images.py resample.py camera.py degradations.py)
READY := $(VENV)/.installed
export PATH := $(abspath $(VENV))/bin:$(PATH)
export PYTHONHASHSEED := 0
# Compiled modules are kept, whatever the surroundings say: every notebook and stage imports torch.
export PYTHONDONTWRITEBYTECODE :=
export DVC_NO_ANALYTICS := 1
# FROM as it was typed: a path may hold blanks, quotes and $
export FACES_FROM := $(value FROM)

.PHONY: help install repro stages test check coverage hooks profile faces explore outputs docs bench lab clean

help:  ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-10s %s\n", $$1, $$2}'

install: $(READY)  ## the environment alone, in .venv

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "facelab needs Python 3.11 or newer: make PYTHON=/path/to/python3.12 ..." >&2; exit 1; }
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@{ $(VENV)/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt uv \
	   && VIRTUAL_ENV=$(VENV) $(VENV)/bin/uv pip install -q -c constraints.txt -e '.[test]'; } \
	 || $(VENV)/bin/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

repro: $(READY)  ## from faces to every table and figure; goes on where it was stopped; JOBS=2 stages side by side; PAPER=jdsr_gan: one paper alone
	@python -m facelab.pipeline warm $(MAKE) -s --no-print-directory stages

stages:  # of repro, which lets them begin warm
	@python -m facelab.pipeline check
	@dvc repro -q sources
	@set -o pipefail; stages=$$(python -m facelab.pipeline schedule $(PAPER)); \
	run="$(MAKE) -s -k -j $(JOBS) -f build/schedule.mk"; test $$stages = 0 || \
	  { $$run first; python -m facelab.pipeline schedule $(PAPER) > /dev/null; $$run all; } | tqdm --total $$stages --unit stage --desc "make repro" --mininterval 1 > /dev/null
	dvc repro -q $(if $(PAPER),tables@$(PAPER) figures@$(PAPER) $(if $(filter-out combined,$(PAPER)),architecture@$(PAPER)))
	@for table in build/tables/$(or $(PAPER),*)/*.md; do echo; cat $$table; done
	@echo; echo "Tables: build/tables   Figures: build/figures, build/samples, build/architecture   Claims: build/claims/claims.md   Executed notebooks: build/notebooks   Logs: build/logs"

test: $(READY)  ## all tests: the notebooks, and beside them tests/
	@export OMP_NUM_THREADS=1; { python -m facelab.pipeline notebooks && echo "notebooks: passed"; } & notebooks=$$!; \
	python -m pytest -n 2 --dist loadfile --no-loadscope-reorder; tests=$$?; wait $$notebooks && exit $$tests

check: $(READY)  ## a minute: lint, format, types, notebooks clean and exported, and the quickest tests
	@wrong=0; ruff check || wrong=1; ruff format --check || wrong=1; mypy || wrong=1; OMP_NUM_THREADS=1 python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=0 --durations-min=5 $(QUICK) || wrong=1; exit $$wrong

coverage: $(READY)  ## what tests/ runs of the package, as a table and in build/coverage/html; TESTS=tests/test_dice.py: by some of them
	OMP_NUM_THREADS=1 python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --cov --cov-report=term --cov-report=html $(TESTS)

hooks: $(READY)  ## git cleans and exports notebooks, and lints, before a commit
	git config core.hooksPath .githooks

profile: $(READY)  ## make profile PROFILE=real: what params.yaml holds (demo, laptop, real or paper)
	@python -m facelab.pipeline profile $(PROFILE)
	@git --no-pager diff --stat params.yaml 2>/dev/null || true

faces: $(READY)  ## make faces FROM=/path/to/CelebA: real faces for the data source `real`
	@test -n "$$FACES_FROM" || { echo "say where the faces are: make faces FROM=/path/to/folder" >&2; exit 1; }
	@python -m facelab.pipeline adopt "$$FACES_FROM"

explore: $(READY)  ## the degradation explorer as a page in the browser
	voila nbs/explore.ipynb --show_tracebacks=True --Voila.tornado_settings="{'websocket_max_message_size': 268435456}"

outputs: $(READY)  ## execute the notebooks that have changed, and keep in them what their cells show
	OMP_NUM_THREADS=1 python -m facelab.pipeline outputs

docs: $(READY)  ## the notebooks with what they show as a site, build/site/html/index.html; executes what has changed
	OMP_NUM_THREADS=1 python -m facelab.pipeline docs

bench: $(READY)  ## speed of degradations, metrics, networks and training beside the usual way, on one page: build/bench/bench.md
	python -m benchmarks

lab: $(READY)  ## JupyterLab on the notebooks
	jupyter lab nbs --ServerApp.tornado_settings="{'websocket_max_message_size': 268435456}" $(if $(filter 0,$(shell id -u)),--allow-root)

clean:  ## remove what `make repro` made; faces and environment stay
	rm -rf build
