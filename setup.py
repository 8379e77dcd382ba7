# SPDX-License-Identifier: BSD-3-Clause
"""Builds the operator library with CMake, against the torch of this environment."""

import os
import subprocess
import sysconfig
from pathlib import Path

import torch
from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
TORCH_RELEASE = torch.__version__.partition("+")[0]


class CMakeBuild(build_ext):
    """The one extension is a plain shared library: CMake builds it, in a folder that is kept."""

    def get_ext_filename(self, name):
        folder, _, stem = name.rpartition(".")
        return os.path.join(*folder.split("."), f"{stem}.so")

    def build_extension(self, ext):
        build = ROOT / "build" / f"cmake-torch-{TORCH_RELEASE}"
        library = Path(self.get_ext_fullpath(ext.name)).resolve()
        environment = dict(os.environ, PATH=os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")]))
        options = [f"-DTORCH_ROOT={torch.__path__[0]}", f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={library.parent}"]
        for command in (
            ["cmake", "-S", ROOT, "-B", build, "-G", "Ninja", *options, *os.environ.get("CMAKE_ARGS", "").split()],
            ["cmake", "--build", build],
        ):
            subprocess.run(command, check=True, env=environment)


class Wheel(bdist_wheel):
    """The library has no Python in it: one wheel for every Python 3."""

    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[Extension("torch_rescaled.libtorch_rescaled", sources=[])],
    cmdclass={"build_ext": CMakeBuild, "bdist_wheel": Wheel},
    install_requires=[f"torch=={TORCH_RELEASE}"],  # C++ binaries serve one torch release only
)
