# SPDX-License-Identifier: BSD-3-Clause
"""`make gpu-check` on made-up results, without a GPU: the record, the page, the table, what counts as passed."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import contestants  # noqa: E402
import cuda_resources  # noqa: E402
import gpu_attention  # noqa: E402
import gpu_check  # noqa: E402
import gpu_exercise  # noqa: E402
import gpu_exercise_regressions  # noqa: E402
import gpu_record  # noqa: E402
from helpers import with_tools  # noqa: E402

ATTENTION, REGRESSION = gpu_record.PRIMITIVES["attention"], gpu_record.PRIMITIVES["regression"]
SOURCES = {"attention": "aaaa", "regression": "cccc", "regression_csr": "eeee", "matrix_regression": "dddd"}


def made_up(sources="aaaa", capability="9.0", failed=(), **facts):
    run = {"sources": sources, "gpu": "NVIDIA H100", "capability": capability, "torch": "2.11.0+cu130", "commit": "0123456789ab"}
    run |= {"date": "2030-01-02", "tests": {"passed": 9, "failed": len(failed), "skipped": 0}}
    primitives = gpu_record.PRIMITIVES[facts.get("family", "attention")]
    return run | {"primitives": {name: name not in failed for name in primitives}} | facts


def junit(*cases):
    """One test for each: None (passed), "skipped", or the message of a failure."""
    inner = {None: "", "skipped": "<skipped/>"}
    texts = [f"<testcase>{inner[c] if c in inner else f'<failure message={chr(34)}{c}{chr(34)}/>'}</testcase>" for c in cases]
    return f"<testsuites><testsuite>{''.join(texts)}</testsuite></testsuites>"


def test_the_page_shows_the_record():
    assert gpu_check.main(["--status", "--check"]) == 0


def test_a_page_that_does_not_is_noticed(monkeypatch, tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text(gpu_record.PAGE.read_text().replace("<!-- benchmarks:gpu -->", "<!-- benchmarks:gpu -->\nan H100 ran it"))
    monkeypatch.setattr(gpu_check, "PAGE", page)
    assert gpu_check.main(["--status", "--check"]) == 1
    assert "run python benchmarks/gpu_check.py --status" in capsys.readouterr().err
    assert gpu_check.main(["--status"]) == 0
    assert page.read_text() == gpu_record.PAGE.read_text()


def test_status_of_nothing_of_these_and_of_other_sources():
    text = gpu_record.status([], SOURCES)
    for name in ("attention", "regression", "regression csr", "matrix regression"):
        assert f"**No GPU has run CUDA kernels of {name} of this version**" in text
    other = gpu_record.status([made_up("bbbb"), made_up("aaaa", family="regression")], SOURCES)
    assert other.startswith(text) and "H100" not in other
    assert other.endswith("Runs of other versions of the sources in the record: 2. They verify nothing here.")


def test_status_of_each_family_that_ran():
    text = gpu_record.status([made_up(failed=["jvp"]), made_up("cccc", family="regression", failed=["rows"])], SOURCES)
    assert "| NVIDIA H100 | 9.0 | 2.11.0+cu130 | 0123456789ab | 2030-01-02 | passed | passed | failed | passed |" in text
    marks = ["failed" if name == "rows" else "passed" for name in REGRESSION]
    assert f"| 2030-01-02 | {' | '.join(marks)} |" in text and "gauss newton |\n" in text
    assert [name for name in SOURCES if f"CUDA kernels of {name.replace('_', ' ')} of this version (sources" in text] == [
        "attention", "regression",
    ]  # fmt: skip
    assert "**No GPU has run CUDA kernels of matrix regression of this version** (sources `dddd`)" in text


def test_cmake_knows_the_families():
    hashes = gpu_record.sources_hashes()
    assert set(hashes) == set(gpu_record.PRIMITIVES)
    assert len(set(hashes.values())) == len(hashes)


def test_a_new_run_replaces_that_of_the_same_sources_and_gpu():
    runs = [
        made_up(date="old"),
        made_up(capability="8.0"),
        made_up("bbbb"),
        made_up(gpu="NVIDIA H200"),
        made_up(family="regression"),
    ]
    assert gpu_record.with_run(runs, made_up(date="new", family="attention")) == [
        *runs[1:], made_up(date="new", family="attention"),
    ]  # fmt: skip
    assert json.loads(gpu_record.text_of(runs))["runs"] == runs


@pytest.mark.parametrize(
    ("message", "failed"),
    [
        ("AssertionError: jvp[0]: error 1.00e+00, bound 1.00e-06", {"jvp"}),
        ("AssertionError: forward over reverse[2]: error 1, bound 0", {"backward", "double_backward"}),
        ("RuntimeError: torch_rescaled::_attention_forward: CUDA error cudaErrorNotSupported", set(ATTENTION)),
    ],
)
def test_failures_are_assigned_to_primitives(message, failed):
    counts, passed = gpu_record.outcome([junit(None, "skipped"), junit(message)])
    assert counts == {"passed": 1, "failed": 1, "skipped": 1}
    assert {name for name, good in passed.items() if not good} == failed
    counts, passed = gpu_record.outcome([junit(None, "skipped"), junit(message)], "regression")
    assert counts["failed"] == 1 and list(passed) == list(REGRESSION) and not any(passed.values())


@pytest.mark.parametrize("family", gpu_record.PRIMITIVES)
def test_nothing_passes_without_a_test_that_passed(family):
    assert not any(gpu_record.outcome([], family)[1].values())
    assert not any(gpu_record.outcome([junit("skipped")], family)[1].values())
    assert all(gpu_record.outcome([junit(None)], family)[1].values())


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        ([], ""),
        ([made_up()], "9.0"),
        ([made_up(), made_up(capability="8.6"), made_up()], "9.0 8.6"),
        ([made_up(failed=["backward"]), made_up("bbbb", "8.0")], ""),
        ([made_up(primitives={})], ""),
        ([made_up(), made_up(gpu="NVIDIA H200", failed=["jvp"]), made_up(capability="8.0")], "8.0"),
        ([made_up(family="attention"), made_up(capability="8.0", family="regression")], "9.0"),
    ],
)
def test_the_build_reads_the_record(runs, expected, tmp_path):
    """CMake's side: the compute capabilities for which every primitive of these sources passed."""
    (tmp_path / "cmake").mkdir()
    (tmp_path / "tests").mkdir()
    (tmp_path / "csrc" / "kernels").mkdir(parents=True)
    for name in (
        "element.h",
        "host_device.h",
        "matrices.h",
        "phi.h",
        "program.h",
        "random.h",
        "attention/parameters.h",
        "attention/view.h",
        "matrix_regression/parameters.h",
        "regression/csr.h",
        "regression/parameters.h",
        "regression/sums.h",
    ):
        file = tmp_path / "csrc" / "kernels" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text("")
    functions = tmp_path / "cmake" / "cuda_sources.cmake"
    functions.write_text((ROOT / "cmake" / "cuda_sources.cmake").read_text())
    (tmp_path / "tests" / "gpu_verified.json").write_text(gpu_record.text_of(runs))
    script = tmp_path / "script.cmake"
    script.write_text(
        f'include({functions})\ncuda_verified_capabilities(attention aaaa found)\nmessage(STATUS "found: [${{found}}]")\n'
    )
    done = subprocess.run(["cmake", "-P", script], env=with_tools(), capture_output=True, text=True)
    assert f"found: [{expected}]" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("status", "output", "good"),
    [
        (0, "ERROR SUMMARY: 0 errors", True),
        (None, "", True),
        (1, "Error: the driver refuses", True),
        (9, "ERROR SUMMARY: 3 errors", False),
        (1, "RACECHECK SUMMARY: 2 hazards displayed", False),
        (1, "FAILED\nERROR SUMMARY: 0 errors", False),
    ],
)
def test_what_the_sanitizer_says(status, output, good):
    assert gpu_check.verdict(status, output)[1] == good


