# SPDX-License-Identifier: BSD-3-Clause
"""Pictures, where matplotlib is installed."""

from typing import Any

import torch
from matplotlib import pyplot
from torch import Tensor


def plot_history(column: dict[str, Tensor], cost: str, title: str, axes: Any = None) -> Any:
    """Loss above the best, of the last form, and relative gradient over the column of the work done."""
    axes = pyplot.subplots()[1] if axes is None else axes
    last = column["form"] == column["form"][-1:]
    log_loss = column["log_loss"][last]
    above = torch.expm1(log_loss - log_loss.min()) if len(log_loss) else log_loss
    axes.semilogy(column[cost][last], above.clamp_min(1e-17), marker="o", label="loss above the best, relative")
    axes.semilogy(column[cost], column["gradient"].clamp_min(1e-17), marker=".", label="gradient, relative")
    axes.set(xlabel={"reads": "reads of A"}.get(cost, cost))
    axes.set_title(title, fontsize="medium")
    axes.legend()
    return axes
