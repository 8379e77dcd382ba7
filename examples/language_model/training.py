# SPDX-License-Identifier: BSD-3-Clause
"""AdamW or Muon with warm-up and a cosine schedule, or Newton steps; a run can stop anywhere and go on as if it had not."""

import math
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import torch_rescaled
from language_model.corpus import Corpus
from language_model.model import LanguageModel, ModelSettings

CHECKPOINT_SECONDS = 20.0
EVALUATIONS = 12
EVALUATION_WINDOWS = 64


@dataclass(frozen=True)
class TrainingSettings:
    steps: int = 450
    batch: int = 8
    learning_rate: float = 3e-3
    warm_up: int = 50
    weight_decay: float = 0.1
    seed: int = 0
    optimizer: str = "adamw"

    def learning_rate_at(self, step: int) -> float:
        if step < self.warm_up:
            return self.learning_rate * (step + 1) / self.warm_up
        progress = (step - self.warm_up) / max(1, self.steps - self.warm_up)
        return self.learning_rate * (0.05 + 0.95 * (1 + math.cos(math.pi * progress)) / 2)


@torch.no_grad()
def mean_loss(model: LanguageModel, windows: Tensor) -> float:
    """Over ``windows``, in nats per byte."""
    return sum(model.loss(part).item() * len(part) for part in windows.split(32)) / len(windows)


class CheckpointError(Exception):
    """A checkpoint that this run cannot continue."""


@dataclass
class History:
    """Losses in nats per byte."""

    train: list[float] = field(default_factory=list)  # one per step
    held_out: list[tuple[int, float]] = field(default_factory=list)  # (steps done, loss)
    seconds: float = 0.0  # of training alone


def make_optimizers(model: LanguageModel, training: TrainingSettings) -> list[Any]:
    """One, or Muon for the blocks' matrices with AdamW for the rest."""
    if training.optimizer == "newton":
        groups = torch_rescaled.optim.Newton.parameter_groups(model, embeddings="newton")
        settings = {"damping": 0.03, "preconditioner": "kronecker", "betas": (0.9, 0.95)}
        return [torch_rescaled.optim.Newton(groups, **settings)]
    embeddings = {id(p) for m in model.modules() if isinstance(m, torch.nn.Embedding) for p in m.parameters(recurse=False)}
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = {"params": [p for p in model.parameters() if p.dim() <= 1], "weight_decay": 0.0}
    muons = [p for p in matrices if id(p) not in embeddings] if training.optimizer == "muon" else []
    rest = [p for p in matrices if training.optimizer != "muon" or id(p) in embeddings]
    decay = training.weight_decay
    optimizers: list[Any] = [torch.optim.AdamW([{"params": rest, "weight_decay": decay}, vectors], betas=(0.9, 0.95), fused=True)]
    if muons:
        optimizers.append(torch.optim.Muon(muons, weight_decay=decay, adjust_lr_fn="match_rms_adamw"))
    return optimizers


class Trainer:
    """Model, optimizer and history of one run, and the file that they are kept in."""

    def __init__(self, model: ModelSettings, training: TrainingSettings, checkpoint: Path) -> None:
        torch.manual_seed(training.seed)
        self.settings, self.checkpoint = training, checkpoint
        self.model = LanguageModel(model)
        self.optimizers = make_optimizers(self.model, training)
        self.history = History()

    def step(self, windows: Tensor) -> float:
        if self.settings.optimizer == "newton":
            # It decides on the length of its steps itself; the schedule is for AdamW's part of the parameters.
            newton = self.optimizers[0]
            for group in newton.param_groups:
                if group["method"] == "adamw":
                    group["lr"] = self.settings.learning_rate_at(len(self.history.train))
            loss: Tensor = newton.step(lambda: self.model.loss_and_logits(windows))
            return loss.item()
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.settings.learning_rate_at(len(self.history.train))
            optimizer.zero_grad()
        loss = self.model.loss(windows)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        return loss.item()

    def batch(self, corpus: Corpus) -> Tensor:
        """The batch of the next step: a function of seed and step, whatever happened before."""
        seed = self.settings.seed * 1_000_003 + len(self.history.train)
        return corpus.batch(self.settings.batch, self.model.settings.context, seed)

    def train(self, corpus: Corpus) -> None:
        """Up to the last step. Interrupted (Ctrl-C), it saves what it has and passes the interruption on."""
        steps, saved = self.settings.steps, time.perf_counter()
        windows = corpus.held_out_windows(EVALUATION_WINDOWS, self.model.settings.context)
        # On a terminal the bar moves; in a log it takes a line now and then.
        interval = 0.2 if sys.stderr.isatty() else 15.0
        bar = tqdm(total=steps, initial=len(self.history.train), desc=self.model.settings.kind, unit="step", mininterval=interval)
        try:
            while len(self.history.train) < steps:
                start = time.perf_counter()
                loss = self.step(self.batch(corpus))
                self.history.train.append(loss)
                self.history.seconds += time.perf_counter() - start
                done = len(self.history.train)
                if done == steps or done * EVALUATIONS // steps > (done - 1) * EVALUATIONS // steps:
                    self.history.held_out.append((done, self.evaluate(windows)))
                held_out = f"{self.history.held_out[-1][1]:.3f}" if self.history.held_out else "-"
                bar.set_postfix_str(f"loss {loss:.3f}, held out {held_out}", refresh=False)
                bar.update()
                if time.perf_counter() - saved > CHECKPOINT_SECONDS:
                    self.save()
                    saved = time.perf_counter()
        finally:
            bar.close()
            self.save()

    def evaluate(self, windows: Tensor) -> float:
        return mean_loss(self.model, windows)

    def save(self) -> None:
        """Writes beside the file first: an interruption leaves the old one or the new one."""
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.checkpoint.with_suffix(".unfinished")
        torch.save(
            {
                "settings": self._all_settings(),
                "model": self.model.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                "history": asdict(self.history),
            },
            unfinished,
        )
        unfinished.replace(self.checkpoint)

    def resume(self) -> bool:
        """Goes on where the checkpoint stopped; False if there is none. Refuses a checkpoint of other settings."""
        if not self.checkpoint.exists():
            return False
        state = torch.load(self.checkpoint, weights_only=True)
        expected, got = self._all_settings(), state["settings"]
        if got != expected:
            differ = ", ".join(
                f"{name} {got.get(name)} (now {value})" for name, value in expected.items() if got.get(name) != value
            )
            raise CheckpointError(f"{self.checkpoint} was made with {differ}: use the same settings, or another --output")
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.history = History(**state["history"])
        return True

    def _all_settings(self) -> dict[str, Any]:
        return asdict(self.model.settings) | asdict(self.settings)
