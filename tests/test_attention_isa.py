# SPDX-License-Identifier: BSD-3-Clause
"""Every instruction set passes the oracle: the library picks one per process, so each gets a process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SWEEP = "(plain or many or causal or bias or grouped or one) and (float32 or float64)"


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_oracle(isa):
    best = subprocess.run(
        [sys.executable, "-c", "import torch_rescaled; print(torch_rescaled.build_info()['cpu_isa'])"],
        env=os.environ | {"RESCALED_CPU_ISA": isa}, capture_output=True, text=True, check=True, cwd=HERE.parent,
    ).stdout.strip()  # fmt: skip
    if best != isa:
        pytest.skip(f"this processor has {best} at most")
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "test_attention_oracle.py", "-m", "not slow", "-k", SWEEP],
        env=os.environ | {"RESCALED_CPU_ISA": isa}, capture_output=True, text=True, cwd=HERE,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-4000:]
    assert " passed" in result.stdout
