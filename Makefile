# Everything is set up from here on a machine that has only Python 3.11 and make.
PYTHON ?= python3.11
ifeq (,$(shell command -v $(PYTHON) 2>/dev/null))
PYTHON := python3
endif
BIN := .venv/bin
# A file stays with one worker, so that what its tests share is made once. One worker more than cores: many tests wait.
TESTS := $(BIN)/python -m pytest -n $(shell $(PYTHON) -c "import os; print((os.cpu_count() or 1) + 1)") \
  --dist loadfile --no-loadscope-reorder

.PHONY: setup demo test check bench simulate unprotected mutants kills soak crowd screenshots latency lock clean

setup: .venv/.ready

.venv/.ready: requirements.lock pyproject.toml
	@$(PYTHON) -m venv .venv 1>&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock 1>&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e . 1>&2
	@touch $@

demo: setup ## the whole thing on this machine, without accounts; ARGS="--once --json" for one JSON report
	@$(BIN)/syncd demo $(ARGS)

test: setup
	$(TESTS) $(ARGS)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(TESTS)

bench: setup
	$(BIN)/python -m benchmarks.backfill

latency: setup ## how long a change takes by its webhook; ARGS="--edits 5 --projects 40"
	$(BIN)/python -m benchmarks.webhooks $(ARGS)

SEEDS ?= 1..200
STEPS ?= 200
simulate: setup ## seeded histories in virtual time; SEEDS=1..20000 for the long hunt
	@$(BIN)/python -m tests.simulation --seeds $(SEEDS) --steps $(STEPS)

unprotected: setup ## engines without one of their protections each: does the simulation find them? See docs/simulation.md
	@$(BIN)/python -m tests.simulation.unprotected $(ARGS)

mutants: setup ## does any test notice a change in the core? Ten minutes; no part of make check
	nice $(BIN)/python -m tests.core.mutants $(ARGS)

kills: setup ## every flow killed at every point, see docs/kill-points.md; ARGS="--flow backfill --crm hubspot" for one
	@$(BIN)/python -m tests.kills $(ARGS)

soak: setup ## three replicas under edits, killed and paused in turn, for ten minutes; ARGS="--minutes 2" for less
	@$(BIN)/python -m tests.soak $(ARGS)

crowd: setup ## two hundred tenants on one process, three of them ill; ARGS="--tenants 20 --minutes 1" for a taste
	@$(BIN)/python -m tests.soak.crowd $(ARGS)

screenshots: setup ## every page of the operator's page as pictures, by day and by night, into build/screenshots; needs Chromium
	SCREENSHOTS=build/screenshots $(BIN)/python -m pytest tests/web/test_browser.py -k every_screen $(ARGS)

lock: export CUSTOM_COMPILE_COMMAND = make lock
lock: ## pin every dependency anew, with hashes and without index addresses
	$(BIN)/pip-compile --quiet --upgrade --generate-hashes --allow-unsafe --strip-extras --no-emit-index-url --no-emit-find-links \
	  --no-emit-trusted-host --extra embedded --extra dev --output-file requirements.lock pyproject.toml

clean:
	rm -rf .venv dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis mutants
