# SPDX-License-Identifier: BSD-3-Clause
"""`make gpu-check` on made-up results, without a GPU: the record, the page, the table, what counts as passed."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import contestants  # noqa: E402
import cuda_resources  # noqa: E402
import gpu_attention  # noqa: E402
import gpu_check  # noqa: E402
import gpu_record  # noqa: E402
from helpers import with_tools  # noqa: E402


def made_up(sources="aaaa", capability="9.0", failed=(), **facts):
    run = {"sources": sources, "gpu": "NVIDIA H100", "capability": capability, "torch": "2.11.0+cu130", "commit": "0123456789ab"}
    run |= {"date": "2030-01-02", "tests": {"passed": 9, "failed": len(failed), "skipped": 0}}
    return run | {"primitives": {name: name not in failed for name in gpu_record.PRIMITIVES}} | facts


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
    assert "**No GPU has run the CUDA kernels of this version:**" in gpu_record.status([], "aaaa")
    other = gpu_record.status([made_up("bbbb")], "aaaa")
    assert "No GPU has run" in other and "Runs of other versions of the sources in the record: 1." in other and "H100" not in other
    text = gpu_record.status([made_up(failed=["jvp"])], "aaaa")
    assert "| NVIDIA H100 | 9.0 | 2.11.0+cu130 | 0123456789ab | 2030-01-02 | passed | passed | failed | passed |" in text


def test_a_new_run_replaces_that_of_the_same_sources_and_capability():
    runs = [made_up(date="old"), made_up(capability="8.0"), made_up("bbbb")]
    assert gpu_record.with_run(runs, made_up(date="new")) == [*runs[1:], made_up(date="new")]
    assert json.loads(gpu_record.text_of(runs))["runs"] == runs


@pytest.mark.parametrize(
    ("message", "failed"),
    [
        ("AssertionError: jvp[0]: error 1.00e+00, bound 1.00e-06", {"jvp"}),
        ("AssertionError: forward over reverse[2]: error 1, bound 0", {"backward", "double_backward"}),
        ("RuntimeError: torch_rescaled::_attention_forward: CUDA error cudaErrorNotSupported", set(gpu_record.PRIMITIVES)),
    ],
)
def test_failures_are_assigned_to_primitives(message, failed):
    counts, passed = gpu_record.outcome([junit(None, "skipped"), junit(message)])
    assert counts == {"passed": 1, "failed": 1, "skipped": 1}
    assert {name for name, good in passed.items() if not good} == failed


def test_nothing_passes_without_a_test_that_passed():
    assert not any(gpu_record.outcome([])[1].values())
    assert not any(gpu_record.outcome([junit("skipped")])[1].values())
    assert all(gpu_record.outcome([junit(None)])[1].values())


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        ([], ""),
        ([made_up()], "9.0"),
        ([made_up(), made_up(capability="8.6"), made_up()], "9.0 8.6"),
        ([made_up(failed=["backward"]), made_up("bbbb", "8.0")], ""),
        ([made_up(primitives={})], ""),
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
    ):
        file = tmp_path / "csrc" / "kernels" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text("")
    functions = tmp_path / "cmake" / "cuda_sources.cmake"
    functions.write_text((ROOT / "cmake" / "cuda_sources.cmake").read_text())
    (tmp_path / "tests" / "gpu_verified.json").write_text(gpu_record.text_of(runs))
    script = tmp_path / "script.cmake"
    script.write_text(f'include({functions})\ncuda_verified_capabilities(aaaa found)\nmessage(STATUS "found: [${{found}}]")\n')
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


EXERCISE = "path cuda:9.0, sources aaaa\nfloat32 exp forward: 1e-07\nfloat32 exp jvp: 1e-07\n"


@pytest.mark.parametrize(
    ("status", "exercise", "failed"),
    [
        (0, EXERCISE, set()),
        (1, EXERCISE + "float32 sinh jvp: nan FAILED\n", {"jvp"}),
        (1, EXERCISE + "Traceback\nRuntimeError: CUDA error\n", set(gpu_record.PRIMITIVES)),
        (1, EXERCISE.replace("cuda:9.0", "plain"), set(gpu_record.PRIMITIVES)),
        (None, EXERCISE, set(gpu_record.PRIMITIVES)),
        (1, "ImportError\n", set(gpu_record.PRIMITIVES)),
    ],
)
def test_the_record_of_a_run(status, exercise, failed, tmp_path, monkeypatch):
    """The tests pass; what is recorded is what the exercise says was loaded and taken, and found wrong."""

    def run(job, part, *commands, log=""):
        for command in commands:
            for option in command:
                if str(option).startswith("--junitxml="):
                    Path(str(option).partition("=")[2]).write_text(junit(None, "skipped"))
        return [(status, exercise)] if part == "sanitize" else [(0, "")] * len(commands)

    monkeypatch.setattr(gpu_check.Job, "run", run)
    monkeypatch.setattr(gpu_check.torch.cuda, "get_device_name", lambda: "NVIDIA H100")
    monkeypatch.setattr(gpu_check.torch.cuda, "get_device_capability", lambda: (9, 0))
    row = gpu_check.test(gpu_check.Job(tmp_path))
    record = json.loads((tmp_path / "gpu_verified.json").read_text())["runs"][-1]
    assert record["sources"] == ("unknown" if "Import" in exercise else "aaaa") and record["capability"] == "9.0"
    assert {name for name, passed in record["primitives"].items() if not passed} == failed
    assert row.good == (not failed)


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
