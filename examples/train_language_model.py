# SPDX-License-Identifier: BSD-3-Clause
"""Train a byte-level GPT of about a million parameters on Python's own standard library, once per kind of attention.

Prints a table of held-out losses, speed and the largest eigenvalue of the loss's Hessian (which needs the second derivative of the
attention), shows what the models write, draws the loss curves, and ends with a few Newton steps on a smaller model. A run can be
stopped with Ctrl-C and continued with --resume.
"""

import argparse
import sys
import time
from pathlib import Path

import torch
from language_model.corpus import Corpus, read_standard_library
from language_model.curvature import largest_eigenvalue
from language_model.model import ModelSettings
from language_model.newton import Phase, newton_phase
from language_model.report import BITS, Result, picture, sample, table
from language_model.training import CheckpointError, Trainer, TrainingSettings

import torch_rescaled

KINDS = ("exp", "cosh", "sinh", "signed")
OPTIMIZERS = ("adamw", "muon", "newton")
FINAL_WINDOWS = 384


def parse(arguments: list[str] | None) -> argparse.Namespace:
    model, training = ModelSettings(), TrainingSettings()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def add(name: str, help: str, **options: object) -> None:
        default = options.get("default")
        shown = " ".join(default) if isinstance(default, list) else default
        parser.add_argument(name, help=help if shown is None else f"{help} (default: {shown})", **options)  # type: ignore[arg-type]

    add("--kind", "kinds of attention to compare, same seed", nargs="+", choices=KINDS, default=["exp", "cosh"])
    add("--attention", "sdpa: PyTorch's own attention, kind exp only", choices=("fused", "sdpa"), default="fused")
    add("--steps", "training steps of each kind", type=positive, metavar="N", default=training.steps)
    add("--batch", "sequences in a step", type=positive, metavar="N", default=training.batch)
    add("--context", "bytes in a sequence", type=positive, metavar="N", default=model.context)
    add("--width", "size of the residual stream", type=positive, metavar="N", default=model.width)
    add("--depth", "number of blocks", type=positive, metavar="N", default=model.depth)
    add("--heads", "attention heads of a block", type=positive, metavar="N", default=model.heads)
    add("--learning-rate", "highest learning rate", type=float, metavar="X", default=training.learning_rate)
    add("--optimizer", "newton: torch_rescaled's, by Gauss-Newton products", choices=OPTIMIZERS, default=training.optimizer)
    add("--seed", "everything random follows from it", type=int, metavar="N", default=training.seed)
    add("--threads", "CPU threads (default: all cores)", type=positive, metavar="N")
    add("--hessian-products", "most Hessian products for the eigenvalue; 0: none", type=not_negative, metavar="N", default=16)
    add("--newton-steps", "steps of optim.Newton at the end; 0: none", type=not_negative, metavar="N", default=6)
    add("--prompt", "what the samples begin with", metavar="TEXT", default="def ")
    add("--sample-bytes", "length of the samples; 0: none", type=not_negative, metavar="N", default=200)
    add("--output", "folder of checkpoints and the picture", type=Path, metavar="FOLDER", default=Path("runs"))
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoints in the output folder")
    chosen = parser.parse_args(arguments)
    if chosen.attention == "sdpa" and chosen.kind != ["exp"]:
        parser.error("--attention sdpa has only the kind exp: add --kind exp")
    if not chosen.prompt:
        parser.error("--prompt must not be empty: the model needs a byte to begin with")
    if chosen.width % (2 * chosen.heads):
        parser.error(f"--width must be a multiple of twice --heads, got {chosen.width} and {chosen.heads}")
    return chosen


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {value}")
    return value


def not_negative(text: str) -> int:
    return 0 if text == "0" else positive(text)


def run(kind: str, chosen: argparse.Namespace, corpus: Corpus) -> tuple[Trainer, Result]:
    model = ModelSettings(chosen.width, chosen.depth, chosen.heads, chosen.context, kind, chosen.attention)
    training = TrainingSettings(
        chosen.steps, chosen.batch, chosen.learning_rate, warm_up=max(1, chosen.steps // 10), seed=chosen.seed,
        optimizer=chosen.optimizer,
    )  # fmt: skip
    name = f"{kind}-{chosen.attention}" + ("" if chosen.optimizer == training.optimizer else f"-{chosen.optimizer}")
    trainer = Trainer(model, training, chosen.output / f"{name}.pt")
    if chosen.resume and trainer.resume():
        print(f"{kind}: continuing {trainer.checkpoint} after step {len(trainer.history.train)}")
    trainer.train(corpus)
    held_out = trainer.evaluate(corpus.held_out_windows(FINAL_WINDOWS, chosen.context))
    eigenvalue = None
    if chosen.hessian_products > 0:
        eigenvalue = largest_eigenvalue(
            trainer.model, corpus.batch(chosen.batch, chosen.context, -1), chosen.hessian_products, chosen.seed
        )
    tokens = len(trainer.history.train) * chosen.batch * chosen.context
    return trainer, Result(kind, trainer.history, tokens, held_out, eigenvalue)


def describe(phase: Phase) -> str:
    steps, first, last = len(phase.losses) - 1, phase.losses[0] * BITS, phase.losses[-1] * BITS
    reached = "AdamW did not get there" if phase.adamw_steps is None else f"AdamW gets there in {phase.adamw_steps} steps"
    return (
        f"Newton: {steps} steps on {phase.bytes_a_step} bytes each take a model of {phase.parameters / 1e6:.2f} M parameters from "
        f"{first:.2f} to {last:.2f} bits per byte held out, in {phase.seconds:.0f} s; {reached}, in {phase.adamw_seconds:.0f} s."
    )


def main(arguments: list[str] | None = None) -> int:
    chosen = parse(arguments)
    start = time.perf_counter()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    corpus = read_standard_library()
    print(
        f"Corpus: Python's standard library, {len(corpus.train) / 1e6:.1f} MB in {corpus.train_files} files; "
        f"held out {len(corpus.held_out) / 1e6:.1f} MB in {corpus.held_out_files} files."
    )
    path = "PyTorch's own" if chosen.attention == "sdpa" else torch_rescaled.backend(torch.empty(1, 1))
    print(f"Training on {torch.get_num_threads()} threads, attention {path}; Ctrl-C stops, --resume continues.")
    runs = []
    try:
        for kind in dict.fromkeys(chosen.kind):
            runs.append(run(kind, chosen, corpus))
    except CheckpointError as error:
        print(f"train_language_model: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nStopped; the checkpoints are in {chosen.output}. Add --resume to continue.")
        return 130
    results = [result for _, result in runs]
    size = sum(p.numel() for p in runs[0][0].model.parameters())
    if chosen.sample_bytes > 0:
        for trainer, result in runs:
            text = sample(trainer.model, chosen.prompt, chosen.sample_bytes, chosen.seed)
            print(f"\n--- {result.kind} writes " + "-" * 40 + f"\n{text}\n" + "-" * 60)
    print(f"\n{table(results)}\n")
    if chosen.hessian_products > 0:
        print("Hessian eigenvalue: the largest of the training loss, by products through the attention's second derivative; plain")
        print("gradient descent would be stable up to a learning rate of 2 / eigenvalue.")
    image = chosen.output / "language_model.png"
    picture(results, f"GPT of {size / 1e6:.2f} M parameters on the bytes of Python's standard library", image)
    if chosen.newton_steps > 0:
        print(describe(newton_phase(corpus, results[0].kind, chosen.newton_steps, chosen.seed)))
    print(f"Loss curves: {image}   ({time.perf_counter() - start:.0f} s in all)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