def test_table_and_figures():
    rows = [gpu_check.Row("build", True, "12 s"), gpu_check.Row("test", False, "1 failed", ["jvp FAILED"])]
    assert gpu_check.table(rows).splitlines() == ["build     ok      12 s", "test      FAILED  1 failed", " " * 18 + "jvp FAILED"]
    case = contestants.Case("forward", dtype="bfloat16", head_size=128, length=4096, heads=16)
    entry = {"piece": "forward", "kind": "exp", "is_causal": False, "head_size": 128, "length": 4096, "errors": {}}
    entry |= gpu_attention.figures(case, {"torch_rescaled": [1e-3] * 3, "sdpa cudnn": [5e-4] * 3})
    assert entry["contestants"]["torch_rescaled"]["tflops"] == pytest.approx(137.4, abs=0.1)
    assert gpu_attention.line(entry, 687.0) == "forward exp full D 128 N 4096: 137 TF/s (20% of a product); 0.50x sdpa cudnn"
    failed = {**entry, **gpu_attention.figures(case, {}), "errors": {"torch_rescaled": "out of memory"}}
    assert gpu_attention.line(failed, 687.0).endswith("failed: out of memory")


def test_a_command_is_logged_and_stopped_at_its_limit(tmp_path, monkeypatch):
    monkeypatch.setitem(gpu_check.LIMITS, "test", 10)
    job = gpu_check.Job(tmp_path)
    one, other = job.run("test", [sys.executable, "-c", "print(1)"], [sys.executable, "-c", "raise SystemExit(3)"])
    assert one == (0, "1\n") and other[0] == 3
    monkeypatch.setitem(gpu_check.LIMITS, "test", 0.5)
    job.end = 1e18
    monkeypatch.setattr(job, "limit", lambda part: 0.5)
    assert job.run("test", [sys.executable, "-c", "import time; time.sleep(60)"])[0][0] is None
    log = (tmp_path / "test.log").read_text()
    assert "[exit status 3]" in log and "[exit status None]" in log


