# SPDX-License-Identifier: BSD-3-Clause
"""What the reports' tables are made of."""

from typing import Any

OURS = "torch_rescaled"
NAMES = {"forward": "forward", "backward": "backward", "jvp": "JVP", "double_backward": "double backward"}


def where(result: dict[str, Any]) -> str:
    return f"{result['machine']['cpu']}, {result['isa']}, torch {result['torch']}, commit {result['commit']}, {result['date']}."


def markdown_table(rows: list[list[str]]) -> str:
    """The first row is the header."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def replaced(page: str, benchmark: str, content: str) -> str:
    """The page with `content` between the benchmark's markers."""
    begin, end = f"<!-- benchmarks:{benchmark} -->", f"<!-- /benchmarks:{benchmark} -->"
    head, found, rest = page.partition(begin)
    _, ended, tail = rest.partition(end)
    if not found or not ended:
        raise SystemExit(f"expected the markers {begin} and {end} in the page")
    return f"{head}{begin}\n{content}\n{end}{tail}"
