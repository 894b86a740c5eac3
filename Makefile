# Livefire: `make demo` and `make test` do everything on a fresh machine with Python >= 3.11 and make.
PYTHON ?= python3
BIN := .venv/bin
# LEAK=1: the shop forgets the shadow engine in one place; the demo ends with exit code 98, which make tells as "Error 98"
# (its own exit code is 2 whenever a command failed).
LEAK ?=
MINUTES ?= 1

.PHONY: demo fleet test check servers fuzz soak bench native interpreted lock clean

demo: .venv
	@LEAK=$(LEAK) $(BIN)/livefire demo

# The demo over real servers: 2 recorders, Kafka, 2 Faust cleansers, 2 workers, an aggregator, ClickHouse and Elasticsearch.
fleet: servers
	@LEAK=$(LEAK) $(BIN)/python tests/servers/run.py $(BIN)/livefire demo --bus kafka://{kafka} \
	  --store clickhouse://{clickhouse}/default --store elasticsearch://{elasticsearch}

test: .venv
	@$(BIN)/python -m pytest $(ARGS)

# What the tests of Kafka, Elasticsearch and ClickHouse start: fetched once, into ~/.cache/livefire and .venv.
servers: .venv
	@$(BIN)/python tests/servers/install.py

# Format, lint, types (strict); the layering and documentation tests are part of `make test`.
check: .venv
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

fuzz: .venv
	$(BIN)/python tests/fuzz/run.py --minutes $(MINUTES)

# Every fault, the full count; the result with seed and commit goes to docs/soak.md.
soak: .venv
	$(BIN)/python tests/soak.py --write docs/soak.md $(ARGS)

bench: .venv
	@for script in bench/corpus.py bench/record.py bench/cleanse.py bench/replay.py bench/fleet.py; do \
	  echo "== $$script"; $(BIN)/python $$script || exit 1; done

# What reads packets and masks, compiled by mypyc beside its sources, a minute: half the CPU. `make .venv` has
# done so where there is a C compiler. Again after a change of a source: until then all of it is interpreted.
native: .venv
	@$(NATIVE_LACKS); [ -z "$$lacks" ] || { echo "$$lacks"; exit 2; }
	@$(NATIVE_BUILD)

interpreted:
	@rm -rf build livefire__mypyc.*.so capture/*.so mask/*.so wire/*.so

NATIVE_LACKS = lacks=; command -v $${CC:-cc} >/dev/null || lacks="No C compiler. Install one: sudo apt-get install -y gcc libc6-dev"; \
  $(BIN)/python -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' || \
  lacks="Python's headers are missing. Install them: sudo apt-get install -y python3-dev"
NATIVE_BUILD = LIVEFIRE_NATIVE=1 $(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .

.venv: .venv/installed

.venv/installed: requirements.txt pyproject.toml sdk/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Livefire needs Python 3.11 or newer as '$(PYTHON)'; name another one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "Python's venv module is missing. Install it: sudo apt-get install -y python3-venv"; exit 2; }
	@echo "installing into .venv (once; about two minutes)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements.txt
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e ./sdk -e .
	@$(NATIVE_LACKS); if [ -n "$$lacks" ]; then echo "what reads packets stays interpreted, and takes twice the CPU. $$lacks"; \
	  else $(NATIVE_BUILD) >.venv/native.txt 2>&1 || { echo "what reads packets stays interpreted, and takes twice the CPU (why: .venv/native.txt)"; \
	  $(MAKE) --no-print-directory interpreted; }; fi
	@touch $@

# New pins with hashes, without the address of any index. Needs uv.
lock:
	uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes --no-annotate \
	  --no-header --no-emit-package livefire --no-emit-package livefire-shadow -q -o requirements.txt
	uv pip compile pyproject.toml --extra chdb --universal --python-version 3.11 --generate-hashes --no-annotate \
	  --no-header --no-emit-package livefire --no-emit-package livefire-shadow -q -c requirements.txt -o requirements-servers.txt

clean:
	rm -rf .venv demo runs build dist *.egg-info sdk/src/*.egg-info *.so capture/*.so mask/*.so wire/*.so
