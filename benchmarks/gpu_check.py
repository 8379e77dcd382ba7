# SPDX-License-Identifier: BSD-3-Clause
"""Checks the CUDA kernels on this machine's GPU: builds in place, runs the GPU tests, compute-sanitizer and the benchmarks.

make gpu-check                                          # everything, within 9 minutes on 16 cores
PART=test OUT=results make gpu-check                    # one part: build, test, sanitize or bench
python benchmarks/gpu_check.py --status [--check]       # rewrites docs/GPU_STATUS.md from tests/gpu_verified.json

Needs Python with torch, pytest and hypothesis, nvcc, a C++20 compiler and cmake; no network. Writes logs, JSON and
gpu_verified.json into OUT (gpu_results by default). Who trusts that file copies it to tests/, runs --status, and commits both.
"""

import argparse
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import gpu_record
import torch
from gpu_record import PAGE, PRIMITIVES, RECORD, ROOT
from timing import commit

SECONDS = 520  # of everything together
# Of a command. On an H100 and 16 cores everything takes 412 s, the build 117 s of it.
LIMITS = {"build": 240, "test": 240, "exercise": 60, "sanitize": 90, "bench": 110, "bench of a regression": 40}
LARGEST_LOG = 2**20
HERE = ROOT / "benchmarks"

# pytest's arguments. First, alone, what looks at the memory of the whole GPU; then the rest, in processes side by side: the other
# families' own, and attention's with whatever is of no family.
ALONE = [["tests/test_cuda.py", "tests/test_house.py"]]
ORACLE, MASKING = "tests/test_attention_oracle.py", "tests/test_attention_masking.py"
OF_FAMILY = {
    "regression": [
        "tests/test_regression_oracle.py", "tests/test_regression_transforms.py", "tests/test_solve.py", "tests/test_solve_grid.py",
    ],
    "regression_csr": ["tests/test_regression_csr_device.py"],
    "matrix_regression": [
        "tests/test_matrix_regression.py", "tests/test_matrix_regression_targets.py", "tests/test_matrix_regression_transforms.py",
        "tests/test_map_solve.py",
    ],
}  # fmt: skip
TOGETHER = [
    [ORACLE, "-k", "float16"],
    [ORACLE, "-k", "not float16"],
    [MASKING],
    ["tests", *(f"--ignore={file}" for file in (*ALONE[0], ORACLE, MASKING, *itertools.chain(*OF_FAMILY.values())))],
]


@dataclass
class Row:
    """A line of the last table."""

    part: str
    good: bool
    text: str
    details: list[str] = field(default_factory=list)


def table(rows: list[Row]) -> str:
    lines = []
    for row in rows:
        lines.append(f"{row.part:10}{'ok' if row.good else 'FAILED':8}{row.text}")
        lines += [f"{'':18}{detail}" for detail in row.details]
    return "\n".join(lines)


def environment() -> dict[str, str]:
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", ""), "/usr/local/cuda/bin"])
    python_path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PATH": path, "PYTHONPATH": python_path, "TORCH_RESCALED_UNVERIFIED_CUDA": "1"}


Result = tuple[int | None, str]  # exit status (None: stopped at the limit) and output


