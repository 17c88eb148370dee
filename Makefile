# make repro: the whole job. make test: the checks. Both set up .venv first, and skip that when it is current.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
RUN := PATH="$(CURDIR)/$(VENV)/bin:$$PATH"

.DEFAULT_GOAL := help
.PHONY: help repro test

help:
	@echo "make repro   from raw data to a promoted champion, on this machine alone"
	@echo "make test    linters, types and tests"
	@echo "make help    this text"

repro: $(READY)
	@$(RUN) dvc repro

test: $(READY)
	@$(RUN) ruff check .
	@$(RUN) mypy
	@$(RUN) pytest

$(READY): requirements.txt requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Champion needs Python 3.11 or 3.12; give it with make PYTHON=...") if sys.version_info[:2] not in ((3, 11), (3, 12)) else None'
	@echo "Setting up $(VENV); this takes some minutes the first time."
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install -qq --disable-pip-version-check -r requirements.txt
	@touch $@
