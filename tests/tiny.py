"""A BERT of one layer with random weights, for any of its heads; its vocabulary is the letters."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def tiny_bert(folder: Path, head: str, seed: int = 0, **config: Any) -> Path:
    """Save a model and its tokenizer.

    Args:
        folder: made, parents too.
        head: the class of ``transformers``, e.g. ``BertForTokenClassification``.
        seed: of the weights.
        config: of :class:`BertConfig`, e.g. ``id2label``.
    """
    import torch
    import transformers

    folder.mkdir(parents=True)
    # Words of several letters are several tokens, so that where a word begins can be got wrong.
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS), "."]
    (folder / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    settings = {"vocab_size": len(words), "max_position_embeddings": 32, "initializer_range": 0.5, **sizes, **config}
    getattr(transformers, head)(transformers.BertConfig(**settings)).save_pretrained(folder)
    return folder


def two_layers(folder: Path) -> Path:
    """Save a BERT of two layers, which knows letters and the words "good" and "bad", and its tokenizer."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder.mkdir(parents=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, "good", "bad"]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=64, **sizes)).save_pretrained(folder)
    return folder


def phrases(count: int, seed: int, longest: int = 12) -> list[list[str]]:
    """Lists of words of one to three letters."""
    drawn = random.Random(seed)
    return [
        ["".join(drawn.choices(LETTERS, k=drawn.randint(1, 3))) for _ in range(drawn.randint(2, longest))]
        for _ in range(count)
    ]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows as jsonl."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