@dataclass
class Job:
    """Where results go, and until when commands may run."""

    out: Path
    end: float = field(default_factory=lambda: time.monotonic() + SECONDS)

    def limit(self, part: str) -> float:
        return max(5.0, min(LIMITS[part], self.end - time.monotonic()))

    def run(self, part: str, *commands: Sequence[object], log: str = "") -> list[Result]:
        """All commands side by side; their outputs are appended to the part's log, which keeps its end."""
        limit, threads = self.limit(part), max(1, (os.cpu_count() or 1) // len(commands))
        variables = {**environment(), "OMP_NUM_THREADS": str(threads)} if len(commands) > 1 else environment()

        def one(command: Sequence[object]) -> Result:
            process = subprocess.Popen(
                [str(part) for part in command], cwd=ROOT, env=variables, text=True, errors="replace",
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
            try:
                output = process.communicate(timeout=limit)[0]
                return process.returncode, output
            except subprocess.TimeoutExpired:
                process.kill()
                return None, process.communicate()[0]

        with ThreadPoolExecutor(len(commands)) as pool:
            results = list(pool.map(one, commands))
        file = self.out / (log or f"{part}.log")
        text = file.read_text() if file.exists() else ""
        for command, (status, output) in zip(commands, results, strict=True):
            text += f"$ {' '.join(map(str, command))}\n{output}[exit status {status}]\n"
        file.write_text(text[-LARGEST_LOG:])
        return results


def last_line(output: str) -> str:
    lines = [line for line in output.splitlines() if line.strip()]
    return lines[-1][:160] if lines else "no output"


def architecture() -> list[str]:
    """Only what this GPU loads of the default list: the rest of the build would be for other machines."""
    return [f"-DRESCALED_CUDA_ARCHITECTURES={target()}"] if torch.cuda.is_available() else []


def target() -> str:
    return {8: "80-real", 9: "90a-real"}.get(torch.cuda.get_device_capability()[0], "90-virtual")


def build(job: Job) -> Row:
    tools, tree, start = environment()["PATH"], ROOT / "build" / "gpu", time.monotonic()
    if shutil.which("cmake", path=tools) is None:
        return Row("build", False, "cmake >= 3.25 is needed, found none")
    generator = ["-G", "Ninja" if shutil.which("ninja", path=tools) else "Unix Makefiles"]
    options = [f"-DTORCH_ROOT={torch.__path__[0]}", f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={ROOT / 'torch_rescaled'}"]
    configure = ["cmake", "-S", ROOT, "-B", tree, *generator, "-DRESCALED_CUDA=ON", *options, *architecture()]
    for command in (configure, ["cmake", "--build", tree, "--parallel", os.cpu_count() or 1]):
        ((status, output),) = job.run("build", command)
        if status != 0:
            errors = [line.strip()[:160] for line in output.splitlines() if "error" in line.lower()][:5]
            return Row("build", False, "see build.log", errors or [last_line(output)])
    return Row("build", True, f"{time.monotonic() - start:.0f} s, sources {', '.join(gpu_record.sources_hashes().values())}")


def instructions(job: Job) -> tuple[bool, str]:
    """Whether the instructions' results on this GPU are those that the kernels' twins are held against."""
    program, source = ROOT / "build" / "gpu" / "instructions", ROOT / "tests" / "cpp" / "instructions.cu"
    name, _, kind = target().partition("-")
    code = f"arch=compute_{name},code={'sm' if kind == 'real' else 'compute'}_{name}"
    compile_it = ["nvcc", "-std=c++17", "-O2", f"-gencode={code}", "-o", program, source]
    for command in (compile_it, [program, ROOT / "tests" / "cuda_instructions.txt"]):
        ((status, output),) = job.run("build", command, log="test.log")
        if status != 0:
            break
    return status == 0, last_line(output)


@dataclass
class Ran:
    """What ran of a family: its tests' reports, whether every process of them wrote one, and the exercise."""

    family: str
    reports: list[str]
    complete: bool
    exercise: Result

    def record(self, same: bool) -> gpu_record.Run:
        """The entry; `same`: the instructions' results are those expected."""
        status, output = self.exercise
        counts, primitives = gpu_record.outcome(self.reports, self.family)
        complete = self.complete and status in (0, 1) and "Traceback" not in output
        for name in primitives:
            lines = re.findall(rf"^\w+ .*\b{name}: .*$", output, re.MULTILINE)
            good = bool(lines) and not any(line.endswith(" FAILED") for line in lines)
            primitives[name] = primitives[name] and complete and same and self.path not in ("unknown", "plain") and good
        return {
            "family": self.family,
            "sources": self.said[2] if self.said else "unknown",
            "gpu": torch.cuda.get_device_name(),
            "capability": ".".join(map(str, torch.cuda.get_device_capability())),
            "torch": torch.__version__,
            "commit": commit(),
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "tests": counts,
            "primitives": primitives,
        }

    @property
    def said(self) -> re.Match[str] | None:  # of what was loaded, not of what lies in the tree
        return re.search(rf"^path {self.family} (.+), sources (\w+)$", self.exercise[1], re.MULTILINE)

    @property
    def path(self) -> str:
        return self.said[1] if self.said else "unknown"


def test(job: Job) -> Row:
    # addopts names options of plugins that this machine may not have.
    pytest = [sys.executable, "-m", "pytest", "-q", "-m", "gpu and not slow", "-o", "addopts=--strict-markers"]
    pytest += ["-p", "no:cacheprovider", "--tb=short"]
    groups = [("attention", arguments) for arguments in ALONE + TOGETHER] + list(OF_FAMILY.items())
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, f"{number}.xml") for number in range(len(groups))]
        commands = [[*pytest, f"--junitxml={file}", *arguments] for file, (_, arguments) in zip(files, groups, strict=True)]
        results = job.run("test", *commands[: len(ALONE)]) + job.run("test", *commands[len(ALONE) :])
        reports = [file.read_text() if file.exists() else None for file in files]
    exercises = job.run("exercise", *([sys.executable, HERE / "gpu_exercise.py", family] for family in PRIMITIVES), log="test.log")
    same, what = instructions(job)
    details = [f"not finished, or not started: {last_line(output)}" for code, output in results if code not in (0, 1, 5)]
    runs, good = gpu_record.load(), True
    for family, exercise in zip(PRIMITIVES, exercises, strict=True):
        of_family = [report for (name, _), report in zip(groups, reports, strict=True) if name == family]
        ran = Ran(family, [report for report in of_family if report is not None], None not in of_family, exercise)
        record = ran.record(same)
        runs = gpu_record.with_run(runs, record)
        counts, marks = record["tests"], record["primitives"]
        good = good and counts["failed"] == 0 and all(marks.values())
        details.append(f"{family}, path {ran.path}: {', '.join(f'{n} {what}' for what, n in counts.items())}")
        details.append("  " + ", ".join(f"{name} {'passed' if passed else 'FAILED'}" for name, passed in marks.items()))
        if ran.path == "unknown" or exercise[0] not in (0, 1):
            details.append(f"  the exercise did not end: {last_line(exercise[1])}")
    (job.out / RECORD.name).write_text(gpu_record.text_of(runs))
    total = Counter[str]()
    for run in runs[-len(PRIMITIVES) :]:
        total.update(run["tests"])
    return Row("test", good, ", ".join(f"{n} {what}" for what, n in total.items()), [*details, f"instructions: {what}"])


def sanitize(job: Job) -> Row:
    """memcheck and racecheck; where the tool or the driver refuses, that is said and is no failure."""
    tool = shutil.which("compute-sanitizer", path=environment()["PATH"])
    if tool is None:
        return Row("sanitize", True, "not available: no compute-sanitizer")
    details, good = [], True
    runs = [(name, family) for name in ("memcheck", "racecheck") for family in PRIMITIVES]
    # Without torch's caching allocator every tensor is an allocation whose ends are watched.
    watched = ["env", "PYTORCH_NO_CUDA_MEMORY_CACHING=1", tool, "--error-exitcode", 9]
    exercise = [sys.executable, HERE / "gpu_exercise.py", "--few"]
    results = job.run("sanitize", *([*watched, "--tool", name, *exercise, family] for name, family in runs))
    for (name, family), result in zip(runs, results, strict=True):
        state, passed = verdict(*result)
        details.append(f"{name}, {family}: {state}")
        good = good and passed
    return Row("sanitize", good, "small problems of every primitive", details)


def verdict(status: int | None, output: str) -> tuple[str, bool]:
    """What a run of compute-sanitizer says, and whether it may count as passed."""
    if status is None:
        return "not finished in its time", True
    if status == 0:
        return "no errors", True
    if status == 9 or re.search(r"(ERROR|RACECHECK) SUMMARY: [1-9]", output):
        return f"exit status {status}: {last_line(output)}", False
    if re.search(r"(ERROR|RACECHECK) SUMMARY: 0", output):
        return f"no errors, but exit status {status}: a result is wrong", False
    return f"not available: {last_line(output)}", True


def bench(job: Job) -> Row:
    """Attention's benchmark; with what time is left, those of the regressions that are there."""
    seconds = job.limit("bench") - 40  # the first compilations of FlexAttention take long
    command = [sys.executable, HERE / "gpu_attention.py", job.out / "bench.json", seconds]
    ((status, output),) = job.run("bench", command)
    lines = [line for line in output.splitlines() if "TF/s" in line or "left out" in line or "failed:" in line]
    failures = [] if status == 0 else [f"gpu_attention.py: {last_line(output)}"]
    files = ["bench.json"]
    for program in (HERE / f"gpu_{family}.py" for family in PRIMITIVES if family != "attention"):
        if not program.exists():
            continue
        part = "bench of a regression"
        files.append(f"{program.stem.replace('gpu', 'bench')}.json")
        seconds = max(1.0, job.limit(part) - 15)  # torch is loaded, and a case that was begun ends
        ((status, output),) = job.run(part, [sys.executable, program, job.out / files[-1], seconds], log="bench.log")
        lines += output.splitlines()
        if status != 0:
            failures.append(f"{program.name}: {last_line(output)}")
    return Row("bench", not failures, "; ".join(failures) or ", ".join(files), lines)


PARTS: dict[str, Callable[[Job], Row]] = {"build": build, "test": test, "sanitize": sanitize, "bench": bench}


def write_status(check: bool) -> int:
    page = PAGE.read_text()
    wanted = gpu_record.page_with_status(page, gpu_record.load(), gpu_record.sources_hashes())
    if check and page != wanted:
        print(f"{PAGE} does not show {RECORD}: run python benchmarks/gpu_check.py --status", file=sys.stderr)
        return 1
    if not check:
        PAGE.write_text(wanted)
    return 0


def main(command_line: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["all", *PARTS], default=os.environ.get("PART") or "all")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT") or ROOT / "gpu_results"))
    parser.add_argument("--status", action="store_true", help="write the page from the record; nothing is run")
    parser.add_argument("--check", action="store_true", help="with --status: write nothing; exit status 1 if the page differs")
    options = parser.parse_args(command_line)
    if options.status:
        return write_status(options.check)
    out: Path = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    job, rows = Job(out), list[Row]()
    for name in PARTS if options.part == "all" else [options.part]:
        if name != "build" and not torch.cuda.is_available():
            rows.append(Row(name, False, "no GPU here: nothing was checked"))
            continue
        rows.append(PARTS[name](job))
        print(table(rows[-1:]), flush=True)
        if not rows[-1].good and name == "build":
            break
    (out / "summary.json").write_text(json.dumps([vars(row) for row in rows], indent=1) + "\n")
    print(f"\n{table(rows)}\n(in {out}; environment TORCH_RESCALED_UNVERIFIED_CUDA=1)")
    return 0 if all(row.good for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
