# SPDX-License-Identifier: BSD-3-Clause
"""The CUDA binding without a GPU: a library whose operators run the kernels' own sources, compiled for the host, at the CPU key.

It takes the two paths of CUDA tensors as the CUDA key does: plain-tensor formulas while no record covers the device, the kernels
with TORCH_RESCALED_UNVERIFIED_CUDA=1. Each runs the tests named here in a process of its own.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import with_tools

# What runs on each path: (file, -k). The kernels run a thread at a time there: few and small problems. More of them, every element
# type and feature, run under ctest (tests/cpp/test_attention.cpp).
EVERY_FEATURE = "test_derivatives and float64 and (plain or fewer or inf or sliced or rank or (grouped and all))"
EVERY_TYPE = "test_derivatives and plain or test_some_leaves and sinh or test_empty and float32 and sinh"
DROPOUT = ("test_attention_dropout.py", "known_answers or every_primitive or bias_mask and float32")
KERNELS = [
    ("test_attention_oracle.py", f"{EVERY_FEATURE} and not cosh or {EVERY_TYPE}"),
    DROPOUT,
    ("test_regression_oracle.py", ""),
    ("test_solve.py", "without_noise or half_precision or test_a_step"),
    ("test_regression_csr_device.py", ""),
    ("test_matrix_regression.py", "test_derivatives and float64 and keys or hides"),
]
# Of the matrix regression: rows shared by several warps, for which problems are otherwise too small; factors in steps. Of a
# sparse A: the last warp first.
VARIED = [
    ("test_matrix_regression_targets.py", "test_as_formed and exp-sparse or float32 and exp", {"RESCALED_TWIN_MANY_BLOCKS": "1"}),
    ("test_matrix_regression_targets.py", "test_as_formed and cosh-exp and rescaled", {"RESCALED_TWIN_SHARED_BYTES": "1"}),
    ("test_regression_csr_device.py", "order or finite or stored", {"RESCALED_TWIN_REVERSE": "1"}),
]
PLAIN = [
    ("test_attention_oracle.py", f"{EVERY_FEATURE} and cosh or test_some_leaves and sinh"),
    DROPOUT,
    ("test_regression_oracle.py", "test_every_derivative and float32 and sinh or resident_rows"),
    ("test_regression_csr.py", "test_func or leading or transposed"),
]

ROOT = Path(__file__).resolve().parents[1]
TREE = ROOT / "build" / f"cmake-torch-{torch.__version__.partition('+')[0]}"  # setup.py's: most is compiled there already
RUN = """
import pytest, sys, torch, torch_rescaled
library, path = sys.argv[1:3]
assert torch.ops.loaded_libraries == {library}
assert torch.ops.torch_rescaled._cuda_path(0) == path
sys.exit(pytest.main(sys.argv[3:]))
"""


@pytest.fixture(scope="module")
def twin() -> Path:
    """Compiled once, without nvcc."""
    for command in (
        ["cmake", "-S", ROOT, "-B", TREE, "-G", "Ninja", f"-DTORCH_ROOT={torch.__path__[0]}"],
        ["cmake", "--build", TREE, "--target", "torch_rescaled_twin"],
    ):
        done = subprocess.run(command, env=with_tools(), text=True, capture_output=True)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return TREE / "libtorch_rescaled_twin.so"


def python(twin: Path, *arguments: object, kernels: bool, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "TORCH_RESCALED_LIBRARY": str(twin),
        "TORCH_RESCALED_UNVERIFIED_CUDA": str(int(kernels)),
        **variables,
    }
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, env=environment, text=True, capture_output=True, cwd=ROOT / "tests")


def passes(twin: Path, file: str, selection: str, kernels: bool, **variables: str) -> None:
    path = "cuda:unknown" if kernels else "plain"  # the compute capability of the host
    # That the plain path is quadratic is warned of; here it is what is wanted.
    options = ["-q", "-x", "-m", "not slow and not gpu", "-W", "ignore::UserWarning"]
    done = python(twin, "-c", RUN, twin, path, *options, file, "-k", selection, kernels=kernels, **variables)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-1000:]
    assert " passed" in done.stdout


@pytest.mark.parametrize(("file", "selection"), PLAIN)
def test_plain_path(twin: Path, file: str, selection: str) -> None:
    passes(twin, file, selection, kernels=False)


@pytest.mark.parametrize(("file", "selection"), KERNELS)
def test_kernels(twin: Path, file: str, selection: str) -> None:
    passes(twin, file, selection, kernels=True)


@pytest.mark.parametrize(("file", "selection", "variables"), VARIED)
def test_kernels_of_other_shapes(twin: Path, file: str, selection: str, variables: dict[str, str]) -> None:
    passes(twin, file, selection, kernels=True, **variables)


def test_the_plain_path_warns_once_and_names_the_variable(twin: Path) -> None:
    code = (
        "import torch, torch_rescaled, warnings\nx = torch.ones(3, 1, 1, requires_grad=True)\n"
        "with warnings.catch_warnings(record=True) as caught:\n    warnings.simplefilter('always')\n"
        "    for _ in range(2):\n        torch_rescaled.attention(*x).sum().backward()\n"
        "for w in caught:\n    print(w.message)\n"
    )
    done = python(twin, "-c", code, kernels=False)
    assert done.returncode == 0, done.stderr
    text = done.stdout + done.stderr
    assert text.count("the plain-tensor path takes their place") == 1
    assert "O(N M) memory" in text and "TORCH_RESCALED_UNVERIFIED_CUDA=1" in text