def exercise_of(family):
    lines = [f"path {family} cuda:9.0, sources {SOURCES[family]}"]
    return "\n".join([*lines, *(f"float32 exp {name}: 1e-07" for name in gpu_record.PRIMITIVES[family])]) + "\n"


@pytest.mark.parametrize("family", gpu_record.PRIMITIVES)
@pytest.mark.parametrize(
    ("status", "change", "failed"),
    [
        (0, lambda text: text, "none"),
        (1, lambda text: text + "float32 sinh {name}: nan FAILED\n", "one"),
        (0, lambda text: text.replace("exp {name}: 1e-07", ""), "one"),
        (1, lambda text: text + "Traceback\nRuntimeError: CUDA error\n", "all"),
        (1, lambda text: text.replace("cuda:9.0", "plain"), "all"),
        (None, lambda text: text, "all"),
        (1, lambda text: "ImportError\n", "all"),
    ],
)
def test_the_record_of_a_run(status, change, failed, family, tmp_path, monkeypatch):
    """The tests pass; what is recorded is what the exercise says was loaded and taken, and found wrong, of this family alone."""
    one = gpu_record.PRIMITIVES[family][2]
    given = change(exercise_of(family).replace(f" {one}:", " {name}:")).replace("{name}", one)

    def run(job, part, *commands, log=""):
        for command in commands:
            for option in command:
                if str(option).startswith("--junitxml="):
                    Path(str(option).partition("=")[2]).write_text(junit(None, "skipped"))
        if part == "exercise":
            return [(status, given) if command[-1] == family else (0, exercise_of(command[-1])) for command in commands]
        return [(0, "")] * len(commands)

    monkeypatch.setattr(gpu_check.Job, "run", run)
    monkeypatch.setattr(gpu_check.torch.cuda, "get_device_name", lambda: "NVIDIA H100")
    monkeypatch.setattr(gpu_check.torch.cuda, "get_device_capability", lambda: (9, 0))
    row = gpu_check.test(gpu_check.Job(tmp_path))
    records = {run["family"]: run for run in json.loads((tmp_path / "gpu_verified.json").read_text())["runs"][-len(SOURCES) :]}
    assert list(records) == list(gpu_record.PRIMITIVES)
    for name, record in records.items():
        known = name != family or "Import" not in given
        assert record["sources"] == (SOURCES[name] if known else "unknown") and record["capability"] == "9.0"
        wrong = {primitive for primitive, passed in record["primitives"].items() if not passed}
        expected = {"none": [], "one": [one], "all": gpu_record.PRIMITIVES[name]}[failed] if name == family else []
        assert wrong == set(expected)
    assert row.good == (failed == "none")
    assert row.text == "8 passed, 0 failed, 8 skipped"


@pytest.mark.parametrize("gone", ["tests/test_solve.py", gpu_check.MASKING])
def test_a_family_whose_tests_did_not_end_is_not_verified(gone, tmp_path, monkeypatch):
    def run(job, part, *commands, log=""):
        results = []
        for command in map(list, commands):
            lost = gone in map(str, command)
            for option in command:
                if str(option).startswith("--junitxml=") and not lost:
                    Path(str(option).partition("=")[2]).write_text(junit(None))
            results.append((0, exercise_of(command[-1])) if part == "exercise" else (None if lost else 5, "no report"))
        return results

    monkeypatch.setattr(gpu_check.Job, "run", run)
    monkeypatch.setattr(gpu_check, "instructions", lambda job: (True, "ok"))
    monkeypatch.setattr(gpu_check.torch.cuda, "get_device_name", lambda: "NVIDIA H100")
    monkeypatch.setattr(gpu_check.torch.cuda, "get_device_capability", lambda: (9, 0))
    row = gpu_check.test(gpu_check.Job(tmp_path))
    runs = json.loads((tmp_path / "gpu_verified.json").read_text())["runs"][-len(SOURCES) :]
    lost = "regression" if "solve" in gone else "attention"
    assert [run["family"] for run in runs if not all(run["primitives"].values())] == [lost]
    assert sum("not finished, or not started" in detail for detail in row.details) == 1


