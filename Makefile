# make repro: the whole job. make check, make test: the checks. They set up .venv first, unless it is current.
# make serve: the champion as a chat page and API; it has environments of its own, below space/.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
SERVING := space/.venv
BUILDER := space/.venv-builder
RELEASE ?=
PORT ?= 8000
RUN := PATH="$(CURDIR)/$(VENV)/bin:$$PATH"

.DEFAULT_GOAL := help
.PHONY: help repro lint check test reliability serve serving bundle port

help:
	@echo "make repro         from raw data to a promoted champion, on this machine alone"
	@echo "make check         linters, types and the tests that need only Python; a minute or two"
	@echo "make test          linters, types and all tests but the long ones; about 13 minutes"
	@echo "make reliability   deployments killed, raced and cut off from their services; hours"
	@echo "make serve         the champion as a chat page and an API on port $(PORT); or RELEASE=FOLDER"
	@echo "make help          this text"

repro: $(READY)
	@$(VENV)/bin/champion repro

lint: $(READY) $(SERVING)/.ready
	@$(RUN) ruff check .
	@$(RUN) mypy
	@$(RUN) mypy --config-file space/mypy.ini --python-executable $(SERVING)/bin/python space

check: lint
	@$(RUN) pytest --light

test: lint
	@$(RUN) OMP_NUM_THREADS=1 pytest --numprocesses auto --maxprocesses 4 --dist loadfile

reliability: $(READY)
	@$(RUN) pytest -m reliability

serve: port $(SERVING)/.ready bundle
	@PORT=$(PORT) HF_HUB_OFFLINE=1 $(SERVING)/bin/python space/app.py

# First of all, before anything is downloaded or made.
port:
	@PYTHONPATH=space PORT=$(PORT) $(PYTHON) -B -m serving.port

serving: $(SERVING)/.ready

# space/assets, made and validated again if the champion has changed. Its release is in results/release or, after a
# rollback, fetched. Another release (RELEASE=FOLDER) is not validated: the evaluation questions may be in its training.
bundle: $(BUILDER)/.ready $(SERVING)/.ready $(if $(RELEASE),,$(READY))
	@release="--model $(RELEASE)"; \
	  $(if $(RELEASE),,release=$$($(RUN) python scripts/champion_script.py) &&) \
	  HF_HUB_OFFLINE=1 $(BUILDER)/bin/python space/prepare_assets.py $$release --if-changed \
	  $(addprefix --questions ,$(wildcard results/data/train.jsonl)) \
	  $(if $(RELEASE),,$(addprefix && $(RUN) HF_HUB_OFFLINE=1 python space/validate_bundle.py --if-changed \
	  --evaluation-rows ,$(wildcard results/data/evaluation.jsonl)))

$(SERVING)/.ready: space/requirements/modern.lock
	@echo "Setting up $(SERVING), which runs the chat page: 360 MB, about a minute."
	@test -x $(SERVING)/bin/python || $(PYTHON) -m venv $(SERVING)
	@$(SERVING)/bin/python -m pip install -qq --disable-pip-version-check --require-hashes -r $<
	@touch $@

$(BUILDER)/.ready: space/requirements/builder.txt
	@echo "Setting up $(BUILDER), which compresses the weights: 1.5 GB, 4 to 8 minutes, once."
	@test -x $(BUILDER)/bin/python || $(PYTHON) -m venv $(BUILDER)
	@$(BUILDER)/bin/python -m pip install -qq --disable-pip-version-check --no-deps -r $<
	@touch $@

$(READY): requirements.txt requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Champion needs Python 3.11, 3.12 or 3.13; give it with make PYTHON=...") if sys.version_info[:2] not in ((3, 11), (3, 12), (3, 13)) else None'
	@echo "Setting up $(VENV); this takes some minutes the first time."
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install -qq --disable-pip-version-check -r requirements.txt
	@touch $@
