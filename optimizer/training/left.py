"""What of a model stays in float: the module, of which class, and why."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from optimizer.types import JSON

if TYPE_CHECKING:
    import torch

    from optimizer.training.quantized import QuantizedModel

__all__ = ["left_in_float", "said_of"]

#: The function that reads a weight → why the weight is not rounded there.
_WHY = {
    **dict.fromkeys(
        ("lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"),
        "recurrent layers are not quantized",
    ),
    **dict.fromkeys(
        ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), "transposed convolutions are not quantized"
    ),
    "multi_head_attention_forward": "torch's own attention is not quantized: its products are made inside of torch",
    "embedding_bag": "bags of embeddings are not quantized",
    "bilinear": "bilinear layers are not quantized",
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), "4 bits are for linear layers: convolutions have no blocks"),
}
#: Groups of modules that have a line each.
_LINES = 5
_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


def left_in_float(model: QuantizedModel) -> list[dict[str, JSON]]:
    """What has weights of two dimensions or more that are not rounded, like modules together.

    Returns:
        the largest first, of each: ``modules`` (the path, with ``*`` in the place of a number that differs; of a
        parameter that no layer of its own holds, the parameter's), ``class``, ``count`` of the modules, ``weights``
        (how many numbers) and ``why``.
    """
    modules: dict[str, torch.nn.Module] = dict(model.module.named_modules())
    groups: dict[tuple[str, str, str], dict[str, int]] = {}
    for name, size in model.float_weights().items():
        path = name.rpartition(".")[0]
        owner = modules[path]
        kind = type(owner).__name__
        if not path or any(True for _ in owner.children()):  # a part of what is made of parts
            path, kind = name, f"of {kind}"
        of = groups.setdefault((_NUMBER.sub("*", path), kind, _why(model, name)), {})
        of[path] = of.get(path, 0) + size
    found: list[dict[str, JSON]] = [
        {
            "modules": pattern if len(of) > 1 else next(iter(of)),
            "class": kind,
            "count": len(of),
            "weights": sum(of.values()),
            "why": why,
        }
        for (pattern, kind, why), of in groups.items()
    ]
    return sorted(found, key=lambda each: -int(each["weights"]))


def said_of(left: Sequence[Mapping[str, JSON]], total: int) -> list[str]:
    """A line for each of :func:`left_in_float`, up to a few.

    Args:
        left: what stays in float.
        total: numbers that all weights of the model have.
    """
    lines = []
    for each in left[:_LINES]:
        several = each["count"] > 1
        kind = f"{each['count']} × {each['class']}" if several else each["class"]
        verb = "stay" if several else "stays"
        share = f"{each['weights'] / total:.1%} of the weights"
        lines.append(f"{each['modules']} ({kind}) {verb} in float, {share}: {each['why']}")
    if more := left[_LINES:]:
        share = f"{sum(each['weights'] for each in more) / total:.1%} of the weights"
        lines.append(f"and others stay in float ({len(more)}), {share}: float_modules in the manifest names them")
    return lines


def _why(model: QuantizedModel, name: str) -> str:
    if not model.takes(name):
        return "it is of the task's own head; --quantize-head takes it"
    readers = model.read_by.get(name, [])
    known = next((reader for reader in readers if reader in _WHY), None)
    if known is not None:
        return _WHY[known]
    if readers:
        return f"what reads it is {readers[0].strip('_')}, which is not quantized"
    return "nothing that is quantized reads it"
