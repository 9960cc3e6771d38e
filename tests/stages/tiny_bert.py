"""A store with a small transformer, for tests of what quantizers do to one."""

from __future__ import annotations

from pathlib import Path

import pytest

import optimizer
from optimizer.store import Store

__all__ = ["bert"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Path]:
    """A BERT of two layers with random weights as `tiny:fp32` and `tiny:fp32-ort`, and sentences."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    source = folder / "tiny"
    source.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz", "good", "bad"]
    (source / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(source / "vocab.txt")).save_pretrained(source)
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=64, **sizes)).save_pretrained(source)
    store = Store(folder / "models")
    optimizer.export_onnx(str(source), name="tiny", store=store)
    optimizer.ort_optimize("tiny:fp32", store=store)
    texts = [" ".join("abcdefgh"[: 2 + place % 6]) + (" good" if place % 2 else " bad") for place in range(12)]
    (folder / "texts.txt").write_text("\n".join(texts))
    return store, folder / "texts.txt"
