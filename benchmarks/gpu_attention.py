# SPDX-License-Identifier: BSD-3-Clause
"""Attention forward, backward, JVP and double backward on one GPU against cuDNN, flash, math and FlexAttention.

Interleaved, timed by CUDA events, medians; the rate of a large matrix product is measured in the same run. Stops in time and says
what it left out. Run by benchmarks/gpu_check.py, or alone: python benchmarks/gpu_attention.py OUTPUT.json [SECONDS]
"""

import functools
import itertools
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from contestants import OURS, PIECES, UNITS, Attention, Case, Data
from timing import Contestant, commit, summary, write_json
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

import torch_rescaled

BACKENDS = {
    "sdpa cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa flash": SDPBackend.FLASH_ATTENTION,
    "sdpa math": SDPBackend.MATH,
}
FLEX = "flex"
FIRST_ORDER = ("forward", "backward")
ROUNDS = 7


def grid() -> list[Case]:
    """exp with every peer, most telling first; then the other kinds, which have none."""
    sizes = dict(dtype="bfloat16", heads=16, length=4096)
    exp = [
        Case(piece, is_causal=is_causal, head_size=head_size, **sizes)
        for head_size, is_causal, piece in itertools.product((128, 64), (False, True), UNITS)
    ]
    other = [Case(piece, kind=kind, head_size=128, **sizes) for kind, piece in itertools.product(("cosh", "signed"), UNITS)]
    long = [Case(piece, **{**sizes, "length": 16384, "heads": 4}, head_size=128) for piece in FIRST_ORDER]
    return exp[:8] + other + exp[8:] + long


def on(device: str, data: Data) -> Data:
    def move(tensors: tuple[Tensor, ...]) -> Any:
        return tuple(t.to(device) for t in tensors)

    return Data(move(data.point), data.cotangent.to(device), move(data.tangents))


@functools.lru_cache(maxsize=1)
def flex(case: Case) -> Attention:
    """FlexAttention, compiled for this case alone: torch gives up on a function compiled too often."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    torch.compiler.reset()
    compiled = torch.compile(flex_attention, dynamic=False)
    mask = None
    if case.is_causal:
        mask = create_block_mask(lambda b, h, i, j: i >= j, None, None, case.length, case.length, device="cuda")
    return lambda query, key, value: compiled(query, key, value, block_mask=mask)


def contestants(case: Case, data: Data) -> list[Contestant]:
    piece = PIECES[case.piece]

    def ours(*point: Tensor) -> Tensor:
        return torch_rescaled.attention(*point, is_causal=case.is_causal, kind=case.kind)

    def theirs(*point: Tensor) -> Tensor:
        return scaled_dot_product_attention(*point, is_causal=case.is_causal)

    listed = [Contestant(OURS, lambda: piece(ours, data))]
    if case.kind != "exp":
        return listed
    for name, backend in BACKENDS.items():
        if case.piece in FIRST_ORDER or name == "sdpa math":  # the fused ones have neither a JVP nor a double backward
            listed.append(Contestant(name, lambda: piece(theirs, data), lambda backend=backend: sdpa_kernel(backend)))
    if case.piece in FIRST_ORDER:
        listed.append(Contestant(FLEX, lambda: piece(flex(case), data)))
    return listed


def timed(contestant: Contestant) -> float:
    """Seconds on the GPU of the timed piece."""
    with contestant.context():
        piece = contestant.prepare()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        torch.cuda._sleep(2_000_000)  # a millisecond, in which the CPU gets ahead: launches are not what is timed
        start.record()
        piece()
        end.record()
        torch.cuda.synchronize()
    seconds: float = start.elapsed_time(end) / 1e3
    return seconds


def attempt(contestant: Contestant, errors: dict[str, str]) -> bool:
    """Whether it runs here; if not, its error is part of the result."""
    try:
        for _ in range(2):
            timed(contestant)
    except Exception as error:  # whatever PyTorch raises for a backend that does not serve
        errors[contestant.name] = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        torch.cuda.empty_cache()
        return False
    return True


def time_case(case: Case) -> dict[str, Any]:
    errors: dict[str, str] = {}
    data = on("cuda", Data.of(case))
    listed = [c for c in contestants(case, data) if attempt(c, errors)]
    samples: dict[str, list[float]] = {c.name: [] for c in listed}
    for turn in range(ROUNDS):
        for contestant in listed[turn % max(1, len(listed)) :] + listed[: turn % max(1, len(listed))]:
            samples[contestant.name].append(timed(contestant))
    return {**asdict(case), **figures(case, samples), "errors": errors}


def figures(case: Case, samples: dict[str, list[float]]) -> dict[str, Any]:
    """Medians, rates on the standard count of flop, and how often faster ours is than each."""
    by_name = {name: summary(seconds) for name, seconds in samples.items()}
    for figure in by_name.values():
        figure["tflops"] = case.flop / figure["seconds"] / 1e12
    ours = by_name.get(OURS)
    ratios = {name: f["seconds"] / ours["seconds"] for name, f in by_name.items() if name != OURS} if ours else {}
    return {"contestants": by_name, "ratios": ratios}


def header(family: str) -> dict[str, Any]:
    """What ran on which GPU, of a family's results."""
    return {
        "schema": 1,
        "benchmark": f"{family}_gpu",
        "gpu": torch.cuda.get_device_name(),
        "path": torch_rescaled.backend(torch.empty(1, 1, device="cuda"), family=family),
        "torch": torch.__version__,
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def matmul_tflops(size: int = 8192) -> float:
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product: Callable[[], tuple[Tensor, ...]] = lambda: (a @ b,)  # noqa: E731
    contestant = Contestant("matmul", lambda: product)
    return 2 * size**3 / statistics.median([timed(contestant) for _ in range(12)][2:]) / 1e12


def line(entry: dict[str, Any], peak: float) -> str:
    """One line of the table."""
    ours = entry["contestants"].get(OURS)
    what = (
        f"{entry['piece']} {entry['kind']} {'causal' if entry['is_causal'] else 'full'} D {entry['head_size']} N {entry['length']}"
    )
    if ours is None:
        return f"{what}: failed: {entry['errors'].get(OURS, 'no result')}"
    ratios = ", ".join(f"{ratio:.2f}x {name}" for name, ratio in entry["ratios"].items())
    return f"{what}: {ours['tflops']:.0f} TF/s ({ours['tflops'] / peak:.0%} of a product){'; ' if ratios else ''}{ratios}"


def main(arguments: list[str]) -> int:
    output, seconds = Path(arguments[0]), float(arguments[1]) if len(arguments) > 1 else 150.0
    if not torch.cuda.is_available():
        print("no GPU here: nothing was measured")
        return 1
    start, cases = time.monotonic(), grid()
    result = {**header("attention"), "matmul_tflops": matmul_tflops(), "timings": [], "left_out": []}
    print(
        f"{result['gpu']}, torch {result['torch']}, path {result['path']}, product {result['matmul_tflops']:.0f} TF/s", flush=True
    )
    for case in cases:
        if time.monotonic() - start > seconds:
            result["left_out"].append(asdict(case))
            continue
        result["timings"].append(time_case(case))
        torch.cuda.empty_cache()
        print(line(result["timings"][-1], result["matmul_tflops"]), flush=True)
        write_json(output, result)
    write_json(output, result)
    if result["left_out"]:
        print(f"{len(result['left_out'])} cases left out: the time was over")
    return 0 if all(OURS in entry["contestants"] for entry in result["timings"]) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
