# SPDX-License-Identifier: BSD-3-Clause
# `make demo` and `make test` need Python >= 3.11, a C++20 compiler and make. They use the active environment when it has torch,
# else they make .venv. `make help` lists the rest.
TORCH := 2.13.0
OLDEST := 2.11.0
PYTHON3 ?= python3
ACTIVE := $(shell python -c "import sys, torch; print(sys.executable)" 2>/dev/null)
PYTHON := $(or $(ACTIVE),.venv/bin/python)
PIP := -m pip install --quiet --disable-pip-version-check
STAMPS := build/stamps
SOURCES := $(shell find csrc -type f) CMakeLists.txt setup.py
CPP := $(shell find csrc examples/cpp tests/cpp -name '*.cpp' -o -name '*.h' -o -name '*.cu' 2>/dev/null)

.DEFAULT_GOAL := help
.PHONY: help build demo test test-all test-oldest headers-oldest lint types format sanitize bench check-machine clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 18

check-machine:
	@$(PYTHON3) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python >= 3.11 is needed: install it, or say which with make PYTHON3=python3.12"; exit 1; }
	@echo 'int main() { return []<int n>() { return n; }.operator()<0>(); }' | $${CXX:-c++} -std=c++20 -x c++ -fsyntax-only - 2>/dev/null || \
	  { echo "A C++20 compiler is needed: install g++ >= 11 (or set CXX)"; exit 1; }

.venv/bin/python:
	@$(MAKE) --no-print-directory check-machine
	@echo "making .venv"
	@$(PYTHON3) -m venv .venv

# Build and test requirements come from pyproject.toml; torch is pinned: an open range brings the newest CUDA build.
$(STAMPS)/environment: pyproject.toml $(filter .venv/bin/python,$(PYTHON))
	@echo "installing torch $(TORCH) and the tools"
	@$(PYTHON) -c "import torch" 2>/dev/null || $(PYTHON) $(PIP) torch==$(TORCH)
	@$(PYTHON) $(PIP) "setuptools>=77" "cmake>=3.25" ninja numpy
	@$(PYTHON) $(PIP) $$($(PYTHON) -c "import tomllib; e = tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']; print(*[repr(x) for g in ('test', 'examples', 'dev') for x in e[g]])" | tr -d "'")
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/library: $(STAMPS)/environment $(SOURCES)
	@echo "building the operator library"
	@$(PYTHON) $(PIP) --no-build-isolation --no-deps -e . > build/build.log 2>&1 || \
	  { tail -40 build/build.log; echo "the build failed: the whole log is build/build.log"; exit 1; }
	@touch $@

build: $(STAMPS)/library ## Build the operator library into the package

demo: build ## Train the example language model with its defaults (about 3 minutes)
	@$(PYTHON) examples/train_language_model.py

test: build ## Every test but the slow ones
	$(PYTHON) -m pytest -q -m "not slow and not gpu" tests

test-all: build ## Every test
	$(PYTHON) -m pytest -q -m "not gpu" tests

test-oldest: ## The same tests on the oldest supported torch, in an environment of its own (downloads gigabytes)
	@test -x .venv-oldest/bin/python || $(PYTHON3) -m venv .venv-oldest
	@.venv-oldest/bin/python -c "import torch" 2>/dev/null || .venv-oldest/bin/python $(PIP) torch==$(OLDEST)
	@. .venv-oldest/bin/activate && $(MAKE) --no-print-directory test STAMPS=build/stamps-oldest

# The wheel is unpacked, not installed: its CUDA libraries are not needed to compile.
build/torch-$(OLDEST)/torch/version.py: $(STAMPS)/environment
	@echo "fetching the headers of torch $(OLDEST)"
	@$(PYTHON) $(PIP) --no-deps --target build/torch-$(OLDEST) torch==$(OLDEST)
	@find build/torch-$(OLDEST)/torch/lib -name '*.so*' ! -name 'libc10.so' ! -name 'libtorch_cpu.so' -delete

headers-oldest: build/torch-$(OLDEST)/torch/version.py ## Compile the operators against the oldest supported torch
	@PATH="$$(dirname $$(realpath -s $(PYTHON))):$$PATH" cmake -S . -B build/headers-oldest -G Ninja -DRESCALED_CUDA=OFF \
	  -DTORCH_ROOT=$(abspath build/torch-$(OLDEST)/torch) > /dev/null
	@PATH="$$(dirname $$(realpath -s $(PYTHON))):$$PATH" cmake --build build/headers-oldest --target torch_rescaled_objects

lint: $(STAMPS)/environment ## ruff and clang-format, as checks
	$(PYTHON) -m ruff check . && $(PYTHON) -m ruff format --check .
	$(PYTHON) -m clang_format --dry-run -Werror $(CPP)

format: $(STAMPS)/environment ## ruff and clang-format, in place
	$(PYTHON) -m ruff check --fix . ; $(PYTHON) -m ruff format .
	$(PYTHON) -m clang_format -i $(CPP)

types: $(STAMPS)/environment ## mypy --strict on the package
	$(PYTHON) -m mypy --strict torch_rescaled

sanitize: $(STAMPS)/environment ## The torch-free kernels under the address and undefined-behavior sanitizers
	@PATH="$$(dirname $$(realpath -s $(PYTHON))):$$PATH" cmake -S . -B build/sanitize -G Ninja -DRESCALED_OPS=OFF -DRESCALED_TESTS=ON \
	  -DRESCALED_SANITIZE=ON -DRESCALED_CUDA=OFF -DCMAKE_BUILD_TYPE=Release > /dev/null
	@PATH="$$(dirname $$(realpath -s $(PYTHON))):$$PATH" cmake --build build/sanitize
	@PATH="$$(dirname $$(realpath -s $(PYTHON))):$$PATH" ctest --test-dir build/sanitize --output-on-failure

bench: build ## Measure attention against PyTorch's own, and put the table into the README
	$(PYTHON) benchmarks/attention.py
	$(PYTHON) benchmarks/report.py

clean: ## Remove what was built
	rm -rf build dist *.egg-info torch_rescaled/*.so
