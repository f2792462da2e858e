# `make demo` and `make test` set up all they need on a fresh Debian 12 by themselves.
SHELL := /bin/bash
# Where it is set each program compiles all of virtha anew, and each worker of pytest all tests (11 s of CPU each).
unexport PYTHONDONTWRITEBYTECODE
PYTHON := .venv/bin/python
PYTEST := $(PYTHON) -m pytest
.DEFAULT_GOAL := help
# What the steps run, so that one can be put in another's place: make test-parts LAB='sleep 60' UNIT=true
LAB = $(PYTEST) -q --durations=15 -m "lab and not long" tests/lab
MACHINES = $(PYTEST) -q --durations=15 -m "lab and not long" --ignore=tests/lab tests
# Databases, outboxes and records are synced to disk at each write, ten thousand times; in memory that is no wait.
IN_MEMORY = $$([ -w /dev/shm ] && [ "$$(df --output=avail -m /dev/shm | tail -n 1)" -ge 1000 ] && echo env PYTEST_DEBUG_TEMPROOT=/dev/shm)
KEEP_FAILED = -o tmp_path_retention_policy=failed -o tmp_path_retention_count=1
UNIT = $(IN_MEMORY) $(PYTEST) -q --durations=25 -n 3 --dist loadgroup -m "not lab" $(KEEP_FAILED) \
  --ignore=tests/scenarios --ignore=tests/properties --ignore=tests/lab
SIMULATOR = sim swarm crash-points mutants
SEEDS = 1..20000
.PHONY: help demo test check lint unit sim lab machines test-parts simulator verify bench mutants swarm chaos chaos-oracle crash-points lab-clean docs lock wheel setup setup-check

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: ## Debian packages, virtual environment (lab included)
	@scripts/setup lab

setup-check:
	@scripts/setup check

demo: setup ## the main job on real VMs: watchdog, crash, power-off, panic, a host's power cut (KEEP=1 leaves it running)
	@$(PYTHON) -m virtha.lab.demo

test: test-parts ## everything a submission must pass (some 20 minutes on 2 cores)

check: setup-check lint unit ## types, lint, layers, unit and API tests; no lab, no root

lint:
	@echo "==> ruff, mypy, import-linter"
	@.venv/bin/ruff check virtha tests bench scripts
	@.venv/bin/ruff format --check -q virtha tests bench scripts
	@.venv/bin/mypy
	@.venv/bin/lint-imports --no-cache > .stamp/lint-imports.log 2>&1 || { cat .stamp/lint-imports.log; exit 1; }

# In a new clone one process compiles the tests; else the workers and the lab's pytest all would, at the same time.
unit:
	@echo "==> unit, contract and API tests"
	@$(PYTHON) -m compileall -q virtha && $(PYTEST) -q --collect-only tests > /dev/null || true
	@$(UNIT)

sim: setup-check ## scenarios and properties on the simulator
	@echo "==> scenarios and properties"
	@$(PYTEST) -q -n 2 -m "not long" tests/scenarios tests/properties

lab: setup ## whole clusters of real hosts with libvirt, QEMU and guests (needs root)
	@echo "==> lab: real hosts, libvirt, QEMU and guests"
	@$(LAB)

machines: setup ## single drivers with real libvirt, QEMU, storage and watchdogs, without a cluster (needs root)
	@echo "==> real libvirt, QEMU and storage, one at a time"
	@$(MACHINES)

