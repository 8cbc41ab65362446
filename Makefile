# Each target sets up what it needs: `make demo` and `make test` do everything from nothing.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-open-clip bench lint gpu-check env clean

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

# open_clip needs torchvision, which is built for one torch each, and not for that of constraints.txt.
test-open-clip: export OMP_NUM_THREADS = 1
test-open-clip: $(VENV)-open-clip/.built
	$(VENV)-open-clip/bin/python -m pytest tests/test_open_clip.py tests/test_examples.py -k open_clip

$(VENV)-open-clip/.built: constraints.txt pyproject.toml CMakeLists.txt $(shell find csrc -type f)
	$(PYTHON) -m venv $(VENV)-open-clip
	grep -vE '^(torch|triton)==' constraints.txt > $(VENV)-open-clip/constraints.txt
	$(VENV)-open-clip/bin/python -m pip install --quiet --disable-pip-version-check -c $(VENV)-open-clip/constraints.txt \
		torch==2.14.1 torchvision==0.29.1 open-clip-torch==3.3.0 pytest -e '.[demo,paper,open-clip]'
	@touch $@

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
	rm -rf build dist $(VENV) $(VENV)-open-clip .mypy_cache .ruff_cache .benchmarks .hypothesis
