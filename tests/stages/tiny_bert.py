"""A store with a small transformer, for tests of what quantizers do to one."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import two_layers

import optimizer
from optimizer.store import Store

__all__ = ["bert"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Path]:
    """A BERT of two layers with random weights as `tiny:fp32` and `tiny:fp32-ort`, and sentences."""
    folder = tmp_path_factory.mktemp("bert")
    source = two_layers(folder / "tiny")
    store = Store(folder / "models")
    optimizer.export_onnx(str(source), name="tiny", store=store)
    optimizer.ort_optimize("tiny:fp32", store=store)
    texts = [" ".join("abcdefgh"[: 2 + place % 6]) + (" good" if place % 2 else " bad") for place in range(12)]
    (folder / "texts.txt").write_text("\n".join(texts))
    return store, folder / "texts.txt"
