# SPDX-License-Identifier: BSD-3-Clause
import hypothesis
import pytest
import torch

hypothesis.settings.register_profile("default", deadline=None, derandomize=True, max_examples=40)
hypothesis.settings.load_profile("default")


@pytest.fixture(autouse=True)
def _fixed_state():
    """The same random numbers and threads for every test, whatever ran before."""
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
