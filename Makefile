# SPDX-License-Identifier: BSD-3-Clause
# `make demo` and `make test` need Python >= 3.11, a C++20 compiler and make, nothing else. They use the active environment
# when it has torch, else they make .venv. Versions stand in pyproject.toml alone.
PYTHON3 ?= python3
ACTIVE := $(shell python -c "import sys, importlib.util as u; u.find_spec('torch') and print(sys.executable)" 2>/dev/null)
PYTHON := $(patsubst $(CURDIR)/%,%,$(or $(ACTIVE),.venv/bin/python))
OLDEST := 2.11.0
PIP := -m pip install -qq --disable-pip-version-check --no-input
# Stamps are kept for each environment; the library serves one torch, so building it drops the other environments' stamps.
STAMPS := build/stamps/$(subst /,.,$(PYTHON))
SOURCES := $(shell find csrc cmake -type f) CMakeLists.txt setup.py torch_rescaled/__init__.py
CPP := $(shell find csrc examples/cpp tests/cpp -name '*.cpp' -o -name '*.h' -o -name '*.cu*' 2>/dev/null)
# Kernels for GPUs take minutes to compile for every architecture: here only where there is a GPU. `make cuda` and
# `make wheel` always do it where nvcc is.
export CMAKE_ARGS ?= -DRESCALED_CUDA=$(if $(wildcard /dev/nvidiactl),AUTO,OFF)
# cmake, ninja and ctest come with the environment.
TOOLS = PATH="$$($(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("scripts"))'):$$PATH"

.DEFAULT_GOAL := help
.PHONY: help build wheel demo test test-all cuda gpu-check test-oldest headers-oldest lint types format sanitize bench clean FORCE
.DELETE_ON_ERROR:

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 18

define CHECK_PYTHON
$(PYTHON3) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null || \
  { echo "Python >= 3.11 is needed, $(PYTHON3) is not: install it, or name it with make PYTHON3=python3.12"; exit 1; }
endef

# C++20, and what the kernels ask of a compiler beyond it.
define COMPILER_SAMPLE
int main() { \
  _Float16 half = 1; \
  return []<int n>(auto x) { return x + n; }.template operator()<0>(static_cast<int>(half)) \
    $(if $(filter x86_64,$(shell uname -m)),+ __builtin_cpu_supports("x86-64-v3")); \
}
endef
define CHECK_COMPILER
echo '$(COMPILER_SAMPLE)' | $${CXX:-c++} -std=c++20 -x c++ -fsyntax-only - 2> /dev/null || \
  { echo "A C++20 compiler with _Float16 is needed: install g++ >= 12, or name one with CXX=..."; exit 1; }
endef

# The build and tool requirements; torch is left alone where there is one, and the encoder's weights to who wants them.
define REQUIREMENTS
import importlib.util, tomllib; \
project = tomllib.load(open("pyproject.toml", "rb")); \
extras = project["project"]["optional-dependencies"]; \
extras.pop("encoder"); \
wanted = project["build-system"]["requires"] + sum(extras.values(), []); \
has_torch = importlib.util.find_spec("torch") is not None; \
print("\n".join(name for name in wanted if not (has_torch and name.startswith("torch=="))))
endef

%/pyvenv.cfg:
	@$(CHECK_PYTHON)
	@echo "making $*"
	@$(PYTHON3) -m venv $* || { rm -rf $*; echo "no environment was made: install Python's venv module (python3-venv)"; exit 1; }

# Not compiled to bytecode: most of it is never imported, and compiling all takes longer than installing it.
$(STAMPS)/environment: pyproject.toml $(patsubst %/bin/python,%/pyvenv.cfg,$(filter .venv%,$(PYTHON)))
	@mkdir -p $(@D)
	@$(PYTHON) -c '$(REQUIREMENTS)' > $(@D)/requirements.txt
	@echo "installing torch and the tools into the environment of $(PYTHON)"
	@$(PYTHON) $(PIP) --no-compile -r $(@D)/requirements.txt || \
	  { echo "not everything was installed: check the connection to the package index, then run make again"; exit 1; }
	@touch $@

