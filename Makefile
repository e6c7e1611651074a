# `make train` and `make test` do all the set-up on a fresh machine and skip what is done.
SHELL := /bin/bash
PYTHON ?= python3.11
BIN := .venv/bin
STAMP := .venv/.installed
.DEFAULT_GOAL := help
.PHONY: help setup train techniques test test-all check lint docs lock report bench styles grader effects dashboard tidy clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(STAMP)  ## create .venv and install everything

$(STAMP): requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found; install Python 3.11 or run make PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --no-deps --compile-bytecode --python $(BIN)/python -r requirements.lock
	$(BIN)/uv pip install --quiet --no-deps --python $(BIN)/python --editable .
	@touch $(STAMP)

train: setup  ## train the default experiment on real chorales, then sample from it
	$(BIN)/python train.py $(ARGS)

techniques:  ## list every technique, optimizer, schedule, stage and level with its effect
	@$(PYTHON) scripts/choices.py $(ARGS)

test: setup  ## install, then all checks and tests
	@$(MAKE) --no-print-directory check

check: lint  ## what CI runs, without the install: ruff, types, tests; of the techniques' matrix what changed and a draw
	NOTEBOOK_STEPS=16 NOTEBOOK_TRIALS=6 OMP_NUM_THREADS=1 \
	  $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --matrix touched $(ARGS)

test-all: setup lint  ## every test of every technique (hours with many techniques)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --matrix all $(ARGS)

docs: setup  ## build the documentation into outputs/site
	NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true \
	  $(BIN)/python -m mkdocs build --quiet --strict --config-file docs/site/mkdocs.yml --site-dir ../../outputs/site

lint:
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/mypy

report: setup  ## regenerate the tables and figures of docs/results from docs/results/rows
	$(BIN)/python benchmarks/report.py

bench: setup  ## run the speed comparisons: make bench ARGS="--scores MIDI_FOLDER --jsb Jsb16thSeparated.json"
	$(BIN)/python benchmarks/all.py $(ARGS)

styles: setup  ## measure style transfer: 90 CPU-seconds, then 15 CPU-minutes, two pairs, three seeds (2 hours on one core)
	for budget in 90 900; do OMP_NUM_THREADS=1 $(BIN)/python benchmarks/style_transfer.py --budget $$budget \
	  --rows docs/results/rows/style_transfer.jsonl --pictures docs/results || exit 1; done
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/style_stress.py --rows docs/results/rows/style_stress.jsonl
	$(BIN)/python benchmarks/style_speed.py --rows docs/results/rows/style_speed.jsonl
	$(BIN)/python benchmarks/transfer_speed.py --ckpt last --rows docs/results/rows/transfer_speed.jsonl

grader: setup  ## train the grader for 6 CPU-minutes and test it: make grader [SOUNDFONT=other.sf2, which FluidSynth plays]
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/grader.py $(if $(SOUNDFONT),--soundfont $(SOUNDFONT)) \
	  --rows docs/results/rows/grader.jsonl --pictures docs/results
	$(BIN)/python benchmarks/report.py

effects: setup  ## measure the techniques: make effects JSB=Jsb16thSeparated.json SCORES=FOLDER (8 hours on one core; rows that are there stay)
	@test -n "$(JSB)" -a -n "$(SCORES)" || { echo "error: which data? make effects JSB=Jsb16thSeparated.json SCORES=FOLDER"; exit 1; }
	for data in jsb=$(JSB) genres=$(SCORES) distillation=$(JSB) augmented=$(SCORES) augmented_few=$(SCORES) augmented_jsb=$(JSB); do OMP_NUM_THREADS=1 $(BIN)/python benchmarks/techniques.py \
	  --data $$data --keep outputs/teachers || exit 1; done
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/technique_overhead.py --root $(JSB)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/technique_overhead.py --root $(JSB) --live
	$(BIN)/python benchmarks/report.py

lock:  ## pin pyproject.toml again into requirements.lock
	@{ echo "# Complete pin of pyproject.toml with all extras; written by 'make lock'. Installed with --no-deps: tinysoundfont's"; \
	   echo "# pyaudio is left out, because it does not build without PortAudio and rendering does not need it; so are TensorFlow and"; \
	   echo "# librosa, which basic-pitch and musicnn ask for, because only the networks in their wheels are read."; \
	   $(BIN)/uv pip compile --quiet --no-annotate --no-header --all-extras --python-version 3.11 --override \
	     <(printf "%s; sys_platform == 'never'\n" tensorflow librosa resampy mir-eval; echo "numpy>=2") pyproject.toml | grep -v '^pyaudio'; \
	 } > requirements.lock.new && mv requirements.lock.new requirements.lock

dashboard: setup  ## open a sweep's trials in the browser: make dashboard [STORAGE=outputs/sweeps/STUDY/study.journal]; without, the newest
	@$(BIN)/python scripts/dashboard.py $(STORAGE) $(ARGS)

tidy: setup  ## show what runs left behind; make tidy ARGS=--yes removes it, --checkpoints lists earlier runs' last.ckpt, too
	@$(BIN)/python scripts/tidy.py $(ARGS)

clean:  ## remove the environment and the caches; what runs wrote stays
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache outputs/cache
