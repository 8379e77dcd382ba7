# SPDX-License-Identifier: BSD-3-Clause
"""A cache of N keys and values replaced by m keys, log weights and values, which for sampled queries keep what attention needs of
it: outputs, and log normalizers, which say how much the cache counts beside other keys (the task of arXiv:2602.16284).

* in steps: the m keys with the most attention, weights by nonnegative least squares of the normalizers, values by least squares;
* jointly: keys, weights and values together from there, by L-BFGS on fused attention, its outputs and its log normalizers.

The cache is that of a layer of the sentence encoder all-MiniLM-L6-v2 for a passage of 512 tokens; queries are of passages of the
same sentences in other orders, one of them held out. Where the encoder's weights (the extra `encoder`) are missing, all is made up.

python examples/compact_kv_cache.py     # a minute; writes compact_kv_cache.png
"""

import argparse
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from sentence_encoder import MISSING, Encoder, model_folder, sentences
from torch import Tensor

from torch_rescaled import attention_with_normalizer

COLORS = {"in steps": "#d1570a", "jointly": "#1f6feb"}


@dataclass
class Cache:
    key: Tensor  # [heads, keys, 32]
    value: Tensor  # [heads, keys, 32]
    log_weight: Tensor  # [heads, keys], added to the scores

    def attend(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs [heads, queries, 32] and log normalizers [heads, queries]."""
        mask = self.log_weight.unsqueeze(-2)
        output, _, log_normalizer = attention_with_normalizer(query, self.key, self.value, attn_mask=mask, scale=1.0)
        return output, log_normalizer


@dataclass
class Result:
    name: str
    keys: int
    output: float  # |outputs - whole cache's|^2 / |whole cache's|^2, held-out queries
    normalizer: float  # root of the mean square of the log normalizers' difference, held-out queries
    seen: float  # the outputs' error for the queries of the fit
    seconds: float


def real(layer: int) -> tuple[Tensor, Tensor, Cache] | None:
    """Queries seen and held out, and the cache."""
    folder = model_folder()
    if folder is None:
        return None
    encoder, texts, order = Encoder(folder), sentences(), random.Random(0)

    def passage() -> tuple[Tensor, ...]:
        words = " ".join(texts).split()
        while len(encoder.tokenizer(" ".join(words))) > 512:  # as many positions as the encoder has
            words.pop()
        x, _ = encoder.hidden([" ".join(words)], layer)
        with torch.no_grad():
            q, k, v = (part[0].double() for part in encoder.project(layer, x))
        return q / q.shape[-1] ** 0.5, k, v

    _, k, v = passage()
    queries = []
    for _ in range(4):
        order.shuffle(texts)
        queries.append(passage()[0])
    return torch.cat(queries[:3], -2), queries[3], Cache(k, v, k.new_zeros(k.shape[:-1]))


def made_up(heads: int, keys: int) -> tuple[Tensor, Tensor, Cache]:
    """Keys around centers, queries that look for them."""
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    centers, of = normal(heads, 24, 16), torch.randint(24, (keys,), generator=g)
    k = centers[:, of] + 0.5 * normal(heads, keys, 16)
    seen, held_out = (centers[:, of.repeat(n)] / 2 + 0.3 * normal(heads, n * keys, 16) for n in (3, 1))
    return seen, held_out, Cache(k, normal(heads, keys, 16), k.new_zeros(heads, keys))


def in_steps(query: Tensor, cache: Cache, m: int) -> Cache:
    from scipy.optimize import nnls

    outputs, log_normalizer = cache.attend(query)
    shares = torch.exp(query @ cache.key.mT - log_normalizer.unsqueeze(-1))  # of a query's attention [heads, queries, keys]
    chosen = shares.sum(-2).topk(m, -1).indices
    key = torch.take_along_dim(cache.key, chosen.unsqueeze(-1), -2)
    columns = torch.take_along_dim(shares, chosen.unsqueeze(-2), -1)
    weights = torch.stack([torch.from_numpy(nnls(a.numpy(), a.new_ones(len(a)).numpy())[0]) for a in columns])
    found = Cache(key, torch.eye(m, dtype=key.dtype).expand(len(key), -1, -1), weights.clamp_min(1e-6).log())
    found.value = torch.linalg.lstsq(found.attend(query)[0], outputs, driver="gelsd").solution
    return found


def jointly(query: Tensor, cache: Cache, start: Cache, evaluations: int) -> Cache:
    """Squares of the outputs' errors, relative to each head's outputs, and of the log normalizers'."""
    outputs, log_normalizer = cache.attend(query)
    size = outputs.square().sum((-2, -1), keepdim=True)
    parameters = [p.clone(memory_format=torch.contiguous_format).requires_grad_() for p in vars(start).values()]
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=evaluations, max_eval=evaluations, history_size=50, line_search_fn="strong_wolfe",
        tolerance_grad=0, tolerance_change=0,
    )  # fmt: skip

    def closure() -> Tensor:
        optimizer.zero_grad()
        found, log_found = Cache(*parameters).attend(query)
        loss = ((found - outputs).square() / size).sum() + (log_found - log_normalizer).square().mean(-1).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return Cache(*(p.detach() for p in parameters))


