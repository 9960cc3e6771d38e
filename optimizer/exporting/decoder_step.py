"""One step of a decoder as PyTorch traces it: some new tokens behind a cache that goes in and comes out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Shape", "asked_of", "export_step"]

#: Under 23, where attention is not one operator that quantizers break.
_OPSET = 20
#: Rows, new tokens and tokens before them that are traced: none is 1, which would become a constant.
_ROWS, _NEW, _PAST = 2, 3, 5


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder's cache.

    Attributes:
        layers: how many layers have a cache.
        heads: of queries.
        kv_heads: of keys and values.
        head_size: numbers in a head.
        hidden: numbers of a token between layers.
        vocabulary: how many tokens have logits.
    """

    layers: int
    heads: int
    kv_heads: int
    head_size: int
    hidden: int
    vocabulary: int


def asked_of(shape: Shape, dtype: Any, layers: int) -> dict[str, Any]:
    """What a step of so many layers is traced with, by the name of what is asked.

    Args:
        shape: the sizes of the cache.
        dtype: its type of number, of torch.
        layers: how many have a cache.
    """
    import torch

    past = [
        tuple(torch.zeros(_ROWS, shape.kv_heads, _PAST, shape.head_size, dtype=dtype) for _ in range(2))
        for _ in range(layers)
    ]
    return {
        "input_ids": torch.ones(_ROWS, _NEW, dtype=torch.long),
        "attention_mask": torch.ones(_ROWS, _PAST + _NEW, dtype=torch.long),
        "position_ids": torch.arange(_PAST, _PAST + _NEW).expand(_ROWS, _NEW).contiguous(),
        "past": past,
    }


def export_step(stepper: Any, asked: Mapping[str, Any], *, optimize: bool = True) -> Any:
    """PyTorch's export of a step, an ``ONNXProgram``.

    Args:
        stepper: a module that answers with logits, and with keys and values of each layer.
        asked: what it takes, as :func:`asked_of` makes it: ``past``, and the rest ``[rows, tokens]``.
        optimize: have the graph optimized.
    """
    import torch
    from torch.export import Dim

    layers = len(asked["past"])
    rows = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
    dynamic: dict[str, Any] = {name: rows for name in asked if name != "past"}
    dynamic["past"] = [({0: Dim.DYNAMIC, 2: Dim.DYNAMIC},) * 2 for _ in range(layers)]
    caches = [f"{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
    return torch.onnx.export(
        stepper,
        (),
        kwargs=dict(asked),
        dynamic_shapes=dynamic,
        input_names=[name for name in asked if name != "past"] + [f"past_key_values.{c}" for c in caches],
        output_names=["logits", *(f"present.{c}" for c in caches)],
        opset_version=_OPSET,
        dynamo=True,
        verbose=False,
        optimize=optimize,
    )
