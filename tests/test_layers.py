# SPDX-License-Identifier: BSD-3-Clause
"""Dependencies run in one direction: kernels <- ops <- solvers <- functions <- layers <- optimizers <- examples and benchmarks.

Includes and imports are read, not run; every rule is shown to fail on a planted violation.
"""

import ast
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CPP_SUFFIXES = {".cpp", ".h", ".cu", ".cuh"}
INCLUDE = re.compile(r'^\s*#\s*include\s*(?:"([^"]+)"|<([^>]+)>)', re.MULTILINE)
PRIVATE_OP = re.compile(r"torch_rescaled(\.|::)_[a-z]")

# What a layer may include. Own layers, and torch, python, autograd (torch's internals), cuda: foreign ones.
ALLOWED = {
    "csrc/kernels": {"csrc/kernels", "cuda"},
    "csrc/ops": {"csrc/ops", "csrc/kernels", "csrc/include", "torch", "autograd"},
    "csrc/solvers": {"csrc/solvers", "csrc/ops", "csrc/include", "torch"},
    "csrc/include": {"csrc/include", "torch"},
    "examples/cpp": {"examples/cpp", "csrc/include", "torch", "autograd"},
    "tests/cpp": {"tests/cpp", "csrc/kernels"},
}
# Where a layer narrows: these includes only in these files.
ONLY_IN = {
    "autograd": re.compile(r"^(csrc/ops/node\.h$|examples/cpp/)"),  # examples: LibTorch users' own autograd calls
    "cuda": re.compile(r"^csrc/kernels/.*\.cuh?$"),
}


def foreign_layer(header: str) -> str | None:
    """The layer of an include in angle brackets; None for the standard library."""
    if header == "Python.h" or re.search(r"pybind|^torch/(extension|python)\.h|python_headers|utils/(pycfunction|python)", header):
        return "python"
    if header.startswith(("torch/csrc/autograd/", "torch/csrc/dynamo/")):
        return "autograd"
    if header.startswith(("torch/", "ATen/", "c10/", "caffe2/")):
        return "torch"
    if header.startswith("torch_rescaled/"):
        return "csrc/include"
    if re.match(r"(cuda|cublas|cooperative_groups|mma|cute/|cutlass/|nv)", header):
        return "cuda"
    return None


def own_layer(path: str) -> str | None:
    return next((layer for layer in ALLOWED if path.startswith(f"{layer}/")), None)


def include_violations(root: Path) -> Iterator[str]:
    for source in sorted(p for folder in ALLOWED for p in (root / folder).rglob("*") if p.suffix in CPP_SUFFIXES):
        name = source.relative_to(root).as_posix()
        layer = own_layer(name)
        assert layer is not None
        for quoted, angled in INCLUDE.findall(source.read_text()):
            if quoted:
                target = (source.parent / quoted).resolve()
                if not target.is_file():
                    yield f"{name}: includes {quoted}, which is not there (own headers are named relative to the file)"
                    continue
                target_layer = own_layer(target.relative_to(root).as_posix())
            else:
                target_layer = foreign_layer(angled)
                if target_layer is None:
                    continue
            if target_layer not in ALLOWED[layer]:
                yield f"{name}: {layer} must not include {target_layer} ({quoted or angled})"
            elif target_layer in ONLY_IN and not ONLY_IN[target_layer].match(name):
                yield f"{name}: {target_layer} headers are for {ONLY_IN[target_layer].pattern} alone ({angled})"


def imports(source: Path, module: str) -> Iterator[str]:
    """Every module that `source` (imported as `module`) names in an import, `from a import b` as a.b, relative ones resolved."""
    package = module if source.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{prefix}.{alias.name}" for alias in node.names)


def import_violations(root: Path) -> Iterator[str]:
    package = root / "torch_rescaled"
    for source in sorted(package.rglob("*.py")):
        name = source.relative_to(root).as_posix()
        module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for target in imports(source, module):
            top = target.partition(".")[0]
            integrated = module == f"torch_rescaled.integrations.{top}" or (module, top) == ("torch_rescaled._plot", "matplotlib")
            if top not in {"torch", "torch_rescaled"} and top not in sys.stdlib_module_names and not integrated:
                yield f"{name}: the package computes nothing itself and imports torch alone ({target})"
            if top == "ctypes" or "triton" in target or target.startswith("torch.utils.cpp_extension"):
                yield f"{name}: kernels belong to csrc/kernels ({target})"
            for above, what in (("torch_rescaled.nn", "layers"), ("torch_rescaled.optim", "optimizers")):
                below = module != "torch_rescaled" and not module.startswith(("torch_rescaled.optim", above))
                if target.startswith(above) and below:
                    yield f"{name}: what is below must not import {what} ({target})"
            if target.startswith("torch_rescaled.integrations") and not module.startswith("torch_rescaled.integrations"):
                yield f"{name}: the package must not need what it integrates with ({target})"
            if module == "torch_rescaled._library" and top == "torch_rescaled":
                yield f"{name}: the loader must not import the rest of the package ({target})"
    for source in sorted(root.glob("tests/oracle*.py")):
        name = source.relative_to(root).as_posix()
        if any(target.startswith("torch_rescaled") for target in imports(source, source.stem)) or re.search(
            r"ops\s*\.\s*torch_rescaled", source.read_text()
        ):
            yield f"{name}: the oracle is independent of the package"
    for folder in ("examples", "benchmarks"):
        for source in sorted((root / folder).rglob("*.py")):
            name = source.relative_to(root).as_posix()
            for target in imports(source, source.stem):
                if target.startswith("torch_rescaled.") and any(part.startswith("_") for part in target.split(".")):
                    yield f"{name}: {folder} use the public package alone ({target})"
            if folder == "examples" and PRIVATE_OP.search(source.read_text()):
                yield f"{name}: examples use public names alone"


