# Every target works from nothing: it makes .venv and installs what it needs, and does that once.
#
#   make demo      the whole path on the nano model: worlds, inversion, probes, runs/demo/report.html
#   make test      torch-free tests                           make long     whole runs, kills, trainings
#   make parity    live comparison with torch, diffusers and transformers
#   make lint      format, lint, types          make bench   timings          make study   the full nano study
#   make lamo      the ablation of LaMo on the nano model, into docs/results/lamo_nano
#   make suite     the survey's systems on one nano backbone, into docs/results/physics_suite
#   make chaos     20 small studies, killed at random moments and gone on with, into docs/results/chaos.json
#   make env       only install                 make format  rewrite files    make clean   forget .venv and runs
#
# PYTHON names the interpreter that .venv is made from, PIP_ARGS is handed to every `pip install`.

PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
PY := $(VENV)/bin/python
# One process a core, up to four: what takes time is compiling, which is one thread's work.
PYTEST := $(PY) -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
PIP := $(PY) -m pip install --disable-pip-version-check --quiet $(PIP_ARGS)

# torch comes first and alone, pinned: whatever satisfies the pin already (a CPU build, say) then stays.
TORCH := torch==2.13.0

.PHONY: env env-torch demo test long parity lint format bench study lamo suite chaos clean
.DELETE_ON_ERROR:

env: $(VENV)/.installed

env-torch: $(VENV)/.installed-torch

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "jaxdiff needs Python 3.11 or later; $(PYTHON) is" `$(PYTHON) --version` "(make PYTHON=/path/to/python)"; exit 1; }
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[test,dev]'
	@touch $@

$(VENV)/.installed-torch: $(VENV)/.installed
	$(PIP) $(TORCH)
	$(PIP) --editable '.[parity]'
	@touch $@

demo: env
	$(PY) -m experiments.study --model=nano --steps=12 --published_seeds=2 --nocapacity --fidelity_clips=1 --time_budget=170 \
	  --workdir=runs/demo

# The full nano study: one VAE, and for each of three training seeds a pair of transformers and two video encoders, trained on
# the same clips for as many steps; each set on three worlds that nothing was developed on, with every control, and all nine
# runs in one report, which docs/results/nano_study keeps. Interrupted, it goes on where it stopped. Poolings, solver and the
# number of scenes were fixed on worlds 0-9 before any of these worlds was looked at.
STUDY := runs/study
STUDY_TAPS := block_out.mean,block_out.frame_mean,self_attention_map.frame_map
STUDY_SCENES := 60
STUDY_SOLVER := euler
STUDY_SEEDS := 1 2 3
STUDY_WORLDS := 200 201 202
STUDY_PROMPT := red disc slides-left
STUDY_RESULTS := docs/results/nano_study
COMMA := ,
EMPTY :=

study: env
	$(PY) -m experiments.train_vae --workdir=$(STUDY)/vae
	set -e; for seed in $(STUDY_SEEDS); do \
	  for structure in plausible independent; do \
	    $(PY) -m experiments.train_backbone --vae=$(STUDY)/vae/vae --structure=$$structure --seed=$$seed \
	      --workdir=$(STUDY)/seed$$seed/$$structure; \
	  done; \
	  for method in vjepa videomae; do \
	    $(PY) -m experiments.train_encoder --method=$$method --seed=$$seed --workdir=$(STUDY)/seed$$seed/$$method; \
	  done; \
	  for world in $(STUDY_WORLDS); do \
	    $(PY) -m experiments.study --config=nano --model=$(STUDY)/seed$$seed/plausible/pipeline \
	      --structureless=$(STUDY)/seed$$seed/independent/pipeline \
	      --encoders=$(STUDY)/seed$$seed/vjepa/encoder,$(STUDY)/seed$$seed/videomae/encoder --controls=all \
	      --prompt_ablation="$(STUDY_PROMPT)" --seed=$$seed --world_seed=$$world --scenes=$(STUDY_SCENES) \
	      --taps=$(STUDY_TAPS) --solver=$(STUDY_SOLVER) --steps=20 --published_seeds=3 \
	      --workdir=$(STUDY)/seed$$seed-world$$world; \
	  done; \
	done
	$(PY) -m experiments.aggregate --workdir=$(STUDY)/all --studies=$(subst $(EMPTY) ,$(COMMA),$(strip \
	  $(foreach seed,$(STUDY_SEEDS),$(foreach world,$(STUDY_WORLDS),$(STUDY)/seed$(seed)-world$(world)))))
	mkdir -p $(STUDY_RESULTS)
	cp $(STUDY)/all/report.html $(STUDY)/all/result.json $(STUDY)/all/aggregate.csv $(STUDY_RESULTS)
	cp $(STUDY)/all/summary.md $(STUDY_RESULTS)/README.md

# LaMo's ablation: latents and motion fields once, then for each of three seeds five fine-tunes and ten ways to clips of every
# prompt; docs/results/lamo_nano keeps the answer. Interrupted, it goes on where it stopped.
LAMO := runs/lamo
LAMO_RESULTS := docs/results/lamo_nano

lamo: env
	$(PY) -m experiments.lamo_ablation --workdir=$(LAMO)
	mkdir -p $(LAMO_RESULTS)
	cp $(addprefix $(LAMO)/ablation/,report.html result.json clips.csv README.md) $(LAMO_RESULTS)

# One backbone, seven ways to put physics into it, one table.
SUITE := runs/physics_suite
SUITE_RESULTS := docs/results/physics_suite

suite: env
	$(PY) -m experiments.physics_suite --config=nano --workdir=$(SUITE)
	mkdir -p $(SUITE_RESULTS)
	cp $(addprefix $(SUITE)/,report.html result.json clips.csv README.md) $(SUITE_RESULTS)

chaos: env
	$(PY) -m tests.chaos --workdir=runs/chaos
	mkdir -p docs/results
	cp runs/chaos/result.json docs/results/chaos.json

test: env
	$(PYTEST)

long: env
	$(PYTEST) tests/long

parity: env-torch
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 XLA_FLAGS= $(PYTEST) tests/parity

lint: env
	$(PY) -m ruff format --check
	$(PY) -m ruff check
	$(PY) -m mypy

format: env
	$(PY) -m ruff format
	$(PY) -m ruff check --fix

# Every suite that needs no accelerator, into runs/bench; 3 is the exit code of a bar that was missed, and the next suite still runs.
BENCH := runs/bench
BENCH_SUITES := cpu probes loading store compile tpu_aot

bench: env-torch
	for suite in $(BENCH_SUITES); do \
	  $(PY) -m benchmarks.run --suite=$$suite --out=$(BENCH)/$$suite.json || test $$? -eq 3 || exit 1; \
	done

clean:
	rm -rf $(VENV) runs build dist .cache .pytest_cache .ruff_cache .mypy_cache *.egg-info
