# SPDX-License-Identifier: BSD-3-Clause
import hypothesis
import pytest
import torch

hypothesis.settings.register_profile("default", deadline=None, derandomize=True, max_examples=40)
hypothesis.settings.load_profile("default")


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")


@pytest.fixture(autouse=True)
def _fixed_state():
    """The same random numbers and threads for every test, whatever ran before."""
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    """Where the operators run; what they are held against is computed on the CPU."""
    return request.param


@pytest.fixture
def on_device(device):
    """For tests that make their tensors without naming a device: they are made there."""
    if device != "cpu":
        torch.set_default_device(device)
    yield
    if device != "cpu":
        torch.set_default_device(None)
