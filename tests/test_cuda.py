# SPDX-License-Identifier: BSD-3-Clause
"""CUDA: what holds beside the numbers, on a GPU (marked gpu); and, on any machine, which path CUDA tensors take and how it is said.

The numbers are the oracle's: its tests, and the identities', take the GPU as a device.
"""

import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from helpers import KINDS, with_tools

import torch_rescaled
from torch_rescaled import attention, attention_with_normalizer

OPS = torch.ops.torch_rescaled
ROOT = Path(__file__).resolve().parents[1]
FAMILIES = ("attention", "regression", "regression_csr", "matrix_regression")  # of kernels that are verified together


def test_without_a_verified_gpu_the_plain_path_serves(capfd):
    """A fake tensor says it is on CUDA; its own dispatch, to the Meta kernels, is passed by."""
    if OPS._cuda_path(0) != "plain":
        pytest.skip("this machine's GPU takes the kernels, which would read the memory that a fake tensor lacks")
    none, settings = (None,) * 3, (0.0, False, None, "exp")
    with torch._subclasses.FakeTensorMode():
        q, v = torch.empty(2, 4, 8, device="cuda:0"), torch.empty(2, 4, 3, device="cuda:0")
        output, rows = torch.empty(2, 4, 3, device="cuda:0"), torch.empty(2, 4, device="cuda:0")
        saved = output, rows, rows
        seed = torch.empty(2, dtype=torch.int64, device="cuda:0")
        cuda = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)

        def shapes(name, *args):
            out = getattr(OPS, name).default.redispatch(cuda, *args)
            out = out if isinstance(out, tuple) else (out,)
            assert all(t.device == q.device and t.is_contiguous() for t in out)
            return [tuple(t.shape) for t in out]

        point = (q, q, v, *none)
        outputs, gradients = [(2, 4, 3), (2, 4), (2, 4)], [(2, 4, 8), (2, 4, 8), (2, 4, 3), (0,)]
        assert shapes("_attention_forward", *point, *settings) == outputs
        assert shapes("_attention_backward", output, None, None, *point, *saved, *settings, [True] * 4) == gradients
        assert shapes("_attention_jvp", q, None, None, None, *point, *saved, *settings) == outputs
        along = (q, None, None, None, output, None, None)
        assert shapes("_attention_double_backward", *along, *point, *saved, *settings, [True] * 7) == outputs + gradients
        assert shapes("_attention_dropout_mask", seed, 4, 5, 0.5) == [(2, 4, 5)]
        assert torch_rescaled.backend(q) == "plain"
    text = capfd.readouterr().err  # outside the autograd engine torch writes warnings of operators there
    assert text.count("the plain-tensor path takes their place, which is right but takes O(N M) memory") == 1  # once a family
    assert "was built without nvcc" in text or "TORCH_RESCALED_UNVERIFIED_CUDA=1 takes the kernels" in text


def test_the_library_knows_its_cuda_sources():
    command = ["cmake", "-P", ROOT / "cmake" / "cuda_sources.cmake"]
    done = subprocess.run(command, env=with_tools(), capture_output=True, text=True, check=True)
    families = {name: "" if name == "attention" else f"_{name}" for name in FAMILIES}
    info = torch_rescaled.build_info()
    found = {name: info[f"cuda_sources{suffix}"] for name, suffix in families.items()}
    assert found == dict(line.split() for line in done.stdout.splitlines()), "the library is older than the kernels' sources"
    assert all(f"cuda_verified{suffix}" in info for suffix in families.values())


def test_the_path_is_that_of_a_family():
    for family in FAMILIES:
        assert torch_rescaled.backend(torch.empty(1), family=family).startswith("cpu:")
        assert OPS._cuda_path(0, family).partition(":")[0] in ("plain", "cuda")
    assert OPS._cuda_path(0) == OPS._cuda_path(0, "attention")
    for refused in (lambda: OPS._cuda_path(0, "attentions"), lambda: torch_rescaled.backend(torch.empty(1), family="attentions")):
        with pytest.raises(ValueError, match=r"expected family '?attention"):
            refused()


def inputs(n=300, m=500, d=64, dtype=torch.float32, device="cuda"):
    return [torch.randn(2, 3, rows, d, device=device, dtype=dtype).requires_grad_() for rows in (n, m, m)]


def everything(x, kind="cosh", **options):
    """Outputs, gradients, gradients of gradients, and tangents."""

    def f(*y):
        return attention_with_normalizer(*y, kind=kind, **options)

    out = f(*x)
    first = torch.autograd.grad([o.sin().sum() for o in out], x, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), x)
    point = tuple(t.detach() for t in x)
    return [t.detach() for t in (*out, *first, *second, *torch.func.jvp(f, point, point)[1])]


def assert_equal(a, b):
    for s, t in zip(a, b, strict=True):
        assert torch.equal(s, t)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_repeats_are_bit_identical(kind, dtype):
    x = inputs(dtype=dtype)
    expected = everything(x, kind, is_causal=True)
    for _ in range(5):
        assert_equal(everything(x, kind, is_causal=True), expected)


