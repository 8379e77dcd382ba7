# SPDX-License-Identifier: BSD-3-Clause
"""The self check of ``python -m torch_rescaled`` tells good kernels from bad ones."""

import runpy
import sys

import pytest
import torch

import torch_rescaled
from torch_rescaled import __main__ as command


def test_report_of_a_good_build(capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, "torch_rescaled.__main__")  # run as `python -m` does: afresh
    with pytest.raises(SystemExit) as end:
        runpy.run_module("torch_rescaled", run_name="__main__")
    assert end.value.code == 0
    out = capsys.readouterr().out
    cuda = ["cuda_architectures:", "cuda_devices:"]
    cuda += [
        f"cuda_{fact}{family}:"
        for fact in ("sources", "verified")
        for family in ("", "_regression", "_regression_csr", "_matrix_regression")
    ]
    for word in ("torch:", "compiler:", "cpu_isa:", *cuda, "_attention_double_backward", "float64 signed"):
        assert word in out
    assert out.rstrip().splitlines()[-1].startswith("ok")


@pytest.mark.parametrize("fault", [lambda out: out * (1 + 1e-3), lambda out: out * torch.nan], ids=["wrong", "nan"])
def test_a_wrong_kernel_fails(fault, monkeypatch, capsys):
    attention = torch_rescaled.attention

    def faulty(query, key, value, **options):
        out = attention(query, key, value, **options)
        return fault(out) if options["kind"] == "cosh" else out

    monkeypatch.setattr(torch_rescaled, "attention", faulty)
    assert command.main() == 1
    lines = capsys.readouterr().out.rstrip().splitlines()
    assert lines[-1].startswith("FAILED")
    assert [line.split()[1] for line in lines[:-1] if line.endswith("FAILED")] == ["cosh", "cosh"]