def judge(name: str, found: Cache, cache: Cache, seen: Tensor, held_out: Tensor, seconds: float) -> Result:
    errors = []
    for query in (held_out, seen):
        (output, log_normalizer), (wanted, log_wanted) = found.attend(query), cache.attend(query)
        error = (output - wanted).square().sum((-2, -1)) / wanted.square().sum((-2, -1))
        errors.append((error.mean().item(), (log_normalizer - log_wanted).square().mean().sqrt().item()))
    return Result(name, found.key.shape[-2], *errors[0], errors[1][0], seconds)


def picture(results: list[Result], title: str, path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for name, color in COLORS.items():
        of = [r for r in results if r.name == name]
        left.plot([r.keys for r in of], [r.output for r in of], "o-", color=color, label=name)
        left.plot([r.keys for r in of], [r.seen for r in of], ":", color=color)
        right.plot([r.keys for r in of], [r.normalizer for r in of], "o-", color=color)
    left.set(ylabel="|outputs - cache's|² / |cache's|²", title="outputs: held-out queries, dotted: seen")
    right.set(ylabel="root mean square", title="log normalizers' error, held out")
    for axes in (left, right):
        axes.set(xscale="log", yscale="log", xlabel="keys kept")
        axes.set_xticks(keys := sorted({r.keys for r in results}), map(str, keys))
        axes.xaxis.minorticks_off()
        axes.grid(alpha=0.25)
        axes.yaxis.set_minor_formatter("{x:g}")  # less than a decade has no major ticks
    left.legend(frameon=False)
    figure.suptitle(title)
    figure.savefig(path, dpi=80)
    pyplot.close(figure)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layer", type=int, choices=range(6), default=2, metavar="0 to 5")
    parser.add_argument("--keys", type=int, nargs="+", default=[8, 16, 32, 64], help="kept of every head")
    parser.add_argument("--evaluations", type=int, default=150, help="of the joint fit's loss")
    parser.add_argument("--quick", action="store_true", help="a small made-up cache")
    parser.add_argument("--picture", type=Path, default=Path("compact_kv_cache.png"))
    options = parser.parse_args(arguments)
    begin, loaded = time.perf_counter(), None if options.quick else real(options.layer)
    if loaded is None and not options.quick:
        print(f"{MISSING}; a made-up cache instead")
    seen, held_out, cache = loaded or made_up(*((2, 80) if options.quick else (12, 512)))
    heads, n = cache.log_weight.shape
    title = f"{n} keys of {heads} heads, " + (f"layer {options.layer} of all-MiniLM-L6-v2" if loaded else "made up")
    print(f"{title}; {seen.shape[-2]} queries seen\n{'':12}{'keys':>6}{'outputs':>12}{'seen':>12}{'normalizers':>13}{'seconds':>9}")
    results = []
    for m in [4, 8] if options.quick else options.keys:
        start = time.perf_counter()
        found = in_steps(seen, cache, m)
        results.append(judge("in steps", found, cache, seen, held_out, time.perf_counter() - start))
        joint = jointly(seen, cache, found, options.evaluations)
        results.append(judge("jointly", joint, cache, seen, held_out, time.perf_counter() - start))
        for r in results[-2:]:
            print(f"{r.name:12}{r.keys:6}{r.output:12.5f}{r.seen:12.5f}{r.normalizer:13.4f}{r.seconds:9.2f}")
    picture(results, title, options.picture)
    print(f"wrote {options.picture}   ({time.perf_counter() - begin:.0f} s in all)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