@pytest.mark.gpu
def test_a_side_stream():
    """What the stream computes before is seen, what it computes after sees ours, and nothing waits."""
    x = inputs()
    expected = everything(x)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        delay = torch.randn(4096, 4096, device="cuda")
        for _ in range(10):
            delay = delay @ delay * 1e-3
        late = [(t.detach() + 0 * delay[0, 0].nan_to_num(0, 0, 0)).requires_grad_() for t in x]  # not before the products are done
        results = [t.clone() for t in everything(late)]
    torch.cuda.current_stream().wait_stream(side)
    assert_equal(results, expected)


@pytest.mark.gpu
def test_another_device_than_the_current_one():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    x = inputs(device="cuda:1")
    with torch.cuda.device(1):
        expected = everything(x)
    with torch.cuda.device(0):
        results = everything(x)
        assert torch.cuda.current_device() == 0
    assert all(t.device == x[0].device for t in results)
    assert_equal(results, expected)


@pytest.mark.gpu
def test_capture_in_a_cuda_graph():
    x = [t.detach() for t in inputs()]
    tangents, settings = [torch.randn_like(t) for t in x], (0.0, True, None, "sinh")

    def primitives():
        point = (*x, None, None, None)
        saved = OPS._attention_forward(*point, *settings)
        g = (saved[0], saved[1], saved[2])
        return [
            *saved, *OPS._attention_backward(*g, *point, *saved, *settings, [True] * 3 + [False]),
            *OPS._attention_jvp(*tangents, None, *point, *saved, *settings),
            *OPS._attention_double_backward(*tangents, None, *g, *point, *saved, *settings, [True] * 6 + [False]),
        ]  # fmt: skip

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        primitives()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = primitives()
    for t in x:
        t.copy_(torch.randn_like(t))
    graph.replay()
    assert_equal(captured, primitives())


@pytest.mark.gpu
@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_nothing_waits_for_the_device(dropout_p):
    x = inputs()
    everything(x, dropout_p=dropout_p)
    mode = torch.cuda.get_sync_debug_mode()
    try:
        with warnings.catch_warnings():  # that the mode is a prototype
            warnings.simplefilter("ignore")
            torch.cuda.set_sync_debug_mode("error")
        everything(x, dropout_p=dropout_p)
    finally:
        torch.cuda.set_sync_debug_mode(mode)


@pytest.mark.gpu
def test_out_of_memory_leaves_nothing_behind():
    x = inputs()
    expected = everything(x)
    large = [torch.randn(1, 64, 8192, 128, device="cuda") for _ in range(3)]
    torch.cuda.empty_cache()
    total = torch.cuda.mem_get_info()[1]
    try:
        torch.cuda.set_per_process_memory_fraction(torch.cuda.memory_reserved() / total + 1e-6)
        with pytest.raises(torch.OutOfMemoryError):
            attention(*large)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    del large
    assert_equal(everything(x), expected)


SHARED = """
import torch, torch_rescaled
x = torch.randn(3, 2, 300, 64, device="cuda")
value = torch.zeros_like(x[2])
torch.cuda.synchronize()
before = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()
for step in range(50):
    value.fill_(step)
    result = torch_rescaled.attention(x[0], x[1], value)
    torch.testing.assert_close(result, torch.full_like(result, step))
torch.cuda.synchronize()
print((before - torch.cuda.mem_get_info()[0] - torch.cuda.memory_reserved()) // 2**20)
"""


@pytest.mark.gpu
def test_the_static_runtime_shares_the_context_of_torch():
    """It reads what torch's stream writes, without a wait, and makes no context of its own: those take hundreds of MiB."""
    done = subprocess.run([sys.executable, "-c", SHARED], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 100
    devices = dict(line.split(": ", 1) for line in OPS.build_info(True).splitlines())
    assert int(devices["cuda_devices"].split()[0]) == torch.cuda.device_count()
    major, minor = torch.cuda.get_device_capability()
    assert devices["cuda_device_0"].startswith(f"{major}.{minor},")


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["newton", "lbfgs"])
def test_an_iteration_of_a_solve_waits_for_the_device_once(method):
    """Where the whole step is taken: calls of the runtime that wait, in solves that differ by three iterations."""
    torch.manual_seed(0)
    A = torch.randn(20000, 24, device="cuda")
    b = torch.softmax(A @ torch.randn(24, device="cuda") / 3, 0) * (1 + 0.3 * torch.randn(20000, device="cuda"))
    x0 = 0.1 * torch.randn(24, device="cuda")

    def waits(iterations):
        problem = torch_rescaled.Regression(A, b, form="normalized")
        activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities, acc_events=True) as profile:
            solution = torch_rescaled.solve(problem, x0, method=method, ftol=0.0, max_iterations=iterations)
        factors, models = (solution.history[:, solution.columns.index(name)] for name in ("factor", "model"))
        assert len(factors) == iterations and (factors[1:] == 1).all()
        assert method == "newton" or (models[4:] == 2).all()
        return sum(event.count for event in profile.key_averages() if "Synchronize" in event.key)

    waits(1)  # libraries are loaded
    first, last = (2, 5) if method == "newton" else (4, 7)  # the first steps of "lbfgs" are Newton's
    assert 0 < waits(last) - waits(first) <= last - first