$(STAMPS)/library: $(STAMPS)/environment $(SOURCES) $(if $(wildcard torch_rescaled/*.so),,FORCE)
	@$(CHECK_COMPILER)
	@rm -f build/stamps/*/library
	@echo "building the operator library (minutes, the first time)"
	@$(PYTHON) $(PIP) --no-build-isolation --no-deps -e . > build/build.log 2>&1 || \
	  { grep -E -m 20 'error:|Error|FAILED' build/build.log || tail -40 build/build.log; echo "the build failed: the whole log is build/build.log"; exit 1; }
	@touch $@

build: $(STAMPS)/library ## Build the operator library into the package

wheel: build ## Build a wheel for the torch of this environment into dist/
	@CMAKE_ARGS="-DRESCALED_CUDA=AUTO" $(PYTHON) $(PIP:install=wheel) --no-build-isolation --no-deps -w dist . > build/wheel.log 2>&1 || \
	  { tail -40 build/wheel.log; echo "no wheel was built: the whole log is build/wheel.log"; exit 1; }
	@ls -t dist/*.whl | head -1

demo: build ## Train the example language model with its defaults
	@$(PYTHON) examples/train_language_model.py

# Side by side, a thread each: most tests are too small for more.
PYTEST = OMP_NUM_THREADS=1 $(PYTHON) -m pytest -q -n auto --maxprocesses 8 --dist worksteal

test: build ## Every test but the slow ones
	$(PYTEST) -m "not slow and not gpu"

test-all: build ## Every test that needs no GPU
	$(PYTEST) -m "not gpu"

cuda: $(STAMPS)/environment ## Compile the CUDA kernels for every architecture (needs nvcc), and load them
	@$(CHECK_COMPILER)
	@mkdir -p build/cuda
	@echo "compiling the CUDA kernels for every architecture (minutes, the first time)"
	@{ $(TOOLS) cmake -S . -B build/cuda -G Ninja -DRESCALED_CUDA=ON -DCMAKE_CUDA_FLAGS=-Xptxas=-v \
	    -DTORCH_ROOT=$$($(PYTHON) -c "import torch; print(torch.__path__[0])") && \
	  $(TOOLS) cmake --build build/cuda; } > build/cuda/build.log 2>&1 || \
	  { grep -E -m 20 'error|spill|FAILED' build/cuda/build.log || tail -40 build/cuda/build.log; \
	    echo "the build failed: the whole log is build/cuda/build.log"; exit 1; }
	@$(PYTHON) benchmarks/cuda_resources.py build/cuda
	@TORCH_RESCALED_LIBRARY=$(CURDIR)/build/cuda/libtorch_rescaled.so $(PYTHON) -m torch_rescaled

gpu-check: ## On a machine with a GPU: build, its tests, compute-sanitizer, benchmark (PART=build, test, sanitize or bench: one)
	@$(or $(ACTIVE),$(PYTHON3)) benchmarks/gpu_check.py

test-oldest: .venv-oldest/pyvenv.cfg ## The tests on the oldest supported torch, in .venv-oldest (downloads gigabytes)
	@.venv-oldest/bin/python -c "import torch" 2> /dev/null || \
	  .venv-oldest/bin/python $(PIP) --no-compile torch==$(OLDEST) "setuptools>=77"
	@PATH="$(CURDIR)/.venv-oldest/bin:$$PATH" $(MAKE) --no-print-directory test

# The wheel is half a gigabyte; only its headers are unpacked and kept.
build/torch-$(OLDEST)/headers: $(STAMPS)/environment
	@echo "fetching the headers of torch $(OLDEST) (half a gigabyte)"
	@rm -rf $(@D) && mkdir -p $(@D)
	@$(PYTHON) -m pip download -qq --disable-pip-version-check --no-deps --only-binary=:all: -d $(@D) torch==$(OLDEST)
	@$(PYTHON) -c 'import sys, zipfile; wheel = zipfile.ZipFile(sys.argv[1]); \
	  wheel.extractall(sys.argv[2], [name for name in wheel.namelist() if name.startswith("torch/include/")])' $(@D)/*.whl $(@D)
	@rm $(@D)/*.whl && touch $@

headers-oldest: build/torch-$(OLDEST)/headers ## Compile operators and public headers against the oldest supported torch's headers
	@$(TOOLS) cmake -S . -B build/headers-oldest -G Ninja -DCMAKE_BUILD_TYPE=None -DRESCALED_CUDA=OFF \
	  -DTORCH_ROOT=$(CURDIR)/$(<D)/torch > /dev/null
	@$(TOOLS) cmake --build build/headers-oldest --target torch_rescaled_operators torch_rescaled_objects all_verify_interface_header_sets -- --quiet

lint: $(STAMPS)/environment ## ruff and clang-format, as checks
	@$(PYTHON) -m ruff check . || { echo "make format mends most of it"; exit 1; }
	@$(PYTHON) -m ruff format --check . || { echo "make format mends it"; exit 1; }
	@$(TOOLS) clang-format --dry-run -Werror $(CPP) || { echo "make format mends it"; exit 1; }

format: $(STAMPS)/environment ## ruff and clang-format, in place
	@$(PYTHON) -m ruff check --fix --exit-zero .
	@$(PYTHON) -m ruff format .
	@$(TOOLS) clang-format -i $(CPP)

types: $(STAMPS)/environment ## mypy --strict on the package
	@$(PYTHON) -m mypy --strict torch_rescaled

sanitize: $(STAMPS)/environment ## The torch-free kernels under the address and undefined-behavior sanitizers
	@$(CHECK_COMPILER)
	@$(TOOLS) cmake -S . -B build/sanitize -G Ninja -DRESCALED_OPS=OFF -DRESCALED_TESTS=ON -DRESCALED_SANITIZE=ON \
	  -DRESCALED_CUDA=OFF > /dev/null
	@$(TOOLS) cmake --build build/sanitize -- --quiet
	@$(TOOLS) ctest --test-dir build/sanitize --output-on-failure -j2

bench: build ## Measure attention and losses beside PyTorch's own, and write the tables
	@$(PYTHON) benchmarks/attention.py
	@$(PYTHON) benchmarks/loss.py
	@$(PYTHON) benchmarks/report.py

clean: ## Remove what was built; environments stay
	@rm -rf build dist *.egg-info torch_rescaled/*.so torch_rescaled/include torch_rescaled/share
