"""Scales of softmax's answers that ONNX Runtime's int8 kernel takes as they are.

``QLinearSoftmax`` on a processor does not divide by the scale of its answer: it multiplies by the largest whole number
that is not above the scale's reciprocal. The scale of 0 to 1 in 8 bits, 1/255, is a little above that in float32, so
that the kernel works with 254, and one answer in forty comes out a level too low.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

__all__ = ["ABOVE", "exact_scale", "exact_softmax"]

#: The reciprocal of a scale is so much above a whole number: more than float32 is off by, less than rounding sees.
ABOVE = 1e-4


def exact_scale(scale: float) -> float:
    """The scale nearest to this one that the kernel takes as it is: a fraction of one, but for :data:`ABOVE`."""
    return 1 / (max(1, round(1 / scale)) + ABOVE)


def exact_softmax(model: onnx.ModelProto) -> int:
    """Give answers of softmax scales that the kernel takes as they are; how many were changed.

    Args:
        model: with Q/DQ pairs, whose scales are initializers; changed in place.
    """
    from onnx import numpy_helper

    scales = {tensor.name: tensor for tensor in model.graph.initializer}
    answers = {name for node in model.graph.node if node.op_type == "Softmax" for name in node.output}
    pairs = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    rounded = {node.output[0] for node in pairs if node.op_type == "QuantizeLinear" and node.input[0] in answers}
    mine = [node for node in pairs if node.output[0] in rounded or node.input[0] in rounded]
    readers, of_mine = (Counter(node.input[1] for node in group) for group in (pairs, mine))
    changed = 0
    for name in of_mine:
        if name not in scales or scales[name].dims or readers[name] != of_mine[name]:
            continue
        scale = numpy_helper.to_array(scales[name])
        made = scale.dtype.type(exact_scale(float(scale)))
        if made != scale:
            scales[name].CopyFrom(numpy_helper.from_array(made, name))
            changed += 1
    return changed
