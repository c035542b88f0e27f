# Every target works from nothing: it makes .venv and installs what it needs, and does that once.
#
#   make demo      the whole path on the nano model: worlds, inversion, probes, runs/demo/report.html
#   make test      torch-free tests
#   make parity    live comparison with torch, diffusers and transformers
#   make lint      format, lint, types          make bench   timings          make study   the full nano study
#   make env       only install                 make format  rewrite files    make clean   forget .venv and runs
#
# PYTHON names the interpreter that .venv is made from, PIP_ARGS is handed to every `pip install`.

PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --disable-pip-version-check --quiet $(PIP_ARGS)

# torch comes first and alone, pinned: whatever satisfies the pin already (a CPU build, say) then stays.
TORCH := torch==2.13.0

.PHONY: env env-torch demo test parity lint format bench study clean
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
	$(PY) -m experiments.study --model=nano --workdir=runs/demo

study: env
	for seed in 100 101 102; do \
	  $(PY) -m experiments.study --model=nano --scenes=160 --world_seed=$$seed --workdir=runs/study/world$$seed || exit; \
	done

test: env
	$(PY) -m pytest

parity: env-torch
	$(PY) -m pytest tests/parity

lint: env
	$(PY) -m ruff format --check
	$(PY) -m ruff check
	$(PY) -m mypy

format: env
	$(PY) -m ruff format
	$(PY) -m ruff check --fix

bench: env-torch
	$(PY) -m benchmarks.run

clean:
	rm -rf $(VENV) runs build dist .cache .pytest_cache .ruff_cache .mypy_cache *.egg-info
