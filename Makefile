# `make demo` and `make test` set up all they need on a fresh Debian 12 by themselves.
SHELL := /bin/bash
PYTHON := .venv/bin/python
PYTEST := $(PYTHON) -m pytest
.DEFAULT_GOAL := help
.PHONY: help demo test check lint unit sim lab verify bench mutants chaos lab-clean docs lock setup setup-check

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: ## Debian packages, virtual environment (lab included)
	@scripts/setup lab

setup-check:
	@scripts/setup check

demo: setup ## the main job on real VMs: watchdog, crash, power-off, panic (KEEP=1 leaves it running)
	@$(PYTHON) -m virtha.lab.demo

test: setup check sim lab ## everything a submission must pass, within 15 minutes on 2 cores

check: setup-check lint unit ## types, lint, layers, unit and API tests; no lab, no root

lint:
	@echo "==> ruff, mypy, import-linter"
	@.venv/bin/ruff check virtha tests bench scripts
	@.venv/bin/ruff format --check -q virtha tests bench scripts
	@.venv/bin/mypy
	@.venv/bin/lint-imports --no-cache > .stamp/lint-imports.log 2>&1 || { cat .stamp/lint-imports.log; exit 1; }

unit:
	@echo "==> unit, contract and API tests"
	@$(PYTEST) -q -n 2 -m "not lab" --ignore=tests/scenarios --ignore=tests/properties --ignore=tests/lab

sim: setup-check ## scenarios and properties on the simulator
	@echo "==> scenarios and properties"
	@$(PYTEST) -q -n 2 tests/scenarios tests/properties

lab: setup ## real libvirt, QEMU and guests (needs root)
	@echo "==> lab: real libvirt, QEMU and guests"
	@$(PYTEST) -q -m lab tests

verify: setup ## the long runs: mutants, chaos, the lab's acceptance rounds, benchmarks; each can be run alone
	@$(MAKE) --no-print-directory mutants chaos
	@echo "==> an outbox cut at every byte"
	@VIRTHA_EVERY_BYTE=1 $(PYTEST) -q -n 2 tests/unit/agent/test_outbox_cut.py
	@echo "==> lab: twenty kills of the agent around a firing"
	@VIRTHA_LAB_ROUNDS=7 $(PYTEST) -q -m lab tests/lab -k kill_9
	@$(MAKE) --no-print-directory bench

mutants: setup-check ## seeded bugs; each must be caught
	@$(PYTHON) tests/mutants/run.py

chaos: setup ## random faults on the simulator from many seeds (SEEDS=200 FIRST=1)
	@$(PYTHON) -m virtha.sim.chaos --seeds $(or $(SEEDS),200) --first $(or $(FIRST),1)

bench: setup ## all benchmarks, or one: make bench NAME=crash_restart
	@set -e; for name in $(or $(NAME),$(patsubst bench/%.py,%,$(filter-out bench/report.py,$(wildcard bench/*.py)))); do \
	  echo "==> bench $$name"; $(PYTHON) bench/$$name.py; done

lab-clean: ## stop every lab of this machine, by process id
	@$(PYTHON) -m virtha.cli.main lab down --all

docs: setup-check ## write the generated reference pages
	@$(PYTHON) scripts/docs.py

lock: setup-check ## renew requirements.lock from pyproject.toml
	@$(PYTHON) -m pip install -q uv
	@.venv/bin/uv pip compile pyproject.toml --all-extras --generate-hashes --no-header --no-annotate \
	  --no-emit-index-url --python-version 3.11 -q -U -o requirements.lock
