# SPDX-License-Identifier: BSD-3-Clause
"""Finds and loads the operator library; refuses clearly.

The environment variable ``TORCH_RESCALED_LIBRARY`` names another file to load in its place: for tests of other builds.
"""

import os
from pathlib import Path

import torch

#: For CMake: ``-DCMAKE_PREFIX_PATH=`` this, then ``find_package(TorchRescaled)``; as :data:`torch.utils.cmake_prefix_path`.
cmake_prefix_path = str(Path(__file__).with_name("share") / "cmake")


def _load() -> None:
    other = os.environ.get("TORCH_RESCALED_LIBRARY")
    library = Path(other) if other else Path(__file__).with_name("libtorch_rescaled.so")
    if other and not library.exists():
        raise ImportError(
            f"torch_rescaled: expected an operator library at {library}, which TORCH_RESCALED_LIBRARY names, found none; "
            "unset the variable to load the package's own"
        )
    if not library.exists():
        raise ImportError(
            f"torch_rescaled: expected its operator library at {library}, found none; "
            "build it with `pip install --no-build-isolation -e .` (or `make build`) in the source tree"
        )
    try:
        torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
    except OSError as error:
        raise ImportError(
            f"torch_rescaled: its operator library does not load with torch {torch.__version__}; it serves only the torch release "
            f"it was built for, so build it again in this environment ({error})"
        ) from error
    built = build_info()["torch"]
    here = torch.__version__.partition("+")[0]
    if built != here:
        raise ImportError(
            f"torch_rescaled: its operator library was built for torch {built}, but this is torch {here}; "
            "build it again in this environment"
        )


def build_info() -> dict[str, str]:
    """What the operator library was built from and runs on.

    Returns:
        ``torch`` (the release it serves), ``compiler``, ``cpu_isa`` (the instruction set in use: baseline, avx2 or avx512, or
        avx512_bf16 or amx_bf16 with products of bfloat16; the environment variable ``RESCALED_CPU_ISA`` caps it),
        ``cuda_architectures`` (``none`` if built without nvcc), ``cuda_sources`` (hash of the sources of attention's CUDA kernels)
        and ``cuda_verified`` (the compute capabilities on which a recorded run has verified them, or ``none``); the same of the
        families ``regression``, ``regression_csr`` and ``matrix_regression``, whose names end in ``_regression`` and so on.

    Example:
        >>> import torch_rescaled
        >>> sorted(torch_rescaled.build_info())  # doctest: +NORMALIZE_WHITESPACE
        ['compiler', 'cpu_isa', 'cuda_architectures', 'cuda_sources', 'cuda_sources_matrix_regression',
        'cuda_sources_regression', 'cuda_sources_regression_csr', 'cuda_verified', 'cuda_verified_matrix_regression',
        'cuda_verified_regression', 'cuda_verified_regression_csr', 'torch']
    """
    lines: str = torch.ops.torch_rescaled.build_info()
    return dict(line.split(": ", 1) for line in lines.splitlines())


_load()
