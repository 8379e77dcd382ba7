# SPDX-License-Identifier: BSD-3-Clause
"""Builds the operator library with CMake, against the torch of this environment."""

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import torch
from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
TORCH_RELEASE = torch.__version__.partition("+")[0]
BUILD = ROOT / "build" / f"cmake-torch-{TORCH_RELEASE}"  # kept: the next build, in place or of a wheel, compiles what changed


class CMakeBuild(build_ext):
    """The one extension is a plain shared library: CMake builds and installs it, with headers and a CMake package."""

    def get_ext_filename(self, name):
        folder, _, stem = name.rpartition(".")
        return os.path.join(*folder.split("."), f"{stem}.so")

    def build_extension(self, ext):
        options = [f"-DTORCH_ROOT={torch.__path__[0]}", *os.environ.get("CMAKE_ARGS", "").split()]
        self.cmake("-S", ROOT, "-B", BUILD, "-G", "Ninja", *options)
        self.cmake("--build", BUILD)
        self.cmake("--install", BUILD, "--prefix", self.build_lib)

    def copy_extensions_to_source(self):
        """In place: the library, and what CMake installs beside it."""
        self.cmake("--install", BUILD, "--prefix", ROOT)

    def cmake(self, *arguments):
        path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
        subprocess.run(["cmake", *arguments], check=True, env=dict(os.environ, PATH=path))


class Wheel(bdist_wheel):
    """The library has no Python in it: one wheel for every Python 3."""

    def run(self):
        shutil.rmtree(self.get_finalized_command("build").build_lib, ignore_errors=True)  # files of an earlier state
        super().run()

    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[Extension("torch_rescaled.libtorch_rescaled", sources=[])],
    cmdclass={"build_ext": CMakeBuild, "bdist_wheel": Wheel},
    install_requires=[f"torch=={TORCH_RELEASE}"],  # C++ binaries serve one torch release only
)
