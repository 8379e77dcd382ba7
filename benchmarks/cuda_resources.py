# SPDX-License-Identifier: BSD-3-Clause
"""What each CUDA kernel takes, from the compiler's report in a build's log: registers, stack, and for which architecture.

python benchmarks/cuda_resources.py build/cuda        writes build/cuda/resources.txt
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for '(?P<architecture>\w+)'.*?"
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


def resources(log: str) -> list[tuple[str, str, int, int, int]]:
    """Name, architecture, registers, bytes of stack, bytes spilled; in the order of the names."""
    found = []
    for entry in ENTRY.finditer(log):
        stack = re.search(r"(\d+) bytes cumulative stack", entry["rest"])
        spilled = int(entry["stores"]) + int(entry["loads"])
        found.append((entry["name"], entry["architecture"], int(entry["registers"]), int(stack[1]) if stack else 0, spilled))
    return sorted(found)


def readable(names: list[str]) -> list[str]:
    if shutil.which("c++filt") is None:
        return names
    done = subprocess.run(["c++filt"], input="\n".join(names), text=True, capture_output=True, check=True)
    short = (re.sub(r"^void |rescaled::|\(anonymous namespace\)::", "", name) for name in done.stdout.splitlines())
    return [re.sub(r">\(.*$", ">", name) for name in short]


def main() -> None:
    folder = Path(sys.argv[1])
    kernels = resources((folder / "build.log").read_text())
    report = folder / "resources.txt"
    if kernels:  # else nothing was compiled this time, and the report stands
        names = readable([kernel[0] for kernel in kernels])
        lines = [f"{'registers':>9} {'stack':>6} {'spilled':>7}  architecture  kernel"]
        for name, (_, architecture, registers, stack, spilled) in zip(names, kernels, strict=True):
            lines.append(f"{registers:9} {stack:6} {spilled:7}  {architecture:12}  {name}")
        report.write_text("\n".join(lines) + "\n")
    text = report.read_text().splitlines()[1:]
    most = max(int(line.split()[0]) for line in text)
    print(f"{len(text)} kernels, at most {most} registers each: {report}")


if __name__ == "__main__":
    main()
