# SPDX-License-Identifier: BSD-3-Clause
"""The operators serve programs without Python: examples/cpp is built with the package's find_package, and run."""

import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import torch_rescaled

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = Path(torch_rescaled.__file__).with_name("libtorch_rescaled.so")
TORCH = torch.__path__[0]

# Of torch's own modules, when AOTInductor compiles.
pytestmark = pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is:FutureWarning")


def run(*command: object) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.run([str(part) for part in command], env=environment, text=True, capture_output=True, timeout=300)


def must_run(*command: object) -> str:
    done = run(*command)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    build = tmp_path_factory.mktemp("cpp_examples")
    prefixes = f"{torch_rescaled.cmake_prefix_path};{torch.utils.cmake_prefix_path}"
    # --as-needed is the default of some distributions' compilers, and drops libraries that register operators.
    options = [f"-DCMAKE_PREFIX_PATH={prefixes}", "-DCMAKE_EXE_LINKER_FLAGS=-Wl,--as-needed"]
    must_run("cmake", "-S", ROOT / "examples" / "cpp", "-B", build, "-G", "Ninja", *options)
    must_run("cmake", "--build", build)
    return build


def test_derivatives_and_options(programs: Path) -> None:
    lines = must_run(programs / "derivatives").splitlines()
    # Four derivatives of three kinds, full and causal; normalizer, quotient, losses, dropout.
    assert len(lines) == 4 * 3 * 2 + 4
    assert all(line.startswith("ok: ") for line in lines)


def test_a_regression_is_solved_and_differentiated(programs: Path) -> None:
    lines = must_run(programs / "regression").splitlines()
    assert re.fullmatch(r"status [1-4], \d+ reads of A, largest error \S+", lines[0])
    assert lines[1].startswith("derivative of x[0] along truth[0]: 1.000000")


def test_training_with_a_gradient_penalty(programs: Path) -> None:
    def train(penalty: float) -> tuple[list[float], list[float]]:
        lines = must_run(programs / "train", 60, penalty).splitlines()
        found = [re.fullmatch(r"step \d+ loss (\S+) penalty (\S+)", line) for line in lines]
        values = [(float(match[1]), float(match[2])) for match in found if match]
        assert len(values) == len(lines) == 7
        losses, penalties = zip(*values, strict=True)
        return list(losses), list(penalties)

    losses, penalties = train(0.01)
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.7 * losses[0]
    # What is penalized gets smaller: its gradient, a second derivative, reaches the parameters.
    assert train(1)[1][-1] < 0.5 * penalties[-1]


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[torch.dtype], Path]:
    folder = tmp_path_factory.mktemp("scripted")

    def save(dtype: torch.dtype) -> Path:
        torch.manual_seed(0)
        layer = torch_rescaled.nn.RescaledAttention(32, 4, kv_heads=2, kind="signed", is_causal=True, dtype=dtype)
        file = folder / f"layer_{dtype}.pt"
        torch.jit.save(torch.jit.script(layer), file)
        return file

    return save


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_scripted_module_trains_as_in_python(
    programs: Path, scripted: Callable[[torch.dtype], Path], dtype: torch.dtype, tmp_path: Path
) -> None:
    steps, module = 4, scripted(dtype)
    x, target = (torch.randn(4, 20, 32, dtype=dtype) for _ in range(2))
    torch.save((x, target), tmp_path / "data.pt")
    printed = must_run(programs / "script", module, tmp_path / "data.pt", steps, tmp_path / "result.pt")
    losses, *parameters = torch.load(tmp_path / "result.pt")

    layer = torch.jit.load(module)
    expected: list[Tensor] = []
    for _ in range(steps):
        layer.zero_grad()
        loss = torch.nn.functional.mse_loss(layer(x), target)
        loss.backward()
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.sub_(parameter.grad, alpha=0.1)
        expected.append(loss.detach())
    assert expected[-1] < expected[0] and len(printed.splitlines()) == steps
    torch.testing.assert_close(losses, torch.stack(expected), rtol=0, atol=0)
    torch.testing.assert_close(parameters, [p.detach() for p in layer.parameters()], rtol=0, atol=0)


@pytest.fixture(scope="module")
def aot_package(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensor]:
    torch.manual_seed(0)
    layer = torch_rescaled.nn.RescaledAttention(32, 4, kv_heads=2, kind="cosh", is_causal=True).eval()
    x, file = torch.randn(4, 20, 32), tmp_path_factory.mktemp("aot") / "layer.pt2"
    with torch.no_grad():
        torch._inductor.aoti_compile_and_package(torch.export.export(layer, (x,)), package_path=str(file))
        torch.testing.assert_close(torch._inductor.aoti_load_package(str(file))(x), layer(x))
    return file, x


