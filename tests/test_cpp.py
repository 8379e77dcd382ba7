# SPDX-License-Identifier: BSD-3-Clause
"""The operators serve a program without Python: examples/cpp is built as its CMakeLists.txt says, and run."""

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
import torch

import torch_rescaled

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = Path(torch_rescaled.__file__).with_name("libtorch_rescaled.so")


def run(command: list[object]) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
    return subprocess.run(
        [str(part) for part in command], env={**os.environ, "PATH": path}, text=True, capture_output=True, timeout=300
    )


def must_run(command: list[object]) -> str:
    done = run(command)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    build = tmp_path_factory.mktemp("cpp_example")
    generator = ["-G", "Ninja"] if shutil.which("ninja", path=sysconfig.get_path("scripts")) else []
    options = [f"-DTORCH_ROOT={torch.__path__[0]}", f"-DRESCALED_LIBRARY={LIBRARY}", "-DCMAKE_BUILD_TYPE=Release"]
    must_run(["cmake", "-S", ROOT / "examples" / "cpp", "-B", build, *generator, *options])
    must_run(["cmake", "--build", build])
    return build / "smoke"


@pytest.fixture(scope="module")
def scripted_module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("scripted") / "layer.pt"
    # Signed weights: with exp the loss does not depend on the bias of the keys, and every parameter should move.
    layer = torch_rescaled.nn.RescaledAttention(32, 4, kv_heads=2, kind="signed", is_causal=True)
    torch.jit.save(torch.jit.script(layer), file)
    return file


def test_every_check_of_the_program_passes(program: Path, scripted_module: Path) -> None:
    lines = must_run([program, scripted_module]).splitlines()
    # Four derivatives of three kinds, full and causal; then the training step.
    assert len(lines) == 4 * 3 * 2 + 1
    assert all(line.startswith("ok: ") for line in lines)
    assert lines[-1].startswith("ok: training step of the scripted module")


def test_a_missing_module_fails_with_its_path(program: Path, tmp_path: Path) -> None:
    done = run([program, tmp_path / "absent.pt"])
    assert done.returncode == 1
    assert "FAILED" in done.stdout and "absent.pt" in done.stdout


def test_without_a_module_the_program_says_how_to_call_it(program: Path) -> None:
    done = run([program])
    assert done.returncode == 2
    assert "usage: smoke MODULE.pt" in done.stderr
