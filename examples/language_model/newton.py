# SPDX-License-Identifier: BSD-3-Clause
"""A few Newton steps on a small model from scratch, and how many of AdamW's get as far."""

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from language_model.corpus import Corpus
from language_model.model import LanguageModel, ModelSettings
from language_model.training import Trainer, TrainingSettings, mean_loss
from torch_rescaled.optim import Newton

BATCH = 32
MOST_STEPS = 12  # of AdamW, for each of Newton's


@dataclass(frozen=True)
class Phase:
    parameters: int
    bytes_a_step: int
    losses: list[float]  # held out, nats per byte: before, and after every step
    seconds: float
    adamw_steps: int | None  # until its loss is as low; None: it was not
    adamw_seconds: float


def newton_phase(corpus: Corpus, kind: str, steps: int, seed: int) -> Phase:
    settings = ModelSettings(width=64, depth=2, heads=4, context=128, kind=kind)
    windows = corpus.held_out_windows(64, settings.context)
    torch.manual_seed(seed)
    model = LanguageModel(settings)
    groups = Newton.parameter_groups(model, embeddings="newton")
    optimizer = Newton(groups, damping=0.03, preconditioner="kronecker", max_cg_iterations=10, adamw_lr=1e-2, betas=(0.9, 0.95))
    losses, seconds = [mean_loss(model, windows)], 0.0
    for step in range(steps):
        start, batch = time.perf_counter(), corpus.batch(BATCH, settings.context, seed * 1_000_003 + step)
        optimizer.step(lambda batch=batch: model.loss_and_logits(batch))
        seconds += time.perf_counter() - start
        losses.append(mean_loss(model, windows))
    training = TrainingSettings(MOST_STEPS * steps, BATCH, learning_rate=1e-2, warm_up=4, seed=seed)
    adamw = Trainer(settings, training, Path("never_saved.pt"))  # the same start, the same batches
    adamw_seconds, adamw_steps = 0.0, None
    for step in range(1, training.steps + 1):
        start = time.perf_counter()
        adamw.history.train.append(adamw.step(adamw.batch(corpus)))
        adamw_seconds += time.perf_counter() - start
        if step % 2 == 0 and adamw.evaluate(windows) <= losses[-1]:
            adamw_steps = step
            break
    size = sum(p.numel() for p in model.parameters())
    return Phase(size, BATCH * settings.context, losses, seconds, adamw_steps, adamw_seconds)
