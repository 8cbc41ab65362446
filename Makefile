# Each target sets up what it needs: `make demo` and `make test` do everything from nothing.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test bench lint gpu-check env clean

env: $(VENV)/.built

$(VENV)/.torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch numpy
	@touch $@

$(VENV)/.built: $(VENV)/.torch pyproject.toml CMakeLists.txt $(shell find csrc -type f)
	$(PIP) -e '.[dev]'
	@touch $@

demo: env
	$(VENV)/bin/loupe demo

# A thread per worker: more would spin while they wait for each other's cores. Tests of threads set their number.
test: export OMP_NUM_THREADS = 1
test: env
	$(RUN) -m pytest -n 2 --dist loadgroup
	TRITON_INTERPRET=1 $(RUN) -m pytest -n 2 -k triton

bench: env
	@mkdir -p build
	$(RUN) -m pytest bench -p no:xdist --benchmark-disable-gc --benchmark-columns=median --benchmark-json=build/bench.json
	$(RUN) -m bench.table build/bench.json bench/results/cpu.json

lint: env
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

# On a machine with a GPU and no network: builds with what its own Python has, and installs nothing into it.
gpu-check:
	$(PYTHON) bench/gpu_check.py

clean:
	rm -rf build dist $(VENV) .mypy_cache .ruff_cache .benchmarks .hypothesis