def test_every_test_file_is_run_once():
    files = {f"tests/{file.name}" for file in (ROOT / "tests").glob("test_*.py")}
    ignored = {argument.partition("=")[2] for argument in gpu_check.TOGETHER[-1] if "=" in argument}
    named = [file for group in (*gpu_check.ALONE, *gpu_check.OF_FAMILY.values()) for file in group]
    assert ignored == {*named, gpu_check.ORACLE, gpu_check.MASKING} and ignored <= files and len(set(named)) == len(named)


class Plain:
    """Plain-tensor formulas, on the CPU, in the place of a GPU's kernels."""

    def __getattr__(self, name):
        operator = getattr(torch.ops.torch_rescaled, name).default
        if name == "_regression_statistics":
            return operator
        keys = torch._C.DispatchKeySet(torch._C.DispatchKey.XLA)  # for which there is no kernel
        return lambda *arguments: operator.redispatch(keys, *arguments)


def test_the_exercise_touches_every_primitive_and_sees_what_is_wrong(monkeypatch, capsys):
    def lines():
        said, found = {}, None
        for line in capsys.readouterr().out.splitlines():
            if line.startswith("path "):
                found = said.setdefault(line.split()[1], [])
            else:
                found.append(line)
        return said

    assert gpu_exercise.main(["--few"], "cpu") == 0
    said = lines()
    for family, names in gpu_record.PRIMITIVES.items():
        assert {line.split()[-2].removesuffix(":") for line in said[family]} == set(names)
    # What begins with a point's numbers has their scale, which the formulas of the matrix regression do not ask for.
    monkeypatch.setattr(gpu_exercise_regressions, "ours", Plain())
    assert gpu_exercise.main(["--few", "regression", "matrix_regression"], "cpu") == 1
    scaled = {"regression": set(), "matrix_regression": {"gradient", "moments", "product", "tangents", "gradient_tangent"}}
    for family, found in lines().items():
        failed = {line.split()[-3].removesuffix(":") for line in found if line.endswith("FAILED") and " normalized " not in line}
        assert failed == scaled[family]
        assert not [line for line in found if line.endswith("FAILED") and " normalized " in line]


@pytest.mark.parametrize("there", [False, True])
def test_the_benchmarks_of_the_regressions_run_where_they_are(there, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, "HERE", tmp_path)
    for name in ("regression", "regression_csr", "matrix_regression") if there else ():
        (tmp_path / f"gpu_{name}.py").write_text("")
    asked = []

    def run(job, part, *commands, log=""):
        ((_, program, output, seconds),) = commands
        asked.append((program.name, output.name))
        assert 0 < seconds < gpu_check.LIMITS[part]
        return [(0, f"{program.stem}: 5 TF/s\nanother line")]

    monkeypatch.setattr(gpu_check.Job, "run", run)
    row = gpu_check.bench(gpu_check.Job(tmp_path))
    names = ("regression", "regression_csr", "matrix_regression")
    others = [(f"gpu_{name}.py", f"bench_{name}.json") for name in names]
    assert row.good and asked == [("gpu_attention.py", "bench.json"), *(others if there else ())]
    assert row.details[0] == "gpu_attention: 5 TF/s" and len(row.details) == (7 if there else 1)


def test_without_a_gpu_that_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_check.torch.cuda, "is_available", lambda: False)
    assert gpu_check.main(["--part", "test", "--out", str(tmp_path)]) == 1
    assert "no GPU here: nothing was checked" in capsys.readouterr().out


def test_resources_are_read_from_a_build():
    log = """[3/9] Building CUDA object forward.cu.o
ptxas info    : Compiling entry function '_Z4walkv' for 'sm_90a'
ptxas info    : Function properties for _Z4walkv
    392 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 253 registers, used 1 barriers, 392 bytes cumulative stack size
ptxas info    : Compiling entry function '_Z5mergev' for 'sm_80'
ptxas info    : Function properties for _Z5mergev
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 24 registers, used 0 barriers
"""
    assert cuda_resources.resources(log) == [("_Z4walkv", "sm_90a", 253, 392, 12), ("_Z5mergev", "sm_80", 24, 0, 0)]


@pytest.mark.skipif(shutil.which("c++filt") is None, reason="needs c++filt")
def test_kernels_have_readable_names():
    name = "_ZN8rescaled12_GLOBAL__N_18jvp_walkIfLNS_5KindsE0ELb1EEEvNS_19AttentionParametersENS_4PlanE"
    assert cuda_resources.readable([name]) == ["jvp_walk<float, (Kinds)0, true>"]
