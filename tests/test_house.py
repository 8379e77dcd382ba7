# SPDX-License-Identifier: BSD-3-Clause
"""What keeps the house in order: licenses, sizes, one version, links, the README's code, symbols of the kernels."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import torch

import torch_rescaled

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("csrc", "torch_rescaled", "tests", "examples", "benchmarks")
SOURCE_SUFFIXES = {".py", ".cpp", ".h", ".cu", ".cuh"}
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]


def sources(*folders: str) -> list[Path]:
    found = [p for folder in folders for p in sorted((ROOT / folder).rglob("*")) if p.suffix in SOURCE_SUFFIXES]
    assert found, f"no sources in {folders}: the check would see nothing"
    return found


def test_every_source_names_its_license_first() -> None:
    def first_line(path: Path) -> str:
        lines = [line for line in path.read_text().splitlines() if not line.startswith("#!")]
        return lines[0] if lines else ""

    expected = {".py": "# SPDX-License-Identifier: BSD-3-Clause"}
    without = [
        p.relative_to(ROOT).as_posix()
        for p in [*sources(*FOLDERS), ROOT / "setup.py"]
        if first_line(p) != expected.get(p.suffix, "// SPDX-License-Identifier: BSD-3-Clause")
    ]
    assert without == []


def test_no_file_is_longer_than_400_lines() -> None:
    longer = {
        p.relative_to(ROOT).as_posix(): n for p in sources("csrc", "torch_rescaled") if (n := len(p.read_text().splitlines())) > 400
    }
    assert longer == {}


def test_one_version_and_the_changelog_has_it() -> None:
    version = torch_rescaled.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+)?", version)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" in project["project"]["dynamic"], "the version stands in torch_rescaled/__init__.py alone"
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "torch_rescaled.__version__"}
    headings = re.findall(r"^## \[([^\]]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert version in headings, f"CHANGELOG.md has no section for {version}, only for {headings}"
    for other in ("CMakeLists.txt", "CITATION.cff", "setup.py"):
        assert version not in (ROOT / other).read_text(), f"{other} repeats the version"


def heading_anchors(markdown: str) -> set[str]:
    """The anchors that a Markdown viewer gives the headings: lower case, spaces to hyphens, punctuation dropped."""
    headings = re.findall(r"^#+ +(.+?) *$", markdown, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_link_has_its_target(page: Path) -> None:
    text = re.sub(r"<!--.*?-->|```.*?```", "", page.read_text(), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)\s]+)\)|<img[^>]*\bsrc=\"([^\"]+)\"", text)
    missing = []
    for target in (link or image for link, image in links):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        if not file.exists() or (anchor and anchor not in heading_anchors(file.read_text())):
            missing.append(target)
    assert missing == []


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("page", [p for p in PAGES if python_blocks(p)], ids=lambda p: p.name)
def test_the_code_of_the_pages_runs(page: Path) -> None:
    names: dict[str, object] = {"__name__": "page"}
    torch.manual_seed(0)
    for block in python_blocks(page):
        exec(compile(block, page.name, "exec"), names)


def test_the_readme_shows_code() -> None:
    assert python_blocks(README)


def test_isa_objects_export_no_weak_symbols() -> None:
    """A weak symbol compiled for AVX-512 may be the one the linker keeps, and crash an older processor."""
    release = torch.__version__.partition("+")[0]
    tree = ROOT / "build" / f"cmake-torch-{release}" / "CMakeFiles"
    if shutil.which("nm") is None or not tree.is_dir():
        pytest.skip(f"needs nm and the build tree of torch {release} (make build)")
    objects = sorted(o for folder in tree.glob("kernels_*.dir") for o in folder.rglob("*.o"))
    assert objects, "the build tree has no kernels_<isa> objects: the check would see nothing"
    assert weak_symbols(objects) == []


def weak_symbols(objects: list[Path]) -> list[str]:
    """Weak (W, V, undefined ones w, v aside) and unique (u) symbols."""
    listing = subprocess.run(["nm", "--demangle", "-A", *objects], capture_output=True, text=True, check=True).stdout
    return [line.rpartition("/")[2] for line in listing.splitlines() if re.search(r" [WVu] ", line)]


def test_weak_symbols_are_seen(tmp_path: Path) -> None:
    compiler = shutil.which("c++")
    if compiler is None or shutil.which("nm") is None:
        pytest.skip("needs c++ and nm")
    source = tmp_path / "weak.cpp"
    source.write_text("template <class T> T twice(T x) { return x + x; }\ntemplate int twice(int);\n")
    subprocess.run([compiler, "-c", source, "-o", tmp_path / "weak.o"], check=True)
    assert len(weak_symbols([tmp_path / "weak.o"])) == 1


def test_the_library_needs_no_python_and_no_cuda_driver() -> None:
    if shutil.which("readelf") is None:
        pytest.skip("needs readelf")
    library = Path(torch_rescaled.__file__).with_name("libtorch_rescaled.so")
    dynamic = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
    needed = re.findall(r"\(NEEDED\).*\[(.+?)\]", dynamic)
    assert "libtorch_cpu.so" in needed and "libc10.so" in needed
    assert [name for name in needed if re.match(r"lib(python|cuda|cudart|nv|torch_python|torch_cuda)", name)] == []


def devices() -> dict[str, str]:
    lines: str = torch.ops.torch_rescaled.build_info(True)
    return dict(line.split(": ", 1) for line in lines.splitlines())


def test_devices_are_counted_only_on_request() -> None:
    assert "cuda_devices" not in torch_rescaled.build_info()
    assert re.fullmatch(r"[1-9]\d*|0( \((cudaError\w+|built without nvcc)\))?", devices()["cuda_devices"])


@pytest.mark.gpu
def test_the_probe_runs_on_the_gpu() -> None:
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    major, minor = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0].split(".")
    compiled_for = int(devices()["cuda_probe"])
    assert compiled_for // 100 == int(major) and compiled_for % 100 // 10 <= int(minor)