def violations(root: Path) -> list[str]:
    return [*include_violations(root), *import_violations(root)]


def test_dependencies_run_in_one_direction() -> None:
    assert (ROOT / "csrc/kernels").is_dir() and (ROOT / "csrc/ops").is_dir(), "the layers moved: this test would see nothing"
    assert violations(ROOT) == []


PLANTED = [
    ("csrc/kernels/cpu/isa.h", "#include <ATen/core/Tensor.h>", "csrc/kernels must not include torch"),
    ("csrc/kernels/cpu/isa.cpp", "#include <c10/util/Exception.h>", "csrc/kernels must not include torch"),
    ("csrc/kernels/cpu/isa.cpp", "#include <Python.h>", "csrc/kernels must not include python"),
    ("csrc/kernels/cpu/isa.cpp", '#include "../../ops/node.h"', "csrc/kernels must not include csrc/ops"),
    ("csrc/kernels/cpu/isa.cpp", '  #  include "../../solvers/loop.h"', "csrc/kernels must not include csrc/solvers"),
    ("csrc/kernels/cpu/isa.cpp", "#include <cuda_runtime.h>", "cuda headers are for"),
    ("csrc/kernels/cpu/isa.cpp", '#include "nowhere.h"', "which is not there"),
    ("csrc/ops/library.cpp", '#include "../solvers/loop.h"', "csrc/ops must not include csrc/solvers"),
    ("csrc/ops/library.cpp", "#include <torch/extension.h>", "csrc/ops must not include python"),
    ("csrc/ops/library.cpp", "#include <cuda_runtime.h>", "csrc/ops must not include cuda"),
    ("csrc/ops/library.cpp", "#include <torch/csrc/autograd/function.h>", "autograd headers are for"),
    ("csrc/solvers/loop.h", '#include "../kernels/cpu/isa.h"', "csrc/solvers must not include csrc/kernels"),
    ("csrc/include/torch_rescaled/attention.h", '#include "../../ops/node.h"', "csrc/include must not include csrc/ops"),
    ("tests/cpp/test_isa.cpp", "#include <torch/library.h>", "tests/cpp must not include torch"),
    ("examples/cpp/train.cpp", '#include "../../csrc/ops/node.h"', "examples/cpp must not include csrc/ops"),
    ("torch_rescaled/functional.py", "import numpy as np", "imports torch alone (numpy)"),
    ("torch_rescaled/nn/__init__.py", "def f():\n    from triton import language", "kernels belong to csrc/kernels"),
    ("torch_rescaled/functional.py", "import ctypes", "kernels belong to csrc/kernels"),
    ("torch_rescaled/functional.py", "from . import nn", "must not import layers"),
    ("torch_rescaled/nn/attention.py", "from torch_rescaled.optim import Newton", "must not import optimizers"),
    ("torch_rescaled/nn/replace.py", "import transformers", "imports torch alone (transformers)"),
    ("torch_rescaled/solve.py", "from matplotlib import pyplot", "imports torch alone (matplotlib.pyplot)"),
    ("torch_rescaled/integrations/transformers.py", "import numpy as np", "imports torch alone (numpy)"),
    ("torch_rescaled/__init__.py", "from torch_rescaled import integrations", "must not need what it integrates with"),
    ("torch_rescaled/_library.py", "from torch_rescaled.functional import attention", "the loader must not import"),
    ("tests/oracle.py", "import torch_rescaled.functional", "the oracle is independent"),
    ("tests/oracle.py", "x = torch.ops.torch_rescaled.attention", "the oracle is independent"),
    ("examples/train_language_model.py", "from torch_rescaled._library import _load", "examples use the public package alone"),
    ("examples/train_language_model.py", "f = torch.ops.torch_rescaled._attention_jvp", "examples use public names alone"),
    ("benchmarks/attention.py", "from torch_rescaled import _vmap", "benchmarks use the public package alone"),
]


@pytest.mark.parametrize(("path", "line", "expected"), PLANTED, ids=[f"{p}-{e}" for p, _, e in PLANTED])
def test_planted_violation_is_found(path: str, line: str, expected: str, tmp_path: Path) -> None:
    for folder in ("csrc", "torch_rescaled", "tests", "examples", "benchmarks"):
        if (ROOT / folder).is_dir():
            shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    (tmp_path / "csrc/solvers").mkdir(exist_ok=True)
    (tmp_path / "csrc/solvers/loop.h").touch()
    assert violations(tmp_path) == []
    target = tmp_path / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(f"{target.read_text() if target.exists() else ''}\n{line}\n")
    found = violations(tmp_path)
    assert any(expected in violation and violation.startswith(path) for violation in found), found
