# SPDX-License-Identifier: BSD-3-Clause
"""Every instruction set passes the oracle: the library picks one per process, so each gets a process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import torch_rescaled

HERE = Path(__file__).parent
ORDER = ["baseline", "avx2", "avx512", "avx512_bf16", "amx_bf16"]
NATIVE = torch_rescaled.build_info()["cpu_isa"]  # the best this processor has: every other test runs on it
SWEEP = (
    "(plain or bias or grouped or one) and (float32 or float64) or (plain or sliced or inf) and (bfloat16 or float16)"
    " or (mask or head or 10000) and float32"
)
RUN = """
import pytest, sys, torch_rescaled
assert torch_rescaled.build_info()["cpu_isa"] == sys.argv[1]
sys.exit(pytest.main(sys.argv[2:]))
"""


def run(isa, *arguments):
    if ORDER.index(isa) > ORDER.index(NATIVE):
        pytest.skip(f"this processor has {NATIVE} at most")
    result = subprocess.run(
        [sys.executable, "-c", RUN, isa, "-q", "-x", *arguments],
        env=os.environ | {"RESCALED_CPU_ISA": isa}, capture_output=True, text=True, cwd=HERE,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-1000:]
    assert " passed" in result.stdout


@pytest.mark.parametrize("isa", ORDER)
def test_oracle(isa):
    if isa == NATIVE:
        pytest.skip(f"this process runs on {isa}: the oracle's own file is this test")
    run(isa, "test_attention_oracle.py", "-m", "not slow and not gpu", "-k", f"test_derivatives and ({SWEEP})")


@pytest.mark.parametrize("isa", ["avx512", "avx512_bf16"])
def test_bfloat16(isa):
    """By conversion to float32, and by dot instructions where the processor has better ones too."""
    if isa == NATIVE:
        pytest.skip(f"this process runs on {isa}: the oracle's own file is this test")
    names = (f"test_attention_{name}.py" for name in ("oracle", "exact", "masking", "identities", "properties", "dropout"))
    run(isa, "-m", "not slow and not gpu", "-k", "bfloat16", *names)


@pytest.mark.parametrize("isa", ORDER[:3])
def test_regression(isa):
    if isa == NATIVE:
        pytest.skip(f"this process runs on {isa}: the regressions' own file is this test")
    run(isa, "test_regression_oracle.py")


@pytest.mark.parametrize("isa", ORDER)
def test_identities(isa):
    if isa == NATIVE:
        pytest.skip(f"this process runs on {isa}: the identities' own file is this test")
    run(isa, "-m", "not slow and not gpu", *(f"test_attention_{name}.py" for name in ("identities", "exact", "masking")))


@pytest.mark.slow
@pytest.mark.parametrize("isa", ORDER)
def test_everything(isa):
    run(
        isa,
        "-m",
        "not slow and not gpu",
        *(f"test_attention_{name}.py" for name in ("oracle", "identities", "exact", "masking", "properties", "dropout")),
    )
