# Each target sets up what it needs. `make demo` and `make test` do everything from nothing.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
SOURCES := CMakeLists.txt pyproject.toml $(shell find csrc -type f)

.PHONY: demo test bench gpu-check lint env clean

env: $(VENV)/.built

$(VENV)/.installed: constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt torch numpy
	@touch $@

$(VENV)/.built: $(VENV)/.installed $(SOURCES)
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,train,triton]'
	@touch $@

test: env
	$(RUN) -m pytest -n 2
	TRITON_INTERPRET=1 $(RUN) -m pytest -n 2 -m triton

lint: env
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

clean:
	rm -rf build dist $(VENV) .mypy_cache .ruff_cache .benchmarks .hypothesis
