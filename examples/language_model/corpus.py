# SPDX-License-Identifier: BSD-3-Clause
"""Text that every machine with Python has: the standard library's own sources, as bytes."""

import hashlib
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

# Tests are not everywhere installed, encodings and _sysconfigdata are tables: none is text that people wrote.
SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "__pycache__"}
HELD_OUT_SHARE = 10  # one file in ten
END_OF_FILE = b"\0"


@dataclass(frozen=True)
class Corpus:
    train: Tensor  # uint8 [bytes]
    held_out: Tensor  # uint8 [bytes]
    train_files: int
    held_out_files: int

    def batch(self, size: int, context: int, seed: int) -> Tensor:
        """``[size, context + 1]`` bytes from random places of the training text; the seed alone decides which."""
        generator = torch.Generator().manual_seed(seed)
        starts = torch.randint(len(self.train) - context, (size, 1), generator=generator)
        return self.train[starts + torch.arange(context + 1)].long()

    def held_out_windows(self, count: int, context: int) -> Tensor:
        """``[count, context + 1]`` bytes at even distances of the held-out text."""
        starts = torch.linspace(0, len(self.held_out) - context - 1, count).long().unsqueeze(1)
        return self.held_out[starts + torch.arange(context + 1)].long()


def is_held_out(name: str) -> bool:
    """Decides by a hash of the file's name, so that a file stays on its side whatever else is installed."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) % HELD_OUT_SHARE == 0


def read_standard_library() -> Corpus:
    root = Path(sysconfig.get_path("stdlib"))
    files = {
        path.relative_to(root).as_posix(): path
        for path in root.rglob("*.py")
        if not SKIPPED_FOLDERS.intersection(path.relative_to(root).parts) and not path.name.startswith("_sysconfigdata")
    }
    names = sorted(files)
    train, held_out = ([name for name in names if is_held_out(name) == side] for side in (False, True))
    if not train or not held_out:
        raise FileNotFoundError(f"expected the sources of Python's standard library under {root}, found {len(names)} files")

    def text(names: list[str]) -> Tensor:
        data = b"".join(files[name].read_bytes() + END_OF_FILE for name in names)
        return torch.frombuffer(bytearray(data), dtype=torch.uint8)

    return Corpus(text(train), text(held_out), len(train), len(held_out))
