# SPDX-License-Identifier: BSD-3-Clause
"""The benchmark runs, its results say what they measured, and the report shows them. No test asserts a time."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import torch_rescaled

ROOT = Path(__file__).resolve().parents[1]
UNITS = {"forward": 2, "backward": 5, "jvp": 6, "double_backward": 16}
LENGTH, HEAD_SIZE, MEMORY_LENGTHS = 32, 8, [64, 128]


def run(program: str, *options: object) -> subprocess.CompletedProcess[str]:
    package = str(Path(torch_rescaled.__file__).parents[1])
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    command = [sys.executable, str(ROOT / "benchmarks" / program), *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONPATH": path})


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("benchmarks") / "attention.json"
    sizes = ["--lengths", LENGTH, "--head-sizes", HEAD_SIZE, "--memory-lengths", *MEMORY_LENGTHS]
    choice = ["--kinds", "exp", "cosh", "--masks", "full", "causal", "--seconds", 0]
    done = run("attention.py", "--quick", *sizes, *choice, "--output", output)
    assert done.returncode == 0, done.stdout + done.stderr
    return output


@pytest.fixture()
def readme(tmp_path: Path) -> Path:
    file = tmp_path / "README.md"
    file.write_text("before\n\n<!-- benchmarks:attention -->\nold\n<!-- /benchmarks:attention -->\n\nafter\n")
    return file


def test_results_say_where_they_come_from(results: Path) -> None:
    result = json.loads(results.read_text())
    assert result["schema"] == 1 and result["benchmark"] == "attention"
    assert result["machine"]["cpu"] and result["machine"]["processors"] >= 1
    assert result["isa"] in ("baseline", "avx2", "avx512", "avx512_bf16", "amx_bf16")
    assert re.fullmatch(r"unknown|[0-9a-f]{12}(-changed)?", result["commit"])
    assert re.fullmatch(r"\d{4}-\d{2}-\d{2}", result["date"])
    assert all(set(result["peak_gflops"]) == {"1", "2"} and peak > 0 for peak in result["peak_gflops"].values())


def test_every_piece_is_timed_against_its_peer(results: Path) -> None:
    timings = json.loads(results.read_text())["timings"]
    seen = {(t["piece"], t["kind"], t["is_causal"], t["threads"]) for t in timings}
    wanted = {(p, k, c, n) for p in UNITS for k in ("exp", "cosh") for c in (False, True) for n in (1, 2)}
    assert seen == wanted and len(timings) == len(wanted)
    for timing in timings:
        peer = "sdpa flash" if timing["piece"] in ("forward", "backward") else "sdpa math"
        figures = timing["contestants"]
        assert {"torch_rescaled", "torch_rescaled primitive", peer} <= set(figures)
        flop = UNITS[timing["piece"]] * 2 * LENGTH**2 * HEAD_SIZE * (0.5 if timing["is_causal"] else 1)
        for name, figure in figures.items():
            assert figure["repeats"] >= 5
            assert figure["lower_quartile"] <= figure["seconds"] <= figure["upper_quartile"]
            assert figure["gflops"] * figure["seconds"] * 1e9 == pytest.approx(flop)
            if name != "torch_rescaled":
                expected = figure["seconds"] / figures["torch_rescaled"]["seconds"]
                assert timing["ratios"][name] == pytest.approx(expected)


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_the_higher_of_two_peaks_holds() -> None:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from attention import hold_against_peak

    timings = [{"threads": n, "contestants": {"ours": {"gflops": 50.0, "of_peak": 0.0}, "half": {"gflops": 50.0}}} for n in (1, 2)]
    peak = {"1": 100.0, "2": 80.0}
    hold_against_peak(peak, {"1": 90.0, "2": 200.0}, timings)
    assert peak == {"1": 100.0, "2": 200.0}
    assert [t["contestants"]["ours"]["of_peak"] for t in timings] == [0.5, 0.25]
    assert "of_peak" not in timings[0]["contestants"]["half"]


def test_memory_is_measured_for_every_piece(results: Path) -> None:
    memory = json.loads(results.read_text())["memory"]
    first_order = {"torch_rescaled", "sdpa flash", "sdpa math"}
    wanted = {
        (piece, contestant, length)
        for piece in UNITS
        for contestant in (first_order if piece in ("forward", "backward") else first_order - {"sdpa flash"})
        for length in MEMORY_LENGTHS
    }
    assert {(m["piece"], m["contestant"], m["length"]) for m in memory} == wanted
    assert all(m["peak_bytes"] >= 0 for m in memory)


def test_report_round_trip(results: Path, readme: Path) -> None:
    files = ["--results", results, "--page", readme]
    assert run("report.py", *files, "--check").returncode == 1
    assert readme.read_text().count("old") == 1  # --check writes nothing

    assert run("report.py", *files).returncode == 0
    text = readme.read_text()
    assert text.startswith("before\n\n<!-- benchmarks:attention -->\n")
    assert text.endswith("\n<!-- /benchmarks:attention -->\n\nafter\n")
    result = json.loads(results.read_text())
    assert result["machine"]["cpu"] in text and result["commit"] in text and "old" not in text
    for timing in result["timings"]:
        peer = "sdpa flash" if timing["piece"] in ("forward", "backward") else "sdpa math"
        assert f"{timing['ratios'][peer]:.2f}x" in text

    assert run("report.py", *files, "--check").returncode == 0
    assert run("report.py", *files).returncode == 0
    assert readme.read_text() == text


def test_check_notices_other_results(results: Path, readme: Path, tmp_path: Path) -> None:
    assert run("report.py", "--results", results, "--page", readme).returncode == 0
    result = json.loads(results.read_text())
    result["timings"][0]["ratios"] = dict.fromkeys(result["timings"][0]["ratios"], 99.5)
    other = tmp_path / "other.json"
    other.write_text(json.dumps(result))
    done = run("report.py", "--results", other, "--page", readme, "--check")
    assert done.returncode == 1
    assert "python benchmarks/report.py" in done.stderr


def test_a_readme_without_markers_is_refused(results: Path, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("no place for a table\n")
    done = run("report.py", "--results", results, "--page", readme)
    assert done.returncode == 1
    assert "expected the markers" in done.stderr
    assert readme.read_text() == "no place for a table\n"


def test_the_readme_shows_the_recorded_results() -> None:
    done = run("report.py", "--check")
    assert done.returncode == 0, done.stderr


def test_curvature_products_agree_whatever_the_attention() -> None:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    curvature = pytest.importorskip("curvature")
    cases = [curvature.Case(attention=a, batch=1, length=16, width=16, depth=1, heads=2) for a in ("fused", "math")]
    listed = [c for case in cases for c in curvature.contestants(case)]
    assert [c.name.partition(";")[0] for c in listed] == 2 * list(curvature.PRODUCTS)
    curvature.agree(listed)


def test_optimizers_are_counted_by_what_they_call(tmp_path: Path) -> None:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    optimizers = pytest.importorskip("optimizers", reason="needs the example's packages")
    run_of = optimizers.train("adamw", 1e-2, 1, optimizers.read_standard_library(), tmp_path)
    assert run_of["calls"] == {"loss": 0, "gradient": 1, "product": 0}
    (step, loss, flops, seconds), *others = run_of["points"]
    assert step == 1 and 3 < loss < 7 and flops > 1e9 and seconds > 0 and not others
    worse = {**run_of, "rate": 1.0, "points": [[1, loss + 1, flops, seconds]]}
    assert optimizers.best_runs([worse, run_of]) == [run_of]


def test_map_solvers_are_held_to_the_best_loss_and_shown(tmp_path: Path) -> None:
    output, page = tmp_path / "map_solvers.json", tmp_path / "page.md"
    done = run("map_solvers.py", "--quick", "--repeats", 1, "--output", output)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(output.read_text())
    assert len(result["cases"]) == 3
    for case in result["cases"]:
        assert set(case["contestants"]) == {"torch_rescaled", "Adam", "LBFGS", "Gauss-Newton, CG"}
        entries = [entry for settings in case["contestants"].values() for entry in settings.values()]
        assert min(entry["excess"] for entry in entries) == 0 and case["best"] > 0
        for entry in entries:
            assert (entry["seconds_to"]["1e-06"] is None) == (entry["excess"] > 1e-6)
    page.write_text("<!-- benchmarks:map_solvers -->\n<!-- /benchmarks:map_solvers -->\n")
    assert run("report.py", "--results", output, "--page", page).returncode == 0
    text = page.read_text()
    assert all(f"| {case['case']} | {name}" in text for case in result["cases"] for name in case["contestants"])


def test_sampled_hessians_are_measured_and_solves_agree(tmp_path: Path) -> None:
    output = tmp_path / "sampled.json"
    done = run("sampled.py", "--quick", "--repeats", 1, "--output", output)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(output.read_text())
    errors = {(e["rows"], e["spread"], e["sampling"], e["per_column"]): e["error"] for e in result["spectral"]}
    assert len(errors) == 3 * 4 * 2
    assert errors["alike", 2.0, "uniform", 40] > 3 * errors["alike", 2.0, "leverage", 40]
    for case in result["solves"]:
        assert set(case["methods"]) == {"newton", "lbfgs", "sampled", "cg"} and case["auto"]
        losses = [m["log_loss"] for m in case["methods"].values() if m["status"] in ("LOSS", "GRADIENT", "FLAT", "STEP")]
        assert len(losses) == 4 and max(losses) - min(losses) < 1e-8


def test_a_sparse_regression_is_timed_beside_its_peers_and_shown(tmp_path: Path) -> None:
    pytest.importorskip("scipy")
    output, page = tmp_path / "regression_csr.json", tmp_path / "page.md"
    done = run("regression_csr.py", "--quick", "--nonzeros", 20_000, "--output", output)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(output.read_text())
    assert [(t["dtype"], t["index"], t["threads"]) for t in result["timings"]] == [("float32", "int32", n) for n in (1, 2)]
    for timing in result["timings"]:
        pieces = timing["pieces"]
        assert list(pieces) == ["loss and gradient", "plain form", "Hessian product", "A v"]
        assert all({"torch_rescaled", "scipy", "torch"} <= set(figures) for figures in pieces.values())
        assert "torch, A.t()" in pieces["loss and gradient"]
    for found in result["scaling"]:
        ns = [figure["ns"] for figure in found["sizes"].values()]
        assert len(ns) == 2 and found["flatness"] == pytest.approx(max(ns) / min(ns))
    page.write_text("<!-- benchmarks:regression_csr -->\n<!-- /benchmarks:regression_csr -->\n")
    assert run("report.py", "--results", output, "--page", page).returncode == 0
    text = page.read_text()
    assert "| 10 | 1000 | float32, int32 | torch_rescaled, ns |" in text and f"{result['scaling'][0]['flatness']:.2f} |" in text
