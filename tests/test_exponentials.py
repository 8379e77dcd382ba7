# SPDX-License-Identifier: BSD-3-Clause
"""The kernels' exponentials: their error in units in the last place, by instruction set, as the library compiles them."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import torch_rescaled

ROOT = Path(__file__).resolve().parents[1]
# As in CMakeLists.txt.
OPTIONS = ["-std=c++20", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-Wno-maybe-uninitialized", "-Wno-uninitialized"]
ISAS = {"baseline": [], "avx2": ["-march=x86-64-v3"], "avx512": ["-march=x86-64-v4", "-mprefer-vector-width=512"]}
NATIVE = torch_rescaled.build_info()["cpu_isa"]
# exp, and the even and odd part of a two-sided pair. Without fused multiply-add (baseline) every product is rounded too.
BOUNDS = {"exp float": 1.0, "even float": 2.0, "odd float": 2.0, "exp double": 1.0, "even double": 2.0, "odd double": 2.0}
ROUNDED_PRODUCTS = 0.5


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("stride", [1009, pytest.param(1, marks=pytest.mark.slow)])
def test_units_in_the_last_place(isa, stride, tmp_path):
    if NATIVE in ISAS and list(ISAS).index(isa) > list(ISAS).index(NATIVE):  # others are avx512 and more
        pytest.skip(f"this processor has {NATIVE} at most")
    compiler = os.environ.get("CXX") or shutil.which("c++") or pytest.skip("no C++ compiler")
    source, program = ROOT / "tests" / "cpp" / "exponentials.cpp", tmp_path / "exponentials"
    subprocess.run([compiler, *OPTIONS, *ISAS[isa], f"-DRESCALED_ISA={isa}", "-pthread", source, "-o", program], check=True)
    done = subprocess.run([program, str(stride)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    found = {name: float(ulp) for name, ulp in re.findall(r"(\w+ \w+): (\S+) ulp", done.stdout)}
    allowance = ROUNDED_PRODUCTS if isa == "baseline" else 0.0
    assert found.keys() == BOUNDS.keys()
    assert all(found[name] <= bound + allowance for name, bound in BOUNDS.items()), done.stdout