# The lab mostly waits for real guests, with leases and watchdogs that count in real time: it goes before all others. What needs
# no lab of its own waits beside it, and what only computes runs from the first moment on, the unit tests (whose waits are bounded
# by a minute) before the simulator.
# What they say is kept and printed at the end, that of a part that failed last. Any failure is the failure of all. Types and
# lint take a minute of the lab's when they go first; `make check` says at once what they find.
test-parts: setup
	@mkdir -p .stamp; set -o pipefail; make="$(MAKE) --no-print-directory"; \
	$$make lint > .stamp/lint.log 2>&1 & lint=$$!; \
	nice -n 5 $$make machines > .stamp/machines.log 2>&1 & machines=$$!; \
	nice -n 15 $$make unit > .stamp/unit.log 2>&1 & unit=$$!; \
	nice -n 19 $$make simulator > .stamp/simulator.log 2>&1 & simulator=$$!; \
	trap 'kill $$lint $$machines $$unit $$simulator 2> /dev/null' EXIT; \
	echo "==> beside the lab: lint, single machines, unit tests, scenarios, random worlds, crash points, mutants"; \
	failed=; $$make lab 2>&1 | tee .stamp/lab.log || failed=lab; \
	for part in lint:$$lint machines:$$machines unit:$$unit simulator:$$simulator; do \
	  if wait $${part#*:}; then cat .stamp/$${part%:*}.log; else failed="$$failed $${part%:*}"; fi; done; \
	for part in $${failed#lab}; do cat .stamp/$$part.log; done; \
	for part in $$failed; do \
	  grep -hE '^(FAILED|ERROR) ' .stamp/$$part.log; echo "==> failed: $$part (.stamp/$$part.log)"; done; \
	test -z "$$failed"

simulator: setup-check ## scenarios, 60 s of random worlds, crash points, mutants: one after the other
	@failed=0; for step in $(SIMULATOR); do $(MAKE) --no-print-directory $$step || failed=1; done; exit $$failed

swarm: setup-check ## random worlds from fixed seeds, for a minute (SEEDS=1..20000 TIME=60s)
	@echo "==> random worlds"
	@$(PYTHON) -m virtha.cli.main simulate --seed $(SEEDS) --time $(or $(TIME),60s) --save .stamp/swarm-failures

# For each run other faults, unless SEED says which; they, each write and a failure's evidence are kept in .stamp/chaos.
chaos: setup ## random faults on real hosts and guests, who writes is judged from outside (MINUTES=30 SEED=1 LEASES=no)
	@$(PYTHON) -m virtha.lab.chaos --minutes $(or $(MINUTES),30) $(if $(SEED),--seed $(SEED)) \
	  $(if $(filter no,$(LEASES)),--no-leases) --out .stamp/chaos/$$(date -u +%Y%m%dT%H%M%S)

chaos-oracle: setup ## the same without leases, nothing found; then with a build that trusts silence: two writers within 10 minutes
	@$(PYTHON) scripts/chaos_oracle.py --out .stamp/chaos/oracle-$$(date -u +%Y%m%dT%H%M%S)

crash-points: setup-check ## stories with the leader and the agents struck at every point
	@echo "==> crash points"
	@$(PYTHON) tests/crash_points/run.py

verify: setup ## the long runs: mutants, swarm, all crash points, the lab's acceptance rounds, chaos, benchmarks; killed, they go on
	@scripts/setup ceph
	@$(PYTHON) scripts/verify.py --seeds $(SEEDS)

mutants: setup-check ## seeded bugs; each must be caught
	@echo "==> mutants"
	@$(PYTHON) tests/mutants/run.py

bench: setup ## all benchmarks, or one: make bench NAME=crash_restart
	@set -e; for name in $(or $(NAME),$(patsubst bench/%.py,%,$(filter-out bench/report.py,$(wildcard bench/*.py)))); do \
	  echo "==> bench $$name"; $(PYTHON) bench/$$name.py; done

lab-clean: ## stop every lab of this machine, by process id
	@$(PYTHON) -m virtha.cli.main lab down --all

docs: setup-check ## write the generated reference pages
	@$(PYTHON) scripts/docs.py

wheel: setup-check ## the wheel and the lock of what it needs, in dist/; the same commit gives the same bytes
	@$(PYTHON) scripts/wheel.py $(or $(DIR),dist)

lock: setup-check ## renew requirements.lock from pyproject.toml
	@$(PYTHON) -m pip install -q uv
	@.venv/bin/uv pip compile pyproject.toml --all-extras --generate-hashes --no-header --no-annotate \
	  --no-emit-index-url --python-version 3.11 -q -U -o requirements.lock
