# SPDX-License-Identifier: BSD-3-Clause
"""What is handed to others: the wheel, installed and used away from the sources, and the source distribution."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import torch

import torch_rescaled

ROOT = Path(__file__).resolve().parents[1]
TORCH = Path(torch.__path__[0])
RELEASE = torch.__version__.partition("+")[0]
VERSION = torch_rescaled.__version__


def must_run(*command: object, cwd: Path = ROOT) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
    done = subprocess.run([str(c) for c in command], cwd=cwd, env=environment, text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def tracked(*folders: str) -> set[str]:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("needs git and a checkout: its list of files")
    files = set(must_run("git", "ls-files", *folders).splitlines())
    assert files, f"no files in {folders}: the check would see nothing"
    return files


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (ROOT / "build" / f"cmake-torch-{RELEASE}" / "build.ninja").exists():
        pytest.skip(f"needs the build tree of torch {RELEASE} (make build)")
    folder = tmp_path_factory.mktemp("wheel")
    must_run(sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "-w", folder, ROOT)
    (file,) = folder.iterdir()
    return file


def test_the_wheel_has_every_file_and_no_other(wheel: Path) -> None:
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    assert wheel.name == f"torch_rescaled-{VERSION}-py3-none-{platform}.whl"
    package = {name for name in tracked("torch_rescaled") if name.endswith((".py", "py.typed"))}
    headers = {name.replace("csrc/", "torch_rescaled/") for name in tracked("csrc/include")}
    cmake = {"TorchRescaledConfig.cmake", "TorchRescaledConfigVersion.cmake", "torch_release.cmake"}
    cmake = {f"torch_rescaled/share/cmake/TorchRescaled/{name}" for name in cmake}
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.startswith(f"torch_rescaled-{VERSION}.dist-info/")}
        assert names == package | headers | cmake | {"torch_rescaled/libtorch_rescaled.so"}
        metadata = archive.read(f"torch_rescaled-{VERSION}.dist-info/METADATA").decode()
        assert re.findall(r"^Requires-Dist: (torch\b.*)", metadata, re.MULTILINE) == [f"torch=={RELEASE}"]
        for name in cmake:
            text = archive.read(name).decode()
            assert str(ROOT) not in text and str(TORCH) not in text, f"{name} names a folder of the machine that built it"


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a new environment with the wheel beside this torch, as an installation lays them out."""
    environment = tmp_path_factory.mktemp("environment")
    venv.create(environment, symlinks=True)
    python = environment / "bin" / "python"
    must_run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel)
    site = Path(must_run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (site / "torch").symlink_to(TORCH)
    (site / "requirements_of_torch.pth").write_text(f"{TORCH.parent}\n")
    return python


def test_the_installed_wheel_passes_its_self_check(installed: Path, tmp_path: Path) -> None:
    where = must_run(installed, "-c", "import torch_rescaled; print(torch_rescaled.__file__)", cwd=tmp_path).strip()
    assert Path(where).is_relative_to(installed.parents[1])
    printed = must_run(installed, "-m", "torch_rescaled", cwd=tmp_path)
    assert f"torch_rescaled {VERSION}" in printed and printed.splitlines()[-1].startswith("ok")


def test_a_program_finds_the_installed_wheel_and_torch_beside_it(installed: Path, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples" / "cpp", tmp_path / "program")
    prefix = must_run(installed, "-c", "import torch_rescaled; print(torch_rescaled.cmake_prefix_path)", cwd=tmp_path).strip()
    build = tmp_path / "build"
    must_run("cmake", "-S", "program", "-B", build, "-G", "Ninja", f"-DCMAKE_PREFIX_PATH={prefix}", cwd=tmp_path)
    must_run("cmake", "--build", build, "--target", "derivatives", cwd=tmp_path)
    lines = must_run(build / "derivatives", cwd=tmp_path).splitlines()
    assert lines and all(line.startswith("ok: ") for line in lines)


def test_the_source_distribution_has_every_source(tmp_path: Path) -> None:
    build = f"from setuptools.build_meta import build_sdist; build_sdist({str(tmp_path)!r})"
    must_run(sys.executable, "-c", build)
    with tarfile.open(tmp_path / f"torch_rescaled-{VERSION}.tar.gz") as archive:
        # An archive of our own, so any filter will do: Python before 3.11.4 knows none, from 3.12 on one has to be named.
        archive.extractall(tmp_path, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    unpacked = tmp_path / f"torch_rescaled-{VERSION}"
    files = {p.relative_to(unpacked).as_posix() for p in unpacked.rglob("*") if p.is_file()}
    assert tracked("csrc", "torch_rescaled", "cmake", "CMakeLists.txt", "setup.py", "pyproject.toml", "LICENSE") - files == set()
    # CMake asks for every source that it lists.
    options = ["-G", "Ninja", f"-DTORCH_ROOT={TORCH}", "-DRESCALED_CUDA=OFF", "-DRESCALED_TESTS=ON"]
    must_run("cmake", "-S", unpacked, "-B", tmp_path / "build", *options)