def test_an_aot_package_computes_as_in_python(programs: Path, aot_package: tuple[Path, Tensor], tmp_path: Path) -> None:
    file, x = aot_package
    torch.save((x,), tmp_path / "inputs.pt")
    must_run(programs / "aot", LIBRARY, file, tmp_path / "inputs.pt", tmp_path / "outputs.pt")
    (output,) = torch.load(tmp_path / "outputs.pt")
    torch.testing.assert_close(output, torch._inductor.aoti_load_package(str(file))(x), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("program", "arguments", "status", "message"),
    [
        ("script", [], 2, "usage: script MODULE.pt"),
        ("script", ["absent.pt", "data.pt", 1, "result.pt"], 1, "absent.pt"),
        ("aot", [], 2, "usage: aot libtorch_rescaled.so"),
        ("aot", ["absent.so", "model.pt2", "inputs.pt", "outputs.pt"], 1, "absent.so"),
    ],
)
def test_what_is_missing_is_named(programs: Path, program: str, arguments: list[object], status: int, message: str) -> None:
    done = run(programs / program, *arguments)
    assert done.returncode == status and message in done.stderr, done.stderr


def test_without_the_library_the_operators_are_unknown(
    scripted: Callable[[torch.dtype], Path], aot_package: tuple[Path, Tensor]
) -> None:
    """The messages by which docs/deployment.md tells what was forgotten."""
    documentation = (ROOT / "docs" / "deployment.md").read_text()
    for message, load in (
        ("Unknown builtin op: torch_rescaled::attention", f"torch.jit.load({str(scripted(torch.float32))!r})"),
        ("Could not find schema for torch_rescaled::", f"torch._inductor.aoti_load_package({str(aot_package[0])!r})"),
    ):
        done = run(sys.executable, "-c", f"import torch; {load}")
        assert done.returncode == 1 and message in done.stderr, done.stderr
        assert message in documentation


def find_package(folder: Path, arguments: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Configures a program that asks for the package, and says when it was not found."""
    (folder / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.25)\nproject(program LANGUAGES NONE)\n"
        f'find_package(TorchRescaled {arguments})\nif(NOT TorchRescaled_FOUND)\nmessage(STATUS "not found")\nendif()\n'
    )
    prefix = f"-DTorchRescaled_ROOT={torch_rescaled.cmake_prefix_path}"
    return run("cmake", "--fresh", "-S", folder, "-B", folder / "build", "-G", "Ninja", prefix, *options)


def test_the_cmake_package_has_the_version_of_the_python_package(tmp_path: Path) -> None:
    major, minor, patch = (int(part) for part in torch_rescaled.__version__.split(".")[:3])
    for version, found in (
        (f"{major}.{minor}.{patch}", True),
        (f"{major}.{minor}.{patch + 1}", False),
        (f"{major}.{minor + 1}", False),
    ):
        done = find_package(tmp_path, f"{version} REQUIRED", f"-DTORCH_ROOT={TORCH}")
        assert (done.returncode == 0) == found, done.stderr
    assert f"version: {torch_rescaled.__version__}" in done.stderr


def test_another_torch_is_refused_by_name(tmp_path: Path) -> None:
    release = torch.__version__.partition("+")[0]
    header = tmp_path / "torch" / "include" / "torch" / "headeronly" / "version.h"
    header.parent.mkdir(parents=True)
    header.write_text('#define TORCH_VERSION_MAJOR 1\n#define TORCH_VERSION \\\n  "1.2.3+cpu"\n')
    for where in (f"-DTORCH_ROOT={tmp_path}/torch", f"-DCMAKE_PREFIX_PATH={tmp_path}/torch/share/cmake"):
        done = find_package(tmp_path, "REQUIRED", where)
        message = " ".join(done.stderr.split())
        assert done.returncode == 1 and f"built for torch {release}" in message and "is torch 1.2.3" in message, done.stderr


def test_no_torch_is_said_and_an_optional_package_is_just_not_found(tmp_path: Path) -> None:
    nowhere = f"-DTORCH_ROOT={tmp_path}/nowhere"
    done = find_package(tmp_path, "REQUIRED", nowhere)
    assert done.returncode == 1 and "set TORCH_ROOT to its folder" in " ".join(done.stderr.split()), done.stderr
    done = find_package(tmp_path, "QUIET", nowhere)
    assert done.returncode == 0 and "not found" in done.stdout, done.stderr
