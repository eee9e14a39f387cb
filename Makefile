# make demo | test | bench | lint | sanitize: each makes the environment it needs.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip install --quiet --constraint constraints.txt
NATIVE := CMakeLists.txt $(wildcard csrc/*)

.PHONY: demo test bench lint sanitize clean

demo: $(VENV)/.installed
	$(RUN) examples/demo.py

test: $(VENV)/.test
	$(RUN) -m pytest
	$(RUN) -m pytest bench --benchmark-disable -q

bench: $(VENV)/.test
	$(RUN) -m pytest bench --benchmark-only

lint: $(VENV)/.lint
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(VENV)/bin/clang-format --dry-run --Werror csrc/*
	$(RUN) -m mypy
	$(RUN) -m mypy.stubtest pairformer._core --allowlist .stubtest-allow

# The native tests once more, against extensions built with AddressSanitizer, UBSan and ThreadSanitizer.
sanitize: $(VENV)/.test
	$(RUN) tests/sanitize.py

clean:
	rm -rf $(VENV) build

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt $(NATIVE)
	$(PIP) --editable .
	touch $@

$(VENV)/.test: $(VENV)/.installed
	$(PIP) --editable '.[torch,gpu,fold,test]'
	touch $@

$(VENV)/.lint: $(VENV)/.test
	$(PIP) --editable '.[torch,gpu,fold,test,lint]'
	touch $@
