# make run       the demo: a simulated machine, a real model, no cloud and no Edge TPU needed
# make test      every fast test
# make help      the rest
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet --require-hashes
REQUIREMENTS := packaging/requirements
RUN_STAMP := $(VENV)/.run-installed
DEV_STAMP := $(VENV)/.dev-installed
BENCH_STAMP := $(VENV)/.bench-installed

.PHONY: help run test test-system lint bench deb docs lock clean

help:
	@sed -n 's/^## //p' $(MAKEFILE_LIST)

## run        start the demo in the foreground; Ctrl-C ends it
run: $(RUN_STAMP)
	@exec $(BIN)/edge-agent demo --state-dir build/demo

## test       the fast tests, under five minutes
test: $(DEV_STAMP)
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal

## test-system  the slow tests on whole systems; needs root and a Debian machine with what .ci/run installs
test-system: export XZ_LEVEL ?= 1
test-system: $(DEV_STAMP) deb
	EDGE_AGENT_DEBS=$(CURDIR)/build/deb $(BIN)/python -m pytest -m system --numprocesses auto --dist worksteal

## lint       ruff, mypy and the rules on imports
lint: $(DEV_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

## bench      speed, CPU, memory, the gap at a model swap, the queue against others (as root); also build/bench.json
bench: $(BENCH_STAMP)
	$(BIN)/python -m tests.bench $(PART)

## deb        the Debian packages, into build/deb; DIST=bookworm|trixie ARCH=amd64|arm64: only these; XZ_LEVEL=1: quickly
deb:
	/usr/bin/python3 packaging/build_deb.py $(DIST) $(ARCH)

## docs       write again what is made from the code: man pages, bash completion, schemas of the events
docs: $(RUN_STAMP)
	$(BIN)/python packaging/manpages.py docs/man
	$(BIN)/python packaging/completion.py packaging/edge-agent.bash-completion
	$(BIN)/python -m edge_agent.telemetry.schema > docs/event.schema.json
	$(BIN)/python packaging/bigquery.py config/cloud/events.schema.json

## lock       pin the dependencies again (needs uv)
lock:
	$(REQUIREMENTS)/lock

## clean      remove what make made
clean:
	rm -rf $(VENV) build

# The last thing that comes into a new environment: one without it was broken off, for want of python3-venv mostly.
$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit("$(PYTHON) is too old: it has to be Python 3.11 to 3.13, as in make $(MAKECMDGOALS) PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

# sdnotify comes as source only, so the build back ends are pinned and installed first. Debian 12's pip would build it in
# the old way, and complain.
$(RUN_STAMP): $(REQUIREMENTS)/build.txt $(REQUIREMENTS)/runtime.txt pyproject.toml | $(BIN)/pip
	@echo "installing the dependencies into $(VENV) (once) ..."
	@$(PIP) -r $(REQUIREMENTS)/build.txt
	@$(PIP) --no-build-isolation --use-pep517 -r $(REQUIREMENTS)/runtime.txt
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(BENCH_STAMP): $(DEV_STAMP) $(REQUIREMENTS)/bench.txt
	@echo "installing what is compared with into $(VENV) (once) ..."
	@$(PIP) -r $(REQUIREMENTS)/bench.txt
	@touch $@

$(DEV_STAMP): $(RUN_STAMP) $(REQUIREMENTS)/dev.txt
	@echo "installing the test tools into $(VENV) (once) ..."
	@$(PIP) --no-build-isolation -r $(REQUIREMENTS)/dev.txt
	@touch $@
