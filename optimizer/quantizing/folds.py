"""Where in a graph the division of an activation can be folded to, so that it costs nothing while the model runs."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from optimizer.quantizing.weighted import Part, WeightedGraph, attribute

if TYPE_CHECKING:
    import onnx

__all__ = ["Way", "fold"]

#: Normalizations whose answer is scaled by a weight, and where that weight and the bias lie among their inputs.
_NORMS = {
    "LayerNormalization": (1, 2),
    "RMSNormalization": (1,),
    "SimplifiedLayerNormalization": (1,),
    "SkipLayerNormalization": (2, 3),
    "SkipSimplifiedLayerNormalization": (2,),
}
#: [batch, steps, heads, size] ↔ [batch, heads, steps, size].
_SWAP_HEADS = [0, 2, 1, 3]


class Way(StrEnum):
    """How a division by ``s`` is brought into the graph."""

    NORM = "norm"  # into the weight and bias of the normalization before
    LINEAR = "linear"  # into the columns (and the bias) of the product before, or of the attention's values
    INSERT = "insert"  # no exact way: one Mul before the product


def fold(graph: WeightedGraph, value: str, channels: int) -> tuple[Way, tuple[Part, ...]]:
    """Where a division of a value can be folded to, walking against the flow.

    Args:
        graph: where the value is read by nothing but what will be scaled.
        value: an activation's name.
        channels: its last axis.

    Returns:
        the way, and for a fold what is divided.
    """
    maker = graph.maker(value)
    if maker is None:
        return Way.INSERT, ()
    if maker.op_type in _NORMS and maker.output[0] == value:
        found = _norm(graph, maker, channels)
        return (Way.NORM, found) if found else (Way.INSERT, ())
    found = _linear(graph, value, channels) or _attention(graph, maker, channels)
    return (Way.LINEAR, found) if found else (Way.INSERT, ())


def _norm(graph: WeightedGraph, node: onnx.NodeProto, channels: int) -> tuple[Part, ...]:
    places = [place for place in _NORMS[node.op_type] if place < len(node.input) and node.input[place]]
    if not all(graph.is_weight(node.input[place], channels) for place in places):
        return ()
    return tuple(Part(node.name, place) for place in places)


def _linear(graph: WeightedGraph, value: str, channels: int) -> tuple[Part, ...]:
    """The columns (and bias) of the product that makes a value which nothing else reads."""
    node = _lone(graph, value)
    if node is None:
        return ()
    if node.op_type == "Add":
        for place in (0, 1):
            if graph.is_bias(node.input[place], channels):
                inner = _linear(graph, node.input[1 - place], channels)
                return (*inner, Part(node.name, place)) if inner else ()
        return ()
    if not graph.is_product(node):
        return ()
    columns, axis = graph.columns_of(node)
    if columns != channels:
        return ()
    parts = (Part(node.name, 1, axis),)
    if len(node.input) > 2 and node.input[2]:
        return (*parts, Part(node.name, 2)) if graph.is_bias(node.input[2], channels) else ()
    return parts


def _attention(graph: WeightedGraph, node: onnx.NodeProto, channels: int) -> tuple[Part, ...]:
    """The projection of an attention's values: attention mixes steps, and never channels."""
    if node.op_type == "MultiHeadAttention":
        return _fused_attention(graph, node, channels)
    mixed = _behind(graph, _behind(graph, node, "Reshape"), "Transpose", _SWAP_HEADS)
    if mixed is None or mixed.op_type != "MatMul":
        return ()
    split = _behind(graph, _lone(graph, mixed.input[1]), "Transpose", _SWAP_HEADS)
    if split is None or split.op_type != "Reshape":
        return ()
    return _linear(graph, split.input[0], channels)


def _fused_attention(graph: WeightedGraph, node: onnx.NodeProto, channels: int) -> tuple[Part, ...]:
    if len(node.input) < 3 or not node.input[2] or any(node.input[6:]):
        return ()
    parts = _linear(graph, node.input[2], channels)
    if parts and len(node.input) > 3 and node.input[3]:
        # The biases of query, key and value in one.
        if not graph.is_bias(node.input[3], 3 * channels):
            return ()
        parts += (Part(node.name, 3, start=2 * channels),)
    return parts


def _lone(graph: WeightedGraph, value: str) -> onnx.NodeProto | None:
    return graph.maker(value) if graph.reads(value) == 1 else None


def _behind(
    graph: WeightedGraph, node: onnx.NodeProto | None, op_type: str, perm: list[int] | None = None
) -> onnx.NodeProto | None:
    """The node behind one of that type, when nothing else reads what it hands over."""
    if node is None or node.op_type != op_type or (perm and attribute(node, "perm") != perm):
        return None
    return _lone(graph, node.input[0])
